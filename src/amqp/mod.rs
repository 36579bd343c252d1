//! RabbitMQ: moves bytes, knows no invites.
//!
//! A **session** is two connections (one to consume, one to publish), their channels and consumers, as one unit:
//! [`supervisor`] builds it whole, and when any part of it ends, tears all of it down and builds it anew. The client
//! library's own recovery stays off, because it leaves consumers that wait for ever. [`dial`] makes a connection,
//! [`topology`] knows every queue and exchange, `inbox` consumes and settles, `expired` reads what the broker
//! gave up on, `outbox` publishes, `absence` notices what goes missing. Towards the worker
//! there are only the two flows of `worker::mailbox`.

mod absence;
mod describe;
pub mod dial;
mod expired;
mod fate;
mod inbox;
mod limit;
mod outbox;
mod repair;
mod settlement;
mod socket;
pub mod status;
pub mod supervisor;
pub mod topology;
mod uri;

use std::path::PathBuf;

pub use status::{State, Status};
pub use supervisor::{Phase, Supervisor};
pub use uri::{Login, check_uri, login};

/// What the AMQP rooms are told by the configuration.
#[derive(Clone)]
pub struct Settings {
    /// `amqp.uri` (or the content of `amqp.uri_file`): `amqp://` or `amqps://`. Holds the password: never printed.
    pub uri: String,
    /// `amqp.ca_file`: an extra trust root for `amqps`.
    pub ca_file: Option<PathBuf>,
    /// `amqp.declare`: declare the topology at start, for development.
    pub declare: bool,
    /// `amqp.invites`: the queues to consume from, at least one.
    pub invites: Vec<String>,
    /// `amqp.results_exchange`.
    pub results_exchange: String,
    /// `amqp.live`: copy every result to the live exchange.
    pub live: bool,
    /// `amqp.prefetch`: unsettled deliveries at most, 1 to 2000 (quorum queues cap at 2000). Several invites queues share
    /// it in equal parts, after a twentieth for what the broker gave up on.
    pub prefetch: u16,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("uri", &"…")
            .field("ca_file", &self.ca_file)
            .field("declare", &self.declare)
            .field("invites", &self.invites)
            .field("results_exchange", &self.results_exchange)
            .field("live", &self.live)
            .field("prefetch", &self.prefetch)
            .finish()
    }
}

/// Why the broker cannot be used. Each text is a sentence for an operator, and none holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The URI or a file that it needs is wrong: a mistake in the configuration.
    #[error("{0}")]
    Configuration(String),
    /// No connection came about: DNS, TCP, TLS, or nobody answers as an AMQP broker does.
    #[error("the broker at {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Scheme, host and port.
        endpoint: String,
        /// What failed.
        reason: String,
    },
    /// The broker answered and refused the connection: user, password or virtual host.
    #[error("the broker at {endpoint} refuses us: {reason}")]
    Refused {
        /// Scheme, host and port.
        endpoint: String,
        /// What it said.
        reason: String,
    },
    /// Queues or exchanges that the worker needs are not there.
    #[error(
        "{} missing: run `ringcast topology declare` or set amqp.declare = true",
        topology::list(.0)
    )]
    Missing(Vec<topology::Thing>),
    /// One queue, exchange or binding could not be made, e.g. because it exists with other arguments.
    #[error("{what} cannot be declared: {reason}")]
    Declare {
        /// The thing, with its name.
        what: String,
        /// What the broker said, and what can be done.
        reason: String,
    },
    /// A connection or channel that was open is not any more, or did not do what it was asked within the limit.
    #[error("{0}")]
    Lost(String),
}

impl Error {
    /// Whether a peer is unavailable, which `ringcast` reports by exit code 69. The others are a configuration to mend.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { .. } | Self::Lost(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_never_show_the_password() {
        let settings = Settings {
            uri: "amqp://guest:hunter2@127.0.0.1:5672/%2f".into(),
            ca_file: None,
            declare: false,
            invites: vec!["ringcast.invites".into()],
            results_exchange: "ringcast.results".into(),
            live: false,
            prefetch: 500,
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
