//! Users that post through all APIs, one event after the other, whatever happens to the system.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::report::Violations;
use crate::{
    client::Client,
    oracle::{Attempt, Journal},
};

/// Users of each API.
const USERS: usize = 6;

/// Between two posts of one user: a load that leaves two cores room for what is tested.
const PACE: Duration = Duration::from_millis(20);

/// What everyone passes who sends: closed, there is silence.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<RwLock<()>>);

impl Gate {
    /// Sends, as soon as the gate is open.
    pub async fn pass<T>(&self, send: impl Future<Output = T>) -> T {
        let _passage = self.0.read().await;
        send.await
    }

    /// Waits for what is under way; from then on nobody sends until the guard is dropped.
    pub async fn close(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0).write_owned().await
    }
}

/// All users.
#[derive(Debug)]
pub struct Traffic {
    stop: CancellationToken,
    users: JoinSet<()>,
}

impl Traffic {
    /// Starts users for each of the APIs. A reply that breaks the contract is a violation.
    #[must_use]
    pub fn start(apis: &[Client], journal: &Journal, gate: &Gate, violations: &Violations) -> Self {
        let stop = CancellationToken::new();
        let mut users = JoinSet::new();
        for client in apis.iter().flat_map(|api| std::iter::repeat_n(api, USERS)) {
            let user = User {
                name: format!("user-{}", Uuid::now_v7().simple()),
                client: client.clone(),
                journal: journal.clone(),
                violations: violations.clone(),
            };
            users.spawn(user.post_until(stop.clone(), gate.clone()));
        }
        Self { stop, users }
    }

    /// Lets every user finish the post under way, and stops.
    pub async fn stop(self) {
        self.stop.cancel();
        self.users.join_all().await;
    }
}

/// Keeps to one API: only one process's ids keep the order of events of the same millisecond.
struct User {
    name: String,
    client: Client,
    journal: Journal,
    violations: Violations,
}

impl User {
    async fn post_until(self, stop: CancellationToken, gate: Gate) {
        for sequence in 0.. {
            if stop.is_cancelled() {
                return;
            }
            let attempt = Attempt::new(&self.name, sequence);
            if let Err(error) = gate.pass(self.journal.post(&self.client, attempt)).await {
                self.violations.add(format!("a reply breaks the contract: {error:#}"));
            }
            tokio::time::sleep(PACE).await;
        }
    }
}
