//! `verify`: reads the topic and the store and says whether each record has become what it should.
//!
//! Every record is one of: *stored* (the event it holds was stored from it), *duplicate* (it repeats an event that was
//! stored from another record), *dead-lettered*, *expired* (older than the retention), *trimmed* (early, because Redis was
//! full), *in flight* (no worker has been there yet), *unknown* (no position says whether one has), or *missing*. The
//! equation holds when none is missing or unknown. Distinct events are counted without remembering ids: each stored event
//! names the one record that it came from. In the order a record passes it:
//!
//! 1. `../reader.rs`: the topic up to where it ended at the start;
//! 2. `verdict.rs`: what the store says of it;
//! 3. `progress.rs`: what is counted, and remembered between two runs. A record that is no event, or one that should be
//!    stored and is not, is a *suspect* there until the dead letters are read;
//! 4. `lives.rs`: what has no dead letter may repeat an event that has expired. The topic is read again for these;
//! 5. `report.rs`: what came out.

mod lives;
mod progress;
mod report;
mod verdict;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use common::event::{EventTypes, Timestamp};
use common::store::{PositionScope, Store};
use indicatif::{ProgressBar, ProgressStyle};

use self::lives::Lives;
use self::progress::{Progress, Suspect};
use self::verdict::{AllPositions, Fate, Horizon, Sighting, View, unreached};
use super::dead_letters::letter::Letter;
use super::reader::Reader;
use super::{check_span, members, observer, time};
use crate::Config;

/// The exit code when nothing can be said of the equation.
pub const COULD_NOT_LOOK: u8 = 2;

/// Records judged at a time.
const STEP: usize = 500;
/// Suspects that are remembered, about 100 bytes each, before the dead letters are read for them.
const MOST_SUSPECTS: usize = 200_000;
/// Between two writes of the state file.
const SAVE_PERIOD: Duration = Duration::from_secs(5);
/// How far ahead a worker lets an event lie: so much longer than its record is old may it live.
const FARTHEST_AHEAD_MS: i64 = 86_400_000;

/// Arguments of `verify`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  user-activity-worker verify --from 2026-02-17T00:00:00Z --to 2026-02-18T00:00:00Z
  user-activity-worker verify --resume /tmp/verify --json

Counts what has become of each record: stored, duplicate, dead letter, expired, trimmed, in flight, unknown or missing. \
Clocks may differ by a minute, or by a tenth of EVENT_RETENTION if that is less: what is so near its end counts as expired \
where it is not stored. A run that goes on with --resume looks again at what was in flight.

The exit code is 0 when the equation holds, 1 when something is missing, and 2 when nothing can be said: Kafka or Redis \
does not answer in time, Redis has no positions of records that are not stored, there is no record, or FILE can't be used. \
It is 64 when the arguments or settings are wrong.")]
pub struct VerifyArgs {
    /// Only records with a timestamp from here on, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Only records before the first with this timestamp, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// Keep the progress in this file and go on from it, whatever --from and --to, when it exists
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
    horizon: Horizon,
    progress: Progress,
}

/// Runs the subcommand. Says whether the equation holds.
///
/// # Errors
/// When nothing can be said: Kafka or Redis has no answer, the file can't be used, there is no record, or no position says
/// whether a worker has been at what is not stored.
pub async fn run(config: &Config, args: &VerifyArgs) -> anyhow::Result<bool> {
    let mut reader = Reader::open(config, &config.kafka.topics.events, &config.consumer.group)?;
    let progress = begin(&mut reader, &config.kafka.topics.events, args)?;
    let store = Store::new(&config.redis)?;
    store.check().await?;
    let mut audit = Audit {
        config,
        scope: PositionScope::new(&config.consumer.group, &config.kafka.topics.events),
        horizon: Horizon::new(store.kept_for()),
        store,
        progress,
    };
    audit.read_topic(reader, args.resume.as_deref()).await?;
    audit.settle_suspects().await?;
    let workers = members(&observer(config)?, &config.consumer.group)?;
    report::print(&audit.progress, workers, args.json)?;
    judge(config, &audit.progress, workers)
}

/// Whether the equation holds, if that can be said.
fn judge(config: &Config, progress: &Progress, workers: usize) -> anyhow::Result<bool> {
    let (counts, topic, group) = (progress.counts(), &progress.topic, &config.consumer.group);
    match counts.holds() {
        Some(holds) => Ok(holds),
        None if counts.records == 0 => bail!("there was nothing to verify: {topic} has no records of that time"),
        None => bail!(
            "Redis has no positions for {} records of {topic}, so nobody knows whether workers of the group {group} have \
             been there; {workers} are running. Check REDIS_URL, REDIS_KEY_PREFIX and KAFKA_CONSUMER_GROUP, see that workers \
             run, then run it again",
            counts.unknown
        ),
    }
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
    Ok(Progress::new(topic, next, end))
}

