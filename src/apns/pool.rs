//! The connections of one environment and credential, and who may open a stream on them.
//!
//! APNs binds a connection to environment, team and key, so these never mix in a pool. Streams are given out by us, not by
//! h2, whose own queue knows no deadlines: whoever has the least time left comes first, on the least loaded connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use h2::PingPong;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::address::Addresses;
use super::connection::{self, Connection, Observer, OpenError};
use super::dial::Dial;
use super::provider_token::TokenMint;
use super::request::Template;
use crate::clock::Clock;
use crate::domain::app::Environment;
use crate::metrics::Metrics;
use crate::pause::{Jitter, Pause};

/// Streams of one connection at most, whatever the peer allows. APNs was seen to allow 500 to 1500.
const STREAMS_MAX: usize = 1000;

/// From the dial to the first PONG.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// The pause before a connection is dialled again; it doubles.
const REDIAL_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause while nothing can be reached: calls wait, and an outage that is over must not be missed.
const UNREACHED_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The longest pause while connections open and are then refused. Apple may treat repeated opening as an attack
/// (*Establishing a connection to APNs*).
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long an answer is waited for after its request's limit. It tells the truth, if late; and h2 takes a dropped request
/// ill.
pub(super) const REAP_WAIT: Duration = Duration::from_secs(30);

/// How long a connection that is out of use may stay after the last late answer was waited for. A dead one would stay for
/// as long as the system tries to write to it.
const LINGER: Duration = Duration::from_secs(1);

/// How long open streams may take to finish when the pool closes.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// What a pool is made of.
pub(super) struct Parts {
    pub environment: Environment,
    pub connections: usize,
    pub request_timeout: Duration,
    pub dial: Dial,
    pub addresses: Arc<Addresses>,
    pub mint: TokenMint,
    pub template: Arc<Template>,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub jitter: Jitter,
    /// Ids for connections, unique in the process.
    pub ids: Arc<AtomicU64>,
}

/// The connections of one environment and credential.
pub(super) struct Pool {
    pub(super) parts: Parts,
    state: Mutex<State>,
    stop: watch::Sender<bool>,
    keepers: tokio::sync::Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    lanes: Vec<Lane>,
    /// In deadline order; the number keeps those apart that share one.
    waiters: BTreeMap<(Instant, u64), Waiter>,
    /// When each open stream was opened, oldest first.
    opened: BTreeMap<u64, Instant>,
    sequence: u64,
    started: bool,
    /// Why the last connection could not be opened, until one can.
    trouble: Option<String>,
}

/// A usable connection and how many of its streams are given out.
struct Lane {
    connection: Arc<Connection>,
    used: usize,
}

struct Waiter {
    avoid: u64,
    slot: oneshot::Sender<Slot>,
}

/// The right to one stream. Dropped, it goes to the next waiter.
pub(super) struct Slot {
    /// Where the stream may be opened.
    pub connection: Arc<Connection>,
    pool: Arc<Pool>,
    sequence: u64,
    armed: bool,
}

