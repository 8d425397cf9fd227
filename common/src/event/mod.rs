//! The event: what it may look like, and the only code that knows its JSON.
//!
//! Bytes are parsed, not validated: a [`UserId`] or an [`EventId`] that exists is a good one. Both ends use the same
//! reader, `Members`, which takes the top level of one JSON object apart without touching the values, so that a
//! payload survives byte for byte (number spelling, key order and white space included) and **all** that is wrong can
//! be said at once.

mod canonical;
mod id;
mod members;
mod timestamp;
mod types;
mod user;

use std::borrow::Cow;

use serde_json::value::RawValue;

pub use self::id::{EventId, MAX_EVENT_ID_BYTES};
pub use self::members::MAX_NESTING;
use self::members::{Members, string};
pub use self::timestamp::{MAX_CLOCK_SKEW, Timestamp};
pub use self::types::{EventType, EventTypes};
pub use self::user::{MAX_USER_ID_BYTES, UserId};

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

    /// A form that all texts of this value share, whatever the order of their members and their white space. Numbers
    /// count by their text: 1 is not 1.0.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        canonical::canonical(&self.0)
    }

    /// Whether another JSON value, as it is stored, is the same.
    #[must_use]
    pub fn has_value_of(&self, stored: &RawValue) -> bool {
        self.0 == stored.get() || self.canonical() == canonical::canonical(stored.get())
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
    /// When, in milliseconds; a record may know it better.
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
        let mut json = Vec::with_capacity(self.json_len());
        self.push_json(&mut json);
        json
    }

    /// Appends [`Self::to_json`].
    pub fn push_json(&self, json: &mut Vec<u8>) {
        push_id(json, self.event_id.as_str());
        self.push_rest(json);
    }

    /// Appends what follows [`push_id`] in [`Self::to_json`].
    pub fn push_rest(&self, json: &mut Vec<u8>) {
        self.push(json, |json| self.timestamp.push(json));
    }

    /// The value of its record: its JSON, but with the microseconds of its timestamp, where they are known.
    #[must_use]
    pub fn to_record(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(self.json_len() + "000".len());
        push_id(&mut json, self.event_id.as_str());
        self.push(&mut json, |json| self.timestamp.push_to_record(json));
        json
    }

    /// Bytes of [`Self::to_json`], if no string needs escapes.
    #[must_use]
    pub fn json_len(&self) -> usize {
        const MEMBERS: usize =
            r#"{"eventId":"","userId":"","eventType":"","timestamp":"2026-02-17T10:00:00.000Z","payload":}"#.len();
        let strings = self.event_id.as_str().len() + self.user_id.as_str().len() + self.event_type.as_str().len();
        MEMBERS + strings + self.payload.0.len()
    }

    fn push(&self, json: &mut Vec<u8>, push_timestamp: impl FnOnce(&mut Vec<u8>)) {
        json.extend_from_slice(b"\"userId\":");
        push_string(json, self.user_id.as_str());
        json.extend_from_slice(b",\"eventType\":");
        push_string(json, self.event_type.as_str());
        json.extend_from_slice(b",\"timestamp\":\"");
        push_timestamp(json);
        json.extend_from_slice(b"\",\"payload\":");
        json.extend_from_slice(self.payload.0.as_bytes());
        json.push(b'}');
    }
}

/// Appends what an event's JSON begins with: its first member, whose value is the id, and a comma.
pub fn push_id(json: &mut Vec<u8>, event_id: &str) {
    json.extend_from_slice(b"{\"eventId\":");
    push_string(json, event_id);
    json.push(b',');
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

    pub(super) fn request(body: &str) -> Result<UserEvent<'_>, Vec<String>> {
        UserEvent::from_request(body.as_bytes(), &EventTypes::default())
            .map_err(|violations| violations.into_iter().map(|v| v.detail.into_owned()).collect())
    }

    fn record(value: &[u8]) -> Result<UserEvent<'_>, Vec<Violation>> {
        UserEvent::from_record(value, &EventTypes::default(), Timestamp::parse("2026-02-17T10:00:00Z").unwrap())
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
    fn a_record_has_the_microseconds_that_are_known_and_nobody_is_shown_them() {
        let mut event = request(r#"{"userId":"u","eventType":"LOGIN"}"#).unwrap();
        assert_eq!(event.to_record(), event.to_json(), "of a UUIDv7 the counter has the order");
        event.timestamp = Timestamp::now_after(None);
        let (types, record) = (EventTypes::default(), event.to_record());
        let stored = UserEvent::from_record(&record, &types, Timestamp::now()).unwrap();
        assert_eq!((stored.timestamp, stored.timestamp.micros()), (event.timestamp, event.timestamp.micros()));
        let json = stored.to_json();
        let shown = UserEvent::from_record(&json, &types, Timestamp::now()).unwrap();
        assert_eq!((shown.timestamp.millis(), shown.timestamp.micros()), (event.timestamp.millis(), None));
    }

    #[test]
    fn microseconds_are_read_as_any_producer_writes_them() {
        for (text, micros) in [
            ("2026-02-17T10:00:00.000Z", None),
            ("2026-02-17T10:00:00Z", None),
            ("2026-02-17T10:00:00.000000Z", Some(0)),
            ("2026-02-17T10:00:00.0000079+00:00", Some(7)),
            ("2026-02-17T12:00:00.000999+02:00", Some(999)),
        ] {
            let value = format!(r#"{{"eventId":"e","userId":"u","eventType":"LOGIN","timestamp":"{text}"}}"#);
            let at = record(value.as_bytes()).unwrap().timestamp;
            assert_eq!((at.micros(), at.to_string().as_str()), (micros, "2026-02-17T10:00:00.000Z"), "{text}");
        }
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
}
