//! The forms of a list: a JSON array, NDJSON, CSV. Events go through as the bytes that are stored; the line-based forms
//! leave line breaks between tokens away.

use std::borrow::Cow;

use bytes::Bytes;
use common::event::StoredMembers;
use warp::http::HeaderMap;
use warp::http::header::{ACCEPT, HeaderValue};

use crate::problem::Problem;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One array.
    Json,
    /// An event a line.
    Ndjson,
    /// RFC 4180, a header line first. Cells that a spreadsheet would take for formulas are quoted.
    Csv,
    /// The same with every cell as it is stored, for programs.
    RawCsv,
}

impl Format {
    /// In the order in which they are preferred where a client does not care.
    const ALL: [Self; 3] = [Self::Json, Self::Ndjson, Self::Csv];

    fn essence(self) -> (&'static str, &'static str) {
        match self {
            Self::Json => ("application", "json"),
            Self::Ndjson => ("application", "x-ndjson"),
            Self::Csv | Self::RawCsv => ("text", "csv"),
        }
    }

    /// The form that `Accept` (RFC 9110, section 12.5.1) asks for; JSON when it is absent.
    ///
    /// # Errors
    /// When it takes none of the forms.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        Self::best_of(&Self::ALL, headers)
    }

    fn best_of(formats: &[Self], headers: &HeaderMap) -> Result<Self, Problem> {
        let (ranges, anything) = accepted(headers);
        if anything {
            return Ok(Self::Json);
        }
        // The first of those that are liked equally: `max_by` would take the last.
        let liked = formats.iter().copied().rev().map(|format| (format.liking(&ranges), format));
        let best = liked.filter(|((quality, _), _)| *quality > 0).max_by_key(|(liking, _)| *liking);
        best.map(|(_, format)| format).ok_or(Problem::NotAcceptable)
    }

    /// The form of a batch's results: JSON or NDJSON.
    ///
    /// # Errors
    /// When `Accept` takes neither.
    pub(crate) fn of_batch(headers: &HeaderMap) -> Result<Self, Problem> {
        Self::best_of(&[Self::Json, Self::Ndjson], headers)
    }

    /// How much it is liked: the quality, in thousandths, that the most specific range gives it, and how specific it is.
    fn liking(self, ranges: &[Range<'_>]) -> (u16, u8) {
        let fitting = ranges.iter().filter_map(|range| Some((range.fits(self.essence())?, range.quality)));
        fitting.max().map_or((0, 0), |(specific, quality)| (quality, specific))
    }

    /// Its media type.
    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv | Self::RawCsv => "text/csv; charset=utf-8; header=present",
        })
    }
}

/// The media ranges that `Accept` names, and whether anything is accepted, because it is absent or empty.
fn accepted(headers: &HeaderMap) -> (Vec<Range<'_>>, bool) {
    let lines = headers.get_all(ACCEPT);
    let anything = lines.iter().all(|line| line.as_bytes().iter().all(u8::is_ascii_whitespace));
    let texts = lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    (texts.filter_map(Range::parse).collect(), anything)
}

/// Whether a client names server-sent events in `Accept`, as each `EventSource` does (HTML standard, section 9.2.2).
pub(crate) fn wants_event_stream(headers: &HeaderMap) -> bool {
    let (ranges, _) = accepted(headers);
    ranges.iter().any(|range| range.quality > 0 && range.fits(("text", "event-stream")) == Some(2))
}

/// A media range of an `Accept` header.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let quality = quality.map_or(1.0, |quality| quality.parse::<f32>().unwrap_or(0.0)).clamp(0.0, 1.0);
        Some(Self { kind, subtype, quality: (quality * 1000.0) as u16 })
    }

    /// How specifically it names a type; `None` if it does not.
    fn fits(&self, (kind, subtype): (&str, &str)) -> Option<u8> {
        match (self.kind, self.subtype) {
            ("*", "*") => Some(0),
            (own, "*") if own.eq_ignore_ascii_case(kind) => Some(1),
            (own, part) if own.eq_ignore_ascii_case(kind) && part.eq_ignore_ascii_case(subtype) => Some(2),
            _ => None,
        }
    }
}

