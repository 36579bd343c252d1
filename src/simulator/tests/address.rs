//! Several addresses of one simulator, which fail one by one.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::client::{Client, TOKEN, World};
use crate::simulator::{Address, ConnectAction, ConnectFault, Fault, Order, Peer, Target, When};

const MINUTE: Duration = Duration::from_mins(1);

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([17, 188, 0, number], 443))
}

async fn connect(world: &World, number: u8) -> Client {
    let client = world.connect_as(Peer::at(address(number))).await;
    tokio::task::yield_now().await; // so that it has arrived
    client
}

async fn is_silent(client: &mut Client) -> bool {
    timeout(MINUTE, client.push(TOKEN)).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_one_address_leaves_the_others_alone() {
    let world = World::new();
    let (mut one, mut two) = (connect(&world, 1).await, connect(&world, 2).await);
    world.simulator.faults().add(Fault::answer(503, "ServiceUnavailable").address(address(2)).prefix("aa"));
    assert_eq!(one.outcome("aa01").await, "200");
    assert_eq!(two.outcome("aa01").await, r#"503 {"reason":"ServiceUnavailable"}"#);
    assert_eq!(two.outcome("bb01").await, "200", "per token and per address");
    let addresses: Vec<_> = world.simulator.journal().records().iter().map(|record| record.address).collect();
    assert_eq!(addresses, [Some(address(1)), Some(address(2)), Some(address(2))]);
    let line = serde_json::to_value(&world.simulator.journal().records()[0]).unwrap();
    assert_eq!(line["address"], "17.188.0.1:443");
}

#[tokio::test(start_paused = true)]
async fn an_address_has_a_number_too_and_a_pipe_has_no_address() {
    let world = World::new();
    world.simulator.faults().add(Fault::answer(500, "InternalServerError").address(2));
    let (mut one, mut two) = (connect(&world, 7).await, connect(&world, 5).await);
    let mut nowhere = world.connect().await;
    assert_eq!(one.outcome(TOKEN).await, "200");
    assert_eq!(two.outcome(TOKEN).await, r#"500 {"reason":"InternalServerError"}"#);
    assert_eq!(nowhere.outcome(TOKEN).await, "200");
    assert_eq!(world.simulator.journal().records()[2].address, None);
}

#[tokio::test(start_paused = true)]
async fn new_connections_of_one_address_can_be_refused() {
    let world = World::new();
    let when = When { address: Some(address(2).into()), count: Some(1), ..When::default() };
    world.simulator.faults().add_connect(ConnectFault { when, action: ConnectAction::Refuse });
    assert_eq!(connect(&world, 1).await.outcome(TOKEN).await, "200");
    assert!(connect(&world, 2).await.push(TOKEN).await.is_err());
    assert_eq!(connect(&world, 2).await.outcome(TOKEN).await, "200", "counted where it is meant");
}

#[tokio::test(start_paused = true)]
async fn an_address_goes_silent_and_recovers() {
    let world = World::new();
    let (mut one, mut two) = (connect(&world, 1).await, connect(&world, 2).await);
    assert_eq!(two.outcome(TOKEN).await, "200");
    let there = Target::Address(Address::Socket(address(2)));
    world.simulator.order_to(there, Order::Silence);
    assert!(is_silent(&mut two).await);
    assert!(!two.ping().await);
    let mut late = connect(&world, 2).await;
    assert!(is_silent(&mut late).await, "accepted, and then nothing");
    assert_eq!(one.outcome(TOKEN).await, "200");

    world.simulator.heal_at(Target::Address(2.into()));
    assert_eq!(two.outcome(TOKEN).await, "200", "it lives on");
    assert!(late.push(TOKEN).await.is_err(), "it was never served");
    assert_eq!(connect(&world, 2).await.outcome(TOKEN).await, "200");
}

#[tokio::test(start_paused = true)]
async fn orders_reach_one_connection_or_one_address() {
    let world = World::new();
    let (mut one, mut two, mut three) =
        (connect(&world, 1).await, connect(&world, 2).await, connect(&world, 2).await);
    world.simulator.order_to(Target::Connection(2), Order::Freeze);
    assert!(is_silent(&mut two).await);
    assert_eq!(three.outcome(TOKEN).await, "200");
    world.simulator.order_to(Target::Connection(3), Order::Deafen);
    assert!(!three.ping().await);
    assert_eq!(three.outcome(TOKEN).await, "200", "deaf to PINGs alone");
    world.simulator.heal_at(Target::Connection(2));
    assert_eq!(two.outcome(TOKEN).await, "200");
    assert!(!three.ping().await, "still deaf");
    world.simulator.order_to(Target::Address(address(2).into()), Order::Close);
    assert!(two.push(TOKEN).await.is_err() && three.push(TOKEN).await.is_err());
    assert_eq!(one.outcome(TOKEN).await, "200");
}

#[tokio::test(start_paused = true)]
async fn healing_an_address_leaves_the_faults_of_others() {
    let world = World::new();
    let faults = world.simulator.faults();
    faults.add(Fault::answer(500, "InternalServerError").address(address(1)));
    faults.add(Fault::answer(503, "ServiceUnavailable").address(2));
    faults.add(Fault::answer(502, "Anywhere").token("aa01"));
    let (mut one, mut two) = (connect(&world, 1).await, connect(&world, 2).await);
    world.simulator.heal_at(Target::Address(address(2).into()));
    assert_eq!(one.outcome(TOKEN).await, r#"500 {"reason":"InternalServerError"}"#);
    assert_eq!(two.outcome(TOKEN).await, "200");
    assert_eq!(two.outcome("aa01").await, r#"502 {"reason":"Anywhere"}"#);
    world.simulator.heal();
    assert_eq!(one.outcome("aa01").await, "200");
}

/// A connection that PONGs and never answers, as APNs has been seen to do at some addresses.
#[tokio::test(start_paused = true)]
async fn mute_answers_pings_alone() {
    let world = World::new();
    let (mut one, mut two) = (connect(&world, 1).await, connect(&world, 2).await);
    assert_eq!(two.outcome(TOKEN).await, "200");
    world.simulator.faults().add(Fault::silence(false).address(address(2)));
    world.simulator.faults().add(Fault::silence(false).connection(1));
    for client in [&mut one, &mut two] {
        assert!(is_silent(client).await);
        assert!(client.ping().await);
    }
}
