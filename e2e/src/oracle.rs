//! The judge: what was attempted, what was promised for it, and what became of it.
//!
//! Every attempt to post ends as acknowledged, refused or unknown. At the end
//! acknowledged ⊆ stored ⊆ acknowledged ∪ unknown, each id and each attempt once, each user's
//! order kept, every field equal. What is still *missing* may yet come; what is *wrong* never heals.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use chrono::DateTime;
use reqwest::Method;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    client::{Client, Event, Reply},
    eventually,
    kafka::Located,
    sample,
};

/// How often a post with a key is sent that is not acknowledged.
const KEYED_TRIES: usize = 4;

/// One post, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Unique to this attempt and part of its payload: how a stored row is recognised.
    pub mark: String,
    /// The user it was sent for.
    pub user: String,
    /// Grows with each attempt of a user; the next is sent only after this one has ended.
    pub sequence: u64,
}

impl Attempt {
    /// An attempt that no other one equals.
    #[must_use]
    pub fn new(user: &str, sequence: u64) -> Self {
        Self { mark: Uuid::now_v7().to_string(), user: user.to_owned(), sequence }
    }

    /// The payload, spelled so that any re-serialisation would show.
    #[must_use]
    pub fn payload(&self) -> String {
        let Self { mark, sequence, .. } = self;
        format!(r#"{{"mark":"{mark}", "z":1.0e+2,"sequence":{sequence},"a":"\u00e9\/"}}"#)
    }

    /// The body to post.
    #[must_use]
    pub fn body(&self) -> String {
        let (user, payload) = (&self.user, self.payload());
        format!(r#"{{"userId":"{user}","eventType":"LOGIN","payload":{payload}}}"#)
    }
}

/// The oldest time that lists must still show, as they write it; by default they must show everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Since(String);

impl Since {
    /// The time in RFC 3339, UTC, milliseconds: it compares as text.
    #[must_use]
    pub fn of(time: String) -> Self {
        Self(time)
    }

    /// Whether everything must be shown.
    #[must_use]
    pub fn is_ever(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether lists must show this.
    #[must_use]
    pub fn shows(&self, event: &Event) -> bool {
        event.timestamp >= self.0
    }

    /// Whether lists must show what this became: it is no older than the attempt, whose mark says when it was made.
    fn expects(&self, attempt: &Attempt) -> bool {
        let made = || {
            let (seconds, nanos) = Uuid::parse_str(&attempt.mark).ok()?.get_timestamp()?.to_unix();
            DateTime::from_timestamp(seconds.try_into().ok()?, nanos)
        };
        self.is_ever() || made().is_none_or(|time| sample::rfc3339(time) >= self.0)
    }
}

/// What a 201 says of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Its id.
    pub id: String,
    /// Its time; `None` where the client was not told, or an earlier post with the same key may have set another.
    pub timestamp: Option<String>,
}

impl Promise {
    /// Reads the body of a 201.
    ///
    /// # Errors
    /// When it says no id or no time.
    pub fn of(body: &Value) -> Result<Self> {
        let text = |member: &Value| member.as_str().map(ToOwned::to_owned);
        let id = text(&body["eventId"]).context("no eventId")?;
        Ok(Self { id, timestamp: Some(text(&body["event"]["timestamp"]).context("no timestamp")?) })
    }
}

/// What the client was told about an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 201: it must be stored as this says.
    Acknowledged(Promise),
    /// Certainly not accepted: it must not be stored.
    Refused,
    /// No complete reply, or one that does not know: it may be stored.
    Unknown,
}

impl Outcome {
    /// Reads what the service (or the lack of it) said.
    ///
    /// # Errors
    /// When the reply breaks the contract: its status or shape means nothing to a client.
    pub fn of(reply: &Result<Reply>) -> Result<Self> {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) if never_connected(error) => return Ok(Self::Refused),
            Err(_) => return Ok(Self::Unknown),
        };
        if reply.status == 201 {
            return Promise::of(&reply.parse()?).map(Self::Acknowledged);
        }
        Self::of_failure(&reply.unavailable()?)
    }

    /// Reads what became of each of so many items of a batch.
    ///
    /// # Errors
    /// When the reply breaks the contract.
    fn of_batch(reply: &Result<Reply>, items: usize) -> Result<Vec<Self>> {
        let Some(reply) = reply.as_ref().ok().filter(|reply| reply.status == 200) else {
            return Ok(vec![Self::of(reply)?; items]);
        };
        let body: Value = reply.parse()?;
        let results = body["results"].as_array().filter(|results| results.len() == items);
        results.with_context(|| format!("not {items} results: {body}"))?.iter().map(Self::of_item).collect()
    }

    fn of_item(result: &Value) -> Result<Self> {
        if result["status"] != 201 {
            return Self::of_failure(result);
        }
        let id = result["eventId"].as_str().with_context(|| format!("no eventId in {result}"))?;
        Ok(Self::Acknowledged(Promise { id: id.to_owned(), timestamp: None }))
    }

    fn of_failure(said: &Value) -> Result<Self> {
        match said["outcome"].as_str() {
            Some("not accepted") => Ok(Self::Refused),
            Some("unknown") => Ok(Self::Unknown),
            other => bail!("outcome {other:?} in {said}"),
        }
    }

    /// The same, of an event that an earlier post may have made.
    fn of_any_time(self) -> Self {
        match self {
            Self::Acknowledged(promise) => Self::Acknowledged(Promise { timestamp: None, ..promise }),
            other => other,
        }
    }
}

