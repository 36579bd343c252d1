//! One connection, from the HTTP/2 handshake to its end.
//!
//! Everything runs in the caller's task: the connection itself and all its requests are polled by one loop. A request
//! is a small future: read the body, judge, look for a fault, write the journal, wait, answer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Shared;
use super::certificate::Certificate;
use super::faults::{ConnectAction, GoAway};
use super::order::{Order, Signal, What};
use super::peer::Spot;
use super::wire::Wire;

mod exchange;
mod state;
mod window;

use state::{Connection, Then};
use window::Due;

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
    certificate: Option<Certificate>,
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
            if let Err(error) =
                serve_http2(Connection::new(shared, spot, certificate), io, signals, struck, stop).await
            {
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

/// What a connection begins with: its settings, and for how long they are held back.
fn begin(connection: &Connection<'_>, struck: Option<&ConnectAction>) -> (h2::server::Builder, Duration) {
    let shared = connection.shared;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(shared.options.max_concurrent_streams)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_REMEMBERED)
        .max_pending_accept_reset_streams(RESET_STREAMS_REMEMBERED)
        .max_local_error_reset_streams(None);
    connection.set_one_stream(shared.options.one_stream_first && connection.certificate.is_none());
    if shared.faults.is_silent(connection.spot) {
        connection.control.freeze(true); // ordered while TLS was under way
    }
    let mut hold_settings = Duration::ZERO;
    match struck {
        Some(ConnectAction::Deaf) => connection.control.deafen(true),
        Some(ConnectAction::Limit { streams }) => connection.set_cap(Some(*streams)),
        Some(ConnectAction::SlowSettings { after }) => hold_settings = after.draw(&mut shared.chance.lock()),
        Some(ConnectAction::SlowWindow { after, stream_window }) => {
            connection.windows.slow_down(*after);
            if let Some(bytes) = stream_window {
                builder.initial_window_size(*bytes);
            }
        }
        _ => {}
    }
    (builder, hold_settings)
}

async fn serve_http2<IO, Stop>(
    connection: Connection<'_>,
    io: IO,
    mut signals: Signals,
    struck: Option<ConnectAction>,
    stop: Stop,
) -> Result<(), h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Stop: Future<Output = ()>,
{
    let (shared, control) = (connection.shared, connection.control.clone());
    let (builder, hold_settings) = begin(&connection, struck.as_ref());
    let mut stop = pin!(stop);
    let mut stopping = false;
    let mut holding = !hold_settings.is_zero();
    let mut settings_due = pin!(tokio::time::sleep(hold_settings));
    let mut handshake = pin!(builder.handshake(Wire::new(io, control)));
    let mut http2 = loop {
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            signal = signals.recv() => {
                holding &= !connection.heed(signal);
                if connection.is_closing() {
                    return Ok(());
                }
            }
            () = &mut settings_due, if holding => holding = false,
            http2 = &mut handshake, if !holding => break http2?,
        }
    };
    if let Some(reason) = connection.unwelcome(struck) {
        connection.go_away(&GoAway { reason: Some(reason), ..GoAway::default() });
    }
    let mut in_flight = FuturesUnordered::new();
    let mut windows_due = FuturesUnordered::new();
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
                windows_due.extend(connection.windows.take_due().into_iter().map(Due::give_back));
                while let Poll::Ready(Some(())) = windows_due.poll_next_unpin(cx) {
                    idle = false;
                }
                // At the end only once an idle round has shown that `h2` has written all it had.
                let all_is_out = idle && in_flight.is_empty() && connection.control.is_flushed();
                match connection.then(all_is_out) {
                    Then::GoOn => {}
                    Then::Drop => {
                        // A GOAWAY still goes out; a connection that is just dropped sends nothing more.
                        if connection.is_going_away() {
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
            signal = signals.recv() => {
                connection.heed(signal);
            }
            ended = turn => return ended,
        }
    }
}
