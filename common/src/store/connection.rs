//! One connection to Redis per kind of use. Every exchange has a deadline, connecting included; after any failure of
//! the connection, a time-out among them, the next exchange makes a new one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisFuture, TlsCertificates, Value,
};

use super::layout::VERSION;
use crate::config::{RedisSettings, Servers};

/// After a failed attempt to connect, others within this time fail with it instead of queueing for attempts of their own.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How often a Cluster's client tries a request again that met a slot on its way to another node, or nodes that have not
/// agreed on a primary yet, and the shortest and longest wait before it does: about 1.5 s in all.
const CLUSTER_RETRIES: u32 = 16;
const CLUSTER_RETRY_WAITS_MS: (u64, u64) = (10, 200);

/// Why Redis did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer, or no connection. Whether a write happened is unknown; writing again is safe.
    #[error("Redis at {address} does not answer: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the client saw.
        reason: String,
    },
    /// Redis answered that it won't: out of memory, loading, a replica, wrong credentials.
    #[error("Redis at {address} refuses: {reason}")]
    Refused {
        /// Host and port.
        address: String,
        /// Redis' own words.
        reason: String,
    },
    /// The data was written with another layout.
    #[error(
        "{key} says {found:?}, and this version reads layout {VERSION}: set another REDIS_KEY_PREFIX, which the workers fill again from the topic"
    )]
    Layout {
        /// The key that says so.
        key: String,
        /// Its value.
        found: String,
    },
    /// The store was emptied, and somebody has begun it anew with another number of buckets.
    #[error(
        "the store has {found} buckets now, and this process goes by the {own} that it had: it was emptied and begun anew; restart this process"
    )]
    Buckets {
        /// How many it has now.
        found: usize,
        /// How many it had.
        own: usize,
    },
    /// Redis' clock says that events have expired, and ours does not.
    #[error(
        "the clock of Redis is {ahead} s ahead of that of this machine, and by it events have expired that may not have: set both by NTP"
    )]
    Clock {
        /// Seconds.
        ahead: i64,
    },
    /// Other workers have other settings, or have changed them.
    #[error(
        "{difference} (other workers alive: {others}): give all workers the same; to change it, stop all before one is started with another"
    )]
    Settings {
        /// Name, own value, and the store's.
        difference: String,
        /// How many they are.
        others: usize,
    },
    /// The server may throw away what it has acknowledged.
    #[error(
        "Redis at {address} evicts data when it is full (maxmemory-policy {policy}), which can't be noticed: set maxmemory-policy noeviction"
    )]
    Unfit {
        /// Host and port.
        address: String,
        /// Its policy.
        policy: String,
    },
    /// The server lacks commands that are needed.
    #[error("Redis at {address} is version {found}, {needed} or later is needed: set REDIS_URL to such a server")]
    TooOld {
        /// Host and port.
        address: String,
        /// Its version.
        found: String,
        /// The oldest version that will do.
        needed: &'static str,
    },
    /// A reply that can't be read as what it should be.
    #[error("Redis holds something unexpected: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether asking again is no use until somebody has changed the server or the settings.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Layout { .. }
                | Self::Buckets { .. }
                | Self::Settings { .. }
                | Self::Unfit { .. }
                | Self::TooOld { .. }
        )
    }
}

#[derive(Default)]
struct State {
    /// Counts connections, so that a late failure of an old one does not drop its successor.
    generation: u64,
    connection: Option<Connection>,
    failed: Option<(Instant, StoreError)>,
}

/// How to reach what `REDIS_URL` names.
enum Client {
    Standalone(Box<redis::Client>),
    Cluster(Box<ClusterClient>),
}

impl Client {
    fn new(servers: Servers, settings: &RedisSettings) -> Result<Self, RedisError> {
        // Fails where there is one already, which is as good: without any, the first use of TLS would panic.
        drop(rustls::crypto::ring::default_provider().install_default());
        let encrypted = servers.encrypted();
        let authorities = settings.authorities.clone().filter(|_| encrypted);
        let certificates = authorities.map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) });
        let tcp = TcpSettings::default().set_nodelay(true);
        let Servers { mut nodes, cluster } = servers;
        if cluster {
            let (least, most) = CLUSTER_RETRY_WAITS_MS;
            let builder = ClusterClient::builder(nodes)
                .tcp_settings(tcp)
                // A node that hangs must not use up the time for the others, of which there are two rounds.
                .connection_timeout(settings.timeout / 4)
                .response_timeout(settings.timeout)
                .overall_response_timeout(None)
                .retries(CLUSTER_RETRIES)
                .min_retry_wait(least)
                .max_retry_wait(most);
            let builder = certificates.into_iter().fold(builder, ClusterClientBuilder::certs);
            return builder.build().map(|client| Self::Cluster(Box::new(client)));
        }
        let node = nodes.swap_remove(0).set_tcp_settings(tcp);
        let client = match certificates {
            Some(certificates) => redis::Client::build_with_tls(node, certificates),
            None => redis::Client::open(node),
        };
        client.map(|client| Self::Standalone(Box::new(client)))
    }

    async fn connect(&self, timeout: Duration) -> Result<Connection, RedisError> {
        match self {
            Self::Standalone(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(timeout))
                    .set_response_timeout(None)
                    // Room for the transactions of several batches, so that none has to wait to be sent.
                    .set_pipeline_buffer_size(1024);
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Standalone)
            }
            Self::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
        }
    }
}

