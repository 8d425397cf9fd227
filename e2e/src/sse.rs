//! A reader of server-sent events (HTML standard, section 9.2), as a browser has one, but one that never comes back by
//! itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder, Response};

use crate::{
    PATIENCE,
    client::{Client, Event},
};

/// Longer than any test: a stream has no end of its own.
const WHOLE_STREAM: Duration = Duration::from_mins(10);

/// What the stream said in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What a reader that has got it sends as `Last-Event-ID`.
    pub id: String,
    /// Its kind, `message` when it does not say.
    pub event: String,
    /// Its data.
    pub data: String,
}

/// An open stream.
#[derive(Debug)]
pub struct Sse {
    response: Response,
    received: Vec<u8>,
    /// How much of it is known to have no end of a line.
    searched: usize,
    blocks: Blocks,
}

/// What the lines of a stream come to.
#[derive(Debug, Default)]
struct Blocks {
    /// Of the last whole block that had one.
    last_id: String,
    /// Of the block that is being read.
    id: Option<String>,
    event: String,
    data: Vec<String>,
    /// How long a client is to wait before it comes back.
    retry: Option<Duration>,
}

impl Sse {
    /// Opens `/events/stream` with this query, behind `last_id` if there is one.
    ///
    /// # Errors
    /// When the reply is not a stream of events.
    pub async fn open(client: &Client, query: &str, last_id: Option<&str>) -> Result<Self> {
        let request = client.request(Method::GET, &format!("/events/stream{query}"));
        let mut stream = Self::of(request, last_id).await?;
        // The first block says where the stream begins: from here on nothing may be missed.
        loop {
            match stream.line() {
                Some(line) if line.is_empty() => {
                    stream.blocks.take(&line);
                    return Ok(stream);
                }
                Some(line) => ensure!(stream.blocks.take(&line).is_none(), "a message before the beginning: {line}"),
                None => ensure!(stream.more().await?, "the stream ended before it began"),
            }
        }
    }

    /// Opens `/events/stream` as an `EventSource` does: why it can't be had now comes as an event `end`.
    ///
    /// # Errors
    /// When the reply is not a stream of events.
    pub async fn open_as_browser(client: &Client, last_id: Option<&str>) -> Result<Self> {
        Self::of(client.request(Method::GET, "/events/stream").header("accept", "text/event-stream"), last_id).await
    }

    async fn of(mut request: RequestBuilder, last_id: Option<&str>) -> Result<Self> {
        if let Some(last_id) = last_id {
            request = request.header("last-event-id", last_id);
        }
        let response = request.timeout(WHOLE_STREAM).send().await?;
        ensure!(response.status().as_u16() == 200, "{} instead of a stream", response.status());
        let kind = response.headers().get("content-type").context("no content type")?;
        ensure!(kind == "text/event-stream", "{kind:?} instead of a stream");
        let blocks = Blocks { last_id: last_id.unwrap_or_default().to_owned(), ..Blocks::default() };
        Ok(Self { response, received: Vec::new(), searched: 0, blocks })
    }

    /// The id that a reader sends who goes on after what was read so far.
    #[must_use]
    pub fn last_id(&self) -> &str {
        &self.blocks.last_id
    }

    /// How long the stream has asked its reader to wait before it comes back, if it has.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        self.blocks.retry
    }

    /// Waits for a comment, and gives it once its whole block is read: what a browser does not see, but a proxy in between
    /// does.
    ///
    /// # Errors
    /// When the stream breaks or ends, or has a message first.
    pub async fn comment(&mut self) -> Result<String> {
        let mut comment = None;
        loop {
            while let Some(line) = self.line() {
                if let Some(said) = line.strip_prefix(':') {
                    comment = Some(said.trim_start().to_owned());
                }
                ensure!(self.blocks.take(&line).is_none(), "a message before a comment");
                if let Some(comment) = comment.take_if(|_| line.is_empty()) {
                    return Ok(comment);
                }
            }
            ensure!(self.more().await?, "the stream has ended");
        }
    }

    /// The header of the reply, empty when it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The next message; `None` when the stream ended as it should. May be abandoned and called again.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn next(&mut self) -> Result<Option<Message>> {
        loop {
            while let Some(line) = self.line() {
                if let Some(message) = self.blocks.take(&line) {
                    return Ok(Some(message));
                }
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// The next message, which must be a processed event.
    ///
    /// # Errors
    /// When it is something else, or does not come in time.
    pub async fn event(&mut self) -> Result<Event> {
        let message = tokio::time::timeout(PATIENCE, self.next()).await.context("no further message")??;
        let message = message.context("the stream has ended")?;
        ensure!(message.event == "message", "{message:?}");
        serde_json::from_str(&message.data).with_context(|| format!("read {}", message.data))
    }

    async fn more(&mut self) -> Result<bool> {
        let chunk = self.response.chunk().await?;
        chunk.as_ref().into_iter().for_each(|chunk| self.received.extend_from_slice(chunk));
        Ok(chunk.is_some())
    }

    /// The next whole line, without its end.
    fn line(&mut self) -> Option<String> {
        let Some(end) = self.received[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.received.len();
            return None;
        };
        let line: Vec<u8> = self.received.drain(..=self.searched + end).collect();
        self.searched = 0;
        Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())
    }
}

impl Blocks {
    /// What a line completes. Comments mean nothing here.
    fn take(&mut self, line: &str) -> Option<Message> {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match name {
            "id" => self.id = Some(value),
            "event" => self.event = value,
            "data" => self.data.push(value),
            "retry" => self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry),
            "" if line.is_empty() => return self.dispatch(),
            _ => {}
        }
        None
    }

    /// Ends a block. The id of one that breaks off is not taken: its data would be missed by who goes on there.
    fn dispatch(&mut self) -> Option<Message> {
        let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
        self.last_id = self.id.take().unwrap_or_else(|| std::mem::take(&mut self.last_id));
        let event = if event.is_empty() { "message".to_owned() } else { event };
        (!data.is_empty()).then(|| Message { id: self.last_id.clone(), event, data: data.join("\n") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_block_counts_once_the_block_is_whole() {
        let mut blocks = Blocks { last_id: "0".to_owned(), ..Blocks::default() };
        for line in ["retry: 1500", "id: 1", "data: a"] {
            assert_eq!(blocks.take(line), None);
        }
        assert_eq!((&*blocks.last_id, blocks.retry), ("0", Some(Duration::from_millis(1500))));
        let message = Message { id: "1".to_owned(), event: "message".to_owned(), data: "a".to_owned() };
        assert_eq!(blocks.take(""), Some(message));
        for line in ["event: reset", "data: b"] {
            assert_eq!(blocks.take(line), None);
        }
        let message = Message { id: "1".to_owned(), event: "reset".to_owned(), data: "b".to_owned() };
        assert_eq!(blocks.take(""), Some(message));
        for line in [": heartbeat", "id: 2", ""] {
            assert_eq!(blocks.take(line), None);
        }
        assert_eq!(blocks.last_id, "2");
    }
}
