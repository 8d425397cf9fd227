//! `dead-letters redrive`: publishes dead letters to the topic of the events again, as they were.
//!
//! One at a time, each acknowledged before the next: the letters of a key lie in one partition, in order, and come back
//! in that order. Publishing one twice is harmless, for events are told apart by their eventId; of those that came back
//! only the last of each [lineage](super::lineage) goes again. A letter that the brokers refuse is counted and passed over;
//! anything else that keeps them from acknowledging ends the run.

use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, value_parser};
use common::kafka::{Delivered, KafkaPublisher, PublishError, dead_letter_producer_config};
use common::shutdown::Shutdown;
use rdkafka::producer::FutureRecord;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::filter::Filter;
use super::letter::Letter;
use super::lineage::Lineages;
use super::outcome::{End, Outcome, Tally, Verdict};
use super::progress::{Progress, group};
use crate::desk::reader::Reader;
use crate::{Config, NAME};

/// Between two commits of the progress: what a crash makes the next run repeat.
const SAVE_PERIOD: Duration = Duration::from_secs(1);
const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// Arguments of `dead-letters redrive`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  user-activity-worker dead-letters redrive --reason enum --dry-run
  user-activity-worker dead-letters redrive --reason enum --rate 500

First remove the cause, for instance upgrade the workers that do not know an event type yet. Each letter is published \
to KAFKA_TOPIC with its original key, value, headers and timestamp, in order; a header whose name is not UTF-8 is left \
out. The dead-letter topic keeps it. One that \
fails again is dead-lettered again, with its attempts counted on, and from then on only that later letter is redriven; \
--max-attempts ends that circle. Redriving twice is harmless: events are told apart by their eventId. Where the brokers \
refuse the original timestamp, the record gets the time of now. Letters of another topic, or without headers that say where they came \
from, are left alone and counted. So are those that were cut short, because the dead-letter topic was too small for them.

Ctrl-C ends it after the letter in flight. --resume goes on where the last run with the same filters was: its progress \
is kept as commits of the group <KAFKA_CONSUMER_GROUP>-redrive, followed by the filters, for as long as the brokers \
keep commits of idle groups. Letters that were skipped count as done, those that failed do not.

The exit code is 0 when the end or --limit was reached and nothing failed.")]
pub struct Redrive {
    /// Say what would be published, publish nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Go on where the last run with the same filters was, instead of at the beginning
    #[arg(long)]
    resume: bool,
    /// At most so many letters a second, 1 to 1000
    #[arg(long, value_name = "N", default_value = "100", value_parser = value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Leave letters alone that were dead-lettered so many times
    #[arg(long, value_name = "N", default_value = "5", value_parser = value_parser!(u32).range(1..))]
    max_attempts: u32,
    /// End after so many letters were published
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    pub(super) filter: Filter,
}

/// Redrives the letters that are meant, and tells `told` what became of each.
///
/// # Errors
/// When it can't begin: Kafka has no answer, a topic does not exist, or an argument makes no sense.
pub async fn redrive(
    config: &Config,
    request: &Redrive,
    shutdown: &Shutdown,
    told: impl FnMut(&Letter, &Verdict),
) -> anyhow::Result<Outcome> {
    let mut run = Run::begin(config, request)?;
    let end = run.until_the_end(config, shutdown, told).await.and_then(|end| run.save().map(|()| end));
    let end = end.unwrap_or_else(End::Broken);
    Ok(Outcome { tally: run.tally, end, stopped_at: run.at, dry_run: request.dry_run })
}

struct Run<'a> {
    request: &'a Redrive,
    topic: &'a str,
    reader: Reader,
    publisher: KafkaPublisher,
    lineages: Lineages,
    pace: Interval,
    progress: Progress,
    saves: Every,
    reports: Every,
    tally: Tally,
    /// The first letter that was not looked at.
    at: Option<(i32, i64)>,
}