fn never_connected(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
}

/// All attempts of a test with their outcomes. Clones share one journal.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<Vec<(Attempt, Outcome)>>>);

impl Journal {
    /// Adds an attempt that has ended.
    pub fn record(&self, attempt: Attempt, outcome: Outcome) {
        self.lock().push((attempt, outcome));
    }

    /// Posts one attempt and records it.
    ///
    /// # Errors
    /// When the reply breaks the contract.
    pub async fn post(&self, client: &Client, attempt: Attempt) -> Result<Outcome> {
        let outcome = Outcome::of(&client.publish(attempt.body()).await)?;
        self.record(attempt, outcome.clone());
        Ok(outcome)
    }

    /// Posts attempts as one batch, in this order, and records them.
    ///
    /// # Errors
    /// When the reply breaks the contract.
    pub async fn post_batch(&self, client: &Client, attempts: Vec<Attempt>) -> Result<()> {
        let outcomes = send_batch(client, &attempts, None).await?;
        self.record_all(attempts, outcomes);
        Ok(())
    }

    /// The same with an `Idempotency-Key`. A batch that was acknowledged as a whole is posted `again`, to all APIs. One that
    /// was not is not: what failed would come behind what was sent after it.
    ///
    /// # Errors
    /// When a reply breaks the contract, or a repeated item was acknowledged as another event.
    pub async fn post_batch_with_key(&self, apis: &[Client], attempts: Vec<Attempt>, again: bool) -> Result<()> {
        let key = Uuid::now_v7().to_string();
        let outcomes = send_batch(&apis[0], &attempts, Some(&key)).await?;
        let is_acknowledged = |outcome: &Outcome| matches!(outcome, Outcome::Acknowledged(_));
        let again = again && outcomes.iter().all(is_acknowledged);
        self.record_all(attempts.clone(), outcomes.clone());
        for client in apis.iter().filter(|_| again) {
            for (repeated, first) in send_batch(client, &attempts, Some(&key)).await?.iter().zip(&outcomes) {
                let same = !is_acknowledged(repeated) || repeated == first;
                ensure!(same, "an item was {first:?}, and with the same key {repeated:?}");
            }
        }
        Ok(())
    }

