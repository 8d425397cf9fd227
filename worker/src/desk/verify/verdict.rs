//! What has become of a record, by what the store says of it.

use std::collections::HashMap;
use std::time::Duration;

use common::event::{EventTypes, Timestamp, UserEvent};
use common::store::{Found, Positions, bucket_of};
use rdkafka::Message;
use serde::{Deserialize, Serialize};

/// How far the clocks of this machine, of the workers and of Redis may differ.
const CLOCKS: Duration = Duration::from_mins(1);

/// A partition and an offset.
pub(super) type Place = (i32, i64);

/// A record of the topic.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) at: Place,
    /// By its own timestamp, in milliseconds; `None` without one.
    pub(super) written: Option<i64>,
    /// The event that it holds; `None` when it can't be one.
    pub(super) event: Option<Event>,
}

/// What is needed of an event.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) timestamp: Timestamp,
}

impl Sighting {
    /// Reads a record. What lies just too far ahead by our clock may not have by a worker's, and a dead letter tells
    /// otherwise.
    pub(super) fn of(record: &impl Message, types: &EventTypes) -> Self {
        let now = Timestamp::now();
        let now = Timestamp::from_millis(now.millis() + millis(CLOCKS)).unwrap_or(now);
        let event = UserEvent::from_record(record.payload().unwrap_or_default(), types, now).ok();
        let event = event.map(|event| Event { id: event.event_id.as_str().to_owned(), timestamp: event.timestamp });
        let written = record.timestamp().to_millis().filter(|millis| *millis >= 0);
        Self { at: (record.partition(), record.offset()), written, event }
    }
}

/// As a number, in a year that has five digits at most.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// When an event is too old to be owed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Horizon {
    /// In milliseconds.
    pub(super) retention: i64,
    /// How long before its time, in milliseconds, an event may have expired by another clock than ours. Of a short
    /// retention it is a small part, or else nothing would be owed.
    pub(super) slack: i64,
}

impl Horizon {
    pub(super) fn new(retention: Duration) -> Self {
        Self { retention: millis(retention), slack: millis(CLOCKS.min(retention / 10)) }
    }

    /// Before this time nothing is owed any more.
    pub(super) fn at(self, now: Timestamp) -> i64 {
        now.millis().saturating_sub(self.retention).saturating_add(self.slack)
    }
}

/// What has become of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    Duplicate,
    DeadLettered,
    Expired,
    Trimmed,
    InFlight,
    /// No position says whether a worker has been there.
    Unknown,
    Missing,
}

/// How many records there are of each fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Counts {
    pub(super) records: u64,
    /// Distinct events: each is stored from one record.
    pub(super) stored: u64,
    pub(super) duplicates: u64,
    pub(super) dead_lettered: u64,
    pub(super) expired: u64,
    /// By the guard of Redis' memory, before its time.
    pub(super) trimmed: u64,
    pub(super) in_flight: u64,
    pub(super) unknown: u64,
    pub(super) missing: u64,
}

impl Counts {
    pub(super) fn add(&mut self, fate: Fate) {
        *match fate {
            Fate::Stored => &mut self.stored,
            Fate::Duplicate => &mut self.duplicates,
            Fate::DeadLettered => &mut self.dead_lettered,
            Fate::Expired => &mut self.expired,
            Fate::Trimmed => &mut self.trimmed,
            Fate::InFlight => &mut self.in_flight,
            Fate::Unknown => &mut self.unknown,
            Fate::Missing => &mut self.missing,
        } += 1;
    }

    /// Of both.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            records: self.records + other.records,
            stored: self.stored + other.stored,
            duplicates: self.duplicates + other.duplicates,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            expired: self.expired + other.expired,
            trimmed: self.trimmed + other.trimmed,
            in_flight: self.in_flight + other.in_flight,
            unknown: self.unknown + other.unknown,
            missing: self.missing + other.missing,
        }
    }

    /// Whether the equation holds; `None` where that can't be said.
    pub(super) fn holds(&self) -> Option<bool> {
        let Self { records, stored, duplicates, dead_lettered, expired, trimmed, in_flight, unknown, missing } = *self;
        if missing == 0 && (records == 0 || unknown > 0) {
            return None;
        }
        Some(records == stored + duplicates + dead_lettered + expired + trimmed + in_flight)
    }
}

/// How far each bucket is in each partition.
pub(super) type AllPositions = HashMap<i32, Positions>;

/// What the store says, apart from the events themselves.
#[derive(Debug, Default)]
pub(super) struct View {
    /// As they were before the store was asked for events: what it did not have may have come in the meantime.
    pub(super) positions: AllPositions,
    /// As they were after that, for what they took in the meantime.
    pub(super) trimmed: Option<Timestamp>,
    pub(super) horizon: i64,
}

impl View {
    /// What has become of an event of the record at this place; `None` when it was judged and is not there: then it was
    /// dead-lettered, because its timestamp was too far ahead or its type not known yet; or it repeated what has expired
    /// since; or it is missing.
    pub(super) fn fate(&self, at: Place, event: &Event, found: &Found) -> Option<Fate> {
        match &found.origin {
            Some(origin) if found.listed => {
                Some(if (origin.partition, origin.offset) == at { Fate::Stored } else { Fate::Duplicate })
            }
            _ => self.end(event.timestamp).or_else(|| unreached(&self.positions, at, Some(&event.id))),
        }
    }

    /// Why an event of this time is not owed any more, if it is not.
    pub(super) fn end(&self, timestamp: Timestamp) -> Option<Fate> {
        if timestamp.millis() < self.horizon {
            Some(Fate::Expired)
        } else {
            self.trimmed.filter(|before| timestamp < *before).map(|_| Fate::Trimmed)
        }
    }
}

