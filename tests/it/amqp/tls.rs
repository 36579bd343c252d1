//! `amqps`: it works, or there is a sentence that names the setting to mend.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use ringcast::amqp::dial::Dialer;
use ringcast::amqp::{ClientFiles, Error, Settings};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{LIMIT, Rig, result, settings};
use crate::broker::{Broker, Tls};
use crate::certificate;
use crate::client_certificate::Authority;
use crate::place::Place;
use crate::plan::now;
use crate::vhost::{NO_BROKER, Vhost};

async fn refusal(settings: &Settings) -> String {
    let dialer = Dialer::new(settings).await.unwrap();
    match dialer.dial("test").await {
        Err(Error::Unreachable { reason, .. } | Error::Refused { reason, .. }) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it connected"),
    }
}

/// What goes wrong, and the sentence for it.
const SENTENCES: [(&str, &str); 6] = [
    ("wrong CA", "comes from a CA that is not trusted here; put that CA's certificate into amqp.ca_file"),
    ("wrong name", "is not for \"127.0.0.2\" but for "),
    ("no client certificate", "set amqp.client_cert_file and amqp.client_key_file"),
    (
        "a stranger's client certificate",
        "refuses the client certificate in amqp.client_cert_file: it does not know its CA",
    ),
    (
        "an expired client certificate",
        "refuses the client certificate in amqp.client_cert_file: it says that it has expired",
    ),
    ("plain port", "no TLS: what answers there does not speak it; give the port for amqps"),
];

/// Files of certificates for all that may go wrong.
struct Files {
    server: Tls,
    clients: Authority,
    right: ClientFiles,
    strange: ClientFiles,
    expired: ClientFiles,
}

impl Files {
    fn new(place: &Place) -> Self {
        let mut server = certificate::make(place, "broker");
        server.demands_certificate = true;
        let clients = Authority::new();
        // What the broker trusts: its own CA, and the clients'.
        let own = std::fs::read_to_string(&server.ca_file).unwrap();
        let mut all = server.clone();
        all.ca_file = place.write("trusted-by-the-broker.pem", own + &clients.pem());
        let write = |name: &str, authority: &Authority, days: i64| {
            let issued = authority.issue("worker", now() - Duration::days(40), now() + Duration::days(days));
            let file = place.write(&format!("{name}.pem"), issued.pem());
            ClientFiles { cert_file: file.clone(), key_file: file }
        };
        let right = write("right", &clients, 40);
        let strange = write("strange", &Authority::named("Strangers"), 40);
        let expired = write("expired", &clients, -1);
        Self { server: all, clients, right, strange, expired }
    }
}

/// `client`: the certificate that is shown.
fn settings_with(uri: String, ca_file: &Path, client: Option<&ClientFiles>) -> Settings {
    Settings { ca_file: Some(ca_file.to_path_buf()), client: client.cloned(), ..settings(uri) }
}

/// A peer that speaks TLS of one version, demands a certificate of its clients, and hangs up on those who pass.
async fn listen(
    files: &Files,
    address: Ipv4Addr,
    version: &'static SupportedProtocolVersion,
) -> (u16, JoinSet<()>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(files.clients.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&files.server.cert_file).unwrap()],
            PrivateKeyDer::from_pem_file(&files.server.key_file).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind((IpAddr::V4(address), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read_u8().await;
            }
        }
    });
    (port, tasks)
}

/// In TLS 1.3 what the peer says of a client certificate comes after the client's handshake; in 1.2 within it.
#[tokio::test]
async fn each_refusal_names_the_setting_to_mend() {
    let place = Place::new("amqp-tls-refusals");
    let files = Files::new(&place);
    let strangers = certificate::make(&place, "strangers").ca_file;
    let ours = &place.path("broker-ca.pem");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (port, _here) = listen(&files, Ipv4Addr::LOCALHOST, version).await;
        let (elsewhere, _there) = listen(&files, Ipv4Addr::new(127, 0, 0, 2), version).await;
        let uri = format!("amqps://u:hunter2@localhost:{port}/v");
        let misnamed = format!("amqps://u:hunter2@127.0.0.2:{elsewhere}/v");
        let cases = [
            settings_with(uri.clone(), &strangers, Some(&files.right)),
            settings_with(misnamed, ours, Some(&files.right)),
            settings_with(uri.clone(), ours, None),
            settings_with(uri.clone(), ours, Some(&files.strange)),
            settings_with(uri.clone(), ours, Some(&files.expired)),
        ];
        for ((case, sentence), settings) in SENTENCES.into_iter().zip(cases) {
            // Which of the two that a hang-up may be comes first is chance; the sentence is not.
            for _ in 0..20 {
                let said = refusal(&settings).await;
                assert!(said.contains(sentence) && !said.contains("hunter2"), "{case}, {version:?}: {said}");
            }
        }
        let said = refusal(&settings_with(uri, ours, Some(&files.right))).await;
        assert!(SENTENCES.iter().all(|(_, sentence)| !said.contains(sentence)), "it is let in: {said}");
    }
}

