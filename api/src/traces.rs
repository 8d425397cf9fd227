//! The spans of a request: one of the request itself, and below it one for what it hands to Kafka. The names are those of
//! the semantic conventions for HTTP and for messaging; docs/TRACING.md lists them.
//!
//! The span of a request is the current one of whatever works on it. Requests of probes, and those that meet no route,
//! have none.

use common::event::UserEvent;
use common::kafka::{Answer, Delivered, PublishError};
use common::traces::{Traces, remote};
use futures::StreamExt;
use futures::future::Either;
use futures::stream::BoxStream;
use opentelemetry::context::{FutureExt, WithContext};
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use warp::http::{HeaderMap, Request, StatusCode};

use crate::App;
use crate::route::Route;

/// What is kept of a path, in bytes: enough for every id that there is.
const LONGEST_PATH: usize = 256;

/// A request that is traced. Its span ends when it is answered, or dropped because its client has gone.
pub(crate) struct RequestSpan(Context);

impl RequestSpan {
    /// A request has come.
    pub(crate) fn begin<B>(traces: &Traces, route: Route, request: &Request<B>) -> Option<Self> {
        let (path, route) = (request.uri().path(), route.pattern().filter(|_| route.is_traced())?);
        let method = known(request.method().as_str());
        let span = SpanBuilder::default().with_kind(SpanKind::Server);
        let described = || {
            let attributes = vec![
                KeyValue::new("http.request.method", method.unwrap_or("_OTHER")),
                KeyValue::new("http.route", route),
                KeyValue::new("url.path", path[..path.floor_char_boundary(LONGEST_PATH)].to_owned()),
                KeyValue::new("url.scheme", "http"),
            ];
            (format!("{} {route}", method.unwrap_or("HTTP")), attributes)
        };
        Some(Self(traces.begin(span, &caller(request.headers()), described)))
    }

    /// The head of the reply is there.
    pub(crate) fn answered(self, status: StatusCode) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// Works on a request, within its span if it has one.
pub(crate) fn within<F: Future>(span: Option<&RequestSpan>, work: F) -> Either<F, WithContext<F>> {
    match span {
        None => Either::Left(work),
        Some(RequestSpan(context)) => Either::Right(work.with_context(context.clone())),
    }
}

/// The same work in the span of the request that is being worked on now, which it may outlive.
pub(crate) fn kept<F: Future>(work: F) -> WithContext<F> {
    work.with_current_context()
}

/// Methods by the names that the conventions know: a client must not be able to make names of spans.
fn known(method: &str) -> Option<&'static str> {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"].into_iter().find(|known| *known == method)
}

/// The span of whoever sent the request, as its headers say; a context without any where they don't. More than one
/// `traceparent` says nothing certain; several lines of `tracestate` are one list.
fn caller(headers: &HeaderMap) -> Context {
    let texts = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut parents = texts("traceparent");
    let (Some(parent), None) = (parents.next(), parents.next()) else { return Context::new() };
    let state = texts("tracestate").collect::<Vec<_>>().join(",");
    let caller = remote(parent.trim(), Some(&state));
    caller.map_or_else(Context::new, |caller| Context::new().with_remote_span_context(caller))
}

impl App {
    /// Hands over one event, in a span of its own where its request has one.
    pub(crate) fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> impl Future<Output = Answer> + Send + use<> {
        let id = || vec![KeyValue::new("messaging.message.id", event.event_id.as_str().to_owned())];
        let Some(sending) = Sending::begin(self, id) else {
            return Either::Left(self.publisher.publish(event, json));
        };
        let published = {
            let _current = sending.context.clone().attach();
            self.publisher.publish(event, json)
        };
        Either::Right(async move {
            let result = published.await;
            sending.answered(&result);
            result
        })
    }

    /// The results of a batch, whose events are handed over while they are made, in one span for all of them. `published`
    /// says whether an event was; `None`: it was never to be.
    pub(crate) fn publish_all<T: Send + 'static>(
        &self,
        results: BoxStream<'static, T>,
        published: impl Fn(&T) -> Option<bool> + Send + 'static,
    ) -> BoxStream<'static, T> {
        let Some(sending) = Sending::begin(self, Vec::new) else { return results };
        let context = sending.context.clone();
        let mut all = SendingAll { sending, published: 0, failed: 0 };
        results.inspect(move |result| all.count(published(result))).with_context(context).boxed()
    }
}

/// What is on its way to Kafka. Its span ends with this.
struct Sending {
    context: Context,
    /// What went wrong, by the words of the metrics.
    failure: Option<&'static str>,
}

