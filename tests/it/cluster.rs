//! A throw-away cluster of three RabbitMQ nodes: what bears the loss of one node, and shows whether we do.
//!
//! Each node is a [`Broker`] with a guardian of its own, so that nothing stays behind. One node at a time may be away:
//! between two of them [`Cluster::await_whole`] waits until every quorum queue bears the next loss.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::apple::Apple;
use crate::broker::{Broker, Error};
use crate::client::{self, Outgoing};
use crate::load::declare;
use crate::place::Place;
use crate::vhost::NO_BROKER;
use crate::worker::Config;

/// A queue is whole again some seconds after its node is; a busy machine needs many more.
const WHOLE_WITHIN: Duration = Duration::from_mins(2);
const POLL_EVERY: Duration = Duration::from_millis(200);

/// Three nodes on loopback, each with a folder and ports of its own. Dropped, they are gone with all they had.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Each can be stopped, killed and started again.
    pub(crate) nodes: [Broker; 3],
}

impl Cluster {
    /// Starts one and waits until all three nodes speak AMQP; says why there is none.
    pub(crate) async fn start() -> Self {
        match Self::try_start().await {
            Ok(Some(cluster)) => cluster,
            Ok(None) => panic!("{NO_BROKER}"),
            Err(error) => panic!("{error}"),
        }
    }

    async fn try_start() -> Result<Option<Self>, Error> {
        let prepare = || Broker::prepare(None);
        let (Some(first), Some(second), Some(third)) = (prepare()?, prepare()?, prepare()?) else {
            return Ok(None);
        };
        let mut nodes = [first, second, third];
        Broker::unite(&mut nodes)?;
        let [first, second, third] = &mut nodes;
        first.start_again().await?;
        tokio::try_join!(second.start_again(), third.start_again())?;
        Ok(Some(Self { nodes }))
    }

    /// Where clients connect, one address a node, as `guest`, to the virtual host `/`.
    pub(crate) fn uris(&self) -> [String; 3] {
        self.nodes.each_ref().map(Broker::uri)
    }

    /// A node that runs, for questions to the whole cluster.
    pub(crate) fn running(&self) -> &Broker {
        self.nodes.iter().find(|node| node.runs()).expect("at most one node is away at a time")
    }

    /// Which node leads a quorum queue of the virtual host `/`. After a loss it waits until one that runs is elected: before,
    /// a queue that rejects when it is full refuses what is published to it.
    pub(crate) async fn leader_of(&self, queue: &str) -> usize {
        let ask = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
             [{{leader, Leader}}] = rabbit_quorum_queue:info(Q, [leader]), Leader."
        );
        let until = Instant::now() + WHOLE_WITHIN;
        loop {
            let told = self.running().ctl(&["eval", &ask]).await.unwrap_or_else(|error| error.to_string());
            let leader = told.trim().trim_matches('\'');
            if let Some(place) = self.nodes.iter().position(|node| node.runs() && leader == node.name()) {
                return place;
            }
            assert!(Instant::now() < until, "{leader} leads {queue}, and does not run");
            sleep(POLL_EVERY).await;
        }
    }

    /// Waits until every quorum queue has all its members online: then one node can be taken away, and the rest has a majority.
    ///
    /// Streams are left out: RabbitMQ 4.x may lose their coordinator for good when a node goes while it is young, and then every
    /// list of queues fails over them.
    pub(crate) async fn await_whole(&self) {
        let until = Instant::now() + WHOLE_WITHIN;
        while let Some(lame) = self.lame_queues().await {
            assert!(Instant::now() < until, "not whole in {WHOLE_WITHIN:?}: {lame}");
            sleep(POLL_EVERY).await;
        }
    }

    /// The quorum queues that lack a member, or why the cluster cannot tell, which is no better.
    async fn lame_queues(&self) -> Option<String> {
        const ASK: &str = "[amqqueue:get_name(Q) || Q <- rabbit_amqqueue:list_by_type(rabbit_quorum_queue), \
            Info <- [rabbit_quorum_queue:info(Q, [members, online])], \
            length(proplists:get_value(online, Info)) < length(proplists:get_value(members, Info))].";
        match self.running().ctl(&["eval", ASK]).await {
            Ok(told) => (told.trim() != "[]").then_some(told),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// Bodies `from`, `from + 1`, … as messages.
fn numbered(from: usize, count: usize) -> Vec<Outgoing> {
    (from..from + count)
        .map(|n| Outgoing { body: n.to_string().into_bytes(), ..Outgoing::default() })
        .collect()
}

#[tokio::test]
async fn a_cluster_bears_the_loss_of_one_node_at_a_time() {
    const LIMIT: Duration = Duration::from_mins(1);
    const QUEUE: &str = "ringcast.invites";
    let place = Place::new("cluster");
    let mut cluster = Cluster::start().await;
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &cluster.uris()[0]);
    declare(&place, &config).await;

    let mut published = 0;
    for round in 0..2 {
        client::publish(&cluster.uris()[round], QUEUE, &numbered(published, 500)).await;
        published += 500;
        let leader = cluster.leader_of(QUEUE).await;
        cluster.nodes[leader].kill().expect("it can be killed");
        assert!(cluster.lame_queues().await.is_some(), "with a node away no queue is whole");

        let follower = 3 - leader - cluster.leader_of(QUEUE).await;
        client::publish(&cluster.uris()[follower], QUEUE, &numbered(published, 500)).await;
        published += 500;
        cluster.nodes[leader].start_again().await.expect("it starts again");
        cluster.await_whole().await;
    }
    // One is stopped cleanly, too, and then all is read from each node in turn.
    cluster.nodes[2].stop().await.expect("it stops");
    let uris = cluster.uris();
    let mut bodies: Vec<usize> = Vec::new();
    for uri in [&uris[0], &uris[1]] {
        let messages = client::read(uri, QUEUE, published / 2, LIMIT).await;
        bodies.extend(messages.iter().map(|message| {
            let body = std::str::from_utf8(&message.body).expect("a number");
            body.parse::<usize>().expect("a number")
        }));
    }
    bodies.sort_unstable();
    assert_eq!(bodies, (0..published).collect::<Vec<_>>(), "nothing is lost, nothing is doubled");
}
