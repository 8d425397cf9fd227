//! Publishing: a record is handed over, and the answer comes when the brokers have it.
//!
//! A backend classifies its errors, at the edge that knows their cause; whoever publishes reads only the class.

use std::time::Duration;

use futures::future::BoxFuture;

use crate::event::UserEvent;
use crate::health::Check;

/// Where a record ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// The partition.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

/// Why a record has no acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The brokers, or the client on their behalf, will never take this record; the same one need not be tried again.
    #[error("the brokers refused the record: {0}")]
    Refused(String),
    /// It is larger than its topic takes.
    #[error("the record is larger than its topic takes, {}: {reason}", max_message_bytes(*limit))]
    TooLarge {
        /// What the client or the broker says.
        reason: String,
        /// The topic's `max.message.bytes`, if the brokers tell.
        limit: Option<usize>,
    },
    /// They will never take it with this timestamp; with another one they may.
    #[error("the brokers refused the record's timestamp: {0}")]
    RefusedTimestamp(String),
    /// It was never sent: the local queue is full, or the process is draining.
    #[error("the record was not accepted: {0}")]
    NotAccepted(String),
    /// It may or may not arrive; the time for an acknowledgement is over.
    #[error("the brokers did not acknowledge the record in time: {0}")]
    Unknown(String),
}

/// The setting of the topic, with its value where that is known.
fn max_message_bytes(limit: Option<usize>) -> String {
    limit.map_or_else(|| "max.message.bytes".to_owned(), |limit| format!("max.message.bytes={limit}"))
}

/// What a publisher holds, and what has come of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Records that have no answer yet, whether or not somebody waits for it.
    pub records: usize,
    /// Their bytes: key, value and what each takes beside them.
    pub bytes: usize,
    /// Bytes of the records that the brokers have acknowledged, ever.
    pub acknowledged: usize,
}

/// What became of a record that was handed over.
pub type Answer = Result<Delivered, PublishError>;

/// The answer, when it comes.
pub type Published = BoxFuture<'static, Answer>;

/// Where the API's events go.
pub trait Publisher: Send + Sync + 'static {
    /// Hands over one event, `json` being its serialised form. The future ends with the acknowledgement of all in-sync
    /// replicas, or the class of what went wrong.
    fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> Published;

    /// What it holds. Nothing, if it keeps no record.
    fn load(&self) -> Load {
        Load::default()
    }

    /// Whether it has room for one more record with so many bytes of key and value now, if nobody else comes first.
    fn has_room(&self, _bytes: usize) -> bool {
        true
    }
}

/// A [`Publisher`] to real brokers, as the process that owns it sees it.
pub trait KafkaBackend: Publisher {
    /// Notes on `check`, every `period`, whether the brokers answer and have the topic. Ends only when this backend can
    /// never publish to these brokers, with the reason for the operator.
    fn watch<'a>(&'a self, check: &'a Check, period: Duration) -> BoxFuture<'a, String>;

    /// Waits until every record handed over so far is delivered or given up. Blocks.
    ///
    /// # Errors
    /// When records are left after `timeout`.
    fn flush(&self, timeout: Duration) -> Result<(), Unflushed>;
}

/// Records are left that no broker has acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unflushed(pub(super) String);
