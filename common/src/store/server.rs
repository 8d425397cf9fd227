//! Whether a Redis server is set up to keep what it is given.

use std::collections::HashMap;

use redis::Value;

use super::{Store, StoreError};

impl Store {
    /// Looks at the server's settings. Gives warnings, each with what to set.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] for a server that may throw away what it has acknowledged: positions can't notice it.
    pub async fn inspect(&self) -> Result<Vec<String>, StoreError> {
        let mut asked = redis::cmd("CONFIG");
        asked.arg("GET").arg("maxmemory-policy").arg("appendonly");
        let settings: HashMap<String, String> = match self.read.command(&asked).await {
            Ok(settings) => settings,
            Err(StoreError::Refused { reason, .. }) => {
                return Ok(vec![format!(
                    "Redis does not say how it is set up ({reason}); make sure of maxmemory-policy noeviction and appendonly yes"
                )]);
            }
            Err(error) => return Err(error),
        };
        let mut warnings = Vec::new();
        match settings.get("maxmemory-policy").map(String::as_str) {
            Some("noeviction") => {}
            Some(policy) => return Err(StoreError::Unfit { policy: policy.to_owned() }),
            None => warnings.push("Redis does not say its maxmemory-policy; it must be noeviction".into()),
        }
        if settings.get("appendonly").map(String::as_str) == Some("no") {
            warnings.push(
                "Redis keeps nothing across a restart (appendonly no): everything is read from the topic again then; set appendonly yes".into(),
            );
        }
        if self.is_replica().await? {
            warnings.push("Redis is a replica and takes no writes; set REDIS_URL to the primary".into());
        }
        Ok(warnings)
    }

    async fn is_replica(&self) -> Result<bool, StoreError> {
        let role: Result<Vec<Value>, StoreError> = self.read.command(&redis::cmd("ROLE")).await;
        match role {
            Ok(role) => Ok(matches!(role.first(), Some(Value::BulkString(role)) if role == b"slave")),
            Err(StoreError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
