//! Apple's side of APNs, to be wrong against: a server that answers `voip` pushes by Apple's rules, on real TLS and real
//! HTTP/2, and misbehaves where it is told to.
//!
//! It was written from Apple's pages alone and shares nothing with the worker, so that a misreading on one side shows
//! on the other. The rooms:
//!
//! - [`rules`]: one request, judged purely; [`provider_token`]: who may push on which connection; [`devices`]: which
//!   device tokens are live;
//! - [`faults`]: what happens instead of the honest answer, and [`script`]: the same from a TOML file;
//! - [`journal`]: what was seen, and whether the phone would have rung;
//! - [`identity`]: throw-away certificates and signing key; [`listener`]: sockets and TLS; `connection`: HTTP/2 over
//!   any transport; `wire`: frames that the `h2` crate does not send by itself.
//!
//! ```no_run
//! use ringcast::simulator::{Identity, Options, Simulator};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::ephemeral()?;
//! let simulator = Simulator::new(Options::new(identity.verifying_key()))?;
//! let listening = simulator.listen("127.0.0.1:0".parse()?, identity.server_config()).await?;
//! println!("https://{}", listening.local_addr());
//! simulator.journal().wait_for(1).await;
//! listening.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! **Simulations** call [`Simulator::serve`] over an in-memory pipe on a paused clock: it spawns nothing, waits by
//! tokio's clock alone, and draws everything random from [`Options::seed`], so that a run can be repeated.
//!
//! **Stream limits** are Apple's: the limit starts at one where [`Options::one_stream_first`] says so, and rises once
//! a request with a valid provider token was answered; with [`Options::one_stream_after_rejection`] every 400 and 403
//! lowers it to one until the next 200. A stream above the limit that the client has acknowledged is reset with
//! `REFUSED_STREAM`.
//!
//! **What a connection remembers**: team and key of its first push, the provider token and since when, and whether
//! it is wedged ([`provider_token`]).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

pub mod certificate;
mod chance;
mod connection;
pub mod devices;
pub mod faults;
pub mod identity;
pub mod journal;
pub mod listener;
pub mod order;
pub mod peer;
pub mod provider_token;
pub mod rules;
pub mod script;
#[cfg(test)]
mod tests;
pub mod wall;
mod wire;

pub use certificate::Certificate;
pub use devices::{DeviceState, Devices};
pub use faults::{ConnectAction, ConnectFault, Fault, Faults, GoAway, LastStream, When};
pub use identity::{Identity, VerifyingKey};
pub use journal::{Journal, Record};
pub use listener::Listening;
pub use order::{Order, Target};
pub use peer::{Address, Peer};
pub use provider_token::Credential;
pub use rules::Reason;
pub use script::{Script, Timeline};
pub use wall::WallClock;

use certificate::Authority;
use chance::Chance;
use order::{ORDERS_MAX, Signal};
use peer::{Addresses, Spot};
use provider_token::Keyring;

/// Which of Apple's two worlds this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// `api.push.apple.com`
    Production,
    /// `api.sandbox.push.apple.com`: answers carry `apns-unique-id`.
    Sandbox,
}

/// What a simulator is made of.
#[derive(Clone)]
pub struct Options {
    /// Apple's team id; ten letters or digits.
    pub team_id: String,
    /// The signing key's id; ten letters or digits.
    pub key_id: String,
    /// Checks the signatures of that key.
    pub verifying_key: VerifyingKey,
    /// Further keys that Apple knows: of the same team or of others.
    pub credentials: Vec<Credential>,
    /// Whose signature clients' certificates must have: [`Identity::client_ca_pem`]. `None`: every certificate is
    /// `BadCertificate`.
    pub client_ca_pem: Option<String>,
    /// The one app that may be pushed to; `None`: any.
    pub bundle_id: Option<String>,
    /// Production, unless set.
    pub environment: Environment,
    /// What is said of a key that is for the other environment: `BadEnvironmentKeyIdInToken`, as Apple writes, or
    /// `BadEnvironmentKeyInToken`, as senders have seen on the wire.
    pub other_environment_reason: Reason,
    /// Where everything random comes from.
    pub seed: u64,
    /// The most streams a connection ever allows.
    pub max_concurrent_streams: u32,
    /// One stream until a request with a valid provider token was answered (Apple, "Sending notification requests to
    /// APNs").
    pub one_stream_first: bool,
    /// One stream after every 400 or 403, until the next 200, as senders have seen it.
    pub one_stream_after_rejection: bool,
    /// GOAWAY (`Maximum active streams violated for this endpoint.`, code 7) to a client that opens a stream above the
    /// limit that it has acknowledged, besides refusing the stream.
    pub go_away_on_excess: bool,
    /// GOAWAY after that many `BadDeviceToken` on one connection; `None`: never.
    pub bad_device_tokens_max: Option<u64>,
    /// Records kept in memory; 0: none.
    pub journal_entries_max: usize,
    /// Where all records go, as JSON lines; appended.
    pub journal_file: Option<PathBuf>,
    /// The time of day.
    pub clock: WallClock,
}

