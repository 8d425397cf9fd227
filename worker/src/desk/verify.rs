//! `verify`: reads the topic and the store and says whether each record has become what it should.
//!
//! Every record is one of: *stored* (the event it holds was stored from it), *duplicate* (it was stored from another
//! record), *dead-lettered*, *expired* (older than the retention), *trimmed* (early, because Redis was full), *in flight* (no worker has been there yet), or
//! *missing*. The equation holds when none is missing. Distinct events are counted without remembering ids: each stored
//! event names the one record that it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use common::event::{EventTypes, Timestamp, UserEvent};
use common::store::{PositionScope, Positions, Store, bucket_of};
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::consumer::Consumer;
use rdkafka::message::Headers;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::{LOOKUP_TIMEOUT, Observer, observer, partitions};
use crate::Config;

/// Events looked up at a time.
const STEP: usize = 500;
/// Poison records that are remembered until their dead letters are found, 16 bytes each.
const MOST_POISON: usize = 1_000_000;
/// How long the topic may be silent before the end that was seen at the start.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two writes of the state file.
const SAVE_PERIOD: Duration = Duration::from_secs(5);

/// Arguments of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Only records with a timestamp from here on, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only records before the first with this timestamp, RFC 3339
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Keep the progress in this file and go on from it when it exists
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
}

/// What has become of the records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    records: u64,
    /// Distinct events: each is stored from one record.
    stored: u64,
    duplicates: u64,
    dead_lettered: u64,
    expired: u64,
    /// By the guard of Redis' memory, before its time.
    #[serde(default)]
    trimmed: u64,
    in_flight: u64,
    missing: u64,
}

impl Counts {
    fn holds(&self) -> bool {
        let Self { records, stored, duplicates, dead_lettered, expired, trimmed, in_flight, missing } = *self;
        missing == 0 && records == stored + duplicates + dead_lettered + expired + trimmed + in_flight
    }
}

/// All there is to remember between two runs.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    topic: String,
    counts: Counts,
    /// Per partition, the next offset to look at, and where to end.
    next: BTreeMap<i32, i64>,
    end: BTreeMap<i32, i64>,
    /// Records that can't be events, until their dead letter is found.
    poison: BTreeSet<(i32, i64)>,
    /// The first missing ones, for the report.
    examples: Vec<String>,
}

struct Pending {
    partition: i32,
    offset: i64,
    event_id: String,
    timestamp: Timestamp,
}

struct Audit<'a> {
    config: &'a Config,
    store: Store,
    scope: PositionScope,
    consumer: Arc<Observer>,
    types: EventTypes,
    progress: Progress,
    positions: BTreeMap<i32, Positions>,
    bar: ProgressBar,
}

/// Runs the subcommand. Says whether the equation holds.
///
/// # Errors
/// When Kafka or Redis has no answer, or an argument makes no sense.
pub async fn run(config: &Config, args: &VerifyArgs) -> anyhow::Result<bool> {
    let consumer = observer(config)?;
    let progress = begin(config, &consumer, args)?;
    let length = progress.end.iter().map(|(p, end)| end - progress.next[p]).sum::<i64>();
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} records  {per_sec}  {eta} left")?;
    let mut audit = Audit {
        config,
        store: Store::new(&config.redis)?,
        scope: PositionScope::new(&config.consumer.group, &config.kafka.topics.events),
        consumer: Arc::new(consumer),
        types: EventTypes::default(),
        progress,
        positions: BTreeMap::new(),
        bar: ProgressBar::new(length.unsigned_abs()).with_style(style),
    };
    audit.store.check().await?;
    audit.read_topic(args.resume.as_deref()).await?;
    audit.read_dead_letters().await?;
    audit.bar.finish_and_clear();
    report(&audit.progress, args.json)?;
    Ok(audit.progress.counts.holds())
}

