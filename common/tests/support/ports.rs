//! Ports for servers that tests start: the test processes that run side by side share this.

use std::fs::File;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

/// A TCP port of 127.0.0.1 that is free together with the one above it (a broker wants two). It is this process' own for as
/// long as the process lives: whoever else asks, here or in the test beside it, gets another one.
///
/// Below the range that the kernel hands out to outgoing connections, so that no connection of another test takes it before
/// its owner binds it.
///
/// # Panics
/// When no port is free.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const PAIRS: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
    // Processes that start one after the other look far apart.
    let start = u16::try_from(std::process::id().wrapping_mul(61) % u32::from(PAIRS)).unwrap();
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let ports = (0..PAIRS).map(|_| FIRST + 2 * ((start + NEXT.fetch_add(1, Ordering::Relaxed) % PAIRS) % PAIRS));
    let mut taken = ports.filter_map(|port| Some((port, lock_port(port)?)));
    let (port, lock) = taken.find(|(port, _)| is_free(*port) && is_free(port + 1)).unwrap();
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
    port
}

/// Locks the file that stands for a port, unless another process has it.
fn lock_port(port: u16) -> Option<File> {
    let folder = std::env::temp_dir().join("user-activity-ports");
    std::fs::create_dir_all(&folder).unwrap();
    let file = File::create(folder.join(port.to_string())).unwrap();
    file.try_lock().is_ok().then_some(file)
}
