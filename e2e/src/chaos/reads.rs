//! What users read, from every API: the list in one go, in pages, in both orders; and each event by its id.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt, stream};
use reqwest::Method;

use crate::client::{Client, Event, Processed, Reply};

/// Rows of a page: the largest there is.
pub(super) const PAGE: usize = 1_000;

/// Rows of a small page, which ends at other places than the largest.
const SMALL_PAGE: usize = 97;

/// Requests under way at a time.
const AT_A_TIME: usize = 16;

/// For the whole list of a long run in one reply: only the end of a hang.
const WHOLE_LIST: Duration = Duration::from_mins(10);

/// Whether an API shows these, all that is stored, in the same way however they are asked for.
///
/// # Errors
/// With the first difference.
pub(super) async fn shows(client: &Client, stored: &[Event]) -> Result<()> {
    let whole = Reply::of(client.request(Method::GET, "/events/processed").timeout(WHOLE_LIST)).await?.ok()?;
    agrees("the list in one reply", &whole.parse::<Vec<_>>()?, stored)?;
    agrees("the list in small pages", &client.pages(SMALL_PAGE).await?.concat(), stored)?;
    let backward = client.pages_from(format!("/events/processed?order=desc&limit={PAGE}")).await?;
    let backward: Vec<_> = backward.into_iter().flatten().rev().collect();
    agrees("the list from its end", &backward, stored)?;
    finds(client, stored).await
}

async fn finds(client: &Client, stored: &[Event]) -> Result<()> {
    let asked = stream::iter(stored).map(|event| is_found(client, event)).buffer_unordered(AT_A_TIME);
    let wrong: Vec<_> = asked.filter_map(async |found| found.err()).collect().await;
    let first = wrong.first().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(wrong.is_empty(), "{} of {} events are not found by id: {first}", wrong.len(), stored.len());
    Ok(())
}

async fn is_found(client: &Client, event: &Event) -> Result<()> {
    let reply = client.get(&format!("/events/{}", event.event_id)).await?;
    ensure!(reply.status == 200, "{} of {event:?}: {}", reply.status, reply.text());
    let found = reply.parse::<Processed>()?.row();
    ensure!(found == *event, "{found:?} instead of {event:?}");
    Ok(())
}

/// Whether rows are those that there should be.
fn agrees(what: &str, found: &[Event], expected: &[Event]) -> Result<()> {
    let alike = found.iter().zip(expected).take_while(|(one, other)| one == other).count();
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
        let expected = rows(&["a", "b"]);
        assert!(agrees("it", &expected, &expected).is_ok() && agrees("it", &[], &[]).is_ok());
        for (found, place) in [(&["a"][..], 1), (&["a", "b", "c"], 2), (&["b", "a"], 0), (&["a", "a", "b"], 1)] {
            let error = agrees("it", &rows(found), &expected).unwrap_err().to_string();
            assert!(error.contains(&format!("row {place} is")), "{error}");
        }
    }
}
