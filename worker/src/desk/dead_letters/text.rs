//! Foreign bytes on a terminal: shown so that nothing in them acts on it.

use std::fmt::Write;

use common::telemetry::{self, is_active};

/// One line: control characters are escaped, and what is longer than `longest` characters is cut.
pub(super) fn one_line(text: &str, longest: usize) -> String {
    let (end, more) = text.char_indices().nth(longest).map_or((text.len(), ""), |(end, _)| (end, "…"));
    telemetry::one_line(&text[..end]) + more
}

/// Bytes in full, and what they are shown as: text where they are harmless text, else hexadecimal.
pub(super) fn in_full(bytes: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !is_active(c) || matches!(c, '\n' | '\r' | '\t')) => (text.to_owned(), "text"),
        _ => (hex(bytes), "hexadecimal"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a string can't fail.
        write!(hex, "{byte:02x}").unwrap_or_default();
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2J\nb", 80), "a\\u{1b}[2J\\nb");
        assert_eq!(one_line("grüße", 3), "grü…");
        assert_eq!(in_full(b"\x1b[2J"), ("1b5b324a".into(), "hexadecimal"));
    }

    #[test]
    fn bytes_are_text_where_they_can_be() {
        assert_eq!(in_full("{\n\t\"ü\": 1}".as_bytes()), ("{\n\t\"ü\": 1}".into(), "text"));
        assert_eq!(in_full(b"\xff\x00"), ("ff00".into(), "hexadecimal"));
        assert_eq!(in_full(b""), (String::new(), "text"));
    }
}
