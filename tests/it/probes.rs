//! What an orchestrator's probes are told, from the start to the end: ready as long as both peers are usable and nobody has said
//! stop, alive all the time.

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::apple::Apple;
use crate::client;
use crate::http;
use crate::load::declare;
use crate::place::Place;
use crate::plan::Plan;
use crate::process::POLL_EVERY;
use crate::vhost::{Vhost, start_broker};
use crate::worker::{Config, READY_WITHIN, Worker};

/// Asks `/livez` over and over, as no kubelet would.
struct LivenessProbe {
    over: watch::Sender<bool>,
    asking: JoinHandle<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    alive: usize,
    /// Other ones, and none at all.
    others: Vec<Option<(u16, String)>>,
}

impl LivenessProbe {
    /// Begins when somebody listens.
    async fn start(worker: &mut Worker, config: &Config) -> Self {
        worker.await_endpoint("/livez", READY_WITHIN, |status, _| status == 200).await;
        let (over, told) = watch::channel(false);
        let port = config.admin_port();
        let asking = tokio::spawn(async move {
            let mut answers = Answers::default();
            while !*told.borrow() {
                match http::fetch(port, "/livez").await {
                    Some((200, _)) => answers.alive += 1,
                    other => answers.others.push(other),
                }
                sleep(POLL_EVERY).await;
            }
            answers
        });
        Self { over, asking }
    }

    /// Never was there another answer than 200.
    async fn judge(self) {
        self.over.send_replace(true);
        let answers = self.asking.await.expect("it does not panic");
        assert!(answers.alive > 0 && answers.others.is_empty(), "{answers:?}");
    }
}

/// Waits until `/readyz` says 503 for the sake of the first peer, and says nothing against the second.
async fn await_lack(worker: &mut Worker, lacking: &str, there: &str) {
    let named = |status: u16, text: &str| {
        let against = |room: &str| text.lines().any(|line| line.starts_with(&format!("{room}: ")));
        status == 503 && against(lacking) && !against(there)
    };
    worker.await_endpoint("/readyz", READY_WITHIN, named).await;
}

#[tokio::test]
async fn ready_takes_both_peers_whichever_comes_first_and_alive_takes_none() {
    let place = Place::new("probes");
    let mut broker = start_broker().await;
    let mut apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &broker.uri());
    declare(&place, &config).await;

    // Apple comes first.
    broker.kill().expect("the broker can be killed");
    apple.kill().await;
    let mut worker = Worker::start(&place, &config, "first");
    let probe = LivenessProbe::start(&mut worker, &config).await;
    let neither =
        |status, text: &str| status == 503 && text.contains("worker: starting") && text.contains("apns: ");
    worker.await_endpoint("/readyz", READY_WITHIN, neither).await;
    apple.start_again().await;
    await_lack(&mut worker, "amqp", "apns").await;
    broker.start_again().await.expect("the broker starts again");
    worker.await_ready().await;

    // Each goes away and comes back.
    apple.kill().await;
    await_lack(&mut worker, "apns", "amqp").await;
    apple.start_again().await;
    worker.await_ready().await;
    broker.kill().expect("the broker can be killed");
    await_lack(&mut worker, "amqp", "apns").await;
    probe.judge().await;
    worker.stop().await;

    // The broker comes first. The worker goes to it without Apple, after a while, and is not ready for that.
    apple.kill().await;
    let mut worker = Worker::start(&place, &config, "second");
    let probe = LivenessProbe::start(&mut worker, &config).await;
    worker.await_endpoint("/readyz", READY_WITHIN, neither).await;
    broker.start_again().await.expect("the broker starts again");
    let reads = "ringcast_amqp_reading{queue=\"ringcast.invites\"} 1\n";
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(reads)).await;
    await_lack(&mut worker, "apns", "amqp").await;
    apple.start_again().await;
    worker.await_ready().await;
    probe.judge().await;
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_that_stops_says_so_and_answers_to_its_end() {
    stop_while_one_answer_is_out(1).await;
}

/// The one that has nothing to finish is silent for longer than a stuck one may be.
#[tokio::test]
async fn a_shard_that_has_finished_is_not_taken_for_a_stuck_one() {
    stop_while_one_answer_is_out(2).await;
}

async fn stop_while_one_answer_is_out(shards: usize) {
    let (place, vhost) = (Place::new("probes-stop"), Vhost::new().await);
    // The one answer that the end waits for.
    let apple = Apple::start(&place, (0, 0), "[[fault]]\ncount = 1\nlatency = \"15s\"\n").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri()).text("apns", "request_timeout", "30s").set(
        "worker",
        "shards",
        &shards.to_string(),
    );
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    client::publish(&vhost.uri(), "ringcast.invites", &Plan::new(1, 63).messages()).await;
    let begun = "ringcast_apns_streams{environment=\"production\",kind=\"used\"} 1\n";
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(begun)).await;

    worker.tell_to_stop();
    let stops = |status, text: &str| status == 503 && text.starts_with("worker: stopping: ");
    worker.await_endpoint("/readyz", READY_WITHIN, stops).await;
    let mut asked = 0;
    loop {
        let Some((alive, _)) = http::fetch(config.admin_port(), "/livez").await else { break };
        let Some((ready, text)) = http::fetch(config.admin_port(), "/readyz").await else { break };
        let Some((counted, _)) = http::fetch(config.admin_port(), "/metrics").await else { break };
        assert_eq!((alive, ready, counted), (200, 503, 200), "while it stops: {text}");
        assert!(stops(ready, &text), "{text}");
        asked += 1;
        sleep(POLL_EVERY).await;
    }
    // It was silent only after the outcome was confirmed.
    assert_eq!(client::depth(&vhost.uri(), "ringcast.outcomes").await, 1, "after {asked} answers");
    worker.await_stopped().await;
    assert!(asked > 0, "it had seconds to answer in");
    assert_eq!(apple.stop().await.len(), 1, "begun before the stop, and finished");
}
