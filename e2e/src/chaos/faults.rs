//! How each fault is done, and mended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    RECOVERY, Run,
    admin::Admin,
    prober::Prober,
    proxy::Trouble,
    schedule::{Fault, Loss, NodeFault, Step, Way, When},
    stage::Member,
    within,
};
use crate::{process::Signal, redis_cluster::RedisCluster, redis_server::RedisServer};

/// Longer than the workers need between two looks at their positions, or to bring them up to date.
const QUIET: Duration = Duration::from_secs(4);

/// How long a loss in silence may last: a look at the positions every 3 s, and the refill.
const RESTORED: Duration = Duration::from_mins(4);

/// For a silent system to have done all it had to do.
const DRAINED: Duration = Duration::from_mins(4);

/// Above what Redis uses at the moment: a second's worth of events.
const HEADROOM: u64 = 100_000;

/// How much of the data in Redis is too much after [`Fault::RedisSqueeze`], in percent. What it uses besides stays.
const TOO_MUCH: u64 = 10;

/// Keys of a slot that move in one step.
const KEYS_AT_A_TIME: usize = 50;

impl Run {
    /// Breaks something, holds it so, and mends it. Gives what there is to say about it.
    pub(super) async fn inflict(&mut self, step: &Step) -> Result<String> {
        match step.fault {
            Fault::WorkerKill => self.kill_worker(step).await,
            Fault::WorkerTerm => self.terminate_worker(step).await,
            Fault::WorkerFreeze => Ok(freeze(&self.stage.workers, step).await),
            Fault::Scale => self.scale(step).await,
            Fault::ApiKill => self.kill_api(step).await,
            Fault::ApiFreeze => Ok(freeze(&self.stage.apis, step).await),
            Fault::KafkaKill => self.kill_kafka(step).await,
            Fault::KafkaFreeze => self.freeze_kafka(step).await,
            Fault::PartitionsAdded => self.add_partition(step).await,
            Fault::TopicChange => self.change_topic(step).await,
            Fault::TopicAnew => self.make_topic_anew(step).await,
            Fault::DeadLettersRefused => self.refuse_dead_letters(step).await,
            Fault::RedisKill => self.kill_redis(step).await,
            Fault::RedisFreeze => self.freeze_redis(step).await,
            Fault::RedisFull => self.fill_redis(step).await,
            Fault::RedisSqueeze => self.squeeze_redis(step).await,
            Fault::RedisLoss(loss, When::UnderLoad) => self.lose(loss, Instant::now(), step).await,
            Fault::RedisLoss(loss, When::NoWorker) => self.lose_without_workers(loss, step).await,
            Fault::RedisLoss(loss, When::Silence) => self.lose_in_silence(loss, step).await,
            Fault::Cluster(fault) => self.disturb_cluster(fault, step).await,
            Fault::Network(way, trouble) => self.disturb(way, trouble, step).await,
        }
    }

    async fn kill_worker(&mut self, step: &Step) -> Result<String> {
        let (number, stage) = (step.choice % self.stage.workers.len(), &mut self.stage);
        stage.workers[number].kill().await;
        tokio::time::sleep(step.hold).await;
        stage.start_worker(number);
        Ok(stage.workers[number].name().to_owned())
    }

    async fn terminate_worker(&mut self, step: &Step) -> Result<String> {
        let (number, stage) = (step.choice % self.stage.workers.len(), &mut self.stage);
        let code = stage.workers[number].terminate().await;
        tokio::time::sleep(step.hold).await;
        stage.start_worker(number);
        Ok(format!("{}, exit code {code:?}", stage.workers[number].name()))
    }

