//! What operators and Kubernetes ask a worker over HTTP:
//!
//! - `/metrics`: every family, in Prometheus' text format.
//! - `/livez`: 200 while the process can do work at all, whatever the broker or Apple do.
//! - `/readyz`: 200 while it takes invites and can push them, else 503 with the reasons, one a line.
//! - `/log-level`: what the log lets through. `PUT` changes it until the worker ends, from this host alone: a pod's own
//!   containers, and `kubectl port-forward`.
//!
//! It has a thread and a runtime of its own, so that the answers come under load, too, and so that a stuck core is
//! noticed by somebody else.

mod health;
mod site;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use health::{Health, Readiness};
use site::Site;

use crate::logging::Level;
use crate::metrics::Metrics;

/// Connections at once. A probe and a few scrapers need a handful; the others wait in the listener's queue.
const CONNECTIONS_MAX: usize = 64;

/// A connection serves one request and is closed after this, so that idle or slow peers hold no place for long.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a request's head may take to come.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8192;

/// How long requests under way may still take when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// `[admin]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `admin.listen`: where to listen; port 0 for any free one.
    pub listen: SocketAddr,
}

/// The running server. Dropped, it stops by itself, but nobody waits for it.
#[derive(Debug)]
pub struct Admin {
    local_addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Binds at once, then serves on a thread of its own. `level`: the log's, where there is one to show and change.
///
/// Errors: the address cannot be bound (the error names it), or the thread cannot be had.
pub fn start(
    settings: Settings,
    metrics: Arc<Metrics>,
    health: Health,
    level: Option<Level>,
) -> io::Result<Admin> {
    let listen = settings.listen;
    let name_it = |error: io::Error| {
        io::Error::new(error.kind(), format!("the admin endpoints cannot listen on {listen}: {error}"))
    };
    let listener = TcpListener::bind(listen).map_err(name_it)?;
    listener.set_nonblocking(true)?;
    let local_addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let site = Arc::new(Site { metrics, health, level });
    let thread = std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || serve(&runtime, listener, &site, stopped))?;
    tracing::info!(admin.address = %local_addr, "serving /metrics, /livez, /readyz and /log-level");
    Ok(Admin { local_addr, stop: Some(stop), thread: Some(thread) })
}

impl Admin {
    /// Where it listens, with the port that was found for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops listening, lets requests under way end (a second at most) and joins the thread. Blocks.
    pub fn stop(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the admin endpoints had died");
        }
    }
}

fn serve(runtime: &Runtime, listener: TcpListener, site: &Arc<Site>, stopped: oneshot::Receiver<()>) {
    runtime.block_on(async {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the admin endpoints cannot be served");
                return;
            }
        };
        let mut connections = JoinSet::new();
        tokio::select! {
            biased; // A stop comes before another connection.
            _ = stopped => {}
            never = accept(&listener, site, &mut connections) => match never {},
        }
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        // Late ones are cut off with the set.
        let _ = timeout(STOP_GRACE, ended).await;
    });
}

