//! The top level of one JSON object, taken apart without touching the values.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Violation;

/// Deepest nesting of objects and arrays inside `payload`, the payload itself being level one.
pub const MAX_NESTING: usize = 128;

/// Why bytes are not even one JSON object that could be an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("not valid UTF-8 at byte {0}")]
    NotUtf8(usize),
    #[error("not JSON: {0}")]
    NotJson(String),
    #[error("a JSON value, but not an object")]
    NotAnObject,
    #[error("nested deeper than {MAX_NESTING} levels")]
    TooDeep,
    #[error("the member {0:?} appears more than once")]
    Duplicate(String),
}

impl Malformed {
    pub(super) fn as_request_violation(&self) -> Violation {
        let text = match self {
            Self::NotUtf8(_) | Self::NotJson(_) | Self::NotAnObject => "Request body must be a JSON object".into(),
            Self::TooDeep => format!("payload must not be nested deeper than {MAX_NESTING} levels").into(),
            Self::Duplicate(name) => format!("Request body must not contain the member {name:?} more than once").into(),
        };
        Violation { detail: text, ..self.as_record_violation() }
    }

    pub(super) fn as_record_violation(&self) -> Violation {
        let (pointer, code) = match self {
            Self::NotUtf8(_) | Self::NotJson(_) => (Cow::Borrowed(""), "json"),
            Self::NotAnObject => (Cow::Borrowed(""), "type"),
            Self::TooDeep => (Cow::Borrowed("/payload"), "nesting"),
            Self::Duplicate(name) => (pointer_to(name), "duplicate"),
        };
        Violation { pointer, code, detail: self.to_string().into() }
    }
}

/// RFC 6901 escaping of one reference token.
fn pointer_to(name: &str) -> Cow<'static, str> {
    format!("/{}", name.replace('~', "~0").replace('/', "~1")).into()
}

/// The top-level members of one JSON object that an event has, each as it was written.
#[derive(Default)]
pub(super) struct Members<'a> {
    pub(super) event_id: Option<&'a RawValue>,
    pub(super) user_id: Option<&'a RawValue>,
    pub(super) event_type: Option<&'a RawValue>,
    pub(super) timestamp: Option<&'a RawValue>,
    pub(super) payload: Option<&'a RawValue>,
    /// The first member that came twice, if any.
    duplicate: Option<String>,
}

impl<'a> Members<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|e| Malformed::NotUtf8(e.valid_up_to()))?;
        // Before the parser: it skips values without recursion and so has no limit of its own.
        if nesting_exceeds(text.as_bytes(), MAX_NESTING + 1) {
            return Err(Malformed::TooDeep);
        }
        let mut reader = serde_json::Deserializer::from_str(text);
        let not_json = |e: serde_json::Error| match e.is_data() {
            true => Malformed::NotAnObject,
            false => Malformed::NotJson(e.to_string()),
        };
        let members = reader.deserialize_map(MembersVisitor).map_err(not_json)?;
        reader.end().map_err(not_json)?;
        match members.duplicate {
            Some(name) => Err(Malformed::Duplicate(name)),
            None => Ok(members),
        }
    }
}

impl Members<'_> {
    /// Keeps the first, cut to what an error message can carry.
    fn note_duplicate(&mut self, name: &str) {
        const LONGEST: usize = 64;
        self.duplicate.get_or_insert_with(|| name[..name.floor_char_boundary(LONGEST)].to_owned());
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members::default();
        let mut others = HashSet::new();
        while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
            let member = match &*name {
                "eventId" => &mut members.event_id,
                "userId" => &mut members.user_id,
                "eventType" => &mut members.event_type,
                "timestamp" => &mut members.timestamp,
                "payload" => &mut members.payload,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    if let Some(name) = others.replace(name) {
                        members.note_duplicate(&name);
                    }
                    continue;
                }
            };
            if member.replace(map.next_value()?).is_some() {
                members.note_duplicate(&name);
            }
        }
        Ok(members)
    }
}

/// A member's name, borrowed unless it was written with escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The text of a JSON string, borrowed unless it has escapes; `None` for another kind of value or a lone surrogate.
pub(super) fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(raw.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Whether brackets outside strings are ever open more than `limit` deep. Says nothing about whether this is JSON.
fn nesting_exceeds(json: &[u8], limit: usize) -> bool {
    // Counting takes a fraction of the time, and nearly always says enough.
    if json.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= limit {
        return false;
    }
    let (mut depth, mut in_string) = (0_usize, false);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match (in_string, byte) {
            (true, b'\\') => drop(bytes.next()),
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::request;
    use crate::event::{EventTypes, UserEvent};

    fn nested(levels: usize) -> String {
        format!("{{\"a\":{}1{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
    }

    #[test]
    fn nesting_is_limited_to_128_levels_and_brackets_in_strings_do_not_count() {
        let body = |payload: &str| format!(r#"{{"userId":"u","eventType":"LOGIN","payload":{payload}}}"#);
        assert!(request(&body(&nested(MAX_NESTING))).is_ok());
        let refused = request(&body(&nested(MAX_NESTING + 1))).unwrap_err();
        assert_eq!(refused, ["payload must not be nested deeper than 128 levels"]);
        assert!(request(&body(&format!(r#"{{"a":"\"{}"}}"#, "[".repeat(10_000)))).is_ok());
        assert_eq!(request(&"[".repeat(10_000)).unwrap_err().len(), 1);
    }

    #[test]
    fn a_member_that_comes_twice_is_refused_also_when_spelled_with_escapes() {
        for (body, pointer) in [
            (r#"{"userId":"u","user\u0049d":"v","eventType":"LOGIN"}"#, "/userId"),
            (r#"{"userId":"u","eventType":"LOGIN","x/y":1,"x/y":2}"#, "/x~1y"),
        ] {
            let violations = UserEvent::from_request(body.as_bytes(), &EventTypes::default()).unwrap_err();
            assert_eq!((violations[0].code, &*violations[0].pointer), ("duplicate", pointer), "{body}");
        }
    }
}
