//! A connection to the broker: DNS, TCP, TLS and the AMQP handshake within limits, and an end that is certain.
//!
//! A cluster has several hosts, and a host's name several addresses. They are tried in turn, each from TCP to the end of the
//! AMQP handshake: a silent one gets its `HEAD_START` and then company, so that neither it nor a slow name server uses up
//! the time of the others, and a slow one, as after a restart of everything, still has the whole `LIMIT`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_rs::Runtime;
use futures_util::FutureExt;
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind};
use parking_lot::Mutex;
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::describe::{describe, reply_code};
use super::host::{Host, Turn, Turns, race};
use super::limit::{GOODBYE, ask, is_answer};
use super::socket::{Carrier, Held, KillSwitch, Kit, Socket};
use super::uri::Endpoint;
use super::{Error, Settings, tls};

/// For one address, from its name to an open AMQP connection.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a host or address that says nothing is alone, before the next one is tried beside it. Each needs some ten round
/// trips, so this is beyond what a healthy one takes across a continent.
const HEAD_START: Duration = Duration::from_secs(1);
/// How long nothing is written after a handshake of TLS 1.3. What the broker says of the client certificate comes then, and it
/// may be lost where it hangs up on what is written already.
const VERDICT: Duration = Duration::from_millis(100);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// What all connections of one session are made from.
pub struct Dialer {
    endpoint: Endpoint,
    hosts: Vec<Host>,
    tls: Option<TlsConnector>,
    /// Whether TLS shows a client certificate.
    shows_certificate: bool,
    turns: Turns,
    limit: Duration,
}

