//! Lists, parameters and quoted strings in the values of headers (RFC 9110, section 5.6).

/// The parts between separators; those inside of quotes separate nothing.
pub(crate) fn split(value: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = value.split(move |character| {
        let is_literal = std::mem::take(&mut escaped);
        match character {
            '"' if !is_literal => quoted = !quoted,
            '\\' if quoted && !is_literal => escaped = true,
            _ => {}
        }
        character == separator && !quoted
    });
    parts.map(str::trim)
}

/// A name and its value, which may be in quotes; empty without one.
pub(crate) fn named(part: &str) -> (&str, String) {
    let (name, value) = part.split_once('=').unwrap_or((part, ""));
    let value = value.trim();
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    (name.trim(), quoted.map_or_else(|| value.to_owned(), unescape))
}

fn unescape(quoted: &str) -> String {
    let (mut text, mut characters) = (String::with_capacity(quoted.len()), quoted.chars());
    while let Some(character) = characters.next() {
        text.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_quotes_separates_nothing() {
        let parts = |value: &'static str| split(value, ';').collect::<Vec<_>>();
        assert_eq!(parts(r#"a; b="x;\";y" ;c"#), ["a", r#"b="x;\";y""#, "c"]);
        assert_eq!(parts(r#"a\;b"#), [r"a\", "b"], "only quoted strings have escapes");
        assert_eq!(parts(""), [""]);
        assert_eq!(named(r#" b = "x;\"\\" "#), ("b", r#"x;"\"#.to_owned()));
        assert_eq!((named("b=x"), named("b")), (("b", "x".to_owned()), ("b", String::new())));
    }
}
