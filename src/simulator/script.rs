//! A script: what Apple knows and what goes wrong, from a TOML file. `config/simulator.example.toml` shows every key.
//!
//! Most of it holds from the beginning. What has a time (`at`, `from`, `until`) is a [`Step`] of a [`Timeline`], so that
//! one file can hold a whole incident with its healing.
//!
//! A mistake is told with its line and what would be right; a key that is not known is a mistake.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use toml::Spanned;

use super::Simulator;
use super::devices::DeviceState;
use super::faults::{ConnectFault, Fault, FaultId, When};
use super::identity::VerifyingKey;
use super::order::{Order, Target};
use super::provider_token::Credential;

use connect::{RawConnect, RawOrder};
use device::{RawDevice, RawKey};
use fault::RawFault;
use value::{Probability, Span};

mod connect;
mod device;
mod fault;
mod goaway;
#[cfg(test)]
mod tests;
mod value;

/// What a script file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    /// Device tokens (lower-case hex) and their states.
    pub devices: Vec<(String, DeviceState)>,
    /// Further keys that Apple knows.
    pub keys: Vec<Credential>,
    /// Faults that strike requests, in order.
    pub faults: Vec<Fault>,
    /// Faults that strike new connections, in order.
    pub connect_faults: Vec<ConnectFault>,
    /// What happens later, in order of time.
    pub steps: Vec<(Duration, Step)>,
}

/// Something that happens at its time.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A device token gets another state.
    Device(String, DeviceState),
    /// A key is known from now on.
    Trust(Credential),
    /// The keys with this id are forgotten.
    Revoke(String),
    /// A fault begins; the number names it within the script. It stands behind those that are there.
    Fault(usize, Fault),
    /// A fault of new connections begins.
    Connect(usize, ConnectFault),
    /// The fault with this number ends.
    End(usize),
    /// Live connections are told something.
    Order(Target, Order),
    /// See [`Simulator::heal_at`].
    Heal(Target),
}

/// When something begins and ends; `None`: from the beginning, and for good.
type Course = (Option<Duration>, Option<Duration>);

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
    /// Reads the text of a script file that names no keys.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        Self::parse_with(
            text,
            |_| Err("nobody here knows where keys are kept: see Script::parse_with".into()),
        )
    }

    /// Reads the text of a script file; `find_key` finds (or makes) the key with an id.
    pub fn parse_with(
        text: &str,
        mut find_key: impl FnMut(&str) -> Result<VerifyingKey, String>,
    ) -> Result<Self, ScriptError> {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let raw: RawScript = toml::from_str(text).map_err(|error| ScriptError {
            line: line_of(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', "; "),
        })?;
        let mut script = Self::default();
        for device in raw.device {
            let (at, token, state) = read(device, line_of, RawDevice::read)?;
            match at {
                None => script.devices.push((token, state)),
                Some(at) => script.steps.push((at, Step::Device(token, state))),
            }
        }
        for key in raw.key {
            let ((from, until), credential) = read(key, line_of, |key| key.read(&mut find_key))?;
            script.steps.extend(until.map(|until| (until, Step::Revoke(credential.key_id.clone()))));
            match from {
                None => script.keys.push(credential),
                Some(from) => script.steps.push((from, Step::Trust(credential))),
            }
        }
        for (number, fault) in raw.fault.into_iter().enumerate() {
            match read(fault, line_of, RawFault::read)? {
                ((None, None), fault) => script.faults.push(fault),
                (course, fault) => script.put(course, number, |number| Step::Fault(number, fault)),
            }
        }
        let numbers = usize::MAX / 2..; // apart from those above
        for (number, fault) in numbers.zip(raw.connect) {
            match read(fault, line_of, RawConnect::read)? {
                ((None, None), fault) => script.connect_faults.push(fault),
                (course, fault) => script.put(course, number, |number| Step::Connect(number, fault)),
            }
        }
        for order in raw.order {
            script.steps.push(read(order, line_of, RawOrder::read)?);
        }
        script.steps.sort_by_key(|(at, _)| *at);
        Ok(script)
    }

    fn put(&mut self, (from, until): Course, number: usize, begin: impl FnOnce(usize) -> Step) {
        self.steps.push((from.unwrap_or_default(), begin(number)));
        self.steps.extend(until.map(|until| (until, Step::End(number))));
    }
}

