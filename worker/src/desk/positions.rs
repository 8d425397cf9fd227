//! `positions show` and `positions set`: where the workers stand, and the only way to skip or repeat on purpose.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, value_parser};
use common::store::{PositionScope, Store};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use super::{LOOKUP_TIMEOUT, Observer, ask, members, observer, partitions};
use crate::Config;
use crate::placement::{Log, decide};

/// What to do with positions.
#[derive(Debug, Clone, Subcommand)]
pub enum PositionsCommand {
    /// Show, per partition, the log, the group's commit and the positions in Redis.
    Show(Show),
    /// Move the group: its commit and the positions of every bucket. All its workers must be stopped.
    Set(Set),
}

/// Arguments of `positions show`.
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// One JSON object per partition instead of a table
    #[arg(long)]
    json: bool,
}

/// Arguments of `positions set`.
#[derive(Debug, Clone, Args)]
pub struct Set {
    /// beginning, end, or an offset: the next record to be processed
    #[arg(long, value_name = "WHERE", value_parser = place)]
    to: Place,
    /// Only this partition; all of them when absent
    #[arg(long, value_name = "N", value_parser = value_parser!(i32).range(0..))]
    partition: Option<i32>,
}

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Beginning,
    End,
    Offset(i64),
}

fn place(raw: &str) -> Result<Place, String> {
    match raw {
        "beginning" => Ok(Place::Beginning),
        "end" => Ok(Place::End),
        number => number
            .parse()
            .ok()
            .filter(|offset| *offset >= 0)
            .map(Place::Offset)
            .ok_or_else(|| "must be beginning, end or an offset, a whole number from 0 on".into()),
    }
}

/// One partition.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    partition: i32,
    log_start: i64,
    log_end: i64,
    committed: Option<i64>,
    /// Lowest and highest of the buckets; `None` when any bucket has none.
    lowest: Option<i64>,
    highest: Option<i64>,
    /// Records that would be read (again) by a worker that starts now.
    to_read: i64,
}

