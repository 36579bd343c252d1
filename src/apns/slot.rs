//! Who may open a stream, where and when: the right to one stream, the queue of those who wait for it, and the state of
//! the connections that it is given out on.
//!
//! Streams are given out by us, not by h2, whose own queue knows no deadlines: whoever has the least time left comes
//! first, on the least loaded connection that nobody doubts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::Connection;
use super::pool::Pool;

/// Streams of one connection at most, whatever the peer allows. APNs was seen to allow 500 to 1500.
const STREAMS_MAX: usize = 1000;

/// Behind so many others, a place in the queue is compared with what the pool can do.
const QUEUE_LOOKED_AT: usize = 8;

/// How long after its first answer a pool has shown what it can do.
const PACE_SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Why there is no stream.
#[derive(Debug)]
pub(super) enum NoSlot {
    /// None before the deadline; says why, where that is known.
    Late(Option<String>),
    /// Apple refuses the credential.
    Refused(String),
}

/// What a pool knows of its connections and of who waits for them.
#[derive(Default)]
pub(super) struct State {
    /// In the order in which they were opened; out of use they stay for their open streams.
    pub lanes: Vec<Lane>,
    /// In deadline order; the number keeps those apart that share one.
    waiters: BTreeMap<(Instant, u64), Waiter>,
    sequence: u64,
    /// Since when somebody waits.
    pub waiting_since: Option<Instant>,
    /// Streams in use and asked for at most, since this was last looked at.
    pub peak: usize,
    pub started: bool,
    /// Why the last connection could not be opened, until one can.
    pub trouble: Option<String>,
    /// There is no connection, and none is dialled before this.
    pub closed_until: Option<Instant>,
    /// Addresses that are being dialled.
    pub dialling: Vec<SocketAddr>,
    /// What the name stood for last.
    pub found: Vec<SocketAddr>,
    /// The fastest answer lately, in two spans of time, the running one first.
    pub fastest: [Option<Duration>; 2],
    /// The highest limit that a connection ever had.
    limit_seen: usize,
    /// When the first answer came.
    pub proved_at: Option<Instant>,
    /// Why a new connection was ended by the peer before it carried anything, until the keeper has seen it.
    pub turned_away: Option<String>,
}

/// One connection and the streams that are given out on it.
pub(super) struct Lane {
    pub connection: Arc<Connection>,
    /// When each was given out, oldest first.
    pub open: BTreeMap<u64, Instant>,
    /// When APNs last answered on it.
    pub answered: Option<Instant>,
    /// When the newest one that was answered had been given out.
    pub newest_answered: Option<Instant>,
    /// The turn at which something was last heard on it: an answer, or a PONG.
    pub heard: u64,
    /// Somebody waits for a sign of life: a PING is to go out.
    pub prove: bool,
    pub doubt: Doubt,
    /// It is to be replaced: it goes when another one has come.
    pub due: Option<&'static str>,
    /// Requests that it may still carry.
    pub requests_left: u64,
    /// From here on it is due.
    pub aged_at: Instant,
    /// Its watch wants to be woken by the next stream that is given out.
    pub asleep: bool,
}

/// How much a connection is to be trusted with further calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// As far as is known, it does well.
    #[default]
    None,
    /// It owes answers while others answer: it stays, and is asked last.
    Slow,
    /// A PING waits for its PONG: a replacement is on its way.
    Silent,
}

/// Which connection a push may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// The one that failed last; another is preferred. 0: none failed.
    pub avoid: u64,
    /// An attempt that may have rung was given up at this turn, and only one more is worth it: it goes where something was
    /// heard later, and not where it was given up, unless there is nothing else. Whatever killed one connection may have killed
    /// all. 0: none was given up.
    pub lost: u64,
    /// The connection that it was given up on.
    pub lost_on: u64,
}

struct Waiter {
    ask: Ask,
    slot: oneshot::Sender<Granted>,
}

/// A slot, or why there will be none.
pub(super) type Granted = Result<Slot, NoSlot>;

/// The right to one stream. Dropped, it goes to the next waiter.
pub(super) struct Slot {
    /// Where the stream may be opened.
    pub connection: Arc<Connection>,
    pool: Arc<Pool>,
    sequence: u64,
    armed: bool,
    /// When APNs answered.
    answered: Option<Instant>,
}

/// A place in the queue; left when the wait ends, however it ends.
pub(super) struct Place<'a> {
    pool: &'a Arc<Pool>,
    key: (Instant, u64),
}

