//! Keeps a pool's connections: opens them one after the other, as many as the load needs, replaces those that are due
//! before they go, and does not insist where it is turned away.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Connection, OpenError};
use super::goaway;
use super::liveness;
use super::opening::{Failed, Opened, open};
use super::pool::{End, Pool, is_vain};
use super::slot::{Doubt, Lane, State};
use super::trouble::Troubles;
use crate::pause::Pause;

/// An opening that takes longer is not counted on: another address may do better meanwhile.
const OPEN_SOON: Duration = Duration::from_secs(1);

/// Openings at a time at most.
const OPENINGS_MAX: usize = 4;

/// The pause before a connection is dialled again; it doubles.
const REDIAL_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause while nothing can be reached: calls wait, and an outage that is over must not be missed.
const UNREACHED_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The longest pause while connections open and are then refused. Apple may treat repeated opening as an attack
/// (*Establishing a connection to APNs*).
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The same while the pool has no connection, and the peer does not say that its settings are to blame: calls would expire.
const UNSERVED_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Between two openings, with up to half more or less.
const STAGGER: Duration = Duration::from_millis(200);

/// How often the load is looked at.
const TICK: Duration = Duration::from_secs(5);

/// Somebody who waits this long for a stream calls for a further connection.
const GROW_AFTER: Duration = Duration::from_millis(250);

/// Looks in a row at little load before a connection goes, and before the last one of a pool that needs none does.
const QUIET_LOOKS: u32 = 24;
const IDLE_LOOKS: u32 = 120;

/// The age of a connection at most, a quarter more or less: so that they go one by one, and follow the name's addresses.
const AGE_MAX: Duration = Duration::from_hours(4);

/// Requests of one connection at most, a quarter more or less: HTTP/2 has 2^30 stream ids.
const REQUESTS_MAX: u32 = 20_000_000;

/// Failures of Apple's in a row after which a connection is replaced: senders saw them stick to one.
const FAILURES: u32 = 10;

/// How long open streams may take to finish when the pool closes.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

struct Keeper {
    pool: Arc<Pool>,
    openings: JoinSet<Result<Opened, Failed>>,
    /// When each of them began, oldest first.
    begun: Vec<(Id, Instant)>,
    drivers: JoinSet<()>,
    watches: JoinSet<()>,
    unreached: Pause,
    refused: Pause,
    told: Troubles,
    /// When a new connection was last in vain, and until when that is heeded.
    refused_at: Instant,
    refused_until: Instant,
    /// None is opened before this.
    open_at: Instant,
    /// How many the load needs.
    wanted: usize,
    grown_at: Instant,
    looked_at: Instant,
    quiet_looks: u32,
}

/// Keeps the connections of a pool until it closes.
pub(super) async fn keep(pool: Arc<Pool>) {
    let mut stop = pool.stop.subscribe();
    let now = Instant::now();
    let jitter = || pool.parts.jitter.clone();
    let mut keeper = Keeper {
        openings: JoinSet::new(),
        begun: Vec::new(),
        drivers: JoinSet::new(),
        watches: JoinSet::new(),
        unreached: Pause::new(REDIAL_PAUSE, UNREACHED_PAUSE_MAX, jitter()),
        refused: Pause::new(REDIAL_PAUSE, REFUSED_PAUSE_MAX, jitter()),
        told: Troubles::default(),
        refused_at: now,
        refused_until: now,
        open_at: now,
        wanted: *pool.parts.connections.start(),
        grown_at: now,
        looked_at: now,
        quiet_looks: 0,
        pool: Arc::clone(&pool),
    };
    loop {
        let next = keeper.look();
        // Biased: a stop goes before everything.
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(ended) = keeper.openings.join_next_with_id() => keeper.end_opening(ended),
            () = pool.changed.notified() => {}
            () = sleep_until(next) => {}
        }
        while keeper.drivers.try_join_next().is_some() {}
        while keeper.watches.try_join_next().is_some() {}
    }
    keeper.openings.shutdown().await;
    let lanes: Vec<_> = pool.state.lock().lanes.iter().map(|lane| Arc::clone(&lane.connection)).collect();
    for connection in lanes {
        pool.retire(&connection, End::Stopped, "its pool closes");
    }
    // Elapsed: what is still open is cut off with the drivers.
    let _ = timeout(CLOSE_WAIT, async { while keeper.drivers.join_next().await.is_some() {} }).await;
}

