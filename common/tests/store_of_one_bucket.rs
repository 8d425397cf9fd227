//! The suite of `store`, on one server and with the number of buckets that a store has there if nobody says otherwise.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

/// Where the shared Redis is.
const SHARED: &str = "TEST_REDIS_URL";
/// How many buckets its stores have.
const BUCKETS: usize = 1;

#[path = "store/filters.rs"]
mod filters;
#[path = "store/foreign.rs"]
mod foreign;
#[path = "store/holds.rs"]
mod holds;
#[path = "store/lists.rs"]
mod lists;
#[path = "store/positions.rs"]
mod positions;
mod support;
#[path = "store/tail.rs"]
mod tail;
#[path = "store/workers.rs"]
mod workers;
#[path = "store/world.rs"]
#[expect(dead_code, reason = "it can also do what only the suite of all tests does")]
mod world;
#[path = "store/writes.rs"]
mod writes;
