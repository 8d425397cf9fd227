//! Poison never blocks and never vanishes.

use anyhow::ensure;
use chrono::{Duration, Utc};
use e2e::{
    PATIENCE, eventually,
    kafka::{Located, Record},
    redis_server::RedisServer,
    sample::{event, nested, text},
    service::Service,
    world::World,
};
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};

/// Each kind of record that cannot be an event.
fn poison() -> Vec<Option<Vec<u8>>> {
    let tomorrow = (Utc::now() + Duration::hours(25)).to_rfc3339();
    let wrong_members = [
        ("eventId", "".to_owned()),
        ("eventId", "7".to_owned()),
        ("eventId", "null".to_owned()),
        ("eventId", text(0)),
        ("eventId", text(65)),
        ("userId", "".to_owned()),
        ("userId", "7".to_owned()),
        ("userId", text(0)),
        ("userId", r#"" \t ""#.to_owned()),
        ("userId", text(257)),
        ("userId", r#""\ud83d""#.to_owned()),
        // As large as a topic takes: it must fit once more with its new headers.
        ("userId", text(1_047_900)),
        ("eventType", "".to_owned()),
        ("eventType", "{}".to_owned()),
        ("eventType", r#""SIGNUP""#.to_owned()),
        ("eventType", r#""login""#.to_owned()),
        ("timestamp", "".to_owned()),
        ("timestamp", "1760000000000".to_owned()),
        ("timestamp", r#""yesterday""#.to_owned()),
        ("timestamp", r#""2026-02-17 at ten""#.to_owned()),
        ("timestamp", r#""2026-02-30T10:00:00Z""#.to_owned()),
        ("timestamp", r#""1969-12-31T23:59:59.999Z""#.to_owned()),
        ("timestamp", format!(r#""{tomorrow}""#)),
        ("payload", "null".to_owned()),
        ("payload", "[]".to_owned()),
        ("payload", text(2)),
        ("payload", "1".to_owned()),
        ("payload", nested(129)),
        ("payload", nested(10_000)),
    ];
    let mut values: Vec<Option<Vec<u8>>> = vec![None];
    let texts = ["", "not json", "[]", "null", "42", "\"text\"", "{}", "\0\0\0", "\u{feff}{}"];
    values.extend(texts.map(|text| Some(text.into())));
    let mut truncated = event(&[]);
    truncated.pop();
    values.push(Some(truncated));
    values.push(Some([event(&[]), event(&[])].concat()));
    values.push(Some(event(&[("payload", r#"{},"userId":"again""#)])));
    values.push(Some(event(&[("payload", "{\"nul\":\"\0\"}")])));
    values.push(Some(b"\xff\xfe\x00".to_vec()));
    let invalid_text = event(&[("payload", r##"{"a":"#"}"##)]);
    values.push(Some(invalid_text.into_iter().map(|byte| if byte == b'#' { 0xff } else { byte }).collect()));
    values.push(Some("[".repeat(10_000).into()));
    values.extend(wrong_members.iter().map(|(name, value)| Some(event(&[(*name, value.as_str())]))));
    values
}

/// Headers that no text type would survive.
fn kept_headers() -> [(String, Option<Vec<u8>>); 2] {
    let name = || "trace".to_owned();
    [(name(), Some(b"\x00\xff".to_vec())), (name(), None)]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_poison_is_dead_lettered_byte_for_byte_and_its_neighbours_are_processed() {
    // What a worker has to read again is dead-lettered once more, which is right, but not what is counted here.
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    let kafka = world.kafka();
    let mut records = vec![Record::of(event(&[]))];
    for (number, value) in poison().into_iter().enumerate() {
        let mut headers = kept_headers().to_vec();
        // From an earlier life as a dead letter: what is added now counts.
        headers.push(("kafka_dlt-original-topic".to_owned(), Some(b"an earlier one".to_vec())));
        // A minute apart in the past: a time stamp made later would show.
        let timestamp = Some(Utc::now().timestamp_millis() - 60_000 * i64::try_from(number).unwrap());
        let key = (number % 3 != 0).then(|| format!("key {number} \u{e9}").into_bytes());
        records.push(Record { key, value, headers, timestamp });
        records.push(Record::of(event(&[("other", "1")])));
    }
    let written = kafka.write(&world.topic, Some(2), &records).await;
    let (poison, good): (Vec<_>, Vec<_>) = written.iter().partition(|place| !place.record.headers.is_empty());

    // The neighbours are processed.
    api.client.listed(good.len()).await;
    let letters = eventually("the dead letters are there", async || {
        let letters = kafka.read(&world.dead_letter_topic)?;
        ensure!(letters.len() == poison.len(), "{} of {}", letters.len(), poison.len());
        Ok(letters)
    })
    .await;
    for original in poison {
        let offset = original.offset.to_string();
        let mut found =
            letters.iter().filter(|letter| letter.record.header("__connect.errors.offset") == Some(offset.as_bytes()));
        let letter = found.next().unwrap_or_else(|| panic!("no dead letter of {}", describe(original)));
        assert!(found.next().is_none(), "two dead letters of {}", describe(original));
        is_the_dead_letter_of(&world, &letter.record, original);
    }
    worker.ready().await;
}

fn is_the_dead_letter_of(world: &World, letter: &Record, original: &Located) {
    let what = describe(original);
    assert_eq!(letter.key, original.record.key, "the key of {what}");
    assert!(letter.value == original.record.value, "the value of {what}");
    assert_eq!(letter.timestamp, original.record.timestamp, "the timestamp of {what}");
    assert!(letter.headers.starts_with(&kept_headers()), "the headers of {what}: {:?}", letter.headers);

    let header =
        |name: &str| letter.header(name).unwrap_or_else(|| panic!("no header {name} on the dead letter of {what}"));
    let words = |name: &str| String::from_utf8(header(name).to_vec()).expect("text");
    let (partition, offset) = (original.partition, original.offset);
    assert_eq!(words("__connect.errors.topic"), world.topic);
    assert_eq!(words("__connect.errors.partition"), partition.to_string());
    assert_eq!(words("__connect.errors.offset"), offset.to_string());
    assert_eq!(words("kafka_dlt-original-topic"), world.topic, "the last header of a name counts");
    assert_eq!(header("kafka_dlt-original-partition"), partition.to_be_bytes());
    assert_eq!(header("kafka_dlt-original-offset"), offset.to_be_bytes());
    let timestamp = original.record.timestamp.expect("a timestamp");
    assert_eq!(header("kafka_dlt-original-timestamp"), timestamp.to_be_bytes());
    assert_eq!(words("kafka_dlt-original-timestamp-type"), "CreateTime");
    assert_eq!(words("kafka_dlt-original-consumer-group"), world.group);
    for name in [
        "__connect.errors.stage",
        "__connect.errors.exception.class.name",
        "__connect.errors.exception.message",
        "kafka_dlt-exception-fqcn",
        "kafka_dlt-exception-message",
        "dead-letter-reason",
        "dead-letter-worker",
        "dead-letter-attempts",
    ] {
        assert!(!words(name).is_empty(), "{name} of the dead letter of {what}");
    }
}

fn describe(original: &Located) -> String {
    let value = original.record.value.as_deref().map(String::from_utf8_lossy);
    format!("offset {}: {:.80?}", original.offset, value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_cannot_be_published_is_waited_for() {
    let world = World::shared().with_short_session();
    let kafka = world.kafka();
    // It takes nothing at all, not even the headers alone.
    let closed = ("max.message.bytes", "1");
    kafka.create_topic(&world.dead_letter_topic, 6, closed).await.unwrap();
    let (api, mut worker) = world.start().await;
    let good = || Record::of(event(&[]));
    let poison = Record::of("poison".repeat(100));
    kafka.write(&world.topic, Some(4), &[good(), poison, good()]).await;
    let listed = async || Ok(api.client.list().await?.len()) as anyhow::Result<usize>;
    eventually("the worker says what is wrong", async || {
        let said = worker.process.output();
        ensure!(said.contains(&world.dead_letter_topic) && said.contains("ERROR"), "{said}");
        Ok(())
    })
    .await;
    waits_at_the_dead_letter(&worker).await;
    kafka.write(&world.topic, Some(1), &[good()]).await;
    eventually("the other partitions go on", async || {
        let listed = listed().await?;
        ensure!(listed >= 2, "{listed}");
        Ok(())
    })
    .await;
    // Whoever takes over meets the same poison at the same place.
    worker.process.kill().await;
    let heir = world.spawn_worker();
    waits_at_the_dead_letter(&heir).await;
    assert_eq!(listed().await.unwrap(), 2, "an event does not overtake a dead letter");
    assert!(kafka.read(&world.dead_letter_topic).unwrap().is_empty());
    kafka.reset_topic_settings(&world.dead_letter_topic).await.unwrap();
    eventually("the dead letter is there and everything is processed", async || {
        let letters = kafka.read(&world.dead_letter_topic)?;
        ensure!(!letters.is_empty());
        let listed = listed().await?;
        ensure!(listed == 3, "{listed} of 3");
        Ok(())
    })
    .await;
}

async fn waits_at_the_dead_letter(worker: &Service) {
    eventually("readiness names the dead letter", async || {
        let unready = worker.client.get("/readyz").await?.with_status(503)?.text();
        ensure!(unready.contains("partition 4 can't publish the dead letter of offset 1"), "{unready}");
        Ok(())
    })
    .await;
}

/// A topic measures a record as it comes. This one is 2.4 MB unpacked, more than either topic takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_record_that_came_compressed_is_dead_lettered_byte_for_byte() {
    let world = World::shared();
    let (api, mut worker) = world.start().await;
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", e2e::env::kafka_brokers());
    settings.set("compression.type", "lz4").set("message.max.bytes", "8000000");
    let producer: FutureProducer = settings.create().unwrap();
    let poison = "poison".repeat(400_000);
    for value in [poison.as_bytes(), &event(&[])] {
        let record = FutureRecord::<(), _>::to(&world.topic).partition(0).payload(value);
        producer.send(record, PATIENCE).await.unwrap();
    }
    api.client.listed(1).await;
    let letters = world.kafka().read(&world.dead_letter_topic).unwrap();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].record.value.as_deref() == Some(poison.as_bytes()), "it is not the same");
    assert_eq!(letters[0].record.header("dead-letter-truncated"), None);
    assert_eq!(truncated(&mut worker).await, 0);
}

/// The counter of dead letters that were cut.
async fn truncated(worker: &mut Service) -> u64 {
    let metrics = worker.answers("/metrics", 200).await.text();
    let name = "user_activity_dead_letters_truncated_total ";
    metrics.lines().find_map(|line| line.strip_prefix(name)).expect("a metric").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_too_large_for_its_topic_leaves_a_stub_and_stops_nothing() {
    let world = World::shared();
    let kafka = world.kafka();
    kafka.create_topic(&world.topic, 6, ("max.message.bytes", "4000000")).await.unwrap();
    kafka.create_topic(&world.dead_letter_topic, 6, ("max.message.bytes", "1048588")).await.unwrap();
    let (api, mut worker) = world.start().await;
    // Not to be compressed.
    let poison: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(2_000_000).collect();
    let header = |name: &str, size: usize| (name.to_owned(), Some(vec![b'h'; size]));
    let headers = vec![header("large", 100_000), header("small", 10)];
    let key = Some(b"a key".to_vec());
    let large = Record { key: key.clone(), headers: headers.clone(), ..Record::of(poison.clone()) };
    let written = kafka.write(&world.topic, Some(3), &[large, Record::of(event(&[]))]).await;
    api.client.listed(1).await;

    let letters = kafka.read(&world.dead_letter_topic).unwrap();
    assert_eq!(letters.len(), 1);
    let stub = &letters[0].record;
    assert_eq!(stub.key, key);
    let (head, tail) = (&poison[..65_536], &poison[2_000_000 - 65_536..]);
    assert!(stub.value.as_deref() == Some(&*[head, tail].concat()), "both ends of the value");
    assert_eq!(stub.headers[0], headers[1], "the original header that fits");
    let words = |name: &str| String::from_utf8(stub.header(name).expect(name).to_vec()).unwrap();
    assert_eq!(words("dead-letter-truncated"), "true");
    assert_eq!((words("dead-letter-value-size"), words("dead-letter-value-head")), ("2000000".into(), "65536".into()));
    let digest = ring::digest::digest(&ring::digest::SHA256, &poison);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(words("dead-letter-value-sha256"), hex);
    assert_eq!(words("__connect.errors.offset"), written[0].offset.to_string());
    assert_eq!((words("kafka_dlt-original-topic"), words("dead-letter-reason")), (world.topic.clone(), "json".into()));
    assert_eq!(truncated(&mut worker).await, 1);
    assert!(worker.process.output().contains("dead letter cut short"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_poison_is_held_back_and_then_goes_on_slowly() {
    let world = World::shared()
        .with("DEAD_LETTER_BREAKER_MIN", "20")
        .with("DEAD_LETTER_BREAKER_PROBE", "1s")
        .with("DEAD_LETTER_BREAKER_RATE", "40");
    let kafka = world.kafka();
    // The first worker's longest hold does not end, however slowly it is looked at.
    let (api, mut worker) = world.clone().with("DEAD_LETTER_BREAKER_HOLD", "1h").start().await;
    let mut flood: Vec<_> = (0..100).map(|number| Record::of(format!("poison {number}"))).collect();
    flood.push(Record::of(event(&[])));
    kafka.write(&world.topic, Some(0), &flood).await;
    is_held(&worker).await;
    let letters = kafka.read(&world.dead_letter_topic).unwrap().len();
    assert!(letters < 100, "{letters} of 100 were dead-lettered before anybody was asked");

    kafka.write(&world.topic, Some(1), &[Record::of(event(&[]))]).await;
    api.client.listed(1).await;
    // After the longest hold of the next one.
    worker.process.terminate(PATIENCE).await;
    let mut worker = world.clone().with("DEAD_LETTER_BREAKER_HOLD", "1s").spawn_worker();
    api.client.listed(2).await;
    let mut letters: Vec<_> =
        kafka.read(&world.dead_letter_topic).unwrap().iter().map(|l| l.record.value.clone()).collect();
    letters.sort();
    letters.dedup();
    assert_eq!(letters.len(), 100, "each of them");
    // No more of it comes.
    worker.answers("/readyz", 200).await;
}

/// Each batch that fills up before the partition is held is dead-lettered: nobody who counts anew may get to fill one.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_partition_is_held_on_by_the_next_worker_when_its_owner_is_killed() {
    let redis = RedisServer::start().await;
    let world = World::on_redis(&redis.url())
        .with_short_session()
        .with("DEAD_LETTER_BREAKER_MIN", "1200")
        .with("DEAD_LETTER_BREAKER_WINDOW", "1200")
        .with("DEAD_LETTER_BREAKER_IN_A_ROW", "1200")
        .with("DEAD_LETTER_BREAKER_PROBE", "1s")
        .with("DEAD_LETTER_BREAKER_HOLD", "1h");
    let kafka = world.kafka();
    let (_api, mut worker) = world.start().await;
    let flood: Vec<_> = (0..6_000).map(|number| Record::of(format!("poison {number}"))).collect();
    kafka.write(&world.topic, Some(0), &flood).await;
    is_held(&worker).await;
    eventually("it is noted", async || {
        ensure!(redis.try_command_line::<Vec<String>>("KEYS *held").await?.len() == 1);
        Ok(())
    })
    .await;
    let letters = || kafka.read(&world.dead_letter_topic).unwrap().len();
    let before = letters();
    assert!((500..1200).contains(&before), "{before} were dead-lettered before the partition was held");

    // The partition may move now, or when its owner is dead. Who is given it is not ready, and may never have been.
    let mut heir = world.spawn_worker();
    worker.process.kill().await;
    eventually("the next worker has probed it", async || {
        let metrics = heir.client.get("/metrics").await?.with_status(200)?.text();
        let rewinds = metrics.lines().find_map(|line| line.strip_prefix("user_activity_rewinds_total "));
        ensure!(rewinds.is_some_and(|rewinds| rewinds != "0"), "{rewinds:?}");
        Ok(())
    })
    .await;
    is_held(&heir).await;
    assert_eq!(letters(), before, "dead-lettered: {}", heir.process.output().matches("dead letter:").count());
    heir.process.kill().await;

    eventually("the group is empty, and its positions are set", async || {
        let set = world.worker_command().args(["positions", "set", "--to", "end"]).output().await?;
        ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        Ok(())
    })
    .await;
    let held: Vec<String> = redis.command_line("KEYS *held").await;
    assert!(held.is_empty(), "who starts there need not wait");
}

async fn is_held(worker: &Service) {
    eventually("the partition is held", async || {
        let said = worker.client.get("/readyz").await?.with_status(503)?.text();
        ensure!(said.contains("partition 0 is held"), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_letter_topic_keeps_everything_and_takes_larger_records() {
    let world = World::shared();
    let (_api, _worker) = world.start().await;
    let kafka = world.kafka();
    // The one that has lost the race to make them may be ready before the broker tells of them.
    eventually("both topics have the partitions that are the default", async || {
        let found = (kafka.partitions(&world.topic)?.len(), kafka.partitions(&world.dead_letter_topic)?.len());
        ensure!(found == (6, 6), "{found:?}");
        Ok(())
    })
    .await;
    let setting = async |topic, name| kafka.topic_setting(topic, name).await.unwrap();
    assert_eq!(setting(&world.dead_letter_topic, "retention.ms").await, "-1");
    let largest: usize = setting(&world.topic, "max.message.bytes").await.parse().unwrap();
    let expected = (largest + 64 * 1024).to_string();
    assert_eq!(setting(&world.dead_letter_topic, "max.message.bytes").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_counts_the_dead_letters_of_all_workers_by_reason() {
    // What a worker has to read again is dead-lettered once more, which is right, but not what is counted here.
    let world = World::shared();
    let (api, _first) = world.start().await;
    let _second = world.start_worker().await;
    let kafka = world.kafka();
    eventually("each worker has partitions", async || {
        let shares = kafka.members(&world.group)?;
        ensure!(shares.len() == 2 && shares.values().all(|share| share.len() == 3), "{shares:?}");
        Ok(())
    })
    .await;
    let enums = Record::of(event(&[("eventType", r#""SIGNUP""#)]));
    for partition in 0..6 {
        kafka.write(&world.topic, Some(partition), &[Record::of("poison"), enums.clone(), enums.clone()]).await;
    }
    eventually("they are counted", async || {
        let health: Value = api.client.get("/health").await?.parse()?;
        ensure!(health["deadLetters"] == json!({"json": 6, "enum": 12}), "{}", health["deadLetters"]);
        Ok(())
    })
    .await;
}
