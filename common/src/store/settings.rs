//! Settings that all processes must share: how long events are kept, and since when the users' indexes are whole. They are
//! in the store. The workers, which write by them, agree or don't start; whoever only reads goes by what is in the store.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use redis::Value;

use super::{Store, StoreError, UserIndex, millis};
use crate::config::RedisSettings;
use crate::event::MAX_CLOCK_SKEW;

const RETENTION: &str = "retention_ms";
/// When the users' indexes began to be whole, in milliseconds since 1970; [`OFF`] where there are none.
const INDEX_SINCE: &str = "user_index_since";
const OFF: i64 = -1;

/// The settings that count.
pub(super) struct Shared {
    retention: AtomicI64,
    index_since: AtomicI64,
    /// Whether the store was asked for them.
    known: AtomicBool,
}

impl Shared {
    /// Until the store is asked, our own.
    pub(super) fn new(own: &RedisSettings) -> Self {
        let index_since = if own.user_index == UserIndex::On { 0 } else { OFF };
        Self { retention: millis(own.retention).into(), index_since: index_since.into(), known: AtomicBool::default() }
    }

    fn set(&self, retention: i64, index_since: i64) {
        self.retention.store(retention, Ordering::Relaxed);
        self.index_since.store(index_since, Ordering::Relaxed);
        self.known.store(true, Ordering::Release);
    }

    fn index(&self) -> UserIndex {
        if self.index_since.load(Ordering::Relaxed) == OFF { UserIndex::Off } else { UserIndex::On }
    }
}

impl Store {
    /// How long events are kept, in milliseconds.
    pub(super) fn retention(&self) -> i64 {
        self.shared.retention.load(Ordering::Relaxed)
    }

    /// How long events are kept.
    #[must_use]
    pub fn kept_for(&self) -> Duration {
        Duration::from_millis(self.retention().unsigned_abs())
    }

    /// Whether a user's index has all of the user's events from this time on, in milliseconds since 1970.
    pub(super) fn index_is_whole_since(&self, low: i64) -> bool {
        let since = self.shared.index_since.load(Ordering::Relaxed);
        since != OFF && since <= low
    }

    /// Makes sure that the settings are known by which the store is to be read.
    pub(super) async fn settle(&self) -> Result<(), StoreError> {
        if self.shared.known.load(Ordering::Acquire) { Ok(()) } else { self.check().await }
    }

    /// Compares the settings with those in the store.
    pub(super) async fn agree(&self) -> Result<(), StoreError> {
        let key = self.names.settings();
        let look = redis::cmd("HMGET").arg(&key).arg(RETENTION).arg(INDEX_SINCE).take();
        let mut held: [Option<i64>; 2] = self.read.command(&look).await?;
        if let Some(member) = &self.member {
            if held.contains(&None) {
                self.claim_settings(&key).await?;
                held = self.read.command(&look).await?;
            }
            if let [Some(retention), Some(since)] = held
                && !self.is_as_set(retention, since)
            {
                held = self.change_settings(&key, member, retention, since).await?;
            }
        }
        let [retention, since] = held;
        let own = Shared::new(&self.own);
        let or = |held: Option<i64>, own: &AtomicI64| held.unwrap_or(own.load(Ordering::Relaxed));
        self.shared.set(or(retention, &own.retention), or(since, &own.index_since));
        Ok(())
    }

    async fn claim_settings(&self, key: &str) -> Result<(), StoreError> {
        let own = Shared::new(&self.own);
        let claim = |name: &str, value: &AtomicI64| {
            redis::cmd("HSETNX").arg(key).arg(name).arg(value.load(Ordering::Relaxed)).take()
        };
        let claims = [claim(RETENTION, &own.retention), claim(INDEX_SINCE, &own.index_since)];
        self.read.scatter::<Value>(claims).await.map(drop)
    }

    fn is_as_set(&self, retention: i64, since: i64) -> bool {
        retention == millis(self.own.retention) && (since == OFF) == (self.own.user_index == UserIndex::Off)
    }

    /// A worker that is alone changes the settings; among others it is refused.
    async fn change_settings(
        &self,
        key: &str,
        member: &str,
        retention: i64,
        since: i64,
    ) -> Result<[Option<i64>; 2], StoreError> {
        let mut others = self.workers().await?;
        others.retain(|other| other != member);
        if !others.is_empty() || self.shared.known.load(Ordering::Acquire) {
            return Err(StoreError::Settings { difference: self.difference(retention, since), others: others.len() });
        }
        let own = millis(self.own.retention);
        let since = match self.own.user_index {
            UserIndex::Off => OFF,
            UserIndex::On if since != OFF => since,
            // What is stored from now on is in it, and an event may be dated a day ahead.
            UserIndex::On => self.now().millis() + MAX_CLOCK_SKEW.num_milliseconds(),
        };
        let change = redis::cmd("HSET").arg(key).arg(RETENTION).arg(own).arg(INDEX_SINCE).arg(since).take();
        self.read.command::<Value>(&change).await?;
        log::warn!("the settings of the store were {}; they are changed", self.difference(retention, since));
        Ok([Some(own), Some(since)])
    }

    /// Which of our settings are not those of the store.
    #[must_use]
    pub fn settings_warning(&self) -> Option<String> {
        let (retention, since) = (self.retention(), self.shared.index_since.load(Ordering::Relaxed));
        let differs = self.shared.known.load(Ordering::Acquire) && !self.is_as_set(retention, since);
        differs.then(|| format!("{}: what the store has counts", self.difference(retention, since)))
    }

    fn difference(&self, retention: i64, since: i64) -> String {
        let time = |millis: i64| humantime::format_duration(Duration::from_millis(millis.unsigned_abs()));
        let word = |on: bool| if on { "on" } else { "off" };
        let mut differences = Vec::new();
        if retention != millis(self.own.retention) {
            let own = humantime::format_duration(self.own.retention);
            differences.push(format!("EVENT_RETENTION={own} here and {} in the store", time(retention)));
        }
        let own = self.own.user_index == UserIndex::On;
        if own == (since == OFF) {
            differences.push(format!("USER_INDEX={} here and {} in the store", word(own), word(!own)));
        }
        differences.join(", ")
    }

    /// Whether the users' indexes are kept.
    #[must_use]
    pub fn user_index(&self) -> UserIndex {
        self.shared.index()
    }
}
