//! The routes, one file a resource.

mod activities;
mod event;
mod generate;
mod health;
mod processed;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;

use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::App;
use crate::keys::Caller;
use crate::problem::Problem;

const GET: &str = "GET, HEAD";

/// Which methods a path takes, for those that a request did not meet.
fn allowed_methods(path: &str) -> Option<&'static str> {
    match path.trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["events", "generate"] => Some("POST"),
        ["api", "activities"] => Some("GET, HEAD, POST"),
        ["events", "stream"] => Some("GET"),
        ["events", "processed"] | ["health" | "livez" | "readyz"] => Some(GET),
        ["events", id] if !id.is_empty() => Some(GET),
        _ => None,
    }
}

/// All routes. Every request gets a reply; none is rejected.
pub fn all(app: &Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + use<> {
    generate::route(app)
        .or(processed::route(app))
        .unify()
        .or(activities::route(app))
        .unify()
        .or(stream::route(app))
        .unify()
        .or(event::route(app))
        .unify()
        .or(health::routes(app))
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

/// Who sent the request, as [`crate::server`] has found out.
fn caller() -> impl Filter<Extract = (Caller,), Error = Infallible> + Copy {
    warp::ext::optional().map(Option::unwrap_or_default)
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
        for path in ["/", "/events", "/events/", "/events/a/b", "/healthz", "//health/x"] {
            assert_eq!(allowed_methods(path), None, "{path}");
        }
    }
}
