//! An app that calls are for: how its pushes look. Credentials are not its business.

use std::time::Duration;

use serde::Serialize;

/// Which of Apple's two worlds a device token belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// `api.push.apple.com`.
    Production,
    /// `api.sandbox.push.apple.com`.
    Sandbox,
}

impl Environment {
    /// Both, in the order of [`Environment::index`].
    pub const ALL: [Self; 2] = [Self::Production, Self::Sandbox];

    /// The name on the wire, in settings and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Sandbox => "sandbox",
        }
    }

    /// The environment of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|environment| environment.as_str() == name)
    }

    /// 0 or 1, for tables.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// One configured app, `[apps.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Its place among the configured apps; the index of every per-app table.
    pub index: usize,
    /// `a-z 0-9 _ -`, at most 64 characters, never `malformed`.
    pub name: String,
    /// The app's bundle id, without `.voip`.
    pub bundle_id: String,
    /// Where its tokens belong unless a device says otherwise.
    pub environment: Environment,
    /// 0: `apns-expiration: 0`; else the push may be stored until the deadline, but no longer than this.
    pub expiration_max: Duration,
    /// The names of the keys in its pushes.
    pub payload: PayloadKeys,
}

impl App {
    /// `apns-topic` of its VoIP pushes: the bundle id with `.voip` (Apple, *Sending notification requests to APNs*).
    pub fn topic(&self) -> String {
        format!("{}.voip", self.bundle_id)
    }
}

/// Under which top-level keys the worker writes into a push. An empty name leaves the key out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadKeys {
    /// The call id, CallKit's `callUUID`.
    pub call_id: String,
    /// `caller.handle`.
    pub handle: String,
    /// `caller.name`.
    pub name: String,
    /// `has_video`.
    pub has_video: String,
    /// The deadline in whole Unix seconds, rounded down.
    pub deadline: String,
    /// Send `aps`, the call id and the deadline alone.
    pub opaque: bool,
}

impl PayloadKeys {
    /// Whether the worker writes under this key, so that an invite's `payload` may not.
    pub fn is_set_by_worker(&self, key: &str) -> bool {
        let of_caller = [&self.handle, &self.name, &self.has_video].into_iter().filter(|_| !self.opaque);
        let names = [&self.call_id, &self.deadline].into_iter().chain(of_caller);
        names.into_iter().any(|name| !name.is_empty() && name == key)
    }
}
