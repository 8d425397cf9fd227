//! What answers a request, one file a resource. Which one it is, the [table of routes](crate::route) has said.

mod activities;
mod batch;
mod event;
mod generate;
mod health;
mod lag;
mod log_level;
mod metrics;
mod pages;
mod processed;
mod stream;

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::http::request::Parts;
use warp::Reply;
use warp::reply::Response;

use crate::App;
use crate::keys::Caller;
use crate::problem::Problem;
use crate::route::{Action, Route};

/// The reply to a request that was let in.
pub async fn answer<B>(app: &Arc<App>, route: Route, caller: &Caller, head: &Parts, body: B) -> Response
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    let answered = match route.action() {
        Action::Generate => generate::generate(app, query(head), caller, &head.headers, body).await,
        // Only the first is hot: the future of the others is larger than its own.
        _ => Box::pin(other(app, route, caller, head, body)).await,
    };
    answered.unwrap_or_else(Reply::into_response)
}

async fn other<B>(app: &Arc<App>, route: Route, caller: &Caller, head: &Parts, body: B) -> Result<Response, Problem>
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    let (query, headers) = (query(head), &head.headers);
    match route.action() {
        Action::Generate => generate::generate(app, query, caller, headers, body).await,
        Action::Batch => batch::batch(app, query, caller, headers, body).await,
        Action::List => processed::list(app, &head.method, query, headers).await,
        Action::Stream => stream::open(app, query, headers).await,
        Action::Event => event::show(app, last_segment(head), query).await,
        Action::Activities => activities::page(app, query).await,
        Action::Lag => lag::show(app).await,
        Action::LogLevel => log_level::log_level(app, headers, body).await,
        Action::Health => Ok(health::health(app)),
        Action::Live => Ok(health::live()),
        Action::Ready => Ok(health::ready(app)),
        Action::Metrics => Ok(metrics::metrics(app)),
        Action::Page => pages::page(route.pattern().unwrap_or_default(), headers),
        Action::NotFound => Err(Problem::NotFound),
        Action::MethodNotAllowed(methods) => Err(Problem::MethodNotAllowed(methods)),
    }
}

/// The reply to a request that was not let in.
pub(crate) fn refuse(route: Route, headers: &HeaderMap, problem: Problem) -> Response {
    let instead = (route.action() == Action::Stream).then(|| stream::instead(&problem, headers)).flatten();
    instead.unwrap_or_else(|| problem.into_response())
}

/// The query string, as it came.
fn query(head: &Parts) -> &str {
    head.uri.query().unwrap_or_default()
}

/// The eventId of a path.
fn last_segment(head: &Parts) -> &str {
    let path = head.uri.path();
    path.strip_suffix('/').unwrap_or(path).rsplit('/').next().unwrap_or_default()
}
