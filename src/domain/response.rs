//! What APNs answered, and what it means for the device, the request and the settings.
//!
//! The table follows Apple, *Handling notification responses from APNs*. Words stay open: a reason that nobody knew when
//! this was written is kept as it came.

use std::borrow::Cow;

use super::timestamp::Timestamp;

macro_rules! reasons {
    ($($word:ident)+) => {
        /// Apple's `reason`.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is Apple's word, explained on Apple's page")]
        pub enum Reason {
            $($word,)+
            /// A word that Apple's pages did not hold.
            Other(Box<str>),
        }

        impl Reason {
            /// The reason of that word.
            pub fn parse(word: &str) -> Self {
                match word {
                    $(stringify!($word) => Self::$word,)+
                    other => Self::Other(other.into()),
                }
            }

            /// Apple's word, verbatim.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$word => stringify!($word),)+
                    Self::Other(word) => word,
                }
            }

            /// Every known reason, for tests and tables.
            pub fn known() -> Vec<Self> {
                vec![$(Self::$word,)+]
            }
        }
    };
}

reasons! {
    BadCertificate BadCertificateEnvironment BadCollapseId BadDeviceToken BadEnvironmentKeyIdInToken
    BadEnvironmentKeyInToken BadExpirationDate BadMessageId BadPath BadPriority BadTopic DeviceTokenNotForTopic
    DuplicateHeaders ExpiredProviderToken ExpiredToken Forbidden IdleTimeout InternalServerError InvalidProviderToken
    InvalidPushType MethodNotAllowed MissingDeviceToken MissingProviderToken MissingTopic PayloadEmpty PayloadTooLarge
    ServiceUnavailable Shutdown TooManyProviderTokenUpdates TooManyRequests TopicDisallowed Unregistered
    UnrelatedKeyIdInToken
}

impl Reason {
    /// The word as a metric label: `other` where it is unknown, so that a peer cannot make series.
    pub fn label(&self) -> &str {
        match self {
            Self::Other(_) => "other",
            known => known.as_str(),
        }
    }
}

/// APNs' answer to one push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// `reason` of the body, where there is one.
    pub reason: Option<Reason>,
    /// `timestamp` of a 410: since when the token is no longer valid for the topic.
    pub invalid_since: Option<Timestamp>,
}

/// What the one who runs or calls the worker should do about a device's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Forget the token.
    DropToken,
    /// Look whether the token belongs to this app and environment.
    CheckToken,
    /// Mend the settings: key, team, topic, certificate.
    FixConfig,
    /// Mend the invite.
    FixInvite,
    /// Tell the maintainers: the request was wrong.
    Report,
}

impl Action {
    /// The word in an outcome.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::DropToken => "drop_token",
            Self::CheckToken => "check_token",
            Self::FixConfig => "fix_config",
            Self::FixInvite => "fix_invite",
            Self::Report => "report",
        }
    }
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// 200: accepted, which is not the same as rung.
    Accepted,
    /// 410, whatever its reason: the token is dead.
    TokenDead,
    /// The token does not fit topic or environment, or was never good.
    TokenSuspect,
    /// Refused for good, and this is what to do about it.
    Refused(Action),
    /// 429 for this token.
    Throttled,
    /// Apple's side failed; another connection may do better.
    Transient,
    /// The provider token was refused: this says nothing about the push, and the connection stays wedged.
    ProviderTokenRefused,
}

impl Response {
    /// What this answer means (the table of Apple's page).
    pub fn meaning(&self) -> Meaning {
        match (self.status, self.reason.as_ref()) {
            (200, _) => Meaning::Accepted,
            (410, _) => Meaning::TokenDead,
            (400, Some(Reason::BadDeviceToken | Reason::DeviceTokenNotForTopic)) => Meaning::TokenSuspect,
            (403, Some(Reason::ExpiredProviderToken | Reason::UnrelatedKeyIdInToken))
            | (429, Some(Reason::TooManyProviderTokenUpdates)) => Meaning::ProviderTokenRefused,
            (429, _) => Meaning::Throttled,
            (400, Some(Reason::IdleTimeout)) | (500..=599, _) => Meaning::Transient,
            (_, reason) => Meaning::Refused(reason.map_or(Action::Report, refusal_action)),
        }
    }

    /// Whether it is the credential that was refused, and not this push: every other push will meet the same. `Forbidden` may
    /// be meant for one app alone.
    pub fn refuses_credential(&self) -> bool {
        self.meaning() == Meaning::ProviderTokenRefused
            || self.status == 403
                && matches!(
                    self.reason,
                    Some(
                        Reason::BadCertificate
                            | Reason::BadCertificateEnvironment
                            | Reason::BadEnvironmentKeyIdInToken
                            | Reason::BadEnvironmentKeyInToken
                            | Reason::InvalidProviderToken
                            | Reason::MissingProviderToken
                    )
                )
    }

