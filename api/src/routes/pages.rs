//! For people: the dashboard at `/`, Swagger UI at `/docs`, and what they load, `/openapi.json` among it. All of it is
//! part of the program: a page works without any other host, and may not load from one.

use std::sync::OnceLock;

use async_compression::Level;
use async_compression::tokio::bufread::GzipEncoder;
use bytes::Bytes;
use futures::FutureExt;
use ring::digest::{SHA256, digest};
use tokio::io::AsyncReadExt;
use warp::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName,
    HeaderValue, IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

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

/// What is at a path.
struct File {
    path: &'static str,
    kind: &'static str,
    caching: &'static str,
    content: fn() -> &'static str,
    made: OnceLock<Made>,
}

/// What is made of a file when it is asked for first, and kept: packing Swagger UI takes some tens of milliseconds.
struct Made {
    packed: Option<Bytes>,
    /// Of the content, packed or not, and so a weak one.
    tag: String,
}

static FILES: [File; 9] = [
    File::new("/", HTML, FRESH, || include_str!("../../assets/dashboard.html")),
    File::new("/assets/dashboard.css", CSS, FRESH, || include_str!("../../assets/dashboard.css")),
    File::new("/assets/dashboard.js", SCRIPT, FRESH, || include_str!("../../assets/dashboard.js")),
    File::new("/openapi.json", "application/json", FRESH, || &openapi::DOCUMENT),
    File::new("/docs", HTML, FRESH, || include_str!("../../assets/swagger/index.html")),
    File::new(problem::TYPES, HTML, FRESH, || &openapi::PROBLEMS_PAGE),
    File::new("/assets/swagger-start.js", SCRIPT, FRESH, || include_str!("../../assets/swagger/start.js")),
    File::new("/assets/swagger-ui.css", CSS, KEPT, || include_str!("../../assets/swagger/swagger-ui.css")),
    File::new("/assets/swagger-ui-bundle.js", SCRIPT, KEPT, || {
        include_str!("../../assets/swagger/swagger-ui-bundle.js")
    }),
];

/// What is at this path.
fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

impl File {
    const fn new(path: &'static str, kind: &'static str, caching: &'static str, content: fn() -> &'static str) -> Self {
        Self { path, kind, caching, content, made: OnceLock::new() }
    }

    fn made(&self) -> &Made {
        self.made.get_or_init(|| {
            let content = (self.content)();
            let hash = digest(&SHA256, content.as_bytes());
            let short: String = hash.as_ref()[..12].iter().map(|byte| format!("{byte:02x}")).collect();
            Made { packed: packed(content.as_bytes()), tag: format!("W/\"{short}\"") }
        })
    }

    /// The reply to a request with these headers. It is compressed here, if at all.
    fn reply(&self, headers: &HeaderMap) -> Response {
        let made = self.made();
        let (packed, known) = (made.packed.clone().filter(|_| takes_gzip(headers)), has_tag(headers, &made.tag));
        let packs = packed.is_some();
        let body = packed.unwrap_or_else(|| Bytes::from_static((self.content)().as_bytes()));
        let body = if known { Bytes::new() } else { body };
        let mut response = Response::new(body.into());
        let mut set = |name: HeaderName, value: &str| {
            // All of these are known to be good.
            response.headers_mut().extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        };
        set(ETAG, &made.tag);
        set(CACHE_CONTROL, self.caching);
        set(VARY, "accept-encoding");
        set(CONTENT_SECURITY_POLICY, POLICY);
        set(REFERRER_POLICY, "no-referrer");
        set(X_CONTENT_TYPE_OPTIONS, "nosniff");
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        set(CONTENT_TYPE, self.kind);
        if packs {
            set(CONTENT_ENCODING, "gzip");
        }
        response
    }
}

/// The content as gzip; `None` if it can't be packed, which does not happen: memory neither makes wait nor fails.
fn packed(content: &[u8]) -> Option<Bytes> {
    let mut packed = Vec::new();
    let mut encoder = GzipEncoder::with_quality(content, Level::Best);
    let done = encoder.read_to_end(&mut packed).now_or_never();
    matches!(done, Some(Ok(_))).then(|| packed.into())
}

/// Whether the client takes gzip (RFC 9110, section 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused =
            parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0)));
        named && !refused
    })
}

/// Whether the client has this version (RFC 9110, section 13.1.2). Tags are compared without saying whether they are weak.
fn has_tag(headers: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let lines = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|known| known.trim() == "*" || opaque(known) == opaque(tag))
}

/// The reply with the file at this path.
pub(super) fn page(path: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    file(path).map(|file| file.reply(headers)).ok_or(Problem::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Route;

    #[test]
    fn a_page_loads_only_what_the_program_has_and_its_policy_allows() {
        for page in ["/", "/docs", problem::TYPES] {
            let html = (file(page).unwrap().content)();
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
        let headers = page("/", &HeaderMap::new()).unwrap().headers().clone();
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
        assert!(page("/assets/../Cargo.toml", &HeaderMap::new()).is_err());
    }

    fn asked(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[tokio::test]
    async fn a_file_is_packed_once_and_sent_once() {
        use http_body_util::BodyExt;

        for file in &FILES {
            let plain = file.reply(&HeaderMap::new());
            assert!(!plain.headers().contains_key(CONTENT_ENCODING), "{}", file.path);
            let tag = plain.headers()[ETAG].to_str().unwrap().to_owned();
            let content = plain.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(content, (file.content)(), "{}", file.path);
            let packed = file.reply(&asked(ACCEPT_ENCODING, "zstd, gzip;q=0.5"));
            assert_eq!(
                (&packed.headers()[CONTENT_ENCODING], &packed.headers()[VARY]),
                (&"gzip".parse().unwrap(), &"accept-encoding".parse().unwrap())
            );
            assert_eq!(packed.headers()[ETAG], tag, "{}", file.path);
            let body = packed.into_body().collect().await.unwrap().to_bytes();
            let mut unpacked = String::new();
            let mut decoder = async_compression::tokio::bufread::GzipDecoder::new(&*body);
            decoder.read_to_string(&mut unpacked).await.unwrap();
            assert_eq!(unpacked, (file.content)(), "{}", file.path);
            assert!(std::ptr::eq(file.made(), file.made()) && (body.len() < content.len() / 2 || content.len() < 1000));
            for known in [tag.clone(), format!("\"other\", {}", tag.trim_start_matches("W/")), "*".into()] {
                let reply = file.reply(&asked(IF_NONE_MATCH, &known));
                assert_eq!((reply.status().as_u16(), &reply.headers()[ETAG]), (304, &tag.parse().unwrap()), "{known}");
                assert!(reply.into_body().collect().await.unwrap().to_bytes().is_empty());
            }
            assert_eq!(file.reply(&asked(IF_NONE_MATCH, "\"other\"")).status(), 200);
        }
    }

    #[test]
    fn gzip_is_sent_to_who_names_it_and_does_not_refuse_it() {
        for (accept, takes) in [("gzip", true), ("GZIP, br", true), ("gzip;q=0", false), ("br", false), ("", false)] {
            assert_eq!(takes_gzip(&asked(ACCEPT_ENCODING, accept)), takes, "{accept}");
        }
    }
}
