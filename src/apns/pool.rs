//! The connections of one environment and credential, and who may open a stream on them.
//!
//! APNs binds a connection to environment, team and key, so these never mix in a pool. The rooms: `slot` gives streams
//! out, `keeper` opens and replaces connections, `liveness` watches each of them, `circuit` stops calls that Apple would
//! refuse, `quarantine` keeps suspect tokens apart.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::address::Addresses;
use super::circuit::Circuit;
use super::connection::Connection;
use super::dial::Dial;
use super::goaway;
use super::keeper;
use super::provider_token::TokenMint;
use super::quarantine::Suspects;
use super::request::Template;
use super::slot::{Ask, Doubt, NoSlot, Slot, State};
use crate::clock::Clock;
use crate::domain::app::Environment;
use crate::domain::id::DeviceToken;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::pause::Jitter;

/// How long an answer is waited for after its request's limit. It tells the truth, if late; and h2 takes a dropped request
/// ill.
pub(super) const REAP_WAIT: Duration = Duration::from_secs(30);

/// A connection that owes an answer this long, while others answer, is asked last.
const SLOW: Duration = Duration::from_secs(1);

/// A connection that ends or must be replaced within this, before it has served, was turned away.
const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(30);

/// What a pool is made of.
#[derive(Clone)]
pub(super) struct Parts {
    pub environment: Environment,
    /// How few and how many connections there may be.
    pub connections: RangeInclusive<usize>,
    pub request_timeout: Duration,
    pub dial: Dial,
    pub addresses: Arc<Addresses>,
    /// None where a certificate says who sends.
    pub mint: Option<Arc<TokenMint>>,
    pub template: Arc<Template>,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub jitter: Jitter,
    /// Ids for connections, unique in the process.
    pub ids: Arc<AtomicU64>,
    /// Counts what is heard and what is given up, in the order in which it happens, whatever the clock shows.
    pub turns: Arc<AtomicU64>,
}

/// The connections of one environment and credential.
pub(super) struct Pool {
    pub(super) parts: Parts,
    pub(super) state: Mutex<State>,
    /// Wakes the keeper.
    pub(super) changed: Notify,
    pub(super) stop: watch::Sender<bool>,
    pub(super) circuit: Arc<Circuit>,
    suspects: Suspects,
    /// Where the pushes to suspect tokens go; a pool of that kind has none itself.
    quarantine: Option<Arc<Pool>>,
    /// Of a pool of that kind, the one that it belongs to.
    home: Weak<Pool>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// Why a connection is out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer said GOAWAY.
    GoAway,
    /// The peer closed it, or the network did.
    Closed,
    /// A PING stayed without its PONG.
    NoPong,
    /// It answers PINGs, and no request.
    Unanswered,
    /// Apple refused the provider token, and the connection stays wedged.
    ProviderToken,
    /// It was due: its age, its requests, its token or its address.
    Replaced,
    /// The load needs fewer.
    Shrunk,
    /// The pool closes.
    Stopped,
}

impl End {
    fn label(self) -> &'static str {
        match self {
            Self::GoAway => "goaway",
            Self::Closed => "closed",
            Self::NoPong => "no_pong",
            Self::Unanswered => "unanswered",
            Self::ProviderToken => "provider_token",
            Self::Replaced => "replaced",
            Self::Shrunk => "shrunk",
            Self::Stopped => "stopped",
        }
    }

    /// Whether the address is to blame.
    fn blames_address(self) -> bool {
        matches!(self, Self::NoPong | Self::Unanswered)
    }

    /// Whether the peer turned the connection away, where it has carried nothing yet.
    fn turns_away(self) -> bool {
        matches!(self, Self::GoAway | Self::Closed | Self::ProviderToken)
    }
}

/// What the watch of a connection sees of its streams.
pub(super) struct Look {
    /// The number of the newest stream of the pool.
    pub newest: u64,
    /// When its oldest open stream was given out.
    pub oldest: Option<Instant>,
    /// The same of the oldest one that no PING has spoken for.
    pub oldest_unprobed: Option<Instant>,
    /// Somebody waits for a sign of life.
    pub prove: bool,
}

/// Whether a connection is young and has not served: another one will hardly do better at once.
pub(super) fn is_vain(connection: &Connection) -> bool {
    !connection.has_served() && connection.opened.elapsed() < TURNED_AWAY_WITHIN
}