impl Keeper {
    /// Looks at the load and at every connection, opens what is missing, and says when to look again.
    fn look(&mut self) -> Instant {
        let now = Instant::now();
        let pool = Arc::clone(&self.pool);
        let mut state = pool.state.lock();
        self.follow_load(&mut state, now);
        let mark = mark_due(&pool, &mut state, now);
        if let Some(why) = state.turned_away.take() {
            self.note_refusal();
            state.trouble = Some(format!("a new connection was turned away: {why}"));
        } else if state.lanes.iter().any(|lane| {
            lane.counts() && !is_vain(&lane.connection) && lane.connection.opened > self.refused_at
        }) {
            // A new one does better. Those that were there before say nothing.
            self.refused.reset();
        }
        let counted = state.lanes.iter().filter(|lane| lane.counts()).count();
        let promising = self.begun.iter().filter(|(_, begun)| now - *begun < OPEN_SOON).count();
        let missing = self.wanted.saturating_sub(counted + promising);
        let surplus = (counted > self.wanted).then(|| surplus(&state)).flatten();
        let may_open = self.begun.len() < OPENINGS_MAX;
        let idle = state.lanes.iter().all(|lane| !lane.is_in_use()) && self.begun.is_empty();
        // Calls wait where there is none at all: then a refusal that no setting explains is not heeded for long.
        let refused_until = if idle && pool.circuit.trouble().is_none() {
            self.refused_until.min(self.refused_at + UNSERVED_PAUSE_MAX)
        } else {
            self.refused_until
        };
        let open_at = self.open_at.max(refused_until);
        let closed_until = (idle && missing > 0 && now < open_at).then_some(open_at);
        state.closed_until = closed_until;
        let most = *pool.parts.connections.end();
        state.dismiss(most);
        let somebody_waits = state.waiting_since.is_some();
        drop(state);
        if let Some(connection) = surplus {
            pool.retire(&connection, End::Shrunk, "the load needs fewer");
        }
        let mut next = (self.looked_at + TICK).min(mark);
        if somebody_waits {
            next = next.min(now + GROW_AFTER);
        }
        if missing > 0 && may_open {
            if now < open_at {
                next = next.min(open_at);
            } else {
                self.open();
                self.open_at = now + STAGGER.mul_f64(0.5 + pool.parts.jitter.draw());
                next = next.min(self.open_at);
            }
        } else if missing > 0 || !self.begun.is_empty() {
            let slow = self.begun.iter().map(|(_, begun)| *begun + OPEN_SOON).filter(|at| *at > now).min();
            next = next.min(slow.unwrap_or(next));
        }
        next.max(now + Duration::from_millis(1))
    }

