//! The parts of one run: engines that are ours to break, the real binaries, and the network between.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{process::Command, sync::watch};

use super::{clock::WrongClock, kinds::Kind, past::Past, proxy::Proxy, schedule::Way, within};
use crate::{
    broker::Broker,
    client::Client,
    process::Signal,
    redis_cluster::RedisCluster,
    redis_server::RedisServer,
    service::Service,
    world::{World, free_port},
};

const APIS: usize = 2;
const WORKERS: usize = 3;

/// For a binary to start on a busy machine, and to end after SIGTERM (its own limit is 20 s).
const START: Duration = Duration::from_mins(2);
const END: Duration = Duration::from_mins(2);

/// So that what happens inside of the programs is told, too.
const LOGS: &str = "info,worker=debug,api=debug,common=debug";

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    /// What it is about.
    pub kind: Kind,
    /// Kafka. What drives the run goes to it directly, the product through proxies.
    pub broker: Broker,
    /// The store.
    pub redis: Redis,
    /// Names and settings.
    pub world: World,
    /// The topic that events go to, and those that they went to before, oldest first.
    pub topics: watch::Sender<Vec<String>>,
    /// The APIs.
    pub apis: Vec<Member>,
    /// The workers.
    pub workers: Vec<Member>,
    api_to_kafka: Proxy,
    worker_to_kafka: Proxy,
    logs: PathBuf,
}

/// The store of a stage.
#[derive(Debug)]
pub enum Redis {
    /// One server, behind proxies.
    One(Box<Standalone>),
    /// A Cluster, to which everyone goes directly: its nodes say where they are.
    Cluster(RedisCluster),
}

/// One Redis server.
#[derive(Debug)]
pub struct Standalone {
    /// The server.
    pub server: RedisServer,
    /// What its files were.
    pub past: Past,
    from_apis: Proxy,
    from_workers: Proxy,
}

impl Standalone {
    async fn start() -> Result<Self> {
        let server = RedisServer::start().await;
        never_rewrite(&server).await?;
        let (from_apis, from_workers) = (Proxy::to(server.port()).await?, Proxy::to(server.port()).await?);
        Ok(Self { past: Past::of(server.folder()), server, from_apis, from_workers })
    }

    /// Starts the server on the files that are there.
    ///
    /// # Errors
    /// When it does not take a setting.
    pub async fn up(&mut self) -> Result<()> {
        self.server.up().await;
        never_rewrite(&self.server).await
    }
}

impl Redis {
    async fn start(kind: Kind) -> Result<Self> {
        if kind == Kind::Cluster {
            return Ok(Self::Cluster(RedisCluster::start().await));
        }
        Standalone::start().await.map(Box::new).map(Self::One)
    }

    /// The one server.
    ///
    /// # Errors
    /// When there is a Cluster.
    pub fn one(&mut self) -> Result<&mut Standalone> {
        match self {
            Self::One(one) => Ok(one),
            Self::Cluster(_) => bail!("this stage has a Redis Cluster"),
        }
    }

    /// The Cluster.
    ///
    /// # Errors
    /// When there is one server.
    pub fn cluster(&mut self) -> Result<&mut RedisCluster> {
        match self {
            Self::Cluster(cluster) => Ok(cluster),
            Self::One(_) => bail!("this stage has no Redis Cluster"),
        }
    }

