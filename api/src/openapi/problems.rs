//! What each route answers when it is not a success, and the page that explains it. The examples are the replies that the code
//! gives.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;
use std::time::Duration;

use common::event::{EventTypes, Timestamp, UserEvent};
use common::kafka::PublishError;
use common::store::StoreError;
use common::telemetry::LONGEST_LEVEL;
use utoipa::Modify;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, ResponseBuilder};
use warp::http::header::CONTENT_TYPE;

use crate::keys::Scope;
use crate::memory::Full;
use crate::problem::Problem;

/// Adds the problems to all routes.
pub(super) struct Problems;

impl Modify for Problems {
    fn modify(&self, description: &mut OpenApi) {
        for (path, item) in &mut description.paths.paths {
            if let Some(operation) = &mut item.get {
                add(operation, of_reading(path));
            }
            if let Some(operation) = &mut item.post {
                add(operation, of_publishing(path));
            }
            if let Some(operation) = &mut item.put {
                add(operation, of_log_level());
            }
        }
    }
}

fn of_publishing(path: &str) -> Vec<Problem> {
    let batch = path == "/events/batch";
    let violations = UserEvent::from_request(br#"{"payload":[]}"#, &EventTypes::default()).err();
    let mut problems = vec![
        Problem::InvalidPayload(violations.unwrap_or_default()),
        wrong_parameter("validateOnly", "is \"maybe\": must be true or false"),
        Problem::InvalidHeader { name: "Idempotency-Key", detail: "must be given at most once".into() },
        Problem::BadCoding("gzip"),
        Problem::BodyBroken,
        Problem::BodyTooSlow(Duration::from_secs(10)),
        Problem::BodyTooLarge(if batch { 8 << 20 } else { 256 << 10 }),
        Problem::RatioTooLarge(100),
        Problem::NoRoom(Full { limit: 64 << 20 }),
        Problem::UnsupportedMediaType("the Content-Type is \"text/plain\"; send application/json".into()),
        Problem::UnsupportedCoding("the Content-Encoding is \"compress\"; send gzip, zstd, br or none".into()),
        rate_limited(),
        Problem::TooManyConnections(10_000),
        Problem::HeadersTooLarge(32 << 10),
    ];
    problems.extend(of_keys(Scope::Write));
    problems.extend(if batch {
        vec![Problem::EmptyBatch, Problem::TooManyItems(10_000), Problem::NotAcceptable, Problem::Draining]
    } else {
        let publish =
            |error: fn(String) -> PublishError| Problem::Publish { error: error(String::new()), retry_after: 1 };
        let errors = [PublishError::Refused, PublishError::NotAccepted, PublishError::Unknown].map(publish);
        let too_large = PublishError::TooLarge { reason: String::new(), limit: Some(1_048_588) };
        let too_large = Problem::Publish { error: too_large, retry_after: 1 };
        errors.into_iter().chain([too_large, Problem::KeyReused]).collect()
    });
    problems
}

fn of_log_level() -> Vec<Problem> {
    let mut problems = vec![
        Problem::InvalidLevel(
            "must be a level (error, warn, info, debug, trace, off) or a list such as info,librdkafka=warn".into(),
        ),
        Problem::KeysNeeded,
        Problem::BadCoding("gzip"),
        Problem::BodyBroken,
        Problem::BodyTooSlow(Duration::from_secs(10)),
        Problem::BodyTooLarge(LONGEST_LEVEL),
        Problem::UnsupportedCoding("the Content-Encoding is \"compress\"; send gzip, zstd, br or none".into()),
        rate_limited(),
        Problem::HeadersTooLarge(32 << 10),
    ];
    problems.extend(of_keys(Scope::Admin));
    problems
}

fn rate_limited() -> Problem {
    Problem::RateLimited { retry_after: 2 }
}

fn of_reading(path: &str) -> Vec<Problem> {
    let store = || Problem::Store(StoreError::Unreachable { address: String::new(), reason: String::new() });
    let no_room = || Problem::NoRoomForReply(Full { limit: 64 << 20 });
    let range = || wrong_parameter("limit", "is \"0\": must be a whole number from 1 to 1000");
    let mut problems = match path {
        "/events/processed" => vec![range(), Problem::NotAcceptable, Problem::TooManyExports, no_room(), store()],
        "/api/activities" => vec![range(), no_room(), store()],
        "/lag" => {
            vec![wrong_parameter("group", "is \"g\": there is no such parameter here; this path takes none"), store()]
        }
        "/events/stream" => vec![
            wrong_parameter("eventType", "is \"login\": eventType must be one of: LOGIN, LOGOUT, PRODUCT_VIEW"),
            Problem::InvalidHeader {
                name: "Last-Event-ID",
                detail: "is not an id of this stream; send the last one as it came, or none".into(),
            },
            Problem::TooManyStreams,
            store(),
        ],
        "/events/{eventId}" => vec![
            wrong_parameter("wait", "is \"1h\": must be a duration with a unit, at most 30 s, such as 500ms or 2s"),
            Problem::UnknownEvent,
            Problem::DeadLettered("eventType must be one of: LOGIN, LOGOUT, PRODUCT_VIEW".into()),
            Timestamp::from_millis(1_771_322_400_000).map_or(Problem::UnknownEvent, Problem::Trimmed),
            Problem::TooManyWaits,
            store(),
        ],
        _ => Vec::new(),
    };
    problems.push(Problem::HeadersTooLarge(32 << 10));
    // Whoever watches over the process is neither asked for a key nor counted.
    if !matches!(path, "/health" | "/livez" | "/readyz" | "/metrics") {
        problems.push(rate_limited());
        problems.push(Problem::TooManyConnections(10_000));
        problems.extend(of_keys(Scope::Read));
    }
    problems
}

fn of_keys(scope: Scope) -> [Problem; 3] {
    [Problem::Unauthorized { unknown: false }, Problem::Unauthorized { unknown: true }, Problem::Forbidden(scope)]
}

fn wrong_parameter(name: &str, detail: &str) -> Problem {
    Problem::InvalidParameter { name: name.into(), detail: detail.into() }
}

/// `/docs/problems`, to which the `type` of each problem leads.
pub(crate) static PAGE: LazyLock<String> = LazyLock::new(|| {
    let read = ["/events/processed", "/events/stream", "/events/{eventId}"].map(of_reading);
    let posted = ["/events/batch", "/events/generate"].map(of_publishing);
    let others = vec![Problem::NotFound, Problem::MethodNotAllowed("GET, HEAD")];
    let all = posted.into_iter().chain(read).chain([of_log_level(), others]).flatten();
    let mut rows: Vec<[String; 4]> = all
        .map(|problem| {
            let kind =
                problem.json()["type"].as_str().and_then(|kind| kind.split_once('#')).map_or("", |it| it.1).to_owned();
            [problem.status().as_u16().to_string(), kind, problem.title().into(), problem.detail().into()]
        })
        .collect();
    rows.sort();
    rows.dedup_by(|one, other| one[1] == other[1]);
    let mut page = include_str!("../../assets/problems.html").split("<!-- types -->");
    let mut html = page.next().unwrap_or_default().to_owned();
    for row in rows {
        let [status, kind, title, detail] = row.map(|text| text.replace('&', "&amp;").replace('<', "&lt;"));
        // Writing to a string does not fail.
        _ = writeln!(html, "<tr id=\"{kind}\"><td>{status}<td><code>{kind}</code><td>{title}<td>{detail}");
    }
    html + page.next().unwrap_or_default()
});

/// One response for each status, with an example for each problem of it.
fn add(operation: &mut Operation, problems: Vec<Problem>) {
    let mut by_status: BTreeMap<u16, Vec<Problem>> = BTreeMap::new();
    for problem in problems {
        by_status.entry(problem.status().as_u16()).or_default().push(problem);
    }
    for (status, problems) in by_status {
        operation.responses.responses.insert(status.to_string(), response(&problems).into());
    }
}

fn response(problems: &[Problem]) -> utoipa::openapi::Response {
    let title = problems.first().and_then(|problem| problem.status().canonical_reason()).unwrap_or("Error");
    let examples = problems.iter().map(|problem| {
        let json = problem.json();
        let name = json["type"].as_str().and_then(|kind| kind.rsplit('#').next()).unwrap_or_default();
        let name = if json["detail"] == "the API key is not known" { "unknown-key" } else { name };
        let name = json["outcome"].as_str().map_or(name.to_owned(), |outcome| format!("{name}, {outcome}"));
        (name, ExampleBuilder::new().value(Some(json)).build())
    });
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).examples_from_iter(examples);
    let mut response = ResponseBuilder::new().description(title).content("application/problem+json", content.build());
    let headers: BTreeMap<String, String> = problems.iter().flat_map(headers_of).collect();
    for (name, value) in headers {
        let text = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
        let header = HeaderBuilder::new().schema(text).description(Some(format!("`{value}`")));
        response = response.header(name, header.build());
    }
    response.build()
}

