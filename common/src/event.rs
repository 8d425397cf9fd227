//! The event: what it may look like, and the only code that knows its JSON.
//!
//! Bytes are parsed, not validated: a [`UserId`] or an [`EventId`] that exists is a good one. Both ends use the same
//! reader, `Members`, which takes the top level of one JSON object apart without touching the values, so that a
//! payload survives byte for byte (number spelling, key order and white space included) and **all** that is wrong can
//! be said at once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Longest `eventId`, in bytes of UTF-8.
pub const MAX_EVENT_ID_BYTES: usize = 64;
/// Longest `userId`, in bytes of UTF-8.
pub const MAX_USER_ID_BYTES: usize = 256;
/// Deepest nesting of objects and arrays inside `payload`, the payload itself being level one.
pub const MAX_NESTING: usize = 128;
/// What sets ids made of names apart from those that other programs make of the same ones. Never to be changed.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d0c_2bc3_9f0e_4f0b_8b1e_6a1d_7e35_c9a4);
/// How far in the future a record's timestamp may lie before it can't be an event.
pub const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::hours(24);

/// One thing that is wrong with an event.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// JSON Pointer (RFC 6901) of the member, `""` for the whole document.
    pub pointer: Cow<'static, str>,
    /// A word for programs: `json`, `required`, `type`, `enum`, `length`, `range`, `nesting`, `duplicate`.
    pub code: &'static str,
    /// A sentence for people.
    pub detail: Cow<'static, str>,
}

impl Violation {
    /// Something wrong with the whole document.
    #[must_use]
    pub fn document(detail: String) -> Self {
        Self::new("", "json", detail)
    }

    fn new(pointer: &'static str, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { pointer: pointer.into(), code, detail: detail.into() }
    }
}

/// Identifies an event: a string of 1 to [`MAX_EVENT_ID_BYTES`] bytes. The service makes UUIDv7; other producers on
/// the topic may use what they like.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(String);

impl EventId {
    /// A new UUIDv7 (RFC 9562) and the millisecond it was made in. Ids of one process ascend, also within a millisecond.
    #[must_use]
    pub fn now() -> (Self, Timestamp) {
        let id = Uuid::now_v7();
        let (seconds, nanos) = id.get_timestamp().map_or((0, 0), |t| t.to_unix());
        let millis = i64::try_from(seconds).unwrap_or(0) * 1000 + i64::from(nanos / 1_000_000);
        (Self(id.as_hyphenated().to_string()), Timestamp(millis))
    }

    /// The id that these names give, a UUIDv5 (RFC 9562, section 5.5): the same ones give the same id in every process,
    /// so that a repeated request makes the same event. Each name is counted in with its length: `["ab", "c"]` is
    /// not `["a", "bc"]`.
    #[must_use]
    pub fn of_names(names: &[&[u8]]) -> Self {
        let mut joined = Vec::with_capacity(names.iter().map(|name| name.len() + 8).sum());
        for name in names {
            joined.extend_from_slice(&(name.len() as u64).to_be_bytes());
            joined.extend_from_slice(name);
        }
        Self(Uuid::new_v5(&NAMESPACE, &joined).as_hyphenated().to_string())
    }

