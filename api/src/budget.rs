//! What waits for the brokers: how much it is, and when to come back once they have taken it. How much there may be is
//! the publisher's to say, which knows when it lets go of a record.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::event::UserEvent;
use common::kafka::{Answer, Publisher};

use crate::metrics::Publishing;

/// The rate at which the brokers take bytes is measured over this time.
const WINDOW: Duration = Duration::from_secs(1);
/// What a client is told to wait, at least and at most, in seconds.
const SHORTEST_WAIT: u64 = 1;
const LONGEST_WAIT: u64 = 30;

/// A publisher, and what is counted of it.
pub struct Budget {
    publisher: Arc<dyn Publisher>,
    rate: Mutex<Rate>,
    counted: Arc<Publishing>,
}

/// What the brokers acknowledged in the last window, and up to its end.
struct Rate {
    since: Instant,
    acknowledged: usize,
    per_second: f64,
}

impl Rate {
    fn at(&self, acknowledged: usize, now: Instant) -> f64 {
        let bytes = acknowledged.wrapping_sub(self.acknowledged);
        bytes as f64 / now.duration_since(self.since).as_secs_f64().max(0.001)
    }
}

/// Somebody who waits for the answer to a record.
struct Waiter {
    counted: Arc<Publishing>,
    since: Instant,
    answered: bool,
}

impl Waiter {
    fn end(mut self, result: &Answer) {
        self.answered = true;
        self.counted.answered(result, self.since.elapsed());
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.answered {
            self.counted.abandoned(self.since.elapsed());
        }
    }
}

impl Budget {
    pub(crate) fn new(publisher: Arc<dyn Publisher>, counted: Publishing) -> Self {
        let rate = Rate { since: Instant::now(), acknowledged: publisher.load().acknowledged, per_second: 0.0 };
        Self { publisher, rate: Mutex::new(rate), counted: Arc::new(counted) }
    }

    /// Hands over one event, unless the publisher has no room for it.
    pub(crate) fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> impl Future<Output = Answer> + Send + use<> {
        let waiter = Waiter { counted: Arc::clone(&self.counted), since: Instant::now(), answered: false };
        let published = self.publisher.publish(event, json);
        async move {
            let result = published.await;
            waiter.end(&result);
            result
        }
    }

    /// See [`Publisher::has_room`].
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.publisher.has_room(bytes)
    }

    /// Events that wait for the brokers.
    #[must_use]
    pub fn records(&self) -> usize {
        self.publisher.load().records
    }

    /// Bytes that wait for the brokers.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.publisher.load().bytes
    }

    /// How long what waits now takes at the rate at which the brokers took bytes in the last second, in whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> u64 {
        self.retry_after_at(Instant::now())
    }

    fn retry_after_at(&self, now: Instant) -> u64 {
        let load = self.publisher.load();
        let rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        // They may take bytes again since the last second, in which they took none.
        let per_second = if rate.per_second > 0.0 { rate.per_second } else { rate.at(load.acknowledged, now) };
        let seconds = load.bytes as f64 / per_second.max(1.0);
        (seconds.ceil() as u64).clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }

    /// Measures the rate, again and again; never ends.
    pub(crate) async fn measure(&self) {
        loop {
            tokio::time::sleep(WINDOW).await;
            self.sample(Instant::now());
        }
    }

    fn sample(&self, now: Instant) {
        let acknowledged = self.publisher.load().acknowledged;
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        *rate = Rate { since: now, acknowledged, per_second: rate.at(acknowledged, now) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use common::kafka::{Load, Published};
    use futures::future::pending;

    use super::*;
    use crate::metrics::Metrics;

    /// Holds ten thousand bytes, of which it says how many were acknowledged.
    #[derive(Clone, Default)]
    struct Loaded(Arc<AtomicUsize>);

    impl Publisher for Loaded {
        fn publish(&self, _: &UserEvent<'_>, _: &[u8]) -> Published {
            Box::pin(pending())
        }

        fn load(&self) -> Load {
            Load { records: 1, bytes: 10_000, acknowledged: self.0.load(Ordering::Relaxed) }
        }
    }

    fn budget(publisher: &Loaded) -> (Budget, Instant) {
        let budget = Budget::new(Arc::new(publisher.clone()), Metrics::new().publishing());
        let begin = budget.rate.lock().unwrap().since;
        (budget, begin)
    }

    #[test]
    fn the_wait_follows_from_what_the_brokers_acknowledged_in_the_last_second() {
        let publisher = Loaded::default();
        let (budget, begin) = budget(&publisher);
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(budget.retry_after_at(after(0)), LONGEST_WAIT, "nothing moves");
        publisher.0.fetch_add(2_000, Ordering::Relaxed);
        assert_eq!(budget.retry_after_at(after(1)), 5, "the first second is not over");
        budget.sample(after(1));
        assert_eq!(budget.retry_after_at(after(1)), 5);
        publisher.0.fetch_add(5_000, Ordering::Relaxed);
        budget.sample(after(2));
        assert_eq!(budget.retry_after_at(after(2)), 2);
        budget.sample(after(3));
        assert_eq!(budget.retry_after_at(after(4)), LONGEST_WAIT, "nothing moves any more");
        publisher.0.fetch_add(20_000, Ordering::Relaxed);
        assert_eq!(budget.retry_after_at(after(4)), SHORTEST_WAIT, "it does again");
    }

    #[tokio::test]
    async fn the_rate_is_measured_although_nobody_asks_for_it() {
        let (budget, begin) = budget(&Loaded::default());
        let measured = async {
            while budget.rate.lock().unwrap().since == begin {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let either = async {
            tokio::select! {
                () = budget.measure() => {}
                () = measured => {}
            }
        };
        tokio::time::timeout(Duration::from_mins(1), either).await.unwrap();
    }
}
