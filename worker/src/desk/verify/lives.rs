//! The lives of an eventId: from the record that it is stored from until its body is gone.
//!
//! A record that repeats an id within its life is stored from nothing: the body that counts is that of the first. So once
//! that has expired, the repetition is not missing, however recent its own timestamp is. A record that comes later begins
//! a new life, and is owed again.

use std::collections::HashMap;

use common::event::Timestamp;
use common::store::expiry_of;

use super::verdict::{Event, Horizon, Place, Sighting};

/// One life.
#[derive(Debug, Clone, Copy)]
struct Life {
    first: Place,
    written: i64,
    timestamp: Timestamp,
    end: i64,
}

impl Life {
    /// Whether a record came behind the first of this life, as far as can be told, and within it; `slack` is what the end
    /// may be later, in milliseconds. Between partitions there is only time.
    fn covers(&self, (partition, offset): Place, written: i64, slack: i64) -> bool {
        let is_behind = if self.first.0 == partition { self.first.1 < offset } else { self.written <= written };
        is_behind && written <= self.end.saturating_add(slack)
    }
}

/// The lives of some ids. Memory: a few lives for each id, since the next one begins behind the end of that before it.
#[derive(Debug)]
pub(super) struct Lives {
    horizon: Horizon,
    ids: HashMap<String, Vec<Life>>,
    /// When those records were written for which we look.
    wanted: HashMap<Place, Option<i64>>,
}

