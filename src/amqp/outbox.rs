//! Publishes what the worker posts, and says what became of it.
//!
//! Results go out in batches, each on a **lane**: a channel in confirm mode that carries one batch at a time, published by
//! one task in order. A batch is answered when all its confirms are in, because only then is it known which of its
//! messages came back. The lanes are independent, so a batch need not wait for the one before. Each **destination** (the
//! first word of a routing key: one queue) has lanes of its own, because a broker whose queue of token events has no
//! majority stops a channel over the first of them, and outcomes must not wait behind it.
//!
//! A confirm that is overdue, or a channel that the broker closes, costs the lane its channel and nothing else, as long as
//! the connection lives: deliveries stay with us, and other batches go on. Copies, for `reply_to` and for onlookers, are a
//! destination without confirms. They are left out where the broker does not take them as fast as they come.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, MaybeDone, maybe_done};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Confirmation, PublisherConfirm};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::describe::describe;
use super::dial::Link;
use super::fate::{Answer, Returned, fates};
use super::limit::{ANSWER, patiently};
use super::properties;
use super::road::{BATCH, Lane, Road, destination};
use super::supervisor::{Phase, phase_of};
use super::topology::LIVE;
use super::{Error, Status};
use crate::metrics::Metrics;
use crate::worker::mailbox::{Posting, Publication, PublishError, Route};

/// The least age of a lane's channel when the next one is opened, so that one that is closed each time does not spin.
const LANE_PAUSE: Duration = Duration::from_secs(1);

/// The wall clock in Unix seconds, for AMQP's `timestamp`.
pub(super) type UnixSeconds = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The way out of one session.
pub(super) struct Outbox<'a> {
    pub(super) link: &'a Link,
    /// Where results go.
    pub(super) exchange: ShortString,
    pub(super) metrics: Arc<Metrics>,
    pub(super) unix_seconds: UnixSeconds,
    /// Hears of each batch, of copies as well, that the topology may be to blame for.
    pub(super) doubts: Arc<Notify>,
    /// Knows whether there is somewhere to copy results to.
    pub(super) status: Status,
    /// The log has it already that copies are refused.
    pub(super) refusal_told: AtomicBool,
}

/// Whether it is a copy for onlookers.
fn is_live(posting: &Posting) -> bool {
    matches!(posting.publication.route, Route::Live(_))
}