impl<'a> Run<'a> {
    fn begin(config: &'a Config, request: &'a Redrive) -> anyhow::Result<Self> {
        let topic = config.kafka.topics.events.as_str();
        let group = group(&config.consumer.group, &request.filter.name());
        let mut reader = Reader::open(config, &config.kafka.topics.dead_letters, &group)?;
        reader.ensure_topic(topic)?;
        if request.resume {
            reader.resume()?;
        }
        let mut pace = interval(Duration::from_secs(1) / request.rate);
        // Time that was lost is not made up for: the rate is a cap.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let run = Self {
            request,
            topic,
            progress: Progress::new(&reader.places()),
            reader,
            publisher: KafkaPublisher::new(dead_letter_producer_config(&config.kafka, NAME), topic)?,
            lineages: Lineages::default(),
            pace,
            saves: Every::new(SAVE_PERIOD),
            reports: Every::new(REPORT_PERIOD),
            tally: Tally::default(),
            at: None,
        };
        // Whether progress can be kept is known before anything is published.
        run.save()?;
        Ok(run)
    }

    async fn until_the_end(
        &mut self,
        config: &Config,
        shutdown: &Shutdown,
        told: impl FnMut(&Letter, &Verdict),
    ) -> anyhow::Result<End> {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(End::Interrupted),
            lineages = lineages(config) => self.lineages = lineages?,
        }
        self.redrive_all(shutdown, told).await
    }

    async fn redrive_all(
        &mut self,
        shutdown: &Shutdown,
        mut told: impl FnMut(&Letter, &Verdict),
    ) -> anyhow::Result<End> {
        while self.request.limit != Some(self.tally.redriven) {
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(End::Interrupted),
                next = self.reader.next(|record| Letter::of(record)) => next?,
            };
            let Some(letter) = next else { return Ok(End::Reached) };
            self.at = Some((letter.partition, letter.offset));
            let Some(verdict) = self.decide(&letter, shutdown).await else { return Ok(End::Interrupted) };
            self.note(&letter, &verdict);
            told(&letter, &verdict);
            if let Verdict::Failed(error @ (PublishError::NotAccepted(_) | PublishError::Unknown(_))) = verdict {
                return Err(anyhow!(error).context("check that the brokers are up"));
            }
            self.at = Some((letter.partition, letter.offset + 1));
            self.now_and_then()?;
        }
        Ok(End::Limited)
    }

    /// What becomes of a letter; `None` when a signal was first.
    async fn decide(&mut self, letter: &Letter, shutdown: &Shutdown) -> Option<Verdict> {
        if let Some(skipped) = skip(letter, self.request, self.topic, &self.lineages) {
            return Some(skipped);
        }
        if self.request.dry_run {
            return Some(Verdict::Redriven(None));
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            _ = self.pace.tick() => {}
        }
        // Not to be interrupted: it answers within the delivery time-out.
        Some(self.publish(letter).await)
    }

    async fn publish(&self, letter: &Letter) -> Verdict {
        let answer = match self.send(letter, letter.timestamp.map(|time| time.millis())).await {
            // The topic may have other bounds for timestamps now than when the original was written.
            Err(PublishError::RefusedTimestamp(_)) => self.send(letter, None).await,
            answer => answer,
        };
        answer.map_or_else(Verdict::Failed, |at| Verdict::Redriven(Some(at)))
    }

    async fn send(&self, letter: &Letter, timestamp: Option<i64>) -> Result<Delivered, PublishError> {
        let record = FutureRecord {
            topic: self.topic,
            partition: None,
            payload: letter.value.as_deref(),
            key: letter.key.as_deref(),
            timestamp,
            headers: Some(letter.redriven_headers()),
        };
        self.publisher.send(record).await
    }

    fn note(&mut self, letter: &Letter, verdict: &Verdict) {
        let tally = &mut self.tally;
        let count = match verdict {
            Verdict::Redriven(_) => &mut tally.redriven,
            Verdict::Filtered => &mut tally.filtered,
            Verdict::Foreign => &mut tally.foreign,
            Verdict::Superseded => &mut tally.superseded,
            Verdict::Exhausted => &mut tally.exhausted,
            Verdict::Truncated => &mut tally.truncated,
            Verdict::Failed(_) => &mut tally.failed,
        };
        *count += 1;
        match verdict {
            Verdict::Failed(_) => self.progress.hold(letter.partition),
            _ => self.progress.pass(letter.partition, letter.offset),
        }
    }

    fn now_and_then(&mut self) -> anyhow::Result<()> {
        if let (true, Some((partition, offset))) = (self.reports.due(), self.at) {
            log::info!("{} redriven so far, at partition {partition} offset {offset}", self.tally.redriven);
        }
        if self.saves.due() { self.save() } else { Ok(()) }
    }

    /// A dry run leaves no trace.
    fn save(&self) -> anyhow::Result<()> {
        if self.request.dry_run { Ok(()) } else { self.reader.commit(&self.progress.places()) }
    }
}

