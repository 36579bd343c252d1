//! A script: devices and faults from a TOML file. `config/simulator.example.toml` shows every key.
//!
//! A mistake is told with its line and what would be right; a key that is not known is a mistake.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use toml::Spanned;

use super::devices::DeviceState;
use super::faults::{Action, Answer, ConnectAction, ConnectFault, Ending, Fault, GoAway, When, Whom};
use super::rules;

use value::{Code, Hex, Instant, Probability, RawLatency, Status};

mod value;

/// What a script file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    /// Device tokens (lower-case hex) and their states.
    pub devices: Vec<(String, DeviceState)>,
    /// Faults that strike requests, in order.
    pub faults: Vec<Fault>,
    /// Faults that strike new connections, in order.
    pub connect_faults: Vec<ConnectFault>,
}

/// A mistake in a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ScriptError {}

impl Script {
    /// Reads the text of a script file.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let raw: RawScript = toml::from_str(text).map_err(|error| ScriptError {
            line: line_of(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', "; "),
        })?;
        let mut script = Self::default();
        for device in raw.device {
            let line = line_of(device.span().start);
            script.devices.push(device.into_inner().read().map_err(|message| ScriptError { line, message })?);
        }
        for fault in raw.fault {
            let line = line_of(fault.span().start);
            script.faults.push(fault.into_inner().read().map_err(|message| ScriptError { line, message })?);
        }
        for fault in raw.connect {
            let line = line_of(fault.span().start);
            script
                .connect_faults
                .push(fault.into_inner().read().map_err(|message| ScriptError { line, message })?);
        }
        Ok(script)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScript {
    #[serde(default)]
    device: Vec<Spanned<RawDevice>>,
    #[serde(default)]
    fault: Vec<Spanned<RawFault>>,
    #[serde(default)]
    connect: Vec<Spanned<RawConnect>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    token: Hex,
    state: RawState,
    since: Option<Instant>,
    topic: Option<String>,
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
    fn read(self) -> Result<(String, DeviceState), String> {
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
        Ok((self.token.0, state))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFault {
    token: Option<Hex>,
    token_prefix: Option<Hex>,
    connection: Option<u64>,

    #[serde(default)]
    skip: u64,
    every: Option<u64>,
    probability: Option<Probability>,
    count: Option<u64>,
    #[serde(default)]
    each_token: bool,

    latency: Option<RawLatency>,
    #[serde(rename = "do")]
    action: Option<RawAction>,
    status: Option<Status>,
    reason: Option<String>,
    timestamp: Option<Instant>,
    body: Option<String>,
    code: Option<Code>,
    serve_this: Option<bool>,
    twice: Option<bool>,
    then: Option<RawEnding>,
    processed: Option<bool>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "lowercase")]
enum RawAction {
    Answer,
    Reset,
    Goaway,
    Silence,
    Freeze,
    Close,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RawEnding {
    Drain,
    Close,
    Silence,
}

impl RawFault {
    fn read(self) -> Result<Fault, String> {
        self.check_keys()?;
        let whom = match (&self.token, &self.token_prefix, self.connection) {
            (None, None, None) => Whom::Everybody,
            (Some(token), None, None) => Whom::Token(token.0.clone()),
            (None, Some(prefix), None) => Whom::Prefix(prefix.0.clone()),
            (None, None, Some(number)) => Whom::Connection(number),
            _ => {
                return Err(
                    "only one of `token`, `token_prefix` and `connection`; none of them: everybody".into()
                );
            }
        };
        let mut when = read_when(self.skip, self.every, self.probability, self.count)?;
        when.each_token = self.each_token;
        let action = self.action.map(|action| self.read_action(action)).transpose()?;
        if action.is_none() && self.latency.is_none() {
            return Err("neither `do` nor `latency`: nothing would happen".into());
        }
        Ok(Fault { whom, when, latency: self.latency.map(|latency| latency.0), action })
    }

    /// A key that its action does not know is a mistake, not ignored.
    fn check_keys(&self) -> Result<(), String> {
        use RawAction::{Answer, Close, Freeze, Goaway, Reset, Silence};
        let answering = self.action == Some(Answer);
        for (key, present, belongs, to) in [
            ("status", self.status.is_some(), answering, "\"answer\""),
            ("timestamp", self.timestamp.is_some(), answering, "\"answer\""),
            ("body", self.body.is_some(), answering, "\"answer\""),
            (
                "reason",
                self.reason.is_some(),
                matches!(self.action, Some(Answer | Goaway)),
                "\"answer\" or \"goaway\"",
            ),
            (
                "code",
                self.code.is_some(),
                matches!(self.action, Some(Reset | Goaway)),
                "\"reset\" or \"goaway\"",
            ),
            ("serve_this", self.serve_this.is_some(), self.action == Some(Goaway), "\"goaway\""),
            ("twice", self.twice.is_some(), self.action == Some(Goaway), "\"goaway\""),
            ("then", self.then.is_some(), self.action == Some(Goaway), "\"goaway\""),
            (
                "processed",
                self.processed.is_some(),
                matches!(self.action, Some(Answer | Reset | Silence | Freeze | Close)),
                "\"answer\", \"reset\", \"silence\", \"freeze\" or \"close\"",
            ),
        ] {
            if present && !belongs {
                return Err(format!("`{key}` goes with do = {to}"));
            }
        }
        Ok(())
    }

    fn read_action(&self, action: RawAction) -> Result<Action, String> {
        let processed = self.processed.unwrap_or(false);
        Ok(match action {
            RawAction::Answer => {
                let status =
                    self.status.as_ref().ok_or("`status` is missing: the status to answer, as 503")?.0;
                if self.body.is_some() && (self.reason.is_some() || self.timestamp.is_some()) {
                    return Err("`body` is sent as it stands: leave out `reason` and `timestamp`".into());
                }
                if self.timestamp.is_some() && self.reason.is_none() {
                    return Err("`timestamp` goes into the JSON beside a `reason`, which is missing".into());
                }
                Action::Answer(Answer {
                    status,
                    reason: self.reason.clone(),
                    timestamp_ms: self.timestamp.as_ref().map(|instant| instant.0),
                    body: self.body.clone().map(Bytes::from),
                    processed: self.processed.unwrap_or(status == 200),
                })
            }
            RawAction::Reset => {
                let missing = "`code` is missing: the HTTP/2 error code of the reset, as \"REFUSED_STREAM\"";
                let code = self.code.as_ref().ok_or(missing)?.0;
                if processed && code == u32::from(h2::Reason::REFUSED_STREAM) {
                    return Err(
                        "REFUSED_STREAM promises that nothing was processed: leave out `processed`".into()
                    );
                }
                Action::Reset { code, processed }
            }
            RawAction::Goaway => Action::GoAway(GoAway {
                code: self.code.as_ref().map_or(0, |code| code.0),
                reason: self.reason.clone(),
                serve_this: self.serve_this.unwrap_or(true),
                twice: self.twice.unwrap_or(false),
                then: match self.then {
                    None | Some(RawEnding::Drain) => Ending::Drain,
                    Some(RawEnding::Close) => Ending::Close,
                    Some(RawEnding::Silence) => Ending::Silence,
                },
                ..GoAway::default()
            }),
            RawAction::Silence => Action::Silence { processed },
            RawAction::Freeze => Action::Freeze { processed },
            RawAction::Close => Action::Close { processed },
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConnect {
    #[serde(default)]
    skip: u64,
    every: Option<u64>,
    probability: Option<Probability>,
    count: Option<u64>,
    #[serde(rename = "do")]
    action: RawConnectAction,
    reason: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum RawConnectAction {
    Refuse,
    Silence,
    Goaway,
    Deaf,
}

impl RawConnect {
    fn read(self) -> Result<ConnectFault, String> {
        if self.reason.is_some() != (self.action == RawConnectAction::Goaway) {
            return Err("do = \"goaway\" and `reason` go together, as \"BadCertificateEnvironment\"".into());
        }
        let action = match self.action {
            RawConnectAction::Refuse => ConnectAction::Refuse,
            RawConnectAction::Silence => ConnectAction::Silence,
            RawConnectAction::Deaf => ConnectAction::Deaf,
            RawConnectAction::Goaway => ConnectAction::GoAway { reason: self.reason.unwrap_or_default() },
        };
        Ok(ConnectFault { when: read_when(self.skip, self.every, self.probability, self.count)?, action })
    }
}

fn read_when(
    skip: u64,
    every: Option<u64>,
    probability: Option<Probability>,
    count: Option<u64>,
) -> Result<When, String> {
    if every == Some(0) {
        return Err("`every` must be 1 or more: 3 means every third".into());
    }
    let probability = probability.map_or(1.0, |probability| probability.0);
    Ok(When { skip, every: every.unwrap_or(1), probability, count, ..When::default() })
}

#[cfg(test)]
mod tests;
