//! What the API and the worker share, in the order an event passes it:
//!
//! 1. [`event`]: bytes become a [`event::UserEvent`], or the list of what is wrong with them;
//! 2. [`kafka`]: client settings, topics, the record format and the publisher;
//! 3. [`store`]: the model in Redis: keys, the atomic write, positions, pages;
//! 4. [`config`], [`telemetry`], [`metrics`], [`traces`], [`health`], [`probe`], [`shutdown`]: how a process is set up, watched and ended.
//!
//! Nothing in here knows a route or the consume loop.

pub mod admin_port;
pub mod config;
pub mod event;
pub mod health;
pub mod kafka;
pub mod metrics;
pub mod mutation;
pub mod probe;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod testing;
pub mod traces;
