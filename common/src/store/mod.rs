//! The model in Redis. No HTTP, no Kafka types.
//!
//! Invariants, which everything else rests on:
//!
//! - An event's body and its place in the index are written by one transaction per bucket, idempotently (`SET … NX`,
//!   `ZADD … NX`, or a script that does the same where an id may repeat): writing it again completes whatever a crash left
//!   half done.
//! - The same transaction moves the bucket's *positions*: how far the bucket holds everything of a partition. It happens
//!   only if all of them stand where the worker left them, and else writes nothing. So a position can't get ahead of the
//!   data, nor an event ahead of an earlier one with the same eventId, whatever Redis loses, refuses or repeats.
//! - A body is the event's JSON without its first member, the eventId, which the name of the key has. It is followed by one
//!   zero byte, which JSON can't contain, and the event's [`Origin`].
//!
//! | key | type | content |
//! |---|---|---|
//! | `ev:{t}:<id>` | string | the rest of the event's JSON, a zero byte, its origin; expires |
//! | `ix:{t}` | sorted set | id by score |
//! | `ux:{u}:<userId>` | sorted set | the same of one user, in the bucket of the userId; expires |
//! | `tl:{t}` | stream | scope, partition, offset and id of what was stored last, and where logs began; trimmed by time, capped |
//! | `lg:{t}` | string | exists while an index of the bucket may name a body of more than 16 KiB; expires |
//! | `at:{t}:<buckets>` | hash | `<group>\|<topic>:<partition>` → next offset |
//! | `gd:{t}:<member>` | string | changes when a transaction of this worker is not to happen; expires |
//! | `wk:<member>`, `workers` | hash, sorted set | heartbeats of the workers |
//! | `held` | hash | `<group>\|<topic>:<partition>` → since when the workers hold it; expires |
//! | `dl:{t}:<eventId>` | string | why an event became a dead letter; expires |
//! | `meta:trimmed` | string | the time before which the guard of [`Memory`] has trimmed |
//! | `meta:settings` | hash | what all processes must share |
//! | `meta:layout` | string | version, bucket count, hash |
//!
//! An `<id>` is the eventId as `StoredId` writes it: 16 bytes for a UUID, else its text.

mod bodies;
mod clock;
mod connection;
mod dead_letters;
mod foreign;
mod holds;
mod layout;
mod life;
mod memory;
mod positions;
mod query;
mod read;
mod server;
mod settings;
mod spread;
mod tail;
mod trim;
mod workers;
mod write;

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::Semaphore;

use self::bodies::Bodies;
use self::connection::Lane;
pub use self::connection::StoreError;
use self::foreign::Foreign;
use self::layout::Names;
pub(crate) use self::layout::number_of_buckets;
pub use self::layout::{bucket_of, score_of};
pub use self::life::expiry_of;
pub use self::memory::{Memory, Room};
pub use self::positions::{Placement, PositionScope, Positions};
pub use self::query::{Cursor, CursorError, Members, Order, Query};
pub use self::read::{Found, Page, ReadAhead, Walk};
use self::settings::Shared;
use self::spread::Spread;
pub use self::tail::{Announced, Entry, EntryId, LogEnd, Seen, TailPosition};
pub use self::workers::{HEARTBEAT_TTL, Heartbeat, LiveWorker, PartitionLag};
pub use self::write::{Batch, Move, Origin, Receipt, StoredEvent, UserIndex};
use crate::config::RedisSettings;

/// The store of one process. Connects by itself when first asked, and again after any failure.
pub struct Store {
    names: Names,
    /// Known once Redis was asked.
    spread: OnceLock<Spread>,
    /// Set when the store has come to be another than that.
    replaced: AtomicUsize,
    /// Transactions of the worker, and its positions.
    write: Arc<Lane>,
    /// Small answers; large ones would block them on a shared connection.
    read: Lane,
    /// Pages of lists, one after the other: what comes over a connection is parsed by one thread at a time.
    page_lanes: Vec<Arc<Lane>>,
    next_page_lane: AtomicUsize,
    /// Full lists.
    export: Arc<Lane>,
    /// Our own settings, and those that count.
    own: RedisSettings,
    shared: Shared,
    /// The worker that it is the store of, if it is.
    member: Option<String>,
    /// Milliseconds that Redis' clock is ahead of ours.
    clock: AtomicI64,
    /// Turns at reading a page: each holds up to its bytes, and Redis answers one after the other anyway.
    pages: Semaphore,
    bodies: Bodies,
    foreign: Foreign,
    trimming: trim::Cursors,
    /// Whether a server has refused to say how it is configured.
    config_refused: AtomicBool,
}

impl Store {
    /// A store with the given settings; nothing is connected yet.
    ///
    /// # Errors
    /// When the URL can't be used.
    pub fn new(settings: &RedisSettings) -> Result<Self, StoreError> {
        let write = Lane::new(settings)?;
        Ok(Self {
            names: Names::new(&settings.key_prefix),
            spread: OnceLock::new(),
            replaced: AtomicUsize::default(),
            read: write.another(),
            page_lanes: (0..page_lanes(&write)).map(|_| Arc::new(write.another())).collect(),
            next_page_lane: AtomicUsize::default(),
            export: Arc::new(write.another()),
            write: Arc::new(write),
            own: settings.clone(),
            shared: Shared::new(settings),
            member: None,
            clock: AtomicI64::default(),
            pages: Semaphore::new(read::PAGES),
            bodies: Bodies::default(),
            foreign: Foreign::default(),
            trimming: trim::Cursors::default(),
            config_refused: AtomicBool::default(),
        })
    }

    /// The store of a worker, whose settings count: it is refused where other workers have other ones.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn of_worker(settings: &RedisSettings, member: &str) -> Result<Self, StoreError> {
        Ok(Self { member: Some(member.to_owned()), ..Self::new(settings)? })
    }

    /// Whose guards it has in each bucket; those who only read have none.
    fn member(&self) -> &str {
        self.member.as_deref().unwrap_or_default()
    }

    /// Whether Redis answers, is new enough and its data was written with this layout; claims an empty Redis for it. Also
    /// compares the clocks and the settings.
    ///
    /// # Errors
    /// [`StoreError::TooOld`] when it lacks commands, [`StoreError::Layout`] when the data is of another layout,
    /// [`StoreError::Buckets`] when it was replaced by another store, [`StoreError::Settings`] for a worker among others with
    /// other settings, else what kept Redis from answering.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.check_version().await?;
        self.check_layout().await?;
        self.compare_clocks().await?;
        self.agree().await
    }

    /// A connection for a page.
    fn page_lane(&self) -> Arc<Lane> {
        let nth = self.next_page_lane.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.page_lanes[nth % self.page_lanes.len()])
    }

    /// The oldest time that lists still show, in milliseconds since 1970.
    #[must_use]
    pub fn horizon(&self) -> i64 {
        self.now().millis().saturating_sub(self.retention()).max(0)
    }
}

/// How many connections pages have: one for each core, up to four. The client of a Cluster has one to each node as it is.
fn page_lanes(lane: &Lane) -> usize {
    if lane.is_cluster() { 1 } else { available_parallelism().map_or(1, NonZero::get).min(4) }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
