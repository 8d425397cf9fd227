//! The end of a run: everything is mended, nobody posts any more. Does it hold what was promised?

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Run,
    admin::Admin,
    kinds::Kind,
    outsider::{POISON, Written, end_in_transactions},
    readers::Heard,
    reads::{NEWEST, PAGE, agrees, shows, since},
    report::Counts,
    within,
};
use crate::{
    client::{Client, Event},
    kafka::{Located, Record},
    oracle::{self, Outcome, Since},
};

/// For the last effects of the last fault to pass.
const SETTLED: Duration = Duration::from_mins(2);

/// What is missing may yet come; so long without any progress, it will not.
const STALLED: Duration = Duration::from_mins(1);

/// For an audit of the whole topic on a busy machine.
const AUDIT: Duration = Duration::from_secs(300);

/// Fresh events, one behind the other, until a reader that sees them must have seen what was stored before: an API reads a
/// hundred entries of each of the tail's streams at a time, and these hold some five hundred.
const FRESH: u64 = 8;

/// A fault may have a record read again, once by each worker that comes to have its partition.
const MOST_LETTERS_A_FAULT: usize = 2;

/// A topic, a partition and an offset in it.
type Place = (String, i32, i64);

/// A topic, and what stands on it from when it was made until it was deleted, if it was.
pub(super) type Life = (String, Vec<Located>);

impl Run {
    /// Judges, after so many faults. What is violated goes to the violations.
    pub(super) async fn judge(&mut self, written: Written, faults: usize) -> (Counts, Value) {
        let violations = self.violations.clone();
        violations.check("at the end", self.settles().await);
        violations.check("the list", self.judged_list().await);
        let (stored, stream) = violations.check("the readers", self.judged_readers().await).unwrap_or_default();
        let mut found = usize::MAX;
        for (number, client) in self.clients.iter().enumerate() {
            // All of them through one API, unless they expire meanwhile.
            let newest = if number == 0 && self.retention().is_none() { stored.len() } else { NEWEST };
            let shown = shows(client, self.retention(), &stored, newest).await;
            let shown = violations.check(&format!("what api-{number} shows"), shown);
            found = found.min(shown.unwrap_or_default());
        }
        violations.check("the users' lists", self.judged_users().await);
        let letters = self.judged_topics(&written, faults).await;
        let (poison, dead_letters) = violations.check("dead letters", letters).unwrap_or_default();
        let verify = violations.check("verify", self.verify().await).unwrap_or_default();
        let passes = self.prober.pass(SETTLED).await;
        violations.check("a last fresh event", passes);
        let counts =
            Counts { stored: stored.len(), found, poison, dead_letters, outsider: written, stream, ..self.outcomes() };
        (counts, verify)
    }

    /// Waits until fresh events pass, all say that they are ready, and the group has no lag.
    async fn settles(&mut self) -> Result<()> {
        self.prober.pass(SETTLED).await?;
        self.stage.ready().await?;
        self.nothing_is_behind().await
    }

    /// Waits until the group has no lag.
    pub(super) async fn nothing_is_behind(&self) -> Result<()> {
        let (admin, world) = (Admin::new(&self.stage.broker.address()), &self.stage.world);
        let ends = world.kafka().end_offsets(&world.topic)?;
        within(SETTLED, "the group has no lag", async || {
            let lag = admin.lag(&world.group, &ends, &world.topic)?;
            ensure!(lag.values().all(|lag| *lag == 0), "{lag:?}");
            Ok(())
        })
        .await
    }

