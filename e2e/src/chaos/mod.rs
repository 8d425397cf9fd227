//! Faults, chosen and timed by a seed, against the real binaries on a real Kafka and a real Redis.
//!
//! A run has a stage of its own. Clients post all the time and note every outcome; one fault after
//! the other is done and mended, and the time until fresh events pass again is measured. At the
//! end the oracle compares what was promised with what is there. In the order of a run:
//!
//! - [`kinds`]: what stages there are, and what each is about;
//! - [`schedule`]: from the seed to the faults;
//! - [`stage`], `clock`, [`proxy`], [`past`], [`admin`]: what runs, wrong clocks, the network between, Redis' past, Kafka's
//!   settings;
//! - [`traffic`], `repeater`, [`outsider`], [`prober`]: who sends: users, somebody past the API, and the measure;
//! - [`readers`]: who reads the stream meanwhile;
//! - `faults`: how each one is done and mended;
//! - `verdict`, `reads`, [`report`]: whether it holds, what users read, and what there is to tell;
//! - [`marks`]: what a long run must have come by;
//! - [`mutations`]: one guard broken at a time, to show that the verdict notices.

pub mod admin;
mod clock;
mod faults;
pub mod kinds;
pub mod marks;
pub mod mutations;
pub mod outsider;
pub mod past;
pub mod prober;
pub mod proxy;
pub mod readers;
mod reads;
mod repeater;
pub mod report;
pub mod schedule;
pub mod stage;
pub mod traffic;
mod verdict;

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use futures::FutureExt;

use self::{
    kinds::Kind,
    marks::Errors,
    outsider::Outsider,
    prober::Prober,
    readers::Readers,
    report::{Done, Report, Violations, recoveries, seconds},
    schedule::Step,
    stage::Stage,
    traffic::{Gate, Traffic},
    verdict::Life,
};
use crate::{client::Client, oracle::Journal};

/// For everything to work again after a fault: only the end of a hang, since the report says how long each took.
const RECOVERY: Duration = Duration::from_mins(4);

/// As the system creates the topic.
const PARTITIONS: usize = 6;

/// Undisturbed traffic before the first fault and after the last one.
const CALM: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it is done.
    pub stage: Kind,
    /// What the faults were drawn with; the outsider draws from it, too.
    pub seed: u64,
    /// The faults.
    pub steps: Vec<Step>,
    /// The run ends with the first fault that is over at this time after its start, or with the last one.
    pub length: Duration,
    /// Whether the run must meet every mark of its stage. It does not end before as many faults as the stage can have.
    pub marks: bool,
    /// The guard to break, in binaries that can.
    pub mutation: Option<String>,
}

impl Plan {
    /// How many faults there are at least.
    fn round(&self) -> usize {
        if self.marks { self.stage.faults().len().min(self.steps.len()) } else { 0 }
    }
}

/// Does a run. Whatever goes wrong is a violation in the report; the logs of such a run are kept.
///
/// # Panics
/// When there is no place for logs.
pub async fn run(plan: Plan) -> Report {
    let folder = tempfile::Builder::new().prefix("chaos-").tempdir().expect("a folder for logs");
    let (stage, seed, mutation) = (plan.stage, plan.seed, plan.mutation.clone());
    let logs = folder.path().to_owned();
    // The harness panics when an engine does not do as it should.
    let report = AssertUnwindSafe(act(plan, &logs)).catch_unwind().await;
    let report = report.unwrap_or_else(|panic| Err(anyhow!("{}", words_of(&*panic))));
    let mut report = report.unwrap_or_else(|error| Report {
        violations: vec![format!("the run came to no end: {error:#}")],
        ..Report::default()
    });
    report.holds = report.violations.is_empty();
    (report.stage, report.seed, report.mutation) = (stage, seed, mutation);
    if !report.holds {
        report.logs = Some(folder.keep().display().to_string());
    }
    report
}

/// What a panic said.
fn words_of(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

async fn act(plan: Plan, logs: &Path) -> Result<Report> {
    let stage = Stage::set(plan.stage, plan.seed, logs, plan.mutation.as_deref()).await?;
    let mut run = Run::on(stage).await?;
    let traffic = Traffic::start(plan.stage, &run.clients, &run.journal, &run.gate, &run.violations);
    let outsider = Outsider::start(&run.stage, plan.seed, &run.journal, &run.gate);
    tokio::time::sleep(CALM).await;
    let faults = run.go_through(&plan).await;
    tokio::time::sleep(CALM).await;
    let whole = faults.len() >= plan.round();
    traffic.stop().await;
    let written = outsider.stop().await?;
    let (counts, verify) = run.judge(written, faults.len()).await;
    run.errors.sample(&run.stage.redis).await;
    run.stage.end().await;
    let marks = marks::count(plan.stage, logs, &run.errors, &counts);
    run.stage.save_engine_logs();
    for (mark, _) in marks.iter().filter(|(_, times)| plan.marks && whole && **times == 0) {
        run.violations.add(format!("the run never met the mark: {mark}"));
    }
    Ok(Report {
        seconds: seconds(run.started.elapsed()),
        recovery: recoveries(&faults),
        faults,
        counts,
        marks,
        verify,
        violations: run.violations.list(),
        ..Report::default()
    })
}

/// A run under way.
struct Run {
    stage: Stage,
    clients: Vec<Client>,
    journal: Journal,
    gate: Gate,
    prober: Prober,
    readers: Readers,
    violations: Violations,
    errors: Errors,
    /// What stood on topics that were deleted.
    gone: Vec<Life>,
    started: Instant,
    /// How often more workers have joined.
    extras: usize,
}

impl Run {
    async fn on(stage: Stage) -> Result<Self> {
        let (clients, journal) = (stage.clients(), Journal::default());
        let readers = Readers::open(&clients, stage.kind == Kind::Readers).await.context("before the first fault")?;
        let prober = Prober::new(&clients, PARTITIONS, &journal).await.context("before the first fault")?;
        Ok(Self {
            stage,
            clients,
            journal,
            gate: Gate::default(),
            prober,
            readers,
            violations: Violations::default(),
            errors: Errors::default(),
            gone: Vec::new(),
            started: Instant::now(),
            extras: 0,
        })
    }

    /// Does the faults until the time is up, or one leaves something violated.
    async fn go_through(&mut self, plan: &Plan) -> Vec<Done> {
        let mut faults = Vec::new();
        for step in &plan.steps {
            tokio::time::sleep(step.after).await;
            let done = self.go(step).await;
            self.errors.sample(&self.stage.redis).await;
            eprintln!("{done}");
            faults.push(done);
            let is_over = self.started.elapsed() >= plan.length && faults.len() >= plan.round();
            if is_over || !self.violations.list().is_empty() {
                break;
            }
        }
        faults
    }

    async fn go(&mut self, step: &Step) -> Done {
        let (at, begun) = (self.started.elapsed(), Instant::now());
        if step.fault.may_lose() {
            self.readers.note_loss();
        }
        let note = self.inflict(step).await;
        let lasted = begun.elapsed();
        let note = self.violations.check(step.fault.name(), note).unwrap_or_default();
        let recovery = self.prober.pass(RECOVERY).await;
        let recovery = self.violations.check(&format!("after {}", step.fault), recovery);
        Done::new(step, at, lasted, note, recovery)
    }
}

/// Polls `probe` until it is `Ok` and returns its value.
///
/// # Errors
/// When `limit` has passed, with `what` and the last error of the probe.
async fn within<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > limit => {
                return Err(error.context(format!("not within {limit:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(crate::POLL_INTERVAL).await,
        }
    }
}
