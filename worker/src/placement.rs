//! Where a partition starts: at the **earlier** of the group's commit and the lowest position of any bucket.
//!
//! A commit or a position that is missing, or beyond the end of the log, counts as the beginning. So nothing is skipped
//! because of a commit that ran ahead of what Redis still has; what it does have is a cheap duplicate, and an emptied
//! Redis is refilled by itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use common::mutation::{Mutation, active};
use common::store::{Placement, PositionScope, Store, StoreError};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use crate::commit::{NextOffset, Slot, Vacancy};
use crate::group::Group;

/// For one look-up at the brokers.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why partitions have no place yet.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The brokers have no answer.
    #[error("the brokers don't say where partitions begin and end: {0}")]
    Kafka(#[from] KafkaError),
    /// The store has no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the brokers know of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The first offset there is.
    pub low: i64,
    /// The offset of the next record to be written.
    pub high: i64,
    /// The group's commit.
    pub committed: Option<i64>,
}

/// A partition's place, written in every bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Which life of the partition.
    pub slot: Slot,
    /// The next offset to read.
    pub start: NextOffset,
    /// The group's commit.
    pub committed: Option<NextOffset>,
    /// How many offsets before `start` were never stored and are not there any more.
    pub missing: i64,
}

/// Where a partition starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The next offset to read.
    pub at: NextOffset,
    /// Whether that is the beginning of the log, before which nothing is left to store.
    pub beginning: bool,
    /// How many offsets are gone that should have been read.
    pub missing: i64,
}

/// Where to start, by what the brokers and each bucket say. See [`Vacancy`] for the ceiling.
#[must_use]
pub fn decide(log: Log, positions: &[Option<i64>], ceiling: Option<NextOffset>) -> Start {
    let low = NextOffset(log.low);
    if active(Mutation::StartFromCommit) {
        return Start { at: log.committed.map_or(low, NextOffset), beginning: true, missing: 0 };
    }
    let known = std::iter::once(log.committed).chain(positions.iter().copied());
    let trusted = known.map(|offset| offset.filter(|offset| (0..=log.high).contains(offset)));
    let (lowest, beginning, missing) = match trusted.min() {
        Some(Some(lowest)) if lowest > log.low => (NextOffset(lowest), false, 0),
        Some(Some(lowest)) => (low, true, log.low - lowest),
        _ => (low, true, 0),
    };
    let at = ceiling.map_or(lowest, |ceiling| lowest.min(ceiling).max(low));
    Start { at, beginning, missing }
}

/// Finds a place for each of the partitions and writes it into every bucket. Those it can't place now are left away.
///
/// # Errors
/// [`PlaceError`] when the brokers or the store have no answer; trying again is safe.
pub async fn place(
    kafka: Weak<StreamConsumer<Group>>,
    store: Arc<Store>,
    scope: PositionScope,
    topic: String,
    vacancies: Vec<Vacancy>,
) -> Result<Vec<Placed>, PlaceError> {
    store.check().await?;
    let partitions: Vec<i32> = vacancies.iter().map(|vacancy| vacancy.slot.partition).collect();
    // Before the logs: a position that somebody still moves meanwhile must not seem to lie beyond the end.
    let positions = store.positions(&scope, &partitions).await?;
    let asked = partitions.clone();
    // Weak: the client is closed by whoever drops it last, which must not be a look-up that nobody waits for.
    let look_up = move || logs(&*kafka.upgrade().ok_or(KafkaError::Canceled)?, &topic, &asked);
    let logs = tokio::task::spawn_blocking(look_up).await;
    // The closure neither panics nor is it cancelled.
    let logs = logs.unwrap_or(Err(KafkaError::Canceled))?;
    let mut placements = Vec::new();
    let mut placed = Vec::new();
    for Vacancy { slot, ceiling } in vacancies {
        let (Some(log), Some(positions)) = (logs.get(&slot.partition), positions.get(&slot.partition)) else {
            continue;
        };
        let Start { at, beginning, missing } = decide(*log, positions, ceiling);
        let beginning = beginning.then_some(log.high);
        placements.push(Placement { partition: slot.partition, start: at.0, beginning });
        placed.push(Placed { slot, start: at, committed: log.committed.map(NextOffset), missing });
    }
    let refused = store.place(&scope, &placements).await?;
    placed.retain(|place| !refused.contains(&place.slot.partition));
    Ok(placed)
}

