//! Builds the parts, starts them in order and stops them in order. The only file that sees every room.

mod reload;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::admin::{self, Health, Readiness};
use crate::amqp::supervisor::{self, Phase, Supervisor};
use crate::amqp::{self, State, Status};
use crate::apns::{self, Apns, tls};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::app::App;
use crate::logging::Level;
use crate::metrics::Metrics;
use crate::otlp;
use crate::pause::{Jitter, Pause};
use crate::worker::mailbox::{self, Outbox};
use crate::worker::trace::Tracer;
use crate::worker::{self, Worker};

/// How long the start waits for a first connection to APNs before invites are taken all the same: until then another worker
/// that has one may ring, from then on an invite must get its outcome.
const FIRST_CONNECTION_WAIT: Duration = Duration::from_secs(10);

/// How often the start looks for that first connection.
const FIRST_CONNECTION_LOOK: Duration = Duration::from_millis(20);

/// The pause before the broker is dialled again; it doubles up to [`REDIAL_PAUSE_MAX`].
const REDIAL_PAUSE: Duration = Duration::from_millis(200);
const REDIAL_PAUSE_MAX: Duration = Duration::from_secs(5);

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
    #[error("admin.listen: {0}")]
    Admin(io::Error),
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

impl StartError {
    /// Whether other settings would help.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Roots(_) | Self::Apns(_) | Self::Traces(otlp::SetupError::Roots(_)))
    }
}

/// Runs a future on the one thread that an invite's whole road takes.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = runtime.block_on(future);
    // What still blocks (a name lookup) must not hold the end up.
    runtime.shutdown_background();
    Ok(output)
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

/// The parts that `run`, `pipe` and the demo share: the worker and its connections to APNs.
pub struct Core {
    /// Handles invites.
    pub worker: Arc<Worker<Apns>>,
    /// The connections that it pushes on.
    pub apns: Apns,
    /// The broker's settings, as they change while the worker runs.
    pub amqp: watch::Receiver<amqp::Settings>,
    reloading: reload::Task,
}

impl Core {
    /// Builds the worker and begins to open connections to APNs. It publishes to `outbox`, and tells of its invites by `tracer`.
    pub fn start(
        config: &Config,
        outbox: Outbox,
        metrics: &Arc<Metrics>,
        jitter: &Jitter,
        tracer: Option<Tracer>,
    ) -> Result<Self, StartError> {
        let clock = Clock::system();
        reload::tell_concerns(config);
        let trust = tls::Trust::load(config.apns.ca_file.as_deref())?;
        let dials = tls::dials(&config.apns, &trust)?;
        let apns = Apns::new(&config.apns, &config.apps, &dials, &clock, metrics, jitter)?;
        metrics.start_apps(config.apps.iter().map(|app| &*app.name));
        apns.start(&config.apps);
        let (changing, amqp) = watch::channel(config.amqp.clone());
        let reloading = reload::start(config, &trust, &apns, changing, metrics);
        let worker = Worker::new(
            apns.clone(),
            config.worker.clone(),
            config.apps.clone(),
            apns.key_ids(),
            config.amqp.live,
            // It may be raised while the worker runs.
            usize::from(amqp::PREFETCH_MAX),
            outbox,
            clock,
            Arc::clone(metrics),
            jitter.clone(),
        );
        Ok(Self { worker: Arc::new(worker.traced_by(tracer)), apns, amqp, reloading })
    }

    /// Takes over nothing more, and closes every connection to APNs after its open streams.
    pub async fn close(&self) {
        self.reloading.stop();
        self.apns.close().await;
    }
}

/// The whole worker. Start: metrics and admin, not ready → keys → one connection to APNs → broker → ready. Stop, in the
/// direction of the flow: not ready → no new invites → what was begun is finished, confirmed, acknowledged → GOAWAY →
/// admin last.
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
    let mut told = std::pin::pin!(stop);
    let metrics = Metrics::new();
    let health = Health::new();
    let (lifecycle, stage) = watch::channel("starting: waiting for a first connection to APNs");
    health.ready_when("worker", move || match *stage.borrow() {
        "" => Readiness::ready(),
        stage => Readiness::not_ready(stage),
    });
    let admin =
        admin::start(config.admin, Arc::clone(&metrics), health.clone(), level).map_err(StartError::Admin)?;
    let heartbeat = tokio::spawn({
        let health = health.clone();
        async move { health.beat().await }
    });

    let jitter = Jitter::random();
    let prefetch = usize::from(config.amqp.prefetch);
    let (outbox, postings) = mailbox::outbox(2 * prefetch);
    let (tracer, exporter) = start_traces(&config, &metrics)?.unzip();
    let core = Core::start(&config, outbox, &metrics, &jitter, tracer)?;
    watch_apns(&core.apns, &config.apps, &metrics, &health);
    watch_results(&core.worker, &metrics, &health);
    tokio::select! {
        biased;
        () = &mut told => {
            core.close().await;
            admin.stop();
            tell_ending(Ending::Done);
            return Ok(Ending::Done);
        }
        () = first_connection(&core.apns) => {}
    }

    let (deliveries, delivered) = mpsc::channel(prefetch);
    let (phase, phases) = watch::channel(Phase::Running);
    let status = Status::new();
    watch_broker(&status, &core.amqp, &metrics, &health);
    let mut broker = tokio::spawn(supervisor::run(Supervisor {
        settings: core.amqp.clone(),
        worker_name: config.worker.name.clone(),
        deliveries,
        postings,
        status,
        metrics: Arc::clone(&metrics),
        phase: phases,
        pause: redial_pause(jitter.clone()),
        jitter,
        unix_seconds: Arc::new(unix_seconds()),
    }));
    let (stop, stopped) = watch::channel(false);
    let working = worker::run(Arc::clone(&core.worker), delivered, stopped);
    lifecycle.send_replace("");
    tracing::info!(apps = config.apps.len(), queues = config.amqp.invites.join(","), "the worker runs");

    let stopping = async {
        told.await;
        tracing::info!(grace_s = config.shutdown_grace.as_secs(), "the worker stops");
        lifecycle.send_replace("stopping: it takes no more invites, and finishes those that it has begun");
        phase.send_replace(Phase::Draining);
        stop.send_replace(true);
    };
    let tail = async {
        let ((), ()) = tokio::join!(working, stopping);
    };
    tokio::pin!(tail);
    // First without a limit, until the signal; then the rest of it within the grace. An idle worker has no rest.
    let mut draining = phase.subscribe();
    let idle = tokio::select! {
        biased;
        () = &mut tail => true,
        _ = draining.wait_for(|phase| *phase != Phase::Running) => false,
        ended = &mut broker => {
            // It ends on its own only by a panic. Without it nothing can be published: the next process does better.
            tracing::error!(error = ended.err().map(tracing::field::display), "the broker's side died");
            admin.stop();
            return Ok(Ending::Cut);
        }
    };
    let finish = async {
        if !idle {
            tail.await;
        }
        phase.send_replace(Phase::Closing);
        // Its failure is a panic, which the log has; there is nothing left to close then.
        let _ = broker.await;
        core.close().await;
    };
    let ending = tokio::select! {
        biased;
        finished = timeout(config.shutdown_grace, finish) => match finished {
            Ok(()) => Ending::Done,
            Err(_) => Ending::GraceRanOut,
        },
        () = cut => Ending::Cut,
    };
    heartbeat.abort();
    if let Some(exporter) = exporter.filter(|_| ending != Ending::Cut) {
        exporter.stop();
    }
    admin.stop();
    tell_ending(ending);
    Ok(ending)
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

