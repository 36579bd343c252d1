//! Messages as no careful client writes them.

use ringcast::amqp::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Peer, Rig, settings};
use crate::vhost::start_broker;

fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0, channel], &size[..], payload, &[0xce]].concat()
}

fn method(channel: u8, ids: [u8; 4], arguments: &[u8]) -> Vec<u8> {
    frame(1, channel, &[&ids[..], arguments].concat())
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

/// Reads one frame; the broker sends one answer to each of our questions.
async fn read(stream: &mut TcpStream) {
    let mut prefix = [0; 7];
    stream.read_exact(&mut prefix).await.unwrap();
    let size = u32::from_be_bytes(prefix[3..].try_into().unwrap());
    let mut rest = vec![0; usize::try_from(size).unwrap() + 1];
    stream.read_exact(&mut rest).await.unwrap();
}

/// Publishes one message to `queue` with octets of our choice as `message_id`, as the name of a header, and as the user
/// wants them: there is no client library that would.
async fn publish_raw(port: u16, queue: &str, id: &[u8], body: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    read(&mut stream).await;
    let login = [&[0; 4][..], &short(b"PLAIN"), &[0, 0, 0, 12], b"\0guest\0guest", &short(b"en_US")].concat();
    stream.write_all(&method(0, [0, 10, 0, 11], &login)).await.unwrap();
    read(&mut stream).await;
    stream.write_all(&method(0, [0, 10, 0, 31], &[7, 0xff, 0, 2, 0, 0, 0, 0])).await.unwrap();
    stream.write_all(&method(0, [0, 10, 0, 40], &[&short(b"/")[..], &[0, 0]].concat())).await.unwrap();
    read(&mut stream).await;
    stream.write_all(&method(1, [0, 20, 0, 10], &[0])).await.unwrap();
    read(&mut stream).await;
    stream.write_all(&method(1, [0, 85, 0, 10], &[0])).await.unwrap();
    read(&mut stream).await;
    let publish = [&[0, 0][..], &short(b""), &short(queue.as_bytes()), &[0]].concat();
    let table = [short(id), b"t\x01".to_vec()].concat();
    let header = [
        &[0, 60, 0, 0][..],
        &u64::try_from(body.len()).unwrap().to_be_bytes(),
        &0x3080_u16.to_be_bytes(),
        &u32::try_from(table.len()).unwrap().to_be_bytes(),
        &table,
        &[2],
        &short(id),
    ]
    .concat();
    let message = [method(1, [0, 60, 0, 40], &publish), frame(2, 1, &header), frame(3, 1, body)].concat();
    stream.write_all(&message).await.unwrap();
    // The confirm.
    read(&mut stream).await;
}

#[tokio::test]
async fn a_text_that_is_no_utf8_is_an_odd_value_and_no_lost_connection() {
    let broker = start_broker().await;
    let mut rig = Rig::start_consuming(settings(broker.uri()), 10).await;
    let peer = Peer::new(&broker.uri()).await;
    peer.fill("ringcast.invites", ["before".to_owned()]).await;
    publish_raw(broker.port(), "ringcast.invites", b"\x9f\xff\xfe-id", b"odd").await;
    peer.fill("ringcast.invites", ["after".to_owned()]).await;
    for expected in ["before", "odd", "after"] {
        let delivery = rig.next().await;
        assert_eq!((&delivery.body[..], delivery.redelivered), (expected.as_bytes(), false));
        if expected == "odd" {
            assert_eq!(delivery.properties.message_id.as_deref(), Some("\x1f\x7f~-id"));
        }
        delivery.receipt.ack();
    }
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    assert_eq!(rig.status.state(), State::Consuming);
    rig.stop().await;
}
