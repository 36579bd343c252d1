//! Workers are replaced one by one, and their number follows the load, as Kubernetes does it: no call is lost, none rings twice,
//! none is late.

use std::time::Duration;

use crate::apple::Apple;
use crate::fleet::{Fleet, Span};
use crate::place::Place;
use crate::plan::{milliseconds, now};
use crate::vhost::Vhost;
use crate::worker::Config;

/// For how long a call rings: one that waited longer would be `expired`, and the judge would say so.
const RINGS_FOR: Duration = Duration::from_mins(1);

#[tokio::test]
async fn workers_are_replaced_one_by_one_and_every_call_rings_once() {
    let (place, vhost) = (Place::new("rollout"), Vhost::new().await);
    // Long enough that each worker is in the middle of something when it is told to stop.
    let apple = Apple::start(&place, (50, 150), "").await;
    let mut fleet = Fleet::new(place, vhost.uri(), apple, |_| {}).await;
    let mut load = fleet.load(61, Duration::from_millis(5), RINGS_FOR);
    let replaced = load
        .during(async {
            fleet.grow(3).await;
            fleet.await_all_at_work().await;
            let mut replaced = Vec::new();
            for _ in 0..2 {
                let from = milliseconds(now());
                fleet.replace().await;
                replaced.push(from..milliseconds(now()));
            }
            fleet.await_all_at_work().await;
            replaced
        })
        .await;
    let plan = load.end().await;
    let account = fleet.settle(&plan).await;
    println!("{:?}", account.verdict);
    for while_replaced in replaced {
        let rang = account.accepted.iter().filter(|span| while_replaced.contains(&span.called_ms)).count();
        assert!(rang > 0, "calls came all the time");
    }
    let in_time = |span: &Span| span.took_ms < i64::try_from(RINGS_FOR.as_millis()).expect("a minute");
    assert!(account.accepted.iter().all(in_time), "each device was reached while its call rang");
    assert!(account.settled.iter().all(in_time), "and the caller's side could be told");
}

/// An answer takes so long, and a connection so few at a time, that two workers cannot keep up with the load, and six can.
const NARROW: &str = "[[connect]]\ndo = \"limit\"\nstreams = 20\n";
const STREAMS: usize = 20;

#[tokio::test]
async fn workers_join_and_leave_in_numbers_and_every_call_rings_once() {
    let (place, vhost) = (Place::new("scale"), Vhost::new().await);
    let apple = Apple::start(&place, (200, 200), NARROW).await;
    let settings = |config: &mut Config| {
        config
            .set("apns", "connections", "1")
            .set("apns", "connections_max", "1")
            .set("amqp", "prefetch", "60");
    };
    let mut fleet = Fleet::new(place, vhost.uri(), apple, settings).await;
    let mut load = fleet.load(62, Duration::from_millis(10), Duration::from_mins(4));
    load.call(500).await;
    load.during(async {
        fleet.grow(2).await;
        fleet.await_all_at_work().await;
        assert!(fleet.waiting().await > 0, "two workers have more than they can take");
        fleet.grow(4).await;
        fleet.await_all_at_work().await;
    })
    .await;
    // Six take what comes, and nothing may wait any more. So many at once keep even them for seconds.
    load.call(1_000).await;
    load.during(async {
        fleet.await_waiting(300).await;
        // Each in the middle of what it begun, and with more that waits for a stream.
        fleet.shrink(4).await;
    })
    .await;
    let plan = load.end().await;
    let account = fleet.settle(&plan).await;
    println!("{:?}", account.verdict);
    let changed_hands = account.accepted.iter().filter(|span| span.changed_hands).count();
    assert!(
        changed_hands > 4 * STREAMS,
        "what waited for a stream went back, and rang elsewhere: {changed_hands}"
    );
}
