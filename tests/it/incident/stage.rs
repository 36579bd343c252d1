//! Where an incident takes place: Apple's side in the test itself, and `ringcast pipe` as a child, which pushes to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ringcast::simulator::{Identity, Listening, Options, Simulator};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::sums::Sums;
use crate::pipe::results;
use crate::place::Place;
use crate::plan::{now, written};
use crate::process::{POLL_EVERY, Process, RINGCAST};
use crate::worker::{Config, GRACE};

/// How long a call may ring, unless a test says otherwise. Long enough that a loaded machine makes none expire.
const RING_TIME: time::Duration = time::Duration::seconds(45);
/// The longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(90);

/// One call to one device, as it was sent.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) deadline: OffsetDateTime,
}

/// What differs from a plain call.
#[derive(Default)]
pub(crate) struct Details {
    /// When the device was registered.
    pub(crate) registered_at: Option<OffsetDateTime>,
    /// Bytes of `payload`.
    pub(crate) payload_bytes: usize,
    /// How long it may ring.
    pub(crate) ring_time: Option<time::Duration>,
}

/// How a stage is set.
pub(crate) struct Setting {
    name: &'static str,
    connections: usize,
    options: Box<dyn FnOnce(&mut Options)>,
    settings: Vec<(&'static str, &'static str, &'static str)>,
}

impl Setting {
    /// `connections`: of the worker's one pool.
    pub(crate) fn new(name: &'static str, connections: usize) -> Self {
        Self { name, connections, options: Box::new(|_| {}), settings: Vec::new() }
    }

    /// Changes what the simulator is made of.
    pub(crate) fn apple(mut self, change: impl FnOnce(&mut Options) + 'static) -> Self {
        self.options = Box::new(change);
        self
    }

    /// Changes a setting of the worker; the value is a literal in TOML.
    pub(crate) fn worker(mut self, section: &'static str, key: &'static str, literal: &'static str) -> Self {
        self.settings.push((section, key, literal));
        self
    }

    /// Lets Apple's side listen, and starts the worker.
    pub(crate) async fn open(self) -> Stage {
        let mut prepared = self.prepare().await;
        let address = prepared.address;
        prepared.start(address);
        prepared
    }

    /// Lets Apple's side listen; the worker is started by [`Stage::start`].
    pub(crate) async fn prepare(self) -> Stage {
        let place = Place::new(self.name);
        let identity = Identity::ephemeral().expect("an identity can be made");
        let mut options = Options::new(identity.verifying_key());
        (self.options)(&mut options);
        let apple = Simulator::new(options).expect("there is no journal's file that could fail");
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = apple.listen(any_port, identity.server_config()).await.expect("there is a free port");
        let mut config = Config::bare();
        config
            .text("amqp", "uri", "amqp://guest:guest@127.0.0.1:9/%2f")
            .set("apns", "connections", &self.connections.to_string())
            .set("apns", "connections_max", &self.connections.to_string())
            .path("apns", "ca_file", &place.write("ca.pem", identity.ca_pem()))
            .text("apps.acme", "bundle_id", "com.acme.voice")
            .text("apps.acme.auth", "team_id", "TEAM123456")
            .text("apps.acme.auth", "key_id", "KEY1234567")
            .path("apps.acme.auth", "key_file", &place.write("AuthKey_KEY1234567.p8", identity.p8_pem()));
        for (section, key, literal) in self.settings {
            config.set(section, key, literal);
        }
        let address = listening.local_addr();
        Stage {
            place,
            identity,
            apple,
            address,
            listening: Some(listening),
            config,
            pipe: None,
            calls: Vec::new(),
        }
    }
}

/// See the module.
pub(crate) struct Stage {
    place: Place,
    identity: Identity,
    /// Apple's side.
    pub(crate) apple: Simulator,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    listening: Option<Listening>,
    config: Config,
    pipe: Option<Process>,
    calls: Vec<Call>,
}

impl Stage {
    /// Starts the worker, which finds APNs at `address`.
    pub(crate) fn start(&mut self, address: SocketAddr) {
        let url = format!("https://{address}");
        self.config.text("apns", "production", &url).text("apns", "sandbox", &url);
        let file = self.config.write(&self.place, "pipe.toml");
        let file = file.to_str().expect("the test's paths are UTF-8");
        let place = self.place.as_ref();
        self.pipe = Some(Process::start(RINGCAST, &["pipe", "--config", file], &[], place, "pipe"));
    }

    fn pipe(&mut self) -> &mut Process {
        self.pipe.as_mut().expect("the worker was started")
    }

    /// Sends that many calls in one go. Their device tokens begin with `prefix` (hex).
    pub(crate) async fn call(&mut self, prefix: &str, count: usize) {
        for _ in 0..count {
            self.call_with(prefix, &Details::default()).await;
        }
    }

