//! What the crate `kafka` does not say of a broker: whether it still speaks version 0 of Produce and Metadata, the only
//! one the crate has, and whether a topic is replicated.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::Stop;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
/// Far above what a broker answers here (thousands of partitions), far below what would hurt if something else listens on
/// that port.
const LARGEST_REPLY: usize = 1024 * 1024;

/// Asks the broker at `host:port`; each step may take `patience`.
///
/// # Errors
/// [`Stop::Lost`] when it does not answer, [`Stop::Refused`] when it does not speak these versions.
pub(super) fn check_versions(broker: &str, patience: Duration) -> Result<(), Stop> {
    let lost = |e: io::Error| lost(broker, &e);
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

/// Whether a partition of the topic, which must exist, has more than one replica.
///
/// # Errors
/// [`Stop::Lost`] when the broker at `host:port` does not answer, each step within `patience`, or not as it should.
pub(super) fn is_replicated(broker: &str, topic: &str, patience: Duration) -> Result<bool, Stop> {
    let lost = |e: io::Error| lost(broker, &e);
    let mut connection = connect(broker, patience).map_err(lost)?;
    let length = i16::try_from(topic.len()).map_err(|e| lost(io::Error::other(e)))?;
    let one_topic = [&1_i32.to_be_bytes()[..], &length.to_be_bytes(), topic.as_bytes()].concat();
    let reply = ask(&mut connection, METADATA, &one_topic).map_err(lost)?;
    most_replicas(&reply).map(|most| most > 1).ok_or_else(|| lost(io::Error::other("its metadata can't be read")))
}

fn lost(broker: &str, error: &io::Error) -> Stop {
    Stop::Lost(format!("no Kafka broker answers: {broker}: {error}; check KAFKA_BROKERS"))
}

/// The largest number of replicas that a partition has in a Metadata reply (version 0): brokers (id, host, port), then
/// topics (error, name, partitions), and of each partition its error, id, leader, replicas and replicas in sync.
fn most_replicas(mut reply: &[u8]) -> Option<i32> {
    let reply = &mut reply;
    for _ in 0..int(reply)? {
        skip(reply, 4)?;
        string(reply)?;
        skip(reply, 4)?;
    }
    let mut most = 0;
    for _ in 0..int(reply)? {
        skip(reply, 2)?;
        string(reply)?;
        for _ in 0..int(reply)? {
            skip(reply, 2 + 4 + 4)?;
            most = ints(reply)?.max(most);
            ints(reply)?;
        }
    }
    Some(most)
}

fn skip(reply: &mut &[u8], bytes: usize) -> Option<()> {
    reply.split_off(..bytes).map(drop)
}

fn int(reply: &mut &[u8]) -> Option<i32> {
    let (number, rest) = reply.split_first_chunk()?;
    *reply = rest;
    Some(i32::from_be_bytes(*number))
}

/// Steps over a string behind its length.
fn string(reply: &mut &[u8]) -> Option<()> {
    let (length, rest) = reply.split_first_chunk()?;
    *reply = rest;
    skip(reply, usize::try_from(i16::from_be_bytes(*length)).ok()?)
}

/// Steps over an array of numbers, and gives how many there are.
fn ints(reply: &mut &[u8]) -> Option<i32> {
    let count = int(reply)?;
    skip(reply, usize::try_from(count).ok()?.checked_mul(4)?)?;
    Some(count)
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
    fn the_most_replicas_of_any_partition_count_and_a_reply_that_breaks_off_says_nothing() {
        let partition = |replicas: i32| {
            let ids: Vec<u8> = (0..replicas).flat_map(i32::to_be_bytes).collect();
            let replicas = [&replicas.to_be_bytes()[..], &ids].concat();
            [&[0; 10][..], &replicas, &replicas].concat()
        };
        let broker = [&[0, 0, 0, 1][..], &[0; 4], &[0, 1, b'h'], &[0; 4]].concat();
        let topic = [&[0, 0, 0, 1][..], &[0; 2], &[0, 1, b't'], &[0, 0, 0, 2]].concat();
        let reply = [&broker[..], &topic, &partition(1), &partition(3)].concat();
        assert_eq!(most_replicas(&reply), Some(3));
        assert!((0..reply.len()).all(|end| most_replicas(&reply[..end]).is_none()));
    }

    #[test]
    fn a_reply_is_searched_for_an_api() {
        let reply = [0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 13, 0, 3, 0, 0, 0, 9];
        assert_eq!(range(&reply, PRODUCE), Some((3, 13)));
        assert_eq!(range(&reply, METADATA), Some((0, 9)));
        assert_eq!(range(&reply, FETCH), None);
        assert_eq!(range(&[], PRODUCE), None);
    }
}
