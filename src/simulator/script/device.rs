//! `[[device]]` and `[[key]]`: what Apple knows.

use std::time::Duration;

use serde::Deserialize;

use super::super::Environment;
use super::super::devices::DeviceState;
use super::super::identity::VerifyingKey;
use super::super::provider_token::{Credential, is_apple_id};
use super::super::rules;
use super::value::{Hex, Instant, Span};
use super::{Course, read_course};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDevice {
    token: Hex,
    state: RawState,
    since: Option<Instant>,
    topic: Option<String>,
    at: Option<Span>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum RawState {
    Registered,
    Unregistered,
    Expired,
    Unknown,
    OtherEnvironment,
    Topic,
    Throttled,
}

impl RawDevice {
    pub(super) fn read(self) -> Result<(Option<Duration>, String, DeviceState), String> {
        let dead = matches!(self.state, RawState::Unregistered | RawState::Expired);
        if self.since.is_some() && !dead {
            return Err("`since` goes with state \"unregistered\" or \"expired\" alone".into());
        }
        if self.topic.is_some() != (self.state == RawState::Topic) {
            return Err(
                "state = \"topic\" and `topic` go together: the one topic the token is live for".into()
            );
        }
        if rules::read_token(&self.token.0).is_none() {
            return Err("`token` must be an even number of hex digits, 2 to 256 bytes".into());
        }
        let since_ms = || {
            let missing =
                "`since` is missing: the instant from which the token is dead, as 2026-10-01T00:00:00Z";
            self.since.as_ref().map(|instant| instant.0).ok_or(missing)
        };
        let state = match self.state {
            RawState::Registered => DeviceState::Registered,
            RawState::Unregistered => DeviceState::Unregistered { since_ms: since_ms()? },
            RawState::Expired => DeviceState::Expired { since_ms: since_ms()? },
            RawState::Unknown => DeviceState::Unknown,
            RawState::OtherEnvironment => DeviceState::OtherEnvironment,
            RawState::Topic => DeviceState::Topic(self.topic.unwrap_or_default()),
            RawState::Throttled => DeviceState::Throttled,
        };
        Ok((self.at.map(|at| at.0), self.token.0, state))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKey {
    key_id: String,
    team_id: String,
    environment: Option<RawEnvironment>,
    bundle_ids: Option<Vec<String>>,
    from: Option<Span>,
    until: Option<Span>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RawEnvironment {
    Production,
    Sandbox,
}

impl RawKey {
    pub(super) fn read(
        self,
        find: &mut dyn FnMut(&str) -> Result<VerifyingKey, String>,
    ) -> Result<(Course, Credential), String> {
        for (key, id) in [("key_id", &self.key_id), ("team_id", &self.team_id)] {
            if !is_apple_id(id) {
                return Err(format!("`{key}` must be ten letters or digits"));
            }
        }
        if self.bundle_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err("`bundle_ids` is empty: leave it out for a key of all apps".into());
        }
        let credential = Credential {
            environment: self.environment.map(|environment| match environment {
                RawEnvironment::Production => Environment::Production,
                RawEnvironment::Sandbox => Environment::Sandbox,
            }),
            bundle_ids: self.bundle_ids.map(Into::into),
            ..Credential::new(&self.team_id, &self.key_id, find(&self.key_id)?)
        };
        Ok((read_course(self.from.as_ref(), self.until.as_ref())?, credential))
    }
}
