//! Whether the Redis servers can do what they are asked and are set up to keep what they are given.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use redis::{FromRedisValue, Value};

use super::{Store, StoreError, UserIndex};

/// The first version with `SET … PXAT` and `ZRANGE … BYSCORE`.
const OLDEST: (u32, u32) = (6, 2);
const NEEDED: &str = "6.2";
/// What keeps a large key that expires from being freed while others wait.
const LAZY_EXPIRE: &str = "lazyfree-lazy-expire";

impl Store {
    /// Looks at the version of the server, or of each primary of a Cluster. One that does not say is taken for new enough.
    ///
    /// # Errors
    /// [`StoreError::TooOld`] for a server that lacks commands, else what kept Redis from answering.
    pub(super) async fn check_version(&self) -> Result<(), StoreError> {
        for (address, info) in self.read.each_primary::<String>(redis::cmd("INFO").arg("server")).await? {
            if let Some(found) = info.ok().as_deref().and_then(too_old) {
                return Err(StoreError::TooOld { address, found: found.to_owned(), needed: NEEDED });
            }
        }
        Ok(())
    }

    /// Looks at the settings of the server, or of each primary of a Cluster. Gives warnings, each with what to set.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for a server that may throw away what it has acknowledged: positions can't notice it.
    pub async fn inspect(&self) -> Result<Vec<String>, StoreError> {
        let mut warnings = Vec::from_iter(self.clock_warning());
        // `INFO` and not `CONFIG`, which many a managed Redis does not allow. One section at a time: several need Redis 7.
        for (section, field) in [("memory", "maxmemory_policy"), ("persistence", "aof_enabled")] {
            let asked = redis::cmd("INFO").arg(section).take();
            for (address, info) in self.read.each_primary::<String>(&asked).await? {
                let value = info.as_ref().map(|info| field_of(info, field).unwrap_or_default());
                let warning = judge(&address, field, value.map_err(String::as_str))?;
                // A server that says nothing is named once.
                warnings.extend(warning.filter(|warning| !warnings.contains(warning)));
            }
        }
        for (address, role) in self.read.each_primary::<Vec<Value>>(&redis::cmd("ROLE")).await? {
            if matches!(role.ok().as_deref(), Some([Value::BulkString(role), ..]) if role == b"slave") {
                warnings
                    .push(format!("Redis at {address} is a replica and takes no writes; set REDIS_URL to the primary"));
            }
        }
        if self.user_index() == UserIndex::On {
            warnings.extend(self.expiry_warnings().await?);
        }
        Ok(warnings)
    }

    /// Which servers stand still while the index of a user with millions of events expires. Only `CONFIG` says it, which
    /// many a managed Redis does not allow: one that refuses is not asked again, as it may log each refusal.
    async fn expiry_warnings(&self) -> Result<Vec<String>, StoreError> {
        if self.config_refused.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let asked = redis::cmd("CONFIG").arg("GET").arg(LAZY_EXPIRE).take();
        let answers = match self.read.each_primary::<Value>(&asked).await {
            // Of all servers together.
            Err(StoreError::Refused { .. }) => Vec::new(),
            answers => answers?,
        };
        let refused = answers.is_empty() || answers.iter().any(|(_, answer)| answer.is_err());
        self.config_refused.store(refused, Ordering::Relaxed);
        let eager = answers.into_iter().filter(|(_, answer)| answer.as_ref().is_ok_and(is_eager));
        Ok(eager.map(|(address, _)| eager_warning(&address)).collect())
    }
}

/// Whether the answer to `CONFIG GET` says that keys that expire are freed while others wait.
fn is_eager(answer: &Value) -> bool {
    let said = HashMap::<String, String>::from_redis_value_ref(answer).unwrap_or_default();
    said.get(LAZY_EXPIRE).is_some_and(|value| value == "no")
}

fn eager_warning(address: &str) -> String {
    format!(
        "Redis at {address} stands still while the index of a user expires, for a second if that has millions of events ({LAZY_EXPIRE} no); set {LAZY_EXPIRE} yes"
    )
}

fn field_of<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The version that a server says it is, if that is too old.
fn too_old(info: &str) -> Option<&str> {
    let version = field_of(info, "redis_version")?;
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    ((major, minor) < OLDEST).then_some(version)
}

/// What is wrong with what a server says of a field, or with one that does not say it.
fn judge(address: &str, field: &str, value: Result<&str, &str>) -> Result<Option<String>, StoreError> {
    match (field, value) {
        ("maxmemory_policy", Ok("noeviction")) | ("aof_enabled", Ok("1")) => Ok(None),
        ("maxmemory_policy", Ok(policy)) if !policy.is_empty() => {
            Err(StoreError::Unfit { address: address.to_owned(), policy: policy.to_owned() })
        }
        ("aof_enabled", Ok("0")) => Ok(Some(format!(
            "Redis at {address} keeps nothing across a restart (appendonly no): everything is read from the topic again then; set appendonly yes"
        ))),
        (_, unsaid) => Ok(Some(format!(
            "Redis at {address} does not say how it is set up ({}); make sure of maxmemory-policy noeviction and appendonly yes",
            unsaid.err().unwrap_or("INFO does not have it")
        ))),
    }
}
