//! Whether a broker still speaks version 0 of Produce and Metadata, the only one the crate `kafka` has.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::Stop;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
/// Far above what a broker answers here, far below what would hurt if something else listens on that port.
const LARGEST_REPLY: usize = 64 * 1024;

/// Asks the broker at `host:port`; each step may take `patience`.
///
/// # Errors
/// [`Stop::Lost`] when it does not answer, [`Stop::Refused`] when it does not speak these versions.
pub(super) fn check(broker: &str, patience: Duration) -> Result<(), Stop> {
    let lost = |e: io::Error| Stop::Lost(format!("no Kafka broker answers: {broker}: {e}; check KAFKA_BROKERS"));
    let mut connection = connect(broker, patience).map_err(lost)?;
    let reply = ask(&mut connection, API_VERSIONS, &[]).map_err(lost)?;
    let offered = [PRODUCE, FETCH, METADATA].map(|api| range(&reply, api));
    let [Some(_), Some(_), Some(metadata)] = offered else {
        return Err(lost(io::Error::other("it does not say which versions it speaks")));
    };
    if offered.iter().flatten().all(|(lowest, _)| *lowest <= 0) {
        return Ok(());
    }
    // Something was dropped. Kafka 4 lists Produce from 0 for the sake of old clients (KAFKA-18659) and closes the
    // connection on a request of that version: only trying tells. One without topics writes nothing.
    let no_topics = [&(-1_i16).to_be_bytes()[..], &1000_i32.to_be_bytes(), &0_i32.to_be_bytes()].concat();
    match ask(&mut connection, PRODUCE, &no_topics) {
        Ok(_) if metadata.0 <= 0 => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(lost(e)),
        _ => Err(Stop::Refused(refusal(broker, &offered))),
    }
}

fn refusal(broker: &str, offered: &[Option<(i16, i16)>; 3]) -> String {
    let [produce, fetch, metadata] =
        offered.map(|range| range.map_or_else(String::new, |(from, to)| format!("{from} to {to}")));
    format!(
        "the broker {broker} no longer speaks the protocol versions of kafka-rust (version 0 of each request; it lists \
         Produce {produce}, Fetch {fetch}, Metadata {metadata}, and Produce 0 does not work): Kafka 4.0 has removed them, \
         3.9 is the last that has them; use --kafka-client rdkafka (KAFKA_CLIENT=rdkafka)"
    )
}

fn connect(broker: &str, patience: Duration) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in broker.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(connection) => {
                connection.set_read_timeout(Some(patience))?;
                connection.set_write_timeout(Some(patience))?;
                return Ok(connection);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Sends a request of version 0, without a client id, and gives the reply after its correlation id.
/// The layout: <https://kafka.apache.org/protocol>.
fn ask(connection: &mut TcpStream, api: i16, body: &[u8]) -> io::Result<Vec<u8>> {
    let (version, correlation, no_client_id) = (0_i16, 1_i32, -1_i16);
    let mut request = [&api.to_be_bytes()[..], &version.to_be_bytes(), &correlation.to_be_bytes()].concat();
    request.extend(no_client_id.to_be_bytes());
    request.extend(body);
    let size = u32::try_from(request.len()).map_err(io::Error::other)?;
    connection.write_all(&[&size.to_be_bytes()[..], &request].concat())?;
    let mut size = [0; 4];
    connection.read_exact(&mut size)?;
    let size = usize::try_from(u32::from_be_bytes(size)).map_err(io::Error::other)?;
    if !(4..=LARGEST_REPLY).contains(&size) {
        return Err(io::Error::other("what listens there is no Kafka broker"));
    }
    let mut reply = vec![0; size];
    connection.read_exact(&mut reply)?;
    Ok(reply.split_off(4))
}

/// The versions of one API in an `ApiVersions` reply: an error code, a count, and per API its key, lowest and highest
/// version.
fn range(reply: &[u8], api: i16) -> Option<(i16, i16)> {
    let (entries, _) = reply.get(6..)?.as_chunks::<6>();
    let entry = entries.iter().find(|[a, b, ..]| i16::from_be_bytes([*a, *b]) == api)?;
    let [_, _, a, b, c, d] = *entry;
    Some((i16::from_be_bytes([a, b]), i16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_searched_for_an_api() {
        let reply = [0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 13, 0, 3, 0, 0, 0, 9];
        assert_eq!(range(&reply, PRODUCE), Some((3, 13)));
        assert_eq!(range(&reply, METADATA), Some((0, 9)));
        assert_eq!(range(&reply, FETCH), None);
        assert_eq!(range(&[], PRODUCE), None);
    }
}
