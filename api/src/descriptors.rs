//! File descriptors: each connection is one, and what is left must do for Kafka, Redis and files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the process needs beside connections of clients: 64 beyond the limit, 64 of whoever watches over it, and 128 for
/// everything else.
const RESERVE: u64 = 256;

/// Raises the process's limit as far as it may, and gives the number of connections, of those `wanted`, that fit.
pub(crate) fn connections(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let fitting = fitting(wanted, limit);
    if fitting < wanted {
        log::warn!(
            "HTTP_MAX_CONNECTIONS={wanted} does not fit: {limit} file descriptors are allowed, so {fitting} connections \
             are; raise the hard limit (ulimit -Hn, LimitNOFILE)"
        );
    }
    fitting
}

fn fitting(wanted: usize, limit: u64) -> usize {
    let room = usize::try_from(limit.saturating_sub(RESERVE)).unwrap_or(usize::MAX);
    wanted.min(room.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        assert_eq!(fitting(10_000, 1_048_576), 10_000);
        assert_eq!(fitting(10_000, 1_024), 768);
        assert_eq!(fitting(10_000, 16), 1, "one at least");
        assert_eq!(fitting(10_000, u64::MAX), 10_000, "no limit at all");
    }
}
