//! Client certificates in place of provider tokens: an authority that issues them, and an APNs that demands one.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use ringcast::simulator::{Certificate, Identity, Options, Simulator};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::certificate;
use crate::credential::{answers, invite, start_pipe};
use crate::place::Place;
use crate::process::{POLL_EVERY, run_ringcast};
use crate::worker::{Config, GRACE, READY_WITHIN};

/// Who signs clients' certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Issued {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    pub(crate) not_after: OffsetDateTime,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("Ringcast tests, clients")
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        ca.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key can be made");
        Self(CertifiedIssuer::self_signed(ca, key).expect("a certificate can be signed"))
    }

    /// Its own certificate, for those who trust it.
    pub(crate) fn pem(&self) -> String {
        certificate::pem("CERTIFICATE", self.0.der())
    }

    /// `name`: the common name.
    pub(crate) fn issue(&self, name: &str, begin: OffsetDateTime, end: OffsetDateTime) -> Issued {
        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, name);
        (client.not_before, client.not_after) = (begin, end);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = client.signed_by(&key, &self.0).expect("a certificate can be signed").der().clone();
        Issued { certificate, key, not_after: end }
    }
}

impl Issued {
    /// Both in one file.
    pub(crate) fn pem(&self) -> String {
        certificate::pem("CERTIFICATE", &self.certificate)
            + &certificate::pem("PRIVATE KEY", self.key.serialized_der())
    }
}

/// What one request was like.
#[derive(Clone, Debug)]
struct Seen {
    certificate: CertificateDer<'static>,
    topic: String,
    has_authorization: bool,
}

/// A server that takes no connection without a certificate of the authority, and answers every push 200.
struct Apple {
    seen: Arc<Mutex<Vec<Seen>>>,
    url: String,
    _tasks: JoinSet<()>,
}

impl Apple {
    async fn start(place: &Place, authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).expect("a sound authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let identity = certificate::make(place, "server");
        let chain = CertificateDer::pem_file_iter(&identity.cert_file).expect("a file");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier.build().expect("a root"))
            .with_single_cert(
                chain.collect::<Result<_, _>>().expect("PEM"),
                PrivateKeyDer::from_pem_file(&identity.key_file).expect("PEM"),
            )
            .expect("a sound identity");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let url = format!("https://localhost:{}", listener.local_addr().expect("it is bound").port());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), Arc::clone(&seen)));
        Self { seen, url, _tasks: tasks }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, tls.clone(), Arc::clone(&seen)));
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, seen: Arc<Mutex<Vec<Seen>>>) {
    // A client that fails here shows on its own side.
    let Ok(stream) = tls.accept(stream).await else { return };
    let shown = stream.get_ref().1.peer_certificates().expect("it was demanded");
    let certificate = shown[0].clone().into_owned();
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let headers = request.headers();
        seen.lock().push(Seen {
            certificate: certificate.clone(),
            topic: headers["apns-topic"].to_str().expect("a topic").to_owned(),
            has_authorization: headers.contains_key("authorization"),
        });
        let answer = http::Response::builder().status(200).body(()).expect("a status");
        // The client may have gone.
        let _ = respond.send_response(answer, true).map(|mut stream| stream.send_data(Bytes::new(), true));
    }
}

