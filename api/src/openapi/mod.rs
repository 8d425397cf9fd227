//! `/openapi.json`: what the API takes and answers, as OpenAPI 3.1, in the order in which it is put together:
//!
//! 1. [`schemas`]: the shapes;
//! 2. [`paths`]: each route with its parameters and replies;
//! 3. `problems`: what each route answers when it is not a success, made of the [problems](crate::problem) themselves.

pub mod paths;
mod problems;
pub mod schemas;

use std::sync::LazyLock;

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{Modify, OpenApi};

pub(crate) use self::problems::PAGE as PROBLEMS_PAGE;
use self::problems::Problems;

/// The description, as JSON.
pub(crate) static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    // Strings, numbers and maps with names always serialise.
    Description::openapi().to_json().unwrap_or_default()
});

/// All routes.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "user-activity",
        description = "Takes events of user activity and shows what has been processed. \
            Whatever is not a success is a problem of RFC 9457, but for the 503 of `/health` and `/readyz`, which is in the shape of their 200.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "Where this description comes from")),
    tags(
        (name = "events", description = "In, and out again"),
        (name = "activities", description = "The same under the paths of an older service"),
        (name = "operation", description = "How the system is"),
    ),
    paths(
        paths::publish_event, paths::publish_events, paths::list_events, paths::show_event, paths::stream_events,
        paths::publish_activity, paths::list_activities,
        paths::health, paths::live, paths::ready, paths::lag, paths::metrics, paths::set_log_level,
    ),
    components(schemas(schemas::Problem)),
    modifiers(&Problems, &Present, &Keys, &Common, &Heads),
)]
struct Description;

/// A parameter is there or not; it is never null, which is what utoipa makes of an `Option`.
struct Present;

impl Modify for Present {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let items = description.paths.paths.values_mut();
        let operations = items.flat_map(|item| [&mut item.get, &mut item.post, &mut item.put]).flatten();
        for parameter in operations.flat_map(|operation| &mut operation.parameters).flatten() {
            let kind = match &mut parameter.schema {
                Some(RefOr::T(Schema::Object(object))) => &mut object.schema_type,
                Some(RefOr::T(Schema::Array(array))) => &mut array.schema_type,
                Some(RefOr::T(Schema::OneOf(one_of))) => {
                    let some = one_of.items.pop();
                    parameter.schema = some;
                    continue;
                }
                _ => continue,
            };
            if let SchemaType::Array(kinds) = kind
                && let Some(some) = kinds.iter().find(|kind| **kind != Type::Null)
            {
                *kind = SchemaType::Type(some.clone());
            }
        }
    }
}

/// API keys, which are asked for only where they are configured.
struct Keys;

impl Modify for Keys {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let header = ApiKey::Header(ApiKeyValue::new("X-Api-Key"));
        if let Some(components) = &mut description.components {
            components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
            components.add_security_scheme("apiKey", SecurityScheme::ApiKey(header));
        }
        let none: [&str; 0] = [];
        let one = |name| SecurityRequirement::new(name, none);
        description.security = Some(vec![SecurityRequirement::default(), one("bearer"), one("apiKey")]);
    }
}

/// Headers that come with all replies.
struct Common;

/// Which paths are not counted: whoever watches over the process must not be turned away.
const UNCOUNTED: [&str; 4] = ["/health", "/livez", "/readyz", "/metrics"];

impl Modify for Common {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let id = ("X-Request-Id", "The one of the request, or a new one: how log lines name this request.");
        let counted = [
            ("RateLimit", "Only where `RATE_LIMIT` is set: `r` requests are left for the next `t` seconds."),
            ("RateLimit-Policy", "Only where `RATE_LIMIT` is set: `q` requests in `w` seconds."),
        ];
        for (path, item) in &mut description.paths.paths {
            let named = counted.iter().filter(|_| !UNCOUNTED.contains(&path.as_str())).chain([&id]);
            let named: Vec<_> = named.collect();
            let operations = [&mut item.get, &mut item.post, &mut item.put].into_iter().flatten();
            for reply in operations.flat_map(|operation| operation.responses.responses.values_mut()) {
                let RefOr::T(reply) = reply else { continue };
                for (name, text) in &named {
                    let kind = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
                    let header = HeaderBuilder::new().schema(kind).description(Some(*text)).build();
                    reply.headers.insert((*name).into(), header);
                }
            }
        }
    }
}

/// Each `GET` but the stream also takes `HEAD`, which is answered without a body.
struct Heads;

