//! A request from its head to the head of its reply: which route it is for, whether it is let in, and what every reply has.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::Body;
use hyper::header::{CACHE_CONTROL, CONNECTION, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Version};
use warp::Reply;

use crate::compress::compressed;
use crate::keys::Caller;
use crate::problem::Problem;
use crate::rate_limit::{RateLimit, Standing};
use crate::route::Route;
use crate::throttle::Throttle;
use crate::traces::RequestSpan;
use crate::unread::Guarded;
use crate::{App, cors, request_id, routes, traces};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's line and headers in all, in bytes.
pub(crate) const MAX_HEADERS: usize = 32 * 1024;

/// What a connection may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Everything.
    Public,
    /// It is one more than the limit: what watches over the process is answered, all else is told to come back.
    Reserve,
    /// It came in by `API_ADMIN_PORT`: there is only what watches over the process.
    Admin,
}

/// What answers the requests of a listener.
pub(crate) struct Requests {
    pub(crate) app: Arc<App>,
    pub(crate) rate_limit: Option<RateLimit>,
    /// Of the line about requests without a key that is good for them.
    said_refused: Throttle,
}

/// A request that is let in: who sent it, and how its client stands with the rate limit.
struct Admitted {
    caller: Caller,
    standing: Option<Standing>,
}

/// A request that is not.
struct Refusal {
    problem: Problem,
    standing: Option<Standing>,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, standing: None }
    }
}

/// A request but for its body.
#[derive(Clone, Copy)]
struct Asked<'a> {
    route: Route,
    entry: Entry,
    peer: IpAddr,
    head: &'a Parts,
}

impl Requests {
    pub(crate) fn new(app: Arc<App>, rate_limit: Option<RateLimit>) -> Arc<Self> {
        Arc::new(Self { app, rate_limit, said_refused: Throttle::default() })
    }

    /// Answers a request, and counts.
    pub(crate) async fn reply(
        &self,
        entry: Entry,
        peer: IpAddr,
        request: Request<Guarded>,
    ) -> Response<impl Body<Data = Bytes, Error = BoxError> + Send + use<>> {
        let (app, route) = (&self.app, Route::of(request.method(), request.uri().path()));
        let counted = app.metrics.begin(route, &request);
        let span = app.traces.as_ref().and_then(|traces| RequestSpan::begin(traces, route, &request));
        let (head, body) = request.into_parts();
        let id = request_id::of(&head.headers);
        let answered = request_id::scope(id, self.answer(Asked { route, entry, peer, head: &head }, body));
        let (mut response, id) = traces::within(span.as_ref(), answered).await;
        let headers = response.headers_mut();
        headers.insert(request_id::HEADER, id);
        if !route.is_cacheable() && !headers.contains_key(CACHE_CONTROL) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if entry == Entry::Reserve {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        counted.answered(response.status());
        if let Some(span) = span {
            span.answered(response.status());
        }
        if route.is_compressible() {
            compressed(&head.headers, response).await.map(Either::Left)
        } else {
            response.map(Either::Right)
        }
    }

    /// The reply, with the headers of CORS where a page of another origin may see it.
    async fn answer(&self, asked: Asked<'_>, body: Guarded) -> warp::reply::Response {
        let Some(cors) = &self.app.config.cors else { return self.answer_once_admitted(asked, body).await };
        let Asked { route, head, .. } = asked;
        // Before the key is asked for: browsers send none with these.
        if let Some(headers) = cors.preflight(&head.method, &head.headers, route.methods_for_pages()) {
            let mut response = warp::reply::with_status(warp::reply(), StatusCode::NO_CONTENT).into_response();
            response.headers_mut().extend(headers);
            return response;
        }
        let mut response = self.answer_once_admitted(asked, body).await;
        cors::add(response.headers_mut(), &cors.headers(&head.headers));
        response
    }

    async fn answer_once_admitted(&self, asked: Asked<'_>, body: Guarded) -> warp::reply::Response {
        let Asked { route, head, .. } = asked;
        let (mut response, standing) = match self.admit(asked) {
            Ok(Admitted { caller, standing }) => {
                (routes::answer(&self.app, route, &caller, head, body).await, standing)
            }
            Err(Refusal { problem, standing }) => (routes::refuse(route, &head.headers, problem), standing),
        };
        if let Some(standing) = standing {
            standing.tell(response.headers_mut());
        }
        response
    }

    /// Whether a request is let in.
    ///
    /// # Errors
    /// When its connection is not for it, its head is too large or names no host, it has no key that opens its route, or its
    /// client makes too many requests.
    fn admit(&self, asked: Asked<'_>) -> Result<Admitted, Refusal> {
        let Asked { route, entry, peer, head } = asked;
        match entry {
            Entry::Reserve if !route.is_watch() => {
                return Err(Problem::TooManyConnections(self.app.config.max_connections).into());
            }
            Entry::Admin if !route.is_watch() => return Err(Problem::NotFound.into()),
            Entry::Public | Entry::Reserve | Entry::Admin => {}
        }
        check_head(head)?;
        // Whoever watches over the process must not be turned away.
        let limit = self.rate_limit.as_ref().filter(|_| !route.is_watch());
        let keys = self.app.keys.as_ref().zip(route.scope());
        let caller = keys.map(|(keys, scope)| keys.admit(scope, &head.headers)).transpose();
        // Before a key is refused: keys are not to be tried out for free.
        let known = caller.as_ref().ok().and_then(Option::as_ref);
        let counted = limit.map(|limit| limit.count(&head.headers, peer, known)).transpose();
        let standing = counted.map_err(|standing| Refusal {
            problem: Problem::RateLimited { retry_after: standing.retry_after },
            standing: Some(standing),
        })?;
        let caller = caller.map_err(|problem| {
            self.say_refused(peer, &problem);
            Refusal { problem, standing }
        })?;
        Ok(Admitted { caller: caller.unwrap_or_default(), standing })
    }

    /// Whoever tries keys out, or has lost the right one, is to be found in the log.
    fn say_refused(&self, peer: IpAddr, problem: &Problem) {
        if let Some(more) = self.said_refused.pass() {
            let (peer, detail) = (peer.to_canonical().to_string(), problem.detail());
            log::warn!(peer; "a request was refused: {detail} ({more} more since the last such line)");
        }
    }
}

/// # Errors
/// When a head is too large, or does not name one host (RFC 9112, section 3.2).
fn check_head(head: &Parts) -> Result<(), Problem> {
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if fields + target > MAX_HEADERS {
        return Err(Problem::HeadersTooLarge(MAX_HEADERS));
    }
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && head.version == Version::HTTP_11) {
        return Err(Problem::InvalidHeader { name: "Host", detail: "must be given once".into() });
    }
    Ok(())
}