    /// Posts one attempt with an `Idempotency-Key` through one API after the other, until one says what became of it or
    /// all were asked, and records it. What was acknowledged is posted `again` as often.
    ///
    /// # Errors
    /// When a reply breaks the contract, or a repeated post was acknowledged as another event.
    pub async fn post_with_key(&self, apis: &[Client], attempt: Attempt, again: usize) -> Result<Outcome> {
        let send = async |client: &Client| self.send_with_key(client, &attempt).await;
        let (mut apis, mut outcome) = (apis.iter().cycle(), Outcome::Refused);
        for (client, _) in apis.by_ref().zip(0..KEYED_TRIES) {
            // Refused after unknown is unknown: the first one may have arrived.
            match (send(client).await?, &outcome) {
                (Outcome::Refused, Outcome::Unknown) => {}
                (next, _) => outcome = next,
            }
            if matches!(outcome, Outcome::Acknowledged(_)) {
                break;
            }
        }
        for (client, _) in apis.zip(0..again) {
            match (send(client).await?, &outcome) {
                (Outcome::Refused | Outcome::Unknown, _) => {}
                (repeated, Outcome::Acknowledged(_)) => {
                    ensure!(repeated == outcome, "{attempt:?} was {outcome:?}, and with the same key {repeated:?}");
                }
                // An outage was longer than all tries before.
                (repeated, _) => outcome = repeated,
            }
        }
        self.record(attempt, outcome.clone());
        Ok(outcome)
    }

    /// Posts one attempt with an `Idempotency-Key` of its own and does not record it.
    ///
    /// # Errors
    /// When the reply breaks the contract.
    pub async fn send_with_key(&self, client: &Client, attempt: &Attempt) -> Result<Outcome> {
        let request = client.publication(attempt.body()).header("idempotency-key", &attempt.mark);
        Outcome::of(&Reply::of(request).await).map(Outcome::of_any_time)
    }

    /// Posts one attempt that must be acknowledged.
    ///
    /// # Errors
    /// When it is not.
    pub async fn must_post(&self, client: &Client, user: &str, sequence: u64) -> Result<String> {
        match self.post(client, Attempt::new(user, sequence)).await? {
            Outcome::Acknowledged(promise) => Ok(promise.id),
            other => bail!("the post was {other:?}"),
        }
    }

    /// How many attempts were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        let is_acknowledged = |entry: &&(_, _)| matches!(entry.1, Outcome::Acknowledged(_));
        self.lock().iter().filter(is_acknowledged).count()
    }

    /// How many attempts ended like this so far.
    pub fn count(&self, like: impl Fn(&Outcome) -> bool) -> usize {
        self.lock().iter().filter(|(_, outcome)| like(outcome)).count()
    }

    /// The attempt that was acknowledged last, and its event id.
    #[must_use]
    pub fn latest_acknowledged(&self) -> Option<(Attempt, String)> {
        self.lock().iter().rev().find_map(|(attempt, outcome)| match outcome {
            Outcome::Acknowledged(promise) => Some((attempt.clone(), promise.id.clone())),
            Outcome::Refused | Outcome::Unknown => None,
        })
    }

    /// Waits until `count` more attempts are acknowledged than now, for as long as there are more and more of them.
    ///
    /// # Panics
    /// When there are not.
    pub async fn grows_by(&self, count: usize) {
        let mut reached = self.acknowledged();
        let target = reached + count;
        while reached < target {
            let before = reached;
            reached = eventually("another post is acknowledged", async || {
                let now = self.acknowledged();
                ensure!(now > before, "{now} of {target}");
                Ok(now)
            })
            .await;
        }
    }

    /// Judges what the API lists, waiting for what is still on its way. A fresh event passes, too.
    ///
    /// # Panics
    /// At once when something is wrong, or when something stays missing.
    pub async fn holds(&self, client: &Client) {
        let (fresh, mut tries) = (format!("fresh-{}", Uuid::now_v7()), 0..);
        // One whose outcome is unknown may be stored, too: before the next.
        eventually("a fresh event is acknowledged", async || {
            self.must_post(client, &fresh, tries.next().unwrap_or_default()).await
        })
        .await;
        eventually("every acknowledged event is listed", async || {
            let verdict = self.judge(&client.list().await?);
            assert!(verdict.wrong.is_empty(), "wrong: {:#?}", verdict.wrong);
            let missing = verdict.missing;
            ensure!(missing.is_empty(), "{} missing: {:?}", missing.len(), missing.first());
            Ok(())
        })
        .await;
    }

    /// Compares the list of stored events with the attempts, which must all have ended.
    #[must_use]
    pub fn judge(&self, stored: &[Event]) -> Verdict {
        self.judge_since(stored, &Since::default())
    }

    /// The same where what is older need not be listed any more.
    #[must_use]
    pub fn judge_since(&self, stored: &[Event], since: &Since) -> Verdict {
        judge(&self.lock(), stored, since)
    }

    /// The ids of what was acknowledged, of attempts since a time.
    #[must_use]
    pub fn acknowledged_since(&self, since: &Since) -> Vec<String> {
        let attempts = self.lock();
        let expected = attempts.iter().filter(|(attempt, _)| since.expects(attempt));
        let ids = expected.filter_map(|(_, outcome)| match outcome {
            Outcome::Acknowledged(promise) => Some(promise.id.clone()),
            Outcome::Refused | Outcome::Unknown => None,
        });
        ids.collect()
    }

    /// What stands on the topic, given in the order of its offsets, out of the order in which its user sent it. In each
    /// partition by itself, once `users_moved` to others.
    #[must_use]
    pub fn disorder(&self, topic: &[Located], users_moved: bool) -> Vec<String> {
        disorder(&self.lock(), topic, users_moved)
    }

    fn record_all(&self, attempts: Vec<Attempt>, outcomes: Vec<Outcome>) {
        attempts.into_iter().zip(outcomes).for_each(|(attempt, outcome)| self.record(attempt, outcome));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Attempt, Outcome)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Posts attempts as one batch of NDJSON. Gives what became of each.
