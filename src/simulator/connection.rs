//! One connection, from the HTTP/2 handshake to its end.
//!
//! Everything runs in the caller's task: the connection itself and all its requests are polled by one loop. A request
//! is a small future: read the body, judge, look for a fault, write the journal, wait, answer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Shared;
use super::faults::{ConnectAction, Ending, GoAway};
use super::order::{Order, Signal, What};
use super::peer::Spot;
use super::provider_token::Session;
use super::wire::{Control, Wire};

mod exchange;

/// What senders have seen Apple announce (SETTINGS, RFC 9113 section 6.5.2).
const HEADER_LIST_BYTES_MAX: u32 = 8000;
/// Streams that clients have given up and `h2` still remembers.
const RESET_STREAMS_REMEMBERED: usize = 2000;

/// Serves `io` until it ends, or until `stop` and what was in flight then. `struck` is the fault that met the
/// connection at its start.
pub(super) async fn serve<IO, Stop>(
    shared: &Shared,
    io: IO,
    spot: Spot,
    struck: Option<ConnectAction>,
    stop: Stop,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Stop: Future<Output = ()>,
{
    let _open = Open::count(shared);
    let mut signals = shared.signals.subscribe();
    match struck {
        Some(ConnectAction::Refuse) => {}
        Some(ConnectAction::Silence) => swallow(io, spot, &mut signals, stop).await,
        struck => {
            if let Err(error) = serve_http2(shared, io, spot, signals, struck, stop).await {
                tracing::debug!(connection = spot.connection, %error, "connection ended");
            }
        }
    }
    shared.journal.flush_if_needed();
}

/// Counts the connection as open while it lives.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn count(shared: &'a Shared) -> Self {
        shared.connections_open.fetch_add(1, Relaxed);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Relaxed);
    }
}

/// Takes what comes and says nothing, until the peer gives up or everything is healed.
async fn swallow<IO>(mut io: IO, spot: Spot, signals: &mut Signals, stop: impl Future<Output = ()>)
where
    IO: AsyncRead + Unpin,
{
    let mut stop = pin!(stop);
    let mut void = [0; 1024];
    loop {
        tokio::select! {
            biased;
            () = &mut stop => return,
            signal = signals.recv() => match signal {
                Ok(Signal { target, what: What::Heal | What::Order(Order::Close) })
                    if target.includes(spot) => return,
                Err(RecvError::Closed) => return,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
            },
            read = io.read(&mut void) => if matches!(read, Ok(0) | Err(_)) { return },
        }
    }
}

type Signals = broadcast::Receiver<Signal>;

