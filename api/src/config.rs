//! Settings of the API, beyond those that both binaries have.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use common::admin_port::AdminPort;
use common::config::{
    Checks, ConfigErrors, KafkaArgs, KafkaSettings, ProcessArgs, RedisArgs, RedisSettings, TraceArgs, TraceSettings,
    bytes, duration, one_of, range,
};
use common::kafka::KafkaRustPublisher;
use common::probe::HealthcheckArgs;
use common::telemetry::LogSettings;
use ipnet::{IpNet, Ipv4Net};

use crate::rate_limit::RateLimitSettings;

use crate::body::{BESIDE_A_BODY, WIDEST_WINDOW};
use crate::cors::Cors;
use crate::hash_key::HashKeyArgs;
use crate::keys::KeyFile;

/// What the HTTP time-out must leave to the delivery time-out: a request must not fail whose event still arrives.
const DELIVERY_MARGIN: Duration = Duration::from_secs(5);
const DEFAULT_ADMIN_PORT: u16 = 3002;
/// What a record takes beside the body that it comes from, at the most: id, time, key and headers.
const ENVELOPE: usize = 1024;
/// Bytes that large bodies hold at a time, unless set.
const BODY_MEMORY: usize = 64 * 1024 * 1024;
const SHORTEST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Accept user activity events over HTTP, and answer once Kafka has them
///
/// Every setting is a flag with an environment variable; a flag wins. The documentation of the routes is in README.md.
#[derive(Debug, Parser)]
#[command(name = "user-activity-api", version, max_term_width = 120)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    /// Client to publish with: rdkafka, or kafka-rust for brokers up to Kafka 3.9
    #[arg(long, env = "KAFKA_CLIENT", default_value = "rdkafka", value_name = "NAME", help_heading = "Kafka")]
    kafka_client: String,
    #[command(flatten)]
    redis: RedisArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

/// What to do instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Ask the process on this machine whether it is ready.
    Healthcheck(HealthcheckArgs),
    /// Print the line of API_KEYS_FILE for a key from standard input, or for a new one.
    HashKey(HashKeyArgs),
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
struct HttpArgs {
    /// Port to listen on; 0 takes a free one and says which
    #[arg(long, env = "PORT", default_value = "3000", value_name = "PORT")]
    port: String,
    /// Port of /livez, /readyz, /health and /metrics for orchestrators and Prometheus, besides PORT; 3002 when absent, or a
    /// free one if that is busy; 0 takes a free one
    #[arg(long, env = "API_ADMIN_PORT", value_name = "PORT")]
    api_admin_port: Option<String>,
    /// Address to listen on
    #[arg(long, env = "BIND_ADDRESS", default_value = "0.0.0.0", value_name = "ADDRESS")]
    bind_address: String,
    /// Longest time to answer once the body is read; the larger of 10s and the producer's time-out + 5s when absent
    #[arg(long, env = "HTTP_REQUEST_TIMEOUT", value_name = "DURATION")]
    http_request_timeout: Option<String>,
    /// Longest time for a client to send a body
    #[arg(long, env = "HTTP_READ_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    http_read_timeout: String,
    /// Longest time for a connection to be idle or to send its headers; above that of the load balancer in front
    #[arg(long, env = "HTTP_IDLE_TIMEOUT", default_value = "75s", value_name = "DURATION")]
    http_idle_timeout: String,
    /// Largest body of a single event
    #[arg(long, env = "HTTP_MAX_BODY", default_value = "256KiB", value_name = "SIZE")]
    http_max_body: String,
    /// Largest body of a batch, unpacked
    #[arg(long, env = "HTTP_MAX_BATCH_BODY", default_value = "8MiB", value_name = "SIZE")]
    http_max_batch_body: String,
    /// Most events of a batch
    #[arg(long, env = "HTTP_MAX_BATCH_ITEMS", default_value = "10000", value_name = "N")]
    http_max_batch_items: String,
    /// Bytes that large bodies (above 16KiB), of requests and of pages, hold at a time; 64MiB when absent, or as
    /// many as the largest body needs
    #[arg(long, env = "HTTP_BODY_MEMORY", value_name = "SIZE")]
    http_body_memory: Option<String>,
    /// Requests a second of one client (an address, or an IPv6 /64 network), or off
    #[arg(long, env = "RATE_LIMIT", default_value = "off", value_name = "N")]
    rate_limit: String,
    /// Requests of one client at once; RATE_LIMIT when absent
    #[arg(long, env = "RATE_LIMIT_BURST", value_name = "N")]
    rate_limit_burst: Option<String>,
    /// Proxies whose X-Forwarded-For or Forwarded is believed, as addresses or networks separated by commas
    #[arg(long, env = "TRUSTED_PROXIES", value_name = "NETWORKS")]
    trusted_proxies: Option<String>,
    /// Most connections at a time; more are answered 503, but for /livez, /readyz, /health and /metrics. Half of them may
    /// be open streams
    #[arg(long, env = "HTTP_MAX_CONNECTIONS", default_value = "10000", value_name = "N")]
    http_max_connections: String,
    /// File of API keys, a line each: id, SHA-256 of the key, scopes (write, read, admin); see hash-key. Read again when
    /// it changes. Without it every route is open
    #[arg(long, env = "API_KEYS_FILE", value_name = "FILE")]
    api_keys_file: Option<String>,
    /// Origins whose pages may call from a browser, separated by commas, or * for all; none when absent
    #[arg(long, env = "CORS_ALLOWED_ORIGINS", value_name = "LIST")]
    cors_allowed_origins: Option<String>,
}

