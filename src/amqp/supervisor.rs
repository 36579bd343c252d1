//! Keeps a session with the broker, whatever happens to it, and stops it in order.
//!
//! A session ends when one of its connections is lost. Everything is then built anew after a pause. What was posted and not
//! taken yet stays for the next session. What goes wrong with one queue, or a confirm that is overdue, ends no session, see
//! `reader.rs` and `outbox.rs`.
//!
//! Stopping, by the phase that the application sets: [`Phase::Draining`] cancels the consumers, gives back what was not
//! handed on, and drops the sender of deliveries, so that the worker sees their end; settling and publishing go on, through
//! lost sessions too. [`Phase::Closing`], set once the worker has finished, settles and publishes what is left, within
//! limits, and [`run`] returns.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use lapin::Event;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::absence;
use super::describe::describe;
use super::dial::{Dialer, Link};
use super::host::Turns;
use super::limit::GOODBYE;
use super::outbox::Outbox;
use super::reader::Reader;
use super::topology::{EXPIRED, Presence, Thing, Topology};
use super::{Error, Settings, Status};
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker::mailbox::{Delivery, Posting};

/// A session that lived this long was a good one: the next pause is the shortest again.
const STEADY: Duration = Duration::from_secs(30);
/// Roles of the two connections, in names and in metrics.
const ROLES: [&str; 2] = ["consume", "publish"];

/// How far the worker's stop has come. It only moves forward; a sender that is gone means [`Phase::Closing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Consume, settle, publish.
    #[default]
    Running,
    /// Take nothing new and give back what was not started; still settle and publish.
    Draining,
    /// Everything is settled: close.
    Closing,
}

/// How long to wait before an attempt: the argument counts the failures in a row, from 0.
pub type Pause = Box<dyn FnMut(u32) -> Duration + Send>;

/// What [`run`] works with.
pub struct Supervisor {
    /// From the configuration. Where the broker is and how to log in counts from the next connection on, how much is consumed
    /// at once; the rest is as it was at first.
    pub settings: watch::Receiver<Settings>,
    /// The worker's name; the broker lists the connections as `ringcast consume NAME` and `ringcast publish NAME`.
    pub worker_name: String,
    /// Where deliveries go. Its capacity counts on top of the work that the worker has begun, within the prefetch.
    pub deliveries: mpsc::Sender<Delivery>,
    /// Where publications come from.
    pub postings: mpsc::Receiver<Posting>,
    /// What readiness reads.
    pub status: Status,
    /// The families `ringcast_amqp_…`.
    pub metrics: Arc<Metrics>,
    /// How far the stop has come.
    pub phase: watch::Receiver<Phase>,
    /// Backoff with jitter.
    pub pause: Pause,
    /// Draws the order in which hosts and addresses are tried.
    pub jitter: Jitter,
    /// The wall clock in Unix seconds, for AMQP's `timestamp`.
    pub unix_seconds: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Supervisor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Holds a session until [`Phase::Closing`], and then says goodbye.
pub async fn run(supervisor: Supervisor) {
    let Supervisor {
        settings,
        worker_name,
        deliveries,
        postings,
        status,
        metrics,
        phase,
        pause,
        jitter,
        unix_seconds,
    } = supervisor;
    let topology = Topology::of(&settings.borrow());
    let keeper = Keeper {
        topology,
        turns: Turns::drawn(jitter),
        settings,
        worker_name,
        deliveries: Some(deliveries),
        postings,
        status,
        metrics,
        phase,
        unix_seconds,
        diary: Diary::default(),
    };
    keeper.keep(pause).await;
}

/// The phase now; a sender that is gone means the last one.
pub(super) fn phase_of(phase: &watch::Receiver<Phase>) -> Phase {
    if phase.has_changed().is_err() { Phase::Closing } else { *phase.borrow() }
}

async fn closing(phase: &mut watch::Receiver<Phase>) {
    // An error is a sender that is gone: closing, too.
    let _ = phase.wait_for(|phase| *phase == Phase::Closing).await;
}

struct Keeper {
    settings: watch::Receiver<Settings>,
    topology: Topology,
    turns: Turns,
    worker_name: String,
    /// `None` from [`Phase::Draining`] on.
    deliveries: Option<mpsc::Sender<Delivery>>,
    postings: mpsc::Receiver<Posting>,
    status: Status,
    metrics: Arc<Metrics>,
    phase: watch::Receiver<Phase>,
    unix_seconds: Arc<dyn Fn() -> u64 + Send + Sync>,
    diary: Diary,
}

impl Keeper {
    async fn keep(mut self, mut pause: Pause) {
        for role in ROLES {
            self.metrics.amqp_connected(role, false);
        }
        for queue in queues(&self.settings.borrow()) {
            self.metrics.amqp_reading(queue, false);
        }
        let mut failures = 0;
        while phase_of(&self.phase) != Phase::Closing {
            let began = Instant::now();
            let Err(error) = self.session().await else { break };
            self.note_phase();
            if self.deliveries.is_some() {
                self.status.not_consuming(&error.to_string());
            }
            self.diary.lost(&error);
            if began.elapsed() >= STEADY {
                failures = 0;
            }
            self.rest(pause(failures)).await;
            failures = failures.saturating_add(1);
        }
        self.status.not_consuming("stopped");
    }