/// Writes a list, some events at a time.
pub(crate) struct Writer {
    format: Format,
    begun: bool,
}

impl Writer {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, begun: false }
    }

    /// These events, one at least, and before the first ones what a list begins with.
    pub(crate) fn some(&mut self, events: &[Bytes]) -> Vec<u8> {
        let first = !std::mem::replace(&mut self.begun, true);
        let mut out = Vec::with_capacity(events.iter().map(|event| event.len() + 1).sum::<usize>() + 64);
        match self.format {
            Format::Json => events.iter().enumerate().for_each(|(nth, event)| {
                out.push(if first && nth == 0 { b'[' } else { b',' });
                out.extend_from_slice(event);
            }),
            Format::Ndjson => events.iter().for_each(|event| {
                push_line(&mut out, event);
                out.push(b'\n');
            }),
            Format::Csv => write_csv(&mut out, first, events, quoted),
            Format::RawCsv => write_csv(&mut out, first, events, |cell| cell.into()),
        }
        out
    }

    /// What a list ends with, all of it when it has no event.
    pub(crate) fn end(self) -> Vec<u8> {
        let mut out = Vec::new();
        match (self.format, self.begun) {
            (Format::Json, true) => out.push(b']'),
            (Format::Json, false) => out.extend_from_slice(b"[]"),
            (Format::Csv | Format::RawCsv, false) => write_csv(&mut out, true, &[], quoted),
            (Format::Ndjson | Format::Csv | Format::RawCsv, _) => {}
        }
        out
    }

    /// A whole list.
    pub(crate) fn whole(format: Format, events: &[Bytes]) -> Vec<u8> {
        let mut writer = Self::new(format);
        let mut out = if events.is_empty() { Vec::new() } else { writer.some(events) };
        out.extend_from_slice(&writer.end());
        out
    }
}

/// Appends JSON without line breaks, which stand only between its tokens.
pub(crate) fn push_line(out: &mut Vec<u8>, json: &[u8]) {
    if json.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend(json.iter().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    } else {
        out.extend_from_slice(json);
    }
}

/// A cell that no spreadsheet takes for a formula (OWASP, CSV Injection): whoever posts an event would otherwise have code run
/// by whoever opens the export.
fn quoted(cell: &str) -> Cow<'_, str> {
    // The last four are what the first four are where letters have full width.
    const BEGINNINGS: [char; 11] =
        ['=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];
    if cell.starts_with(BEGINNINGS) { format!("'{cell}").into() } else { cell.into() }
}

