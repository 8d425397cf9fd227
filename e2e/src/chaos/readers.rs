//! Readers of the stream, one at each API for the whole of a run, as browsers are: one whose connection breaks comes back
//! with its `Last-Event-ID`, and one that is told `reset`, or begins, reads the list for what it has missed. On a stage that
//! is about them they also go away by themselves.
//!
//! In the end each of them must know every stored event, from the stream or from a list that it was told to read.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::{sync::Notify, task::JoinSet};

use super::{reads::PAGE, within};
use crate::{
    client::{Client, Event},
    oracle::{Journal, Since},
    sample::rfc3339,
    sse::{Message, Sse},
};

/// For a reader to know all there is: only the end of a hang.
const CAUGHT_UP: Duration = Duration::from_mins(2);

/// What a reader waits before it comes back, until a stream says otherwise.
const RETRY: Duration = Duration::from_secs(1);

/// How long a reader that goes away by itself stays, and for how long it goes, in milliseconds: long enough to be away while
/// something happens.
const STAYS: Range<u64> = 4_000..12_000;
const AWAY: Range<u64> = 100..6_000;

/// What readers met, all of them together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// How many readers there are.
    pub readers: usize,
    /// Events on streams.
    pub events: usize,
    /// Streams that were opened.
    pub streams: usize,
    /// How often a stream said that events are missing.
    pub resets: usize,
    /// Events that came again because Redis had lost them.
    pub repeats: usize,
}

/// All readers. They end when this is dropped.
#[derive(Debug)]
pub struct Readers {
    logs: Vec<SharedLog>,
    _tasks: JoinSet<()>,
}

impl Readers {
    /// Opens a stream at each API and waits until every reader knows what was stored before. They may `leave` by themselves.
    ///
    /// # Errors
    /// When one does not get there.
    pub async fn open(apis: &[Client], leave: bool) -> Result<Self> {
        let (mut logs, mut tasks) = (Vec::new(), JoinSet::new());
        for api in apis {
            let log = SharedLog::default();
            let reader = Reader { api: api.clone(), leaves: leave, log: log.clone(), told: Notify::new() };
            tasks.spawn(async move {
                tokio::join!(reader.follow(), reader.read_lists());
            });
            logs.push(log);
        }
        let readers = Self { logs, _tasks: tasks };
        let begun = |log: &Log| {
            ensure!(!log.met.is_empty() && log.owed == 0, "it has not begun");
            Ok(())
        };
        within(CAUGHT_UP, "each reader has begun", async || readers.all(begun)).await?;
        Ok(readers)
    }

    /// Takes note that Redis is about to lose something: from now on it may be stored again, and announced again to who
    /// comes back.
    pub fn note_loss(&self) {
        self.logs.iter().for_each(|log| log.lock().take(Met::Loss));
    }

    /// Waits until every reader knows an event that is stored, and has read the list if it was told to.
    ///
    /// # Errors
    /// When one does not.
    pub async fn know(&self, id: &str) -> Result<()> {
        let knows = |log: &Log| {
            ensure!(log.known.contains(id), "{id} does not come");
            ensure!(log.owed == 0, "a list that it was told to read is not read yet");
            Ok(())
        };
        within(CAUGHT_UP, "each reader knows a fresh event", async || self.all(knows)).await
    }

    /// Whether every reader knows all of these.
    #[must_use]
    pub fn know_all(&self, stored: &[Event]) -> bool {
        let know = |log: &Log| {
            ensure!(stored.iter().all(|event| log.known.contains(&event.event_id)));
            Ok(())
        };
        self.all(know).is_ok()
    }

    /// What was acknowledged and each reader does not know, whether lists still show it or not. After a reset a reader can't
    /// know what the list did not show any more.
    #[must_use]
    pub fn unknown(&self, journal: &Journal, retention: Duration) -> Vec<String> {
        let logs = self.logs.iter().enumerate();
        let unknown = logs.flat_map(|(number, log)| {
            let log = log.lock();
            let blind = log.reset_until.map(|time| Since::of(rfc3339(time - retention))).unwrap_or_default();
            let ids = journal.acknowledged_since(&blind);
            let unknown = ids.into_iter().filter(|id| !log.known.contains(id));
            unknown
                .map(|id| format!("the reader of api-{number}: it never saw {id}, and was not told"))
                .collect::<Vec<_>>()
        });
        unknown.collect()
    }

