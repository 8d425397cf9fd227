//! Test-only: breaks one guard at a time, so that the tests of the whole system can be shown to notice.
//!
//! Without the cargo feature `mutations`, which a release build refuses, [`active`] is a constant `false` and nothing of
//! this is left in the program.

/// A guard that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Bodies are written over.
    ClaimWithoutNx,
    /// Only new events are indexed, and only after the transaction.
    IndexOnlyNew,
    /// Users' entries are written after the transactions whose positions cover them.
    UserIndexOutside,
    /// What was stored is announced on the tail after the transactions that store it.
    TailOutside,
    /// A partition starts at the group's commit, whatever Redis holds.
    StartFromCommit,
    /// Positions are moved before the data is written.
    PositionsAhead,
    /// Positions are moved wherever they stand.
    NoCompare,
    /// A batch is written wherever its positions stand.
    WriteAnyway,
    /// A position that was not where it was left is taken for moved, also by the heartbeat.
    IgnoreMismatch,
    /// Nobody looks whether Redis still holds its positions.
    NoHeartbeatCheck,
    /// A batch goes on before its dead letters are acknowledged.
    DeadLetterNotAwaited,
    /// The API answers before the brokers do.
    ReplyBeforeAck,
    /// A revoked partition is worked on as if it were assigned.
    KeepRevokedState,
}

/// Whether this guard is broken in this process.
#[cfg(not(feature = "mutations"))]
#[must_use]
pub const fn active(_: Mutation) -> bool {
    false
}

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!("the feature `mutations` breaks what the product promises; it is for tests, never for a release");

/// Whether this guard is broken in this process: named by the environment variable `MUTATION`.
#[cfg(feature = "mutations")]
#[must_use]
pub fn active(mutation: Mutation) -> bool {
    static NAMED: std::sync::LazyLock<Option<Mutation>> = std::sync::LazyLock::new(|| {
        let named = match std::env::var("MUTATION").ok()?.as_str() {
            "claim-without-nx" => Mutation::ClaimWithoutNx,
            "index-only-new" => Mutation::IndexOnlyNew,
            "user-index-outside-positions" => Mutation::UserIndexOutside,
            "tail-outside-transaction" => Mutation::TailOutside,
            "start-from-commit" => Mutation::StartFromCommit,
            "positions-ahead" => Mutation::PositionsAhead,
            "no-compare" => Mutation::NoCompare,
            "write-anyway" => Mutation::WriteAnyway,
            "ignore-mismatch" => Mutation::IgnoreMismatch,
            "no-heartbeat-check" => Mutation::NoHeartbeatCheck,
            "dead-letter-not-awaited" => Mutation::DeadLetterNotAwaited,
            "reply-before-ack" => Mutation::ReplyBeforeAck,
            "keep-revoked-state" => Mutation::KeepRevokedState,
            _ => return None,
        };
        log::warn!("MUTATION: {named:?}");
        Some(named)
    });
    *NAMED == Some(mutation)
}