    /// The list, once nothing is missing from it any more, or nothing more comes.
    async fn judged_list(&self) -> Result<()> {
        let (mut before, mut progress) = (usize::MAX, Instant::now());
        let (list, verdict) = loop {
            let (list, since) = self.list(&self.clients[0]).await?;
            let verdict = self.journal.judge_since(&list, &since);
            let missing = verdict.missing.len();
            if missing < before {
                (before, progress) = (missing, Instant::now());
            }
            if missing == 0 || progress.elapsed() > STALLED {
                break (list, verdict);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let oracle::Verdict { missing, wrong } = verdict;
        missing.into_iter().for_each(|what| self.violations.add(format!("acknowledged but not stored: {what}")));
        wrong.into_iter().for_each(|what| self.violations.add(what));
        for client in &self.clients[1..] {
            let (other, since) = self.list(client).await?;
            agrees("the list of another API", &other, &list, &since)?;
        }
        Ok(())
    }

    /// Every reader of a stream knows all that is stored once it knows fresh events. Gives what is stored, and what they met.
    async fn judged_readers(&self) -> Result<(Vec<Event>, Heard)> {
        let (client, user) = (&self.clients[0], format!("fresh-{}", Uuid::now_v7().simple()));
        let mut told = Ok(());
        for sequence in 0..FRESH {
            let id = self.journal.must_post(client, &user, sequence).await?;
            told = self.readers.know(&id).await;
            if told.is_err() || self.readers.know_all(&all_events(client).await?) {
                break;
            }
        }
        self.violations.check("the readers", told);
        let (stored, since) = self.list(client).await?;
        let (mut wrong, heard) = self.readers.judge(&stored, &since);
        // Here the list can't tell what was stored and has expired. What the guard trims may be gone before it is shown.
        if let Some(retention) = self.retention() {
            wrong.extend(self.readers.unknown(&self.journal, retention));
        }
        wrong.into_iter().for_each(|what| self.violations.add(what));
        Ok((stored, heard))
    }

    /// What each user is listed, from an index of its own, is that user's part of the whole list.
    async fn judged_users(&self) -> Result<()> {
        let client = &self.clients[0];
        within(SETTLED, "each user's list has the user's part of the whole", async || {
            let mut whole: BTreeMap<_, Vec<Event>> = BTreeMap::new();
            for event in all_events(client).await? {
                whole.entry(event.user_id.clone()).or_default().push(event);
            }
            for (user, rows) in whole {
                let path = format!("/events/processed?userId={user}&limit={PAGE}");
                let found = client.pages_from(path).await?.concat();
                agrees(&format!("the list of {user}"), &found, &rows, &since(client, self.retention()).await?)?;
            }
            Ok(())
        })
        .await
    }

    /// The topic has each user's events in the order they were sent. Every poison record is in the dead-letter topic byte
    /// for byte, no oftener than faults can explain, and nothing else is. Gives how many poison records and dead letters
    /// there are.
    async fn judged_topics(&self, written: &Written, faults: usize) -> Result<(usize, usize)> {
        let (kafka, world) = (self.stage.world.kafka(), &self.stage.world);
        let topics = lives(&self.stage.topics.borrow(), &self.gone, |topic| kafka.read(topic))?;
        let poison = poison_of(&topics);
        let records: Vec<_> = topics.into_iter().flat_map(|(_, records)| records).collect();
        for what in self.journal.disorder(&records, !self.stage.kind.users_stay()) {
            self.violations.add(format!("out of order on the topic: {what}"));
        }
        for mark in written.poison.iter().filter(|mark| !poison.contains_key(mark.as_bytes())) {
            self.violations.add(format!("the broker has lost the acknowledged record {mark}"));
        }
        let letters = within(SETTLED, "every poison record has its dead letter", async || {
            let letters = kafka.read(&world.dead_letter_topic)?;
            let marks: HashSet<_> = letters.iter().filter_map(|letter| letter.record.header(POISON)).collect();
            let missing: Vec<_> = poison.iter().filter(|(mark, _)| !marks.contains(&***mark)).collect();
            ensure!(missing.is_empty(), "{} of {} missing: {missing:?}", missing.len(), poison.len());
            Ok(letters)
        })
        .await?;
        let mut repeated: BTreeMap<_, usize> = BTreeMap::new();
        for letter in &letters {
            self.violations.check("a dead letter", is_true_to(&letter.record, &poison));
            *repeated.entry(origin(&letter.record)).or_default() += 1;
        }
        let most = MOST_LETTERS_A_FAULT * (faults + 1);
        for (place, times) in repeated.into_iter().filter(|(_, times)| *times > most) {
            self.violations.add(format!("{times} dead letters of {place:?} after {faults} faults"));
        }
        Ok((poison.len(), letters.len()))
    }

    /// The worker's own audit of topic against store; of one whose partitions end in aborted transactions, where there are
    /// any.
    async fn verify(&self) -> Result<Value> {
        if self.stage.kind == Kind::Transactions {
            end_in_transactions(&self.stage.broker.address(), &self.stage.world.topic, self.prober.partitions())
                .await?;
        }
        let mut command = self.stage.world.worker_command();
        command.args(["verify", "--json"]).kill_on_drop(true);
        let output = tokio::time::timeout(AUDIT, command.output()).await.context("it takes too long")??;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{}: {said} {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The whole list, and from when on nothing may be missing from it.
    pub(super) async fn list(&self, client: &Client) -> Result<(Vec<Event>, Since)> {
        Ok((all_events(client).await?, since(client, self.retention()).await?))
    }

    fn retention(&self) -> Option<Duration> {
        self.stage.kind.retention()
    }

    fn outcomes(&self) -> Counts {
        let count = |wanted: fn(&Outcome) -> bool| self.journal.count(wanted);
        Counts {
            acknowledged: count(|outcome| matches!(outcome, Outcome::Acknowledged(_))),
            refused: count(|outcome| matches!(outcome, Outcome::Refused)),
            unknown: count(|outcome| matches!(outcome, Outcome::Unknown)),
            ..Counts::default()
        }
    }
}

/// Page by page: a list of a long run takes longer than a request may.
async fn all_events(client: &Client) -> Result<Vec<Event>> {
    within(SETTLED, "the list is read", async || Ok(client.pages(PAGE).await?.concat())).await
}

/// What stood on topics in the order in which it was written: of each topic the lives that have ended, then the present one.
fn lives(topics: &[String], gone: &[Life], present: impl Fn(&str) -> Result<Vec<Located>>) -> Result<Vec<Life>> {
    let mut lives = Vec::new();
    for topic in topics {
        lives.extend(gone.iter().filter(|(name, _)| name == topic).cloned());
        lives.push((topic.clone(), present(topic)?));
    }
    Ok(lives)
}

/// The poison records of topics, by their marks.
fn poison_of(topics: &[Life]) -> BTreeMap<Vec<u8>, (Place, Record)> {
    let records = topics.iter().flat_map(|(topic, records)| records.iter().map(move |record| (topic, record)));
    let poison = records.filter_map(|(topic, Located { partition, offset, record })| {
        Some((record.header(POISON)?.to_vec(), ((topic.clone(), *partition, *offset), record.clone())))
    });
    poison.collect()
}

/// Where a dead letter says that it comes from.
fn origin(letter: &Record) -> Option<Place> {
    let text = |name: &str| std::str::from_utf8(letter.header(name)?).ok();
    let number = |name: &str| text(name)?.parse::<i64>().ok();
    let partition = i32::try_from(number("__connect.errors.partition")?).ok()?;
    Some((text("__connect.errors.topic")?.to_owned(), partition, number("__connect.errors.offset")?))
}

/// Whether a dead letter is the poison record that it says it is, byte for byte.
fn is_true_to(letter: &Record, poison: &BTreeMap<Vec<u8>, (Place, Record)>) -> Result<()> {
    let place = origin(letter).with_context(|| format!("it does not say where it comes from: {letter:?}"))?;
    let mark = letter.header(POISON).with_context(|| format!("{place:?} was no poison: {letter:?}"))?;
    let (from, record) = poison.get(mark).with_context(|| format!("nobody wrote what {place:?} was: {letter:?}"))?;
    ensure!(place == *from, "it comes from {from:?} and says {place:?}: {letter:?}");
    ensure!(letter.value == record.value, "another value than at {place:?}: {letter:?}");
    ensure!(letter.key == record.key, "another key than at {place:?}: {letter:?}");
    ensure!(letter.timestamp == record.timestamp, "another timestamp than at {place:?}: {letter:?}");
    ensure!(letter.headers.starts_with(&record.headers), "other headers than at {place:?}: {letter:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> (String, Option<Vec<u8>>) {
        (name.to_owned(), Some(value.as_bytes().to_vec()))
    }

    fn poison() -> BTreeMap<Vec<u8>, (Place, Record)> {
        let record = Record { headers: vec![header(POISON, "m")], timestamp: Some(7), ..Record::of("x") };
        poison_of(&[("t".to_owned(), vec![Located { partition: 2, offset: 5, record }])])
    }

    fn record() -> Record {
        poison()[&b"m"[..]].1.clone()
    }

    fn letter(offset: &str) -> Record {
        let mut record = record();
        record.headers.push(header("__connect.errors.topic", "t"));
        record.headers.extend([header("__connect.errors.partition", "2"), header("__connect.errors.offset", offset)]);
        record
    }

    #[test]
    fn a_topic_that_was_made_anew_is_behind_the_one_before_it_and_its_own_past() {
        let at = |offset| vec![Located { partition: 0, offset, record: Record::of("x") }];
        let topics = ["one".to_owned(), "two".to_owned()];
        let found = lives(&topics, &[("two".to_owned(), at(2))], |name| Ok(at(if name == "one" { 1 } else { 3 })));
        let offsets: Vec<_> = found.unwrap().iter().map(|(_, records)| records[0].offset).collect();
        assert_eq!(offsets, [1, 2, 3]);
    }

    #[test]
    fn a_dead_letter_is_the_record_it_comes_from() {
        assert!(is_true_to(&letter("5"), &poison()).is_ok());
        assert!(is_true_to(&letter("6"), &poison()).is_err(), "that was another place");
        let other = Record { headers: letter("5").headers[1..].to_vec(), ..letter("5") };
        assert!(is_true_to(&other, &poison()).is_err(), "that was no poison");
        assert!(is_true_to(&Record { value: None, ..letter("5") }, &poison()).is_err());
        assert!(is_true_to(&Record { timestamp: Some(8), ..letter("5") }, &poison()).is_err());
        assert!(is_true_to(&record(), &poison()).is_err(), "it does not say where it comes from");
    }
}
