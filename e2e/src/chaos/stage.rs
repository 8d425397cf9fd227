//! The parts of one run: engines that are ours to break, the real binaries, and the network between.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::process::Command;

use super::{past::Past, proxy::Proxy, schedule::Way, within};
use crate::{
    broker::Broker,
    client::Client,
    process::Signal,
    redis_server::RedisServer,
    service::Service,
    world::{World, free_port},
};

const APIS: usize = 2;
const WORKERS: usize = 3;

/// For a binary to start on a busy machine, and to end after SIGTERM (its own limit is 20 s).
const START: Duration = Duration::from_mins(2);
const END: Duration = Duration::from_mins(2);

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    /// Kafka. What drives the run goes to it directly, the product through proxies.
    pub broker: Broker,
    /// Redis. The APIs go to it directly, the workers through a proxy.
    pub redis: RedisServer,
    /// What its files were.
    pub past: Past,
    /// Names and settings.
    pub world: World,
    /// The APIs.
    pub apis: Vec<Member>,
    /// The workers.
    pub workers: Vec<Member>,
    api_to_kafka: Proxy,
    worker_to_kafka: Proxy,
    worker_to_redis: Proxy,
    logs: PathBuf,
}

impl Stage {
    /// Starts all parts, the binaries with this guard broken if there is a name, and waits until
    /// they are ready. What they say goes to files in `logs`.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn set(logs: &Path, mutation: Option<&str>) -> Result<Self> {
        let redis = RedisServer::start().await;
        never_rewrite(&redis).await?;
        let doors = [free_port(), free_port()];
        let (api_to_kafka, worker_to_kafka) = (Proxy::to(doors[0]).await?, Proxy::to(doors[1]).await?);
        let worker_to_redis = Proxy::to(redis.port()).await?;
        let mut broker =
            Broker::reserve().await.with_doors(&[(doors[0], api_to_kafka.port()), (doors[1], worker_to_kafka.port())]);
        broker.up().await;
        // The product's own time-outs, which every outage is to meet, and a session that ends sooner.
        let mut world = World::on(&broker.address(), &redis.url())
            .with("KAFKA_PRODUCER_TIMEOUT_MS", "5000")
            .with("REDIS_TIMEOUT", "3s")
            .with_short_session();
        if let Some(mutation) = mutation {
            world = world.with("MUTATION", mutation);
        }
        let mut stage = Self {
            past: Past::of(redis.folder()),
            apis: members("api", APIS, logs),
            workers: members("worker", WORKERS, logs),
            logs: logs.to_owned(),
            broker,
            redis,
            world,
            api_to_kafka,
            worker_to_kafka,
            worker_to_redis,
        };
        (0..APIS).for_each(|api| stage.start_api(api));
        (0..WORKERS).for_each(|worker| stage.start_worker(worker));
        stage.ready().await?;
        Ok(stage)
    }

    /// Clients of the APIs, valid for as long as the stage stands.
    #[must_use]
    pub fn clients(&self) -> Vec<Client> {
        self.apis.iter().map(|api| Client::new(api.port)).collect()
    }

    /// The proxy on this way.
    #[must_use]
    pub fn proxy(&self, way: Way) -> &Proxy {
        match way {
            Way::ApiToKafka => &self.api_to_kafka,
            Way::WorkerToKafka => &self.worker_to_kafka,
            Way::WorkerToRedis => &self.worker_to_redis,
        }
    }

    /// Starts an API where its predecessor was.
    pub fn start_api(&mut self, number: usize) {
        let world = self.world.clone().with("KAFKA_BROKERS", local(self.api_to_kafka.port()));
        let api = &mut self.apis[number];
        let mut command = world.api_command();
        command.env("PORT", api.port.to_string());
        api.start(command);
    }

    /// Starts a worker in the place of its predecessor.
    pub fn start_worker(&mut self, number: usize) {
        let command = self.worker_command();
        self.workers[number].start_worker(command);
    }

    /// Starts a worker beyond the usual number.
    #[must_use]
    pub fn extra_worker(&self, number: usize) -> Member {
        let mut member = Member::new(format!("extra-{number}"), &self.logs);
        member.start_worker(self.worker_command());
        member
    }

    /// Waits until every binary says that it is ready.
    ///
    /// # Errors
    /// When one does not, or has ended by itself.
    pub async fn ready(&mut self) -> Result<()> {
        for member in self.apis.iter_mut().chain(&mut self.workers) {
            member.ready().await?;
        }
        Ok(())
    }

    /// Starts Redis on the files that are there.
    ///
    /// # Errors
    /// When it does not take a setting.
    pub async fn redis_up(&mut self) -> Result<()> {
        self.redis.up().await;
        never_rewrite(&self.redis).await
    }

    /// Keeps what the engines have said.
    pub fn save_engine_logs(&self) {
        // Best effort: this is only for who looks for the reason of a failure.
        let _ = fs::write(self.logs.join("kafka.log"), self.broker.output());
        let _ = fs::write(self.logs.join("redis.log"), self.redis.output());
    }

    fn worker_command(&self) -> Command {
        let world = self.world.clone().with("KAFKA_BROKERS", local(self.worker_to_kafka.port()));
        world.with("REDIS_URL", format!("redis://{}", local(self.worker_to_redis.port()))).worker_command()
    }
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// The past of an append-only file is its beginning only while nobody rewrites it.
async fn never_rewrite(redis: &RedisServer) -> Result<()> {
    redis.try_command_line::<String>("CONFIG SET auto-aof-rewrite-percentage 0").await?;
    Ok(())
}

