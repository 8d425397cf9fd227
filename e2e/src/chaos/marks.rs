//! Marks: places in the programs that a long run must have come by. A run that never met one has not tried what it is for.
//!
//! They are counted by what the programs log, by the errors that Redis says it has given, and by what clients met.

use std::{collections::BTreeMap, fs, path::Path};

use super::{kinds::Kind, report::Counts, stage::Redis};

/// What tells that a mark was met.
#[derive(Clone, Copy)]
enum Sign {
    /// Lines with this in the logs of the APIs and workers.
    Log(&'static str),
    /// Errors that Redis has given, by their first word.
    Error(&'static str),
    /// What clients have met.
    Met(fn(&Counts) -> usize),
}

use Sign::{Error, Log, Met};

/// What every stage has.
const EVERYWHERE: [(&str, Sign); 17] = [
    ("partitions revoked", Log("revoked [")),
    ("session timed out", Log("SESSTMOUT")),
    ("worker drained", Log("drained: everything in flight")),
    ("mismatch", Log("is not where this worker left it")),
    ("partitions wait for a place", Log("wait for their place")),
    ("duplicate skipped", Log("skipped duplicate event")),
    ("dead letter", Log("dead letter: ")),
    ("dead letter refused", Log("its dead letter can't be published")),
    ("dead letter not sent twice", Log("is published already")),
    ("store down", Log("check=store ok=false")),
    ("consumer down", Log("check=kafka ok=false")),
    ("producer down", Log("check=producer ok=false")),
    ("not accepted", Met(|counts| counts.refused)),
    ("unknown outcome", Met(|counts| counts.unknown)),
    ("record that may have arrived", Log("api::problem] the brokers did not acknowledge")),
    ("live tail interrupted", Log("the live tail is interrupted")),
    ("stream resumed", Met(|counts| counts.stream.streams.saturating_sub(counts.stream.readers))),
];

/// Whether a stage has a mark.
type Has = fn(Kind) -> bool;

/// What only some have, and which.
const SOMEWHERE: [(Has, &str, Sign); 13] = [
    (Kind::loses, "loss noticed by the heartbeat", Log("Redis has lost positions")),
    (Kind::loses, "Redis reads its files", Error("LOADING")),
    (has_one_redis, "memory full", Error("OOM")),
    (has_one_redis, "read refused", Log("api::problem] Redis at")),
    (|kind| kind == Kind::Readers, "event again after a loss", Met(|counts| counts.stream.repeats)),
    (|kind| kind == Kind::Readers, "stream reset", Met(|counts| counts.stream.resets)),
    (|kind| kind == Kind::Cluster, "MOVED", Error("MOVED")),
    (|kind| kind == Kind::Cluster, "ASK", Error("ASK")),
    (|kind| kind == Kind::Cluster, "CLUSTERDOWN", Error("CLUSTERDOWN")),
    (|kind| kind == Kind::Guard, "trimmed early", Log("(REDIS_MEMORY_GUARD): ")),
    (|kind| kind == Kind::Transactions, "transaction aborted", Met(|counts| counts.outsider.aborted)),
    (|kind| kind == Kind::Transactions, "offsets without a record", Log("offsets had no record")),
    (|kind| kind == Kind::Partitions, "seventh partition read", Log("partition 6: reading from offset")),
];

fn has_one_redis(kind: Kind) -> bool {
    kind != Kind::Cluster
}

/// The marks of a stage.
fn of(kind: Kind) -> impl Iterator<Item = (&'static str, Sign)> {
    let own = SOMEWHERE.into_iter().filter(move |(has, ..)| has(kind));
    EVERYWHERE.into_iter().chain(own.map(|(_, name, sign)| (name, sign)))
}

/// Errors that Redis servers have given, over their restarts.
#[derive(Debug, Default)]
pub struct Errors {
    /// The last count of each server, by port, and error.
    last: BTreeMap<(u16, String), usize>,
    total: BTreeMap<String, usize>,
}

impl Errors {
    /// Asks all servers that answer.
    pub async fn sample(&mut self, redis: &Redis) {
        for server in redis.servers().iter().filter(|server| server.runs()) {
            if let Ok(info) = server.try_command_line::<String>("INFO errorstats").await {
                self.note(server.port(), &info);
            }
        }
    }

    fn note(&mut self, port: u16, info: &str) {
        for line in info.lines().filter_map(|line| line.strip_prefix("errorstat_")) {
            let Some((name, count)) = line.split_once(":count=") else { continue };
            let count = count.trim().parse().unwrap_or_default();
            let before = self.last.insert((port, name.to_owned()), count).unwrap_or_default();
            // One that was started anew counts from nothing.
            *self.total.entry(name.to_owned()).or_default() += if count < before { count } else { count - before };
        }
    }
}

/// How often each mark of a stage was met.
#[must_use]
pub fn count(kind: Kind, logs: &Path, errors: &Errors, counts: &Counts) -> BTreeMap<&'static str, usize> {
    let files = fs::read_dir(logs).into_iter().flatten().filter_map(Result::ok);
    let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
    let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
    let met = |sign: Sign| match sign {
        Log(words) => lines.iter().filter(|line| line.contains(words)).count(),
        Error(name) => errors.total.get(name).copied().unwrap_or_default(),
        Met(count) => count(counts),
    };
    of(kind).map(|(name, sign)| (name, met(sign))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_counted_in_logs_in_errors_and_by_clients() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("worker-0.1.log"), "dead letter: a\nnothing\nINFO dead letter: b\n").unwrap();
        let mut errors = Errors::default();
        errors.note(1, "# Errorstats\r\nerrorstat_OOM:count=2\r\nerrorstat_ERR:count=1\r\n");
        let met = count(Kind::Standalone, folder.path(), &errors, &Counts { unknown: 3, ..Counts::default() });
        assert_eq!((met["dead letter"], met["memory full"], met["unknown outcome"]), (2, 2, 3));
        assert_eq!((met["mismatch"], met.get("ASK")), (0, None));
    }

    #[test]
    fn a_server_that_was_started_anew_counts_from_nothing() {
        let mut errors = Errors::default();
        for count in [2, 5, 1, 1] {
            errors.note(1, &format!("errorstat_OOM:count={count}"));
        }
        errors.note(2, "errorstat_OOM:count=10");
        assert_eq!(errors.total["OOM"], 16);
    }
}