impl Pool {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let stop = watch::Sender::new(false);
        Arc::new(Self { parts, state: Mutex::default(), stop, keepers: tokio::sync::Mutex::default() })
    }

    /// Opens the connections, now or at the first push; calling it again does nothing.
    pub(super) fn start(self: &Arc<Self>) {
        if std::mem::replace(&mut self.state.lock().started, true) {
            return;
        }
        let Ok(mut keepers) = self.keepers.try_lock() else { return };
        for _ in 0..self.parts.connections {
            keepers.spawn(Arc::clone(self).keep());
        }
    }

    /// Whether a push can go out at once, as far as connections go.
    pub(super) fn is_usable(&self) -> bool {
        self.state.lock().lanes.iter().any(|lane| lane.limit() > 0)
    }

    /// Why the last connection could not be opened, until one can.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.lock().trouble.clone()
    }

    /// Whether it opens connections.
    pub(super) fn is_started(&self) -> bool {
        self.state.lock().started
    }

    /// Streams in use and allowed on usable connections, and the age of the oldest open one.
    pub(super) fn load(&self) -> (usize, usize, Duration) {
        let state = self.state.lock();
        let used = state.opened.len();
        let allowed = state.lanes.iter().map(Lane::limit).sum();
        let oldest = state.opened.first_key_value().map_or(Duration::ZERO, |(_, opened)| opened.elapsed());
        (used, allowed, oldest)
    }

    /// A stream before the deadline, or `None`. `avoid` names the connection that failed last; another one is preferred.
    pub(super) async fn acquire(self: &Arc<Self>, deadline: Instant, avoid: u64) -> Option<Slot> {
        let (place, granted) = {
            let mut state = self.state.lock();
            if state.waiters.is_empty()
                && let Some(slot) = state.take(self, avoid)
            {
                return Some(slot);
            }
            let (slot, granted) = oneshot::channel();
            state.sequence += 1;
            let key = (deadline, state.sequence);
            state.waiters.insert(key, Waiter { avoid, slot });
            (Place { pool: self, key }, granted)
        };
        let slot = timeout_at(deadline, granted).await.ok()?.ok();
        drop(place);
        slot
    }

    /// Takes a connection out of use; its open streams may finish.
    pub(super) fn retire(&self, connection: &Connection, why: &str) {
        if !connection.retire() {
            return;
        }
        let lane = {
            let mut state = self.state.lock();
            let place = state.lanes.iter().position(|lane| lane.connection.id == connection.id);
            place.map(|place| state.lanes.remove(place))
        };
        if lane.is_some() {
            let environment = self.environment();
            self.parts.metrics.apns_connections(environment, "usable", -1);
            self.parts.metrics.apns_connections(environment, "draining", 1);
            tracing::info!(
                apns.environment = environment,
                apns.connection = connection.id,
                why,
                "a connection to APNs is out of use"
            );
        }
    }

    /// Closes every connection after its open streams, within a limit, and says GOAWAY.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        let mut keepers = self.keepers.lock().await;
        while keepers.join_next().await.is_some() {}
    }

    fn environment(&self) -> &'static str {
        self.parts.environment.as_str()
    }

    /// Keeps one connection open: dials, hands it out, and dials again when it is out of use.
    async fn keep(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        let jitter = || self.parts.jitter.clone();
        let mut unreached = Pause::new(REDIAL_PAUSE, UNREACHED_PAUSE_MAX, jitter());
        let mut refused = Pause::new(REDIAL_PAUSE, REFUSED_PAUSE_MAX, jitter());
        let mut drivers = JoinSet::new();
        loop {
            // Biased: a stop goes before everything.
            let opened = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                opened = self.open(&mut drivers) => opened,
            };
            let again = match opened {
                Ok((connection, ping_pong)) => {
                    unreached.reset();
                    tracing::info!(
                        apns.environment = self.environment(),
                        apns.connection = connection.id,
                        "connected to APNs"
                    );
                    self.admit(&connection);
                    let admitted = Instant::now();
                    let retirement = connection.retirement();
                    tokio::select! {
                        biased;
                        () = stopped(&mut stop) => {
                            self.retire(&connection, "its pool closes");
                            break;
                        }
                        () = retirement => {}
                        () = connection::fall_silent(ping_pong) => self.retire(&connection, "it answers no PING"),
                    }
                    if connection.is_proven() || admitted.elapsed() >= REFUSED_PAUSE_MAX {
                        refused.reset();
                        Duration::ZERO
                    } else {
                        refused.lengthen()
                    }
                }
                Err(error) => {
                    let again = match error {
                        OpenError::Dial(_) | OpenError::Slow(_) => unreached.lengthen(),
                        OpenError::Handshake(_) | OpenError::Mint(_) => refused.lengthen(),
                    };
                    self.note_trouble(&error, again);
                    again
                }
            };
            while drivers.try_join_next().is_some() {}
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                () = sleep(again) => {}
            }
        }
        // Elapsed: what is still open is cut off with the drivers.
        let _ = timeout(CLOSE_WAIT, async { while drivers.join_next().await.is_some() {} }).await;
    }

    /// Tells a new trouble once; the same one again is for those who ask for it.
    fn note_trouble(&self, error: &OpenError, again: Duration) {
        let (environment, again_in_s) = (self.environment(), again.as_secs_f64());
        let trouble = error.to_string();
        if self.state.lock().trouble.replace(trouble.clone()).as_ref() == Some(&trouble) {
            tracing::debug!(
                apns.environment = environment,
                again_in_s,
                error = trouble,
                "no connection to APNs"
            );
        } else {
            tracing::warn!(
                apns.environment = environment,
                again_in_s,
                error = trouble,
                "no connection to APNs; trying again until there is one"
            );
        }
    }

    async fn open(
        self: &Arc<Self>,
        drivers: &mut JoinSet<()>,
    ) -> Result<(Arc<Connection>, PingPong), OpenError> {
        let environment = self.environment();
        let metrics = &self.parts.metrics;
        let dialing = Dialing::count(metrics, environment);
        let opening = async {
            let found = self.parts.dial.resolve().await?;
            let address = self.parts.addresses.choose(&found, &[]).ok_or(OpenError::Slow(OPEN_WAIT))?;
            let io = self.parts.dial.connect(address).await?;
            let id = self.parts.ids.fetch_add(1, Ordering::Relaxed) + 1;
            let (connection, mut driver) = connection::shake_hands(io, id, &self.parts.mint).await?;
            let mut ping_pong = driver.ping_pong().expect("taken once, here");
            let watcher = Watcher { pool: Arc::clone(self), admitted: Arc::clone(&connection.admitted) };
            let retirement = connection.retirement();
            let linger = self.parts.request_timeout + REAP_WAIT + LINGER;
            let driving = connection::drive(driver, Arc::downgrade(&connection), watcher);
            drivers.spawn(async move {
                let lingered = async {
                    retirement.await;
                    sleep(linger).await;
                };
                // Biased: an end of its own goes before being cut off.
                tokio::select! {
                    biased;
                    () = driving => {}
                    () = lingered => {}
                }
            });
            // Dropped before it is proven alive (too slow, or a stop), its driver must not hold it open.
            let guard = RetireUnlessKept(Some(&connection));
            connection::prove_alive(&mut ping_pong).await?;
            guard.keep();
            Ok((connection, ping_pong))
        };
        let opened = timeout(OPEN_WAIT, opening).await.unwrap_or(Err(OpenError::Slow(OPEN_WAIT)));
        drop(dialing);
        metrics.apns_dial(environment, if opened.is_ok() { "connected" } else { "failed" });
        opened
    }

    fn admit(self: &Arc<Self>, connection: &Arc<Connection>) {
        let mut state = self.state.lock();
        if connection.is_retired() {
            return;
        }
        state.trouble = None;
        connection.admitted.store(true, Ordering::Relaxed);
        self.parts.metrics.apns_connections(self.environment(), "usable", 1);
        state.lanes.push(Lane { connection: Arc::clone(connection), used: 0 });
        state.grant(self);
    }
}

