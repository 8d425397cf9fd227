//! Which partitions are held, told to whoever has them next. Redis remembers it, because a worker that crashes can tell
//! nobody. Nothing waits for that and nothing rests on it: where it is not remembered, the next worker counts anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::store::StoreError;

use super::Consumer;
use crate::breaker::Others;
use crate::placement::Placed;

/// How often it is said again: a Redis that was emptied has forgotten it, and what nobody says any more expires.
const NOTE_PERIOD: Duration = Duration::from_secs(3);
/// For so long beyond the longest hold it is remembered when no worker is there, as between the restarts of a worker that
/// crashes each time.
const NOTE_ROOM: Duration = Duration::from_hours(1);

/// The partitions of which it was said that they are not held any more, and whether that was heard.
pub(super) type Noted = (Vec<i32>, Result<(), StoreError>);

/// What Redis was told.
#[derive(Debug)]
pub(super) struct Holds {
    /// Ours, of which it may have been told that they are held.
    noted: BTreeSet<i32>,
    /// When to say it again, also if nothing has changed.
    due: Instant,
    /// The last time nobody heard.
    failed: bool,
}

impl Holds {
    pub(super) fn new(now: Instant) -> Self {
        Self { noted: BTreeSet::new(), due: now, failed: false }
    }

    /// Whether something is to be said now: then the partitions that are not held any more.
    fn begin(&mut self, held: &[(i32, Duration)], now: Instant) -> Option<Vec<i32>> {
        let held: BTreeSet<i32> = held.iter().map(|(partition, _)| *partition).collect();
        let changed = held != self.noted && !self.failed;
        let silent = held.is_empty() && self.noted.is_empty();
        if silent || !(changed || now >= self.due) {
            return None;
        }
        self.due = now + NOTE_PERIOD;
        let closed = self.noted.difference(&held).copied().collect();
        self.noted.extend(held);
        Some(closed)
    }

    fn end(&mut self, closed: &[i32], heard: bool) {
        self.failed = !heard;
        if heard {
            self.noted.retain(|partition| !closed.contains(partition));
        }
    }

    /// A partition was taken away: what is said of it from now on is for others to say.
    pub(super) fn revoke(&mut self, partition: i32) {
        self.noted.remove(&partition);
    }
}

impl Consumer {
    pub(super) fn start_noting_holds(&mut self, now: Instant) {
        if self.noting_holds.is_some() {
            return;
        }
        let held = self.breakers.held(now);
        let Some(closed) = self.holds.begin(&held, now) else { return };
        let (store, scope) = (Arc::clone(&self.store), self.scope.clone());
        let life = self.config.breaker.longest_hold + NOTE_ROOM;
        self.noting_holds = Some(Box::pin(async move {
            let result = store.note_holds(&scope, &held, &closed, life).await;
            (closed, result)
        }));
    }

    pub(super) fn on_holds_noted(&mut self, (closed, result): Noted) {
        match &result {
            Err(error @ StoreError::Refused { .. }) if !self.holds.failed => {
                log::warn!("which partitions are held can't be noted for the next worker: {error}");
            }
            Err(error) => log::debug!("which partitions are held is not noted: {error}"),
            Ok(()) => {}
        }
        self.holds.end(&closed, result.is_ok());
    }

    /// Leaves out what the previous owner held: it is placed once more, to be probed.
    pub(super) fn hold_on(&mut self, placed: &mut Vec<Placed>) {
        let now = Instant::now();
        placed.retain(|place| {
            let partition = place.slot.partition;
            // Of an earlier life it says nothing of this one.
            if self.ledger.current(partition) != Some(place.slot) || !self.breakers.learn(partition, place.others, now) {
                return true;
            }
            if let Others::Held(held) = place.others {
                let seconds = held.as_secs();
                log::warn!(partition; "partition {partition}: others have held it for {seconds} s; it is not simply read on");
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: (i32, Duration) = (3, Duration::from_secs(1));

    #[test]
    fn a_change_is_said_at_once_and_what_lasts_is_said_again() {
        let now = Instant::now();
        let mut holds = Holds::new(now);
        assert_eq!(holds.begin(&[], now), None, "nothing to say");
        assert_eq!(holds.begin(&[HELD], now), Some(vec![]));
        holds.end(&[], true);
        assert_eq!(holds.begin(&[HELD], now), None);
        assert_eq!(holds.begin(&[HELD], now + NOTE_PERIOD), Some(vec![]));
        holds.end(&[], true);
        let closed = holds.begin(&[], now + NOTE_PERIOD);
        assert_eq!(closed, Some(vec![3]));
        holds.end(&[3], true);
        assert_eq!(holds.begin(&[], now + NOTE_PERIOD * 9), None);
    }

    #[test]
    fn what_nobody_heard_is_said_again_but_not_at_once() {
        let now = Instant::now();
        let mut holds = Holds::new(now);
        assert_eq!(holds.begin(&[HELD], now), Some(vec![]));
        holds.end(&[], false);
        assert_eq!(holds.begin(&[], now), None);
        assert_eq!(holds.begin(&[], now + NOTE_PERIOD), Some(vec![3]), "it may have been heard all the same");
    }

    #[test]
    fn a_partition_that_was_taken_away_is_not_said_to_be_closed() {
        let now = Instant::now();
        let mut holds = Holds::new(now);
        assert_eq!(holds.begin(&[HELD], now), Some(vec![]));
        holds.revoke(3);
        holds.end(&[], true);
        assert_eq!(holds.begin(&[], now + NOTE_PERIOD), None, "others hold it");
    }
}