/// What publishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KafkaClient {
    /// librdkafka.
    #[default]
    Rdkafka,
    /// The crate `kafka`.
    KafkaRust,
}

/// The API's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port to listen on, 0 for a free one.
    pub port: u16,
    /// Port for whoever watches over the process.
    pub admin_port: AdminPort,
    /// Address to listen on.
    pub bind_address: IpAddr,
    /// To answer, once the body is read.
    pub request_timeout: Duration,
    /// For a client to send a body.
    pub read_timeout: Duration,
    /// For a connection to be idle or to send its headers.
    pub idle_timeout: Duration,
    /// Largest body of a single event, in bytes.
    pub max_body: usize,
    /// Largest body of a batch, in bytes, unpacked.
    pub max_batch_body: usize,
    /// Most events of a batch.
    pub max_batch_items: usize,
    /// Bytes that large bodies hold at a time.
    pub body_memory: usize,
    /// How often a client may come.
    pub rate_limit: RateLimitSettings,
    /// Most connections at a time.
    pub max_connections: usize,
    /// Who may call; `None`: everybody.
    pub api_keys: Option<KeyFile>,
    /// The pages that may call from a browser.
    pub cors: Option<Cors>,
    /// Kafka's part.
    pub kafka: KafkaSettings,
    /// What publishes.
    pub kafka_client: KafkaClient,
    /// Redis' part.
    pub redis: RedisSettings,
    /// To finish what is in flight.
    pub shutdown_timeout: Duration,
    /// Where spans go; `None`: nothing is traced.
    pub traces: Option<TraceSettings>,
    /// How to log.
    pub log: LogSettings,
}

