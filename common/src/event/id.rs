//! What an event is known by.

use ring::digest::{Context, SHA256};
use uuid::{Builder, Uuid};

use super::Timestamp;

/// Longest `eventId`, in bytes of UTF-8.
pub const MAX_EVENT_ID_BYTES: usize = 64;
/// What sets ids made of names apart from those that other programs make of the same ones. Never to be changed.
const NAMESPACE: &[u8] = b"user-activity event";

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
        (Self(id.as_hyphenated().to_string()), Timestamp::of(millis))
    }

    /// The id that these names give, a UUID of version 8 (RFC 9562, section 5.8) made of their SHA-256 digest: the same
    /// ones give the same id in every process, so that a repeated request makes the same event. Each name is counted in
    /// with its length: `["ab", "c"]` is not `["a", "bc"]`.
    #[must_use]
    pub fn of_names(names: &[&[u8]]) -> Self {
        let mut digest = Context::new(&SHA256);
        for name in [NAMESPACE].iter().chain(names) {
            digest.update(&(name.len() as u64).to_be_bytes());
            digest.update(name);
        }
        let mut first = [0; 16];
        first.iter_mut().zip(digest.finish().as_ref()).for_each(|(byte, digest)| *byte = *digest);
        Self(Builder::from_custom_bytes(first).into_uuid().as_hyphenated().to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_the_same_id_in_every_process_and_other_names_another() {
        let id = EventId::of_names(&[b"anonymous", b"u", b"key"]);
        // Retries of events that are on the topic depend on it.
        assert_eq!(id.as_str(), "300b24d2-c248-80fe-8b59-210654990991");
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
