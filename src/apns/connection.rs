//! One HTTP/2 connection to APNs: its handshake, its provider token, its end.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Poll;
use std::time::Duration;

use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::dial::{BoxedIo, DialError};
use super::goaway;
use super::provider_token::{MintError, PinError, Pinned, TokenMint};
use super::request::{Body, Head, Template};

/// Streams that were given up are remembered this long, and this many: an answer to a forgotten one would count as a fault
/// of the peer, and h2 closes the connection after 1024 of them.
const RESET_STREAMS_MAX: usize = 10_000;
const RESET_STREAMS_KEPT: Duration = Duration::from_mins(1);

/// How often it is asked whether the provider token is still good. Its times are minutes.
const TOKEN_LOOK: Duration = Duration::from_secs(1);

/// Bytes of an answer's headers at most.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// A usable connection. It is shared by the pool and by the slots on it; when the last of them goes, h2 says GOAWAY and
/// closes.
#[derive(Debug)]
pub(super) struct Connection {
    /// Starts at 1.
    pub id: u64,
    /// Where it leads.
    pub address: SocketAddr,
    /// When it was opened.
    pub opened: Instant,
    /// Opens streams.
    pub sender: SendRequest<Body>,
    /// Asked by the driver whether new streams are refused.
    probe: Mutex<SendRequest<Body>>,
    /// An answer other than a refused provider token came: more than one stream may be open.
    proven: AtomicBool,
    /// A request was answered on it, with something else than a failure of Apple's.
    served: AtomicBool,
    /// Answers in a row that were a failure of Apple's.
    failures: AtomicU32,
    heads: Mutex<Heads>,
    /// No new streams; says why, once.
    retired: OnceLock<Arc<str>>,
    /// Stops its driver, and with that every request on it.
    driver: OnceLock<AbortHandle>,
    /// Wakes its watch when a stream is given out that it does not expect.
    pub alarm: Arc<Notify>,
}

/// The headers of the requests on one connection: prepared once for each app, and again when its provider token changes.
#[derive(Debug, Default)]
struct Heads {
    token: Pinned,
    authorization: Option<HeaderValue>,
    /// When the token was last looked at.
    looked: Option<Instant>,
    /// By the app's index. Boxed: a key or certificate of one app among thousands leaves the other places empty.
    prepared: Vec<Option<Box<HeaderMap>>>,
}

impl Heads {
    fn next(
        &mut self,
        template: &Template,
        mint: Option<&TokenMint>,
        app: usize,
        now: Instant,
    ) -> Result<Head, PinError> {
        let is_first = self.looked.is_none();
        if self.looked.is_none_or(|at| now >= at + TOKEN_LOOK) {
            let authorization = mint.map(|mint| self.token.header(mint)).transpose()?;
            if authorization != self.authorization {
                self.prepared.clear();
                self.authorization = authorization;
            }
            self.looked = Some(now);
        }
        if self.prepared.len() <= app {
            self.prepared.resize(app + 1, None);
        }
        let prepare = || Box::new(template.headers(app, self.authorization.clone()));
        Ok(Head { headers: HeaderMap::clone(self.prepared[app].get_or_insert_with(prepare)), is_first })
    }
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
    #[error("closed before it was usable: {0}")]
    Closed(Arc<str>),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error("{} not usable within {} s", tell_address(.0.as_ref()), .1.as_secs())]
    Slow(Option<SocketAddr>, Duration),
}

fn tell_address(address: Option<&SocketAddr>) -> String {
    address.map_or_else(|| "no address was found, and so".to_owned(), |address| format!("{address} was"))
}

impl OpenError {
    /// For the metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Dial(error) => error.label(),
            Self::Handshake(_) | Self::Closed(_) if goaway::refuses_certificate(&self.to_string()) => "key",
            Self::Handshake(_) => "http2",
            Self::Closed(_) => "closed",
            Self::Mint(_) => "key",
            Self::Slow(..) => "timeout",
        }
    }

    /// Whether the peer says that other settings are needed.
    pub(super) fn blames_configuration(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Handshake(_))
            && goaway::blames_configuration(&self.to_string())
    }
}

/// The h2 connection, which must be driven for anything to happen on it.
pub(super) type Driver = h2::client::Connection<BoxedIo, Body>;

/// Shakes hands. The connection is not usable before [`prove_alive`] has returned while the driver runs.
pub(super) async fn shake_hands(
    io: BoxedIo,
    id: u64,
    address: SocketAddr,
) -> Result<(Arc<Connection>, Driver), OpenError> {
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
        address,
        opened: Instant::now(),
        probe: Mutex::new(sender.clone()),
        sender,
        proven: AtomicBool::new(false),
        served: AtomicBool::new(false),
        failures: AtomicU32::new(0),
        heads: Mutex::default(),
        retired: OnceLock::new(),
        driver: OnceLock::new(),
        alarm: Arc::default(),
    };
    Ok((Arc::new(connection), driver))
}

/// Awaits a PONG: the peer is there, and its settings, which came first, are known (RFC 9113 §6.5.3, §6.7).
pub(super) async fn prove_alive(ping_pong: &mut h2::PingPong) -> Result<(), h2::Error> {
    ping_pong.ping(h2::Ping::opaque()).await.map(|_| ())
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
            let goaway = (error.is_go_away() && error.is_remote()).then(|| goaway::label(&why));
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
    /// The head of the next request, which is for this app.
    pub(super) fn head(
        &self,
        template: &Template,
        mint: Option<&TokenMint>,
        app: usize,
        now: Instant,
    ) -> Result<Head, PinError> {
        self.heads.lock().next(template, mint, app, now)
    }

    /// Whether it must be replaced, because its provider token gets too old before it may be changed.
    pub(super) fn is_worn(&self, mint: Option<&TokenMint>) -> bool {
        mint.is_some_and(|mint| self.heads.lock().token.is_worn(mint))
    }

    /// Whether it may open more than one stream.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// APNs answered a request on it; `failed`: with a failure of its own. True for the first answer.
    pub(super) fn prove(&self, failed: bool) -> bool {
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        } else {
            self.served.store(true, Ordering::Relaxed);
            if self.failures() > 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
        }
        !self.is_proven() && !self.proven.swap(true, Ordering::Relaxed)
    }

    /// Whether it ever answered a request, with something else than a failure of Apple's.
    pub(super) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Answers in a row that were a failure of Apple's.
    pub(super) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Why it is out of use, if it is.
    pub(super) fn retired(&self) -> Option<&Arc<str>> {
        self.retired.get()
    }

    /// Out of use: no new streams, those that are open may finish. True for the first who says so.
    pub(super) fn retire(&self, why: &str) -> bool {
        self.retired.set(why.into()).is_ok()
    }

    /// From here on this drives it.
    pub(super) fn driven_by(&self, driver: AbortHandle) {
        // Set once, by the one who admits it.
        let _ = self.driver.set(driver);
    }

    /// Ends it now: every request on it fails.
    pub(super) fn cut(&self) {
        if let Some(driver) = self.driver.get() {
            driver.abort();
        }
    }
}