async fn accept(
    listener: &tokio::net::TcpListener,
    site: &Arc<Site>,
    connections: &mut JoinSet<()>,
) -> Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                let site = site.clone();
                connections.spawn(async move {
                    let _place = place;
                    let service = service_fn(move |request| {
                        let site = site.clone();
                        async move { Ok::<_, Infallible>(site.answer(peer, request).await) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIME_MAX)
                        .max_buf_size(HEAD_BYTES_MAX)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service);
                    // How a peer hangs up is its own business.
                    let _ = timeout(CONNECTION_TIME_MAX, connection).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the admin endpoints could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::site::{ENDPOINTS, LEVEL_BYTES_MAX};
    use super::*;
    use crate::logging;

    fn server(health: &Health) -> Admin {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        start(Settings { listen }, Metrics::new(), health.clone(), None).expect("a free port")
    }

    /// Sends bytes and reads until the server hangs up.
    fn exchange(admin: &Admin, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(admin.local_addr()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.write_all(request).expect("a request");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response in time");
        response
    }

    fn ask(admin: &Admin, method: &str, path: &str) -> String {
        exchange(admin, format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
    }

    fn body(response: &str) -> &str {
        response.split_once("\r\n\r\n").expect("a head").1
    }

    #[test]
    fn metrics_come_in_the_text_format() {
        let admin = server(&Health::new());
        let response = ask(&admin, "GET", "/metrics");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains("content-type: text/plain; version=0.0.4"), "{response}");
        assert!(body(&response).contains("ringcast_build_info{version="), "{response}");
        admin.stop();
    }

    #[test]
    fn readiness_is_what_its_contributors_say_now() {
        let health = Health::new();
        let admin = server(&health);
        let response = ask(&admin, "GET", "/readyz");
        assert!(response.starts_with("HTTP/1.1 503"), "{response}");
        assert_eq!(body(&response), "starting: nothing has reported yet\n");

        let told = Arc::new(parking_lot::Mutex::new(Readiness::ready()));
        let state = told.clone();
        health.ready_when("amqp", move || state.lock().clone());
        health.ready_when("apns", || Readiness::ready().with_note("sandbox: no connection"));
        let response = ask(&admin, "GET", "/readyz");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(body(&response), "ready\napns: sandbox: no connection\n");

        *told.lock() = Readiness::not_ready("not connected").with_reason("blocked");
        let response = ask(&admin, "GET", "/readyz?verbose");
        assert!(response.starts_with("HTTP/1.1 503"), "{response}");
        assert_eq!(body(&response), "amqp: not connected\namqp: blocked\napns: sandbox: no connection\n");
        admin.stop();
    }

    #[test]
    fn liveness_is_the_heartbeat_of_the_core() {
        let health = Health::new();
        let admin = server(&health);
        health.silent_for(Duration::from_secs(11));
        let response = ask(&admin, "GET", "/livez");
        assert!(response.starts_with("HTTP/1.1 503"), "{response}");
        assert!(body(&response).starts_with("the core has been stuck for 1"), "{response}");
        health.heartbeat();
        let response = ask(&admin, "GET", "/livez");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(body(&response), "alive\n");
        admin.stop();

        let shards = Health::of_shards(2);
        let admin = server(&shards[0]);
        shards[1].silent_for(Duration::from_secs(11));
        let response = ask(&admin, "GET", "/livez");
        assert!(response.starts_with("HTTP/1.1 503"), "one stuck shard is enough: {response}");
        assert!(body(&response).starts_with("the core of shard 2 has been stuck for 1"), "{response}");
        shards[1].heartbeat();
        assert!(ask(&admin, "GET", "/livez").starts_with("HTTP/1.1 200"));
        admin.stop();
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let admin = server(&Health::new());
        let response = ask(&admin, "HEAD", "/livez");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains("content-length: 6"), "{response}");
        assert_eq!(body(&response), "");
        admin.stop();
    }

    #[test]
    fn other_paths_and_methods_are_refused_helpfully() {
        let admin = server(&Health::new());
        let response = ask(&admin, "GET", "/healthz");
        assert!(response.starts_with("HTTP/1.1 404"), "{response}");
        assert!(body(&response).ends_with(ENDPOINTS), "{response}");
        let response = ask(&admin, "POST", "/readyz");
        assert!(response.starts_with("HTTP/1.1 405"), "{response}");
        assert!(response.contains("allow: GET, HEAD"), "{response}");
        let huge = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2 * HEAD_BYTES_MAX));
        assert!(exchange(&admin, &huge.as_bytes()[..HEAD_BYTES_MAX]).starts_with("HTTP/1.1 431"));
        admin.stop();
    }

    #[test]
    fn the_level_of_the_log_is_shown_and_changed() {
        let settings = logging::Settings {
            format: logging::Format::Json,
            level: "info,h2=warn".to_owned(),
            shows_threads: false,
        };
        let (_log, level) = logging::make(&settings).expect("a level");
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = start(Settings { listen }, Metrics::new(), Health::new(), Some(level)).expect("a port");
        let put = |level: &str| {
            let head =
                format!("PUT /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", level.len());
            exchange(&admin, (head + level).as_bytes())
        };
        assert_eq!(body(&ask(&admin, "GET", "/log-level")), "h2=warn,info\n");
        let response = put("ringcast=debug,warn\n");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(body(&response), "ringcast=debug,warn\n");
        let response = put("loud");
        assert!(response.starts_with("HTTP/1.1 400"), "{response}");
        assert!(body(&response).starts_with("\"loud\" is not a log filter; give a level"), "{response}");
        let page = b"PUT /log-level HTTP/1.1\r\nhost: x\r\norigin: http://x\r\ncontent-length: 3\r\n\r\noff";
        assert!(
            exchange(&admin, page).starts_with("HTTP/1.1 403"),
            "a name that leads here makes a page our own"
        );
        assert!(put(&"info,".repeat(LEVEL_BYTES_MAX)).starts_with("HTTP/1.1 413"));
        let response = ask(&admin, "DELETE", "/log-level");
        assert!(response.contains("allow: GET, HEAD, PUT"), "{response}");
        assert_eq!(body(&ask(&admin, "GET", "/log-level")), "ringcast=debug,warn\n");
        admin.stop();

        let admin = server(&Health::new());
        assert!(ask(&admin, "GET", "/log-level").starts_with("HTTP/1.1 404"));
        admin.stop();
    }

    #[test]
    fn silent_connections_hold_no_place_for_ever() {
        let admin = server(&Health::new());
        let connect = |_| TcpStream::connect(admin.local_addr()).expect("a connection");
        let silent: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(connect).collect();
        // It waits behind them until the time for their heads is over.
        assert!(ask(&admin, "GET", "/metrics").starts_with("HTTP/1.1 200"));
        drop(silent);
        admin.stop();
    }

    #[test]
    fn a_taken_address_is_named() {
        let admin = server(&Health::new());
        let again = start(Settings { listen: admin.local_addr() }, Metrics::new(), Health::new(), None);
        let error = again.expect_err("the address is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&admin.local_addr().to_string()), "{error}");
        admin.stop();
    }

    #[test]
    fn once_stopped_it_listens_no_more() {
        let admin = server(&Health::new());
        let address = admin.local_addr();
        let idle = TcpStream::connect(address).expect("a connection");
        admin.stop();
        assert!(TcpStream::connect(address).is_err());
        drop(idle);
    }
}
