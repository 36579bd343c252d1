//! Apple's side, as small as it can be: TLS and the h2 crate, on a thread of this process, so that who writes an invite and who sees its
//! request look at one clock. It judges nothing; every request is answered with 200, at once or when the gate is opened.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderName, HeaderValue, Request, Response};
use parking_lot::Mutex;
use ringcast::simulator::Identity;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::Failure;

const STREAMS_MAX: u32 = 1000;
const APNS_ID: HeaderName = HeaderName::from_static("apns-id");
/// What stands before the call id in a push's body.
const BEFORE_CALL_ID: &[u8] = br#""callUUID":""#;
const CALL_ID_BYTES: usize = 36;
/// The digits of a call id that are the push's number.
const NUMBER_DIGITS: usize = 12;

/// A running endpoint; it ends with the process.
pub struct Endpoint {
    pub port: u16,
    state: Arc<State>,
}

struct State {
    epoch: Instant,
    /// The run of now.
    run: Mutex<Arc<Arrivals>>,
    /// Open, requests are answered at once.
    gate: watch::Sender<bool>,
    /// Connections on which something was answered.
    used: AtomicU64,
}

/// When each push of a run was complete here, in nanoseconds since the endpoint's start; 0: not yet.
pub struct Arrivals {
    number: u32,
    at: Vec<AtomicU64>,
    /// Pushes that came.
    pub count: AtomicU64,
    /// Requests that came: with repetitions, and one for each device.
    pub requests: AtomicU64,
}

impl Endpoint {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(identity: &Identity) -> Result<Self, Failure> {
        let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let tls = TlsAcceptor::from(identity.server_config());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let nothing = Arc::new(Arrivals::of(0, 0));
        let state = Arc::new(State {
            epoch: Instant::now(),
            run: Mutex::new(nothing),
            gate: watch::Sender::new(true),
            used: AtomicU64::new(0),
        });
        let served = Arc::clone(&state);
        thread::Builder::new().name("endpoint".to_owned()).spawn(move || {
            let ended = LocalSet::new().block_on(&runtime, accept(listener, tls, served));
            eprintln!("the endpoint ended: {ended:?}");
        })?;
        Ok(Self { port, state })
    }

    /// A new run; what belongs to others is answered and not counted.
    pub fn expect(&self, run: u32, pushes: u64) -> Result<Arc<Arrivals>, Failure> {
        let arrivals = Arc::new(Arrivals::of(run, usize::try_from(pushes)?));
        *self.state.run.lock() = Arc::clone(&arrivals);
        Ok(arrivals)
    }

    /// From now on requests wait, or those that wait and all later ones are answered.
    pub fn answer(&self, at_once: bool) {
        self.state.gate.send_replace(at_once);
    }

    /// How many connections of all runs have had an answer.
    pub fn connections_used(&self) -> u64 {
        self.state.used.load(Ordering::Acquire)
    }

    /// Nanoseconds since the endpoint's start.
    pub fn now(&self) -> u64 {
        self.state.now()
    }
}

impl State {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Arrivals {
    fn of(number: u32, pushes: usize) -> Self {
        let at = (0..pushes).map(|_| AtomicU64::new(0)).collect();
        Self { number, at, count: AtomicU64::new(0), requests: AtomicU64::new(0) }
    }

    /// When push `number` was complete.
    pub fn at(&self, number: usize) -> u64 {
        self.at[number].load(Ordering::Relaxed)
    }

    fn note(&self, body: &[u8], now: u64) {
        let Some(number) = number(body, self.number) else { return };
        if let Some(at) = self.at.get(number) {
            // A repetition does not make the first one later.
            let first = at.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            if first.is_ok() {
                self.count.fetch_add(1, Ordering::Release);
            }
            self.requests.fetch_add(1, Ordering::Release);
        }
    }
}

/// Which push of the run this body belongs to.
fn number(body: &[u8], run: u32) -> Option<usize> {
    let begin = body.windows(BEFORE_CALL_ID.len()).position(|part| part == BEFORE_CALL_ID)?;
    let call_id = body.get(begin + BEFORE_CALL_ID.len()..)?.get(..CALL_ID_BYTES)?;
    let call_id = std::str::from_utf8(call_id).ok()?;
    let (of, rest) = call_id.split_once('-')?;
    if u32::from_str_radix(of, 16).ok()? != run {
        return None;
    }
    usize::from_str_radix(rest.get(rest.len() - NUMBER_DIGITS..)?, 16).ok()
}

async fn accept(listener: std::net::TcpListener, tls: TlsAcceptor, state: Arc<State>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        spawn_local(async move {
            // A client that goes as it likes has ended its run; who misses an answer says so.
            let _ = serve(stream, tls, state).await;
        });
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, state: Arc<State>) -> Result<(), Failure> {
    let read_at = Rc::new(Cell::new(0));
    let stream = Timed { stream, read_at: Rc::clone(&read_at), state: Arc::clone(&state) };
    let stream = tls.accept(stream).await?;
    let used = Rc::new(Cell::new(false));
    let mut http2 = h2::server::Builder::new().max_concurrent_streams(STREAMS_MAX).handshake(stream).await?;
    while let Some(next) = http2.accept().await {
        let (request, respond) = next?;
        let (read_at, used, state) = (Rc::clone(&read_at), Rc::clone(&used), Arc::clone(&state));
        spawn_local(async move {
            // As above.
            let answered = answer(request, respond, &read_at, &state).await.is_ok();
            if answered && !used.replace(true) {
                state.used.fetch_add(1, Ordering::Release);
            }
        });
    }
    Ok(())
}

async fn answer(
    mut request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    read_at: &Cell<u64>,
    state: &State,
) -> Result<(), h2::Error> {
    let mut body = Vec::with_capacity(512);
    while let Some(part) = request.body_mut().data().await {
        let part = part?;
        request.body_mut().flow_control().release_capacity(part.len())?;
        body.extend_from_slice(&part);
    }
    let run = Arc::clone(&state.run.lock());
    run.note(&body, read_at.get());
    if !*state.gate.borrow() {
        // The sender lives as long as the process.
        let _ = state.gate.subscribe().wait_for(|open| *open).await;
    }
    let id = request.headers_mut().remove(APNS_ID).unwrap_or(HeaderValue::from_static(""));
    let mut response = Response::new(());
    response.headers_mut().insert(APNS_ID, id);
    respond.send_response(response, true)?;
    Ok(())
}

/// A stream that remembers when bytes last came out of the kernel: what the endpoint itself then does with them is not the client's time.
struct Timed {
    stream: TcpStream,
    read_at: Rc<Cell<u64>>,
    state: Arc<State>,
}

impl AsyncRead for Timed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_ready() {
            this.read_at.set(this.state.now());
        }
        polled
    }
}

impl AsyncWrite for Timed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