fn write_csv(out: &mut Vec<u8>, first: bool, events: &[Bytes], cell: fn(&str) -> Cow<'_, str>) {
    let mut csv = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(out);
    let header = first.then_some(["eventId", "userId", "eventType", "timestamp", "payload"]);
    let rows = events.iter().filter_map(|event| serde_json::from_slice::<StoredMembers<'_>>(event).ok());
    // Writing to memory does not fail, and all records have five fields.
    let written = header.into_iter().try_for_each(|header| csv.write_record(header)).and_then(|()| {
        { rows }.try_for_each(|row| {
            let cells = [&*row.event_id, &*row.user_id, &*row.event_type, &*row.timestamp, row.payload.get()];
            csv.write_record(cells.map(|text| cell(text).into_owned()))
        })
    });
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(accept: &str) -> Option<Format> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        Format::of(&headers).ok()
    }

    #[test]
    fn the_best_liked_form_is_taken() {
        assert_eq!(Format::of(&HeaderMap::new()).ok(), Some(Format::Json));
        for (accept, format) in [
            ("*/*", Some(Format::Json)),
            ("application/json", Some(Format::Json)),
            ("application/x-ndjson", Some(Format::Ndjson)),
            ("TEXT/CSV", Some(Format::Csv)),
            ("text/*", Some(Format::Csv)),
            ("application/*", Some(Format::Json)),
            ("application/x-ndjson, */*", Some(Format::Ndjson)),
            ("application/json;q=0.5, text/csv;q=0.9", Some(Format::Csv)),
            ("application/json;q=0, */*", Some(Format::Ndjson)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Format::Json)),
            ("text/html", None),
            ("application/json;q=0", None),
            ("nonsense", None),
            // As if it were absent.
            ("", Some(Format::Json)),
            (" ", Some(Format::Json)),
        ] {
            assert_eq!(asked(accept), format, "{accept}");
        }
    }

    #[test]
    fn only_a_client_that_names_event_streams_is_an_event_source() {
        for (accept, expected) in [
            ("text/event-stream", true),
            ("application/json, Text/Event-Stream;q=0.5", true),
            ("text/event-stream;q=0", false),
            ("text/*", false),
            ("*/*", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_event_stream(&headers), expected, "{accept}");
        }
        assert!(!wants_event_stream(&HeaderMap::new()));
    }

    #[test]
    fn results_of_a_batch_do_not_come_as_csv() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/csv, application/x-ndjson;q=0.5"));
        assert_eq!(Format::of_batch(&headers).ok(), Some(Format::Ndjson));
        headers.insert(ACCEPT, HeaderValue::from_static("text/csv"));
        assert!(matches!(Format::of_batch(&headers), Err(Problem::NotAcceptable)));
    }

    const EVENTS: [&str; 2] = [
        r#"{"eventId":"1","userId":"a,\"b\"","eventType":"LOGIN","timestamp":"t","payload":{}}"#,
        "{\"eventId\":\"2\",\"userId\":\"b\",\"eventType\":\"LOGIN\",\"timestamp\":\"t\",\"payload\":{\r\n\"a\" : 1.0}}",
    ];

    /// The same list in one piece and in several.
    fn written(format: Format) -> String {
        let events = EVENTS.map(Bytes::from);
        let whole = Writer::whole(format, &events);
        let mut writer = Writer::new(format);
        let mut pieces: Vec<u8> = events.iter().flat_map(|event| writer.some(std::slice::from_ref(event))).collect();
        pieces.extend(writer.end());
        assert_eq!(String::from_utf8_lossy(&pieces), String::from_utf8_lossy(&whole));
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn each_form_holds_the_same_rows() {
        assert_eq!(written(Format::Json), format!("[{},{}]", EVENTS[0], EVENTS[1]));
        assert_eq!(written(Format::Ndjson), format!("{}\n{}\n", EVENTS[0], EVENTS[1].replace("\r\n", "")));
        assert_eq!(
            written(Format::Csv),
            "eventId,userId,eventType,timestamp,payload\r\n1,\"a,\"\"b\"\"\",LOGIN,t,{}\r\n2,b,LOGIN,t,\"{\r\n\"\"a\"\" : 1.0}\"\r\n"
        );
    }

    #[test]
    fn no_cell_is_a_formula_unless_the_cells_are_to_be_raw() {
        for user in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\u{ff1d}1"] {
            let event = serde_json::json!({"eventId": "=2", "userId": user, "eventType": "LOGIN", "timestamp": "t", "payload": {}});
            let cells = |format| {
                let text = Writer::whole(format, &[event.to_string().into()]);
                let row = csv::Reader::from_reader(&*text).into_records().next().unwrap().unwrap();
                (row[0].to_owned(), row[1].to_owned())
            };
            assert_eq!(cells(Format::Csv), ("'=2".into(), format!("'{user}")));
            assert_eq!(cells(Format::RawCsv), ("=2".into(), user.into()));
        }
    }

    #[test]
    fn an_empty_list_is_empty_in_each_form() {
        for (format, text) in [
            (Format::Json, "[]"),
            (Format::Ndjson, ""),
            (Format::Csv, "eventId,userId,eventType,timestamp,payload\r\n"),
            (Format::RawCsv, "eventId,userId,eventType,timestamp,payload\r\n"),
        ] {
            assert_eq!(Writer::whole(format, &[]), text.as_bytes());
        }
    }
}
