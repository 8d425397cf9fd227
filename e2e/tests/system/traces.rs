//! One trace from the caller of the API to the event in Redis, as a collector gets it.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use e2e::{PATIENCE, client::Reply, eventually, kafka::Located, sample::event, service::Service, world::World};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use warp::Filter;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// A span, and which service says that it was its own.
#[derive(Debug, Clone)]
struct Received {
    service: String,
    span: Span,
}

impl Received {
    fn text(&self, name: &str) -> String {
        text(&self.span.attributes, name)
    }

    fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    fn links(&self) -> Vec<String> {
        self.span.links.iter().map(|link| hex(&link.span_id)).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let value = attributes.iter().find(|pair| pair.key == name).and_then(|pair| pair.value.clone()?.value);
    match value {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// Takes spans from whoever has the token.
struct Collector {
    endpoint: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    async fn start() -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&received);
        let route = warp::post()
            .and(warp::path!("v1" / "traces"))
            .and(warp::header::exact("content-type", "application/x-protobuf"))
            .and(warp::header::exact("authorization", "Bearer hunter2"))
            .and(warp::body::bytes())
            .map(move |body: bytes::Bytes| {
                kept.lock().unwrap().extend(spans(ExportTraceServiceRequest::decode(body).unwrap()));
                Vec::new()
            });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(warp::serve(route).incoming(listener).run());
        Self { endpoint, received }
    }

    /// A world that traces to here.
    fn world(&self) -> World {
        World::shared()
            .with("OTEL_EXPORTER_OTLP_ENDPOINT", &self.endpoint)
            .with("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")
    }

    /// The spans with this beginning of their name.
    fn named(&self, name: &str) -> Vec<Received> {
        self.received.lock().unwrap().iter().filter(|found| found.span.name.starts_with(name)).cloned().collect()
    }

    async fn one(&self, name: &str) -> Received {
        eventually(&format!("one span {name}"), async || {
            let found: [Received; 1] = self.named(name).try_into().ok().context("not one")?;
            let [found] = found;
            Ok(found)
        })
        .await
    }
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Received> {
    let of_resource = request.resource_spans.into_iter().flat_map(|resource| {
        let service = text(&resource.resource.unwrap_or_default().attributes, "service.name");
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.map(move |span| Received { service: service.clone(), span })
    });
    of_resource.collect()
}

async fn post(api: &Service, path: &str, body: Value, traceparent: &str) -> Reply {
    let request = api.client.request(Method::POST, path).header("content-type", "application/json");
    Reply::of(request.header("traceparent", traceparent).body(body.to_string())).await.unwrap()
}

fn traceparent(found: &Located) -> String {
    String::from_utf8(found.record.header("traceparent").unwrap_or_default().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_followed_from_its_caller_through_kafka_to_the_batch_that_stores_it() {
    let collector = Collector::start().await;
    let world = collector.world();
    let (api, worker) = world.start().await;
    let body = json!({"userId": "u", "eventType": "LOGIN"});
    let request = api.client.publication(body.to_string()).header("traceparent", parent("01"));
    let reply = Reply::of(request.header("tracestate", "vendor=1")).await.unwrap().with_status(201).unwrap();
    let event_id = reply.parse::<Value>().unwrap()["eventId"].as_str().unwrap().to_owned();

    let asked = collector.one("POST /events/generate").await;
    assert_eq!((asked.trace(), asked.parent()), (TRACE.into(), CALLER.into()));
    assert_eq!((asked.service.as_str(), asked.span.kind()), ("user-activity-api", SpanKind::Server));
    assert_eq!(asked.text("http.response.status_code"), "201");

    let sent = collector.one(&format!("send {}", world.topic)).await;
    assert_eq!((sent.trace(), sent.parent()), (TRACE.into(), asked.id()));
    assert_eq!((sent.service.as_str(), sent.span.kind()), ("user-activity-api", SpanKind::Producer));
    assert_eq!(sent.text("messaging.message.id"), event_id);

    let [record] = world.kafka().read(&world.topic).unwrap().try_into().unwrap();
    assert_eq!(traceparent(&record), format!("00-{TRACE}-{}-01", sent.id()));
    assert_eq!(record.record.header("tracestate"), Some(&b"vendor=1"[..]));
    assert_eq!(sent.text("messaging.destination.partition.id"), record.partition.to_string());
    assert_eq!(sent.text("messaging.kafka.offset"), record.offset.to_string());

    let stored = collector.one(&format!("process {}", world.topic)).await;
    assert_eq!((stored.service.as_str(), stored.span.kind()), ("user-activity-worker", SpanKind::Consumer));
    assert_eq!(stored.links(), [sent.id()]);
    assert_eq!(hex(&stored.span.links[0].trace_id), TRACE);
    assert_ne!(stored.trace(), TRACE, "a batch is of many traces, so of none of them");
    assert_eq!(stored.text("messaging.batch.message_count"), "1");
    assert_eq!(stored.text("messaging.consumer.group.name"), world.group);
    for service in [&api, &worker] {
        assert!(!service.process.output().contains("hunter2"), "{}", service.process.output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_sent_in_one_span_that_all_its_records_carry() {
    let collector = Collector::start().await;
    let world = collector.world();
    let (api, _worker) = world.start().await;
    let items =
        [json!({"userId": "a", "eventType": "LOGIN"}), json!({}), json!({"userId": "b", "eventType": "LOGOUT"})];
    post(&api, "/events/batch", items.into(), &parent("01")).await.ok().unwrap();

    let asked = collector.one("POST /events/batch").await;
    let sent = collector.one(&format!("send {}", world.topic)).await;
    assert_eq!((sent.trace(), sent.parent()), (TRACE.into(), asked.id()));
    assert_eq!(sent.text("messaging.batch.message_count"), "2", "one of the three was none");
    let records = world.kafka().read(&world.topic).unwrap();
    let carried: Vec<_> = records.iter().map(traceparent).collect();
    assert_eq!(carried, [(); 2].map(|()| format!("00-{TRACE}-{}-01", sent.id())));
    eventually("both are stored, and linked to it", async || {
        let links: Vec<_> = collector.named("process").iter().flat_map(Received::links).collect();
        ensure!(links == [sent.id(), sent.id()], "{links:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_does_not_record_is_recorded_nowhere_but_keeps_its_trace() {
    let collector = Collector::start().await;
    let world = collector.world().with("OTEL_SERVICE_NAME", "of-mine");
    let (api, worker) = world.start().await;
    let body = json!({"userId": "u", "eventType": "LOGIN"});
    post(&api, "/events/generate", body.clone(), &parent("00")).await.with_status(201).unwrap();
    let [record] = world.kafka().read(&world.topic).unwrap().try_into().unwrap();
    let carried = traceparent(&record);
    assert!(carried.starts_with(&format!("00-{TRACE}-")) && carried.ends_with("-00"), "{carried}");
    eventually("it is stored", async || {
        let metrics = worker.client.get("/metrics").await?.ok()?.text();
        ensure!(metrics.contains("user_activity_events_total{result=\"new\"} 1\n"));
        Ok(())
    })
    .await;
    // What comes after it has been exported, so it would have been.
    post(&api, "/events/generate", body, "not a parent").await.with_status(201).unwrap();
    let stored = collector.one("process").await;
    let sent = collector.one("send").await;
    assert_eq!(stored.links(), [sent.id()]);
    assert_ne!(sent.trace(), TRACE);
    assert_eq!(collector.one("POST").await.parent(), "");
    assert!(collector.received.lock().unwrap().iter().all(|found| found.service == "of-mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_no_event_and_is_said_once() {
    // Nobody listens on the discard port.
    let world = World::shared().with("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let (mut api, mut worker) = world.start().await;
    let said = |service: &Service| service.process.output().matches("traces: the collector does not answer").count();
    eventually("it is said", async || {
        api.client.publish(event(&[])).await?.with_status(201)?;
        ensure!(said(&api) > 0 && said(&worker) > 0, "not yet");
        Ok(())
    })
    .await;
    for service in [&mut api, &mut worker] {
        // What is left is sent for 2 s at most.
        let status = service.process.terminate(PATIENCE / 2).await;
        assert!(status.success(), "{status}: {}", service.process.output());
        assert_eq!(said(service), 1, "{}", service.process.output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_about_a_request_names_its_trace() -> Result<()> {
    let world = World::on("127.0.0.1:9", "redis://127.0.0.1:9")
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        .with("LOG_LEVEL", "info,api=debug")
        .with("LOG_FORMAT", "json");
    let mut api = world.spawn_api();
    api.answers("/livez", 200).await;
    let asked = api.client.request(Method::GET, "/events/some-event").header("traceparent", parent("01"));
    Reply::of(asked).await?.unavailable()?;
    eventually("the failure can be found by its trace", async || {
        let output = api.process.output();
        let mut lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.find(|line| line["trace_id"] == TRACE).context("no line")?;
        ensure!(line["requestId"].is_string(), "{line}");
        Ok(())
    })
    .await;
    Ok(())
}
