//! Random incidents: what a client was told and what the journal says must go together, whatever happens.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::client::{Answer, Client, World};
use crate::simulator::chance::Chance;
use crate::simulator::faults::{Ending, Latency};
use crate::simulator::{Fault, GoAway, LastStream, Order, Peer, Record, Target, When};

const SEEDS: u64 = 60;
const PUSHES: u64 = 60;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One order to somebody.
fn order(chance: &mut Chance) -> (Target, Order) {
    let target = match chance.between(0, 3) {
        0 => Target::Everybody,
        1 => Target::Address(usize::try_from(chance.between(1, 2)).unwrap().into()),
        _ => Target::Connection(chance.between(1, 8)),
    };
    let few = chance.between(0, 5);
    let last_stream = match chance.between(0, 3) {
        0 => LastStream::Newest,
        1 => LastStream::Answered,
        2 => LastStream::Id(u32::try_from(few * 3).unwrap()),
        _ => LastStream::LeaveOut(usize::try_from(few).unwrap()),
    };
    let order = match chance.between(0, 9) {
        0..=4 => Order::GoAway(GoAway { last_stream, then: Ending::Drain, ..GoAway::default() }),
        5 => Order::Limit(u32::try_from(few).unwrap()),
        6 => Order::SlowWindow(Latency { min: ms(1), max: ms(900) }),
        7 => Order::Freeze,
        8 => Order::Silence,
        _ => Order::Deafen,
    };
    (target, order)
}

async fn connect(world: &World, number: u8) -> Client {
    let client = world.connect_as(Peer::at(SocketAddr::from(([17, 188, 0, number], 443)))).await;
    tokio::task::yield_now().await; // so that it has arrived
    client
}

/// Pushes through an incident that ends by healing; each push once, on whatever connection there is.
async fn history(seed: u64) -> (Vec<Option<u16>>, Vec<Record>) {
    let world = World::with(|options| options.seed = seed);
    let mut chance = Chance::new(seed);
    let some = When { probability: 0.6, ..When::default() };
    world.simulator.faults().add(Fault::latency(ms(1), ms(2000)).when(some));
    let (mut clients, mut answers) = (Vec::new(), Vec::new());
    for number in [1, 2, 1, 2] {
        clients.push(connect(&world, number).await);
    }
    for push in 0..PUSHES {
        let at = usize::try_from(chance.between(0, 3)).unwrap();
        if clients[at].ended.is_finished() {
            clients[at] = connect(&world, 1 + u8::try_from(at % 2).unwrap()).await;
        }
        let request = clients[at].request(&format!("aa{push:04}"));
        answers.push(tokio::spawn(clients[at].start(request, "{}")));
        sleep(ms(chance.between(0, 120))).await;
        if chance.hit(0.15) {
            let (target, order) = order(&mut chance);
            world.simulator.order_to(target, order);
        }
    }
    world.simulator.heal();
    let mut told = Vec::new();
    for answer in answers {
        let answer: Result<Answer, h2::Error> =
            timeout(ms(60_000), answer).await.expect("healed: nothing hangs").unwrap();
        told.push(answer.ok().map(|answer| answer.status));
    }
    let mut records = world.simulator.journal().records();
    for record in &mut records {
        // Keys and signatures are drawn anew for each world.
        record.authorization = None;
    }
    (told, records)
}

#[tokio::test(start_paused = true)]
async fn what_was_told_and_what_was_done_go_together() {
    let mut left_out = 0;
    for seed in 0..SEEDS {
        let (told, records) = history(seed).await;
        for (push, told) in told.iter().enumerate() {
            let token = format!("aa{push:04}");
            let rang = records.iter().filter(|record| record.token == token && record.processed).count();
            // Drained and healed: who was not answered was not processed.
            assert_eq!(rang, usize::from(*told == Some(200)), "seed {seed}, push {push}: {told:?}");
        }
        left_out += records.iter().filter(|record| record.fault == Some("goaway")).count();
    }
    assert!(left_out > 50, "GOAWAYs left out {left_out}");
}

#[tokio::test(start_paused = true)]
async fn the_same_incident_has_the_same_history() {
    for seed in [3, 14, 77] {
        assert_eq!(history(seed).await, history(seed).await);
    }
}
