//! Credentials come and go in a running worker: apps, teams and environments never mix on a connection, and a new key takes
//! over without a push lost.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use ringcast::apns::dial::{BoxedIo, Dial, DialError, Dialer, Dialling};
use ringcast::apns::tls::Dials;
use ringcast::apns::{self, Apns, Credential, Endpoint, ProviderKey};
use ringcast::clock::Clock;
use ringcast::domain::app::{App, Environment, PayloadKeys};
use ringcast::domain::id::{ApnsId, CallId, DeviceToken};
use ringcast::domain::policy::PushError;
use ringcast::domain::response::Response;
use ringcast::domain::timestamp::Timestamp;
use ringcast::metrics::Metrics;
use ringcast::pause::Jitter;
use ringcast::simulator::{self, Fault, Options, Simulator, VerifyingKey};
use ringcast::worker::gateway::{Gateway, Push, Trail};
use tokio::time::{Instant, sleep, timeout};

use crate::world::STARTED_AT;

const CONNECTIONS: usize = 2;
/// Longer than a closing pool waits for streams that are still open.
const SLOW: Duration = Duration::from_secs(4);
const RINGS_FOR: Duration = Duration::from_secs(30);

/// A key: its team's number, its own, and what is in the file.
fn key(team: u8, number: u8, seed: u8) -> Credential {
    let key = p256::SecretKey::from_slice(&[seed; 32]).expect("a scalar");
    let (team_id, key_id) = (format!("TEAM00000{team}"), format!("KEY0000{team}0{number}"));
    Credential::Token(ProviderKey { team_id, key_id, key })
}

/// The same as Apple knows it.
fn known(credential: &Credential) -> simulator::Credential {
    let Credential::Token(key) = credential else { panic!("a key") };
    let point = key.key.public_key().to_encoded_point(false);
    let verifying_key = VerifyingKey::from_sec1(point.as_bytes()).expect("a point");
    simulator::Credential::new(&key.team_id, &key.key_id, verifying_key)
}

/// Whether a key's connections can be opened; the others' can.
type Reachable = Arc<parking_lot::Mutex<BTreeMap<String, bool>>>;

/// A worker's side of APNs, and Apple's two environments.
struct Stage {
    apns: Apns,
    apps: Vec<Arc<App>>,
    metrics: Arc<Metrics>,
    clock: Clock,
    apple: [Simulator; 2],
    reachable: Reachable,
    calls: AtomicU64,
}

impl Stage {
    /// An app for each credential, the same in both environments; Apple knows these keys and `more`.
    fn new(credentials: &[Credential], more: &[Credential], unreachable: Option<&str>) -> Self {
        let clock = Clock::simulated(STARTED_AT);
        let all: Vec<_> = credentials.iter().chain(more).map(known).collect();
        let apple =
            [simulator::Environment::Production, simulator::Environment::Sandbox].map(|environment| {
                let wall = clock.clone();
                let options = Options {
                    environment,
                    credentials: all.clone(),
                    clock: Arc::new(move || u64::try_from(wall.unix_ms()).unwrap_or(0)),
                    ..Options::new(all[0].verifying_key.clone())
                };
                Simulator::new(options).expect("no file, no failure")
            });
        let reachable = Reachable::default();
        reachable.lock().extend(unreachable.map(|key_id| (key_id.to_owned(), false)));
        let names = ["acme", "zeta"];
        let app = |index: usize| app(index, names[index]);
        let apps: Vec<Arc<App>> = (0..credentials.len()).map(app).collect();
        let endpoint = || Endpoint { host: "apns.test".into(), port: 443 };
        let settings = apns::Settings {
            endpoints: [endpoint(), endpoint()],
            ca_file: None,
            proxy: None,
            connections: CONNECTIONS..=CONNECTIONS,
            request_timeout: Duration::from_secs(5),
            credentials: pairs(credentials),
        };
        let (simulators, gates) = (apple.clone(), Arc::clone(&reachable));
        let dials: Dials = Arc::new(move |environment, credential| {
            let simulator = simulators[environment.index()].clone();
            let key_id = credential.key_id().expect("a key").to_owned();
            Ok(Arc::new(Pipe { simulator, key_id, reachable: Arc::clone(&gates) }) as Dial)
        });
        let (metrics, jitter) = (Metrics::new(), Jitter::seeded(1));
        let apns = Apns::new(&settings, &apps, &dials, &clock, &metrics, &jitter).expect("sound settings");
        apns.start(&apps);
        Self { apns, apps, metrics, clock, apple, reachable, calls: AtomicU64::new(0) }
    }

