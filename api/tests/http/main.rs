//! The routes and the server, on publishers that do as they are told and a store that is away. No server is needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod batch;
mod routes;
mod server;
mod support;
