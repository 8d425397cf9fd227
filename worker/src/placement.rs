//! Where a partition starts: at the **earlier** of the group's commit and the lowest position of any bucket.
//!
//! A commit or a position that is missing, or beyond the end of the log, counts as the beginning. So nothing is skipped
//! because of a commit that ran ahead of what Redis still has; what it does have is a cheap duplicate, and an emptied
//! Redis is refilled by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use common::mutation::{Mutation, active};
use common::store::{Placement, PositionScope, Positions, Store, StoreError};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use crate::breaker::Others;
use crate::commit::{NextOffset, Slot, Vacancy};
use crate::group::Group;

/// For one look-up at the brokers.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// For moving the read positions, which happens inside the client.
const SEEK_TIMEOUT: Duration = Duration::from_millis(500);

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
    /// Where the log ended.
    pub end: NextOffset,
    /// How many offsets before `start` were never stored and are not there any more.
    pub missing: i64,
    /// How many buckets there are.
    pub buckets: usize,
    /// What the workers that had it did with it.
    pub others: Others,
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

/// An attempt to place partitions, or those of them that one broker leads.
#[derive(Debug)]
pub struct Attempt {
    /// The partitions it is over for.
    pub partitions: Vec<i32>,
    /// Those that have their place now: the client reads on from there once it is resumed. The others have to wait.
    ///
    /// Trying again after an error is safe.
    pub result: Result<Vec<Placed>, PlaceError>,
}

/// Brokers by what they lead.
pub type Leaders = BTreeMap<i32, i32>;

/// A partition that can be placed once its log is known.
struct Candidate {
    vacancy: Vacancy,
    positions: Positions,
    committed: Option<i64>,
    others: Others,
}

impl Candidate {
    fn partition(&self) -> i32 {
        self.vacancy.slot.partition
    }
}

/// What is asked for places.
#[derive(Clone)]
pub struct Placer {
    /// Weak: the client is closed by whoever drops it last, which must not be a look-up that nobody waits for.
    pub kafka: Weak<StreamConsumer<Group>>,
    /// Where positions are.
    pub store: Arc<Store>,
    /// Whose positions.
    pub scope: PositionScope,
    /// The topic.
    pub topic: String,
}

impl Placer {
    /// Finds a place for each of the partitions, writes it into every bucket and moves the client there. Each of the
    /// partitions is in one of the attempts.
    ///
    /// The brokers are asked for all partitions at once, each leader by itself: one that does not answer holds up nothing
    /// but the partitions it leads. `leaders` is what the client knew last; where it knows none, the brokers are asked.
    pub fn place(self, vacancies: Vec<Vacancy>, leaders: Leaders) -> BoxStream<'static, Attempt> {
        let begun = async move {
            let partitions = vacancies.iter().map(|vacancy| vacancy.slot.partition).collect();
            match self.candidates(vacancies, leaders).await {
                Ok(shares) => shares.into_iter().map(|share| self.clone().place_share(share)).collect(),
                Err(error) => {
                    let failed = async move { Attempt { partitions, result: Err(error) } };
                    FuturesUnordered::from_iter([failed.boxed()])
                }
            }
        };
        begun.flatten_stream().boxed()
    }

    /// Those that can be placed, by the broker that leads them. What has no leader is a share of its own, to be given up.
    async fn candidates(
        &self,
        vacancies: Vec<Vacancy>,
        leaders: Leaders,
    ) -> Result<Vec<(Option<i32>, Vec<Candidate>)>, PlaceError> {
        self.store.check().await?;
        let partitions: Vec<i32> = vacancies.iter().map(|vacancy| vacancy.slot.partition).collect();
        // Before the logs: a position that somebody still moves meanwhile must not seem to lie beyond the end.
        let (positions, held) =
            tokio::join!(self.store.positions(&self.scope, &partitions), self.store.holds(&self.scope, &partitions));
        let mut positions = positions?;
        let others = |partition: i32| match &held {
            Ok(held) => held.get(&partition).map_or(Others::Read, |held| Others::Held(*held)),
            Err(_) => Others::Unknown,
        };
        held.as_ref()
            .err()
            .into_iter()
            .for_each(|error| log::debug!("which partitions were held is not known: {error}"));
        let asked = partitions.clone();
        let (commits, leaders) = self
            .ask(move |kafka, topic| {
                let commits = commits(kafka, topic, &asked)?;
                Ok((commits, with_missing(kafka, topic, &asked, leaders)?))
            })
            .await?;
        let mut shares: BTreeMap<Option<i32>, Vec<Candidate>> = BTreeMap::new();
        for vacancy in vacancies {
            let partition = vacancy.slot.partition;
            let unsaid = || StoreError::Corrupt(format!("no answer about partition {partition}"));
            let positions = positions.remove(&partition).ok_or_else(unsaid)?;
            let (committed, others) = (commits.get(&partition).copied(), others(partition));
            let candidate = Candidate { vacancy, positions, committed, others };
            shares.entry(leaders.get(&partition).copied()).or_default().push(candidate);
        }
        Ok(shares.into_iter().collect())
    }

    fn place_share(self, (leader, share): (Option<i32>, Vec<Candidate>)) -> BoxFuture<'static, Attempt> {
        let partitions = share.iter().map(Candidate::partition).collect();
        async move {
            let result = if leader.is_some() { self.place_led(share).await } else { Ok(Vec::new()) };
            Attempt { partitions, result }
        }
        .boxed()
    }

    async fn place_led(self, share: Vec<Candidate>) -> Result<Vec<Placed>, PlaceError> {
        let partitions: Vec<i32> = share.iter().map(Candidate::partition).collect();
        let edge = async |edge| {
            let partitions = partitions.clone();
            self.ask(move |kafka, topic| edges(kafka, topic, &partitions, edge, LOOKUP_TIMEOUT)).await
        };
        let (lows, highs) = tokio::try_join!(edge(KafkaOffset::Beginning), edge(KafkaOffset::End))?;
        let mut placements = Vec::new();
        let mut placed = Vec::new();
        for Candidate { vacancy: Vacancy { slot, ceiling }, positions, committed, others } in share {
            let (Some(low), Some(high)) = (lows.get(&slot.partition), highs.get(&slot.partition)) else { continue };
            let log = Log { low: low.0, high: high.0, committed };
            let Start { at, beginning, missing } = decide(log, &positions, ceiling);
            let beginning = beginning.then_some(log.high);
            placements.push(Placement { partition: slot.partition, start: at.0, beginning });
            let (committed, buckets) = (committed.map(NextOffset), positions.len());
            placed.push(Placed { slot, start: at, committed, end: *high, missing, buckets, others });
        }
        let refused = self.store.place(&self.scope, &placements).await?;
        placed.retain(|place| !refused.contains(&place.slot.partition));
        if placed.is_empty() {
            return Ok(placed);
        }
        let starts: Vec<_> = placed.iter().map(|place| (place.slot.partition, place.start)).collect();
        let sought = self.ask(move |kafka, topic| Ok(seek(kafka, topic, &starts))).await?;
        placed.retain(|place| sought.contains(&place.slot.partition));
        Ok(placed)
    }

    /// Asks the client something that may block.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&StreamConsumer<Group>, &str) -> KafkaResult<T> + Send + 'static,
    ) -> KafkaResult<T> {
        let (kafka, topic) = (Weak::clone(&self.kafka), self.topic.clone());
        let asked = move || question(&*kafka.upgrade().ok_or(KafkaError::Canceled)?, &topic);
        // The closure neither panics nor is it cancelled.
        tokio::task::spawn_blocking(asked).await.unwrap_or(Err(KafkaError::Canceled))
    }
}

