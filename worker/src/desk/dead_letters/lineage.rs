//! Lineages: a letter that is redriven and dies again comes back as another one. Only the last of a lineage goes back to the
//! topic: if each of them did, every run would double what stays poison.
//!
//! What is redriven carries a header that says which record the first of its letters was made of. The worker keeps that
//! header like any other, so it comes back with the next letter.

use std::collections::HashMap;

use super::letter::{Letter, Original};

/// The header that tells the lineage.
pub const LINEAGE: &str = "dead-letter-lineage";

/// Of each lineage with more than one letter, its last: how often that was dead-lettered, and its place. Memory: about 150
/// bytes for each lineage.
#[derive(Debug, Default)]
pub struct Lineages(HashMap<String, Last>);

/// Attempts, then partition and offset: of several that were dead-lettered equally often any one will do.
type Last = (u32, (i32, i64));

impl Lineages {
    /// Takes a letter.
    pub fn note(&mut self, letter: &Letter) {
        // The first of a lineage is never its last, if there is another.
        let Some(lineage) = letter.lineage.clone() else { return };
        let last = self.0.entry(lineage).or_default();
        *last = last_of(letter).max(*last);
    }

    /// Whether a letter has a later one in its place.
    #[must_use]
    pub fn is_superseded(&self, letter: &Letter) -> bool {
        let lineage = lineage(letter);
        lineage.and_then(|lineage| self.0.get(&lineage)).is_some_and(|last| last_of(letter) < *last)
    }
}

fn last_of(letter: &Letter) -> Last {
    (letter.attempts.unwrap_or_default(), (letter.partition, letter.offset))
}

/// The lineage of a letter: what its header says, or it is the first. Its time tells it from one that lay in the same place
/// of a topic that was deleted since. `None` where nobody knows where it comes from.
#[must_use]
pub fn lineage(letter: &Letter) -> Option<String> {
    if letter.lineage.is_some() {
        return letter.lineage.clone();
    }
    let Original { topic: Some(topic), partition: Some(partition), offset: Some(offset) } = &letter.original else {
        return None;
    };
    let time = letter.timestamp.map_or(-1, |time| time.millis());
    Some(format!("{topic}-{partition}@{offset}@{time}"))
}

#[cfg(test)]
mod tests {
    use common::event::Timestamp;

    use super::*;

    fn letter(offset: i64, attempts: u32) -> Letter {
        let original = Original { topic: Some("t".into()), partition: Some(1), offset: Some(7) };
        let timestamp = Timestamp::from_millis(5);
        Letter { offset, attempts: Some(attempts), original, timestamp, ..Letter::default() }
    }

    fn later(offset: i64, attempts: u32) -> Letter {
        let original = Original { offset: Some(100 + offset), ..letter(0, 0).original };
        Letter { lineage: Some("t-1@7@5".into()), original, ..letter(offset, attempts) }
    }

    #[test]
    fn only_the_last_letter_of_a_lineage_counts() {
        let letters = [letter(0, 1), later(1, 2), later(2, 3), later(3, 3), later(4, 2)];
        let mut lineages = Lineages::default();
        letters.iter().for_each(|letter| lineages.note(letter));
        let superseded = letters.each_ref().map(|letter| lineages.is_superseded(letter));
        assert_eq!(superseded, [true, true, true, false, true]);
    }

    #[test]
    fn a_letter_that_has_not_come_back_is_the_last_of_its_own() {
        let mut lineages = Lineages::default();
        [letter(0, 1), later(1, 2)].iter().for_each(|letter| lineages.note(letter));
        let elsewhere = Original { offset: Some(8), ..letter(0, 1).original };
        assert!(!lineages.is_superseded(&Letter { original: elsewhere, ..letter(0, 1) }));
        let other_log = Letter { timestamp: Timestamp::from_millis(6), ..letter(0, 1) };
        assert!(!lineages.is_superseded(&other_log), "of a topic that was made anew");
        assert!(!lineages.is_superseded(&Letter::default()), "nobody knows");
    }
}