    /// Two join, one behind the other, and leave in the same order, one of them by SIGKILL.
    async fn scale(&mut self, step: &Step) -> Result<String> {
        let pause = step.hold / 4;
        let mut extras = Vec::new();
        for number in 0..2 {
            extras.push(self.stage.extra_worker(2 * self.extras + number));
            tokio::time::sleep(pause).await;
        }
        self.extras += 1;
        tokio::time::sleep(pause).await;
        for (number, extra) in extras.iter_mut().enumerate() {
            if step.choice % 3 == number {
                extra.kill().await;
            } else {
                extra.terminate().await;
            }
            tokio::time::sleep(pause / 2).await;
        }
        Ok(if step.choice % 3 < 2 { "one left by SIGKILL" } else { "both left by SIGTERM" }.to_owned())
    }

    async fn kill_api(&mut self, step: &Step) -> Result<String> {
        let (number, stage) = (step.choice % self.stage.apis.len(), &mut self.stage);
        stage.apis[number].kill().await;
        tokio::time::sleep(step.hold).await;
        stage.start_api(number);
        Ok(stage.apis[number].name().to_owned())
    }

    async fn kill_kafka(&mut self, step: &Step) -> Result<String> {
        self.stage.broker.kill().await;
        tokio::time::sleep(step.hold).await;
        let started = Instant::now();
        self.stage.broker.up().await;
        Ok(format!("its start took {:.1} s", started.elapsed().as_secs_f64()))
    }

    async fn freeze_kafka(&mut self, step: &Step) -> Result<String> {
        self.stage.broker.freeze();
        tokio::time::sleep(step.hold).await;
        self.stage.broker.thaw();
        Ok(String::new())
    }

    /// It counts as mended when events pass through the new partition, too.
    async fn add_partition(&mut self, step: &Step) -> Result<String> {
        let (kafka, topic, all) = (self.stage.world.kafka(), &self.stage.world.topic, self.prober.partitions() + 1);
        kafka.add_partitions(topic, all).await?;
        let added = Instant::now();
        tokio::time::sleep(step.hold).await;
        self.prober = within(RECOVERY, "events reach the new partition", async || {
            Prober::new(&self.clients, all, &self.journal).await
        })
        .await?;
        Ok(format!("{all} partitions, in use after {:.1} s", added.elapsed().as_secs_f64()))
    }

    /// As operators do it: everything of the old topic is stored, then all programs are told another one.
    async fn change_topic(&mut self, step: &Step) -> Result<String> {
        let _silence = self.gate.close().await;
        self.everything_is_done().await.context("before the change")?;
        let names = self.stage.topics.borrow().clone();
        let next = format!("{}-{}", names[0], names.len() + 1);
        self.stage.change_topic(&next).await;
        tokio::time::sleep(step.hold).await;
        self.stage.ready().await?;
        Ok(next)
    }

    /// Nothing is lost by it: everything is stored.
    async fn make_topic_anew(&mut self, step: &Step) -> Result<String> {
        let _silence = self.gate.close().await;
        self.everything_is_done().await.context("before the topic is deleted")?;
        let (kafka, topic) = (self.stage.world.kafka(), self.stage.world.topic.clone());
        self.gone.push((topic.clone(), kafka.read(&topic)?));
        kafka.delete_topic(&topic).await?;
        tokio::time::sleep(step.hold).await;
        within(RECOVERY, "the topic is made anew", async || {
            // An API may come first.
            drop(kafka.create_topic(&topic, i32::try_from(self.prober.partitions())?, ("retention.ms", "-1")).await);
            let partitions = kafka.partitions(&topic)?.len();
            ensure!(partitions == self.prober.partitions(), "it has {partitions} partitions");
            Ok(())
        })
        .await?;
        Ok(String::new())
    }

    async fn refuse_dead_letters(&mut self, step: &Step) -> Result<String> {
        let (admin, topic) = (Admin::new(&self.stage.broker.address()), &self.stage.world.dead_letter_topic);
        let before = admin.change_topic_setting(topic, "max.message.bytes", "1").await?;
        tokio::time::sleep(step.hold).await;
        admin.change_topic_setting(topic, "max.message.bytes", &before).await?;
        Ok(format!("its max.message.bytes was 1, and is {before} again"))
    }

