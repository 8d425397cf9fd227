//! Names of keys, buckets, scores, and ids in the form in which they are stored.

use std::fmt;
use std::ops::Range;

use crc16::XMODEM;
use uuid::Uuid;
use uuid::fmt::Hyphenated;
use xxhash_rust::xxh3::xxh3_64;

use crate::event::{EventId, Timestamp};

/// The version of the layout that this code can read.
pub(super) const VERSION: u32 = 4;

/// Hash slots of a Cluster.
const SLOTS: usize = 16_384;

/// What `meta:layout` says of a store with so many buckets: version, buckets, hash.
pub(super) fn mark_of(buckets: usize) -> String {
    format!("{VERSION}|{buckets}|xxh3")
}

/// How many buckets the store has whose `meta:layout` says this; `None` for another layout.
pub(super) fn buckets_by(mark: &str) -> Option<usize> {
    number_of_buckets(mark.split('|').nth(1)?).filter(|buckets| mark == mark_of(*buckets))
}

/// Reads a number of buckets: a power of two from 1 to 256.
pub(crate) fn number_of_buckets(raw: &str) -> Option<usize> {
    raw.parse().ok().filter(|buckets: &usize| buckets.is_power_of_two() && *buckets <= 256)
}

/// What says the bucket of an eventId or a userId, however many buckets there are: see [`bucket_at`].
pub(super) fn hash_of(id: &str) -> u8 {
    xxh3_64(id.as_bytes()) as u8
}

/// The bucket by such a hash of so many buckets, which are a power of two.
pub(super) fn bucket_at(hash: u8, buckets: usize) -> usize {
    usize::from(hash) & (buckets - 1)
}

/// The bucket, from 0 on, of an eventId or a userId in a store of so many buckets, which are a power of two.
#[must_use]
pub fn bucket_of(id: &str, buckets: usize) -> usize {
    // One alone needs no hash.
    if buckets == 1 { 0 } else { bucket_at(hash_of(id), buckets) }
}

/// Hash tags, bucket 0 first, whose slots lie one in each of so many equal parts of a Cluster's slots: of the numbers from
/// 0 on, in hexadecimal, the first that does.
fn tags(buckets: usize) -> impl Iterator<Item = String> {
    let part =
        move |tag: &str| usize::from(crc16::State::<XMODEM>::calculate(tag.as_bytes())) % SLOTS * buckets / SLOTS;
    (0..buckets).filter_map(move |bucket| (0_u32..).map(|n| format!("{n:x}")).find(|tag| part(tag) == bucket))
}

/// Where an event stands in every list: `timestamp × 1024 + tie`, a whole number that a double holds exactly until the
/// year 2248. The tie is the microseconds of the timestamp, where its record has them, as that of an event with an
/// `Idempotency-Key` does. Else, of a UUIDv7, it is the upper part of its counter, so that events of one process and
/// millisecond keep their order (as the ids, which decide next, do); of any other id it is a hash.
#[must_use]
pub fn score_of(timestamp: Timestamp, event_id: &str) -> i64 {
    let tie = timestamp.micros().map(i64::from).or_else(|| uuid_v7_counter(event_id));
    timestamp.millis() * 1024 + tie.unwrap_or_else(|| (xxh3_64(event_id.as_bytes()) >> 8) as i64 & 1023)
}

/// Whether an id is a UUIDv7 made at this very time. Such an event has one score for ever, whoever repeats it; one with
/// another id may come again with another timestamp.
pub(super) fn has_one_score(id: &StoredId, timestamp: Timestamp) -> bool {
    let millis = || id.0[..6].iter().fold(0, |millis, byte| millis << 8 | i64::from(*byte));
    id.0.len() == 16 && id.0[6] >> 4 == 7 && timestamp.micros().is_none() && millis() == timestamp.millis()
}

