//! The closed sets that labels come from, and the series that exist from the start.

use prometheus::IntCounterVec;

use super::Metrics;

/// Both sides of Apple's.
pub(super) const ENVIRONMENTS: [&str; 2] = ["production", "sandbox"];

/// Where an invite spends its time.
pub(super) const STAGES: [&str; 5] = ["queue", "slot", "apns", "confirm", "total"];

/// Why there is an attempt.
pub(super) const ATTEMPTS: [&str; 4] = ["first", "unprocessed", "transient", "ambiguous"];

/// What becomes of a dial.
const DIALS: [&str; 2] = ["connected", "failed"];

/// Why dials to APNs fail.
const DIAL_FAILURES: [&str; 9] =
    ["name", "connect", "proxy", "trust", "tls", "http2", "closed", "timeout", "key"];

/// Why connections to APNs go out of use.
const ENDS: [&str; 8] =
    ["goaway", "closed", "no_pong", "unanswered", "provider_token", "replaced", "shrunk", "stopped"];

/// Apple's documented statuses; anything else is [`OTHER`], so that a strange peer cannot make series.
const STATUSES: [(u16, &str); 10] = [
    (200, "200"),
    (400, "400"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (410, "410"),
    (413, "413"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
];

/// What becomes of an invite whose app is known.
pub(super) const INVITES: [&str; 6] =
    ["accepted", "expired", "undeliverable", "unknown", "duplicate", "malformed"];

/// What becomes of a device.
pub(super) const DEVICES: [&str; 9] = [
    "accepted",
    "expired",
    "invalid_token",
    "suspect_token",
    "rejected",
    "throttled",
    "failed",
    "unknown",
    "duplicate",
];

/// What a device's result may ask for.
const ACTIONS: [&str; 5] = ["drop_token", "check_token", "fix_config", "fix_invite", "report"];

/// Why an invite is not rung, other than that it is late.
const BARS: [&str; 3] = ["delivery_limit", "poison", "unsaid"];

/// What no page of Apple's names.
const OTHER: &str = "other";

/// A status of APNs as a label.
pub(super) fn status_label(status: u16) -> &'static str {
    STATUSES.iter().find(|(known, _)| *known == status).map_or(OTHER, |(_, label)| label)
}

impl Metrics {
    /// Makes the series whose labels are known in advance, so that the first event is an increase and not a birth.
    pub(super) fn start_at_zero(&self) {
        let closed: [(&IntCounterVec, &[&str]); 7] = [
            (&self.expired, &["broker", "queue", "slot", "retry"]),
            (&self.attempts, &ATTEMPTS),
            (&self.apns_goaways, &["none", OTHER]),
            (&self.credential_reloads, &["taken", "refused"]),
            (&self.spans, &["exported", "dropped", "failed"]),
            (&self.amqp_dials, &DIALS),
            (&self.amqp_publishes, &["confirmed", "returned", "nacked", "lost"]),
        ];
        for (family, labels) in closed {
            for label in labels {
                family.with_label_values(&[*label]);
            }
        }
        for stage in STAGES {
            self.stage_seconds.with_label_values(&[stage]);
        }
        let statuses = STATUSES.map(|(_, label)| label);
        let of_environments: [(&IntCounterVec, &[&str]); 6] = [
            (&self.apns_dials, &DIALS),
            (&self.apns_dial_failures, &DIAL_FAILURES),
            (&self.apns_connection_ends, &ENDS),
            (&self.provider_token_mints, &["minted", "failed"]),
            (&self.late_answers, &statuses),
            (&self.late_answers, &[OTHER]),
        ];
        for environment in ENVIRONMENTS {
            for (family, labels) in of_environments {
                for label in labels {
                    family.with_label_values(&[environment, label]);
                }
            }
            self.apns_ping_seconds.with_label_values(&[environment]);
        }
        self.invites.with_label_values(&["unknown", "malformed"]);
    }

    /// Makes the series of the configured apps, for the same reason.
    pub fn start_apps<'a>(&self, apps: impl IntoIterator<Item = &'a str>) {
        for app in apps {
            self.hot.start_app(self, app);
            for action in ACTIONS {
                self.device_actions.with_label_values(&[app, action]);
            }
            for environment in ENVIRONMENTS {
                for why in BARS {
                    self.barred.with_label_values(&[app, environment, why]);
                }
            }
            for (confidence, to) in [("dead", "invalid"), ("suspect", "invalid"), ("suspect", "quarantine")] {
                self.token_events.with_label_values(&[app, confidence, to]);
            }
        }
    }
}