impl Outbox<'_> {
    /// Publishes until [`Phase::Closing`], and then what is posted already (then `Ok`), or until the connection is of no use
    /// any more. Postings that were taken and not confirmed are then answered [`PublishError::Lost`]; the others stay.
    pub(super) async fn serve(
        self,
        postings: &mut mpsc::Receiver<Posting>,
        mut phase: watch::Receiver<Phase>,
    ) -> Result<(), Error> {
        // Few: one for each queue of results, and that of the copies.
        let mut roads: Vec<Road> = Vec::new();
        let mut busy = FuturesUnordered::new();
        let mut taken = Vec::with_capacity(BATCH);
        let (mut closing, mut exhausted) = (false, false);
        loop {
            if !closing && phase_of(&phase) == Phase::Closing {
                closing = true;
                postings.close();
            }
            for (place, road) in roads.iter_mut().enumerate() {
                while let Some((lane, batch)) = road.next() {
                    let confirms = road.carries_results();
                    busy.push(self.carry(confirms, lane, batch).map_ok(move |lane| (place, lane)));
                }
            }
            if exhausted && busy.is_empty() && closing {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(carried) = busy.next(), if !busy.is_empty() => {
                    let (place, lane) = carried?;
                    roads[place].idle.push(lane);
                }
                count = postings.recv_many(&mut taken, BATCH), if !exhausted => {
                    exhausted = count == 0;
                    for posting in taken.drain(..) {
                        let destination = destination(&posting);
                        let known = roads.iter().position(|road| road.destination.as_deref() == destination);
                        let place = known.unwrap_or_else(|| {
                            roads.push(Road::to(destination));
                            roads.len() - 1
                        });
                        // A copy that finds no room is left out.
                        if let Some(posting) = roads[place].take(posting) {
                            settle(&self.metrics, posting, Ok(()));
                        }
                    }
                }
                _ = phase.changed(), if !closing => {}
            }
        }
    }

    /// Publishes one batch and answers it; gives the lane back.
    async fn carry(&self, confirms: bool, lane: Option<Lane>, batch: Vec<Posting>) -> Result<Lane, Error> {
        // From here on, dropped, they are answered.
        let batch = Batch { postings: batch, metrics: &self.metrics };
        let lane = match lane {
            Some(lane) => lane,
            None => self.open(confirms).await?,
        };
        if confirms { self.carry_results(lane, batch).await } else { self.carry_copies(lane, batch).await }
    }

    async fn carry_results(&self, lane: Lane, mut results: Batch<'_>) -> Result<Lane, Error> {
        for posting in results.postings.extract_if(.., |posting| !fits(&posting.publication)) {
            let why = format!("its message id or routing key is longer than {SHORT_MAX} bytes");
            settle(&self.metrics, posting, Err(PublishError::Returned(why)));
        }
        let (confirms, unwritten) = self.publish(&lane, &results).await;
        let mut said = self.hear(confirms, results.postings.len()).await;
        // Where the broker closed the channel under the publishing, its confirms have its words.
        said.failure = said.failure.or(unwritten);
        if said.failure.is_some() || !said.returned.is_empty() {
            self.doubts.notify_one();
        }
        let Some(failure) = &said.failure else {
            results.answer(&said, &PublishError::Lost);
            // RabbitMQ goes on to refuse on a channel on which it refused, even when the queue's limit is taken away, until
            // somebody reads from the queue (seen with 3.10).
            let refused = said.answers.contains(&Answer::Nack);
            return if refused { self.replace(lane, true).await } else { Ok(lane) };
        };
        if !self.link.connection().status().connected() {
            results.answer(&said, &PublishError::Lost);
            return Err(Error::Lost(failure.clone()));
        }
        results.answer(&said, &PublishError::Unconfirmed(failure.clone()));
        self.replace(lane, true).await
    }

    /// Hands publications over to the library, in order and all before one is waited for; what does not fit is left out. They
    /// then share a write, and a wake-up of the library's thread and of this one.
    fn hand_over<'a>(&'a self, lane: &'a Lane, postings: &'a [Posting]) -> Vec<Handed<'a>> {
        let now = (self.unix_seconds)();
        // The broker would close the channel over a copy for an exchange that is missing, and with it replies would be lost.
        let is_blind = self.status.is_noted(LIVE);
        let _held = self.link.hold();
        let publish = |posting: &'a Posting| {
            let publication = &posting.publication;
            if is_blind && is_live(posting) {
                return None;
            }
            let key = ShortString::try_new(routing_key(publication)).ok()?;
            let (exchange, delivery_mode, mandatory) = match publication.route {
                Route::Results(_) => (self.exchange.clone(), PERSISTENT, true),
                Route::Reply(_) => (ShortString::default(), TRANSIENT, false),
                Route::Live(_) => (LIVE.into(), TRANSIENT, false),
            };
            let properties = properties::write(publication, delivery_mode, now);
            let options = BasicPublishOptions { mandatory, ..Default::default() };
            let publish = lane.channel.basic_publish(exchange, key, options, &publication.body, properties);
            let mut publish = maybe_done(publish.boxed());
            // Looked at for the first time, it hands its frames over.
            let _ = (&mut publish).now_or_never();
            Some(publish)
        };
        postings.iter().filter_map(publish).collect()
    }

    /// Writes a batch. Gives the confirms of what was written, each with its place and, where not all of it could be, why.
    async fn publish(
        &self,
        lane: &Lane,
        batch: &Batch<'_>,
    ) -> (Vec<(usize, PublisherConfirm)>, Option<String>) {
        let mut handed = self.hand_over(lane, &batch.postings);
        let mut unwritten = self.within("publishing", written(&mut handed)).await.err();
        let mut confirms = Vec::with_capacity(handed.len());
        for (place, publish) in handed.iter_mut().enumerate() {
            match Pin::new(publish).take_output() {
                Some(Ok(confirm)) => confirms.push((place, confirm)),
                Some(Err(error)) => {
                    unwritten.get_or_insert_with(|| format!("publishing failed: {}", describe(&error)));
                }
                None => {}
            }
        }
        (confirms, unwritten)
    }

    /// Waits for the confirms of a batch of `count`, within the limit.
    async fn hear(&self, mut confirms: Vec<(usize, PublisherConfirm)>, count: usize) -> Said {
        let mut said = Said { answers: vec![Answer::Missing; count], returned: Vec::new(), failure: None };
        // The last one first: most of the others have come then, and wake nobody.
        let hearing = async {
            while let Some((place, confirm)) = confirms.last_mut() {
                said.note(*place, confirm.await);
                confirms.pop();
            }
            Ok(())
        };
        if let Err(overdue) = self.within("awaiting confirms", hearing).await {
            // Others may have come while that one was waited for.
            for (place, confirm) in confirms {
                if let Some(confirmation) = confirm.now_or_never() {
                    said.note(place, confirmation);
                }
            }
            said.failure = Some(overdue);
        }
        said
    }

    /// Gives the lane another channel. The old one is told to close: its number is not used again before the broker has
    /// done so, and a late confirm of it finds nobody. RabbitMQ's may take half a minute, while they wait for a queue without
    /// a majority; that is waited for within the limit, and not beyond.
    async fn replace(&self, lane: Lane, confirms: bool) -> Result<Lane, Error> {
        if lane.channel.status().connected() {
            let closing = lane.channel.close(200, "OK".into());
            if let Err(slow) = self.within("closing a channel", closing).await {
                tracing::debug!(amqp.reason = %slow, "the broker is slow with a channel that is left");
            }
        }
        sleep_until(lane.since + LANE_PAUSE).await;
        self.open(confirms).await
    }

    async fn open(&self, confirms: bool) -> Result<Lane, Error> {
        let opening = async {
            let channel = self.link.connection().create_channel().await?;
            if confirms {
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
            }
            Ok(Lane { channel, since: Instant::now() })
        };
        self.within("opening a channel", opening).await.map_err(Error::Lost)
    }

    /// Copies are answered once written; what the broker does with them is nobody's concern.
    async fn carry_copies(&self, lane: Lane, mut copies: Batch<'_>) -> Result<Lane, Error> {
        let mut handed = self.hand_over(&lane, &copies.postings);
        // An error closes the channel, which is seen below.
        let written = self.within("publishing copies", written(&mut handed)).await;
        drop(handed);
        written.map_err(Error::Lost)?;
        let were_live = copies.postings.iter().any(is_live);
        for posting in copies.postings.drain(..) {
            settle(&self.metrics, posting, Ok(()));
        }
        if lane.channel.status().connected() {
            return Ok(lane);
        }
        if were_live {
            self.doubts.notify_one();
        }
        // Whoever publishes invites may ask for copies that are refused.
        if !self.refusal_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the broker refused a copy (reply_to or live): does the exchange exist, and may the user write to it? \
                 Further ones of this session are not told"
            );
        }
        self.replace(lane, false).await
    }

    /// One request to the broker, within [`ANSWER`], not counting the time in which it blocks publishing: nothing at all
    /// is written then. The error is for people; `doing` completes "… failed: …".
    async fn within<T>(
        &self,
        doing: &str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, String> {
        let blocked = || self.link.connection().status().blocked();
        match patiently(ANSWER, blocked, request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(format!("{doing} failed: {}", describe(&error))),
            Err(_) => Err(format!("{doing} failed: no answer from the broker within {} s", ANSWER.as_secs())),
        }
    }
}