/// The upper 10 bits of `rand_a` (RFC 9562, section 5.7), where the counter begins; `None` unless in canonical form.
fn uuid_v7_counter(id: &str) -> Option<i64> {
    let bytes = id.as_bytes();
    let canonical = bytes.len() == 36 && [8, 13, 18, 23].iter().all(|at| bytes[*at] == b'-') && bytes[14] == b'7';
    if !canonical {
        return None;
    }
    i64::from_str_radix(id.get(15..18)?, 16).ok().filter(|rand_a| *rand_a >= 0).map(|rand_a| rand_a >> 2)
}

/// Begins what is stored of an id of 16 bytes that is not a UUID. No text begins with it: UTF-8 does not have it.
const NOT_A_UUID: u8 = 0xff;

/// An eventId as it is stored, in names of keys and in indexes: the 16 bytes of a UUID in its canonical form, which are
/// in the same order and save 20 bytes each, and the text of any other. Two rows of one score stand in the order of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StoredId(Vec<u8>);

impl StoredId {
    pub(super) fn of(event_id: &str) -> Self {
        let canonical = |uuid: &Uuid| *uuid.as_hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH]) == *event_id;
        match Uuid::try_parse_ascii(event_id.as_bytes()).ok().filter(canonical) {
            Some(uuid) => Self(uuid.as_bytes().to_vec()),
            None if event_id.len() == 16 => Self([&[NOT_A_UUID], event_id.as_bytes()].concat()),
            None => Self(event_id.as_bytes().to_vec()),
        }
    }

    /// Takes what Redis holds; `None` when it can't be an id.
    pub(super) fn read(stored: Vec<u8>) -> Option<Self> {
        let id = Self(stored);
        // 16 bytes are a UUID whatever they are.
        let is_id = id.0.len() == 16 || id.with_text(|text| EventId::parse(text).is_some()).unwrap_or(false);
        is_id.then_some(id)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Shows `look` the eventId, which is text unless the bytes are not an id at all.
    pub(super) fn with_text<T>(&self, look: impl FnOnce(&str) -> T) -> Option<T> {
        if let Ok(uuid) = <[u8; 16]>::try_from(self.0.as_slice()) {
            return Some(look(Uuid::from_bytes(uuid).as_hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH])));
        }
        std::str::from_utf8(self.0.strip_prefix(&[NOT_A_UUID]).unwrap_or(&self.0)).ok().map(look)
    }
}

/// The eventId.
impl fmt::Display for StoredId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text)).unwrap_or(Ok(()))
    }
}

/// Makes the names of keys that are in no bucket.
#[derive(Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    /// Keys that begin with `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn worker(&self, member: &str) -> String {
        [&self.prefix, "wk:", member].concat()
    }

    pub(super) fn workers(&self) -> String {
        [&self.prefix, "workers"].concat()
    }

    pub(super) fn held(&self) -> String {
        [&self.prefix, "held"].concat()
    }

    pub(super) fn trimmed(&self) -> String {
        [&self.prefix, "meta:trimmed"].concat()
    }

    pub(super) fn settings(&self) -> String {
        [&self.prefix, "meta:settings"].concat()
    }

    pub(super) fn meta(&self) -> String {
        [&self.prefix, "meta:layout"].concat()
    }

    /// Of each of so many buckets.
    pub(super) fn layout(&self, buckets: usize) -> Layout {
        let prefix = self.prefix.clone();
        let tags: Vec<String> = tags(buckets).collect();
        Layout { events: tags.iter().map(|tag| [&prefix, "ev:{", tag, "}:"].concat()).collect(), tags, prefix }
    }
}

/// Says which bucket something is in, and makes the names of the keys of buckets.
#[derive(Debug)]
pub(super) struct Layout {
    prefix: String,
    tags: Vec<String>,
    /// What the names of each bucket's events begin with: a list makes a thousand of these names.
    events: Vec<String>,
}

impl Layout {
    pub(super) fn buckets(&self) -> usize {
        self.tags.len()
    }

    pub(super) fn all(&self) -> Range<usize> {
        0..self.buckets()
    }

    /// The bucket of an eventId or a userId.
    pub(super) fn bucket_of(&self, id: &str) -> usize {
        bucket_of(id, self.buckets())
    }