    async fn kill_redis(&mut self, step: &Step) -> Result<String> {
        let redis = self.stage.redis.one()?;
        redis.server.kill().await;
        tokio::time::sleep(step.hold).await;
        redis.up().await?;
        Ok(String::new())
    }

    async fn freeze_redis(&mut self, step: &Step) -> Result<String> {
        let server = &self.stage.redis.one()?.server;
        server.freeze();
        tokio::time::sleep(step.hold).await;
        server.thaw();
        Ok(String::new())
    }

    async fn fill_redis(&mut self, step: &Step) -> Result<String> {
        let redis = &self.stage.redis.one()?.server;
        let limit = memory(redis, "used_memory:").await? + HEADROOM;
        redis.try_command_line::<String>(&format!("CONFIG SET maxmemory {limit}")).await?;
        tokio::time::sleep(step.hold).await;
        let after: String = redis.try_command_line("INFO errorstats").await?;
        redis.try_command_line::<String>("CONFIG SET maxmemory 0").await?;
        let refused = after.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
        Ok(format!("{} writes refused so far", refused.unwrap_or("0").trim()))
    }

    /// Nobody gives the memory back: the guard has to make room.
    async fn squeeze_redis(&mut self, step: &Step) -> Result<String> {
        let redis = &self.stage.redis.one()?.server;
        let (used, data) = (memory(redis, "used_memory:").await?, memory(redis, "used_memory_dataset:").await?);
        let limit = used - data * TOO_MUCH / 100;
        redis.try_command_line::<String>(&format!("CONFIG SET maxmemory {limit}")).await?;
        let squeezed = Instant::now();
        tokio::time::sleep(step.hold).await;
        let passed = self.prober.pass(RECOVERY).await.context("while Redis has less memory than it used");
        redis.try_command_line::<String>("CONFIG SET maxmemory 0").await?;
        passed?;
        let passed = squeezed.elapsed().as_secs_f64();
        Ok(format!("{limit} bytes instead of {used}; fresh events passed after {passed:.1} s"))
    }

    async fn disturb_cluster(&mut self, fault: NodeFault, step: &Step) -> Result<String> {
        let cluster = self.stage.redis.cluster()?;
        let primaries = cluster.primaries().await?;
        let primary = primaries[step.choice % primaries.len()];
        match fault {
            NodeFault::Kill => {
                cluster.kill(primary).await;
                cluster.replica_takes_over(primary).await;
                tokio::time::sleep(step.hold).await;
                cluster.nodes[primary].up().await;
                cluster.is_replica(primary).await;
            }
            NodeFault::Freeze => {
                cluster.freeze(primary).await;
                cluster.replica_takes_over(primary).await;
                tokio::time::sleep(step.hold).await;
                cluster.thaw();
                cluster.is_replica(primary).await;
            }
            NodeFault::Failover => {
                cluster.fail_over(primary).await;
                cluster.is_replica(primary).await;
            }
            NodeFault::Flush => cluster.nodes[primary].try_command_line("FLUSHALL").await?,
            NodeFault::SlotMove => {
                let to = primaries[(step.choice + 1) % primaries.len()];
                return move_slot(cluster, primary, to, step.hold).await;
            }
        }
        Ok(format!("node {primary}"))
    }

    async fn disturb(&mut self, way: Way, trouble: Trouble, step: &Step) -> Result<String> {
        let proxy = self.stage.proxy(way)?;
        proxy.trouble(trouble);
        tokio::time::sleep(step.hold).await;
        proxy.mend();
        Ok(String::new())
    }