#[tokio::test]
async fn an_app_with_a_certificate_shows_it_and_sends_no_token() {
    let (place, authority) = (Place::new("client-certificate"), Authority::new());
    let apple = Apple::start(&place, &authority).await;
    let (begin, end) =
        (crate::plan::now() - time::Duration::DAY, crate::plan::now() + 100 * time::Duration::DAY);
    let [one, renewed, other] = ["acme", "acme", "zeta"].map(|name| authority.issue(name, begin, end));
    let mut config = Config::bare();
    config
        .text("amqp", "uri", "amqp://guest:guest@127.0.0.1:9/%2f")
        .text("apns", "production", &apple.url)
        .text("apns", "sandbox", &apple.url)
        .text("apns", "reload_interval", "100ms")
        .path("apns", "ca_file", &place.path("server-ca.pem"));
    for (app, issued) in [("acme", &one), ("zeta", &other)] {
        let file = place.write(&format!("{app}.pem"), issued.pem());
        let auth = format!("apps.{app}.auth");
        config.text(&format!("apps.{app}"), "bundle_id", &format!("com.{app}.voice"));
        config.path(&auth, "cert_file", &file).path(&auth, "key_file", &file);
    }
    let mut pipe = start_pipe(&place, &config.write(&place, "pipe.toml"));
    for number in 0..20 {
        let app = if number % 2 == 0 { "acme" } else { "zeta" };
        pipe.write(invite(number, app, &format!("ab{number:08x}")).as_bytes()).await;
    }
    let until = tokio::time::Instant::now() + READY_WITHIN;
    let await_seen = async |pipe: &mut crate::process::Process, what: &dyn Fn(&[Seen]) -> bool| {
        while !what(&apple.seen()) {
            assert!(tokio::time::Instant::now() < until && pipe.lives(), "{}", pipe.last_words());
            tokio::time::sleep(POLL_EVERY).await;
        }
    };
    await_seen(&mut pipe, &|seen| seen.len() == 20).await;

    // Renewed in place: written beside it, then moved over it.
    let beside = place.write("acme.pem.new", renewed.pem());
    std::fs::rename(beside, place.path("acme.pem")).expect("a file can be moved");
    let taken = |line: &&str| line.contains("a new credential is in use") && line.contains("production");
    pipe.says("that it was taken over", READY_WITHIN, |log| log.lines().find(taken).map(drop)).await;
    for number in 20..40 {
        pipe.write(invite(number, "acme", &format!("ab{number:08x}")).as_bytes()).await;
    }
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());

    let (outcomes, _) = answers(&pipe);
    assert_eq!(outcomes.len(), 40);
    assert!(outcomes.iter().all(|outcome| outcome["result"] == "accepted"), "{}", pipe.last_words());
    let seen = apple.seen();
    assert!(seen.iter().all(|push| !push.has_authorization), "a certificate needs no token");
    for (place, push) in seen.iter().enumerate() {
        let expected = match push.topic.as_str() {
            "com.zeta.voice.voip" => &other,
            "com.acme.voice.voip" if place < 20 => &one,
            "com.acme.voice.voip" => &renewed,
            topic => panic!("{topic}"),
        };
        assert_eq!(push.certificate, expected.certificate, "{}, push {place}", push.topic);
    }
}

/// The simulator's reading of Apple's certificates against the worker's: what one writes the other reads.
#[tokio::test]
async fn a_certificate_as_apple_issues_it_is_for_its_own_app() {
    let place = Place::new("apples-certificate");
    let identity = Identity::ephemeral().expect("an identity can be made");
    let simulator = Simulator::new(Options::of(&identity)).expect("no file, no failure");
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let listening = simulator.listen(address, identity.server_config()).await.expect("a free port");
    let url = format!("https://localhost:{}", listening.local_addr().port());
    let now_ms = u64::try_from(crate::plan::now().unix_timestamp()).expect("after 1970") * 1000;
    let issued = identity.issue(&Certificate::new("com.acme.voice", now_ms)).expect("a certificate");
    let file = place.write("voip.pem", issued.certificate_pem + &issued.key_pem);
    let mut config = Config::bare();
    config
        .text("amqp", "uri", "amqp://guest:guest@127.0.0.1:9/%2f")
        .text("apns", "production", &url)
        .path("apns", "ca_file", &place.write("ca.pem", identity.ca_pem()))
        .text("apps.acme", "bundle_id", "com.acme.voice")
        .path("apps.acme.auth", "cert_file", &file)
        .path("apps.acme.auth", "key_file", &file);
    let right = config.write(&place, "right.toml");
    let mut pipe = start_pipe(&place, &right);
    pipe.write(invite(1, "acme", "ab01").as_bytes()).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());
    assert_eq!(answers(&pipe).0[0]["result"], "accepted", "{}", pipe.last_words());
    let records = simulator.journal().records();
    assert_eq!(records[0].certificate.as_deref(), Some("com.acme.voice"));
    assert!(records.iter().all(|record| record.authorization.is_none()));

    let check = async |file: &std::path::Path| {
        let file = file.to_str().expect("the test's paths are UTF-8");
        run_ringcast(&["check", "--config", file], &[], place.as_ref()).await
    };
    let ended = check(&right).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("certificate ") && ended.stdout.contains("valid until"),
        "{}",
        ended.stdout
    );
    // Another app's certificate would be refused push by push.
    config.text("apps.acme", "bundle_id", "com.acme.chat");
    let ended = check(&config.write(&place, "wrong.toml")).await;
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    for word in ["apps.acme.auth.cert_file (", "com.acme.chat.voip", "com.acme.voice.voip", "bundle_id"] {
        assert!(ended.stderr.contains(word), "{word} in {}", ended.stderr);
    }
}
