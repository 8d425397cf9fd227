//! The store on a real Redis: `scripts/test integration` names one in `TEST_REDIS_URL`. Each test has a key prefix of
//! its own; those that freeze, fill, empty or kill a Redis start one of their own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

/// Where the shared Redis is.
const SHARED: &str = "TEST_REDIS_URL";
/// How many buckets its stores have.
const BUCKETS: usize = 16;

mod buckets;
mod filters;
mod foreign;
mod holds;
mod lists;
mod memory;
mod outages;
mod positions;
mod settings;
#[path = "../support/mod.rs"]
mod support;
mod tail;
mod tls;
mod workers;
mod world;
mod writes;