impl Pool {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let circuit = Arc::<Circuit>::default();
        let lane = Parts { connections: 0..=1, ..parts.clone() };
        Arc::new_cyclic(|home| {
            let quarantine = Self::with(lane, Arc::clone(&circuit), None, Weak::clone(home));
            Self::with(parts, circuit, Some(Arc::new(quarantine)), Weak::new())
        })
    }

    fn with(parts: Parts, circuit: Arc<Circuit>, quarantine: Option<Arc<Self>>, home: Weak<Self>) -> Self {
        Self {
            parts,
            state: Mutex::default(),
            changed: Notify::new(),
            stop: watch::Sender::new(false),
            circuit,
            suspects: Suspects::default(),
            quarantine,
            home,
            keeper: Mutex::default(),
        }
    }

    /// Opens the connections, now or at the first push; calling it again does nothing.
    pub(super) fn start(self: &Arc<Self>) {
        if std::mem::replace(&mut self.state.lock().started, true) {
            return;
        }
        *self.keeper.lock() = Some(tokio::spawn(keeper::keep(Arc::clone(self))));
    }

    /// Whether a push can go out at once, as far as connections and credential go.
    pub(super) fn is_usable(&self) -> bool {
        self.circuit.trouble().is_none() && self.state.lock().lanes.iter().any(|lane| lane.limit() > 0)
    }

    /// Why pushes are refused, or why the last connection could not be opened.
    pub(super) fn trouble(&self) -> Option<String> {
        self.circuit.trouble().or_else(|| self.state.lock().trouble.clone())
    }

    /// Whether it opens connections.
    pub(super) fn is_started(&self) -> bool {
        self.state.lock().started
    }

    /// Streams in use and allowed on usable connections, and the age of the oldest open one.
    pub(super) fn load(&self) -> (usize, usize, Duration) {
        let (mut used, mut allowed, mut oldest) =
            self.quarantine.as_ref().map_or_else(Default::default, |pool| pool.load());
        let state = self.state.lock();
        for lane in &state.lanes {
            used += lane.open.len();
            allowed += lane.limit();
            oldest = oldest.max(lane.oldest().map_or(Duration::ZERO, |given| given.elapsed()));
        }
        (used, allowed, oldest)
    }

    /// How many tokens are kept apart.
    pub(super) fn suspects(&self) -> usize {
        self.suspects.len()
    }

    /// Where the pushes to a token go: here, or, after Apple rejected it lately, to the connection kept apart.
    pub(super) fn for_token(self: &Arc<Self>, token: &DeviceToken) -> Arc<Self> {
        match &self.quarantine {
            Some(quarantine) if self.suspects.hold(token) => Arc::clone(quarantine),
            _ => Arc::clone(self),
        }
    }

    /// Apple called a token bad, or accepted one that was.
    pub(super) fn suspect(&self, token: &DeviceToken, is_suspect: bool) {
        if is_suspect {
            self.suspects.note(token);
        } else if self.suspects.hold(token) {
            self.suspects.clear(token);
        }
    }

    /// The next turn of what is heard and given up.
    pub(super) fn turn(&self) -> u64 {
        self.parts.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A stream now, or `None`: then there is something to wait for.
    pub(super) fn take(self: &Arc<Self>, ask: Ask, now: Instant) -> Result<Option<Slot>, NoSlot> {
        self.circuit.check().map_err(NoSlot::Refused)?;
        Ok(self.state.lock().take_at_once(self, ask, now))
    }

    /// A stream before the deadline, where [`Pool::take`] had none.
    pub(super) async fn wait(self: &Arc<Self>, deadline: Instant, ask: Ask) -> Result<Slot, NoSlot> {
        let (place, granted) = {
            let mut state = self.state.lock();
            if let Some(slot) = state.take_at_once(self, ask, Instant::now()) {
                return Ok(slot);
            }
            if let Some(why) = state.is_hopeless(deadline, *self.parts.connections.end()) {
                drop(state);
                return Err(self.tell_late(Some(why)));
            }
            if state.waiting_since.is_none() {
                self.changed.notify_one();
            }
            state.wait(self, deadline, ask)
        };
        let granted = timeout_at(deadline, granted).await;
        drop(place);
        match granted {
            Ok(Ok(Err(NoSlot::Late(why)))) => Err(self.tell_late(why)),
            Ok(Ok(granted)) => granted,
            _ => Err(self.tell_late(None)),
        }
    }

    /// Why a wait was in vain. A refused credential says more than a lack of streams.
    fn tell_late(&self, why: Option<String>) -> NoSlot {
        match self.circuit.trouble() {
            Some(trouble) => NoSlot::Refused(trouble),
            None => NoSlot::Late(why.or_else(|| self.trouble())),
        }
    }

    /// A connection was answered for the first time.
    pub(super) fn proved(self: &Arc<Self>, connection: &Connection) {
        self.parts.addresses.works(connection.address);
        let mut state = self.state.lock();
        state.proved_at.get_or_insert_with(Instant::now);
        state.grant(self);
    }

    /// The peer allows another number of streams.
    pub(super) fn limit_changed(self: &Arc<Self>) {
        self.state.lock().grant(self);
    }

    /// Takes a connection out of use; its open streams may finish.
    pub(super) fn retire(&self, connection: &Connection, end: End, why: &str) {
        let why = goaway::shorten(why);
        if !connection.retire(&why) {
            return;
        }
        let turned_away = end.turns_away() && is_vain(connection);
        let admitted = {
            let mut state = self.state.lock();
            let place = state.lanes.iter().position(|lane| lane.connection.id == connection.id);
            if let Some(place) = place
                && state.lanes[place].open.is_empty()
            {
                state.lanes.remove(place);
            }
            if turned_away {
                state.turned_away = Some(why.clone());
            }
            place.is_some()
        };
        let for_settings = end == End::GoAway && goaway::blames_configuration(&why);
        if end.blames_address() || turned_away && (!for_settings || self.is_serving()) {
            self.parts.addresses.failed(connection.address);
        }
        if turned_away && for_settings {
            self.refuse_new_connection(&why);
        }
        if admitted {
            let environment = self.environment();
            self.parts.metrics.apns_connections(environment, "usable", -1);
            self.parts.metrics.apns_connections(environment, "draining", 1);
            self.parts.metrics.apns_connection_end(environment, end.label());
            tracing::info!(
                apns.environment = environment,
                apns.connection = connection.id,
                apns.address = %connection.address,
                end = end.label(),
                why,
                "a connection to APNs is out of use"
            );
        }
        self.changed.notify_one();
    }

    /// Takes a connection out of use and ends it: what it still holds goes elsewhere now.
    pub(super) fn abandon(&self, connection: &Connection, end: End, why: &str) {
        self.retire(connection, end, why);
        connection.cut();
    }

    /// A request that was written at that time was not answered, for a whole limit `since` it was judged last. Whether its connection may
    /// stay, because it is slow and not stalled: it answered others since, or its siblings, too, answered none but older ones. Where
    /// they answered newer ones, it is given up with all that it holds. Where nobody answers, it only gets no new requests, since
    /// the slow truth may still come; but the last one that ever served goes on beside fresh ones that have no room, since they carry
    /// one stream until they are answered.
    pub(super) fn miss_answer(&self, connection: &Connection, written: Instant, since: Instant) -> bool {
        let after = |from: Instant, at: Option<Instant>| at.is_some_and(|at| at >= from);
        let state = self.state.lock();
        let (own, siblings): (Vec<_>, Vec<_>) =
            state.lanes.iter().partition(|lane| lane.connection.id == connection.id);
        let answers = own.iter().any(|lane| after(since, lane.answered));
        let newer = siblings.iter().any(|lane| after(written, lane.newest_answered));
        let older = siblings.iter().any(|lane| after(since, lane.answered));
        let mut in_use = siblings.iter().filter(|lane| lane.is_in_use()).peekable();
        let is_last = connection.is_proven()
            && in_use.peek().is_some()
            && in_use.all(|lane| !lane.connection.is_proven() && !lane.open.is_empty());
        drop(state);
        match (answers, newer, older) {
            (true, ..) | (_, false, true) => return true,
            (_, true, _) => self.abandon(connection, End::Unanswered, "it answers PINGs, but no request"),
            _ if is_last => {}
            _ => self.retire(connection, End::Unanswered, "a request was not answered in time"),
        }
        false
    }

    /// Whether a connection in use has served: what a fresh one says of the credential is then the fresh one's own trouble.
    pub(super) fn is_serving(&self) -> bool {
        let serves = |pool: &Self| {
            pool.state.lock().lanes.iter().any(|lane| lane.is_in_use() && lane.connection.has_served())
        };
        serves(self) || self.home.upgrade().is_some_and(|home| serves(&home))
    }

    /// A new connection was closed with a word about the settings.
    pub(super) fn refuse_new_connection(&self, why: &str) {
        if !self.is_serving() {
            self.refuse_credential(&format!("it closes each new connection: {why}"), true);
        }
    }

    /// Apple refused the credential; `fresh`: on a connection that it has no history on.
    pub(super) fn refuse_credential(&self, why: &str, fresh: bool) {
        let surely = fresh && !self.is_serving();
        let at = Timestamp::from_unix_ms(self.parts.clock.unix_ms());
        if self.circuit.refused(why, surely, at) {
            tracing::error!(
                apns.environment = self.environment(),
                why,
                "Apple refuses this credential: its calls are rejected at once until a probe gets through"
            );
            // Whoever waits would meet the same, one by one. A probe comes later.
            let trouble = self.circuit.trouble().unwrap_or_default();
            self.state.lock().refuse_all(&trouble);
            for beside in self.quarantine.iter().cloned().chain(self.home.upgrade()) {
                beside.state.lock().refuse_all(&trouble);
            }
        }
    }

    /// Apple answered something that only a good credential gets.
    pub(super) fn trust_credential(&self) {
        if self.circuit.answered() {
            tracing::info!(apns.environment = self.environment(), "Apple takes this credential again");
        }
    }

    /// What the watch of a connection needs to see; PINGs have spoken for streams up to `probed`. `None`: the connection is out
    /// of use and has no open stream.
    pub(super) fn look(&self, connection: &Connection, probed: u64) -> Option<Look> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let newest = state.newest();
        let siblings = state
            .lanes
            .iter()
            .filter(|lane| lane.connection.id != connection.id)
            .filter_map(|lane| lane.answered)
            .max();
        let lane = state.lane(connection.id)?;
        let oldest = lane.oldest();
        if let Some(given) = oldest
            && lane.doubt == Doubt::None
            && now - given >= SLOW
            && lane.answered.is_none_or(|at| at < given)
            && siblings.is_some_and(|at| at >= given)
        {
            lane.doubt = Doubt::Slow;
        }
        let oldest_unprobed = lane.open.range(probed + 1..).next().map(|(_, given)| *given);
        // Without one it may sleep past the time at which the next would look late.
        lane.asleep = oldest_unprobed.is_none();
        let prove = std::mem::take(&mut lane.prove);
        Some(Look { newest, oldest, oldest_unprobed, prove })
    }

    /// A PING has its PONG.
    pub(super) fn hear(self: &Arc<Self>, connection: &Connection) {
        let mut state = self.state.lock();
        if let Some(lane) = state.lane(connection.id) {
            lane.heard = self.turn();
            let recovered = lane.doubt == Doubt::Silent;
            if recovered {
                lane.doubt = Doubt::None;
            }
            state.grant(self);
            drop(state);
            if recovered {
                self.changed.notify_one();
            }
        }
    }

    /// A PING waits for its PONG longer than usual.
    pub(super) fn doubt(&self, connection: &Connection) {
        if let Some(lane) = self.state.lock().lane(connection.id) {
            lane.doubt = Doubt::Silent;
        }
        self.changed.notify_one();
    }

    /// Closes every connection after its open streams, within a limit, and says GOAWAY.
    pub(super) async fn close(&self) {
        let pools = [Some(self), self.quarantine.as_deref()];
        let keepers: Vec<_> = pools.into_iter().flatten().map(Self::stop).collect();
        for keeper in keepers.into_iter().flatten() {
            // It ends by itself; a panic in it is in the log, and leaves nothing to close.
            let _ = keeper.await;
        }
    }

    /// Tells its keeper to end.
    fn stop(&self) -> Option<JoinHandle<()>> {
        self.stop.send_replace(true);
        self.keeper.lock().take()
    }

    pub(super) fn environment(&self) -> &'static str {
        self.parts.environment.as_str()
    }
}
