//! What a run has shown, for people and as JSON.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;

use super::{
    kinds::Kind,
    outsider::Written,
    readers::Heard,
    schedule::{Fault, Step},
};

/// How many violations are printed; all are in the JSON.
const PRINTED: usize = 20;

/// What must not be, as it is found. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Violations(Arc<Mutex<Vec<String>>>);

impl Violations {
    /// Adds one.
    pub fn add(&self, what: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Adds the error, if it is one, and gives the value otherwise.
    pub fn check<T>(&self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(format!("{what}: {error:#}"))).ok()
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A fault that was done.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// Seconds from the start of the traffic to the start of the fault.
    pub at: f64,
    /// What it was.
    pub fault: Fault,
    /// How long it was planned to last, in seconds.
    pub hold: f64,
    /// How long it really lasted, starts of processes included.
    pub lasted: f64,
    /// Seconds from its end until fresh events passed through every API and partition; none when
    /// they did not.
    pub recovery: Option<f64>,
    /// More about it.
    pub note: String,
}

impl Done {
    /// A fault that has just ended.
    #[must_use]
    pub fn new(step: &Step, at: Duration, lasted: Duration, note: String, recovery: Option<Duration>) -> Self {
        Self {
            at: seconds(at),
            fault: step.fault,
            hold: seconds(step.hold),
            lasted: seconds(lasted),
            recovery: recovery.map(seconds),
            note,
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, fault, lasted, recovery, note, .. } = self;
        let recovery = recovery.map_or("never".to_owned(), |seconds| format!("{seconds:.1} s"));
        write!(formatter, "{at:7.1} s  {fault:<30} for {lasted:5.1} s  recovered after {recovery:>7}  {note}")
    }
}

/// How many of what.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Posts with a 201.
    pub acknowledged: usize,
    /// Posts that were certainly not accepted.
    pub refused: usize,
    /// Posts whose outcome no client knows.
    pub unknown: usize,
    /// Events in the list.
    pub stored: usize,
    /// Of these, how many were at least found by their ids through each API.
    pub found: usize,
    /// Records on the topic that can't be events.
    pub poison: usize,
    /// Records on the dead-letter topic; after a crash one may be there twice.
    pub dead_letters: usize,
    /// What was written past the API.
    pub outsider: Written,
    /// What the readers of the stream met.
    pub stream: Heard,
}

/// Recoveries from one kind of fault, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recovery {
    /// How many there were.
    pub count: usize,
    /// The one in the middle.
    pub median: f64,
    /// The longest.
    pub max: f64,
}

/// The whole.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where it was done.
    pub stage: Kind,
    /// Gives the same faults again.
    pub seed: u64,
    /// The guard that was broken.
    pub mutation: Option<String>,
    /// From the start of the traffic to the verdict, in seconds.
    pub seconds: f64,
    /// What happened.
    pub faults: Vec<Done>,
    /// Per kind of fault.
    pub recovery: BTreeMap<&'static str, Recovery>,
    /// How many of what.
    pub counts: Counts,
    /// How often the marks of the stage were met.
    pub marks: BTreeMap<&'static str, usize>,
    /// What the worker's own audit says.
    pub verify: Value,
    /// What must not be.
    pub violations: Vec<String>,
    /// Whether nothing was violated.
    pub holds: bool,
    /// Where the logs of a run with violations are.
    pub logs: Option<String>,
}

/// The recoveries by kind of fault.
#[must_use]
pub fn recoveries(faults: &[Done]) -> BTreeMap<&'static str, Recovery> {
    let mut times: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for done in faults {
        times.entry(done.fault.name()).or_default().extend(done.recovery);
    }
    let summary = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        Some(Recovery { count: times.len(), median: *times.get(times.len() / 2)?, max: *times.last()? })
    };
    times.into_iter().filter_map(|(name, times)| Some((name, summary(times)?))).collect()
}

/// Seconds with a tenth's precision: more would pretend.
#[must_use]
pub fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { acknowledged, refused, unknown, stored, found, .. } = &self.counts;
        let Counts { poison, dead_letters, outsider, stream, .. } = &self.counts;
        let Self { stage, seed, faults, .. } = self;
        writeln!(out, "stage {stage}, seed {seed}, {:.0} s, {} faults", self.seconds, faults.len())?;
        if let Some(mutation) = &self.mutation {
            writeln!(out, "mutation {mutation}")?;
        }
        faults.iter().try_for_each(|done| writeln!(out, "{done}"))?;
        writeln!(out, "\n{:<30} {:>5} {:>9} {:>9}", "recovery", "count", "median", "max")?;
        for (name, Recovery { count, median, max }) in &self.recovery {
            writeln!(out, "{name:<30} {count:>5} {median:>7.1} s {max:>7.1} s")?;
        }
        writeln!(out, "\n{:<30} {:>5}", "mark", "met")?;
        self.marks.iter().try_for_each(|(mark, times)| writeln!(out, "{mark:<30} {times:>5}"))?;
        writeln!(out, "\nposts: {acknowledged} acknowledged, {refused} refused, {unknown} unknown")?;
        writeln!(out, "the list: {stored} events, {found} of them found by id through each API")?;
        let Written { duplicates, aborted, .. } = outsider;
        writeln!(
            out,
            "past the API: {duplicates} duplicates with another body, {poison} poison records, {aborted} aborted; \
             {dead_letters} dead letters"
        )?;
        let Heard { events, streams, resets, repeats, .. } = stream;
        writeln!(out, "readers: {events} events on {streams} streams, {resets} resets, {repeats} again after a loss")?;
        writeln!(out, "verify: {}", self.verify)?;
        for violation in self.violations.iter().take(PRINTED) {
            writeln!(out, "VIOLATION {violation}")?;
        }
        let more = self.violations.len().saturating_sub(PRINTED);
        if more > 0 {
            writeln!(out, "and {more} more")?;
        }
        if let Some(logs) = &self.logs {
            writeln!(out, "logs: {logs}")?;
        }
        writeln!(out, "verdict: {}", if self.holds { "the oracle holds" } else { "THE ORACLE DOES NOT HOLD" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(fault: Fault, recovery: Option<f64>) -> Done {
        Done { at: 0.0, fault, hold: 0.0, lasted: 0.0, recovery, note: String::new() }
    }

    #[test]
    fn recoveries_are_summed_up_by_kind() {
        let kill = Fault::WorkerKill;
        let faults = [3.0, 1.0, 2.0].map(|time| done(kill, Some(time)));
        let found = recoveries(&faults);
        assert_eq!(found["worker-kill"], Recovery { count: 3, median: 2.0, max: 3.0 });
        assert!(recoveries(&[done(kill, None)]).is_empty());
    }

    #[test]
    fn a_violation_is_kept_and_a_success_is_not() {
        let violations = Violations::default();
        assert_eq!(violations.check("fine", Ok(1)), Some(1));
        assert_eq!(violations.check::<()>("this", Err(anyhow::anyhow!("reason"))), None);
        assert_eq!(violations.list(), ["this: reason"]);
    }
}
