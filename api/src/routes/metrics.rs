//! `GET /metrics`: what is counted, as Prometheus reads it. The names are listed in docs/METRICS.md.

use std::sync::Arc;

use common::metrics::CONTENT_TYPE;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::App;

pub(super) fn route(app: &Arc<App>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<> {
    warp::path!("metrics").and(super::get()).and(super::with(app)).map(|app: Arc<App>| {
        warp::reply::with_header(app.metrics.render(&app), "content-type", CONTENT_TYPE).into_response()
    })
}