/// A host that the list adds is not believed under the name of the URI's, nor the other way round.
#[tokio::test]
async fn each_host_is_asked_for_its_own_name() {
    let place = Place::new("amqp-tls-names");
    let files = Files::new(&place);
    let ours = &place.path("broker-ca.pem");
    let (port, _here) = listen(&files, Ipv4Addr::LOCALHOST, &rustls::version::TLS13).await;
    let (elsewhere, _there) = listen(&files, Ipv4Addr::new(127, 0, 0, 2), &rustls::version::TLS13).await;
    let (right, misnamed) = (format!("localhost:{port}"), format!("127.0.0.2:{elsewhere}"));
    for (first, second) in [(&right, &misnamed), (&misnamed, &right)] {
        let mut all = settings_with(format!("amqps://u:p@{first}/v"), ours, Some(&files.right));
        all.hosts = vec![second.clone()];
        let error = Dialer::new(&all).await.unwrap().dial("test").await.err().unwrap();
        let Error::NoneUsable(errors) = error else { panic!("{error:?}") };
        for error in errors.iter().map(Error::to_string) {
            assert_eq!(error.contains(SENTENCES[1].1), error.contains(&misnamed), "{error}");
        }
    }
}

#[tokio::test]
async fn a_certificate_logs_in_where_the_broker_demands_one() {
    let place = Place::new("amqp-external");
    let files = Files::new(&place);
    let broker = Broker::start_with_tls(&files.server).await.unwrap().expect(NO_BROKER);
    let ours = &place.path("broker-ca.pem");
    let by_password = broker.uri_tls("%2f").unwrap();
    let by_certificate = by_password.replace("guest:guest@", "") + "?auth_mechanism=external";

    // A password beside the certificate that lets one in.
    let rig = Rig::start_consuming(settings_with(by_password.clone(), ours, Some(&files.right)), 5).await;
    rig.stop().await;
    for ((case, sentence), client) in
        SENTENCES[2..5].iter().zip([None, Some(&files.strange), Some(&files.expired)])
    {
        let said = refusal(&settings_with(by_password.clone(), ours, client)).await;
        // A busy machine may not hear the reason; the setting is named all the same.
        let unheard = said.contains("reset by peer") && said.contains("amqp.client_cert_file");
        assert!(said.contains(sentence) || unheard, "{case}: {said}");
    }

    let all = settings_with(by_certificate, ours, Some(&files.right));
    let said = refusal(&all).await;
    assert!(said.contains("check that the broker has a user of the name"), "{said}");
    broker.ctl(&["add_user", "worker", "unused"]).await.unwrap();
    broker.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]).await.unwrap();
    let rig = Rig::start_consuming(all, 5).await;
    assert_eq!(rig.outbox.publish(result("r", "outcome.acme")).await, Ok(()));
    // That which declared the topology is closed, and may be listed for a moment still.
    let both = timeout(LIMIT, async {
        loop {
            let users = broker.ctl(&["list_connections", "user", "auth_mechanism", "ssl"]).await.unwrap();
            let ours: Vec<_> = users.lines().filter(|line| line.contains("EXTERNAL")).collect();
            assert!(ours.len() >= 2 && ours.iter().all(|line| *line == "worker\tEXTERNAL\ttrue"), "{users}");
            if ours.len() == 2 {
                return;
            }
        }
    });
    both.await.expect("a worker has two connections");
    rig.stop().await;
}

#[tokio::test]
async fn a_broker_without_the_mechanism_is_told_apart() {
    let place = Place::new("amqp-no-external");
    let files = Files::new(&place);
    let server = certificate::make(&place, "other");
    let broker = Broker::start_with_tls(&server).await.unwrap().expect(NO_BROKER);
    let uri = broker.uri_tls("%2f").unwrap().replace("guest:guest@", "") + "?auth_mechanism=external";
    let said = refusal(&settings_with(uri, &server.ca_file, Some(&files.right))).await;
    assert!(said.contains("rabbitmq_auth_mechanism_ssl"), "{said}");
}

#[tokio::test]
async fn amqps_connects_with_the_right_ca_only() {
    let place = Place::new("amqp-tls");
    let files = certificate::make(&place, "ours");
    let strangers = certificate::make(&place, "strangers");
    let broker = Broker::start_with_tls(&files).await.unwrap().expect(NO_BROKER);
    let mut all = settings(broker.uri_tls("%2f").unwrap());
    all.ca_file = Some(files.ca_file.clone());
    let rig = Rig::start_consuming(all.clone(), 5).await;
    for n in 0..200 {
        assert_eq!(rig.outbox.publish(result(&format!("r-{n}"), "outcome.acme")).await, Ok(()));
    }
    rig.stop().await;
    all.ca_file = Some(strangers.ca_file);
    assert!(refusal(&all).await.contains(SENTENCES[0].1), "{}", refusal(&all).await);
}

#[tokio::test]
async fn amqps_to_the_plain_port_is_refused() {
    let place = Place::new("amqp-plain");
    let files = certificate::make(&place, "ours");
    let vhost = Vhost::new().await;
    let mut all = settings(vhost.uri().replace("amqp://", "amqps://"));
    all.ca_file = Some(files.ca_file);
    let said = refusal(&all).await;
    assert!(said.contains(SENTENCES[5].1), "{said}");
}

#[tokio::test]
async fn what_the_broker_refuses_is_said_without_the_password() {
    let vhost = Vhost::new().await;
    for (uri, word) in [
        (vhost.uri().replace("guest:guest", "guest:hunter2"), "check the user and the password"),
        (vhost.uri().replace("guest:guest", "nobody:hunter2"), "check the user and the password"),
        (format!("{}-not", vhost.uri()), "check the virtual host"),
    ] {
        let error = Dialer::new(&settings(uri)).await.unwrap().dial("test").await.err().unwrap();
        assert!(matches!(error, Error::Refused { .. }) && error.is_unavailable(), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(word) && !text.contains("hunter2"), "{text}");
    }
}