impl Audit<'_> {
    async fn read_topic(&mut self, mut reader: Reader, file: Option<&Path>) -> anyhow::Result<()> {
        let (types, bar) = (EventTypes::default(), self.bar()?);
        let (mut step, mut saved) = (Vec::with_capacity(STEP), Instant::now());
        while let Some(sighting) = reader.next(|record| Sighting::of(record, &types)).await? {
            bar.inc(1);
            step.push(sighting);
            if step.len() < STEP {
                continue;
            }
            self.settle(&mut step).await?;
            if self.progress.suspects() >= MOST_SUSPECTS {
                self.settle_suspects().await?;
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
        let view = self.view(positions).await?;
        for Sighting { at, event, .. } in step.drain(..) {
            let fate = event.as_ref().and_then(|event| view.fate(at, event, &found.next().unwrap_or_default()));
            // What is no event may have its dead letter all the same.
            let is_reached = match (&event, fate) {
                (_, Some(fate)) => !matches!(fate, Fate::InFlight | Fate::Unknown),
                (_, None) => unreached(&view.positions, at, event.as_ref().map(|event| event.id.as_str())).is_none(),
            };
            self.progress.take(at, event.map(|event| event.id), fate, is_reached);
        }
        Ok(())
    }

    async fn positions(&self) -> anyhow::Result<AllPositions> {
        let partitions: Vec<i32> = self.progress.end.keys().copied().collect();
        Ok(self.store.positions(&self.scope, &partitions).await?)
    }

    async fn view(&self, positions: AllPositions) -> anyhow::Result<View> {
        let trimmed = self.store.trimmed().await?;
        Ok(View { positions, trimmed, horizon: self.horizon.at(self.store.now()) })
    }

    /// Gives each suspect its fate. Those of which nothing else is known are missing where the workers have been.
    async fn settle_suspects(&mut self) -> anyhow::Result<()> {
        if self.progress.suspects() == 0 {
            return Ok(());
        }
        // Before the letters: a position passes no record whose letter is not there yet.
        let positions = self.positions().await?;
        self.read_dead_letters().await?;
        let mut owed = Vec::new();
        for (at, event_id) in self.progress.take_suspects() {
            match unreached(&positions, at, event_id.as_deref()) {
                Some(fate) => self.progress.settle(at, event_id.as_deref(), fate),
                None => owed.push((at, event_id)),
            }
        }
        let lives = self.lives(&owed).await?;
        let view = self.view(positions).await?;
        let is_gone = |timestamp| view.end(timestamp).is_some();
        for (at, event_id) in owed {
            let repeats = event_id.as_deref().is_some_and(|id| lives.is_repetition(at, id, is_gone));
            self.progress.settle(at, event_id.as_deref(), if repeats { Fate::Duplicate } else { Fate::Missing });
        }
        Ok(())
    }

    /// Finds the dead letters of the suspects.
    async fn read_dead_letters(&mut self) -> anyhow::Result<()> {
        let topics = &self.config.kafka.topics;
        let mut reader = Reader::open(self.config, &topics.dead_letters, &self.config.consumer.group)?;
        while self.progress.suspects() > 0
            && let Some(original) = reader.next(|record| Letter::of(record).original).await?
        {
            if original.topic.as_ref() == Some(&topics.events)
                && let (Some(partition), Some(offset)) = (original.partition, original.offset)
            {
                self.progress.clear((partition, offset));
            }
        }
        Ok(())
    }

    /// What there is on the topic of the ids of these suspects, as far back as it matters: the first record of a life that
    /// has just ended, whose repetition may be as old as that life, and either may lie ahead of its time.
    async fn lives(&self, suspects: &[Suspect]) -> anyhow::Result<Lives> {
        let ids = suspects.iter().filter_map(|(at, id)| Some((*at, id.as_deref()?)));
        let mut lives = Lives::of(ids, self.horizon);
        if lives.is_empty() {
            return Ok(lives);
        }
        let mut reader = Reader::open(self.config, &self.config.kafka.topics.events, &self.config.consumer.group)?;
        let back = self.horizon.retention.saturating_add(FARTHEST_AHEAD_MS).saturating_mul(2);
        reader.only_since(Timestamp::from_millis(Timestamp::now().millis().saturating_sub(back)))?;
        reader.only_before(&self.progress.end);
        let types = EventTypes::default();
        while let Some(sighting) = reader.next(|record| Sighting::of(record, &types)).await? {
            lives.note(&sighting);
        }
        Ok(lives)
    }
}
