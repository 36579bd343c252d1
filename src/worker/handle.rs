//! One invite, from its delivery to its receipt. The story is told from top to bottom in [`handle`].

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::watch;
use tokio::time::Instant;

use super::bar::Bar;
use super::device::{Plan, Rung, Times, plan, settle};
use super::dispatch::{all, dispatch};
use super::gateway::Gateway;
use super::invalidation;
use super::ledger::{Admission, Known, Ticket};
use super::mailbox::{Delivery, Properties, Publication};
use super::poison::{Deaths, is_poison, is_unreadable};
use super::publish::{confirm, publish_outcome, reply};
use super::report::{self, Failure};
use super::run::Worker;
use super::timeline::Timeline;
use super::trace::{Story, carry, trace_id};
use crate::domain::id::Identity;
use crate::domain::invite::{Invite, Malformed};
use crate::domain::outcome::{self, InviteResult, Outcome};
use crate::domain::policy::{Policy, Stage};
use crate::domain::push;
use crate::domain::response::Action;
use crate::domain::timestamp::Timestamp;

/// When an invite was taken, on both clocks, and what its delivery says.
#[derive(Clone, Copy)]
struct Taken {
    at: Instant,
    on: Timestamp,
    redelivered: bool,
    /// Whatever the invite is, it is not rung.
    bar: Option<Bar>,
    /// How its handlers died here.
    deaths: Deaths,
}

impl Taken {
    /// `possible` where somebody may have rung before, and this worker does not know.
    fn earlier_attempt(&self) -> Option<&'static str> {
        (self.redelivered || self.bar.is_some() || self.deaths.count > 0).then_some("possible")
    }

    /// The same, if its handler died here so often, and the broker says that it came back so often.
    fn suspect(self, deaths: Deaths, returned: Option<u32>) -> Self {
        let poison = is_poison(deaths, returned).then_some(Bar::Poison(deaths.count));
        Self { bar: self.bar.or(poison), deaths, ..self }
    }
}

/// How the handling of a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// What became of the invite was confirmed and settled, or the delivery is not ours any more.
    Handled,
    /// The worker stops and nothing of it was begun: another worker shall have it.
    GivenBack,
}

