//! Tests of the module above.

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, 0];
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test]
async fn own_frames_go_between_frames_and_never_first() {
    let control = Control::new(100);
    let (near, mut far) = duplex(1 << 16);
    let mut wire = Wire::new(near, control.clone());
    control.announce_limit(1);
    let first = frame(SETTINGS, 0, &[1, 2, 3, 4, 5, 6]);
    wire.write_all(&first[..12]).await.unwrap();
    wire.flush().await.unwrap();
    wire.write_all(&first[12..]).await.unwrap();
    let second = frame(0, 0, b"hello");
    wire.write_all(&second).await.unwrap();
    control.send_go_away(7, 0, b"{}");
    wire.flush().await.unwrap();
    drop(wire);

    let mut seen = Vec::new();
    far.read_to_end(&mut seen).await.unwrap();
    let mut expected = first;
    expected.extend(frame(SETTINGS, 0, &[0, 3, 0, 0, 0, 1]));
    expected.extend(second);
    expected.extend(frame(GOAWAY, 0, &[0, 0, 0, 7, 0, 0, 0, 0, b'{', b'}']));
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn own_acknowledgements_are_kept_from_h2_however_they_are_cut() {
    let control = Control::new(100);
    let (near, mut far) = duplex(1 << 16);
    let mut wire = Wire::new(near, control.clone());
    control.announce_limit(1);
    control.announce_limit(50);
    let preface = [b'P'; PREFACE_BYTES];
    let ack = frame(SETTINGS, ACK, &[]);
    let data = frame(0, 0, b"data");
    let sent = [&preface[..], &ack, &data, &ack, &data, &ack, &data].concat();
    let feed = async {
        for byte in sent {
            far.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(far);
    };
    let mut seen = Vec::new();
    let (read, ()) = tokio::join!(wire.read_to_end(&mut seen), feed);
    read.unwrap();
    assert_eq!(seen, [&preface[..], &ack, &data, &data, &data].concat());
    assert_eq!(control.limit(), 50);
}

#[tokio::test]
async fn deaf_swallows_pings_alone() {
    let control = Control::new(100);
    control.deafen(true);
    let (near, mut far) = duplex(1 << 16);
    let mut wire = Wire::new(near, control);
    let preface = [b'P'; PREFACE_BYTES];
    let (asked, answered) = (frame(PING, 0, &[0; 8]), frame(PING, ACK, &[0; 8]));
    far.write_all(&[&preface[..], &asked, &answered].concat()).await.unwrap();
    drop(far);
    let mut seen = Vec::new();
    wire.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, [&preface[..], &answered].concat());
}

#[tokio::test(start_paused = true)]
async fn frozen_moves_nothing_and_still_notices_the_end() {
    let control = Control::new(100);
    let (near, mut far) = duplex(1 << 16);
    let mut wire = Wire::new(near, control.clone());
    control.freeze(true);
    far.write_all(&[b'P'; PREFACE_BYTES]).await.unwrap();
    let wait = std::time::Duration::from_secs(1);
    let mut buf = [0; 64];
    assert!(tokio::time::timeout(wait, wire.read(&mut buf)).await.is_err());
    assert!(tokio::time::timeout(wait, wire.write(b"x")).await.is_err());
    control.freeze(false);
    assert_eq!(wire.read(&mut buf).await.unwrap(), PREFACE_BYTES);
    control.freeze(true);
    drop(far);
    assert_eq!(wire.read(&mut buf).await.unwrap(), 0);
}