/// One connection, or those to the nodes of a Cluster.
#[derive(Clone)]
enum Connection {
    Standalone(MultiplexedConnection),
    /// Follows slots that have moved, re-sends what a node redirects, and keeps no order between requests.
    Cluster(ClusterConnection),
}

impl Connection {
    fn inner(&mut self) -> &mut dyn ConnectionLike {
        match self {
            Self::Standalone(connection) => connection,
            Self::Cluster(connection) => connection,
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.inner().req_packed_command(cmd)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.inner().req_packed_commands(cmd, offset, count)
    }

    fn get_db(&self) -> i64 {
        // Of both kinds it is only what the URL says, and nobody asks.
        0
    }
}

/// The connection of a [`Lane`].
struct Reached {
    generation: u64,
    connection: Connection,
    /// It was there before.
    before: bool,
}

/// The address of a server, and its answer or its refusal.
pub(super) type Answer<T> = (String, Result<T, String>);

fn answer_of_node<T: FromRedisValue>((address, answer): (String, Value)) -> Result<Answer<T>, RedisError> {
    match answer {
        Value::ServerError(refusal) => Ok((address, Err(refusal.to_string()))),
        answer => Ok((address, Ok(T::from_redis_value(answer)?))),
    }
}

/// A connection that is made when needed.
pub(super) struct Lane {
    client: Arc<Client>,
    address: String,
    timeout: Duration,
    /// An exchange whose connection turns out to be dead is tried once more, on a new one. Whoever cuts idle connections, or
    /// restarts Redis, tells nobody. Transactions are in order only as they are sent first, so their lane does not repeat.
    repeats: bool,
    state: Mutex<State>,
    connecting: tokio::sync::Mutex<()>,
}

impl Lane {
    pub(super) fn new(settings: &RedisSettings) -> Result<Self, StoreError> {
        let unusable = |reason| StoreError::Refused { address: "REDIS_URL".into(), reason };
        let servers = Servers::parse(settings.url.expose()).ok_or_else(|| unusable(Servers::FORMS.into()))?;
        let (address, timeout) = (servers.address(), settings.timeout);
        let client = Client::new(servers, settings).map_err(|e| unusable(e.to_string()))?;
        let (state, connecting) = Default::default();
        Ok(Self { client: Arc::new(client), address, timeout, repeats: false, state, connecting })
    }

    /// Another one to the same servers, with a connection of its own, for what may be done twice.
    pub(super) fn another(&self) -> Self {
        let (state, connecting) = Default::default();
        Self {
            client: Arc::clone(&self.client),
            address: self.address.clone(),
            timeout: self.timeout,
            // The client of a Cluster does so by itself.
            repeats: !self.is_cluster(),
            state,
            connecting,
        }
    }

