//! Whether the Redis servers are set up to keep what they are given.

use std::collections::HashMap;

use redis::Value;

use super::{Store, StoreError};

impl Store {
    /// Looks at the settings of the server, or of each primary of a Cluster. Gives warnings, each with what to set.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for a server that may throw away what it has acknowledged: positions can't notice it.
    pub async fn inspect(&self) -> Result<Vec<String>, StoreError> {
        let mut asked = redis::cmd("CONFIG");
        asked.arg("GET").arg("maxmemory-policy").arg("appendonly");
        let mut warnings = Vec::new();
        for (address, settings) in self.read.each_primary::<HashMap<String, String>>(&asked).await? {
            match settings {
                Ok(settings) => warnings.extend(judge(&address, &settings)?),
                Err(reason) => warnings.push(format!(
                    "Redis at {address} does not say how it is set up ({reason}); make sure of maxmemory-policy noeviction and appendonly yes"
                )),
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

fn judge(address: &str, settings: &HashMap<String, String>) -> Result<Vec<String>, StoreError> {
    let mut warnings = Vec::new();
    match settings.get("maxmemory-policy").map(String::as_str) {
        Some("noeviction") => {}
        Some(policy) => return Err(StoreError::Unfit { address: address.to_owned(), policy: policy.to_owned() }),
        None => warnings.push(format!("Redis at {address} does not say its maxmemory-policy; it must be noeviction")),
    }
    if settings.get("appendonly").map(String::as_str) == Some("no") {
        warnings.push(format!(
            "Redis at {address} keeps nothing across a restart (appendonly no): everything is read from the topic again then; set appendonly yes"
        ));
    }
    Ok(warnings)
}
