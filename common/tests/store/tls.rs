//! Redis behind TLS, with a user and a password.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::config::{RedisSettings, Secret};
use common::event::Timestamp;
use common::store::{Query, Store, StoreError, UserIndex};
use tempfile::TempDir;

use crate::support::event_json;
use crate::world::{Server, TIMEOUT, World, eventually, free_port, stored};

const PASSWORD: &str = "hunter2:@/,%the-password";
const ENCODED: &str = "hunter2%3A%40%2F%2C%25the-password";

/// An authority, and a server with a certificate of it, which lets in one user with a password.
struct Encrypted {
    server: Server,
    files: TempDir,
}

impl Encrypted {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A Cluster of one node, which serves all slots.
    async fn start_cluster() -> Self {
        let bus = free_port().to_string();
        let cluster =
            Self::start_with(&["--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", &bus]).await;
        let port = cluster.server.url().rsplit(':').next().unwrap().to_owned();
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port, "--tls", "--cacert", "ca.pem", "--user", "ingest", "--pass", PASSWORD]);
        command.args(["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).current_dir(cluster.files.path());
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
        cluster
    }

    async fn start_with(flags: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
        authority(files.path(), "ca");
        openssl(files.path(), "req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=redis");
        std::fs::write(files.path().join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost").unwrap();
        openssl(
            files.path(),
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
        );
        let password = format!(">{PASSWORD}");
        let (key, certificate, ca) = (path("key.pem"), path("server.pem"), path("ca.pem"));
        let tls = ["--tls-key-file", &key, "--tls-cert-file", &certificate, "--tls-ca-cert-file", &ca];
        let users = ["--user", "ingest", "on", &password, "~*", "&*", "+@all", "--user", "default", "off"];
        let flags = [&tls[..], &["--tls-auth-clients", "no"], &users, flags].concat();
        Self { server: Server::start_encrypted(&flags).await, files }
    }

    fn settings(&self, login: &str, authority: Option<&str>) -> RedisSettings {
        RedisSettings {
            url: Secret::new(self.server.url().replace("redis://", &format!("rediss://{login}@"))),
            authorities: authority.map(|name| std::fs::read(self.files.path().join(name)).unwrap()),
            buckets: Some(crate::BUCKETS),
            key_prefix: "tls:".into(),
            timeout: TIMEOUT,
            retention: Duration::from_hours(1),
            user_index: UserIndex::On,
        }
    }

    async fn refusal(&self, login: &str, authority: Option<&str>) -> StoreError {
        let error = Store::new(&self.settings(login, authority)).unwrap().check().await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        error
    }
}

/// A new authority: NAME.pem and NAME.key.
fn authority(folder: &Path, name: &str) {
    openssl(
        folder,
        &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {name}.key -out {name}.pem -subj /CN={name}"),
    );
}

fn openssl(folder: &Path, words: &str) {
    let mut command = Command::new("openssl");
    command.args(words.split(' ')).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "openssl {words}");
}

#[tokio::test]
async fn a_store_works_behind_tls_with_the_authority_the_user_and_the_password() {
    let redis = Encrypted::start().await;
    let world = World::with(redis.settings(&format!("ingest:{ENCODED}"), Some("ca.pem")));
    world.store.check().await.unwrap();
    let json = event_json("e", "u", Timestamp::now(), "{}");
    world.write(vec![stored(&json, 1)]).await;
    assert_eq!(world.walked(&Query::default(), true).await, [json]);
}

#[tokio::test]
async fn a_cluster_behind_tls_works_as_well() {
    let redis = Encrypted::start_cluster().await;
    let mut settings = redis.settings(&format!("ingest:{ENCODED}"), Some("ca.pem"));
    settings.url = Secret::new(settings.url.expose().replace("rediss://", "rediss+cluster://"));
    let world = World::with(settings);
    eventually(async || world.store.check().await).await;
    let json = event_json("e", "u", Timestamp::now(), "{}");
    world.write(vec![stored(&json, 1)]).await;
    assert_eq!(world.walked(&Query::default(), true).await, [json]);

    let mut settings = redis.settings("ingest:hunter2-is-wrong", Some("ca.pem"));
    settings.url = Secret::new(settings.url.expose().replace("rediss://", "rediss+cluster://"));
    let error = Store::new(&settings).unwrap().check().await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }) && !error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_server_whose_authority_is_not_known_is_not_spoken_to() {
    let redis = Encrypted::start().await;
    authority(redis.files.path(), "another");
    for authority in [None, Some("another.pem")] {
        let error = redis.refusal(&format!("ingest:{ENCODED}"), authority).await;
        assert!(error.to_string().contains("certificate"), "{error}");
        assert!(error.to_string().contains("REDIS_CA_FILE"), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_login_behind_tls_is_a_refusal_that_shows_no_password() {
    let redis = Encrypted::start().await;
    for login in ["ingest:hunter2-is-wrong", "nobody:hunter2", ":hunter2"] {
        let error = redis.refusal(login, Some("ca.pem")).await;
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    }
}
