//! What became of an invite, as it is published (`ringcast.outcome.v1`).

use std::sync::Arc;

use serde::Serialize;

use super::app::Environment;
use super::id::{ApnsId, CallId, DeviceToken};
use super::json::Writer;
use super::policy::{Stage, Verdict};
use super::response::Action;
use super::timestamp::Timestamp;

/// AMQP `type`, also in the body.
pub const KIND: &str = "ringcast.outcome.v1";

/// The outcome of one invite. Absent fields leave no key.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// [`KIND`].
    pub kind: &'static str,
    /// The call, where it could be read.
    pub call_id: Option<CallId>,
    /// The app's name, where it could be read.
    pub app: Option<&'a str>,
    /// The result of the whole invite.
    pub result: InviteResult,
    /// Which worker says so.
    pub worker: &'a str,
    /// The invite's deadline; absent when malformed.
    pub deadline: Option<Timestamp>,
    /// When the worker took the invite.
    pub received_at: Timestamp,
    /// When the last device was final.
    pub settled_at: Timestamp,
    /// The broker delivered it before.
    pub redelivered: bool,
    /// `possible` where it was delivered before and this worker does not know what became of that.
    pub earlier_attempt: Option<&'static str>,
    /// Ours: what is wrong and what would be right.
    pub error: Option<String>,
    /// One entry per device in the invite's order; absent when malformed.
    pub devices: Option<&'a [DeviceOutcome]>,
    /// What happened when, in order of time; absent unless it is asked for (`worker.timeline`).
    pub timeline: Option<Vec<Step>>,
}

impl Outcome<'_> {
    /// The outcome as it is published, e.g. as `Vec<u8>`.
    pub fn to_json<T: for<'a> From<&'a [u8]>>(&self) -> T {
        Writer::written(|json| self.write(json))
    }

    fn write(&self, json: &mut Writer) {
        json.begin();
        json.word("type", self.kind);
        if let Some(call_id) = self.call_id {
            json.uuid("call_id", call_id.to_uuid());
        }
        json.optional("app", self.app);
        json.word("result", self.result.as_str());
        json.text("worker", self.worker);
        json.instant("deadline", self.deadline);
        json.instant("received_at", Some(self.received_at));
        json.instant("settled_at", Some(self.settled_at));
        json.boolean("redelivered", self.redelivered);
        json.optional("earlier_attempt", self.earlier_attempt);
        json.optional("error", self.error.as_deref());
        if let Some(devices) = self.devices {
            json.list("devices", devices, |json, device| device.write(json));
        }
        if let Some(timeline) = &self.timeline {
            let steps = serde_json::to_string(timeline).expect("texts and numbers written to memory");
            json.raw("timeline", &steps);
        }
        json.end();
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug)]
pub struct DeviceOutcome {
    /// The whole token, in lower case.
    pub token: DeviceToken,
    /// The physical device, where the invite said so.
    pub id: Option<Arc<str>>,
    /// Where it was pushed.
    pub environment: Environment,
    /// `accepted`, `invalid_token`, … (contract, *Outcome*).
    pub result: &'static str,
    /// What to do about it.
    pub action: &'static str,
    /// APNs' last status.
    pub status: Option<u16>,
    /// Apple's word, verbatim.
    pub reason: Option<String>,
    /// Since when Apple calls the token invalid.
    pub invalid_since: Option<Timestamp>,
    /// Where the time ran out.
    pub stage: Option<&'static str>,
    /// The id of the push; absent when it was never tried.
    pub apns_id: Option<ApnsId>,
    /// How many attempts were made.
    pub attempts: u32,
    /// From the first attempt's start to the final answer, in milliseconds; absent when it was never tried.
    pub latency_ms: Option<u64>,
    /// Ours: what is wrong and what would be right, or what happened on the way.
    pub error: Option<String>,
}

