//! How spans reach the collector: by the client library of HTTP that is here anyway, on the runtime that is here anyway.
//!
//! The processor of spans has a thread of its own, without a runtime, on which no asynchronous client works. So each
//! request is handed over to the runtime of the process, and the thread waits for it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;

use crate::config::TraceSettings;
use crate::health::Check;

/// The longest reply that is read: nothing is expected in it but a sentence, if anything.
const LONGEST_REPLY: usize = 64 * 1024;

/// A client of the collector, which says when that can't be reached and when it can again.
#[derive(Debug)]
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: HeaderMap,
    timeout: Duration,
    runtime: Handle,
    check: Arc<Check>,
}

impl Collector {
    /// A client with these settings, on the present runtime.
    pub(super) fn new(settings: &TraceSettings, timeout: Duration) -> anyhow::Result<Self> {
        let encrypted = settings.endpoint.scheme_str() == Some("https");
        let tls = HttpsConnectorBuilder::new();
        let tls = if encrypted {
            tls.with_provider_and_native_roots(ring::default_provider())?
        } else {
            // A machine without any certificates can still do without encryption.
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let config = config.with_safe_default_protocol_versions()?;
            tls.with_tls_config(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
        };
        let mut headers = settings.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(tls.https_or_http().enable_http1().build()),
            headers,
            timeout,
            runtime: Handle::try_current()?,
            check: Arc::new(Check::new("traces", "none sent yet")),
        })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        // In place of those that the library takes from the environment by itself: a flag wins.
        *request.headers_mut() = self.headers.clone();
        let sent = self.client.request(request);
        let exchange = async move {
            let (head, body) = sent.await?.into_parts();
            let body = Limited::new(body, LONGEST_REPLY).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        let timeout = self.timeout;
        let timed = self.runtime.spawn(async move { tokio::time::timeout(timeout, exchange).await });
        let result: Result<Response<Bytes>, HttpError> = timed.await?.unwrap_or_else(|late| Err(late.into()));
        match &result {
            Ok(reply) if reply.status().is_success() => self.check.up("the collector takes spans"),
            Ok(reply) => self.check.down(&format!("the collector refuses spans: {}", reply.status())),
            Err(error) => self.check.down(&format!("the collector does not answer: {}", causes(&**error))),
        }
        result
    }
}

/// An error with what is behind it: the first alone says "client error".
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
