//! A store of a test's own, what is put into it, and a way to look behind it.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::config::{RedisSettings, Secret};
use common::event::{Timestamp, UserId};
use common::store::{
    Batch, Origin, PositionScope, Query, ReadAhead, Receipt, Store, StoreError, StoredEvent, UserIndex, Walk,
};
use redis::FromRedisValue;
use redis::cluster::ClusterClient;
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) use self::ports::free_port;
use crate::BUCKETS;
use crate::support::{event, required};

#[path = "../support/ports.rs"]
mod ports;

/// Stored data depends on these hash tags, bucket 0 first: of a store with sixteen buckets, and of one with one.
const TAGS: [&str; 16] = ["10", "3", "1a", "b", "11", "2", "1d", "c", "12", "1", "1c", "d", "13", "0", "1b", "a"];
const ONE_TAG: [&str; 1] = ["0"];
/// For one exchange with Redis: where it works, a busy machine must not make it fail.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// Ends a hang; what is waited for is there much sooner.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const RETENTION: Duration = Duration::from_hours(7 * 24);

pub(crate) struct World {
    pub(crate) store: Arc<Store>,
    pub(crate) scope: PositionScope,
    settings: RedisSettings,
}

impl World {
    /// Keys of its own on the shared Redis, or the shared Cluster.
    pub(crate) fn new() -> Self {
        Self::on(&required(crate::SHARED))
    }

    pub(crate) fn on(url: &str) -> Self {
        Self::with(RedisSettings {
            url: Secret::new(url.to_owned()),
            authorities: None,
            key_prefix: format!("test:{}:", Uuid::now_v7()),
            buckets: Some(BUCKETS),
            timeout: TIMEOUT,
            retention: RETENTION,
            user_index: UserIndex::On,
        })
    }

    /// The same keys with another time-out and retention, as another process would see them.
    pub(crate) fn again(&self, timeout: Duration, retention: Duration) -> Self {
        Self::with(RedisSettings { timeout, retention, ..self.settings.clone() })
    }

    /// The same keys, read without the users' indexes.
    pub(crate) fn without_user_index(&self) -> Self {
        Self::with(RedisSettings { user_index: UserIndex::Off, ..self.settings.clone() })
    }

    /// The same keys, by a process that asks for so many buckets.
    pub(crate) fn asking_for(&self, buckets: Option<usize>) -> Self {
        Self::with(RedisSettings { buckets, ..self.settings.clone() })
    }

    /// The settings of another process on the same keys.
    pub(crate) fn settings_with(&self, retention: Duration, user_index: UserIndex) -> RedisSettings {
        RedisSettings { retention, user_index, ..self.settings.clone() }
    }

    pub(crate) fn with(settings: RedisSettings) -> Self {
        let store = Arc::new(Store::new(&settings).unwrap());
        Self { store, scope: PositionScope::new("group", "topic"), settings }
    }

    /// Stores events without moving a position.
    pub(crate) async fn write(&self, events: Vec<StoredEvent>) -> Receipt {
        let batch = Batch { events, ..Batch::default() };
        self.store.write(&self.scope, &batch, UserIndex::On).await.unwrap()
    }

    /// A whole list, read by a walk, as the API does.
    pub(crate) async fn walked(&self, query: &Query, full: bool) -> Vec<Bytes> {
        let (mut list, mut all) = (self.walk(query, full).await, Vec::new());
        while let Some(events) = list.step().await.unwrap() {
            all.extend(events);
        }
        all
    }

    /// A walk over a whole list. `full`: over the connection for exports.
    pub(crate) async fn walk(&self, query: &Query, full: bool) -> ReadAhead {
        Walk::new(&self.store, query, None, full).await.unwrap().into()
    }

