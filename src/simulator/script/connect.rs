//! `[[connect]]` and `[[order]]`: what befalls connections, new ones and live ones.

use std::time::Duration;

use serde::Deserialize;

use super::super::faults::{ConnectAction, ConnectFault};
use super::super::order::{Order, Target};
use super::goaway::{RawEnding, RawGoAway, RawLastStream};
use super::value::{Code, Probability, RawAddress, RawLatency, Span};
use super::{Course, Step, check_keys, read_course, read_when};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConnect {
    address: Option<RawAddress>,
    from: Option<Span>,
    until: Option<Span>,
    #[serde(default)]
    skip: u64,
    every: Option<u64>,
    probability: Option<Probability>,
    count: Option<u64>,
    #[serde(rename = "do")]
    action: RawConnectAction,
    reason: Option<String>,
    after: Option<RawLatency>,
    stream_window: Option<u32>,
    streams: Option<u32>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum RawConnectAction {
    Refuse,
    Silence,
    Goaway,
    Deaf,
    SlowSettings,
    SlowWindow,
    Limit,
}

impl RawConnect {
    pub(super) fn read(self) -> Result<(Course, ConnectFault), String> {
        use RawConnectAction::{Goaway, Limit, SlowSettings, SlowWindow};
        if self.reason.is_some() != (self.action == Goaway) {
            return Err("do = \"goaway\" and `reason` go together, as \"BadCertificateEnvironment\"".into());
        }
        if self.streams.is_some() != (self.action == Limit) {
            return Err("do = \"limit\" and `streams` go together, as 1".into());
        }
        if self.after.is_some() != matches!(self.action, SlowSettings | SlowWindow) {
            return Err("do = \"slow_settings\" or \"slow_window\" and `after` go together, as \"2s\"".into());
        }
        check_keys(&[(
            "stream_window",
            self.stream_window.is_some(),
            self.action == SlowWindow,
            "\"slow_window\"",
        )])?;
        if self.stream_window.is_some_and(|bytes| bytes >= 1 << 31) {
            return Err("`stream_window` must be below 2147483648".into());
        }
        let action = match (self.action, self.after) {
            (RawConnectAction::Silence, _) => ConnectAction::Silence,
            (RawConnectAction::Deaf, _) => ConnectAction::Deaf,
            (Goaway, _) => ConnectAction::GoAway { reason: self.reason.unwrap_or_default() },
            (Limit, _) => ConnectAction::Limit { streams: self.streams.unwrap_or_default() },
            (SlowSettings, Some(after)) => ConnectAction::SlowSettings { after: after.0 },
            (SlowWindow, Some(after)) => {
                ConnectAction::SlowWindow { after: after.0, stream_window: self.stream_window }
            }
            _ => ConnectAction::Refuse,
        };
        let mut when = read_when(self.skip, self.every, self.probability, self.count)?;
        when.address = self.address.map(|address| address.0);
        Ok((read_course(self.from.as_ref(), self.until.as_ref())?, ConnectFault { when, action }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOrder {
    at: Span,
    address: Option<RawAddress>,
    connection: Option<u64>,
    #[serde(rename = "do")]
    action: RawOrderAction,
    streams: Option<u32>,
    after: Option<RawLatency>,
    key_id: Option<String>,
    code: Option<Code>,
    reason: Option<String>,
    debug: Option<String>,
    last_stream: Option<RawLastStream>,
    leave_out: Option<usize>,
    twice: Option<bool>,
    then: Option<RawEnding>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum RawOrderAction {
    Goaway,
    Close,
    Freeze,
    Silence,
    Deafen,
    Limit,
    SlowWindow,
    Heal,
    Revoke,
}

impl RawOrder {
    pub(super) fn read(self) -> Result<(Duration, Step), String> {
        use RawOrderAction::{Goaway, Limit, Revoke, SlowWindow};
        let target = match (self.address, self.connection) {
            (None, None) => Target::Everybody,
            (Some(address), None) => Target::Address(address.0),
            (None, Some(number)) => Target::Connection(number),
            (Some(_), Some(_)) => {
                return Err("only one of `address` and `connection`; none of them: everybody".into());
            }
        };
        let going = self.action == Goaway;
        check_keys(&[
            ("code", self.code.is_some(), going, "\"goaway\""),
            ("reason", self.reason.is_some(), going, "\"goaway\""),
            ("debug", self.debug.is_some(), going, "\"goaway\""),
            ("last_stream", self.last_stream.is_some(), going, "\"goaway\""),
            ("leave_out", self.leave_out.is_some(), going, "\"goaway\""),
            ("twice", self.twice.is_some(), going, "\"goaway\""),
            ("then", self.then.is_some(), going, "\"goaway\""),
            ("streams", self.streams.is_some(), self.action == Limit, "\"limit\""),
            ("after", self.after.is_some(), self.action == SlowWindow, "\"slow_window\""),
            ("key_id", self.key_id.is_some(), self.action == Revoke, "\"revoke\""),
        ])?;
        let order = match self.action {
            RawOrderAction::Heal => return Ok((self.at.0, Step::Heal(target))),
            Revoke if target != Target::Everybody => {
                return Err("a key is revoked everywhere: leave out `address` and `connection`".into());
            }
            Revoke => {
                let key_id = self.key_id.ok_or("`key_id` is missing: the key to forget")?;
                return Ok((self.at.0, Step::Revoke(key_id)));
            }
            RawOrderAction::Close => Order::Close,
            RawOrderAction::Freeze => Order::Freeze,
            RawOrderAction::Silence => Order::Silence,
            RawOrderAction::Deafen => Order::Deafen,
            Limit => Order::Limit(self.streams.ok_or("`streams` is missing: the limit, as 1")?),
            SlowWindow => {
                Order::SlowWindow(self.after.ok_or("`after` is missing: how much later, as \"2s\"")?.0)
            }
            Goaway => {
                let raw = RawGoAway {
                    code: self.code.as_ref(),
                    reason: self.reason.as_ref(),
                    debug: self.debug.as_ref(),
                    last_stream: self.last_stream.as_ref(),
                    leave_out: self.leave_out,
                    twice: self.twice,
                    then: self.then,
                };
                Order::GoAway(raw.read()?)
            }
        };
        Ok((self.at.0, Step::Order(target, order)))
    }
}