    /// Takes a string of 1 to [`MAX_EVENT_ID_BYTES`] bytes, else `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (1..=MAX_EVENT_ID_BYTES).contains(&text.len()).then(|| Self(text.to_owned()))
    }

    /// When it was made, if it is a UUIDv7.
    #[must_use]
    pub fn made_at(&self) -> Option<Timestamp> {
        let id = Uuid::try_parse(&self.0).ok().filter(|id| id.get_version_num() == 7)?;
        let (seconds, nanos) = id.get_timestamp()?.to_unix();
        Timestamp::from_millis(i64::try_from(seconds).ok()? * 1000 + i64::from(nanos / 1_000_000))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whose activity it is: 1 to [`MAX_USER_ID_BYTES`] bytes, not only white space.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserId(String);

impl UserId {
    /// # Errors
    /// The violation, worded as the API answers it.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        if text.trim().is_empty() {
            return Err(Self::required());
        }
        if text.len() > MAX_USER_ID_BYTES {
            let detail = format!("userId must be at most {MAX_USER_ID_BYTES} bytes long, this one has {}", text.len());
            return Err(Violation::new("/userId", "length", detail));
        }
        Ok(Self(text.to_owned()))
    }

    fn required() -> Violation {
        Violation::new("/userId", "required", "userId is required and must be a non-empty string")
    }

    fn from_member(raw: Option<&RawValue>) -> Result<Self, Violation> {
        Self::parse(&raw.and_then(string).ok_or_else(Self::required)?)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the user did: one of the [`EventTypes`] this process knows. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType(Arc<str>);

impl EventType {
    /// The type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The event types that a process accepts. Nothing else in the program names one.
#[derive(Debug, Clone)]
pub struct EventTypes(Vec<EventType>);

impl Default for EventTypes {
    fn default() -> Self {
        Self(["LOGIN", "LOGOUT", "PRODUCT_VIEW"].map(|name| EventType(name.into())).into())
    }
}

impl EventTypes {
    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(EventType::as_str)
    }

    /// # Errors
    /// The violation, worded as the API answers it.
    pub fn parse(&self, text: &str) -> Result<EventType, Violation> {
        self.0.iter().find(|known| &*known.0 == text).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            Violation::new("/eventType", "enum", format!("eventType must be one of: {}", names.join(", ")))
        })
    }

    fn required() -> Violation {
        Violation::new("/eventType", "required", "eventType is required and must be a string")
    }

    fn of_member(&self, raw: Option<&RawValue>) -> Result<EventType, Violation> {
        let text = raw.and_then(string).filter(|text| !text.is_empty());
        self.parse(&text.ok_or_else(Self::required)?)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The current time.
    #[must_use]
    pub fn now() -> Self {
        Self(Utc::now().timestamp_millis())
    }

    /// `None` for a time before 1970.
    #[must_use]
    pub fn from_millis(millis: i64) -> Option<Self> {
        (millis >= 0).then_some(Self(millis))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0
    }

    /// Takes any RFC 3339 time from 1970 on, else `None`. What is finer than a millisecond is cut off.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_millis(DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis())
    }

    fn from_member(raw: Option<&RawValue>, now: Self) -> Result<Self, Violation> {
        let wrong = |code, detail| Violation::new("/timestamp", code, detail);
        let text =
            raw.and_then(string).ok_or_else(|| wrong("required", "timestamp is required and must be a string"))?;
        let parsed = Self::parse(&text)
            .ok_or_else(|| wrong("type", "timestamp must be an RFC 3339 date and time, 1970 or later"))?;
        if parsed.0 > now.0 + MAX_CLOCK_SKEW.num_milliseconds() {
            return Err(wrong("range", "timestamp must not lie more than 24 hours in the future"));
        }
        Ok(parsed)
    }
}

/// RFC 3339 in UTC with milliseconds: `2026-02-17T10:00:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::<Utc>::from_timestamp_millis(self.0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// A JSON object as it was sent, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload<'a>(Cow<'a, str>);

impl<'a> Payload<'a> {
    /// An absent payload is `{}`.
    fn from_member(raw: Option<&'a RawValue>) -> Result<Self, Violation> {
        match raw.map(RawValue::get) {
            None => Ok(Self(Cow::Borrowed("{}"))),
            Some(object) if object.starts_with('{') => Ok(Self(Cow::Borrowed(object))),
            Some(_) => Err(Violation::new("/payload", "type", "payload must be a JSON object when provided")),
        }
    }

    /// The object's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An event whose five members are known to be good. The payload borrows from the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserEvent<'a> {
    /// Made by the service, or by another producer on the topic.
    pub event_id: EventId,
    /// Whose activity it is; the record's key.
    pub user_id: UserId,
    /// What the user did.
    pub event_type: EventType,
    /// When, in milliseconds.
    pub timestamp: Timestamp,
    /// Verbatim.
    pub payload: Payload<'a>,
}

impl<'a> UserEvent<'a> {
    /// Reads what a client posts, `{userId, eventType, payload?}`, and gives it an id and the current time.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order userId, eventType, payload.
    pub fn from_request(body: &'a [u8], types: &EventTypes) -> Result<Self, Vec<Violation>> {
        let members = Members::parse(body).map_err(|malformed| vec![malformed.as_request_violation()])?;
        let user_id = UserId::from_member(members.user_id);
        let event_type = types.of_member(members.event_type);
        let payload = Payload::from_member(members.payload);
        match (user_id, event_type, payload) {
            (Ok(user_id), Ok(event_type), Ok(payload)) => {
                let (event_id, timestamp) = EventId::now();
                Ok(Self { event_id, user_id, event_type, timestamp, payload })
            }
            (user_id, event_type, payload) => {
                Err([user_id.err(), event_type.err(), payload.err()].into_iter().flatten().collect())
            }
        }
    }

