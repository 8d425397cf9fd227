//! Users that post through all APIs, one event after the other, whatever happens to the system.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{kinds::Kind, repeater::Repeater, report::Violations};
use crate::{
    client::Client,
    oracle::{Attempt, Journal, Outcome},
};

/// Users of each API that post one event at a time. Two more post batches, one of them with keys.
const USERS: usize = 6;

/// Events of a batch.
const BATCH: u64 = 8;

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
    pub fn start(kind: Kind, apis: &[Client], journal: &Journal, gate: &Gate, violations: &Violations) -> Self {
        let stop = CancellationToken::new();
        let mut users = JoinSet::new();
        let user = |name: &str, nth: usize| {
            let (before, from) = apis.split_at(nth % apis.len());
            User {
                name: format!("{name}-{}", Uuid::now_v7().simple()),
                apis: if kind.apis_agree() { [from, before].concat() } else { vec![from[0].clone()] },
                journal: journal.clone(),
                violations: violations.clone(),
                repeats: kind.users_stay(),
            }
        };
        for nth in 0..apis.len() * USERS {
            users.spawn(user("user", nth).post_until(stop.clone(), gate.clone()));
        }
        for (nth, api) in apis.iter().enumerate() {
            users.spawn(user("batch", nth).post_batches_until(false, stop.clone(), gate.clone()));
            users.spawn(user("keyed-batch", nth).post_batches_until(true, stop.clone(), gate.clone()));
            if let Some(retention) = kind.retention() {
                let again = Repeater::new(api, journal, gate, violations, retention);
                users.spawn(again.post_until(stop.clone()));
            }
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
    /// Whether anything is sent more than once.
    repeats: bool,
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

    /// As many events as the others in the same time, but at once: what could overtake each other. Several of them have the
    /// same millisecond.
    async fn post_batches_until(self, with_key: bool, stop: CancellationToken, gate: Gate) {
        for batch in 0.. {
            if stop.is_cancelled() {
                return;
            }
            let items = batch * BATCH..(batch + 1) * BATCH;
            let attempts = items.map(|sequence| Attempt::new(&self.name, sequence)).collect();
            if let Err(error) = gate.pass(self.post_batch(attempts, with_key.then_some(batch))).await {
                self.violations.add(format!("a reply breaks the contract: {error:#}"));
            }
            tokio::time::sleep(PACE * u32::try_from(BATCH).unwrap_or_default()).await;
        }
    }

    async fn post_batch(&self, attempts: Vec<Attempt>, with_key: Option<u64>) -> Result<()> {
        match with_key {
            Some(number) => {
                let again = self.repeats && number.is_multiple_of(ONE_AGAIN_IN);
                self.journal.post_batch_with_key(&self.apis, attempts, again).await
            }
            None => self.journal.post_batch(&self.apis[0], attempts).await,
        }
    }

    async fn post(&self, sequence: u64) -> Result<Outcome> {
        let attempt = Attempt::new(&self.name, sequence);
        if !self.repeats || !sequence.is_multiple_of(ONE_WITH_KEY_IN) {
            return self.journal.post(&self.apis[0], attempt).await;
        }
        let again = usize::from(sequence.is_multiple_of(ONE_AGAIN_IN));
        self.journal.post_with_key(&self.apis, attempt, again).await
    }
}
