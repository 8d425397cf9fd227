//! The network between two parts: a TCP proxy that can be cut, slow, or silent.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::world::free_port;

/// Under [`Trouble::Delay`], on each way.
const DELAY: Duration = Duration::from_millis(300);

/// Chunks under way in one direction of a connection; what a sender has in the air.
const IN_THE_AIR: usize = 64;

/// What a network can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Every connection is closed, a new one closed at once.
    Cut,
    /// Everything arrives, later.
    Delay,
    /// Connections stand, nothing arrives, until the end of it; then all that was sent does, late.
    Blackhole,
}

/// A door to one port of 127.0.0.1. It closes when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    trouble: watch::Sender<Option<Trouble>>,
    doorman: JoinHandle<()>,
}

impl Proxy {
    /// Opens a door to `target`, which need not listen yet.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn to(target: u16) -> io::Result<Self> {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let (trouble, now) = watch::channel(None);
        let doorman = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *now.borrow() != Some(Trouble::Cut) {
                    tokio::spawn(connection(client, target, now.clone()));
                }
            }
        });
        Ok(Self { port, trouble, doorman })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets trouble begin.
    pub fn trouble(&self, trouble: Trouble) {
        self.trouble.send_replace(Some(trouble));
    }

    /// Ends it.
    pub fn mend(&self) {
        self.trouble.send_replace(None);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.doorman.abort();
    }
}

type Condition = watch::Receiver<Option<Trouble>>;

/// Carries both directions until both have ended, or the network is cut.
async fn connection(client: TcpStream, target: u16, trouble: Condition) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    // A request must not wait for the acknowledgement of the one before it.
    if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
        return;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = trouble.clone();
    tokio::select! {
        _ = cut.wait_for(|trouble| *trouble == Some(Trouble::Cut)) => {}
        _ = async { tokio::join!(carry(from_client, to_server, trouble.clone()), carry(from_server, to_client, trouble)) } => {}
    }
}

/// Carries one direction until its end.
async fn carry(from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin, trouble: Condition) {
    let (sender, receiver) = mpsc::channel(IN_THE_AIR);
    tokio::join!(take_in(from, sender, trouble.clone()), hand_out(to, receiver, trouble));
}

async fn take_in(mut from: impl AsyncRead + Unpin, air: mpsc::Sender<(Instant, Vec<u8>)>, trouble: Condition) {
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let delay = if *trouble.borrow() == Some(Trouble::Delay) { DELAY } else { Duration::ZERO };
        if air.send((Instant::now() + delay, chunk[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn hand_out(
    mut to: impl AsyncWrite + Unpin,
    mut air: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut trouble: Condition,
) {
    while let Some((due, chunk)) = air.recv().await {
        tokio::time::sleep_until(due.into()).await;
        if trouble.wait_for(|trouble| *trouble != Some(Trouble::Blackhole)).await.is_err() {
            return;
        }
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
    // Whether the other side still hears it does not matter.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, and a connection to it through a door.
    async fn echo() -> (Proxy, TcpStream) {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Proxy::to(server.local_addr().unwrap().port()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        (proxy, client)
    }

    async fn says(client: &mut TcpStream, word: &[u8; 4]) {
        client.write_all(word).await.unwrap();
        hears(client, word).await;
    }

    async fn hears(client: &mut TcpStream, word: &[u8; 4]) {
        let mut heard = [0; 4];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, *word);
    }

    #[tokio::test]
    async fn without_trouble_everything_passes_and_so_does_the_end() {
        let (_proxy, mut client) = echo().await;
        says(&mut client, b"ping").await;
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_refuses_new_ones_until_mended() {
        let (proxy, mut client) = echo().await;
        says(&mut client, b"ping").await;
        proxy.trouble(Trouble::Cut);
        assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
        let mut refused = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)));
        proxy.mend();
        let mut next = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        says(&mut next, b"pong").await;
    }

    #[tokio::test]
    async fn a_delay_keeps_each_way_waiting() {
        let (proxy, mut client) = echo().await;
        proxy.trouble(Trouble::Delay);
        let started = Instant::now();
        says(&mut client, b"ping").await;
        assert!(started.elapsed() >= 2 * DELAY, "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn what_is_sent_into_a_black_hole_arrives_after_it() {
        let (proxy, mut client) = echo().await;
        says(&mut client, b"ping").await;
        proxy.trouble(Trouble::Blackhole);
        client.write_all(b"late").await.unwrap();
        let mut byte = [0];
        let silence = tokio::time::timeout(Duration::from_millis(200), client.read(&mut byte));
        assert!(silence.await.is_err(), "nothing arrives");
        proxy.mend();
        hears(&mut client, b"late").await;
    }
}
