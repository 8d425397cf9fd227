//! What users read, from every API: the list in one go, in pages, in both orders; and each event by its id.

use std::time::Duration;

use anyhow::{Result, ensure};
use chrono::Utc;
use futures::{StreamExt, stream};
use reqwest::Method;

use super::within;
use crate::{
    client::{Client, Event, Processed, Reply},
    oracle::Since,
    sample::rfc3339,
};

/// Rows of a page: the largest there is.
pub(super) const PAGE: usize = 1_000;

/// Rows of a small page, which ends at other places than the largest.
const SMALL_PAGE: usize = 97;

/// How many are asked for by id where not all are: enough for more than the last fault.
pub(super) const NEWEST: usize = 5_000;

/// Requests under way at a time.
const AT_A_TIME: usize = 16;

/// For an answer at the end of a run, when nothing is broken any more.
const ANSWERED: Duration = Duration::from_mins(2);

/// What expires so soon may or may not be shown any more.
const SLACK: Duration = Duration::from_secs(2);

/// For the whole list of a long run in one reply: only the end of a hang.
const WHOLE_LIST: Duration = Duration::from_mins(10);

/// What a list must show now: neither what is older than `retention` nor what the API says was trimmed early.
///
/// # Errors
/// When the API does not answer.
pub(super) async fn since(client: &Client, retention: Option<Duration>) -> Result<Since> {
    let reply = get(client, "/events/processed?limit=1").await?.ok()?;
    let expired = retention.map(|retention| rfc3339(Utc::now() - retention + SLACK));
    Ok(Since::of(expired.unwrap_or_default().max(reply.header("trimmed-before").to_owned())))
}

/// Whether an API shows these, all that is stored, in the same way however they are asked for, and the newest of them by
/// their ids. Gives how many of these had not expired.
///
/// # Errors
/// With the first difference.
pub(super) async fn shows(
    client: &Client,
    retention: Option<Duration>,
    stored: &[Event],
    newest: usize,
) -> Result<usize> {
    let agree = async |what: &str, found: &[Event]| agrees(what, found, stored, &since(client, retention).await?);
    // First, for those that soon expire.
    let shown = finds(client, retention, &stored[stored.len().saturating_sub(newest)..]).await?;
    let whole = get(client, "/events/processed").await?.ok()?.parse::<Vec<_>>()?;
    agree("the list in one reply", &whole).await?;
    let small = pages(client, format!("/events/processed?limit={SMALL_PAGE}")).await?;
    agree("the list in small pages", &small).await?;
    let mut backward = pages(client, format!("/events/processed?order=desc&limit={PAGE}")).await?;
    backward.reverse();
    agree("the list from its end", &backward).await?;
    Ok(shown)
}

/// Whether each of these is found by its id, unless it has gone meanwhile. Gives how many have not.
async fn finds(client: &Client, retention: Option<Duration>, asked: &[Event]) -> Result<usize> {
    let found: Vec<_> = stream::iter(asked)
        .map(async |event| (event, is_found(client, event).await))
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    let since = since(client, retention).await?;
    let shown: Vec<_> = found.into_iter().filter(|(event, _)| since.shows(event)).collect();
    ensure!(!shown.is_empty(), "nothing is young enough to be asked for");
    let wrong: Vec<_> = shown.iter().filter_map(|(_, found)| found.as_ref().err()).collect();
    let first = wrong.first().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(wrong.is_empty(), "{} of {} events are not found by id: {first}", wrong.len(), shown.len());
    Ok(shown.len())
}

/// Asks again while there is no answer, or a 503: a busy machine may be too slow for one time.
async fn get(client: &Client, path: &str) -> Result<Reply> {
    within(ANSWERED, "an answer", async || {
        let reply = Reply::of(client.request(Method::GET, path).timeout(WHOLE_LIST)).await?;
        ensure!(reply.status != 503, "503: {}", reply.text());
        Ok(reply)
    })
    .await
}

/// The rows of all pages from this one on.
async fn pages(client: &Client, first: String) -> Result<Vec<Event>> {
    let (mut rows, mut next) = (Vec::new(), Some(first));
    while let Some(path) = next {
        let reply = get(client, &path).await?.ok()?;
        rows.extend(reply.parse::<Vec<Event>>()?);
        next = reply.next_link();
    }
    Ok(rows)
}

async fn is_found(client: &Client, event: &Event) -> Result<()> {
    let reply = get(client, &format!("/events/{}", event.event_id)).await?;
    ensure!(reply.status == 200, "{} of {event:?}: {}", reply.status, reply.text());
    let found = reply.parse::<Processed>()?.row();
    ensure!(found == *event, "{found:?} instead of {event:?}");
    Ok(())
}

/// Whether rows are those that there should be, as far as they must be shown.
///
/// # Errors
/// With the first difference.
pub(super) fn agrees(what: &str, found: &[Event], expected: &[Event], since: &Since) -> Result<()> {
    let shown = |rows: &[Event]| rows.iter().filter(|row| since.shows(row)).cloned().collect::<Vec<_>>();
    let (found, expected) = (shown(found), shown(expected));
    let alike = found.iter().zip(&expected).take_while(|(one, other)| one == other).count();
    let (here, there) = (found.get(alike), expected.get(alike));
    ensure!(
        here.is_none() && there.is_none(),
        "{what} has {} rows of {}; row {alike} is {here:?} instead of {there:?}",
        found.len(),
        expected.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(ids: &[&str]) -> Vec<Event> {
        let row = |id: &&str| {
            let text = format!(r#"{{"eventId":"{id}","userId":"","eventType":"","timestamp":"","payload":1.0}}"#);
            serde_json::from_str(&text).unwrap()
        };
        ids.iter().map(row).collect()
    }

    #[test]
    fn rows_agree_when_they_are_the_same_in_the_same_order() {
        let (expected, ever) = (rows(&["a", "b"]), Since::default());
        assert!(agrees("it", &expected, &expected, &ever).is_ok() && agrees("it", &[], &[], &ever).is_ok());
        for (found, place) in [(&["a"][..], 1), (&["a", "b", "c"], 2), (&["b", "a"], 0), (&["a", "a", "b"], 1)] {
            let error = agrees("it", &rows(found), &expected, &ever).unwrap_err().to_string();
            assert!(error.contains(&format!("row {place} is")), "{error}");
        }
    }

    #[test]
    fn what_has_expired_need_not_be_the_same() {
        let at = |id: &str, timestamp: &str| Event { timestamp: timestamp.to_owned(), ..rows(&[id]).remove(0) };
        let (found, expected) = ([at("b", "2")], [at("a", "1"), at("b", "2")]);
        assert!(agrees("it", &found, &expected, &Since::of("2".to_owned())).is_ok());
        assert!(agrees("it", &found, &expected, &Since::of("1".to_owned())).is_err());
    }
}
