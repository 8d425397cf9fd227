//! One guard broken at a time: for each a short run whose faults that guard is there for. The
//! verdict must be red with it broken, and green without.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use super::{
    Plan,
    kinds::Kind,
    report::Report,
    run,
    schedule::{Fault, Step},
};

/// Long enough for a freeze to pass the session time-out, whatever is drawn.
const SEED: u64 = 4;

/// Each guard with the faults that it is there for.
const SCENARIOS: [(&str, &[&str]); 13] = [
    ("claim-without-nx", &["worker-kill"]),
    ("index-only-new", &["redis-full", "redis-torn", "worker-redis-cut", "redis-full", "redis-torn"]),
    ("user-index-outside-positions", &["worker-kill"]),
    ("tail-outside-transaction", &["worker-kill"]),
    ("start-from-commit", &["redis-rollback-10s-no-worker"]),
    ("positions-ahead", &["redis-torn", "redis-rollback-1s", "redis-torn", "redis-torn"]),
    ("no-compare", &["redis-flushall", "redis-flushall", "redis-flushall"]),
    ("write-anyway", &["redis-flushall", "redis-flushall", "redis-flushall"]),
    ("ignore-mismatch", &["redis-flushall"]),
    ("no-heartbeat-check", &["redis-flushall-silence"]),
    ("dead-letter-not-awaited", &["dead-letters-refused", "worker-kill"]),
    ("reply-before-ack", &["kafka-kill", "api-kill", "api-kill"]),
    ("keep-revoked-state", &["scale", "worker-freeze", "redis-flushall"]),
];

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The broken guard.
    pub mutation: &'static str,
    /// The faults.
    pub scenario: String,
    /// The run with the guard broken.
    pub broken: Report,
    /// Whether the same run with all guards held.
    pub control: bool,
}

impl Row {
    /// Whether the guard was shown to be needed, and the broken guard to be noticed.
    #[must_use]
    pub fn as_expected(&self) -> bool {
        self.control && !self.broken.holds
    }
}

impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mutation, scenario, broken, control } = self;
        let (verdict, control) = (colour(broken.holds), colour(*control));
        let first = broken.violations.first().map_or("", String::as_str);
        let first: String = first.chars().take(90).collect();
        let count = broken.violations.len();
        write!(out, "| {mutation} | {scenario} | {verdict} | {control} | {count}: {} |", first.replace('|', "\\|"))
    }
}

fn colour(holds: bool) -> &'static str {
    if holds { "green" } else { "red" }
}

/// The head of the table, in Markdown.
pub const HEAD: &str = "| mutation | faults | verdict | without it | violations |\n|---|---|---|---|---|";

/// The names of all mutations.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCENARIOS.into_iter().map(|(name, _)| name)
}

/// Runs the scenarios of these mutations, each also without it; equal scenarios share that.
pub async fn table(wanted: &[String]) -> Vec<Row> {
    let (mut rows, mut controls) = (Vec::new(), BTreeMap::<_, bool>::new());
    for (mutation, faults) in SCENARIOS.into_iter().filter(|(name, _)| wanted.iter().any(|want| want == name)) {
        eprintln!("{mutation}: {}", faults.join(", "));
        let broken = run(plan(faults, Some(mutation))).await;
        eprintln!("{broken}");
        let control = match controls.get(faults) {
            Some(holds) => *holds,
            None => {
                eprintln!("the same without {mutation}");
                let control = run(plan(faults, None)).await;
                if !control.holds {
                    eprintln!("{control}");
                }
                controls.insert(faults, control.holds);
                control.holds
            }
        };
        rows.push(Row { mutation, scenario: faults.join(", "), broken, control });
    }
    rows
}

fn plan(faults: &[&str], mutation: Option<&str>) -> Plan {
    Plan {
        stage: Kind::Standalone,
        seed: SEED,
        steps: steps(faults),
        length: Duration::MAX,
        marks: false,
        mutation: mutation.map(ToOwned::to_owned),
    }
}

/// The faults in this order.
fn steps(names: &[&str]) -> Vec<Step> {
    let faults = names.iter().filter_map(|name| Fault::named(name));
    let drawn = faults.zip(SEED..).filter_map(|(fault, seed)| {
        super::schedule::schedule(seed, Duration::from_secs(1), &[fault]).into_iter().next()
    });
    drawn.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_made_of_faults_that_exist() {
        for (mutation, faults) in SCENARIOS {
            let names: Vec<_> = steps(faults).iter().map(|step| step.fault.name()).collect();
            assert_eq!(names, faults, "{mutation}");
        }
    }
}
