//! RabbitMQ: moves bytes, knows no invites.
//!
//! A **session** is two connections (one to consume, one to publish) and what goes over them: [`supervisor`] builds it whole,
//! and when one of the two is lost, tears all of it down and builds it anew. A channel that is lost costs its queue or its lane
//! alone. The client library's own recovery stays off, because it leaves consumers that wait for ever. [`dial`] makes a
//! connection, to the `host` whose turn it is, [`topology`] knows every queue and exchange, `reader` keeps each queue being
//! read, by an `inbox` that consumes and settles on `terms` that may change, `outbox` publishes by the lanes of a `road` to each
//! destination, `absence` notices what goes missing, [`live`] looks on. Towards the worker there are only the two flows of
//! `worker::mailbox`.

mod absence;
mod describe;
pub mod dial;
mod fate;
mod host;
mod inbox;
mod limit;
pub mod live;
mod outbox;
mod properties;
mod reader;
mod repair;
mod road;
mod settlement;
mod socket;
pub mod status;
pub mod supervisor;
mod terms;
mod tls;
pub mod topology;
mod uri;

use std::path::PathBuf;

pub use status::{State, Status};
pub use supervisor::{Phase, Supervisor};
pub use terms::PREFETCH_MAX;
pub use uri::{Facts, check_host, facts};

/// What the AMQP rooms are told by the configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `amqp.uri` (or the content of `amqp.uri_file`): `amqp://` or `amqps://`. Holds the password: never printed.
    pub uri: String,
    /// `amqp.hosts`: further hosts of the same cluster, `HOST` or `HOST:PORT`.
    pub hosts: Vec<String>,
    /// `amqp.ca_file`: an extra trust root for `amqps`.
    pub ca_file: Option<PathBuf>,
    /// The client certificate for `amqps`, if one is to be shown.
    pub client: Option<ClientFiles>,
    /// `amqp.declare`: declare the topology at the start of each session, and what goes missing later, for development.
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
    /// `amqp.consumer_priority`: consumers with a higher one are served first. 0: the broker's default.
    pub consumer_priority: i32,
}

/// A client certificate's files, in PEM. They are read anew for each session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// `amqp.client_cert_file`: the certificate, followed by those that vouch for it, if any.
    pub cert_file: PathBuf,
    /// `amqp.client_key_file`: its private key.
    pub key_file: PathBuf,
}

impl Settings {
    /// These settings with what of `next` is taken over while the worker runs: where the broker is and how to log in, and how
    /// much is consumed. The rest waits for a start.
    #[must_use]
    pub fn renewed(&self, next: &Self) -> Self {
        Self {
            declare: self.declare,
            invites: self.invites.clone(),
            results_exchange: self.results_exchange.clone(),
            live: self.live,
            ..next.clone()
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("uri", &"…")
            .field("hosts", &self.hosts)
            .field("ca_file", &self.ca_file)
            .field("client", &self.client)
            .field("declare", &self.declare)
            .field("invites", &self.invites)
            .field("results_exchange", &self.results_exchange)
            .field("live", &self.live)
            .field("prefetch", &self.prefetch)
            .field("consumer_priority", &self.consumer_priority)
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
    /// The broker has several addresses, and none of them can be used: why, each.
    #[error("{}", .0.iter().map(Self::to_string).collect::<Vec<_>>().join("; "))]
    NoneUsable(Vec<Self>),
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
        matches!(self, Self::Unreachable { .. } | Self::Refused { .. } | Self::NoneUsable(_) | Self::Lost(_))
    }

    /// Of one address its own; of several all, in an order that does not change from try to try.
    fn of_all(mut errors: Vec<Self>) -> Self {
        errors.sort_by_cached_key(Self::to_string);
        match errors.pop() {
            Some(only) if errors.is_empty() => only,
            last => {
                errors.extend(last);
                Self::NoneUsable(errors)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_never_show_the_password() {
        let settings = Settings {
            uri: "amqp://guest:hunter2@127.0.0.1:5672/%2f".into(),
            hosts: Vec::new(),
            ca_file: None,
            client: None,
            declare: false,
            invites: vec!["ringcast.invites".into()],
            results_exchange: "ringcast.results".into(),
            live: false,
            prefetch: 500,
            consumer_priority: 0,
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
