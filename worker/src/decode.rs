//! A record becomes an event in the form in which it is stored, or a dead letter.

use std::sync::Arc;

use common::event::{EventTypes, Timestamp, UserEvent, Violation};
use common::store::{Origin, StoredEvent};
use rdkafka::Message;

use crate::dead_letter::{CopyHeaders, DeadLetter};

/// What a record is.
pub enum Decoded {
    /// An event.
    Event(StoredEvent),
    /// Never going to be one.
    Poison(DeadLetter),
}

/// Reads one record.
#[must_use]
pub fn decode<M: Message<Headers: CopyHeaders>>(
    record: &M,
    types: &EventTypes,
    worker: &Arc<str>,
    now: Timestamp,
) -> Decoded {
    let parsed = match record.payload() {
        Some(value) => UserEvent::from_record(value, types, now),
        None => Err(vec![Violation {
            pointer: "".into(),
            code: "required",
            detail: "a record without a value (a tombstone)".into(),
        }]),
    };
    match parsed {
        Ok(event) => {
            let origin = Origin {
                processed_at: now,
                partition: record.partition(),
                offset: record.offset(),
                worker: Arc::clone(worker),
            };
            Decoded::Event(StoredEvent::new(event, &origin, record.timestamp().to_millis()))
        }
        Err(violations) => Decoded::Poison(DeadLetter::new(record, &violations)),
    }
}