    /// Rings one phone.
    fn push(
        &self,
        app: usize,
        environment: Environment,
    ) -> impl Future<Output = Result<Response, PushError>> + Send + use<> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let call = CallId::parse(&format!("00000000-0000-4000-8000-{call:012}")).expect("a UUID");
        let token = DeviceToken::new(&format!("{:064x}", app + 1));
        let push = Push {
            app: Arc::clone(&self.apps[app]),
            environment,
            apns_id: ApnsId::derive(call, &token),
            token,
            body: Bytes::from_static(b"{\"aps\":{}}"),
            deadline: Instant::now() + RINGS_FOR,
            deadline_at: Timestamp::from_unix_ms(self.clock.unix_ms()).plus(RINGS_FOR),
            answer_by: Instant::now() + RINGS_FOR,
            trail: Trail::default(),
        };
        let apns = self.apns.clone();
        async move { apns.push(&push).await }
    }

    async fn rings(&self, app: usize, environment: Environment) {
        let response = self.push(app, environment).await.expect("an answer");
        assert_eq!((response.status, response.reason), (200, None));
    }

    /// Which keys were used on each connection of an environment, and by which topics.
    fn seen(&self, environment: Environment) -> BTreeMap<u64, Vec<(String, String)>> {
        let mut seen: BTreeMap<u64, Vec<(String, String)>> = BTreeMap::new();
        for record in self.apple[environment.index()].journal().records() {
            let claims = record.authorization.expect("a provider token");
            let pair = (claims.kid.clone(), record.topic.expect("a topic"));
            let pairs = seen.entry(record.connection).or_default();
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
        seen
    }

    /// The key of the last push that Apple saw.
    fn last_key(&self, environment: Environment) -> String {
        let records = self.apple[environment.index()].journal().records();
        let last = records.last().expect("a push").authorization.clone();
        last.expect("a provider token").kid.clone()
    }

    /// A sample of `ringcast_apns_connections`; 0 where there is none.
    fn connections(&self, environment: &str, state: &str) -> i64 {
        let series = format!("ringcast_apns_connections{{environment=\"{environment}\",state=\"{state}\"}} ");
        let text = self.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
    }
}

fn pairs(credentials: &[Credential]) -> Vec<[Credential; 2]> {
    credentials.iter().map(|one| [one.clone(), one.clone()]).collect()
}

fn app(index: usize, name: &str) -> Arc<App> {
    Arc::new(App {
        index,
        name: name.to_owned(),
        bundle_id: format!("com.{name}.voice"),
        environment: Environment::Production,
        expiration_max: Duration::ZERO,
        payload: PayloadKeys {
            call_id: "callUUID".into(),
            handle: String::new(),
            name: String::new(),
            has_video: String::new(),
            deadline: String::new(),
            opaque: true,
        },
    })
}

/// A way to a simulator that can be closed for one key.
struct Pipe {
    simulator: Simulator,
    key_id: String,
    reachable: Reachable,
}

impl Dialer for Pipe {
    fn resolve(&self) -> Dialling<Vec<SocketAddr>> {
        Box::pin(std::future::ready(Ok(vec![SocketAddr::from(([192, 0, 2, 1], 443))])))
    }

    fn connect(&self, _address: SocketAddr) -> Dialling<BoxedIo> {
        let reached = if self.reachable.lock().get(&self.key_id).copied().unwrap_or(true) {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let simulator = self.simulator.clone();
            tokio::spawn(async move { simulator.serve(theirs).await });
            Ok(Box::new(ours) as BoxedIo)
        } else {
            Err(DialError::Network("nobody is reached".into()))
        };
        Box::pin(std::future::ready(reached))
    }
}

