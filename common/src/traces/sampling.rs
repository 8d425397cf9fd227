//! Which spans are recorded.

use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

use crate::config::Sampling;

pub(super) fn sampler(sampling: Sampling) -> Box<dyn ShouldSample> {
    let root = Sampler::TraceIdRatioBased(sampling.ratio);
    if sampling.parent_based { Box::new(LinkBased(Sampler::ParentBased(Box::new(root)))) } else { Box::new(root) }
}

/// A sampler that does as the parent has decided, and for a span with links instead of one as they have: it is recorded
/// if one of them is. Otherwise the sampler of a worker, whose spans have no parent, would decide anew, and cut traces
/// off in the middle.
#[derive(Debug, Clone)]
struct LinkBased(Sampler);

impl ShouldSample for LinkBased {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if links.is_empty() {
            return self.0.should_sample(parent, trace_id, name, kind, attributes, links);
        }
        let sampled = links.iter().any(|link| link.span_context.is_sampled());
        SamplingResult {
            decision: if sampled { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
            attributes: Vec::new(),
            trace_state: TraceState::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::remote;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    fn records(sampling: Sampling, links: &[&str]) -> bool {
        let links: Vec<_> = links.iter().map(|link| Link::with_context(remote(link, None).unwrap())).collect();
        let id = TraceId::from(u128::MAX);
        let result = sampler(sampling).should_sample(None, id, "process", &SpanKind::Consumer, &[], &links);
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn a_span_with_links_is_recorded_if_one_of_them_is() {
        let none = Sampling { parent_based: true, ratio: 0.0 };
        assert!(records(none, &[UNSAMPLED, SAMPLED]) && !records(none, &[UNSAMPLED]) && !records(none, &[]));
        let all = Sampling { parent_based: true, ratio: 1.0 };
        assert!(records(all, &[SAMPLED]) && !records(all, &[UNSAMPLED]) && records(all, &[]));
    }

    #[test]
    fn a_sampler_that_is_not_parent_based_decides_for_itself() {
        assert!(records(Sampling { parent_based: false, ratio: 1.0 }, &[UNSAMPLED]));
        assert!(!records(Sampling { parent_based: false, ratio: 0.0 }, &[SAMPLED]));
    }
}
