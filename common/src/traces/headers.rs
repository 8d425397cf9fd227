//! The context of a trace in headers: `traceparent` and `tracestate` (W3C Trace Context, Recommendation of 2021), by the
//! same names in HTTP and in Kafka.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// The longest `tracestate` that is passed on, in bytes: what has to be at the least (section 3.3.1.5). It goes on every
/// record of a request, so a long one would make much of little.
const LONGEST_STATE: usize = 512;

/// What headers say of the caller's span; `None` if they are not as they have to be, which counts as none at all.
#[must_use]
pub fn remote(parent: &str, state: Option<&str>) -> Option<SpanContext> {
    if !is_well_formed(parent) {
        return None;
    }
    let fields = Fields { parent, state: state.filter(|state| state.len() <= LONGEST_STATE) };
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &fields);
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// The library takes shorter numbers and signs as well. Later versions may have more after another hyphen (section 4).
fn is_well_formed(parent: &str) -> bool {
    let fits = |(at, byte): (usize, &u8)| match at {
        2 | 35 | 52 | 55 => *byte == b'-',
        at => at > 55 || byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
    };
    parent.len() >= 55 && parent.bytes().enumerate().all(|(at, byte)| fits((at, &byte)))
}

struct Fields<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        if key == PARENT { Some(self.parent) } else { self.state.filter(|_| key == STATE) }
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT, STATE]
    }
}

/// Adds the context of what this thread is working on to the headers of a record.
#[must_use]
pub fn inject(headers: OwnedHeaders) -> OwnedHeaders {
    if !Context::map_current(Context::has_active_span) {
        return headers;
    }
    let mut fields = HashMap::new();
    TraceContextPropagator::new().inject(&mut fields);
    let fields =
        [PARENT, STATE].iter().filter_map(|key| Some((key, fields.get(*key).filter(|value| !value.is_empty())?)));
    fields.fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// The span that published a record, if its headers say so. Of several headers with one name the last counts, as
/// everywhere in Kafka.
pub fn from_record(record: &impl Message) -> Option<SpanContext> {
    let headers = record.headers()?;
    let text = |name: &str| {
        let values = headers.iter().filter(|header| header.key == name).filter_map(|header| header.value);
        values.last().and_then(|value| std::str::from_utf8(value).ok())
    };
    // The client library panics on a header whose name is not UTF-8.
    catch_unwind(AssertUnwindSafe(|| remote(text(PARENT)?, text(STATE)))).ok().flatten()
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceFlags;
    use rdkafka::message::OwnedMessage;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn parent(flags: &str) -> String {
        format!("00-{TRACE}-{SPAN}-{flags}")
    }

    fn record(headers: &[(&str, &str)]) -> OwnedMessage {
        let all = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        OwnedMessage::new(None, None, "events".into(), rdkafka::Timestamp::NotAvailable, 0, 0, Some(all))
    }

    #[test]
    fn a_caller_is_taken_with_its_decision() {
        let caller = remote(&parent("01"), Some("vendor=1")).unwrap();
        assert_eq!((caller.trace_id().to_string(), caller.span_id().to_string()), (TRACE.into(), SPAN.into()));
        assert!(caller.is_sampled() && caller.is_remote());
        assert_eq!(caller.trace_state().header(), "vendor=1");
        assert!(!remote(&parent("00"), None).unwrap().is_sampled());
        assert!(!remote(&parent("02"), None).unwrap().is_sampled(), "flags that are not known yet");
        assert!(remote(&format!("cc{}-what-the-future-brings", &parent("01")[2..]), None).is_some());
    }

    #[test]
    fn what_is_not_as_it_has_to_be_counts_as_none() {
        let wrong = [
            String::new(),
            "0".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01x"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{}-{SPAN}-01", "ä".repeat(16)),
        ];
        for parent in wrong {
            assert!(remote(&parent, None).is_none(), "{parent}");
        }
    }

    #[test]
    fn a_state_that_is_wrong_or_too_long_is_left_away() {
        for state in ["no list", &format!("a={}", "x".repeat(LONGEST_STATE))] {
            assert_eq!(remote(&parent("01"), Some(state)).unwrap().trace_state().header(), "", "{state}");
        }
    }

    #[test]
    fn a_record_carries_the_current_context_and_nothing_outside_of_one() {
        let context =
            |flags: &str, state| Context::new().with_remote_span_context(remote(&parent(flags), state).unwrap());
        let names = |headers: &OwnedHeaders| headers.iter().map(|header| header.key.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&inject(OwnedHeaders::new())), [""; 0]);
        {
            let _current = context("01", None).attach();
            assert_eq!(names(&inject(OwnedHeaders::new())), [PARENT], "no empty tracestate");
        }
        let _current = context("00", Some("vendor=1")).attach();
        let headers = inject(OwnedHeaders::new().insert(Header { key: "event-id", value: Some("1") }));
        assert_eq!(names(&headers), ["event-id", PARENT, STATE]);
        assert_eq!(headers.get(1).value, Some(parent("00").as_bytes()), "not sampled, and said so");
    }

    #[test]
    fn the_publisher_of_a_record_is_read_from_its_last_headers() {
        let found = from_record(&record(&[(PARENT, "00-1"), (STATE, "a=1"), (PARENT, &parent("01"))])).unwrap();
        assert_eq!((found.span_id().to_string(), found.trace_flags()), (SPAN.into(), TraceFlags::SAMPLED));
        assert_eq!(found.trace_state().header(), "a=1");
        assert!(from_record(&record(&[(PARENT, &parent("01")), (PARENT, "00-1")])).is_none());
        assert!(from_record(&record(&[("event-id", "1")])).is_none());
    }
}
