//! Answers that are not what they should be: half a body, and far too much of one.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use futures_util::{Stream, StreamExt, stream};

use super::clients::InFlight;
use super::socket::Fate;

/// What is sent at a time of an oversized body.
const CHUNK_BYTES: usize = 64 * 1024;

/// The white space that an oversized body goes on with.
static FILLER: [u8; CHUNK_BYTES] = [b' '; CHUNK_BYTES];

/// The whole of a body that the bank itself made, and so has in memory.
async fn whole(body: Body) -> Bytes {
    axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default()
}

/// The same answer, but its body ends after the first half, and with it the connection.
pub(super) async fn truncated(answer: Response, fate: Fate, in_flight: InFlight) -> Response {
    let (mut head, body) = answer.into_parts();
    let body = whole(body).await;
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    let half = Some(body.slice(..body.len() / 2));
    Response::from_parts(head, Body::from_stream(Half { half, fate, in_flight: Some(in_flight) }))
}

/// Half a body, and then nothing more: once that is sent, the connection ends.
struct Half {
    half: Option<Bytes>,
    fate: Fate,
    in_flight: Option<InFlight>,
}

impl Stream for Half {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.half.take() {
            Some(half) => Poll::Ready(Some(Ok(half))),
            None => {
                // Before the caller can know.
                self.in_flight = None;
                self.fate.hang_up_after_flush();
                Poll::Pending
            }
        }
    }
}

/// The same answer, but `bytes` of white space follow its body, in chunks of unknown number.
pub(super) async fn oversized(answer: Response, bytes: u64, in_flight: InFlight) -> Response {
    let (mut head, body) = answer.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    let first = stream::once(whole(body));
    let rest = stream::unfold((bytes, in_flight), |(left, in_flight)| async move {
        let size = left.min(CHUNK_BYTES as u64);
        (size > 0).then(|| (Bytes::from_static(&FILLER[..size as usize]), (left - size, in_flight)))
    });
    let body = first.chain(rest).map(Ok::<_, std::convert::Infallible>);
    Response::from_parts(head, Body::from_stream(body))
}