    /// Waits, but not into [`Phase::Closing`].
    async fn rest(&mut self, pause: Duration) {
        let mut pause = std::pin::pin!(sleep(pause));
        while phase_of(&self.phase) != Phase::Closing {
            tokio::select! {
                biased;
                _ = self.phase.changed() => self.note_phase(),
                () = &mut pause => return,
            }
        }
    }

    /// From [`Phase::Draining`] on nothing is handed on: the worker sees the end of deliveries.
    fn note_phase(&mut self) {
        if phase_of(&self.phase) != Phase::Running && self.deliveries.take().is_some() {
            self.status.not_consuming("the worker is stopping");
        }
    }

    /// Builds a session and serves it. `Ok` only in [`Phase::Closing`].
    async fn session(&mut self) -> Result<(), Error> {
        let mut stop = self.phase.clone();
        let links = tokio::select! {
            biased;
            () = closing(&mut stop) => return Ok(()),
            links = self.connect() => links,
        };
        self.metrics.amqp_dial(if links.is_ok() { "connected" } else { "failed" });
        let (consume, publish) = links?;
        let ended = self.serve(&consume, &publish).await;
        for role in ROLES {
            self.metrics.amqp_connected(role, false);
        }
        self.metrics.amqp_blocked(false);
        if ended.is_ok() {
            tokio::join!(consume.close(), publish.close());
        }
        ended
    }

    async fn connect(&self) -> Result<(Link, Link), Error> {
        let settings = self.settings.borrow().clone();
        let dialer = Dialer::new(&settings).await?.taking_turns(&self.turns);
        let [consume, publish] = ROLES.map(|role| format!("ringcast {role} {}", self.worker_name));
        tokio::try_join!(biased; dialer.dial(&consume), dialer.dial(&publish))
    }

    async fn serve(&mut self, consume: &Link, publish: &Link) -> Result<(), Error> {
        // Listeners hear only what comes after them.
        let mut events = [listen(consume), listen(publish)];
        let mut stop = self.phase.clone();
        let doubts = Arc::new(Notify::new());
        let outbox = tokio::select! {
            biased;
            () = closing(&mut stop) => return Ok(()),
            opened = self.open(publish, &doubts) => opened?,
        };
        self.note_phase();
        for role in ROLES {
            self.metrics.amqp_connected(role, true);
        }
        self.diary.recovered(consume.endpoint(), self.deliveries.is_some());
        let signs = Signs { status: self.status.clone(), metrics: Arc::clone(&self.metrics) };
        let settings = self.settings.borrow().clone();
        if self.deliveries.is_some() {
            self.status.in_session(&settings.invites);
        }

        let mut readers: FuturesUnordered<_> = self.readers(consume).map(Reader::read).collect();
        let mut outbox = std::pin::pin!(outbox.serve(&mut self.postings, self.phase.clone()));
        let mut published = false;
        let mut absences = std::pin::pin!(absence::watch(
            consume,
            &self.topology,
            &settings,
            &doubts,
            &self.status,
            &self.metrics
        ));
        let mut goodbye = std::pin::pin!(closing_overdue(self.phase.clone()));
        let [heard_consuming, heard_publishing] = &mut events;
        loop {
            if published && readers.is_empty() && phase_of(&self.phase) == Phase::Closing {
                return Ok(());
            }
            tokio::select! {
                biased;
                event = heard_consuming.next() => signs.read(event)?,
                event = heard_publishing.next() => signs.read(event)?,
                _ = stop.changed(), if self.deliveries.is_some() => {
                    if phase_of(&self.phase) != Phase::Running && self.deliveries.take().is_some() {
                        self.status.not_consuming("the worker is stopping");
                    }
                }
                Some(ended) = readers.next(), if !readers.is_empty() => ended?,
                never = &mut absences => match never {},
                ended = &mut outbox, if !published => {
                    ended?;
                    published = true;
                }
                () = &mut goodbye => return Ok(()),
            }
        }
    }

    /// Invites queues may be missing: who reads them looks for them again and again.
    async fn open<'a>(&mut self, publish: &'a Link, doubts: &Arc<Notify>) -> Result<Outbox<'a>, Error> {
        let settings = self.settings.borrow().clone();
        if settings.declare {
            self.topology.declare(publish).await?;
        }
        let presence = self.topology.check(publish).await?;
        absence::show(&presence, &settings, &self.status, &self.metrics);
        self.diary.optional(&presence.optional);
        if absence::of_results(&presence, &settings.invites) {
            return Err(Error::Missing(presence.needed));
        }
        Ok(Outbox {
            link: publish,
            exchange: settings.results_exchange.as_str().into(),
            metrics: Arc::clone(&self.metrics),
            unix_seconds: Arc::clone(&self.unix_seconds),
            doubts: Arc::clone(doubts),
            status: self.status.clone(),
            refusal_told: AtomicBool::new(false),
        })
    }

    /// One for each queue; none from [`Phase::Draining`] on.
    fn readers<'a>(&self, link: &'a Link) -> impl Iterator<Item = Reader<'a>> {
        let queues = queues(&self.settings.borrow())
            .map(|queue| (queue.to_owned(), self.diary.optional.contains(&Thing::Queue(queue.to_owned()))))
            .collect::<Vec<_>>();
        let deliveries = self.deliveries.as_ref().map(mpsc::Sender::downgrade);
        queues.into_iter().filter_map(move |(queue, missing_told)| {
            Some(Reader {
                link,
                queue,
                settings: self.settings.clone(),
                deliveries: deliveries.clone()?,
                phase: self.phase.clone(),
                status: self.status.clone(),
                metrics: Arc::clone(&self.metrics),
                missing_told,
            })
        })
    }
}

