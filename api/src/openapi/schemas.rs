//! What goes in and comes out, as `/openapi.json` describes it. The routes write most of it by hand, to keep payloads
//! byte for byte; the tests read their replies, and every example, with these types.

use std::collections::BTreeMap;

use common::event::EventTypes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, ToSchema};

/// What the user did.
#[derive(Debug, Serialize, Deserialize)]
pub struct EventType(pub String);

impl utoipa::PartialSchema for EventType {
    fn schema() -> RefOr<Schema> {
        let types = EventTypes::default();
        let names: Vec<&str> = types.names().collect();
        let object =
            ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).description(Some("What the user did."));
        object.enum_values(Some(names)).into()
    }
}

impl ToSchema for EventType {}

/// What a client posts. Other members are ignored.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewEvent {
    /// Whose activity it is: 1 to 256 bytes of UTF-8, not only white space.
    #[schema(min_length = 1, max_length = 256, pattern = r"\S", example = "user-1")]
    pub user_id: String,
    /// What the user did.
    pub event_type: EventType,
    /// Anything, nested at most 128 levels; it comes back byte for byte. `{}` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false, example = json!({"device": "phone"}))]
    pub payload: Option<Map<String, Value>>,
}

/// An event as it is stored.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Made by the service: a UUIDv7, or with an `Idempotency-Key` a UUIDv8. Other producers on the topic may use others.
    #[schema(min_length = 1, max_length = 64)]
    pub event_id: String,
    /// Whose activity it is.
    pub user_id: String,
    /// What the user did.
    pub event_type: EventType,
    /// When the service took it, in UTC with milliseconds.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// As it was posted.
    #[schema(value_type = Object)]
    pub payload: Map<String, Value>,
}

/// How an event was processed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Processing {
    /// When a worker stored it.
    #[schema(format = DateTime)]
    pub processed_at: String,
    /// The topic it came from.
    pub topic: String,
    /// The partition of the topic.
    #[schema(minimum = 0)]
    pub partition: i32,
    /// The offset in the partition.
    #[schema(minimum = 0)]
    pub offset: i64,
    /// The name of the worker.
    pub worker: String,
}

/// An event, and how it was processed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ProcessedEvent {
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// How it was processed.
    pub processing: Processing,
}

/// The brokers have the event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Always true.
    pub success: bool,
    /// For people.
    pub message: String,
    /// The event's id.
    pub event_id: String,
    /// There, and true, when the `Idempotency-Key` was used before and the event is known already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub duplicate: Option<bool>,
    /// With `Prefer: wait=…`: whether a worker has stored the event in that time. If so, `event` is what is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub processed: Option<bool>,
    /// The event; with `duplicate` the first one of this key.
    pub event: Event,
}

/// The event is good. Nothing was published.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Valid {
    /// Always true.
    pub success: bool,
    /// Always true.
    pub valid: bool,
    /// For people.
    pub message: String,
}

/// What became of each item of a batch.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BatchReply {
    /// Items that the brokers have; with `validateOnly`, items that are good.
    #[schema(minimum = 0)]
    pub accepted: u32,
    /// The others.
    #[schema(minimum = 0)]
    pub rejected: u32,
    /// One for each item, in their order.
    pub results: Vec<BatchResult>,
}

/// What became of one item.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BatchResult {
    /// Where the item stands in the batch, from 0.
    #[schema(minimum = 0)]
    pub index: u32,
    /// The status that the item would have had on its own.
    pub status: u16,
    /// The id of the event, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub event_id: Option<String>,
    /// There, and true, when the event was known already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub duplicate: Option<bool>,
    /// As of a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub outcome: Option<String>,
    /// All that is wrong, as sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// The same, for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

/// A page of events in an envelope.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Activities {
    /// The events. There may be fewer than `limit`, or none, although `hasMore` is true.
    pub data: Vec<Event>,
    /// Where the page stands.
    pub pagination: Pagination,
}

/// Where a page stands in its list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pagination {
    /// Most events of this page.
    #[schema(minimum = 1, maximum = 1000)]
    pub limit: u32,
    /// The parameter `cursor` of the next page.
    pub next_cursor: Option<String>,
    /// Whether there is a next page: what tells the end of the list.
    pub has_more: bool,
}

/// What a part of the system last said about itself.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Whether it works.
    pub ok: bool,
    /// One sentence for people: what is the case and, when not well, what to do.
    pub reason: String,
    /// Since when `ok` has had this value.
    #[schema(format = DateTime)]
    pub since: String,
}

