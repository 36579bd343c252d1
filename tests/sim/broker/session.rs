//! One worker's connections to the broker, which live and end as one; and how either side learns that they ended.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use ringcast::domain::id::Identity;
use ringcast::worker::mailbox::{Delivery, Posting, Properties, Receipt, Settlement};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::lane::{BATCH, Carried, Mute, Roads, carry};
use super::{Broker, Count, Happening, Message, Queue};

/// How long the two sides of a session may disagree about its end: about two heartbeats.
const DISAGREE_MAX_MS: u64 = 5_000;
/// How long the connections of a dead process may stand: its node went with it.
const UNNOTICED_MAX_MS: u64 = 20_000;
/// Pauses between two sessions, in milliseconds.
const REDIAL: (u64, u64) = (50, 2_000);

/// What a worker's sessions are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    pub phase: Phase,
    /// How often the connections were lost.
    pub cuts: u32,
}

/// How far the worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Deliver and settle.
    #[default]
    Run,
    /// No new deliveries; what is out is settled.
    Drain,
    /// All is settled: a polite goodbye.
    Close,
    /// The process is dead, and its connections say nothing.
    Dead,
}

/// The worker's ends of a line to the broker.
pub struct Line {
    pub worker: u64,
    pub prefetch: usize,
    pub deliveries: mpsc::Sender<Delivery>,
    pub postings: mpsc::Receiver<Posting>,
}

/// Holds a session as often as one can be had, as the supervisor does, until the worker is gone.
pub async fn keep(broker: Broker, mut line: Line, mut order: watch::Receiver<Order>) {
    while !is_over(&order) {
        tokio::select! {
            biased;
            () = over(&mut order) => return,
            () = broker.reached() => {}
        }
        Session::new(&broker, &mut line, order.clone()).serve().await;
        let pause = broker.dice().millis(REDIAL.0, REDIAL.1);
        tokio::select! {
            biased;
            () = over(&mut order) => return,
            () = sleep(pause) => {}
        }
    }
}

fn is_over(order: &watch::Receiver<Order>) -> bool {
    matches!(order.borrow().phase, Phase::Close | Phase::Dead) || order.has_changed().is_err()
}

async fn over(order: &mut watch::Receiver<Order>) {
    // An error is a sender that is gone: the end, too.
    let _ = order.wait_for(|order| matches!(order.phase, Phase::Close | Phase::Dead)).await;
}

struct Session<'l> {
    broker: Broker,
    line: &'l mut Line,
    order: watch::Receiver<Order>,
    /// When it began.
    cuts: u32,
    outages: u32,
    invites: Consumer,
    /// `None` while there is no such queue.
    expired: Option<Consumer>,
}

/// One batch of results on its way.
type Carrying = Pin<Box<dyn Future<Output = Carried> + Send>>;

/// Why a session is over.
enum End {
    Lost,
    Closed,
    Died,
}

impl<'l> Session<'l> {
    fn new(broker: &Broker, line: &'l mut Line, order: watch::Receiver<Order>) -> Self {
        let way =
            broker.dice().millis(0, 1 + u64::try_from(broker.habits().way_max.as_millis()).unwrap_or(0));
        let (cuts, outages) = (order.borrow().cuts, broker.weather().outages);
        let invites = Consumer::new(broker, line.worker, Queue::Invites, line.prefetch, way);
        Self { broker: broker.clone(), line, order, cuts, outages, invites, expired: None }
    }

    /// Serves the worker until one side or the other is gone.
    async fn serve(mut self) {
        let mut busy: FuturesUnordered<Carrying> = FuturesUnordered::new();
        let (mut roads, mut posted) = (Roads::default(), Vec::new());
        let broker = self.broker.clone();
        let end = loop {
            let weather_changed = broker.0.weather_changed.notified();
            let weather = broker.weather();
            let order = *self.order.borrow_and_update();
            match order.phase {
                Phase::Close => break End::Closed,
                Phase::Dead => break End::Died,
                _ if order.cuts != self.cuts || weather.outages != self.outages => break End::Lost,
                _ => {}
            }
            self.look_for_expired(weather.expired_away);
            while let Some(load) = roads.next() {
                busy.push(Box::pin(carry(self.broker.clone(), self.line.worker, load)));
            }
            let running = order.phase == Phase::Run;
            let arrival = self.consumers().filter_map(|consumer| consumer.arrival()).min();
            tokio::select! {
                biased;
                changed = self.order.changed() => if changed.is_err() { break End::Closed },
                () = weather_changed => {}
                settled = self.invites.settled() => self.invites.report(settled),
                settled = settled(&mut self.expired) => {
                    self.expired.as_mut().expect("it settled").report(settled);
                }
                () = sleep_until(arrival.unwrap_or_else(Instant::now)), if arrival.is_some() => {
                    self.consumers().for_each(Consumer::settle_arrived);
                }
                Some(carried) = busy.next(), if !busy.is_empty() => match carried {
                    Ok((destination, lane)) => roads.give_back(destination, lane),
                    Err(Mute) => break End::Lost,
                },
                count = self.line.postings.recv_many(&mut posted, BATCH) => {
                    if count == 0 {
                        break End::Died;
                    }
                    posted.drain(..).for_each(|posting| roads.take(posting));
                }
                message = self.broker.next(Queue::Invites), if running && self.invites.has_room() => {
                    self.invites.deliver(message, Some(&self.line.deliveries), true);
                }
                message = self.broker.next(Queue::Expired), if running
                    && self.expired.as_ref().is_some_and(Consumer::has_room) =>
                {
                    let expired = self.expired.as_mut().expect("it has room");
                    expired.deliver(message, Some(&self.line.deliveries), true);
                }
            }
        };
        match end {
            End::Closed => self.close(),
            End::Lost => self.lose().await,
            End::Died => self.outlive().await,
        }
        // Those on it are lost now, and no sooner: whoever published them did not know.
        drop((busy, roads));
    }

