//! Bodies, fetched by bytes.
//!
//! How large they are is not known before. To ask (`STRLEN`) costs Redis twice what the bodies themselves do. So as many are
//! asked for as probably fit, going by those of late, and what does not fit is dropped and fetched another time. However
//! wrong that turns out: only so many bodies are on their way at a time. Of small ones these are many, and whether a bucket
//! names others says its mark, `lg:{t}`: a worker writes it with the entries of such bodies, and a list reads it with entries.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use memchr::memrchr;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use super::connection::Lane;
use super::layout::{Layout, StoredId};
use super::{Store, StoreError};
use crate::event::push_id;

/// Bytes of a small body, at most.
pub(super) const SMALL: usize = 16 * 1024;
/// Small bodies that are on their way at a time, those of all lists: 64 MiB at worst.
const ON_THEIR_WAY: usize = 4096;
/// Bytes of an event that is as large as may be posted, where nothing else is set: what a body counts as that may be large.
/// Only other producers write larger ones. Once such were seen, fewer are on their way.
const USUAL_MOST: usize = 256 * 1024;
/// Small bodies that are asked for at a time: a page at once, mostly.
const AT_A_TIME: usize = 1024;
/// Those that are asked for at a time where some may be large. Two lists may have so many on their way.
const FEW: usize = 128;
/// What a body has, as long as none was seen. A page of a hundred is one step with it, and 25 MiB at worst.
const UNSEEN: usize = 10 * 1024;
/// More than the name of a key and what stands before each argument have, mostly.
const NAME: usize = 64;

/// How large the bodies may be that a list meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sizes {
    /// None has more than [`SMALL`] bytes.
    Small,
    /// Any.
    Any,
}

/// What is known of the bodies' sizes, and how many more may be asked for now.
pub(super) struct Bodies {
    places: Semaphore,
    usual: AtomicUsize,
    /// Fades, so that a single large one does not count for ever.
    largest: AtomicUsize,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { places: Semaphore::new(ON_THEIR_WAY), usual: AtomicUsize::new(UNSEEN), largest: AtomicUsize::new(0) }
    }
}

impl Bodies {
    /// How many of them probably have so many bytes together; one at least.
    pub(super) fn within(&self, bytes: usize, sizes: Sizes) -> usize {
        let most = match sizes {
            Sizes::Small => AT_A_TIME,
            Sizes::Any => (ON_THEIR_WAY / self.places_of_one(sizes)).clamp(1, FEW),
        };
        (bytes / self.usual.load(Ordering::Relaxed).max(1)).clamp(1, most)
    }

    /// How many of [`ON_THEIR_WAY`] a body takes.
    fn places_of_one(&self, sizes: Sizes) -> usize {
        match sizes {
            Sizes::Small => 1,
            Sizes::Any => self.largest.load(Ordering::Relaxed).div_ceil(USUAL_MOST).max(1) * (USUAL_MOST / SMALL),
        }
    }

    /// Waits until so many may be on their way.
    async fn places(&self, count: usize, sizes: Sizes) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.places.acquire_many((count * self.places_of_one(sizes)).min(ON_THEIR_WAY) as u32).await
    }

    /// Whether so many probably have no more bytes than these.
    pub(super) fn are_within(&self, bytes: usize, count: usize) -> bool {
        count * self.usual.load(Ordering::Relaxed) <= bytes
    }

    /// Takes note of some. What is larger than before counts at once, what is smaller by and by.
    fn note(&self, sizes: &[usize]) {
        let mean = sizes.iter().sum::<usize>() / sizes.len().max(1);
        let before = self.usual.load(Ordering::Relaxed);
        self.usual.store(mean.max((before + 3 * mean) / 4), Ordering::Relaxed);
        let largest = self.largest.load(Ordering::Relaxed);
        let faded = largest - largest / 256;
        self.largest.store(faded.max(sizes.iter().copied().max().unwrap_or_default()), Ordering::Relaxed);
    }
}

/// How many of these bodies, of so many bytes each, fit into `room`; one at least, if there is any.
fn fitting(sizes: &[usize], room: usize) -> usize {
    let mut bytes = 0;
    let over = sizes.iter().position(|size| {
        bytes += size;
        bytes > room
    });
    over.map_or(sizes.len(), |over| over.max(1))
}

/// More bytes than an event's JSON has before what is stored of it, where the id is a UUID.
const BEFORE: usize = 64;

/// A body with what is not stored, as the name of its key has it: the id.
pub(super) fn whole(id: &StoredId, stored: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(stored.len() + BEFORE);
    // What is no id has no body either.
    id.with_text(|id| push_id(&mut body, id)).unwrap_or_default();
    body.extend_from_slice(stored);
    body
}

