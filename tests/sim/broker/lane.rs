//! How results reach the broker, as `src/amqp/outbox.rs` has it: each destination has lanes of its own, a lane is a channel that
//! carries one batch at a time, and a batch is answered as a whole. A confirm that is overdue, or a refusal, costs the lane its
//! channel; the session goes on, and with it the deliveries.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ringcast::worker::mailbox::{Posting, PublishError, Route};
use tokio::time::{Instant, sleep, sleep_until};

use super::habit::{Answer, Fate};
use super::{Broker, Happening, Why};

/// Batches on their way to one destination at once.
const LANES: usize = 4;
/// Publications of one batch at most.
pub(super) const BATCH: usize = 200;
/// How long a worker waits for confirms, or for a channel.
const ANSWER: Duration = Duration::from_secs(10);
/// How many times in that it looks whether time counts.
const LOOKS: u32 = 20;
/// The least age of a lane's channel when the next one is opened.
const LANE_PAUSE: Duration = Duration::from_secs(1);
/// What the broker takes to open a channel or to close it, in milliseconds.
const OPENED_WITHIN: (u64, u64) = (1, 10);

/// The broker does not even open a channel: the session is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mute;

/// The first word of a result's routing key; `None`: copies.
type Destination = Option<String>;

/// A channel.
pub(super) struct Lane {
    since: Instant,
}

/// What is on its way: where to, on which lane, unless one is to be opened.
pub(super) struct Load {
    pub(super) destination: Destination,
    pub(super) lane: Option<Lane>,
    pub(super) postings: Vec<Posting>,
}

/// The ways of one session.
#[derive(Default)]
pub(super) struct Roads(BTreeMap<Destination, Road>);

#[derive(Default)]
struct Road {
    waiting: VecDeque<Posting>,
    idle: Vec<Lane>,
    lanes: usize,
}

impl Roads {
    pub(super) fn take(&mut self, posting: Posting) {
        let destination = match &posting.publication.route {
            Route::Results(key) => Some(key.split('.').next().unwrap_or_default().to_owned()),
            Route::Reply(_) | Route::Live(_) => None,
        };
        let are_copies = destination.is_none();
        let road = self.0.entry(destination).or_default();
        if are_copies && road.waiting.len() >= BATCH {
            // It is left out.
            let _ = posting.answer.send(Ok(()));
        } else {
            road.waiting.push_back(posting);
        }
    }

    /// The next batch, where there is one and a lane for it.
    pub(super) fn next(&mut self) -> Option<Load> {
        self.0.iter_mut().find_map(|(destination, road)| {
            let postings = road.next()?;
            let lane = road.idle.pop();
            road.lanes += usize::from(lane.is_none());
            Some(Load { destination: destination.clone(), lane, postings })
        })
    }

    pub(super) fn give_back(&mut self, destination: Destination, lane: Lane) {
        self.0.entry(destination).or_default().idle.push(lane);
    }
}

impl Road {
    fn next(&mut self) -> Option<Vec<Posting>> {
        if self.idle.is_empty() && self.lanes == LANES {
            return None;
        }
        // Whoever let go of a result has lost its delivery.
        self.waiting.retain(|posting| {
            matches!(posting.publication.route, Route::Reply(_) | Route::Live(_))
                || !posting.answer.is_closed()
        });
        let count = self.waiting.len().min(BATCH);
        (count > 0).then(|| self.waiting.drain(..count).collect())
    }
}

/// The lane that carried a batch, and where to.
pub(super) type Carried = Result<(Destination, Lane), Mute>;

/// Carries one batch, and gives the lane back; dropped where the session ends.
pub(super) async fn carry(broker: Broker, worker: u64, load: Load) -> Carried {
    let Load { destination, lane, postings } = load;
    let postings = postings.into_iter().map(|posting| (posting, None)).collect();
    let mut batch = Batch { broker: broker.clone(), worker, postings };
    let lane = match lane {
        Some(lane) => lane,
        None => open(&broker).await?,
    };
    if broker.weather().alarm {
        let results = batch.postings.len();
        broker.note(|at| Happening::Blocked { at, worker, results });
        calm(&broker).await;
    }
    if destination.is_none() {
        for (copy, _) in batch.postings.drain(..) {
            // Nobody waits for it.
            let _ = copy.answer.send(Ok(()));
        }
        return Ok((destination, lane));
    }
    let last = batch.send();
    wait(&broker, last).await;
    let is_spent = batch.answer();
    Ok((destination, if is_spent { replace(&broker, lane).await? } else { lane }))
}

async fn calm(broker: &Broker) {
    broker.weather_until(|weather| !weather.alarm).await;
}

/// Waits until then, and no longer than the limit. An alarm stops the clock of whoever waits.
async fn wait(broker: &Broker, until: Option<Instant>) {
    let mut looks = 0;
    while looks < LOOKS {
        let look = Instant::now() + ANSWER / LOOKS;
        if let Some(until) = until
            && until <= look
        {
            return sleep_until(until).await;
        }
        sleep_until(look).await;
        looks = if broker.weather().alarm { 0 } else { looks + 1 };
    }
}

