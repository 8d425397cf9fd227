//! A request's body: read whole, within a size and a time.

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};

use crate::Config;
use crate::problem::Problem;

/// Takes JSON, or a body that does not say what it is.
pub(crate) fn check_headers(headers: &HeaderMap, limit: usize) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(kind) = text(CONTENT_TYPE).filter(|kind| !is_json(kind)) {
        return Err(Problem::UnsupportedMediaType(format!("the Content-Type is {kind:?}; send application/json")));
    }
    if let Some(coding) = text(CONTENT_ENCODING).filter(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(Problem::UnsupportedMediaType(format!(
            "the Content-Encoding is {coding:?}; send the body as it is"
        )));
    }
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    match length {
        Some(length) if length > limit as u64 => Err(Problem::BodyTooLarge(limit)),
        _ => Ok(()),
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Reads the whole body.
pub(crate) async fn read<B: Buf, E>(body: impl Stream<Item = Result<B, E>>, config: &Config) -> Result<Bytes, Problem> {
    let mut body = std::pin::pin!(body);
    let whole = async {
        // Most bodies come in one piece, which then need not be copied.
        let mut pieces: Vec<Bytes> = Vec::with_capacity(1);
        let mut size = 0;
        while let Some(piece) = body.next().await {
            let mut piece = piece.map_err(|_| Problem::BodyBroken)?;
            size += piece.remaining();
            if size > config.max_body {
                return Err(Problem::BodyTooLarge(config.max_body));
            }
            pieces.push(piece.copy_to_bytes(piece.remaining()));
        }
        match pieces.len() {
            1 => Ok(pieces.swap_remove(0)),
            _ => Ok(pieces.concat().into()),
        }
    };
    tokio::time::timeout(config.read_timeout, whole).await.unwrap_or(Err(Problem::BodyTooSlow(config.read_timeout)))
}
