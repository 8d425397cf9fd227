//! Reading a batch: a body becomes items, whatever pieces it comes in.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use common::event::Violation;
use common::shutdown::Shutdown;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::Deserializer;
use serde::de::{Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::body::{Limits, Pieces};
use crate::memory::{Memory, Parts, Share};
use crate::problem::Problem;

/// An item, or why there is none and none after it.
pub(super) type Item = Result<Bytes, Problem>;

/// The items of an array.
///
/// # Errors
/// When it is none, or has none or too many.
pub(super) fn array(body: &Bytes, most: usize) -> Result<BoxStream<'static, Item>, Problem> {
    let (mut items, mut json) = (Vec::new(), serde_json::Deserializer::from_slice(body));
    let read = json.deserialize_seq(Items { body, most, items: &mut items }).and_then(|()| json.end());
    if items.len() > most {
        return Err(Problem::TooManyItems(most));
    }
    let invalid = |detail| Problem::InvalidPayload(vec![Violation::document(detail)]);
    read.map_err(|error| {
        let why = if is_ndjson(body) { LOOKS_LIKE_NDJSON.to_owned() } else { error.to_string() };
        invalid(format!("Request body must be a JSON array of events: {why}"))
    })?;
    if items.is_empty() { Err(Problem::EmptyBatch) } else { Ok(stream::iter(items).boxed()) }
}

const LOOKS_LIKE_NDJSON: &str = "this looks like NDJSON: send application/x-ndjson as its Content-Type";

/// Whether a body that is no array begins with one object and the beginning of another.
fn is_ndjson(body: &[u8]) -> bool {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>();
    let is_object = values.next().is_some_and(|value| value.is_ok_and(|value| value.get().starts_with('{')));
    is_object && body[values.byte_offset()..].trim_ascii_start().starts_with(b"{")
}

/// Collects the items of an array, but of those that are too many only the first: millions fit into a small body.
struct Items<'a> {
    body: &'a Bytes,
    most: usize,
    items: &'a mut Vec<Item>,
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(item) = array.next_element::<&RawValue>()? {
            self.items.push(Ok(self.body.slice_ref(item.get().as_bytes())));
            if self.items.len() > self.most {
                return Err(A::Error::custom("too many items"));
            }
        }
        Ok(())
    }
}

/// The lines of NDJSON as they arrive; blank ones are left away. A line that is too long is an item without a body. What
/// ends the request before its end, a limit, a broken connection or the end of this process, is the last item.
pub(super) fn lines(
    pieces: Pieces,
    limits: Limits,
    longest: usize,
    most: usize,
    memory: &Arc<Memory>,
    draining: Shutdown,
) -> BoxStream<'static, Item> {
    let (rest, ready) = Default::default();
    let lines = Lines {
        pieces,
        rest,
        ready,
        overlong: false,
        ended: false,
        longest,
        share: memory.share(),
        parts: Parts::new(memory),
        draining,
    };
    let numbered = stream::unfold((lines, 0_usize), move |(mut lines, count)| async move {
        let item = match tokio::time::timeout(limits.time, lines.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(_))) if count == most => Err(Problem::TooManyItems(most)),
            Ok(Some(item)) => item,
            Err(_) => Err(Problem::BodyTooSlow(limits.time)),
        };
        if item.is_err() {
            lines.end();
        }
        Some((item, (lines, count + 1)))
    });
    numbered.boxed()
}

/// Cuts what arrives into lines.
struct Lines {
    pieces: Pieces,
    rest: BytesMut,
    ready: VecDeque<Bytes>,
    /// The present line is longer than an item may be; the rest of it is skipped.
    overlong: bool,
    ended: bool,
    longest: usize,
    /// Of the line that has come in part.
    share: Share,
    /// Of those that are whole.
    parts: Parts,
    /// Cancelled when this process is ending: then nothing is waited for.
    draining: Shutdown,
}

