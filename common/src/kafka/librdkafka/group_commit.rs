//! Group commit: while records are under way those that come meanwhile wait, and then go together.
//!
//! An idempotent librdkafka sends nothing of a partition while five of its records or more are under way, and with a linger
//! of 0 its thread spins for as long as others wait for them: up to a whole core. A linger would be paid by a lonely record
//! too, in whole milliseconds. So only a record that is alone goes at once. The busier it is, the larger the groups become.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::message::OwnedHeaders;
use tokio::sync::{Notify, mpsc};

use super::{Current, Record, Ticket};

/// Records that librdkafka puts into one request of a partition, by default; more at a time make nothing faster.
const MOST: usize = 10_000;
/// Records of a group that are handed over before other tasks have their turn, after about a millisecond. No fewer:
/// what is handed over in pieces may be sent in pieces.
const TURN: usize = 1000;
/// Records of a group from which on it is a large one.
const LARGE: usize = 100;
/// How long the next group waits for the one before at most, if the leaders of many partitions are slow or away.
const PATIENCE: Duration = Duration::from_millis(20);

/// A record that waits for its group.
pub(super) struct Waiting {
    pub(super) key: Box<[u8]>,
    pub(super) payload: Box<[u8]>,
    pub(super) timestamp: i64,
    pub(super) headers: OwnedHeaders,
    pub(super) ticket: Ticket,
}

/// Records that were handed over together.
pub(super) struct Group {
    left: AtomicUsize,
    few: usize,
    few_are_left: Notify,
}

impl Group {
    fn of(records: usize) -> Self {
        // As long as no more than these go to leaders that are slow or away, nobody waits for them. Measured: waiting for more
        // of a large group makes the next one larger and is faster, waiting for more of a small one is not.
        let few = if records < LARGE { records / 3 } else { records / 6 };
        Self { left: AtomicUsize::new(records), few, few_are_left: Notify::new() }
    }

    /// A record of it has its answer.
    pub(super) fn answered(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == self.few + 1 {
            self.few_are_left.notify_one();
        }
    }
}

/// Hands over what waits, a group at a time, until nobody can send any more.
pub(super) async fn run(current: Arc<Current>, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    let mut records = Vec::new();
    while waiting.recv_many(&mut records, MOST).await > 0 {
        let group = Arc::new(Group::of(records.len()));
        for (nth, Waiting { key, payload, timestamp, headers, ticket }) in records.drain(..).enumerate() {
            let ticket = Box::new(Ticket { group: Some(Arc::clone(&group)), ..ticket });
            let record = Record::with_opaque_to(&current.topic, ticket).key(&*key).payload(&*payload);
            current.hand_over(record.timestamp(timestamp).headers(headers));
            if (nth + 1) % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        // Whichever it is: the next group goes.
        drop(tokio::time::timeout(PATIENCE, group.few_are_left.notified()).await);
    }
}
