//! How a store is spread over buckets. Their number is a property of the store: whoever begins it chooses, and all others
//! learn it from `meta:layout` when they first ask Redis, which may be long after they have started.

use std::ops::Range;
use std::sync::atomic::Ordering;

use tokio::sync::Mutex;

use super::connection::Lane;
use super::layout::{self, Layout};
use super::{Store, StoreError};

/// The number of buckets of a new store on one server, and on a Cluster, the nodes of which share them.
const ON_ONE_SERVER: usize = 1;
const ON_A_CLUSTER: usize = 16;

/// What depends on how many buckets the store has.
pub(super) struct Spread {
    pub(super) layout: Layout,
    /// Turns at writing into each bucket: see [`Lane::in_turn`].
    pub(super) turns: Vec<Mutex<()>>,
    /// Wait for what is stored next, each for its share of the buckets.
    pub(super) tail: Vec<Lane>,
}

impl Store {
    /// How the store is laid out. Asks Redis only once.
    pub(super) async fn layout(&self) -> Result<&Layout, StoreError> {
        self.spread().await.map(|spread| &spread.layout)
    }

    pub(super) async fn spread(&self) -> Result<&Spread, StoreError> {
        match (self.replaced.load(Ordering::Relaxed), self.spread.get()) {
            (0, Some(spread)) => Ok(spread),
            (found, Some(spread)) => Err(StoreError::Buckets { found, own: spread.layout.buckets() }),
            (_, None) => self.check_layout().await,
        }
    }

    /// Reads which layout the store has, claims it where there is none, and compares it with the one that this process
    /// goes by since it first looked. Whoever went on by another one would write where nobody reads.
    pub(super) async fn check_layout(&self) -> Result<&Spread, StoreError> {
        let key = self.names.meta();
        let held: Option<String> = self.read.command(redis::cmd("GET").arg(&key)).await?;
        let mark = match held {
            Some(mark) => mark,
            // Only where there is none: a Redis that is full refuses it, and must still be seen to be ours to be trimmed.
            None => self.claim(&key).await?,
        };
        let Some(found) = layout::buckets_by(&mark) else { return Err(StoreError::Layout { key, found: mark }) };
        let spread = self.spread.get_or_init(|| self.spread_over(found));
        let own = spread.layout.buckets();
        self.replaced.store(if own == found { 0 } else { found }, Ordering::Relaxed);
        if own == found { Ok(spread) } else { Err(StoreError::Buckets { found, own }) }
    }

    fn spread_over(&self, buckets: usize) -> Spread {
        if let Some(own) = self.own.buckets.filter(|own| *own != buckets) {
            log::warn!(
                "the store has {buckets} buckets, and not the {own} of REDIS_BUCKETS: a store keeps its number; use another \
                 REDIS_KEY_PREFIX to change it"
            );
        }
        Spread {
            layout: self.names.layout(buckets),
            turns: (0..buckets).map(|_| Mutex::default()).collect(),
            tail: self.shares(buckets).map(|_| self.read.another()).collect(),
        }
    }

    /// The groups of buckets whose streams can be waited for together: all of one server, each by itself on a Cluster.
    pub(super) fn shares(&self, buckets: usize) -> impl Iterator<Item = Range<usize>> {
        let size = if self.read.is_cluster() { 1 } else { buckets.max(1) };
        (0..buckets).step_by(size).map(move |first| first..first + size)
    }

    /// Claims the layout, unless another process has just done so. Gives whose it is. A Redis that was emptied gets the
    /// number of buckets that this process goes by.
    async fn claim(&self, key: &str) -> Result<String, StoreError> {
        let usual = if self.read.is_cluster() { ON_A_CLUSTER } else { ON_ONE_SERVER };
        let known = self.spread.get().map(|spread| spread.layout.buckets());
        let mark = layout::mark_of(known.or(self.own.buckets).unwrap_or(usual));
        let mut claim = redis::pipe();
        claim.cmd("SET").arg(key).arg(mark).arg("NX").ignore().cmd("GET").arg(key);
        self.read.pipeline(&claim).await.map(|(found,)| found)
    }
}