async fn send_batch(client: &Client, attempts: &[Attempt], key: Option<&str>) -> Result<Vec<Outcome>> {
    let body: String = attempts.iter().map(|attempt| attempt.body() + "\n").collect();
    let request = client.request(Method::POST, "/events/batch").header("content-type", "application/x-ndjson");
    let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
    Outcome::of_batch(&Reply::of(request.body(body)).await, attempts.len())
}

/// The result of a comparison; all empty is innocent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged but not stored (yet).
    pub missing: Vec<String>,
    /// Must never be seen, at any moment.
    pub wrong: Vec<String>,
}

fn judge(attempts: &[(Attempt, Outcome)], stored: &[Event], since: &Since) -> Verdict {
    let by_mark: HashMap<_, _> =
        attempts.iter().map(|(attempt, outcome)| (attempt.mark.as_str(), (attempt, outcome))).collect();
    let mut verdict = Verdict::default();
    let (mut ids, mut marks, mut last) = (HashSet::new(), HashSet::new(), HashMap::new());
    for event in stored {
        let mut wrong = |what: &str| verdict.wrong.push(format!("{what}: {event:?}"));
        if !ids.insert(&event.event_id) {
            wrong("an id twice");
        }
        let Some((attempt, outcome)) = by_mark.get(mark_of(event).as_str()) else {
            wrong("nobody posted it");
            continue;
        };
        if !marks.insert(&attempt.mark) {
            wrong("an attempt twice");
        }
        match outcome {
            Outcome::Refused => wrong("a refused attempt"),
            Outcome::Acknowledged(promise) if promise.id != event.event_id => wrong("another id than promised"),
            Outcome::Acknowledged(promise)
                if promise.timestamp.as_ref().is_some_and(|time| *time != event.timestamp) =>
            {
                wrong("another time than promised");
            }
            Outcome::Acknowledged(_) | Outcome::Unknown => {}
        }
        let fields = (&event.user_id, event.event_type.as_str(), &event.payload);
        if fields != (&attempt.user, "LOGIN", &attempt.payload()) {
            wrong("a changed field");
        }
        if last.insert(&attempt.user, attempt.sequence).is_some_and(|before| before >= attempt.sequence) {
            wrong("out of a user's order");
        }
    }
    if !stored.is_sorted_by_key(|event| &event.timestamp) {
        verdict.wrong.push("the list is not ordered by timestamp".to_owned());
    }
    for (attempt, outcome) in attempts {
        let promised = matches!(outcome, Outcome::Acknowledged(_)) && since.expects(attempt);
        if promised && !marks.contains(&attempt.mark) {
            verdict.missing.push(format!("{attempt:?} {outcome:?}"));
        }
    }
    verdict
}

