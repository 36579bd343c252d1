//! A connection to the broker: DNS, TCP, TLS and the AMQP handshake under one limit, and an end that is certain.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_rs::Runtime;
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::describe::{describe, reply_code};
use super::limit::{GOODBYE, ask, is_answer};
use super::socket::{Carrier, KillSwitch, Kit, Socket};
use super::uri::Endpoint;
use super::{Error, Settings};

/// From the name to an open AMQP connection.
const DIAL: Duration = Duration::from_secs(10);

/// What all connections of one session are made from.
pub struct Dialer {
    endpoint: Endpoint,
    tls: Option<TlsConnector>,
    limit: Duration,
}

impl Dialer {
    /// Reads the URI and, for `amqps`, the trusted certificates: the machine's own and those of `ca_file`. Made anew for
    /// each session, so that replaced files are read again.
    pub async fn new(settings: &Settings) -> Result<Self, Error> {
        let endpoint = Endpoint::parse(&settings.uri)
            .map_err(|what| Error::Configuration(format!("amqp.uri is wrong: {what}")))?;
        let mut tls = None;
        if endpoint.is_tls() {
            tls = Some(TlsConnector::from(Arc::new(trust(settings.ca_file.clone()).await?)));
        }
        Ok(Self { endpoint, tls, limit: DIAL })
    }

    /// Opens a connection that the broker lists under `name`, within 10 s.
    pub async fn dial(&self, name: &str) -> Result<Link, Error> {
        // Fired when this future is dropped, too.
        let fuse = Fuse(KillSwitch::default());
        let until = Instant::now() + self.limit;
        let handshake = async {
            let socket = Socket::new(self.reach(until).await?, fuse.0.clone());
            self.open(socket, name).await
        };
        match timeout_at(until, handshake).await {
            Ok(connection) => Ok(Link { connection: connection?, fuse, endpoint: self.endpoint.to_string() }),
            Err(_) => {
                Err(self.unreachable(format!("no answer as from an AMQP broker within {:?}", self.limit)))
            }
        }
    }

    async fn reach(&self, until: Instant) -> Result<Carrier, Error> {
        let endpoint = &self.endpoint;
        let stream = connect(endpoint.host(), endpoint.port(), until)
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        // Without it a small frame may wait for the answer to the one before.
        stream.set_nodelay(true).map_err(|error| self.unreachable(error.to_string()))?;
        let Some(tls) = &self.tls else { return Ok(Carrier::Plain(stream)) };
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|_| {
            Error::Configuration("amqp.uri is wrong: its host cannot stand in a certificate".to_owned())
        })?;
        let stream = tls.connect(name, stream).await.map_err(|error| {
            self.unreachable(format!(
                "no TLS: {error} (is this the port for amqps, and is its CA in amqp.ca_file?)"
            ))
        })?;
        Ok(Carrier::Tls(Box::new(stream)))
    }

    async fn open(&self, socket: Socket, name: &str) -> Result<Connection, Error> {
        let handed_over = Mutex::new(Some(socket));
        let connect = async move |_, _| {
            mute_this_thread();
            let socket = handed_over.lock().take();
            // Asked again, the library has lost the first stream: this dial is over.
            socket
                .map(AsyncTcpStream::Plain)
                .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset).into())
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "ringcast".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        Connection::connector(self.endpoint.uri(), Runtime::new(Kit::current()), connect, properties)
            .await
            .map_err(|error| self.refusal(&error))
    }

    fn refusal(&self, error: &lapin::Error) -> Error {
        let said = describe(error);
        let reason = match reply_code(error) {
            Some(403) => {
                format!("{said} (check the user and the password, and the user's rights to the virtual host)")
            }
            Some(530) => format!("{said} (check the virtual host at the end of the URI)"),
            _ => said,
        };
        if is_answer(error) {
            Error::Refused { endpoint: self.endpoint.to_string(), reason }
        } else if matches!(error.kind(), ErrorKind::ParsingError(_)) {
            self.unreachable(
                "what answers there is no AMQP broker (or it speaks TLS: then write amqps)".to_owned(),
            )
        } else {
            self.unreachable(reason)
        }
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { endpoint: self.endpoint.to_string(), reason }
    }
}

/// One open connection. Dropped, its socket is dead and the client library's thread ends.
pub struct Link {
    connection: Connection,
    #[expect(dead_code, reason = "its drop is what counts")]
    fuse: Fuse,
    endpoint: String,
}

impl Link {
    /// Scheme, host and port.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The connection itself.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A new channel.
    pub async fn channel(&self) -> Result<Channel, Error> {
        ask("opening a channel", self.connection.create_channel()).await.map_err(Error::Lost)
    }

    /// Says goodbye to the broker, within 2 s.
    pub async fn close(self) {
        // An error or silence: the kill switch, fired by the drop, ends it all the same.
        let _ = timeout(GOODBYE, self.connection.close(200, "OK".into())).await;
    }
}

