//! CORS (the Fetch standard, section 3.2): which pages may call from a browser. It protects users of browsers; it is no
//! substitute for keys, which are asked for all the same. No cookie is ever looked at, so credentials are not allowed.

use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use warp::http::{HeaderMap, Method};

/// What pages may send: what the routes read, and what tracing libraries in browsers add (W3C's and Sentry's), without which
/// a page that uses one could call nothing.
const REQUEST_HEADERS: &str = "authorization, baggage, content-type, content-encoding, idempotency-key, last-event-id, \
                               prefer, sentry-trace, traceparent, tracestate, x-api-key, x-request-id";
/// What scripts may read of a reply, besides what they always may.
const REPLY_HEADERS: &str = "accept-encoding, allow, link, location, preference-applied, ratelimit, ratelimit-policy, \
                             retry-after, trimmed-before, www-authenticate, x-request-id";
/// How long a browser need not ask again, in seconds.
const MAX_AGE: &str = "3600";

/// The origins that are let in.
#[derive(Debug, Clone)]
pub enum Cors {
    /// Every one.
    Any,
    /// These.
    Only(Vec<String>),
}

impl Cors {
    /// A list of origins, or `*`.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(list: &str) -> Result<Self, String> {
        if list.trim() == "*" {
            return Ok(Self::Any);
        }
        let origins = list.split(',').map(|origin| {
            let origin = origin.trim();
            // An origin has no path, not even a slash; browsers compare the text.
            let url = url::Url::parse(origin).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
            (url.origin().ascii_serialization() == origin).then(|| origin.to_owned())
        });
        origins.collect::<Option<_>>().map(Self::Only).ok_or_else(|| {
            "must be * or origins such as https://desk.example.org, in lower case, without a path or a default port, separated by commas".into()
        })
    }

    /// The headers of a reply to this request.
    pub(crate) fn headers(&self, request: &HeaderMap) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let Some(allowed) = self.allowed(request) else {
            headers.insert(VARY, HeaderValue::from_static("origin"));
            return headers;
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(REPLY_HEADERS));
        if let Self::Only(_) = self {
            // Or a cache would show one origin's reply to another.
            headers.insert(VARY, HeaderValue::from_static("origin"));
        }
        headers
    }

    fn allowed(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let origin = request.get(ORIGIN)?;
        match self {
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::Only(origins) => {
                origins.iter().any(|known| known.as_bytes() == origin.as_bytes()).then(|| origin.clone())
            }
        }
    }

    /// The headers of the reply to a browser that asks before it calls; `None` for any other request. `methods` are those
    /// of the path that pages may use, if any.
    pub(crate) fn preflight(
        &self,
        method: &Method,
        request: &HeaderMap,
        methods: Option<&'static str>,
    ) -> Option<HeaderMap> {
        let asks = *method == Method::OPTIONS
            && request.contains_key(ORIGIN)
            && request.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        asks.then(|| {
            let mut headers = self.headers(request);
            headers.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
            if let Some(methods) = methods.filter(|_| headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)) {
                headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
                headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
            }
            headers
        })
    }
}

/// Adds headers to a reply, which may vary with other ones already.
pub(crate) fn add(reply: &mut HeaderMap, headers: &HeaderMap) {
    for (name, value) in headers {
        if name == VARY {
            reply.append(name, value.clone());
        } else {
            reply.insert(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::openapi;

    const METHODS: Option<&str> = Some("GET, POST");

    fn request(origin: &str, method: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, origin.parse().unwrap());
        if let Some(method) = method {
            headers.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static(method));
        }
        headers
    }

    #[test]
    fn origins_are_taken_as_browsers_send_them() {
        assert!(matches!(Cors::parse("*"), Ok(Cors::Any)));
        assert!(matches!(Cors::parse("https://a.example, http://b:8080"), Ok(Cors::Only(list)) if list.len() == 2));
        for wrong in ["", "https://a/", "https://A", "https://a:443", "ftp://a", "a.example", "*,https://a", "null"] {
            assert!(Cors::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_known_origin_is_let_in() {
        let cors = Cors::parse("https://a.example").unwrap();
        let known = cors.headers(&request("https://a.example", None));
        assert_eq!(
            (&known[ACCESS_CONTROL_ALLOW_ORIGIN], &known[VARY]),
            (&"https://a.example".parse().unwrap(), &"origin".parse().unwrap())
        );
        for other in ["https://a.example.org", "https://a.exampl", "null"] {
            let headers = cors.headers(&request(other, None));
            assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) && headers.contains_key(VARY), "{other}");
            let asked = cors.preflight(&Method::OPTIONS, &request(other, Some("POST")), METHODS).unwrap();
            assert!(!asked.contains_key(ACCESS_CONTROL_ALLOW_METHODS), "{other}");
        }
        assert!(cors.preflight(&Method::OPTIONS, &request("https://a.example", None), METHODS).is_none());
        assert!(cors.preflight(&Method::GET, &request("https://a.example", Some("POST")), METHODS).is_none());
        let asked = cors.preflight(&Method::OPTIONS, &request("https://a.example", Some("POST")), METHODS).unwrap();
        assert_eq!(asked[ACCESS_CONTROL_ALLOW_METHODS], "GET, POST");
        let closed = cors.preflight(&Method::OPTIONS, &request("https://a.example", Some("PUT")), None).unwrap();
        assert!(!closed.contains_key(ACCESS_CONTROL_ALLOW_METHODS), "the route is not for pages");
    }

    /// The names of the headers that the description has, of parameters or of replies.
    fn described(of_replies: bool) -> BTreeSet<String> {
        let document: Value = serde_json::from_str(&openapi::DOCUMENT).unwrap();
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
        let names = operations.flat_map(|operation| {
            let replies = operation["responses"].as_object().into_iter().flat_map(|replies| replies.values());
            let sent =
                replies.flat_map(|reply| reply["headers"].as_object().into_iter().flat_map(|headers| headers.keys()));
            let taken = operation["parameters"].as_array().into_iter().flatten();
            let taken = taken.filter(|it| it["in"] == "header").filter_map(|it| it["name"].as_str());
            if of_replies {
                sent.map(|name| name.to_lowercase()).collect()
            } else {
                taken.map(str::to_lowercase).collect::<Vec<_>>()
            }
        });
        names.collect()
    }

    #[test]
    fn pages_may_send_and_read_every_header_that_is_described() {
        // The Fetch standard, section 2.2.2: scripts may always read these. The others say nothing to a script.
        let always = ["cache-control", "content-type", "connection", "vary"];
        for (of_replies, allowed) in [(false, REQUEST_HEADERS), (true, REPLY_HEADERS)] {
            let (described, allowed) = (described(of_replies), allowed.split(", ").collect::<BTreeSet<_>>());
            assert!(described.len() >= 3, "{described:?}");
            let missing: Vec<_> =
                described.iter().filter(|name| !allowed.contains(&***name) && !always.contains(&&***name)).collect();
            assert!(missing.is_empty(), "{missing:?} of {described:?}");
        }
        for header in ["baggage", "sentry-trace", "traceparent", "x-request-id", "x-api-key"] {
            assert!(REQUEST_HEADERS.split(", ").any(|allowed| allowed == header), "{header}");
        }
        let answered = ["ratelimit", "ratelimit-policy", "retry-after", "x-request-id"];
        assert!(answered.iter().all(|header| REPLY_HEADERS.split(", ").any(|exposed| exposed == *header)));
    }
}