fn mark_of(event: &Event) -> String {
    let payload: Value = serde_json::from_str(&event.payload).unwrap_or_default();
    payload["mark"].as_str().unwrap_or_default().to_owned()
}

/// Only an acknowledged attempt has a place: it was sent after those before it, and is there before those behind it. What
/// has its mark behind its first record is a repetition.
fn disorder(attempts: &[(Attempt, Outcome)], topic: &[Located], users_moved: bool) -> Vec<String> {
    let acknowledged = attempts.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Acknowledged(_)));
    let mut pending: HashMap<_, _> = acknowledged.map(|(attempt, _)| (attempt.mark.as_str(), attempt)).collect();
    let (mut last, mut found) = (HashMap::new(), Vec::new());
    for Located { partition, offset, record } in topic {
        let value: Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default()).unwrap_or_default();
        let first = value["payload"]["mark"].as_str().and_then(|mark| pending.remove(mark));
        let Some(Attempt { user, sequence, .. }) = first else { continue };
        let place = (user, users_moved.then_some(partition));
        if let Some(before) = last.insert(place, sequence).filter(|before| *before > sequence) {
            found.push(format!("{sequence} of {user} is behind {before}, at offset {offset} of partition {partition}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::kafka::Record;

    fn attempt(user: &str, sequence: u64) -> Attempt {
        Attempt { mark: format!("{user}-{sequence}"), user: user.to_owned(), sequence }
    }

    fn acknowledged(user: &str, sequence: u64) -> (Attempt, Outcome) {
        let Event { event_id, timestamp, .. } = stored(user, sequence);
        (attempt(user, sequence), Outcome::Acknowledged(Promise { id: event_id, timestamp: Some(timestamp) }))
    }

    fn stored(user: &str, sequence: u64) -> Event {
        Event {
            event_id: format!("id-{user}-{sequence}"),
            user_id: user.to_owned(),
            event_type: "LOGIN".to_owned(),
            timestamp: format!("2026-01-01T00:00:00.{sequence:03}Z"),
            payload: attempt(user, sequence).payload(),
        }
    }

    fn accuses(attempts: &[(Attempt, Outcome)], stored: &[Event], of: &str) {
        let Verdict { wrong, .. } = judge(attempts, stored, &Since::default());
        assert!(wrong.iter().any(|what| what.starts_with(of)), "{of} in {wrong:?}");
    }

    #[test]
    fn what_was_promised_and_kept_is_innocent() {
        let attempts = [
            acknowledged("a", 1),
            (attempt("a", 2), Outcome::Unknown),
            (attempt("b", 1), Outcome::Unknown),
            (attempt("b", 2), Outcome::Refused),
        ];
        assert_eq!(judge(&attempts, &[stored("a", 1), stored("a", 2)], &Since::default()), Verdict::default());
    }

    #[test]
    fn an_acknowledged_event_that_is_not_stored_is_missing() {
        let verdict = judge(&[acknowledged("a", 1)], &[], &Since::default());
        assert_eq!((verdict.missing.len(), verdict.wrong.len()), (1, 0));
    }

    #[test]
    fn an_event_that_is_stored_twice_is_wrong() {
        let again = Event { event_id: "another".to_owned(), ..stored("a", 1) };
        accuses(&[acknowledged("a", 1)], &[stored("a", 1), stored("a", 1)], "an id twice");
        accuses(&[acknowledged("a", 1)], &[stored("a", 1), again.clone()], "an attempt twice");
        accuses(&[acknowledged("a", 1)], &[again], "another id than promised");
    }

    #[test]
    fn a_refused_event_that_is_stored_is_wrong() {
        accuses(&[(attempt("a", 1), Outcome::Refused)], &[stored("a", 1)], "a refused attempt");
    }

    #[test]
    fn an_event_that_nobody_posted_is_wrong() {
        accuses(&[acknowledged("a", 1)], &[stored("a", 1), stored("b", 1)], "nobody posted it");
    }

    #[test]
    fn a_changed_field_is_wrong() {
        let payload = stored("a", 1).payload.replace("1.0e+2", "100.0");
        accuses(&[acknowledged("a", 1)], &[Event { payload, ..stored("a", 1) }], "a changed field");
        let user_id = "b".to_owned();
        accuses(&[acknowledged("a", 1)], &[Event { user_id, ..stored("a", 1) }], "a changed field");
    }

    #[test]
    fn another_time_than_promised_is_wrong_but_for_what_a_post_before_may_have_set() {
        let (attempt, outcome) = acknowledged("a", 1);
        let later = [Event { timestamp: stored("a", 2).timestamp, ..stored("a", 1) }];
        accuses(&[(attempt.clone(), outcome.clone())], &later, "another time than promised");
        assert_eq!(judge(&[(attempt, outcome.of_any_time())], &later, &Since::default()), Verdict::default());
    }

    fn on_topic(attempts: &[Attempt]) -> Vec<Located> {
        let record = |(offset, attempt): (i64, &Attempt)| {
            let record = Record::of(attempt.body());
            Located { partition: 0, offset, record }
        };
        (0..).zip(attempts).map(record).collect()
    }

    #[test]
    fn only_acknowledged_events_have_a_place_on_the_topic_and_only_their_first_record_counts() {
        let attempts = [acknowledged("a", 1), (attempt("a", 2), Outcome::Unknown), acknowledged("a", 3)];
        let [one, two, three] = attempts.clone().map(|(attempt, _)| attempt);
        let fine = on_topic(&[one.clone(), three.clone(), two.clone(), one.clone(), attempt("b", 0)]);
        assert_eq!(disorder(&attempts, &fine, false), [""; 0]);
        let found = disorder(&attempts, &on_topic(&[three, two, one]), false);
        assert_eq!(found, ["1 of a is behind 3, at offset 2 of partition 0"]);
    }

    #[test]
    fn a_user_may_be_in_another_partition_only_once_users_have_moved() {
        let attempts = [acknowledged("a", 1), acknowledged("a", 2)];
        let mut moved = on_topic(&attempts.clone().map(|(attempt, _)| attempt));
        moved.reverse();
        moved[1].partition = 1;
        assert_eq!((disorder(&attempts, &moved, false).len(), disorder(&attempts, &moved, true).len()), (1, 0));
    }

    #[test]
    fn an_event_is_missing_only_if_it_is_young_enough_to_be_listed() {
        let attempt = Attempt::new("a", 1);
        let promise = Promise { id: "1".to_owned(), timestamp: None };
        let attempts = [(attempt, Outcome::Acknowledged(promise))];
        let missing = |since: &str| judge(&attempts, &[], &Since::of(since.to_owned())).missing.len();
        assert_eq!((missing(""), missing("2026-01-01T00:00:00.000Z"), missing("9999-01-01T00:00:00.000Z")), (1, 1, 0));
    }

    #[test]
    fn each_item_of_a_batch_has_an_outcome() {
        let reply = |status, body: &str| {
            Ok(Reply { url: "http://x/".parse().unwrap(), status, headers: HeaderMap::new(), body: body.into() })
        };
        let results = r#"{"results":[{"status":201,"eventId":"e"},{"status":503,"outcome":"unknown"}]}"#;
        let acknowledged = Outcome::Acknowledged(Promise { id: "e".to_owned(), timestamp: None });
        let outcomes = Outcome::of_batch(&reply(200, results), 2).unwrap();
        assert_eq!(outcomes, [acknowledged, Outcome::Unknown]);
        assert!(Outcome::of_batch(&reply(200, results), 3).is_err(), "one is not told of");
        assert_eq!(Outcome::of_batch(&Err(anyhow::anyhow!("cut")), 2).unwrap(), [Outcome::Unknown, Outcome::Unknown]);
    }

    #[test]
    fn a_broken_order_is_wrong() {
        let attempts = [acknowledged("a", 1), acknowledged("a", 2)];
        let later = Event { timestamp: stored("a", 2).timestamp, ..stored("a", 1) };
        accuses(&attempts, &[stored("a", 2), later], "out of a user's order");
        accuses(&attempts, &[stored("b", 2), stored("a", 1)], "the list is not ordered");
    }
}
