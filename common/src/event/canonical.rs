//! Which JSON texts have the same value.

use std::ops::Range;

/// A form that all texts of one value share: no white space, members sorted by name, each string escaped in one way. RFC
/// 8785 does the same, but makes doubles of numbers, so that two that differ could become one: here a number keeps its
/// text. `json` must be JSON whose nesting was checked.
pub(super) fn canonical(json: &str) -> Vec<u8> {
    let mut printer = Printer { json, at: 0, out: Vec::with_capacity(json.len()) };
    printer.value();
    printer.out
}

struct Printer<'a> {
    json: &'a str,
    at: usize,
    out: Vec<u8>,
}

impl Printer<'_> {
    /// The next byte that is not white space; 0 at the end.
    fn peek(&mut self) -> u8 {
        let rest = &self.json.as_bytes()[self.at..];
        let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.at += blank;
        rest.get(blank).copied().unwrap_or(0)
    }

    fn value(&mut self) {
        match self.peek() {
            b'{' => self.object(),
            b'[' => self.array(),
            b'"' => self.string(),
            _ => self.literal(),
        }
    }

    fn array(&mut self) {
        self.punctuation(b'[');
        loop {
            match self.peek() {
                0 => return,
                b']' => return self.punctuation(b']'),
                b',' => self.punctuation(b','),
                _ => self.value(),
            }
        }
    }

    fn object(&mut self) {
        self.punctuation(b'{');
        let (start, mut members) = (self.out.len(), Vec::new());
        while !matches!(self.peek(), b'}' | 0) {
            let name = self.out.len();
            self.string();
            let value = self.out.len();
            self.peek();
            self.punctuation(b':');
            self.value();
            self.out.push(b',');
            members.push((name..value, name..self.out.len()));
            if self.peek() == b',' {
                self.at += 1;
            }
        }
        self.sort(start, &mut members);
        // Behind the last one.
        self.out.truncate(self.out.len() - usize::from(!members.is_empty()));
        self.punctuation(b'}');
    }

    /// Sorts members that were printed from `start` on, each a name and its whole. Those of one name keep their order.
    fn sort(&mut self, start: usize, members: &mut [(Range<usize>, Range<usize>)]) {
        if members.is_sorted_by(|(one, _), (next, _)| self.out[one.clone()] <= self.out[next.clone()]) {
            return;
        }
        members.sort_by(|(one, _), (other, _)| self.out[one.clone()].cmp(&self.out[other.clone()]));
        // Only what is sorted is copied: there may be many objects in a text.
        let sorted: Vec<u8> = members.iter().flat_map(|(_, whole)| &self.out[whole.clone()]).copied().collect();
        self.out[start..].copy_from_slice(&sorted);
    }

    fn string(&mut self) {
        let text = &self.json[self.at..];
        let mut bytes = text.bytes().enumerate().skip(1);
        while let Some((end, byte)) = bytes.next() {
            match byte {
                b'\\' => drop(bytes.next()),
                b'"' => return self.print_string(end + 1),
                _ => {}
            }
        }
        self.print_string(text.len());
    }

    /// The next `length` bytes are a string.
    fn print_string(&mut self, length: usize) {
        let text = &self.json[self.at..self.at + length];
        self.at += length;
        let unescaped = text.contains('\\').then(|| serde_json::from_str::<String>(text).ok()).flatten();
        match unescaped {
            Some(unescaped) => super::push_string(&mut self.out, &unescaped),
            // It has no escapes; or it has half a surrogate pair, and then no valid string is printed like it.
            None => self.out.extend_from_slice(text.as_bytes()),
        }
    }

    /// A number, `true`, `false` or `null`.
    fn literal(&mut self) {
        let rest = &self.json.as_bytes()[self.at..];
        let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}');
        // At least one byte, so that the loops also end when the text is not JSON.
        let literal = &rest[..rest.iter().position(ends).unwrap_or(rest.len()).max(1).min(rest.len())];
        self.at += literal.len();
        self.out.extend_from_slice(literal);
    }

    fn punctuation(&mut self, byte: u8) {
        self.at = (self.at + 1).min(self.json.len());
        self.out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn text(json: &str) -> String {
        String::from_utf8(canonical(json)).unwrap()
    }

    #[test]
    fn what_only_prints_the_same_value_otherwise_is_the_same() {
        let one = r#"{"b":[1,{"d":null,"c":"é\n"}],"a":{}, "":"\ud83d\ude00"}"#;
        let other = "{\n\t\"\" : \"😀\",\"\\u0061\":{ } ,\r\n\"b\":[ 1 ,{\"c\":\"\\u00e9\\u000a\",\"d\":null}]}";
        assert_eq!(text(one), text(other));
    }

    #[test]
    fn many_objects_in_one_text_are_sorted_each_by_itself() {
        let of = |object: &str| format!("[{}]", vec![object; 200_000].join(","));
        assert!(text(&of(r#"{"b":1,"a":1}"#)) == of(r#"{"a":1,"b":1}"#));
    }

    #[test]
    fn values_that_differ_stay_apart() {
        let texts = [
            "9007199254740992",
            "9007199254740993",
            "1e400",
            "1e401",
            "0",
            "-0",
            "1",
            "1.0",
            "0.1",
            "0.10000000000000001",
            "12345678901234567890123",
            "12345678901234567890124",
            "\"1\"",
            "true",
            "null",
            "[]",
            "{}",
            "[1,2]",
            "[2,1]",
            "[12]",
            "[[1],2]",
            r#""\ud800""#,
            r#""\ud801""#,
            r#""\\ud800""#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":2,"a":1}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"a":"}"}"#,
            r#"{"a,\"b\"":1}"#,
        ];
        let mut printed: Vec<String> = texts.iter().map(|json| text(json)).collect();
        printed.sort();
        printed.dedup();
        assert_eq!(printed.len(), texts.len(), "{printed:?}");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_json_of_the_same_value_however_that_was_printed(value in any_json()) {
            let (dense, pretty) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
            prop_assert_eq!(canonical(&dense), canonical(&pretty));
            prop_assert_eq!(serde_json::from_str::<Value>(&text(&dense)).unwrap(), value);
        }

        #[test]
        fn no_text_makes_it_panic_or_run_for_ever(text in "[\\[\\]{}:,\"\\\\ a1é]{0,40}") {
            prop_assert!(canonical(&text).len() <= 3 * text.len() + 3);
        }
    }
}