impl Lives {
    /// Of the ids of these records.
    pub(super) fn of<'a>(records: impl Iterator<Item = (Place, &'a str)>, horizon: Horizon) -> Self {
        let mut lives = Self { horizon, ids: HashMap::new(), wanted: HashMap::new() };
        for (at, id) in records {
            lives.ids.entry(id.to_owned()).or_default();
            lives.wanted.insert(at, None);
        }
        lives
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Takes the next record of a partition.
    pub(super) fn note(&mut self, sighting: &Sighting) {
        let Some(Event { id, timestamp }) = &sighting.event else { return };
        let Some(lives) = self.ids.get_mut(id) else { return };
        let written = sighting.written.unwrap_or_else(|| timestamp.millis());
        if let Some(wanted) = self.wanted.get_mut(&sighting.at) {
            *wanted = Some(written);
        }
        // Near the end of a life nobody can tell: the record may have begun the next one.
        if !lives.iter().any(|life| life.covers(sighting.at, written, -self.horizon.slack)) {
            // When a worker read it, nobody knows, but by now one has.
            let end = expiry_of(*timestamp, sighting.written, self.horizon.retention, Timestamp::now().millis());
            lives.push(Life { first: sighting.at, written, timestamp: *timestamp, end });
        }
    }

    /// Whether the record at this place repeated an event that is not owed any more.
    pub(super) fn is_repetition(&self, at: Place, id: &str, is_gone: impl Fn(Timestamp) -> bool) -> bool {
        let Some(Some(written)) = self.wanted.get(&at) else { return false };
        let lives = self.ids.get(id).into_iter().flatten();
        lives.filter(|life| life.covers(at, *written, self.horizon.slack)).any(|life| is_gone(life.timestamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;
    const MINUTE: i64 = 60_000;
    const HORIZON: Horizon = Horizon { retention: 7 * DAY, slack: MINUTE };

    fn record(at: Place, millis: i64) -> Sighting {
        let event = Event { id: "e".into(), timestamp: Timestamp::from_millis(millis).unwrap() };
        Sighting { at, written: Some(millis), event: Some(event) }
    }

    /// Whether each of these records, at its time, is a repetition of what is gone when all before `horizon` is.
    fn are_repetitions(records: &[(Place, i64)], horizon: i64) -> Vec<bool> {
        let mut lives = Lives::of(records.iter().map(|(at, _)| (*at, "e")), HORIZON);
        records.iter().for_each(|(at, millis)| lives.note(&record(*at, *millis)));
        let judged = records.iter().map(|(at, _)| lives.is_repetition(*at, "e", |time| time.millis() < horizon));
        judged.collect()
    }

    #[test]
    fn what_is_repeated_within_a_life_is_gone_with_it() {
        let records = [((0, 1), DAY), ((0, 2), 2 * DAY), ((0, 3), 7 * DAY)];
        assert_eq!(are_repetitions(&records, 2 * DAY), [false, true, true]);
        assert_eq!(are_repetitions(&records, DAY), [false; 3], "the first is owed still");
    }

    #[test]
    fn what_comes_after_a_life_begins_the_next_one() {
        let records = [((0, 1), DAY), ((0, 2), 7 * DAY), ((0, 3), 9 * DAY), ((0, 4), 12 * DAY)];
        assert_eq!(are_repetitions(&records, 8 * DAY), [false, true, false, false]);
        assert_eq!(are_repetitions(&records, 10 * DAY), [false, true, false, true]);
    }

    #[test]
    fn at_the_end_of_a_life_either_is_right() {
        let end = DAY + HORIZON.retention;
        for moment in [end - MINUTE / 2, end + MINUTE / 2] {
            let records = [((0, 1), DAY), ((0, 2), moment), ((0, 3), moment + DAY)];
            assert_eq!(are_repetitions(&records, moment), [false, true, false], "{moment}");
            assert_eq!(are_repetitions(&records, moment + 1), [false, true, true], "{moment}");
        }
    }

    #[test]
    fn in_another_partition_only_what_was_written_before_comes_first() {
        assert_eq!(are_repetitions(&[((1, 1), DAY), ((0, 9), 2 * DAY)], 2 * DAY), [false, true]);
        assert_eq!(are_repetitions(&[((1, 9), 2 * DAY), ((0, 1), 3 * DAY)], DAY), [false; 2]);
        assert_eq!(are_repetitions(&[((0, 9), 3 * DAY), ((1, 1), DAY)], 2 * DAY), [true, false]);
    }

    #[test]
    fn what_has_expired_already_lives_for_an_hour() {
        let (now, old) = (20 * DAY, 10 * DAY);
        let repeated_after = |minutes: i64| {
            let mut lives = Lives::of([((0, 2), "e")].into_iter(), HORIZON);
            lives.note(&Sighting { written: Some(now), ..record((0, 1), old) });
            lives.note(&record((0, 2), now + minutes * MINUTE));
            lives.is_repetition((0, 2), "e", |time| time.millis() < now - HORIZON.retention)
        };
        assert!(repeated_after(59) && !repeated_after(62));
    }

    /// Nobody knows when it was processed, but by now it was.
    #[test]
    fn a_record_of_the_future_lives_no_longer_than_one_that_is_written_now() {
        let now = Timestamp::now().millis();
        for (millis, end) in [(now - 10 * DAY, now + 60 * MINUTE), (now - DAY, now + 6 * DAY)] {
            let repeated_at = |written: i64| {
                let mut lives = Lives::of([((0, 2), "e")].into_iter(), HORIZON);
                lives.note(&Sighting { written: Some(now + 100 * DAY), ..record((0, 1), millis) });
                lives.note(&Sighting { written: Some(written), ..record((0, 2), written) });
                lives.is_repetition((0, 2), "e", |time| time.millis() == millis)
            };
            assert!(repeated_at(end - 2 * MINUTE) && !repeated_at(end + 5 * MINUTE), "{millis}");
        }
    }

    #[test]
    fn other_ids_and_records_that_are_no_events_are_passed_over() {
        let mut lives = Lives::of([((0, 2), "e")].into_iter(), HORIZON);
        lives.note(&Sighting { event: None, ..record((0, 0), 0) });
        lives.note(&Sighting {
            event: Some(Event { id: "f".into(), ..record((0, 1), 0).event.unwrap() }),
            ..record((0, 1), 0)
        });
        lives.note(&record((0, 2), DAY));
        assert!(!lives.is_repetition((0, 2), "e", |_| true));
        assert!(!lives.is_repetition((0, 3), "e", |_| true), "it was not met");
    }
}