    pub(super) fn bucket_of_stored(&self, id: &StoredId) -> usize {
        if self.buckets() == 1 { 0 } else { id.with_text(|id| self.bucket_of(id)).unwrap_or_default() }
    }

    pub(super) fn event(&self, bucket: usize, id: &StoredId) -> Vec<u8> {
        [self.events(bucket).as_bytes(), id.as_bytes()].concat()
    }

    /// The same, in place of what is in `key`.
    pub(super) fn put_event(&self, key: &mut Vec<u8>, bucket: usize, id: &StoredId) {
        key.clear();
        key.extend_from_slice(self.events(bucket).as_bytes());
        key.extend_from_slice(id.as_bytes());
    }

    /// What the names of a bucket's events begin with.
    pub(super) fn events(&self, bucket: usize) -> &str {
        &self.events[bucket]
    }

    pub(super) fn index(&self, bucket: usize) -> String {
        [&self.prefix, "ix:{", &self.tags[bucket], "}"].concat()
    }

    pub(super) fn user_index(&self, bucket: usize, user_id: &str) -> String {
        [&self.prefix, "ux:{", &self.tags[bucket], "}:", user_id].concat()
    }

    pub(super) fn tail(&self, bucket: usize) -> String {
        [&self.prefix, "tl:{", &self.tags[bucket], "}"].concat()
    }

    /// Exists while the bucket's indexes may name bodies that are not small.
    pub(super) fn large(&self, bucket: usize) -> String {
        [&self.prefix, "lg:{", &self.tags[bucket], "}"].concat()
    }

    /// Positions say what their bucket holds, and so are of a number of buckets: among more or fewer, a bucket of the same
    /// tag holds something else, and must be filled.
    pub(super) fn positions(&self, bucket: usize) -> String {
        [&self.prefix, "at:{", &self.tags[bucket], "}:", &self.buckets().to_string()].concat()
    }

    /// Exists while a worker has places in the bucket, and changes when a transaction of it is not to happen.
    pub(super) fn guard(&self, bucket: usize, member: &str) -> String {
        [&self.prefix, "gd:{", &self.tags[bucket], "}:", member].concat()
    }

    pub(super) fn dead_letter(&self, bucket: usize, event_id: &str) -> String {
        [&self.prefix, "dl:{", &self.tags[bucket], "}:", event_id].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    /// CRC16/XMODEM, as in the Redis Cluster specification.
    fn slot(tag: &str) -> usize {
        let crc =
            tag.bytes().fold(0_u16, |crc, byte| {
                (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                    if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
                })
            });
        usize::from(crc) % SLOTS
    }

    #[test]
    fn each_bucket_lies_in_its_own_part_of_the_slots() {
        for buckets in (0..=8).map(|power| 1 << power) {
            let tags: Vec<String> = tags(buckets).collect();
            let parts: Vec<usize> = tags.iter().map(|tag| slot(tag) / (SLOTS / buckets)).collect();
            assert_eq!(parts, (0..buckets).collect::<Vec<_>>(), "{tags:?}");
        }
    }

    #[test]
    fn tags_stay_what_they_are() {
        // Stored data depends on these.
        assert_eq!(tags(1).collect::<Vec<_>>(), ["0"]);
        let sixteen = ["10", "3", "1a", "b", "11", "2", "1d", "c", "12", "1", "1c", "d", "13", "0", "1b", "a"];
        assert_eq!(tags(16).collect::<Vec<_>>(), sixteen);
    }

    #[test]
    fn buckets_fill_evenly_and_stay_what_they_are() {
        let mut filled = [0_usize; 16];
        (0..16_000).for_each(|n| filled[bucket_of(&format!("event-{n}"), 16)] += 1);
        assert!(filled.iter().all(|n| (850..1150).contains(n)), "{filled:?}");
        // Stored data depends on these.
        assert_eq!(["a", "0197", "user-1"].map(|id| bucket_of(id, 16)), [15, 11, 9]);
        assert_eq!(["a", "0197", "user-1"].map(|id| bucket_of(id, 1)), [0, 0, 0]);
    }

