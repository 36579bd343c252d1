//! The stream under an AMQP connection: plain or TLS, ours, with a kill switch.
//!
//! The client library runs one thread a connection, and that thread ends only when its socket does. A peer that accepts
//! and then says nothing would keep it, its 8 MiB and the socket for ever, and a connection that the broker blocks cannot
//! even be closed. So the stream is ours: once its [`KillSwitch`] is fired, every read and write fails, and the thread
//! ends. The library is handed a stream that is connected already and, for `amqps`, encrypted already; it has no way to
//! dial by itself, and so no way to fall back to plain text.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_rs::Tokio;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::repair::Repair;
use super::tls;

/// Ends a [`Socket`] from outside. Clones fire the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct KillSwitch(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    fired: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Held while frames are handed over.
    gate: Mutex<()>,
}

/// See [`KillSwitch::hold`]. It cannot be kept over an `await` of a task.
pub(super) type Held<'a> = MutexGuard<'a, ()>;

impl KillSwitch {
    /// From now on every read and write fails, also those that wait.
    pub(super) fn fire(&self) {
        self.0.fired.store(true, Ordering::SeqCst);
        self.0.reader.wake();
        self.0.writer.wake();
    }

    /// Holds the library's thread at its next write until the guard is dropped. It is woken by the first frame that is handed
    /// over; left alone, it would write that one and sleep again, and so for each of a batch.
    pub(super) fn hold(&self) -> Held<'_> {
        self.0.gate.lock()
    }

    /// Fails when fired; else the task is woken when it is.
    fn check(&self, waker: &AtomicWaker, context: &Context<'_>) -> io::Result<()> {
        waker.register(context.waker());
        if self.0.fired.load(Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was given up"));
        }
        Ok(())
    }
}

/// What carries the bytes.
pub(super) enum Carrier {
    /// `amqp`.
    Plain(TcpStream),
    /// `amqps`.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connected stream with its kill switch, in the shape that the client library reads and writes.
pub(super) struct Socket {
    carrier: Carrier,
    kill: KillSwitch,
    repair: Repair,
    /// The beginning of a frame that is not whole yet, at most one frame.
    held: Vec<u8>,
    /// Repaired octets that had no room yet, from `read_up_to` on.
    ready: Vec<u8>,
    read_up_to: usize,
}

impl Socket {
    pub(super) fn new(carrier: Carrier, kill: KillSwitch) -> Self {
        Self { carrier, kill, repair: Repair::default(), held: Vec::new(), ready: Vec::new(), read_up_to: 0 }
    }

    /// Moves repaired octets into `buffer`, and returns how many.
    fn take_ready(&mut self, buffer: &mut [u8]) -> usize {
        let waiting = &self.ready[self.read_up_to..];
        let count = waiting.len().min(buffer.len());
        buffer[..count].copy_from_slice(&waiting[..count]);
        self.read_up_to += count;
        if self.read_up_to == self.ready.len() {
            self.ready.clear();
            self.read_up_to = 0;
        }
        count
    }

    /// A peer that turns a client certificate away says why and hangs up, and what is written then may fail before that was
    /// read. What it said is the reason of the failure.
    fn last_word(&mut self, context: &mut Context<'_>, error: io::Error) -> io::Error {
        let Carrier::Tls(stream) = &mut self.carrier else { return error };
        let mut rest = [0; 1024];
        loop {
            let mut rest = ReadBuf::new(&mut rest);
            match tokio::io::AsyncRead::poll_read(Pin::new(stream.as_mut()), context, &mut rest) {
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {}
                Poll::Ready(Err(last)) if tls::said(&last).is_some() => return last,
                _ => return error,
            }
        }
    }

    /// The outcome of a write, with the peer's last word where it failed.
    fn written<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        outcome.map_err(|error| self.last_word(context, error))
    }

    /// Tokio's side of the stream, unless the switch was fired.
    fn reading(&mut self, context: &Context<'_>) -> io::Result<Pin<&mut dyn Stream>> {
        self.kill.check(&self.kill.0.reader, context)?;
        Ok(self.carrier.stream())
    }

    fn writing(&mut self, context: &Context<'_>) -> io::Result<Pin<&mut dyn Stream>> {
        self.kill.check(&self.kill.0.writer, context)?;
        Ok(self.carrier.stream())
    }
}

