//! What the log says of invites: one line where one failed, none where it rang, and not a flood of lines where many fail at once.

use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::invite::Invite;
use crate::domain::outcome::{DeviceOutcome, InviteResult};
use crate::domain::response::Action;
use crate::domain::trace::TraceId;

/// How often the same trouble of a publisher is told.
const SELDOM: Duration = Duration::from_mins(1);

/// Lets something through once a minute.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    pub(super) fn is_due(&self) -> bool {
        let mut told = self.0.lock();
        let due = told.is_none_or(|told| told.elapsed() >= SELDOM);
        if due {
            *told = Some(Instant::now());
        }
        due
    }
}

/// Failed invites of a kind that are told one by one in a second. More have one cause, and the metrics count them.
const LINES_MAX: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);

/// What a failed invite is told as. A wave of one kind hides nothing of another.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    /// It breaks a rule: for whoever publishes.
    Malformed,
    /// Other settings would mend it: for whoever runs the worker.
    Setting,
    /// Any other that did not ring.
    Call,
}

/// Lets so many lines of each kind a second through.
#[derive(Debug, Default)]
pub(super) struct Flood([Mutex<Option<(Instant, u32)>>; 3]);

impl Flood {
    /// Whether the next line is to be told. The first one in a second that is not makes a line that says so.
    pub(super) fn admits(&self, failure: Failure) -> bool {
        let number = {
            let mut second = self.0[failure as usize].lock();
            let (began, told) =
                second.filter(|(began, _)| began.elapsed() < SECOND).unwrap_or((Instant::now(), 0));
            *second = Some((began, told.saturating_add(1)));
            told.saturating_add(1)
        };
        if number == LINES_MAX + 1 {
            tracing::warn!(
                lines_max = LINES_MAX,
                "more invites fail in a second than the log tells of; `ringcast_invites_total` counts them all, and each has its outcome"
            );
        }
        number <= LINES_MAX
    }
}

/// Tells that an invite did not ring, and why; at the level `debug`, that one did. A refusal that other settings would mend is a
/// warning.
pub(super) fn tell(
    flood: &Flood,
    invite: &Invite,
    result: InviteResult,
    error: Option<&str>,
    devices: &[DeviceOutcome],
    trace_id: impl FnOnce() -> Option<TraceId>,
) {
    let said = match result {
        InviteResult::Accepted | InviteResult::Duplicate => {
            tracing::debug!(
                call.id = %invite.call_id,
                trace.id = trace_id().map(tracing::field::display),
                app = invite.app.name,
                result = result.as_str(),
                devices = reasons(devices),
                "the call is answered"
            );
            return;
        }
        InviteResult::Unknown => "nobody knows whether the call rang",
        InviteResult::Expired => "the call expired before it could ring",
        _ => "the call did not ring",
    };
    let asks_for_settings = devices.iter().any(|device| device.action == Action::FixConfig.as_str());
    if !flood.admits(if asks_for_settings { Failure::Setting } else { Failure::Call }) {
        return;
    }
    let why = error.map_or_else(|| reasons(devices), str::to_owned);
    let (call, app, result) = (invite.call_id, invite.app.name.as_str(), result.as_str());
    let trace = trace_id().map(tracing::field::display);
    let (status, reason) = refusal(devices).unzip();
    if asks_for_settings {
        tracing::warn!(
            call.id = %call,
            trace.id = trace,
            app,
            result,
            apns.status = status,
            apns.reason = reason.flatten(),
            why,
            "{said}: Apple refuses a setting; see the reason"
        );
    } else {
        tracing::info!(
            call.id = %call,
            trace.id = trace,
            app,
            result,
            apns.status = status,
            apns.reason = reason.flatten(),
            why,
            "{said}"
        );
    }
}

/// What Apple answered to the first device that it refused: status, and its word where it has one. The refusal of a setting
/// goes first, since mending that mends the call.
fn refusal(devices: &[DeviceOutcome]) -> Option<(u16, Option<&str>)> {
    let refused = || devices.iter().filter(|device| device.status.is_some());
    let mendable = refused().find(|device| device.action == Action::FixConfig.as_str());
    let first = mendable.or_else(|| refused().next())?;
    Some((first.status?, first.reason.as_deref()))
}

/// The devices' results with status, reason, stage or error; alike ones once, with their number. Holds no token.
fn reasons(devices: &[DeviceOutcome]) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for device in devices {
        let mut why = device.result.to_owned();
        // Writing to a text cannot fail.
        if let Some(status) = device.status {
            let _ = write!(why, " {status}");
        }
        for part in [device.reason.as_deref(), device.stage].into_iter().flatten() {
            let _ = write!(why, " {part}");
        }
        if let Some(error) = &device.error {
            let _ = write!(why, " ({error})");
        }
        match counted.iter_mut().find(|(known, _)| *known == why) {
            Some((_, count)) => *count += 1,
            None => counted.push((why, 1)),
        }
    }
    let told: Vec<String> = counted
        .into_iter()
        .map(|(why, count)| if count == 1 { why } else { format!("{count} × {why}") })
        .collect();
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::app::Environment;
    use crate::domain::id::DeviceToken;

    #[test]
    fn alike_devices_are_told_once() {
        let device = |status: u16, reason: &str| {
            let token = DeviceToken::new("ab01");
            let mut device =
                DeviceOutcome::untried(token, None, Environment::Production, "rejected", Action::FixConfig);
            device.status = Some(status);
            device.reason = Some(reason.to_owned());
            device
        };
        let devices = [device(403, "Forbidden"), device(400, "BadTopic"), device(403, "Forbidden")];
        assert_eq!(reasons(&devices), "2 × rejected 403 Forbidden, rejected 400 BadTopic");
    }

    #[test]
    fn the_refusal_that_settings_would_mend_is_told_first() {
        let device = |status, reason: Option<&str>, action| {
            let mut device = DeviceOutcome::untried(
                DeviceToken::new("ab01"),
                None,
                Environment::Production,
                "rejected",
                action,
            );
            (device.status, device.reason) = (status, reason.map(str::to_owned));
            device
        };
        let untried = device(None, None, Action::FixConfig);
        let dead = device(Some(410), Some("Unregistered"), Action::DropToken);
        let mute = device(Some(500), None, Action::None);
        let topic = device(Some(400), Some("BadTopic"), Action::FixConfig);
        assert_eq!(refusal(std::slice::from_ref(&untried)), None);
        assert_eq!(refusal(&[mute, dead.clone()]), Some((500, None)));
        assert_eq!(refusal(&[untried, dead, topic]), Some((400, Some("BadTopic"))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wave_of_failures_is_no_flood_of_lines() {
        let flood = Flood::default();
        let admitted = |failure| (0..1000).filter(|_| flood.admits(failure)).count();
        assert_eq!((admitted(Failure::Call), admitted(Failure::Call)), (20, 0));
        assert_eq!(
            (admitted(Failure::Setting), admitted(Failure::Malformed)),
            (20, 20),
            "each kind for itself"
        );
        tokio::time::advance(SECOND).await;
        assert_eq!((admitted(Failure::Call), admitted(Failure::Call)), (20, 0), "each second anew");
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_once_a_minute() {
        let seldom = Seldom::default();
        assert!(seldom.is_due() && !seldom.is_due());
        tokio::time::advance(SELDOM).await;
        assert!(seldom.is_due());
    }
}