/// A new audit, or the one in the file.
fn begin(config: &Config, consumer: &Observer, args: &VerifyArgs) -> anyhow::Result<Progress> {
    let topic = &config.kafka.topics.events;
    if let Some(file) = args.resume.as_deref().filter(|file| file.exists()) {
        let saved: Progress = serde_json::from_slice(&std::fs::read(file)?)
            .with_context(|| format!("{} is not the progress of a verify; remove it to begin anew", file.display()))?;
        anyhow::ensure!(
            saved.topic == *topic,
            "{} is about the topic {}; remove it to begin anew",
            file.display(),
            saved.topic
        );
        return Ok(saved);
    }
    let partitions = partitions(consumer, topic)?;
    let mut progress = Progress { topic: topic.clone(), ..Progress::default() };
    for partition in &partitions {
        let (low, high) = consumer.fetch_watermarks(topic, *partition, LOOKUP_TIMEOUT)?;
        progress.next.insert(*partition, low);
        progress.end.insert(*partition, high);
    }
    for (bound, text) in [(&mut progress.next, &args.from), (&mut progress.end, &args.to)] {
        let Some(text) = text else { continue };
        let time = Timestamp::parse(text).with_context(|| format!("{text:?} must be an RFC 3339 time"))?;
        for (partition, offset) in offsets_at(consumer, topic, &partitions, time)? {
            bound.insert(partition, offset);
        }
    }
    // A partition whose last record is before `from` has nothing to look at.
    let ends = progress.end.clone();
    progress.next.iter_mut().for_each(|(partition, next)| *next = (*next).min(ends[partition]));
    Ok(progress)
}

/// The first offset at or after a time; partitions that have none are left away.
fn offsets_at(
    consumer: &Observer,
    topic: &str,
    partitions: &[i32],
    time: Timestamp,
) -> anyhow::Result<Vec<(i32, i64)>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition_offset(topic, *partition, Offset::Offset(time.millis()))?;
    }
    let found = consumer.offsets_for_times(asked, LOOKUP_TIMEOUT)?;
    let elements = found.elements();
    let known = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some(Ok((element.partition(), offset))),
        Offset::End => Some(
            consumer
                .fetch_watermarks(topic, element.partition(), LOOKUP_TIMEOUT)
                .map(|(_, high)| (element.partition(), high))
                .map_err(Into::into),
        ),
        _ => None,
    });
    known.collect()
}