/// The queues that are read.
fn queues(settings: &Settings) -> impl Iterator<Item = &str> {
    settings.invites.iter().map(String::as_str).chain([EXPIRED])
}

/// Returns when [`Phase::Closing`] has lasted longer than what is left to settle and publish may take.
async fn closing_overdue(mut phase: watch::Receiver<Phase>) {
    closing(&mut phase).await;
    sleep(GOODBYE).await;
}

type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

fn listen(link: &Link) -> Events {
    Box::pin(link.connection().events_listener())
}

/// Shows what the broker says about a connection.
struct Signs {
    status: Status,
    metrics: Arc<Metrics>,
}

impl Signs {
    fn read(&self, event: Option<Event>) -> Result<(), Error> {
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                tracing::warn!(amqp.reason = %reason, "the broker takes no publications for now");
                self.metrics.amqp_blocked(true);
                self.status.blocked(Some(reason.clone()));
                Ok(())
            }
            Some(Event::ConnectionUnblocked) => {
                tracing::info!("the broker takes publications again");
                self.metrics.amqp_blocked(false);
                self.status.blocked(None);
                Ok(())
            }
            // A channel was closed: whoever works with it sees that, and a channel for copies is nobody else's concern.
            Some(Event::Error(error)) if error.is_amqp_soft_error() => Ok(()),
            Some(Event::Error(error)) => Err(Error::Lost(format!("the broker closed: {}", describe(&error)))),
            Some(_) => Ok(()),
            None => Err(Error::Lost("the connection is gone".to_owned())),
        }
    }
}

/// Logs each loss once with its reason, each recovery once.
#[derive(Default)]
struct Diary {
    lost: Option<(String, Instant, u32)>,
    optional: Vec<Thing>,
}

impl Diary {
    fn lost(&mut self, error: &Error) {
        let text = error.to_string();
        match &mut self.lost {
            Some((told, _, attempts)) if *told == text => {
                *attempts += 1;
                tracing::debug!(amqp.reason = %text, amqp.attempts = *attempts, "still no session with the broker");
            }
            lost => {
                tracing::warn!(amqp.reason = %text, "no session with the broker; trying again until there is one");
                let (since, attempts) =
                    lost.as_ref().map_or((Instant::now(), 0), |(_, since, count)| (*since, *count));
                *lost = Some((text, since, attempts + 1));
            }
        }
    }

    fn recovered(&mut self, endpoint: &str, consuming: bool) {
        let (attempts, seconds) = self
            .lost
            .take()
            .map_or((0, 0.0), |(_, since, attempts)| (attempts, since.elapsed().as_secs_f64()));
        tracing::info!(
            amqp.endpoint = endpoint,
            amqp.failures = attempts,
            amqp.away_seconds = seconds,
            amqp.consuming = consuming,
            "in session with the broker"
        );
    }

    fn optional(&mut self, missing: &[Thing]) {
        if missing != self.optional {
            for thing in missing {
                tracing::warn!(amqp.missing = %thing, "the broker lacks something that the worker can do without");
            }
            self.optional = missing.to_vec();
        }
    }
}

/// Declares the whole topology over a connection of its own.
pub async fn declare(settings: &Settings) -> Result<(), Error> {
    let link = Dialer::new(settings).await?.dial("ringcast topology").await?;
    let declared = Topology::of(settings).declare(&link).await;
    // The goodbye has a limit of its own; this one is for the sum.
    let _ = timeout(GOODBYE, link.close()).await;
    declared
}

/// Connects and checks the whole topology passively, over a connection of its own.
pub async fn check(settings: &Settings) -> Result<Presence, Error> {
    let link = Dialer::new(settings).await?.dial("ringcast check").await?;
    let presence = Topology::of(settings).check(&link).await;
    let _ = timeout(GOODBYE, link.close()).await;
    presence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_whose_sender_is_gone_is_the_last() {
        let (sender, receiver) = watch::channel(Phase::Running);
        assert_eq!(phase_of(&receiver), Phase::Running);
        sender.send_replace(Phase::Draining);
        assert_eq!(phase_of(&receiver), Phase::Draining);
        drop(sender);
        assert_eq!(phase_of(&receiver), Phase::Closing);
    }
}
