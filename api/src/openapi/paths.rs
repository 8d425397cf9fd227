//! Each route: its parameters, and its replies but for the problems, which `problems` adds.

use super::schemas::{
    Activities, BatchReply, Event, Health, Lag, Live, LogLevel, NewEvent, ProcessedEvent, Published, Ready,
};

/// Publish an event.
///
/// Answers once all in-sync replicas have the event. The body has at most `HTTP_MAX_BODY` bytes, 256 KiB unless set. With an `Idempotency-Key` a request that is sent again makes the
/// same event.
#[utoipa::path(post, path = "/events/generate", operation_id = "publishEvent", tag = "events",
    params(
        ("validateOnly" = inline(Option<bool>), Query, description = "`true`: say what is wrong, publish nothing."),
        ("Idempotency-Key" = inline(Option<String>), Header, min_length = 1, max_length = 255, pattern = r#"^([!#-~][ -~]*|"([ !#-\[\]-~]|\\["\\])+"( *;[ -~]*)?)$"#,
            description = "Names the request: 1 to 255 visible ASCII characters, in quotes (RFC 9651) or bare. One user's events of the same key are one event; with another type or payload it is a 422, once the first is processed. The order of members and white space don't matter."),
        ("Prefer" = inline(Option<String>), Header, example = "wait=2",
            description = "`wait=SECONDS` (RFC 7240): answer when a worker has stored the event, with what is stored, or after this time, at most 30 s."),
    ),
    request_body(content = NewEvent, example = json!({"userId": "user-1", "eventType": "LOGIN", "payload": {"device": "phone"}})),
    responses((status = 200, description = "With `validateOnly`: the event is good", body = super::schemas::Valid,
        example = json!({"success": true, "valid": true, "message": "Event is valid; nothing was published"})),
        (status = 201, description = "The brokers have it", body = Published,
        headers(
            ("Location" = String, description = "Where the event is shown once it is processed"),
            ("Preference-Applied" = String, description = "The `wait` that was kept"),
        ),
        example = json!({"success": true, "message": "Event published successfully", "eventId": "01976a5e-7a3c-7fff-8000-0123456789ab",
            "event": {"eventId": "01976a5e-7a3c-7fff-8000-0123456789ab", "userId": "user-1", "eventType": "LOGIN",
                "timestamp": "2026-02-17T10:00:00.000Z", "payload": {"device": "phone"}}}))),
)]
pub fn publish_event() {}

/// Publish an event.
///
/// The same as `POST /events/generate`.
#[utoipa::path(post, path = "/api/activities", operation_id = "publishActivity", tag = "activities",
    params(
        ("validateOnly" = inline(Option<bool>), Query, description = "`true`: say what is wrong, publish nothing."),
        ("Idempotency-Key" = inline(Option<String>), Header, min_length = 1, max_length = 255, pattern = r#"^([!#-~][ -~]*|"([ !#-\[\]-~]|\\["\\])+"( *;[ -~]*)?)$"#,
            description = "As of `POST /events/generate`."),
        ("Prefer" = inline(Option<String>), Header, example = "wait=2", description = "As of `POST /events/generate`."),
    ),
    request_body(content = NewEvent, example = json!({"userId": "user-1", "eventType": "LOGOUT"})),
    responses((status = 200, description = "With `validateOnly`: the event is good", body = super::schemas::Valid,
        example = json!({"success": true, "valid": true, "message": "Event is valid; nothing was published"})),
        (status = 201, description = "The brokers have it", body = Published,
        headers(
            ("Location" = String, description = "Where the event is shown once it is processed"),
            ("Preference-Applied" = String, description = "The `wait` that was kept"),
        ),
        example = json!({"success": true, "message": "Event published successfully", "eventId": "01976a5e-7a3c-7fff-8000-0123456789ac",
            "event": {"eventId": "01976a5e-7a3c-7fff-8000-0123456789ac", "userId": "user-1", "eventType": "LOGOUT",
                "timestamp": "2026-02-17T10:00:01.000Z", "payload": {}}}))),
)]
pub fn publish_activity() {}