    /// Apple's word, `none` without one.
    pub fn reason_word(&self) -> &str {
        self.reason.as_ref().map_or("none", Reason::as_str)
    }

    /// The reason as a metric label.
    pub fn reason_label(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.reason.as_ref().map_or("none", Reason::label))
    }
}

/// Whose turn it is after a final refusal.
fn refusal_action(reason: &Reason) -> Action {
    match reason {
        Reason::BadCertificate
        | Reason::BadCertificateEnvironment
        | Reason::BadEnvironmentKeyIdInToken
        | Reason::BadEnvironmentKeyInToken
        | Reason::BadTopic
        | Reason::ExpiredProviderToken
        | Reason::Forbidden
        | Reason::InvalidProviderToken
        | Reason::InvalidPushType
        | Reason::MissingTopic
        | Reason::TopicDisallowed
        | Reason::UnrelatedKeyIdInToken => Action::FixConfig,
        Reason::PayloadTooLarge => Action::FixInvite,
        _ => Action::Report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, reason: Option<&str>) -> Response {
        Response { status, reason: reason.map(Reason::parse), invalid_since: None }
    }

    #[test]
    fn every_reason_of_apples_page_has_its_meaning() {
        use Action::{FixConfig, FixInvite, Report};
        use Meaning::{
            Accepted, ProviderTokenRefused, Refused, Throttled, TokenDead, TokenSuspect, Transient,
        };
        let table = [
            (200, None, Accepted),
            (400, Some("BadCollapseId"), Refused(Report)),
            (400, Some("BadDeviceToken"), TokenSuspect),
            (400, Some("BadExpirationDate"), Refused(Report)),
            (400, Some("BadMessageId"), Refused(Report)),
            (400, Some("BadPriority"), Refused(Report)),
            (400, Some("BadTopic"), Refused(FixConfig)),
            (400, Some("DeviceTokenNotForTopic"), TokenSuspect),
            (400, Some("DuplicateHeaders"), Refused(Report)),
            (400, Some("IdleTimeout"), Transient),
            (400, Some("InvalidPushType"), Refused(FixConfig)),
            (400, Some("MissingDeviceToken"), Refused(Report)),
            (400, Some("MissingTopic"), Refused(FixConfig)),
            (400, Some("PayloadEmpty"), Refused(Report)),
            (400, Some("TopicDisallowed"), Refused(FixConfig)),
            (403, Some("BadCertificate"), Refused(FixConfig)),
            (403, Some("BadCertificateEnvironment"), Refused(FixConfig)),
            (403, Some("ExpiredProviderToken"), ProviderTokenRefused),
            (403, Some("Forbidden"), Refused(FixConfig)),
            (403, Some("InvalidProviderToken"), Refused(FixConfig)),
            (403, Some("MissingProviderToken"), Refused(Report)),
            (403, Some("UnrelatedKeyIdInToken"), ProviderTokenRefused),
            (403, Some("BadEnvironmentKeyIdInToken"), Refused(FixConfig)),
            (403, Some("BadEnvironmentKeyInToken"), Refused(FixConfig)),
            (404, Some("BadPath"), Refused(Report)),
            (405, Some("MethodNotAllowed"), Refused(Report)),
            (410, Some("ExpiredToken"), TokenDead),
            (410, Some("Unregistered"), TokenDead),
            (410, None, TokenDead),
            (413, Some("PayloadTooLarge"), Refused(FixInvite)),
            (429, Some("TooManyRequests"), Throttled),
            (429, Some("TooManyProviderTokenUpdates"), ProviderTokenRefused),
            (500, Some("InternalServerError"), Transient),
            (503, Some("ServiceUnavailable"), Transient),
            (503, Some("Shutdown"), Transient),
            (503, None, Transient),
            (400, Some("SomethingNew"), Refused(Report)),
            (400, None, Refused(Report)),
            (302, None, Refused(Report)),
        ];
        for (status, reason, meaning) in table {
            assert_eq!(response(status, reason).meaning(), meaning, "{status} {reason:?}");
        }
        for (status, word, meaning) in table {
            let refuses = response(status, word).refuses_credential();
            assert!(!refuses || matches!(meaning, ProviderTokenRefused | Refused(_)), "{status} {word:?}");
            let of_all = status == 403 && word != Some("Forbidden");
            assert_eq!(refuses, meaning == ProviderTokenRefused || of_all, "{status} {word:?}");
        }
        for reason in Reason::known() {
            assert!(
                table.iter().any(|(_, word, _)| *word == Some(reason.as_str())),
                "{reason:?} is not in the table"
            );
        }
    }

    #[test]
    fn an_unknown_word_is_kept_but_makes_no_series() {
        let reason = Reason::parse("Service Unavailable");
        assert_eq!((reason.as_str(), reason.label()), ("Service Unavailable", "other"));
        assert_eq!(response(503, None).reason_label(), "none");
    }
}
