//! The partition of a key, as the Java clients and librdkafka's `murmur2_random` choose it.

/// The partition of `key` among `partitions` (at least one): `Utils.toPositive(Utils.murmur2(key)) % partitions` of
/// Kafka's `BuiltInPartitioner`.
#[must_use]
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key).cast_signed() & i32::MAX) % partitions.max(1)
}

/// Kafka's `org.apache.kafka.common.utils.Utils.murmur2`: the 32-bit `MurmurHash2` with a seed of its own.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let (words, rest) = data.as_chunks::<4>();
    // The length enters as Java's int, which is what all of it but the lowest 32 bits is cut to.
    let length = u32::try_from(data.len() & 0xffff_ffff).unwrap_or(u32::MAX);
    let mut hash = words.iter().fold(SEED ^ length, |hash, word| {
        let k = u32::from_le_bytes(*word).wrapping_mul(M);
        hash.wrapping_mul(M) ^ (k ^ (k >> 24)).wrapping_mul(M)
    });
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_kafkas_own_test() {
        // UtilsTest.testMurmur2.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn a_partition_is_never_negative() {
        for key in ["21", "foobar", "abc", ""] {
            assert!((0..7).contains(&partition_of(key.as_bytes(), 7)), "{key}");
        }
        assert_eq!(partition_of(b"abc", 7), 479_470_107 % 7);
    }
}