impl Options {
    /// The defaults, with all that this identity has made: provider tokens of its key and certificates of its authority
    /// are good.
    pub fn of(identity: &Identity) -> Self {
        let client_ca_pem = Some(identity.client_ca_pem().to_owned());
        Self { client_ca_pem, ..Self::new(identity.verifying_key()) }
    }

    /// The defaults: team `TEAM123456`, key `KEY1234567`, any app, production, 1000 streams, a million records in
    /// memory, the machine's clock.
    pub fn new(verifying_key: VerifyingKey) -> Self {
        Self {
            team_id: "TEAM123456".into(),
            key_id: "KEY1234567".into(),
            verifying_key,
            credentials: Vec::new(),
            client_ca_pem: None,
            bundle_id: None,
            environment: Environment::Production,
            other_environment_reason: Reason::BadEnvironmentKeyIdInToken,
            seed: 0,
            max_concurrent_streams: 1000,
            one_stream_first: false,
            one_stream_after_rejection: false,
            go_away_on_excess: false,
            bad_device_tokens_max: None,
            journal_entries_max: 1_000_000,
            journal_file: None,
            clock: wall::real(),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("team_id", &self.team_id)
            .field("key_id", &self.key_id)
            .field("bundle_id", &self.bundle_id)
            .field("environment", &self.environment)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// A handle to one simulated APNs; clones are the same one.
#[derive(Clone)]
pub struct Simulator {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

struct Shared {
    options: Options,
    keyring: Keyring,
    authority: Authority,
    devices: Devices,
    faults: Faults,
    addresses: Addresses,
    journal: Journal,
    chance: Mutex<Chance>,
    signals: broadcast::Sender<Signal>,
    connections: AtomicU64,
    connections_open: AtomicUsize,
}

impl Shared {
    /// Numbers a new connection.
    fn arrive(&self, address: Option<SocketAddr>) -> Spot {
        let connection = self.connections.fetch_add(1, Relaxed) + 1;
        Spot { connection, address: address.map(|socket| self.addresses.number(socket)) }
    }
}

impl Simulator {
    /// Fails only where the journal's file cannot be opened, or [`Options::client_ca_pem`] is no certificate.
    pub fn new(options: Options) -> io::Result<Self> {
        let first = Credential::new(&options.team_id, &options.key_id, options.verifying_key.clone());
        let mut credentials = vec![first];
        credentials.extend(options.credentials.iter().cloned());
        let shared = Shared {
            keyring: Keyring::new(options.environment, options.other_environment_reason, credentials),
            authority: Authority::new(options.client_ca_pem.as_deref()).map_err(io::Error::other)?,
            devices: Devices::default(),
            faults: Faults::default(),
            addresses: Addresses::default(),
            journal: Journal::open(options.journal_entries_max, options.journal_file.as_deref())?,
            chance: Mutex::new(Chance::new(options.seed)),
            signals: broadcast::channel(ORDERS_MAX).0,
            connections: AtomicU64::new(0),
            connections_open: AtomicUsize::new(0),
            options,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Serves one connection until it ends. `io` is what is left after TLS, or any other pipe. Spawns nothing; to drop
    /// the future is to drop the connection.
    pub async fn serve<IO>(&self, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_peer(io, Peer::default()).await;
    }

    /// The same for a connection that came to `address`.
    pub async fn serve_at<IO>(&self, io: IO, address: SocketAddr)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_peer(io, Peer::at(address)).await;
    }

    /// The same with all that is known of the other end.
    pub async fn serve_peer<IO>(&self, io: IO, peer: Peer)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let spot = self.shared.arrive(peer.address);
        let struck = self.shared.faults.strike_connect(spot, &self.shared.chance);
        connection::serve(&self.shared, io, spot, peer.certificate, struck, std::future::pending()).await;
    }

    /// Binds `addr` and serves it with TLS in the background, until [`Listening::shutdown`] or its drop. Each call is an
    /// [`Address`] of its own.
    pub async fn listen(&self, addr: SocketAddr, tls: Arc<ServerConfig>) -> io::Result<Listening> {
        Listening::bind(self.clone(), addr, tls).await
    }

    /// Which device tokens are live.
    pub fn devices(&self) -> &Devices {
        &self.shared.devices
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// What was seen.
    pub fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// Lets Apple know one more key, from now on. It may have the id of another: both are good then.
    pub fn trust(&self, credential: Credential) {
        self.shared.keyring.trust(credential);
    }

    /// Makes Apple forget all keys with this id, on live connections, too: from now on they are
    /// `InvalidProviderToken`. False when there was none.
    pub fn revoke(&self, key_id: &str) -> bool {
        self.shared.keyring.revoke(key_id)
    }

    /// Connections served right now.
    pub fn connections_open(&self) -> usize {
        self.shared.connections_open.load(Relaxed)
    }

    /// Connections ever served, refused ones included.
    pub fn connections_total(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }
}
