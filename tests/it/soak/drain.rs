//! The end of a soak: the queues run empty.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fault::Site;
use super::watch::Watch;
use super::{INVITES, SPARE};
use crate::broker::Broker;
use crate::process::POLL_EVERY;

/// How long until all is drained once nothing goes wrong any more: far above the calls' deadlines.
const WITHIN: Duration = Duration::from_mins(2);
/// When invites that no worker has are looked into. A dead consumer is noticed at once.
const SUSPICIOUS_AFTER: Duration = Duration::from_secs(20);

/// Waits until the queues are empty and nothing is held: a worker that has just lost its connection holds nothing, and the
/// broker still counts what it held as delivered.
///
/// Where the broker keeps invites for consumers whose process is dead, the nodes are started again, one after the other, as an
/// operator would: a new leader of the queue looks at its consumers anew. Whoever is told is told how many there were.
pub(super) async fn await_drained(site: &mut Site, watch: &Watch<'_>) {
    let until = Instant::now() + WITHIN;
    let mut suspicious = Instant::now() + SUSPICIOUS_AFTER;
    loop {
        let mut left = 0;
        for queue in [INVITES, SPARE, "ringcast.expired"] {
            left += all_in(site.node(), queue).await;
        }
        let unsettled = watch.unsettled().await;
        if left == 0 && unsettled == 0.0 {
            return;
        }
        assert!(Instant::now() < until, "{left} invites wait and {unsettled} are unsettled; {}", watch.log());
        if unsettled > 0.0 {
            suspicious = Instant::now() + SUSPICIOUS_AFTER;
        } else if Instant::now() > suspicious {
            let dead = dead_consumers(site.node(), INVITES).await + dead_consumers(site.node(), SPARE).await;
            assert!(dead > 0, "{left} invites wait, and no worker takes them; {}", watch.log());
            println!("the broker kept {left} invites for {dead} dead consumers");
            start_again(site).await;
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
/// The lists of rabbitmqctl are seconds old, and AMQP tells only what lies ready.
pub(super) async fn all_in(node: &Broker, queue: &str) -> usize {
    ask(node, queue, "query_messages_total", "Answer").await
}

/// Consumers of a quorum queue that it takes for alive, and whose process has ended.
async fn dead_consumers(node: &Broker, queue: &str) -> usize {
    let count = "length([Pid || Consumer <- maps:values(Answer), Pid <- [element(1, Consumer)], \
                 rpc:call(node(Pid), erlang, is_process_alive, [Pid]) =/= true])";
    ask(node, queue, "query_consumers", count).await
}

/// What `expression` makes of the `Answer` that a queue's leader gives.
async fn ask(node: &Broker, queue: &str, question: &str, expression: &str) -> usize {
    // RabbitMQ 4.3 takes a question by its name alone, 3.10 as a function alone.
    let asked = format!(
        "Queue = {{'%2F_{queue}', node()}}, \
         {{ok, Answer, _}} = try ra:consistent_query(Queue, {{rabbit_fifo, {question}, []}}) \
         catch error:_ -> ra:consistent_query(Queue, fun rabbit_fifo:{question}/1) end, {expression}."
    );
    let told = node.ctl(&["eval", &asked]).await.expect("the queue's leader answers");
    told.trim().parse().unwrap_or_else(|_| panic!("a number, not {told:?}"))
}
