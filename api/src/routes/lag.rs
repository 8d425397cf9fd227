//! `GET /lag`: how far the workers are behind, and how many of them there should be.
//!
//! It is what the workers said with their last heartbeats. What nobody knows is `null` and never zero: a scaler that
//! took an outage for an empty topic would remove the workers that are needed right after it.

use std::collections::BTreeMap;
use std::time::Duration;

use common::store::{LiveWorker, PartitionLag};
use serde::Serialize;
use warp::Reply;
use warp::reply::Response;

use crate::App;
use crate::problem::Problem;
use crate::query::Parameters;

/// What was heard of the workers within this time is not asked for again. They report every three seconds.
const FRESH: Duration = Duration::from_secs(2);
/// A backlog should be gone within this time, in seconds: what replicas are recommended for.
const DRAIN_TARGET: f64 = 60.0;
/// From this age of the oldest event on, in seconds, the workers are taken to do what they can.
const SATURATED: f64 = 5.0;
/// What one worker does, in events a second, as long as none had to show it: far below what was measured, so that
/// guessing means too many and not too few.
const ASSUMED_RATE: f64 = 2_000.0;

/// The reply.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lag<'a> {
    group: Option<&'a str>,
    topic: &'a str,
    partitions: Vec<Partition<'a>>,
    total_lag: Option<i64>,
    lag_seconds: Option<f64>,
    arrival_rate: Option<f64>,
    drain_rate: Option<f64>,
    seconds_to_drain: Option<f64>,
    recommended_replicas: usize,
    unknown_partitions: Vec<i32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Partition<'a> {
    partition: i32,
    lag: Option<i64>,
    lag_seconds: Option<f64>,
    worker: Option<&'a str>,
}

/// What the workers say of it.
pub(super) async fn show(app: &App, query: &str) -> Result<Response, Problem> {
    Parameters::parse(query, &[], &[])?;
    let workers = match app.workers_within(FRESH) {
        Some(heard) => heard,
        // Which gives the reason if Redis does not say.
        None => app.store.live_workers().await.map_err(Problem::Store)?,
    };
    let topics = &app.config.kafka.topics;
    Ok(warp::reply::json(&lag(&topics.events, topics.partitions, &workers)).into_response())
}

/// `configured` is how many partitions the topic was to be created with, for as long as no worker says how many it has.
fn lag<'a>(topic: &'a str, configured: i32, workers: &'a [LiveWorker]) -> Lag<'a> {
    let said = workers.iter().filter_map(|worker| worker.heartbeat.topic_partitions).max();
    let count = said.and_then(|count| i32::try_from(count).ok()).unwrap_or(configured);
    let known = owned(workers);
    let count = known.keys().next_back().map_or(count, |last| count.max(last + 1));
    let found: Vec<(i32, Option<&(&str, &PartitionLag)>)> = (0..count).map(|p| (p, known.get(&p))).collect();
    let sum = |of: fn(&PartitionLag) -> Option<f64>| {
        found.iter().map(|(_, lag)| lag.and_then(|(_, lag)| of(lag))).sum::<Option<f64>>()
    };
    let total_lag: Option<i64> = found.iter().map(|(_, lag)| lag.and_then(|(_, lag)| lag.messages)).sum();
    let ages: Option<Vec<f64>> = found.iter().map(|(_, lag)| lag.and_then(|(_, lag)| lag.seconds)).collect();
    let lag_seconds = ages.map(|ages| ages.into_iter().fold(0.0, f64::max));
    let (arrival_rate, drain_rate) = (sum(|lag| lag.arrival), sum(|lag| lag.drain));
    let rates = arrival_rate.zip(drain_rate);
    Lag {
        group: workers.iter().map(|worker| worker.heartbeat.group.as_str()).find(|group| !group.is_empty()),
        topic,
        total_lag,
        lag_seconds,
        arrival_rate,
        drain_rate,
        seconds_to_drain: total_lag.and_then(|lag| seconds_to_drain(lag, rates)),
        recommended_replicas: recommended(count, workers.len(), total_lag, lag_seconds, rates),
        unknown_partitions: found
            .iter()
            .filter(|(_, l)| l.is_none_or(|(_, l)| l.messages.is_none()))
            .map(|(p, _)| *p)
            .collect(),
        partitions: found.iter().map(|(partition, lag)| described(*partition, *lag)).collect(),
    }
}

/// Who reads each partition, and what it says of it. After a rebalance two may for a moment: the later word counts.
fn owned(workers: &[LiveWorker]) -> BTreeMap<i32, (&str, &PartitionLag)> {
    let mut by_age: Vec<&LiveWorker> = workers.iter().collect();
    by_age.sort_by_key(|worker| worker.seen);
    let lags = by_age.iter().flat_map(|w| w.heartbeat.lags.iter().map(|lag| (w.heartbeat.member.as_str(), lag)));
    lags.map(|(member, lag)| (lag.partition, (member, lag))).collect()
}

fn described<'a>(partition: i32, found: Option<&(&'a str, &PartitionLag)>) -> Partition<'a> {
    Partition {
        partition,
        lag: found.and_then(|(_, lag)| lag.messages),
        lag_seconds: found.and_then(|(_, lag)| lag.seconds),
        worker: found.map(|(worker, _)| *worker),
    }
}

/// `None` when it is not getting less, or nobody knows.
fn seconds_to_drain(lag: i64, rates: Option<(f64, f64)>) -> Option<f64> {
    if lag == 0 {
        return Some(0.0);
    }
    let (arrival, drain) = rates?;
    (drain > arrival).then(|| lag as f64 / (drain - arrival))
}

