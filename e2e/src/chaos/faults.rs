//! How each fault is done, and mended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    Run,
    admin::Admin,
    proxy::Trouble,
    schedule::{Fault, Loss, Step, Way, When},
    within,
};
use crate::process::Signal;

/// Longer than the workers need between two looks at their positions, or to bring them up to date.
const QUIET: Duration = Duration::from_secs(4);

/// How long a loss in silence may last: a look at the positions every 3 s, and the refill.
const RESTORED: Duration = Duration::from_mins(4);

/// For a silent system to have done all it had to do.
const DRAINED: Duration = Duration::from_mins(4);

/// Above what Redis uses at the moment: a second's worth of events.
const HEADROOM: u64 = 100_000;

impl Run {
    /// Breaks something, holds it so, and mends it. Gives what there is to say about it.
    pub(super) async fn inflict(&mut self, step: &Step) -> Result<String> {
        match step.fault {
            Fault::WorkerKill => self.kill_worker(step).await,
            Fault::WorkerTerm => self.terminate_worker(step).await,
            Fault::WorkerFreeze => self.freeze_worker(step).await,
            Fault::Scale => self.scale(step).await,
            Fault::ApiKill => self.kill_api(step).await,
            Fault::KafkaKill => self.kill_kafka(step).await,
            Fault::DeadLettersRefused => self.refuse_dead_letters(step).await,
            Fault::RedisKill => self.kill_redis(step).await,
            Fault::RedisFull => self.fill_redis(step).await,
            Fault::RedisLoss(loss, When::UnderLoad) => self.lose(loss, Instant::now(), step).await,
            Fault::RedisLoss(loss, When::NoWorker) => self.lose_without_workers(loss, step).await,
            Fault::RedisLoss(loss, When::Silence) => self.lose_in_silence(loss, step).await,
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

    async fn freeze_worker(&mut self, step: &Step) -> Result<String> {
        let worker = &self.stage.workers[step.choice % self.stage.workers.len()];
        worker.signal(Signal::SIGSTOP);
        tokio::time::sleep(step.hold).await;
        worker.signal(Signal::SIGCONT);
        Ok(worker.name().to_owned())
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

    async fn refuse_dead_letters(&mut self, step: &Step) -> Result<String> {
        let (admin, topic) = (Admin::new(&self.stage.broker.address()), &self.stage.world.dead_letter_topic);
        let before = admin.change_topic_setting(topic, "max.message.bytes", "1").await?;
        tokio::time::sleep(step.hold).await;
        admin.change_topic_setting(topic, "max.message.bytes", &before).await?;
        Ok(format!("its max.message.bytes was 1, and is {before} again"))
    }

    async fn kill_redis(&mut self, step: &Step) -> Result<String> {
        self.stage.redis.kill().await;
        tokio::time::sleep(step.hold).await;
        self.stage.redis_up().await?;
        Ok(String::new())
    }

    async fn fill_redis(&mut self, step: &Step) -> Result<String> {
        let redis = &self.stage.redis;
        let memory: String = redis.try_command_line("INFO memory").await?;
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).context("used_memory")?;
        let limit = used.trim().parse::<u64>()? + HEADROOM;
        redis.try_command_line::<String>(&format!("CONFIG SET maxmemory {limit}")).await?;
        tokio::time::sleep(step.hold).await;
        let after: String = redis.try_command_line("INFO errorstats").await?;
        redis.try_command_line::<String>("CONFIG SET maxmemory 0").await?;
        let refused = after.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
        Ok(format!("{} writes refused so far", refused.unwrap_or("0").trim()))
    }

    async fn disturb(&mut self, way: Way, trouble: Trouble, step: &Step) -> Result<String> {
        let proxy = self.stage.proxy(way);
        proxy.trouble(trouble);
        tokio::time::sleep(step.hold).await;
        proxy.mend();
        Ok(String::new())
    }

    /// Redis loses what came after a time, counted from `until` back.
    async fn lose(&mut self, loss: Loss, until: Instant, step: &Step) -> Result<String> {
        let stage = &mut self.stage;
        if loss == Loss::Flush {
            stage.redis.try_command_line::<String>("FLUSHALL").await?;
            return Ok(String::new());
        }
        stage.redis.kill().await;
        let note = match loss {
            Loss::Rollback(seconds) => {
                let time = until.checked_sub(Duration::from_secs(seconds)).context("no such time")?;
                format!("{} bytes lost", stage.past.restore(time)?)
            }
            Loss::Torn => format!("{} bytes lost", stage.past.tear(1 + u64::try_from(step.choice)? * 7)?),
            Loss::Empty | Loss::Flush => {
                stage.redis.delete_files();
                stage.past.forget();
                "all lost".to_owned()
            }
        };
        tokio::time::sleep(step.hold).await;
        stage.redis_up().await?;
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

    /// Waits until the list shows all that was acknowledged.
    async fn everything_is_stored(&self, limit: Duration) -> Result<()> {
        within(limit, "every acknowledged event is listed", async || {
            let verdict = self.journal.judge(&self.clients[0].list().await?);
            ensure!(verdict.missing.is_empty(), "{} are missing", verdict.missing.len());
            Ok(())
        })
        .await
    }
}
