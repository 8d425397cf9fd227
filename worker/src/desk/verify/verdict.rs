//! What has become of a record, by what the store says of it.

use std::collections::HashMap;

use common::event::{EventTypes, Timestamp, UserEvent};
use common::store::{Found, Positions, bucket_of};
use rdkafka::Message;
use serde::{Deserialize, Serialize};

/// A record of the topic.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) partition: i32,
    pub(super) offset: i64,
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
    pub(super) fn of(record: &impl Message, types: &EventTypes) -> Self {
        let event = UserEvent::from_record(record.payload().unwrap_or_default(), types, Timestamp::now()).ok();
        let event = event.map(|event| Event { id: event.event_id.as_str().to_owned(), timestamp: event.timestamp });
        Self { partition: record.partition(), offset: record.offset(), event }
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
    #[serde(default)]
    pub(super) trimmed: u64,
    pub(super) in_flight: u64,
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
            Fate::Missing => &mut self.missing,
        } += 1;
    }

    pub(super) fn holds(&self) -> bool {
        let Self { records, stored, duplicates, dead_lettered, expired, trimmed, in_flight, missing } = *self;
        missing == 0 && records == stored + duplicates + dead_lettered + expired + trimmed + in_flight
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
    /// What has become of an event of the record at this place; `None` when it was judged and is not there, so that only
    /// a dead letter can account for it: it may not have been an event when a worker met it, because its timestamp was too
    /// far ahead then, or its type not known yet.
    pub(super) fn fate(&self, (partition, offset): (i32, i64), event: &Event, found: &Found) -> Option<Fate> {
        match &found.origin {
            Some(origin) if found.listed => {
                let own = (origin.partition, origin.offset) == (partition, offset);
                Some(if own { Fate::Stored } else { Fate::Duplicate })
            }
            _ if event.timestamp.millis() < self.horizon => Some(Fate::Expired),
            _ if self.trimmed.is_some_and(|before| event.timestamp < before) => Some(Fate::Trimmed),
            _ if is_in_flight(&self.positions, (partition, offset), Some(&event.id)) => Some(Fate::InFlight),
            _ => None,
        }
    }
}

/// Whether the positions say that no worker has been at this place yet: that of the event's bucket, or any where the
/// record can't be an event.
pub(super) fn is_in_flight(positions: &AllPositions, (partition, offset): (i32, i64), event_id: Option<&str>) -> bool {
    let Some(buckets) = positions.get(&partition) else { return true };
    let is_before = |position: &Option<i64>| position.is_none_or(|position| offset >= position);
    event_id.map_or_else(|| buckets.iter().any(is_before), |id| is_before(&buckets[bucket_of(id)]))
}

#[cfg(test)]
mod tests {
    use common::store::{BUCKETS, Origin};

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
        let mut positions: Positions = [Some(100); BUCKETS];
        positions[bucket_of("e")] = Some(10);
        let positions = AllPositions::from([(0, positions)]);
        let is_in_flight = |offset, id| is_in_flight(&positions, (0, offset), id);
        assert!(!is_in_flight(9, Some("e")) && is_in_flight(10, Some("e")));
        assert!(!is_in_flight(9, None) && is_in_flight(10, None), "what is no event has no bucket: all count");
        assert!(super::is_in_flight(&AllPositions::new(), (0, 0), Some("e")));
    }

    #[test]
    fn an_event_that_is_nowhere_is_left_to_the_dead_letters() {
        let at = |millis| Timestamp::from_millis(millis).unwrap();
        let view = View {
            positions: AllPositions::from([(0, [Some(10); BUCKETS])]),
            trimmed: Some(at(2_000)),
            horizon: 1_000,
        };
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
        assert_eq!(fate(5, 3_000, &nowhere), None);
        assert_eq!(fate(5, 3_000, &unlisted), None, "lists do not show it");
    }
}