    /// What each reader should not have met, or should have and has not, when this is all that is stored, and what is older
    /// than `since` has gone; and what they met.
    #[must_use]
    pub fn judge(&self, stored: &[Event], since: &Since) -> (Vec<String>, Heard) {
        let (mut wrong, mut heard) = (Vec::new(), Heard::default());
        for (number, log) in self.logs.iter().enumerate() {
            let log = log.lock();
            let (found, repeats) = judge(&log.met, stored, since);
            wrong.extend(found.into_iter().map(|what| format!("the reader of api-{number}: {what}")));
            heard.readers += 1;
            let count = |wanted: fn(&Met) -> bool| log.met.iter().filter(|met| wanted(met)).count();
            heard.events += count(|met| matches!(met, Met::Event(_)));
            heard.streams += count(|met| matches!(met, Met::Begin | Met::Stream));
            heard.resets += count(|met| matches!(met, Met::Reset));
            heard.repeats += repeats;
        }
        (wrong, heard)
    }

    fn all(&self, check: impl Fn(&Log) -> Result<()>) -> Result<()> {
        let mut logs = self.logs.iter().enumerate();
        logs.try_for_each(|(number, log)| check(&log.lock()).with_context(|| format!("the reader of api-{number}")))
    }
}

/// Something that a reader met.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Met {
    /// A stream begins with what comes from now on. What was before is in the list.
    Begin,
    /// A stream begins where the one before has ended.
    Stream,
    /// An event on the stream.
    Event(Event),
    /// The stream says that events are missing here.
    Reset,
    /// The ids in a list that was read from beginning to end, after the reader was told to.
    List(HashSet<String>),
    /// Redis is about to lose something.
    Loss,
    /// What no reader may be told.
    Nonsense(String),
}

/// What a reader has met, in order.
#[derive(Debug, Default)]
struct Log {
    met: Vec<Met>,
    known: HashSet<String>,
    /// How often it was told to read the list and has not yet.
    owed: usize,
    /// When it has read the list after it was last told that events are missing.
    reset_until: Option<DateTime<Utc>>,
}

impl Log {
    fn take(&mut self, met: Met) {
        match &met {
            Met::Begin | Met::Reset => self.owed += 1,
            Met::Event(event) => drop(self.known.insert(event.event_id.clone())),
            Met::List(ids) => {
                self.known.extend(ids.iter().cloned());
                self.reset_until = self.met.contains(&Met::Reset).then(Utc::now);
            }
            Met::Stream | Met::Loss | Met::Nonsense(_) => {}
        }
        self.met.push(met);
    }
}

#[derive(Debug, Clone, Default)]
struct SharedLog(Arc<Mutex<Log>>);

impl SharedLog {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reader {
    api: Client,
    leaves: bool,
    log: SharedLog,
    /// To read the list.
    told: Notify,
}

impl Reader {
    /// Reads one stream after the other, for ever.
    async fn follow(&self) {
        let (mut last_id, mut retry, mut rng) = (String::new(), RETRY, fastrand::Rng::new());
        loop {
            let stays = if self.leaves { Duration::from_millis(rng.u64(STAYS)) } else { Duration::MAX };
            match Sse::open_as_browser(&self.api, Some(&*last_id).filter(|id| !id.is_empty())).await {
                Ok(mut stream) => {
                    self.meets(if last_id.is_empty() { Met::Begin } else { Met::Stream });
                    if tokio::time::timeout(stays, self.read(&mut stream)).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(rng.u64(AWAY))).await;
                    }
                    stream.last_id().clone_into(&mut last_id);
                    retry = stream.retry().unwrap_or(retry);
                }
                // Nobody listens there, or not for long.
                Err(error) if error.is::<reqwest::Error>() => {}
                Err(error) => self.meets(Met::Nonsense(format!("{error:#}"))),
            }
            tokio::time::sleep(retry).await;
        }
    }

    /// Reads a stream until it ends or breaks.
    async fn read(&self, stream: &mut Sse) {
        while let Ok(Some(message)) = stream.next().await {
            match heard(&message) {
                Ok(met) => met.into_iter().for_each(|met| self.meets(met)),
                Err(error) => self.meets(Met::Nonsense(format!("{error:#}: {message:?}"))),
            }
        }
    }

    fn meets(&self, met: Met) {
        let mut log = self.log.lock();
        log.take(met);
        if log.owed > 0 {
            self.told.notify_one();
        }
    }

    /// Reads the list as often as the reader is told to, while the stream goes on.
    async fn read_lists(&self) {
        loop {
            self.told.notified().await;
            let owed = self.log.lock().owed;
            if owed == 0 {
                continue;
            }
            // What is read while it can't be read whole says nothing.
            let pages = loop {
                match self.api.pages(PAGE).await {
                    Ok(pages) => break pages,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            };
            let ids = pages.into_iter().flatten().map(|event| event.event_id).collect();
            let mut log = self.log.lock();
            log.take(Met::List(ids));
            log.owed -= owed;
        }
    }
}

