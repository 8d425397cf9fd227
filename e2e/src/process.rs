//! One child process: started from a clean environment, its output kept, killed with its owner.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use futures::future::join_all;
use nix::{sys::signal, unistd::Pid};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    task::JoinHandle,
};

pub use nix::sys::signal::Signal;

use crate::PATIENCE;

/// How much of a process's output a failing test prints.
const TAIL: usize = 6_000;

/// Growth that a test may miss, in KiB: far below all that they look for.
const MOST_HIDDEN: u64 = 8 * 1024;

/// What a child inherits. `LLVM_PROFILE_FILE` is where a binary built for coverage reports to.
const INHERITED: [&str; 4] = ["PATH", "HOME", "LLVM_PROFILE_FILE", "RUST_BACKTRACE"];

/// A command for `program` with a clean environment.
#[must_use]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
}

/// A running (or ended) child process. Dropping it kills it, and prints the end of its output
/// when the test is failing.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Output,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`; `name` is how failures call it.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn spawn(name: impl Into<String>, mut command: Command) -> Self {
        let name = name.into();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}: {command:?}"));
        let output = Output::default();
        let readers = vec![
            tokio::spawn(output.clone().collect(child.stdout.take().expect("stdout is piped"))),
            tokio::spawn(output.clone().collect(child.stderr.take().expect("stderr is piped"))),
        ];
        Self { name, child, output, readers }
    }

    /// Everything the process has written so far, both streams mixed as they came.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock()).into_owned()
    }

    /// The process id, as text: it tells processes of one kind apart.
    ///
    /// # Panics
    /// When the process has ended and was waited for.
    #[must_use]
    pub fn pid(&self) -> Pid {
        let id = self.child.id().unwrap_or_else(|| panic!("{} has already ended", self.name));
        Pid::from_raw(id.try_into().expect("process ids fit an i32"))
    }

    /// Measures by how much the process grows from now on.
    ///
    /// # Panics
    /// When the process has ended, or where it had a peak that would hide a growth and the kernel does not forget it.
    #[must_use]
    pub fn memory_watch(&self) -> MemoryWatch<'_> {
        let forgot = std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5");
        let before = self.memory("VmHWM:");
        let hidden = before.saturating_sub(self.memory("VmRSS:"));
        if let Err(error) = forgot {
            assert!(
                hidden < MOST_HIDDEN,
                "this kernel can't forget what {} has used before (writing clear_refs: {error}), and so {hidden} KiB of \
                growth could not be seen",
                self.name
            );
        }
        MemoryWatch { process: self, before }
    }

    /// The most that the process has had in memory so far, in MiB.
    ///
    /// # Panics
    /// When the process has ended.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:") / 1024
    }

    /// A line of its status, in KiB.
    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running process");
        let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("such a line");
        value.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        signal::kill(self.pid(), signal).unwrap_or_else(|error| panic!("{} takes no {signal}: {error}", self.name));
    }

    /// `Ok` while the process runs.
    ///
    /// # Errors
    /// When it has ended, with its status.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}", self.name),
        }
    }

    /// Waits for the process to end by itself; all of its output has been collected then.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub async fn ended_within(&mut self, limit: Duration) -> ExitStatus {
        let status = tokio::time::timeout(limit, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("{} still runs after {limit:?}", self.name))
            .expect("a child can be waited for");
        join_all(self.readers.drain(..)).await;
        status
    }

    /// SIGTERM, and the exit status.
    ///
    /// # Panics
    /// When the process still runs after `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended_within(limit).await
    }

    /// SIGKILL; returns once the process is gone.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended_within(PATIENCE).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.output();
            let start = output.len().saturating_sub(TAIL);
            let tail = output.get(output.ceil_char_boundary(start)..).unwrap_or(&output);
            eprintln!("---- {} said ----\n{tail}\n----", self.name);
        }
    }
}

/// The memory of a process since a moment (`VmHWM` and `clear_refs`, proc(5)).
#[derive(Debug)]
pub struct MemoryWatch<'a> {
    process: &'a Process,
    before: u64,
}

impl MemoryWatch<'_> {
    /// How much more the process has had at its peak since then, in MiB.
    ///
    /// # Panics
    /// When the process has ended.
    #[must_use]
    pub fn growth(&self) -> u64 {
        // The kernel counts roughly: a peak may even come out below the one before.
        self.process.memory("VmHWM:").saturating_sub(self.before) / 1024
    }
}

/// What a process wrote, shared between its readers and its owner.
#[derive(Debug, Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn collect(self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8192];
        while let Ok(length @ 1..) = stream.read(&mut chunk).await {
            self.lock().extend_from_slice(&chunk[..length]);
        }
    }
}
