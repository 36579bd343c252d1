//! One HTTP/2 connection to APNs: its handshake, its provider token, its end.

use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::dial::{BoxedIo, DialError};
use super::provider_token::{MintError, ProviderToken, TokenMint};
use crate::domain::response::Reason;

/// A connection keeps its provider token at least this long: APNs answers a change within 20 minutes with 429
/// TooManyProviderTokenUpdates (Apple, *Establishing a token-based connection to APNs*).
const TOKEN_KEPT: Duration = Duration::from_secs(20 * 60 + 30);

/// Streams that were given up are remembered this long, and this many: an answer to a forgotten one would count as a fault
/// of the peer, and h2 closes the connection after 1024 of them.
const RESET_STREAMS_MAX: usize = 10_000;
const RESET_STREAMS_KEPT: Duration = Duration::from_mins(1);

/// Between two PINGs on a connection, in use or idle.
const PING_PAUSE: Duration = Duration::from_secs(15);

/// How long a PONG may take.
const PONG_WAIT: Duration = Duration::from_secs(3);

/// Bytes of an answer's headers at most.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// A usable connection. It is shared by the pool and by the slots on it; when the last of them goes, h2 says GOAWAY and
/// closes.
#[derive(Debug)]
pub(super) struct Connection {
    /// Starts at 1.
    pub id: u64,
    /// Opens streams.
    pub sender: SendRequest<Bytes>,
    /// Asked by the driver whether new streams are refused.
    probe: Mutex<SendRequest<Bytes>>,
    /// It was handed out; for the metric, which outlives it.
    pub admitted: Arc<AtomicBool>,
    /// An answer other than a refused provider token came: more than one stream may be open.
    proven: AtomicBool,
    token: Mutex<Pinned>,
    retired: watch::Sender<bool>,
}

#[derive(Debug)]
struct Pinned {
    token: Arc<ProviderToken>,
    since: Instant,
}

/// What a connection's driver reports while it runs.
pub(super) trait Observer: Send + 'static {
    /// The peer's settings may allow more or fewer streams now.
    fn limit_changed(&self);
    /// The peer said GOAWAY (with a reason for the metric), or the connection failed; `why` is for people.
    fn ended(&self, connection: &Connection, why: &str, goaway: Option<&'static str>);
}

/// Why a connection is not usable.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the HTTP/2 handshake failed: {0}")]
    Handshake(h2::Error),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error("not usable within {} s", .0.as_secs())]
    Slow(Duration),
}

/// The h2 connection, which must be driven for anything to happen on it.
pub(super) type Driver = h2::client::Connection<BoxedIo, Bytes>;

/// Shakes hands. The connection is not usable before [`prove_alive`] has returned while the driver runs.
pub(super) async fn shake_hands(
    io: BoxedIo,
    id: u64,
    mint: &TokenMint,
) -> Result<(Arc<Connection>, Driver), OpenError> {
    let token = mint.current()?;
    let (sender, driver) = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(1)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .reset_stream_duration(RESET_STREAMS_KEPT)
        .handshake(io)
        .await
        .map_err(OpenError::Handshake)?;
    let connection = Connection {
        id,
        probe: Mutex::new(sender.clone()),
        sender,
        admitted: Arc::default(),
        proven: AtomicBool::new(false),
        token: Mutex::new(Pinned { token, since: Instant::now() }),
        retired: watch::Sender::new(false),
    };
    Ok((Arc::new(connection), driver))
}

/// Awaits a PONG: the peer is there, and its settings, which came first, are known (RFC 9113 §6.5.3, §6.7).
pub(super) async fn prove_alive(ping_pong: &mut h2::PingPong) -> Result<(), OpenError> {
    ping_pong.ping(h2::Ping::opaque()).await.map(|_| ()).map_err(OpenError::Handshake)
}