/// Fires its switch when dropped.
struct Fuse(KillSwitch);

impl Drop for Fuse {
    fn drop(&mut self) {
        self.0.fire();
    }
}

/// Silences the client library's own thread. It logs a returned message whole, with the device tokens in it, and
/// every error besides, which reaches us as a value and is logged once, by us.
fn mute_this_thread() {
    // The guard would bring the old subscriber back; the thread has no other work, and ends with the connection.
    std::mem::forget(tracing::dispatcher::set_default(&tracing::Dispatch::none()));
}

/// Tries every address of the host, each with its share of the time.
async fn connect(host: &str, port: u16, until: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = until.saturating_duration_since(Instant::now()) / left;
        last = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer to the TCP connect"),
        };
    }
    Err(last)
}

/// Which certificates to believe. Reads files, so it runs where blocking is allowed.
async fn trust(ca_file: Option<PathBuf>) -> Result<ClientConfig, Error> {
    tokio::task::spawn_blocking(move || read_trust(ca_file.as_deref())).await.unwrap_or_else(|died| {
        Err(Error::Configuration(format!("the trusted certificates cannot be read: {died}")))
    })
}

fn read_trust(ca_file: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let wrong = |what: String| Error::Configuration(format!("amqp.ca_file {} {what}", file.display()));
        let certificates = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if certificates.is_empty() {
            return Err(wrong("holds no certificate".to_owned()));
        }
        for certificate in certificates {
            roots
                .add(certificate)
                .map_err(|error| wrong(format!("holds a certificate that is none: {error}")))?;
        }
    }
    if roots.is_empty() {
        return Err(Error::Configuration(
            "no trusted certificates: the machine has none; set amqp.ca_file to the broker's CA".to_owned(),
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    fn settings(uri: String, ca_file: Option<PathBuf>) -> Settings {
        Settings {
            uri,
            ca_file,
            declare: false,
            invites: vec!["q".into()],
            results_exchange: "x".into(),
            live: false,
            prefetch: 1,
        }
    }

    fn io_threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks
            .filter(|task| {
                std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().starts_with("lapin-io")
            })
            .count()
    }

    #[tokio::test]
    async fn a_refused_port_and_a_wrong_uri_are_told_apart() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let dialer =
            Dialer::new(&settings(format!("amqp://u:hunter2@127.0.0.1:{port}/v"), None)).await.unwrap();
        let error = dialer.dial("test").await.err().unwrap();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.is_unavailable() && !error.to_string().contains("hunter2"), "{error}");
        let error = Dialer::new(&settings("amqp:hunter2".into(), None)).await.err().unwrap();
        assert!(matches!(&error, Error::Configuration(what) if !what.contains("hunter2")), "{error:?}");
    }

    #[tokio::test]
    async fn a_missing_ca_file_is_named() {
        let file = PathBuf::from("/nonexistent/ca.pem");
        let error = Dialer::new(&settings("amqps://h/v".into(), Some(file))).await.err().unwrap();
        assert!(error.to_string().contains("amqp.ca_file /nonexistent/ca.pem"), "{error}");
    }

    #[tokio::test]
    async fn a_peer_that_never_answers_costs_the_limit_and_no_thread() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let hold = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        let mut dialer =
            Dialer::new(&settings(format!("amqp://u:p@127.0.0.1:{port}/v"), None)).await.unwrap();
        dialer.limit = Duration::from_millis(300);
        let dials = futures_util::future::join_all((0..5).map(|_| dialer.dial("test")));
        let dials = timeout(DIAL, dials).await.expect("the limit ends each of them");
        assert!(dials.iter().all(|dial| matches!(dial, Err(Error::Unreachable { .. }))));
        timeout(DIAL, async {
            while io_threads() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the threads of the given-up connections end");
        hold.abort();
    }

    #[tokio::test]
    async fn amqps_never_speaks_plain_text() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let first_bytes = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes).await.unwrap();
            bytes
        });
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = std::env::temp_dir().join(format!("ringcast-dial-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let ca_file = folder.join("ca.pem");
        let pem = p256::pkcs8::der::pem::encode_string(
            "CERTIFICATE",
            p256::pkcs8::LineEnding::LF,
            certificate.cert.der(),
        );
        std::fs::write(&ca_file, pem.unwrap()).unwrap();
        let uri = format!("amqps://u:hunter2@localhost:{port}/v");
        let dialer = Dialer::new(&settings(uri, Some(ca_file))).await.unwrap();
        let error = dialer.dial("test").await.err().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(
            matches!(&error, Error::Unreachable { reason, .. } if reason.starts_with("no TLS")),
            "{error:?}"
        );
        let bytes = first_bytes.await.unwrap();
        assert_eq!(bytes[0], 22, "a TLS handshake record and not an AMQP header: {bytes:?}");
    }
}
