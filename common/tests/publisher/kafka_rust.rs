//! What only the crate `kafka` needs: that it comes back from every failure, and says honestly what it does not know.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::config::KafkaSettings;
use common::health::Check;
use common::kafka::{KafkaBackend, KafkaRustPublisher, PublishError, create_topics, partition_of};
use futures::future::{FutureExt, join_all};
use rdkafka::admin::{AdminOptions, NewPartitions};
use tokio::sync::Notify;

use crate::fake_broker::{FakeBroker, Produce, Request, cluster, well};
use crate::support::required;
use crate::{Backend, CLIENT, MINUTE, TIMEOUT_FLAG, admin, becomes, publish, settings, topics};

fn publisher(settings: &KafkaSettings) -> KafkaRustPublisher {
    KafkaRustPublisher::new(settings, CLIENT).unwrap()
}

/// A broker of the test's own with a topic of that many partitions, and a publisher to it.
async fn fake(partitions: i32, flags: &[&str]) -> (Arc<FakeBroker>, KafkaRustPublisher) {
    let mut settings = settings("set below", flags);
    let broker = cluster(&settings.topics.events, partitions, 1).await.remove(0);
    broker.address().clone_into(&mut settings.brokers);
    let publisher = publisher(&settings);
    (broker, publisher)
}

/// Publishes until it works again, and fails if that takes long.
async fn recovers(publisher: &KafkaRustPublisher) {
    let start = Instant::now();
    while let Err(error) = publish(publisher, "u", 1).await {
        assert!(start.elapsed() < MINUTE, "{error}");
    }
}

