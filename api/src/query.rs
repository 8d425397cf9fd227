//! Query parameters: each known, given as often as it may be, and within its bounds, or a 400 that names it.

use std::borrow::Cow;
use std::fmt::Display;

use common::event::{EventTypes, Timestamp, UserId};
use common::store::{Cursor, Order, Query};
use percent_encoding::percent_decode;
use url::form_urlencoded;

use crate::problem::Problem;

pub(crate) const MAX_LIMIT: usize = 1000;
pub(crate) const DEFAULT_LIMIT: usize = 100;

/// The parameters of one request, in order.
#[derive(Debug)]
pub(crate) struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// What is wrong with a parameter.
pub(crate) fn wrong(name: &str, value: &str, why: impl Display) -> Problem {
    const LONGEST: usize = 200;
    let shown = &value[..value.floor_char_boundary(LONGEST)];
    Problem::InvalidParameter { name: name.to_owned(), detail: format!("is {shown:?}: {why}") }
}

impl<'a> Parameters<'a> {
    /// Takes a query apart. Each parameter must be one of `known`, and given once unless it is in `repeatable`.
    ///
    /// # Errors
    /// The first parameter that is badly encoded, unknown or repeated.
    pub(crate) fn parse(query: &'a str, known: &[&str], repeatable: &[&str]) -> Result<Self, Problem> {
        let mut parameters: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (raw_name, raw_value) = pair.split_once('=').unwrap_or((pair, ""));
            let encoding = |_| wrong(raw_name, raw_value, "must be percent-encoded UTF-8");
            let (name, value) = (decode(raw_name).map_err(encoding)?, decode(raw_value).map_err(encoding)?);
            if !known.contains(&&*name) {
                return Err(wrong(
                    &name,
                    &value,
                    format!("there is no such parameter here; this path takes {}", listing(known)),
                ));
            }
            if !repeatable.contains(&&*name) && parameters.iter().any(|(other, _)| *other == name) {
                return Err(wrong(&name, &value, "must be given at most once"));
            }
            parameters.push((name, value));
        }
        Ok(Self(parameters))
    }

    /// The value of a parameter that is there at most once, read by `parse`.
    ///
    /// # Errors
    /// What `parse` says about it.
    pub(crate) fn one<T, E: Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let found = self.0.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| parse(value).map_err(|why| wrong(name, value, why))).transpose()
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// Which events are asked for, by `userId`, `eventType`, `from`, `to` and `order`, those of them that are known.
    ///
    /// # Errors
    /// The first parameter that means nothing, or contradicts another.
    pub(crate) fn query(&self, known_types: &EventTypes) -> Result<Query, Problem> {
        let mut types = Vec::new();
        for value in self.all("eventType") {
            let kind = known_types.parse(value).map_err(|violation| wrong("eventType", value, violation.detail))?;
            if !types.contains(&kind) {
                types.push(kind);
            }
        }
        let query = Query {
            user: self.one("userId", |value| UserId::parse(value).map_err(|violation| violation.detail))?,
            types,
            from: self.one("from", time)?,
            to: self.one("to", time)?,
            order: self.one("order", order)?.unwrap_or_default(),
        };
        if let (Some(from), Some(to)) = (query.from, query.to)
            && from > to
        {
            return Err(wrong("from", &from.to_string(), format!("must not be later than to, which is {to}")));
        }
        Ok(query)
    }

    /// How many rows of a page, if it says.
    ///
    /// # Errors
    /// When it is not from 1 to 1000.
    pub(crate) fn limit(&self) -> Result<Option<usize>, Problem> {
        self.one("limit", |text| {
            // Settings may have blanks around them and a sign; here a + stands for a blank.
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            common::config::range(1..=MAX_LIMIT)(if is_number { text } else { "" })
        })
    }

    /// A parameter that is `true` or `false`, if it is there.
    ///
    /// # Errors
    /// When it is neither.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.one(name, |value| value.parse().map_err(|_| "must be true or false"))
    }

    /// Where the page begins, if it says.
    ///
    /// # Errors
    /// When it is not a cursor of this query.
    pub(crate) fn cursor(&self, query: &Query) -> Result<Option<Cursor>, Problem> {
        self.one("cursor", |value| Cursor::decode(value, query))
    }
}

/// Whether a post is only to be checked.
///
/// # Errors
/// When `validateOnly` is neither `true` nor `false`, or there is another parameter.
pub(crate) fn validate_only(query: &str) -> Result<bool, Problem> {
    Ok(Parameters::parse(query, &["validateOnly"], &[])?.flag("validateOnly")?.unwrap_or(false))
}

/// The query string of a page of this list.
pub(crate) fn page_query(query: &Query, limit: usize, cursor: Option<&Cursor>) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    if let Some(user) = &query.user {
        text.append_pair("userId", user.as_str());
    }
    for kind in &query.types {
        text.append_pair("eventType", kind.as_str());
    }
    for (name, time) in [("from", query.from), ("to", query.to)] {
        if let Some(time) = time {
            text.append_pair(name, &time.to_string());
        }
    }
    if query.order == Order::Descending {
        text.append_pair("order", "desc");
    }
    text.append_pair("limit", &limit.to_string());
    if let Some(cursor) = cursor {
        text.append_pair("cursor", &cursor.encode(query));
    }
    text.finish()
}

