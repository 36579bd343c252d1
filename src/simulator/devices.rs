//! What Apple knows of device tokens. Any well-formed token is live unless it was told otherwise here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::RwLock;

use super::rules::{Reason, Refusal};

/// The state of one device token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceState {
    /// Live for every topic: also what a token is that was never named.
    Registered,
    /// Not active for its topic since that instant (milliseconds since 1970): 410 `Unregistered`.
    Unregistered {
        /// Milliseconds since 1970-01-01 UTC; may lie in the future.
        since_ms: u64,
    },
    /// Expired at that instant: 410 `ExpiredToken`.
    Expired {
        /// Milliseconds since 1970-01-01 UTC.
        since_ms: u64,
    },
    /// Nobody's: 400 `BadDeviceToken`.
    Unknown,
    /// A token of the other environment: 400 `BadDeviceToken`, as Apple cannot tell it from an unknown one.
    OtherEnvironment,
    /// Live for this topic alone; any other makes 400 `DeviceTokenNotForTopic`.
    Topic(String),
    /// Pushed to too often: 429 `TooManyRequests`.
    Throttled,
}

/// The registry of device tokens (lower-case hex).
#[derive(Debug, Default)]
pub struct Devices {
    states: RwLock<BTreeMap<String, DeviceState>>,
    named: AtomicUsize,
}

impl Devices {
    /// Sets the state of a token, whatever its case.
    pub fn set(&self, token: &str, state: DeviceState) {
        let mut states = self.states.write();
        states.insert(token.to_ascii_lowercase(), state);
        self.named.store(states.len(), Relaxed);
    }

    /// Makes every token live again.
    pub fn clear(&self) {
        let mut states = self.states.write();
        states.clear();
        self.named.store(0, Relaxed);
    }

    /// Judges a push to `token` (lower-case) for `topic`.
    pub(super) fn judge(&self, token: &str, topic: &str) -> Result<(), Refusal> {
        if self.named.load(Relaxed) == 0 {
            return Ok(());
        }
        let dead = |reason, since_ms: &u64| Err(Refusal { reason, timestamp_ms: Some(*since_ms) });
        match self.states.read().get(token) {
            None | Some(DeviceState::Registered) => Ok(()),
            Some(DeviceState::Unregistered { since_ms }) => dead(Reason::Unregistered, since_ms),
            Some(DeviceState::Expired { since_ms }) => dead(Reason::ExpiredToken, since_ms),
            Some(DeviceState::Unknown | DeviceState::OtherEnvironment) => Err(Reason::BadDeviceToken.into()),
            Some(DeviceState::Topic(only)) if only == topic => Ok(()),
            Some(DeviceState::Topic(_)) => Err(Reason::DeviceTokenNotForTopic.into()),
            Some(DeviceState::Throttled) => Err(Reason::TooManyRequests.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_answer() {
        let devices = Devices::default();
        assert_eq!(devices.judge("aabb", "t"), Ok(()));
        let refusal = |reason: Reason, timestamp_ms| Err(Refusal { reason, timestamp_ms });
        for (state, verdict) in [
            (DeviceState::Registered, Ok(())),
            (DeviceState::Unregistered { since_ms: 5 }, refusal(Reason::Unregistered, Some(5))),
            (DeviceState::Expired { since_ms: 6 }, refusal(Reason::ExpiredToken, Some(6))),
            (DeviceState::Unknown, refusal(Reason::BadDeviceToken, None)),
            (DeviceState::OtherEnvironment, refusal(Reason::BadDeviceToken, None)),
            (DeviceState::Topic("t".into()), Ok(())),
            (DeviceState::Topic("u".into()), refusal(Reason::DeviceTokenNotForTopic, None)),
            (DeviceState::Throttled, refusal(Reason::TooManyRequests, None)),
        ] {
            devices.set("AABB", state.clone());
            assert_eq!(devices.judge("aabb", "t"), verdict, "{state:?}");
            assert_eq!(devices.judge("ccdd", "t"), Ok(()), "another token");
        }
        devices.clear();
        assert_eq!(devices.judge("aabb", "t"), Ok(()));
    }
}
