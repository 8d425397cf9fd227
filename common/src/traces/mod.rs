//! Distributed tracing: spans on their way to a collector, and the context that goes with a request and its records (W3C
//! Trace Context). docs/TRACING.md says what is traced.
//!
//! Whoever traces has a [`Traces`]; where there is none, nothing here is reached. The context of a request is the current
//! one of the thread that works on it (`opentelemetry::Context`), so that a record ([`inject`]) and a line of the log
//! ([`current_trace_id`]) find it without being handed it.
//!
//! Tracing never holds up what is traced: a span that has ended goes into a bounded queue or, when that is full, is
//! dropped. A thread of its own sends what is in the queue; `export` says when that begins and ceases to work.

mod export;
mod headers;
mod sampling;

use std::time::Duration;

use opentelemetry::trace::{Span, SpanBuilder, TraceContextExt, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider};

use self::export::Collector;
pub use self::headers::{from_record, inject, remote};
use self::sampling::sampler;
use crate::config::TraceSettings;

/// Spans that may wait to be sent; at about 1 KB each.
const QUEUE: usize = 8192;
/// Spans of one request to the collector.
const BATCH: usize = 512;
/// How long a span waits for company.
const DELAY: Duration = Duration::from_secs(1);
/// To send one batch, attempts that failed included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// To send what is left when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Links of one span; the specification's default, whatever the environment says.
const MOST_LINKS: u32 = 128;

/// Makes spans. Copies share one queue.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Starts to send spans, from within a runtime. Nothing is connected yet.
    ///
    /// # Errors
    /// When the system's certificates can't be read, or no client can be made of the settings.
    pub fn start(settings: &TraceSettings, program: &'static str) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(settings, EXPORT_TIMEOUT)?)
            .with_endpoint(settings.endpoint.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(sampler(settings.sampling))
            .with_resource(resource(settings, program))
            .with_max_links_per_span(MOST_LINKS);
        log::info!("traces go to {}", settings.endpoint);
        Ok(Self::of(provider.build(), program))
    }

    /// Spans of a given provider.
    #[must_use]
    pub fn of(provider: SdkTracerProvider, program: &'static str) -> Self {
        let scope = InstrumentationScope::builder(program).with_version(env!("CARGO_PKG_VERSION")).build();
        Self { tracer: provider.tracer_with_scope(scope), provider }
    }

    /// Begins a span, which is described (its name and attributes) only if it is recorded: making that costs far more than
    /// the decision, for which it does not count. The span is the active one of the context that is given, and ends with
    /// that at the latest.
    #[must_use]
    pub fn begin(
        &self,
        span: SpanBuilder,
        parent: &Context,
        described: impl FnOnce() -> (String, Vec<KeyValue>),
    ) -> Context {
        let mut span = span.start_with_context(&self.tracer, parent);
        if span.is_recording() {
            let (name, attributes) = described();
            span.update_name(name);
            span.set_attributes(attributes);
        }
        parent.with_span(span)
    }

    /// Sends what is left, for at most two seconds.
    pub async fn flush(self) {
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            log::warn!("traces: the last spans may be lost: {error}");
        }
    }
}

/// What is said of this process. What is set explicitly comes last, because the last one counts.
fn resource(settings: &TraceSettings, program: &'static str) -> Resource {
    let given = settings.attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let name = settings.service_name.iter().map(|name| KeyValue::new("service.name", name.clone()));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name(program)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(given)
        .with_attributes(name)
        .build()
}

/// The trace of what this thread is working on, in hexadecimal digits; `None` outside of one.
#[must_use]
pub fn current_trace_id() -> Option<String> {
    Context::map_current(|context| {
        context.has_active_span().then(|| context.span().span_context().trace_id().to_string())
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::testing::KeptSpans;

    #[test]
    fn a_span_that_is_not_recorded_is_not_described_either() {
        let (traces, spans) = KeptSpans::start();
        for (flags, recorded) in [("01", true), ("00", false)] {
            let parent =
                remote(&format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"), None).unwrap();
            let is_described = Cell::new(false);
            let described = || {
                is_described.set(true);
                ("name".to_owned(), vec![KeyValue::new("key", "value")])
            };
            let parent = Context::new().with_remote_span_context(parent);
            drop(traces.begin(SpanBuilder::default(), &parent, described));
            assert_eq!(is_described.get(), recorded, "{flags}");
        }
        let [span] = spans.all().try_into().unwrap();
        assert_eq!((&*span.name, &*span.attributes), ("name", &[KeyValue::new("key", "value")][..]));
    }
}
