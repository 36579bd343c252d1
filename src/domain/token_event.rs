//! What Apple said about a token (`ringcast.invalid-token.v1`). Nothing but Apple's word makes one.

use serde::Serialize;

use super::app::Environment;
use super::id::{CallId, DeviceToken};
use super::timestamp::Timestamp;

/// AMQP `type`, also in the body.
pub const KIND: &str = "ringcast.invalid-token.v1";

/// How sure Apple's word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// 410: no longer valid for the topic.
    Dead,
    /// `BadDeviceToken`, `DeviceTokenNotForTopic`: may be a good token in the wrong place.
    Suspect,
}

impl Confidence {
    /// The word in events and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Suspect => "suspect",
        }
    }
}

/// One event per invite and device.
#[derive(Clone, Debug, Serialize)]
pub struct TokenEvent {
    /// [`KIND`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The whole token, in lower case.
    pub token: DeviceToken,
    /// The physical device, where the invite said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// The app's name.
    pub app: String,
    /// `apns-topic` of the push.
    pub topic: String,
    /// Where it was pushed.
    pub environment: Environment,
    /// How sure it is.
    pub confidence: Confidence,
    /// APNs' status.
    pub status: u16,
    /// Apple's word, verbatim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when Apple calls the token invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid_since: Option<Timestamp>,
    /// When the token was registered, where the invite said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<Timestamp>,
    /// When the worker got Apple's answer.
    pub observed_at: Timestamp,
    /// The call whose push was refused.
    pub call_id: CallId,
    /// The signing key; absent with a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
}

/// Whether Apple's verdict is older than the registration: then the token is another life of the same bytes, and good.
pub fn is_outdated(invalid_since: Option<Timestamp>, registered_at: Option<Timestamp>) -> bool {
    matches!((invalid_since, registered_at), (Some(since), Some(registered)) if registered > since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_registration_outdates_the_verdict() {
        let at = |ms| Some(Timestamp::from_unix_ms(ms));
        assert!(is_outdated(at(1), at(2)));
        assert!(!is_outdated(at(2), at(2)));
        assert!(!is_outdated(at(2), at(1)));
        assert!(!is_outdated(None, at(1)));
        assert!(!is_outdated(at(1), None));
    }
}