/// Waits until that many Produce requests have reached the broker.
async fn requests(broker: &FakeBroker, count: usize) {
    let start = Instant::now();
    while broker.produced.lock().unwrap().len() < count {
        assert!(start.elapsed() < MINUTE, "no request reaches the broker");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_record_is_delivered_when_the_broker_says_so_and_not_before() {
    let (broker, publisher) = fake(1, &[]).await;
    let go = Arc::new(Notify::new());
    broker.will(Produce::AnswerLater(Arc::clone(&go)));
    let mut outcome = publish(&publisher, "u", 1);
    requests(&broker, 1).await;
    assert_eq!((&mut outcome).now_or_never(), None);
    assert!(publisher.flush(Duration::from_millis(10)).is_err());
    go.notify_one();
    outcome.await.unwrap();
    publisher.flush(MINUTE).unwrap();
}

#[tokio::test]
async fn a_request_that_failed_leaves_its_records_unknown_and_a_new_client_goes_on() {
    let (broker, publisher) = fake(2, &[]).await;
    recovers(&publisher).await;
    broker.will(Produce::Close);
    let outcomes = join_all((0..10).map(|n| publish(&publisher, &format!("u{n}"), 1))).await;
    let unknown = outcomes.iter().all(|outcome| matches!(outcome, Err(PublishError::Unknown(_))));
    assert!(unknown, "{outcomes:?}");
    broker.will(Produce::Answer(well));
    recovers(&publisher).await;
}

#[tokio::test]
async fn a_panic_in_the_crate_leaves_its_records_unknown_and_a_new_thread_goes_on() {
    let (broker, publisher) = fake(1, &[]).await;
    broker.will(Produce::Nonsense);
    let start = Instant::now();
    let outcome = publish(&publisher, "u", 1).await;
    assert!(matches!(outcome, Err(PublishError::Unknown(_))), "{outcome:?}");
    assert!(start.elapsed() < MINUTE, "answered by the panic, not by the time-out");
    broker.will(Produce::Answer(well));
    recovers(&publisher).await;
}

#[tokio::test]
async fn a_call_that_hangs_is_left_behind() {
    let (broker, publisher) = fake(1, &[TIMEOUT_FLAG, "8000"]).await;
    recovers(&publisher).await;
    let before = broker.produced.lock().unwrap().len();
    broker.will(Produce::Hang);
    let sent = publish(&publisher, "u", 1);
    requests(&broker, before + 1).await;
    // Behind one that hangs, and never sent.
    let waiting = publish(&publisher, "u", 2);
    let answers = tokio::time::timeout(MINUTE, async { (sent.await, waiting.await) });
    let (sent, waiting) = answers.await.unwrap();
    assert!(matches!(sent, Err(PublishError::Unknown(_))), "{sent:?}");
    assert!(matches!(waiting, Err(PublishError::NotAccepted(_))), "{waiting:?}");
    broker.will(Produce::Answer(well));
    recovers(&publisher).await;
    let requests = broker.produced.lock().unwrap();
    let sizes: Vec<_> = requests.iter().flatten().flat_map(|(_, values)| values).map(Vec::len).collect();
    assert_eq!(sizes.iter().min(), sizes.iter().max(), "the record of another size was not accepted: {sizes:?}");
}

#[tokio::test]
async fn each_partition_has_the_fate_its_leader_told() {
    let (broker, publisher) = fake(3, &[]).await;
    // 0: taken, 1: refused for good (invalid topic), 2: not enough replicas after it was written.
    broker.will(Produce::Answer(|request| request.iter().map(|(p, _)| (*p, [0, 17, 20][*p as usize])).collect()));
    let users: Vec<String> = (0..60).map(|n| format!("u{n}")).collect();
    let outcomes = join_all(users.iter().map(|user| publish(&publisher, user, 1))).await;
    for (user, outcome) in users.iter().zip(&outcomes) {
        let as_told = match partition_of(user.as_bytes(), 3) {
            0 => matches!(outcome, Ok(at) if at.partition == 0),
            1 => matches!(outcome, Err(PublishError::Refused(_))),
            _ => matches!(outcome, Err(PublishError::Unknown(_))),
        };
        assert!(as_told, "{user}: {outcome:?}");
    }
}

/// What a leader says that has not written anything: topic or partition unknown, no leader, replicas are missing, a record
/// that was damaged on its way.
const NOT_WRITTEN: [i16; 4] = [3, 5, 19, 2];
const NOT_THE_LEADER: i16 = 6;
const NOT_PERMITTED: i16 = 29;

/// A broker that answers with these codes, one after the other, and then without an error.
fn answer_each(broker: &FakeBroker, codes: impl IntoIterator<Item = i16>) {
    broker.will(Produce::AnswerEach(Arc::new(Mutex::new(codes.into_iter().collect()))));
}

#[tokio::test]
async fn what_a_leader_did_not_take_is_sent_again_in_its_order() {
    let (broker, publisher) = fake(1, &[]).await;
    recovers(&publisher).await;
    for code in NOT_WRITTEN.into_iter().chain([NOT_THE_LEADER]) {
        answer_each(&broker, [code, code]);
        broker.produced.lock().unwrap().clear();
        let outcomes = join_all((0..20).map(|n| publish(&publisher, "u", 100 + n))).await;
        assert!(outcomes.iter().all(Result::is_ok), "{code}: {outcomes:?}");
        let requests = broker.produced.lock().unwrap();
        let records = |request: &Request| request.iter().flat_map(|(_, values)| values.clone()).collect::<Vec<_>>();
        let (rejected, taken) = requests.split_at(2);
        let taken: Vec<usize> = taken.iter().flat_map(records).map(|value| value.len()).collect();
        assert!(taken.len() == 20 && taken.is_sorted(), "{code}: {taken:?}");
        assert!(rejected.iter().all(|request| !records(request).is_empty()), "{code}");
    }
}

#[tokio::test]
async fn what_is_sent_one_by_one_keeps_its_order_when_the_leader_changes_in_between() {
    const TOO_LARGE: i16 = 10;
    let (broker, publisher) = fake(1, &[]).await;
    recovers(&publisher).await;
    // Held up by this one, the others come together.
    let go = Arc::new(Notify::new());
    broker.will(Produce::AnswerLater(Arc::clone(&go)));
    let before = broker.produced.lock().unwrap().len();
    let first = publish(&publisher, "u", 99);
    requests(&broker, before + 1).await;
    let others: Vec<_> = (0..5).map(|n| publish(&publisher, "u", 100 + n)).collect();
    answer_each(&broker, [TOO_LARGE, 0, NOT_THE_LEADER]);
    go.notify_one();
    first.await.unwrap();
    let outcomes = join_all(others).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let requests = broker.produced.lock().unwrap();
    let sizes: Vec<Vec<usize>> =
        requests[before + 1..].iter().map(|request| request[0].1.iter().map(Vec::len).collect()).collect();
    let size = |n: usize| sizes[0][0] + n;
    // Together, the first alone, the second alone and rejected, and then it with all behind it.
    assert_eq!(sizes[1..], [vec![size(0)], vec![size(1)], (1..5).map(size).collect()], "{sizes:?}");
}

#[tokio::test]
async fn what_no_leader_ever_wrote_is_not_accepted_and_a_new_client_goes_on() {
    let (broker, publisher) = fake(1, &[]).await;
    for code in NOT_WRITTEN {
        recovers(&publisher).await;
        answer_each(&broker, [code; 100]);
        let outcome = publish(&publisher, "u", 1).await;
        assert!(matches!(outcome, Err(PublishError::NotAccepted(_))), "{code}: {outcome:?}");
        broker.will(Produce::Answer(well));
    }
}

#[tokio::test]
async fn a_leader_that_ceased_to_be_one_may_have_written_what_it_had_to_wait_for() {
    let (broker, publisher) = fake(1, &[]).await;
    // Whatever is said of a later try, it says nothing of the first one.
    for later in [NOT_THE_LEADER, NOT_WRITTEN[2], NOT_PERMITTED] {
        recovers(&publisher).await;
        answer_each(&broker, std::iter::once(NOT_THE_LEADER).chain([later; 100]));
        let outcome = publish(&publisher, "u", 1).await;
        assert!(matches!(outcome, Err(PublishError::Unknown(_))), "{later}: {outcome:?}");
        broker.will(Produce::Answer(well));
    }
}

/// As a broker whose `max.message.bytes` is below two of these records: it refuses what comes together.
fn one_at_a_time(request: &Request) -> Vec<(i32, i16)> {
    let too_large = |values: &Vec<Vec<u8>>| values.len() > 1 || values[0].len() > 5_000;
    request.iter().map(|(partition, values)| (*partition, if too_large(values) { 10 } else { 0 })).collect()
}

#[tokio::test]
async fn records_that_are_too_large_only_together_are_not_refused() {
    let (broker, publisher) = fake(1, &[]).await;
    broker.will(Produce::Answer(one_at_a_time));
    let sizes = [10, 20, 6_000, 30, 40];
    let outcomes = join_all(sizes.map(|size| publish(&publisher, "u", size))).await;
    for (size, outcome) in sizes.iter().zip(&outcomes) {
        match size {
            6_000 => assert!(matches!(outcome, Err(PublishError::TooLarge { .. })), "{outcome:?}"),
            _ => assert!(outcome.is_ok(), "{size}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn a_leader_that_fails_does_not_touch_the_records_of_another() {
    let mut settings = settings("set below", &[]);
    let brokers = cluster(&settings.topics.events, 2, 2).await;
    brokers[0].address().clone_into(&mut settings.brokers);
    let publisher = publisher(&settings);
    brokers[1].will(Produce::Close);
    let users: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
    let outcomes = join_all(users.iter().map(|user| publish(&publisher, user, 1))).await;
    for (user, outcome) in users.iter().zip(&outcomes) {
        let well = partition_of(user.as_bytes(), 2) == 0;
        assert_eq!(outcome.is_ok(), well, "{user}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_publisher_that_is_dropped_answers_what_it_has() {
    let (broker, publisher) = fake(1, &[TIMEOUT_FLAG, "8000"]).await;
    broker.will(Produce::Hang);
    let sent = publish(&publisher, "u", 1);
    requests(&broker, 1).await;
    let waiting = publish(&publisher, "u", 1);
    drop(publisher);
    let waiting = waiting.now_or_never().unwrap();
    assert!(matches!(waiting, Err(PublishError::NotAccepted(_))), "{waiting:?}");
    assert!(matches!(sent.await, Err(PublishError::Unknown(_))));
}

#[tokio::test]
async fn partitions_that_are_added_get_records() {
    let (settings, publisher) = topics(Backend::KafkaRust, &["--kafka-topic-partitions", "1"]).await;
    assert_eq!(publish(&*publisher, "u", 1).await.unwrap().partition, 0);
    let more = NewPartitions::new(&settings.topics.events, 4);
    admin(&settings).create_partitions([&more], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    let user = (0..).map(|n| format!("u{n}")).find(|user| partition_of(user.as_bytes(), 4) == 3).unwrap();
    let start = Instant::now();
    // A new partition may have no leader for a moment.
    while !publish(&*publisher, &user, 1).await.is_ok_and(|at| at.partition == 3) {
        assert!(start.elapsed() < MINUTE, "the new partitions are not seen");
    }
}

#[tokio::test]
async fn a_broker_that_has_dropped_the_crates_protocol_versions_is_refused_with_the_reason() {
    let settings = settings(&required("TEST_KAFKA_BROKERS"), &[]);
    create_topics(&settings, CLIENT).await.unwrap();
    let publisher = publisher(&settings);
    let check = Check::new("producer", "not asked yet");
    let why = tokio::time::timeout(MINUTE, publisher.watch(&check, Duration::from_millis(20))).await.unwrap();
    for part in [settings.brokers.as_str(), "--kafka-client rdkafka", "Fetch 4 to", "3.9"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(!check.get().ok);
    let outcome = publish(&publisher, "u", 1).await;
    assert!(matches!(outcome, Err(PublishError::NotAccepted(_))), "{outcome:?}");
}

#[tokio::test]
async fn the_next_broker_of_the_list_is_taken_when_the_first_is_away() {
    let (settings, _) = topics(Backend::KafkaRust, &[]).await;
    let brokers = format!("127.0.0.1:9, {}", settings.brokers);
    let publisher = publisher(&KafkaSettings { brokers, ..settings });
    let check = Check::new("producer", "not asked yet");
    tokio::select! {
        why = publisher.watch(&check, Duration::from_millis(20)) => panic!("{why}"),
        _ = becomes(&check, true) => {}
    }
    publish(&publisher, "u", 1).await.unwrap();
}
