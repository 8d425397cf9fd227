//! Metrics of one process, in the text format of Prometheus (exposition format 0.0.4).
//!
//! A registry is a value, not a global: whoever counts keeps the handle that it was given, so that counting is a few
//! atomic operations and no look-up. The histograms are our own: those of the exporter keep every observation until
//! somebody sorts them all into their buckets, which stopped a runtime thread for milliseconds each second under load.

mod histogram;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use metrics_process::Collector;

use self::histogram::Family;

/// The content type of what [`Exporter::render`] gives.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds for durations, in seconds: from what a healthy part takes to the longest time-outs.
pub const DURATIONS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// A metric's name and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Described(pub &'static str, pub &'static str);

/// All metrics of a process.
pub struct Exporter {
    recorder: PrometheusRecorder,
    histograms: Vec<Family>,
    process: Collector,
    ready: Gauge,
}

impl Exporter {
    /// A registry with what both binaries have, and these histograms' upper bounds.
    #[must_use]
    pub fn new(role: &'static str, version: &'static str, histograms: &[(Described, &'static [f64])]) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let histograms = histograms.iter().map(|(metric, bounds)| Family::new(*metric, bounds)).collect();
        let process = Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let ready = Gauge::noop();
        let mut exporter = Self { recorder, histograms, process, ready };
        exporter.ready = exporter.gauge(Described("user_activity_ready", "1 while /readyz says so, else 0."), &[]);
        let info = Described("user_activity_build_info", "Always 1; the labels say what runs.");
        exporter.gauge(info, &[("version", version), ("role", role)]).set(1);
        exporter
    }

    /// A counter.
    pub fn counter(&self, metric: Described, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder.describe_counter(metric.0.into(), None, metric.1.into());
        self.recorder.register_counter(&key(metric, labels), &METADATA)
    }

    /// A gauge.
    pub fn gauge(&self, metric: Described, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.describe_gauge(metric.0.into(), None, metric.1.into());
        self.recorder.register_gauge(&key(metric, labels), &METADATA)
    }

    /// A histogram, whose bounds were given to [`Exporter::new`]; without these it counts nothing.
    pub fn histogram(&self, metric: Described, labels: &[(&'static str, &str)]) -> Histogram {
        let family = self.histograms.iter().find(|family| family.metric.0 == metric.0);
        family.map_or_else(Histogram::noop, |family| family.with(labels))
    }

    /// Everything as text, `ready` being what `/readyz` says.
    #[must_use]
    pub fn render(&self, ready: bool) -> String {
        self.ready.set(f64::from(u8::from(ready)));
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        let mut text = self.recorder.handle().render();
        self.histograms.iter().for_each(|family| family.render(&mut text));
        text
    }
}

fn key(Described(name, _): Described, labels: &[(&'static str, &str)]) -> Key {
    let labels = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned()));
    Key::from_parts(name, labels.collect::<Vec<_>>())
}

/// Gauges with one value for each partition, as text. They are written anew for each scrape, because a registry can't
/// forget the series of a partition that was taken away.
#[must_use]
pub fn partition_gauge(Described(name, help): Described, values: impl IntoIterator<Item = (i32, f64)>) -> String {
    let mut text = String::new();
    for (partition, value) in values {
        text += &format!("{name}{{partition=\"{partition}\"}} {value}\n");
    }
    if text.is_empty() { text } else { format!("# HELP {name} {help}\n# TYPE {name} gauge\n{text}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Described = Described("time_seconds", "Time.");

    #[test]
    fn a_scrape_says_what_was_counted_and_what_runs() {
        let exporter = Exporter::new("tester", "1.2.3", &[(TIME, &[0.1, 1.0])]);
        let counter = exporter.counter(Described("things_total", "Things."), &[("kind", "a")]);
        counter.increment(3);
        exporter.histogram(TIME, &[]).record(0.5);
        let text = exporter.render(true);
        for line in [
            "# TYPE things_total counter",
            "things_total{kind=\"a\"} 3",
            "time_seconds_bucket{le=\"0.1\"} 0",
            "time_seconds_bucket{le=\"1\"} 1",
            "time_seconds_count 1",
            "user_activity_ready 1",
            "user_activity_build_info{version=\"1.2.3\",role=\"tester\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(exporter.render(false).contains("user_activity_ready 0"));
    }

    #[test]
    fn a_partition_gauge_has_the_partitions_it_is_given_and_nothing_without_any() {
        let lag = Described("lag", "Lag.");
        let text = partition_gauge(lag, [(0, 7.0), (3, 0.5)]);
        assert_eq!(text, "# HELP lag Lag.\n# TYPE lag gauge\nlag{partition=\"0\"} 7\nlag{partition=\"3\"} 0.5\n\n");
        assert_eq!(partition_gauge(lag, []), "");
    }
}