/// A publication that was handed over: done when it is written.
type Handed<'a> = MaybeDone<BoxFuture<'a, lapin::Result<PublisherConfirm>>>;

/// Returns when all of a batch are written, or will not be. The last one is waited for first: the others are written then, and
/// wake nobody.
async fn written(handed: &mut [Handed<'_>]) -> lapin::Result<()> {
    for publish in handed.iter_mut().rev() {
        publish.await;
    }
    Ok(())
}

/// Bytes of a short string (AMQP 0-9-1, 4.2.5.3).
const SHORT_MAX: usize = 255;
/// AMQP's `delivery_mode`: written to disk, or not.
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

fn routing_key(publication: &Publication) -> &str {
    match &publication.route {
        Route::Results(key) | Route::Reply(key) | Route::Live(key) => key,
    }
}

/// Whether AMQP has room for the two texts that a return is recognised by.
fn fits(publication: &Publication) -> bool {
    publication.message_id.len() <= SHORT_MAX && routing_key(publication).len() <= SHORT_MAX
}

/// What the broker said to a batch.
struct Said {
    /// One for each publication, in order.
    answers: Vec<Answer>,
    returned: Vec<Returned>,
    /// Why not all were answered; the channel is of no use any more.
    failure: Option<String>,
}

impl Said {
    fn note(&mut self, place: usize, confirmation: lapin::Result<Confirmation>) {
        let confirmation = match confirmation {
            Ok(confirmation) => confirmation,
            Err(error) => {
                self.failure = Some(format!("awaiting confirms failed: {}", describe(&error)));
                return;
            }
        };
        self.answers[place] = match &confirmation {
            Confirmation::Ack(_) => Answer::Ack,
            Confirmation::Nack(_) => Answer::Nack,
            Confirmation::NotRequested => {
                self.failure = Some("a channel for results is not in confirm mode".to_owned());
                Answer::Missing
            }
        };
        self.returned.extend(confirmation.take_message().map(|message| Returned {
            message_id: message.properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
            routing_key: message.routing_key.as_str().to_owned(),
            reason: message.reply_text.as_str().to_owned(),
        }));
    }
}

/// The fate of a publication that the broker has, as the metrics call it.
const CONFIRMED: &str = "confirmed";

/// Publications on their way. Dropped unanswered (the session is lost) they are answered [`PublishError::Lost`].
struct Batch<'a> {
    postings: Vec<Posting>,
    metrics: &'a Metrics,
}

