//! How far a verify is: all there is to remember between two runs of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use common::telemetry::one_line;
use serde::{Deserialize, Serialize};

use super::verdict::{Counts, Fate};

/// Missing records that are named.
const MOST_EXAMPLES: usize = 20;

/// How far it is.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Progress {
    pub(super) topic: String,
    pub(super) counts: Counts,
    /// Per partition, the next offset to look at, and where to end.
    pub(super) next: BTreeMap<i32, i64>,
    pub(super) end: BTreeMap<i32, i64>,
    pub(super) suspects: Suspects,
    /// The first missing ones, for the report.
    pub(super) examples: Vec<String>,
}

/// Records for which only a dead letter can account, by partition and offset, each with its eventId if it is an event.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Suspects(BTreeMap<i32, BTreeMap<i64, Option<String>>>);

impl Suspects {
    pub(super) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    pub(super) fn add(&mut self, (partition, offset): (i32, i64), event_id: Option<String>) {
        self.0.entry(partition).or_default().insert(offset, event_id);
    }

    /// Says whether it was one.
    pub(super) fn clear(&mut self, partition: i32, offset: i64) -> bool {
        self.0.get_mut(&partition).is_some_and(|offsets| offsets.remove(&offset).is_some())
    }

    /// Those that are left, in order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = ((i32, i64), Option<String>)> + use<> {
        let partitions = std::mem::take(&mut self.0).into_iter();
        partitions.flat_map(|(of, offsets)| offsets.into_iter().map(move |(offset, id)| ((of, offset), id)))
    }
}

impl Progress {
    /// Goes on with what another run on the same topic has saved.
    pub(super) fn load(file: &Path, topic: &str) -> anyhow::Result<Self> {
        let saved: Self = serde_json::from_slice(&std::fs::read(file)?)
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

    /// Nothing accounts for a record.
    pub(super) fn miss(&mut self, (partition, offset): (i32, i64), event_id: Option<&str>) {
        self.counts.add(Fate::Missing);
        if self.examples.len() < MOST_EXAMPLES {
            let what =
                event_id.map_or_else(|| "has no dead letter".to_owned(), |id| format!("eventId {}", one_line(id)));
            self.examples.push(format!("partition {partition} offset {offset} {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_records_are_named_and_all_are_counted() {
        let mut progress = Progress::default();
        progress.miss((0, 0), Some("e\n\u{1b}[2J"));
        (1..1_000).for_each(|offset| progress.miss((0, offset), None));
        assert_eq!((progress.counts.missing, progress.examples.len()), (1_000, MOST_EXAMPLES));
        assert_eq!(
            progress.examples[..2],
            [r"partition 0 offset 0 eventId e\n\u{1b}[2J", "partition 0 offset 1 has no dead letter"]
        );
    }

    #[test]
    fn what_was_saved_is_gone_on_with_on_the_same_topic_only() {
        let mut progress = Progress { topic: "t".into(), next: [(0, 5)].into(), ..Progress::default() };
        progress.suspects.add((0, 3), None);
        progress.suspects.add((0, 4), Some("e".into()));
        let file = std::env::temp_dir().join(format!("verify-{}", uuid::Uuid::now_v7()));
        progress.save(&file).unwrap();
        let mut saved = Progress::load(&file, "t").unwrap();
        assert!(Progress::load(&file, "another").is_err());
        std::fs::remove_file(&file).unwrap();
        assert_eq!((saved.next, saved.suspects.len()), (progress.next, 2));
        assert!(saved.suspects.clear(0, 3) && !saved.suspects.clear(0, 3) && !saved.suspects.clear(1, 4));
        assert_eq!(saved.suspects.take().collect::<Vec<_>>(), [((0, 4), Some("e".to_owned()))]);
    }
}
