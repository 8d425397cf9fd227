//! Kafka behind TLS and logins: the API and the worker get through each kind of door with the right key, and say what is
//! wrong with any other.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::ensure;
use e2e::{broker::Broker, env, eventually, service::Service, world::World, world::free_port};
use futures::{StreamExt, stream};

const USER: &str = "ingest";
const PASSWORD: &str = "hunter2-is-right";

/// A broker with a door of each kind.
struct Fortress {
    broker: Broker,
    /// Certificates on both sides.
    ssl: u16,
    sasl_plaintext: u16,
    sasl_ssl: u16,
}

impl Fortress {
    async fn start() -> Self {
        let broker = Broker::reserve().await;
        let [ssl, sasl_plaintext, sasl_ssl] = [(); 3].map(|()| free_port());
        certificates(broker.folder());
        let path = |name: &str| broker.folder().join(name).display().to_string();
        // However busy the machine: it works, and is not to be fenced.
        let mut properties = "broker.session.timeout.ms=600000\n".to_owned();
        for port in [ssl, sasl_ssl] {
            let door = format!("listener.name.door{port}.ssl");
            properties += &format!("{door}.keystore.type=PEM\n{door}.keystore.location={}\n", path("broker.both"));
            properties += &format!("{door}.truststore.type=PEM\n{door}.truststore.location={}\n", path("ca.pem"));
        }
        properties += &format!("listener.name.door{ssl}.ssl.client.auth=required\n");
        for port in [sasl_plaintext, sasl_ssl] {
            let door = format!("listener.name.door{port}");
            let module = "org.apache.kafka.common.security";
            properties += &format!("{door}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n");
            properties += &format!(
                "{door}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n"
            );
            for mechanism in ["scram-sha-256", "scram-sha-512"] {
                properties +=
                    &format!("{door}.{mechanism}.sasl.jaas.config={module}.scram.ScramLoginModule required;\n");
            }
        }
        let users = ["SCRAM-SHA-256", "SCRAM-SHA-512"].map(|how| format!("{how}=[name={USER},password={PASSWORD}]"));
        let doors = [(ssl, "SSL"), (sasl_plaintext, "SASL_PLAINTEXT"), (sasl_ssl, "SASL_SSL")];
        let mut broker = broker.with_security(&doors, &properties, &users);
        broker.up().await;
        Self { broker, ssl, sasl_plaintext, sasl_ssl }
    }

    fn file(&self, name: &str) -> String {
        self.broker.folder().join(name).display().to_string()
    }

    fn world(&self, port: u16, protocol: &str) -> World {
        let world = World::on(&format!("127.0.0.1:{port}"), &env::redis_url());
        let world = world.with("KAFKA_SECURITY_PROTOCOL", protocol);
        if protocol.ends_with("ssl") { world.with("KAFKA_SSL_CA_FILE", self.file("ca.pem")) } else { world }
    }

    fn with_certificate(&self, name: &str) -> World {
        let world = self.world(self.ssl, "ssl");
        let world = world.with("KAFKA_SSL_CERTIFICATE_FILE", self.file(&format!("{name}.pem")));
        world.with("KAFKA_SSL_KEY_FILE", self.file(&format!("{name}.key")))
    }

    fn with_login(&self, protocol: &str, mechanism: &str, password: &str) -> World {
        let port = if protocol == "sasl_ssl" { self.sasl_ssl } else { self.sasl_plaintext };
        let world = self.world(port, protocol).with("KAFKA_SASL_MECHANISM", mechanism);
        world.with("KAFKA_SASL_USERNAME", USER).with("KAFKA_SASL_PASSWORD", password)
    }
}

