//! One device of an invite: whether it is pushed, and what became of it.

use bytes::Bytes;
use tokio::time::Instant;

use super::bar::Bar;
use super::dispatch::Dispatched;
use super::gateway::{Gateway, Push, Trail};
use super::invalidation;
use super::ledger::Ticket;
use super::run::Worker;
use super::timeline::Notes;
use crate::domain::id::ApnsId;
use crate::domain::invite::{Device, Invite};
use crate::domain::outcome::{self, DeviceOutcome};
use crate::domain::policy::{PushError, Stage, Verdict};
use crate::domain::response::Action;
use crate::domain::token_event::{self, TokenEvent};

/// What became of one device.
pub(super) struct Rung {
    pub(super) outcome: DeviceOutcome,
    /// APNs answered 200.
    pub(super) is_accepted: bool,
    /// The event that Apple's word makes.
    pub(super) event: Option<TokenEvent>,
    /// The claim that was made for a push of which no attempt was made.
    pub(super) untried: Option<ApnsId>,
    /// What happened when.
    pub(super) notes: Notes,
}

impl Rung {
    /// One that was settled without a push.
    pub(super) fn settled(outcome: DeviceOutcome) -> Self {
        Self { outcome, is_accepted: false, event: None, untried: None, notes: Notes::default() }
    }
}

/// What to do with one device: nothing, because it is settled already, or a push.
pub(super) enum Plan {
    Settled(Box<DeviceOutcome>),
    Push(Push),
}

impl Plan {
    /// Whether an attempt was written.
    pub(super) fn is_begun(&self) -> bool {
        matches!(self, Self::Push(push) if push.trail.first().is_some())
    }
}

/// Until when an invite may be rung, and until when what rings may be answered.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) deadline: Instant,
    pub(super) answer_by: Instant,
}

/// What to do with a device. Whatever speaks against a push is said here; what is pushed has its claim in the ledger.
pub(super) fn plan(
    invite: &Invite,
    device: &Device,
    ticket: &mut Ticket,
    bar: Option<Bar>,
    body: &Result<Bytes, String>,
    times: Times,
    noted: bool,
) -> Plan {
    let settled = |result, action, stage: Option<Stage>, error: Option<String>| {
        let (token, id) = (device.token.clone(), device.id.clone());
        let mut outcome = DeviceOutcome::untried(token, id, device.environment, result, action);
        outcome.stage = stage.map(Stage::as_str);
        outcome.error = error;
        Plan::Settled(Box::new(outcome))
    };
    if let Some(Bar::Late(stage)) = bar {
        return settled("expired", Action::None, Some(stage), None);
    }
    if let Some(fault) = &device.fault {
        return settled("rejected", Action::FixInvite, None, Some(fault.clone()));
    }
    if device.duplicate {
        return settled("duplicate", Action::None, None, None);
    }
    if bar.is_some() {
        return settled("failed", Action::None, None, None);
    }
    let body = match body {
        Ok(body) => body.clone(),
        Err(error) => return settled("rejected", Action::FixInvite, None, Some(error.clone())),
    };
    let apns_id = invalidation::push_id(invite, device);
    if !ticket.claim(apns_id) {
        return settled("duplicate", Action::None, None, None);
    }
    Plan::Push(Push {
        app: invite.app.clone(),
        environment: device.environment,
        token: device.token.clone(),
        apns_id,
        body,
        deadline: times.deadline,
        deadline_at: invite.deadline,
        answer_by: times.answer_by,
        trail: if noted { Trail::timed() } else { Trail::default() },
    })
}

/// The entry of a device that was dispatched, and the token event that Apple's word makes.
pub(super) fn settle<G: Gateway>(
    worker: &Worker<G>,
    invite: &Invite,
    device: &Device,
    push: &Push,
    dispatched: Dispatched,
) -> Rung {
    let apns_id = push.apns_id;
    let Dispatched { verdict, attempts, latency, response, error, ended, notes } = dispatched;
    let is_accepted = verdict == Verdict::Accepted;
    if is_accepted {
        worker.metrics.slack(push.deadline.saturating_duration_since(ended));
    }
    let event = invalidation::announce(worker, invite, device, verdict, response.as_ref());
    let (result, action, stage) = outcome::describe(verdict);
    let mut outcome =
        DeviceOutcome::untried(device.token.clone(), device.id.clone(), device.environment, result, action);
    outcome.stage = stage.map(Stage::as_str);
    outcome.attempts = attempts;
    outcome.apns_id = (attempts > 0).then_some(apns_id);
    outcome.latency_ms = latency.map(|latency| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX));
    if let Some(response) = response {
        if token_event::is_outdated(response.invalid_since, device.registered_at) {
            outcome.action = Action::None.as_str();
        }
        outcome.status = Some(response.status);
        outcome.invalid_since = response.invalid_since;
        outcome.reason = response.reason.map(|reason| reason.as_str().to_owned());
    }
    let refused = matches!(error, Some(PushError::CredentialRefused(_)));
    if refused || matches!(verdict, Verdict::Unknown | Verdict::Failed | Verdict::Expired(_)) {
        outcome.error = error.map(|error| error.to_string());
    }
    Rung { outcome, is_accepted, event, untried: (attempts == 0).then_some(apns_id), notes }
}