async fn serve_http2<IO, Stop>(
    shared: &Shared,
    io: IO,
    spot: Spot,
    mut signals: Signals,
    struck: Option<ConnectAction>,
    stop: Stop,
) -> Result<(), h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Stop: Future<Output = ()>,
{
    let full_limit = shared.options.max_concurrent_streams;
    let control = Control::new(full_limit);
    let connection = Connection::new(shared, spot, control.clone());
    if shared.options.one_stream_first {
        connection.set_limit(1);
    }
    if shared.faults.is_silent(spot) {
        control.freeze(true); // ordered while TLS was under way
    }
    if struck == Some(ConnectAction::Deaf) {
        control.deafen(true);
    }
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(full_limit)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_REMEMBERED)
        .max_pending_accept_reset_streams(RESET_STREAMS_REMEMBERED)
        .max_local_error_reset_streams(None);
    let mut stop = pin!(stop);
    let mut stopping = false;
    let mut handshake = pin!(builder.handshake(Wire::new(io, control)));
    let mut http2 = loop {
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            signal = signals.recv() => {
                connection.heed(signal);
                if connection.is_closing() {
                    return Ok(());
                }
            }
            http2 = &mut handshake => break http2?,
        }
    };
    if let Some(ConnectAction::GoAway { reason }) = struck {
        connection.go_away(&GoAway { reason: Some(reason), ..GoAway::default() });
    }
    let mut in_flight = FuturesUnordered::new();
    loop {
        let turn = poll_fn(|cx| {
            loop {
                let mut idle = true;
                loop {
                    match pin!(http2.accept()).poll(cx) {
                        Poll::Ready(Some(Ok((request, respond)))) => {
                            idle = false;
                            if let Some(respond) = connection.admit(in_flight.len(), &request, respond) {
                                in_flight.push(exchange::run(&connection, request, respond));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending => break,
                    }
                }
                while let Poll::Ready(Some(())) = in_flight.poll_next_unpin(cx) {
                    idle = false;
                }
                // Apart from the match, which would hold the lock to its end.
                // At the end only once an idle round has shown that `h2` has written all it had.
                let all_is_out = idle && in_flight.is_empty() && connection.control.is_flushed();
                let then = connection.state.lock().then(all_is_out);
                match then {
                    Then::GoOn => {}
                    Then::Drop => {
                        // A GOAWAY still goes out; a connection that is just dropped sends nothing more.
                        if connection.state.lock().going_away.is_some() {
                            let _ = pin!(http2.accept()).poll(cx);
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Then::End => {
                        connection.control.end();
                        idle = false;
                    }
                }
                if idle {
                    shared.journal.flush_if_needed();
                    return Poll::Pending;
                }
            }
        });
        tokio::select! {
            biased;
            () = &mut stop, if !stopping => {
                stopping = true;
                connection.go_away(&GoAway::default());
            }
            signal = signals.recv() => connection.heed(signal),
            ended = turn => return ended,
        }
    }
}

/// What a connection knows of itself; its requests share it.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    spot: Spot,
    control: Arc<Control>,
    session: Mutex<Session>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The limit that was announced last.
    announced_limit: Option<u32>,
    /// The highest stream that was judged, faults that promise otherwise aside.
    last_processed: u32,
    going_away: Option<u32>,
    ending: Option<Ending>,
    ended: bool,
    bad_device_tokens: u64,
}

/// What the loop does next.
enum Then {
    GoOn,
    /// Close politely.
    End,
    /// Drop the transport.
    Drop,
}

impl State {
    fn then(&mut self, all_is_out: bool) -> Then {
        match self.ending {
            Some(Ending::Close) => Then::Drop,
            Some(Ending::Drain) if all_is_out && !self.ended => {
                self.ended = true;
                Then::End
            }
            _ => Then::GoOn,
        }
    }
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Shared, spot: Spot, control: Arc<Control>) -> Self {
        Self { shared, spot, control, session: Mutex::default(), state: Mutex::default() }
    }

    /// Refuses a stream that comes after a GOAWAY, or above the limit that the client has acknowledged.
    fn admit(
        &self,
        in_flight: usize,
        request: &http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<SendResponse<Bytes>> {
        let refusal = if self.is_unprocessed(respond.stream_id().as_u32()) {
            "going away"
        } else if in_flight >= self.control.limit() as usize {
            "stream limit"
        } else {
            return Some(respond);
        };
        let stream = respond.stream_id().as_u32();
        self.shared.journal.note(false, |sequence| {
            let notes = exchange::Notes::of_fault((self.shared.options.clock)(), refusal);
            exchange::record(self, sequence, stream, request.uri(), request.headers(), &[], notes)
        });
        respond.send_reset(Code::REFUSED_STREAM);
        None
    }

    /// True for streams above the last id of a GOAWAY that was sent.
    fn is_unprocessed(&self, stream: u32) -> bool {
        self.state.lock().going_away.is_some_and(|last| stream > last)
    }

    fn note_processed(&self, stream: u32) {
        let mut state = self.state.lock();
        state.last_processed = state.last_processed.max(stream);
    }

    /// Sends a GOAWAY whose last id is the highest stream that was processed.
    fn go_away(&self, go_away: &GoAway) {
        let mut state = self.state.lock();
        let last = state.going_away.unwrap_or(u32::MAX).min(state.last_processed);
        let debug = go_away
            .reason
            .as_ref()
            .map_or_else(Vec::new, |reason| serde_json::json!({ "reason": reason }).to_string().into_bytes());
        if go_away.twice {
            self.control.send_go_away((1 << 31) - 1, 0, b"");
        }
        self.control.send_go_away(last, go_away.code, &debug);
        state.going_away = Some(last);
        state.ending = Some(go_away.then);
        if go_away.then == Ending::Silence {
            self.control.deafen(true);
        }
    }

    /// Announces a stream limit unless it stands already.
    fn set_limit(&self, limit: u32) {
        let mut state = self.state.lock();
        if state.announced_limit.unwrap_or(self.shared.options.max_concurrent_streams) != limit {
            state.announced_limit = Some(limit);
            self.control.announce_limit(limit);
        }
    }

    /// What an answer does to the connection: the stream limit, and the patience with bad device tokens.
    fn answered(&self, status: u16, authorized: bool, bad_device_token: bool) {
        let options = &self.shared.options;
        if options.one_stream_after_rejection && matches!(status, 400 | 403) {
            self.set_limit(1);
        } else if authorized && (status == 200 || !options.one_stream_after_rejection) {
            self.set_limit(options.max_concurrent_streams);
        }
        if bad_device_token {
            let mut state = self.state.lock();
            state.bad_device_tokens += 1;
            let too_many = options.bad_device_tokens_max == Some(state.bad_device_tokens);
            drop(state);
            if too_many {
                self.go_away(&GoAway { reason: Some("BadDeviceToken".into()), ..GoAway::default() });
            }
        }
    }

    fn heed(&self, signal: Result<Signal, RecvError>) {
        let Ok(Signal { target, what }) = signal else { return };
        if !target.includes(self.spot) {
            return;
        }
        match what {
            What::Heal => self.heal(),
            What::Order(Order::Freeze | Order::Silence) => self.control.freeze(true),
            What::Order(Order::Deafen) => self.control.deafen(true),
            What::Order(Order::GoAway(order)) => self.go_away(&order),
            What::Order(Order::Close) => self.close(),
        }
    }

    fn heal(&self) {
        self.control.freeze(false);
        self.control.deafen(false);
        let mut state = self.state.lock();
        if state.ending == Some(Ending::Silence) {
            state.ending = Some(Ending::Close);
        }
    }

    /// Drops the transport at the next turn.
    fn close(&self) {
        self.state.lock().ending = Some(Ending::Close);
    }

    fn is_closing(&self) -> bool {
        self.state.lock().ending == Some(Ending::Close)
    }

    fn is_silent(&self) -> bool {
        self.state.lock().ending == Some(Ending::Silence)
    }
}
