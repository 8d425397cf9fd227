//! What waits for the brokers' answer: how much there is, and how much there may be. Both publishers count here, and
//! nobody else: a record holds its place until it is answered or given up, whoever still waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::publisher::{Load, PublishError};

/// What a record takes beside its key and its value: headers, and what the clients keep for each.
const OVERHEAD: usize = 256;

/// The bytes that records take which have no answer yet, within a limit.
pub(super) struct Room {
    limit: usize,
    bytes: AtomicUsize,
    records: AtomicUsize,
    acknowledged: AtomicUsize,
}

/// What one record takes, until this is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    pub(super) bytes: usize,
}

impl Room {
    /// Room for so many bytes.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let (bytes, records, acknowledged) = Default::default();
        Arc::new(Self { limit, bytes, records, acknowledged })
    }

    /// Takes a place for a record, and says how many records had one before.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn take(self: &Arc<Self>, key: &[u8], value: &[u8]) -> Result<(Place, usize), PublishError> {
        let bytes = key.len() + value.len() + OVERHEAD;
        let fitting = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.limit);
        // In one step: a record that finds no room must not keep a smaller one out, not even for a moment.
        let taken = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fitting);
        taken.map_err(|held| {
            PublishError::NotAccepted(format!(
                "KAFKA_QUEUE_KBYTES: {held} of {} bytes wait for the brokers already, and this record needs {bytes}",
                self.limit
            ))
        })?;
        let before = self.records.fetch_add(1, Ordering::AcqRel);
        Ok((Place { room: Arc::clone(self), bytes }, before))
    }

    /// Whether there is room for a record with so many bytes of key and value.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.bytes.load(Ordering::Acquire).saturating_add(bytes).saturating_add(OVERHEAD) <= self.limit
    }

    pub(super) fn load(&self) -> Load {
        Load {
            records: self.records.load(Ordering::Acquire),
            bytes: self.bytes.load(Ordering::Acquire),
            acknowledged: self.acknowledged.load(Ordering::Acquire),
        }
    }
}

impl Place {
    /// Ends it, with the brokers having taken the record or not.
    pub(super) fn end(self, acknowledged: bool) {
        if acknowledged {
            self.room.acknowledged.fetch_add(self.bytes, Ordering::AcqRel);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.room.records.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn take(room: &Arc<Room>, bytes: usize) -> Result<(Place, usize), PublishError> {
        room.take(b"key", &vec![b'x'; bytes - OVERHEAD - 3])
    }

    #[test]
    fn there_is_room_for_exactly_as_much_as_was_said_with_key_value_and_overhead() {
        let room = Room::new(1_000);
        let (first, before) = take(&room, 600).unwrap();
        assert_eq!((before, room.load()), (0, Load { records: 1, bytes: 600, acknowledged: 0 }));
        let refused = take(&room, 401).err();
        assert!(matches!(&refused, Some(PublishError::NotAccepted(why)) if why.contains("600 of 1000 bytes")));
        assert_eq!(room.load().bytes, 600, "what was refused does not wait");
        assert!(room.fits(400 - OVERHEAD) && !room.fits(401 - OVERHEAD));
        let (second, before) = take(&room, 400).unwrap();
        assert_eq!((before, room.load().bytes), (1, 1_000));
        drop((first, second));
        assert_eq!(room.load(), Load::default());
    }

    #[test]
    fn only_what_the_brokers_have_taken_counts_as_acknowledged() {
        let room = Room::new(1_000);
        take(&room, 600).unwrap().0.end(false);
        drop(take(&room, 600).unwrap());
        take(&room, 300).unwrap().0.end(true);
        assert_eq!(room.load(), Load { records: 0, bytes: 0, acknowledged: 300 });
    }

    #[test]
    fn a_large_record_that_is_refused_keeps_no_small_one_out() {
        let (room, done, begun) = (Room::new(10_000), AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(take(&room, 10_001).is_err());
                    begun.fetch_add(1, Ordering::Relaxed);
                }
            });
            while begun.load(Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
            let refused = (0..100_000).filter(|_| take(&room, 300).is_err()).count();
            done.store(true, Ordering::Relaxed);
            assert_eq!(refused, 0);
        });
    }
}