    /// How many connections the load needs: one more where calls wait, one fewer after a while of little load.
    fn follow_load(&mut self, state: &mut State, now: Instant) {
        let (least, most) = (*self.pool.parts.connections.start(), *self.pool.parts.connections.end());
        let in_use = state.lanes.iter().filter(|lane| lane.counts()).count();
        let waited = state.waiting_since.is_some_and(|since| now - since >= GROW_AFTER);
        let hungry =
            waited && now >= self.grown_at + GROW_AFTER && self.begun.is_empty() && in_use >= self.wanted;
        if self.wanted < most && (hungry || (self.wanted == 0 && state.waiting_since.is_some())) {
            self.wanted += 1;
            (self.grown_at, self.quiet_looks) = (now, 0);
        }
        if now < self.looked_at + TICK {
            return;
        }
        self.looked_at = now;
        let used = state.used();
        let peak = std::mem::replace(&mut state.peak, used);
        state.fastest = [None, state.fastest[0]];
        let allowed: usize = state.lanes.iter().map(Lane::limit).sum();
        // A single call on each of some fresh connections, which allow one stream, is no load.
        if peak * 10 > allowed * 7 && self.wanted < most && in_use >= self.wanted && peak > self.wanted {
            (self.wanted, self.quiet_looks) = (self.wanted + 1, 0);
            return;
        }
        let fewer = self.wanted.saturating_sub(1);
        let quiet = self.wanted > least && peak * 10 * self.wanted <= allowed * 3 * fewer;
        self.quiet_looks = if quiet { self.quiet_looks + 1 } else { 0 };
        if self.quiet_looks >= if fewer == 0 { IDLE_LOOKS } else { QUIET_LOOKS } {
            (self.wanted, self.quiet_looks) = (fewer, 0);
        }
    }

    /// A new connection was in vain: the next one waits, ever longer.
    fn note_refusal(&mut self) -> Duration {
        let (now, pause) = (Instant::now(), self.refused.lengthen());
        self.refused_at = now;
        self.refused_until = self.refused_until.max(now + pause);
        pause
    }

    fn open(&mut self) {
        let opening = self.openings.spawn(open(Arc::clone(&self.pool)));
        self.begun.push((opening.id(), Instant::now()));
    }

    fn end_opening(&mut self, ended: Result<(Id, Result<Opened, Failed>), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        self.begun.retain(|(other, _)| *other != id);
        // A panic in it is a bug that the log has; the next opening is as good.
        if let Ok((_, opened)) = ended {
            self.take_in(opened);
        }
    }

    fn take_in(&mut self, opened: Result<Opened, Failed>) {
        let pool = Arc::clone(&self.pool);
        let Opened { connection, ping_pong, way, driving } = match opened {
            Ok(opened) => opened,
            Err(failed) => return self.note_trouble(&failed),
        };
        self.unreached.reset();
        let jitter = &pool.parts.jitter;
        let requests = f64::from(REQUESTS_MAX) * (0.75 + 0.5 * jitter.draw());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 15 and 25 million"
        )]
        let requests_left = requests as u64;
        let aged_at = Instant::now() + AGE_MAX.mul_f64(0.75 + 0.5 * jitter.draw());
        let mut state = pool.state.lock();
        if let Some(why) = connection.retired().cloned() {
            drop(state);
            return self.note_trouble(&Failed { error: OpenError::Closed(why), address: None });
        }
        self.told.forget();
        state.trouble = None;
        state.closed_until = None;
        let replaced = state.lanes.iter().find(|lane| lane.is_in_use() && lane.due.is_some());
        let replaced = replaced.map(|lane| (Arc::clone(&lane.connection), lane.due.unwrap_or_default()));
        state.lanes.push(Lane::new(Arc::clone(&connection), pool.turn(), requests_left, aged_at));
        state.grant(&pool);
        drop(state);

        let environment = pool.environment();
        pool.parts.metrics.apns_connections(environment, "usable", 1);
        let (id, address) = (connection.id, connection.address);
        tracing::info!(apns.environment = environment, apns.connection = id, apns.address = %address, "connected to APNs");
        let counted = Counted(Arc::clone(&pool));
        let driver = self.drivers.spawn(async move {
            let _counted = counted;
            driving.await;
        });
        connection.driven_by(driver.clone());
        let watched = Arc::downgrade(&connection);
        self.watches.spawn(liveness::watch(Arc::clone(&pool), watched, ping_pong, driver, way));
        if let Some((old, why)) = replaced {
            pool.retire(&old, End::Replaced, why);
        }
    }

    /// Tells a new trouble once; the same one again is for those who ask for it.
    fn note_trouble(&mut self, Failed { error, address }: &Failed) {
        let trouble = goaway::shorten(&error.to_string());
        let pool = &self.pool;
        let another = || pool.parts.addresses.has_rested(&pool.state.lock().found);
        let pause = match error {
            // The failed one rests now; the next may do, and each is tried once before the pauses begin.
            OpenError::Dial(_) | OpenError::Slow(..) if address.is_some() && another() => Duration::ZERO,
            OpenError::Dial(_) | OpenError::Slow(..) => {
                let pause = self.unreached.lengthen();
                self.open_at = self.open_at.max(Instant::now() + pause);
                pause
            }
            OpenError::Handshake(_) | OpenError::Closed(_) | OpenError::Mint(_) => self.note_refusal(),
        };
        let (environment, again_in_s) = (self.pool.environment(), pause.as_secs_f64());
        self.pool.state.lock().trouble = Some(trouble.clone());
        if error.blames_configuration() {
            self.pool.refuse_new_connection(&trouble);
        }
        if self.told.is_news(&trouble) {
            tracing::warn!(
                apns.environment = environment,
                again_in_s,
                error = trouble,
                "no connection to APNs; trying again until there is one"
            );
        } else {
            tracing::debug!(
                apns.environment = environment,
                again_in_s,
                error = trouble,
                "no connection to APNs"
            );
        }
    }
}

