//! Certificate authentication: over pipes, and what is read from a real certificate in TLS.

use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::client::{Client, START_S, TOKEN, World};
use super::tls;
use crate::simulator::certificate::Authority;
use crate::simulator::{Certificate, Environment, Identity, Peer};

const APP: &str = "com.acme.voice";

fn certificate() -> Certificate {
    Certificate::new(APP, START_S * 1000)
}

async fn connect(world: &World, certificate: Certificate) -> Client {
    let mut client = world.connect_as(Peer { certificate: Some(certificate), ..Peer::default() }).await;
    client.authorization = "bearer rubbish".into(); // ignored
    client
}

async fn push_to(client: &mut Client, topic: Option<&'static str>) -> String {
    let mut request = client.request(TOKEN);
    match topic {
        Some(topic) => drop(request.headers_mut().insert("apns-topic", topic.parse().unwrap())),
        None => drop(request.headers_mut().remove("apns-topic")),
    }
    let answer = client.start(request, "{}").await.unwrap();
    if answer.status == 200 { "200".into() } else { format!("{} {}", answer.status, answer.reason()) }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_needs_no_provider_token_and_pushes_to_its_topics() {
    let world = World::with(|options| options.one_stream_first = true);
    let mut client = connect(&world, certificate()).await;
    assert!(client.ping().await);
    assert_eq!(client.http2.current_max_send_streams(), 1000, "one stream first is for provider tokens");
    assert_eq!(client.outcome(TOKEN).await, "200");
    for (topic, outcome) in [
        (Some("com.acme.voice.voip"), "200"),
        (Some("com.acme.chat.voip"), "400 TopicDisallowed"),
        (Some("com.acme.voice"), "400 BadTopic"),
        (None, "400 MissingTopic"),
    ] {
        assert_eq!(push_to(&mut client, topic).await, outcome, "{topic:?}");
    }
    let record = &world.simulator.journal().records()[0];
    assert_eq!((record.certificate.as_deref(), &record.authorization), (Some(APP), &None));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_with_one_topic_may_do_without_the_header() {
    let world = World::new();
    let topics = vec!["com.acme.voice.voip".into()];
    let mut client = connect(&world, Certificate { topics, ..certificate() }).await;
    assert_eq!(push_to(&mut client, None).await, "200");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_good_is_refused_with_each_request() {
    let bad = r#"403 {"reason":"BadCertificate"}"#;
    let world = World::new();
    let mut unknown = connect(&world, Certificate { trusted: false, ..certificate() }).await;
    assert_eq!(unknown.outcome(TOKEN).await, bad);
    let mut early = connect(&world, Certificate { not_before_ms: START_S * 1000 + 1, ..certificate() }).await;
    assert_eq!(early.outcome(TOKEN).await, bad);
    let mut client =
        connect(&world, Certificate { not_after_ms: (START_S + 60) * 1000, ..certificate() }).await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(client.outcome(TOKEN).await, bad, "it expires on a live connection");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_the_other_environment_is_sent_away() {
    let world = World::new();
    let of = |environment| Certificate { environment: Some(environment), ..certificate() };
    let mut client = connect(&world, of(Environment::Sandbox)).await;
    let error = client.push(TOKEN).await.unwrap_err();
    assert!(error.is_go_away() && error.to_string().contains("BadCertificateEnvironment"), "{error}");
    client.served.take().unwrap().await.unwrap();
    assert_eq!(connect(&world, of(Environment::Production)).await.outcome(TOKEN).await, "200");
}

/// What a certificate says survives its way into DER and back.
#[test]
fn what_is_issued_is_read_again() {
    let identity = Identity::ephemeral().unwrap();
    let authority = Authority::new(Some(identity.client_ca_pem())).unwrap();
    let long =
        "com.acme.a-rather-long-name-of-a-company-and-its-app-that-needs-two-bytes-of-length-in-each-topic";
    for certificate in [
        certificate(),
        Certificate { topics: vec!["com.acme.voice.voip".into()], ..certificate() },
        Certificate { environment: Some(Environment::Sandbox), ..certificate() },
        Certificate { environment: Some(Environment::Production), trusted: false, ..certificate() },
        Certificate { not_before_ms: 1_000_000_000_000, not_after_ms: 1_100_000_000_000, ..certificate() },
        Certificate::new(long, START_S * 1000),
    ] {
        let issued = identity.issue(&certificate).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let now_ms = START_S * 1000;
        assert_eq!(authority.read(std::slice::from_ref(&der), now_ms), Some(certificate.clone()));
        let stranger = Authority::default().read(&[der], now_ms).unwrap();
        assert!(!stranger.trusted, "no authority, no trust");
    }
    assert_eq!(authority.read(&[], 0), None);
    let rubbish = authority.read(&[CertificateDer::from(vec![0x30, 0x03, 1, 2])], 0).unwrap();
    assert!(!rubbish.trusted && rubbish.check(0).is_err());
    assert!(Authority::new(Some("rubbish")).is_err());
}

#[tokio::test]
async fn a_certificate_is_shown_in_tls() {
    let identity = Identity::ephemeral().unwrap();
    let world = World::with(|options| options.client_ca_pem = Some(identity.client_ca_pem().into()));
    let listen = world.simulator.listen("127.0.0.1:0".parse().unwrap(), identity.server_config());
    let listening = listen.await.unwrap();
    let expired = Certificate { not_after_ms: (START_S - 1) * 1000, ..certificate() };
    let unknown = Certificate { trusted: false, ..certificate() };
    let bad = r#"403 {"reason":"BadCertificate"}"#;
    for (certificate, outcome) in [(certificate(), "200"), (expired, bad), (unknown, bad)] {
        let issued = identity.issue(&certificate).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let stream =
            tls::connect_as(listening.local_addr(), &identity, "localhost", &["h2"], Some((chain, key)));
        let mut client = Client::handshake(stream.await.unwrap(), "rubbish".into()).await.unwrap();
        assert_eq!(client.outcome(TOKEN).await, outcome);
    }
    assert_eq!(world.simulator.journal().records()[0].certificate.as_deref(), Some(APP));
    listening.shutdown().await;
}
