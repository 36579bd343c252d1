//! A middle box between worker and broker that stops forwarding, each way by itself, and closes nothing.
//!
//! What comes while it does not forward waits in the buffers of the sockets, so that small writes succeed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// What passes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hole {
    /// Nothing to the broker any more.
    pub(crate) to_broker: bool,
    /// Nothing to the worker any more.
    pub(crate) to_worker: bool,
}

/// The rules, and for which connections.
#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    /// Of connections with a lower number.
    hole: Hole,
    hole_below: usize,
    /// Those with a lower number are closed.
    closed_below: usize,
    /// Later connections get so many of the broker's frames, and then nothing passes either way.
    frames_max: Option<usize>,
}

/// See the module. It ends with the test.
pub(crate) struct Relay {
    address: SocketAddr,
    rules: Arc<watch::Sender<Rules>>,
    accepted: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Carries everything to the broker at `port`. With `tls` it is the server of the worker's TLS, and speaks plain AMQP to
    /// the broker.
    pub(crate) async fn start(port: u16, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("there is a free port");
        Self::listen(listener, port, tls)
    }

    pub(crate) fn listen(listener: TcpListener, port: u16, tls: Option<TlsAcceptor>) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let rules = Arc::new(watch::Sender::new(Rules::default()));
        let (count, accepted) = watch::channel(0);
        let task = tokio::spawn({
            let rules = Arc::clone(&rules);
            async move {
                let mut connections = JoinSet::new();
                while let Ok((near, _)) = listener.accept().await {
                    let number = *count.borrow();
                    connections.spawn(carry(near, port, tls.clone(), number, rules.subscribe()));
                    count.send_replace(number + 1);
                }
            }
        });
        Self { address, rules, accepted, task }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections came.
    pub(crate) fn accepted(&self) -> usize {
        *self.accepted.borrow()
    }

    /// Waits until so many connections came.
    pub(crate) async fn await_accepted(&mut self, count: usize) {
        let come = self.accepted.wait_for(|accepted| *accepted >= count);
        timeout(Duration::from_mins(1), come).await.expect("the worker dials").expect("the relay runs");
    }

    /// The connections that there are fall into the hole; later ones are carried.
    pub(crate) fn swallow(&self, hole: Hole) {
        let hole_below = self.accepted();
        self.rules.send_modify(|rules| (rules.hole, rules.hole_below) = (hole, hole_below));
    }

    /// What fell into the hole comes out of it.
    pub(crate) fn heal(&self) {
        self.rules.send_modify(|rules| rules.hole_below = 0);
    }

    /// Closes the connections that there are.
    pub(crate) fn close(&self) {
        let closed_below = self.accepted();
        self.rules.send_modify(|rules| rules.closed_below = closed_below);
    }

    /// Later connections get so many of the broker's frames; `None`: all.
    pub(crate) fn allow(&self, frames_max: Option<usize>) {
        self.rules.send_modify(|rules| rules.frames_max = frames_max);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    near: TcpStream,
    port: u16,
    tls: Option<TlsAcceptor>,
    number: usize,
    rules: watch::Receiver<Rules>,
) {
    let frames_max = rules.borrow().frames_max;
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let mut closed = rules.clone();
    let carrying = async {
        match tls {
            Some(tls) => {
                if let Ok(near) = tls.accept(near).await {
                    pump(near, far, number, rules, frames_max).await;
                }
            }
            None => pump(near, far, number, rules, frames_max).await,
        }
    };
    tokio::select! {
        biased;
        _ = closed.wait_for(|rules| number < rules.closed_below) => {}
        () = carrying => {}
    }
}

async fn pump(
    near: impl AsyncRead + AsyncWrite,
    far: TcpStream,
    number: usize,
    rules: watch::Receiver<Rules>,
    frames_max: Option<usize>,
) {
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    let (to_worker, to_broker) = (rules.clone(), rules);
    tokio::select! {
        () = frames(far_read, near_write, number, to_worker, frames_max) => {}
        () = octets(near_read, far_write, number, to_broker, frames_max == Some(0)) => {}
    }
}

/// From the broker, frame by frame (AMQP 0-9-1, 4.2.3). Returns when either side is closed.
async fn frames(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: usize,
    mut rules: watch::Receiver<Rules>,
    most: Option<usize>,
) {
    let mut passed = 0;
    let mut header = [0; 7];
    while from.read_exact(&mut header).await.is_ok() {
        let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
        let mut rest = vec![0; size as usize + 1];
        if from.read_exact(&mut rest).await.is_err() {
            return;
        }
        if most.is_some_and(|most| passed >= most) {
            // Nothing passes: not the end, either.
            return std::future::pending().await;
        }
        passed += 1;
        // An error is a relay that is gone.
        let _ = rules.wait_for(|rules| number >= rules.hole_below || !rules.hole.to_worker).await.map(drop);
        if to.write_all(&header).await.is_err()
            || to.write_all(&rest).await.is_err()
            || to.flush().await.is_err()
        {
            return;
        }
    }
    // The end is news, too.
    let _ = rules.wait_for(|rules| number >= rules.hole_below || !rules.hole.to_worker).await.map(drop);
}

/// From the worker.
async fn octets(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: usize,
    mut rules: watch::Receiver<Rules>,
    silent: bool,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if silent {
            continue;
        }
        let _ = rules.wait_for(|rules| number >= rules.hole_below || !rules.hole.to_broker).await.map(drop);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// A listener whose queue of connections that nobody accepted is full: the next SYN finds no answer.
pub(crate) struct Deaf {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Deaf {
    pub(crate) async fn listen() -> Self {
        let socket = TcpSocket::new_v4().expect("there are sockets");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("there is a free port");
        let listener = socket.listen(1).expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
            waiting.push(stream.expect("the system takes it for us"));
            assert!(waiting.len() < 10, "its queue never gets full");
        }
        Self { listener, _waiting: waiting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    /// Its queue is emptied, and who comes is carried to the broker at `port`.
    pub(crate) fn hear(self, port: u16) -> Relay {
        Relay::listen(self.listener, port, None)
    }
}