impl State {
    /// A slot on the least loaded connection that has room; on `avoid` only when no other has.
    fn take(&mut self, pool: &Arc<Pool>, avoid: u64) -> Option<Slot> {
        let lane = self
            .lanes
            .iter_mut()
            .filter(|lane| lane.used < lane.limit())
            .min_by_key(|lane| (lane.connection.id == avoid, lane.used))?;
        lane.used += 1;
        let connection = Arc::clone(&lane.connection);
        self.sequence += 1;
        let sequence = self.sequence;
        self.opened.insert(sequence, Instant::now());
        Some(Slot { connection, pool: Arc::clone(pool), sequence, armed: true })
    }

    /// Gives free streams to waiters, earliest deadline first.
    fn grant(&mut self, pool: &Arc<Pool>) {
        while let Some((key, waiter)) = self.waiters.first_key_value() {
            let (key, avoid) = (*key, waiter.avoid);
            let Some(slot) = self.take(pool, avoid) else { return };
            let waiter = self.waiters.remove(&key).expect("its key was just read, under the same lock");
            if let Err(mut slot) = waiter.slot.send(slot) {
                // The waiter went in this very moment. Given back here: its drop would lock again.
                slot.armed = false;
                self.give_back(&slot);
            }
        }
    }

    fn give_back(&mut self, slot: &Slot) {
        self.opened.remove(&slot.sequence);
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.connection.id == slot.connection.id) {
            lane.used -= 1;
        }
    }
}

impl Lane {
    /// One stream until an answer came, then what the peer's settings and our own limit allow.
    fn limit(&self) -> usize {
        let most = if self.connection.is_proven() { STREAMS_MAX } else { 1 };
        most.min(self.connection.sender.current_max_send_streams())
    }
}

impl Slot {
    /// APNs answered on this connection: it may carry more than one stream from now on.
    pub(super) fn prove(&self) {
        if !self.connection.is_proven() {
            self.connection.prove();
            self.pool.state.lock().grant(&self.pool);
        }
    }

    /// The pool it came from.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.armed {
            let mut state = self.pool.state.lock();
            state.give_back(self);
            state.grant(&self.pool);
        }
    }
}

/// A place in the queue; left when the wait ends, however it ends.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    key: (Instant, u64),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().waiters.remove(&self.key);
    }
}

/// Retires a connection that is given up while it opens.
struct RetireUnlessKept<'a>(Option<&'a Arc<Connection>>);

impl RetireUnlessKept<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RetireUnlessKept<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            connection.retire();
        }
    }
}

/// Tells the pool what happens on a connection, and counts it out when its driver ends.
struct Watcher {
    pool: Arc<Pool>,
    admitted: Arc<AtomicBool>,
}

impl Observer for Watcher {
    fn limit_changed(&self) {
        self.pool.state.lock().grant(&self.pool);
    }

    fn ended(&self, connection: &Connection, why: &str, goaway: Option<&'static str>) {
        if let Some(reason) = goaway {
            self.pool.parts.metrics.apns_goaway(reason);
        }
        self.pool.retire(connection, why);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.admitted.load(Ordering::Relaxed) {
            self.pool.parts.metrics.apns_connections(self.pool.environment(), "draining", -1);
        }
    }
}

/// Counts a connection that is being opened, until it is open, or given up by whatever way.
struct Dialing<'a>(&'a Metrics, &'static str);

impl<'a> Dialing<'a> {
    fn count(metrics: &'a Metrics, environment: &'static str) -> Self {
        metrics.apns_connections(environment, "dialing", 1);
        Self(metrics, environment)
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.apns_connections(self.1, "dialing", -1);
    }
}

/// Returns when the pool closes.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Closed: the pool itself is gone, which is as good.
    let _ = stop.wait_for(|stop| *stop).await;
}
