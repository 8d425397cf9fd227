//! One client of the crate `kafka`, for as long as nothing goes wrong with it: it never reconnects by itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use kafka::client::{KafkaClient, ProduceConfirm, RequiredAcks};
use kafka::error::KafkaCode;
use kafka::producer::{Producer, Record};

use super::Stop;
use super::queue::Pending;
use crate::kafka::murmur2::partition_of;
use crate::kafka::{Delivered, PublishError};

/// In milliseconds, before each further try of what leaders rejected. A new leader is elected within such times.
const PAUSES: [u64; 4] = [25, 50, 100, 200];

/// A client that has the topic's metadata.
pub(super) struct Link {
    producer: Producer,
    topic: String,
    /// How long further tries may begin: with the longest request behind them, a batch is done before it counts as hung.
    tries_for: Duration,
}

/// What a client is made of.
#[derive(Debug, Clone)]
pub(super) struct LinkSettings {
    /// Each `host:port`.
    pub(super) brokers: Vec<String>,
    pub(super) topic: String,
    pub(super) client_id: String,
    /// What a leader is given to have the record on all in-sync replicas.
    pub(super) ack_timeout: Duration,
}

/// A record and the partition its key chooses.
struct Placed {
    partition: i32,
    record: Pending,
}

/// What a try has left to be answered.
#[derive(Default)]
struct Left {
    /// What leaders did not take, in the order it came.
    rejected: Vec<Pending>,
    /// The last reason.
    why: String,
    /// Whether this is a further try.
    again: bool,
}

impl Left {
    fn reject(&mut self, mut record: Pending, in_doubt: bool, why: String) {
        record.let_go(in_doubt);
        self.rejected.push(record);
        self.why = why;
    }

    /// There is no leader to send it to. Others would wait with it in the first try, and the next refresh of the metadata
    /// may find one; in a further try the others are waiting already.
    fn leaderless(&mut self, mut record: Pending, partition: i32) {
        let why = format!("partition {partition} has no leader");
        if self.again {
            self.reject(record, false, why);
        } else {
            record.let_go(false);
            record.give_up(why);
        }
    }
}

impl Link {
    /// A client that starts from `broker`. Blocks, in the worst case for minutes: the crate connects without a time-out
    /// and reads with one of two minutes.
    pub(super) fn connect(settings: &LinkSettings, broker: &str) -> Result<Self, Stop> {
        let mut client = KafkaClient::new(vec![broker.to_owned()]);
        client.set_client_id(settings.client_id.clone());
        // Of all topics: asking for one by its name creates it where the brokers have auto-creation on.
        client.load_metadata_all().map_err(lost)?;
        let producer = Producer::from_client(client)
            .with_required_acks(RequiredAcks::All)
            .with_ack_timeout(settings.ack_timeout)
            .create()
            .map_err(lost)?;
        let link = Self { producer, topic: settings.topic.clone(), tries_for: settings.ack_timeout / 3 };
        link.leaders().map_err(Stop::Lost)?;
        Ok(link)
    }

    /// Learns of new partitions and leaders. Blocks as [`Link::connect`] does.
    pub(super) fn refresh(&mut self) -> Result<(), Stop> {
        self.producer.client_mut().load_metadata(&[&self.topic]).map_err(lost)?;
        self.leaders().map(drop).map_err(Stop::Lost)
    }

    /// The `host:port` of each partition's leader, where there is one.
    fn leaders(&self) -> Result<Vec<Option<String>>, String> {
        let topics = self.producer.client().topics();
        let partitions = topics.partitions(&self.topic).filter(|partitions| !partitions.is_empty());
        let partitions = partitions.ok_or_else(|| format!("the topic {} does not exist (yet)", self.topic))?;
        let count = i32::try_from(partitions.len()).unwrap_or(i32::MAX);
        let leader = |id| partitions.partition(id).and_then(|p| p.leader().map(|broker| broker.host().to_owned()));
        Ok((0..count).map(leader).collect())
    }

    /// What readiness is to say, if anything: partitions without a leader take no records, the others do.
    pub(super) fn complaint(&self) -> Option<String> {
        let leaders = self.leaders().ok()?;
        let without = leaders.iter().filter(|leader| leader.is_none()).count();
        (without > 0).then(|| format!("{without} of {} partitions of {} have no leader", leaders.len(), self.topic))
    }