impl Row {
    fn new(partition: i32, (low, high): (i64, i64), committed: Option<i64>, positions: &[Option<i64>]) -> Self {
        let all: Option<Vec<i64>> = positions.iter().copied().collect();
        let lowest = all.as_ref().and_then(|all| all.iter().min().copied());
        let highest = all.as_ref().and_then(|all| all.iter().max().copied());
        let start = decide(Log { low, high, committed }, positions, None).at;
        Self { partition, log_start: low, log_end: high, committed, lowest, highest, to_read: high - start.0 }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka or Redis has no answer, the place is not on the log, or the group still has members.
pub async fn run(config: &Config, command: &PositionsCommand) -> anyhow::Result<()> {
    let store = Arc::new(Store::new(&config.redis)?);
    store.check().await?;
    let scope = PositionScope::new(&config.consumer.group, &config.kafka.topics.events);
    let consumer = observer(config)?;
    match command {
        PositionsCommand::Show(show) => print(&rows(config, &store, &scope, &consumer).await?, show.json),
        PositionsCommand::Set(set) => {
            ensure_stopped(config, &consumer)?;
            let found = rows(config, &store, &scope, &consumer).await?;
            let targets = targets(&found, set)?;
            move_to(config, &store, &scope, &consumer, &targets).await?;
            print(&rows(config, &store, &scope, &consumer).await?, false)
        }
    }
}

async fn rows(config: &Config, store: &Store, scope: &PositionScope, consumer: &Observer) -> anyhow::Result<Vec<Row>> {
    let topic = &config.kafka.topics.events;
    let partitions = partitions(consumer, topic)?;
    let mut asked = TopicPartitionList::new();
    for partition in &partitions {
        asked.add_partition(topic, *partition);
    }
    let committed =
        ask(|| consumer.committed_offsets(asked.clone(), LOOKUP_TIMEOUT)).context("asking for the group's commits")?;
    let positions = store.positions(scope, &partitions).await?;
    let row = |partition: &i32| {
        let commit = committed.find_partition(topic, *partition).and_then(|found| found.offset().to_raw());
        let watermarks = ask(|| consumer.fetch_watermarks(topic, *partition, LOOKUP_TIMEOUT))?;
        let found = positions.get(partition).map_or(&[None][..], Vec::as_slice);
        Ok(Row::new(*partition, watermarks, commit.filter(|offset| *offset >= 0), found))
    };
    partitions.iter().map(row).collect()
}

fn ensure_stopped(config: &Config, consumer: &Observer) -> anyhow::Result<()> {
    let group = &config.consumer.group;
    let members = members(consumer, group)?;
    ensure!(members == 0, "the group {group} has {members} members; stop all workers first, nothing was changed");
    Ok(())
}

/// Which partition goes where.
fn targets(rows: &[Row], set: &Set) -> anyhow::Result<Vec<(i32, i64)>> {
    let chosen: Vec<&Row> = rows.iter().filter(|row| set.partition.is_none_or(|only| only == row.partition)).collect();
    ensure!(!chosen.is_empty(), "there is no partition {}", set.partition.unwrap_or_default());
    let target = |row: &&Row| {
        let offset = match set.to {
            Place::Beginning => row.log_start,
            Place::End => row.log_end,
            Place::Offset(offset) => offset,
        };
        if !(row.log_start..=row.log_end).contains(&offset) {
            bail!(
                "--to {offset} is not on partition {}, which reaches from {} to {}; nothing was changed",
                row.partition,
                row.log_start,
                row.log_end
            );
        }
        Ok((row.partition, offset))
    };
    chosen.iter().map(target).collect()
}

/// The commit last: should it fail, the workers start at the earlier of the two and skip nothing.
async fn move_to(
    config: &Config,
    store: &Store,
    scope: &PositionScope,
    consumer: &Observer,
    targets: &[(i32, i64)],
) -> anyhow::Result<()> {
    // Who starts there need not wait for what held the partition where it was. Forgotten too early, it is tried once more.
    let partitions: Vec<i32> = targets.iter().map(|(partition, _)| *partition).collect();
    store.forget_holds(scope, &partitions).await?;
    store.overwrite_positions(scope, targets).await?;
    let mut commits = TopicPartitionList::new();
    for (partition, offset) in targets {
        commits.add_partition_offset(&config.kafka.topics.events, *partition, Offset::Offset(*offset))?;
    }
    consumer
        .commit(&commits, CommitMode::Sync)
        .context("the positions are set, the group's commit is not; run it again")
}

#[expect(clippy::print_stdout, reason = "a command-line tool's output")]
fn print(rows: &[Row], json: bool) -> anyhow::Result<()> {
    if json {
        for row in rows {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(());
    }
    let show = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    println!(
        "{:>9} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "partition", "log start", "log end", "committed", "lowest", "highest", "to read"
    );
    for row in rows {
        println!(
            "{:>9} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
            row.partition,
            row.log_start,
            row.log_end,
            show(row.committed),
            show(row.lowest),
            show(row.highest),
            row.to_read
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(positions: &[Option<i64>]) -> Row {
        Row::new(3, (10, 100), Some(60), positions)
    }

    fn set(to: &str, partition: Option<i32>) -> Set {
        Set { to: place(to).unwrap(), partition }
    }

    #[test]
    fn what_is_to_be_read_follows_the_rule_of_placement() {
        assert_eq!(row(&[Some(70); 4]).to_read, 40);
        let mut lagging = [Some(70); 4];
        lagging[0] = Some(50);
        assert_eq!(row(&lagging).to_read, 50);
        lagging[0] = None;
        assert_eq!((row(&lagging).to_read, row(&lagging).lowest), (90, None));
        assert_eq!(row(&[Some(5); 4]).to_read, 90);
        // A commit beyond the end of the log counts as none.
        assert_eq!(Row::new(3, (10, 100), Some(101), &[Some(60); 4]).to_read, 90);
    }

    #[test]
    fn only_places_on_the_log_are_taken() {
        let rows = [row(&[Some(70); 4])];
        assert_eq!(targets(&rows, &set("beginning", None)).unwrap(), [(3, 10)]);
        assert_eq!(targets(&rows, &set("end", Some(3))).unwrap(), [(3, 100)]);
        assert_eq!(targets(&rows, &set("42", None)).unwrap(), [(3, 42)]);
        for wrong in ["9", "101"] {
            assert!(targets(&rows, &set(wrong, None)).is_err(), "{wrong}");
        }
        assert!(targets(&rows, &set("end", Some(4))).is_err());
    }
}
