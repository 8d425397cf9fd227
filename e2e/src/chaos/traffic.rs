//! Users that post through all APIs, one event after the other, whatever happens to the system.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::report::Violations;
use crate::{
    client::Client,
    oracle::{Attempt, Journal, Outcome},
};

/// Users of each API.
const USERS: usize = 6;

/// Between two posts of one user: a load that leaves two cores room for what is tested.
const PACE: Duration = Duration::from_millis(20);

/// One post in so many has an `Idempotency-Key`, and one in so many of all is posted again once it is acknowledged.
const ONE_WITH_KEY_IN: u64 = 2;
const ONE_AGAIN_IN: u64 = 8;

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
        for nth in 0..apis.len() * USERS {
            let (before, from) = apis.split_at(nth % apis.len());
            let user = User {
                name: format!("user-{}", Uuid::now_v7().simple()),
                apis: [from, before].concat(),
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

/// Posts to the first API: only one process's ids keep the order of events of the same millisecond. What has a key also
/// goes to the others, when it is not acknowledged, and now and then when it is.
struct User {
    name: String,
    apis: Vec<Client>,
    journal: Journal,
    violations: Violations,
}

impl User {
    async fn post_until(self, stop: CancellationToken, gate: Gate) {
        for sequence in 0.. {
            if stop.is_cancelled() {
                return;
            }
            if let Err(error) = gate.pass(self.post(sequence)).await {
                self.violations.add(format!("a reply breaks the contract: {error:#}"));
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn post(&self, sequence: u64) -> Result<Outcome> {
        let attempt = Attempt::new(&self.name, sequence);
        if !sequence.is_multiple_of(ONE_WITH_KEY_IN) {
            return self.journal.post(&self.apis[0], attempt).await;
        }
        let again = usize::from(sequence.is_multiple_of(ONE_AGAIN_IN));
        self.journal.post_with_key(&self.apis, attempt, again).await
    }
}