/// Those of all letters there are by now: a filter or a place to go on from may leave the last of a lineage out, and that
/// is no reason to redrive another one.
async fn lineages(config: &Config) -> anyhow::Result<Lineages> {
    let mut reader = Reader::open(config, &config.kafka.topics.dead_letters, &config.consumer.group)?;
    let mut lineages = Lineages::default();
    while let Some(letter) = reader.next(|record| Letter::of(record)).await? {
        lineages.note(&letter);
    }
    Ok(lineages)
}

/// Why a letter is left alone, if it is.
fn skip(letter: &Letter, request: &Redrive, topic: &str, lineages: &Lineages) -> Option<Verdict> {
    if !request.filter.matches(letter) {
        Some(Verdict::Filtered)
    } else if letter.original.topic.as_deref() != Some(topic) {
        Some(Verdict::Foreign)
    } else if lineages.is_superseded(letter) {
        Some(Verdict::Superseded)
    } else if letter.attempts.is_some_and(|attempts| attempts >= request.max_attempts) {
        Some(Verdict::Exhausted)
    } else if letter.is_truncated() {
        Some(Verdict::Truncated)
    } else {
        None
    }
}

/// Something that is due now and then.
struct Every {
    period: Duration,
    last: Instant,
}

impl Every {
    fn new(period: Duration) -> Self {
        Self { period, last: Instant::now() }
    }

    fn due(&mut self) -> bool {
        let due = self.last.elapsed() >= self.period;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::letter::Original;
    use super::*;
    use crate::dead_letter::TRUNCATED;

    fn request(max_attempts: u32) -> Redrive {
        Redrive { dry_run: false, resume: false, rate: 1, max_attempts, limit: None, filter: Filter::default() }
    }

    fn letter(topic: Option<&str>, attempts: Option<u32>) -> Letter {
        let original = Original { topic: topic.map(str::to_owned), ..Original::default() };
        Letter { original, attempts, ..Letter::default() }
    }

    #[test]
    fn only_letters_of_the_topic_below_the_limit_go_back() {
        let skipped = |letter: &Letter| skip(letter, &request(3), "events", &Lineages::default());
        assert_eq!(skipped(&letter(Some("events"), Some(2))), None);
        assert_eq!(skipped(&letter(Some("events"), None)), None);
        assert_eq!(skipped(&letter(Some("events"), Some(3))), Some(Verdict::Exhausted));
        assert_eq!(skipped(&letter(Some("others"), Some(1))), Some(Verdict::Foreign));
        assert_eq!(skipped(&letter(None, None)), Some(Verdict::Foreign));
        let headers = vec![(TRUNCATED.to_owned(), Some(b"true".to_vec()))];
        assert_eq!(skipped(&Letter { headers, ..letter(Some("events"), None) }), Some(Verdict::Truncated));
    }
}
