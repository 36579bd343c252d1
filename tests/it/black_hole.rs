//! A path to the broker that carries nothing any more and says nothing of it. The worker notices by itself, at every stage,
//! comes back when there is a path again, loses no invite, and leaves neither thread nor socket behind.

mod relay;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;

use crate::apple::Apple;
use crate::certificate;
use crate::client;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, Verdict, await_drained, read_all};
use crate::process::POLL_EVERY;
use crate::vhost::Vhost;
use crate::worker::{Config, Worker};
use relay::{Deaf, Hole, Relay};

const INVITES: usize = 400;
const PREFETCH: usize = 100;
const WITHIN: Duration = Duration::from_mins(2);
const BOTH: Hole = Hole { to_broker: true, to_worker: true };

struct Stage {
    place: Place,
    vhost: Vhost,
    apple: Apple,
    config: Config,
    plan: Plan,
}

impl Stage {
    async fn build(name: &str, salt: u16) -> Self {
        let (place, vhost) = (Place::new(name), Vhost::new().await);
        let apple = Apple::start(&place, (100, 300), "").await;
        let mut config = Config::new(&apple);
        config
            .text("amqp", "uri", &vhost.uri())
            .set("amqp", "prefetch", &PREFETCH.to_string())
            // The number of sockets is that of an idle worker then.
            .set("apns", "connections", "1")
            .set("apns", "connections_max", "1");
        declare(&place, &config).await;
        Self { place, vhost, apple, config, plan: Plan::new(INVITES, salt) }
    }

    /// Publishes the load, starts a worker whose way leads to that port, and waits until it is in the middle of it.
    async fn start(&mut self, scheme: &str, port: u16) -> (Worker, Held) {
        let vhost = self.vhost.uri();
        let vhost = vhost.rsplit('/').next().expect("a URI has one");
        self.config.text("amqp", "uri", &format!("{scheme}://guest:guest@localhost:{port}/{vhost}"));
        let worker = Worker::start_ready(&self.place, &self.config, "worker").await;
        client::publish(&self.vhost.uri(), "ringcast.invites", &self.plan.messages()).await;
        client::await_depth(&self.vhost.uri(), "ringcast.outcomes", INVITES / 10, WITHIN).await;
        let held = Held::by(&worker);
        assert_eq!(held.broker_threads, 2, "one for each connection");
        (worker, held)
    }

    /// All is answered, and the worker holds what it held before.
    async fn finish(self, mut worker: Worker, before: Held) -> Verdict {
        let uri = self.vhost.uri();
        client::await_depth(&uri, "ringcast.outcomes", INVITES, WITHIN).await;
        await_drained(&uri, &worker, WITHIN).await;
        let until = Instant::now() + WITHIN;
        while Held::by(&worker) != before {
            assert!(
                Instant::now() < until,
                "before {before:?}, now {:?}: {:?}",
                Held::by(&worker),
                threads(&worker)
            );
            sleep(POLL_EVERY).await;
        }
        worker.await_ready().await;
        worker.stop().await;
        let outcomes = read_all(&uri, "ringcast.outcomes").await;
        let events = read_all(&uri, "ringcast.invalid-tokens").await;
        self.plan.judge(&outcomes, &events, &self.apple.stop().await)
    }
}

/// What a worker holds of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    /// Without the runtime's pool for what blocks, which comes and goes.
    threads: usize,
    /// Those of the client library among them.
    broker_threads: usize,
    sockets: usize,
}

impl Held {
    fn by(worker: &Worker) -> Self {
        let names = threads(worker);
        let count = |start: &str| names.iter().filter(|name| name.starts_with(start)).count();
        let (threads, broker_threads) = (names.len() - count("tokio-"), count("lapin"));
        let is_socket = |fd: &std::path::PathBuf| {
            fs::read_link(fd).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        let sockets = list(worker, "fd").iter().filter(|fd| is_socket(fd)).count();
        Self { threads, broker_threads, sockets }
    }
}

/// The names of its threads.
fn threads(worker: &Worker) -> Vec<String> {
    let name = |task: &std::path::PathBuf| fs::read_to_string(task.join("comm")).unwrap_or_default();
    list(worker, "task").iter().map(name).collect()
}

fn list(worker: &Worker, what: &str) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(format!("/proc/{}/{what}", worker.pid())).expect("the worker runs");
    entries.flatten().map(|entry| entry.path()).collect()
}

