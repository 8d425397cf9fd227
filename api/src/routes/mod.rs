//! The routes, one file a resource.

mod activities;
mod batch;
mod event;
mod generate;
mod health;
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

/// Which methods each path takes. The first that fits counts: a path that has a resource of its own is not an eventId.
pub(crate) const ROUTES: [(&str, &str); 9] = [
    ("/events/generate", "POST"),
    ("/events/batch", "POST"),
    ("/events/processed", GET),
    ("/events/stream", "GET"),
    ("/events/{eventId}", GET),
    ("/api/activities", "GET, HEAD, POST"),
    ("/health", GET),
    ("/livez", GET),
    ("/readyz", GET),
];

/// Which methods a path takes, for those that a request did not meet.
fn allowed_methods(path: &str) -> Option<&'static str> {
    let route = ROUTES.iter().find(|(route, _)| fits(route, path)).map(|(_, methods)| *methods);
    route.or_else(|| pages::exists(path).then_some(GET))
}

/// Whether a path is of this route, whose segments in braces stand for any.
fn fits(route: &str, path: &str) -> bool {
    let fits = |(own, other): (&str, &str)| own == other || (own.starts_with('{') && !other.is_empty());
    route.split('/').count() == path.split('/').count() && route.split('/').zip(path.split('/')).all(fits)
}

/// All routes. Every request gets a reply; none is rejected.
pub fn all(app: &Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + use<> {
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
        .or(health::routes(app))
        .unify()
        .or(pages::routes())
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
        for path in ["/events", "//", "/events/", "/events/a/b", "/healthz", "//health/x"] {
            assert_eq!(allowed_methods(path), None, "{path}");
        }
    }
}
