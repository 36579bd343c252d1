//! Builds the parts, starts them in order and stops them in order. The only file that sees every room, with those below it.

mod core;
mod reload;
mod shard;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

pub use self::core::Core;
use self::core::Setup;
use self::shard::Shard;
use crate::admin::{self, Health};
use crate::apns::{self, tls};
use crate::config::Config;
use crate::logging::{self, Level};
use crate::metrics::Metrics;
use crate::otlp;
use crate::worker::trace::Tracer;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything that was begun is finished, confirmed and acknowledged.
    Done,
    /// `worker.shutdown_grace` ran out; the broker gives what was left to somebody else.
    GraceRanOut,
    /// A second signal came, or a part of the worker died.
    Cut,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin endpoints cannot listen.
    #[error("{place}: {cause}; {}", right_address(cause.kind()))]
    Admin {
        /// The key, with where it was set.
        place: String,
        /// Why, with the address.
        cause: io::Error,
    },
    /// TLS to APNs cannot be set up.
    #[error(transparent)]
    Roots(#[from] tls::RootError),
    /// The pools cannot be set up.
    #[error(transparent)]
    Apns(#[from] apns::SetupError),
    /// Traces cannot be exported.
    #[error(transparent)]
    Traces(#[from] otlp::SetupError),
    /// The system gave no runtime, signal handler or pipe.
    #[error("the process cannot start: {0}")]
    System(#[from] io::Error),
}

/// What would be right where an address cannot be listened on.
fn right_address(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => "give a port that nothing else listens on, or end what does",
        io::ErrorKind::AddrNotAvailable => "give an address of this machine, or 0.0.0.0 for all of them",
        io::ErrorKind::PermissionDenied => "give a port from 1024 on",
        _ => "give another address or port",
    }
}

impl StartError {
    /// The admin endpoints of that configuration cannot listen.
    pub fn of_admin(config: &Config, cause: io::Error) -> Self {
        Self::Admin { place: config.admin_place.clone(), cause }
    }

    /// Whether other settings would help.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Roots(_) | Self::Apns(_) | Self::Traces(otlp::SetupError::Roots(_)))
    }
}

/// Runs a future on the one thread that an invite's whole road takes.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(run_on(&runtime()?, future))
}

fn runtime() -> io::Result<Thread> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(Thread(Some(runtime)))
}

fn run_on<F: Future>(thread: &Thread, future: F) -> F::Output {
    thread.0.as_ref().expect("it is taken by its drop alone").block_on(future)
}

/// The runtime of one thread. However it ends, by a panic or unused, what still blocks (a name lookup) does not hold it up.
struct Thread(Option<Runtime>);

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// `ringcast run`: the worker, until a signal. `read` gives its settings, or what went wrong with them; signals are listened to
/// before, since process number 1, as in a container, loses those that come while it does not (`pid_namespaces(7)`).
pub fn run<E>(read: impl FnOnce() -> Result<(Config, Level), E>) -> Result<Result<Ending, E>, StartError> {
    block_on(async {
        let mut first = Signals::listen()?;
        let (config, level) = match read() {
            Ok(read) => read,
            Err(refused) => return Ok(Err(refused)),
        };
        // Listened to from the first signal on.
        let second = async {
            match Signals::listen() {
                Ok(mut second) => second.next().await,
                Err(_) => std::future::pending().await,
            }
        };
        serve(config, Some(level), first.next(), second).await.map(Ok)
    })?
}

