//! What a part of the system last said about itself: well or not, why, and since when.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::event::Timestamp;

/// One answer.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Condition {
    /// Whether it works.
    pub ok: bool,
    /// One sentence for people: what is the case and, when not well, what to do.
    pub reason: String,
    /// Since when `ok` has had this value, RFC 3339.
    pub since: String,
}

/// Remembers one part's condition and logs when it changes.
#[derive(Debug)]
pub struct Check {
    name: &'static str,
    state: Mutex<Condition>,
    /// Whether nothing was said yet: the first answer is news whatever it is.
    silent: AtomicBool,
}

impl Check {
    /// Not well until told otherwise.
    #[must_use]
    pub fn new(name: &'static str, reason: &str) -> Self {
        let since = Timestamp::now().to_string();
        Self {
            name,
            state: Mutex::new(Condition { ok: false, reason: reason.to_owned(), since }),
            silent: AtomicBool::new(true),
        }
    }

    /// Works.
    pub fn up(&self, reason: &str) {
        self.set(true, reason);
    }

    /// Does not work.
    pub fn down(&self, reason: &str) {
        self.set(false, reason);
    }

    /// What was said last.
    #[must_use]
    pub fn get(&self) -> Condition {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Condition> {
        // A condition is replaced as a whole, so that a panic elsewhere can't leave half of one.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set(&self, ok: bool, reason: &str) {
        let mut state = self.lock();
        if self.silent.swap(false, Ordering::Relaxed) || state.ok != ok {
            let level = if ok { log::Level::Info } else { log::Level::Warn };
            log::log!(level, check = self.name, ok; "{}: {reason}", self.name);
        }
        if state.ok != ok {
            state.since = Timestamp::now().to_string();
        }
        state.ok = ok;
        if state.reason != reason {
            state.reason = reason.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_moves_only_when_the_answer_changes() {
        let check = Check::new("store", "not asked yet");
        let first = check.get();
        assert!(!first.ok);
        check.down("connection refused");
        assert_eq!(check.get(), Condition { reason: "connection refused".into(), ..first });
        check.up("connected");
        assert!(check.get().ok);
    }
}
