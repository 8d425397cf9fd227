//! Log lines that clients can cause at will: one in a while, which says how many there were besides.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(60);

/// Lets one line through in a minute.
#[derive(Default)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Default)]
struct State {
    passed: Option<Instant>,
    kept_back: u64,
}

impl Throttle {
    /// How many lines were kept back since the last one that passed, if this one passes.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.passed.is_some_and(|passed| passed.elapsed() < PERIOD) {
            state.kept_back += 1;
            return None;
        }
        state.passed = Some(Instant::now());
        Some(std::mem::take(&mut state.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_in_a_minute_and_says_how_many_did_not() {
        let throttle = Throttle::default();
        assert_eq!([throttle.pass(), throttle.pass(), throttle.pass()], [Some(0), None, None]);
        throttle.0.lock().unwrap().passed = None;
        assert_eq!([throttle.pass(), throttle.pass()], [Some(2), None]);
    }
}
