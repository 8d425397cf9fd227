//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a request that is sent again makes the same event.
//!
//! The API keeps nothing for it. The eventId is made of the caller, the user and the key, so that any replica makes the
//! same one, and the store keeps the first event of an id. Where the store can already tell, the reply does.

use std::time::Duration;

use bytes::Bytes;
use common::event::{EventId, StoredMembers, UserEvent, UserId};
use warp::http::HeaderMap;

use crate::keys::Caller;
use crate::problem::Problem;
use crate::{App, header};

const HEADER: &str = "idempotency-key";
/// Longest key, in bytes, without its quotes.
const LONGEST_KEY: usize = 255;
/// What the store may take to say whether an event is known. Without an answer the event is published, which is safe.
const PATIENCE: Duration = Duration::from_millis(250);

/// What a client calls its request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key of a request; a string in quotes, as the draft has it, or bare.
    ///
    /// # Errors
    /// When it is none: empty, too long, not of visible ASCII characters, or there are several.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let wrong = |detail: String| Problem::InvalidHeader { name: "Idempotency-Key", detail };
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(wrong("must be given at most once".into()));
        }
        // `to_str` lets a tab through.
        let text = value.to_str().ok().map(str::trim).filter(|text| !text.contains('\t'));
        let text = text.ok_or_else(|| wrong("must be of visible ASCII characters".into()))?;
        let key = match text.strip_prefix('"') {
            // Parameters behind the string mean nothing here.
            Some(_) => {
                unescape(header::split(text, ';').next().unwrap_or_default()).map_err(|why| wrong(why.into()))?
            }
            None => text.to_owned(),
        };
        if key.is_empty() || key.len() > LONGEST_KEY {
            return Err(wrong(format!("must be of 1 to {LONGEST_KEY} bytes, it has {}", key.len())));
        }
        Ok(Some(Self(key)))
    }

    /// The id of the event that this key stands for.
    pub(crate) fn event_id(&self, caller: &Caller, user: &UserId) -> EventId {
        EventId::of_names(&[caller.id().as_bytes(), user.as_str().as_bytes(), self.0.as_bytes()])
    }

    /// The id of an item of a batch: also of its type and the value of its payload. Its place in the batch does not matter,
    /// so that any part of a batch may be sent again; equal items are told apart by [`nth`].
    pub(crate) fn item_id(&self, caller: &Caller, event: &UserEvent<'_>) -> EventId {
        let (user, kind) = (event.user_id.as_str().as_bytes(), event.event_type.as_str().as_bytes());
        EventId::of_names(&[caller.id().as_bytes(), user, self.0.as_bytes(), kind, &event.payload.canonical()])
    }
}

/// The id of an item that has `before` equal ones before it in its batch: they are different events.
pub(crate) fn nth(id: EventId, before: u64) -> EventId {
    if before == 0 { id } else { EventId::of_names(&[id.as_str().as_bytes(), &before.to_be_bytes()]) }
}

/// The text of a string in quotes, in which only the quote and the backslash are escaped, by a backslash.
fn unescape(quoted: &str) -> Result<String, &'static str> {
    const NO_STRING: &str = "is not a string in quotes as of RFC 9651, section 3.3.3";
    let (mut text, mut characters) = (String::with_capacity(quoted.len()), quoted.chars().skip(1));
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.push(characters.next().filter(|escaped| matches!(escaped, '"' | '\\')).ok_or(NO_STRING)?),
            '"' => return if characters.next().is_none() { Ok(text) } else { Err(NO_STRING) },
            other => text.push(other),
        }
    }
    Err("opens a quote that it does not close")
}

/// What the store has under an event's id: nothing yet, as far as it says, or the JSON of the first one.
///
/// # Errors
/// [`Problem::KeyReused`] when the first one has another type or payload.
pub(crate) async fn earlier(app: &App, event: &UserEvent<'_>) -> Result<Option<Bytes>, Problem> {
    let found = tokio::time::timeout(PATIENCE, app.store.event(event.event_id.as_str())).await;
    let Ok(Ok(Some((json, _)))) = found else { return Ok(None) };
    same(&json, event).map(|()| Some(json))
}

/// Whether the event that is stored under an id is this one.
///
/// # Errors
/// [`Problem::KeyReused`] when it has another type or payload.
pub(crate) fn same(stored: &[u8], event: &UserEvent<'_>) -> Result<(), Problem> {
    let Ok(first) = serde_json::from_slice::<StoredMembers<'_>>(stored) else { return Ok(()) };
    let is_same = first.event_type == event.event_type.as_str() && event.payload.has_value_of(first.payload);
    if is_same { Ok(()) } else { Err(Problem::KeyReused) }
}

/// Which of these ids the store knows, as far as it says.
pub(crate) async fn known(app: &App, event_ids: &[&str]) -> Vec<bool> {
    let found = tokio::time::timeout(PATIENCE, app.store.knows(event_ids)).await;
    found.ok().and_then(Result::ok).unwrap_or_else(|| vec![false; event_ids.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use warp::http::HeaderValue;

    fn key(values: &[&str]) -> Result<Option<IdempotencyKey>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        IdempotencyKey::of(&headers).map_err(|problem| match problem {
            Problem::InvalidHeader { detail, .. } => detail,
            other => panic!("{other:?}"),
        })
    }

    fn is(text: &str) -> Result<Option<IdempotencyKey>, String> {
        Ok(Some(IdempotencyKey(text.into())))
    }

    #[test]
    fn a_key_is_a_quoted_string_or_bare() {
        assert_eq!(key(&[]), Ok(None));
        assert_eq!(key(&[r#""a b""#]), is("a b"));
        assert_eq!(key(&["8e03978e-40d5"]), is("8e03978e-40d5"));
        assert_eq!(key(&[r#""a\"b\\c""#]), is(r#"a"b\c"#));
        assert_eq!(key(&[&"k".repeat(255)]), is(&"k".repeat(255)));
        for with_parameters in [r#""a";v=1"#, r#""a" ; v="x;y""#, r#""a";v"#] {
            assert_eq!(key(&[with_parameters]), is("a"), "{with_parameters}");
        }
        assert_eq!(key(&[r#""a;b""#]), is("a;b"));
        assert_eq!(key(&["a;b"]), is("a;b"), "a bare key has no parameters");
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        for (values, reason) in [
            (&[""][..], "1 to 255"),
            (&["\"\""], "1 to 255"),
            (&["a", "a"], "at most once"),
            (&["\"a"], "does not close"),
            (&["\"a;v=1"], "does not close"),
            (&["\"a\"v=1"], "RFC 9651"),
            (&[r#""a"b""#], "RFC 9651"),
            (&[r#""a\n""#], "RFC 9651"),
            (&["\u{e9}"], "visible ASCII"),
            (&["a\tb"], "visible ASCII"),
        ] {
            assert!(key(values).unwrap_err().contains(reason), "{values:?}");
        }
        assert!(key(&[&"k".repeat(256)]).unwrap_err().contains("it has 256"));
    }
}
