//! Which dead letters are meant.

use clap::{Args, value_parser};
use common::event::Timestamp;

use super::letter::Letter;
use crate::desk::{check_span, time};

/// Only some dead letters; all of them without any of these.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which dead letters")]
pub struct Filter {
    /// Only those with this reason, as `list` shows it, such as json, required, type, enum, length, range or nesting;
    /// unknown for those without one; several may be given
    #[arg(long = "reason", value_name = "WORD")]
    reasons: Vec<String>,
    /// Only those that were read from this partition of KAFKA_TOPIC
    #[arg(long, value_name = "N", value_parser = value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Only those whose original was written then or later, by its own timestamp, such as 2026-02-17T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Only those whose original was written before then, by its own timestamp
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
}

impl Filter {
    /// # Errors
    /// When nothing could match.
    pub fn check(&self) -> anyhow::Result<()> {
        check_span(self.from, self.to)
    }

    /// Whether a letter is meant. One whose partition or time is unknown is none of those asked for by it.
    #[must_use]
    pub fn matches(&self, letter: &Letter) -> bool {
        let reason = self.reasons.is_empty() || self.reasons.iter().any(|reason| reason == letter.reason());
        let partition = self.partition.is_none_or(|partition| letter.original.partition == Some(partition));
        let from = self.from.is_none_or(|from| letter.timestamp.is_some_and(|time| time >= from));
        let to = self.to.is_none_or(|to| letter.timestamp.is_some_and(|time| time < to));
        reason && partition && from && to
    }

    /// The same for filters that mean the same letters, empty for all letters: `,partition=3,reason=enum`.
    #[must_use]
    pub fn name(&self) -> String {
        let mut parts: Vec<String> = self.reasons.iter().map(|reason| format!(",reason={reason}")).collect();
        parts.extend(self.partition.map(|partition| format!(",partition={partition}")));
        parts.extend(self.from.map(|from| format!(",from={from}")));
        parts.extend(self.to.map(|to| format!(",to={to}")));
        parts.sort();
        parts.dedup();
        parts.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::super::letter::Original;
    use super::*;

    fn letter() -> Letter {
        Letter {
            reason: Some("enum".into()),
            timestamp: Timestamp::from_millis(2_000),
            original: Original { partition: Some(3), ..Original::default() },
            ..Letter::default()
        }
    }

    fn reasons(words: &[&str]) -> Filter {
        Filter { reasons: words.iter().map(|&word| word.to_owned()).collect(), ..Filter::default() }
    }

    #[test]
    fn without_filters_every_letter_is_meant() {
        assert!(Filter::default().matches(&letter()) && Filter::default().matches(&Letter::default()));
    }

    #[test]
    fn one_of_the_reasons_is_enough() {
        assert!(reasons(&["json", "enum"]).matches(&letter()));
        assert!(!reasons(&["json"]).matches(&letter()));
        assert!(reasons(&["unknown"]).matches(&Letter::default()));
    }

    #[test]
    fn all_filters_must_match() {
        let partition = |partition| Filter { partition: Some(partition), ..reasons(&["enum"]) };
        assert!(partition(3).matches(&letter()) && !partition(2).matches(&letter()));
        assert!(!Filter { partition: Some(0), ..Filter::default() }.matches(&Letter::default()));
    }

    #[test]
    fn times_are_half_open() {
        let within = |from, to| {
            let filter =
                Filter { from: Timestamp::from_millis(from), to: Timestamp::from_millis(to), ..Filter::default() };
            filter.matches(&letter())
        };
        assert!(within(2_000, 2_001) && !within(1_000, 2_000) && !within(2_001, 3_000));
        let timeless = Filter { from: Timestamp::from_millis(0), ..Filter::default() };
        assert!(!timeless.matches(&Letter::default()));
    }

    #[test]
    fn an_empty_time_span_is_a_mistake() {
        let time = Timestamp::from_millis(5);
        assert!(Filter { from: time, to: time, ..Filter::default() }.check().is_err());
    }

    #[test]
    fn equal_filters_have_equal_names() {
        assert_eq!(Filter::default().name(), "");
        assert_eq!(reasons(&["json", "enum", "json"]).name(), reasons(&["enum", "json"]).name());
        let filter = Filter { partition: Some(3), from: Timestamp::from_millis(0), ..reasons(&["enum"]) };
        assert_eq!(filter.name(), ",from=1970-01-01T00:00:00.000Z,partition=3,reason=enum");
    }
}
