//! Apple's side of the road: connections to APNs, and one request on them.

mod address;
mod circuit;
mod connection;
mod credential;
pub mod dial;
mod gateway;
mod goaway;
mod keeper;
mod liveness;
mod opening;
mod pool;
mod pools;
pub mod provider_token;
pub mod proxy;
mod quarantine;
pub mod request;
mod response;
mod rotation;
mod slot;
mod table;
pub mod tls;
mod trouble;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

pub use credential::{CertificateError, ClientCertificate, Credential, ProviderKey};
pub use pools::{Apns, PoolState, SetupError};

use crate::domain::app::Environment;
use proxy::Proxy;

/// What the APNs rooms are told by the configuration (`[apns]` and the apps' credentials).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where each environment is, by [`Environment::index`].
    pub endpoints: [Endpoint; 2],
    /// `apns.ca_file`: an extra trust root beside the system's.
    pub ca_file: Option<PathBuf>,
    /// `apns.proxy`: what every connection goes through, if anything.
    pub proxy: Option<Proxy>,
    /// `apns.connections` to `apns.connections_max`: how few and how many a pool may have, 1 to 64.
    pub connections: RangeInclusive<usize>,
    /// `apns.request_timeout`: how long one attempt may stay unanswered.
    pub request_timeout: Duration,
    /// Which credential each app uses in each environment: `credentials[app.index][environment.index()]`.
    pub credentials: Vec<[Credential; 2]>,
}

/// `https://host:port`, resolved anew at each dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A DNS name or an IP address (an IPv6 one without brackets).
    pub host: String,
    /// 443 unless said otherwise.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(formatter, "[{host}]:{port}")
        } else {
            write!(formatter, "{host}:{port}")
        }
    }
}

impl Settings {
    /// Where an environment is.
    pub fn endpoint(&self, environment: Environment) -> &Endpoint {
        &self.endpoints[environment.index()]
    }
}
