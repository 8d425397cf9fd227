//! Histograms that sort each observation into its bucket as it comes.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Histogram, HistogramFn};

use super::Described;

/// The histograms of one name, by their labels.
pub(super) struct Family {
    pub(super) metric: Described,
    bounds: &'static [f64],
    series: Mutex<Vec<(String, Arc<Buckets>)>>,
}

impl Family {
    pub(super) fn new(metric: Described, bounds: &'static [f64]) -> Self {
        Self { metric, bounds, series: Mutex::default() }
    }

    /// The one with these labels.
    pub(super) fn with(&self, labels: &[(&'static str, &str)]) -> Histogram {
        let labels: String = labels.iter().map(|(name, value)| format!("{name}={value:?},")).collect();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let known = series.iter().find(|(known, _)| *known == labels).map(|(_, buckets)| Arc::clone(buckets));
        let buckets = known.unwrap_or_else(|| {
            let buckets = Arc::new(Buckets::new(self.bounds));
            series.push((labels, Arc::clone(&buckets)));
            buckets
        });
        Histogram::from_arc(buckets)
    }

    pub(super) fn render(&self, text: &mut String) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let Described(name, help) = self.metric;
        if !series.is_empty() {
            *text += &format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
        }
        for (labels, buckets) in &*series {
            // Writing to a string can't fail.
            buckets.render(name, labels, text).unwrap_or_default();
        }
    }
}

/// What was observed.
struct Buckets {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above the last.
    counts: Box<[AtomicU64]>,
    /// The bits of an f64.
    sum: AtomicU64,
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// `labels` as `name="value",` each.
    fn render(&self, name: &str, labels: &str, text: &mut String) -> std::fmt::Result {
        let bounds = self.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let mut count = 0;
        for (bound, in_bucket) in bounds.zip(&self.counts) {
            count += in_bucket.load(Ordering::Relaxed);
            writeln!(text, "{name}_bucket{{{labels}le=\"{bound}\"}} {count}")?;
        }
        let labels = labels.strip_suffix(',').map_or_else(String::new, |labels| format!("{{{labels}}}"));
        writeln!(text, "{name}_sum{labels} {}", f64::from_bits(self.sum.load(Ordering::Relaxed)))?;
        writeln!(text, "{name}_count{labels} {count}")
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // It never fails: `add` always has an answer.
        self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: (Described, &[f64]) = (Described("size", "Size."), &[0.5, 1.0, 10.0]);

    #[test]
    fn an_observation_counts_in_each_bucket_whose_bound_it_does_not_exceed() {
        let family = Family::new(FAMILY.0, FAMILY.1);
        for value in [0.25, 0.5, 1.5, 10.0, 11.0] {
            family.with(&[("kind", "a"), ("of", "b")]).record(value);
        }
        family.with(&[]).record(2.0);
        let mut text = String::new();
        family.render(&mut text);
        let wanted = "\
# HELP size Size.
# TYPE size histogram
size_bucket{kind=\"a\",of=\"b\",le=\"0.5\"} 2
size_bucket{kind=\"a\",of=\"b\",le=\"1\"} 2
size_bucket{kind=\"a\",of=\"b\",le=\"10\"} 4
size_bucket{kind=\"a\",of=\"b\",le=\"+Inf\"} 5
size_sum{kind=\"a\",of=\"b\"} 23.25
size_count{kind=\"a\",of=\"b\"} 5
size_bucket{le=\"0.5\"} 0
size_bucket{le=\"1\"} 0
size_bucket{le=\"10\"} 1
size_bucket{le=\"+Inf\"} 1
size_sum 2
size_count 1
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn nothing_is_lost_when_many_observe_at_once() {
        let family = Family::new(FAMILY.0, FAMILY.1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| family.with(&[]).record(2.0)));
            }
        });
        let mut text = String::new();
        family.render(&mut text);
        assert!(text.contains("size_sum 80000\n") && text.contains("size_count 40000\n"), "{text}");
    }

    #[test]
    fn a_name_without_series_is_not_mentioned() {
        let mut text = String::new();
        Family::new(FAMILY.0, FAMILY.1).render(&mut text);
        assert_eq!(text, "");
    }
}
