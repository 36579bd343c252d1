//! Stream limits that change while the connection lives.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{TOKEN, World};
use crate::simulator::{ConnectAction, ConnectFault, DeviceState, Fault, Order, When};

#[tokio::test(start_paused = true)]
async fn one_stream_until_a_valid_token_was_answered() {
    let world = World::with(|options| options.one_stream_first = true);
    let mut client = world.connect().await;
    assert!(client.ping().await);
    assert_eq!(client.http2.current_max_send_streams(), 1);
    assert_eq!(client.outcome(TOKEN).await, "200");
    assert!(client.ping().await);
    assert_eq!(client.http2.current_max_send_streams(), 1000);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_token_opens_nothing() {
    let world = World::with(|options| options.one_stream_first = true);
    let mut client = world.connect().await;
    client.authorization = "bearer rubbish".into();
    assert_eq!(client.outcome(TOKEN).await, r#"403 {"reason":"InvalidProviderToken"}"#);
    assert!(client.ping().await);
    assert_eq!(client.http2.current_max_send_streams(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_closes_all_streams_but_one_until_the_next_success() {
    let world = World::with(|options| {
        options.one_stream_after_rejection = true;
        options.max_concurrent_streams = 500;
    });
    world.simulator.devices().set("aa01", DeviceState::Unknown);
    world.simulator.devices().set("aa02", DeviceState::Unregistered { since_ms: 1 });
    let mut client = world.connect().await;
    for (token, limit) in [(TOKEN, 500), ("aa02", 500), ("aa01", 1), ("aa02", 1), (TOKEN, 500), ("aa01", 1)] {
        client.push(token).await.unwrap();
        assert!(client.ping().await);
        assert_eq!(client.http2.current_max_send_streams(), limit, "after {token}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_leaves_what_is_in_flight() {
    let world = World::with(|options| options.one_stream_after_rejection = true);
    world.simulator.devices().set("aa01", DeviceState::Unknown);
    world.simulator.faults().add(Fault::latency(Duration::from_secs(5), Duration::from_secs(5)).prefix("bb"));
    let mut client = world.connect().await;
    let requests = ["bb01", "bb02", "bb03"].map(|token| client.request(token));
    let slow = requests.map(|request| tokio::spawn(client.start(request, "{}")));
    world.simulator.journal().wait_for(3).await;
    client.push("aa01").await.unwrap();
    assert!(client.ping().await, "the lower limit is acknowledged");
    // What was in flight stays and is answered.
    for answer in slow {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
    assert!(client.ping().await);
    assert_eq!(client.http2.current_max_send_streams(), 1000, "a success opens it again");
}

/// A client that heeds no limit: the `h2` client would queue, so this one writes its own frames. It opens streams 1 and 3
/// and gives the first frame that `wanted` names, and the limits it was told before.
async fn exceed(world: &World, wanted: u8) -> (Vec<u8>, Vec<u8>) {
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream];
        bytes.extend_from_slice(payload);
        bytes
    }
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let serve = world.simulator.serve(far);
    let converse = async {
        let (settings, ack) = (frame(4, 0, 0, &[]), frame(4, 1, 0, &[]));
        // POST https://a/, headers complete, body still to come.
        let open = |stream| frame(1, 4, stream, &[0x83, 0x87, 0x84, 0x41, 1, b'a']);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let sent = [preface, settings, ack.clone(), ack, open(1), open(3)].concat();
        near.write_all(&sent).await.unwrap();
        let mut limits = Vec::new();
        loop {
            let mut header = [0; 9];
            near.read_exact(&mut header).await.unwrap();
            let mut payload = vec![0; usize::from(header[2])];
            near.read_exact(&mut payload).await.unwrap();
            if header[3] == wanted {
                return ([vec![header[8]], payload].concat(), limits);
            } else if header[3] == 4 {
                limits.extend(payload.chunks(6).filter(|entry| entry[1] == 3).map(|entry| entry[5]));
            }
        }
    };
    tokio::select! {
        biased;
        seen = converse => seen,
        () = serve => panic!("the server left"),
    }
}

#[tokio::test(start_paused = true)]
async fn streams_above_the_limit_are_refused_unprocessed() {
    let world = World::with(|options| options.one_stream_first = true);
    let (reset, limits) = exceed(&world, 3).await;
    assert_eq!(reset, [3, 0, 0, 0, 7], "stream 3, REFUSED_STREAM");
    assert_eq!(limits, [0xe8, 1], "1000, then 1");
    let records = world.simulator.journal().records();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.stream, record.fault, record.processed), (3, Some("stream limit"), false));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_exceeds_the_limit_can_be_sent_away() {
    let world = World::with(|options| {
        options.one_stream_first = true;
        options.go_away_on_excess = true;
    });
    let (go_away, _) = exceed(&world, 7).await;
    assert_eq!(go_away[..9], [0, 0, 0, 0, 0, 0, 0, 0, 7], "nothing was processed; code 7");
    assert_eq!(&go_away[9..], b"Maximum active streams violated for this endpoint.");
}

#[tokio::test(start_paused = true)]
async fn a_limit_can_be_ordered_down_to_nothing_and_up_again() {
    let world = World::with(|options| options.max_concurrent_streams = 100);
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    for (streams, announced) in [(1, 1), (0, 0), (7, 7), (5000, 100)] {
        world.simulator.order(Order::Limit(streams));
        assert!(client.ping().await);
        assert_eq!(client.http2.current_max_send_streams(), announced);
    }
    world.simulator.order(Order::Limit(0));
    assert!(client.ping().await);
    let request = client.request(TOKEN);
    let waiting = tokio::spawn(client.start(request, "{}"));
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(!waiting.is_finished() && world.simulator.journal().count() == 1, "it waits in the client");
    world.simulator.heal();
    assert_eq!(waiting.await.unwrap().unwrap().status, 200);
    assert_eq!(client.http2.current_max_send_streams(), 100);
}

#[tokio::test(start_paused = true)]
async fn an_ordered_limit_stands_beside_the_rule_of_one_stream() {
    let world = World::with(|options| {
        options.one_stream_first = true;
        options.one_stream_after_rejection = true;
    });
    world.simulator.devices().set("aa01", DeviceState::Unknown);
    let mut client = world.connect().await;
    assert!(client.ping().await);
    world.simulator.order(Order::Limit(20));
    for (token, limit) in [("", 1), (TOKEN, 20), ("aa01", 1), (TOKEN, 20)] {
        if !token.is_empty() {
            client.push(token).await.unwrap();
        }
        assert!(client.ping().await);
        assert_eq!(client.http2.current_max_send_streams(), limit, "after {token}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_can_begin_with_its_own_limit() {
    let world = World::new();
    let when = When { count: Some(1), ..When::default() };
    let action = ConnectAction::Limit { streams: 3 };
    world.simulator.faults().add_connect(ConnectFault { when, action });
    let (mut few, mut many) = (world.connect().await, world.connect().await);
    assert!(few.ping().await && many.ping().await);
    assert_eq!((few.http2.current_max_send_streams(), many.http2.current_max_send_streams()), (3, 1000));
}
