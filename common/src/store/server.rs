//! Whether the Redis servers can do what they are asked and are set up to keep what they are given.

use std::collections::HashMap;

use redis::Value;

use super::{Store, StoreError};

/// The first version with `SET … PXAT` and `ZRANGE … BYSCORE`.
const OLDEST: (u32, u32) = (6, 2);
const NEEDED: &str = "6.2";

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
        let mut warnings = Vec::new();
        // One at a time: several need Redis 7.
        for name in ["maxmemory-policy", "appendonly"] {
            let asked = redis::cmd("CONFIG").arg("GET").arg(name).take();
            for (address, settings) in self.read.each_primary::<HashMap<String, String>>(&asked).await? {
                let value = settings.map(|mut settings| settings.remove(name).unwrap_or_default());
                let warning = judge(&address, name, value.as_deref().map_err(String::as_str))?;
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
        Ok(warnings)
    }
}

/// The version that a server says it is, if that is too old.
fn too_old(info: &str) -> Option<&str> {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"))?.trim();
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    ((major, minor) < OLDEST).then_some(version)
}

/// What is wrong with a setting, or with a server that does not say it.
fn judge(address: &str, name: &str, value: Result<&str, &str>) -> Result<Option<String>, StoreError> {
    match (name, value) {
        ("maxmemory-policy", Ok("noeviction")) | ("appendonly", Ok("yes")) => Ok(None),
        ("maxmemory-policy", Ok(policy)) if !policy.is_empty() => {
            Err(StoreError::Unfit { address: address.to_owned(), policy: policy.to_owned() })
        }
        ("appendonly", Ok("no")) => Ok(Some(format!(
            "Redis at {address} keeps nothing across a restart (appendonly no): everything is read from the topic again then; set appendonly yes"
        ))),
        (_, unsaid) => Ok(Some(format!(
            "Redis at {address} does not say how it is set up ({}); make sure of maxmemory-policy noeviction and appendonly yes",
            unsaid.err().unwrap_or("CONFIG GET has no answer")
        ))),
    }
}
