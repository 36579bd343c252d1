//! Two workers, a broker and an Apple of their own, and what goes wrong with them.

use std::net::SocketAddr;
use std::time::Duration;

use ringcast::simulator::faults::{Fault, FaultId, GoAway};
use ringcast::simulator::{Certificate, Credential, Identity, Listening, Options, Order, Simulator, When};
use tokio::time::{Instant, sleep};

use super::callers::{Callers, SUSPECT, THROTTLED};
use crate::apple::DEAD;
use crate::broker::Broker;
use crate::load::declare;
use crate::operator::Operator;
use crate::place::Place;
use crate::plan::now;
use crate::process::POLL_EVERY;
use crate::prometheus::Target;
use crate::trace::Collector;
use crate::vhost::start_broker;
use crate::worker::{Config, Worker};

/// As they are scraped.
const WORKERS: [&str; 2] = ["ringcast-0", "ringcast-1"];
/// What a worker holds at most.
const PREFETCH: usize = 120;
/// Who signs for the app `globex`.
const GLOBEX: (&str, &str) = ("GLOBEXTEAM", "GLOBEXKEY1");
/// The key that takes its place.
const GLOBEX_NEXT: &str = "GLOBEXKEY2";
/// And for `acme`: the simulator's own.
const ACME: (&str, &str) = ("TEAM123456", "KEY1234567");
/// What the collector of spans asks for.
const SECRET: &str = "open-sesame";
const PORT_FREE_WITHIN: Duration = Duration::from_secs(30);
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incident {
    /// Apple answers late, and some pushes never.
    Slow,
    /// Apple answers 500 and 503, and two connections get a GOAWAY.
    Failing,
    /// Apple renews its servers: a GOAWAY for each connection, and nobody listens for a while.
    Away,
    /// Outcomes have no queue.
    Unbound,
    /// The broker has no memory left, and lacks a queue.
    Blocked,
    /// The broker goes and comes back.
    Restart,
    /// A worker is killed and started again.
    Killed,
    /// Those who publish make mistakes.
    Mistakes,
    /// Somebody spoils a file of settings; who mends it gives an app another key.
    Spoiled,
    /// The roots of trust are replaced by another's, and Apple renews its servers: no connection is trusted any more.
    Untrusted,
    /// Apple forgets the key of one app, for good.
    Revoked,
}

/// See the module.
pub(super) struct Town {
    pub(super) place: Place,
    pub(super) callers: Callers,
    broker: Broker,
    identity: Identity,
    /// Of somebody else.
    other: Identity,
    apple: Simulator,
    /// What Apple's side does wrong for now.
    struck: Vec<FaultId>,
    address: SocketAddr,
    listening: Option<Listening>,
    configs: [Config; 2],
    workers: Vec<Worker>,
    /// Takes spans until the end.
    _collector: Collector,
}

impl Town {
    /// All of it is up, and nothing is wrong but some tokens.
    pub(super) async fn start() -> Self {
        let place = Place::new("board");
        let broker = start_broker().await;
        let [identity, other] = [(); 2].map(|()| Identity::ephemeral().expect("an identity can be made"));
        let credentials =
            [GLOBEX.1, GLOBEX_NEXT].map(|key| Credential::new(GLOBEX.0, key, other.verifying_key())).to_vec();
        let options = Options { credentials, journal_entries_max: 0, ..Options::of(&identity) };
        let apple = Simulator::new(options).expect("there is no journal's file that could fail");
        for (prefix, fault) in [
            (DEAD, Fault::answer(410, "Unregistered")),
            (SUSPECT, Fault::answer(400, "BadDeviceToken")),
            (THROTTLED, Fault::answer(429, "TooManyRequests")),
        ] {
            apple.faults().add(fault.prefix(prefix));
        }
        apple.faults().add(Fault::latency(Duration::from_millis(15), Duration::from_millis(70)));
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = apple.listen(any_port, identity.server_config()).await.expect("there is a free port");
        let address = listening.local_addr();
        let url = format!("https://{address}");
        let collector = Collector::start(&place, &["take", SECRET]).await;
        let headers = place.write("headers", format!("x-secret: {SECRET}\n"));
        let configs = WORKERS.map(|name| {
            let mut config = config(&place, &broker, (&identity, &other), &url, name);
            config
                .text("traces", "otlp_endpoint", &collector.url)
                .path("traces", "headers_file", &headers)
                .set("traces", "sample_ratio", "0.1");
            config
        });
        declare(&place, &configs[0]).await;
        let mut workers = Vec::new();
        for (config, name) in configs.iter().zip(WORKERS) {
            workers.push(Worker::start_ready(&place, config, name).await);
        }
        let listening = Some(listening);
        let callers = Callers::default();
        Self {
            place,
            callers,
            broker,
            identity,
            other,
            apple,
            struck: Vec::new(),
            address,
            listening,
            configs,
            workers,
            _collector: collector,
        }
    }