/// Handles one delivery. Whatever happens on the way, its receipt is settled only after everything it caused was
/// confirmed; dropped, the broker gives it to somebody else. When `stop` turns true while no attempt of it was written,
/// the delivery is given back at once.
pub(super) async fn handle<G: Gateway>(
    worker: &Worker<G>,
    delivery: Delivery,
    stop: &watch::Receiver<bool>,
) -> Fate {
    let Delivery { body, properties, redelivered, returned, given_up, receipt } = delivery;
    // Once, and not again before a push: what lies in front of us when its delivery dies is not begun, since the broker gives it to
    // somebody else. What waits for a stream by then is pushed all the same. The broker may be gone for everybody, and this ring be the
    // only one in time; a call that nobody rings is worse than a second push with the same ids.
    if !receipt.is_live() {
        return Fate::Handled;
    }
    if *stop.borrow() {
        receipt.give_back();
        return Fate::GivenBack;
    }
    let identity = Identity::of(properties.message_id.as_deref(), &body);
    let taken = Taken {
        at: Instant::now(),
        on: worker.now(),
        redelivered,
        bar: given_up.map(Bar::from),
        deaths: worker.poison.deaths(&identity),
    };
    let received = (taken.on, taken.at);
    let mut story = worker
        .tracer
        .as_ref()
        .and_then(|tracer| tracer.begin(&properties, body.len(), redelivered, received));
    // Made after the receipt, it is dropped before it.
    let mut witness = worker.poison.witness(identity);
    let ticket = match read(worker, &body, &properties, taken, returned, story.as_deref()) {
        Err(malformed) => {
            let outcome = refuse(worker, &identity, &malformed, &properties, taken, story.as_deref_mut());
            if confirm(worker, std::slice::from_ref(&outcome), &receipt, story.as_deref_mut()).await {
                reply(worker, &properties, &outcome);
                worker.metrics.invite(
                    malformed.known_app.as_ref().map(|app| app.name.as_str()),
                    InviteResult::Malformed.as_str(),
                );
                receipt.reject();
            }
            None
        }
        Ok(invite) => {
            witness.reads(invite.call_id);
            drop(body);
            let admission = tokio::select! {
                biased;
                admission = worker.ledger.admit(identity, taken.at) => admission,
                // It waited for a copy of it, and comes again.
                () = receipt.gone() => return Fate::Handled,
            };
            if !receipt.is_live() {
                return Fate::Handled;
            }
            // Only now: while it waited for a copy of it, that one may have died.
            let taken = taken.suspect(worker.poison.deaths(&identity), returned);
            let kept = taken.bar.is_some_and(Bar::keeps_original);
            let (known, ticket) = match admission {
                Admission::Known(known, ticket) => {
                    worker.metrics.ledger_answer();
                    (told_again(&known, &properties, story.as_deref()), ticket)
                }
                Admission::New(mut ticket) => {
                    let note = story.as_deref_mut();
                    let rung =
                        ring(worker, &invite, identity, &mut ticket, &properties, taken, note, stop).await;
                    let Some(known) = rung else {
                        drop(ticket);
                        receipt.give_back();
                        return Fate::GivenBack;
                    };
                    (known, ticket)
                }
            };
            // What was only answered for shows nothing about its handler.
            if taken.bar.is_none() {
                worker.poison.forget(&identity);
            }
            if let Some(story) = &mut story {
                story.call_id = Some(invite.call_id);
                story.app = Some(Arc::clone(&invite.app));
                story.devices = invite.devices.len();
            }
            let confirmed = confirm(worker, &known, &receipt, story.as_deref_mut()).await;
            if confirmed {
                reply(worker, &properties, &known[0]);
                if kept {
                    receipt.reject();
                } else {
                    receipt.ack();
                }
            }
            confirmed.then_some(ticket)
        }
    };
    let ended = Instant::now();
    worker.metrics.stage("total", ended - taken.at);
    // Until here nothing could make the ledger forget what the broker may give back.
    if let Some(ticket) = ticket {
        ticket.settled(ended);
    }
    if let (Some(tracer), Some(story)) = (&worker.tracer, story) {
        tracer.end(story);
    }
    Fate::Handled
}

fn read<G>(
    worker: &Worker<G>,
    body: &[u8],
    properties: &Properties,
    taken: Taken,
    returned: Option<u32>,
    story: Option<&Story>,
) -> Result<Invite, Malformed> {
    if is_unreadable(taken.deaths, returned) {
        let Deaths { count, unread } = taken.deaths;
        let when = if unread { "while it was read" } else { "even while it was only to be answered" };
        return Err(Malformed::unread(format!(
            "its handler died in this worker {when} (deaths: {count}); it is not read again"
        )));
    }
    if let Some(encoding) = &properties.content_encoding {
        let shown: String = encoding.chars().take(32).collect();
        return Err(Malformed::unread(format!(
            "content_encoding is {shown:?}; it must be absent, the body plain JSON: Apple takes no compressed push"
        )));
    }
    let invite = Invite::parse(body, &worker.rules, taken.on)?;
    if invite.unknown_fields > 0 {
        worker.metrics.unknown_fields(invite.unknown_fields);
    }
    // How long those lay that the broker gave up on says nothing of this worker.
    if let (Some(created_at), None) = (invite.created_at, taken.bar) {
        worker.metrics.stage("queue", taken.on.since(created_at));
    }
    if let Some(ahead) = invite.skew(taken.on) {
        worker.metrics.clock_skew(ahead);
        if worker.skew_told.is_due() {
            tracing::warn!(
                call.id = %invite.call_id,
                trace.id = trace_id(properties, story).map(tracing::field::display),
                ahead_s = ahead.as_secs_f64(),
                "created_at lies in the future: is a clock wrong?"
            );
        }
    }
    Ok(invite)
}

