//! What the tests of this crate share.

use common::event::{EventTypes, Timestamp, UserEvent};

/// A variable that `scripts/test integration` sets. Without it a test fails: one that skips itself proves nothing.
pub(crate) fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test integration"))
}

/// An event's JSON, spelled as the service spells it.
pub(crate) fn event_json(id: &str, user: &str, at: Timestamp, payload: &str) -> String {
    format!(r#"{{"eventId":"{id}","userId":"{user}","eventType":"LOGIN","timestamp":"{at}","payload":{payload}}}"#)
}

/// The event that a record's value holds.
pub(crate) fn event(json: &str) -> UserEvent<'_> {
    UserEvent::from_record(json.as_bytes(), &EventTypes::default(), Timestamp::now()).unwrap()
}
