//! Settings of the store.

use std::fmt;
use std::time::Duration;

use clap::Args;
use redis::{ConnectionAddr, IntoConnectionInfo};

use super::{Checks, Secret, duration, one_of};
use crate::store::UserIndex;

/// The Redis part of a command line.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    /// Where the events are stored: `redis://[user:password@]host[:port][/db]`
    #[arg(long, env = "REDIS_URL", default_value = "redis://127.0.0.1:6379", value_name = "URL")]
    pub redis_url: String,
    /// What every key begins with; deployments that share a Redis need one each
    #[arg(long, env = "REDIS_KEY_PREFIX", default_value = "ua:", value_name = "TEXT")]
    pub redis_key_prefix: String,
    /// Longest time for one exchange with Redis, connecting included
    #[arg(long, env = "REDIS_TIMEOUT", default_value = "3s", value_name = "DURATION")]
    pub redis_timeout: String,
    /// How long an event is kept, counted from its timestamp; not shorter than the topic keeps it
    #[arg(long, env = "EVENT_RETENTION", default_value = "7d", value_name = "DURATION")]
    pub event_retention: String,
    /// Whether each user's events are also listed per user: on or off, the same for all processes. About 3 µs of Redis
    /// and 64 bytes an event
    #[arg(long, env = "USER_INDEX", default_value = "on", value_name = "SWITCH")]
    pub user_index: String,
}

/// The Redis part of a configuration.
#[derive(Clone, Default)]
pub struct RedisSettings {
    /// The URL, credentials included.
    pub url: Secret,
    /// What every key begins with.
    pub key_prefix: String,
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
            .field("timeout", &self.timeout)
            .field("retention", &self.retention)
            .field("user_index", &self.user_index)
            .finish()
    }
}

impl RedisSettings {
    /// Host and port, without credentials.
    #[must_use]
    pub fn address(&self) -> String {
        self.url.expose().into_connection_info().map_or_else(|_| "[redacted]".into(), |info| info.addr().to_string())
    }
}

impl RedisArgs {
    /// Types the settings.
    pub fn check(&self, checks: &mut Checks) -> RedisSettings {
        RedisSettings {
            url: checks.take_secret("REDIS_URL", &self.redis_url, url).unwrap_or_default(),
            key_prefix: checks.take("REDIS_KEY_PREFIX", &self.redis_key_prefix, key_prefix),
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
    let wanted = || "must look like redis://[user:password@]host[:port][/db]".to_owned();
    let info = raw.into_connection_info().map_err(|_| wanted())?;
    match info.addr() {
        ConnectionAddr::Tcp(..) => Ok(Secret::new(raw.to_owned())),
        _ => Err(wanted()),
    }
}

/// Braces would make the prefix the hash tag and put every key of a Cluster into one slot.
fn key_prefix(raw: &str) -> Result<String, String> {
    if raw.len() <= 64 && !raw.contains(['{', '}']) {
        return Ok(raw.to_owned());
    }
    Err("must be at most 64 bytes and contain neither { nor }".into())
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
        assert!(key_prefix("ua:").is_ok() && key_prefix("{x}").is_err());
    }
}
