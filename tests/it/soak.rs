//! Calls, one after another, while everything goes wrong at the broker's edge that can: an account is drawn up at the end.
//!
//! Two workers answer a steady tide of calls over a real broker. At random moments the broker is stopped, killed, closes
//! connections, raises a memory alarm, loses the outcomes' binding, cancels a consumer; workers are killed and stopped. The
//! same comes to a cluster of three, one node at a time. Then all of it heals, and nothing may be missing, rung late, or rung
//! twice without a reason that the contract knows: an attempt that was not answered, a worker or a connection that was lost between
//! the two (`losses.rs`), or an invite that was published twice.
//!
//! Every kind of trouble comes at least once. `SOAK_SECONDS` makes it longer, `SOAK_SEED` repeats one: the same faults in the
//! same order, though not at the same instants.

mod account;
mod drain;
mod fault;
mod losses;
mod tide;
mod watch;

use std::time::Duration;

use ringcast::pause::Jitter;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::apple::Apple;
use crate::cluster::Cluster;
use crate::load::declare;
use crate::place::Place;
use crate::plan::read_all;
use crate::tally::tally;
use crate::vhost::start_broker;
use crate::worker::Config;

use account::Account;
use drain::{all_in, await_drained};
use fault::{Site, Town, Trouble};
use tide::Tide;
use watch::Watch;

/// How long things go wrong, at least: each kind of trouble comes once.
const SECONDS: u64 = 45;
/// Of the invites queues, the one that is deleted and made again.
const SPARE: &str = "ringcast.invites.spare";
const INVITES: &str = "ringcast.invites";
const WORKERS: [&str; 2] = ["first", "second"];

#[tokio::test]
async fn calls_outlive_every_trouble_of_a_broker() {
    soak("soak", Site::Alone(Box::new(start_broker().await))).await;
}

#[tokio::test]
async fn calls_outlive_the_loss_of_one_node_after_another() {
    soak("cluster", Site::Cluster(Box::new(Cluster::start().await))).await;
}

async fn soak(name: &str, mut site: Site) {
    let seed = number_from("SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let seconds = number_from("SOAK_SECONDS").unwrap_or(SECONDS);
    tally(format_args!("{name}: {seconds} s of trouble, SOAK_SEED={seed}"));
    let dice = |salt| Jitter::seeded(seed ^ salt);
    let place = Place::new(name);
    let apple = Apple::start(&place, (5, 60), tide::SILENCE).await;
    let configs = WORKERS.map(|worker| config(&site, &apple, worker));
    declare(&place, &configs[0]).await;
    site.await_whole().await;
    let mut watch = Watch::start(&place, &configs).await;

    let tide = Mutex::new(Tide::start(&place, &site.uris(), dice(1)));
    let until = Instant::now() + Duration::from_secs(seconds);
    let over = tokio::sync::watch::Sender::new(false);
    let mut trouble = Trouble::new(dice(2));
    tokio::join!(
        async {
            trouble.make(&mut site, &tide, Town { place: &place, config: &configs[0] }, until).await;
            over.send_replace(true);
        },
        tide::flow(&tide, over.subscribe()),
        watch.disturb(dice(3), over.subscribe()),
    );
    println!("{name}: the trouble is over");
    let calls = tide.into_inner().end().await;
    watch.assert_disturbed();

    site.await_whole().await;
    watch.await_ready().await;
    let mut losses = await_drained(&mut site, &watch).await;
    watch.stop().await;
    let uri = site.uris()[0].clone();
    for queue in [INVITES, SPARE, "ringcast.expired", "ringcast.dead", "ringcast.quarantined-tokens"] {
        assert_eq!(all_in(site.node(), queue).await, 0, "nothing is left in {queue}");
    }
    let outcomes = read_all(&uri, "ringcast.outcomes").await;
    let events = read_all(&uri, "ringcast.invalid-tokens").await;
    for queue in ["ringcast.outcomes", "ringcast.invalid-tokens"] {
        assert_eq!(all_in(site.node(), queue).await, 0, "all of {queue} was read");
    }
    losses.extend(trouble.losses());
    losses.extend(watch.losses());
    let account = Account::of(&calls, &outcomes, &events, &apple.stop().await, &losses);
    tally(format_args!("{name}: broker: {trouble}; workers: {watch}\n{account}"));
    account.judge();
}

fn config(site: &Site, apple: &Apple, worker: &str) -> Config {
    let mut config = Config::new(apple);
    let hosts = site.hosts();
    config
        .text("amqp", "uri", &site.uris()[0])
        .set("amqp", "hosts", &format!("{:?}", &hosts[1..]))
        .set("amqp", "invites", &format!("[{INVITES:?}, {SPARE:?}]"))
        .set("amqp", "prefetch", "100")
        .text("worker", "name", worker)
        .text("worker", "shutdown_grace", "6s");
    config
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number, not {text:?}")))
}
