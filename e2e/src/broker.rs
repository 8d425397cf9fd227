//! A Kafka broker of a test's own, for tests that kill it.

use std::{fs::File, path::Path, time::Duration};

use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    env, eventually_within,
    kafka::Kafka,
    process::{Process, Signal},
    world::free_port,
};

/// The line this system runs on.
const VERSION: &str = "4.3.1";
/// The file with what a test adds to its configuration.
const PROPERTIES: &str = "more.properties";
/// For a start, which is much work.
const START: Duration = Duration::from_mins(5);

/// Those that exist at a time, over all test processes: a broker's start takes a core for seconds. Two, because most of
/// their time goes into waiting.
const MOST: usize = 2;

/// A single-node broker on a port and a folder of its own. Few exist at a time.
#[derive(Debug)]
pub struct Broker {
    version: &'static str,
    port: u16,
    doors: String,
    users: String,
    process: Option<Process>,
    folder: TempDir,
    _turn: File,
}

impl Broker {
    /// Waits for its turn and takes a port and a folder, without starting the broker.
    ///
    /// # Panics
    /// When there is no place for its files.
    pub async fn reserve() -> Self {
        let turn = turn().await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self {
            version: VERSION,
            port: free_port(),
            doors: String::new(),
            users: String::new(),
            process: None,
            folder,
            _turn: turn,
        }
    }

    /// The same of another version of Kafka.
    #[must_use]
    pub fn of_version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// The same with further listeners: each a port of its own, and the port that a client of it is
    /// told to come back to, such as a proxy's.
    #[must_use]
    pub fn with_doors(mut self, doors: &[(u16, u16)]) -> Self {
        let doors = doors.iter().map(|(listen, advertise)| format!("{listen}:{advertise}"));
        self.doors = doors.collect::<Vec<_>>().join(" ");
        self
    }

    /// The same with listeners of other protocols (`SSL` …), each on a port of its own, the properties that these need,
    /// and users for SCRAM, each as `kafka-storage format --add-scram` takes it.
    ///
    /// # Panics
    /// When there is no place for the properties.
    #[must_use]
    pub fn with_security(mut self, doors: &[(u16, &str)], properties: &str, users: &[String]) -> Self {
        let doors = doors.iter().map(|(port, protocol)| format!("{port}:{port}:{protocol}"));
        self.doors = doors.collect::<Vec<_>>().join(" ");
        self.users = users.join(" ");
        self.set_properties(properties);
        self
    }

    /// What its next start adds to its configuration, in place of what the last one did.
    ///
    /// # Panics
    /// When there is no place for them.
    pub fn set_properties(&self, properties: &str) {
        std::fs::write(self.folder.path().join(PROPERTIES), properties).expect("a file");
    }

    /// Where its files are, and a test may put its own.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A broker that answers.
    pub async fn start() -> Self {
        let mut broker = Self::reserve().await;
        broker.up().await;
        broker
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What the present process has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// Starts the broker on what it had before and waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer.
    pub async fn up(&mut self) {
        let mut command = Command::new(env::broker_script());
        command.arg(self.version).arg(self.port.to_string()).arg(self.folder.path());
        command.env("KAFKA_BROKER_DOORS", &self.doors).env("KAFKA_BROKER_SCRAM", &self.users);
        let properties = self.folder.path().join(PROPERTIES);
        if properties.exists() {
            command.env("KAFKA_BROKER_PROPERTIES", properties);
        }
        let process = self.process.insert(Process::spawn("broker", command));
        let kafka = Kafka::new(&format!("127.0.0.1:{}", self.port));
        eventually_within(START, "the broker answers", async || {
            process.still_runs().unwrap_or_else(|end| panic!("{end:#}"));
            kafka.answers()
        })
        .await;
    }

    /// Stops answering without closing a connection, as a hung machine does.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        self.running().signal(Signal::SIGSTOP);
    }

    /// Ends [`Broker::freeze`].
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.running().signal(Signal::SIGCONT);
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("the broker runs")
    }

    /// SIGKILL. Its files stay.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await;
        }
    }
}

/// Waits for one of the few places, and gives the lock that holds it.
async fn turn() -> File {
    loop {
        for place in 0..MOST {
            let lock = std::env::temp_dir().join(format!("user-activity-broker-{place}.lock"));
            let file = File::create(lock).expect("a lock file");
            if file.try_lock().is_ok() {
                return file;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