/// What a message tells. `end` tells nothing: the stream ends.
fn heard(message: &Message) -> Result<Option<Met>> {
    match &*message.event {
        "message" => Ok(Some(Met::Event(serde_json::from_str(&message.data)?))),
        "reset" => Ok(Some(Met::Reset)),
        "end" => Ok(None),
        other => bail!("an event {other}"),
    }
}

/// What a reader that has met all this should not have met, or should have and has not; and how many events came again
/// because Redis had lost them. What has gone may have come again with another time, and been shown again.
fn judge(log: &[Met], stored: &[Event], since: &Since) -> (Vec<String>, usize) {
    let rows: HashMap<_, _> = stored.iter().map(|row| (row.event_id.as_str(), row)).collect();
    let (mut wrong, mut known, mut last) = (Vec::new(), HashSet::<&str>::new(), HashMap::new());
    let (mut streams, mut resets, mut lossy, mut repeats) = (0, 0, false, 0);
    for met in log {
        match met {
            Met::Begin | Met::Stream => streams += 1,
            Met::Reset => resets += 1,
            Met::Loss => lossy = true,
            Met::List(ids) => known.extend(ids.iter().map(String::as_str)),
            Met::Nonsense(what) => wrong.push(what.clone()),
            Met::Event(event) => {
                known.insert(&event.event_id);
                if !since.shows(event) {
                    continue;
                }
                match rows.get(event.event_id.as_str()) {
                    Some(row) if *row == event => {}
                    Some(row) => wrong.push(format!("it saw {event:?}, but stored is {row:?}")),
                    None => wrong.push(format!("it saw {event:?}, which is not stored")),
                }
                // Behind a reset anything may come again.
                match last.insert(&event.event_id, (streams, resets)).filter(|(_, before)| *before == resets) {
                    None => {}
                    Some((before, _)) if before == streams => {
                        wrong.push(format!("it saw {} twice on one stream", event.event_id));
                    }
                    Some(_) if lossy => repeats += 1,
                    Some(_) => wrong.push(format!("it saw {} again when it came back", event.event_id)),
                }
            }
        }
    }
    let missed = stored.iter().filter(|row| !known.contains(row.event_id.as_str()));
    wrong.extend(missed.map(|Event { event_id, user_id, timestamp, .. }| {
        format!("it never saw {event_id} of {user_id}, of {timestamp}, and was not told")
    }));
    (wrong, repeats)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> Event {
        Event {
            event_id: id.to_owned(),
            user_id: "u".to_owned(),
            event_type: "LOGIN".to_owned(),
            timestamp: "2026-01-01T00:00:00.000Z".to_owned(),
            payload: "{}".to_owned(),
        }
    }

    fn seen(id: &str) -> Met {
        Met::Event(event(id))
    }

    fn list(ids: &[&str]) -> Met {
        Met::List(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    fn accuses(log: &[Met], stored: &[&str], of: &str) {
        let stored: Vec<_> = stored.iter().map(|id| event(id)).collect();
        let (wrong, _) = judge(log, &stored, &Since::default());
        assert!(wrong.len() == 1 && wrong[0].contains(of), "{of} in {wrong:?}");
    }

    fn acquits(log: &[Met], stored: &[&str], repeats: usize) {
        let stored: Vec<_> = stored.iter().map(|id| event(id)).collect();
        assert_eq!(judge(log, &stored, &Since::default()), (Vec::new(), repeats));
    }

    #[test]
    fn who_saw_every_event_once_on_the_stream_or_in_a_list_has_nothing_to_complain_of() {
        acquits(&[Met::Stream, list(&["a"]), seen("b"), Met::Stream, seen("c")], &["a", "b", "c"], 0);
        // The list is read while the stream goes on.
        acquits(&[Met::Stream, seen("b"), list(&["a", "b"])], &["a", "b"], 0);
        acquits(&[Met::Stream, list(&[]), seen("a"), Met::Reset, seen("c"), list(&["a", "b"])], &["a", "b", "c"], 0);
    }

    #[test]
    fn a_stored_event_that_a_reader_never_saw_is_a_gap() {
        accuses(&[Met::Stream, list(&["a"]), seen("c")], &["a", "b", "c"], "never saw");
        accuses(&[Met::Stream, seen("a"), Met::Stream, seen("c")], &["a", "b", "c"], "never saw");
    }

    #[test]
    fn a_reset_alone_is_no_excuse_the_list_must_have_the_event() {
        accuses(&[Met::Stream, seen("a"), Met::Reset, list(&["a"]), seen("c")], &["a", "b", "c"], "never saw");
    }

    #[test]
    fn an_event_may_come_again_on_one_stream_only_behind_a_reset() {
        accuses(&[Met::Stream, seen("a"), seen("a")], &["a"], "twice on one stream");
        accuses(&[Met::Stream, seen("a"), Met::Loss, seen("a")], &["a"], "twice on one stream");
        acquits(&[Met::Stream, seen("a"), Met::Reset, seen("a")], &["a"], 0);
    }

    #[test]
    fn an_event_may_come_again_on_another_stream_only_once_redis_has_lost_something() {
        accuses(&[Met::Stream, seen("a"), Met::Stream, seen("a")], &["a"], "again when it came back");
        acquits(&[Met::Stream, seen("a"), Met::Stream, Met::Reset, seen("a")], &["a"], 0);
        acquits(&[Met::Stream, seen("a"), Met::Loss, Met::Stream, seen("a")], &["a"], 1);
    }

    #[test]
    fn what_the_stream_shows_is_what_is_stored() {
        accuses(&[Met::Stream, seen("a"), seen("b")], &["a"], "which is not stored");
        let other = Met::Event(Event { payload: "[]".to_owned(), ..event("a") });
        accuses(&[Met::Stream, other], &["a"], "but stored is");
        accuses(&[Met::Stream, Met::Nonsense("404 instead of a stream".to_owned())], &[], "404");
    }

    #[test]
    fn a_message_is_an_event_or_a_reset_or_the_end_and_nothing_else() {
        let message = |event: &str, data: &str| Message { id: String::new(), event: event.into(), data: data.into() };
        let row =
            r#"{"eventId":"a","userId":"u","eventType":"LOGIN","timestamp":"2026-01-01T00:00:00.000Z","payload":{}}"#;
        assert_eq!(heard(&message("message", row)).unwrap(), Some(seen("a")));
        assert_eq!(heard(&message("reset", "{}")).unwrap(), Some(Met::Reset));
        assert_eq!(heard(&message("end", "{}")).unwrap(), None);
        assert!(heard(&message("message", "{}")).is_err() && heard(&message("other", "{}")).is_err());
    }

    #[test]
    fn what_has_expired_is_neither_compared_nor_a_repetition() {
        let old = Event { payload: "[]".to_owned(), ..event("a") };
        let new = Event { timestamp: "2026-01-01T00:02:00.000Z".to_owned(), ..event("a") };
        let log = [Met::Stream, Met::Event(old), Met::Event(new.clone())];
        let since = Since::of("2026-01-01T00:01:00.000Z".to_owned());
        assert_eq!(judge(&log, std::slice::from_ref(&new), &since), (Vec::new(), 0));
        assert_eq!(judge(&log, &[new], &Since::default()).0.len(), 2);
    }
}