    #[test]
    fn only_this_layout_is_read_with_each_number_of_buckets_that_there_may_be() {
        for buckets in (0..=8).map(|power| 1 << power) {
            assert_eq!(buckets_by(&mark_of(buckets)), Some(buckets));
        }
        assert_eq!(mark_of(16), "4|16|xxh3");
        for other in
            ["3|16|xxh3", "4|16|xxh64", "4|0|xxh3", "4|12|xxh3", "4|512|xxh3", "4|016|xxh3", "4|16", "44|16|xxh3", ""]
        {
            assert_eq!(buckets_by(other), None, "{other}");
        }
    }

    #[test]
    fn the_order_of_scores_and_ids_is_the_order_of_making() {
        let made: Vec<_> = (0..20_000)
            .map(|_| EventId::now())
            .map(|(id, at)| (score_of(at, id.as_str()), id.as_str().to_owned()))
            .collect();
        assert!(made.is_sorted());
    }

    #[test]
    fn microseconds_of_a_record_decide_the_order_before_the_id_does() {
        let mut at = Timestamp::now_after(None);
        for nth in 0..3_000_u32 {
            let next = Timestamp::now_after(Some(at));
            let id = |nth: u32| EventId::of_names(&[&nth.to_be_bytes()]);
            assert!(score_of(at, id(nth).as_str()) < score_of(next, id(nth + 1).as_str()), "{at:?} {next:?}");
            at = next;
        }
    }

    #[test]
    fn scores_are_whole_numbers_that_a_double_holds() {
        let far = Timestamp::parse("2247-12-31T23:59:59.999Z").unwrap();
        for id in ["x", "01976a5e-7a3c-7fff-8000-000000000000"] {
            let score = score_of(far, id);
            assert_eq!(score as f64 as i64, score);
            assert_eq!(score / 1024, far.millis());
        }
    }

    #[test]
    fn ids_are_stored_in_fewer_bytes_and_read_back_as_they_were() {
        let uuid = "01976a5e-7a3c-7fff-8000-00000000000a";
        for (id, bytes) in [
            (uuid, 16),
            (&uuid.to_uppercase(), 36),
            (&uuid.replace('-', ""), 32),
            (&format!("{{{uuid}}}"), 38),
            ("sixteen-bytes-id", 17),
            ("seventeen-bytes-id", 18),
            ("é", 2),
        ] {
            let stored = StoredId::of(id);
            assert_eq!(stored.as_bytes().len(), bytes, "{id}");
            let layout = Names::new("").layout(16);
            assert_eq!((stored.to_string(), layout.bucket_of_stored(&stored)), (id.to_owned(), bucket_of(id, 16)));
            assert_eq!(StoredId::read(stored.as_bytes().to_vec()), Some(stored));
        }
        let not_ids = [vec![], vec![NOT_A_UUID], vec![0xc3], vec![b'x'; 65]];
        assert!(not_ids.into_iter().all(|stored| StoredId::read(stored).is_none()));
    }

    #[test]
    fn only_an_id_of_its_own_time_has_one_score() {
        let (id, at) = EventId::now();
        assert!(has_one_score(&StoredId::of(id.as_str()), at));
        let later = Timestamp::from_millis(at.millis() + 1).unwrap();
        assert!(!has_one_score(&StoredId::of(id.as_str()), later));
        assert!(!has_one_score(&StoredId::of(EventId::of_names(&[b"key"]).as_str()), at));
        assert!(!has_one_score(&StoredId::of("sixteen-bytes-id"), at));
    }

    #[test]
    fn what_only_looks_like_a_uuid_is_hashed() {
        assert_eq!(uuid_v7_counter("01976a5e-7a3c-7ffc-8000-000000000000"), Some(1023));
        for id in ["01976a5e-7a3c-4ffc-8000-000000000000", "01976a5e-7a3c-7-1c-8000-000000000000", "short", ""] {
            assert_eq!(uuid_v7_counter(id), None, "{id}");
        }
        assert_eq!(uuid_v7_counter(&"é".repeat(18)), None);
    }
}