impl Sending {
    /// `None` where there is no request that is traced.
    fn begin(app: &App, attributes: impl FnOnce() -> Vec<KeyValue>) -> Option<Self> {
        let traces = app.traces.as_ref()?;
        let request = Some(Context::current()).filter(Context::has_active_span)?;
        let topic = &app.config.kafka.topics.events;
        let described = || {
            let mut attributes = attributes();
            attributes.extend([
                KeyValue::new("messaging.system", "kafka"),
                KeyValue::new("messaging.operation.name", "send"),
                KeyValue::new("messaging.operation.type", "send"),
                KeyValue::new("messaging.destination.name", topic.clone()),
            ]);
            (format!("send {topic}"), attributes)
        };
        let context = traces.begin(SpanBuilder::default().with_kind(SpanKind::Producer), &request, described);
        // Until there is an answer; perhaps nobody waits for it.
        Some(Self { context, failure: Some("unknown") })
    }

    fn answered(mut self, result: &Answer) {
        self.failure = match result {
            Ok(Delivered { partition, offset }) => {
                let span = self.context.span();
                span.set_attribute(KeyValue::new("messaging.destination.partition.id", partition.to_string()));
                span.set_attribute(KeyValue::new("messaging.kafka.offset", *offset));
                None
            }
            Err(PublishError::Refused(_) | PublishError::RefusedTimestamp(_)) => Some("refused"),
            Err(PublishError::TooLarge { .. }) => Some("too_large"),
            Err(PublishError::NotAccepted(_)) => Some("not_accepted"),
            Err(PublishError::Unknown(_)) => Some("unknown"),
        };
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let span = self.context.span();
        if let Some(failure) = self.failure {
            span.set_attribute(KeyValue::new("error.type", failure));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// A batch on its way to Kafka.
struct SendingAll {
    sending: Sending,
    published: i64,
    failed: i64,
}

impl SendingAll {
    fn count(&mut self, published: Option<bool>) {
        self.published += i64::from(published == Some(true));
        self.failed += i64::from(published == Some(false));
    }
}

impl Drop for SendingAll {
    fn drop(&mut self) {
        let count = KeyValue::new("messaging.batch.message_count", self.published + self.failed);
        self.sending.context.span().set_attribute(count);
        // Which failure it was is said in each result.
        self.sending.failure = (self.failed > 0).then_some("_OTHER");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use common::event::EventTypes;
    use common::kafka::Published;
    use common::shutdown::Shutdown;
    use common::store::Store;
    use common::testing::{FakePublisher, KeptSpans};
    use futures::stream;
    use opentelemetry::trace::SpanContext;
    use opentelemetry_sdk::trace::SpanData;
    use warp::http::Method;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

    /// Notes in which context events are handed over.
    #[derive(Default, Clone)]
    struct Noting {
        seen: Arc<Mutex<Vec<SpanContext>>>,
        failure: Option<PublishError>,
    }

    impl common::kafka::Publisher for Noting {
        fn publish(&self, event: &UserEvent<'_>, json: &[u8]) -> Published {
            self.seen.lock().unwrap().push(Context::current().span().span_context().clone());
            self.failure.clone().map_or_else(FakePublisher::default, FakePublisher::failing).publish(event, json)
        }
    }

    /// An application that traces into a memory.
    fn app(publisher: &Noting) -> (App, KeptSpans) {
        let config = crate::Config::check(&common::config::parse(["api"], |_| None).unwrap()).unwrap();
        let (traces, spans) = KeptSpans::start();
        let store = Store::new(&config.redis).unwrap();
        let app = App::new(Arc::new(publisher.clone()), store, config, Shutdown::new());
        (App { traces: Some(traces), ..app }, spans)
    }

    fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().method(Method::POST).uri(path);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
    }

    fn begin(app: &App, request: &Request<()>) -> Option<RequestSpan> {
        let route = Route::of(request.method(), request.uri().path());
        RequestSpan::begin(app.traces.as_ref().unwrap(), route, request)
    }

    /// Posts an event with these headers, as the server and the route do.
    async fn post(app: &App, headers: &[(&str, &str)]) {
        let span = begin(app, &request("/events/generate", headers)).unwrap();
        let event = UserEvent::from_request(br#"{"userId":"u","eventType":"LOGIN"}"#, &EventTypes::default()).unwrap();
        let published = within(Some(&span), async { app.publish(&event, b"{}").await }).await;
        span.answered(if published.is_ok() { StatusCode::CREATED } else { StatusCode::SERVICE_UNAVAILABLE });
    }

    fn text(span: &SpanData, name: &str) -> Option<String> {
        span.attributes.iter().find(|pair| pair.key.as_str() == name).map(|pair| pair.value.to_string())
    }

    #[tokio::test]
    async fn a_request_goes_on_with_the_trace_of_its_caller_and_what_it_sends_is_below_it() {
        let publisher = Noting::default();
        let (app, spans) = app(&publisher);
        post(&app, &[("traceparent", &format!("{PARENT}-01")), ("tracestate", "a=1"), ("tracestate", "b=2")]).await;
        let [sent, asked] = spans.all().try_into().unwrap();
        assert_eq!(asked.span_context.trace_id().to_string(), PARENT[3..35]);
        assert_eq!(asked.parent_span_id.to_string(), PARENT[36..]);
        assert_eq!((&*asked.name, asked.span_kind.clone()), ("POST /events/generate", SpanKind::Server));
        assert_eq!(text(&asked, "http.response.status_code").as_deref(), Some("201"));
        assert_eq!(sent.parent_span_id, asked.span_context.span_id());
        assert_eq!((&*sent.name, sent.span_kind.clone()), ("send user-activity-events", SpanKind::Producer));
        assert_eq!(text(&sent, "messaging.kafka.offset").as_deref(), Some("0"));
        assert_eq!(text(&sent, "error.type"), None);
        let [context] = publisher.seen.lock().unwrap().clone().try_into().unwrap();
        assert_eq!(context.span_id(), sent.span_context.span_id(), "the record carries the span that sends it");
        assert_eq!(context.trace_state().header(), "a=1,b=2");
    }

    #[tokio::test]
    async fn a_caller_that_does_not_record_is_followed_and_told_on() {
        let publisher = Noting::default();
        let (app, spans) = app(&publisher);
        post(&app, &[("traceparent", &format!("{PARENT}-00"))]).await;
        assert!(spans.all().is_empty());
        let [context] = publisher.seen.lock().unwrap().clone().try_into().unwrap();
        assert_eq!(context.trace_id().to_string(), PARENT[3..35]);
        assert!(context.is_valid() && !context.is_sampled());
    }

    #[tokio::test]
    async fn a_caller_that_makes_no_sense_is_none() {
        let parent = format!("{PARENT}-01");
        for headers in [&[("traceparent", "00-1-2-01")][..], &[("traceparent", &parent), ("traceparent", &parent)], &[]]
        {
            let (app, spans) = app(&Noting::default());
            post(&app, headers).await;
            let [_, asked] = spans.all().try_into().unwrap();
            assert_ne!(asked.span_context.trace_id().to_string(), PARENT[3..35]);
            assert_eq!(asked.parent_span_id.to_string(), "0000000000000000");
        }
    }

    #[tokio::test]
    async fn a_failure_is_said_by_both_spans() {
        let failure = Some(PublishError::NotAccepted("full".into()));
        let (app, spans) = app(&Noting { failure, ..Noting::default() });
        post(&app, &[]).await;
        let [sent, asked] = spans.all().try_into().unwrap();
        assert_eq!(text(&sent, "error.type").as_deref(), Some("not_accepted"));
        assert_eq!(text(&asked, "error.type").as_deref(), Some("503"));
        assert!([sent, asked].iter().all(|span| span.status == Status::error("")));
    }

    #[tokio::test]
    async fn a_batch_is_sent_in_one_span_that_counts_what_was_published() {
        let publisher = Noting::default();
        let (app, spans) = app(&publisher);
        let app = Arc::new(app);
        let span = begin(&app, &request("/events/batch", &[])).unwrap();
        let sending = Arc::clone(&app);
        let results = stream::iter([Some(true), None, Some(false)]).inspect(move |_| {
            let json = br#"{"userId":"u","eventType":"LOGIN"}"#;
            let event = UserEvent::from_request(json, &EventTypes::default()).unwrap();
            drop(sending.publisher.publish(&event, json));
        });
        let results = within(Some(&span), async { app.publish_all(results.boxed(), |result| *result) }).await;
        span.answered(StatusCode::OK);
        assert_eq!(results.count().await, 3, "also when the reply has begun");
        let [_, sent] = spans.all().try_into().unwrap();
        assert_eq!(text(&sent, "messaging.batch.message_count").as_deref(), Some("2"));
        assert_eq!(text(&sent, "error.type").as_deref(), Some("_OTHER"));
        let seen = publisher.seen.lock().unwrap();
        assert!(seen.len() == 3 && seen.iter().all(|context| context.span_id() == sent.span_context.span_id()));
    }

    #[test]
    fn probes_and_what_meets_no_route_are_not_traced() {
        let (app, _) = app(&Noting::default());
        let traced = |path| begin(&app, &request(path, &[])).is_some();
        assert!(traced("/events/processed") && traced("/events/an-id"));
        assert!(!["/livez", "/readyz", "/health", "/metrics", "/nothing", "/"].into_iter().any(traced));
    }
}
