//! The network between a worker and Apple: pipes in memory, to as many addresses as the world has.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ringcast::apns::dial::{BoxedIo, DialError, Dialer, Dialling};
use ringcast::simulator::Simulator;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Bytes in flight on one pipe.
const PIPE_BYTES: usize = 64 * 1024;

/// Which worker made each connection that Apple counts.
pub type Dialled = Arc<Mutex<BTreeMap<u64, u64>>>;

/// The network between one worker process and Apple.
pub struct Pipes {
    pub simulator: Simulator,
    /// Who dials.
    pub worker: u64,
    pub dialled: Dialled,
    /// Of the worker; without it every pipe breaks.
    pub power: Arc<AtomicBool>,
    /// Whether new connections can be made.
    pub network: Arc<AtomicBool>,
    /// How many addresses Apple has.
    pub addresses: u8,
    /// How long bytes are on their way, in each direction.
    pub way: Duration,
}

/// Apple's address of that number, from 1.
pub fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 443))
}

impl Pipes {
    fn reach(&self) -> Result<(), DialError> {
        if self.power.load(Ordering::Relaxed) && self.network.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(DialError::Network("nobody is reached".into()))
    }
}

impl Dialer for Pipes {
    fn resolve(&self) -> Dialling<Vec<SocketAddr>> {
        let found = self.reach().map(|()| (1..=self.addresses).map(address).collect());
        Box::pin(std::future::ready(found))
    }

    fn connect(&self, address: SocketAddr) -> Dialling<BoxedIo> {
        let reached = self.reach().map(|()| {
            let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
            if !self.way.is_zero() {
                let (far, end) = tokio::io::duplex(PIPE_BYTES);
                let (from_us, to_us) = tokio::io::split(std::mem::replace(&mut theirs, end));
                let (from_them, to_them) = tokio::io::split(far);
                tokio::spawn(carry(from_us, to_them, self.way));
                tokio::spawn(carry(from_them, to_us, self.way));
            }
            let simulator = self.simulator.clone();
            let (worker, dialled) = (self.worker, Arc::clone(&self.dialled));
            tokio::spawn(async move {
                // It counts the connection as it begins to serve it, which is now.
                dialled.lock().insert(simulator.connections_total() + 1, worker);
                simulator.serve_at(theirs, address).await;
            });
            Box::new(Plug { pipe: ours, power: Arc::clone(&self.power) }) as BoxedIo
        });
        Box::pin(std::future::ready(reached))
    }
}

/// Carries bytes one way, each that much later.
async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, way: Duration) {
    let (departed, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(1_000);
    let arrive = async move {
        while let Some((at, bytes)) = arriving.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown().await;
    };
    let depart = async move {
        let mut bytes = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            if departed.send((Instant::now() + way, bytes[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(arrive, depart);
}

/// A pipe with a plug to pull.
struct Plug {
    pipe: DuplexStream,
    power: Arc<AtomicBool>,
}

impl Plug {
    fn check(&self) -> std::io::Result<()> {
        if self.power.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
}

impl tokio::io::AsyncRead for Plug {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.check()?;
        std::pin::Pin::new(&mut self.pipe).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for Plug {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.check()?;
        std::pin::Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
