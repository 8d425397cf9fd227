//! `PUT /log-level`: which lines this process logs from now on; the body is what `LOG_LEVEL` takes.
//!
//! The port is open to clients, and debug lines cost time and may say more than clients should cause: without keys there
//! is nobody who could be told from them, so the route is closed. With keys the server has asked for the scope `admin`.

use bytes::Bytes;
use common::telemetry::{LONGEST_LEVEL, set_level};
use hyper::body::Body;
use warp::Reply;
use warp::http::HeaderMap;
use warp::reply::Response;

use crate::App;
use crate::body::{self, Limits};
use crate::problem::Problem;

pub(super) async fn log_level<B>(app: &App, headers: &HeaderMap, body: B) -> Result<Response, Problem>
where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    if app.keys.is_none() {
        return Err(Problem::KeysNeeded);
    }
    let limits = Limits { size: LONGEST_LEVEL, time: app.config.read_timeout };
    let (level, _share) = body::read(headers, body, limits, &app.memory).await?;
    set_level(&level).map(|level| warp::reply::json(&level).into_response()).map_err(Problem::InvalidLevel)
}