impl Dialer {
    /// Reads the URI, the further hosts and, for `amqps`, the files of certificates. Made anew for each session, so that
    /// replaced files are read again.
    pub async fn new(settings: &Settings) -> Result<Self, Error> {
        let endpoint = Endpoint::parse(&settings.uri)
            .map_err(|what| Error::Configuration(format!("amqp.uri {what}")))?;
        let mut hosts = vec![endpoint.host()];
        for (text, number) in settings.hosts.iter().zip(1..) {
            // Not shown: people write a login where it does not belong.
            let host = Host::parse(text, endpoint.port())
                .map_err(|what| Error::Configuration(format!("amqp.hosts: entry {number} {what}")))?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let tls = if endpoint.is_tls() { Some(tls::connector(settings).await?) } else { None };
        let shows_certificate = settings.client.is_some();
        Ok(Self { endpoint, hosts, tls, shows_certificate, turns: Turns::default(), limit: LIMIT })
    }

    /// The same with somebody's memory of whose turn it is.
    #[must_use]
    pub(super) fn taking_turns(self, turns: &Turns) -> Self {
        Self { turns: turns.clone(), ..self }
    }

    /// Opens a connection that the broker lists under `name`. The limit is 10 s where the broker has one address; each further
    /// host or address may add one.
    pub async fn dial(&self, name: &str) -> Result<Link, Error> {
        let hosts = self.turns.order(&self.hosts).into_iter();
        let tries: Vec<_> = hosts.map(|host| self.dial_host(host, name).boxed()).collect();
        race(tries, HEAD_START).await.map_err(|errors| Error::of_all(errors.into_iter().flatten().collect()))
    }

    async fn dial_host(&self, host: &Host, name: &str) -> Result<Link, Vec<Error>> {
        let turn = self.turns.begin(host);
        let until = Instant::now() + self.limit;
        let place = Place { endpoint: self.endpoint.at(host), host };
        let addresses = self.look_up(&place, until).await.map_err(|error| vec![error])?;
        let several = addresses.len() > 1;
        let tries = self.turns.order(addresses).into_iter().zip(0..).map(|(address, before)| {
            let mut place = place.clone();
            if several {
                place.endpoint = format!("{} ({})", place.endpoint, address.ip());
            }
            self.dial_address(place, address, until + HEAD_START * before, name).boxed()
        });
        let tries: Vec<_> = tries.collect();
        let (connection, fuse, of_address) = race(tries, HEAD_START).await?;
        Ok(Link { connection, fuse, endpoint: place.endpoint, turns: [turn, of_address] })
    }

    async fn look_up(&self, place: &Place<'_>, until: Instant) -> Result<Vec<SocketAddr>, Error> {
        let Host { name, port } = place.host;
        let found = timeout_at(until, lookup_host((name.as_str(), *port))).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(place.unreachable(error.to_string())),
            Err(_) => return Err(place.unreachable(format!("no answer from DNS within {:?}", self.limit))),
        };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(place.unreachable("its name has no address".to_owned()));
        }
        Ok(addresses)
    }

    async fn dial_address(
        &self,
        place: Place<'_>,
        address: SocketAddr,
        until: Instant,
        name: &str,
    ) -> Result<(Connection, Fuse, Turn), Error> {
        let turn = self.turns.begin(&address);
        // Fired when this future is dropped, too.
        let fuse = Fuse(KillSwitch::default());
        let handshake = async {
            let socket = Socket::new(self.reach(&place, address).await?, fuse.0.clone());
            self.open(&place, socket, name).await
        };
        match timeout_at(until, handshake).await {
            Ok(connection) => Ok((connection?, fuse, turn)),
            Err(_) => {
                Err(place.unreachable(format!("no answer as from an AMQP broker within {:?}", self.limit)))
            }
        }
    }

    async fn reach(&self, place: &Place<'_>, address: SocketAddr) -> Result<Carrier, Error> {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| place.unreachable(error.to_string()))?;
        // Without it a small frame may wait for the answer to the one before.
        stream.set_nodelay(true).map_err(|error| place.unreachable(error.to_string()))?;
        let Some(tls) = &self.tls else { return Ok(Carrier::Plain(stream)) };
        let name = ServerName::try_from(place.host.name.clone()).map_err(|_| {
            Error::Configuration(format!(
                "amqp.uri or amqp.hosts: {} cannot stand in a certificate",
                place.host.name
            ))
        })?;
        let mut stream = tls.connect(name, stream).await.map_err(|error| {
            let explained = tls::explain(&error, self.shows_certificate);
            place.unreachable(
                explained.unwrap_or_else(|| format!("no TLS: {error} (is this the port for amqps?)")),
            )
        })?;
        if stream.get_ref().1.protocol_version() == Some(ProtocolVersion::TLSv1_3)
            && let Ok(Err(refused)) = timeout(VERDICT, stream.fill_buf()).await
        {
            return Err(place.unreachable(self.explain_end(&refused)));
        }
        Ok(Carrier::Tls(Box::new(stream)))
    }

    async fn open(&self, place: &Place<'_>, socket: Socket, name: &str) -> Result<Connection, Error> {
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
            .map_err(|error| self.refusal(place, &error))
    }

    fn refusal(&self, place: &Place<'_>, error: &lapin::Error) -> Error {
        let said = describe(error);
        let login = if self.endpoint.is_external() {
            "check that the broker has a user of the name that it reads from the certificate in amqp.client_cert_file, with rights to the virtual host"
        } else {
            "check the user and the password, and the user's rights to the virtual host"
        };
        let reason = match (reply_code(error), error.kind()) {
            (Some(403), _) => format!("{said} ({login})"),
            (Some(530), _) => format!("{said} (check the virtual host at the end of the URI)"),
            (_, ErrorKind::IOError(error)) => self.explain_end(error),
            (_, ErrorKind::ParsingError(_)) => {
                "what answers there is no AMQP broker (or it speaks TLS: then write amqps)".to_owned()
            }
            _ => said,
        };
        if is_answer(error) {
            Error::Refused { endpoint: place.endpoint.clone(), reason }
        } else {
            place.unreachable(reason)
        }
    }

    /// Why the stream ended before the login: what the broker said in TLS, or what to check where nothing was heard.
    fn explain_end(&self, error: &io::Error) -> String {
        if let Some(explained) = tls::explain(error, self.shows_certificate) {
            return explained;
        }
        let hint = match (&self.tls, self.shows_certificate) {
            // It says nothing to who asks for a mechanism that it does not have.
            (Some(_), true) if self.endpoint.is_external() => {
                " (check that the broker trusts the client certificate in amqp.client_cert_file, that its plugin rabbitmq_auth_mechanism_ssl is on, and EXTERNAL among its auth_mechanisms)"
            }
            (Some(_), true) => {
                " (check that the broker trusts the client certificate in amqp.client_cert_file)"
            }
            (Some(_), false) => {
                " (where the broker demands a client certificate, set amqp.client_cert_file and amqp.client_key_file)"
            }
            (None, _) => "",
        };
        format!("{error}{hint}")
    }
}

/// Where one try goes.
#[derive(Clone)]
struct Place<'a> {
    /// For people.
    endpoint: String,
    host: &'a Host,
}

impl Place<'_> {
    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { endpoint: self.endpoint.clone(), reason }
    }
}

/// One open connection. Dropped, its socket is dead and the client library's thread ends.
pub struct Link {
    connection: Connection,
    fuse: Fuse,
    endpoint: String,
    #[expect(dead_code, reason = "their drop is what counts: the next connection begins elsewhere")]
    turns: [Turn; 2],
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

    /// Holds back what is written until the guard is dropped: what is handed over meanwhile is written together.
    pub(super) fn hold(&self) -> Held<'_> {
        self.fuse.0.hold()
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    fn settings(uri: String, ca_file: Option<PathBuf>) -> Settings {
        Settings {
            uri,
            hosts: Vec::new(),
            ca_file,
            client: None,
            declare: false,
            invites: vec!["q".into()],
            results_exchange: "x".into(),
            live: false,
            prefetch: 1,
            consumer_priority: 0,
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
        let dials = timeout(LIMIT, dials).await.expect("the limit ends each of them");
        assert!(dials.iter().all(|dial| matches!(dial, Err(Error::Unreachable { .. }))));
        timeout(LIMIT, async {
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
