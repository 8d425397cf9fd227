//! Fakes for tests of the layers above the seam where the real thing is tested.

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

use crate::event::UserEvent;
use crate::kafka::{Delivered, PublishError, Published, Publisher};
use crate::traces::Traces;

/// The variables that a command reads but an example environment does not list with their defaults.
#[must_use]
pub fn not_in_example(command: &clap::Command, example: &str) -> Vec<String> {
    let listed = |name: &str, default: &str| {
        let value =
            |line: &'_ str| Some(line.trim_start_matches('#').strip_prefix(name)?.strip_prefix('=')?.to_owned());
        example.lines().filter_map(value).any(|value| default.is_empty() || value == default)
    };
    let setting = |arg: &clap::Arg| {
        let default = arg.get_default_values().first().and_then(|value| value.to_str()).unwrap_or_default();
        Some((arg.get_env()?.to_str()?.to_owned(), default.to_owned()))
    };
    let settings = command.get_arguments().filter_map(setting);
    settings
        .filter(|(name, default)| !listed(name, default))
        .map(|(name, default)| format!("{name}={default}"))
        .collect()
}

/// A publisher that keeps what it is given, or fails each record with one error.
#[derive(Debug, Default, Clone)]
pub struct FakePublisher {
    published: Arc<Mutex<Vec<Vec<u8>>>>,
    failure: Option<PublishError>,
}

impl FakePublisher {
    /// A publisher that answers every record with `error`.
    #[must_use]
    pub fn failing(error: PublishError) -> Self {
        Self { failure: Some(error), ..Self::default() }
    }

    /// The JSON of every event so far.
    #[must_use]
    pub fn published(&self) -> Vec<Vec<u8>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Publisher for FakePublisher {
    fn publish(&self, _: &UserEvent<'_>, json: &[u8]) -> Published {
        let result = match &self.failure {
            Some(error) => Err(error.clone()),
            None => {
                let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
                published.push(json.to_vec());
                Ok(Delivered { partition: 0, offset: i64::try_from(published.len()).unwrap_or(i64::MAX) - 1 })
            }
        };
        Box::pin(std::future::ready(result))
    }
}

/// A collector that keeps the spans it is sent, each as soon as it ends.
#[derive(Debug, Default, Clone)]
pub struct KeptSpans(Arc<Mutex<Vec<SpanData>>>);

impl KeptSpans {
    /// What makes the spans, with the default sampler, and where they are kept.
    #[must_use]
    pub fn start() -> (Traces, Self) {
        let kept = Self::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
        (Traces::of(provider, "test"), kept)
    }

    /// The spans so far, in the order in which they ended.
    #[must_use]
    pub fn all(&self) -> Vec<SpanData> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl SpanExporter for KeptSpans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(batch);
        Ok(())
    }
}
