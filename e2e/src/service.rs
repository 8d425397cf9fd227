//! An API or a worker: its process, and a client of its HTTP port.

use anyhow::Result;
use reqwest::Method;
use tokio::process::Command;

use crate::{
    client::{Client, Reply},
    eventually,
    process::Process,
};

/// A running binary of the system.
#[derive(Debug)]
pub struct Service {
    /// The process behind it.
    pub process: Process,
    /// HTTP to it: the API's port, or the worker's admin port.
    pub client: Client,
    /// That port.
    pub port: u16,
}

impl Service {
    /// Starts the command, which was told to listen on `port`.
    #[must_use]
    pub fn spawn(name: &str, port: u16, command: Command) -> Self {
        Self { process: Process::spawn(name, command), client: Client::new(port), port }
    }

    /// Waits until `path` answers with `status`.
    ///
    /// # Panics
    /// When it does not, or when the process ends instead.
    pub async fn answers(&mut self, path: &str, status: u16) -> Reply {
        let Self { process, client, .. } = self;
        eventually(&format!("{path} answers {status}"), async || {
            if let Err(end) = process.still_runs() {
                panic!("{end:#} before {path} answered {status}");
            }
            client.get(path).await?.with_status(status)
        })
        .await
    }

    /// Waits until the service says that it is ready.
    pub async fn ready(&mut self) {
        self.answers("/readyz", 200).await;
    }

    /// One GET of `path`, right now.
    ///
    /// # Errors
    /// When there is no reply or another status.
    pub async fn check(&self, path: &str, status: u16) -> Result<()> {
        Reply::of(self.client.request(Method::GET, path)).await?.with_status(status)?;
        Ok(())
    }
}