    /// What is to be scraped.
    pub(super) fn targets(&self) -> Vec<Target<'static>> {
        let target =
            |(config, instance): (&Config, &'static str)| Target { instance, port: config.admin_port() };
        self.configs.iter().zip(WORKERS).map(target).collect()
    }

    /// Where invites are published.
    pub(super) fn uri(&self) -> String {
        self.broker.uri()
    }

    /// Lets it go wrong.
    pub(super) async fn strike(&mut self, incident: Incident) {
        match incident {
            Incident::Slow => {
                // For some seconds longer than a request may take: where nobody has answered yet, attempts are given up and answered
                // late.
                let later =
                    Fault::latency(Duration::from_millis(2200), Duration::from_millis(2600)).times(120);
                self.struck.push(self.apple.faults().add(later));
                let late = Fault::latency(Duration::from_millis(100), Duration::from_millis(2600));
                self.sometimes(0.3, late);
                self.sometimes(0.03, Fault::silence(true));
            }
            Incident::Failing => {
                self.sometimes(0.35, Fault::answer(503, "ServiceUnavailable"));
                self.sometimes(0.15, Fault::answer(500, "InternalServerError"));
                self.struck.push(self.apple.faults().add(Fault::go_away(shutdown()).times(2)));
            }
            Incident::Away => {
                self.apple.order(Order::GoAway(shutdown()));
                self.listening.take().expect("it listens").shutdown().await;
            }
            Incident::Unbound => Operator::connect(&self.uri()).await.bind(false).await,
            Incident::Blocked => {
                Operator::connect(&self.uri()).await.delete("ringcast.expired").await;
                self.watermark("0").await;
            }
            Incident::Restart => self.broker.stop().await.expect("the broker stops"),
            Incident::Killed => self.workers[1].kill().await,
            Incident::Mistakes => self.callers.err(true),
            Incident::Spoiled => {
                self.place.write(&file_of(0), "[amqp]\nprefetch = \"many\"\n");
            }
            Incident::Untrusted => {
                self.trust(self.other.ca_pem()).await;
                self.apple.order(Order::GoAway(shutdown()));
            }
            Incident::Revoked => assert!(self.apple.revoke(GLOBEX_NEXT), "it was known"),
        }
    }

    /// Mends it.
    pub(super) async fn mend(&mut self, incident: Incident) {
        match incident {
            Incident::Slow | Incident::Failing => {
                for fault in self.struck.drain(..) {
                    self.apple.faults().remove(fault);
                }
            }
            Incident::Away => self.listen_again().await,
            Incident::Unbound => Operator::connect(&self.uri()).await.bind(true).await,
            Incident::Blocked => {
                self.watermark("0.6").await;
                declare(&self.place, &self.configs[0]).await;
            }
            Incident::Restart => self.broker.start_again().await.expect("the broker starts again"),
            Incident::Killed => {
                self.workers[1] = Worker::start(&self.place, &self.configs[1], WORKERS[1]);
                self.workers[1].await_ready().await;
            }
            Incident::Mistakes => self.callers.err(false),
            Incident::Spoiled => {
                for worker in 0..WORKERS.len() {
                    self.configs[worker].text("apps.globex.auth", "key_id", GLOBEX_NEXT);
                    self.configs[worker].write(&self.place, &file_of(worker));
                }
            }
            Incident::Untrusted => self.trust(self.identity.ca_pem()).await,
            Incident::Revoked => unreachable!("nobody mends that"),
        }
    }

