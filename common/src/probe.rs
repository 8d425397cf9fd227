//! The `healthcheck` subcommand of both binaries: asks a process on this machine whether it is ready, so that a
//! container image needs no HTTP client of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use clap::Args;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Ask the process in this container whether it is ready; exit code 0 when it is, 1 when not
#[derive(Debug, Clone, Args)]
pub struct HealthcheckArgs {
    /// What to ask: /readyz, or /livez for whether it is alive at all
    #[arg(long, default_value = "/readyz", value_name = "PATH")]
    pub path: String,
}

/// Sends `GET path` to 127.0.0.1:`port` and gives the reply's body.
///
/// # Errors
/// What is wrong: no connection within 3 s, or another status than 200 with the reply's body.
pub fn ask(port: u16, path: &str) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("nothing answers at http://127.0.0.1:{port}{path}: {e}");
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), TIMEOUT).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
    // HTTP/1.0: no chunks, and the end of the body is the end of the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).map_err(failed)?;
    let mut reply = String::new();
    stream.take(65_536).read_to_string(&mut reply).map_err(failed)?;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        status => Err(format!("{path} answered {}: {body}", status.unwrap_or("without a status"))),
    }
}

/// Runs the subcommand: prints the answer and gives the exit code.
#[must_use]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool's output")]
pub fn run(port: u16, args: &HealthcheckArgs) -> u8 {
    match ask(port, &args.path) {
        Ok(body) => {
            println!("{body}");
            0
        }
        Err(why) => {
            eprintln!("{why}");
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answering(reply: &'static str) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // All of it: what is unread when the connection is closed would reset it.
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(reply.as_bytes()).unwrap();
        });
        port
    }

    #[test]
    fn only_a_200_is_healthy() {
        assert_eq!(ask(answering("HTTP/1.0 200 OK\r\n\r\nfine"), "/readyz"), Ok("fine".into()));
        let sick = ask(answering("HTTP/1.0 503 Service Unavailable\r\n\r\nsick"), "/readyz").unwrap_err();
        assert_eq!(sick, "/readyz answered 503: sick");
        // Bound, so that nobody else gets it, and not listened on.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        assert!(ask(silent.local_addr().unwrap().port(), "/readyz").unwrap_err().contains("nothing answers"));
    }
}
