//! A fixed short run of the fault driver; `scripts/chaos` has the long ones.

use std::time::Duration;

use e2e::chaos::{
    Plan,
    kinds::Kind,
    run,
    schedule::{Fault, schedule},
};

/// One fault of each sort, and what Redis can do worst.
const FAULTS: [Fault; 6] = {
    use e2e::chaos::{
        proxy::Trouble::Blackhole,
        schedule::{Loss::Rollback, Way::WorkerToRedis, When::NoWorker},
    };
    [
        Fault::WorkerKill,
        Fault::ApiKill,
        Fault::KafkaKill,
        Fault::WorkerFreeze,
        Fault::RedisLoss(Rollback(1), NoWorker),
        Fault::Network(WorkerToRedis, Blackhole),
    ]
};

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_of_many_faults_keeps_every_promise() {
    let mut steps = schedule(1, Duration::from_secs(60), &FAULTS);
    steps.truncate(FAULTS.len());
    assert!(FAULTS.iter().all(|fault| steps.iter().any(|step| step.fault == *fault)), "{steps:?}");
    let stage = Kind::Standalone;
    let report = run(Plan { stage, seed: 1, steps, length: Duration::MAX, marks: false, mutation: None }).await;
    assert!(report.holds, "{report}");
}