#[tokio::test(start_paused = true)]
async fn apps_teams_and_environments_never_share_a_connection() {
    let stage = Stage::new(&[key(1, 1, 1), key(2, 1, 2)], &[], None);
    for _ in 0..20 {
        for environment in Environment::ALL {
            stage.rings(0, environment).await;
            stage.rings(1, environment).await;
        }
    }
    for environment in Environment::ALL {
        let seen = stage.seen(environment);
        assert!(seen.values().all(|pairs| pairs.len() == 1), "one key and app a connection: {seen:?}");
        let all: Vec<&str> = seen.values().map(|pairs| pairs[0].0.as_str()).collect();
        assert!(all.contains(&"KEY0000101") && all.contains(&"KEY0000201"), "{seen:?}");
    }
    assert_eq!(stage.apns.states().len(), 4, "a pool for each key and environment");
}

#[tokio::test(start_paused = true)]
async fn a_new_key_takes_over_once_it_is_usable_and_not_before() {
    let (old, new) = (key(1, 1, 1), key(1, 2, 2));
    let stage = Stage::new(&[old.clone(), old.clone()], std::slice::from_ref(&new), Some("KEY0000102"));
    stage.rings(0, Environment::Production).await;
    let key_ids = stage.apns.key_ids();
    let apns = stage.apns.clone();
    // The second app keeps the key.
    let wanted = pairs(&[new, old]);
    let updating = tokio::spawn(async move { apns.update(&wanted).await });

    // Nobody pushed to the sandbox yet: nothing is to be warmed there, and the new key is in use at once.
    for _ in 0..40 {
        sleep(Duration::from_secs(1)).await;
        stage.rings(0, Environment::Production).await;
        assert_eq!(stage.last_key(Environment::Production), "KEY0000101", "the old one goes on");
    }
    assert!(!updating.is_finished());
    assert_eq!(key_ids.get(0, Environment::Production).as_deref(), Some("KEY0000101"));
    assert_eq!(key_ids.get(0, Environment::Sandbox).as_deref(), Some("KEY0000102"));

    let before = stage.apple[0].connections_total();
    stage.reachable.lock().clear();
    let updated = timeout(Duration::from_secs(5), updating).await.expect("the new key is usable soon");
    updated.expect("no panic").expect("a sound key");
    stage.rings(0, Environment::Production).await;
    assert_eq!(stage.last_key(Environment::Production), "KEY0000102");
    stage.rings(0, Environment::Sandbox).await;
    assert_eq!(stage.last_key(Environment::Sandbox), "KEY0000102");
    stage.rings(1, Environment::Production).await;
    assert_eq!(stage.last_key(Environment::Production), "KEY0000101", "the other app keeps its connections");
    // Each connection has its own pause between dials.
    sleep(Duration::from_secs(5)).await;
    assert_eq!(
        stage.apple[0].connections_total(),
        before + CONNECTIONS as u64,
        "and nothing else was opened"
    );
    assert_eq!(key_ids.get(0, Environment::Production).as_deref(), Some("KEY0000102"));
    assert_eq!(key_ids.get(1, Environment::Production).as_deref(), Some("KEY0000101"));
}

#[tokio::test(start_paused = true)]
async fn open_streams_of_the_old_key_finish_and_then_its_pool_is_gone() {
    let (old, new) = (key(1, 1, 1), key(1, 2, 2));
    let stage = Stage::new(std::slice::from_ref(&old), std::slice::from_ref(&new), None);
    stage.rings(0, Environment::Production).await;
    stage.apple[0].faults().add(Fault::latency(SLOW, SLOW));
    let slow: Vec<_> = (0..20).map(|_| tokio::spawn(stage.push(0, Environment::Production))).collect();
    sleep(Duration::from_millis(100)).await;
    stage.apns.update(&pairs(&[new])).await.expect("a sound key");
    let late = tokio::spawn(stage.push(0, Environment::Production));
    let states = stage.apns.states();
    assert!(states.iter().all(|pool| pool.credential.contains("KEY0000102")), "{states:?}");
    for push in slow.into_iter().chain([late]) {
        assert_eq!(push.await.expect("no panic").expect("an answer").status, 200);
    }
    assert_eq!(stage.last_key(Environment::Production), "KEY0000102");
    let seen = stage.seen(Environment::Production);
    assert!(seen.values().all(|pairs| pairs.len() == 1), "one key a connection: {seen:?}");
    // The old pool says GOAWAY and goes.
    sleep(Duration::from_secs(1)).await;
    let count = |state| stage.connections("production", state);
    let left = (count("dialing"), count("usable"), count("draining"));
    assert_eq!(left, (0, i64::try_from(CONNECTIONS).expect("few"), 0));
    assert_eq!(stage.apple[0].connections_open(), CONNECTIONS);

    stage.apns.close().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!((count("dialing"), count("usable"), count("draining")), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_key_that_cannot_connect_waits_on_with_the_new_one() {
    let (old, new) = (key(1, 1, 1), key(1, 2, 2));
    let stage = Stage::new(std::slice::from_ref(&old), std::slice::from_ref(&new), Some("KEY0000101"));
    let waiting: Vec<_> = (0..20).map(|_| tokio::spawn(stage.push(0, Environment::Production))).collect();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.connections("production", "usable"), 0);
    stage.apns.update(&pairs(&[new])).await.expect("a sound key");
    for push in waiting {
        assert_eq!(push.await.expect("no panic").expect("an answer").status, 200);
    }
    assert_eq!(stage.last_key(Environment::Production), "KEY0000102");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.connections("production", "dialing"), 0, "nobody dials for the old key any more");
}

