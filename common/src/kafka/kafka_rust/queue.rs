//! The bounded channel in front of the crate `kafka`, and the one answer that each record gets.
//!
//! A record is *claimed*: by the thread that is about to send it, or by its publisher's time-out. Whoever comes first has
//! it; a thread that knows that no leader has written the record lets go of it again. So "not accepted" is only said of a
//! record that will never be on the topic, also while that thread is stuck.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::kafka::room::{Place, Room};
use crate::kafka::{Delivered, Load, PublishError};

/// What a record gets.
pub(super) type Outcome = Result<Delivered, PublishError>;

/// Records that may wait, as librdkafka's `queue.buffering.max.messages`.
const MOST_WAITING: usize = 100_000;
/// Records of one request.
const BATCH_RECORDS: usize = 500;
/// Bytes of one request. A broker packs the records that one request has for a partition into one batch of today's
/// format, to which the topic's `max.message.bytes` (1 MiB unless set) then applies as a whole.
const BATCH_BYTES: usize = 900_000;

/// One record on its way.
pub(super) struct Pending {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    deadline: Instant,
    claimed: Arc<AtomicBool>,
    /// A leader that answered with an error may have written it before.
    in_doubt: bool,
    answer: oneshot::Sender<Outcome>,
    place: Place,
}

impl Pending {
    pub(super) fn answer(self, outcome: Outcome) {
        self.place.end(outcome.is_ok());
        // Whoever asked may have gone.
        let _ = self.answer.send(outcome);
    }

    /// Makes the record the caller's to send, unless its time is over. One in doubt is the caller's already.
    pub(super) fn claim(&self, now: Instant) -> bool {
        self.is_in_time(now) && (self.in_doubt || !self.claimed.swap(true, Ordering::AcqRel))
    }

    /// After an error, until it is claimed again: `in_doubt` where a leader may have written it nevertheless.
    pub(super) fn let_go(&mut self, in_doubt: bool) {
        self.in_doubt |= in_doubt;
        if !self.in_doubt {
            self.claimed.store(false, Ordering::Release);
        }
    }

    /// The answer of one that a leader has rejected for its own sake.
    pub(super) fn refuse(self, why: String, too_large: bool) {
        let error = match (self.in_doubt, too_large) {
            (true, _) => PublishError::Unknown(why),
            (false, true) => PublishError::TooLarge { reason: why, limit: None },
            (false, false) => PublishError::Refused(why),
        };
        self.answer(Err(error));
    }

    /// Its publisher still waits.
    pub(super) fn is_in_time(&self, now: Instant) -> bool {
        now < self.deadline
    }

    /// The answer of one that [`Pending::let_go`] was called for, and that is not sent any more.
    pub(super) fn give_up(self, why: String) {
        let error = if self.in_doubt { PublishError::Unknown(why) } else { PublishError::NotAccepted(why) };
        self.answer(Err(error));
    }
}

/// The other end of a [`Pending`].
pub(super) struct Receipt {
    deadline: Instant,
    claimed: Arc<AtomicBool>,
    answer: oneshot::Receiver<Outcome>,
}

impl Receipt {
    /// Waits for the answer, at the longest until the record's time is over.
    pub(super) async fn outcome(self) -> Outcome {
        let why = match tokio::time::timeout_at(self.deadline.into(), self.answer).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_)) => "the publisher gave it up",
            Err(_) => "the time-out is over",
        };
        let was_sent = self.claimed.swap(true, Ordering::AcqRel);
        Err(if was_sent { PublishError::Unknown(why.into()) } else { PublishError::NotAccepted(why.into()) })
    }
}

/// What there is to do.
pub(super) enum Next {
    /// These are the caller's now, in the order they came.
    Batch(Vec<Pending>),
    /// The time was over before a record came.
    Due,
    /// The queue is closed.
    Closed,
}

/// See the module.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    room: Arc<Room>,
}

#[derive(Default)]
struct State {
    /// Oldest first; all have the same time-out, so the first deadline is the earliest.
    waiting: VecDeque<Pending>,
    /// Why nothing more is taken.
    closed: Option<String>,
}