impl Config {
    /// Types all settings and checks those that depend on each other.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(cli: &Cli) -> Result<Self, ConfigErrors> {
        let (mut checks, http) = (Checks::default(), &cli.http);
        let kafka = cli.kafka.check(&mut checks);
        let clients = [("rdkafka", KafkaClient::Rdkafka), ("kafka-rust", KafkaClient::KafkaRust)];
        let kafka_client = checks.take("KAFKA_CLIENT", &cli.kafka_client, one_of(&clients));
        if kafka_client == KafkaClient::KafkaRust {
            KafkaRustPublisher::unsupported(&kafka).into_iter().for_each(|complaint| checks.complain(complaint));
        }
        let default = SHORTEST_REQUEST_TIMEOUT.max(kafka.delivery_timeout + DELIVERY_MARGIN);
        let request_timeout = http.http_request_timeout.as_deref().filter(|raw| !raw.is_empty());
        let request_timeout = request_timeout.map_or(default, |raw| checks.take("HTTP_REQUEST_TIMEOUT", raw, duration));
        if !request_timeout.is_zero() && request_timeout <= kafka.delivery_timeout {
            checks.complain(format!(
                "HTTP_REQUEST_TIMEOUT={}: must be longer than KAFKA_PRODUCER_TIMEOUT_MS={}, or a request fails whose event still arrives",
                humantime::format_duration(request_timeout),
                kafka.delivery_timeout.as_millis(),
            ));
        }
        let given = |value: &Option<String>| value.clone().filter(|raw| !raw.is_empty());
        let (key_file, origins) = (given(&http.api_keys_file), given(&http.cors_allowed_origins));
        let mut config = Self {
            api_keys: key_file
                .and_then(|path| checks.take("API_KEYS_FILE", &path, |path| KeyFile::read(path.as_ref()).map(Some))),
            cors: origins
                .and_then(|list| checks.take("CORS_ALLOWED_ORIGINS", &list, |list| Cors::parse(list).map(Some))),
            port: checks.take("PORT", &http.port, range(0..=u16::MAX)),
            admin_port: AdminPort::check(
                &mut checks,
                "API_ADMIN_PORT",
                http.api_admin_port.as_deref(),
                DEFAULT_ADMIN_PORT,
            ),
            bind_address: checks.address("BIND_ADDRESS", &http.bind_address),
            request_timeout,
            read_timeout: checks.take("HTTP_READ_TIMEOUT", &http.http_read_timeout, duration),
            idle_timeout: checks.take("HTTP_IDLE_TIMEOUT", &http.http_idle_timeout, duration),
            max_body: checks.take("HTTP_MAX_BODY", &http.http_max_body, bytes(1024..=16 * 1024 * 1024)),
            max_batch_body: checks.take(
                "HTTP_MAX_BATCH_BODY",
                &http.http_max_batch_body,
                bytes(1024..=256 * 1024 * 1024),
            ),
            max_batch_items: checks.take("HTTP_MAX_BATCH_ITEMS", &http.http_max_batch_items, range(1..=1_000_000)),
            body_memory: given(&http.http_body_memory)
                .map_or(0, |raw| checks.take("HTTP_BODY_MEMORY", &raw, bytes(1024..=64 * 1024 * 1024 * 1024))),
            rate_limit: http.rate_limit(&mut checks),
            max_connections: checks.take("HTTP_MAX_CONNECTIONS", &http.http_max_connections, range(1..=1_000_000)),
            redis: cli.redis.check(&mut checks),
            shutdown_timeout: checks.take("SHUTDOWN_TIMEOUT", &cli.process.shutdown_timeout, duration),
            traces: cli.traces.check(&mut checks),
            log: LogSettings::check(&cli.process, &mut checks),
            kafka,
            kafka_client,
        };
        config.check_memory(&mut checks);
        checks.finish(config)
    }

    /// Whether the largest body that is allowed finds room where it is read, and where its record waits.
    fn check_memory(&mut self, checks: &mut Checks) {
        let bodies = [("HTTP_MAX_BODY", self.max_body), ("HTTP_MAX_BATCH_BODY", self.max_batch_body)];
        let memory = self.body_memory;
        if memory == 0 {
            self.body_memory = self.largest_body().max(BODY_MEMORY);
        } else if let Some((name, body)) = bodies.into_iter().find(|(_, body)| memory_for(*body) > memory) {
            checks.complain(format!(
                "HTTP_BODY_MEMORY={memory}: must be at least {} for a compressed body of {name}={body} bytes",
                memory_for(body)
            ));
        }
        let (queue, needed) = (self.kafka.queue_kbytes as usize, (self.max_body + ENVELOPE).div_ceil(1024));
        // One of none has had its complaint.
        if (1..needed).contains(&queue) {
            checks.complain(format!(
                "KAFKA_QUEUE_KBYTES={queue}: must be at least {needed} for an event of HTTP_MAX_BODY={} bytes",
                self.max_body
            ));
        }
    }
}