impl Store {
    /// The JSON of the first of these events, in order, of as many as fit into `room` bytes and of one at least; `None` of
    /// one whose body has expired a moment before its entry is trimmed. They are no more than [`Bodies::within`] gives.
    pub(super) async fn fitting_bodies(
        &self,
        lane: &Lane,
        ids: &[&StoredId],
        room: usize,
        sizes: Sizes,
    ) -> Result<Vec<Option<Bytes>>, StoreError> {
        // The semaphore is never closed.
        let _places = self.bodies.places(ids.len(), sizes).await;
        let mut bodies = self.whole_bodies(lane, ids).await?;
        let sizes: Vec<usize> = bodies.iter().map(|body| body.as_ref().map_or(0, Vec::len)).collect();
        self.bodies.note(&sizes);
        bodies.truncate(fitting(&sizes, room));
        let json = |mut body: Vec<u8>| {
            body.truncate(memrchr(0, &body).unwrap_or(body.len()));
            Bytes::from(body)
        };
        Ok(bodies.into_iter().map(|body| body.map(json)).collect())
    }

    /// The whole JSON of these events and its origin, in order.
    pub(super) async fn whole_bodies(
        &self,
        lane: &Lane,
        ids: &[&StoredId],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let stored = self.stored_bodies(lane, ids).await?;
        Ok(stored.into_iter().zip(ids).map(|(body, id)| body.map(|body| whole(id, &body))).collect())
    }

    /// What is stored under these ids, in order.
    async fn stored_bodies(&self, lane: &Lane, ids: &[&StoredId]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let layout = self.layout().await?;
        if !lane.is_cluster() {
            return lane.command(&mget(layout, ids.iter().copied())).await;
        }
        let mut asked: Vec<Vec<usize>> = vec![Vec::new(); layout.buckets()];
        ids.iter().enumerate().for_each(|(nth, id)| asked[layout.bucket_of_stored(id)].push(nth));
        asked.retain(|nths| !nths.is_empty());
        let commands = asked.iter().map(|nths| mget(layout, nths.iter().map(|nth| ids[*nth])));
        let answers: Vec<Vec<Option<Vec<u8>>>> = lane.scatter(commands).await?;
        let mut bodies = vec![None; ids.len()];
        for (nth, body) in asked.into_iter().zip(answers).flat_map(|(nths, answer)| nths.into_iter().zip(answer)) {
            bodies[nth] = body;
        }
        Ok(bodies)
    }
}

fn mget<'a>(layout: &Layout, ids: impl ExactSizeIterator<Item = &'a StoredId>) -> redis::Cmd {
    let mut command = redis::Cmd::with_capacity(1 + ids.len(), ids.len() * NAME);
    command.arg("MGET");
    let mut key = Vec::with_capacity(NAME);
    for id in ids {
        layout.put_event(&mut key, layout.bucket_of_stored(id), id);
        command.arg(key.as_slice());
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_bodies_are_kept_as_fit_and_one_at_least() {
        assert_eq!(fitting(&[10, 10, 10], 20), 2);
        assert_eq!(fitting(&[30, 10], 20), 1, "too large by itself");
        assert_eq!(fitting(&[0, 30], 20), 1, "no body, and then one that is too large");
        assert_eq!(fitting(&[], 20), 0);
        assert_eq!(fitting(&[10, 10], 0), 1);
    }

    #[test]
    fn few_are_asked_for_after_a_large_one_and_soon_many_again_but_never_more_than_may_be_on_their_way() {
        let bodies = Bodies::default();
        let page = 1024 * 1024;
        let within = |bytes| bodies.within(bytes, Sizes::Small);
        assert!((100..=AT_A_TIME).contains(&within(page)), "a usual page at once, of whatever size");
        bodies.note(&[250_000; 10]);
        assert_eq!(within(page), 4);
        (0..8).for_each(|_| bodies.note(&[200; 10]));
        assert_eq!(within(page), AT_A_TIME);
        assert_eq!(within(20_000) / 10, 9);
        bodies.note(&[0, 0]);
        bodies.note(&[]);
        assert_eq!((within(0), within(usize::MAX)), (1, AT_A_TIME));
    }

    #[tokio::test]
    async fn where_bodies_may_be_large_or_were_seen_to_be_larger_than_usual_fewer_are_on_their_way() {
        const MOST_BYTES: usize = ON_THEIR_WAY * SMALL;
        let bodies = Bodies::default();
        (0..20).for_each(|_| bodies.note(&[200; 10]));
        let within = |sizes| bodies.within(usize::MAX, sizes);
        assert_eq!(within(Sizes::Any), FEW);
        let two = bodies.places(2 * FEW, Sizes::Any).await.unwrap();
        assert_eq!(bodies.places.available_permits(), 0);
        drop(two);
        bodies.note(&[4 * USUAL_MOST]);
        (0..20).for_each(|_| bodies.note(&[200; 10]));
        assert_eq!(within(Sizes::Any), MOST_BYTES / USUAL_MOST / 4);
        assert_eq!(within(Sizes::Small), AT_A_TIME, "these were not among them");
        let all = bodies.places(within(Sizes::Any), Sizes::Any).await.unwrap();
        assert_eq!(bodies.places.available_permits(), 0);
        drop(all);
        bodies.note(&[2 * MOST_BYTES]);
        assert_eq!(within(Sizes::Any), 1);
        let _one = bodies.places(1, Sizes::Any).await.unwrap();
        assert_eq!(bodies.places.available_permits(), 0);
    }
}