/// Publish many events.
///
/// At most `HTTP_MAX_BATCH_ITEMS` items (10,000 unless set) and `HTTP_MAX_BATCH_BODY` bytes unpacked (8 MiB unless set), and of
/// one item `HTTP_MAX_BODY`. Each item has a result of its own, in the order of the items: some may be published
/// and others not. A 503 may end the results of NDJSON: this process is ending, send the rest again. Read a reply in
/// NDJSON while you send: a client that reads nothing for 15 s is disconnected.
#[utoipa::path(post, path = "/events/batch", operation_id = "publishEvents", tag = "events",
    params(
        ("validateOnly" = inline(Option<bool>), Query, description = "`true`: say what is wrong, publish nothing."),
        ("Idempotency-Key" = inline(Option<String>), Header, min_length = 1, max_length = 255, pattern = r#"^([!#-~][ -~]*|"([ !#-\[\]-~]|\\["\\])+"( *;[ -~]*)?)$"#,
            description = "Names the request. An item that is sent again under the same key makes the same event, wherever it stands: it is known by its user, its type and the value of its payload. Equal items of one batch are different events, told apart by their order: send all of these again, or none."),
    ),
    request_body(description = "A JSON array of events, or one event a line",
        content(
            (Vec<NewEvent> = "application/json", example = json!([{"userId": "user-1", "eventType": "LOGIN"}, {"userId": ""}])),
            (String = "application/x-ndjson", example = "{\"userId\":\"user-1\",\"eventType\":\"LOGIN\"}\n{\"userId\":\"user-2\",\"eventType\":\"LOGOUT\"}\n"),
        )),
    responses((status = 200, description = "What became of each item; as NDJSON a result a line, while the request is still being read",
        content(
            (BatchReply = "application/json", example = json!({"accepted": 1, "rejected": 1, "results": [
                {"index": 0, "status": 201, "eventId": "01976a5e-7a3c-7fff-8000-0123456789ab"},
                {"index": 1, "status": 400,
                    "errors": ["userId is required and must be a non-empty string", "eventType is required and must be a string"],
                    "violations": [
                        {"pointer": "/userId", "code": "required", "detail": "userId is required and must be a non-empty string"},
                        {"pointer": "/eventType", "code": "required", "detail": "eventType is required and must be a string"}]}]})),
            (String = "application/x-ndjson", example = "{\"index\":0,\"status\":201,\"eventId\":\"01976a5e-7a3c-7fff-8000-0123456789ab\"}\n"),
        ))),
)]
pub fn publish_events() {}

/// List what has been processed.
///
/// All of it, streamed, without `limit` and `cursor`; a page with one of them. Events are in the order of their
/// timestamps, equal ones in one fixed order. A list that breaks off is never closed: one that looks complete is.
#[utoipa::path(get, path = "/events/processed", operation_id = "listEvents", tag = "events",
    params(
        super::schemas::Filter,
        ("order" = inline(Option<super::schemas::Order>), Query, description = "Oldest first, unless it is `desc`."),
        ("limit" = inline(Option<u32>), Query, minimum = 1, maximum = 1000, description = "Most events of a page; 100 where there is a `cursor` only."),
        ("cursor" = inline(Option<String>), Query, description = "Where the page begins: as it is in `Link`, for the same filters."),
        ("raw" = inline(Option<bool>), Query, description = "Of CSV only. `true`: every cell as it is stored. Otherwise a cell that a spreadsheet would take for a formula, because it begins with `=`, `+`, `-`, `@`, a tab or a line break, has a `'` in front."),
    ),
    responses((status = 200, description = "The events",
        headers(
            ("Link" = String, description = "Of a page: `rel=\"next\"` where there is one, `rel=\"first\"` (RFC 8288). Relative to the request"),
            ("Trimmed-Before" = String, description = "Earlier events are missing, because the store was full"),
            ("Vary" = String, description = "`accept`"),
        ),
        content(
            (Vec<Event> = "application/json", example = json!([{"eventId": "01976a5e-7a3c-7fff-8000-0123456789ab", "userId": "user-1",
                "eventType": "LOGIN", "timestamp": "2026-02-17T10:00:00.000Z", "payload": {"device": "phone"}}])),
            (String = "application/x-ndjson", example = "{\"eventId\":\"01976a5e-7a3c-7fff-8000-0123456789ab\",\"userId\":\"user-1\",\"eventType\":\"LOGIN\",\"timestamp\":\"2026-02-17T10:00:00.000Z\",\"payload\":{}}\n"),
            (String = "text/csv", example = "eventId,userId,eventType,timestamp,payload\r\n01976a5e-7a3c-7fff-8000-0123456789ab,user-1,LOGIN,2026-02-17T10:00:00.000Z,{}\r\n"),
        ))),
)]
pub fn list_events() {}

