//! Events as they stand on the topic, right and wrong ones.

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::kafka::Record;

/// The JSON of a valid event of this moment with some members changed: each change is a member's
/// name and its raw value; an empty value takes the member out.
#[must_use]
pub fn event(changes: &[(&str, &str)]) -> Vec<u8> {
    let mut members = vec![
        ("eventId", format!(r#""{}""#, Uuid::now_v7())),
        ("userId", r#""u""#.to_owned()),
        ("eventType", r#""LOGIN""#.to_owned()),
        ("timestamp", format!(r#""{}""#, rfc3339(Utc::now()))),
        ("payload", "{}".to_owned()),
    ];
    for (name, value) in changes {
        members.retain(|(member, _)| member != name);
        if !value.is_empty() {
            members.push((name, (*value).to_owned()));
        }
    }
    let members = members.iter().map(|(name, value)| format!(r#""{name}":{value}"#));
    format!("{{{}}}", members.collect::<Vec<_>>().join(",")).into_bytes()
}

/// A record of such an event of `user`, keyed as the API keys it.
#[must_use]
pub fn record(user: &str, changes: &[(&str, &str)]) -> Record {
    let value = event(&[&[("userId", &*format!("\"{user}\""))], changes].concat());
    Record { key: Some(user.into()), ..Record::of(value) }
}

/// A time as the system writes it: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A JSON object that is `depth` levels deep, itself included.
#[must_use]
pub fn nested(depth: usize) -> String {
    format!(r#"{{"a":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1))
}

/// A JSON string of `length` characters.
#[must_use]
pub fn text(length: usize) -> String {
    format!(r#""{}""#, "x".repeat(length))
}