    /// Redis loses what came after a time, counted from `until` back.
    async fn lose(&mut self, loss: Loss, until: Instant, step: &Step) -> Result<String> {
        let redis = self.stage.redis.one()?;
        if loss == Loss::Flush {
            redis.server.try_command_line::<String>("FLUSHALL").await?;
            return Ok(String::new());
        }
        redis.server.kill().await;
        let note = match loss {
            Loss::Rollback(seconds) => {
                let time = until.checked_sub(Duration::from_secs(seconds)).context("no such time")?;
                format!("{} bytes lost", redis.past.restore(time)?)
            }
            Loss::Torn => format!("{} bytes lost", redis.past.tear(1 + u64::try_from(step.choice)? * 7)?),
            Loss::Empty | Loss::Flush => {
                redis.server.delete_files();
                redis.past.forget();
                "all lost".to_owned()
            }
        };
        tokio::time::sleep(step.hold).await;
        redis.up().await?;
        Ok(note)
    }

    async fn lose_without_workers(&mut self, loss: Loss, step: &Step) -> Result<String> {
        for worker in &self.stage.workers {
            worker.signal(Signal::SIGTERM);
        }
        for worker in &mut self.stage.workers {
            worker.end().await;
        }
        let note = self.lose(loss, Instant::now(), step).await?;
        (0..self.stage.workers.len()).for_each(|worker| self.stage.start_worker(worker));
        Ok(note)
    }

    async fn lose_in_silence(&mut self, loss: Loss, step: &Step) -> Result<String> {
        let _silence = self.gate.close().await;
        let until = Instant::now();
        self.everything_is_stored(DRAINED).await.context("before the loss")?;
        tokio::time::sleep(QUIET).await;
        let note = self.lose(loss, until, step).await?;
        let mended = Instant::now();
        self.everything_is_stored(RESTORED).await.context("in silence, after the loss")?;
        Ok(format!("{note}; restored in silence after {:.1} s", mended.elapsed().as_secs_f64()))
    }

    /// Waits until all that was acknowledged is listed, and what can't be an event is dead-lettered, too.
    async fn everything_is_done(&self) -> Result<()> {
        self.everything_is_stored(DRAINED).await?;
        self.nothing_is_behind().await
    }

    /// Waits until the list shows all that was acknowledged.
    async fn everything_is_stored(&self, limit: Duration) -> Result<()> {
        within(limit, "every acknowledged event is listed", async || {
            let (list, since) = self.list(&self.clients[0]).await?;
            let verdict = self.journal.judge_since(&list, &since);
            ensure!(verdict.missing.is_empty(), "{} are missing", verdict.missing.len());
            Ok(())
        })
        .await
    }
}

/// Stops one of these for a while. Gives its name.
async fn freeze(members: &[Member], step: &Step) -> String {
    let member = &members[step.choice % members.len()];
    member.signal(Signal::SIGSTOP);
    tokio::time::sleep(step.hold).await;
    member.signal(Signal::SIGCONT);
    member.name().to_owned()
}

/// A number of bytes that Redis says.
async fn memory(redis: &RedisServer, name: &str) -> Result<u64> {
    let said: String = redis.try_command_line("INFO memory").await?;
    Ok(said.lines().find_map(|line| line.strip_prefix(name)).context(name.to_owned())?.trim().parse()?)
}

/// Half of a slot's keys move, the others later: meanwhile what asks for both gets no answer.
async fn move_slot(cluster: &RedisCluster, from: usize, to: usize, hold: Duration) -> Result<String> {
    let slot = cluster.slot_with_keys(from).await?;
    let keys = cluster.keys_in(from, slot).await?;
    cluster.begin_move(slot, from, to).await;
    for _ in 0..keys / 2 / KEYS_AT_A_TIME {
        cluster.move_keys(slot, from, to, KEYS_AT_A_TIME).await;
    }
    tokio::time::sleep(hold).await;
    while cluster.move_keys(slot, from, to, KEYS_AT_A_TIME).await {}
    cluster.end_move(slot, from, to).await;
    Ok(format!("slot {slot} with {keys} keys, from node {from} to node {to}"))
}