impl Audit<'_> {
    async fn read_topic(&mut self, file: Option<&Path>) -> anyhow::Result<()> {
        let (topic, consumer) = (self.config.kafka.topics.events.clone(), Arc::clone(&self.consumer));
        let open: Vec<(i32, i64)> = self
            .progress
            .next
            .iter()
            .filter(|(p, next)| **next < self.progress.end[p])
            .map(|(p, n)| (*p, *n))
            .collect();
        let mut left = open.len();
        assign(&consumer, &topic, &open)?;
        let (mut step, mut heard, mut saved) = (Vec::with_capacity(STEP), Instant::now(), Instant::now());
        while left > 0 {
            let record = tokio::task::block_in_place(|| consumer.poll(Duration::from_millis(200)));
            let Some(record) = record.transpose()? else {
                anyhow::ensure!(heard.elapsed() < SILENCE, "the topic is silent before its end; are its brokers up?");
                continue;
            };
            heard = Instant::now();
            let (partition, offset, end) =
                (record.partition(), record.offset(), self.progress.end[&record.partition()]);
            let done = offset + 1 >= end;
            if self.progress.next[&partition] < end && offset < end {
                step.extend(self.classify(&record)?);
                self.bar.inc(1);
            }
            if done && self.progress.next[&partition] < end {
                left -= 1;
            }
            self.progress.next.insert(partition, (offset + 1).min(end));
            drop(record);
            if step.len() >= STEP {
                self.settle(&mut step).await?;
                if saved.elapsed() > SAVE_PERIOD {
                    saved = Instant::now();
                    self.save(file)?;
                }
            }
        }
        self.settle(&mut step).await?;
        self.save(file)
    }

    /// Counts a record; gives it back if the store has to be asked about it.
    fn classify<M: Message>(&mut self, record: &M) -> anyhow::Result<Option<Pending>> {
        self.progress.counts.records += 1;
        let (partition, offset) = (record.partition(), record.offset());
        let event = UserEvent::from_record(record.payload().unwrap_or_default(), &self.types, Timestamp::now());
        let Ok(event) = event else {
            self.progress.poison.insert((partition, offset));
            anyhow::ensure!(
                self.progress.poison.len() <= MOST_POISON,
                "more than {MOST_POISON} records can't be events; verify a shorter time with --from and --to"
            );
            return Ok(None);
        };
        let event_id = event.event_id.as_str().to_owned();
        Ok(Some(Pending { partition, offset, event_id, timestamp: event.timestamp }))
    }

    /// Asks the store about a step. What it does not have may have come in the meantime, so positions are read first.
    async fn settle(&mut self, step: &mut Vec<Pending>) -> anyhow::Result<()> {
        if step.is_empty() {
            return Ok(());
        }
        let partitions: Vec<i32> = self.progress.end.keys().copied().collect();
        self.positions = self.store.positions(&self.scope, &partitions).await?.into_iter().collect();
        let ids: Vec<&str> = step.iter().map(|record| record.event_id.as_str()).collect();
        let found = self.store.look_up(&ids).await?;
        let trimmed = self.store.trimmed().await?;
        let horizon =
            Timestamp::now().millis() - i64::try_from(self.config.redis.retention.as_millis()).unwrap_or(i64::MAX);
        for (record, found) in step.drain(..).zip(found) {
            let counts = &mut self.progress.counts;
            match found.origin {
                Some(origin) if found.listed => {
                    let own = (origin.partition, origin.offset) == (record.partition, record.offset);
                    *(if own { &mut counts.stored } else { &mut counts.duplicates }) += 1;
                }
                _ if record.timestamp.millis() < horizon => counts.expired += 1,
                _ if trimmed.is_some_and(|before| record.timestamp < before) => counts.trimmed += 1,
                _ if is_in_flight(&self.positions, &record) => counts.in_flight += 1,
                _ => {
                    counts.missing += 1;
                    if self.progress.examples.len() < 20 {
                        let Pending { partition, offset, event_id, .. } = record;
                        self.progress
                            .examples
                            .push(format!("partition {partition} offset {offset} eventId {event_id}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds the dead letter of each poison record.
    async fn read_dead_letters(&mut self) -> anyhow::Result<()> {
        if self.progress.poison.is_empty() {
            return Ok(());
        }
        let (main, dead) = (self.config.kafka.topics.events.clone(), self.config.kafka.topics.dead_letters.clone());
        let mut open = BTreeMap::new();
        let mut starts = Vec::new();
        for partition in partitions(&self.consumer, &dead)? {
            let (low, high) = self.consumer.fetch_watermarks(&dead, partition, LOOKUP_TIMEOUT)?;
            if low < high {
                open.insert(partition, high);
                starts.push((partition, low));
            }
        }
        assign(&self.consumer, &dead, &starts)?;
        let mut heard = Instant::now();
        while !open.is_empty() && !self.progress.poison.is_empty() {
            let record = tokio::task::block_in_place(|| self.consumer.poll(Duration::from_millis(200)));
            let Some(record) = record.transpose()? else {
                anyhow::ensure!(
                    heard.elapsed() < SILENCE,
                    "the topic {dead} is silent before its end; are its brokers up?"
                );
                continue;
            };
            heard = Instant::now();
            if original(&record).is_some_and(|(topic, at)| topic == main && self.progress.poison.remove(&at)) {
                self.progress.counts.dead_lettered += 1;
            }
            if open.get(&record.partition()).is_some_and(|end| record.offset() + 1 >= *end) {
                open.remove(&record.partition());
            }
        }
        for (partition, offset) in std::mem::take(&mut self.progress.poison) {
            let positions = self.positions.get(&partition);
            let passed = positions.is_some_and(|all| all.iter().all(|at| at.is_some_and(|at| at > offset)));
            let counts = &mut self.progress.counts;
            *(if passed { &mut counts.missing } else { &mut counts.in_flight }) += 1;
            if passed {
                self.progress.examples.push(format!("partition {partition} offset {offset} has no dead letter"));
            }
        }
        Ok(())
    }

    fn save(&self, file: Option<&Path>) -> anyhow::Result<()> {
        let Some(file) = file else { return Ok(()) };
        let draft = file.with_extension("tmp");
        std::fs::write(&draft, serde_json::to_vec(&self.progress)?)
            .and_then(|()| std::fs::rename(&draft, file))
            .with_context(|| format!("can't write {}", file.display()))
    }
}

/// Whether the bucket's position says that nobody has been there yet.
fn is_in_flight(positions: &BTreeMap<i32, Positions>, record: &Pending) -> bool {
    let position = positions.get(&record.partition).and_then(|all| all[bucket_of(&record.event_id)]);
    position.is_none_or(|position| record.offset >= position)
}

/// Where a dead letter came from.
fn original<M: Message>(letter: &M) -> Option<(String, (i32, i64))> {
    let text = |key: &str| {
        let header = letter.headers()?.iter().find(|header| header.key == key)?;
        Some(std::str::from_utf8(header.value?).ok()?.to_owned())
    };
    let number = |key: &str| text(key)?.parse::<i64>().ok();
    let partition = i32::try_from(number("__connect.errors.partition")?).ok()?;
    Some((text("__connect.errors.topic")?, (partition, number("__connect.errors.offset")?)))
}

fn assign(consumer: &Observer, topic: &str, starts: &[(i32, i64)]) -> anyhow::Result<()> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in starts {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(consumer.assign(&list)?)
}

#[expect(clippy::print_stdout, reason = "a command-line tool's output")]
fn report(progress: &Progress, json: bool) -> anyhow::Result<()> {
    let Counts { records, stored, duplicates, dead_lettered, expired, trimmed, in_flight, missing } = &progress.counts;
    if json {
        println!(
            "{}",
            serde_json::to_string(&serde_json::json!({
                "holds": progress.counts.holds(), "counts": progress.counts, "examples": progress.examples,
            }))?
        );
        return Ok(());
    }
    println!("records        {records:>12}");
    println!("  stored       {stored:>12}  distinct events");
    println!("  duplicates   {duplicates:>12}  of an event stored from another record");
    println!("  dead letters {dead_lettered:>12}");
    println!("  expired      {expired:>12}");
    println!("  trimmed      {trimmed:>12}  early, because Redis was full");
    println!("  in flight    {in_flight:>12}");
    println!("  missing      {missing:>12}");
    progress.examples.iter().for_each(|example| println!("    {example}"));
    println!("{}", if progress.counts.holds() { "the equation holds" } else { "THE EQUATION DOES NOT HOLD" });
    if progress.counts.records == 0 {
        bail!("there was nothing to verify");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_equation_holds_only_when_nothing_is_missing() {
        let counts = Counts {
            records: 10,
            stored: 4,
            duplicates: 2,
            dead_lettered: 1,
            expired: 1,
            trimmed: 1,
            in_flight: 1,
            missing: 0,
        };
        assert!(counts.holds());
        assert!(!Counts { missing: 1, in_flight: 0, ..counts }.holds());
        assert!(!Counts { stored: 3, ..counts }.holds());
    }

    #[test]
    fn a_record_is_in_flight_until_the_position_of_its_bucket_has_passed_it() {
        let record = |offset| Pending { partition: 0, offset, event_id: "e".into(), timestamp: Timestamp::now() };
        let mut positions: Positions = [Some(100); common::store::BUCKETS];
        positions[bucket_of("e")] = Some(10);
        let positions = BTreeMap::from([(0, positions)]);
        assert!(!is_in_flight(&positions, &record(9)));
        assert!(is_in_flight(&positions, &record(10)));
        assert!(is_in_flight(&BTreeMap::new(), &record(0)));
    }
}
