//! Several hosts: one that works is found whatever the others do, and when none does, each says why.

use std::net::Ipv4Addr;

use ringcast::amqp::{Error, State, dial::Dialer, supervisor};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{LIMIT, Peer, Rig, settings};
use crate::vhost::{Vhost, start_broker};

/// A port on loopback that takes connections and answers with `answer`, then says nothing more.
async fn answers(answer: &'static [u8], tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(answer).await;
            held.push(stream);
        }
    });
    address
}

/// A port on loopback at which nobody listens.
async fn closed() -> String {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn one_that_works_is_found_behind_silent_closed_and_foreign_ones() {
    let mut tasks = JoinSet::new();
    let silent = answers(b"", &mut tasks).await;
    let foreign = answers(b"HTTP/1.1 400 Bad Request\r\n\r\n", &mut tasks).await;
    let vhost = Vhost::new().await;
    let works = vhost.uri().split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    // The URI's own host is as good or bad as any other. `declare` and `check` go the same way.
    let mut all = settings(vhost.uri().replace(&works, &silent));
    all.hosts = vec![closed().await, foreign, silent.clone(), works];
    let mut rig = Rig::start_consuming(all.clone(), 5).await;
    assert!(supervisor::check(&all).await.unwrap().needed.is_empty());
    Peer::new(&vhost.uri()).await.fill("ringcast.invites", ["one".to_owned()]).await;
    rig.next().await.receipt.ack();
    rig.stop().await;
}

#[tokio::test]
async fn when_none_works_each_says_why() {
    let mut tasks = JoinSet::new();
    let (closed, silent) = (closed().await, answers(b"", &mut tasks).await);
    let foreign = answers(b"HTTP/1.1 400 Bad Request\r\n\r\n", &mut tasks).await;
    let vhost = Vhost::new().await;
    let mut all = settings(vhost.uri().replace("guest:guest", "guest:hunter2"));
    all.hosts = vec![closed.clone(), foreign.clone(), silent.clone()];
    let error = timeout(LIMIT, Dialer::new(&all).await.unwrap().dial("test")).await.unwrap().err().unwrap();
    assert!(matches!(&error, Error::NoneUsable(each) if each.len() == 4), "{error:?}");
    assert!(error.is_unavailable());
    let text = error.to_string();
    for (host, reason) in [
        (closed, "cannot be reached: Connection refused"),
        (foreign, "cannot be reached: what answers there is no AMQP broker"),
        (silent, "cannot be reached: no answer as from an AMQP broker within"),
    ] {
        assert!(text.contains(&format!("the broker at amqp://{host} {reason}")), "{host}: {text}");
    }
    assert!(text.contains("refuses us") && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_host_that_is_gone_is_left_for_another() {
    let (one, other) = (start_broker().await, start_broker().await);
    supervisor::declare(&settings(one.uri())).await.unwrap();
    supervisor::declare(&settings(other.uri())).await.unwrap();
    let mut all = settings(one.uri());
    all.hosts = vec![format!("127.0.0.1:{}", other.port())];
    let mut rig = Rig::start(all, 5);
    rig.await_consuming().await;
    // Wherever it began: it ends up where there is still a broker.
    let lost = rig.await_state(|state| matches!(state, State::NotConsuming { .. }));
    let at_one = one.ctl(&["list_connections", "name"]).await.unwrap().contains("->");
    let (mut gone, stays) = if at_one { (one, other) } else { (other, one) };
    gone.kill().unwrap();
    lost.await;
    rig.await_consuming().await;
    Peer::new(&stays.uri()).await.fill("ringcast.invites", ["one".to_owned()]).await;
    rig.next().await.receipt.ack();
    rig.stop().await;
}
