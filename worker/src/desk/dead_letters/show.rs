//! `dead-letters show`: one dead letter in full.

use std::fmt::Write;

use anyhow::Context;
use clap::{Args, value_parser};

use super::letter::{Letter, decoded};
use super::list::place;
use super::text::{in_full, one_line};
use crate::Config;
use crate::desk::reader::Reader;

/// Arguments of `dead-letters show`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  user-activity-worker dead-letters show 3 17

Key, value and headers are shown as text where they are text, else in hexadecimal, which `xxd -r -p` turns back.")]
pub struct Show {
    /// Partition of the dead-letter topic, the first column of `list`
    #[arg(value_name = "PARTITION", value_parser = value_parser!(i32).range(0..))]
    partition: i32,
    /// Offset there, the second column of `list`
    #[arg(value_name = "OFFSET", value_parser = value_parser!(i64).range(0..))]
    offset: i64,
}

/// Finds one dead letter.
///
/// # Errors
/// When Kafka has no answer or there is no record at that place.
pub async fn show(config: &Config, request: &Show) -> anyhow::Result<Letter> {
    let Show { partition, offset } = *request;
    let mut reader = Reader::open(config, &config.kafka.topics.dead_letters, &config.consumer.group)?;
    reader.only(partition, offset)?;
    reader.next(|record| Letter::of(record)).await?.with_context(|| {
        format!("there is no record at offset {offset} of partition {partition}; `dead-letters list` shows them")
    })
}

/// A page with everything about a dead letter of `topic`.
#[must_use]
pub fn page(letter: &Letter, topic: &str) -> String {
    let attempts = letter.attempts.map(|attempts| attempts.to_string());
    let timestamp = letter.timestamp.map(|time| time.to_string());
    let line = |text: Option<&str>| text.map_or_else(|| "unknown".to_owned(), |text| one_line(text, usize::MAX));
    let fields = [
        ("dead letter", format!("{topic}-{}@{}", letter.partition, letter.offset)),
        (
            "original",
            letter
                .original
                .topic
                .as_ref()
                .map_or_else(|| "unknown".to_owned(), |_| one_line(&place(letter), usize::MAX)),
        ),
        ("timestamp", line(timestamp.as_deref())),
        ("reason", line(letter.reason.as_deref())),
        ("explanation", line(letter.message.as_deref())),
        ("attempts", line(attempts.as_deref())),
        ("worker", line(letter.worker.as_deref())),
    ];
    let mut page: String = fields.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect();
    page.push_str(&headers(letter));
    page.push_str(&part("key", letter.key.as_deref()));
    page.push_str(&part("value", letter.value.as_deref()));
    page
}

fn headers(letter: &Letter) -> String {
    let mut section = format!("\nheaders: {}\n", letter.headers.len());
    if letter.unreadable_headers > 0 {
        // Writing to a string can't fail.
        writeln!(section, "  and {} whose name is not UTF-8", letter.unreadable_headers).unwrap_or_default();
    }
    for (name, value) in &letter.headers {
        let shown = value
            .as_deref()
            .map_or_else(|| "(null)".to_owned(), |value| decoded(name, value).unwrap_or_else(|| short(value)));
        writeln!(section, "  {} = {shown}", one_line(name, usize::MAX)).unwrap_or_default();
    }
    section
}

fn short(value: &[u8]) -> String {
    match in_full(value) {
        (text, "text") => one_line(&text, usize::MAX),
        (hex, form) => format!("{hex} ({form})"),
    }
}

fn part(name: &str, bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return format!("\n{name}: none\n") };
    let (shown, form) = in_full(bytes);
    format!("\n{name}: {} bytes, {form}\n{shown}\n", bytes.len())
}