/// How many workers keep up with what arrives and are rid of the backlog within [`DRAIN_TARGET`]: at least one, at most
/// one for each partition. Never fewer than there are while something is unknown, or while nothing drains at all, which
/// more of them would not change either.
fn recommended(
    partitions: i32,
    workers: usize,
    lag: Option<i64>,
    lag_seconds: Option<f64>,
    rates: Option<(f64, f64)>,
) -> usize {
    let most = usize::try_from(partitions).unwrap_or(1).max(1);
    let present = workers.clamp(1, most);
    let (Some(lag), Some((arrival, drain))) = (lag, rates) else { return present };
    let saturated = lag > 0 && lag_seconds.is_none_or(|seconds| seconds > SATURATED);
    if saturated && drain <= 0.0 {
        return present;
    }
    let each = if saturated { drain / present as f64 } else { ASSUMED_RATE };
    // A float that is too large for it becomes the largest integer.
    ((arrival + lag as f64 / DRAIN_TARGET) / each).ceil().max(1.0).min(most as f64) as usize
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use common::event::Timestamp;
    use common::store::Heartbeat;
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tempfile::NamedTempFile;

    use super::*;
    use crate::routes::testing::{KEY, app};

    #[tokio::test]
    async fn what_was_just_heard_is_said_without_asking_the_store_and_nothing_older() {
        let file = NamedTempFile::new().unwrap();
        let app = app(&file, KEY);
        let failed = show(&app, "").await.unwrap_err();
        assert!(matches!(failed, Problem::Store(_)), "{failed:?}");
        let failed = show(&app, "group=g").await.unwrap_err();
        assert!(matches!(failed, Problem::InvalidParameter { .. }), "{failed:?}");
        let heard = |at| Some((at, vec![worker("a", &[(0, 5), (1, 0), (2, 0)])]));
        *app.workers.lock().unwrap() = heard(Instant::now().checked_sub(FRESH * 2).unwrap());
        assert!(matches!(show(&app, "").await, Err(Problem::Store(_))));
        // Read within that time, however busy the machine is.
        *app.workers.lock().unwrap() = heard(Instant::now() + Duration::from_hours(1));
        let body = show(&app, "").await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["totalLag"], 5);
    }

    fn worker(name: &str, lags: &[(i32, i64)]) -> LiveWorker {
        let lag = |(partition, messages): &(i32, i64)| PartitionLag {
            partition: *partition,
            messages: Some(*messages),
            seconds: Some(if *messages > 0 { 30.0 } else { 0.0 }),
            arrival: Some(100.0),
            drain: Some(200.0),
        };
        let heartbeat = Heartbeat {
            member: name.into(),
            partitions: lags.iter().map(|(partition, _)| *partition).collect(),
            group: "g".into(),
            topic_partitions: Some(3),
            lags: lags.iter().map(lag).collect(),
            ..Heartbeat::default()
        };
        LiveWorker { heartbeat, seen: Timestamp::now() }
    }

    #[test]
    fn what_is_known_of_all_partitions_is_added_up() {
        let workers = [worker("a", &[(0, 500), (1, 0)]), worker("b", &[(2, 700)])];
        let lag = lag("t", 6, &workers);
        assert_eq!((lag.total_lag, lag.lag_seconds), (Some(1200), Some(30.0)));
        assert_eq!((lag.arrival_rate, lag.drain_rate, lag.seconds_to_drain), (Some(300.0), Some(600.0), Some(4.0)));
        assert_eq!((lag.group, lag.unknown_partitions.len(), lag.partitions.len()), (Some("g"), 0, 3));
        assert_eq!((lag.partitions[2].worker, lag.partitions[2].lag), (Some("b"), Some(700)));
    }

    #[test]
    fn what_nobody_knows_is_unknown_and_not_zero() {
        let workers = [worker("a", &[(0, 0), (1, 0)])];
        let partly = lag("t", 6, &workers);
        assert_eq!((partly.total_lag, partly.lag_seconds, partly.seconds_to_drain), (None, None, None));
        assert_eq!(partly.unknown_partitions, [2]);
        let nobody = lag("t", 2, &[]);
        assert_eq!((nobody.total_lag, nobody.group, nobody.unknown_partitions), (None, None, vec![0, 1]));
        assert_eq!(nobody.recommended_replicas, 1);
    }

    #[test]
    fn replicas_follow_load_and_backlog_between_one_and_the_partitions() {
        // Caught up: by what arrives.
        assert_eq!(recommended(6, 4, Some(0), Some(0.0), Some((10.0, 10.0))), 1);
        assert_eq!(recommended(6, 1, Some(0), Some(0.0), Some((5_000.0, 5_000.0))), 3);
        // Behind: by what the workers have shown to be able to do.
        assert_eq!(recommended(6, 2, Some(60_000), Some(60.0), Some((1_000.0, 1_000.0))), 4);
        assert_eq!(recommended(6, 2, Some(60_000_000), Some(60.0), Some((1_000.0, 1_000.0))), 6);
        // An outage, and the unknown: as many as there are.
        assert_eq!(recommended(6, 2, Some(60_000), Some(60.0), Some((1_000.0, 0.0))), 2);
        assert_eq!(recommended(6, 3, None, None, None), 3);
        assert_eq!(recommended(6, 9, None, None, None), 6);
        assert_eq!(recommended(6, 0, None, None, None), 1);
    }
}
