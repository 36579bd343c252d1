//! One attempt: a stream from the pool, the request on it, and its answer.

use std::sync::Arc;

use h2::SendStream;
use h2::client::ResponseFuture;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::Connection;
use super::pool::{End, Pool, REAP_WAIT};
use super::pools::Apns;
use super::provider_token::PinError;
use super::request::{Body, Taken};
use super::response;
use super::slot::{NoSlot, Slot};
use crate::domain::policy::PushError;
use crate::domain::response::{Meaning, Response};
use crate::domain::timestamp::Timestamp;
use crate::worker::gateway::{Gateway, Push};

impl Gateway for Apns {
    async fn push(&self, push: &Push) -> Result<Response, PushError> {
        let asked = Instant::now();
        let (home, slot) = self.acquire(push).await.map_err(|none| match none {
            NoSlot::Late(why) => PushError::NotSent(why),
            NoSlot::Refused(why) => PushError::CredentialRefused(why),
        })?;
        let pool = Arc::clone(slot.pool());
        let written = Instant::now();
        pool.parts.metrics.stage("slot", written - asked);
        if written >= push.deadline {
            return Err(PushError::NotSent(None));
        }
        let request = write(&pool, &slot, push)?;
        push.trail.mark(slot.connection.id, written);
        let response = match request.answer(slot, push, written).await {
            Err(unsure @ PushError::Unknown(_)) => {
                push.trail.lose(pool.turn());
                return Err(unsure);
            }
            answered => answered?,
        };
        match response.meaning() {
            Meaning::TokenSuspect => home.suspect(&push.token, true),
            Meaning::Accepted => home.suspect(&push.token, false),
            _ => {}
        }
        Ok(response)
    }
}

/// A request that h2 has. The stream is kept, so that a body that was not taken can be called back.
struct Request {
    answer: ResponseFuture,
    stream: SendStream<Body>,
    taken: Taken,
}

/// Hands the request to the connection. Whatever fails here was surely not processed: without its body a request is not
/// complete.
fn write(pool: &Pool, slot: &Slot, push: &Push) -> Result<Request, PushError> {
    let connection = &slot.connection;
    let authorization = connection.authorization(pool.parts.mint.as_deref()).map_err(|error| {
        if matches!(error, PinError::Worn) {
            pool.retire(connection, End::Replaced, "its provider token");
        }
        PushError::NotProcessed(error.to_string())
    })?;
    let now = Timestamp::from_unix_ms(pool.parts.clock.unix_ms());
    let request = pool
        .parts
        .template
        .encode(push, authorization, now)
        .map_err(|error| PushError::NotProcessed(error.to_string()))?;
    let refused = |error: h2::Error| {
        pool.retire(connection, End::Closed, &error.to_string());
        PushError::NotProcessed(error.to_string())
    };
    let (answer, mut stream) = connection.sender.clone().send_request(request, false).map_err(refused)?;
    let (body, taken) = Body::new(push.body.clone());
    stream.send_data(body, true).map_err(refused)?;
    Ok(Request { answer, stream, taken })
}

impl Request {
    /// Waits for the answer, at most `request_timeout` and never beyond `answer_by`.
    async fn answer(mut self, slot: Slot, push: &Push, written: Instant) -> Result<Response, PushError> {
        let pool = Arc::clone(slot.pool());
        let limit = written + pool.parts.request_timeout;
        let mut answered = timeout_at(limit.min(push.deadline), &mut self.answer).await;
        if answered.is_err() && !self.taken.all() {
            return Err(self.call_back(&slot, push, written));
        }
        if answered.is_err() && push.deadline < limit {
            answered = timeout_at(limit.min(push.answer_by), &mut self.answer).await;
        }
        let head = match answered {
            Ok(Ok(head)) => head,
            Ok(Err(error)) => return Err(self.classify(&error, &slot.connection)),
            Err(_) => {
                let waited = written.elapsed();
                if !slot.connection.is_proven() {
                    // Its only stream is taken by a request that may never be answered.
                    pool.retire(&slot.connection, End::Unanswered, "its first request was not answered");
                }
                reap(slot, self, written, limit);
                return Err(PushError::Unknown(format!("no answer within {} ms", waited.as_millis())));
            }
        };
        let response = response::read(head, push.answer_by).await;
        let metrics = &pool.parts.metrics;
        metrics.stage("apns", written.elapsed());
        metrics.apns_response(pool.parts.environment.as_str(), response.status, &response.reason_label());
        heed(&pool, &slot, &response)?;
        Ok(response)
    }

    /// Its time is up, and the connection could not take its body: what is left of it is called back, so that it cannot leave
    /// later.
    fn call_back(mut self, slot: &Slot, push: &Push, written: Instant) -> PushError {
        self.stream.send_reset(h2::Reason::CANCEL);
        let why = "the connection took no more data";
        if Instant::now() >= push.deadline {
            return PushError::NotSent(Some(why.to_owned()));
        }
        slot.pool().miss_answer(&slot.connection, written);
        PushError::NotProcessed(why.to_owned())
    }

    /// Whether the peer surely did not process a request that failed (RFC 9113 §8.7): a refused stream, one above the last
    /// id of a GOAWAY, or one whose body never left. An I/O error alone says nothing, whatever the stream's number.
    fn classify(&self, error: &h2::Error, connection: &Connection) -> PushError {
        let refused =
            error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let ended = connection.retired().filter(|_| !error.is_reset());
        let why = ended.map_or_else(|| error.to_string(), ToString::to_string);
        if refused || (error.is_go_away() && error.is_remote()) || !self.taken.all() {
            PushError::NotProcessed(why)
        } else {
            PushError::Unknown(why)
        }
    }
}

/// What an answer says of its connection and of the credential. Where it is the provider token that was refused, the
/// connection stays wedged: a fresh one starts with a fresh look at the token.
fn heed(pool: &Pool, slot: &Slot, response: &Response) -> Result<(), PushError> {
    let connection = &slot.connection;
    let fresh = !connection.is_proven();
    slot.answered(response.status);
    if !response.refuses_credential() {
        if response.status == 503 && response.reason_label() == "Shutdown" {
            pool.retire(connection, End::GoAway, "Apple says Shutdown");
        }
        if response.status != 403 {
            pool.trust_credential();
        }
        return Ok(());
    }
    let word = format!("{} {}", response.status, response.reason_word());
    if response.meaning() != Meaning::ProviderTokenRefused {
        pool.refuse_credential(&word, false);
        return Ok(());
    }
    pool.retire(connection, End::ProviderToken, &word);
    if fresh {
        let now = Timestamp::from_unix_ms(pool.parts.clock.unix_ms());
        pool.refuse_credential(
            &format!("{word} on a fresh connection too; is the clock of this machine right? It says {now}"),
            true,
        );
    }
    Err(PushError::ProviderToken(response.clone()))
}

/// Waits on for an answer that comes too late to matter to its call: it is counted, and its stream stays given out until
/// then. At `limit` (the request's own, which the call's end may have forestalled) the connection is judged.
fn reap(slot: Slot, mut request: Request, written: Instant, limit: Instant) {
    tokio::spawn(async move {
        let pool = slot.pool();
        let mut answered = timeout_at(limit, &mut request.answer).await;
        if answered.is_err() {
            pool.miss_answer(&slot.connection, written);
            answered = timeout(REAP_WAIT, request.answer).await;
        }
        if let Ok(Ok(head)) = answered {
            let status = head.status().as_u16();
            slot.answered(status);
            pool.parts.metrics.late_answer(pool.parts.environment.as_str(), status);
        }
    });
}
