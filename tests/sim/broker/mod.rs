//! A model of the broker: a queue of invites, the queue of what it gave up on, one place for results, and sessions that end
//! in every way that sessions end.
//!
//! It keeps RabbitMQ's promises and no others: what is unacknowledged when a session ends comes again; a result is stored
//! before it is confirmed; an answer that is lost says nothing. `habit.rs` says how it behaves in a world, `session.rs` is
//! one worker's connections, `lane.rs` takes results.

mod habit;
mod lane;
mod session;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use ringcast::domain::id::Identity;
use ringcast::worker::mailbox::{GivenUp, Publication, Settlement};
use tokio::sync::Notify;
use tokio::sync::mpsc::WeakSender;
use tokio::time::{Instant, sleep_until};

pub use habit::{Count, Habits};
pub use session::{Line, Order, Phase, keep};

use crate::plan::Dice;

/// A message in a queue.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub amqp_id: Option<String>,
    pub body: Bytes,
    pub redelivered: bool,
    /// How often it came back to the queue.
    pub returned: u32,
    /// Since the world's start: until when the invites queue keeps it.
    pub expires_at: Option<Duration>,
    /// Why the broker gave it up; then it lies among such.
    pub given_up: Option<GivenUp>,
}

impl Message {
    pub fn identity(&self) -> Identity {
        Identity::of(self.amqp_id.as_deref(), &self.body)
    }
}

/// One line of what happened at the broker.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "a history's text has all of it")]
pub enum Happening {
    /// `seen` is false where the session was over before the worker could look at it.
    Delivered {
        at: Duration,
        worker: u64,
        identity: Identity,
        redelivered: bool,
        given_up: Option<GivenUp>,
        seen: bool,
    },
    /// The broker has it, whether or not anybody learns of it.
    Stored { at: Duration, publication: Publication },
    /// The worker learns that the broker has it.
    Confirmed { at: Duration, worker: u64, message_id: Arc<str> },
    /// The worker does not learn that the broker has it; it may have it all the same.
    Unconfirmed { at: Duration, worker: u64, message_id: Arc<str>, why: Why },
    /// So many publications wait on their lane for an alarm to be cleared.
    Blocked { at: Duration, worker: u64, results: usize },
    /// The worker said so; whether the broker ever heard it is another matter.
    Settled { at: Duration, worker: u64, identity: Identity, settlement: Settlement },
    /// A session ended. `held`: deliveries of sessions before it that the worker still has in its hands.
    Cut { at: Duration, worker: u64, held: usize },
    /// The handler of an invite of this call died.
    Died { at: Duration, worker: u64, call: String },
    /// What was given up came back too often: nobody will answer it.
    Buried { at: Duration, identity: Identity },
}

/// Why a worker does not learn that the broker has a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It has no queue.
    Returned,
    Nacked,
    /// The confirm came when nobody waited any more.
    Late,
    /// There was none.
    Never,
    /// Something of its batch came back, and not all of it was answered.
    Doubtful,
    /// The channel was closed, and the session went on.
    Closed,
    /// The session was lost.
    Lost,
}

/// The two queues that a worker reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Invites,
    Expired,
}

/// What every session feels at once.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// How often the broker went away.
    outages: u32,
    /// It is away now.
    away: bool,
    /// A memory alarm: nothing that is published is read.
    alarm: bool,
    /// Nobody can read what was given up.
    expired_away: bool,
}

/// The queues and the results; clones share them.
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

struct Shared {
    started: Instant,
    dice: Dice,
    habits: Mutex<Habits>,
    state: Mutex<State>,
    weather: Mutex<Weather>,
    /// A `watch` would wake those who wait in an order that differs from run to run.
    weather_changed: Notify,
    arrived: [Notify; 2],
}

