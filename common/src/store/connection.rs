//! One connection to Redis per kind of use. Every exchange has a deadline, connecting included; after any failure of
//! the connection, a time-out among them, the next exchange makes a new one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError};

/// After a failed attempt to connect, others within this time fail with it instead of queueing for attempts of their own.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

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
        "{key} says {found:?}, this version needs {wanted:?}: use another REDIS_KEY_PREFIX or the version that wrote it"
    )]
    Layout {
        /// The key that says so.
        key: String,
        /// Its value.
        found: String,
        /// The value needed.
        wanted: &'static str,
    },
    /// The server may throw away what it has acknowledged.
    #[error(
        "Redis evicts data when it is full (maxmemory-policy {policy}), which can't be noticed: set maxmemory-policy noeviction"
    )]
    Unfit {
        /// Its policy.
        policy: String,
    },
    /// A reply that can't be read as what it should be.
    #[error("Redis holds something unexpected: {0}")]
    Corrupt(String),
}

#[derive(Default)]
struct State {
    /// Counts connections, so that a late failure of an old one does not drop its successor.
    generation: u64,
    connection: Option<MultiplexedConnection>,
    failed: Option<(Instant, StoreError)>,
}

/// A connection that is made when needed.
pub(super) struct Lane {
    client: Client,
    address: String,
    timeout: Duration,
    state: Mutex<State>,
    connecting: tokio::sync::Mutex<()>,
}

impl Lane {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, StoreError> {
        let wrong = |e: RedisError| StoreError::Refused { address: "REDIS_URL".into(), reason: e.to_string() };
        let info = url.into_connection_info().map_err(wrong)?;
        let address = info.addr().to_string();
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(wrong)?;
        Ok(Self { client, address, timeout, state: Mutex::default(), connecting: tokio::sync::Mutex::default() })
    }

    pub(super) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, StoreError> {
        self.run(async |connection| pipeline.query_async(connection).await).await
    }

    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        self.run(async |connection| command.query_async(connection).await).await
    }

    /// Sends commands that are independent of each other, all at once; the replies come in their order. Each keeps to one
    /// bucket, while they may be of different ones, which a pipeline may not.
    pub(super) async fn scatter<T: FromRedisValue>(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<Vec<T>, StoreError> {
        let mut pipeline = redis::pipe();
        for command in commands {
            pipeline.add_command(command);
        }
        self.pipeline(&pipeline).await
    }

    async fn run<T>(
        &self,
        exchange: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let mut used = None;
        let work = async {
            let (generation, mut connection) = self.connection().await?;
            used = Some(generation);
            // Without tokio's budget: a batch that ran out of it halfway would be overtaken by the next one, whose
            // positions then don't match.
            tokio::task::unconstrained(exchange(&mut connection)).await.map_err(|e| self.classify(&e))
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

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), StoreError> {
        if let Some(ready) = self.ready()? {
            return Ok(ready);
        }
        let _turn = self.connecting.lock().await;
        if let Some(ready) = self.ready()? {
            return Ok(ready);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(None)
            // Room for the transactions of several batches, so that none has to wait to be sent.
            .set_pipeline_buffer_size(1024);
        let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut state = self.lock();
        match made {
            Ok(connection) => {
                state.generation += 1;
                state.failed = None;
                state.connection = Some(connection.clone());
                Ok((state.generation, connection))
            }
            Err(error) => {
                let error = self.classify(&error);
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn ready(&self) -> Result<Option<(u64, MultiplexedConnection)>, StoreError> {
        let state = self.lock();
        if let Some(connection) = &state.connection {
            return Ok(Some((state.generation, connection.clone())));
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
        match error.kind() {
            ErrorKind::Io => self.unreachable(error.to_string()),
            ErrorKind::AuthenticationFailed => self.refused(error),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => StoreError::Corrupt(error.to_string()),
            _ if error.is_unrecoverable_error() => self.unreachable(error.to_string()),
            _ => self.refused(error),
        }
    }
}