#[tokio::test(start_paused = true)]
async fn the_same_key_keeps_its_connections_and_another_one_in_the_same_file_does_not() {
    let old = key(1, 1, 1);
    // The file was wrong: Apple knows another key under this id.
    let (wrong, right) = (key(1, 1, 9), old);
    let stage = Stage::new(std::slice::from_ref(&right), &[], None);
    stage.rings(0, Environment::Production).await;
    let opened = stage.apple[0].connections_total();
    stage.apns.update(&pairs(std::slice::from_ref(&right))).await.expect("the same");
    stage.rings(0, Environment::Production).await;
    assert_eq!(stage.apple[0].connections_total(), opened);

    stage.apns.update(&pairs(std::slice::from_ref(&wrong))).await.expect("a key that can sign");
    let refused = stage.push(0, Environment::Production).await.expect("an answer");
    assert_eq!(refused.status, 403, "the other key is really used");
    stage.apns.update(&pairs(&[right])).await.expect("a sound key");
    stage.rings(0, Environment::Production).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_asked_for_and_never_came_is_given_up_for_a_later_one() {
    let (old, never, last) = (key(1, 1, 1), key(1, 2, 2), key(1, 3, 3));
    let stage = Stage::new(std::slice::from_ref(&old), &[never.clone(), last.clone()], Some("KEY0000102"));
    stage.rings(0, Environment::Production).await;
    let wanted = pairs(&[never]);
    let given_up = timeout(Duration::from_mins(1), stage.apns.update(&wanted)).await;
    assert!(given_up.is_err(), "it cannot be reached");
    stage.apns.update(&pairs(&[last])).await.expect("a sound key");
    stage.rings(0, Environment::Production).await;
    assert_eq!(stage.last_key(Environment::Production), "KEY0000103");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.connections("production", "dialing"), 0, "nobody dials for it any more");
    assert_eq!(stage.apns.states().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_one_app_leaves_lives_on_for_another_that_waits_for_it() {
    let [one, other, third] = [1, 2, 3].map(|number| key(1, number, number));
    let stage = Stage::new(&[one, other.clone()], std::slice::from_ref(&third), Some("KEY0000102"));
    stage.rings(0, Environment::Production).await;
    let apns = stage.apns.clone();
    let wanted = pairs(&[other, third]);
    let updating = tokio::spawn(async move { apns.update(&wanted).await });
    // Nobody is reached with the other key: its app is better off with the third at once.
    sleep(Duration::from_mins(1)).await;
    stage.rings(1, Environment::Production).await;
    assert_eq!(stage.last_key(Environment::Production), "KEY0000103");
    stage.rings(0, Environment::Production).await;
    assert_eq!(stage.last_key(Environment::Production), "KEY0000101", "it goes on until there is better");

    stage.reachable.lock().clear();
    let updated = timeout(Duration::from_secs(5), updating).await.expect("the other key is usable soon");
    updated.expect("no panic").expect("a sound key");
    stage.rings(0, Environment::Production).await;
    assert_eq!(stage.last_key(Environment::Production), "KEY0000102");
}
