//! How far a verify is: all there is to remember between two runs of it.
//!
//! A run that goes on begins at the first record of each partition that was in flight: what is judged from there on is not
//! remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use common::telemetry::one_line;
use serde::{Deserialize, Serialize};

use super::verdict::{Counts, Fate, Place};

/// Missing records that are named.
const MOST_EXAMPLES: usize = 20;

/// How far it is.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Progress {
    pub(super) topic: String,
    /// Per partition, the next offset to look at in the next run, and where to end.
    pub(super) next: BTreeMap<i32, i64>,
    pub(super) end: BTreeMap<i32, i64>,
    /// Of the records before `next`.
    settled: Tally,
    /// Of those from there on.
    #[serde(skip)]
    open: Tally,
    /// Partitions with something in flight.
    #[serde(skip)]
    held: BTreeSet<i32>,
}

/// What has become of records.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tally {
    counts: Counts,
    suspects: Suspects,
    /// The first missing ones, for the report.
    examples: Vec<String>,
}

/// Records that the store does not account for, by partition and offset, each with its eventId if it is an event.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Suspects(BTreeMap<i32, BTreeMap<i64, Option<String>>>);

/// One of them.
pub(super) type Suspect = (Place, Option<String>);

impl Suspects {
    fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    fn add(&mut self, (partition, offset): Place, event_id: Option<String>) {
        self.0.entry(partition).or_default().insert(offset, event_id);
    }

    /// Says whether it was one.
    fn clear(&mut self, (partition, offset): Place) -> bool {
        self.0.get_mut(&partition).is_some_and(|offsets| offsets.remove(&offset).is_some())
    }

    /// Those that are left, in order.
    fn take(&mut self) -> impl Iterator<Item = Suspect> + use<> {
        let partitions = std::mem::take(&mut self.0).into_iter();
        partitions.flat_map(|(of, offsets)| offsets.into_iter().map(move |(offset, id)| ((of, offset), id)))
    }
}

impl Progress {
    /// At its beginning.
    pub(super) fn new(topic: &str, next: BTreeMap<i32, i64>, end: BTreeMap<i32, i64>) -> Self {
        Self { topic: topic.to_owned(), next, end, ..Self::default() }
    }

    /// Goes on with what another run on the same topic has saved.
    pub(super) fn load(file: &Path, topic: &str) -> anyhow::Result<Self> {
        let saved = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        let saved: Self = serde_json::from_slice(&saved)
            .with_context(|| format!("{} is not the progress of a verify; remove it to begin anew", file.display()))?;
        ensure!(saved.topic == topic, "{} is about the topic {}; remove it to begin anew", file.display(), saved.topic);
        Ok(saved)
    }

    pub(super) fn save(&self, file: &Path) -> anyhow::Result<()> {
        let draft = file.with_extension("tmp");
        std::fs::write(&draft, serde_json::to_vec(self)?)
            .and_then(|()| std::fs::rename(&draft, file))
            .with_context(|| format!("can't write {}", file.display()))
    }

    /// Of all records.
    pub(super) fn counts(&self) -> Counts {
        self.settled.counts.plus(self.open.counts)
    }

    /// Which records are missing, the first of them.
    pub(super) fn examples(&self) -> impl Iterator<Item = &str> {
        self.settled.examples.iter().chain(&self.open.examples).take(MOST_EXAMPLES).map(String::as_str)
    }

    /// Takes the next record of a partition. `is_reached` says whether a worker has been there, as far as is known.
    pub(super) fn take(&mut self, at: Place, event_id: Option<String>, fate: Option<Fate>, is_reached: bool) {
        let (partition, offset) = at;
        if !is_reached {
            self.held.insert(partition);
        }
        if !self.held.contains(&partition) {
            self.next.insert(partition, offset + 1);
        }
        let tally = self.tally(at);
        tally.counts.records += 1;
        match fate {
            Some(fate) => tally.counts.add(fate),
            None => tally.suspects.add(at, event_id),
        }
    }

    /// How many records the store does not account for.
    pub(super) fn suspects(&self) -> usize {
        self.settled.suspects.len() + self.open.suspects.len()
    }

