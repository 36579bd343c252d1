//! One shard: a worker with connections of its own to the broker and to APNs, on the one thread that an invite's whole road
//! takes. Shards know nothing of each other: what the broker gives one again that another had is as if it came from another
//! process.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::core::{Core, Setup};
use super::reload::{self, Taker};
use super::{Ending, StartError, Thread, run_on};
use crate::admin::{Health, Readiness};
use crate::amqp::supervisor::{self, Phase, Supervisor};
use crate::amqp::{self, State, Status};
use crate::apns::Apns;
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::app::App;
use crate::metrics::Metrics;
use crate::pause::{Jitter, Pause};
use crate::worker::mailbox::{self, Posting};
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

/// See the module.
pub(super) struct Shard {
    core: Core,
    /// As the broker lists its connections.
    name: String,
    apps: Vec<Arc<App>>,
    prefetch: usize,
    postings: mpsc::Receiver<Posting>,
    /// The broker's, as they change while it runs.
    settings: watch::Sender<amqp::Settings>,
    status: Status,
    metrics: Arc<Metrics>,
    health: Health,
    /// What it is doing where it takes no invites.
    stage: watch::Sender<&'static str>,
    /// How many shards take none yet.
    unready: Arc<AtomicUsize>,
    jitter: Jitter,
}

impl Shard {
    /// Its parts; nothing runs yet. `number`: from 1; `unready` counts those that do not take invites yet.
    pub(super) fn new(
        config: &Config,
        setup: &Setup,
        number: usize,
        metrics: Arc<Metrics>,
        health: Health,
        tracer: Option<Tracer>,
        unready: &Arc<AtomicUsize>,
    ) -> Result<Self, StartError> {
        let jitter = Jitter::random();
        let prefetch = usize::from(config.amqp.prefetch);
        let (outbox, postings) = mailbox::outbox(2 * prefetch);
        let core = setup.core(config, outbox, &metrics, &jitter, tracer)?;
        let name = &config.worker.name;
        let shard = Self {
            core,
            name: if config.shards == 1 { name.clone() } else { format!("{name} shard {number}") },
            apps: config.apps.clone(),
            prefetch,
            postings,
            settings: watch::Sender::new(config.amqp.clone()),
            status: Status::new(),
            metrics,
            health,
            stage: watch::Sender::new("starting: waiting for a first connection to APNs"),
            unready: Arc::clone(unready),
            jitter,
        };
        shard.report();
        Ok(shard)
    }

    /// Readiness and gauges.
    fn report(&self) {
        let stage = self.stage.subscribe();
        self.health.ready_when("worker", move || match *stage.borrow() {
            "" => Readiness::ready(),
            stage => Readiness::not_ready(stage),
        });
        watch_apns(&self.core.apns, &self.apps, &self.metrics, &self.health);
        watch_results(&self.core.worker, &self.metrics, &self.health);
        watch_broker(&self.status, &self.settings.subscribe(), &self.metrics, &self.health);
    }

    /// It takes over what changed, on this runtime.
    pub(super) fn taker(&self, runtime: Handle) -> Taker {
        Taker { runtime, apns: self.core.apns.clone(), amqp: self.settings.clone() }
    }

    /// Nothing is taken over from files any more when this shard, or another that keeps the same task, closes its connections.
    pub(super) fn keep(&mut self, reloading: &Arc<reload::Task>) {
        self.core.reloading = Some(Arc::clone(reloading));
    }

    /// Runs on the thread that asks until it is told to stop, and everything that was begun is finished.
    async fn run(self, mut stop: watch::Receiver<bool>) -> Ending {
        let heartbeat = tokio::spawn({
            let health = self.health.clone();
            async move { health.beat().await }
        });
        self.core.apns.start(&self.apps);
        tokio::select! {
            biased;
            () = told(&mut stop) => {}
            () = first_connection(&self.core.apns) => {}
        }
        let health = self.health.clone();
        let ending = self.work(stop).await;
        heartbeat.abort();
        health.rest();
        ending
    }

    async fn work(self, mut stop: watch::Receiver<bool>) -> Ending {
        let Self { core, stage, jitter, .. } = self;
        if *stop.borrow() {
            core.close().await;
            return Ending::Done;
        }
        let queues = self.settings.borrow().invites.join(",");
        let (deliveries, delivered) = mpsc::channel(self.prefetch);
        let (phase, phases) = watch::channel(Phase::Running);
        let mut broker = tokio::spawn(supervisor::run(Supervisor {
            settings: self.settings.subscribe(),
            worker_name: self.name,
            deliveries,
            postings: self.postings,
            status: self.status,
            metrics: self.metrics,
            phase: phases,
            pause: redial_pause(jitter.clone()),
            jitter,
            unix_seconds: Arc::new(unix_seconds()),
        }));
        let (end, ended) = watch::channel(false);
        let working = worker::run(Arc::clone(&core.worker), delivered, ended);
        stage.send_replace("");
        if self.unready.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!(apps = self.apps.len(), queues, "the worker runs");
        }
        let stopping = async {
            told(&mut stop).await;
            stage.send_replace("stopping: it takes no more invites, and finishes those that it has begun");
            phase.send_replace(Phase::Draining);
            end.send_replace(true);
        };
        tokio::select! {
            biased;
            ((), ()) = async { tokio::join!(working, stopping) } => {}
            ended = &mut broker => {
                // It ends on its own only by a panic. Without it nothing can be published: the next process does better.
                tracing::error!(error = ended.err().map(tracing::field::display), "the broker's side died");
                return Ending::Cut;
            }
        }
        phase.send_replace(Phase::Closing);
        // Its failure is a panic, which the log has; there is nothing left to close then.
        let _ = broker.await;
        core.close().await;
        Ending::Done
    }
}

