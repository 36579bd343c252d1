//! Traces on their way to a collector, by OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! Stories come through a channel that never makes the worker wait. They are turned into spans, encoded and posted on a thread of
//! its own, some at a time. What the collector does not take is kept and posted again, while new stories find less and less
//! room: those are left out and counted. Nothing here is ever waited for by a call.
//!
//! Messages are encoded by prost, posted by hyper and protected by rustls. Ours is which spans there are, and that nobody waits;
//! OpenTelemetry's own exporter would bring ten crates more.

mod export;
mod post;
mod proto;
mod spans;
mod tls;

use std::path::PathBuf;

use http::HeaderMap;

pub use export::{Exporter, SetupError, start};
pub use tls::RootError;

/// `[traces]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the collector is; `None`: nothing is recorded.
    pub endpoint: Option<Endpoint>,
    /// Certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Headers of every request, marked as secret.
    pub headers: HeaderMap,
    /// Of the invites that are part of no trace, so many begin one; 0 to 1.
    pub sample_ratio: f64,
    /// `service.name`.
    pub service_name: String,
}

/// Where spans are posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https`.
    pub is_tls: bool,
    /// A name or an address, an IPv6 one without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Host and port as they were written.
    pub authority: String,
    /// With its first slash.
    pub path: String,
}
