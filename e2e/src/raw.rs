//! HTTP written by hand, for requests that no well-behaved client would send.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Sends `request` as it is, keeps the connection open, and returns what the server answered
/// until it closed the connection or `limit` passed.
///
/// # Panics
/// When the server does not accept the connection.
pub async fn exchange(port: u16, request: &[u8], limit: Duration) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a listening server");
    let (mut reader, mut writer) = stream.split();
    let mut reply = Vec::new();
    let conversation = async {
        // The server may answer and close while we still write: what it said counts.
        let (_, _) = tokio::join!(writer.write_all(request), read_to_end(&mut reader, &mut reply));
    };
    let _ = tokio::time::timeout(limit, conversation).await;
    String::from_utf8_lossy(&reply).into_owned()
}

/// Reads until the end or the first error, keeping what came before it.
async fn read_to_end(reader: &mut (impl AsyncReadExt + Unpin), reply: &mut Vec<u8>) {
    while let Ok(1..) = reader.read_buf(reply).await {}
}
