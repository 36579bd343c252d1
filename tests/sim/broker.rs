//! A model of the broker: one invites queue, one place for results, sessions that can be cut.
//!
//! It keeps RabbitMQ's promises and no others: what is unacknowledged when a session is cut comes again; a result is stored
//! before it is confirmed; an answer that is lost says nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use ringcast::domain::id::Identity;
use ringcast::worker::mailbox::{
    Delivery, Posting, Properties, Publication, PublishError, Receipt, Route, Settlement,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::plan::Dice;

/// A message in the invites queue.
#[derive(Clone, Debug)]
pub struct Message {
    pub amqp_id: Option<String>,
    pub body: Bytes,
    pub redelivered: bool,
    /// How often it came back to the queue.
    pub returned: u32,
}

impl Message {
    pub fn identity(&self) -> Identity {
        Identity::of(self.amqp_id.as_deref(), &self.body)
    }
}

/// One line of what happened at the broker.
#[derive(Clone, Debug)]
pub enum Happening {
    Delivered { at: Duration, identity: Identity, redelivered: bool },
    Stored { at: Duration, publication: Publication },
    Confirmed { at: Duration, message_id: String },
    Settled { at: Duration, identity: Identity, settlement: Settlement },
    Cut { at: Duration },
}

/// The queue and the results; clones share them.
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

struct Shared {
    started: Instant,
    dice: Dice,
    nack_probability: f64,
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Message>,
    unacked: usize,
    bound: bool,
    happenings: Vec<Happening>,
}

/// What a session is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Deliver and settle.
    Run,
    /// No new deliveries; what is out is settled.
    Drain,
    /// The connection is gone.
    Cut,
}

impl Broker {
    pub fn new(seed: u64, nack_probability: f64) -> Self {
        let state = State { bound: true, ..State::default() };
        Self(Arc::new(Shared {
            started: Instant::now(),
            dice: Dice::new(seed ^ 0xb20c),
            nack_probability,
            state: Mutex::new(state),
            arrived: Notify::new(),
        }))
    }

    fn at(&self) -> Duration {
        self.0.started.elapsed()
    }

    pub fn publish(&self, message: Message) {
        self.0.state.lock().ready.push_back(message);
        self.0.arrived.notify_one();
    }

    /// Whether results have a queue.
    pub fn bind(&self, bound: bool) {
        self.0.state.lock().bound = bound;
    }

    pub fn is_empty(&self) -> bool {
        let state = self.0.state.lock();
        state.ready.is_empty() && state.unacked == 0
    }

    pub fn happenings(&self) -> Vec<Happening> {
        self.0.state.lock().happenings.clone()
    }

    /// One connection of one worker, until it is cut.
    pub async fn session(
        &self,
        prefetch: usize,
        deliveries: &mpsc::Sender<Delivery>,
        postings: &mut mpsc::Receiver<Posting>,
        mut order: watch::Receiver<Order>,
    ) {
        let (settle, mut settlements) = mpsc::channel(prefetch);
        let mut unacked: BTreeMap<u64, Message> = BTreeMap::new();
        let mut answers = FuturesUnordered::new();
        let mut tag = 0;
        loop {
            let now = *order.borrow_and_update();
            if now == Order::Cut {
                break;
            }
            let room = now == Order::Run && unacked.len() < prefetch;
            tokio::select! {
                biased;
                changed = order.changed() => if changed.is_err() { break },
                Some((tag, settlement)) = settlements.recv() => {
                    if let Some(message) = unacked.remove(&tag) {
                        self.settle(message, settlement);
                    }
                }
                Some((posting, answer)) = answers.next(), if !answers.is_empty() => self.confirm(posting, answer),
                Some(posting) = postings.recv() => {
                    let answer = self.store(&posting.publication);
                    let wait = self.0.dice.millis(1, 30);
                    answers.push(async move { sleep(wait).await; (posting, answer) });
                }
                Some(message) = self.next_message(), if room => {
                    tag += 1;
                    let receipt = Receipt::new(tag, settle.clone());
                    let delivery = Delivery {
                        body: message.body.clone(),
                        properties: Properties { message_id: message.amqp_id.clone(), ..Properties::default() },
                        redelivered: message.redelivered,
                        returned: Some(message.returned),
                        given_up: None,
                        receipt,
                    };
                    let happening = Happening::Delivered {
                        at: self.at(), identity: message.identity(), redelivered: message.redelivered,
                    };
                    self.0.state.lock().happenings.push(happening);
                    unacked.insert(tag, message);
                    if deliveries.try_send(delivery).is_err() {
                        break;
                    }
                }
            }
        }
        let mut state = self.0.state.lock();
        state.happenings.push(Happening::Cut { at: self.0.started.elapsed() });
        state.unacked -= unacked.len();
        for (_, mut message) in unacked.into_iter().rev() {
            message.redelivered = true;
            message.returned += 1;
            state.ready.push_front(message);
        }
        self.0.arrived.notify_one();
    }

    async fn next_message(&self) -> Option<Message> {
        loop {
            if let Some(message) = {
                let mut state = self.0.state.lock();
                let message = state.ready.pop_front();
                state.unacked += usize::from(message.is_some());
                if !state.ready.is_empty() {
                    // For the next one who has room, this session or another.
                    self.0.arrived.notify_one();
                }
                message
            } {
                return Some(message);
            }
            self.0.arrived.notified().await;
        }
    }

    fn store(&self, publication: &Publication) -> Result<(), PublishError> {
        let at = self.at();
        if self.0.dice.chance(self.0.nack_probability) {
            return Err(PublishError::Nacked);
        }
        let mut state = self.0.state.lock();
        if !state.bound && matches!(publication.route, Route::Results(_)) {
            return Err(PublishError::Returned("NO_ROUTE".into()));
        }
        state.happenings.push(Happening::Stored { at, publication: publication.clone() });
        Ok(())
    }

    fn confirm(&self, posting: Posting, answer: Result<(), PublishError>) {
        if answer.is_ok() {
            let (at, message_id) = (self.at(), posting.publication.message_id.clone());
            self.0.state.lock().happenings.push(Happening::Confirmed { at, message_id });
        }
        // Whoever asked may have been killed.
        let _ = posting.answer.send(answer);
    }

    fn settle(&self, mut message: Message, settlement: Settlement) {
        let at = self.at();
        let identity = message.identity();
        let mut state = self.0.state.lock();
        state.happenings.push(Happening::Settled { at, identity, settlement });
        state.unacked -= 1;
        if matches!(settlement, Settlement::Requeue | Settlement::GiveBack) {
            message.redelivered = true;
            message.returned += 1;
            state.ready.push_front(message);
            self.0.arrived.notify_one();
        }
    }
}
