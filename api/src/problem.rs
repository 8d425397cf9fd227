//! Every reply that is not a success: problem details (RFC 9457), with the members that the Node services' clients read
//! (`success`, `message`, `error`, `errors`). The one place where an error class becomes a status.

use std::borrow::Cow;

use common::event::{Timestamp, Violation};
use common::kafka::PublishError;
use common::store::StoreError;
use serde::Serialize;
use warp::Reply;
use warp::http::header::{
    ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use warp::http::{Response, StatusCode};

use crate::keys::Scope;
use crate::memory::Full;
use crate::request_id::current;

/// What went wrong, in the terms of HTTP.
#[derive(Debug)]
pub enum Problem {
    /// The body is not an event.
    InvalidPayload(Vec<Violation>),
    /// A query parameter is unknown, repeated or out of range.
    InvalidParameter {
        /// Its name.
        name: String,
        /// What it said, what is allowed.
        detail: String,
    },
    /// A header does not say what it should.
    InvalidHeader {
        /// Its name.
        name: &'static str,
        /// What is wrong, what is allowed.
        detail: String,
    },
    /// The `Idempotency-Key` stands for an event with another type or payload.
    KeyReused,
    /// The list can't be had in a form that the client takes.
    NotAcceptable,
    /// The request shows no key, or one that is not known.
    Unauthorized {
        /// Whether it shows one.
        unknown: bool,
    },
    /// The key may not do this: the scope that is missing.
    Forbidden(Scope),
    /// The route is closed as long as nobody can be told from others: without API keys.
    KeysNeeded,
    /// The body is not a log level.
    InvalidLevel(String),
    /// No such route.
    NotFound,
    /// No such event, or not yet, or not any more.
    UnknownEvent,
    /// The event could not be processed: why.
    DeadLettered(String),
    /// The event is older than what was trimmed early, because Redis was full.
    Trimmed(Timestamp),
    /// The route has other methods: these.
    MethodNotAllowed(&'static str),
    /// The body is larger than this many bytes.
    BodyTooLarge(usize),
    /// The headers are larger than this many bytes.
    HeadersTooLarge(usize),
    /// The body came too slowly: it was not there after this time.
    BodyTooSlow(std::time::Duration),
    /// The body broke off.
    BodyBroken,
    /// The body is of another type than JSON, or encoded.
    UnsupportedMediaType(String),
    /// The body's `Content-Encoding` is not one of ours.
    UnsupportedCoding(String),
    /// The body is not what its `Content-Encoding` says.
    BadCoding(&'static str),
    /// The body becomes more than so many times larger when it is unpacked.
    RatioTooLarge(usize),
    /// A batch without an item.
    EmptyBatch,
    /// This process is ending; what has not been read of a batch is not read any more.
    Draining,
    /// A batch of more than this many items.
    TooManyItems(usize),
    /// The event has no acknowledgement.
    Publish {
        /// Why.
        error: PublishError,
        /// When to try again, in seconds.
        retry_after: u64,
    },
    /// The store has no answer.
    Store(StoreError),
    /// The client makes too many requests.
    RateLimited {
        /// When to try again, in seconds.
        retry_after: u64,
    },
    /// Others are reading the full list.
    TooManyExports,
    /// Large bodies hold all the memory that they may; nothing of this one was published.
    NoRoom(Full),
    /// Large bodies hold all the memory that they may; this reply would be one more.
    NoRoomForReply(Full),
    /// Others are reading the stream.
    TooManyStreams,
    /// All connections, this many, are in use.
    TooManyConnections(usize),
    /// Others are waiting for events to be processed.
    TooManyWaits,
}

/// Where a record may be when the reply is not 201.
#[derive(Debug, Clone, Copy, Serialize)]
enum Outcome {
    #[serde(rename = "not accepted")]
    NotAccepted,
    #[serde(rename = "unknown")]
    Unknown,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: Cow<'a, str>,
    success: bool,
    message: Cow<'a, str>,
    error: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    violations: &'a [Violation],
}

/// The page that explains the types; each has its fragment.
pub(crate) const TYPES: &str = "/docs/problems";

const PUBLISH_FAILED: &str = "Failed to publish event";

impl Problem {
    /// Status and the last part of `type`.
    fn class(&self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidPayload(_) => (StatusCode::BAD_REQUEST, "invalid-payload"),
            Self::InvalidParameter { .. } => (StatusCode::BAD_REQUEST, "invalid-parameter"),
            Self::InvalidHeader { .. } => (StatusCode::BAD_REQUEST, "invalid-header"),
            Self::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "body-broken"),
            Self::BadCoding(_) => (StatusCode::BAD_REQUEST, "bad-content-encoding"),
            Self::EmptyBatch => (StatusCode::BAD_REQUEST, "empty-batch"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Self::TooManyItems(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-many-items"),
            Self::RatioTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "ratio-too-large"),
            Self::UnsupportedCoding(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-content-encoding"),
            Self::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            // Not 401: there is no key that would help.
            Self::KeysNeeded => (StatusCode::FORBIDDEN, "keys-needed"),
            Self::InvalidLevel(_) => (StatusCode::BAD_REQUEST, "invalid-level"),
            Self::NotAcceptable => (StatusCode::NOT_ACCEPTABLE, "not-acceptable"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found"),
            Self::UnknownEvent => (StatusCode::NOT_FOUND, "unknown-event"),
            Self::DeadLettered(_) => (StatusCode::GONE, "dead-lettered"),
            Self::Trimmed(_) => (StatusCode::GONE, "trimmed"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed"),
            Self::BodyTooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "body-too-slow"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type"),
            Self::HeadersTooLarge(_) => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large"),
            Self::Publish { error: PublishError::TooLarge { .. }, .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "publish-too-large")
            }
            // The brokers won't ever take this record: the service can't do what it is for, trying again is no use.
            Self::Publish { error: PublishError::Refused(_) | PublishError::RefusedTimestamp(_), .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "publish-refused")
            }
            Self::Publish { .. } => (StatusCode::SERVICE_UNAVAILABLE, "publish-unavailable"),
            Self::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable"),
            Self::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate-limited"),
            Self::TooManyExports => (StatusCode::TOO_MANY_REQUESTS, "too-many-exports"),
            Self::NoRoom(_) | Self::NoRoomForReply(_) => (StatusCode::SERVICE_UNAVAILABLE, "no-room"),
            Self::TooManyStreams => (StatusCode::TOO_MANY_REQUESTS, "too-many-streams"),
            Self::TooManyConnections(_) => (StatusCode::SERVICE_UNAVAILABLE, "too-many-connections"),
            Self::TooManyWaits => (StatusCode::TOO_MANY_REQUESTS, "too-many-waits"),
        }
    }

    /// What this type of problem is, whatever the request (RFC 9457, section 3.1.3).
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Self::InvalidPayload(_) => "The body is not a valid event",
            Self::InvalidParameter { .. } => "A query parameter is not valid",
            Self::InvalidHeader { .. } => "A header is not valid",
            Self::KeyReused => "The Idempotency-Key was used for another event",
            Self::BodyBroken => "The body broke off",
            Self::BadCoding(_) => "The body is not what its Content-Encoding says",
            Self::EmptyBatch => "The batch has no item",
            Self::Draining => "The process is ending",
            Self::TooManyItems(_) => "The batch has too many items",
            Self::RatioTooLarge(_) => "The body is much larger once it is unpacked",
            Self::UnsupportedCoding(_) => "The Content-Encoding is not supported",
            Self::Unauthorized { .. } => "A valid API key is needed",
            Self::Forbidden(_) => "The API key lacks a scope",
            Self::KeysNeeded => "The route is closed while API keys are off",
            Self::InvalidLevel(_) => "The body is not a log level",
            Self::NotAcceptable => "Accept allows no form of the reply",
            Self::NotFound => "There is no such route",
            Self::UnknownEvent => "There is no such event",
            Self::DeadLettered(_) => "The event is a dead letter",
            Self::Trimmed(_) => "The event was trimmed early",
            Self::MethodNotAllowed(_) => "The route does not take this method",
            Self::BodyTooSlow(_) => "The body came too slowly",
            Self::BodyTooLarge(_) => "The body is too large",
            Self::UnsupportedMediaType(_) => "The Content-Type is not supported",
            Self::HeadersTooLarge(_) => "The headers are too large",
            Self::Publish { error: PublishError::Refused(_) | PublishError::RefusedTimestamp(_), .. } => {
                "The brokers refused the event"
            }
            Self::Publish { error: PublishError::TooLarge { .. }, .. } => "The event is larger than the topic takes",
            Self::Publish { .. } => "The brokers have not acknowledged the event",
            Self::Store(_) => "The store can't be read",
            Self::RateLimited { .. } => "The client makes too many requests",
            Self::TooManyExports => "Too many full lists are being read",
            Self::NoRoom(_) | Self::NoRoomForReply(_) => "Large bodies hold all the memory that they may",
            Self::TooManyStreams => "Too many streams are open",
            Self::TooManyConnections(_) => "All connections are in use",
            Self::TooManyWaits => "Too many requests wait for events",
        }
    }

    /// What has become of an event that can't be shown.
    fn state(&self) -> Option<&'static str> {
        match self {
            Self::UnknownEvent => Some("unknown"),
            Self::DeadLettered(_) => Some("dead-lettered"),
            Self::Trimmed(_) => Some("trimmed"),
            _ => None,
        }
    }

    /// What became of a record, in a word.
    pub(crate) fn outcome_word(&self) -> Option<&'static str> {
        self.outcome().map(|outcome| match outcome {
            Outcome::NotAccepted => "not accepted",
            Outcome::Unknown => "unknown",
        })
    }

    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Publish { error: PublishError::NotAccepted(_), .. }
            | Self::NoRoom(_)
            | Self::Draining
            | Self::TooManyConnections(_) => Some(Outcome::NotAccepted),
            Self::Publish { error: PublishError::Unknown(_), .. } => Some(Outcome::Unknown),
            _ => None,
        }
    }

    /// What clients see. The causes of failures inside are logged, not shown.
    pub(crate) fn detail(&self) -> Cow<'_, str> {
        match self {
            Self::InvalidPayload(violations) => {
                violations.iter().map(|v| &*v.detail).collect::<Vec<_>>().join("; ").into()
            }
            Self::InvalidParameter { name, detail } => format!("the query parameter {name:?} {detail}").into(),
            Self::InvalidHeader { name, detail } => format!("the header {name} {detail}").into(),
            Self::KeyReused => {
                "the Idempotency-Key was used for an event with another eventType or payload, which stays as it is; use a new key".into()
            }
            Self::Unauthorized { unknown: false } => {
                "an API key is needed, as Authorization: Bearer … or X-Api-Key".into()
            }
            Self::Unauthorized { unknown: true } => "the API key is not known".into(),
            Self::Forbidden(scope) => format!("the API key has no scope {}", scope.name()).into(),
            Self::KeysNeeded => "this route is closed while API keys are off; set API_KEYS_FILE, with a key that has the scope admin".into(),
            Self::InvalidLevel(what) => format!("the log level {what}").into(),
            Self::NotAcceptable => "lists come as application/json, application/x-ndjson or text/csv, results of a batch as one of the first two".into(),
            Self::NotFound => "there is no such path; /docs lists the routes".into(),
            Self::UnknownEvent => {
                "no event with this id is stored: it is unknown, not processed yet, or expired".into()
            }
            Self::DeadLettered(reason) => format!("the event could not be processed and is a dead letter: {reason}").into(),
            Self::Trimmed(before) => {
                format!("the store was full, and events before {before} were trimmed early; this one is as old").into()
            }
            Self::MethodNotAllowed(allowed) => format!("this path takes {allowed}").into(),
            Self::BodyTooLarge(limit) => format!("the body is larger than the limit of {limit} bytes").into(),
            Self::HeadersTooLarge(limit) => format!("the headers are larger than the limit of {limit} bytes").into(),
            Self::BodyTooSlow(limit) => {
                format!("the body was not complete after {}", humantime::format_duration(*limit)).into()
            }
            Self::BodyBroken => "the body ended before it was complete".into(),
            Self::UnsupportedMediaType(what) | Self::UnsupportedCoding(what) => what.as_str().into(),
            Self::BadCoding(coding) => format!("the body is not what its Content-Encoding says, {coding}").into(),
            Self::RatioTooLarge(limit) => {
                format!("the body becomes more than {limit} times larger when it is unpacked, which is the limit").into()
            }
            Self::Draining => "this process is ending; send the rest again".into(),
            Self::EmptyBatch => "the batch has no item; send a JSON array or NDJSON of at least one event".into(),
            Self::TooManyItems(limit) => {
                format!("the batch has more than the limit of {limit} items; send the rest in another one").into()
            }
            Self::Publish { error: PublishError::Refused(_) | PublishError::RefusedTimestamp(_), .. } => {
                "the brokers refused this event; sending it again won't help".into()
            }
            Self::Publish { error: PublishError::TooLarge { limit: Some(limit), .. }, .. } => {
                format!("the event is larger than the topic takes, whose max.message.bytes is {limit}; send a smaller one").into()
            }
            Self::Publish { error: PublishError::TooLarge { limit: None, .. }, .. } => {
                "the event is larger than the topic takes, as its max.message.bytes says; send a smaller one".into()
            }
            Self::Publish { error: PublishError::NotAccepted(_), .. } => {
                "the event was not accepted, because too many are waiting for the brokers; send it again later".into()
            }
            Self::Publish { error: PublishError::Unknown(_), .. } => {
                "the brokers did not acknowledge the event in time; it may still arrive".into()
            }
            Self::RateLimited { retry_after } => {
                format!("this client makes more requests than RATE_LIMIT allows; try again in {retry_after} s").into()
            }
            Self::TooManyStreams => {
                "half of the connections that HTTP_MAX_CONNECTIONS allows are streams already; try again later".into()
            }
            Self::TooManyWaits => {
                "half of the connections that HTTP_MAX_CONNECTIONS allows wait for events already; ask without ?wait=, or try again later".into()
            }
            Self::TooManyExports => "two full lists are being read already; wait, or read in pages with ?limit=".into(),
            Self::NoRoom(Full { limit }) | Self::NoRoomForReply(Full { limit }) => {
                format!("large bodies hold {limit} bytes already, which is HTTP_BODY_MEMORY; try again later").into()
            }
            Self::Store(_) => "the store can't be read at the moment; try again later".into(),
            Self::TooManyConnections(limit) => {
                format!("all {limit} connections (HTTP_MAX_CONNECTIONS) are in use; nothing was published; try again").into()
            }
        }
    }

    /// Logs what the client is not shown.
    pub(crate) fn log(&self) {
        match self {
            Self::Publish { error: error @ (PublishError::Refused(_) | PublishError::RefusedTimestamp(_)), .. } => {
                log::error!(requestId = current(); "{error}")
            }
            // An outage fails every request; the checks say it once. What is too large is the client's to correct.
            Self::Publish { error, .. } => log::debug!(requestId = current(); "{error}"),
            Self::Store(error) => log::debug!(requestId = current(); "{error}"),
            _ => {}
        }
    }
}

