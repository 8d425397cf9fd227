//! `GET /metrics`: what is counted, as Prometheus reads it. The names are listed in docs/METRICS.md.

use common::metrics::CONTENT_TYPE;
use warp::Reply;
use warp::reply::Response;

use crate::App;

pub(super) fn metrics(app: &App) -> Response {
    warp::reply::with_header(app.metrics.render(app), "content-type", CONTENT_TYPE).into_response()
}