    /// Sends that many calls at a pace.
    pub(crate) async fn call_paced(&mut self, prefix: &str, count: usize, pause: Duration) {
        for _ in 0..count {
            self.call_with(prefix, &Details::default()).await;
            sleep(pause).await;
        }
    }

    /// Sends one call and gives its device token.
    pub(crate) async fn call_with(&mut self, prefix: &str, details: &Details) -> String {
        let number = self.calls.len();
        let token = format!("{prefix}{number:0width$x}", width = 64 - prefix.len());
        self.call_token(&token, details).await;
        token
    }

    /// Sends one call to this device token.
    pub(crate) async fn call_token(&mut self, token: &str, details: &Details) {
        let id = format!("1ac1de47-0000-4000-8000-{:012x}", self.calls.len());
        let deadline = now() + details.ring_time.unwrap_or(RING_TIME);
        let mut device = json!({ "token": token });
        if let Some(registered_at) = details.registered_at {
            device["registered_at"] = written(registered_at).into();
        }
        let mut invite =
            json!({ "call_id": id, "app": "acme", "deadline": written(deadline), "devices": [device] });
        if details.payload_bytes > 0 {
            invite["payload"] = json!({ "filling": "x".repeat(details.payload_bytes) });
        }
        self.calls.push(Call { id, token: token.to_owned(), deadline });
        self.pipe().write(format!("{invite}\n").as_bytes()).await;
    }

    /// Waits until all that was sent so far has its outcome.
    pub(crate) async fn settled(&mut self) {
        let count = self.calls.len();
        self.until("every call has its outcome", |stage| stage.outcomes().len() >= count).await;
    }

    /// Waits until something is so.
    pub(crate) async fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            let pipe = self.pipe();
            assert!(pipe.lives(), "the worker ended before {what}; {}", pipe.last_words());
            assert!(Instant::now() < until, "it never came that {what}; {}", pipe.last_words());
            sleep(POLL_EVERY).await;
        }
    }

    /// Waits until Apple's side has seen that many more requests than `before`.
    pub(crate) async fn seen(&mut self, before: u64, more: u64) {
        self.until("Apple's side has seen the requests", |stage| {
            stage.apple.journal().count() >= before + more
        })
        .await;
    }

    /// Opens the worker's connections and lets each carry more than one stream: calls, until all are accepted.
    pub(crate) async fn warm(&mut self, connections: usize) {
        self.until("its connections are open", |stage| stage.apple.connections_open() >= connections).await;
        // One stream each until the first answer, on the least loaded first: each connection gets one.
        self.call("3a", 4 * connections).await;
        self.settled().await;
    }

    /// Outcomes so far, by call id.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, Value> {
        self.pipe.as_ref().map(|pipe| results(&pipe.stdout()).0).unwrap_or_default()
    }

    /// The device of the newest call in its outcome, once it is there.
    pub(crate) fn newest_device(&self) -> Option<Value> {
        let newest = self.calls.last()?;
        self.outcomes().get(&newest.id).map(|outcome| outcome["devices"][0].clone())
    }

    /// What the worker logged.
    pub(crate) fn log(&self) -> String {
        self.pipe.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// Apple's side goes as in maintenance: GOAWAY, what is in flight is answered, no new connections.
    pub(crate) async fn shut_down(&mut self) {
        self.listening.take().expect("it listens").shutdown().await;
    }

    /// Apple's side is gone from one moment to the next: all connections drop, new ones are refused.
    pub(crate) async fn crash(&mut self) {
        drop(self.listening.take().expect("it listens"));
        self.until("all connections are gone", |stage| stage.apple.connections_open() == 0).await;
    }

    /// Apple's side is back where it was.
    pub(crate) async fn return_again(&mut self) {
        // The system may take a moment to let go of the port.
        let until = Instant::now() + PATIENCE;
        while self.listening.is_none() {
            self.listening = self.apple.listen(self.address, self.identity.server_config()).await.ok();
            assert!(Instant::now() < until, "{} is not free again", self.address);
            sleep(POLL_EVERY).await;
        }
    }

    /// Ends the input, waits for the end of the worker, and does the sums.
    pub(crate) async fn end(mut self) -> Sums {
        self.end_losing(&[]).await
    }

    /// The same where these connections lost answers on the way.
    pub(crate) async fn end_losing(&mut self, lost: &[u64]) -> Sums {
        self.settled().await;
        let pipe = self.pipe();
        pipe.close_stdin();
        let status = pipe.ended(GRACE).await;
        assert_eq!(status.code(), Some(0), "all is answered; {}", pipe.last_words());
        let (outcomes, events) = results(&pipe.stdout());
        Sums::take(&self.calls, outcomes, events, self.apple.journal().records(), lost)
    }
}