impl Lane {
    /// Whether it is one of those that the pool needs: in use, and nothing speaks for its replacement.
    fn counts(&self) -> bool {
        self.is_in_use() && self.due.is_none() && self.doubt < Doubt::Silent
    }
}

/// Marks the connections that are to be replaced, and says when the next one will be.
fn mark_due(pool: &Pool, state: &mut State, now: Instant) -> Instant {
    let found = std::mem::take(&mut state.found);
    let in_use = state.addresses_in_use();
    let could_spread = pool.parts.addresses.has_unused(&found, &in_use);
    state.found = found;
    let mut next = now + TICK;
    let mut seen = Vec::new();
    for lane in state.lanes.iter_mut().filter(|lane| lane.is_in_use()) {
        let doubled = seen.contains(&lane.connection.address);
        seen.push(lane.connection.address);
        if lane.due.is_some() {
            continue;
        }
        let useless = if lane.connection.failures() >= FAILURES {
            Some("Apple's failures stick to it")
        } else if lane.connection.sender.current_max_send_streams() == 0 {
            Some("it allows no stream")
        } else {
            None
        };
        lane.due = if useless.is_some() {
            useless
        } else if now >= lane.aged_at {
            Some("its age")
        } else if lane.requests_left == 0 {
            Some("its number of requests")
        } else if lane.connection.is_worn(pool.parts.mint.as_deref()) {
            Some("its provider token")
        } else if doubled && could_spread {
            Some("another address is unused")
        } else {
            None
        };
        next = next.min(lane.aged_at.max(now));
        if let Some(why) = useless.filter(|_| is_vain(&lane.connection)) {
            state.turned_away.get_or_insert_with(|| why.to_owned());
        }
    }
    next
}

/// Which connection goes when there are more than needed: one in doubt, else one that has not served, else the least used.
fn surplus(state: &State) -> Option<Arc<Connection>> {
    let counted = state.lanes.iter().filter(|lane| lane.counts());
    let worth = |lane: &&Lane| (Reverse(lane.doubt), lane.connection.has_served(), lane.open.len());
    counted.min_by_key(worth).map(|lane| Arc::clone(&lane.connection))
}

/// Counts a connection out when its driver ends.
struct Counted(Arc<Pool>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.parts.metrics.apns_connections(self.0.environment(), "draining", -1);
    }
}

/// Returns when the pool closes.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Closed: the pool itself is gone, which is as good.
    let _ = stop.wait_for(|stop| *stop).await;
}