impl DeviceOutcome {
    /// A device that was never tried.
    pub fn untried(
        token: DeviceToken,
        id: Option<Arc<str>>,
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

    fn write(&self, json: &mut Writer) {
        json.text("token", self.token.as_str());
        json.optional("id", self.id.as_deref());
        json.word("environment", self.environment.as_str());
        json.word("result", self.result);
        json.word("action", self.action);
        if let Some(status) = self.status {
            json.number("status", status.into());
        }
        json.optional("reason", self.reason.as_deref());
        json.instant("invalid_since", self.invalid_since);
        json.optional("stage", self.stage);
        if let Some(apns_id) = self.apns_id {
            json.uuid("apns_id", apns_id.to_uuid());
        }
        json.number("attempts", self.attempts.into());
        if let Some(latency_ms) = self.latency_ms {
            json.number("latency_ms", latency_ms);
        }
        json.optional("error", self.error.as_deref());
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

    fn outcome() -> Outcome<'static> {
        Outcome {
            kind: KIND,
            call_id: None,
            app: None,
            result: InviteResult::Malformed,
            worker: "w",
            deadline: None,
            received_at: Timestamp::from_unix_ms(0),
            settled_at: Timestamp::from_unix_ms(7),
            redelivered: false,
            earlier_attempt: None,
            error: None,
            devices: None,
            timeline: None,
        }
    }

    #[test]
    fn absent_fields_leave_no_key() {
        let written = |outcome: &Outcome<'_>| String::from_utf8(outcome.to_json()).unwrap();
        let head = r#"{"type":"ringcast.outcome.v1","result":"malformed","worker":"w","received_at":"1970-01-01T00:00:00.000Z","settled_at":"1970-01-01T00:00:00.007Z","redelivered":false"#;
        assert_eq!(written(&outcome()), format!("{head}}}"));
        let device =
            r#"{"token":"ab01","environment":"production","result":"expired","action":"none","attempts":0}"#;
        let with = Outcome { devices: Some(&devices(&["expired", "expired"])), ..outcome() };
        assert_eq!(written(&with), format!(r#"{head},"devices":[{device},{device}]}}"#));
        let without = Outcome { devices: Some(&[]), timeline: Some(Vec::new()), ..outcome() };
        assert_eq!(written(&without), format!(r#"{head},"devices":[],"timeline":[]}}"#));
    }

    #[test]
    fn every_field_has_its_key_in_its_place() {
        let at = |unix_ms| Some(Timestamp::from_unix_ms(unix_ms));
        let call = CallId::parse("6F1C6D0E-6F3B-4F5E-9A51-0D5A4F3C2B1A").unwrap();
        let token = DeviceToken::new("AB01");
        let device = DeviceOutcome {
            id: Some("phone \"1\"".into()),
            status: Some(410),
            reason: Some("Unregistered".to_owned()),
            invalid_since: at(1_795_253_400_000),
            stage: Some("retry"),
            apns_id: Some(ApnsId::derive(call, &token)),
            attempts: 2,
            latency_ms: Some(80),
            error: Some("line\nline".to_owned()),
            ..DeviceOutcome::untried(token, None, Environment::Sandbox, "invalid_token", Action::DropToken)
        };
        let apns_id = device.apns_id.unwrap();
        let whole = Outcome {
            call_id: Some(call),
            app: Some("acme"),
            result: InviteResult::Undeliverable,
            deadline: at(1_795_253_430_000),
            redelivered: true,
            earlier_attempt: Some("possible"),
            error: Some("\u{e9}\u{1}".to_owned()),
            devices: Some(&[device]),
            timeline: Some(vec![Step::new(Timestamp::from_unix_ms(0), "created")]),
            ..outcome()
        };
        assert_eq!(
            String::from_utf8(whole.to_json()).unwrap(),
            [
                r#"{"type":"ringcast.outcome.v1","call_id":"6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a","app":"acme","#,
                r#""result":"undeliverable","worker":"w","deadline":"2026-11-21T09:30:30.000Z","#,
                r#""received_at":"1970-01-01T00:00:00.000Z","settled_at":"1970-01-01T00:00:00.007Z","#,
                r#""redelivered":true,"earlier_attempt":"possible","error":"é\u0001","#,
                r#""devices":[{"token":"ab01","id":"phone \"1\"","environment":"sandbox","result":"invalid_token","#,
                r#""action":"drop_token","status":410,"reason":"Unregistered","#,
                r#""invalid_since":"2026-11-21T09:30:00.000Z","stage":"retry","#,
                &format!(r#""apns_id":"{apns_id}","attempts":2,"latency_ms":80,"error":"line\nline"}}],"#),
                r#""timeline":[{"at":"1970-01-01T00:00:00.000Z","stage":"created"}]}"#,
            ]
            .concat()
        );
    }
}
