//! One client of the crate `kafka`, for as long as nothing goes wrong with it: it never reconnects by itself.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kafka::client::{KafkaClient, ProduceConfirm, RequiredAcks};
use kafka::error::KafkaCode;
use kafka::producer::{Producer, Record};

use super::Stop;
use super::queue::Pending;
use crate::kafka::murmur2::partition_of;
use crate::kafka::{Delivered, PublishError};

/// A client that has the topic's metadata.
pub(super) struct Link {
    producer: Producer,
    topic: String,
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
        let link = Self { producer, topic: settings.topic.clone() };
        link.leaders().map(|_| link)
    }

    /// Learns of new partitions and leaders. Blocks as [`Link::connect`] does.
    pub(super) fn refresh(&mut self) -> Result<(), Stop> {
        self.producer.client_mut().load_metadata(&[&self.topic]).map_err(lost)?;
        self.leaders().map(drop)
    }

    /// The `host:port` of each partition's leader, where there is one.
    fn leaders(&self) -> Result<Vec<Option<String>>, Stop> {
        let topics = self.producer.client().topics();
        let partitions = topics.partitions(&self.topic).filter(|partitions| !partitions.is_empty());
        let partitions =
            partitions.ok_or_else(|| Stop::Lost(format!("the topic {} does not exist (yet)", self.topic)))?;
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

    /// Sends a batch, one request to each leader, and answers every record. Blocks as [`Link::connect`] does.
    ///
    /// # Errors
    /// When this client must not be used any more.
    pub(super) fn send(&mut self, batch: Vec<Pending>) -> Result<(), Stop> {
        let mut result = Ok(());
        // A leader that fails makes the fate of its own records unknown, not that of the others.
        for group in self.by_leader(batch)?.into_values() {
            result = result.and(self.send_group(group));
        }
        result
    }

    fn by_leader(&self, batch: Vec<Pending>) -> Result<BTreeMap<String, Vec<Placed>>, Stop> {
        let leaders = self.leaders()?;
        let count = i32::try_from(leaders.len()).unwrap_or(i32::MAX);
        let mut groups: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
        for record in batch {
            let partition = partition_of(&record.key, count);
            let leader = usize::try_from(partition).ok().and_then(|index| leaders.get(index)).and_then(Option::clone);
            match leader {
                Some(leader) => groups.entry(leader).or_default().push(Placed { partition, record }),
                None => record.answer(Err(PublishError::NotAccepted(format!("partition {partition} has no leader")))),
            }
        }
        Ok(groups)
    }

    fn send_group(&mut self, group: Vec<Placed>) -> Result<(), Stop> {
        let topic = self.topic.as_str();
        let records: Vec<Record<'_, &[u8], &[u8]>> = group
            .iter()
            .map(|p| Record::from_key_value(topic, &*p.record.key, &*p.record.value).with_partition(p.partition))
            .collect();
        match self.producer.send_all(&records) {
            Ok(confirms) => self.settle(group, &confirms),
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
    fn settle(&mut self, group: Vec<Placed>, confirms: &[ProduceConfirm]) -> Result<(), Stop> {
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
                    let error = classify(*code);
                    if !matches!(error, PublishError::Refused(_)) {
                        result = Err(Stop::Lost(format!("partition {partition}: {code:?}")));
                    }
                    record.answer(Err(error));
                }
                None => {
                    result = Err(Stop::Lost("the broker did not answer for every partition".into()));
                    record.answer(Err(PublishError::Unknown("the broker did not answer for its partition".into())));
                }
            }
        }
        // Nothing of these was written: one of them is too large, or all of them together.
        too_large.into_iter().try_for_each(|placed| self.send_group(vec![placed])).and(result)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn lost(error: kafka::Error) -> Stop {
    Stop::Lost(format!("the brokers were lost: {error}"))
}

/// What a leader's error code for a partition means for its records. With `acks=all` a leader that answers "not the
/// leader" or "timed out" may have written them before; only what it rejects for their own sake is certain.
fn classify(code: KafkaCode) -> PublishError {
    let text = format!("{code:?}");
    match code {
        KafkaCode::MessageSizeTooLarge
        | KafkaCode::RecordListTooLarge
        | KafkaCode::InvalidMessageSize
        | KafkaCode::InvalidTopic
        | KafkaCode::InvalidTimestamp
        | KafkaCode::TopicAuthorizationFailed
        | KafkaCode::ClusterAuthorizationFailed => PublishError::Refused(text),
        _ => PublishError::Unknown(text),
    }
}