fn members(kind: &str, count: usize, logs: &Path) -> Vec<Member> {
    (0..count).map(|number| Member::new(format!("{kind}-{number}"), logs)).collect()
}

/// The place of one binary, and the processes that fill it one after the other.
#[derive(Debug)]
pub struct Member {
    name: String,
    port: u16,
    generation: u32,
    service: Option<Service>,
    logs: PathBuf,
}

impl Member {
    fn new(name: String, logs: &Path) -> Self {
        Self { name, port: free_port(), generation: 0, service: None, logs: logs.to_owned() }
    }

    fn start(&mut self, command: Command) {
        self.generation += 1;
        self.service = Some(Service::spawn(&self.name, self.port, command));
    }

    fn start_worker(&mut self, mut command: Command) {
        command.env("ADMIN_PORT", self.port.to_string());
        command.env("WORKER_NAME", format!("{}.{}", self.name, self.generation + 1));
        self.start(command);
    }

    /// What it is called in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a signal to its process, if there is one.
    pub fn signal(&self, signal: Signal) {
        if let Some(service) = &self.service {
            service.process.signal(signal);
        }
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        if let Some(service) = &mut self.service {
            service.process.kill().await;
        }
        self.retire();
    }

    /// SIGTERM. Gives the exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.end().await
    }

    /// Waits for the end of its process, which has been told to. Gives the exit code.
    pub async fn end(&mut self) -> Option<i32> {
        let status = self.service.as_mut()?.process.ended_within(END).await;
        self.retire();
        status.code()
    }

    async fn ready(&mut self) -> Result<()> {
        let (name, service) = (&self.name, self.service.as_mut().context("it was never started")?);
        let Service { process, client, .. } = service;
        let ready = within(START, "it is ready", async || {
            client.get("/readyz").await?.ok()?;
            Ok(())
        });
        tokio::select! {
            ready = ready => ready.with_context(|| name.clone()),
            end = ended(process) => end.with_context(|| name.clone()),
        }
    }

    /// Writes down what the process has said.
    fn retire(&mut self) {
        let Some(service) = self.service.take() else { return };
        let file = self.logs.join(format!("{}.{}.log", self.name, self.generation));
        // Best effort: this is only for who looks for the reason of a failure.
        let _ = fs::write(file, service.process.output());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.retire();
    }
}

/// Returns when the process has ended by itself.
async fn ended(process: &mut crate::process::Process) -> Result<()> {
    loop {
        process.still_runs()?;
        tokio::time::sleep(crate::POLL_INTERVAL).await;
    }
}
