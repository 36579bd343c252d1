//! A script that takes its time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::client::{Client, START_S, TOKEN, World};
use crate::simulator::{Peer, Script};

const SECOND: Duration = Duration::from_secs(1);
const UNAVAILABLE: &str = r#"503 {"reason":"ServiceUnavailable"}"#;

async fn connect(world: &World, number: u8) -> Client {
    let client = world.connect_as(Peer::at(SocketAddr::from(([127, 0, 0, number], 2197)))).await;
    tokio::task::yield_now().await; // so that it has arrived
    client
}

fn play(world: &World, text: &str) {
    let script = Script::parse_with(text, |_| Ok(world.verifying_key())).unwrap();
    tokio::spawn(world.simulator.apply(script).play());
}

async fn answers(client: &mut Client) -> bool {
    timeout(SECOND / 2, client.push(TOKEN)).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_whole_incident_and_its_healing_are_one_script() {
    let world = World::new();
    let (mut one, mut two) = (connect(&world, 1).await, connect(&world, 2).await);
    play(
        &world,
        r#"
        [[order]]
        at = "10s"
        do = "silence"
        address = "127.0.0.2:2197"

        [[fault]]
        from = "12s"
        until = "22s"
        address = 1
        do = "answer"
        status = 503
        reason = "ServiceUnavailable"

        [[order]]
        at = "20s"
        do = "heal"
        address = 2
        "#,
    );
    assert!(answers(&mut one).await && answers(&mut two).await);
    sleep(SECOND * 11).await;
    assert_eq!(one.outcome(TOKEN).await, "200");
    assert!(!answers(&mut two).await);
    sleep(SECOND).await;
    assert_eq!(one.outcome(TOKEN).await, UNAVAILABLE);
    assert!(!answers(&mut connect(&world, 2).await).await);
    sleep(SECOND * 8).await;
    assert_eq!(two.outcome(TOKEN).await, "200", "healed");
    assert_eq!(one.outcome(TOKEN).await, UNAVAILABLE, "the other address is not");
    sleep(SECOND * 2).await;
    assert_eq!(one.outcome(TOKEN).await, "200", "it was to last until then");
}

#[tokio::test(start_paused = true)]
async fn limits_devices_and_keys_change_by_the_clock() {
    let world = World::new();
    play(
        &world,
        r#"
        [[connect]]
        until = "1s"
        do = "refuse"

        [[order]]
        at = "3s"
        do = "limit"
        streams = 1

        [[order]]
        at = "5s"
        do = "heal"

        [[device]]
        token = "aa01"
        state = "unknown"
        at = "7s"

        [[key]]
        key_id = "KEY7654321"
        team_id = "TEAM123456"
        from = "9s"

        [[order]]
        at = "11s"
        do = "revoke"
        key_id = "KEY1234567"
        "#,
    );
    assert!(world.connect().await.push(TOKEN).await.is_err(), "from the very beginning");
    sleep(SECOND * 2).await;
    let mut client = world.connect().await;
    for (limit, token, outcome) in [
        (1000, TOKEN, "200"),
        (1, TOKEN, "200"),
        (1000, "aa01", "200"),
        (1000, "aa01", r#"400 {"reason":"BadDeviceToken"}"#),
        (1000, TOKEN, "200"),
        (1000, TOKEN, r#"403 {"reason":"InvalidProviderToken"}"#),
    ] {
        assert!(client.ping().await);
        assert_eq!(client.http2.current_max_send_streams(), limit);
        assert_eq!(client.outcome(token).await, outcome);
        sleep(SECOND * 2).await;
    }
    let mut other = world.connect().await;
    other.authorization = world.authorization("TEAM123456", "KEY7654321", START_S);
    assert_eq!(other.outcome(TOKEN).await, "200");
}
