//! The routes, one file a resource.

mod activities;
mod batch;
mod event;
mod generate;
mod health;
mod lag;
mod metrics;
mod pages;
mod processed;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;

use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::App;
use crate::problem::Problem;

const GET: &str = "GET, HEAD";

/// The pattern of each path and the methods that it takes. The first that fits is meant; the metrics name requests by it.
pub(crate) const PATHS: [(&str, &str); 11] = [
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
];

/// Which of [`PATHS`] a path is.
pub(crate) fn path_index(path: &str) -> Option<usize> {
    let path = path.trim_start_matches('/');
    let fits = |pattern: &str| {
        let mut parts = path.split('/');
        let all = pattern[1..].split('/').all(|wanted| {
            parts.next().is_some_and(|part| part == wanted || (wanted.starts_with('{') && !part.is_empty()))
        });
        all && parts.next().is_none()
    };
    PATHS.iter().position(|(pattern, _)| fits(pattern))
}

/// Which methods a path takes, for those that a request did not meet.
fn allowed_methods(path: &str) -> Option<&'static str> {
    path_index(path).map(|index| PATHS[index].1).or_else(|| pages::exists(path).then_some(GET))
}

/// All routes. Every request gets a reply; none is rejected.
pub fn all(app: &Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + use<> {
    // A chain of its own: the types of one long chain are nested too deep for the compiler.
    let operation = health::routes(app).or(lag::route(app)).unify().or(metrics::route(app)).unify();
    let operation = operation.or(pages::routes()).unify();
    generate::route(app)
        .or(batch::route(app))
        .unify()
        .or(processed::route(app))
        .unify()
        .or(activities::route(app))
        .unify()
        .or(stream::route(app))
        .unify()
        .or(event::route(app))
        .unify()
        .or(operation)
        .unify()
        .or(warp::path::full().map(|path: FullPath| unmatched(path.as_str())))
        .unify()
}

/// The leaf that takes everything; the filters before it reject on path and method only.
fn unmatched(path: &str) -> Response {
    allowed_methods(path).map_or(Problem::NotFound, Problem::MethodNotAllowed).into_response()
}

fn with(app: &Arc<App>) -> impl Filter<Extract = (Arc<App>,), Error = Infallible> + Clone + use<> {
    let app = Arc::clone(app);
    warp::any().map(move || Arc::clone(&app))
}

/// The query string, as it came.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Copy {
    warp::query::raw().or(warp::any().map(String::new)).unify()
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
        assert_eq!(allowed_methods("/"), Some(GET));
        assert_eq!(path_index("/events/0197").map(|index| PATHS[index].0), Some("/events/{eventId}"));
        for path in ["//", "/events", "/events/", "/events/a/b", "/healthz", "//health/x"] {
            assert_eq!(allowed_methods(path), None, "{path}");
        }
    }
}
