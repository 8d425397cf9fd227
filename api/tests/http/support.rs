//! What the tests of both halves share.

use std::sync::Arc;

use api::keys::Caller;
use api::route::Route;
use api::{App, Config};
use bytes::Bytes;
use common::kafka::Publisher;
use common::shutdown::Shutdown;
use common::store::Store;
use http_body_util::Full;
use serde_json::Value;
use warp::http::Request;
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

pub(crate) const EVENT: &str = r#"{"userId":"u","eventType":"LOGIN"}"#;

/// The API with these flags. Its store is where nobody listens.
pub(crate) fn app(publisher: impl Publisher, flags: &[&str]) -> Arc<App> {
    app_on("redis://127.0.0.1:9", publisher, flags)
}

/// The API with this store and these flags.
pub(crate) fn app_on(redis_url: &str, publisher: impl Publisher, flags: &[&str]) -> Arc<App> {
    let args = ["user-activity-api", "--redis-url", redis_url, "--kafka-topic", "the-topic"];
    let cli = common::config::parse(args.iter().chain(flags), |_| None).unwrap();
    let config = Config::check(&cli).unwrap();
    let store = Store::new(&config.redis).unwrap();
    Arc::new(App::new(Arc::new(publisher), store, config, Shutdown::new()))
}

/// Its routes as a filter, for `warp::test`.
pub(crate) fn routes(app: &Arc<App>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<> {
    let app = Arc::clone(app);
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let head = warp::method().and(warp::path::full()).and(query).and(warp::header::headers_cloned());
    head.and(warp::body::bytes()).then(move |method, path: FullPath, query: String, headers, body| {
        let app = Arc::clone(&app);
        let (mut head, ()) = Request::new(()).into_parts();
        (head.method, head.headers) = (method, headers);
        head.uri = format!("{}?{query}", path.as_str()).parse().unwrap();
        async move {
            let route = Route::of(&head.method, head.uri.path());
            api::routes::answer(&app, route, &Caller::default(), &head, Full::<Bytes>::new(body)).await
        }
    })
}

/// The body of a reply that is not a success, once its shape is checked.
pub(crate) fn problem(status: u16, content_type: &str, body: &[u8]) -> Value {
    let text = String::from_utf8_lossy(body);
    assert_eq!(content_type, "application/problem+json", "{text}");
    let problem: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(problem["status"], status, "{text}");
    assert_eq!(problem["success"], false, "{text}");
    assert!(problem["type"].as_str().unwrap().starts_with("/docs/problems#"), "{text}");
    for member in ["title", "detail", "message", "error"] {
        assert!(!problem[member].as_str().unwrap().is_empty(), "{member}: {text}");
    }
    problem
}
