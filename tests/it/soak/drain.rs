//! The end of a soak: the queues run empty.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fault::Site;
use super::losses::Losses;
use super::watch::Watch;
use super::{INVITES, SPARE};
use crate::broker::Broker;
use crate::client;
use crate::process::POLL_EVERY;
use crate::tally::tally;
use crate::vhost::{list, version};

/// What workers take invites from.
const QUEUES: [&str; 3] = [INVITES, SPARE, "ringcast.expired"];
/// How long until all is drained once nothing goes wrong any more: far above the calls' deadlines.
const WITHIN: Duration = Duration::from_mins(2);
/// How long a queue's leader may leave questions open.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);
/// The versions of RabbitMQ that keep invites which the leader counts as delivered, while no channel of any node has them.
const KEEPERS: [&str; 2] = ["3.10.", "4.0."];
/// When invites that no worker has are looked into.
const SUSPICIOUS_AFTER: Duration = Duration::from_secs(20);

/// Waits until the queues are empty and nothing is held: a worker that has just lost its connection holds nothing, and the
/// broker still counts what it held as delivered.
///
/// A delivery that a node was making when it was killed is lost, and RabbitMQ 3.10 makes it again when the same consumer gets its
/// next one; here no more come. 4.0 was seen in the same state once, with a cause that is not known: rabbitmq/rabbitmq-server#15473, which
/// was open in February 2026, reports that state after a queue's leader changed. So where invites stay that no channel has, the nodes are
/// started again, one after the other, as an operator would, and the run says how many invites there were. That excuses the versions of
/// [`KEEPERS`] alone; elsewhere it is a failure.
pub(super) async fn await_drained(site: &mut Site, watch: &Watch<'_>) -> Losses {
    let mut losses = Losses::default();
    let until = Instant::now() + WITHIN;
    let mut suspicious = Instant::now() + SUSPICIOUS_AFTER;
    loop {
        let mut left = 0;
        for queue in QUEUES {
            left += all_in(site.node(), queue).await;
        }
        let unsettled = watch.unsettled().await;
        if left == 0 && unsettled == 0.0 {
            return losses;
        }
        assert!(Instant::now() < until, "{left} invites wait and {unsettled} are unsettled; {}", watch.log());
        if unsettled > 0.0 {
            suspicious = Instant::now() + SUSPICIOUS_AFTER;
        } else if Instant::now() > suspicious {
            let (mut ready, handed_out) = (0, handed_out(site.node()).await);
            for queue in QUEUES {
                ready += client::depth(&site.node().uri(), queue).await;
            }
            assert!(
                ready == 0 && handed_out == 0,
                "of {left} invites {ready} lie ready and {handed_out} are written to workers, which do nothing; {}",
                watch.log()
            );
            let version = version(site.node()).await;
            let told = format!("RabbitMQ {version} kept {left} invites that it gave to nobody");
            assert!(KEEPERS.iter().any(|keeper| version.starts_with(keeper)), "{told}; {}", watch.log());
            tally(told);
            losses.during("nodes started again", start_again(site)).await;
            suspicious = Instant::now() + SUSPICIOUS_AFTER;
        }
        sleep(POLL_EVERY).await;
    }
}

async fn start_again(site: &mut Site) {
    for place in 0..site.nodes().len() {
        let node = &mut site.nodes()[place];
        node.stop().await.expect("the broker stops");
        node.start_again().await.expect("the broker starts again");
        site.await_whole().await;
    }
}

/// How many messages a quorum queue has, those that a consumer holds among them: what its leader says.
///
/// The lists of rabbitmqctl are seconds old, and AMQP tells only what lies ready. A leader that has much to do lets RabbitMQ's five
/// seconds pass; it is asked again then. Where nothing is written any more, a leader may owe the consistent answer for ever
/// (rabbitmq/ra#336) and has the plain one, which is as good where no node comes or goes.
pub(super) async fn all_in(node: &Broker, queue: &str) -> usize {
    // RabbitMQ 4.3 takes such a question by its name alone, 3.10 as a function alone.
    let count = format!(
        "Queue = {{'%2F_{queue}', node()}}, \
         Ask = fun(Question) -> case ra:consistent_query(Queue, Question) of \
         {{ok, Count, _}} -> Count; \
         {{timeout, _}} -> {{ok, {{_, Count}}, _}} = ra:leader_query(Queue, Question), Count end end, \
         try Ask({{rabbit_fifo, query_messages_total, []}}) \
         catch error:_ -> Ask(fun rabbit_fifo:query_messages_total/1) end."
    );
    let until = Instant::now() + ANSWER_WITHIN;
    loop {
        match node.ctl(&["eval", &count]).await {
            Ok(told) => {
                return told.trim().parse().unwrap_or_else(|_| panic!("a number of messages, not {told:?}"));
            }
            Err(error) => assert!(Instant::now() < until, "the leader of {queue} does not answer: {error}"),
        }
        sleep(POLL_EVERY).await;
    }
}

/// How many messages the broker has written to clients that did not settle them yet: what its channels say.
async fn handed_out(node: &Broker) -> u64 {
    let channels = list(node, "/", "list_channels", &["messages_unacknowledged"]).await;
    channels.iter().filter_map(|channel| channel["messages_unacknowledged"].as_u64()).sum()
}
