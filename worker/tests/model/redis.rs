//! What the model knows of Redis: per bucket the records it holds and the position, and what reaches it.

use std::fmt;

use crate::guards::Guard;

/// Buckets of the model: enough for one to be ahead of the other.
pub(crate) const BUCKETS: usize = 2;

/// A set of records of the log, by their offsets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Records(u16);

impl Records {
    pub(crate) fn only(offset: i64) -> Self {
        Self(1 << offset)
    }

    /// Whether there is none of the others before one of these.
    pub(crate) fn begin_before(self, others: Self) -> bool {
        self.0 == 0 || others.0 == 0 || others.0.trailing_zeros() > self.0.ilog2()
    }

    /// All before this offset.
    pub(crate) fn before(next: i64) -> Self {
        Self((1 << next) - 1)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub(crate) fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(crate) fn within(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }
}

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offsets: Vec<_> = (0..16).filter(|bit| self.0 >> bit & 1 == 1).map(|bit| bit.to_string()).collect();
        f.write_str(if offsets.is_empty() { "nothing" } else { "" })?;
        f.write_str(&offsets.join(", "))
    }
}

/// What is sent to one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Command {
    /// The transaction of a batch: these records and the position, if that stands where the worker left it.
    Write { records: Records, step: Option<(i64, i64)> },
    /// The start of a life: `PLACE` in `common/src/store/positions.rs`.
    Place { start: i64, beginning: bool },
}

/// One bucket.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) stored: Records,
    pub(crate) position: Option<i64>,
}

impl Bucket {
    /// Executes a command whole, as a script or a transaction is. Says whether the position was where it should be.
    pub(crate) fn apply(&mut self, command: Command, broken: Option<Guard>) -> bool {
        match command {
            Command::Write { records, step } => {
                let stands = step.is_none_or(|(from, _)| self.position == Some(from));
                let held = stands || broken == Some(Guard::NoCompare);
                if held || broken == Some(Guard::WriteAnyway) {
                    self.stored = self.stored.with(records);
                }
                if let Some((_, to)) = step.filter(|_| held) {
                    self.position = Some(to);
                }
                held
            }
            Command::Place { start, beginning } => {
                let ignored = match self.position {
                    Some(_) => broken == Some(Guard::PlaceAnyway),
                    None => matches!(broken, Some(Guard::PlaceAnyway | Guard::MissingHasNoSay)),
                };
                let lowers = beginning || ignored || self.position.is_some_and(|held| held >= start);
                if lowers {
                    self.position = Some(start);
                }
                lowers
            }
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(position) => write!(f, "{}; position {position}", self.stored),
            None => write!(f, "{}; no position", self.stored),
        }
    }
}