    /// There is a dead letter of the record at this place.
    pub(super) fn clear(&mut self, at: Place) {
        let tally = self.tally(at);
        if tally.suspects.clear(at) {
            tally.counts.add(Fate::DeadLettered);
        }
    }

    /// Those that are left, which must be given their fates.
    pub(super) fn take_suspects(&mut self) -> Vec<Suspect> {
        self.settled.suspects.take().chain(self.open.suspects.take()).collect()
    }

    /// What has become of a suspect.
    pub(super) fn settle(&mut self, at: Place, event_id: Option<&str>, fate: Fate) {
        let tally = self.tally(at);
        tally.counts.add(fate);
        if fate == Fate::Missing && tally.examples.len() < MOST_EXAMPLES {
            let what =
                event_id.map_or_else(|| "has no dead letter".to_owned(), |id| format!("eventId {}", one_line(id)));
            tally.examples.push(format!("partition {} offset {} {what}", at.0, at.1));
        }
    }

    fn tally(&mut self, (partition, offset): Place) -> &mut Tally {
        let is_settled = self.next.get(&partition).is_some_and(|next| offset < *next);
        if is_settled { &mut self.settled } else { &mut self.open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reloaded(progress: &Progress) -> Progress {
        let file = std::env::temp_dir().join(format!("verify-{}", uuid::Uuid::now_v7()));
        progress.save(&file).unwrap();
        assert!(Progress::load(&file, "another").is_err());
        let saved = Progress::load(&file, "t").unwrap();
        std::fs::remove_file(&file).unwrap();
        saved
    }

    #[test]
    fn the_first_missing_records_are_named_and_all_are_counted() {
        let mut progress = Progress::default();
        progress.settle((0, 0), Some("e\n\u{1b}[2J"), Fate::Missing);
        (1..1_000).for_each(|offset| progress.settle((0, offset), None, Fate::Missing));
        let examples: Vec<&str> = progress.examples().collect();
        assert_eq!((progress.counts().missing, examples.len()), (1_000, MOST_EXAMPLES));
        assert_eq!(
            examples[..2],
            [r"partition 0 offset 0 eventId e\n\u{1b}[2J", "partition 0 offset 1 has no dead letter"]
        );
    }

    #[test]
    fn what_was_saved_is_gone_on_with_on_the_same_topic_only() {
        let mut progress = Progress::new("t", [(0, 3)].into(), [(0, 9)].into());
        progress.take((0, 3), None, None, true);
        progress.take((0, 4), Some("e".into()), None, true);
        progress.take((0, 5), Some("f".into()), Some(Fate::Stored), true);
        let mut saved = reloaded(&progress);
        assert_eq!((&saved.next, &saved.end), (&[(0, 6)].into(), &[(0, 9)].into()));
        assert_eq!((saved.counts(), saved.suspects()), (progress.counts(), 2));
        [(0, 3), (0, 3), (1, 4)].into_iter().for_each(|at| saved.clear(at));
        assert_eq!(saved.counts().dead_lettered, 1);
        assert_eq!(saved.take_suspects(), [((0, 4), Some("e".to_owned()))]);
    }

    #[test]
    fn the_next_run_begins_with_what_was_in_flight() {
        let mut progress = Progress::new("t", [(0, 0), (1, 0)].into(), [(0, 9), (1, 9)].into());
        progress.take((0, 0), None, Some(Fate::Stored), true);
        progress.take((0, 1), None, Some(Fate::InFlight), false);
        // Of another bucket, and poison.
        progress.take((0, 2), None, Some(Fate::Stored), true);
        progress.take((0, 3), None, None, true);
        progress.take((1, 0), None, Some(Fate::Expired), true);
        progress.clear((0, 3));
        let all = Counts { records: 5, stored: 2, in_flight: 1, dead_lettered: 1, expired: 1, ..Counts::default() };
        assert_eq!(progress.counts(), all);
        let saved = reloaded(&progress);
        assert_eq!(saved.next, [(0, 1), (1, 1)].into());
        assert_eq!(saved.counts(), Counts { records: 2, stored: 1, expired: 1, ..Counts::default() });
    }
}