#[derive(Default)]
struct State {
    ready: [VecDeque<Message>; 2],
    unacked: usize,
    /// Published while the broker was away: whoever publishes tries again.
    held: Vec<Message>,
    /// Results whose routing key begins so have no queue.
    unbound: Option<&'static str>,
    /// By worker: what its receipts of sessions that ended report to.
    lost: BTreeMap<u64, Vec<WeakSender<(u64, Settlement)>>>,
    happenings: Vec<Happening>,
}

impl Broker {
    pub fn new(seed: u64, habits: Habits) -> Self {
        Self(Arc::new(Shared {
            started: Instant::now(),
            dice: Dice::new(seed ^ 0xb20c),
            habits: Mutex::new(habits),
            state: Mutex::default(),
            weather: Mutex::default(),
            weather_changed: Notify::new(),
            arrived: [Notify::new(), Notify::new()],
        }))
    }

    fn at(&self) -> Duration {
        self.0.started.elapsed()
    }

    fn dice(&self) -> &Dice {
        &self.0.dice
    }

    fn habits(&self) -> Habits {
        *self.0.habits.lock()
    }

    pub fn publish(&self, message: Message) {
        let mut state = self.0.state.lock();
        if self.weather().away {
            state.held.push(message);
        } else {
            state.ready[Queue::Invites as usize].push_back(message);
            self.wake();
        }
    }

    /// Results whose routing key begins so have no queue; `None`: all have one.
    pub fn unbind(&self, prefix: Option<&'static str>) {
        self.0.state.lock().unbound = prefix;
    }

    /// A memory alarm is raised or cleared.
    pub fn alarm(&self, raised: bool) {
        self.change(|weather| weather.alarm = raised);
    }

    /// The queue of what was given up is gone or there.
    pub fn mislay_expired(&self, gone: bool) {
        self.change(|weather| weather.expired_away = gone);
    }

    /// The broker crashes, or its queue loses its leader: every session ends, and no other begins until
    /// [`Broker::come_back`].
    pub fn go_away(&self) {
        self.change(|weather| {
            weather.outages += 1;
            weather.away = true;
            // What holds memory is gone, too.
            weather.alarm = false;
        });
    }

    pub fn come_back(&self) {
        self.change(|weather| weather.away = false);
        let mut state = self.0.state.lock();
        let held = std::mem::take(&mut state.held);
        state.ready[Queue::Invites as usize].extend(held);
        self.wake();
    }

    pub fn heal(&self) {
        let habits = self.habits().healed();
        *self.0.habits.lock() = habits;
        self.unbind(None);
        self.alarm(false);
        self.mislay_expired(false);
        self.come_back();
    }

    /// Returns when a session can begin.
    async fn reached(&self) {
        self.weather_until(|weather| !weather.away).await;
    }

