//! What Redis holds under our names although no version that we can read wrote it. It is skipped: whoever reads what
//! stands beside it must not fail by it for ever.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Store;

/// How often something was skipped.
#[derive(Default)]
pub(super) struct Foreign(AtomicU64);

impl Foreign {
    /// Counts what was skipped there, and mentions the first.
    pub(super) fn skip(&self, count: usize, there: impl Display) {
        if count > 0 && self.0.fetch_add(count as u64, Ordering::Relaxed) == 0 {
            log::warn!("{there} has something that can't be read; such things are skipped, and not mentioned again");
        }
    }
}

impl Store {
    /// How many entries of the tail and of indexes were skipped because they can't be read, each as often as it was met.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.foreign.0.load(Ordering::Relaxed)
    }
}