    /// The ends of the workers' logs, for the message of a failure.
    pub(super) fn log(&self) -> String {
        let tail = |worker: &Worker| {
            let log = worker.log();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        self.workers.iter().map(tail).collect::<Vec<_>>().join("\n\n")
    }

    fn sometimes(&mut self, probability: f64, fault: Fault) {
        let fault = fault.when(When { probability, ..When::default() });
        self.struck.push(self.apple.faults().add(fault));
    }

    /// Replaces the roots of trust, and waits until each worker has taken them over: only what is dialled then is judged by them.
    async fn trust(&self, roots: &str) {
        const CHANGES: &str = "ringcast_credential_reloads_total";
        let changes = async |worker: &Worker| worker.metric(CHANGES).await.expect("it counts changes");
        let before = [changes(&self.workers[0]).await, changes(&self.workers[1]).await];
        self.place.write("ca.pem", roots);
        let until = Instant::now() + TAKEN_WITHIN;
        for (worker, before) in self.workers.iter().zip(before) {
            while changes(worker).await <= before {
                assert!(Instant::now() < until, "the roots were not taken over; {}", worker.log());
                sleep(POLL_EVERY).await;
            }
        }
    }

    async fn listen_again(&mut self) {
        // The system may take a moment to let go of the port.
        let until = Instant::now() + PORT_FREE_WITHIN;
        while self.listening.is_none() {
            self.listening = self.apple.listen(self.address, self.identity.server_config()).await.ok();
            assert!(Instant::now() < until, "{} is not free again", self.address);
            sleep(POLL_EVERY).await;
        }
    }

    async fn watermark(&self, fraction: &str) {
        let set = ["set_vm_memory_high_watermark", fraction];
        self.broker.ctl(&set).await.expect("the broker takes it");
    }
}

fn shutdown() -> GoAway {
    GoAway { reason: Some("Shutdown".to_owned()), ..GoAway::default() }
}

/// The worker's configuration, as `Worker::start` names it.
fn file_of(worker: usize) -> String {
    format!("{}.toml", WORKERS[worker])
}

/// Three apps: two with keys of their own teams, one with a certificate.
fn config(
    place: &Place,
    broker: &Broker,
    (identity, other): (&Identity, &Identity),
    url: &str,
    name: &str,
) -> Config {
    let now_ms = u64::try_from(now().unix_timestamp()).expect("after 1970") * 1000;
    let umbra = Certificate::new("com.umbra.voice", now_ms);
    let issued = identity.issue(&umbra).expect("a certificate can be made");
    let mut config = Config::bare();
    config
        .text("amqp", "uri", &broker.uri())
        .set("amqp", "prefetch", &PREFETCH.to_string())
        .text("apns", "production", url)
        .text("apns", "sandbox", url)
        .text("apns", "request_timeout", "2s")
        .text("apns", "reload_interval", "1s")
        .path("apns", "ca_file", &place.write("ca.pem", identity.ca_pem()))
        .text("worker", "name", name);
    for (app, (team, key), identity) in [("acme", ACME, identity), ("globex", GLOBEX, other)] {
        let (section, auth) = (format!("apps.{app}"), format!("apps.{app}.auth"));
        config
            .text(&section, "bundle_id", &format!("com.{app}.voice"))
            .text(&auth, "team_id", team)
            .text(&auth, "key_id", key)
            .path(&auth, "key_file", &place.write(&format!("{app}.p8"), identity.p8_pem()));
    }
    config
        .text("apps.umbra", "bundle_id", "com.umbra.voice")
        .path("apps.umbra.auth", "cert_file", &place.write(&format!("{name}.pem"), issued.certificate_pem))
        .path("apps.umbra.auth", "key_file", &place.write(&format!("{name}-key.pem"), issued.key_pem));
    config
}
