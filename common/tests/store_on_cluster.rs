//! The suite of `store`, on a real Redis Cluster: `scripts/test integration` names one in `TEST_REDIS_CLUSTER_URL`. What
//! breaks a server of its own is in `store` only; what breaks a Cluster is tested with the real binaries, in `e2e`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

/// Where the shared Cluster is.
const SHARED: &str = "TEST_REDIS_CLUSTER_URL";
/// How many buckets its stores have.
const BUCKETS: usize = 16;

#[path = "store/filters.rs"]
mod filters;
#[path = "store/foreign.rs"]
mod foreign;
#[path = "store/holds.rs"]
mod holds;
#[path = "store/lists.rs"]
mod lists;
#[path = "store/nodes.rs"]
mod nodes;
#[path = "store/positions.rs"]
mod positions;
mod support;
#[path = "store/workers.rs"]
mod workers;
#[path = "store/world.rs"]
#[expect(dead_code, reason = "it can also break a server, which only the suite of one server does")]
mod world;
#[path = "store/writes.rs"]
mod writes;
