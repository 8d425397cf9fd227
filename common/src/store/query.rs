//! What a list is asked for, and the cursor that goes on with it.

use std::cmp::Ordering;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use super::layout::StoredId;
use crate::event::{EventType, StoredMembers, Timestamp, UserId};

/// Direction of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

impl Order {
    /// How two rows stand in a list of this direction.
    pub(super) fn of<T: Ord>(self, one: &T, other: &T) -> Ordering {
        match self {
            Self::Ascending => one.cmp(other),
            Self::Descending => other.cmp(one),
        }
    }
}

/// An entry of the index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) score: i64,
    pub(super) id: StoredId,
}

impl Row {
    /// Tells a row from what is left of one after a part of it got lost.
    fn digest(&self) -> u32 {
        xxh3_64(format!("{}|{}", self.score, self.id).as_bytes()) as u32
    }
}

/// Which events, and in which direction. The default is all of them, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Of this user only.
    pub user: Option<UserId>,
    /// Of these types only; of any when empty.
    pub types: Vec<EventType>,
    /// With this timestamp or a later one.
    pub from: Option<Timestamp>,
    /// With an earlier timestamp than this one.
    pub to: Option<Timestamp>,
    /// Direction.
    pub order: Order,
}

impl Query {
    /// A list in this direction without any filter.
    #[must_use]
    pub fn all(order: Order) -> Self {
        Self { order, ..Self::default() }
    }

    /// Whether an event, given by its JSON, is one of those that are asked for.
    #[must_use]
    pub fn admits(&self, json: &[u8]) -> bool {
        self.is_open()
            || serde_json::from_slice::<StoredMembers<'_>>(json).is_ok_and(|event| {
                self.admits_members(&event.user_id, &event.event_type, || Timestamp::parse(&event.timestamp))
            })
    }

    /// The same of one whose members are known already, if it is an event at all.
    #[must_use]
    pub fn admits_members_of(&self, event: Option<&Members>) -> bool {
        self.is_open() || event.is_some_and(|event| self.admits_members(&event.user, &event.kind, || event.at))
    }

    /// Whether it asks for all events.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.user.is_none() && self.types.is_empty() && self.from.is_none() && self.to.is_none()
    }

    fn admits_members(&self, user: &str, kind: &str, at: impl FnOnce() -> Option<Timestamp>) -> bool {
        let bounded = self.from.is_some() || self.to.is_some();
        let admits_time =
            || at().is_some_and(|at| self.from.is_none_or(|from| from <= at) && self.to.is_none_or(|to| at < to));
        self.user.as_ref().is_none_or(|own| own.as_str() == user)
            && (self.types.is_empty() || self.types.iter().any(|own| own.as_str() == kind))
            && (!bounded || admits_time())
    }

    /// The lowest and the highest score, both included, given what the retention still shows.
    pub(super) fn scores(&self, horizon: i64) -> (i64, Option<i64>) {
        let from = self.from.map_or(horizon, |from| from.millis().max(horizon));
        (from * 1024, self.to.map(|to| to.millis() * 1024 - 1))
    }

    /// What a cursor remembers of the list it belongs to.
    fn digest(&self) -> u64 {
        let mut types: Vec<&str> = self.types.iter().map(EventType::as_str).collect();
        types.sort_unstable();
        // Each with its length: what ends where must not be a matter of what is in it.
        let mut bytes = Vec::new();
        let mut add = |part: Option<&[u8]>| {
            bytes.extend(part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.unwrap_or_default());
        };
        add(self.user.as_ref().map(|user| user.as_str().as_bytes()));
        for time in [self.from, self.to] {
            add(time.map(|time| time.millis().to_be_bytes()).as_ref().map(<[u8; 8]>::as_slice));
        }
        add(Some(if self.order == Order::Ascending { b"asc" } else { b"desc" }));
        types.iter().for_each(|name| add(Some(name.as_bytes())));
        xxh3_64(&bytes)
    }
}

/// What a [`Query`] may ask of an event: for one that many look at, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    user: String,
    kind: String,
    at: Option<Timestamp>,
}

impl Members {
    /// Those of an event, given by its JSON.
    #[must_use]
    pub fn of(json: &[u8]) -> Option<Self> {
        let event: StoredMembers<'_> = serde_json::from_slice(json).ok()?;
        let at = Timestamp::parse(&event.timestamp);
        Some(Self { user: event.user_id.into_owned(), kind: event.event_type.into_owned(), at })
    }

    /// Whether its time is that of an entry with this score.
    pub(super) fn is_at(&self, score: i64) -> bool {
        self.at.is_some_and(|at| at.millis() == score / 1024)
    }
}

/// The row after which a page begins. As text it is opaque: base64url of version, digest of the query, score, digest of
/// the row, and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub(super) Row);

/// Why a text is not the cursor of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// No cursor at all.
    #[error("is not a cursor of this list; take it from a Link header or a nextCursor as it is")]
    Malformed,
    /// The cursor of another list.
    #[error("belongs to a list with other filters or another order; repeat those, or begin without a cursor")]
    OtherQuery,
}

