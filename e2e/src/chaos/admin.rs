//! What the fault driver asks of a broker beyond what tests do.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, ConfigSource, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};
use tokio::task::block_in_place;

/// For one question to a broker.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An administrator of the cluster at `host:port`.
#[derive(Debug, Clone)]
pub struct Admin {
    brokers: String,
}

impl Admin {
    /// Connects at each question.
    #[must_use]
    pub fn new(brokers: &str) -> Self {
        Self { brokers: brokers.to_owned() }
    }

    /// Changes one setting of a topic and leaves the others as they are. Gives what it was.
    ///
    /// # Errors
    /// When the broker cannot be asked, or refuses.
    pub async fn change_topic_setting(&self, topic: &str, name: &str, value: &str) -> Result<String> {
        let admin: AdminClient<DefaultClientContext> = self.settings().create()?;
        let (resource, options) = (ResourceSpecifier::Topic(topic), AdminOptions::new().request_timeout(Some(TIMEOUT)));
        let mut answers = admin.describe_configs(&[resource], &options).await?;
        let found = answers.pop().context("an answer")?.map_err(anyhow::Error::msg)?;
        let before = found.get(name).and_then(|entry| entry.value.clone()).context("no such setting")?;
        // What is not named goes back to its default.
        let others = found.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let others = others.filter(|entry| entry.name != name);
        let kept = others.filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?)));
        let change =
            kept.fold(AlterConfig::new(resource).set(name, value), |change, (name, value)| change.set(name, value));
        let answers = admin.alter_configs([&change], &options).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|(_, code)| code)).context("refused")?;
        Ok(before)
    }

    /// How many records of each partition a group has not committed.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub fn lag(&self, group: &str, ends: &BTreeMap<i32, i64>, topic: &str) -> Result<BTreeMap<i32, i64>> {
        let member: BaseConsumer = self.settings().set("group.id", group).create()?;
        let mut asked = TopicPartitionList::new();
        for partition in ends.keys() {
            asked.add_partition(topic, *partition);
        }
        let committed = block_in_place(|| member.committed_offsets(asked, TIMEOUT))?;
        let lag = |partition: i32, end: i64| match committed.find_partition(topic, partition)?.offset() {
            Offset::Offset(next) => Some(end - next),
            _ => Some(end),
        };
        Ok(ends.iter().filter_map(|(partition, end)| Some((*partition, lag(*partition, *end)?))).collect())
    }

    fn settings(&self) -> ClientConfig {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", &self.brokers).set("log_level", "0");
        settings
    }
}
