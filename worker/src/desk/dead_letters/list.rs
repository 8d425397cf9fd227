//! `dead-letters list`: a line for each, and how many there are by reason.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use clap::{Args, value_parser};
use serde::Serialize;

use super::filter::Filter;
use super::letter::Letter;
use super::text::one_line;
use crate::Config;
use crate::desk::reader::Reader;

/// Reasons counted apart. Ours are fewer; those of foreign records must not grow without bound.
const MOST_REASONS: usize = 100;

/// Arguments of `dead-letters list`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  user-activity-worker dead-letters list --reason enum --from 2026-02-17T10:00:00Z
  user-activity-worker dead-letters list --json | jq -r .key

Reads the dead-letter topic from its beginning to its end of now. Changes nothing. The count by reason goes to standard \
error. In the table, long keys and messages are cut; --json and `show` have all of them.")]
pub struct List {
    /// One JSON object per line instead of a table; what is unknown is null
    #[arg(long)]
    pub(super) json: bool,
    /// End after so many of them
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    pub(super) filter: Filter,
}

/// How many dead letters were listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub letters: u64,
    /// By reason.
    pub reasons: BTreeMap<String, u64>,
    /// Whether `--limit` was the end.
    pub limited: bool,
}

impl Counts {
    fn add(&mut self, reason: &str) {
        self.letters += 1;
        let known = self.reasons.contains_key(reason) || self.reasons.len() < MOST_REASONS;
        *self.reasons.entry(if known { reason } else { "others" }.to_owned()).or_default() += 1;
    }
}

/// `7 dead letters: enum 4, json 3`.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dead letter{}", self.letters, if self.letters == 1 { "" } else { "s" })?;
        for (number, (reason, count)) in self.reasons.iter().enumerate() {
            write!(f, "{} {} {count}", if number == 0 { ":" } else { "," }, one_line(reason, 40))?;
        }
        if self.limited { write!(f, " (ended by --limit)") } else { Ok(()) }
    }
}

/// Gives each dead letter that is meant to `each`, in order of partition and offset.
///
/// # Errors
/// When Kafka has no answer, the filter makes no sense, or the first one of `each`.
pub async fn list(
    config: &Config,
    request: &List,
    mut each: impl FnMut(&Letter) -> io::Result<()>,
) -> anyhow::Result<Counts> {
    let mut reader = Reader::open(config, &config.kafka.topics.dead_letters, &config.consumer.group)?;
    let mut counts = Counts::default();
    while let Some(letter) = reader.next(|record| Letter::of(record)).await? {
        if !request.filter.matches(&letter) {
            continue;
        }
        each(&letter)?;
        counts.add(letter.reason());
        if request.limit == Some(counts.letters) {
            counts.limited = true;
            break;
        }
    }
    Ok(counts)
}

/// A dead letter for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    partition: i32,
    offset: i64,
    timestamp: Option<String>,
    original_topic: Option<&'a str>,
    original_partition: Option<i32>,
    original_offset: Option<i64>,
    reason: Option<&'a str>,
    message: Option<&'a str>,
    attempts: Option<u32>,
    worker: Option<&'a str>,
    key: Option<String>,
    value_bytes: Option<usize>,
}

impl<'a> Row<'a> {
    fn of(letter: &'a Letter) -> Self {
        Self {
            partition: letter.partition,
            offset: letter.offset,
            timestamp: letter.timestamp.map(|time| time.to_string()),
            original_topic: letter.original.topic.as_deref(),
            original_partition: letter.original.partition,
            original_offset: letter.original.offset,
            reason: letter.reason.as_deref(),
            message: letter.message.as_deref(),
            attempts: letter.attempts,
            worker: letter.worker.as_deref(),
            key: letter.key_lossy(),
            value_bytes: letter.value.as_ref().map(Vec::len),
        }
    }
}

/// The table's first line.
#[must_use]
pub fn heading() -> String {
    columns(["partition", "offset", "timestamp", "reason", "attempts", "original", "worker", "key", "bytes", "message"])
}

/// A dead letter as a line of the table, or as JSON.
#[must_use]
pub fn line(letter: &Letter, json: bool) -> String {
    let row = Row::of(letter);
    if json {
        // Numbers and text only: it can't fail.
        return serde_json::to_string(&row).unwrap_or_default();
    }
    columns([
        &row.partition.to_string(),
        &row.offset.to_string(),
        &or_dash(row.timestamp),
        &one_line(row.reason.unwrap_or("-"), 20),
        &or_dash(row.attempts),
        &one_line(&place(letter), 60),
        &one_line(row.worker.unwrap_or("-"), 40),
        &row.key.map_or_else(|| "-".to_owned(), |key| one_line(&key, 40)),
        &or_dash(row.value_bytes),
        &one_line(row.message.unwrap_or("-"), 100),
    ])
}

/// `topic-partition@offset` of the original.
pub(super) fn place(letter: &Letter) -> String {
    let original = &letter.original;
    let Some(topic) = &original.topic else { return "-".to_owned() };
    format!("{topic}-{}@{}", or_dash(original.partition), or_dash(original.offset))
}

fn columns(cells: [&str; 10]) -> String {
    let [partition, offset, timestamp, reason, attempts, original, worker, key, bytes, message] = cells;
    format!(
        "{partition:>9} {offset:>10}  {timestamp:<24} {reason:<9} {attempts:>8}  {original:<32} {worker:<16} {key:<24} \
         {bytes:>8}  {message}"
    )
}

fn or_dash(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::letter::Original;
    use super::*;

    #[test]
    fn counts_read_as_one_line() {
        let mut counts = Counts::default();
        assert_eq!(counts.to_string(), "0 dead letters");
        counts.add("json");
        assert_eq!(counts.to_string(), "1 dead letter: json 1");
        ["enum", "json"].iter().for_each(|reason| counts.add(reason));
        let limited = Counts { limited: true, ..counts };
        assert_eq!(limited.to_string(), "3 dead letters: enum 1, json 2 (ended by --limit)");
    }

    #[test]
    fn foreign_reasons_do_not_grow_without_bound() {
        let mut counts = Counts::default();
        (0..1_000).for_each(|number| counts.add(&number.to_string()));
        assert_eq!((counts.letters, counts.reasons.len(), counts.reasons["others"]), (1_000, MOST_REASONS + 1, 900));
    }

    #[test]
    fn what_is_unknown_is_null_or_a_dash() {
        let letter = Letter { partition: 1, offset: 7, ..Letter::default() };
        let json: serde_json::Value = serde_json::from_str(&line(&letter, true)).unwrap();
        assert_eq!(json["partition"], 1);
        for unknown in ["timestamp", "originalTopic", "originalPartition", "reason", "attempts", "key", "valueBytes"] {
            assert!(json[unknown].is_null(), "{json}");
        }
        let cells: Vec<String> = line(&letter, false).split_whitespace().map(str::to_owned).collect();
        assert_eq!(cells, ["1", "7", "-", "-", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn a_line_stays_a_line_whatever_the_record_holds() {
        let letter = Letter {
            original: Original { topic: Some("a\nb".into()), ..Original::default() },
            key: Some(b"\x1b[2J\n\xff".to_vec()),
            message: Some("x".repeat(1_000)),
            ..Letter::default()
        };
        let line = line(&letter, false);
        assert!(
            line.chars().all(|c| !c.is_control()) && line.contains("a\\nb-?@?".replace('?', "-").as_str()),
            "{line}"
        );
        assert!(line.chars().count() < 300, "{line}");
    }
}