impl Cursor {
    /// Reads what [`Cursor::encode`] wrote for the same query.
    ///
    /// # Errors
    /// [`CursorError`] when it did not.
    pub fn decode(text: &str, query: &Query) -> Result<Self, CursorError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Malformed)?;
        let (digest, row) = Self::fields(&bytes).ok_or(CursorError::Malformed)?;
        if digest != query.digest() {
            return Err(CursorError::OtherQuery);
        }
        Ok(Self(row))
    }

    fn fields(bytes: &[u8]) -> Option<(u64, Row)> {
        let mut fields = std::str::from_utf8(bytes).ok()?.splitn(5, '|');
        let ("1", query, score, digest, id) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?)
        else {
            return None;
        };
        let score = score.parse().ok().filter(|score: &i64| *score >= 0)?;
        let row = Row { score, id: StoredId::read(StoredId::of(id).as_bytes().to_vec())? };
        let whole = u32::from_str_radix(digest, 16).ok()? == row.digest();
        whole.then_some((u64::from_str_radix(query, 16).ok()?, row))
    }

    /// The cursor as text for a URL.
    #[must_use]
    pub fn encode(&self, query: &Query) -> String {
        let Row { score, id } = &self.0;
        URL_SAFE_NO_PAD.encode(format!("1|{:x}|{score}|{:x}|{id}", query.digest(), self.0.digest()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventTypes;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_row_reads_back_from_its_cursor(score in 0..1_i64 << 53, id in "\\PC{1,16}", which in 0..7_usize) {
            let (cursor, query) = (Cursor(Row { score, id: StoredId::of(&id) }), &queries()[which]);
            let read = Cursor::decode(&cursor.encode(query), query);
            prop_assert!(read.is_ok_and(|read| read.0.score == score && read.0.id == cursor.0.id));
        }

        #[test]
        fn no_text_makes_the_cursors_reader_panic(text: String, bytes: Vec<u8>) {
            let encoded = URL_SAFE_NO_PAD.encode(bytes);
            for text in [text, encoded] {
                prop_assert!(Cursor::decode(&text, &Query::default()).is_err(), "a cursor has a digest: {text}");
            }
        }
    }

    fn time(millis: i64) -> Option<Timestamp> {
        Timestamp::from_millis(millis)
    }

    fn queries() -> Vec<Query> {
        let types = EventTypes::default();
        let user = |id| Some(UserId::parse(id).unwrap());
        vec![
            Query::default(),
            Query::all(Order::Descending),
            Query { user: user("u"), ..Query::default() },
            Query { user: user("v"), ..Query::default() },
            Query { types: vec![types.parse("LOGIN").unwrap()], ..Query::default() },
            Query { from: time(5), ..Query::default() },
            Query { to: time(5), ..Query::default() },
        ]
    }

    #[test]
    fn a_cursor_reads_back_with_its_own_query_and_with_no_other() {
        for id in ["01976a5e-7a3c-7fff-8000-000000000000", "a|b", "é"] {
            let cursor = Cursor(Row { score: 1_813_478_400_000_512, id: StoredId::of(id) });
            for (nth, query) in queries().iter().enumerate() {
                for (other, reader) in queries().iter().enumerate() {
                    let read = Cursor::decode(&cursor.encode(query), reader);
                    let expected = if nth == other { Ok(cursor.clone()) } else { Err(CursorError::OtherQuery) };
                    assert_eq!(read, expected, "{query:?} by {reader:?}");
                }
            }
        }
    }

    #[test]
    fn a_forged_or_truncated_cursor_is_none() {
        let good = Cursor(Row { score: 5, id: StoredId::of("long enough to lose a part") }).encode(&Query::default());
        assert!((0..good.len()).all(|end| Cursor::decode(&good[..end], &Query::default()).is_err()));
        for forged in ["", "x", "MXwxfA", "MnwxfGE", "MXwtMXxh", "MXx4fGE", "====", "\u{e9}", &good[1..]] {
            assert_eq!(Cursor::decode(forged, &Query::default()), Err(CursorError::Malformed), "{forged}");
        }
    }

    #[test]
    fn the_order_of_types_does_not_matter() {
        let types = ["LOGIN", "LOGOUT"].map(|name| EventTypes::default().parse(name).unwrap());
        let query = |types: &[EventType]| Query { types: types.to_vec(), ..Query::default() };
        let reversed = [types[1].clone(), types[0].clone()];
        assert_eq!(query(&types).digest(), query(&reversed).digest());
    }

    #[test]
    fn an_interval_holds_its_beginning_and_not_its_end() {
        let query = Query { from: time(1_000), to: time(2_000), ..Query::default() };
        let json = |at: i64| {
            format!(
                r#"{{"eventId":"e","userId":"u","eventType":"LOGIN","timestamp":"{}","payload":{{}}}}"#,
                time(at).unwrap()
            )
        };
        for (at, inside) in [(999, false), (1_000, true), (1_999, true), (2_000, false)] {
            assert_eq!(query.admits(json(at).as_bytes()), inside, "{at}");
            assert_eq!(query.admits_members_of(Members::of(json(at).as_bytes()).as_ref()), inside, "{at}");
            let (low, high) = query.scores(0);
            assert_eq!((low..=high.unwrap()).contains(&(at * 1024 + 1023)), inside, "{at}");
        }
        assert_eq!(query.scores(1_500), (1_500 * 1024, Some(2_000 * 1024 - 1)), "what has expired is not shown");
    }
}