/// Asks the brokers. A partition without a leader is left away, so that it does not hold up the others.
fn logs(kafka: &StreamConsumer<Group>, topic: &str, partitions: &[i32]) -> Result<HashMap<i32, Log>, KafkaError> {
    let mut asked = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        asked.add_partition(topic, *partition);
    }
    let committed = kafka.committed_offsets(asked, LOOKUP_TIMEOUT)?;
    let metadata = kafka.fetch_metadata(Some(topic), LOOKUP_TIMEOUT)?;
    let known = metadata.topics().iter().filter(|found| found.name() == topic).flat_map(|topic| topic.partitions());
    let led: BTreeSet<i32> =
        known.filter(|partition| partition.leader() >= 0).map(|partition| partition.id()).collect();
    let mut logs = HashMap::new();
    let mut failure = None;
    // One without a leader would be waited for until the time-out.
    for partition in partitions.iter().filter(|partition| led.contains(partition)) {
        let commit = committed.find_partition(topic, *partition).and_then(|found| match found.offset() {
            KafkaOffset::Offset(offset) => Some(offset),
            _ => None,
        });
        match kafka.fetch_watermarks(topic, *partition, LOOKUP_TIMEOUT) {
            Ok((low, high)) => drop(logs.insert(*partition, Log { low, high, committed: commit })),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if logs.is_empty() => Err(error),
        _ => Ok(logs),
    }
}

#[cfg(test)]
mod tests {
    use common::store::{BUCKETS, Positions};

    use super::*;

    fn start(low: i64, high: i64, committed: Option<i64>, positions: &Positions) -> (i64, bool, i64) {
        let Start { at, beginning, missing } = decide(Log { low, high, committed }, positions, None);
        (at.0, beginning, missing)
    }

    fn all(position: i64) -> Positions {
        [Some(position); BUCKETS]
    }

    fn all_but_one(position: i64, one: Option<i64>) -> Positions {
        let mut positions = all(position);
        positions[7] = one;
        positions
    }

    #[test]
    fn the_earlier_of_commit_and_lowest_position_wins() {
        assert_eq!(start(0, 100, Some(50), &all(60)), (50, false, 0));
        assert_eq!(start(0, 100, Some(60), &all_but_one(60, Some(40))), (40, false, 0));
        assert_eq!(start(0, 100, Some(100), &all(100)), (100, false, 0));
    }

    #[test]
    fn what_is_missing_counts_as_the_beginning() {
        assert_eq!(start(5, 100, None, &all(60)), (5, true, 0));
        assert_eq!(start(5, 100, Some(60), &all_but_one(60, None)), (5, true, 0));
        assert_eq!(start(5, 100, None, &[None; BUCKETS]), (5, true, 0));
    }

    #[test]
    fn what_lies_beyond_the_end_of_the_log_counts_as_the_beginning() {
        assert_eq!(start(0, 100, Some(101), &all(60)), (0, true, 0));
        assert_eq!(start(0, 100, Some(60), &all_but_one(60, Some(101))), (0, true, 0));
    }

    #[test]
    fn what_the_retention_took_is_counted() {
        assert_eq!(start(80, 100, Some(50), &all(60)), (80, true, 30));
        assert_eq!(start(80, 100, Some(80), &all(80)), (80, true, 0));
        assert_eq!(start(100, 100, Some(50), &all(50)), (100, true, 50));
    }

    #[test]
    fn a_ceiling_lowers_the_start_but_not_below_the_log() {
        let start = |ceiling| {
            let log = Log { low: 20, high: 100, committed: Some(60) };
            decide(log, &all(60), Some(NextOffset(ceiling))).at
        };
        assert_eq!((start(40), start(80), start(10)), (NextOffset(40), NextOffset(60), NextOffset(20)));
    }
}