impl Batch<'_> {
    /// `unanswered`: the fate of what the broker did not answer.
    fn answer(mut self, said: &Said, unanswered: &PublishError) {
        let published: Vec<_> = self
            .postings
            .iter()
            .map(|posting| (&*posting.publication.message_id, routing_key(&posting.publication)))
            .collect();
        let fates = fates(&published, &said.answers, &said.returned, unanswered);
        let mut confirmed = 0;
        for (posting, fate) in self.postings.drain(..).zip(fates) {
            if fate.is_ok() {
                confirmed += 1;
                // The one who asked may have given up.
                let _ = posting.answer.send(fate);
            } else {
                settle(self.metrics, posting, fate);
            }
        }
        if confirmed > 0 {
            self.metrics.amqp_publish(CONFIRMED, confirmed);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for posting in self.postings.drain(..) {
            settle(self.metrics, posting, Err(PublishError::Lost));
        }
    }
}

/// Answers a posting. Only results are counted.
fn settle(metrics: &Metrics, posting: Posting, fate: Result<(), PublishError>) {
    if matches!(posting.publication.route, Route::Results(_)) {
        let result = match &fate {
            Ok(()) => CONFIRMED,
            Err(PublishError::Returned(_)) => "returned",
            Err(PublishError::Nacked) => "nacked",
            Err(PublishError::Unconfirmed(_) | PublishError::Lost) => "lost",
        };
        metrics.amqp_publish(result, 1);
    }
    // The one who asked may have given up.
    let _ = posting.answer.send(fate);
}