async fn open(broker: &Broker) -> Result<Lane, Mute> {
    calm(broker).await;
    if broker.dice().chance(broker.habits().mute) {
        wait(broker, None).await;
        return Err(Mute);
    }
    sleep(broker.dice().millis(OPENED_WITHIN.0, OPENED_WITHIN.1)).await;
    Ok(Lane { since: Instant::now() })
}

/// Another channel for a lane.
async fn replace(broker: &Broker, lane: Lane) -> Result<Lane, Mute> {
    sleep(broker.dice().millis(OPENED_WITHIN.0, OPENED_WITHIN.1)).await;
    sleep_until(lane.since + LANE_PAUSE).await;
    open(broker).await
}

/// Results on their way. Dropped unanswered (the session ended) the worker learns that they are lost, and the broker has
/// them or not.
struct Batch {
    broker: Broker,
    worker: u64,
    postings: Vec<(Posting, Option<Sent>)>,
}

/// What the broker has read.
struct Sent {
    fate: Fate,
    /// When the answer comes; `None`: never.
    due: Option<Instant>,
    stored: bool,
}

impl Batch {
    /// The broker reads them. Returns when the last is answered; `None`: never. Twins share their fate, as they do for
    /// `src/amqp/fate.rs`.
    fn send(&mut self) -> Option<Instant> {
        let (broker, mut fates) = (self.broker.clone(), BTreeMap::new());
        let mut last = Some(Instant::now());
        for (posting, sent) in &mut self.postings {
            let Route::Results(key) = &posting.publication.route else { continue };
            let draw = || {
                let fate = broker.habits().fate(broker.dice(), broker.is_bound(key));
                let at_once = fate.stored && broker.dice().chance(0.5);
                (fate, at_once)
            };
            let (fate, stored) = fates.entry(&posting.publication.message_id).or_insert_with(draw).clone();
            if stored {
                broker.store(&posting.publication);
            }
            let due = fate.wait.map(|wait| Instant::now() + wait);
            last = last.and_then(|last| Some(last.max(due?)));
            *sent = Some(Sent { fate, due, stored });
        }
        last
    }

    /// Answers them by what has come. True where the channel is of no use any more.
    fn answer(&mut self) -> bool {
        let (broker, worker, now) = (self.broker.clone(), self.worker, Instant::now());
        let says = |sent: &Option<Sent>, what: fn(&Answer) -> bool| {
            sent.as_ref()
                .is_some_and(|sent| sent.due.is_some_and(|due| due <= now) && what(&sent.fate.answer))
        };
        let is_return = |answer: &Answer| matches!(answer, Err(PublishError::Returned(_)));
        let is_whole = self
            .postings
            .iter()
            .all(|(_, sent)| says(sent, |answer| !matches!(answer, Err(PublishError::Unconfirmed(_)))));
        // A return that is still out may belong to any of the others.
        let is_doubtful = !is_whole && self.postings.iter().any(|(_, sent)| says(sent, is_return));
        let mut is_spent = !is_whole;
        for (posting, sent) in self.postings.drain(..) {
            let came = says(&sent, |_| true);
            let Some(Sent { fate, due, stored }) = sent else { continue };
            // What is confirmed late is there all the same.
            if fate.stored && !stored && (due.is_some() || broker.dice().chance(0.5)) {
                broker.store(&posting.publication);
            }
            let (answer, why) = match fate.answer {
                _ if !came && due.is_some() => (unconfirmed("no answer in time"), Some(Why::Late)),
                _ if !came => (unconfirmed("no answer in time"), Some(Why::Never)),
                Ok(()) if is_doubtful => (unconfirmed("something came back"), Some(Why::Doubtful)),
                Ok(()) => (Ok(()), None),
                Err(error) => {
                    let why = match &error {
                        PublishError::Returned(_) => Why::Returned,
                        PublishError::Nacked => Why::Nacked,
                        PublishError::Unconfirmed(_) | PublishError::Lost => Why::Closed,
                    };
                    is_spent |= why == Why::Nacked;
                    (Err(error), Some(why))
                }
            };
            let message_id = posting.publication.message_id;
            // Whoever asked may have been killed, or may not care any more.
            if posting.answer.send(answer).is_ok() {
                broker.note(|at| match why {
                    None => Happening::Confirmed { at, worker, message_id },
                    Some(why) => Happening::Unconfirmed { at, worker, message_id, why },
                });
            }
        }
        is_spent
    }
}

fn unconfirmed(why: &str) -> Result<(), PublishError> {
    Err(PublishError::Unconfirmed(why.to_owned()))
}

impl Drop for Batch {
    fn drop(&mut self) {
        for (posting, sent) in self.postings.drain(..) {
            if let Some(Sent { fate: Fate { stored: true, .. }, stored: false, .. }) = sent
                && self.broker.dice().chance(0.5)
            {
                self.broker.store(&posting.publication);
            }
            let (worker, message_id) = (self.worker, posting.publication.message_id);
            if posting.answer.send(Err(PublishError::Lost)).is_ok() {
                self.broker.note(|at| Happening::Unconfirmed { at, worker, message_id, why: Why::Lost });
            }
        }
    }
}
