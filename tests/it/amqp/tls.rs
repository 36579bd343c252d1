//! `amqps`.

use ringcast::amqp::dial::Dialer;
use ringcast::amqp::{Error, Settings};

use super::{Rig, result, settings};
use crate::broker::Broker;
use crate::certificate;
use crate::place::Place;
use crate::vhost::{NO_BROKER, Vhost};

async fn refusal(settings: &Settings) -> String {
    let dialer = Dialer::new(settings).await.unwrap();
    match dialer.dial("test").await {
        Err(Error::Unreachable { reason, .. }) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it connected"),
    }
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
    assert!(refusal(&all).await.contains("UnknownIssuer"), "{}", refusal(&all).await);
    all.ca_file = Some(files.ca_file);
    all.uri = all.uri.replace("localhost", "127.0.0.2");
    let reason = refusal(&all).await;
    assert!(
        reason.contains("NotValidForName")
            || reason.contains("not valid for name")
            || reason.contains("refused"),
        "{reason}"
    );
}

#[tokio::test]
async fn amqps_to_the_plain_port_is_refused() {
    let place = Place::new("amqp-plain");
    let files = certificate::make(&place, "ours");
    let vhost = Vhost::new().await;
    let mut all = settings(vhost.uri().replace("amqp://", "amqps://"));
    all.ca_file = Some(files.ca_file);
    assert!(refusal(&all).await.starts_with("no TLS"));
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