/// Tells shards to stop; without it they are cut off. Each listens for itself, so that none waits for another one's lock.
pub(super) struct Stop(Vec<watch::Sender<bool>>);

impl Stop {
    /// All at once: finish what was begun.
    pub(super) fn tell(&self) {
        for stop in &self.0 {
            stop.send_replace(true);
        }
    }
}

/// Runs a single shard on the thread that asks, several on threads of their own, a runtime for each, until all have finished what
/// they began, or one died. Those that are left when the [`Stop`] goes end as they stand; a single one goes with the future.
///
/// Errors: the system gives no thread.
pub(super) fn run_all(
    shards: Vec<Shard>,
    runtimes: Vec<Thread>,
) -> io::Result<(Stop, impl Future<Output = Ending>)> {
    let (mut alone, mut apart) = (None, FuturesUnordered::new());
    let (mut stop, mut runtimes) = (Stop(Vec::new()), runtimes.into_iter());
    for (shard, number) in shards.into_iter().zip(1..) {
        let (tell, told) = watch::channel(false);
        stop.0.push(tell);
        match runtimes.next() {
            Some(runtime) => apart.push(run_apart(number, runtime, told, |stop| shard.run(stop))?),
            None => alone = Some(shard.run(told)),
        }
    }
    let ended = async move {
        if let Some(alone) = alone {
            return alone.await;
        }
        // Nobody waits for the others of one that died.
        while let Some(ending) = apart.next().await {
            if ending != Ending::Done {
                return ending;
            }
        }
        Ending::Done
    };
    Ok((stop, ended))
}

/// Runs a shard on a thread of its own, until it ends by itself or the sender of `stop` is gone.
fn run_apart<F: Future<Output = Ending>>(
    number: usize,
    runtime: Thread,
    stop: watch::Receiver<bool>,
    run: impl FnOnce(watch::Receiver<bool>) -> F + Send + 'static,
) -> io::Result<impl Future<Output = Ending>> {
    let (tell, ended) = oneshot::channel();
    let mut gone = stop.clone();
    let work = move || {
        let ending = run_on(&runtime, async {
            tokio::select! {
                biased;
                ending = run(stop) => ending,
                _ = gone.wait_for(|_| false) => Ending::Cut,
            }
        });
        // Nobody may wait any more.
        let _ = tell.send(ending);
    };
    std::thread::Builder::new().name(format!("shard-{number}")).spawn(work)?;
    Ok(async move {
        ended.await.unwrap_or_else(|_| {
            tracing::error!(shard = number, "the thread of a shard died");
            Ending::Cut
        })
    })
}

/// Returns when it is told to stop; a sender that is gone means the same.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
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
    health.ready_when("amqp", move || {
        let readiness = match status.state() {
            State::Consuming => Readiness::ready(),
            State::Partly { reason } => Readiness::ready().with_note(reason),
            State::NotConsuming { reason, .. } | State::Lacking { reason } => Readiness::not_ready(reason),
            State::Blocked { reason } => {
                Readiness::not_ready(format!("the broker blocks publishing: {reason}"))
            }
        };
        status.notes().into_iter().fold(readiness, Readiness::with_note)
    });
}

#[cfg(test)]
mod tests {
    use super::super::runtime;
    use super::*;

    #[tokio::test]
    async fn a_shard_whose_thread_dies_ends_the_worker_and_the_others_with_it() {
        let (stop, stopped) = watch::channel(false);
        let (finish, mut finished) = mpsc::channel::<()>(1);
        let healthy = run_apart(1, runtime().unwrap(), stopped.clone(), |mut stop| async move {
            let _finish = finish;
            told(&mut stop).await;
            std::future::pending().await
        });
        let healthy = tokio::spawn(healthy.unwrap());
        let dies =
            run_apart(2, runtime().unwrap(), stopped, |_| async { panic!("a shard dies, on purpose") });
        assert_eq!(dies.unwrap().await, Ending::Cut);
        assert!(!healthy.is_finished(), "nobody told the other one yet");
        drop(stop);
        assert_eq!(healthy.await.unwrap(), Ending::Cut, "it is let go of as it stands");
        assert_eq!(finished.recv().await, None, "nothing of it is left");
    }

    #[tokio::test]
    async fn a_shard_that_finishes_says_so() {
        let (stop, stopped) = watch::channel(false);
        let shard = run_apart(1, runtime().unwrap(), stopped, |mut stop| async move {
            told(&mut stop).await;
            Ending::Done
        });
        stop.send_replace(true);
        assert_eq!(shard.unwrap().await, Ending::Done);
    }
}
