//! What became of the letters of a redrive, and how it ended.

use std::fmt;

use anyhow::bail;
use common::kafka::{Delivered, PublishError};

use super::letter::Letter;
use super::list::place;
use super::text::one_line;

/// What became of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Published and acknowledged; `None` where it only would be.
    Redriven(Option<Delivered>),
    /// Not asked for.
    Filtered,
    /// Not from the topic of the events, as far as is known.
    Foreign,
    /// It was redriven before, and a later letter has come of it.
    Superseded,
    /// Dead-lettered too often.
    Exhausted,
    /// A stub: the topic was too small for the whole.
    Truncated,
    /// Not acknowledged.
    Failed(PublishError),
}

/// How many letters there were of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Published, or would be.
    pub redriven: u64,
    /// Not asked for.
    pub filtered: u64,
    /// Not from the topic of the events.
    pub foreign: u64,
    /// Those that a later letter has come of.
    pub superseded: u64,
    /// Dead-lettered too often.
    pub exhausted: u64,
    /// Stubs of letters that their topic was too small for.
    pub truncated: u64,
    /// Not acknowledged.
    pub failed: u64,
}

/// Why a run is over.
#[derive(Debug)]
pub enum End {
    /// All letters were looked at.
    Reached,
    /// `--limit`.
    Limited,
    /// A signal.
    Interrupted,
    /// Kafka did not go along.
    Broken(anyhow::Error),
}

/// A run that is over.
#[derive(Debug)]
pub struct Outcome {
    /// What became of the letters.
    pub tally: Tally,
    /// Why it is over.
    pub end: End,
    /// Partition and offset of the first letter that was not looked at, if any was and not all were.
    pub stopped_at: Option<(i32, i64)>,
    /// Whether nothing was published.
    pub dry_run: bool,
}

impl Outcome {
    /// # Errors
    /// What went wrong, and what to do.
    pub fn into_result(self) -> anyhow::Result<()> {
        match (self.end, self.tally.failed) {
            (End::Broken(error), _) => {
                Err(error.context("not all were redriven; when the cause is gone, run it again with --resume"))
            }
            (End::Interrupted, _) => bail!("interrupted; the same command with --resume goes on there"),
            (End::Reached | End::Limited, 0) => Ok(()),
            (End::Reached | End::Limited, failed) => {
                bail!("{failed} failed, as said above; when the cause is gone, run it again with --resume")
            }
        }
    }
}

/// The summary.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { redriven, filtered, foreign, superseded, exhausted, truncated, failed } = self.tally;
        let did = if self.dry_run { "would redrive" } else { "redriven" };
        write!(
            f,
            "{did} {redriven}; skipped {filtered} by filter, {superseded} for a later one, {exhausted} by attempts, \
             {foreign} of another topic, {truncated} cut short; failed {failed}"
        )?;
        match (&self.end, self.stopped_at) {
            (End::Reached, _) | (_, None) => Ok(()),
            (_, Some((partition, offset))) => write!(f, "; stopped before partition {partition} offset {offset}"),
        }
    }
}

/// A line about a letter for the person: all that are meant in a dry run, else those that failed or can't
/// be published.
#[must_use]
pub fn line(letter: &Letter, verdict: &Verdict, dry_run: bool) -> Option<String> {
    let verdict = match verdict {
        Verdict::Failed(error) => format!("failed ({error})"),
        Verdict::Truncated => {
            "not redriven, for it was cut short and the original is not in it; ask its sender for it again:".to_owned()
        }
        Verdict::Redriven(_) if dry_run => "would redrive".to_owned(),
        Verdict::Foreign if dry_run => "would skip, it is of another topic:".to_owned(),
        Verdict::Superseded if dry_run => "would skip, a later one has come of it:".to_owned(),
        Verdict::Exhausted if dry_run => "would skip, it has reached --max-attempts:".to_owned(),
        _ => return None,
    };
    let (partition, offset, attempts) = (letter.partition, letter.offset, letter.attempts.unwrap_or_default());
    let (original, reason) = (one_line(&place(letter), 300), one_line(letter.reason(), 40));
    Some(format!("{verdict} partition {partition} offset {offset}: original {original}, {reason}, attempts {attempts}"))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn outcome(end: End, failed: u64) -> Outcome {
        let tally = Tally { redriven: 3, filtered: 1, foreign: 4, superseded: 5, exhausted: 2, truncated: 6, failed };
        Outcome { tally, end, stopped_at: Some((2, 17)), dry_run: false }
    }

    #[test]
    fn the_summary_says_what_became_of_the_letters_and_where_it_stopped() {
        let counts = "redriven 3; skipped 1 by filter, 5 for a later one, 2 by attempts, 4 of another topic, 6 cut short; failed 0";
        assert_eq!(outcome(End::Reached, 0).to_string(), counts);
        let stopped = format!("{counts}; stopped before partition 2 offset 17");
        assert_eq!(outcome(End::Interrupted, 0).to_string(), stopped);
    }

    #[test]
    fn success_is_having_done_what_was_asked() {
        assert!(outcome(End::Reached, 0).into_result().is_ok() && outcome(End::Limited, 0).into_result().is_ok());
        for (end, failed) in [(End::Reached, 1), (End::Interrupted, 0), (End::Broken(anyhow!("away")), 1)] {
            let error = outcome(end, failed).into_result().unwrap_err().to_string();
            assert!(error.contains("--resume"), "{error}");
        }
    }
}
