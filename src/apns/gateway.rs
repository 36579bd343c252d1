//! One attempt: a stream from the pool, the request on it, and its answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::Connection;
use super::pool::{End, Pool, REAP_WAIT};
use super::pools::Apns;
use super::provider_token::PinError;
use super::request::{Body, Taken};
use super::response;
use super::slot::{NoSlot, Slot};
use crate::domain::policy::PushError;
use crate::domain::response::{Meaning, Reason, Response};
use crate::domain::timestamp::Timestamp;
use crate::worker::gateway::{Gateway, Push};

/// From so many bytes on, h2 may hold on to a frame (its `CHAIN_THRESHOLD_WITHOUT_VECTORED_IO`: what `dial` opens is not
/// written vectored).
const HELD_BYTES: usize = 1024;

/// A fresh connection whose first request is given up after this is replaced: the others wait for its only stream.
const FIRST_ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Bytes of the frame that ends a larger request.
const END_BYTES: usize = 64;

impl Gateway for Apns {
    async fn push(&self, push: &Push) -> Result<Response, PushError> {
        let asked = Instant::now();
        let (home, slot, written) = self.acquire(push, asked).await.map_err(|none| match none {
            NoSlot::Late(why) => PushError::NotSent(why),
            NoSlot::Refused(why) => PushError::CredentialRefused(why),
        })?;
        home.parts.metrics.stage("slot", written - asked);
        // By both clocks: tokio's stands still while the machine is suspended.
        if written >= push.deadline {
            return Err(PushError::NotSent(None));
        }
        if slot.pool().parts.clock.unix_ms() >= push.deadline_at.unix_ms() {
            return Err(PushError::NotSent(Some(
                "it has come by the wall's clock alone, so that a clock was set, or the machine stood still"
                    .into(),
            )));
        }
        let request = write(slot.pool(), &slot, push, written)?;
        push.trail.mark(slot.connection.id, written);
        let response = match request.answer(slot, push, written).await {
            Err(unsure @ PushError::Unknown(_)) => {
                push.trail.lose(home.turn(), push.trail.last());
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

/// The head of an answer, or why there is none.
type Answered = Result<http::Response<h2::RecvStream>, h2::Error>;

/// When a request was written, and when its connection was judged last: it is to be judged again.
type Unjudged = (Instant, Instant);

/// A request that h2 has. The stream is kept, so that a body that was not taken can be called back.
struct Request {
    answer: ResponseFuture,
    stream: SendStream<Body>,
    taken: Taken,
}

/// A request that waits for its answer, and its stream. Let go of, it is withdrawn, unless its push is done with it: then its
/// answer is reaped, since h2 takes dropped streams ill.
struct Held<'a> {
    request: Option<(Slot, Request)>,
    push: &'a Push,
    written: Instant,
}

impl Held<'_> {
    fn take(&mut self) -> (Slot, Request) {
        self.request.take().expect("taken once")
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some((slot, request)) = self.request.take()
            && self.push.trail.is_done()
        {
            reap(slot, request, self.push, Some((self.written, self.written)));
        }
    }
}

/// Hands the request to the connection. Whatever fails here was surely not processed: without its body a request is not
/// complete.
fn write(pool: &Pool, slot: &Slot, push: &Push, written: Instant) -> Result<Request, PushError> {
    let (connection, parts) = (&slot.connection, &pool.parts);
    let head = connection.head(&parts.template, parts.mint.as_deref(), push.app.index, written).map_err(
        |error| {
            if matches!(error, PinError::Worn) {
                pool.retire(connection, End::Replaced, "its provider token");
            }
            PushError::NotProcessed(error.to_string())
        },
    )?;
    let request = parts
        .template
        .encode(push, head, &parts.clock)
        .map_err(|error| PushError::NotProcessed(error.to_string()))?;
    let refused = |error: h2::Error| {
        pool.retire(connection, End::Closed, &error.to_string());
        PushError::NotProcessed(error.to_string())
    };
    Request::send(connection, request, push.body.clone()).map_err(refused)
}

impl Request {
    /// Hands head and body to h2.
    ///
    /// h2 copies a small frame when its turn comes, but holds on to a large one while the socket takes it bit by bit, and
    /// then nothing stops it any more. So the end of the body goes in a small frame of its own: it was taken or it was not.
    fn send(connection: &Connection, request: http::Request<()>, mut body: Bytes) -> Result<Self, h2::Error> {
        let (answer, mut stream) = connection.sender.clone().send_request(request, false)?;
        let end = if body.len() < HELD_BYTES {
            std::mem::take(&mut body)
        } else {
            body.split_off(body.len() - END_BYTES)
        };
        if !body.is_empty() {
            stream.send_data(Body::new(body).0, false)?;
        }
        let (end, taken) = Body::new(end);
        stream.send_data(end, true)?;
        Ok(Self { answer, stream, taken })
    }

    /// Calls back what h2 has not taken. Letting go does it: a stream that h2 has not opened yet would still send all of
    /// its body before an explicit reset (h2 0.4.20, `Send::send_reset`).
    fn withdraw(self) {
        drop((self.stream, self.answer));
    }

    /// Waits for the answer: `request_timeout`, and on while the connection answers others, but never beyond `answer_by`.
    async fn answer(self, slot: Slot, push: &Push, written: Instant) -> Result<Response, PushError> {
        let mut held = Held { request: Some((slot, self)), push, written };
        let (slot, request) = held.request.as_mut().expect("taken below, once");
        let pool = Arc::clone(slot.pool());
        let limit = written + pool.parts.request_timeout;
        let mut answered = timeout_at(limit.min(push.deadline), &mut request.answer).await.map_err(|_| None);
        if answered.is_err() {
            if !request.taken.all() {
                let (slot, request) = held.take();
                return Err(request.call_back(&slot, push, written));
            }
            answered = request.wait_on(slot, push, written).await;
        }
        let (mut slot, request) = held.take();
        let head = match answered {
            Ok(Ok(head)) => head,
            Ok(Err(error)) => return Err(request.classify(&error, &slot.connection)),
            Err(unjudged) => {
                reap(slot, request, push, unjudged);
                let waited = written.elapsed().as_millis();
                return Err(PushError::Unknown(format!("no answer within {waited} ms")));
            }
        };
        let (response, is_whole) = response::read(head, push.answer_by).await;
        let (metrics, now) = (&pool.parts.metrics, Instant::now());
        metrics.stage("apns", now - written);
        metrics.apns_response(pool.parts.environment.as_str(), response.status, &response.reason_label());
        heed(&pool, &mut slot, &response, now)?;
        if is_cut_short(&response, is_whole) {
            // It did not ring; another one may say since when.
            return Err(PushError::CutShort(response));
        }
        Ok(response)
    }

    /// The request is late. While its connection is slow, not stalled, to push elsewhere would ring the phone twice: the answer is
    /// waited for, and the connection judged once for every `request_timeout`. `Err`: given up, because it was found stalled, or
    /// (`Some`) because the call is over, and it is still to be judged.
    async fn wait_on(
        &mut self,
        slot: &Slot,
        push: &Push,
        written: Instant,
    ) -> Result<Answered, Option<Unjudged>> {
        let (pool, connection) = (slot.pool(), &slot.connection);
        let mut since = written;
        let given_up = loop {
            let limit = since + pool.parts.request_timeout;
            if let Ok(answered) = timeout_at(limit.min(push.answer_by), &mut self.answer).await {
                return Ok(answered);
            }
            if push.answer_by < limit {
                break Some((written, since));
            }
            if !pool.miss_answer(connection, written, since) {
                break None;
            }
            since = limit;
        };
        if !connection.is_proven() && written.elapsed() >= FIRST_ANSWER_WAIT {
            // Its only stream is taken by a request that may never be answered. Its address is not to blame yet.
            pool.retire(connection, End::Replaced, "its first request was not answered");
        }
        Err(given_up)
    }

    /// Its time is up, and the connection could not take its body: what is left of it is called back, so that it cannot leave
    /// later.
    fn call_back(self, slot: &Slot, push: &Push, written: Instant) -> PushError {
        self.withdraw();
        let why = "the connection took no more data";
        if Instant::now() >= push.deadline {
            return PushError::NotSent(Some(why.to_owned()));
        }
        slot.pool().miss_answer(&slot.connection, written, written);
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

/// Whether a token is called dead by an answer that broke off before it said since when: it may have been registered later.
fn is_cut_short(response: &Response, is_whole: bool) -> bool {
    !is_whole && response.meaning() == Meaning::TokenDead && response.invalid_since.is_none()
}

/// What an answer says of its connection and of the credential. Where it is the provider token that was refused, the
/// connection stays wedged: a fresh one starts with a fresh look at the token.
fn heed(pool: &Pool, slot: &mut Slot, response: &Response, now: Instant) -> Result<(), PushError> {
    let fresh = !slot.connection.is_proven();
    slot.answered(response.status, now);
    let connection = &slot.connection;
    if !response.refuses_credential() {
        if response.status == 503 && response.reason_label() == "Shutdown" {
            pool.retire(connection, End::GoAway, "Apple says Shutdown");
        }
        // Neither says anything of the credential.
        if response.status != 403 && response.status < 500 {
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
        let hint = match response.reason {
            Some(Reason::UnrelatedKeyIdInToken) => String::new(),
            _ => format!("; is the clock of this machine right? It says {now}"),
        };
        pool.refuse_credential(&format!("{word} on a fresh connection too{hint}"), true);
    }
    Err(PushError::ProviderToken(response.clone()))
}

/// Waits on for the answer of a request that was given up: it tells the truth, if its call is not over, and is counted; its stream
/// stays given out until then. Where the call's end came first (`unjudged`) the connection is judged when the request's limit comes.
fn reap(mut slot: Slot, mut request: Request, push: &Push, unjudged: Option<Unjudged>) {
    let (late, heard) = oneshot::channel();
    push.trail.hear_late(heard);
    tokio::spawn(async move {
        let pool = Arc::clone(slot.pool());
        let mut answered = None;
        if let Some((written, since)) = unjudged {
            answered = timeout_at(since + pool.parts.request_timeout, &mut request.answer).await.ok();
            if answered.is_none() {
                pool.miss_answer(&slot.connection, written, since);
            }
        }
        if answered.is_none() {
            answered = timeout(REAP_WAIT, request.answer).await.ok();
        }
        if let Some(Ok(head)) = answered {
            let (response, is_whole) = response::read(head, Instant::now() + REAP_WAIT).await;
            slot.answered(response.status, Instant::now());
            pool.parts.metrics.late_answer(pool.parts.environment.as_str(), response.status);
            if !is_cut_short(&response, is_whole) {
                // Its call may be over.
                let _ = late.send(response);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::sleep;

    use super::*;
    use crate::apns::connection::{self, Observer};

    const DATA: u8 = 0;
    const RST_STREAM: u8 = 3;
    const END_STREAM: u8 = 1;

    struct Nobody;

    impl Observer for Nobody {
        fn limit_changed(&self) {}
        fn ended(&self, _: &Connection, _: &str, _: Option<&'static str>) {}
    }

    /// A connection whose peer allows so many streams and has so much room for what it has not read.
    async fn connect(streams: u8, room: usize) -> (Arc<Connection>, DuplexStream) {
        let (ours, mut peer) = tokio::io::duplex(room);
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        let (connection, driver) = connection::shake_hands(Box::new(ours), 1, address).await.unwrap();
        tokio::spawn(connection::drive(driver, Arc::downgrade(&connection), Nobody));
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, streams];
        let acknowledged = [0, 0, 0, 4, 1, 0, 0, 0, 0];
        peer.write_all(&[&settings[..], &acknowledged].concat()).await.unwrap();
        peer.read_exact(&mut [0; 24]).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        (connection, peer)
    }

    /// Kind, flags and stream of every frame that comes within a moment.
    async fn frames(peer: &mut DuplexStream) -> Vec<(u8, u8, u8)> {
        let mut bytes = Vec::new();
        let reading = async { while peer.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {} };
        // Elapsed: the connection stays open.
        let _ = timeout(Duration::from_millis(100), reading).await;
        let (mut frames, mut rest) = (Vec::new(), bytes.as_slice());
        while let [_, high, low, kind, flags, _, _, _, stream, ..] = *rest {
            frames.push((kind, flags, stream));
            rest = &rest[9 + usize::from(high) * 256 + usize::from(low)..];
        }
        frames
    }

    fn send(connection: &Connection, bytes: usize) -> Request {
        let request = http::Request::post("https://apns.test/3/device/ab01").body(()).unwrap();
        Request::send(connection, request, vec![b'x'; bytes].into()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_that_the_socket_took_in_part_never_ends() {
        let (connection, mut peer) = connect(10, 2_000).await;
        let request = send(&connection, 4_000);
        sleep(Duration::from_millis(1)).await;
        assert!(!request.taken.all());
        request.withdraw();
        let frames = frames(&mut peer).await;
        assert!(frames.iter().any(|(kind, _, _)| *kind == DATA), "{frames:?}");
        assert!(frames.iter().all(|(kind, flags, _)| *kind != DATA || flags & END_STREAM == 0), "{frames:?}");
        assert_eq!(frames.last().unwrap().0, RST_STREAM);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_whose_stream_h2_has_not_opened_never_leaves() {
        let (connection, mut peer) = connect(1, 60_000).await;
        let (first, second) = (send(&connection, 100), send(&connection, 100));
        sleep(Duration::from_millis(1)).await;
        assert!(first.taken.all() && !second.taken.all());
        second.withdraw();
        // 200 for the first one makes room.
        peer.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await.unwrap();
        let frames = frames(&mut peer).await;
        assert!(frames.contains(&(DATA, END_STREAM, 1)), "{frames:?}");
        assert!(!frames.iter().any(|(kind, _, stream)| (*kind, *stream) == (DATA, 3)), "{frames:?}");
    }

    /// A 410 without its timestamp would condemn a token that was registered since.
    #[tokio::test(start_paused = true)]
    async fn an_answer_whose_body_breaks_off_is_told_from_a_whole_one() {
        let body = br#"{"reason":"Unregistered","timestamp":1795253400000}"#;
        let length = u8::try_from(body.len()).unwrap();
        let head = [0, 0, 5, 1, 4, 0, 0, 0, 1, 0x08, 3, b'4', b'1', b'0'];
        let whole = [&head[..], &[0, 0, length, DATA, END_STREAM, 0, 0, 0, 1], body].concat();
        let endless = [&head[..], &[0, 0, length, DATA, 0, 0, 0, 0, 1], body].concat();
        let reset = [&endless[..], &[0, 0, 4, RST_STREAM, 0, 0, 0, 0, 1, 0, 0, 0, 2]].concat();
        for (answer, is_whole, is_dated) in
            [(&whole[..], true, true), (&endless, false, true), (&reset, false, true), (&head, false, false)]
        {
            let (connection, mut peer) = connect(10, 60_000).await;
            let request = send(&connection, 100);
            sleep(Duration::from_millis(1)).await;
            peer.write_all(answer).await.unwrap();
            let head = request.answer.await.unwrap();
            let (response, whole) = response::read(head, Instant::now() + Duration::from_secs(5)).await;
            assert_eq!((response.status, response.invalid_since.is_some()), (410, is_dated));
            assert_eq!(whole, is_whole, "{answer:?}");
            assert_eq!(is_cut_short(&response, whole), !is_dated);
        }
    }
}
