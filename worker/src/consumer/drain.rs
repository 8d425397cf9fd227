//! The end: finish what is in flight, commit, leave the group, each within what is left of the shutdown time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::stream::StreamExt;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{CommitMode, Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Consumer, finished};
use crate::group::Group;

/// For taking back the heartbeat, which expires by itself.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// For leaving the group, when there is nothing left to hand over.
const FAILED_TIMEOUT: Duration = Duration::from_secs(5);

impl Consumer {
    /// See the module.
    pub(super) async fn drain(mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.config.shutdown_timeout;
        self.failed = 0;
        self.guard.lift();
        let finished = timeout_at(deadline, self.finish()).await;
        let failed = self.failed;
        let left = self.leave(deadline).await;
        ensure!(finished.is_ok(), "drain ended by its deadline with batches in flight; they will be read again");
        ensure!(failed == 0, "drain: {failed} batches were not stored; they will be read again");
        match left {
            Some(committed) => committed.context("drain: the last commit failed; what it covers will be read again"),
            None => {
                bail!(
                    "drain ended by its deadline while leaving the group; others take over after the session time-out"
                )
            }
        }
    }

    /// After a failure: only makes room for others.
    pub(super) async fn leave_at_once(self) {
        if self.leave(Instant::now() + FAILED_TIMEOUT).await.is_none() {
            log::warn!("the group could not be left in time; others take over after the session time-out");
        }
    }

    /// After the loss of its client, which can tell nobody of its end: without waiting for that.
    pub(super) fn abandon(self) {
        let Self { kafka, placing, .. } = self;
        drop(placing);
        kafka.context().retire();
        std::thread::spawn(move || close(kafka));
    }

    async fn finish(&mut self) {
        loop {
            if self.pending.due(true).is_some() && self.can_dispatch() {
                self.dispatch();
            }
            tokio::select! {
                biased;
                Some(written) = self.writes.next() => self.on_written(written),
                buried = finished(&mut self.burying), if self.burying.is_some() => self.on_buried(buried),
                else => if !self.settle() { break },
            }
        }
    }

    /// Commits and leaves the group, so that others take over at once. `None` when there was no time for it.
    async fn leave(mut self, deadline: Instant) -> Option<KafkaResult<()>> {
        let commits = self.take_commits();
        let gone = timeout(LEAVE_TIMEOUT, self.store.leave(&self.config.name)).await;
        if !matches!(gone, Ok(Ok(()))) {
            log::debug!("the heartbeat could not be taken back; it expires by itself");
        }
        // A placement under way has the client in use.
        self.placing.clear();
        let kafka = self.kafka;
        let left = within(deadline, move || {
            let list = kafka.context().commit_list(&commits);
            let committed = if commits.is_empty() { Ok(()) } else { commit_by(deadline, &*kafka, &list) };
            close(kafka);
            committed
        });
        left.await
    }
}

/// The last owner of a client closes it, and closing may block: that has to be this thread.
fn close(mut kafka: Arc<StreamConsumer<Group>>) {
    while let Err(shared) = Arc::try_unwrap(kafka) {
        kafka = shared;
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Commits, and again where the group is between two assignments, which is over soon: brokers take no commit then. It leaves
/// time to leave the group.
fn commit_by<C: ConsumerContext>(
    deadline: Instant,
    kafka: &impl rdkafka::consumer::Consumer<C>,
    list: &TopicPartitionList,
) -> KafkaResult<()> {
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        let committed = kafka.commit(list, CommitMode::Sync);
        let code = committed.as_ref().err().and_then(KafkaError::rdkafka_error_code);
        if code != Some(RDKafkaErrorCode::RebalanceInProgress) || Instant::now() + FAILED_TIMEOUT > deadline {
            return committed;
        }
        std::thread::park_timeout(PAUSE);
    }
}

/// Runs something that may block for longer than there is time: on a thread of its own, which is then left behind.
async fn within<T: Send + 'static>(deadline: Instant, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    timeout_at(deadline, receiver).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use rdkafka::{ClientConfig, Offset};

    use super::*;

    /// A commit that meets so many answers of this kind first, and has so much time.
    fn commit_after(answers: usize, error: RDKafkaRespErr, time: Duration) -> KafkaResult<()> {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "group")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("events", 0, Offset::Offset(7)).unwrap();
        cluster.request_errors(RDKafkaApiKey::OffsetCommit, &vec![error; answers]);
        commit_by(Instant::now() + time, &consumer, &list)
    }

    #[test]
    fn the_last_commit_waits_for_the_end_of_a_rebalance_but_not_beyond_its_time() {
        let rebalance = RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS;
        commit_after(3, rebalance, Duration::from_mins(1)).unwrap();
        commit_after(1000, rebalance, Duration::from_millis(200)).unwrap_err();
        let other = RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION;
        commit_after(1, other, Duration::from_mins(1)).unwrap_err();
    }
}
