//! A new connection to an endpoint: name, TCP, TLS with ALPN `h2`.
//!
//! What comes out is boxed I/O, so that a simulation can put a pipe in its place.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Endpoint;
use super::goaway;
use super::proxy::ProxyError;
use super::tls::Tls;

/// A stream of bytes, whatever is below.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream of bytes, boxed.
pub type BoxedIo = Box<dyn Io>;

/// Something that is still under way.
pub type Dialling<T> = Pin<Box<dyn Future<Output = Result<T, DialError>> + Send>>;

/// The way to an endpoint, in two steps, so that the pool chooses the address.
pub trait Dialer: Send + Sync {
    /// The endpoint's addresses, looked up anew (Apple, *Sending notification requests to APNs*: an uncached lookup before
    /// each connection). At least one.
    fn resolve(&self) -> Dialling<Vec<SocketAddr>>;

    /// Opens one connection to that address.
    fn connect(&self, address: SocketAddr) -> Dialling<BoxedIo>;
}

/// The way to an endpoint, shared by the pools that take it.
pub type Dial = Arc<dyn Dialer>;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("{host} has no address: {cause}")]
    Name {
        /// The endpoint's host.
        host: String,
        /// What the resolver said.
        cause: io::Error,
    },
    /// The address did not take the connection.
    #[error("{address} cannot be connected: {cause}")]
    Connect {
        /// The address tried.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// TLS failed: wrong certificate, missing root, or no TLS at all.
    #[error("TLS with {host} failed: {cause} (is a root missing? apns.ca_file adds one)")]
    Tls {
        /// The endpoint's host.
        host: String,
        /// What rustls said.
        cause: io::Error,
    },
    /// The peer does not speak HTTP/2. APNs does nothing else.
    #[error("{host} does not speak HTTP/2 (no ALPN h2)")]
    NotHttp2 {
        /// The endpoint's host.
        host: String,
    },
    /// The proxy opens no way to the endpoint.
    #[error("the proxy {proxy} {cause}")]
    Proxy {
        /// Host and port of `apns.proxy`.
        proxy: String,
        /// What went wrong there.
        cause: ProxyError,
    },
    /// A simulated network refused it.
    #[error("the network is down: {0}")]
    Network(String),
}

impl DialError {
    /// For the metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Name { .. } => "name",
            Self::Connect { .. } | Self::Network(_) => "connect",
            Self::Tls { cause, .. } => match tls_error(cause) {
                Some(rustls::Error::InvalidCertificate(_)) => "trust",
                Some(error) if goaway::refuses_certificate(&error.to_string()) => "key",
                Some(_) => "tls",
                // It broke off in the middle of the handshake.
                None => "closed",
            },
            Self::NotHttp2 { .. } => "http2",
            Self::Proxy { .. } => "proxy",
        }
    }
}

/// What TLS itself has to say of a handshake that failed.
fn tls_error(cause: &io::Error) -> Option<&rustls::Error> {
    cause.get_ref()?.downcast_ref()
}

/// The way to an endpoint over TLS.
pub fn tls_dial(endpoint: Endpoint, tls: Arc<Tls>) -> Dial {
    Arc::new(TlsDialer { endpoint, tls })
}

struct TlsDialer {
    endpoint: Endpoint,
    tls: Arc<Tls>,
}

impl Dialer for TlsDialer {
    fn resolve(&self) -> Dialling<Vec<SocketAddr>> {
        let endpoint = self.endpoint.clone();
        Box::pin(async move {
            look_up(&endpoint).await.map_err(|cause| DialError::Name { host: endpoint.host, cause })
        })
    }

    fn connect(&self, address: SocketAddr) -> Dialling<BoxedIo> {
        let (host, config) = (self.endpoint.host.clone(), self.tls.current());
        Box::pin(async move {
            let stream =
                TcpStream::connect(address).await.map_err(|cause| DialError::Connect { address, cause })?;
            // Off is slower and nothing else: not a reason to give the connection up.
            let _ = stream.set_nodelay(true);
            encrypt(&host, config, stream).await
        })
    }
}

/// A place's addresses; at least one.
pub(super) async fn look_up(place: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host((place.host.as_str(), place.port)).await?.collect();
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

/// TLS and ALPN over what leads to `host`, whatever it is.
pub(super) async fn encrypt<T: Io + 'static>(
    host: &str,
    config: Arc<ClientConfig>,
    stream: T,
) -> Result<BoxedIo, DialError> {
    let failed = |cause| DialError::Tls { host: host.to_owned(), cause };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(io::Error::other(error)))?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(failed)?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(DialError::NotHttp2 { host: host.to_owned() });
    }
    Ok(Box::new(Coalesced(stream)))
}

/// Says that it cannot write vectored. h2 then copies small bodies into its buffer and writes many requests at once, in
/// place of one write per request.
struct Coalesced<T>(T);

impl<T: AsyncRead + Unpin> AsyncRead for Coalesced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesced<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[test]
    fn a_handshake_fails_for_trust_for_tls_or_because_the_peer_goes() {
        let label = |cause| DialError::Tls { host: "localhost".into(), cause }.label();
        let distrust = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let alert = rustls::Error::AlertReceived(AlertDescription::HandshakeFailure);
        assert_eq!(label(io::Error::new(io::ErrorKind::InvalidData, distrust)), "trust");
        assert_eq!(label(io::Error::new(io::ErrorKind::InvalidData, alert)), "tls");
        let refused = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        assert_eq!(label(io::Error::new(io::ErrorKind::InvalidData, refused)), "key");
        assert_eq!(label(io::ErrorKind::UnexpectedEof.into()), "closed");
        assert_eq!(label(io::Error::new(io::ErrorKind::ConnectionReset, "gone")), "closed");
    }
}