    /// Reads the value of a record on the topic; members that an event does not have are dropped.
    ///
    /// # Errors
    /// Everything that keeps it from being an event.
    pub fn from_record(value: &'a [u8], types: &EventTypes, now: Timestamp) -> Result<Self, Vec<Violation>> {
        let members = Members::parse(value).map_err(|malformed| vec![malformed.as_record_violation()])?;
        let event_id = members.event_id.and_then(string).and_then(|id| EventId::parse(&id)).ok_or_else(|| {
            Violation::new(
                "/eventId",
                "required",
                format!("eventId must be a string of 1 to {MAX_EVENT_ID_BYTES} bytes"),
            )
        });
        let user_id = UserId::from_member(members.user_id);
        let event_type = types.of_member(members.event_type);
        let timestamp = Timestamp::from_member(members.timestamp, now);
        let payload = Payload::from_member(members.payload);
        match (event_id, user_id, event_type, timestamp, payload) {
            (Ok(event_id), Ok(user_id), Ok(event_type), Ok(timestamp), Ok(payload)) => {
                Ok(Self { event_id, user_id, event_type, timestamp, payload })
            }
            (event_id, user_id, event_type, timestamp, payload) => {
                Err([event_id.err(), user_id.err(), event_type.err(), timestamp.err(), payload.err()]
                    .into_iter()
                    .flatten()
                    .collect())
            }
        }
    }

    /// The event's JSON: the five members in a fixed order, the payload untouched.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        const MEMBERS: usize =
            r#"{"eventId":"","userId":"","eventType":"","timestamp":"2026-02-17T10:00:00.000Z","payload":}"#.len();
        let strings = self.event_id.0.len() + self.user_id.0.len() + self.event_type.0.len();
        let mut json = Vec::with_capacity(MEMBERS + strings + self.payload.0.len() + 8);
        json.extend_from_slice(b"{\"eventId\":");
        push_string(&mut json, &self.event_id.0);
        json.extend_from_slice(b",\"userId\":");
        push_string(&mut json, &self.user_id.0);
        json.extend_from_slice(b",\"eventType\":");
        push_string(&mut json, &self.event_type.0);
        json.extend_from_slice(b",\"timestamp\":\"");
        json.extend_from_slice(self.timestamp.to_string().as_bytes());
        json.extend_from_slice(b"\",\"payload\":");
        json.extend_from_slice(self.payload.0.as_bytes());
        json.push(b'}');
        json
    }
}

/// An event read back from [`UserEvent::to_json`], its members as they are: what is stored was checked before.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredMembers<'a> {
    /// Its id.
    #[serde(borrow)]
    pub event_id: Cow<'a, str>,
    /// Whose it is.
    #[serde(borrow)]
    pub user_id: Cow<'a, str>,
    /// What it is.
    #[serde(borrow)]
    pub event_type: Cow<'a, str>,
    /// When it was, as [`Timestamp`] writes it.
    #[serde(borrow)]
    pub timestamp: Cow<'a, str>,
    /// Verbatim.
    #[serde(borrow)]
    pub payload: &'a RawValue,
}

/// Appends `text` as a JSON string.
pub fn push_string(json: &mut Vec<u8>, text: &str) {
    // Writing a string to a Vec can't fail: neither does the writer nor is there a map key to refuse.
    serde_json::to_writer(json, text).unwrap_or_default();
}

/// Why bytes are not even one JSON object that could be an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Malformed {
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
    fn as_request_violation(&self) -> Violation {
        let text = match self {
            Self::NotUtf8(_) | Self::NotJson(_) | Self::NotAnObject => "Request body must be a JSON object".into(),
            Self::TooDeep => format!("payload must not be nested deeper than {MAX_NESTING} levels").into(),
            Self::Duplicate(name) => format!("Request body must not contain the member {name:?} more than once").into(),
        };
        Violation { detail: text, ..self.as_record_violation() }
    }

    fn as_record_violation(&self) -> Violation {
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
struct Members<'a> {
    event_id: Option<&'a RawValue>,
    user_id: Option<&'a RawValue>,
    event_type: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    /// The first member that came twice, if any.
    duplicate: Option<String>,
}

