//! HTTP as a client sees it: requests, replies, and the few things every test reads from them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Body, Method, RequestBuilder, Url, header::HeaderMap};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::eventually;

/// Longer than any time-out of the service: a request that meets this one was forgotten.
const TIMEOUT: Duration = Duration::from_mins(2);

/// Shorter than the service's patience with an idle connection: a request must not meet its end.
const IDLE: Duration = Duration::from_secs(1);

/// The URL of one process and a connection pool. Cloning is cheap and shares the pool.
#[derive(Debug, Clone)]
pub struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// A client of the process that listens on `port`.
    ///
    /// # Panics
    /// When the HTTP client cannot be built.
    #[must_use]
    pub fn new(port: u16) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).pool_idle_timeout(IDLE).build();
        Self {
            base: Url::parse(&format!("http://127.0.0.1:{port}")).expect("a valid URL"),
            http: http.expect("an HTTP client"),
        }
    }

    /// A request to `path`, which may carry a query or be a whole URL (as in a `Link`).
    ///
    /// # Panics
    /// When `path` is not a URL reference.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.base.join(path).expect("a URL reference"))
    }

    /// GET.
    ///
    /// # Errors
    /// When there is no complete reply.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        Reply::of(self.request(Method::GET, path)).await
    }

    /// Posts one event's JSON to `/events/generate`.
    ///
    /// # Errors
    /// When there is no complete reply.
    pub async fn publish(&self, body: impl Into<Body>) -> Result<Reply> {
        Reply::of(self.publication(body)).await
    }

    /// The request that [`Client::publish`] sends, for who needs to change it.
    pub fn publication(&self, body: impl Into<Body>) -> RequestBuilder {
        self.request(Method::POST, "/events/generate").header("content-type", "application/json").body(body)
    }

    /// All processed events, as the list without parameters shows them.
    ///
    /// # Errors
    /// When the reply is not a complete 200 of rows with exactly the five fields.
    pub async fn list(&self) -> Result<Vec<Event>> {
        self.get("/events/processed").await?.ok()?.parse()
    }

    /// Waits until the whole list has `count` rows.
    ///
    /// # Panics
    /// When it does not get there.
    pub async fn listed(&self, count: usize) -> Vec<Event> {
        eventually(&format!("{count} events are listed"), async || {
            let list = self.list().await?;
            ensure!(list.len() == count, "{} of {count}", list.len());
            Ok(list)
        })
        .await
    }

    /// The list page by page, following `Link: rel="next"` from the first page to the last.
    ///
    /// # Errors
    /// When a page is not a complete 200.
    pub async fn pages(&self, limit: usize) -> Result<Vec<Vec<Event>>> {
        self.pages_from(format!("/events/processed?limit={limit}")).await
    }

    /// The same from this page on.
    ///
    /// # Errors
    /// When a page is not a complete 200.
    pub async fn pages_from(&self, first: String) -> Result<Vec<Vec<Event>>> {
        let (mut pages, mut next) = (Vec::new(), Some(first));
        while let Some(path) = next {
            let reply = self.get(&path).await?.ok()?;
            pages.push(reply.parse()?);
            next = reply.next_link();
        }
        Ok(pages)
    }
}

/// A whole reply.
#[derive(Debug)]
pub struct Reply {
    /// Where it came from.
    pub url: Url,
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Vec<u8>,
}

impl Reply {
    /// Sends a request and reads the reply to its end.
    ///
    /// # Errors
    /// When there is no complete reply.
    pub async fn of(request: RequestBuilder) -> Result<Self> {
        let response = request.send().await?;
        let (url, status, headers) = (response.url().clone(), response.status().as_u16(), response.headers().clone());
        Ok(Self { url, status, headers, body: response.bytes().await?.to_vec() })
    }

    /// The reply itself when it is a 200.
    ///
    /// # Errors
    /// When it is not.
    pub fn ok(self) -> Result<Self> {
        self.with_status(200)
    }

    /// The reply itself when it has this status.
    ///
    /// # Errors
    /// When it has another one.
    pub fn with_status(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "{} instead of {status}: {}", self.status, self.text());
        Ok(self)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, empty when it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body read as JSON.
    ///
    /// # Errors
    /// When it is not what `T` wants.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("read {}", self.text()))
    }

    /// The body of an error reply, once it is one in the one format of this service (RFC 9457
    /// and the members of the services it replaces) with the given status.
    ///
    /// # Errors
    /// When it is not.
    pub fn problem(&self, status: u16) -> Result<Value> {
        let text = self.text();
        ensure!(self.status == status, "{} instead of {status}: {text}", self.status);
        let content_type = self.header("content-type");
        ensure!(content_type == "application/problem+json", "content type {content_type}");
        let problem: Value = self.parse()?;
        ensure!(problem["status"] == status, "status member: {text}");
        ensure!(problem["success"] == false, "success member: {text}");
        for member in ["type", "title", "detail", "message", "error"] {
            let words = problem[member].as_str().unwrap_or_default();
            ensure!(!words.trim().is_empty(), "{member} is missing: {text}");
        }
        Ok(problem)
    }

    /// A 503 problem that says when to try again.
    ///
    /// # Errors
    /// When it is not.
    pub fn unavailable(&self) -> Result<Value> {
        let problem = self.problem(503)?;
        let seconds = self.header("retry-after").parse::<u32>();
        ensure!(matches!(seconds, Ok(1..)), "Retry-After: {:?}", self.header("retry-after"));
        Ok(problem)
    }

    /// Where `Link: <…>; rel="next"` (RFC 8288) points to.
    #[must_use]
    pub fn next_link(&self) -> Option<String> {
        self.link("next")
    }

    /// Where the `Link` header points to for this relation: path and query, for any replica.
    #[must_use]
    pub fn link(&self, relation: &str) -> Option<String> {
        let links = self.header("link").split(", ").filter_map(|link| link.strip_prefix('<')?.split_once(">; rel="));
        let (target, _) = { links }.find(|(_, name)| name.trim_matches('"') == relation)?;
        let url = self.url.join(target).ok()?;
        Some(format!("{}?{}", url.path(), url.query().unwrap_or_default()))
    }
}

/// A row of the list: exactly the five fields.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// Made by the service.
    pub event_id: String,
    /// As posted.
    pub user_id: String,
    /// As posted.
    pub event_type: String,
    /// RFC 3339, UTC, milliseconds: sorts as text.
    pub timestamp: String,
    /// The payload's bytes, unparsed.
    #[serde(deserialize_with = "verbatim")]
    pub payload: String,
}

/// `GET /events/{eventId}`: the five fields and where they came from, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Processed {
    event_id: String,
    user_id: String,
    event_type: String,
    timestamp: String,
    #[serde(deserialize_with = "verbatim")]
    payload: String,
    /// Where it came from.
    pub processing: Processing,
}

impl Processed {
    /// Its row of the list.
    #[must_use]
    pub fn row(&self) -> Event {
        let Self { event_id, user_id, event_type, timestamp, payload, .. } = self.clone();
        Event { event_id, user_id, event_type, timestamp, payload }
    }
}

/// Where an event came from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Processing {
    /// RFC 3339, UTC, milliseconds.
    pub processed_at: String,
    /// Of the record.
    pub topic: String,
    /// Of the record.
    pub partition: i32,
    /// Of the record.
    pub offset: i64,
    /// The name of the worker that stored it.
    pub worker: String,
}

/// Reads any JSON value as the very text it was written as.
///
/// # Errors
/// When it is not JSON.
pub fn verbatim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(|raw| raw.get().to_owned())
}