    fn consumers(&mut self) -> impl Iterator<Item = &mut Consumer> {
        std::iter::once(&mut self.invites).chain(&mut self.expired)
    }

    /// The queue of what was given up is read on a channel of its own, which may come and go without the session.
    fn look_for_expired(&mut self, away: bool) {
        if away {
            if let Some(expired) = self.expired.take() {
                expired.end(Duration::ZERO);
            }
        } else if self.expired.is_none() {
            let (worker, way) = (self.line.worker, self.invites.way);
            let prefetch = (self.line.prefetch / 20).max(1);
            self.expired = Some(Consumer::new(&self.broker, worker, Queue::Expired, prefetch, way));
        }
    }

    /// Everything that the worker settled arrives.
    fn close(self) {
        for mut consumer in [Some(self.invites), self.expired].into_iter().flatten() {
            consumer.report_all();
            while let Some((_, tag, settlement)) = consumer.wire.pop_front() {
                consumer.settle(tag, settlement);
            }
            consumer.end(Duration::ZERO);
        }
    }

    /// The connections are lost. The two sides may learn it at different times.
    async fn lose(mut self) {
        let broker = self.broker.clone();
        let dice = broker.dice();
        if !dice.chance(broker.habits().rough_end) {
            self.end(Duration::ZERO);
            return;
        }
        match dice.pick(3) {
            // Nothing gets through any more but deliveries, and they come with the end: they lie in front of the worker when
            // it learns that they are not its own.
            0 => {
                let until = Instant::now() + dice.millis(1, DISAGREE_MAX_MS);
                let draining = self.order.borrow().phase != Phase::Run;
                let room = !draining && self.invites.has_room();
                let last = self.linger(until, room).await;
                if let Some(message) = last {
                    self.invites.deliver(message, Some(&self.line.deliveries), false);
                    while self.invites.has_room()
                        && let Ok(message) = self.broker.take(Queue::Invites)
                    {
                        self.invites.deliver(message, Some(&self.line.deliveries), false);
                    }
                }
                self.end(Duration::ZERO);
            }
            // The broker sees it first, and gives everything to others while this worker works on it. A consumer that the
            // broker cancels is a short one of these.
            1 => {
                let until = Instant::now() + dice.millis(1, DISAGREE_MAX_MS);
                self.consumers().for_each(Consumer::let_go);
                self.linger(until, false).await;
                self.end(Duration::ZERO);
            }
            // The worker sees it first.
            _ => {
                let later = dice.millis(1, DISAGREE_MAX_MS);
                self.end(later);
            }
        }
    }

    /// What the worker says is not heard any more, until then, or until the next invite where one is wanted.
    async fn linger(&mut self, until: Instant, wants_invite: bool) -> Option<Message> {
        loop {
            tokio::select! {
                biased;
                () = over(&mut self.order) => return None,
                settled = self.invites.settled() => self.invites.report(settled),
                settled = settled(&mut self.expired) => {
                    self.expired.as_mut().expect("it settled").report(settled);
                }
                () = sleep_until(until) => return None,
                message = self.broker.next(Queue::Invites), if wants_invite => return Some(message),
            }
        }
    }

    /// The worker is dead, and its broker may not know for a while: it goes on delivering.
    async fn outlive(mut self) {
        let broker = self.broker.clone();
        let dice = broker.dice();
        let unnoticed = if dice.chance(self.broker.habits().rough_end) {
            dice.millis(0, UNNOTICED_MAX_MS)
        } else {
            Duration::ZERO
        };
        let until = Instant::now() + unnoticed;
        self.invites.settlements.close();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(until) => break,
                () = broker.weather_until(|weather| weather.outages != self.outages) => break,
                message = self.broker.next(Queue::Invites), if self.invites.has_room() => {
                    self.invites.deliver(message, None, false);
                }
            }
        }
        self.consumers().for_each(Consumer::forget);
        self.end(Duration::ZERO);
    }

    fn end(self, returned_after: Duration) {
        let worker = self.line.worker;
        let held = self.broker.held(worker);
        for consumer in [Some(self.invites), self.expired].into_iter().flatten() {
            consumer.end(returned_after);
        }
        self.broker.note(|at| Happening::Cut { at, worker, held });
    }
}