/// The headers that come with it.
fn headers_of(problem: &Problem) -> Vec<(String, String)> {
    let reply = problem.reply();
    let own = reply.headers().iter().filter(|(name, _)| *name != CONTENT_TYPE);
    own.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_explained_where_it_leads() {
        // Each is there as `(StatusCode::…, "type")`.
        let code = include_str!("../problem.rs").split("(StatusCode::").skip(1);
        let types: Vec<&str> = code.filter_map(|rest| rest.lines().next()?.split('"').nth(1)).collect();
        assert!(types.len() > 25 && types.contains(&"store-unavailable"), "{types:?}");
        for kind in types {
            assert!(PAGE.contains(&format!("<tr id=\"{kind}\">")), "{kind} is not explained");
        }
    }

    #[test]
    fn a_title_is_that_of_the_type_and_no_other_type_has_it() {
        let mut titles = BTreeMap::new();
        let reads = ["/events/processed", "/events/stream", "/events/{eventId}"].map(of_reading);
        for problem in reads.into_iter().flatten().chain(of_publishing("/events/batch")).chain(of_log_level()) {
            let json = problem.json();
            let (title, kind) = (json["title"].to_string(), json["type"].to_string());
            assert_eq!(titles.entry(title).or_insert_with(|| kind.clone()), &kind);
        }
        assert!(titles.len() > 20, "{titles:?}");
    }
}