/// Rings every device that can be rung, and makes what is to be published: the outcome first, then the token events.
/// `None`: the worker was told to stop before an attempt was written, so that the invite is as if it had never come. The
/// ticket is then to be dropped, with its claims: nothing is remembered, and whoever waits for this invite goes the same way.
#[expect(clippy::too_many_arguments, reason = "the delivery's parts, each known to its handler alone")]
async fn ring<G: Gateway>(
    worker: &Worker<G>,
    invite: &Invite,
    identity: Identity,
    ticket: &mut Ticket,
    properties: &Properties,
    taken: Taken,
    story: Option<&mut Story>,
    stop: &watch::Receiver<bool>,
) -> Option<Known> {
    let left = invite.deadline.since(taken.on);
    let in_time = !left.is_zero() && left >= worker.settings.ring_time_min;
    let bar = taken.bar.or((!in_time).then_some(Bar::Late(Stage::Queue)));
    let body = if bar.is_none() { push::build_body(invite) } else { Ok(Bytes::new()) };
    let times =
        Times { deadline: taken.at + left, answer_by: taken.at + left + worker.settings.answer_grace };

    let noted = worker.settings.timeline || story.is_some();
    let plan = |device| plan(invite, device, ticket, bar, &body, times, noted);
    let plans: SmallVec<[Plan; 1]> = invite.devices.iter().map(plan).collect();
    let dispatches = invite.devices.iter().zip(&plans).map(|(device, plan)| async move {
        match plan {
            Plan::Settled(outcome) => Rung::settled((**outcome).clone()),
            Plan::Push(push) => {
                let policy = Policy { attempts_max: worker.settings.attempts_max };
                let dispatched =
                    dispatch(&worker.gateway, policy, push, &worker.jitter, &worker.metrics, noted).await;
                settle(worker, invite, device, push, dispatched)
            }
        }
    });
    let rungs = unless_stopped(pin!(all(dispatches)), &plans, stop).await?;
    let mut devices = SmallVec::<[_; 1]>::with_capacity(invite.devices.len());
    let mut invalidations = Vec::new();
    let mut notes = Vec::new();
    for Rung { outcome, is_accepted, event, untried, notes: own } in rungs {
        if is_accepted {
            worker.breakers.accepted(&invite.app, outcome.environment);
        }
        if noted {
            notes.push(own);
        }
        if let Some(id) = untried {
            ticket.release(id);
        }
        worker.metrics.device(&invite.app.name, outcome.environment.as_str(), outcome.result);
        if outcome.action != Action::None.as_str() {
            worker.metrics.device_action(&invite.app.name, outcome.action);
        }
        if let Some(stage) = outcome.stage {
            worker.metrics.expired(stage);
        }
        // One that breaks a rule, or came twice, is told so also then.
        if let Some(why) = bar.and_then(Bar::label)
            && outcome.result == "failed"
        {
            worker.metrics.barred(&invite.app.name, outcome.environment.as_str(), why);
        }
        devices.push(outcome);
        invalidations.extend(event);
    }
    let result = InviteResult::of(&devices);
    worker.metrics.invite(Some(&invite.app.name), result.as_str());
    let error = bar.and_then(Bar::error);
    report::tell(&worker.flood, invite, result, error.as_deref(), &devices, || {
        trace_id(properties, story.as_deref())
    });
    let settled = Instant::now();
    let timeline = noted.then(|| Timeline::new(invite.created_at, (taken.on, taken.at), settled, notes));
    let outcome = Outcome {
        kind: outcome::KIND,
        call_id: Some(invite.call_id),
        app: Some(&invite.app.name),
        result,
        worker: &worker.settings.name,
        deadline: Some(invite.deadline),
        received_at: taken.on,
        settled_at: taken.on.plus(settled - taken.at),
        redelivered: taken.redelivered,
        earlier_attempt: taken.earlier_attempt(),
        error,
        devices: Some(&devices),
        timeline: timeline.as_ref().filter(|_| worker.settings.timeline).map(Timeline::steps),
    };
    let carried = |mut publication| {
        carry(properties, story.as_deref(), &mut publication);
        publication
    };
    let published = carried(publish_outcome(&identity, &outcome, worker.outcome_key(Some(&invite.app))));
    let publications: Known = if invalidations.is_empty() {
        Arc::new([published])
    } else {
        // Only now: what Apple accepted of this very invite speaks for the settings, too.
        let event = |event| carried(invalidation::publish(worker, &identity, invite, &event));
        std::iter::once(published).chain(invalidations.into_iter().map(event)).collect()
    };
    if let Some(story) = story {
        story.result = Some(result);
        story.error = outcome.error;
        story.timeline = timeline;
    }
    ticket.finish(Arc::clone(&publications));
    Some(publications)
}

