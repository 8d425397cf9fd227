//! A body of `POST /events/batch`, as an array and as lines, whole and in pieces: nothing panics, and the results are the
//! same however the body is cut. The first byte is the size of a piece.

#![no_main]

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use api::keys::Caller;
use api::route::Route;
use api::{App, Cli, Config};
use bytes::Bytes;
use common::shutdown::Shutdown;
use common::store::Store;
use common::testing::FakePublisher;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// Limits so small that inputs reach them.
static APP: LazyLock<Arc<App>> = LazyLock::new(|| {
    let flags = ["user-activity-api", "--http-max-body", "1KiB", "--http-max-batch-body", "2KiB"];
    let cli: Cli =
        common::config::parse(flags.iter().chain(&["--http-max-batch-items", "8"]), |_| None).expect("flags");
    let config = Config::check(&cli).expect("settings");
    let store = Store::new(&config.redis).expect("a store");
    Arc::new(App::new(Arc::new(FakePublisher::default()), store, config, Shutdown::new()))
});

/// Status and body of the reply.
async fn reply(kind: &str, body: &[u8], piece: usize) -> (u16, Bytes) {
    let pieces: Vec<Bytes> = body.chunks(piece).map(Bytes::copy_from_slice).collect();
    let pieces = stream::iter(pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
    let request = Request::post("/events/batch?validateOnly=true").header("content-type", kind);
    let (head, body) = request.body(StreamBody::new(pieces)).expect("a request").into_parts();
    let route = Route::of(&head.method, head.uri.path());
    let response = api::routes::answer(&APP, route, &Caller::default(), &head, body).await;
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.expect("a whole reply").to_bytes())
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, body)) = input.split_first() else { return };
    RUNTIME.block_on(async {
        for kind in ["application/json", "application/x-ndjson"] {
            let whole = reply(kind, body, usize::MAX).await;
            assert!(matches!(whole.0, 200 | 400 | 413), "{}", whole.0);
            // Where a body is too large depends on its pieces only in how much of it is read.
            if body.len() <= 2048 {
                assert_eq!(reply(kind, body, usize::from(*piece).max(1)).await, whole);
            }
        }
    });
});
