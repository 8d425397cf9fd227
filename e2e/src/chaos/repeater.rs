//! A user who repeats an `Idempotency-Key` when its event has expired, as a weekly job does: the event is stored anew, and
//! must be listed again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chrono::Utc;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{reads::PAGE, report::Violations, traffic::Gate};
use crate::{
    client::{Client, Event},
    oracle::{Attempt, Journal, Outcome, Promise},
    sample::rfc3339,
};

/// For an event to be listed, whatever is broken meanwhile, or to expire: only the end of a hang.
const PATIENCE: Duration = Duration::from_mins(4);

/// Between two looks.
const PACE: Duration = Duration::from_millis(200);

/// How long before its post an event may seem to be made.
const AGO: Duration = Duration::from_secs(1);

pub(super) struct Repeater {
    name: String,
    api: Client,
    journal: Journal,
    gate: Gate,
    violations: Violations,
    retention: Duration,
}

impl Repeater {
    pub(super) fn new(
        api: &Client,
        journal: &Journal,
        gate: &Gate,
        violations: &Violations,
        retention: Duration,
    ) -> Self {
        let name = format!("again-{}", Uuid::now_v7().simple());
        let (journal, gate, violations) = (journal.clone(), gate.clone(), violations.clone());
        Self { name, api: api.clone(), journal, gate, violations, retention }
    }

    pub(super) async fn post_until(self, stop: CancellationToken) {
        for sequence in 0.. {
            if stop.is_cancelled() {
                return;
            }
            let posted = self.post_twice(sequence, &stop).await;
            self.violations.check("a key that comes again after the retention", posted);
        }
    }

    /// Once nobody posts any more, nothing is waited for.
    async fn post_twice(&self, sequence: u64, stop: &CancellationToken) -> Result<()> {
        let attempt = Attempt::new(&self.name, sequence);
        let from = rfc3339(Utc::now() - AGO);
        let outcome = self.post(&attempt, stop).await?;
        self.journal.record(attempt.clone(), outcome.clone());
        let Outcome::Acknowledged(Promise { id, .. }) = outcome else { return Ok(()) };
        let expired = tokio::time::Instant::now() + self.retention;
        let gone = async {
            self.until(&id, &from, true).await?;
            // Before that, lists lack it only because Redis has lost it, and it comes back as it was.
            sleep_until(expired).await;
            self.until(&id, &from, false).await
        };
        if stop.run_until_cancelled(gone).await.transpose()?.is_none() {
            return Ok(());
        }
        let from = rfc3339(Utc::now() - AGO);
        if let Outcome::Acknowledged(again) = self.post(&attempt, stop).await? {
            ensure!(again.id == id, "it was {id}, and is {}", again.id);
            stop.run_until_cancelled(self.until(&id, &from, true)).await.transpose()?;
        }
        Ok(())
    }

    /// Posts until it is acknowledged, or nobody posts any more.
    async fn post(&self, attempt: &Attempt, stop: &CancellationToken) -> Result<Outcome> {
        let mut outcome = Outcome::Refused;
        loop {
            match (self.gate.pass(self.journal.send_with_key(&self.api, attempt)).await?, &outcome) {
                // The one before may have arrived.
                (Outcome::Refused, Outcome::Unknown) => {}
                (next, _) => outcome = next,
            }
            if stop.is_cancelled() || matches!(outcome, Outcome::Acknowledged(_)) {
                return Ok(outcome);
            }
            sleep(PACE).await;
        }
    }

    fn own(&self) -> String {
        format!("userId={}", self.name)
    }

    /// Waits until both lists have it: the user's, and the whole one from then on. Or neither.
    async fn until(&self, id: &str, from: &str, listed: bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let (own, whole) = (self.is_in(id, &self.own()).await, self.is_in(id, &format!("from={from}")).await);
            if matches!((&own, &whole), (Ok(own), Ok(whole)) if (*own, *whole) == (listed, listed)) {
                return Ok(());
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "{id}, posted after {from}, is not {}listed: its user's list says {own:?}, the whole list {whole:?}",
                if listed { "" } else { "un" }
            );
            sleep(PACE).await;
        }
    }

    async fn is_in(&self, id: &str, query: &str) -> Result<bool, String> {
        let pages = self.api.pages_from(format!("/events/processed?{query}&limit={PAGE}")).await;
        Ok(pages.map_err(|error| format!("{error:#}"))?.iter().flatten().any(|row: &Event| row.event_id == id))
    }
}
