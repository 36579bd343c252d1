//! One attempt: a stream from the pool, the request on it, and its answer.

use std::sync::Arc;

use h2::client::ResponseFuture;
use tokio::time::{Instant, timeout, timeout_at};

use super::pool::{Pool, REAP_WAIT, Slot};
use super::pools::Apns;
use super::response;
use crate::domain::policy::PushError;
use crate::domain::response::{Meaning, Response};
use crate::domain::timestamp::Timestamp;
use crate::worker::gateway::{Gateway, Push};

impl Gateway for Apns {
    async fn push(&self, push: &Push) -> Result<Response, PushError> {
        let asked = Instant::now();
        let slot = self.acquire(push).await.ok_or(PushError::NotSent)?;
        let pool = &Arc::clone(slot.pool());
        let written = Instant::now();
        pool.parts.metrics.stage("slot", written - asked);
        if written >= push.deadline {
            return Err(PushError::NotSent);
        }
        push.trail.mark(slot.connection.id, written);
        let answer = write(pool, &slot, push)?;
        await_answer(slot, push, answer, written).await
    }
}

/// Hands the request to the connection. Whatever fails here was surely not processed: without its body a request is not
/// complete.
fn write(pool: &Pool, slot: &Slot, push: &Push) -> Result<ResponseFuture, PushError> {
    let authorization = slot
        .connection
        .authorization(&pool.parts.mint)
        .map_err(|error| PushError::NotProcessed(error.to_string()))?;
    let now = Timestamp::from_unix_ms(pool.parts.clock.unix_ms());
    let request = pool
        .parts
        .template
        .encode(push, authorization, now)
        .map_err(|error| PushError::NotProcessed(error.to_string()))?;
    let refused = |error: h2::Error| {
        pool.retire(&slot.connection, &error.to_string());
        PushError::NotProcessed(error.to_string())
    };
    let (answer, mut stream) =
        slot.connection.sender.clone().send_request(request, false).map_err(refused)?;
    stream.send_data(push.body.clone(), true).map_err(refused)?;
    Ok(answer)
}

/// Waits for the answer, at most `request_timeout` and never beyond `answer_by`.
async fn await_answer(
    slot: Slot,
    push: &Push,
    mut answer: ResponseFuture,
    written: Instant,
) -> Result<Response, PushError> {
    let pool = Arc::clone(slot.pool());
    let limit = written + pool.parts.request_timeout;
    let head = match timeout_at(limit.min(push.answer_by), &mut answer).await {
        Ok(Ok(head)) => head,
        Ok(Err(error)) => return Err(classify(&error)),
        Err(_) => {
            let waited = written.elapsed();
            if !slot.connection.is_proven() {
                // Its only stream is taken by a request that may never be answered.
                pool.retire(&slot.connection, "its first request was not answered");
            }
            reap(slot, answer, limit);
            return Err(PushError::Unknown(format!("no answer within {} ms", waited.as_millis())));
        }
    };
    let response = response::read(head, push.answer_by).await;
    let metrics = &pool.parts.metrics;
    metrics.stage("apns", written.elapsed());
    metrics.apns_response(pool.parts.environment.as_str(), response.status, &response.reason_label());
    if response.meaning() == Meaning::ProviderTokenRefused {
        // The connection stays wedged; a fresh one starts with a fresh look at the token.
        pool.retire(&slot.connection, &response.reason_label());
        return Err(PushError::ProviderToken(response));
    }
    if response.status != 403 {
        slot.prove();
    }
    Ok(response)
}

/// Waits on for an answer that comes too late to matter to its call: it is counted, and its stream stays given out until
/// then. From `limit` on (the request's own, which the call's end may have forestalled) the connection is out of use.
fn reap(slot: Slot, mut answer: ResponseFuture, limit: Instant) {
    tokio::spawn(async move {
        let pool = slot.pool();
        let mut answered = timeout_at(limit, &mut answer).await;
        if answered.is_err() {
            pool.retire(&slot.connection, "a request was not answered in time");
            answered = timeout(REAP_WAIT, answer).await;
        }
        if let Ok(Ok(head)) = answered {
            slot.prove();
            pool.parts.metrics.late_answer(pool.parts.environment.as_str(), head.status().as_u16());
        }
    });
}

/// Whether the peer surely did not process a request that failed (RFC 9113 §8.7): a refused stream, or one above the last
/// id of a GOAWAY. An I/O error says nothing, whatever the stream's number.
fn classify(error: &h2::Error) -> PushError {
    let refused = error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if refused || (error.is_go_away() && error.is_remote()) {
        PushError::NotProcessed(error.to_string())
    } else {
        PushError::Unknown(error.to_string())
    }
}