    /// Whether there are several servers, each with a part of the buckets.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(*self.client, Client::Cluster(_))
    }

    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, StoreError> {
        self.run(|mut connection| async move { pipeline.query_async(&mut connection).await }).await
    }

    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        self.run(|mut connection| async move { command.query_async(&mut connection).await }).await
    }

    /// Sends a transaction of one bucket, behind those of it that were sent before. One connection keeps their order by
    /// itself and has several on their way; the client of a Cluster doesn't, even while nothing fails, and one that is
    /// overtaken finds a position that it does not expect. There, each waits for the answer to the one before: `turns` is
    /// the bucket's.
    pub(super) async fn in_turn<T: FromRedisValue>(
        &self,
        turns: &tokio::sync::Mutex<()>,
        transaction: &Pipeline,
    ) -> Result<T, StoreError> {
        self.run(|mut connection| async move {
            let _turn = match connection {
                Connection::Standalone(_) => None,
                Connection::Cluster(_) => Some(turns.lock().await),
            };
            transaction.query_async(&mut connection).await
        })
        .await
    }

    /// Sends commands that are independent of each other, all at once; the replies come in their order. Each keeps to one
    /// bucket, while they may be of different ones, which on a Cluster a pipeline may not.
    pub(super) async fn scatter<T: FromRedisValue>(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<Vec<T>, StoreError> {
        let mut pipeline = redis::pipe();
        for command in commands {
            pipeline.add_command(command);
        }
        let pipeline = &pipeline;
        self.run(|connection| async move {
            match connection {
                Connection::Standalone(mut server) => pipeline.query_async(&mut server).await,
                Connection::Cluster(cluster) => {
                    let sent = pipeline.cmd_iter().map(|command| {
                        let mut cluster = cluster.clone();
                        async move { command.query_async(&mut cluster).await }
                    });
                    try_join_all(sent).await
                }
            }
        })
        .await
    }

    /// Asks the server, or each primary of a Cluster. Gives their addresses and answers, or why they gave none.
    pub(super) async fn each_primary<T: FromRedisValue>(&self, command: &Cmd) -> Result<Vec<Answer<T>>, StoreError> {
        let asked = self.run(|connection| async move {
            match connection {
                Connection::Standalone(mut server) => match command.query_async(&mut server).await {
                    // A refusal is an answer as well.
                    Err(error) if matches!(error.kind(), ErrorKind::Server(_)) => {
                        Ok(vec![(self.address.clone(), Err(error.to_string()))])
                    }
                    answer => answer.map(|answer| vec![(self.address.clone(), Ok(answer))]),
                },
                Connection::Cluster(mut cluster) => {
                    let primaries = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                    let answers = cluster.route_command(command.clone(), primaries).await?;
                    let answers = Vec::<(String, Value)>::from_redis_value(answers)?;
                    answers.into_iter().map(answer_of_node).collect()
                }
            }
        });
        asked.await
    }

    async fn run<T, F: Future<Output = Result<T, RedisError>>>(
        &self,
        exchange: impl Fn(Connection) -> F,
    ) -> Result<T, StoreError> {
        let mut used = None;
        let work = async {
            let mut first = true;
            loop {
                let Reached { generation, connection, before } = self.connection().await?;
                used = Some(generation);
                // Without tokio's budget: a batch that ran out of it halfway would be overtaken by the next one, whose
                // positions then don't match.
                let result = tokio::task::unconstrained(exchange(connection)).await;
                let result = result.map_err(|e| self.classify(&e));
                let was_dead = before && matches!(result, Err(StoreError::Unreachable { .. }));
                if !(first && was_dead && self.repeats) {
                    return result;
                }
                first = false;
                self.drop_connection(generation);
            }
        };
        let result = tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| {
            Err(self.unreachable(format!("no answer within {}", humantime::format_duration(self.timeout))))
        });
        // Also after a refusal: it may come from a server that was the primary until now.
        let broken = matches!(result, Err(StoreError::Unreachable { .. } | StoreError::Refused { .. }));
        if let (true, Some(generation)) = (broken, used) {
            self.drop_connection(generation);
        }
        result
    }

    async fn connection(&self) -> Result<Reached, StoreError> {
        if let Some(ready) = self.ready()? {
            return Ok(ready);
        }
        let _turn = self.connecting.lock().await;
        if let Some(ready) = self.ready()? {
            return Ok(ready);
        }
        let made = self.client.connect(self.timeout).await;
        let mut state = self.lock();
        match made {
            Ok(connection) => {
                state.generation += 1;
                state.failed = None;
                state.connection = Some(connection.clone());
                Ok(Reached { generation: state.generation, connection, before: false })
            }
            Err(error) => {
                let error = self.classify(&error);
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn ready(&self) -> Result<Option<Reached>, StoreError> {
        let state = self.lock();
        if let Some(connection) = state.connection.clone() {
            return Ok(Some(Reached { generation: state.generation, connection, before: true }));
        }
        match &state.failed {
            Some((at, error)) if at.elapsed() < RECONNECT_PAUSE => Err(error.clone()),
            _ => Ok(None),
        }
    }

    fn drop_connection(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.connection = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreachable(&self, reason: String) -> StoreError {
        StoreError::Unreachable { address: self.address.clone(), reason }
    }

    fn refused(&self, error: &RedisError) -> StoreError {
        StoreError::Refused { address: self.address.clone(), reason: error.to_string() }
    }

    fn classify(&self, error: &RedisError) -> StoreError {
        let reason = error.to_string();
        if reason.contains("invalid peer certificate") {
            let reason = format!("{reason}; set REDIS_CA_FILE to the authority that has signed it");
            return self.unreachable(reason);
        }
        match error.kind() {
            // A Cluster's client says only in words why it could connect to none of the nodes.
            ErrorKind::Io if reason.contains("AuthenticationFailed") => self.refused(error),
            ErrorKind::Io => self.unreachable(error.to_string()),
            ErrorKind::AuthenticationFailed => self.refused(error),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => StoreError::Corrupt(error.to_string()),
            _ if error.is_unrecoverable_error() => self.unreachable(error.to_string()),
            _ => self.refused(error),
        }
    }
}
