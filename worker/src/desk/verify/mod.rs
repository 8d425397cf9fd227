//! `verify`: reads the topic and the store and says whether each record has become what it should.
//!
//! Every record is one of: *stored* (the event it holds was stored from it), *duplicate* (it was stored from another
//! record), *dead-lettered*, *expired* (older than the retention), *trimmed* (early, because Redis was full), *in flight* (no worker has been there yet), or
//! *missing*. The equation holds when none is missing. Distinct events are counted without remembering ids: each stored
//! event names the one record that it came from. In the order a record passes it:
//!
//! 1. `../reader.rs`: the topic up to where it ended at the start;
//! 2. `verdict.rs`: what the store says of it;
//! 3. `progress.rs`: what is counted, and remembered between two runs. A record that is no event, or one that should be
//!    stored and is not, is a *suspect* there until the dead letters are read;
//! 4. `report.rs`: what came out.

mod progress;
mod report;
mod verdict;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use common::event::{EventTypes, Timestamp};
use common::store::{PositionScope, Store};
use indicatif::{ProgressBar, ProgressStyle};

use self::progress::Progress;
use self::verdict::{AllPositions, Fate, Sighting, View, is_in_flight};
use super::dead_letters::letter::Letter;
use super::reader::Reader;
use super::{check_span, time};
use crate::Config;

/// Records judged at a time.
const STEP: usize = 500;
/// Suspects that are remembered, about 100 bytes each, before the dead letters are read for them.
const MOST_SUSPECTS: usize = 200_000;
/// Between two writes of the state file.
const SAVE_PERIOD: Duration = Duration::from_secs(5);

/// Arguments of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Only records with a timestamp from here on, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Only records before the first with this timestamp, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// Keep the progress in this file and go on from it when it exists
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// # Errors
    /// When arguments don't go together.
    pub fn check(&self) -> anyhow::Result<()> {
        check_span(self.from, self.to)
    }
}

struct Audit<'a> {
    config: &'a Config,
    store: Store,
    scope: PositionScope,
    progress: Progress,
}

/// Runs the subcommand. Says whether the equation holds.
///
/// # Errors
/// When Kafka or Redis has no answer, or the file can't be used.
pub async fn run(config: &Config, args: &VerifyArgs) -> anyhow::Result<bool> {
    let mut reader = Reader::open(config, &config.kafka.topics.events, &config.consumer.group)?;
    let progress = begin(&mut reader, &config.kafka.topics.events, args)?;
    let mut audit = Audit {
        config,
        store: Store::new(&config.redis)?,
        scope: PositionScope::new(&config.consumer.group, &config.kafka.topics.events),
        progress,
    };
    audit.store.check().await?;
    audit.read_topic(reader, args.resume.as_deref()).await?;
    audit.read_dead_letters().await?;
    report::print(&audit.progress, args.json)?;
    Ok(audit.progress.counts.holds())
}

/// A new audit, or the one in the file.
fn begin(reader: &mut Reader, topic: &str, args: &VerifyArgs) -> anyhow::Result<Progress> {
    if let Some(file) = args.resume.as_deref().filter(|file| file.exists()) {
        let saved = Progress::load(file, topic)?;
        reader.go_on(&saved.next, &saved.end);
        return Ok(saved);
    }
    reader.only_between(args.from, args.to)?;
    let (next, end) = (reader.places().into_iter().collect(), reader.ends().into_iter().collect());
    Ok(Progress { topic: topic.to_owned(), next, end, ..Progress::default() })
}

impl Audit<'_> {
    async fn read_topic(&mut self, mut reader: Reader, file: Option<&Path>) -> anyhow::Result<()> {
        let (types, bar) = (EventTypes::default(), self.bar()?);
        let (mut step, mut saved) = (Vec::with_capacity(STEP), Instant::now());
        while let Some(sighting) = reader.next(|record| Sighting::of(record, &types)).await? {
            self.progress.counts.records += 1;
            self.progress.next.insert(sighting.partition, sighting.offset + 1);
            bar.inc(1);
            step.push(sighting);
            if step.len() < STEP {
                continue;
            }
            self.settle(&mut step).await?;
            if self.progress.suspects.len() >= MOST_SUSPECTS {
                self.read_dead_letters().await?;
            }
            if saved.elapsed() > SAVE_PERIOD {
                saved = Instant::now();
                self.save(file)?;
            }
        }
        bar.finish_and_clear();
        self.settle(&mut step).await?;
        self.save(file)
    }

    fn bar(&self) -> anyhow::Result<ProgressBar> {
        let Progress { next, end, .. } = &self.progress;
        let length: i64 = end.iter().map(|(partition, end)| end - next.get(partition).unwrap_or(end)).sum();
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} records  {per_sec}  {eta} left")?;
        Ok(ProgressBar::new(length.unsigned_abs()).with_style(style))
    }

    fn save(&self, file: Option<&Path>) -> anyhow::Result<()> {
        file.map_or(Ok(()), |file| self.progress.save(file))
    }

    /// Asks the store about a step.
    async fn settle(&mut self, step: &mut Vec<Sighting>) -> anyhow::Result<()> {
        if step.is_empty() {
            return Ok(());
        }
        let positions = self.positions().await?;
        let ids: Vec<&str> = step.iter().filter_map(|sighting| Some(sighting.event.as_ref()?.id.as_str())).collect();
        let mut found = self.store.look_up(&ids).await?.into_iter();
        let trimmed = self.store.trimmed().await?;
        let retention = i64::try_from(self.config.redis.retention.as_millis()).unwrap_or(i64::MAX);
        let view = View { positions, trimmed, horizon: Timestamp::now().millis() - retention };
        for Sighting { partition, offset, event } in step.drain(..) {
            let at = (partition, offset);
            let fate = event.as_ref().and_then(|event| view.fate(at, event, &found.next().unwrap_or_default()));
            match fate {
                Some(fate) => self.progress.counts.add(fate),
                None => self.progress.suspects.add(at, event.map(|event| event.id)),
            }
        }
        Ok(())
    }

    async fn positions(&self) -> anyhow::Result<AllPositions> {
        let partitions: Vec<i32> = self.progress.end.keys().copied().collect();
        Ok(self.store.positions(&self.scope, &partitions).await?)
    }

    /// Finds the dead letters of the suspects. Those without one are missing where the workers have been.
    async fn read_dead_letters(&mut self) -> anyhow::Result<()> {
        if self.progress.suspects.len() == 0 {
            return Ok(());
        }
        // Before the letters: a position passes no record whose letter is not there yet.
        let positions = self.positions().await?;
        let topics = &self.config.kafka.topics;
        let mut reader = Reader::open(self.config, &topics.dead_letters, &self.config.consumer.group)?;
        while self.progress.suspects.len() > 0
            && let Some(original) = reader.next(|record| Letter::of(record).original).await?
        {
            if original.topic.as_ref() == Some(&topics.events)
                && let (Some(partition), Some(offset)) = (original.partition, original.offset)
                && self.progress.suspects.clear(partition, offset)
            {
                self.progress.counts.add(Fate::DeadLettered);
            }
        }
        for (at, event_id) in self.progress.suspects.take() {
            if is_in_flight(&positions, at, event_id.as_deref()) {
                self.progress.counts.add(Fate::InFlight);
            } else {
                self.progress.miss(at, event_id.as_deref());
            }
        }
        Ok(())
    }
}