/// Waits for the devices of an invite. `None`: the worker is told to stop, and no attempt was written.
///
/// An attempt is written where `ringing` is polled, in one go with the taking of its stream and the mark on its trail, and
/// nothing but this function polls it. So what the trails say here stays true until the next poll, and once `ringing` is
/// dropped, nothing is ever written; a stream that was granted in the meantime goes to the next one who waits.
async fn unless_stopped<T>(
    mut ringing: Pin<&mut impl Future<Output = T>>,
    plans: &[Plan],
    stop: &watch::Receiver<bool>,
) -> Option<T> {
    // Only who waits for a stream is told: what was begun is finished.
    let mut told = pin!(told(stop));
    let mut is_begun = false;
    poll_fn(|cx| {
        // Who is told to stop begins nothing, though there be a stream for it now.
        if !is_begun && *stop.borrow() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(rungs) = ringing.as_mut().poll(cx) {
            return Poll::Ready(Some(rungs));
        }
        is_begun = is_begun || plans.iter().any(Plan::is_begun);
        if is_begun { Poll::Pending } else { told.as_mut().poll(cx).map(|()| None) }
    })
    .await
}

/// What is known of an invite, as an answer to this copy of it: whoever published it again looks for the correlation and the
/// trace of now. Text and `message_id` are those of then.
fn told_again(known: &Known, properties: &Properties, story: Option<&Story>) -> Known {
    let again = |publication: &Publication| {
        let mut publication = publication.clone();
        carry(properties, story, &mut publication);
        publication
    };
    known.iter().map(again).collect()
}

/// Returns when the worker is told to stop; a sender that is gone means the same.
pub(super) async fn told(stop: &watch::Receiver<bool>) {
    drop(stop.clone().wait_for(|stop| *stop).await);
}

/// The outcome of a message that is no invite.
fn refuse<G>(
    worker: &Worker<G>,
    identity: &Identity,
    malformed: &Malformed,
    properties: &Properties,
    taken: Taken,
    story: Option<&mut Story>,
) -> Publication {
    if worker.flood.admits(Failure::Malformed) {
        tracing::warn!(
            call.id = malformed.call_id.map(tracing::field::display),
            trace.id = trace_id(properties, story.as_deref()).map(tracing::field::display),
            app = malformed.app,
            amqp.message_id = properties.message_id,
            error = malformed.error,
            "an invite is malformed"
        );
    }
    let outcome = Outcome {
        kind: outcome::KIND,
        call_id: malformed.call_id,
        app: malformed.app.as_deref(),
        result: InviteResult::Malformed,
        worker: &worker.settings.name,
        deadline: None,
        received_at: taken.on,
        settled_at: worker.now(),
        redelivered: taken.redelivered,
        earlier_attempt: taken.earlier_attempt(),
        error: Some(malformed.error.clone()),
        devices: None,
        timeline: None,
    };
    let key = worker.outcome_key(malformed.known_app.as_deref());
    let mut publication = publish_outcome(identity, &outcome, key);
    carry(properties, story.as_deref(), &mut publication);
    if let Some(story) = story {
        story.call_id = malformed.call_id;
        story.app.clone_from(&malformed.known_app);
        story.result = Some(InviteResult::Malformed);
        story.error = Some(malformed.error.clone());
    }
    publication
}
