//! The port on which a process is watched over: health and metrics.

use std::io::ErrorKind;
use std::net::IpAddr;

use tokio::net::TcpListener;

use crate::config::{Checks, range};

/// Such a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminPort {
    /// Its number; 0 for a free one.
    pub number: u16,
    setting: &'static str,
    is_default: bool,
}

impl AdminPort {
    /// The port that `setting` says, `default` when that is absent or empty.
    pub fn check(checks: &mut Checks, setting: &'static str, raw: Option<&str>, default: u16) -> Self {
        let raw = raw.filter(|raw| !raw.is_empty());
        let number = raw.map_or(default, |raw| checks.take(setting, raw, range(0..=u16::MAX)));
        Self { number, setting, is_default: raw.is_none() }
    }

    /// Takes it. A default port that is busy is no reason not to work: then a free one.
    ///
    /// # Errors
    /// When a port that was asked for can't be had, with the address and what to do.
    pub async fn bind(self, address: IpAddr) -> Result<TcpListener, String> {
        let Self { number, setting, is_default } = self;
        let listener = match TcpListener::bind((address, number)).await {
            Err(error) if is_default && error.kind() == ErrorKind::AddrInUse => {
                log::info!("port {number} is busy, taking a free one; {setting} sets it");
                TcpListener::bind((address, 0)).await
            }
            listener => listener,
        };
        listener
            .map_err(|error| format!("can't listen on {address}:{number}; set {setting} to a free port or 0: {error}"))
    }
}