/// Returns when a PING stays without its PONG. A connection that died in silence, behind a NAT say, shows in nothing else.
pub(super) async fn fall_silent(mut ping_pong: h2::PingPong) {
    loop {
        sleep(PING_PAUSE).await;
        if !matches!(timeout(PONG_WAIT, prove_alive(&mut ping_pong)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Drives a connection to its end and reports on the way. It ends when the peer closes, or when its last handle and its last
/// stream are gone. It holds no handle itself.
pub(super) async fn drive(mut driver: Driver, connection: Weak<Connection>, observer: impl Observer) {
    let mut limit = None;
    let mut reported = false;
    let end = poll_fn(move |cx| {
        let end = Pin::new(&mut driver).poll(cx);
        if reported {
            return end;
        }
        let Some(connection) = connection.upgrade() else { return end };
        let current = Some(connection.sender.current_max_send_streams());
        if current != limit {
            limit = current;
            observer.limit_changed();
        }
        // A GOAWAY shows here first: new streams are refused while old ones still run.
        let refused = match connection.probe.lock().poll_ready(cx) {
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        };
        if let Some(error) = &refused {
            let why = error.to_string();
            let goaway = (error.is_go_away() && error.is_remote()).then(|| goaway_reason(&why));
            reported = true;
            observer.ended(&connection, &why, goaway);
        } else if let Poll::Ready(result) = &end {
            let why =
                result.as_ref().err().map_or_else(|| "the peer closed it".to_owned(), ToString::to_string);
            reported = true;
            observer.ended(&connection, &why, None);
        }
        end
    });
    // Its result was reported on the way.
    let _ = end.await;
}

impl Connection {
    /// The `authorization` header of the next request, where there is one. A newer token is taken once the one in use was kept long enough.
    pub(super) fn authorization(&self, mint: &TokenMint) -> Result<Option<HeaderValue>, MintError> {
        let mut pinned = self.token.lock();
        if pinned.since.elapsed() >= TOKEN_KEPT || !mint.is_fresh(&pinned.token) {
            let current = mint.current()?;
            if current.issued_at != pinned.token.issued_at {
                *pinned = Pinned { token: current, since: Instant::now() };
            }
        }
        Ok(pinned.token.header.clone())
    }

    /// Whether it may open more than one stream.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// APNs answered a request on it.
    pub(super) fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Whether it is out of use.
    pub(super) fn is_retired(&self) -> bool {
        *self.retired.borrow()
    }

    /// Out of use: no new streams, those that are open may finish. True for the first who says so.
    pub(super) fn retire(&self) -> bool {
        !self.retired.send_replace(true)
    }

    /// Returns when it is out of use.
    pub(super) fn retirement(&self) -> impl Future<Output = ()> + use<> {
        let mut retired = self.retired.subscribe();
        async move {
            // Closed: the connection itself is gone, which is as good.
            let _ = retired.wait_for(|retired| *retired).await;
        }
    }
}

/// The reason in a GOAWAY's text as a label: one of Apple's words, `none` or `other`.
fn goaway_reason(why: &str) -> &'static str {
    const WORDS: [&str; 5] =
        ["BadCertificateEnvironment", "BadCertificate", "IdleTimeout", "Shutdown", "InternalServerError"];
    if let Some(word) = WORDS.into_iter().find(|word| why.contains(word)) {
        return word;
    }
    if why.contains("Maximum active streams") {
        return "MaximumStreams";
    }
    let named = Reason::known().iter().any(|reason| why.contains(reason.as_str()));
    if named || why.contains("reason") { "other" } else { "none" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goaway_text_gives_a_label_from_a_closed_set() {
        for (why, label) in [
            (
                r#"connection error received: not a result of an error (b"{\"reason\":\"Shutdown\"}")"#,
                "Shutdown",
            ),
            (r#"… (b"{\"reason\":\"BadCertificateEnvironment\"}")"#, "BadCertificateEnvironment"),
            ("Maximum active streams violated for this endpoint.", "MaximumStreams"),
            (r#"(b"{\"reason\":\"Whatever\"}")"#, "other"),
            ("", "none"),
            ("broken pipe", "none"),
        ] {
            assert_eq!(goaway_reason(why), label, "{why}");
        }
    }
}
