//! TLS to the broker: it works, and where it cannot work there is nothing in its place.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::apple::Apple;
use crate::broker::Broker;
use crate::certificate;
use crate::client::{self, Outgoing};
use crate::contract::check_outcome;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{now, written};
use crate::vhost::{NO_BROKER, list};
use crate::worker::{Config, READY_WITHIN, Worker};

/// The type octet of a TLS handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

#[tokio::test]
async fn the_worker_talks_to_the_broker_over_tls() {
    let place = Place::new("amqps");
    let tls = certificate::make(&place, "right");
    let broker = match Broker::start_with_tls(&tls).await {
        Ok(broker) => broker.expect(NO_BROKER),
        Err(error) => panic!("{error}"),
    };
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &broker.uri_tls("%2f").expect("it was started with TLS"));
    config.path("amqp", "ca_file", &tls.ca_file);
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;

    let connections = list(&broker, "/", "list_connections", &["ssl", "port"]).await;
    assert!(!connections.is_empty(), "the worker is connected");
    for connection in &connections {
        assert_eq!(connection["ssl"], true, "in {connections:?}");
    }

    let invite = json!({
        "call_id": "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a",
        "app": "acme",
        "deadline": written(now() + Duration::from_mins(1)),
        "devices": [{ "token": "ab01" }],
    });
    let message = Outgoing { body: invite.to_string().into_bytes(), ..Outgoing::default() };
    client::publish(&broker.uri(), "ringcast.invites", &[message]).await;
    let outcome = check_outcome(&client::read(&broker.uri(), "ringcast.outcomes", 1, READY_WITHIN).await[0]);
    assert_eq!(outcome["result"], "accepted");
    worker.stop().await;

    // Another authority's certificate is trusted by nobody here.
    let stranger = certificate::make(&place, "stranger");
    config.path("amqp", "ca_file", &stranger.ca_file);
    let mut refused = Worker::start(&place, &config, "refused");
    let reasons = unready_over(&mut refused, "certificate").await;
    assert!(reasons.to_lowercase().contains("amqp"), "{reasons}");
    drop(refused);

    // The plain port does not speak TLS.
    config.path("amqp", "ca_file", &tls.ca_file);
    config.text("amqp", "uri", &format!("amqps://guest:guest@localhost:{}/%2f", broker.port()));
    let mut plain = Worker::start(&place, &config, "plain");
    unready_over(&mut plain, "TLS").await;
    // The broker may still know those that spoke TLS.
    let connections = list(&broker, "/", "list_connections", &["ssl", "port"]).await;
    let in_plain_text = connections.iter().any(|connection| connection["ssl"] != true);
    assert!(!in_plain_text, "nothing falls back to plain text: {connections:?}");
}

#[tokio::test]
async fn the_first_byte_to_an_amqps_broker_is_tls() {
    let place = Place::new("amqps-bytes");
    let apple = Apple::start(&place, (0, 0), "").await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("there are free ports");
    let port = listener.local_addr().expect("it is bound").port();
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &format!("amqps://guest:guest@localhost:{port}/%2f"));
    // Every host is a host of the URI's scheme.
    config.set("amqp", "hosts", &format!("[\"127.0.0.1:{port}\"]"));
    let _worker = Worker::start(&place, &config, "worker");
    // Each try is hung up on after its first byte, so that the next one, and a fallback if there were one, follows. A
    // connection that is given up before it said anything says nothing against it.
    let mut spoken = 0;
    while spoken < 8 {
        let (mut stream, _) =
            timeout(READY_WITHIN, listener.accept()).await.expect("the worker keeps trying").unwrap();
        if let Ok(first) =
            timeout(READY_WITHIN, stream.read_u8()).await.expect("whoever connects speaks or leaves")
        {
            assert_eq!(first, TLS_HANDSHAKE, "after {spoken} tries");
            spoken += 1;
        }
    }
}

/// Waits until `/readyz` gives `word` among its reasons.
async fn unready_over(worker: &mut Worker, word: &str) -> String {
    let lower = word.to_lowercase();
    let names = |status: u16, text: &str| status == 503 && text.to_lowercase().contains(&lower);
    worker.await_endpoint("/readyz", READY_WITHIN, names).await
}
