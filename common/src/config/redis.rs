//! Settings of the store.

use std::fmt;
use std::time::Duration;

use clap::Args;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Checks, Secret, duration, one_of};
use crate::store::{UserIndex, number_of_buckets};

/// The Redis part of a command line.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    /// Where the events are stored: `redis://[user:password@]host[:port][/db]`, with TLS `rediss://…`; a Redis Cluster:
    /// `redis+cluster://[user:password@]host:port[,host:port…]`, with TLS `rediss+cluster://…`
    #[arg(long, env = "REDIS_URL", default_value = "redis://127.0.0.1:6379", value_name = "URL")]
    pub redis_url: String,
    /// PEM file with the authorities that sign the certificates of `rediss`; those of the system where it is not set
    #[arg(long, env = "REDIS_CA_FILE", value_name = "FILE")]
    pub redis_ca_file: Option<String>,
    /// What every key begins with; deployments that share a Redis need one each
    #[arg(long, env = "REDIS_KEY_PREFIX", default_value = "ua:", value_name = "TEXT")]
    pub redis_key_prefix: String,
    /// Into how many buckets a new store spreads the events: a power of two from 1 to 256; 1 where it is not set, and 16 on
    /// a Cluster, whose nodes share the buckets. A store keeps its number
    #[arg(long, env = "REDIS_BUCKETS", value_name = "NUMBER")]
    pub redis_buckets: Option<String>,
    /// Longest time for one exchange with Redis, connecting included
    #[arg(long, env = "REDIS_TIMEOUT", default_value = "3s", value_name = "DURATION")]
    pub redis_timeout: String,
    /// How long an event is kept, counted from its timestamp; not shorter than the topic keeps it
    #[arg(long, env = "EVENT_RETENTION", default_value = "7d", value_name = "DURATION")]
    pub event_retention: String,
    /// Whether each user's events are also listed per user: on or off, the same for all processes. About 5 µs of Redis
    /// and 35 bytes an event
    #[arg(long, env = "USER_INDEX", default_value = "on", value_name = "SWITCH")]
    pub user_index: String,
}

/// The Redis part of a configuration.
#[derive(Clone, Default)]
pub struct RedisSettings {
    /// The URL, credentials included.
    pub url: Secret,
    /// The authorities that sign the servers' certificates, PEM; those of the system where there are none.
    pub authorities: Option<Vec<u8>>,
    /// What every key begins with.
    pub key_prefix: String,
    /// The number of buckets of a new store, if it is set.
    pub buckets: Option<usize>,
    /// For one exchange.
    pub timeout: Duration,
    /// How long an event is kept.
    pub retention: Duration,
    /// Whether each user's events are also listed per user.
    pub user_index: UserIndex,
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field("url", &self.address())
            .field("key_prefix", &self.key_prefix)
            .field("buckets", &self.buckets)
            .field("timeout", &self.timeout)
            .field("retention", &self.retention)
            .field("user_index", &self.user_index)
            .finish()
    }
}

impl RedisSettings {
    /// Host and port of each server that is named, without credentials.
    #[must_use]
    pub fn address(&self) -> String {
        Servers::parse(self.url.expose()).map_or_else(|| "[redacted]".into(), |servers| servers.address())
    }
}

/// The servers that a URL names.
pub(crate) struct Servers {
    /// At least one.
    pub(crate) nodes: Vec<ConnectionInfo>,
    /// Whether they are nodes of a Redis Cluster, of which not all need to be named.
    pub(crate) cluster: bool,
}

impl Servers {
    pub(crate) const FORMS: &str = "must look like redis[s]://[user:password@]host[:port][/db] or \
        redis[s]+cluster://[user:password@]host:port[,host:port…], the password percent-encoded";

    /// `None` for what is no such URL.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let servers = match scheme.strip_suffix("+cluster") {
            Some(scheme) => {
                let (login, nodes) = rest.rfind('@').map_or(("", rest), |at| rest.split_at(at + 1));
                let nodes = nodes.trim_end_matches('/').split(',');
                let nodes = nodes.map(|node| format!("{scheme}://{login}{node}").into_connection_info().ok());
                Self { nodes: nodes.collect::<Option<_>>()?, cluster: true }
            }
            None => Self { nodes: vec![url.into_connection_info().ok()?], cluster: false },
        };
        servers.nodes.iter().all(|node| servers.can_have(node)).then_some(servers)
    }

    /// TLS that believes anyone is none, and a Cluster has one database only.
    fn can_have(&self, node: &ConnectionInfo) -> bool {
        let on_tcp = matches!(node.addr(), ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { insecure: false, .. });
        on_tcp && (!self.cluster || node.redis_settings().db() == 0)
    }

    pub(crate) fn address(&self) -> String {
        self.nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn encrypted(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. }))
    }
}

