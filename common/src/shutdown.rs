//! The end of a process: who asks for it, and how long it may take.

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken as Shutdown;

/// Cancels the returned token at the first SIGTERM or SIGINT; a second one ends the process at once, exit code 130.
///
/// # Errors
/// When the signal handlers can't be installed.
pub fn on_signal() -> std::io::Result<Shutdown> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = Shutdown::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
        // Not inside the log lines: what these print is not computed when their level is off.
        let first = next().await;
        log::info!("{first} received: draining");
        token.cancel();
        let second = next().await;
        log::warn!("{second} received while draining: ending at once, what was in flight is not finished");
        std::process::exit(130);
    });
    Ok(shutdown)
}
