//! Back-pressure: how many bytes may wait for the brokers at a time, and when to come back once they do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::event::UserEvent;
use common::kafka::{Delivered, PublishError, Published, Publisher};

use crate::metrics::Publishing;

/// The rate at which the brokers take bytes is measured over this time.
const WINDOW: Duration = Duration::from_secs(1);
/// What a client is told to wait, at least and at most, in seconds.
const SHORTEST_WAIT: u64 = 1;
const LONGEST_WAIT: u64 = 30;

/// A publisher that holds no more than a number of bytes, and counts.
pub struct Budget {
    publisher: Arc<dyn Publisher>,
    limit: usize,
    flow: Arc<Flow>,
}

/// Records and bytes that came in and went out.
struct Flow {
    records: AtomicUsize,
    in_flight: AtomicUsize,
    /// Bytes that the brokers have taken, ever.
    drained: AtomicUsize,
    rate: Mutex<Rate>,
    counted: Publishing,
}

/// What was drained in the last window, and since.
struct Rate {
    since: Instant,
    drained: usize,
    per_second: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self { since: Instant::now(), drained: 0, per_second: 0.0 }
    }
}

/// One record, whose bytes are given back when its answer is there or nobody waits for it any more.
struct Flight {
    flow: Arc<Flow>,
    bytes: usize,
    since: Instant,
    answered: bool,
}

impl Flight {
    /// With the bytes that were in flight before.
    fn begin(flow: &Arc<Flow>, bytes: usize) -> (Self, usize) {
        flow.records.fetch_add(1, Ordering::Relaxed);
        let before = flow.in_flight.fetch_add(bytes, Ordering::Relaxed);
        (Self { flow: Arc::clone(flow), bytes, since: Instant::now(), answered: false }, before)
    }

    fn end(mut self, result: &Result<Delivered, PublishError>) {
        self.answered = true;
        if result.is_ok() {
            self.flow.drained.fetch_add(self.bytes, Ordering::Relaxed);
        }
        self.flow.counted.answered(result, self.since.elapsed());
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flow.records.fetch_sub(1, Ordering::Relaxed);
        self.flow.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
        if !self.answered {
            self.flow.counted.abandoned(self.since.elapsed());
        }
    }
}

impl Budget {
    /// At most `limit` bytes wait for `publisher` at a time.
    pub(crate) fn new(publisher: Arc<dyn Publisher>, limit: usize, counted: Publishing) -> Self {
        let (records, in_flight, drained, rate) = Default::default();
        Self { publisher, limit, flow: Arc::new(Flow { records, in_flight, drained, rate, counted }) }
    }

    /// Hands over one event, unless the budget is used up.
    pub fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> Published {
        let (flight, before) = Flight::begin(&self.flow, json.len());
        if before + json.len() > self.limit {
            let reason = format!("KAFKA_QUEUE_KBYTES: {before} bytes wait for the brokers already");
            let refused = Err(PublishError::NotAccepted(reason));
            flight.end(&refused);
            return Box::pin(std::future::ready(refused));
        }
        let published = self.publisher.publish(event, json);
        Box::pin(async move {
            let result = published.await;
            flight.end(&result);
            result
        })
    }

    /// Events that wait for the brokers.
    #[must_use]
    pub fn records(&self) -> usize {
        self.flow.records.load(Ordering::Relaxed)
    }

    /// Bytes that wait for the brokers.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flow.in_flight.load(Ordering::Relaxed)
    }

    /// How long what waits now takes at the rate at which the brokers took bytes lately, in whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> u64 {
        let seconds = self.in_flight() as f64 / self.rate(Instant::now()).max(1.0);
        (seconds.ceil() as u64).clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }

    /// Bytes a second.
    fn rate(&self, now: Instant) -> f64 {
        let mut rate = self.flow.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let (drained, time) = (self.flow.drained.load(Ordering::Relaxed), now.duration_since(rate.since));
        if time >= WINDOW || rate.per_second == 0.0 {
            rate.per_second = drained.wrapping_sub(rate.drained) as f64 / time.as_secs_f64().max(0.001);
        }
        if time >= WINDOW {
            (rate.since, rate.drained) = (now, drained);
        }
        rate.per_second
    }
}

#[cfg(test)]
mod tests {
    use common::event::EventTypes;
    use common::testing::FakePublisher;
    use futures::FutureExt;
    use futures::future::pending;

    use super::*;
    use crate::metrics::Metrics;

    fn budget(publisher: impl Publisher, limit: usize) -> Budget {
        Budget::new(Arc::new(publisher), limit, Metrics::new().publishing())
    }

    struct Silent;

    impl Publisher for Silent {
        fn publish(&self, _: &UserEvent<'_>, _: &[u8]) -> Published {
            Box::pin(pending())
        }
    }

    fn publish(budget: &Budget, size: usize) -> Published {
        let event = UserEvent::from_request(br#"{"userId":"u","eventType":"LOGIN"}"#, &EventTypes::default()).unwrap();
        budget.publish(&event, &vec![b' '; size])
    }

    #[test]
    fn beyond_the_budget_nothing_is_accepted_until_something_is_answered_or_given_up() {
        let budget = budget(Silent, 100);
        let first = publish(&budget, 60);
        let refused = publish(&budget, 41).now_or_never().unwrap();
        assert!(matches!(&refused, Err(PublishError::NotAccepted(why)) if why.contains("60 bytes")), "{refused:?}");
        assert_eq!(budget.in_flight(), 60, "what was refused does not wait");
        let second = publish(&budget, 40);
        assert!(second.now_or_never().is_none(), "there is room for exactly as much");
        drop(first);
        assert_eq!(budget.in_flight(), 0);
    }

    #[test]
    fn what_is_acknowledged_makes_room() {
        let budget = budget(FakePublisher::default(), 100);
        for _ in 0..10 {
            assert!(publish(&budget, 90).now_or_never().unwrap().is_ok());
        }
        assert_eq!(budget.flow.drained.load(Ordering::Relaxed), 900);
    }

    #[test]
    fn what_is_refused_or_given_up_was_not_taken_by_the_brokers() {
        let budget = budget(Silent, 100);
        drop(publish(&budget, 60));
        let waiting = publish(&budget, 100);
        for _ in 0..1000 {
            assert!(publish(&budget, 90).now_or_never().unwrap().is_err());
        }
        assert_eq!(budget.retry_after(), LONGEST_WAIT, "nothing moves");
        drop(waiting);
    }

    #[test]
    fn the_wait_follows_from_the_rate() {
        let budget = budget(Silent, usize::MAX);
        // Far ahead: no window ends but the one that does so below, however slow this machine is.
        let begin = Instant::now() + Duration::from_hours(1);
        budget.flow.rate.lock().unwrap().since = begin;
        assert_eq!(budget.retry_after(), SHORTEST_WAIT, "nothing waits");
        let waiting = publish(&budget, 10_000);
        assert_eq!(budget.retry_after(), LONGEST_WAIT, "nothing moves");
        budget.flow.drained.fetch_add(2_000, Ordering::Relaxed);
        let rate = budget.rate(begin + Duration::from_secs(1));
        assert!((1_999.0..=2_001.0).contains(&rate), "{rate}");
        assert_eq!(budget.retry_after(), 5);
        drop(waiting);
    }
}