/// The whole system.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `degraded`.
    pub status: String,
    /// The brokers: `connected` or `disconnected`.
    pub producer: String,
    /// Redis: `connected` or `disconnected`.
    pub store: String,
    /// The workers: `connected` while at least one is alive.
    pub consumer: String,
    /// Of the API.
    pub version: String,
    /// `producer`, `store` and `consumer`: why, and since when.
    pub checks: BTreeMap<String, Condition>,
    /// The workers that are alive; null when Redis does not say.
    #[serde(default)]
    pub workers: Option<Vec<Worker>>,
    /// What these have dead-lettered since they were started, by reason (the `code` of a violation); null when Redis does
    /// not say.
    #[serde(default, rename = "deadLetters")]
    pub dead_letters: Option<BTreeMap<String, u64>>,
}

/// A worker that is alive.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// The partitions that it has.
    pub partitions: Vec<i32>,
    /// Events it has stored since it was started.
    pub stored: u64,
    /// Records that it has yet to process; null while that is unknown.
    pub lag: Option<i64>,
    /// When it last said so.
    #[schema(format = DateTime)]
    pub seen: String,
}

/// Whether posts can succeed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// `ok` or `not ready`.
    pub status: String,
    /// The brokers.
    pub producer: Condition,
    /// Whether the process is ending.
    pub draining: bool,
}

/// The process lives.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Live {
    /// Always `ok`.
    pub status: String,
}

/// What `LOG_LEVEL` takes: a level, or a list of them by module.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(
    pattern = r"^([A-Za-z0-9_:]{1,64}=)?(error|warn|info|debug|trace|off)(,([A-Za-z0-9_:]{1,64}=)?(error|warn|info|debug|trace|off)){0,9}$"
)]
pub struct LogFilter(pub String);

/// Which lines are logged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLevel {
    /// A level, or a list of them by module.
    pub level: String,
}

/// How far the workers are behind, as they said last. What nobody knows is null.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// The workers' consumer group.
    pub group: Option<String>,
    /// The topic.
    pub topic: String,
    /// Each partition of the topic.
    pub partitions: Vec<PartitionLag>,
    /// Records that are published and not yet processed.
    pub total_lag: Option<i64>,
    /// The age of the oldest of them, in seconds.
    pub lag_seconds: Option<f64>,
    /// Records published a second.
    pub arrival_rate: Option<f64>,
    /// Records processed a second.
    pub drain_rate: Option<f64>,
    /// Until nothing is left, at these rates.
    pub seconds_to_drain: Option<f64>,
    /// How many workers there should be.
    pub recommended_replicas: u32,
    /// Partitions whose lag nobody knows.
    pub unknown_partitions: Vec<i32>,
}

/// How far one partition is behind.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartitionLag {
    /// Its number.
    #[schema(minimum = 0)]
    pub partition: i32,
    /// Records that are published and not yet processed.
    #[schema(minimum = 0)]
    pub lag: Option<i64>,
    /// The age of the oldest of them, in seconds.
    pub lag_seconds: Option<f64>,
    /// Who reads it.
    pub worker: Option<String>,
}

/// Every reply that is not a success (RFC 9457).
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Tells the problems apart: `/docs/problems#…`, which explains it. Compare it as text.
    #[serde(rename = "type")]
    pub kind: String,
    /// What this type of problem is.
    pub title: String,
    /// The status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong here, and what to do.
    pub detail: String,
    /// Always false.
    pub success: bool,
    /// For people.
    pub message: String,
    /// The status in words.
    pub error: String,
    /// Posts without an acknowledgement: `not accepted` was never sent, `unknown` may still arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "unknown")]
    pub outcome: Option<String>,
    /// Events that can't be shown: `unknown`, `dead-lettered` or `trimmed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub state: Option<String>,
    /// Events that are wrong: everything that is, as sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// The same, for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

/// One thing that is wrong with an event.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Violation {
    /// JSON Pointer (RFC 6901) of the member, empty for the whole document.
    pub pointer: String,
    /// `json`, `required`, `type`, `enum`, `length`, `nesting` or `duplicate`.
    pub code: String,
    /// A sentence for people.
    pub detail: String,
}

/// Which events: the parameters that the lists and the stream have in common.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Filter {
    /// Of this user only.
    #[param(inline, min_length = 1, max_length = 256, pattern = r"\S")]
    pub user_id: Option<String>,
    /// Of these types only.
    #[param(inline, style = Form, explode)]
    pub event_type: Option<Vec<EventType>>,
    /// With timestamps from this time on, RFC 3339, 1970 or later; a `+` is written `%2B`.
    #[param(inline, format = DateTime, example = "2026-02-17T10:00:00Z")]
    pub from: Option<String>,
    /// With timestamps before this time.
    #[param(inline, format = DateTime, example = "2026-02-18T10:00:00Z")]
    pub to: Option<String>,
}

/// Which way a list goes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}
