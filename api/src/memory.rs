//! What large bodies, of requests and of replies, may hold of the memory at a time, all connections together.
//!
//! A limit for each body bounds nothing as long as there may be ten thousand of them. Small ones do not count: the number
//! of connections bounds those, and a client that sends large ones must not keep others from posting a single event. For the
//! same reason a part of the memory is kept for bodies of single events, however large these are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Bodies of up to so many bytes do not count.
const SMALL: usize = 16 * 1024;

/// The memory for large bodies.
pub struct Memory {
    limit: usize,
    /// Bodies of more bytes than this must leave `kept` bytes to others.
    single: usize,
    kept: usize,
    held: AtomicUsize,
}

/// There is no room for so many bytes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Bytes that large bodies may hold at a time.
    pub limit: usize,
}

impl Memory {
    /// Room for this many bytes, a quarter of them kept for bodies of up to `single` bytes; less, where the `largest` body
    /// of all would have no room then.
    pub(crate) fn new(limit: usize, single: usize, largest: usize) -> Arc<Self> {
        let kept = (limit / 4).min(limit.saturating_sub(largest));
        Arc::new(Self { limit, single, kept, held: AtomicUsize::new(0) })
    }

    /// A part of it, empty at first.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { memory: Arc::clone(self), bytes: 0 }
    }

    /// The body of a reply, which holds its share until it is sent or given up.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn body(self: &Arc<Self>, bytes: Vec<u8>) -> Result<Bytes, Full> {
        let mut share = self.share();
        share.hold(bytes.len())?;
        Ok(share.keep(bytes))
    }

    /// Bytes that large bodies hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What one body holds, until it is dropped.
pub(crate) struct Share {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Share {
    /// Bytes that keep it for as long as any of them is left: as a reply that can't be refused any more keeps the share of
    /// its request.
    pub(crate) fn keep(self, bytes: Vec<u8>) -> Bytes {
        if self.bytes == 0 { bytes.into() } else { Bytes::from_owner(Held { bytes, _share: self }) }
    }

    /// The body has so many bytes now.
    ///
    /// # Errors
    /// When there is no room for them; the share stays as it was.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), Full> {
        let bytes = if bytes > SMALL { bytes } else { 0 };
        let Memory { limit, single, kept, held } = &*self.memory;
        let most = if bytes > *single { limit - kept } else { *limit };
        if let Some(more) = bytes.checked_sub(self.bytes) {
            if held.fetch_add(more, Ordering::Relaxed) + more > most && more > 0 {
                held.fetch_sub(more, Ordering::Relaxed);
                return Err(Full { limit: *limit });
            }
        } else {
            held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }
}

/// What the parts of one request hold, which are dropped one by one.
#[derive(Clone)]
pub(crate) struct Parts(Arc<Mutex<Sum>>);

/// The bytes of all parts, and their share.
struct Sum {
    bytes: usize,
    share: Share,
}

impl Sum {
    /// All parts have so many bytes now.
    fn set(&mut self, bytes: usize) -> Result<(), Full> {
        self.share.hold(bytes)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Parts {
    /// None yet.
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self(Arc::new(Mutex::new(Sum { bytes: 0, share: memory.share() })))
    }

    /// A part, which holds its bytes until it is dropped.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn part(&self, bytes: Bytes) -> Result<Bytes, Full> {
        let mut sum = self.sum();
        let all = sum.bytes + bytes.len();
        sum.set(all)?;
        Ok(Bytes::from_owner(Part { bytes, parts: self.clone() }))
    }

    /// Whether none is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.sum().bytes == 0
    }

    fn sum(&self) -> MutexGuard<'_, Sum> {
        // Nothing panics while it is half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Part {
    bytes: Bytes,
    parts: Parts,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut sum = self.parts.sum();
        let left = sum.bytes.saturating_sub(self.bytes.len());
        // There is always room for less.
        sum.set(left).unwrap_or_default();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_have_room_together_and_give_it_back() {
        let memory = Memory::new(100_000, 100_000, 100_000);
        let (mut first, mut second) = (memory.share(), memory.share());
        assert_eq!(first.hold(60_000), Ok(()));
        assert_eq!(second.hold(40_001), Err(Full { limit: 100_000 }));
        assert_eq!((second.hold(40_000), memory.held()), (Ok(()), 100_000));
        assert_eq!((first.hold(50_000), memory.held()), (Ok(()), 90_000));
        drop(first);
        assert_eq!(memory.held(), 40_000);
        assert_eq!((second.hold(SMALL), memory.held()), (Ok(()), 0));
    }

    #[test]
    fn a_part_of_the_memory_is_kept_for_single_events() {
        let memory = Memory::new(400_000, 50_000, 200_000);
        let (mut batch, mut other, mut single) = (memory.share(), memory.share(), memory.share());
        assert_eq!((batch.hold(200_000), other.hold(100_001).is_err()), (Ok(()), true));
        assert_eq!((other.hold(100_000), batch.hold(200_001).is_err()), (Ok(()), true));
        assert_eq!(single.hold(50_000), Ok(()));
        let memory = Memory::new(200_000, 50_000, 200_000);
        assert_eq!(memory.share().hold(200_000), Ok(()), "the largest body has room at least");
    }

    #[test]
    fn a_reply_holds_its_share_until_the_last_part_of_it_is_gone() {
        let memory = Memory::new(100_000, 100_000, 100_000);
        let mut reply = memory.body(vec![b'x'; 60_000]).unwrap();
        assert!(memory.body(vec![b'x'; 60_000]).is_err());
        drop(reply.split_to(50_000));
        assert_eq!((reply.len(), memory.held()), (10_000, 60_000));
        drop(reply);
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn parts_give_back_what_they_hold_one_by_one() {
        let memory = Memory::new(100_000, 100_000, 100_000);
        let parts = Parts::new(&memory);
        let part = |bytes: usize| parts.part(vec![b'x'; bytes].into());
        let (first, second) = (part(40_000).unwrap(), part(50_000).unwrap());
        assert!(part(20_000).is_err() && !parts.is_empty());
        drop(first);
        assert_eq!(memory.held(), 50_000);
        let third = part(20_000).unwrap();
        drop((second, third));
        assert!(memory.held() == 0 && parts.is_empty());
    }

    #[test]
    fn small_ones_always_have_room() {
        let memory = Memory::new(0, 0, 0);
        assert_eq!(memory.share().hold(SMALL), Ok(()));
        assert!(memory.share().hold(SMALL + 1).is_err());
    }
}