/// Returns when a pool has a usable connection, or when waiting longer would keep outcomes back.
async fn first_connection(apns: &Apns) {
    let usable = async {
        while !apns.states().iter().any(|pool| pool.is_usable) {
            tokio::time::sleep(FIRST_CONNECTION_LOOK).await;
        }
    };
    if timeout(FIRST_CONNECTION_WAIT, usable).await.is_err() {
        tracing::warn!(
            "no connection to APNs yet; invites are taken all the same, so that each gets its outcome in time"
        );
    }
}

/// Readiness and gauges of the pools.
fn watch_apns(apns: &Apns, apps: &[Arc<App>], metrics: &Arc<Metrics>, health: &Health) {
    let pools = apns.clone();
    health.ready_when("apns", move || {
        let states = pools.states();
        let dead = states.iter().filter(|pool| pool.is_started && !pool.is_usable).map(|pool| {
            let why = pool.trouble.as_deref().map_or_else(String::new, |trouble| format!(": {trouble}"));
            format!("no usable connection to {} with {}{why}", pool.environment.as_str(), pool.credential)
        });
        if states.iter().any(|pool| pool.is_usable) {
            dead.fold(Readiness::ready(), Readiness::with_note)
        } else {
            dead.fold(Readiness::default(), Readiness::with_reason)
        }
    });
    let (pools, apps, gauges) = (apns.clone(), apps.to_vec(), Arc::downgrade(metrics));
    metrics.refresh_with(move || {
        if let Some(metrics) = gauges.upgrade() {
            pools.refresh(&apps, &metrics);
        }
    });
}

/// The pause before each new session with the broker.
fn redial_pause(jitter: Jitter) -> supervisor::Pause {
    let mut pause = Pause::new(REDIAL_PAUSE, REDIAL_PAUSE_MAX, jitter);
    Box::new(move |failures| {
        if failures == 0 {
            pause.reset();
        }
        pause.lengthen()
    })
}

/// The wall clock as AMQP's `timestamp` has it.
fn unix_seconds() -> impl Fn() -> u64 + Send + Sync {
    let clock = Clock::system();
    move || clock.unix_ms().div_euclid(1000).max(0).unsigned_abs()
}

/// Readiness of the way out, what is odd about tokens, and the worker's gauges.
fn watch_results(worker: &Arc<Worker<Apns>>, metrics: &Arc<Metrics>, health: &Health) {
    let results = worker.untaken();
    health.ready_when("results", move || match results.backlog() {
        None => Readiness::ready(),
        Some(backlog) if backlog.is_lasting => Readiness::not_ready(backlog.text),
        Some(backlog) => Readiness::ready().with_note(backlog.text),
    });
    let breakers = worker.breakers();
    health.ready_when("tokens", move || {
        breakers.open().into_iter().fold(Readiness::ready(), Readiness::with_note)
    });
    let gauges = Arc::downgrade(worker);
    metrics.refresh_with(move || {
        if let Some(worker) = gauges.upgrade() {
            worker.refresh();
        }
    });
}

/// Readiness of the broker's side, and what may be held of it.
fn watch_broker(
    status: &Status,
    settings: &watch::Receiver<amqp::Settings>,
    metrics: &Arc<Metrics>,
    health: &Health,
) {
    let (settings, gauges) = (settings.clone(), Arc::downgrade(metrics));
    metrics.refresh_with(move || {
        if let Some(metrics) = gauges.upgrade() {
            metrics.amqp_prefetch(settings.borrow().prefetch);
        }
    });
    let status = status.clone();
    health.ready_when("amqp", move || match status.state() {
        State::Consuming => Readiness::ready(),
        State::Partly { reason } => Readiness::ready().with_note(reason),
        State::NotConsuming { reason, .. } | State::Lacking { reason } => Readiness::not_ready(reason),
        State::Blocked { reason } => Readiness::not_ready(format!("the broker blocks publishing: {reason}")),
    });
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