/// What the worker says of what was given up; never, while nobody reads such.
async fn settled(consumer: &mut Option<Consumer>) -> Vec<(u64, Settlement)> {
    match consumer {
        Some(consumer) => consumer.settled().await,
        None => std::future::pending().await,
    }
}

/// One channel that consumes.
struct Consumer {
    broker: Broker,
    worker: u64,
    queue: Queue,
    prefetch: usize,
    /// What a settlement takes to the broker.
    way: Duration,
    tag: u64,
    settle: mpsc::Sender<(u64, Settlement)>,
    settlements: mpsc::Receiver<(u64, Settlement)>,
    /// What each tag was, for the record.
    identities: BTreeMap<u64, Identity>,
    unacked: BTreeMap<u64, Message>,
    /// Settlements on their way.
    wire: VecDeque<(Instant, u64, Settlement)>,
}

impl Consumer {
    fn new(broker: &Broker, worker: u64, queue: Queue, prefetch: usize, way: Duration) -> Self {
        let (settle, settlements) = mpsc::channel(prefetch + 1);
        Self {
            broker: broker.clone(),
            worker,
            queue,
            prefetch,
            way,
            tag: 0,
            settle,
            settlements,
            identities: BTreeMap::new(),
            unacked: BTreeMap::new(),
            wire: VecDeque::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.unacked.len() < self.prefetch
    }

    /// `seen`: the session lives long enough for the worker to look at it.
    fn deliver(&mut self, message: Message, deliveries: Option<&mpsc::Sender<Delivery>>, seen: bool) {
        self.tag += 1;
        let (worker, identity) = (self.worker, message.identity());
        let (redelivered, given_up) = (message.redelivered, message.given_up);
        if let Some(deliveries) = deliveries {
            let delivery = Delivery {
                body: message.body.clone(),
                properties: Properties { message_id: message.amqp_id.clone(), ..Properties::default() },
                redelivered,
                returned: match self.broker.habits().count {
                    Count::Never => None,
                    Count::FromOne => Some(message.returned).filter(|count| *count > 0),
                    Count::FromZero => Some(message.returned),
                },
                given_up,
                receipt: Receipt::new(self.tag, self.settle.clone()),
            };
            // There is room, by the prefetches; but a worker that stops may have closed its end.
            if let Err(back) = deliveries.try_send(delivery) {
                back.into_inner().receipt.give_back();
            }
        }
        self.identities.insert(self.tag, identity);
        self.unacked.insert(self.tag, message);
        self.broker.note(|at| Happening::Delivered { at, worker, identity, redelivered, given_up, seen });
    }

    /// What the worker settled in one moment.
    async fn settled(&mut self) -> Vec<(u64, Settlement)> {
        let mut settled = Vec::new();
        self.settlements.recv_many(&mut settled, usize::MAX).await;
        settled
    }

    /// The worker settled these; the broker will hear of it. Those of one moment come in an order that differs from run to
    /// run, where handlers are told to stop.
    fn report(&mut self, mut settled: Vec<(u64, Settlement)>) {
        settled.sort_by_key(|(tag, _)| *tag);
        for (tag, settlement) in settled {
            let (worker, identity) = (self.worker, self.identities[&tag]);
            self.broker.note(|at| Happening::Settled { at, worker, identity, settlement });
            self.wire.push_back((Instant::now() + self.way, tag, settlement));
        }
    }

    fn report_all(&mut self) {
        let mut settled = Vec::new();
        while let Ok(settlement) = self.settlements.try_recv() {
            settled.push(settlement);
        }
        self.report(settled);
    }

    /// When the next settlement reaches the broker.
    fn arrival(&self) -> Option<Instant> {
        self.wire.front().map(|(at, ..)| *at)
    }

    fn settle_arrived(&mut self) {
        while let Some((_, tag, settlement)) = self.wire.pop_front_if(|(at, ..)| *at <= Instant::now()) {
            self.settle(tag, settlement);
        }
    }

    fn settle(&mut self, tag: u64, settlement: Settlement) {
        if let Some(message) = self.unacked.remove(&tag) {
            self.broker.settle(self.queue, message, settlement);
        }
    }

    /// The broker takes everything back.
    fn let_go(&mut self) {
        let unacked = std::mem::take(&mut self.unacked);
        self.broker.take_back(self.queue, unacked.into_values(), true);
    }

    /// What the worker said is not heard by anybody.
    fn forget(&mut self) {
        self.settlements.close();
        while self.settlements.try_recv().is_ok() {}
    }

    /// The worker's receipts are dead from here on; the broker takes back what it has not heard of, now or later.
    fn end(mut self, returned_after: Duration) {
        self.settlements.close();
        self.report_all();
        // From here on those that the worker holds are the only ones.
        let settle = std::mem::replace(&mut self.settle, mpsc::channel(1).0);
        self.broker.lose(self.worker, settle.downgrade());
        drop(settle);
        if returned_after.is_zero() {
            self.let_go();
        } else {
            tokio::spawn(async move {
                sleep(returned_after).await;
                self.let_go();
            });
        }
    }
}
