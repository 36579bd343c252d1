//! `[[fault]]`: what strikes requests.

use bytes::Bytes;
use serde::Deserialize;

use super::super::faults::{Action, Answer, Fault, GoAway, Whom};
use super::goaway::{RawEnding, RawGoAway, RawLastStream};
use super::value::{Code, Hex, Instant, Probability, RawAddress, RawLatency, Span, Status};
use super::{Course, check_keys, read_course, read_when};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFault {
    token: Option<Hex>,
    token_prefix: Option<Hex>,
    connection: Option<u64>,
    address: Option<RawAddress>,
    from: Option<Span>,
    until: Option<Span>,

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
    debug: Option<String>,
    last_stream: Option<RawLastStream>,
    leave_out: Option<usize>,
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

impl RawFault {
    pub(super) fn read(self) -> Result<(Course, Fault), String> {
        self.check()?;
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
        when.address = self.address.map(|address| address.0);
        let action = self.action.map(|action| self.read_action(action)).transpose()?;
        if action.is_none() && self.latency.is_none() {
            return Err("neither `do` nor `latency`: nothing would happen".into());
        }
        let course = read_course(self.from.as_ref(), self.until.as_ref())?;
        Ok((course, Fault { whom, when, latency: self.latency.map(|latency| latency.0), action }))
    }

    /// A key that its action does not know is a mistake, not ignored.
    fn check(&self) -> Result<(), String> {
        use RawAction::{Answer, Close, Freeze, Goaway, Reset, Silence};
        let answering = self.action == Some(Answer);
        let going = self.action == Some(Goaway);
        check_keys(&[
            ("status", self.status.is_some(), answering, "\"answer\""),
            ("timestamp", self.timestamp.is_some(), answering, "\"answer\""),
            ("body", self.body.is_some(), answering, "\"answer\""),
            ("reason", self.reason.is_some(), answering || going, "\"answer\" or \"goaway\""),
            (
                "code",
                self.code.is_some(),
                matches!(self.action, Some(Reset | Goaway)),
                "\"reset\" or \"goaway\"",
            ),
            ("debug", self.debug.is_some(), going, "\"goaway\""),
            ("last_stream", self.last_stream.is_some(), going, "\"goaway\""),
            ("leave_out", self.leave_out.is_some(), going, "\"goaway\""),
            ("serve_this", self.serve_this.is_some(), going, "\"goaway\""),
            ("twice", self.twice.is_some(), going, "\"goaway\""),
            ("then", self.then.is_some(), going, "\"goaway\""),
            (
                "processed",
                self.processed.is_some(),
                matches!(self.action, Some(Answer | Reset | Silence | Freeze | Close)),
                "\"answer\", \"reset\", \"silence\", \"freeze\" or \"close\"",
            ),
        ])
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
            RawAction::Goaway => {
                let raw = RawGoAway {
                    code: self.code.as_ref(),
                    reason: self.reason.as_ref(),
                    debug: self.debug.as_ref(),
                    last_stream: self.last_stream.as_ref(),
                    leave_out: self.leave_out,
                    twice: self.twice,
                    then: self.then,
                };
                Action::GoAway(GoAway { serve_this: self.serve_this.unwrap_or(true), ..raw.read()? })
            }
            RawAction::Silence => Action::Silence { processed },
            RawAction::Freeze => Action::Freeze { processed },
            RawAction::Close => Action::Close { processed },
        })
    }
}