    fn weather(&self) -> Weather {
        *self.0.weather.lock()
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.0.weather.lock());
        self.0.weather_changed.notify_waiters();
    }

    async fn weather_until(&self, is_so: impl Fn(&Weather) -> bool) {
        loop {
            let changed = self.0.weather_changed.notified();
            if is_so(&self.weather()) {
                return;
            }
            changed.await;
        }
    }

    pub fn is_empty(&self) -> bool {
        let mut state = self.0.state.lock();
        self.sweep(&mut state);
        state.ready.iter().all(VecDeque::is_empty) && state.held.is_empty() && state.unacked == 0
    }

    pub fn happenings(&self) -> Vec<Happening> {
        self.0.state.lock().happenings.clone()
    }

    pub fn note(&self, happening: impl FnOnce(Duration) -> Happening) {
        let happening = happening(self.at());
        self.0.state.lock().happenings.push(happening);
    }

    /// For whoever has room, this session or another.
    fn wake(&self) {
        for arrived in &self.0.arrived {
            arrived.notify_one();
        }
    }

    /// A worker's channel has ended, and these are its receipts.
    fn lose(&self, worker: u64, receipts: WeakSender<(u64, Settlement)>) {
        self.0.state.lock().lost.entry(worker).or_default().push(receipts);
    }

    /// How many deliveries of channels that ended a worker still has in its hands.
    fn held(&self, worker: u64) -> usize {
        let mut state = self.0.state.lock();
        let lost = state.lost.entry(worker).or_default();
        lost.retain(|receipts| receipts.strong_count() > 0);
        lost.iter().map(WeakSender::strong_count).sum()
    }

    /// Gives up what has expired. Only the head of the queue is looked at.
    fn sweep(&self, state: &mut State) -> Option<Duration> {
        while let Some(head) = state.ready[Queue::Invites as usize].front() {
            match head.expires_at {
                Some(expires_at) if expires_at <= self.at() => {
                    let expired = state.ready[Queue::Invites as usize].pop_front().expect("there is a head");
                    self.give_up(state, expired, GivenUp::Expired);
                }
                then => return then,
            }
        }
        None
    }

    /// Dead-letters a message, at least once.
    fn give_up(&self, state: &mut State, message: Message, why: GivenUp) {
        let dead = Message { redelivered: false, returned: 0, given_up: Some(why), ..message };
        let copies = if self.dice().chance(self.habits().dead_lettered_twice) { 2 } else { 1 };
        let queue = &mut state.ready[Queue::Expired as usize];
        queue.extend(std::iter::repeat_n(dead, copies));
        self.0.arrived[Queue::Expired as usize].notify_one();
    }

    /// The next message of a queue, which is unacknowledged from then on.
    async fn next(&self, queue: Queue) -> Message {
        loop {
            let expires_at = match self.take(queue) {
                Ok(message) => return message,
                Err(expires_at) => expires_at,
            };
            let arrived = self.0.arrived[queue as usize].notified();
            match expires_at {
                Some(expires_at) => tokio::select! {
                    biased;
                    () = arrived => {}
                    () = sleep_until(self.0.started + expires_at) => {}
                },
                None => arrived.await,
            }
        }
    }

    /// The next message, or when the head of the invites queue expires.
    fn take(&self, queue: Queue) -> Result<Message, Option<Duration>> {
        if self.weather().away {
            return Err(None);
        }
        let mut state = self.0.state.lock();
        let expires_at = self.sweep(&mut state);
        let Some(message) = state.ready[queue as usize].pop_front() else { return Err(expires_at) };
        state.unacked += 1;
        self.wake();
        Ok(message)
    }

    /// These are unacknowledged no more, and go back to where they came from, the first to the front.
    fn take_back(&self, queue: Queue, messages: impl DoubleEndedIterator<Item = Message>, counts: bool) {
        let mut state = self.0.state.lock();
        for mut message in messages.rev() {
            state.unacked -= 1;
            message.redelivered = true;
            message.returned += u32::from(counts);
            let too_often = self.habits().count != Count::Never && message.returned > Habits::DELIVERY_LIMIT;
            match queue {
                Queue::Invites if too_often => self.give_up(&mut state, message, GivenUp::DeliveryLimit),
                Queue::Expired if too_often => {
                    let (at, identity) = (self.at(), message.identity());
                    state.happenings.push(Happening::Buried { at, identity });
                }
                _ => state.ready[queue as usize].push_front(message),
            }
        }
        self.wake();
    }

    /// One delivery is settled.
    fn settle(&self, queue: Queue, message: Message, settlement: Settlement) {
        let counts = settlement != Settlement::GiveBack || self.habits().give_back_counts;
        match settlement {
            Settlement::Ack | Settlement::Reject => self.0.state.lock().unacked -= 1,
            Settlement::Requeue | Settlement::GiveBack => {
                self.take_back(queue, std::iter::once(message), counts);
            }
        }
    }

    /// Whether a result with this routing key has a queue.
    fn is_bound(&self, routing_key: &str) -> bool {
        self.0.state.lock().unbound.is_none_or(|prefix| !routing_key.starts_with(prefix))
    }

    fn store(&self, publication: &Publication) {
        self.note(|at| Happening::Stored { at, publication: publication.clone() });
    }
}