impl State {
    /// A slot on the least loaded connection that has room: an undoubted one before others, and the one to avoid last.
    pub(super) fn take(&mut self, pool: &Arc<Pool>, ask: Ask, now: Instant) -> Option<Slot> {
        // Of few, and for a repeat alone.
        let others = ask.lost != 0
            && self.lanes.iter().any(|lane| lane.is_in_use() && lane.connection.id != ask.lost_on);
        let may_repeat =
            |lane: &Lane| lane.heard > ask.lost && !(others && lane.connection.id == ask.lost_on);
        let may_carry =
            |lane: &&mut Lane| lane.open.len() < lane.limit() && (ask.lost == 0 || may_repeat(lane));
        let rank = |lane: &&mut Lane| {
            (lane.doubt, lane.connection.id == ask.avoid, lane.due.is_some(), lane.open.len())
        };
        let lane = self.lanes.iter_mut().filter(may_carry).min_by_key(rank)?;
        self.sequence += 1;
        let sequence = self.sequence;
        lane.open.insert(sequence, now);
        lane.requests_left = lane.requests_left.saturating_sub(1);
        if lane.asleep {
            lane.asleep = false;
            lane.connection.alarm.notify_one();
        }
        let connection = Arc::clone(&lane.connection);
        Some(Slot { connection, pool: Arc::clone(pool), sequence, armed: true, answered: None })
    }

    /// Takes a slot unless others were here before. Who waits for a sign of life only holds nobody up.
    pub(super) fn take_at_once(&mut self, pool: &Arc<Pool>, ask: Ask, now: Instant) -> Option<Slot> {
        if self.waiters.values().any(|waiter| waiter.ask.lost == 0) {
            return None;
        }
        let slot = self.take(pool, ask, now);
        self.peak = self.peak.max(self.used() + usize::from(slot.is_none()));
        slot
    }

    /// Queues for a slot.
    pub(super) fn wait<'a>(
        &mut self,
        pool: &'a Arc<Pool>,
        deadline: Instant,
        ask: Ask,
    ) -> (Place<'a>, oneshot::Receiver<Granted>) {
        let (slot, granted) = oneshot::channel();
        self.sequence += 1;
        let key = (deadline, self.sequence);
        self.waiters.insert(key, Waiter { ask, slot });
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in_use() && lane.heard <= ask.lost) {
            lane.prove = true;
            lane.connection.alarm.notify_one();
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        self.peak = self.peak.max(self.used() + self.waiters.len());
        (Place { pool, key }, granted)
    }

    /// Whether a wait until `deadline` cannot end well, and why: no connection is dialled before, or so many have less time
    /// left that even at the best pace that was seen the turn comes too late.
    pub(super) fn is_hopeless(&self, deadline: Instant, connections_max: usize) -> Option<String> {
        if self.closed_until.is_some_and(|until| until >= deadline) {
            return Some(self.tell_closed());
        }
        let pace = self.pace(connections_max)?;
        // To count them takes as long as they are many, so only where it can matter.
        let in_time = pace.in_time(deadline);
        if self.waiters.len() < in_time {
            return None;
        }
        let before = self.waiters.range(..(deadline, u64::MAX)).count();
        (before >= in_time).then(|| pace.tell_late(before))
    }

    /// Tells those who wait in vain. Others may have come before them since they came.
    pub(super) fn dismiss(&mut self, connections_max: usize) {
        if let Some(until) = self.closed_until {
            let stay = self.waiters.split_off(&(until, u64::MAX));
            let why = self.tell_closed();
            for (_, waiter) in std::mem::replace(&mut self.waiters, stay) {
                // Gone already: as good.
                let _ = waiter.slot.send(Err(NoSlot::Late(Some(why.clone()))));
            }
        }
        // Who has the least time left is the first that others can make late.
        if let Some(pace) = self.pace(connections_max)
            && let Some(((earliest, _), _)) = self.waiters.first_key_value()
            && self.waiters.len() > pace.in_time(*earliest)
        {
            let mut stay = BTreeMap::new();
            for (key, waiter) in std::mem::take(&mut self.waiters) {
                if stay.len() >= pace.in_time(key.0) {
                    let _ = waiter.slot.send(Err(NoSlot::Late(Some(pace.tell_late(stay.len())))));
                } else {
                    stay.insert(key, waiter);
                }
            }
            self.waiters = stay;
        }
        if self.waiters.is_empty() {
            self.waiting_since = None;
        }
    }

    fn tell_closed(&self) -> String {
        let why = self.trouble.as_deref().unwrap_or("it was closed");
        format!("none is opened before the deadline, after this: {why}")
    }

    /// What the pool can do at best, where enough wait for this to matter, and it could show it: the first answers come one
    /// by one.
    fn pace(&self, connections_max: usize) -> Option<Pace> {
        self.proved_at.filter(|at| at.elapsed() >= PACE_SHOWN_AFTER)?;
        let at_once = connections_max * self.limit_seen.max(1);
        let fastest = self.fastest.into_iter().flatten().min()?;
        (self.waiters.len() >= QUEUE_LOOKED_AT.max(at_once)).then_some(Pace { at_once, fastest })
    }

    /// Gives free streams to waiters, earliest deadline first.
    pub(super) fn grant(&mut self, pool: &Arc<Pool>) {
        let mut passed_over = None;
        if self.waiters.is_empty() {
            return;
        }
        let now = Instant::now();
        loop {
            let behind = passed_over.map_or(Bound::Unbounded, Bound::Excluded);
            let Some((key, waiter)) = self.waiters.range((behind, Bound::Unbounded)).next() else { break };
            let (key, ask) = (*key, waiter.ask);
            let Some(slot) = self.take(pool, ask, now) else {
                if ask.lost == 0 {
                    return;
                }
                // It waits for a sign of life; the next one may not.
                passed_over = Some(key);
                continue;
            };
            let waiter = self.waiters.remove(&key).expect("its key was just read, under the same lock");
            if let Err(Ok(mut slot)) = waiter.slot.send(Ok(slot)) {
                // The waiter went in this very moment. Given back here: its drop would lock again.
                slot.armed = false;
                self.give_back(&slot);
            }
        }
        if self.waiters.is_empty() {
            self.waiting_since = None;
        }
    }

    /// Sends everybody away who waits: Apple refuses the credential.
    pub(super) fn refuse_all(&mut self, why: &str) {
        for (_, waiter) in std::mem::take(&mut self.waiters) {
            // Gone already: as good.
            let _ = waiter.slot.send(Err(NoSlot::Refused(why.to_owned())));
        }
        self.waiting_since = None;
    }

    fn leave(&mut self, key: (Instant, u64)) {
        if self.waiters.remove(&key).is_some() && self.waiters.is_empty() {
            self.waiting_since = None;
        }
    }

    fn give_back(&mut self, slot: &Slot) {
        let Some(place) = self.lanes.iter().position(|lane| lane.connection.id == slot.connection.id) else {
            return;
        };
        let lane = &mut self.lanes[place];
        let given = lane.open.remove(&slot.sequence);
        if let Some(now) = slot.answered {
            lane.answered = lane.answered.max(slot.answered);
            lane.newest_answered = lane.newest_answered.max(given);
            lane.heard = slot.pool.turn();
            if lane.doubt == Doubt::Slow {
                lane.doubt = Doubt::None;
            }
            self.limit_seen = self.limit_seen.max(lane.limit());
            if let Some(took) = given.map(|given| now.saturating_duration_since(given)) {
                self.fastest[0] = Some(self.fastest[0].map_or(took, |fastest| fastest.min(took)));
            }
        }
        if lane.connection.retired().is_some() && lane.open.is_empty() {
            self.lanes.remove(place);
        }
    }

    /// The number of the newest stream.
    pub(super) fn newest(&self) -> u64 {
        self.sequence
    }

    /// Streams that are given out.
    pub(super) fn used(&self) -> usize {
        self.lanes.iter().map(|lane| lane.open.len()).sum()
    }

    /// The lane of a connection, while it has one.
    pub(super) fn lane(&mut self, connection: u64) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.connection.id == connection)
    }

    /// Addresses that connections in use have or are about to have.
    pub(super) fn addresses_in_use(&self) -> Vec<SocketAddr> {
        let in_use = self.lanes.iter().filter(|lane| lane.is_in_use() && lane.doubt < Doubt::Silent);
        in_use.map(|lane| lane.connection.address).chain(self.dialling.iter().copied()).collect()
    }
}