/// An authority, a broker and a client with certificates of it, and an outsider with one of another.
fn certificates(folder: &Path) {
    for name in ["ca", "other"] {
        let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority";
        openssl(folder, &format!("{words} -keyout {name}.key -out {name}.pem"));
    }
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    for (name, authority) in [("broker", "ca"), ("client", "ca"), ("outsider", "other")] {
        openssl(folder, &format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let sign =
            format!("x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2");
        openssl(folder, &format!("{sign} -extfile names -out {name}.pem"));
    }
    openssl(folder, "rsa -aes256 -passout pass:hunter2-of-the-key -in client.key -out locked.key");
    std::fs::copy(folder.join("client.pem"), folder.join("locked.pem")).unwrap();
    // The broker wants its key and its certificate in one file.
    let both = ["broker.key", "broker.pem"].map(|name| std::fs::read_to_string(folder.join(name)).unwrap());
    std::fs::write(folder.join("broker.both"), both.concat()).unwrap();
}

fn openssl(folder: &Path, words: &str) {
    let mut command = Command::new("openssl");
    command.args(words.split(' ')).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "openssl {words}");
}

fn tells_no_secret(service: &Service) {
    assert!(!service.process.output().contains("hunter2"), "a secret is in the output of {}", service.port);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_processed_through_every_kind_of_door() {
    let fortress = Fortress::start().await;
    let locked = fortress.with_certificate("locked").with("KAFKA_SSL_KEY_PASSWORD", "hunter2-of-the-key");
    let mut worlds = vec![("a certificate", fortress.with_certificate("client")), ("an encrypted key", locked)];
    for (protocol, mechanism) in [
        ("sasl_plaintext", "PLAIN"),
        ("sasl_plaintext", "SCRAM-SHA-256"),
        ("sasl_ssl", "PLAIN"),
        ("sasl_ssl", "SCRAM-SHA-256"),
        ("sasl_ssl", "SCRAM-SHA-512"),
    ] {
        worlds.push((mechanism, fortress.with_login(protocol, mechanism, PASSWORD)));
    }
    two_at_a_time(worlds, async |(key, world)| {
        let (api, worker) = world.start().await;
        api.client.publish(r#"{"userId":"u","eventType":"LOGIN"}"#).await.unwrap().with_status(201).unwrap();
        eventually(&format!("with {key} the event is listed"), async || {
            ensure!(api.client.list().await?.len() == 1);
            Ok(())
        })
        .await;
        tells_no_secret(&api);
        tells_no_secret(&worker);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_is_told_why_and_tells_no_secret() {
    let fortress = Fortress::start().await;
    let ssl = "certificate";
    let refused = [
        (fortress.with_login("sasl_ssl", "PLAIN", "hunter2-is-wrong"), "SASL authentication error"),
        (fortress.with_login("sasl_plaintext", "SCRAM-SHA-512", "hunter2-is-wrong"), "SASL authentication error"),
        (fortress.world(fortress.ssl, "ssl").with("KAFKA_SSL_CA_FILE", fortress.file("other.pem")), ssl),
        (fortress.world(fortress.ssl, "ssl"), ssl),
        (fortress.with_certificate("outsider"), "SSL"),
    ];
    two_at_a_time(refused, async |(world, cause)| {
        // The first question to the brokers is given up after that, and only then it is said why.
        let world = world.with("KAFKA_REQUEST_TIMEOUT_MS", "5000");
        for mut service in [world.spawn_api(), world.spawn_worker()] {
            is_told(&mut service, cause).await;
            tells_no_secret(&service);
        }
    })
    .await;
}

/// Waits until the service is told why it is not let in, and says so.
async fn is_told(service: &mut Service, cause: &str) {
    eventually(&format!("readiness names {cause}"), async || {
        service.process.still_runs()?;
        let said = service.client.get("/readyz").await?.with_status(503)?;
        let said = String::from_utf8(said.body)?;
        ensure!(said.contains("connections are refused") && said.contains(cause), "{said}");
        ensure!(!said.contains("hunter2"), "{said}");
        Ok(())
    })
    .await;
}

/// Most of it is waiting, but a broker has only so much time for handshakes.
async fn two_at_a_time<T>(all: impl IntoIterator<Item = T>, test: impl AsyncFn(T)) {
    stream::iter(all).for_each_concurrent(2, |one| test(one)).await;
}