impl Queue {
    /// Room for `bytes` of records, waiting or on their way.
    pub(super) fn new(bytes: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), room: Room::new(bytes) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record that must be answered by `deadline`.
    pub(super) fn push(&self, key: &[u8], value: &[u8], deadline: Instant) -> Result<Receipt, PublishError> {
        let refused = |why: &str| PublishError::NotAccepted(why.to_owned());
        let (place, _) = self.room.take(key, value)?;
        let (sender, answer) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        let receipt = Receipt { deadline, claimed: Arc::clone(&claimed), answer };
        let (key, value) = (key.to_vec(), value.to_vec());
        let pending = Pending { key, value, deadline, claimed, in_doubt: false, answer: sender, place };
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(refused(why));
        }
        if state.waiting.len() >= MOST_WAITING {
            return Err(refused(&format!("{MOST_WAITING} records are waiting already")));
        }
        state.waiting.push_back(pending);
        drop(state);
        self.changed.notify_all();
        Ok(receipt)
    }

    /// Waits for records until `due`.
    pub(super) fn next(&self, due: Instant) -> Next {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.closed.is_some() {
                return Next::Closed;
            }
            if now >= due {
                return Next::Due;
            }
            let batch = state.batch(now);
            if !batch.is_empty() {
                return Next::Batch(batch);
            }
            let waited = self.changed.wait_timeout(state, due - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits, but not longer than until the queue is closed.
    pub(super) fn pause(&self, time: Duration) {
        let open = |state: &mut State| state.closed.is_none();
        drop(self.changed.wait_timeout_while(self.lock(), time, open));
    }

    /// Forgets the records whose time is over; their publishers have said so by themselves.
    pub(super) fn forget_expired(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        while state.waiting.front().is_some_and(|pending| now >= pending.deadline) {
            state.waiting.pop_front();
        }
    }

    /// Takes nothing more, and answers what waits.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| why.to_owned());
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        drop(left);
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Waits until every record is done with; `false` when some are left after `timeout`.
    pub(super) fn empty_within(&self, timeout: Duration) -> bool {
        const LOOK: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + timeout;
        while !self.is_empty() {
            if Instant::now() >= deadline {
                return false;
            }
            drop(self.changed.wait_timeout(self.lock(), LOOK));
        }
        true
    }

    pub(super) fn load(&self) -> Load {
        self.room.load()
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.room.fits(bytes)
    }

    fn is_empty(&self) -> bool {
        self.load().records == 0
    }
}

impl State {
    fn batch(&mut self, now: Instant) -> Vec<Pending> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(pending) = self.waiting.front() {
            bytes += pending.place.bytes;
            if batch.len() == BATCH_RECORDS || (bytes > BATCH_BYTES && !batch.is_empty()) {
                break;
            }
            batch.extend(self.waiting.pop_front().filter(|pending| pending.claim(now)));
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Duration = Duration::from_mins(1);

    fn push(queue: &Queue, size: usize, time: Duration) -> Result<Receipt, PublishError> {
        queue.push(b"key", &vec![b'x'; size], Instant::now() + time)
    }

    fn batch(queue: &Queue) -> Vec<Pending> {
        match queue.next(Instant::now() + Duration::from_millis(20)) {
            Next::Batch(batch) => batch,
            Next::Due | Next::Closed => Vec::new(),
        }
    }

    #[test]
    fn a_batch_ends_before_the_record_that_would_make_it_too_large() {
        let queue = Queue::new(10_000_000);
        let _receipts: Vec<_> = [500_000, 500_000, 2_000_000, 10].map(|size| push(&queue, size, FAR)).into();
        let sizes: Vec<_> = (0..4).map(|_| batch(&queue).iter().map(|p| p.value.len()).collect::<Vec<_>>()).collect();
        assert_eq!(sizes, [vec![500_000], vec![500_000], vec![2_000_000], vec![10]]);
    }

    #[test]
    fn a_batch_has_no_more_than_500_records() {
        let queue = Queue::new(10_000_000);
        let _receipts: Vec<_> = (0..501).map(|_| push(&queue, 1, FAR)).collect();
        assert_eq!((batch(&queue).len(), batch(&queue).len()), (500, 1));
    }

    #[test]
    fn the_room_of_a_record_comes_back_when_it_is_done_with() {
        let queue = Queue::new(1_000);
        let _first = push(&queue, 700, FAR).unwrap();
        assert!(matches!(push(&queue, 700, FAR), Err(PublishError::NotAccepted(_))));
        let taken = batch(&queue);
        assert!(push(&queue, 700, FAR).is_err() && !queue.is_empty(), "a record on its way counts");
        drop(taken);
        assert!(queue.is_empty());
        push(&queue, 700, FAR).unwrap();
    }

    #[tokio::test]
    async fn a_record_whose_time_is_over_is_never_sent_and_not_accepted() {
        let queue = Queue::new(10_000);
        let receipt = push(&queue, 10, Duration::from_millis(1)).unwrap();
        let outcome = receipt.outcome().await;
        assert!(matches!(outcome, Err(PublishError::NotAccepted(_))), "{outcome:?}");
        assert!(batch(&queue).is_empty());
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_record_that_was_taken_and_not_answered_is_unknown() {
        let queue = Queue::new(10_000);
        let [given_up, late] = [FAR, Duration::from_secs(5)].map(|time| push(&queue, 10, time).unwrap());
        let mut taken = batch(&queue);
        assert_eq!(taken.len(), 2);
        drop(taken.remove(0));
        for receipt in [given_up, late] {
            let outcome = receipt.outcome().await;
            assert!(matches!(outcome, Err(PublishError::Unknown(_))), "{outcome:?}");
        }
    }

    #[tokio::test]
    async fn closing_answers_what_waits() {
        let queue = Queue::new(10_000);
        let receipt = push(&queue, 10, FAR).unwrap();
        queue.close("the reason");
        assert!(matches!(receipt.outcome().await, Err(PublishError::NotAccepted(_))));
        assert!(matches!(push(&queue, 10, FAR), Err(PublishError::NotAccepted(why)) if why == "the reason"));
        assert!(matches!(queue.next(Instant::now() + FAR), Next::Closed));
    }
}