impl Modify for Heads {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        for (path, item) in &mut description.paths.paths {
            let Some(get) = item.get.as_ref().filter(|_| path != "/events/stream") else { continue };
            let mut head = get.clone();
            head.summary = head.summary.map(|summary| format!("Only the head: {summary}"));
            head.description = Some("As `GET`, but without a body.".into());
            head.operation_id = head.operation_id.map(|id| format!("{id}Head"));
            for reply in head.responses.responses.values_mut() {
                if let RefOr::T(reply) = reply {
                    reply.content.clear();
                }
            }
            item.head = Some(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::Value;

    use super::*;
    use crate::route::Route;

    const METHODS: [&str; 4] = ["get", "head", "post", "put"];

    fn document() -> Value {
        serde_json::from_str(&DOCUMENT).unwrap()
    }

    /// Every operation: its path, its method, itself.
    fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
        let paths = document["paths"].as_object().unwrap().iter();
        let all = paths.flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, it)| (&**path, &**method, it))
        });
        all.filter(|(_, method, _)| METHODS.contains(method)).collect()
    }

    #[test]
    fn every_route_is_described_with_its_methods() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        for (route, methods) in Route::all().filter(|(route, _)| !Route::pages().any(|page| page == *route)) {
            for method in methods.split(", ") {
                let described = &document["paths"][route][method.to_ascii_lowercase()];
                assert!(described.is_object(), "{method} {route} is not described");
            }
        }
        for (path, method, _) in operations(&document) {
            let allowed = Route::all().find(|(route, _)| *route == path).map_or("", |(_, methods)| methods);
            assert!(allowed.contains(&method.to_ascii_uppercase()), "{method} {path} is described, but not there");
        }
    }

    /// Reads the JSON with the type that describes it.
    fn read(name: &str, json: &Value) -> Result<(), serde_json::Error> {
        fn of<T: DeserializeOwned>(json: &Value) -> Result<(), serde_json::Error> {
            serde_json::from_value::<T>(json.clone()).map(drop)
        }
        match name {
            "Activities" => of::<schemas::Activities>(json),
            "BatchReply" => of::<schemas::BatchReply>(json),
            "Event[]" => of::<Vec<schemas::Event>>(json),
            "Health" => of::<schemas::Health>(json),
            "Lag" => of::<schemas::Lag>(json),
            "Live" => of::<schemas::Live>(json),
            "LogFilter" => of::<schemas::LogFilter>(json),
            "LogLevel" => of::<schemas::LogLevel>(json),
            "NewEvent" => of::<schemas::NewEvent>(json),
            "ProcessedEvent" => of::<schemas::ProcessedEvent>(json),
            "Problem" => of::<schemas::Problem>(json),
            "Published" => of::<schemas::Published>(json),
            "Ready" => of::<schemas::Ready>(json),
            // Holds a bad item on purpose.
            "NewEvent[]" => of::<Vec<Value>>(json),
            "Valid" => of::<schemas::Valid>(json),
            "string" => of::<String>(json),
            other => panic!("no type for {other}"),
        }
    }

    fn name_of(schema: &Value) -> String {
        let reference =
            |schema: &Value| schema["$ref"].as_str().map(|path| path.rsplit('/').next().unwrap().to_owned());
        reference(schema)
            .or_else(|| reference(&schema["items"]).map(|items| items + "[]"))
            .unwrap_or_else(|| schema["type"].as_str().unwrap().to_owned())
    }

    #[test]
    fn every_body_has_an_example_and_every_example_parses() {
        let document = document();
        let mut read_examples = 0;
        for (path, method, operation) in operations(&document) {
            let responses = operation["responses"].as_object().unwrap().values();
            for body in responses.chain(Some(&operation["requestBody"]).filter(|body| body.is_object())) {
                assert_eq!(body.get("content").is_none(), method == "head", "{method} {path}");
                for (kind, media) in body["content"].as_object().into_iter().flatten() {
                    let several =
                        media["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]);
                    let examples: Vec<&Value> = several.chain(media.get("example")).collect();
                    assert!(!examples.is_empty(), "{method} {path} {kind} has no example");
                    for example in examples {
                        let name = name_of(&media["schema"]);
                        read(&name, example)
                            .unwrap_or_else(|error| panic!("{method} {path} {name}: {error}\n{example}"));
                        read_examples += 1;
                    }
                }
            }
        }
        assert!(read_examples > 50, "only {read_examples}");
    }

    #[test]
    fn every_reply_is_described_with_the_headers_that_all_have() {
        let document = document();
        for (path, method, operation) in operations(&document) {
            for (status, reply) in operation["responses"].as_object().unwrap() {
                let headers = reply["headers"].as_object().unwrap();
                assert!(headers.contains_key("X-Request-Id"), "{method} {path} {status}");
                assert_eq!(headers.contains_key("RateLimit"), !UNCOUNTED.contains(&path), "{method} {path} {status}");
            }
        }
    }

    #[test]
    fn references_lead_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    members.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let (document, mut found) = (document(), Vec::new());
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
