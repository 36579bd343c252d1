//! APNs' answer, from the wire to the domain.
//!
//! A 200 has no body; a refusal has `{"reason": "…", "timestamp": ms}` (Apple, *Handling notification responses from
//! APNs*). Whatever else comes is kept as far as it goes: a status alone is an answer too.

use std::time::Duration;

use bytes::BytesMut;
use h2::RecvStream;
use http::response::Parts;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::domain::response::{Reason, Response};
use crate::domain::timestamp::Timestamp;

/// Bytes of a body that are read at most. Apple's are below a hundred.
const BODY_BYTES_MAX: usize = 4096;

/// How long a body may take after its head.
const BODY_WAIT: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Refusal {
    reason: Option<String>,
    timestamp: Option<serde_json::Number>,
}

/// Reads the body of an answer, until `answer_by` at the latest, and decodes both. A body that fails or stays out leaves the
/// status; whether all of it came is told, too.
pub(super) async fn read(head: http::Response<RecvStream>, answer_by: Instant) -> (Response, bool) {
    let (head, mut body) = head.into_parts();
    if body.is_end_stream() {
        return (decode(&head, &[]), true);
    }
    let mut bytes = BytesMut::new();
    let reading = async {
        while let Some(chunk) = body.data().await {
            let Ok(chunk) = chunk else { return false };
            let room = BODY_BYTES_MAX.saturating_sub(bytes.len());
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.flow_control().release_capacity(chunk.len()).is_err() || room == 0 {
                return false;
            }
        }
        true
    };
    // Elapsed: what came so far is decoded.
    let is_whole = timeout_at(answer_by.min(Instant::now() + BODY_WAIT), reading).await.unwrap_or(false);
    (decode(&head, &bytes), is_whole)
}

fn decode(head: &Parts, body: &[u8]) -> Response {
    // A 200 has none, and is the usual case.
    let refusal = if body.is_empty() { None } else { serde_json::from_slice::<Refusal>(body).ok() };
    let (reason, timestamp) = refusal.map_or((None, None), |refusal| (refusal.reason, refusal.timestamp));
    Response {
        status: head.status.as_u16(),
        reason: reason.filter(|word| !word.is_empty()).map(|word| Reason::parse(&word)),
        invalid_since: timestamp.and_then(|ms| ms.as_i64()).map(Timestamp::from_unix_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(status: u16, body: &str) -> Response {
        let (head, ()) = http::Response::builder().status(status).body(()).unwrap().into_parts();
        decode(&head, body.as_bytes())
    }

    #[test]
    fn a_refusal_is_read_as_far_as_it_goes() {
        let gone = decoded(410, r#"{"reason":"Unregistered","timestamp":1795253400000}"#);
        assert_eq!(gone.reason, Some(Reason::Unregistered));
        assert_eq!(gone.invalid_since, Some(Timestamp::from_unix_ms(1_795_253_400_000)));
        for (body, reason) in [
            ("", None),
            ("<html>", None),
            (r#"{"reason":null}"#, None),
            (r#"{"reason":""}"#, None),
            (r#"{"reason":"BrandNew","more":[1]}"#, Some(Reason::Other("BrandNew".into()))),
            (r#"{"reason":"Unregistered","timestamp":1.5}"#, Some(Reason::Unregistered)),
        ] {
            let response = decoded(400, body);
            assert_eq!(
                (response.status, response.reason, response.invalid_since),
                (400, reason, None),
                "{body}"
            );
        }
    }
}
