//! Why an invite is answered without a push, whatever its devices are.

use super::mailbox::GivenUp;
use crate::domain::policy::Stage;

/// What stands between an invite and its ringing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    /// No time is left, or the broker says so.
    Late(Stage),
    /// The broker gave it up after too many deliveries.
    DeliveryLimit,
    /// The broker gave it up and does not say why.
    Unsaid,
    /// Its handler died here before, this often.
    Poison(u32),
}

impl Bar {
    /// What the outcome says in its `error`. Being late is no error of anybody's, and the devices' stage says where.
    pub(super) fn error(self) -> Option<String> {
        let error = match self {
            Self::Late(_) => return None,
            Self::DeliveryLimit => {
                "the broker gave it up: it came back to its queue more often than the queue's delivery limit \
                 allows, because connections or workers died over it; whether it rang is not known"
            }
            Self::Poison(deaths) => {
                return Some(format!(
                    "handling it failed before: its handler died in this worker (deaths: {deaths}); it is not tried \
                     again"
                ));
            }
            Self::Unsaid => {
                "it lies among the messages that the broker gave up on, and neither its header x-death nor \
                 x-first-death-reason says that it waited too long or came back too often; invites go to an invites queue"
            }
        };
        Some(error.to_owned())
    }

    /// Whether the broker keeps the original: somebody has to look at it.
    pub(super) fn keeps_original(self) -> bool {
        matches!(self, Self::Unsaid | Self::Poison(_))
    }

    /// Why devices are `failed` without an attempt, in the metrics' words. Who is late is `expired`, and counted by stage.
    pub(super) fn label(self) -> Option<&'static str> {
        match self {
            Self::Late(_) => None,
            Self::DeliveryLimit => Some("delivery_limit"),
            Self::Unsaid => Some("unsaid"),
            Self::Poison(_) => Some("poison"),
        }
    }
}

impl From<GivenUp> for Bar {
    fn from(why: GivenUp) -> Self {
        match why {
            GivenUp::Expired => Self::Late(Stage::Broker),
            GivenUp::DeliveryLimit => Self::DeliveryLimit,
            GivenUp::Unsaid => Self::Unsaid,
        }
    }
}