/// The best that was seen: so many streams at once, and an answer after that long.
struct Pace {
    at_once: usize,
    fastest: Duration,
}

impl Pace {
    /// With so many before it, or more, a wait ends at its deadline or later.
    fn in_time(&self, deadline: Instant) -> usize {
        let left = deadline.saturating_duration_since(Instant::now());
        let rounds = left.as_nanos().div_ceil(self.fastest.as_nanos().max(1));
        usize::try_from(rounds).unwrap_or(usize::MAX).saturating_mul(self.at_once)
    }

    fn tell_late(&self, before: usize) -> String {
        format!(
            "{before} with less time left wait for {} streams, {} ms each at best",
            self.at_once,
            self.fastest.as_millis()
        )
    }
}

impl Lane {
    pub(super) fn new(connection: Arc<Connection>, turn: u64, requests_left: u64, aged_at: Instant) -> Self {
        Self {
            connection,
            open: BTreeMap::new(),
            answered: None,
            newest_answered: None,
            heard: turn,
            prove: false,
            doubt: Doubt::None,
            due: None,
            requests_left,
            aged_at,
            asleep: false,
        }
    }

    /// One stream until an answer came, then what the peer's settings and our own limit allow; none out of use.
    pub(super) fn limit(&self) -> usize {
        if !self.is_in_use() {
            return 0;
        }
        let most = if self.connection.is_proven() { STREAMS_MAX } else { 1 };
        most.min(self.connection.sender.current_max_send_streams())
    }

    /// Whether further streams may be opened, as far as we are concerned.
    pub(super) fn is_in_use(&self) -> bool {
        self.connection.retired().is_none()
    }

    /// When its oldest open stream was given out.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.open.first_key_value().map(|(_, given)| *given)
    }
}

impl Slot {
    /// APNs answered. Anything but a refused credential proves the connection: it may carry more than one stream.
    pub(super) fn answered(&mut self, status: u16, now: Instant) {
        self.answered = Some(now);
        if status != 403 && self.connection.prove(status >= 500) {
            self.pool.proved(&self.connection);
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

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().leave(self.key);
    }
}