    /// Sends a batch, one request to each leader, and answers every record. What leaders do not take is sent again, to whom
    /// the metadata name then. Blocks as [`Link::connect`] does.
    ///
    /// # Errors
    /// When this client must not be used any more.
    pub(super) fn send(&mut self, batch: Vec<Pending>) -> Result<(), Stop> {
        let (start, mut left) = (Instant::now(), Left::default());
        let mut result = self.try_once(batch, &mut left);
        left.again = true;
        for pause in PAUSES {
            if result.is_err() || left.rejected.is_empty() || start.elapsed() > self.tries_for {
                break;
            }
            wait(Duration::from_millis(pause));
            result = self.refresh().and_then(|()| self.try_again(&mut left));
        }
        if !left.rejected.is_empty() {
            result = result.and_then(|()| Err(Stop::Lost(left.why.clone())));
        }
        left.rejected.into_iter().for_each(|record| record.give_up(left.why.clone()));
        result
    }

    fn try_again(&mut self, left: &mut Left) -> Result<(), Stop> {
        let now = Instant::now();
        let mut again = std::mem::take(&mut left.rejected);
        again.retain(|record| record.claim(now));
        self.try_once(again, left)
    }

    fn try_once(&mut self, batch: Vec<Pending>, left: &mut Left) -> Result<(), Stop> {
        let leaders = match self.leaders() {
            Ok(leaders) => leaders,
            Err(why) => {
                batch.into_iter().for_each(|record| left.reject(record, false, why.clone()));
                return Err(Stop::Lost(why));
            }
        };
        let mut result = Ok(());
        // A leader that fails makes the fate of its own records unknown, not that of the others.
        for group in by_leader(batch, &leaders, left).into_values() {
            result = result.and(self.send_group(group, left));
        }
        result
    }

    fn send_group(&mut self, mut group: Vec<Placed>, left: &mut Left) -> Result<(), Stop> {
        // Of those whose time is over the publishers have said so. Another thread may have taken over by now, and sent what
        // comes behind them.
        let now = Instant::now();
        group.retain(|placed| placed.record.is_in_time(now));
        if group.is_empty() {
            return Ok(());
        }
        let topic = self.topic.as_str();
        let records: Vec<Record<'_, &[u8], &[u8]>> = group
            .iter()
            .map(|p| Record::from_key_value(topic, &*p.record.key, &*p.record.value).with_partition(p.partition))
            .collect();
        match self.producer.send_all(&records) {
            Ok(confirms) => self.settle(group, &confirms, left),
            Err(error) => {
                // It does not say what the leader has got of it.
                for placed in group {
                    placed.record.answer(Err(PublishError::Unknown(error.to_string())));
                }
                Err(lost(error))
            }
        }
    }

    /// Answers each record by what its leader said of its partition.
    fn settle(&mut self, group: Vec<Placed>, confirms: &[ProduceConfirm], left: &mut Left) -> Result<(), Stop> {
        let confirms = confirms.iter().filter(|confirm| confirm.topic == self.topic);
        let said: HashMap<i32, Result<i64, KafkaCode>> =
            confirms.flat_map(|c| &c.partition_confirms).map(|p| (p.partition, p.offset)).collect();
        let (mut result, mut seen, mut too_large) = (Ok(()), HashMap::<i32, i64>::new(), Vec::new());
        let single = group.len() == 1;
        for Placed { partition, record } in group {
            match said.get(&partition) {
                // The offset of the first one; a leader appends what one request has for a partition in one piece.
                Some(Ok(first)) => {
                    let before = seen.entry(partition).or_default();
                    record.answer(Ok(Delivered { partition, offset: first + *before }));
                    *before += 1;
                }
                Some(Err(KafkaCode::MessageSizeTooLarge | KafkaCode::RecordListTooLarge)) if !single => {
                    too_large.push(Placed { partition, record });
                }
                Some(Err(code)) => {
                    let why = format!("partition {partition}: {code:?}");
                    match fate(*code) {
                        Fate::TooLarge => record.refuse(why, true),
                        Fate::Refused => record.refuse(why, false),
                        Fate::NotWritten => left.reject(record, false, why),
                        Fate::InDoubt => left.reject(record, true, why),
                        Fate::Unknown => {
                            record.answer(Err(PublishError::Unknown(why.clone())));
                            result = Err(Stop::Lost(why));
                        }
                    }
                }
                None => {
                    result = Err(Stop::Lost("the broker did not answer for every partition".into()));
                    record.answer(Err(PublishError::Unknown("the broker did not answer for its partition".into())));
                }
            }
        }
        // Nothing of these was written: one of them is too large, or all of them together.
        self.send_one_by_one(too_large, left).and(result)
    }