impl RedisArgs {
    /// Types the settings.
    pub fn check(&self, checks: &mut Checks) -> RedisSettings {
        let url = checks.take_secret("REDIS_URL", &self.redis_url, url).unwrap_or_default();
        let path = self.redis_ca_file.as_deref();
        let authorities = path.and_then(|path| checks.take("REDIS_CA_FILE", path, |path| authorities(path).map(Some)));
        if authorities.is_some() && Servers::parse(url.expose()).is_some_and(|servers| !servers.encrypted()) {
            checks.complain("REDIS_CA_FILE: has no use without TLS; REDIS_URL must begin with rediss".into());
        }
        RedisSettings {
            url,
            authorities,
            key_prefix: checks.take("REDIS_KEY_PREFIX", &self.redis_key_prefix, key_prefix),
            buckets: self.redis_buckets.as_deref().and_then(|raw| checks.take("REDIS_BUCKETS", raw, buckets)),
            timeout: checks.take("REDIS_TIMEOUT", &self.redis_timeout, duration),
            retention: checks.take("EVENT_RETENTION", &self.event_retention, retention),
            user_index: checks.take(
                "USER_INDEX",
                &self.user_index,
                one_of(&[("on", UserIndex::On), ("off", UserIndex::Off)]),
            ),
        }
    }
}

fn url(raw: &str) -> Result<Secret, String> {
    Servers::parse(raw).map(|_| Secret::new(raw.to_owned())).ok_or_else(|| Servers::FORMS.to_owned())
}

/// The content of a PEM file with at least one certificate.
fn authorities(path: &str) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|e| format!("can't be read: {e}"))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("holds no certificate in PEM form".into()),
        Ok(_) => Ok(pem),
        Err(error) => Err(format!("is not what a PEM file looks like: {error}")),
    }
}

/// Braces would make the prefix the hash tag and put every key of a Cluster into one slot.
fn key_prefix(raw: &str) -> Result<String, String> {
    if raw.len() <= 64 && !raw.contains(['{', '}']) {
        return Ok(raw.to_owned());
    }
    Err("must be at most 64 bytes and contain neither { nor }".into())
}

fn buckets(raw: &str) -> Result<Option<usize>, String> {
    number_of_buckets(raw).map(Some).ok_or_else(|| "must be a power of two from 1 to 256".into())
}

/// Ten years is far beyond any topic's retention and keeps every expiry a small number.
fn retention(raw: &str) -> Result<Duration, String> {
    let parsed = duration(raw)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3_660 * 86_400);
    if allowed.contains(&parsed) { Ok(parsed) } else { Err("must be from 1s to 3660d".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        let settings =
            RedisSettings { url: Secret::new("redis://user:hunter2@store:6380/3".into()), ..Default::default() };
        let shown = format!("{settings:?}");
        assert!(shown.contains("store:6380") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn only_redis_urls_are_taken() {
        assert!(url("redis://127.0.0.1:6379").is_ok());
        assert!(url("http://x").is_err() && url("").is_err() && url("unix:///tmp/s").is_err());
        assert!(url("rediss://user:p%40ss@host").is_ok() && url("rediss://host#insecure").is_err());
        assert!(key_prefix("ua:").is_ok() && key_prefix("{x}").is_err());
    }

    #[test]
    fn only_powers_of_two_are_numbers_of_buckets() {
        assert!(["1", "2", "16", "256"].into_iter().all(|raw| buckets(raw) == Ok(raw.parse().ok())));
        assert!(["0", "3", "12", "512", "-1", "sixteen", ""].into_iter().all(|raw| buckets(raw).is_err()));
    }

    #[test]
    fn a_cluster_is_some_of_its_nodes() {
        let servers = Servers::parse("rediss+cluster://user:p%40ss@a:7000,b:7001").unwrap();
        assert!(servers.cluster && servers.encrypted());
        assert_eq!(servers.address(), "a:7000,b:7001");
        for node in &servers.nodes {
            let settings = node.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("user"), Some("p@ss")));
        }
        assert_eq!(Servers::parse("redis+cluster://a:7000/").unwrap().nodes.len(), 1);
        for wrong in ["", "a,", ",a", "a:x", "a:1/3", "a:1,b:2/3", "user@"] {
            assert!(Servers::parse(&format!("redis+cluster://{wrong}")).is_none(), "{wrong}");
        }
        assert!(Servers::parse("redis://a:1,b:2").is_none() && Servers::parse("x+cluster://a:1").is_none());
    }

    #[test]
    fn the_file_of_authorities_must_hold_some_and_go_with_tls() {
        let complaints = |url: &str, file: &str| {
            let args = RedisArgs {
                redis_url: url.into(),
                redis_ca_file: Some(file.into()),
                redis_key_prefix: "ua:".into(),
                redis_buckets: None,
                redis_timeout: "3s".into(),
                event_retention: "7d".into(),
                user_index: "on".into(),
            };
            let mut checks = Checks::default();
            args.check(&mut checks);
            checks.finish(()).unwrap_err().to_string()
        };
        let missing = complaints("rediss://host", "no/such/file.pem");
        assert!(missing.contains("REDIS_CA_FILE=\"no/such/file.pem\": can't be read"), "{missing}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(complaints("rediss://host", path).contains("holds no certificate"));
        let garbage = "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n";
        std::fs::write(path, garbage).unwrap();
        assert!(complaints("rediss://host", path).contains("is not what a PEM file looks like"));
        std::fs::write(path, garbage.replace('?', "AAAA")).unwrap();
        assert!(complaints("redis://host", path).contains("has no use without TLS"));
    }
}