/// A page of what has been processed, in an envelope.
///
/// Go by `hasMore`, never by the length of `data`: a page may have fewer events than `limit`, or none, and still have a next
/// one.
#[utoipa::path(get, path = "/api/activities", operation_id = "listActivities", tag = "activities",
    params(
        super::schemas::Filter,
        ("order" = inline(Option<super::schemas::Order>), Query, description = "Oldest first, unless it is `desc`."),
        ("limit" = inline(Option<u32>), Query, minimum = 1, maximum = 1000, description = "Most events of the page, 100 unless said."),
        ("cursor" = inline(Option<String>), Query, description = "The `nextCursor` of the page before, for the same filters."),
    ),
    responses((status = 200, description = "The page", body = Activities,
        headers(("Link" = String, description = "`rel=\"next\"` where there is one, `rel=\"first\"` (RFC 8288). Relative to the request")),
        example = json!({"data": [{"eventId": "01976a5e-7a3c-7fff-8000-0123456789ab", "userId": "user-1", "eventType": "LOGIN",
            "timestamp": "2026-02-17T10:00:00.000Z", "payload": {}}], "pagination": {"limit": 100, "nextCursor": null, "hasMore": false}}))),
)]
pub fn list_activities() {}

/// One event, and how it was processed.
#[utoipa::path(get, path = "/events/{eventId}", operation_id = "showEvent", tag = "events",
    params(
        ("eventId" = String, Path, min_length = 1, max_length = 64, description = "As the post answered it."),
        ("wait" = inline(Option<String>), Query, pattern = "^([1-9][0-9]{0,3}ms|[1-9]s|[12][0-9]s|30s)$", example = "2s",
            description = "Answer as soon as the event is processed, or after this time: a duration with a unit, at most 30 s."),
    ),
    responses((status = 200, description = "The event", body = ProcessedEvent,
        example = json!({"eventId": "01976a5e-7a3c-7fff-8000-0123456789ab", "userId": "user-1", "eventType": "LOGIN",
            "timestamp": "2026-02-17T10:00:00.000Z", "payload": {"device": "phone"},
            "processing": {"processedAt": "2026-02-17T10:00:00.004Z", "topic": "user-activity-events", "partition": 3, "offset": 41, "worker": "worker-1"}}))),
)]
pub fn show_event() {}

/// What is processed now, as server-sent events.
///
/// Each event is a frame whose `data` is its JSON and whose `id` is a position: a reader that comes back with it as
/// `Last-Event-ID`, to whichever replica, misses nothing. `event: reset` says that events are missing here all the
/// same, `event: end` why the stream ends; a comment comes at least every 15 s.
///
/// A client that names `text/event-stream` in `Accept`, as each `EventSource` does, gets a stream that ends at once, with
/// `retry` and `event: end`, instead of 429 and 503, and `event: reset` instead of 400 for an unknown `Last-Event-ID`.
#[utoipa::path(get, path = "/events/stream", operation_id = "streamEvents", tag = "events",
    params(
        super::schemas::Filter,
        ("Last-Event-ID" = inline(Option<String>), Header, description = "Where to go on. Without it the stream begins now."),
    ),
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = String,
        headers(("Cache-Control" = String, description = "`no-store`")),
        example = "retry: 1000\nid: AAEC\n\nid: AAED\ndata: {\"eventId\":\"01976a5e-7a3c-7fff-8000-0123456789ab\",\"userId\":\"user-1\",\"eventType\":\"LOGIN\",\"timestamp\":\"2026-02-17T10:00:00.000Z\",\"payload\":{}}\n\n")),
)]
pub fn stream_events() {}