/// The whole worker. Start: metrics and admin, not ready → keys → one connection to APNs → broker → ready. Stop, in the
/// direction of the flow: not ready → no new invites → what was begun is finished, confirmed, acknowledged → GOAWAY →
/// admin last. Each shard does so by itself, and all at once; the grace is one around all of them. A single one stays on this
/// thread, several have one each, and this one only looks after them.
///
/// `level`: that of the log, which the admin endpoints may then change.
///
/// It stops when `stop` returns, and lets go of what is then still under way when `cut` does, which is not polled before.
pub async fn serve(
    config: Config,
    level: Option<Level>,
    stop: impl Future<Output = ()>,
    cut: impl Future<Output = ()>,
) -> Result<Ending, StartError> {
    let metrics = Metrics::new();
    let lines = Arc::downgrade(&metrics);
    metrics.refresh_with(move || {
        if let Some(metrics) = lines.upgrade() {
            metrics.log_lines_dropped(logging::dropped());
        }
    });
    let healths = Health::of_shards(config.shards);
    let mut shards = Vec::with_capacity(healths.len());
    let admin = admin::start(config.admin, Arc::clone(&metrics), healths[0].clone(), level)
        .map_err(|cause| StartError::of_admin(&config, cause))?;
    let (tracer, exporter) = start_traces(&config, &metrics)?.unzip();
    let setup = Setup::new(&config)?;
    let unready = Arc::new(AtomicUsize::new(healths.len()));
    for (health, number) in healths.into_iter().zip(1..) {
        let metrics = if number == 1 { Arc::clone(&metrics) } else { metrics.beside() };
        shards.push(Shard::new(&config, &setup, number, metrics, health, tracer.clone(), &unready)?);
    }
    drop(tracer);
    let (runtimes, handles) = runtimes(shards.len())?;
    let takers = shards.iter().zip(handles).map(|(shard, runtime)| shard.taker(runtime)).collect();
    let reloading = Arc::new(setup.reload(&config, takers, &metrics));
    for shard in &mut shards {
        shard.keep(&reloading);
    }

    let (stopping, ended) = shard::run_all(shards, runtimes)?;
    let mut ended = std::pin::pin!(ended);
    let ending = tokio::select! {
        biased;
        // Unasked: a part of it died.
        ending = &mut ended => ending,
        () = stop => {
            tracing::info!(grace_s = config.shutdown_grace.as_secs(), "the worker stops");
            stopping.tell();
            tokio::select! {
                biased;
                finished = timeout(config.shutdown_grace, ended) => finished.unwrap_or(Ending::GraceRanOut),
                () = cut => Ending::Cut,
            }
        }
    };
    if let Some(exporter) = exporter.filter(|_| ending != Ending::Cut) {
        exporter.stop();
    }
    admin.stop();
    tell_ending(ending);
    Ok(ending)
}

/// None for a single shard, which stays on the thread that asks; else one for each, for threads of their own. And the handles of
/// those that the shards run on.
fn runtimes(count: usize) -> io::Result<(Vec<Thread>, Vec<Handle>)> {
    if count == 1 {
        return Ok((Vec::new(), vec![Handle::current()]));
    }
    // A shard that waits for the processor waits with phones that do not ring.
    if let Ok(cores) = std::thread::available_parallelism()
        && cores.get() < count
    {
        tracing::warn!(shards = count, cores, "worker.shards is more than the processors that there are");
    }
    let runtimes = (0..count).map(|_| runtime()).collect::<io::Result<Vec<_>>>()?;
    let handles =
        runtimes.iter().flat_map(|thread| &thread.0).map(|runtime| runtime.handle().clone()).collect();
    Ok((runtimes, handles))
}

/// Where spans are wanted: what takes them, and the thread that exports them.
fn start_traces(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Option<(Tracer, otlp::Exporter)>, otlp::SetupError> {
    let Some(endpoint) = &config.traces.endpoint else { return Ok(None) };
    otlp::start(endpoint, &config.traces, &config.worker.name, metrics).map(Some)
}

fn tell_ending(ending: Ending) {
    match ending {
        Ending::Done => tracing::info!("the worker has stopped; everything that was begun is finished"),
        Ending::GraceRanOut => {
            tracing::warn!("worker.shutdown_grace ran out; the broker gives what was left to other workers");
        }
        Ending::Cut => {
            tracing::warn!("the worker was cut off; the broker gives what was left to other workers");
        }
    }
}

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// From here on, neither ends the process by itself.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns at the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
