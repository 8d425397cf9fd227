//! The routes, one file a resource.

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

use std::convert::Infallible;
use std::sync::Arc;

use warp::http::HeaderMap;
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::App;
use crate::keys::Caller;
use crate::problem::Problem;

const GET: &str = "GET, HEAD";

/// The pattern of each path and the methods that it takes. The first that fits is meant: a path that has a resource of
/// its own is not an eventId. The metrics name requests by it.
pub(crate) const PATHS: [(&str, &str); 12] = [
    ("/events/generate", "POST"),
    ("/events/batch", "POST"),
    ("/events/processed", GET),
    ("/events/stream", "GET"),
    ("/events/{eventId}", GET),
    ("/api/activities", "GET, HEAD, POST"),
    ("/health", GET),
    ("/livez", GET),
    ("/readyz", GET),
    ("/metrics", GET),
    ("/lag", GET),
    ("/log-level", "PUT"),
];

/// The path as the filters take it: they do not mind a slash at its end.
pub(crate) fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').filter(|rest| !rest.is_empty() && !rest.ends_with('/')).unwrap_or(path)
}

/// Which of [`PATHS`] a path is.
pub(crate) fn path_index(path: &str) -> Option<usize> {
    let path = without_slash(path);
    PATHS.iter().position(|(pattern, _)| fits(pattern, path))
}

/// Which methods a path takes, for those that a request did not meet.
fn allowed_methods(path: &str) -> Option<&'static str> {
    path_index(path).map(|index| PATHS[index].1).or_else(|| pages::exists(path).then_some(GET))
}

/// Whether a path is of this pattern, whose segments in braces stand for any.
fn fits(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    let mut part_fits =
        |wanted: &str| parts.next().is_some_and(|part| part == wanted || (wanted.starts_with('{') && !part.is_empty()));
    let fitting = pattern.split('/').all(&mut part_fits);
    fitting && parts.next().is_none()
}

/// All routes. Every request gets a reply; none is rejected. Only the first is hot: the others are boxed, which keeps the
/// type of all of them within what a compiler bears.
pub fn all(app: &Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + use<> {
    let others = [
        processed::route(app).boxed(),
        activities::route(app).boxed(),
        stream::route(app).boxed(),
        event::route(app).boxed(),
        health::routes(app).boxed(),
        lag::route(app).boxed(),
        log_level::route(app).boxed(),
        metrics::route(app).boxed(),
        pages::routes().boxed(),
    ];
    let others = others.into_iter().fold(batch::route(app).boxed(), |some, next| some.or(next).unify().boxed());
    let unmatched = warp::path::full().map(|path: FullPath| unmatched(path.as_str()));
    generate::route(app).or(others).unify().or(unmatched).unify()
}

/// The leaf that takes everything; the filters before it reject on path and method only.
fn unmatched(path: &str) -> Response {
    allowed_methods(path).map_or(Problem::NotFound, Problem::MethodNotAllowed).into_response()
}

fn with(app: &Arc<App>) -> impl Filter<Extract = (Arc<App>,), Error = Infallible> + Clone + use<> {
    let app = Arc::clone(app);
    warp::any().map(move || Arc::clone(&app))
}

/// Who sent the request, as [`crate::server`] has found out.
fn caller() -> impl Filter<Extract = (Caller,), Error = Infallible> + Copy {
    warp::ext::optional().map(Option::unwrap_or_default)
}

/// The query string, as it came.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Copy {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

/// A POST of events, but for its body: its query, who sent it, and its headers.
fn posted(
    app: &Arc<App>,
) -> impl Filter<Extract = (String, Arc<App>, Caller, HeaderMap), Error = Rejection> + Clone + use<> {
    warp::post().and(query()).and(with(app)).and(caller()).and(warp::header::headers_cloned())
}

/// GET, and HEAD, for which hyper leaves the body away (RFC 9110, section 9.3.2).
fn get() -> impl Filter<Extract = (), Error = Rejection> + Copy {
    warp::get().or(warp::head()).unify()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_for_the_routes_and_only_for_them() {
        assert_eq!(allowed_methods("/events/generate"), Some("POST"));
        assert_eq!(allowed_methods("/events/0197"), Some(GET));
        assert_eq!(allowed_methods("/api/activities"), Some("GET, HEAD, POST"));
        assert_eq!(allowed_methods("/log-level"), Some("PUT"));
        assert_eq!(allowed_methods("/"), Some(GET));
        assert_eq!(allowed_methods("/events/generate/"), Some("POST"));
        assert_eq!(path_index("/events/0197").map(|index| PATHS[index].0), Some("/events/{eventId}"));
        for path in ["/events", "//", "/events/", "/events/a/b", "/healthz", "//health/x", "/health//"] {
            assert_eq!(allowed_methods(path), None, "{path}");
        }
    }
}