/// The worker loses its session, and each later connection gets so many frames of the broker's and then nothing, until the
/// hole ends. Those that fell into it stay there.
async fn dial_into(name: &str, salt: u16, tls: bool, frames: usize) {
    let mut stage = Stage::build(name, salt).await;
    let (mut acceptor, mut scheme) = (None, "amqp");
    if tls {
        let files = certificate::make(&stage.place, "broker");
        stage.config.path("amqp", "ca_file", &files.ca_file);
        let chain = CertificateDer::pem_file_iter(&files.cert_file).expect("it was just written");
        let key = PrivateKeyDer::from_pem_file(&files.key_file).expect("it was just written");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has both")
            .with_no_client_auth()
            .with_single_cert(chain.map(|it| it.expect("a certificate")).collect(), key)
            .expect("they belong together");
        (acceptor, scheme) = (Some(TlsAcceptor::from(Arc::new(server))), "amqps");
    }
    let mut relay = Relay::start(stage.vhost.port(), acceptor).await;
    let (mut worker, before) = stage.start(scheme, relay.address().port()).await;
    let connected = relay.accepted();
    relay.allow(Some(frames));
    relay.close();
    // The next dials fall into it, too.
    let says = |status: u16, text: &str| status == 503 && text.contains("no answer");
    worker.await_endpoint("/readyz", WITHIN, says).await;
    relay.await_accepted(connected + 3).await;
    assert_eq!(worker.fetch("/livez").await.0, 200);
    relay.allow(None);
    worker.await_ready().await;
    stage.finish(worker, before).await;
}

#[tokio::test]
async fn before_the_connection_is_accepted() {
    let mut stage = Stage::build("hole-syn", 50).await;
    let relay = Relay::start(stage.vhost.port(), None).await;
    // A worker on a good path says how much one holds.
    let (mut worker, before) = stage.start("amqp", relay.address().port()).await;
    worker.stop().await;
    let deaf = Deaf::listen().await;
    let vhost = stage.vhost.uri();
    let vhost = vhost.rsplit('/').next().expect("a URI has one");
    let uri = format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", deaf.address().port());
    stage.config.text("amqp", "uri", &uri);
    let mut worker = Worker::start(&stage.place, &stage.config, "deaf");
    let says = |status: u16, text: &str| status == 503 && text.contains("no answer");
    worker.await_endpoint("/readyz", WITHIN, says).await;
    let _relay = deaf.hear(stage.vhost.port());
    worker.await_ready().await;
    stage.finish(worker, before).await;
}

#[tokio::test]
async fn right_after_the_connection_is_accepted() {
    dial_into("hole-accept", 51, false, 0).await;
}

#[tokio::test]
async fn after_the_tls_handshake() {
    dial_into("hole-tls", 52, true, 0).await;
}

#[tokio::test]
async fn after_connection_start() {
    dial_into("hole-start", 53, false, 1).await;
}

#[tokio::test]
async fn after_connection_tune() {
    dial_into("hole-tune", 54, false, 2).await;
}

#[tokio::test]
async fn after_connection_open() {
    dial_into("hole-open", 55, false, 3).await;
}

#[tokio::test]
async fn after_the_first_channel() {
    dial_into("hole-channel", 56, false, 4).await;
}

/// The connections of a session fall into the hole for good; later ones are carried.
async fn lose_in_the_middle(name: &str, salt: u16, hole: Hole) {
    let mut stage = Stage::build(name, salt).await;
    let relay = Relay::start(stage.vhost.port(), None).await;
    let (worker, before) = stage.start("amqp", relay.address().port()).await;
    let connected = relay.accepted();
    relay.swallow(hole);
    let unsettled = worker.metric("ringcast_amqp_unsettled").await;
    assert!(unsettled.is_some_and(|unsettled| unsettled > 0.0), "in the middle: {unsettled:?}");
    let verdict = stage.finish(worker, before).await;
    assert!(relay.accepted() >= connected + 2, "it came back over other connections");
    // Only what was unsettled when the path went came again.
    assert!(verdict.redelivered.union(&verdict.outcomes_doubled).count() <= 2 * PREFETCH, "{verdict:?}");
}

#[tokio::test]
async fn in_the_middle() {
    lose_in_the_middle("hole-middle", 57, BOTH).await;
}

#[tokio::test]
async fn in_the_middle_from_the_broker_only() {
    lose_in_the_middle("hole-from", 58, Hole { to_worker: true, to_broker: false }).await;
}

#[tokio::test]
async fn in_the_middle_to_the_broker_only() {
    lose_in_the_middle("hole-to", 59, Hole { to_worker: false, to_broker: true }).await;
}

#[tokio::test]
async fn a_short_hole_costs_no_session() {
    let mut stage = Stage::build("hole-short", 60).await;
    let relay = Relay::start(stage.vhost.port(), None).await;
    let (worker, before) = stage.start("amqp", relay.address().port()).await;
    let connected = relay.accepted();
    relay.swallow(BOTH);
    sleep(Duration::from_secs(3)).await;
    relay.heal();
    let verdict = stage.finish(worker, before).await;
    assert_eq!(relay.accepted(), connected, "the same session");
    assert!(verdict.redelivered.is_empty() && verdict.rang_twice.is_empty(), "{verdict:?}");
}