impl Config {
    /// Bytes that the largest body may take while it is read.
    pub(crate) fn largest_body(&self) -> usize {
        memory_for(self.max_body.max(self.max_batch_body))
    }
}

/// A body that is compressed also takes what its decoder keeps of it.
fn memory_for(body: usize) -> usize {
    body + body.min(WIDEST_WINDOW) + BESIDE_A_BODY
}

impl HttpArgs {
    fn rate_limit(&self, checks: &mut Checks) -> RateLimitSettings {
        let given = |raw: &Option<String>| raw.clone().filter(|raw| !raw.trim().is_empty());
        let per_second = checks.take("RATE_LIMIT", &self.rate_limit, |raw| match raw.trim() {
            "off" => Ok(None),
            number => count(number).map(Some).map_err(|why| format!("{why}, or off")),
        });
        let burst = given(&self.rate_limit_burst)
            .and_then(|raw| checks.take("RATE_LIMIT_BURST", &raw, |raw| count(raw).map(Some)));
        let trusted_proxies =
            given(&self.trusted_proxies).map_or_else(Vec::new, |raw| checks.take("TRUSTED_PROXIES", &raw, networks));
        RateLimitSettings { per_second, burst, trusted_proxies }
    }
}

fn count(raw: &str) -> Result<NonZeroU32, String> {
    range(1..=1_000_000)(raw).and_then(|number| NonZeroU32::new(number).ok_or_else(|| "must not be 0".into()))
}

fn networks(raw: &str) -> Result<Vec<IpNet>, String> {
    let network = |text: &str| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let all: Result<Vec<IpNet>, _> = raw.split(',').map(|text| network(text.trim()).map(canonical)).collect();
    all.map_err(|_| "must be addresses or networks such as 10.0.0.0/8, separated by commas".into())
}

