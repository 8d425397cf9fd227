//! What is published in the place of a dead letter that its topic refuses for its size: both ends of the value, and what
//! identifies the whole. Waiting for a larger topic would stop the partition for every user on it.

use ring::digest::{SHA256, digest};

use super::{DeadLetter, HeaderPair};

/// Bytes that are kept of the value's beginning, as many of its end, and as many of the key and of the original headers
/// each: the most first. A topic that is too small for the last takes no dead letter at all.
pub(super) const EDGES: [usize; 5] = [64 * 1024, 16 * 1024, 4 * 1024, 1024, 0];
/// A key up to here is kept whole in any case: the longest `userId`.
const SHORT_KEY: usize = 256;
/// No stub is smaller, compressed or not: the names of its headers alone take more.
const SMALLEST: usize = 512;
/// By how much a stub may shrink at best when it is compressed. Text does by four; what shrinks by more has mostly fitted
/// whole.
const BEST_RATIO: usize = 4;

/// Marks a stub: `true`.
pub const TRUNCATED: &str = "dead-letter-truncated";
/// How many bytes the value had.
pub const VALUE_SIZE: &str = "dead-letter-value-size";
/// The SHA-256 of the value, in hexadecimal.
pub const VALUE_SHA256: &str = "dead-letter-value-sha256";
/// How many bytes of the stub's value are the original's beginning; those behind them are its end.
pub const VALUE_HEAD: &str = "dead-letter-value-head";
/// How many bytes the key had, where it is cut, too.
pub const KEY_SIZE: &str = "dead-letter-key-size";

/// The headers that only stubs have.
pub(super) const NAMES: [&str; 5] = [TRUNCATED, VALUE_SIZE, VALUE_SHA256, VALUE_HEAD, KEY_SIZE];

/// A dead letter, cut to size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stub {
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    /// The original headers that fit.
    pub(super) originals: Vec<HeaderPair>,
    /// What is said of the rest, by [`NAMES`].
    pub(super) said: Vec<(&'static str, String)>,
}

impl Stub {
    pub(super) fn of(letter: &DeadLetter, edge: usize) -> Self {
        let mut said = vec![(TRUNCATED, "true".to_owned())];
        let value = letter.value.as_deref().map(|value| {
            let (kept, head) = ends(value, edge);
            said.push((VALUE_SIZE, value.len().to_string()));
            said.push((VALUE_SHA256, hex(digest(&SHA256, value).as_ref())));
            said.push((VALUE_HEAD, head.to_string()));
            kept
        });
        let key = letter.key.as_deref().map(|key| &key[..key.len().min(edge.max(SHORT_KEY))]);
        if let (Some(whole), Some(kept)) = (&letter.key, key)
            && kept.len() < whole.len()
        {
            said.push((KEY_SIZE, whole.len().to_string()));
        }
        Self { key: key.map(<[u8]>::to_vec), value, originals: fitting(letter.headers.pairs(), edge), said }
    }
}

/// Whether a stub with such edges could be taken by a topic with this limit, if that is known.
pub(super) fn may_fit(edge: usize, limit: Option<usize>) -> bool {
    limit.is_none_or(|limit| 2 * edge + SMALLEST <= limit.saturating_mul(BEST_RATIO))
}

/// The first and the last bytes, and how many are first ones.
fn ends(value: &[u8], edge: usize) -> (Vec<u8>, usize) {
    if value.len() <= 2 * edge {
        return (value.to_vec(), value.len());
    }
    ([&value[..edge], &value[value.len() - edge..]].concat(), edge)
}

/// Those that fit together into so many bytes, in order.
fn fitting(pairs: &[HeaderPair], mut room: usize) -> Vec<HeaderPair> {
    let mut fits = |(name, value): &&HeaderPair| {
        let size = name.len() + value.as_ref().map_or(0, Vec::len);
        let fits = size <= room;
        room -= if fits { size } else { 0 };
        fits
    };
    pairs.iter().filter(|pair| fits(pair)).cloned().collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;

    fn letter(key: &[u8], value: Option<&[u8]>, headers: &[(&str, usize)]) -> DeadLetter {
        let insert = |all: OwnedHeaders, (key, size): &(&str, usize)| {
            all.insert(Header { key, value: Some(&vec![b'h'; *size]) })
        };
        let headers = headers.iter().fold(OwnedHeaders::new(), insert);
        let (value, key) = (value.map(<[u8]>::to_vec), Some(key.to_vec()));
        DeadLetter::new(&OwnedMessage::new(value, key, "t".into(), Timestamp::NotAvailable, 0, 0, Some(headers)), &[])
    }

    fn said<'a>(stub: &'a Stub, name: &str) -> Option<&'a str> {
        stub.said.iter().find(|(said, _)| *said == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_stub_has_both_ends_of_the_value_and_identifies_the_whole() {
        let value = [&[b'a'; 5000][..], b"abc", &[b'z'; 5000]].concat();
        let stub = Stub::of(&letter(b"key", Some(&value), &[]), 1024);
        assert_eq!(stub.value.as_deref(), Some(&*[[b'a'; 1024], [b'z'; 1024]].concat()));
        assert_eq!(said(&stub, TRUNCATED), Some("true"));
        assert_eq!((said(&stub, VALUE_SIZE), said(&stub, VALUE_HEAD)), (Some("10003"), Some("1024")));
        assert_eq!(said(&stub, KEY_SIZE), None);
        // FIPS 180-2, appendix B.1.
        let known = Stub::of(&letter(b"", Some(b"abc"), &[]), 0);
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((said(&known, VALUE_SHA256), known.value.as_deref()), (Some(digest), Some(&b""[..])));
    }

    #[test]
    fn what_is_small_is_kept_whole_whatever_else_is_cut() {
        let large = letter(&[b'k'; 300], Some(b"small"), &[("first", 600), ("second", 600), ("third", 100)]);
        let stub = Stub::of(&large, 1024);
        let names: Vec<_> = stub.originals.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, stub.value.as_deref()), (vec!["first", "third"], Some(&b"small"[..])));
        assert_eq!((stub.key.map(|key| key.len()), said(&Stub::of(&large, 1024), KEY_SIZE)), (Some(300), None));
        let barest = Stub::of(&large, 0);
        assert_eq!((&barest.key, barest.originals.len()), (&Some(vec![b'k'; SHORT_KEY]), 0));
        assert_eq!(said(&barest, KEY_SIZE), Some("300"));
        let tombstone = Stub::of(&letter(b"key", None, &[]), 0);
        assert_eq!((tombstone.value, tombstone.said.len()), (None, 1));
    }

    #[test]
    fn no_stub_is_tried_that_a_topic_can_not_take() {
        let tried = |limit| EDGES.into_iter().filter(|edge| may_fit(*edge, limit)).count();
        assert_eq!(tried(None), EDGES.len());
        assert_eq!(tried(Some(1_048_588)), EDGES.len());
        assert_eq!((tried(Some(2_000)), tried(Some(600)), tried(Some(1))), (2, 1, 0));
    }
}
