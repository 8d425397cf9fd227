//! For people: the dashboard at `/`, Swagger UI at `/docs`, and what they load, `/openapi.json` among it. All of it is
//! part of the program: a page works without any other host, and may not load from one.

use warp::http::Response;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use warp::path::FullPath;
use warp::{Filter, Rejection, Reply};

use crate::openapi;

/// No inline scripts, nothing from other hosts, in nobody's frame. Swagger UI has its icons in `data:`.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Asked for again each time: a page and its script are of the same version.
const FRESH: &str = "no-cache";
/// Changes only with a new version of Swagger UI, and is large.
const KEPT: &str = "max-age=3600";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The type, the `Cache-Control` and the content of what is at this path.
fn file(path: &str) -> Option<(&'static str, &'static str, &'static str)> {
    Some(match path {
        "/" => (HTML, FRESH, include_str!("../../assets/dashboard.html")),
        "/assets/dashboard.css" => (CSS, FRESH, include_str!("../../assets/dashboard.css")),
        "/assets/dashboard.js" => (SCRIPT, FRESH, include_str!("../../assets/dashboard.js")),
        "/openapi.json" => ("application/json", FRESH, &openapi::DOCUMENT),
        "/docs" => (HTML, FRESH, include_str!("../../assets/swagger/index.html")),
        "/assets/swagger-start.js" => (SCRIPT, FRESH, include_str!("../../assets/swagger/start.js")),
        "/assets/swagger-ui.css" => (CSS, KEPT, include_str!("../../assets/swagger/swagger-ui.css")),
        "/assets/swagger-ui-bundle.js" => (SCRIPT, KEPT, include_str!("../../assets/swagger/swagger-ui-bundle.js")),
        _ => return None,
    })
}

/// Whether something is at this path.
pub(super) fn exists(path: &str) -> bool {
    file(path).is_some()
}

pub(super) fn routes() -> impl Filter<Extract = (warp::reply::Response,), Error = Rejection> + Clone + use<> {
    super::get().and(warp::path::full()).and_then(async |path: FullPath| {
        let (kind, caching, content) = file(path.as_str()).ok_or_else(warp::reject::not_found)?;
        let response = Response::builder()
            .header(CONTENT_TYPE, kind)
            .header(CACHE_CONTROL, caching)
            .header(CONTENT_SECURITY_POLICY, POLICY)
            .header(REFERRER_POLICY, "no-referrer")
            .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
            .body(content);
        // All of these headers are known to be good.
        Ok::<_, Rejection>(response.map_or_else(|_| warp::reply().into_response(), Reply::into_response))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_loads_only_what_the_program_has_and_its_policy_allows() {
        for page in ["/", "/docs"] {
            let (_, _, html) = file(page).unwrap();
            let loaded: Vec<&str> = [" src=\"", " href=\""]
                .iter()
                .flat_map(|attribute| html.split(attribute).skip(1))
                .filter_map(|rest| rest.split('"').next())
                .filter(|target| !target.starts_with("data:image/") && !target.starts_with('#') && *target != "data:,")
                .collect();
            assert!(loaded.len() >= 3, "{loaded:?}");
            for target in loaded {
                assert!(exists(target), "{page} refers to {target}");
            }
            assert!(!html.contains("<script>") && !html.contains("<style") && !html.contains(" style="), "{page}");
            assert!(!html.contains(" onclick="), "{page}");
        }
    }

    #[tokio::test]
    async fn a_page_says_what_it_may_load() {
        let reply = warp::test::request().path("/").reply(&routes()).await;
        assert_eq!((reply.status().as_u16(), &reply.headers()["content-type"]), (200, &HTML.parse().unwrap()));
        let policy = reply.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for (method, path) in [("POST", "/"), ("GET", "/assets/../Cargo.toml"), ("GET", "//")] {
            assert!(
                warp::test::request().method(method).path(path).filter(&routes()).await.is_err(),
                "{method} {path}"
            );
        }
    }
}
