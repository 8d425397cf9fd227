//! The log line of each processed event, thinned so that logs never limit throughput.

use std::time::{Duration, Instant};

/// Lines a second up to which `auto` writes one for each event.
const MOST_LINES: u64 = 100;
const WINDOW: Duration = Duration::from_secs(1);

/// Which events to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EventLogMode {
    /// Each.
    All,
    /// Each up to 100 a second, above that one summary a second.
    #[default]
    Auto,
    /// None.
    Off,
}

impl EventLogMode {
    /// The words of the setting.
    pub const WORDS: [(&'static str, Self); 3] = [("all", Self::All), ("auto", Self::Auto), ("off", Self::Off)];
}

/// Decides for each event whether it gets a line. Time comes in as an argument.
#[derive(Debug)]
pub struct EventLog {
    mode: EventLogMode,
    began: Instant,
    /// Of this window.
    lines: u64,
    new: u64,
    duplicates: u64,
}

/// What was not logged line by line in a window that is over.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// Events stored for the first time.
    pub new: u64,
    /// Events that were stored before.
    pub duplicates: u64,
}

impl EventLog {
    /// A log that begins now.
    #[must_use]
    pub fn new(mode: EventLogMode, now: Instant) -> Self {
        Self { mode, began: now, lines: 0, new: 0, duplicates: 0 }
    }

    /// Whether the next event gets a line; one that does not is counted for the summary.
    pub fn admits(&mut self, duplicate: bool) -> bool {
        let admitted = match self.mode {
            EventLogMode::All => true,
            EventLogMode::Off => return false,
            EventLogMode::Auto => self.lines < MOST_LINES,
        };
        match (admitted, duplicate) {
            (true, _) => self.lines += 1,
            (false, false) => self.new += 1,
            (false, true) => self.duplicates += 1,
        }
        admitted
    }

    /// Ends the window if its time is over; gives what was left out in it.
    pub fn turn(&mut self, now: Instant) -> Option<Summary> {
        if now.duration_since(self.began) < WINDOW {
            return None;
        }
        let over = std::mem::replace(self, Self::new(self.mode, now));
        (over.new + over.duplicates > 0).then_some(Summary { new: over.new, duplicates: over.duplicates })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_a_hundred_a_second_the_rest_is_summed_up() {
        let start = Instant::now();
        let mut log = EventLog::new(EventLogMode::Auto, start);
        let lines = (0..250).filter(|n| log.admits(n % 2 == 1)).count();
        assert_eq!(lines, 100);
        assert_eq!(log.turn(start + WINDOW / 2), None);
        assert_eq!(log.turn(start + WINDOW), Some(Summary { new: 75, duplicates: 75 }));
        assert!(log.admits(false));
        assert_eq!(log.turn(start + WINDOW * 2), None);
    }

    #[test]
    fn all_and_off_mean_what_they_say() {
        let start = Instant::now();
        let mut all = EventLog::new(EventLogMode::All, start);
        assert_eq!((0..250).filter(|_| all.admits(false)).count(), 250);
        let mut off = EventLog::new(EventLogMode::Off, start);
        assert!(!off.admits(false));
        assert_eq!(off.turn(start + WINDOW), None);
    }
}