    /// All servers that there are, running or not.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer] {
        match self {
            Self::One(one) => std::slice::from_ref(&one.server),
            Self::Cluster(cluster) => &cluster.nodes,
        }
    }

    fn url(&self) -> String {
        match self {
            Self::One(one) => one.server.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    fn url_behind(&self, proxy: impl FnOnce(&Standalone) -> &Proxy) -> String {
        match self {
            Self::One(one) => format!("redis://{}", local(proxy(one).port())),
            Self::Cluster(cluster) => cluster.url(),
        }
    }
}

impl Stage {
    /// Starts all parts, the binaries with this guard broken if there is a name, and waits until
    /// they are ready. What they say goes to files in `logs`.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn set(kind: Kind, seed: u64, logs: &Path, mutation: Option<&str>) -> Result<Self> {
        let redis = Redis::start(kind).await?;
        let doors = [free_port(), free_port()];
        let (api_to_kafka, worker_to_kafka) = (Proxy::to(doors[0]).await?, Proxy::to(doors[1]).await?);
        let mut broker =
            Broker::reserve().await.with_doors(&[(doors[0], api_to_kafka.port()), (doors[1], worker_to_kafka.port())]);
        broker.up().await;
        let world = world(kind, &broker, &redis, mutation);
        let library = (kind == Kind::Clocks).then(|| WrongClock::build(logs)).transpose()?;
        let mut stage = Self {
            kind,
            topics: watch::Sender::new(vec![world.topic.clone()]),
            apis: members("api", APIS, logs, library.as_ref(), |number| kind.api_clock(number, seed)),
            workers: members("worker", WORKERS, logs, library.as_ref(), |number| kind.worker_clock(number, seed)),
            logs: logs.to_owned(),
            broker,
            redis,
            world,
            api_to_kafka,
            worker_to_kafka,
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
    ///
    /// # Errors
    /// When there is none.
    pub fn proxy(&mut self, way: Way) -> Result<&Proxy> {
        Ok(match way {
            Way::ApiToKafka => &self.api_to_kafka,
            Way::WorkerToKafka => &self.worker_to_kafka,
            Way::ApiToRedis => &self.redis.one()?.from_apis,
            Way::WorkerToRedis => &self.redis.one()?.from_workers,
        })
    }

    /// Starts an API where its predecessor was.
    pub fn start_api(&mut self, number: usize) {
        let world = self.world.clone().with("KAFKA_BROKERS", local(self.api_to_kafka.port()));
        let world = world.with("REDIS_URL", self.redis.url_behind(|redis| &redis.from_apis));
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
        let mut member = Member::new(format!("extra-{number}"), &self.logs, None);
        member.start_worker(self.worker_command());
        member
    }

    /// Ends all programs in good order and starts them again on another topic.
    pub async fn change_topic(&mut self, topic: &str) {
        for member in self.workers.iter_mut().chain(&mut self.apis) {
            member.terminate().await;
        }
        self.world = self.world.clone().with_topic(topic);
        self.topics.send_modify(|topics| topics.push(topic.to_owned()));
        (0..self.apis.len()).for_each(|api| self.start_api(api));
        (0..self.workers.len()).for_each(|worker| self.start_worker(worker));
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

    /// Ends all programs, so that all that they have said is written down.
    pub async fn end(&mut self) {
        for member in self.workers.iter_mut().chain(&mut self.apis) {
            member.kill().await;
        }
    }

    /// Keeps what the engines have said.
    pub fn save_engine_logs(&self) {
        // Best effort: this is only for who looks for the reason of a failure.
        let _ = fs::write(self.logs.join("kafka.log"), self.broker.output());
        for server in self.redis.servers() {
            let _ = fs::write(self.logs.join(format!("redis-{}.log", server.port())), server.output());
        }
    }

    fn worker_command(&self) -> Command {
        let world = self.world.clone().with("KAFKA_BROKERS", local(self.worker_to_kafka.port()));
        world.with("REDIS_URL", self.redis.url_behind(|redis| &redis.from_workers)).worker_command()
    }
}

/// The product's own time-outs, which every outage is to meet, and a session that ends sooner.
fn world(kind: Kind, broker: &Broker, redis: &Redis, mutation: Option<&str>) -> World {
    let world = World::on(&broker.address(), &redis.url())
        .with("KAFKA_PRODUCER_TIMEOUT_MS", "5000")
        .with("REDIS_TIMEOUT", "3s")
        .with("LOG_LEVEL", LOGS)
        .with_short_session();
    let world = kind.settings().iter().fold(world, |world, (name, value)| world.with(name, *value));
    mutation.into_iter().fold(world, |world, mutation| world.with("MUTATION", mutation))
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// The past of an append-only file is its beginning only while nobody rewrites it.
async fn never_rewrite(redis: &RedisServer) -> Result<()> {
    redis.try_command_line::<String>("CONFIG SET auto-aof-rewrite-percentage 0").await?;
    Ok(())
}

fn members(
    kind: &str,
    count: usize,
    logs: &Path,
    library: Option<&WrongClock>,
    clock: impl Fn(usize) -> Option<i64>,
) -> Vec<Member> {
    let clock = |number| Some((library?.clone(), clock(number)?));
    (0..count).map(|number| Member::new(format!("{kind}-{number}"), logs, clock(number))).collect()
}

/// The place of one binary, and the processes that fill it one after the other.
#[derive(Debug)]
pub struct Member {
    name: String,
    port: u16,
    generation: u32,
    service: Option<Service>,
    logs: PathBuf,
    /// By how much its clock is wrong.
    clock: Option<(WrongClock, i64)>,
}

impl Member {
    fn new(name: String, logs: &Path, clock: Option<(WrongClock, i64)>) -> Self {
        Self { name, port: free_port(), generation: 0, service: None, logs: logs.to_owned(), clock }
    }

    fn start(&mut self, mut command: Command) {
        if let Some((clock, seconds)) = &self.clock {
            clock.set(&mut command, *seconds);
        }
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