impl Lines {
    async fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(self.counted(line).await);
            }
            if self.ended {
                return None;
            }
            let piece = tokio::select! {
                biased;
                piece = self.pieces.next() => piece,
                () = self.draining.cancelled() => return Some(Err(Problem::Draining)),
            };
            match piece {
                Some(Ok(piece)) => {
                    self.take(&piece);
                    if let Err(full) = self.share.hold(self.rest.len()) {
                        return Some(Err(Problem::NoRoom(full)));
                    }
                }
                Some(Err(problem)) => return Some(Err(problem)),
                None => {
                    self.ended = true;
                    self.finish_line();
                }
            }
        }
    }

    /// The line, which counts until it is published or refused. While those before it hold all the room, it waits.
    async fn counted(&mut self, line: Bytes) -> Item {
        loop {
            match self.parts.part(line.clone()) {
                Ok(line) => return Ok(line),
                Err(full) if self.parts.is_empty() => return Err(Problem::NoRoom(full)),
                Err(_) => tokio::time::sleep(super::ROOM_PERIOD).await,
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        let mut parts = piece.split(|byte| *byte == b'\n');
        self.extend(parts.next().unwrap_or_default());
        for part in parts {
            self.finish_line();
            self.extend(part);
        }
    }

    fn extend(&mut self, part: &[u8]) {
        let return_before_newline = 1;
        self.overlong |= self.rest.len() + part.len() > self.longest + return_before_newline;
        if !self.overlong {
            self.rest.extend_from_slice(part);
        }
    }

    fn finish_line(&mut self) {
        let mut line = self.rest.split().freeze();
        if line.ends_with(b"\r") {
            line.truncate(line.len() - 1);
        }
        // An empty line says that there was one that is too long.
        match std::mem::take(&mut self.overlong) || line.len() > self.longest {
            true => self.ready.push_back(Bytes::new()),
            false if line.iter().all(u8::is_ascii_whitespace) => {}
            false => self.ready.push_back(line),
        }
    }

    /// Nothing more is read.
    fn end(&mut self) {
        self.ended = true;
        self.ready.clear();
        self.pieces = stream::empty().boxed();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::body;

    const LIMITS: Limits = Limits { size: 1 << 20, time: Duration::from_secs(10) };
    /// Of a line, in bytes.
    const LONGEST: usize = 12;

    /// An item, or the status of what ended the batch.
    type Read = Result<Vec<u8>, u16>;

    fn read(items: BoxStream<'static, Item>) -> Vec<Read> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let items: Vec<Item> = runtime.block_on(items.collect());
        items.into_iter().map(|item| item.map(|json| json.to_vec()).map_err(|p| p.status().as_u16())).collect()
    }

    /// A body in pieces that end at `cuts`; a broken one ends with a problem.
    fn pieces(body: &[u8], cuts: &[prop::sample::Index], broken: bool) -> Pieces {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        ends.sort_unstable();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let ends = ends.iter().copied().chain(std::iter::once(body.len()));
        let cut = starts.zip(ends).map(|(start, end)| Ok(Bytes::copy_from_slice(&body[start..end])));
        let cut: Vec<Result<Bytes, Problem>> = cut.chain(broken.then_some(Err(Problem::BodyBroken))).collect();
        stream::iter(cut).boxed()
    }

    /// What lines are said to be, for a body that is there at once.
    fn expected<'a>(body: &'a [u8], broken: bool, most: usize) -> Vec<Read> {
        let mut lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
        if broken {
            lines.pop();
        }
        let without_return = |line: &'a [u8]| line.strip_suffix(b"\r").unwrap_or(line);
        let item = |line: &[u8]| match line.len() > LONGEST {
            true => Some(Ok(Vec::new())),
            false => (!line.iter().all(u8::is_ascii_whitespace)).then(|| Ok(line.to_vec())),
        };
        let mut items: Vec<Read> = lines.into_iter().map(without_return).filter_map(item).collect();
        if items.len() > most {
            items.truncate(most);
            items.push(Err(413));
        } else if broken {
            items.push(Err(400));
        }
        items
    }

    /// Lines and what is nearly lines: fragments in any order.
    fn nearly_lines() -> impl Strategy<Value = Vec<u8>> {
        const FRAGMENTS: &[&[u8]] = &[b"\n", b"\n", b"\r\n", b" ", b"{}", b"\"a\\n\"", b"0123456789ab", b"\0", b"\xff"];
        prop::collection::vec(prop::sample::select(FRAGMENTS), 0..40).prop_map(|parts| parts.concat())
    }

    #[test]
    fn what_comes_behind_too_many_items_is_not_looked_at() {
        let (body, mut items) = (Bytes::from_static(b"[0,0,0,0,0,0,0]"), Vec::new());
        let all = serde_json::Deserializer::from_slice(&body).deserialize_seq(Items {
            body: &body,
            most: 3,
            items: &mut items,
        });
        assert!(all.is_err() && items.len() == 4, "{}", items.len());
        let refused = |body: &'static [u8], most| array(&Bytes::from_static(body), most).err().unwrap();
        assert!(matches!(refused(b"[0,0,0,0 and no JSON", 3), Problem::TooManyItems(3)));
        assert!(matches!(refused(b"[0,0,0 and no JSON", 3), Problem::InvalidPayload(_)));
        assert!(matches!(refused(b"[0,0,0] and no JSON", 3), Problem::InvalidPayload(_)));
    }

    #[test]
    fn one_object_after_another_is_ndjson_however_the_second_one_goes_on() {
        for body in ["{}\n{}", "{\"a\":[1]} {\"b\":", "\n{}{"] {
            assert!(is_ndjson(body.as_bytes()), "{body}");
        }
        for body in ["", "{}", "{}\n", "{}\n1", "{", "1\n{}", "{\"a\":{"] {
            assert!(!is_ndjson(body.as_bytes()), "{body}");
        }
    }

    #[tokio::test]
    async fn a_body_that_trickles_ends_with_the_process_behind_the_last_line_that_came() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let pieces = stream::poll_fn(move |context| receiver.poll_recv(context)).boxed();
        let draining = Shutdown::new();
        let mut items = lines(pieces, LIMITS, LONGEST, 20, &Memory::new(0, 0, 0), draining.clone());
        let send = |text: &'static [u8]| sender.send(Ok(Bytes::from_static(text))).unwrap();
        send(b"{}\n");
        assert_eq!(items.next().await.unwrap().unwrap(), "{}");
        send(b"7\n8\n9");
        draining.cancel();
        let rest: Vec<Item> = items.collect().await;
        let rest: Vec<Read> =
            rest.into_iter().map(|item| item.map(|json| json.to_vec()).map_err(|p| p.status().as_u16())).collect();
        assert_eq!(rest, [Ok(b"7".to_vec()), Ok(b"8".to_vec()), Err(503)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        #[test]
        fn lines_are_the_same_however_a_body_is_cut(
            body in nearly_lines(), cuts: Vec<prop::sample::Index>, broken: bool, most in 1_usize..20,
        ) {
            let found = read(lines(pieces(&body, &cuts, broken), LIMITS, LONGEST, most, &Memory::new(0, 0, 0), Shutdown::new()));
            prop_assert_eq!(found, expected(&body, broken, most));
        }

        #[test]
        fn an_array_is_the_same_however_a_body_is_cut(
            bodies in prop::collection::vec(prop::sample::select(&["7", "{\"a\" : [1, 2]}", "\",]\"", "null"][..]), 0..12),
            blank in "[ \\n]{0,2}", cuts: Vec<prop::sample::Index>, most in 1_usize..12,
        ) {
            let body = format!("{blank}[{blank}{}{blank}]{blank}", bodies.join(&format!("{blank},{blank}")));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let whole = runtime.block_on(body::whole(pieces(body.as_bytes(), &cuts, false), LIMITS, tokio::time::Instant::now() + LIMITS.time, &Memory::new(1 << 20, 1 << 20, 0)));
            let (whole, _share) = whole.unwrap();
            match array(&whole, most) {
                Ok(items) => {
                    let items: Vec<Read> = read(items);
                    let given: Vec<Read> = bodies.iter().map(|item| Ok(item.as_bytes().to_vec())).collect();
                    prop_assert!((1..=most).contains(&items.len()));
                    prop_assert_eq!(items, given, "as they were written");
                }
                Err(Problem::EmptyBatch) => prop_assert!(bodies.is_empty()),
                Err(problem) => prop_assert!(bodies.len() > most, "{problem:?}"),
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(body: Vec<u8>, cuts: Vec<prop::sample::Index>, broken: bool) {
            let items = read(lines(pieces(&body, &cuts, broken), LIMITS, LONGEST, 20, &Memory::new(0, 0, 0), Shutdown::new()));
            prop_assert!(items.iter().all(|item| item.as_ref().is_ok_and(|json| json.len() <= LONGEST) || item.is_err()));
            drop(array(&body.into(), 20));
        }
    }
}
