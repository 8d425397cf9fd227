//! `X-Request-Id`: what a request is called in the reply, in our log and in those of the services around.

use std::future::Future;
use std::pin::pin;

use uuid::Uuid;
use warp::http::{HeaderMap, HeaderName, HeaderValue};

/// The header, in both directions.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken, in bytes.
const LONGEST: usize = 128;

tokio::task_local! {
    static CURRENT: HeaderValue;
}

/// The id that the client gave, if it can stand in any log as it is, else a new one.
pub(crate) fn of(headers: &HeaderMap) -> HeaderValue {
    let mut given = headers.get_all(&HEADER).iter();
    match (given.next(), given.next()) {
        (Some(id), None) if is_sane(id.as_bytes()) => id.clone(),
        _ => new(),
    }
}

fn is_sane(id: &[u8]) -> bool {
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte);
    (1..=LONGEST).contains(&id.len()) && id.iter().all(sane)
}

fn new() -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    let id = Uuid::new_v4().hyphenated().encode_lower(&mut text);
    // Of hexadecimal digits and hyphens only.
    HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("-"))
}

/// Works on a request, whose id [`current`] says meanwhile. Gives the id back.
pub(crate) async fn scope<F: Future>(id: HeaderValue, work: F) -> (F::Output, HeaderValue) {
    let mut scope = pin!(CURRENT.scope(id, work));
    let output = scope.as_mut().await;
    // It is taken once.
    (output, scope.take_value().unwrap_or(HeaderValue::from_static("")))
}

/// The same work under the id of the request that is being worked on now, which it may outlive.
pub(crate) fn kept<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let id = CURRENT.try_with(HeaderValue::clone).unwrap_or(HeaderValue::from_static(""));
    CURRENT.scope(id, work)
}

/// The id of the request that is being worked on; empty outside of one.
pub(crate) fn current() -> String {
    CURRENT.try_with(|id| id.to_str().unwrap_or_default().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ids: &[&[u8]]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for id in ids {
            headers.append(HEADER, HeaderValue::from_bytes(id).unwrap());
        }
        let id = of(&headers).to_str().unwrap().to_owned();
        ids.contains(&id.as_bytes()).then_some(id)
    }

    #[test]
    fn a_sane_id_is_taken_and_any_other_replaced() {
        assert_eq!(taken(&[b"a"]), Some("a".into()));
        assert_eq!(taken(&[b"Root=1-67891233:ab/c_d.e+f@g~"]), Some("Root=1-67891233:ab/c_d.e+f@g~".into()));
        assert_eq!(taken(&["x".repeat(128).as_bytes()]).unwrap().len(), 128);
        for insane in [&b""[..], b"a b", b"a\"b", b"a\tb", b"\xc3\xa4", b"a;b", b"{a}", "x".repeat(129).as_bytes()] {
            assert_eq!(taken(&[insane]), None, "{insane:?}");
        }
        assert_eq!(taken(&[b"a", b"b"]), None);
        let made = of(&HeaderMap::new());
        assert_eq!(Uuid::parse_str(made.to_str().unwrap()).unwrap().get_version_num(), 4);
    }

    #[tokio::test]
    async fn the_current_id_is_that_of_the_request_that_is_worked_on() {
        assert_eq!(current(), "");
        let seen = scope(HeaderValue::from_static("mine"), async {
            tokio::task::yield_now().await;
            current()
        });
        assert_eq!(seen.await, ("mine".to_owned(), HeaderValue::from_static("mine")));
    }
}
