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
        Action::Lag => lag::show(app, query).await,
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

#[cfg(test)]
mod testing {
    use std::time::Duration;

    use common::config::parse;
    use common::shutdown::Shutdown;
    use common::store::Store;
    use common::testing::FakePublisher;
    use hyper::header::HeaderName;
    use tempfile::NamedTempFile;

    use super::*;
    use crate::{Config, keys};

    /// How often the file of keys is looked at.
    pub(super) const SOON: Duration = Duration::from_millis(10);
    pub(super) const KEY: &str = "a-key-of-a-reader";

    /// An application that lets the bearer of this key read, until the file says something else. Its store is away.
    pub(super) fn app(file: &NamedTempFile, key: &str) -> Arc<App> {
        put_in_force(file, key);
        let args = ["api", "--redis-url", "redis://127.0.0.1:9", "--api-keys-file", file.path().to_str().unwrap()];
        let config = Config::check(&parse(args, |_| None).unwrap()).unwrap();
        let store = Store::new(&config.redis).unwrap();
        let app = App::new(Arc::new(FakePublisher::default()), store, config, Shutdown::new());
        tokio::spawn(Arc::clone(app.keys.as_ref().unwrap()).follow(SOON));
        Arc::new(app)
    }

    /// Makes this the only key, under the same id.
    pub(super) fn put_in_force(file: &NamedTempFile, key: &str) {
        std::fs::write(file.path(), keys::line("desk", key, "read").unwrap()).unwrap();
    }

    pub(super) fn headers_with(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static("x-api-key"), key.parse().unwrap())])
    }
}
