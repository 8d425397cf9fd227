//! A Redis of a test's own, for tests that freeze it, kill it, empty it or set it back in time.

use std::{fs, path::Path, time::Duration};

use anyhow::Result;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::process::Command;
use uuid::Uuid;

use crate::{
    eventually,
    process::{Process, Signal},
    world::free_port,
};

/// For a connection, and for the answer to a command.
const CONNECT: Duration = Duration::from_secs(10);
const RESPONSE: Duration = Duration::from_secs(30);

/// A standalone `redis-server` with the durability settings that the system asks for.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    password: Option<String>,
    flags: Vec<String>,
    process: Option<Process>,
    folder: TempDir,
}

impl RedisServer {
    /// Takes a port and a folder, without starting the server.
    ///
    /// # Panics
    /// When there is no place for its files.
    #[must_use]
    pub fn reserve() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { port: free_port(), password: None, flags: Vec::new(), process: None, folder }
    }

    /// As [`RedisServer::reserve`], for a node of a Cluster, which misses another one after this time.
    #[must_use]
    pub fn reserve_node(node_timeout: Duration) -> Self {
        let mut node = Self::reserve();
        // It fails over however long its primary has been out of its sight: what it lacks then is for the system to find.
        let flags = format!(
            "--cluster-enabled yes --cluster-node-timeout {} --cluster-replica-validity-factor 0 --cluster-port {}",
            node_timeout.as_millis(),
            node.port + 1
        );
        node.flags = flags.split(' ').map(str::to_owned).collect();
        node
    }

    /// A server that answers.
    pub async fn start() -> Self {
        let mut server = Self::reserve();
        server.up().await;
        server
    }

    /// A server that answers who knows the password.
    pub async fn start_with_password(password: &str) -> Self {
        let mut server = Self { password: Some(password.to_owned()), ..Self::reserve() };
        server.up().await;
        server
    }

    /// Its URL, with the password if it has one.
    #[must_use]
    pub fn url(&self) -> String {
        let login = self.password.as_ref().map(|password| format!(":{password}@"));
        format!("redis://{}127.0.0.1:{}", login.unwrap_or_default(), self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder with its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the present process has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// Starts the server on the files in its folder and waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer.
    pub async fn up(&mut self) {
        let mut process = Process::spawn("redis-server", self.command());
        eventually("Redis answers", async || {
            process.still_runs().unwrap_or_else(|end| panic!("{end:#}"));
            self.try_command_line::<String>("PING").await
        })
        .await;
        self.process = Some(process);
    }

    /// SIGKILL. Its files stay as they are at this moment.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await;
        }
    }

    /// Stops answering without closing a connection, as a hung machine does.
    pub fn freeze(&self) {
        self.running().signal(Signal::SIGSTOP);
    }

    /// Ends [`RedisServer::freeze`].
    pub fn thaw(&self) {
        self.running().signal(Signal::SIGCONT);
    }

    /// A copy of its files as they are now.
    ///
    /// # Panics
    /// When they cannot be copied.
    #[must_use]
    pub fn copy_files(&self) -> TempDir {
        let copy = tempfile::tempdir().expect("a temporary folder");
        copy_folder(self.folder.path(), copy.path()).expect("a copy");
        copy
    }

    /// Replaces the files of a server that is not running.
    ///
    /// # Panics
    /// When they cannot be replaced.
    pub fn restore_files(&self, copy: &TempDir) {
        self.delete_files();
        copy_folder(copy.path(), self.folder.path()).expect("a copy");
    }

    /// Deletes the files of a server that is not running.
    ///
    /// # Panics
    /// When they cannot be deleted, or when the server runs.
    pub fn delete_files(&self) {
        assert!(self.process.is_none(), "the server must not run");
        fs::remove_dir_all(self.folder.path()).expect("its files can be deleted");
        fs::create_dir(self.folder.path()).expect("its folder can be made");
    }

    /// Sends one command, written as words.
    ///
    /// # Panics
    /// When the server does not answer it as expected.
    pub async fn command_line<T: FromRedisValue>(&self, words: &str) -> T {
        self.try_command_line(words).await.unwrap_or_else(|error| panic!("{words}: {error:#}"))
    }

    /// Sends one command, written as words, which may fail.
    ///
    /// # Errors
    /// When the server does not answer it as expected.
    pub async fn try_command_line<T: FromRedisValue>(&self, words: &str) -> Result<T> {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap_or_default());
        words.for_each(|word| {
            command.arg(word);
        });
        self.send(&command).await
    }

    /// Sends one command, of any bytes.
    ///
    /// # Errors
    /// When the server does not answer it as expected.
    pub async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        // The defaults are half a second, and one to connect: too little on a busy machine.
        let limits =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(RESPONSE));
        let mut connection: MultiplexedConnection =
            Client::open(self.url())?.get_multiplexed_async_connection_with_config(&limits).await?;
        Ok(command.query_async(&mut connection).await?)
    }

    /// Changes how long events are kept, as workers do that start with another `EVENT_RETENTION`.
    ///
    /// # Panics
    /// When no worker has been there.
    pub async fn keep_for(&self, retention: chrono::TimeDelta) {
        let keys: Vec<String> = self.command_line("KEYS *meta:settings").await;
        let [key] = keys.as_slice() else { panic!("{keys:?}") };
        self.command_line::<usize>(&format!("HSET {key} retention_ms {}", retention.num_milliseconds())).await;
    }

    /// Deletes what is stored of an event, whose id is a UUID, but for its places in indexes.
    ///
    /// # Panics
    /// When there is nothing.
    pub async fn delete_body(&self, event_id: &str) {
        // In a pattern any byte may be given with a backslash before it.
        let name = stored(event_id).into_iter().flat_map(|byte| [b'\\', byte]);
        let pattern: Vec<u8> = b"*ev:*".iter().copied().chain(name).collect();
        let keys: Vec<Vec<u8>> = self.send(redis::cmd("KEYS").arg(pattern)).await.expect("Redis answers");
        let deleted: usize = self.send(redis::cmd("DEL").arg(&keys)).await.expect("there is a body");
        assert_eq!(deleted, 1, "the body of {event_id}");
    }

    /// Takes an event, whose id is a UUID, out of the index of all.
    ///
    /// # Panics
    /// When it is not there.
    pub async fn unlist(&self, event_id: &str) {
        let mut removed = 0;
        for index in self.command_line::<Vec<String>>("KEYS *ix:*").await {
            let count: usize =
                self.send(redis::cmd("ZREM").arg(index).arg(stored(event_id))).await.expect("Redis answers");
            removed += count;
        }
        assert_eq!(removed, 1, "the entry of {event_id}");
    }

    /// How often it was sent this command, written in small letters, since its start.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn calls(&self, command: &str) -> u64 {
        let stats: String = self.command_line("INFO commandstats").await;
        let calls = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        calls.and_then(|calls| calls.split(',').next()?.parse().ok()).unwrap_or_default()
    }

    /// Whether it was started and not killed.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("the server runs")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]);
        command.args([
            "--appendfsync",
            "everysec",
            "--maxmemory-policy",
            "noeviction",
            "--lazyfree-lazy-expire",
            "yes",
        ]);
        command.arg("--port").arg(self.port.to_string()).arg("--dir").arg(self.folder.path());
        command.args(&self.flags);
        if let Some(password) = &self.password {
            command.arg("--requirepass").arg(password);
        }
        command
    }
}

/// A UUID as it is stored.
fn stored(event_id: &str) -> Vec<u8> {
    Uuid::parse_str(event_id).expect("a UUID").as_bytes().to_vec()
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
