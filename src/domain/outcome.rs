//! What became of an invite, as it is published (`ringcast.outcome.v1`).

use serde::Serialize;

use super::app::Environment;
use super::id::{ApnsId, CallId, DeviceToken};
use super::policy::{Stage, Verdict};
use super::response::Action;
use super::timestamp::Timestamp;

/// AMQP `type`, also in the body.
pub const KIND: &str = "ringcast.outcome.v1";

/// The outcome of one invite. Absent fields leave no key.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// [`KIND`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The call, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    /// The app's name, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The result of the whole invite.
    pub result: InviteResult,
    /// Which worker says so.
    pub worker: String,
    /// The invite's deadline; absent when malformed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// When the worker took the invite.
    pub received_at: Timestamp,
    /// When the last device was final.
    pub settled_at: Timestamp,
    /// The broker delivered it before.
    pub redelivered: bool,
    /// `possible` where it was delivered before and this worker does not know what became of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earlier_attempt: Option<&'static str>,
    /// Ours: what is wrong and what would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// One entry per device in the invite's order; absent when malformed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<DeviceOutcome>>,
    /// What happened when, in order of time; absent unless it is asked for (`worker.timeline`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Vec<Step>>,
}

/// One step of an invite's way. Which of the fields it has depends on its stage (README, *The timeline*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// When.
    pub at: Timestamp,
    /// `created`, `received`, `written`, `answered`, `unanswered`, `unprocessed`, `unsent`, `retry`, `omitted`, `settled`.
    pub stage: &'static str,
    /// The device's place among `devices`, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<usize>,
    /// Which attempt for the device, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Why there is another attempt: `unprocessed`, `transient`, `ambiguous`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<&'static str>,
    /// How long the attempt waited for a stream, in milliseconds; or how long the pause before another one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// What APNs answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Apple's word, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Ours: why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many attempts are left out, where there were too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

impl Step {
    /// A step with nothing but its time and stage.
    pub fn new(at: Timestamp, stage: &'static str) -> Self {
        Self {
            at,
            stage,
            device: None,
            attempt: None,
            class: None,
            wait_ms: None,
            status: None,
            reason: None,
            error: None,
            count: None,
        }
    }
}

/// The result of an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InviteResult {
    /// It is no invite.
    Malformed,
    /// No device is left beside duplicates.
    Duplicate,
    /// At least one device was accepted.
    Accepted,
    /// All expired.
    Expired,
    /// The call had ended.
    Ended,
    /// It may have rung.
    Unknown,
    /// Nothing rang.
    Undeliverable,
}

impl InviteResult {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Expired,
        Self::Ended,
        Self::Unknown,
        Self::Undeliverable,
        Self::Duplicate,
        Self::Malformed,
    ];

    /// The word in outcomes and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Duplicate => "duplicate",
            Self::Accepted => "accepted",
            Self::Expired => "expired",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
            Self::Undeliverable => "undeliverable",
        }
    }

    /// The first that fits, duplicates left aside.
    pub fn of(devices: &[DeviceOutcome]) -> Self {
        let results = || devices.iter().map(|device| device.result).filter(|result| *result != "duplicate");
        if results().next().is_none() {
            Self::Duplicate
        } else if results().any(|result| result == "accepted") {
            Self::Accepted
        } else if results().all(|result| result == "expired") {
            Self::Expired
        } else if results().any(|result| result == "ended") {
            Self::Ended
        } else if results().any(|result| result == "unknown") {
            Self::Unknown
        } else {
            Self::Undeliverable
        }
    }
}

/// What became of one device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceOutcome {
    /// The whole token, in lower case.
    pub token: DeviceToken,
    /// The physical device, where the invite said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where it was pushed.
    pub environment: Environment,
    /// `accepted`, `invalid_token`, … (contract, *Outcome*).
    pub result: &'static str,
    /// What to do about it.
    pub action: &'static str,
    /// APNs' last status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Apple's word, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when Apple calls the token invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid_since: Option<Timestamp>,
    /// Where the time ran out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'static str>,
    /// The id of the push; absent when it was never tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apns_id: Option<ApnsId>,
    /// How many attempts were made.
    pub attempts: u32,
    /// From the first attempt's start to the final answer, in milliseconds; absent when it was never tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Ours: what is wrong and what would be right, or what happened on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl DeviceOutcome {
    /// A device that was never tried.
    pub fn untried(
        token: DeviceToken,
        id: Option<String>,
        environment: Environment,
        result: &'static str,
        action: Action,
    ) -> Self {
        Self {
            token,
            id,
            environment,
            result,
            action: action.as_str(),
            status: None,
            reason: None,
            invalid_since: None,
            stage: None,
            apns_id: None,
            attempts: 0,
            latency_ms: None,
            error: None,
        }
    }
}

/// The words of a verdict: `result`, `action`, `stage`.
pub fn describe(verdict: Verdict) -> (&'static str, Action, Option<Stage>) {
    match verdict {
        Verdict::Accepted => ("accepted", Action::None, None),
        Verdict::InvalidToken => ("invalid_token", Action::DropToken, None),
        Verdict::SuspectToken => ("suspect_token", Action::CheckToken, None),
        Verdict::Rejected(action) => ("rejected", action, None),
        Verdict::Throttled => ("throttled", Action::None, None),
        Verdict::Expired(stage) => ("expired", Action::None, Some(stage)),
        Verdict::Failed => ("failed", Action::None, None),
        Verdict::Unknown => ("unknown", Action::None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(results: &[&'static str]) -> Vec<DeviceOutcome> {
        let device = |result: &&'static str| {
            let token = DeviceToken::new("ab01");
            DeviceOutcome::untried(token, None, Environment::Production, result, Action::None)
        };
        results.iter().map(device).collect()
    }

    #[test]
    fn the_first_result_that_fits_wins() {
        for (results, expected) in [
            (&["duplicate", "duplicate"][..], InviteResult::Duplicate),
            (&["expired", "accepted", "unknown"], InviteResult::Accepted),
            (&["expired", "duplicate"], InviteResult::Expired),
            (&["ended", "unknown"], InviteResult::Ended),
            (&["expired", "unknown"], InviteResult::Unknown),
            (&["expired", "rejected"], InviteResult::Undeliverable),
            (&["invalid_token"], InviteResult::Undeliverable),
        ] {
            assert_eq!(InviteResult::of(&devices(results)), expected, "{results:?}");
        }
    }

    #[test]
    fn absent_fields_leave_no_key() {
        let json = serde_json::to_string(&devices(&["expired"])[0]).unwrap();
        assert_eq!(
            json,
            r#"{"token":"ab01","environment":"production","result":"expired","action":"none","attempts":0}"#
        );
    }
}