/// What a record is where no worker has been yet, by the position of the event's bucket, or by any where the record can't
/// be an event; `None` where one has been. Without a position nobody knows.
pub(super) fn unreached(positions: &AllPositions, (partition, offset): Place, event_id: Option<&str>) -> Option<Fate> {
    let buckets = positions.get(&partition).map_or(&[][..], |buckets| &buckets[..]);
    let own = match event_id {
        Some(id) if !buckets.is_empty() => std::slice::from_ref(&buckets[bucket_of(id, buckets.len())]),
        _ => buckets,
    };
    let before = |position: &Option<i64>| position.is_some_and(|position| offset >= position);
    match own {
        buckets if buckets.iter().any(before) => Some(Fate::InFlight),
        buckets if buckets.is_empty() || buckets.contains(&None) => Some(Fate::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use common::store::Origin;
    use rdkafka::message::OwnedMessage;

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
            unknown: 0,
            missing: 0,
        };
        assert_eq!((counts.holds(), counts.plus(counts).holds()), (Some(true), Some(true)));
        let missing = Counts { missing: 1, in_flight: 0, ..counts };
        assert_eq!(missing.holds(), Some(false));
        assert_eq!(Counts { stored: 3, ..counts }.holds(), Some(false));
        let unknown = Counts { unknown: 1, in_flight: 0, ..counts };
        assert_eq!((unknown.holds(), unknown.plus(missing).holds()), (None, Some(false)));
        assert_eq!(Counts::default().holds(), None);
    }

    #[test]
    fn a_record_is_in_flight_until_the_position_of_its_bucket_has_passed_it() {
        let mut positions: Positions = vec![Some(100); 16];
        positions[bucket_of("e", 16)] = Some(10);
        let positions = AllPositions::from([(0, positions)]);
        let unreached = |offset, id| unreached(&positions, (0, offset), id);
        assert_eq!((unreached(9, Some("e")), unreached(10, Some("e"))), (None, Some(Fate::InFlight)));
        let what = "what is no event has no bucket: all count";
        assert_eq!((unreached(9, None), unreached(10, None)), (None, Some(Fate::InFlight)), "{what}");
    }

    #[test]
    fn without_a_position_nobody_knows_whether_a_worker_has_been_there() {
        let mut positions: Positions = vec![Some(100); 16];
        positions[bucket_of("e", 16)] = None;
        let positions = AllPositions::from([(0, positions)]);
        let unknown = Some(Fate::Unknown);
        assert_eq!((unreached(&positions, (0, 9), Some("e")), unreached(&positions, (0, 9), None)), (unknown, unknown));
        assert_eq!(unreached(&positions, (0, 100), None), Some(Fate::InFlight), "another bucket says so");
        assert_eq!(unreached(&positions, (1, 0), Some("e")), unknown);
        assert_eq!(unreached(&positions, (1, 0), None), unknown);
    }

    #[test]
    fn clocks_may_differ_by_a_minute_or_a_tenth_of_a_short_retention() {
        let now = Timestamp::from_millis(100_000_000).unwrap();
        let at = |seconds| Horizon::new(Duration::from_secs(seconds)).at(now);
        assert_eq!((at(3_600), at(60)), (100_000_000 - 3_540_000, 100_000_000 - 54_000));
        Horizon::new(Duration::MAX).at(now);
    }

    #[test]
    fn an_event_is_one_that_lies_a_day_ahead_by_a_clock_that_differs() {
        let is_event = |seconds: i64| {
            let time = Timestamp::from_millis(Timestamp::now().millis() + 86_400_000 + 1_000 * seconds).unwrap();
            let json = format!(r#"{{"eventId":"e","userId":"u","eventType":"LOGIN","timestamp":"{time}"}}"#);
            let never = rdkafka::Timestamp::NotAvailable;
            let record = OwnedMessage::new(Some(json.into()), None, "t".into(), never, 0, 0, None);
            Sighting::of(&record, &EventTypes::default()).event.is_some()
        };
        assert!(is_event(30) && !is_event(90));
    }

    #[test]
    fn an_event_that_is_nowhere_is_left_to_the_dead_letters() {
        let at = |millis| Timestamp::from_millis(millis).unwrap();
        let view =
            View { positions: AllPositions::from([(0, vec![Some(10); 16])]), trimmed: Some(at(2_000)), horizon: 1_000 };
        let origin = Origin { processed_at: at(0), partition: 0, offset: 5, worker: "w".into() };
        let [stored, unlisted] = [true, false].map(|listed| Found { origin: Some(origin.clone()), listed });
        let nowhere = Found::default();
        let fate =
            |offset, millis, found| view.fate((0, offset), &Event { id: "e".into(), timestamp: at(millis) }, found);
        assert_eq!(fate(5, 3_000, &stored), Some(Fate::Stored));
        assert_eq!(fate(6, 3_000, &stored), Some(Fate::Duplicate));
        assert_eq!(fate(5, 999, &nowhere), Some(Fate::Expired));
        assert_eq!(fate(5, 1_999, &nowhere), Some(Fate::Trimmed));
        assert_eq!(fate(10, 3_000, &nowhere), Some(Fate::InFlight));
        assert_eq!(fate(10, 1_999, &nowhere), Some(Fate::Trimmed));
        assert_eq!(fate(5, 3_000, &nowhere), None);
        assert_eq!(fate(5, 3_000, &unlisted), None, "lists do not show it");
    }
}
