//! RabbitMQ: moves bytes, knows no invites.

use std::path::PathBuf;

/// What the AMQP rooms are told by the configuration.
#[derive(Clone, Debug)]
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
    /// `amqp.prefetch`: unsettled deliveries at most, 1 to 2000 (quorum queues cap at 2000).
    pub prefetch: u16,
}
