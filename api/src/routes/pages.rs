//! For people: the dashboard at `/`, Swagger UI at `/docs`, and what they load, `/openapi.json` among it. All of it is
//! part of the program: a page works without any other host, and may not load from one.

use warp::Reply;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use crate::openapi;
use crate::problem::{self, Problem};

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
        problem::TYPES => (HTML, FRESH, &openapi::PROBLEMS_PAGE),
        "/assets/swagger-start.js" => (SCRIPT, FRESH, include_str!("../../assets/swagger/start.js")),
        "/assets/swagger-ui.css" => (CSS, KEPT, include_str!("../../assets/swagger/swagger-ui.css")),
        "/assets/swagger-ui-bundle.js" => (SCRIPT, KEPT, include_str!("../../assets/swagger/swagger-ui-bundle.js")),
        _ => return None,
    })
}

/// The file at this path.
pub(super) fn page(path: &str) -> Result<warp::reply::Response, Problem> {
    let (kind, caching, content) = file(path).ok_or(Problem::NotFound)?;
    let mut response = content.into_response();
    let headers = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, caching),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Route;

    #[test]
    fn a_page_loads_only_what_the_program_has_and_its_policy_allows() {
        for page in ["/", "/docs", problem::TYPES] {
            let (_, _, html) = file(page).unwrap();
            let loaded: Vec<&str> = [" src=\"", " href=\""]
                .iter()
                .flat_map(|attribute| html.split(attribute).skip(1))
                .filter_map(|rest| rest.split('"').next())
                .filter(|target| !target.starts_with("data:image/") && !target.starts_with('#') && *target != "data:,")
                .collect();
            assert!(loaded.len() >= 2, "{loaded:?}");
            for target in loaded {
                assert!(file(target).is_some(), "{page} refers to {target}");
            }
            assert!(!html.contains("<script>") && !html.contains("<style") && !html.contains(" style="), "{page}");
            assert!(!html.contains(" onclick="), "{page}");
        }
    }

    #[test]
    fn a_page_says_what_it_may_load() {
        let headers = page("/").unwrap().headers().clone();
        assert_eq!(headers["content-type"], HTML);
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    }

    #[test]
    fn every_path_of_the_table_has_its_file() {
        assert!(Route::pages().count() > 5);
        for path in Route::pages() {
            assert!(file(path).is_some(), "{path}");
        }
        assert!(page("/assets/../Cargo.toml").is_err());
    }
}
