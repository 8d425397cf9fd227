//! Fresh events, to see when the whole system works again: one in each partition, through each API.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use serde_json::Value;
use uuid::Uuid;

use super::within;
use crate::{
    client::Client,
    oracle::{Attempt, Journal, Outcome},
};

/// Users that are tried until each partition has one. With 6 partitions, 20 are mostly enough.
const MOST_USERS: usize = 500;

/// For a single event on a system that works.
const FIRST: Duration = Duration::from_secs(60);

/// Users whose events together meet every partition, for each API.
#[derive(Debug)]
pub struct Prober {
    journal: Journal,
    probes: Vec<Probe>,
    partitions: usize,
}

impl Prober {
    /// Finds users for each API and partition by posting events and looking where they came from.
    ///
    /// # Errors
    /// When events do not pass.
    pub async fn new(apis: &[Client], partitions: usize, journal: &Journal) -> Result<Self> {
        let mut probes = Vec::new();
        for api in apis {
            let mut met = BTreeSet::new();
            for _ in 0..MOST_USERS {
                let probe = Probe::new(api);
                if met.insert(probe.partition(journal).await?) {
                    probes.push(probe);
                }
                if met.len() == partitions {
                    break;
                }
            }
            ensure!(met.len() == partitions, "only the partitions {met:?} are met");
        }
        Ok(Self { journal: journal.clone(), probes, partitions })
    }

    /// How many partitions it meets.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// Posts fresh events and waits until all of them are processed. Gives the time that took.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn pass(&self, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        let passes = self.probes.iter().map(|probe| probe.pass(&self.journal));
        tokio::time::timeout(limit, try_join_all(passes))
            .await
            .with_context(|| format!("fresh events are not processed within {limit:?}"))??;
        Ok(started.elapsed())
    }
}

#[derive(Debug)]
struct Probe {
    api: Client,
    user: String,
    sequence: AtomicU64,
}

impl Probe {
    fn new(api: &Client) -> Self {
        let user = format!("probe-{}", Uuid::now_v7().simple());
        Self { api: api.clone(), user, sequence: AtomicU64::new(0) }
    }

    async fn partition(&self, journal: &Journal) -> Result<i64> {
        let found = within(FIRST, "a first event passes", async || self.pass(journal).await).await?;
        found["processing"]["partition"].as_i64().with_context(|| format!("no partition in {found}"))
    }

    /// Posts until one event is acknowledged, and waits for it.
    async fn pass(&self, journal: &Journal) -> Result<Value> {
        let id = loop {
            if let Outcome::Acknowledged(promise) = self.post(journal).await? {
                break promise.id;
            }
            tokio::time::sleep(crate::POLL_INTERVAL).await;
        };
        loop {
            // While the store is away there is no good answer, or none at all.
            match self.api.get(&format!("/events/{id}")).await {
                Ok(reply) if reply.status == 200 => return reply.parse(),
                Ok(reply) if ![404, 503].contains(&reply.status) => bail!("{}: {}", reply.status, reply.text()),
                _ => tokio::time::sleep(crate::POLL_INTERVAL).await,
            }
        }
    }

    async fn post(&self, journal: &Journal) -> Result<Outcome> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        journal.post(&self.api, Attempt::new(&self.user, sequence)).await
    }
}