/// Peers are looked at as IPv4 addresses, however a socket for both families has them.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(v4, prefix)| Ipv4Net::new(v4, prefix).ok()).map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_ipv4_are_that_in_either_form() {
        let v4 = networks("10.0.0.0/8, 127.0.0.1").unwrap();
        assert_eq!(networks("::ffff:10.0.0.0/104, ::ffff:127.0.0.1").unwrap(), v4);
        assert_eq!(networks("2001:db8::/32").unwrap(), ["2001:db8::/32".parse::<IpNet>().unwrap()]);
    }

    fn with(args: &[&str]) -> Result<Config, ConfigErrors> {
        let args = std::iter::once("user-activity-api").chain(args.iter().copied());
        Config::check(&common::config::parse(args, |_| None).unwrap())
    }

    #[test]
    fn the_request_time_out_follows_the_delivery_time_out() {
        assert_eq!(with(&[]).unwrap().request_timeout, Duration::from_secs(10));
        let slow = with(&["--kafka-producer-timeout-ms", "60000"]).unwrap();
        assert_eq!(slow.request_timeout, Duration::from_secs(65));
    }

    #[test]
    fn a_request_time_out_below_the_delivery_time_out_is_refused() {
        let error = with(&["--http-request-timeout", "5s"]).unwrap_err().to_string();
        assert!(error.contains("KAFKA_PRODUCER_TIMEOUT_MS=5000"), "{error}");
    }

    #[test]
    fn the_largest_body_fits_into_the_memory_for_all() {
        assert_eq!(with(&[]).unwrap().body_memory, BODY_MEMORY);
        assert_eq!(with(&["--http-max-batch-body", "100MiB"]).unwrap().body_memory, (116 << 20) + BESIDE_A_BODY);
        assert!(with(&["--http-body-memory", "17MiB"]).is_ok());
        let error = with(&["--http-body-memory", "1MiB"]).unwrap_err().to_string();
        assert!(error.contains("HTTP_BODY_MEMORY=1048576") && error.contains("HTTP_MAX_BATCH_BODY=8388608"), "{error}");
        let single = ["--http-body-memory", "1MiB", "--http-max-batch-body", "1MiB", "--http-max-body", "2MiB"];
        let error = with(&single).unwrap_err().to_string();
        assert!(error.contains("HTTP_BODY_MEMORY=1048576") && error.contains("HTTP_MAX_BODY=2097152"), "{error}");
    }

    #[test]
    fn the_largest_event_fits_into_the_queue() {
        let queue = |kbytes| with(&["--http-max-body", "2MiB", "--kafka-queue-kbytes", kbytes]);
        assert!(queue("2049").is_ok());
        let error = queue("2048").unwrap_err().to_string();
        assert!(error.contains("KAFKA_QUEUE_KBYTES=2048: must be at least 2049"), "{error}");
        assert!(error.contains("HTTP_MAX_BODY=2097152"), "{error}");
        assert!(!queue("0").unwrap_err().to_string().contains("must be at least"));
    }

    #[test]
    fn the_kafka_client_is_rdkafka_unless_set_and_refuses_what_it_can_not_do() {
        assert_eq!(with(&[]).unwrap().kafka_client, KafkaClient::Rdkafka);
        let kafka_rust = ["--kafka-client", "kafka-rust"];
        assert_eq!(with(&kafka_rust).unwrap().kafka_client, KafkaClient::KafkaRust);
        let error = with(&[&kafka_rust[..], &["--kafka-compression", "lz4"]].concat()).unwrap_err().to_string();
        assert!(error.contains("KAFKA_COMPRESSION"), "{error}");
        assert!(with(&["--kafka-client", "kafkajs"]).unwrap_err().to_string().contains("KAFKA_CLIENT"));
    }

    #[test]
    fn rate_limits_are_off_unless_set_and_wrong_ones_are_named() {
        assert_eq!(with(&[]).unwrap().rate_limit.per_second, None);
        let set =
            with(&["--rate-limit", "5", "--rate-limit-burst", "9", "--trusted-proxies", "10.0.0.0/8, ::1"]).unwrap();
        assert_eq!(set.rate_limit.per_second.map(NonZeroU32::get), Some(5));
        assert_eq!(set.rate_limit.burst.map(NonZeroU32::get), Some(9));
        assert_eq!(set.rate_limit.trusted_proxies.len(), 2);
        let wrong = with(&["--rate-limit", "0", "--rate-limit-burst", "x", "--trusted-proxies", "here"]);
        let wrong = wrong.unwrap_err().to_string();
        for name in ["RATE_LIMIT=\"0\"", "RATE_LIMIT_BURST", "TRUSTED_PROXIES"] {
            assert!(wrong.contains(name), "{wrong}");
        }
    }

    #[test]
    fn every_wrong_setting_is_named_in_one_run() {
        let error =
            with(&["--port", "99999", "--bind-address", "here", "--http-max-body", "1GB", "--log-level", "loud"])
                .unwrap_err()
                .to_string();
        for name in ["PORT", "BIND_ADDRESS", "HTTP_MAX_BODY", "LOG_LEVEL"] {
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn settings_can_stand_behind_a_subcommand() {
        for words in [&["healthcheck", "--port", "7"][..], &["hash-key", "--id", "x", "--port", "7"]] {
            let args = std::iter::once("user-activity-api").chain(words.iter().copied());
            let cli: Cli = common::config::parse(args, |_| None).unwrap();
            assert_eq!(cli.http.port, "7");
        }
    }

    #[test]
    fn the_example_environment_lists_every_variable_with_its_default() {
        let command = <Cli as clap::CommandFactory>::command();
        let missing = common::testing::not_in_example(&command, include_str!("../../.env.example"));
        assert!(missing.is_empty(), "{missing:?}");
    }
}