    /// Sends each in a request of its own, but none behind one of its partition that has to be sent again: they keep their
    /// order. After an error that ends this client none is sent any more.
    fn send_one_by_one(&mut self, group: Vec<Placed>, left: &mut Left) -> Result<(), Stop> {
        let (mut result, mut behind) = (Ok(()), HashSet::new());
        for placed in group {
            let (partition, before) = (placed.partition, left.rejected.len());
            if result.is_err() || behind.contains(&partition) {
                left.reject(placed.record, false, left.why.clone());
                continue;
            }
            result = self.send_group(vec![placed], left);
            if let Err(Stop::Lost(why)) = &result {
                left.why.clone_from(why);
            }
            if left.rejected.len() > before {
                behind.insert(partition);
            }
        }
        result
    }
}

/// The batch by its partitions' leaders, each `host:port`.
fn by_leader(batch: Vec<Pending>, leaders: &[Option<String>], left: &mut Left) -> BTreeMap<String, Vec<Placed>> {
    let count = i32::try_from(leaders.len()).unwrap_or(i32::MAX);
    let mut groups: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
    for record in batch {
        let partition = partition_of(&record.key, count);
        let leader = usize::try_from(partition).ok().and_then(|index| leaders.get(index)).and_then(Option::clone);
        match leader {
            Some(leader) => groups.entry(leader).or_default().push(Placed { partition, record }),
            None => left.leaderless(record, partition),
        }
    }
    groups
}

#[expect(clippy::disallowed_methods, reason = "on the crate's own thread, not on one of the runtime's")]
fn wait(pause: Duration) {
    std::thread::sleep(pause);
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn lost(error: kafka::Error) -> Stop {
    Stop::Lost(format!("the brokers were lost: {error}"))
}

/// What a leader's error code for a partition means for its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Larger than the topic takes.
    TooLarge,
    /// Rejected for their own sake, for good.
    Refused,
    /// Rejected before anything was written; another leader, or the same one later, may take them.
    NotWritten,
    /// As [`Fate::NotWritten`], or written by a leader that ceased to be one while it waited for its replicas.
    InDoubt,
    /// Written, or nobody knows; whether they stay is open.
    Unknown,
}

/// Kafka's errors (<https://kafka.apache.org/protocol#protocol_error_codes>) by what its `ReplicaManager` has done when
/// it answers a request with `acks=all` so. A leader checks that it is one, and that enough replicas are in sync, before
/// it writes. But it says "not the leader" also when it loses the partition while it waits for its replicas, having written
/// (`DelayedProduce`); only the offset in the answer tells the two apart, which the crate drops.
fn fate(code: KafkaCode) -> Fate {
    match code {
        KafkaCode::MessageSizeTooLarge | KafkaCode::RecordListTooLarge => Fate::TooLarge,
        KafkaCode::InvalidMessageSize
        | KafkaCode::InvalidTopic
        | KafkaCode::InvalidTimestamp
        | KafkaCode::TopicAuthorizationFailed
        | KafkaCode::ClusterAuthorizationFailed => Fate::Refused,
        KafkaCode::NotLeaderForPartition => Fate::InDoubt,
        KafkaCode::LeaderNotAvailable
        | KafkaCode::ReplicaNotAvailable
        | KafkaCode::BrokerNotAvailable
        | KafkaCode::UnknownTopicOrPartition
        | KafkaCode::NotEnoughReplicas
        | KafkaCode::CorruptMessage
        | KafkaCode::InvalidRequiredAcks
        | KafkaCode::UnsupportedVersion => Fate::NotWritten,
        _ => Fate::Unknown,
    }
}
