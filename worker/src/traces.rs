//! The span of a batch: its events come from many requests, so it belongs to none of their traces, but is linked to each.
//!
//! Here is remembered who published the records that are pending, by where they are on the topic: a batch is cut, parted
//! and forgotten by partitions and offsets ([`crate::recorder::Pending`]).

use std::collections::BTreeMap;

use common::store::{Receipt, StoreError};
use common::traces::{Traces, from_record};
use opentelemetry::trace::{Link, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use rdkafka::Message;

use crate::commit::{NextOffset, Offset};

/// Makes the spans of batches.
pub struct BatchTraces {
    traces: Traces,
    topic: String,
    group: String,
    publishers: BTreeMap<(i32, Offset), SpanContext>,
}

impl BatchTraces {
    /// For a member of this group that reads this topic.
    #[must_use]
    pub fn new(traces: Traces, topic: &str, group: &str) -> Self {
        Self { traces, topic: topic.to_owned(), group: group.to_owned(), publishers: BTreeMap::new() }
    }

    /// A record is to become a stored event.
    pub fn read(&mut self, record: &impl Message) {
        if let Some(publisher) = from_record(record) {
            self.publishers.insert((record.partition(), Offset(record.offset())), publisher);
        }
    }

    /// A partition was displaced or revoked: what is pending of it will be read again, here or elsewhere.
    pub fn forget(&mut self, partition: i32) {
        self.publishers.retain(|(of, _), _| *of != partition);
    }

    /// A batch of `events` that goes as far as these offsets is on its way to Redis.
    pub fn begin(&mut self, ends: impl Iterator<Item = (i32, NextOffset)>, events: usize) -> BatchSpan {
        let mut publishers: Vec<_> = ends.flat_map(|(partition, end)| self.take(partition, end)).collect();
        // The number of links is limited: none for a span that nobody keeps, where there are others.
        if publishers.iter().any(SpanContext::is_sampled) {
            publishers.retain(SpanContext::is_sampled);
        }
        let span = SpanBuilder::default().with_kind(SpanKind::Consumer);
        let span = span.with_links(publishers.into_iter().map(Link::with_context).collect());
        let described = || {
            let attributes = vec![
                KeyValue::new("messaging.system", "kafka"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.name", self.topic.clone()),
                KeyValue::new("messaging.consumer.group.name", self.group.clone()),
                KeyValue::new("messaging.batch.message_count", i64::try_from(events).unwrap_or(i64::MAX)),
            ];
            (format!("process {}", self.topic), attributes)
        };
        BatchSpan(self.traces.begin(span, &Context::new(), described))
    }

    fn take(&mut self, partition: i32, end: NextOffset) -> Vec<SpanContext> {
        let before = (partition, Offset(i64::MIN))..(partition, Offset(end.0));
        self.publishers.extract_if(before, |_, _| true).map(|(_, publisher)| publisher).collect()
    }
}

/// A batch on its way to Redis.
pub struct BatchSpan(Context);

impl BatchSpan {
    /// Redis has acknowledged it, or not.
    pub fn ended(self, result: &Result<Receipt, StoreError>) {
        let span = self.0.span();
        if result.is_err() {
            // What Redis said may be long, and is in the log.
            span.set_attribute(KeyValue::new("error.type", "store"));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

#[cfg(test)]
mod tests {
    use common::testing::KeptSpans;
    use opentelemetry_sdk::trace::SpanData;
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;

    fn traces() -> (BatchTraces, KeptSpans) {
        let (traces, spans) = KeptSpans::start();
        (BatchTraces::new(traces, "events", "group"), spans)
    }

    /// A record whose publisher has the span id 1000 + `offset`.
    fn record(partition: i32, offset: i64, flags: &str) -> OwnedMessage {
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-{:016x}-{flags}", 0x1000 + offset);
        let headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some(&parent) });
        OwnedMessage::new(None, None, "events".into(), Timestamp::NotAvailable, partition, offset, Some(headers))
    }

    fn linked(span: &SpanData) -> Vec<String> {
        span.links.iter().map(|link| link.span_context.span_id().to_string()[12..].to_owned()).collect()
    }

    #[test]
    fn a_batch_is_linked_to_the_publishers_of_its_records_and_to_no_others() {
        let (mut traces, spans) = traces();
        for (partition, offset) in [(0, 1), (0, 2), (0, 3), (1, 4), (2, 5)] {
            traces.read(&record(partition, offset, "01"));
        }
        traces.read(&record(0, 1, "01"));
        traces.forget(2);
        let ends = |ends: &[(i32, i64)]| ends.iter().map(|(of, end)| (*of, NextOffset(*end))).collect::<Vec<_>>();
        traces.begin(ends(&[(0, 3), (1, 5), (2, 6)]).into_iter(), 3).ended(&Ok(Receipt::default()));
        traces.begin(ends(&[(0, 4)]).into_iter(), 1).ended(&Err(StoreError::Corrupt("no answer".into())));
        let [first, second] = spans.all().try_into().unwrap();
        assert_eq!(linked(&first), ["1001", "1002", "1004"]);
        assert_eq!(
            (&*first.name, first.span_kind.clone(), first.status),
            ("process events", SpanKind::Consumer, Status::Unset)
        );
        assert_eq!(linked(&second), ["1003"]);
        assert_eq!(second.status, Status::error(""));
        assert!(traces.publishers.is_empty());
    }

    #[test]
    fn spans_that_nobody_keeps_are_not_linked_where_others_are() {
        let (mut traces, spans) = traces();
        traces.read(&record(0, 1, "00"));
        traces.read(&record(0, 2, "01"));
        traces.begin(std::iter::once((0, NextOffset(3))), 2).ended(&Ok(Receipt::default()));
        let [span] = spans.all().try_into().unwrap();
        assert_eq!(linked(&span), ["1002"]);
    }
}