    /// A whole list, read page by page.
    pub(crate) async fn paged(&self, query: &Query, limit: usize) -> Vec<Bytes> {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.store.page(query, cursor.as_ref(), limit).await.unwrap();
            assert!(page.events.len() <= limit);
            all.extend(page.events);
            match page.next {
                Some(next) => assert_ne!(cursor.replace(next.clone()), Some(next), "the cursor moves on"),
                None => return all,
            }
        }
    }

    /// The name of a key without a bucket.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.settings.key_prefix)
    }

    /// The name of a bucket's key, such as `ev:{10}:id`.
    pub(crate) fn bucket_key(&self, kind: &str, bucket: usize, rest: &str) -> String {
        let tag = if BUCKETS == 1 { ONE_TAG[bucket] } else { TAGS[bucket] };
        self.key(&format!("{kind}:{{{tag}}}{rest}"))
    }

    /// One command behind the store's back.
    pub(crate) fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.query(redis::cmd(words[0]).arg(&words[1..]))
    }

    /// As [`World::command`], of any bytes.
    pub(crate) fn query<T: FromRedisValue>(&self, command: &redis::Cmd) -> T {
        match self.settings.url.expose().split_once("+cluster://") {
            Some((scheme, nodes)) => {
                let nodes = nodes.split(',').map(|node| format!("{scheme}://{node}"));
                command.query(&mut ClusterClient::new(nodes).unwrap().get_connection().unwrap())
            }
            None => {
                let client = redis::Client::open(self.settings.url.expose()).unwrap();
                command.query(&mut client.get_connection().unwrap())
            }
        }
        .unwrap()
    }
}

/// The bucket of an eventId or a userId.
pub(crate) fn bucket_of(id: &str) -> usize {
    common::store::bucket_of(id, BUCKETS)
}

/// An event as it is stored, from a record of that offset.
pub(crate) fn stored(json: &str, offset: i64) -> StoredEvent {
    StoredEvent::new(event(json), &origin(offset), None)
}

/// The same of a record that is published now.
pub(crate) fn stored_now(json: &str) -> StoredEvent {
    StoredEvent::new(event(json), &origin_now(), Some(Timestamp::now().millis()))
}

/// All events of a user.
pub(crate) fn of_user(id: &str) -> Query {
    Query { user: Some(UserId::parse(id).unwrap()), ..Query::default() }
}

pub(crate) fn origin(offset: i64) -> Origin {
    Origin {
        processed_at: Timestamp::from_millis(1_771_322_400_123).unwrap(),
        partition: 3,
        offset,
        worker: "w".into(),
    }
}

/// Of a record that is processed now.
pub(crate) fn origin_now() -> Origin {
    Origin { processed_at: Timestamp::now(), ..origin(1) }
}

/// Some time ago, to the millisecond.
pub(crate) fn ago(time: Duration) -> Timestamp {
    Timestamp::from_millis(Timestamp::now().millis() - i64::try_from(time.as_millis()).unwrap()).unwrap()
}

/// Waits for what takes a moment.
pub(crate) async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A Redis of a test's own.
pub(crate) struct Server {
    child: Child,
    port: u16,
    flags: Vec<String>,
    folder: TempDir,
}

impl Server {
    /// One that answers, with further flags of redis-server.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let server = Self { child: spawn(&folder, port, &flags), port, flags, folder };
        server.answers().await;
        server
    }

    /// One that is spoken to with TLS.
    pub(crate) async fn start_encrypted(flags: &[&str]) -> Self {
        let port = free_port().to_string();
        let mut server = Self::start(&[flags, &["--tls-port", &port]].concat()).await;
        server.port = port.parse().unwrap();
        server.answers().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// An empty one takes the place of one that was killed.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(&self.folder, self.port, &self.flags);
        self.answers().await;
    }

    /// Stops answering without closing a connection, as a hung machine does.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    async fn answers(&self) {
        let connects = || std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        let start = Instant::now();
        while !connects() {
            assert!(start.elapsed() < PATIENCE, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed by the test.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(folder: &TempDir, port: u16, flags: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).args(flags);
    command.arg("--port").arg(port.to_string()).arg("--dir").arg(folder.path()).stdout(Stdio::null());
    command.spawn().unwrap_or_else(|e| panic!("redis-server can't be started ({e}): run scripts/test integration"))
}
