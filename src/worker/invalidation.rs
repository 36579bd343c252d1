//! From Apple's word about a token to the event that tells it.

use crate::domain::id::{ApnsId, Identity};
use crate::domain::invite::{Device, Invite};
use crate::domain::policy::Verdict;
use crate::domain::response::Response;
use crate::domain::token_event::{self, Confidence, TokenEvent};

use super::mailbox::{Publication, Route};
use super::run::Worker;

/// The event that a device's verdict makes, if any: only Apple's two kinds of word about a token do, and not one that is
/// older than the token's registration.
pub(super) fn announce<G>(
    worker: &Worker<G>,
    invite: &Invite,
    device: &Device,
    verdict: Verdict,
    response: Option<&Response>,
) -> Option<TokenEvent> {
    let confidence = match verdict {
        Verdict::InvalidToken => Confidence::Dead,
        Verdict::SuspectToken => Confidence::Suspect,
        _ => return None,
    };
    let response = response?;
    if token_event::is_outdated(response.invalid_since, device.registered_at) {
        return None;
    }
    Some(TokenEvent {
        kind: token_event::KIND,
        token: device.token.clone(),
        device_id: device.id.as_deref().map(str::to_owned),
        app: invite.app.name.clone(),
        topic: invite.app.topic(),
        environment: device.environment,
        confidence,
        status: response.status,
        reason: response.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        invalid_since: response.invalid_since,
        registered_at: device.registered_at,
        observed_at: worker.now(),
        call_id: invite.call_id,
        key_id: worker.key_ids.get(invite.app.index, device.environment).map(|id| id.as_ref().to_owned()),
    })
}

/// The event on its way: a suspect token's to quarantine while so many are suspect that a setting is. The one place that
/// tells the breaker of suspect tokens, so that an event is judged by all that is known when it leaves.
pub(super) fn publish<G>(
    worker: &Worker<G>,
    identity: &Identity,
    invite: &Invite,
    event: &TokenEvent,
) -> Publication {
    let kept_back = event.confidence == Confidence::Suspect && worker.breakers.suspect(&invite.app, event);
    let (key, to) =
        if kept_back { ("quarantined_token", "quarantine") } else { ("invalid_token", "invalid") };
    worker.metrics.token_event(&event.app, event.confidence.as_str(), to);
    Publication {
        route: Route::Results(format!("{key}.{}", event.app).into()),
        kind: token_event::KIND,
        message_id: identity.token_event_id(&event.token).to_string().into(),
        body: super::publish::to_json(event),
        correlation_id: None,
        traceparent: None,
        tracestate: None,
    }
}

/// The id that a device's push carries.
pub(super) fn push_id(invite: &Invite, device: &Device) -> ApnsId {
    ApnsId::derive(invite.call_id, &device.token)
}