fn read<Raw, T>(
    raw: Spanned<Raw>,
    line_of: impl Fn(usize) -> usize,
    read: impl FnOnce(Raw) -> Result<T, String>,
) -> Result<T, ScriptError> {
    let line = line_of(raw.span().start);
    read(raw.into_inner()).map_err(|message| ScriptError { line, message })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScript {
    #[serde(default)]
    device: Vec<Spanned<RawDevice>>,
    #[serde(default)]
    key: Vec<Spanned<RawKey>>,
    #[serde(default)]
    fault: Vec<Spanned<RawFault>>,
    #[serde(default)]
    connect: Vec<Spanned<RawConnect>>,
    #[serde(default)]
    order: Vec<Spanned<RawOrder>>,
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

fn read_course(from: Option<&Span>, until: Option<&Span>) -> Result<Course, String> {
    let course = (from.map(|from| from.0), until.map(|until| until.0));
    match course {
        (from, Some(until)) if until <= from.unwrap_or_default() => {
            Err("`until` must come after `from`".into())
        }
        course => Ok(course),
    }
}

/// A key that its `do` does not know is a mistake, not ignored: key, whether it is there, whether it belongs, and to what.
fn check_keys(keys: &[(&str, bool, bool, &str)]) -> Result<(), String> {
    match keys.iter().find(|(_, present, belongs, _)| *present && !belongs) {
        Some((key, .., to)) => Err(format!("`{key}` goes with do = {to}")),
        None => Ok(()),
    }
}

/// What is left to do of a script: its steps, each at its time.
#[derive(Debug)]
pub struct Timeline {
    simulator: Simulator,
    steps: VecDeque<(Duration, Step)>,
    /// Those that have begun.
    faults: BTreeMap<usize, FaultId>,
}

impl Timeline {
    /// Takes all steps, their times counted from now by tokio's clock. To drop the future is to leave out the rest.
    pub async fn play(mut self) {
        let begin = Instant::now();
        while let Some((at, _)) = self.steps.front() {
            sleep_until(begin + *at).await;
            self.take_next();
        }
    }

    fn take_next(&mut self) {
        let Some((_, step)) = self.steps.pop_front() else { return };
        let simulator = &self.simulator;
        match step {
            Step::Device(token, state) => simulator.devices().set(&token, state),
            Step::Trust(credential) => simulator.trust(credential),
            Step::Revoke(key_id) => drop(simulator.revoke(&key_id)),
            Step::Fault(number, fault) => drop(self.faults.insert(number, simulator.faults().add(fault))),
            Step::Connect(number, fault) => {
                self.faults.insert(number, simulator.faults().add_connect(fault));
            }
            Step::End(number) => {
                // Healing may have ended it before.
                let _ = self.faults.remove(&number).map(|id| simulator.faults().remove(id));
            }
            Step::Order(target, order) => simulator.order_to(target, order),
            Step::Heal(target) => simulator.heal_at(target),
        }
    }
}

impl Simulator {
    /// Adds the devices, keys and faults of a script to what is there. What has a later time is left to the [`Timeline`]
    /// that comes back: without [`Timeline::play`] it does not happen.
    pub fn apply(&self, script: Script) -> Timeline {
        for (token, state) in script.devices {
            self.devices().set(&token, state);
        }
        for key in script.keys {
            self.trust(key);
        }
        for fault in script.faults {
            self.faults().add(fault);
        }
        for fault in script.connect_faults {
            self.faults().add_connect(fault);
        }
        let faults = BTreeMap::new();
        let mut timeline = Timeline { simulator: self.clone(), steps: script.steps.into(), faults };
        while timeline.steps.front().is_some_and(|(at, _)| at.is_zero()) {
            timeline.take_next();
        }
        timeline
    }
}