impl<'a> Members<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
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
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(raw.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Whether brackets outside strings are ever open more than `limit` deep. Says nothing about whether this is JSON.
fn nesting_exceeds(json: &[u8], limit: usize) -> bool {
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
    use proptest::prelude::*;

    /// JSON, and what is nearly JSON: fragments in any order.
    fn nearly_json() -> impl Strategy<Value = String> {
        const FRAGMENTS: &[&str] = &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\\u",
            "\\ud800",
            "null",
            "1e999",
            "-",
            " ",
            "\"userId\":",
            "\"u\"",
            "\"eventType\":",
            "\"LOGIN\"",
            "\"payload\":",
            "{}",
            "\"eventId\":",
            "\"timestamp\":",
            "\"2026-02-17T10:00:00Z\"",
            "é",
        ];
        prop::collection::vec(prop::sample::select(FRAGMENTS), 0..24).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_the_parser_panic(text in nearly_json(), bytes: Vec<u8>) {
            for body in [text.as_bytes(), &bytes] {
                for refused in [UserEvent::from_request(body, &EventTypes::default()).err(), record(body).err()] {
                    prop_assert!(refused.is_none_or(|violations| !violations.is_empty()), "a refusal says why");
                }
            }
        }

        #[test]
        fn a_request_that_is_taken_reads_back_from_its_record(user in "\\PC{1,40}", text: String, blanks in "[ \\n\\t]{0,4}") {
            prop_assume!(!user.trim().is_empty());
            let (user, text) = (serde_json::to_string(&user).unwrap(), serde_json::to_string(&text).unwrap());
            let payload = format!("{{{blanks}{text}:{blanks}[1.0e+2,{text}]}}");
            let body = format!(r#"{{"payload":{blanks}{payload},"userId":{user},"eventType":"LOGIN"}}"#);
            let event = request(&body).unwrap();
            prop_assert_eq!(event.payload.as_str(), payload);
            let json = event.to_json();
            prop_assert_eq!(UserEvent::from_record(&json, &EventTypes::default(), Timestamp::now()), Ok(event));
        }
    }

    fn request(body: &str) -> Result<UserEvent<'_>, Vec<String>> {
        UserEvent::from_request(body.as_bytes(), &EventTypes::default())
            .map_err(|violations| violations.into_iter().map(|v| v.detail.into_owned()).collect())
    }

    fn record(value: &[u8]) -> Result<UserEvent<'_>, Vec<Violation>> {
        UserEvent::from_record(value, &EventTypes::default(), Timestamp::parse("2026-02-17T10:00:00Z").unwrap())
    }

    fn nested(levels: usize) -> String {
        format!("{{\"a\":{}1{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
    }

    #[test]
    fn every_violation_of_a_request_is_said_at_once_and_word_for_word() {
        assert_eq!(
            request(r#"{"payload":[]}"#).unwrap_err(),
            [
                "userId is required and must be a non-empty string",
                "eventType is required and must be a string",
                "payload must be a JSON object when provided"
            ]
        );
        assert_eq!(
            request(r#"{"userId":"u","eventType":"login"}"#).unwrap_err(),
            ["eventType must be one of: LOGIN, LOGOUT, PRODUCT_VIEW"]
        );
        for blank in [r#""""#, r#"" \t ""#, "7", "null", "{}", r#""\ud800""#] {
            let body = format!(r#"{{"userId":{blank},"eventType":"LOGIN"}}"#);
            assert_eq!(request(&body).unwrap_err(), ["userId is required and must be a non-empty string"], "{body}");
        }
        for wrong in [r#""""#, "7", "null"] {
            let body = format!(r#"{{"userId":"u","eventType":{wrong}}}"#);
            assert_eq!(request(&body).unwrap_err(), ["eventType is required and must be a string"], "{body}");
        }
    }

    #[test]
    fn what_is_not_one_json_object_is_not_a_request() {
        for body in ["", "{", "[]", "7", "null", "\"x\"", "{}{}", "{\"a\":\u{0}1}", "{\"userId\":\"\u{0}\"}", "{'a':1}"]
        {
            assert_eq!(request(body).unwrap_err(), ["Request body must be a JSON object"], "{body:?}");
        }
        let types = EventTypes::default();
        let violations = UserEvent::from_request(b"{\"userId\":\"\xff\"}", &types).unwrap_err();
        assert_eq!(violations[0].detail, "Request body must be a JSON object");
    }

    #[test]
    fn a_payload_survives_byte_for_byte() {
        let payload =
            "{ \"b\" : 1.0e+2,\n\t\"a\":[1e400, -0, 12345678901234567890123],\"é\":\"\\u00e9\\ud83d\\ude00\" }";
        let body = format!(r#"{{"payload":{payload},"userId":"u","eventType":"LOGIN"}}"#);
        let event = request(&body).unwrap();
        assert_eq!(event.payload.as_str(), payload);
        let json = event.to_json();
        let again = UserEvent::from_record(&json, &EventTypes::default(), Timestamp::now()).unwrap();
        assert_eq!(again, event);
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

    #[test]
    fn lengths_are_counted_in_bytes_up_to_and_including_the_limit() {
        assert!(UserId::parse(&"é".repeat(128)).is_ok());
        assert_eq!(UserId::parse(&"é".repeat(129)).unwrap_err().code, "length");
        assert!(EventId::parse(&"x".repeat(64)).is_some());
        assert!(EventId::parse(&"x".repeat(65)).is_none());
        assert!(EventId::parse("").is_none());
    }

    #[test]
    fn a_record_of_another_producer_is_an_event_when_its_five_members_are_good() {
        let value = br#"{"extra":1,"eventId":"not-a-uuid","userId":"u\n1","eventType":"LOGOUT","timestamp":"2026-02-17T12:00:00.1239+02:00"}"#;
        let event = record(value).unwrap();
        assert_eq!(event.timestamp.to_string(), "2026-02-17T10:00:00.123Z");
        assert_eq!(
            String::from_utf8(event.to_json()).unwrap(),
            r#"{"eventId":"not-a-uuid","userId":"u\n1","eventType":"LOGOUT","timestamp":"2026-02-17T10:00:00.123Z","payload":{}}"#
        );
    }

    #[test]
    fn each_kind_of_poison_is_named() {
        let good =
            r#"{"eventId":"e","userId":"u","eventType":"LOGIN","timestamp":"2026-02-17T10:00:00Z","payload":{}}"#;
        assert!(record(good.as_bytes()).is_ok());
        for (from, to, pointer) in [
            (r#""eventId":"e""#, r#""eventId":7"#, "/eventId"),
            (r#""eventId":"e","#, "", "/eventId"),
            (r#""userId":"u""#, r#""userId":"  ""#, "/userId"),
            ("LOGIN", "PURCHASE", "/eventType"),
            ("2026-02-17T10:00:00Z", "yesterday", "/timestamp"),
            ("2026-02-17T10:00:00Z", "1969-12-31T23:59:59Z", "/timestamp"),
            ("2026-02-17T10:00:00Z", "2026-02-18T10:00:00.001Z", "/timestamp"),
            (r#""payload":{}"#, r#""payload":null"#, "/payload"),
        ] {
            let violations = record(good.replace(from, to).as_bytes()).unwrap_err();
            assert_eq!(violations.iter().map(|v| &*v.pointer).collect::<Vec<_>>(), [pointer], "{to}");
        }
        assert_eq!(record(b"\xff").unwrap_err()[0].detail, "not valid UTF-8 at byte 0");
        assert_eq!(record(b"[]").unwrap_err()[0].detail, "a JSON value, but not an object");
    }

    #[test]
    fn names_give_the_same_id_in_every_process_and_other_names_another() {
        let id = EventId::of_names(&[b"anonymous", b"u", b"key"]);
        // Retries of events that are on the topic depend on it.
        assert_eq!(id.as_str(), "58c02b74-1cab-56d3-8769-1c3ca193a26c");
        assert_ne!(id, EventId::of_names(&[b"anonymous", b"uk", b"ey"]));
        assert_ne!(id, EventId::of_names(&[b"anonymous", b"u", b"key", b""]));
    }

    #[test]
    fn ids_of_one_process_ascend_and_carry_their_own_time() {
        let made: Vec<_> = (0..10_000).map(|_| EventId::now()).collect();
        assert!(made.is_sorted());
        let (id, at) = &made[0];
        let hex = id.as_str().replace('-', "");
        assert_eq!(i64::from_str_radix(&hex[..12], 16).unwrap(), at.millis());
    }
}