impl Problem {
    /// Its status.
    pub(crate) fn status(&self) -> StatusCode {
        self.class().0
    }

    /// The reply's body.
    pub(crate) fn json(&self) -> serde_json::Value {
        // Strings, numbers and lists of them always serialise.
        serde_json::to_value(self.body()).unwrap_or_default()
    }

    /// The reply, about which nothing is logged: the description shows it, too.
    pub(crate) fn reply(&self) -> warp::reply::Response {
        let status = self.status();
        // Strings, numbers and lists of them always serialise.
        let json = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = Response::new(json).into_response();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self {
            Self::MethodNotAllowed(allowed) => drop(headers.insert(ALLOW, HeaderValue::from_static(allowed))),
            // RFC 6750, section 3: an error is named only to who has shown a key.
            Self::Unauthorized { unknown } => {
                let challenge = if *unknown {
                    r#"Bearer realm="user-activity", error="invalid_token""#
                } else {
                    r#"Bearer realm="user-activity""#
                };
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            // RFC 6750, section 3.1.
            Self::Forbidden(scope) => {
                let scope = scope.name();
                let challenge = format!(r#"Bearer realm="user-activity", error="insufficient_scope", scope="{scope}""#);
                // Names of scopes are words.
                headers.extend(HeaderValue::try_from(challenge).ok().map(|challenge| (WWW_AUTHENTICATE, challenge)));
            }
            // What the client is still sending would be taken for its next request.
            Self::BodyTooLarge(_)
            | Self::BodyTooSlow(_)
            | Self::BodyBroken
            | Self::BadCoding(_)
            | Self::RatioTooLarge(_) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::NoRoom(_) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::RateLimited { retry_after } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after));
            }
            Self::Publish { retry_after, .. } if status == StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after));
            }
            // RFC 7694, section 3.
            Self::UnsupportedCoding(_) => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, zstd, br"));
            }
            _ if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }

    fn body(&self) -> Body<'_> {
        let (status, slug) = self.class();
        let violations: &[Violation] = if let Self::InvalidPayload(violations) = self { violations } else { &[] };
        let detail = self.detail();
        let message = match self {
            Self::InvalidPayload(_) => "Invalid request payload".into(),
            Self::Publish { .. } | Self::NoRoom(_) => PUBLISH_FAILED.into(),
            _ => detail.clone(),
        };
        Body {
            kind: format!("{TYPES}#{slug}"),
            title: self.title(),
            status: status.as_u16(),
            message,
            detail,
            success: false,
            error: status.canonical_reason().unwrap_or("Error"),
            outcome: self.outcome(),
            state: self.state(),
            errors: violations.iter().map(|v| &*v.detail).collect(),
            violations,
        }
    }
}

impl Reply for Problem {
    fn into_response(self) -> warp::reply::Response {
        self.log();
        self.reply()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_the_scope_is_told_which_one_is_needed() {
        let reply = Problem::Forbidden(Scope::Read).reply();
        assert_eq!(
            reply.headers()[WWW_AUTHENTICATE],
            r#"Bearer realm="user-activity", error="insufficient_scope", scope="read""#
        );
        // No key would help here.
        assert!(!Problem::KeysNeeded.reply().headers().contains_key(WWW_AUTHENTICATE));
    }
}