/// A list of partitions with such an offset each.
fn list(topic: &str, places: impl IntoIterator<Item = (i32, KafkaOffset)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    places.into_iter().try_for_each(|(partition, offset)| list.add_partition_offset(topic, partition, offset))?;
    Ok(list)
}

fn commits(kafka: &StreamConsumer<Group>, topic: &str, partitions: &[i32]) -> KafkaResult<HashMap<i32, i64>> {
    let asked = list(topic, partitions.iter().map(|partition| (*partition, KafkaOffset::Invalid)))?;
    let found = kafka.committed_offsets(asked, LOOKUP_TIMEOUT)?;
    let commit = |element: &TopicPartitionListElem<'_>| match element.offset() {
        KafkaOffset::Offset(offset) => Some((element.partition(), offset)),
        _ => None,
    };
    Ok(found.elements().iter().filter_map(commit).collect())
}

/// The leaders that are known, and what the brokers know of the others.
fn with_missing(
    kafka: &StreamConsumer<Group>,
    topic: &str,
    partitions: &[i32],
    mut leaders: Leaders,
) -> KafkaResult<Leaders> {
    if partitions.iter().any(|partition| !leaders.contains_key(partition)) {
        let metadata = kafka.fetch_metadata(Some(topic), LOOKUP_TIMEOUT)?;
        let known = metadata.topics().iter().filter(|found| found.name() == topic).flat_map(|topic| topic.partitions());
        leaders.extend(known.filter(|known| known.leader() >= 0).map(|known| (known.id(), known.leader())));
    }
    Ok(leaders)
}

/// Where the logs begin or end: one request to each leader. `edge` stands for itself where a time is expected (Kafka
/// protocol, ListOffsets: -2 and -1).
///
/// # Errors
/// When any of the leaders has no answer; of one partition alone, it is left out.
pub(crate) fn edges(
    kafka: &StreamConsumer<Group>,
    topic: &str,
    partitions: &[i32],
    edge: KafkaOffset,
    timeout: Duration,
) -> KafkaResult<HashMap<i32, NextOffset>> {
    let asked = list(topic, partitions.iter().map(|partition| (*partition, edge)))?;
    let found = kafka.offsets_for_times(asked, timeout)?;
    let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
        KafkaOffset::Offset(offset) if element.error().is_ok() => Some((element.partition(), NextOffset(offset))),
        _ => None,
    };
    Ok(found.elements().iter().filter_map(offset).collect())
}

/// Moves the read positions, all together. Gives the partitions where that was done: right after an assignment the client
/// may not have begun with one yet.
fn seek(kafka: &StreamConsumer<Group>, topic: &str, starts: &[(i32, NextOffset)]) -> BTreeSet<i32> {
    let asked = list(topic, starts.iter().map(|(partition, start)| (*partition, KafkaOffset::Offset(start.0))));
    let sought = asked.and_then(|asked| kafka.seek_partitions(asked, SEEK_TIMEOUT));
    match sought {
        Ok(sought) => {
            let done = sought.elements().into_iter().filter(|element| element.error().is_ok());
            done.map(|element| element.partition()).collect()
        }
        Err(error) => {
            log::debug!("partitions are not placed yet: {error}");
            BTreeSet::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKETS: usize = 4;

    fn start(low: i64, high: i64, committed: Option<i64>, positions: &[Option<i64>]) -> (i64, bool, i64) {
        let Start { at, beginning, missing } = decide(Log { low, high, committed }, positions, None);
        (at.0, beginning, missing)
    }

    fn all(position: i64) -> Positions {
        vec![Some(position); BUCKETS]
    }

    fn all_but_one(position: i64, one: Option<i64>) -> Positions {
        let mut positions = all(position);
        positions[2] = one;
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
