//! Sockets and TLS in front of the simulator.

use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::faults::ConnectAction;
use super::{Simulator, connection};

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// A client that has not finished TLS by then is dropped.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Connections that have not drained that long after a shutdown's GOAWAY are dropped.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause after a failed `accept`: out of file descriptors, usually.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound and served address. Dropped, it ends at once, its connections with it.
#[derive(Debug)]
pub struct Listening {
    local_addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Listening {
    pub(super) async fn bind(
        simulator: Simulator,
        addr: SocketAddr,
        tls: Arc<ServerConfig>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let local_addr = listener.local_addr()?;
        simulator.shared.addresses.number(local_addr); // so that addresses count in the order of the listeners
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(simulator, listener, local_addr, TlsAcceptor::from(tls), stopped));
        Ok(Self { local_addr, stop, task: Some(task) })
    }

    /// The address, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes no more connections, sends GOAWAY to those there are, lets them drain for two seconds, and waits until
    /// all is over. A panic of any connection comes out here.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            rethrow(error);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(
    simulator: Simulator,
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: TlsAcceptor,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut panicked = None;
    loop {
        tokio::select! {
            biased;
            () = stop_of(&mut stopped) => break,
            Some(ended) = connections.join_next() => keep_panic(&mut panicked, ended),
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(simulator.clone(), stream, local_addr, tls.clone(), stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drain = async {
        while let Some(ended) = connections.join_next().await {
            keep_panic(&mut panicked, ended);
        }
    };
    if timeout(DRAIN_TIME_MAX, drain).await.is_err() {
        connections.shutdown().await;
    }
    if let Some(error) = panicked {
        rethrow(error);
    }
}

async fn stop_of(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await; // an error: nobody is left to stop it
}

async fn serve(
    simulator: Simulator,
    stream: TcpStream,
    local_addr: SocketAddr,
    tls: TlsAcceptor,
    mut stopped: watch::Receiver<bool>,
) {
    let shared = &simulator.shared;
    let spot = shared.arrive(Some(local_addr));
    let struck = shared.faults.strike_connect(spot, &shared.chance);
    if matches!(struck, Some(ConnectAction::Refuse | ConnectAction::Silence)) {
        return connection::serve(shared, stream, spot, None, struck, stop_of(&mut stopped)).await; // before TLS
    }
    let _ = stream.set_nodelay(true); // only slower without
    match timeout(HANDSHAKE_TIME_MAX, tls.accept(stream)).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificate = shared.authority.read(chain, (shared.options.clock)());
            connection::serve(shared, stream, spot, certificate, struck, stop_of(&mut stopped)).await;
        }
        Ok(Ok(_)) => tracing::debug!("a client did not ask for h2 by ALPN"),
        Ok(Err(error)) => tracing::debug!(%error, "TLS failed"),
        Err(_) => tracing::debug!("TLS took too long"),
    }
}

fn keep_panic(kept: &mut Option<JoinError>, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        kept.get_or_insert(error);
    }
}

fn rethrow(error: JoinError) {
    if error.is_panic() {
        resume_unwind(error.into_panic());
    }
}