/// Undoes percent-encoding, strictly.
fn decode(text: &str) -> Result<Cow<'_, str>, ()> {
    let escapes =
        text.bytes().enumerate().filter(|(_, byte)| *byte == b'%').map(|(at, _)| text.as_bytes().get(at + 1..at + 3));
    if !{ escapes }.all(|digits| digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))) {
        return Err(());
    }
    let spaced: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    match spaced {
        Cow::Borrowed(text) => percent_decode(text.as_bytes()).decode_utf8().map_err(drop),
        Cow::Owned(text) => {
            percent_decode(text.as_bytes()).decode_utf8().map(|text| Cow::Owned(text.into_owned())).map_err(drop)
        }
    }
}

fn listing(names: &[&str]) -> String {
    match names.split_last() {
        None => "none".into(),
        Some((last, [])) => (*last).into(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

fn time(text: &str) -> Result<Timestamp, &'static str> {
    Timestamp::parse(text)
        .ok_or("must be an RFC 3339 date and time, 1970 or later, such as 2026-02-17T10:00:00Z; a + is written %2B")
}

fn order(text: &str) -> Result<Order, &'static str> {
    match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        _ => Err("must be asc (oldest first) or desc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 7] = ["userId", "eventType", "from", "to", "order", "limit", "cursor"];

    fn parse(query: &str) -> Result<(Query, Option<usize>), String> {
        let read = || {
            let parameters = Parameters::parse(query, &KNOWN, &["eventType"])?;
            let query = parameters.query(&EventTypes::default())?;
            parameters.cursor(&query)?;
            Ok((query, parameters.limit()?))
        };
        read().map_err(|problem| match problem {
            Problem::InvalidParameter { name, detail } => format!("{name} {detail}"),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn every_parameter_is_read() {
        let (query, limit) = parse(
            "userId=a+b%26%C3%A9&eventType=LOGIN&eventType=LOGOUT&eventType=LOGIN&from=2026-02-17T10:00:00Z&to=2026-02-17T12:00:00%2B01:00&order=desc&limit=1000",
        )
        .unwrap();
        assert_eq!(query.user.unwrap().as_str(), "a b&é");
        assert_eq!(query.types.iter().map(|kind| kind.as_str()).collect::<Vec<_>>(), ["LOGIN", "LOGOUT"]);
        assert_eq!(query.from.unwrap().to_string(), "2026-02-17T10:00:00.000Z");
        assert_eq!(query.to.unwrap().to_string(), "2026-02-17T11:00:00.000Z");
        assert_eq!((query.order, limit), (Order::Descending, Some(1000)));
        assert_eq!(parse("").unwrap(), (Query::default(), None));
    }

    #[test]
    fn what_means_nothing_is_named_with_its_value_and_what_is_allowed() {
        for (query, complaint) in [
            ("limit=0", r#"limit is "0": must be a whole number from 1 to 1000"#),
            ("limit=1001", r#"limit is "1001""#),
            ("limit=", r#"limit is """#),
            ("limit=+1", r#"limit is " 1": must be a whole number from 1 to 1000"#),
            ("limit=%2B1", r#"limit is "+1""#),
            ("limit=1&limit=1", r#"limit is "1": must be given at most once"#),
            ("cursor=forged", r#"cursor is "forged": is not a cursor"#),
            ("userID=u", r#"userID is "u": there is no such parameter here; this path takes userId, eventType"#),
            ("userId=+", r#"userId is " ": userId is required"#),
            ("eventType=login", r#"eventType is "login": eventType must be one of: LOGIN"#),
            ("from=yesterday", r#"from is "yesterday": must be an RFC 3339"#),
            ("to=1969-12-31T23:59:59Z", "1970 or later"),
            ("to=2026-02-17T12:00:00+01:00", "%2B"),
            (
                "from=2026-02-17T10:00:01Z&to=2026-02-17T10:00:00Z",
                "must not be later than to, which is 2026-02-17T10:00:00.000Z",
            ),
            ("order=DESC", "must be asc"),
            ("userId=%zz", r#"userId is "%zz": must be percent-encoded UTF-8"#),
            ("userId=%ff", "must be percent-encoded UTF-8"),
            ("userId=%f", "must be percent-encoded UTF-8"),
        ] {
            let said = parse(query).unwrap_err();
            assert!(said.contains(complaint), "{query}: {said}");
        }
    }

    #[test]
    fn the_query_of_a_page_reads_back() {
        let text = "userId=a+b%26%C3%A9&eventType=LOGIN&eventType=LOGOUT&from=2026-02-17T10%3A00%3A00.000Z&to=2026-02-17T11%3A00%3A00.000Z&order=desc&limit=7";
        let (query, limit) = parse(text).unwrap();
        assert_eq!(page_query(&query, limit.unwrap(), None), text);
        let (query, _) = parse("to=9999-12-31T23:59:59-01:00").unwrap();
        let next = page_query(&query, 1, None);
        assert_eq!(parse(&next).unwrap(), (query, Some(1)), "{next}");
    }
}