/// Both directions of Tokio's.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Stream for S {}

impl Carrier {
    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        match self {
            Self::Plain(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let count = this.take_ready(buffer);
            if count > 0 || buffer.is_empty() {
                return Poll::Ready(Ok(count));
            }
            let mut read = ReadBuf::new(buffer);
            ready!(this.reading(context)?.poll_read(context, &mut read))?;
            let count = read.filled().len();
            if count == 0 {
                // The end. What is held is half a frame, of which nobody can make anything.
                return Poll::Ready(Ok(0));
            }
            let fresh = &mut buffer[..count];
            if this.held.is_empty() {
                // The usual case: in place.
                let passed = this.repair.pass(fresh);
                this.held.extend_from_slice(&fresh[passed..]);
                if passed > 0 {
                    return Poll::Ready(Ok(passed));
                }
            } else {
                this.held.extend_from_slice(fresh);
                let passed = this.repair.pass(&mut this.held);
                this.ready.extend(this.held.drain(..passed));
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.writing(context)?.poll_write(context, bytes);
        self.written(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.writing(context)?.poll_write_vectored(context, buffers);
        self.written(context, outcome)
    }

    /// The library flushes before it takes the frames that it writes next, and so this is where it can be held.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        drop(self.kill.hold());
        let outcome = self.writing(context)?.poll_flush(context);
        self.written(context, outcome)
    }

    /// One try and no wait: the library awaits this on its thread, without a limit, after AMQP's own goodbye.
    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Ok(stream) = self.writing(context) {
            let _ = stream.poll_shutdown(context);
        }
        Poll::Ready(Ok(()))
    }
}

/// Tokio for the client library, with [`Socket`] as its streams. Tasks and timers run on the runtime that made it.
#[derive(Clone, Debug)]
pub(super) struct Kit(Tokio);

impl Kit {
    /// Bound to the runtime of the caller.
    pub(super) fn current() -> Self {
        Self(Tokio::current())
    }
}

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

const NEVER_DIALS: &str = "connections are made before the client library gets them";

impl Reactor for Kit {
    type TcpStream = Socket;
    type Sleep = <Tokio as Reactor>::Sleep;

    // The trait asks for one bound more, by a type that has no name outside of its crate.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Socket, _>(io::Error::other(NEVER_DIALS))
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(
        &self,
        period: Duration,
    ) -> impl futures_util::Stream<Item = std::time::Instant> + Send + 'static {
        self.0.interval(period)
    }

    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::Error::other(NEVER_DIALS)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::task::noop_waker;
    use tokio::net::TcpListener;

    use super::*;

    async fn socket(kill: &KillSwitch) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        (Socket::new(Carrier::Plain(stream), kill.clone()), peer)
    }

    #[tokio::test]
    async fn what_writes_is_held_until_all_is_handed_over() {
        let kill = KillSwitch::default();
        let (mut socket, _peer) = socket(&kill).await;
        let (say, said) = mpsc::channel();
        let held = kill.hold();
        let library = std::thread::spawn(move || {
            say.send("comes").unwrap();
            let flushed = Pin::new(&mut socket).poll_flush(&mut Context::from_waker(&noop_waker()));
            say.send("passes").unwrap();
            flushed
        });
        assert_eq!(said.recv(), Ok("comes"));
        for _ in 0..1000 {
            std::thread::yield_now();
            assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Empty));
        }
        drop(held);
        assert!(matches!(library.join().unwrap(), Poll::Ready(Ok(()))));
        assert_eq!(said.recv(), Ok("passes"));
    }

    #[tokio::test]
    async fn a_fired_switch_ends_what_writes() {
        let kill = KillSwitch::default();
        let (mut socket, _peer) = socket(&kill).await;
        let waker = noop_waker();
        let mut context = Context::from_waker(&waker);
        let written = Pin::new(&mut socket).poll_write(&mut context, b"AMQP");
        assert!(matches!(written, Poll::Ready(Ok(4))), "{written:?}");
        kill.fire();
        let refused = [
            Pin::new(&mut socket).poll_write(&mut context, b"AMQP").map_ok(drop),
            Pin::new(&mut socket).poll_flush(&mut context),
        ];
        for refused in refused {
            let Poll::Ready(Err(error)) = refused else { panic!("{refused:?}") };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        }
    }
}