/// How the whole system is.
#[utoipa::path(get, path = "/health", operation_id = "health", tag = "operation",
    responses(
        (status = 200, description = "Brokers and store answer, and a worker is alive", body = Health,
            example = json!({"status": "ok", "producer": "connected", "store": "connected", "consumer": "connected", "version": "0.1.0",
                "checks": {"producer": {"ok": true, "reason": "the brokers answer", "since": "2026-02-17T10:00:00.000Z"},
                    "store": {"ok": true, "reason": "Redis answers", "since": "2026-02-17T10:00:00.000Z"},
                    "consumer": {"ok": true, "reason": "workers that are alive: 1", "since": "2026-02-17T10:00:00.000Z"}},
                "workers": [{"name": "worker-1", "partitions": [0, 1, 2, 3, 4, 5], "stored": 42, "lag": 0, "seen": "2026-02-17T10:00:05.000Z"}],
                "deadLetters": {"enum": 3, "json": 1}})),
        (status = 503, description = "One of them does not; `checks` says why", body = Health,
            example = json!({"status": "degraded", "producer": "connected", "store": "connected", "consumer": "disconnected", "version": "0.1.0",
                "checks": {"producer": {"ok": true, "reason": "the brokers answer", "since": "2026-02-17T10:00:00.000Z"},
                    "store": {"ok": true, "reason": "Redis answers", "since": "2026-02-17T10:00:00.000Z"},
                    "consumer": {"ok": false, "reason": "no worker has sent a heartbeat for 15 s; start user-activity-worker", "since": "2026-02-17T10:00:00.000Z"}}})),
    ),
)]
pub fn health() {}

/// Whether the process lives.
#[utoipa::path(get, path = "/livez", operation_id = "live", tag = "operation",
    responses((status = 200, description = "It does", body = Live, example = json!({"status": "ok"}))),
)]
pub fn live() {}

/// Whether posts can succeed.
#[utoipa::path(get, path = "/readyz", operation_id = "ready", tag = "operation",
    responses(
        (status = 200, description = "They can", body = Ready,
            example = json!({"status": "ok", "producer": {"ok": true, "reason": "the brokers answer", "since": "2026-02-17T10:00:00.000Z"}, "draining": false})),
        (status = 503, description = "The brokers don't answer, or the process is ending", body = Ready,
            example = json!({"status": "not ready", "producer": {"ok": false, "reason": "no broker answers", "since": "2026-02-17T10:00:00.000Z"}, "draining": false})),
    ),
)]
pub fn ready() {}

/// How far the workers are behind.
#[utoipa::path(get, path = "/lag", operation_id = "lag", tag = "operation",
    responses((status = 200, description = "Each partition", body = Lag,
        example = json!({"group": "user-activity-consumer-group", "topic": "user-activity-events", "partitions": [
                {"partition": 0, "lag": 0, "lagSeconds": 0.0, "worker": "worker-1"}, {"partition": 1, "lag": 12, "lagSeconds": 0.1, "worker": "worker-1"}],
            "totalLag": 12, "lagSeconds": 0.1, "arrivalRate": 100.0, "drainRate": 140.0, "secondsToDrain": 0.3,
            "recommendedReplicas": 1, "unknownPartitions": []}))),
)]
pub fn lag() {}

/// Metrics, for Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "operation",
    responses((status = 200, description = "In its text format", content_type = "text/plain", body = String,
        example = "# TYPE user_activity_http_requests_total counter\nuser_activity_http_requests_total{route=\"/events/generate\",method=\"POST\",status=\"201\"} 42\n")),
)]
pub fn metrics() {}

/// Change which lines this process logs.
///
/// It holds until the next change or the end of the process. Only with API keys, and with one that has the scope `admin`.
#[utoipa::path(put, path = "/log-level", operation_id = "setLogLevel", tag = "operation",
    request_body(content = super::schemas::LogFilter, content_type = "text/plain", description = "Of any `Content-Type`", example = "info,api=debug"),
    responses((status = 200, description = "What is in force now", body = LogLevel, example = json!({"level": "info,api=debug"}))),
)]
pub fn set_log_level() {}
