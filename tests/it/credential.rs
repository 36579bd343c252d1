//! Keys and certificates of a running worker: they rotate under load without a push lost, and what is wrong with them is
//! told. Apple's side runs in the test's own process.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringcast::simulator::{Credential, DeviceState, Identity, Listening, Options, Record, Simulator};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::client_certificate::Authority;
use crate::place::Place;
use crate::plan::{now, written};
use crate::process::{POLL_EVERY, Process, RINGCAST, run_ringcast};
use crate::worker::{Config, GRACE, READY_WITHIN, Worker};

const OLD: &str = "KEY1234567";
const NEW: &str = "KEY7654321";
const TEAM: &str = "TEAM123456";
/// Answered 410 by the simulator.
const DEAD: &str = "dead01";

/// Apple with two keys of one team, listening on loopback.
struct Apple {
    simulator: Simulator,
    listening: Listening,
    ca: String,
    /// The .p8 files' contents, the old and the new key's.
    keys: [String; 2],
}

impl Apple {
    async fn start() -> Self {
        let [identity, other] = [(); 2].map(|()| Identity::ephemeral().expect("an identity can be made"));
        let further = Credential::new(TEAM, NEW, other.verifying_key());
        let options = Options { credentials: vec![further], ..Options::new(identity.verifying_key()) };
        let simulator = Simulator::new(options).expect("no file, no failure");
        simulator.devices().set(DEAD, DeviceState::Unregistered { since_ms: 1_790_000_000_000 });
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let listening = simulator.listen(address, identity.server_config()).await.expect("a free port");
        let keys = [identity.p8_pem().to_owned(), other.p8_pem().to_owned()];
        Self { simulator, listening, ca: identity.ca_pem().to_owned(), keys }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.listening.local_addr().port())
    }

    fn records(&self) -> Vec<Record> {
        self.simulator.journal().records()
    }

    /// Waits until a push came that this key signed.
    async fn await_key(&self, key_id: &str, pipe: &mut Process) {
        let until = Instant::now() + READY_WITHIN;
        while !self.records().iter().any(|record| signer(record) == key_id) {
            assert!(Instant::now() < until && pipe.lives(), "no push with {key_id}; {}", pipe.last_words());
            sleep(POLL_EVERY).await;
        }
    }
}

fn signer(record: &Record) -> &str {
    &record.authorization.as_ref().expect("a provider token").kid
}

/// A folder as Kubernetes mounts a secret: what one sees are links into `..data`, itself a link that is swapped.
struct Mount(PathBuf);

impl Mount {
    fn new(place: &Place) -> Self {
        let path = place.path("mount");
        fs::create_dir(&path).expect("the test's folder can be written");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Swaps all files at once: first the content, then the links that are new, then those that are gone.
    fn swap(&self, version: &str, files: &[(&str, &str)]) {
        let folder = self.path(&format!("..{version}"));
        fs::create_dir(&folder).expect("a new version");
        for (name, content) in files {
            fs::write(folder.join(name), content).expect("a file can be written");
        }
        symlink(format!("..{version}"), self.path("..data_tmp")).expect("a link can be made");
        fs::rename(self.path("..data_tmp"), self.path("..data")).expect("a link can be swapped");
        for (name, _) in files.iter().filter(|(name, _)| self.path(name).symlink_metadata().is_err()) {
            symlink(Path::new("..data").join(name), self.path(name)).expect("a link can be made");
        }
        for entry in fs::read_dir(&self.0).expect("a folder").flatten() {
            let name = entry.file_name().into_string().expect("the test's names are UTF-8");
            if !name.starts_with("..") && !files.iter().any(|(known, _)| *known == name) {
                fs::remove_file(entry.path()).expect("a link can be removed");
            }
        }
    }
}

/// A configuration of one app with this key in the mount, as text.
fn configuration(apple: &Apple, mount: &Mount, key_id: &str, ports: &Config) -> String {
    let folder = mount.0.display();
    format!(
        "[amqp]\nuri = \"amqp://guest:guest@127.0.0.1:9/%2f\"\n\
         [admin]\nlisten = \"127.0.0.1:{}\"\n\
         [apns]\nproduction = \"{url}\"\nsandbox = \"{url}\"\nca_file = \"{folder}/ca.pem\"\n\
         reload_interval = \"100ms\"\n\
         [apps.acme]\nbundle_id = \"com.acme.voice\"\n\
         [apps.acme.auth]\nteam_id = \"{TEAM}\"\nkey_id = \"{key_id}\"\nkey_file = \"{folder}/AuthKey_{key_id}.p8\"\n",
        ports.admin_port(),
        url = apple.url(),
    )
}

pub(crate) fn start_pipe(place: &Place, file: &Path) -> Process {
    let file = file.to_str().expect("the test's paths are UTF-8");
    Process::start(RINGCAST, &["pipe", "--config", file], &[], place.as_ref(), "pipe")
}

pub(crate) fn invite(number: usize, app: &str, token: &str) -> String {
    let deadline = written(now() + time::Duration::seconds(30));
    let call_id = format!("{number:08x}-0000-4000-8000-000000000000");
    let invite =
        json!({ "call_id": call_id, "app": app, "deadline": deadline, "devices": [{ "token": token }] });
    format!("{invite}\n")
}

/// Rings phones, a hundred a second, until `done` says so; returns how many.
async fn ring_until(pipe: &mut Process, first: usize, done: impl Fn() -> bool) -> usize {
    let until = Instant::now() + READY_WITHIN;
    let mut number = first;
    while !done() {
        assert!(Instant::now() < until, "it never came; {}", pipe.last_words());
        for _ in 0..2 {
            pipe.write(invite(number, "acme", &format!("ab{number:08x}")).as_bytes()).await;
            number += 1;
        }
        sleep(POLL_EVERY).await;
    }
    number
}

/// What the pipe answered: outcomes, then events.
pub(crate) fn answers(pipe: &Process) -> (Vec<Value>, Vec<Value>) {
    let lines: Vec<Value> =
        pipe.stdout().lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    lines.into_iter().partition(|line| line["type"] == "ringcast.outcome.v1")
}

#[tokio::test]
async fn a_key_rotates_under_load_as_a_mounted_secret_does() {
    let (place, apple) = (Place::new("rotation"), Apple::start().await);
    let (mount, ports) = (Mount::new(&place), Config::bare());
    let [old, new] = [OLD, NEW].map(|key_id| configuration(&apple, &mount, key_id, &ports));
    let ca = ("ca.pem", apple.ca.as_str());
    mount.swap("1", &[ca, ("ringcast.toml", &old), ("AuthKey_KEY1234567.p8", &apple.keys[0])]);
    let mut pipe = start_pipe(&place, &mount.path("ringcast.toml"));

    let sent = ring_until(&mut pipe, 0, || apple.records().len() > 100).await;
    mount.swap("2", &[ca, ("ringcast.toml", &new), ("AuthKey_KEY7654321.p8", &apple.keys[1])]);
    let pushes_of = |key_id: &str| apple.records().iter().filter(|record| signer(record) == key_id).count();
    let sent = ring_until(&mut pipe, sent, || pushes_of(NEW) > 200).await;
    pipe.write(invite(sent, "acme", DEAD).as_bytes()).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());

    let (outcomes, events) = answers(&pipe);
    assert_eq!(outcomes.len(), sent + 1, "an outcome each");
    let accepted = outcomes.iter().filter(|outcome| outcome["result"] == "accepted").count();
    assert_eq!(accepted, sent, "nothing failed: {}", pipe.last_words());
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["key_id"], NEW, "the event names the key that signed");

    let records = apple.records();
    assert_eq!(records.len(), sent + 1, "each phone rang once");
    let refused = records.iter().filter(|record| record.token != DEAD && record.status != Some(200));
    assert_eq!(refused.count(), 0, "no push was refused");
    let connections: BTreeSet<(u64, &str)> =
        records.iter().map(|record| (record.connection, signer(record))).collect();
    let numbers: BTreeSet<u64> = connections.iter().map(|(number, _)| *number).collect();
    assert_eq!(connections.len(), numbers.len(), "no connection saw both keys: {connections:?}");
    let keys: BTreeSet<&str> = connections.iter().map(|(_, key_id)| *key_id).collect();
    assert_eq!(keys, BTreeSet::from([OLD, NEW]));

    let log = pipe.stderr();
    let taken: Vec<&str> = log.lines().filter(|line| line.contains("a new credential is in use")).collect();
    assert!(
        taken.iter().all(|line| line.contains("acme") && line.contains(NEW)) && !taken.is_empty(),
        "{log}"
    );
    assert!(!log.contains("mistakes"), "a swap is no mistake: {log}");
    for secret in apple.keys.iter().filter_map(|key| key.lines().nth(1)) {
        assert!(!log.contains(secret), "no key in the log");
    }
}

#[tokio::test]
async fn a_mistake_changes_nothing_and_is_over_when_it_is_mended() {
    let (place, apple) = (Place::new("rotation-mistake"), Apple::start().await);
    let (mount, ports) = (Mount::new(&place), Config::bare());
    let config = |key_id| configuration(&apple, &mount, key_id, &ports);
    let ca = ("ca.pem", apple.ca.as_str());
    mount.swap("1", &[ca, ("ringcast.toml", &config(OLD)), ("AuthKey_KEY1234567.p8", &apple.keys[0])]);
    let file = mount.path("ringcast.toml");
    let mut worker =
        Worker::start_file(&place, file.to_str().expect("the test's paths are UTF-8"), &ports, "worker");
    worker.await_endpoint("/readyz", READY_WITHIN, |_, text| !text.contains("apns:")).await;
    let count = |result: &'static str, least: usize| {
        let series = format!("ringcast_credential_reloads_total{{result=\"{result}\"}} ");
        move |_, text: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
            value.is_some_and(|value: usize| value >= least)
        }
    };

    // The new key is not there, and a setting is wrong.
    let wrong = config(NEW).replace("[apps.acme]\n", "[apps.acme]\nexpiration_max = \"soon\"\n");
    mount.swap("2", &[ca, ("ringcast.toml", &wrong)]);
    worker.await_endpoint("/metrics", READY_WITHIN, count("refused", 1)).await;
    sleep(Duration::from_millis(500)).await;
    let log = worker.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("has mistakes")).collect();
    assert_eq!(told.len(), 1, "the same mistakes are told once: {told:?}");
    assert!(told[0].contains("apps.acme.expiration_max") && told[0].contains("key_file"), "{}", told[0]);
    let (_, ready) = worker.fetch("/readyz").await;
    assert!(!ready.contains("apns:"), "the pool goes on: {ready}");

    // Mended, with another setting that waits for a start.
    let right = config(NEW) + "[worker]\nattempts_max = 2\n";
    mount.swap("3", &[ca, ("ringcast.toml", &right), ("AuthKey_KEY7654321.p8", &apple.keys[1])]);
    worker.await_endpoint("/metrics", READY_WITHIN, count("taken", 1)).await;
    let log = worker.log();
    assert!(log.contains("worker.attempts_max") && log.contains("take effect at the next start"), "{log}");
    assert!(log.contains("a new credential is in use"), "{log}");
    assert_eq!(log.matches("the configuration has no mistakes any more").count(), 1, "{log}");
    // Once the old pool has drained, its connections are neither open nor counted.
    let drained = |_, text: &str| {
        let state = |state: &str, count: u32| {
            let series = format!("ringcast_apns_connections{{environment=\"production\",state=\"{state}\"}}");
            text.lines().any(|line| line == format!("{series} {count}"))
        };
        state("usable", 2) && state("draining", 0) && state("dialing", 0)
    };
    worker.await_endpoint("/metrics", READY_WITHIN, drained).await;
    worker.stop().await;
}

#[tokio::test]
async fn all_shards_take_a_new_key_and_it_is_read_once() {
    let (place, apple) = (Place::new("rotation-shards"), Apple::start().await);
    let (mount, ports) = (Mount::new(&place), Config::bare());
    let config = |key_id| configuration(&apple, &mount, key_id, &ports) + "[worker]\nshards = 2\n";
    let ca = ("ca.pem", apple.ca.as_str());
    mount.swap("1", &[ca, ("ringcast.toml", &config(OLD)), ("AuthKey_KEY1234567.p8", &apple.keys[0])]);
    let file = mount.path("ringcast.toml");
    let mut worker =
        Worker::start_file(&place, file.to_str().expect("the test's paths are UTF-8"), &ports, "worker");
    let usable = "ringcast_apns_connections{environment=\"production\",state=\"usable\"} 4\n";
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(usable)).await;

    mount.swap("2", &[ca, ("ringcast.toml", &config(NEW)), ("AuthKey_KEY7654321.p8", &apple.keys[1])]);
    let taken = "ringcast_credential_reloads_total{result=\"taken\"} 1\n";
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(taken)).await;
    // Once the old pools have drained, their connections are neither open nor counted.
    let drained = "ringcast_apns_connections{environment=\"production\",state=\"draining\"} 0\n";
    let drained = |_, text: &str| [usable, drained, taken].iter().all(|line| text.contains(line));
    worker.await_endpoint("/metrics", READY_WITHIN, drained).await;
    let log = worker.log();
    let taken: BTreeSet<String> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("the log is JSON"))
        .filter(|line: &Value| line["message"] == "a new credential is in use")
        .map(|line| line["threadName"].as_str().expect("several shards are told apart").to_owned())
        .collect();
    assert_eq!(taken, BTreeSet::from(["shard-1".to_owned(), "shard-2".to_owned()]), "{log}");
    worker.stop().await;
}

#[tokio::test]
async fn an_app_whose_topic_changes_keeps_its_key_until_a_start() {
    let (place, apple) = (Place::new("rotation-topic"), Apple::start().await);
    let (mount, ports) = (Mount::new(&place), Config::bare());
    let config = |key_id| configuration(&apple, &mount, key_id, &ports);
    let ca = ("ca.pem", apple.ca.as_str());
    mount.swap("1", &[ca, ("ringcast.toml", &config(OLD)), ("AuthKey_KEY1234567.p8", &apple.keys[0])]);
    let mut pipe = start_pipe(&place, &mount.path("ringcast.toml"));
    let sent = ring_until(&mut pipe, 0, || apple.records().len() > 20).await;

    // The new key may be another team's, which knows nothing of the old topic.
    let moved = config(NEW).replace("com.acme.voice", "com.acme.talk");
    mount.swap("2", &[ca, ("ringcast.toml", &moved), ("AuthKey_KEY7654321.p8", &apple.keys[1])]);
    let told = pipe.says("what waits", READY_WITHIN, |log| {
        let line = log.lines().find(|line| line.contains("take effect at the next start"))?;
        Some(line.contains("apps.acme.bundle_id") && line.contains("apps.acme.auth"))
    });
    assert!(told.await, "{}", pipe.last_words());
    let before = apple.records().len();
    ring_until(&mut pipe, sent, || apple.records().len() > before + 50).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());
    assert!(apple.records().iter().all(|record| signer(record) == OLD), "{}", pipe.last_words());
}

#[tokio::test]
async fn a_certificate_that_apns_would_refuse_does_not_take_a_good_ones_place() {
    let (place, apple) = (Place::new("rotation-certificate"), Apple::start().await);
    let (mount, ports) = (Mount::new(&place), Config::bare());
    let (authority, days) = (Authority::new(), time::Duration::DAY);
    let issue =
        |begin, end| authority.issue("com.talk.voice", now() + days * begin, now() + days * end).pem();
    let file = format!("{}/voip.pem", mount.0.display());
    let config = configuration(&apple, &mount, OLD, &ports)
        + "[apps.talk]\nbundle_id = \"com.talk.voice\"\n"
        + &format!("[apps.talk.auth]\ncert_file = \"{file}\"\nkey_file = \"{file}\"\n");
    let key = ("AuthKey_KEY1234567.p8", apple.keys[0].as_str());
    let ca = ("ca.pem", apple.ca.as_str());
    let swap = |version: &str, certificate: &str| {
        mount.swap(version, &[ca, key, ("ringcast.toml", &config), ("voip.pem", certificate)]);
    };
    swap("1", &issue(-100, 100));
    let mut pipe = start_pipe(&place, &mount.path("ringcast.toml"));
    pipe.says("that it has started", READY_WITHIN, |log| log.find("connected to APNs")).await;
    for (version, begin, end, wrong) in [("2", -9, -1, "expired on"), ("3", 1, 365, "is not valid before")] {
        swap(version, &issue(begin, end));
        let is_refusal = |line: &str| line.contains("has mistakes") && line.contains(wrong);
        pipe.says("what is wrong", READY_WITHIN, |log| log.lines().position(is_refusal)).await;
    }
    assert!(!pipe.stderr().contains("a new credential is in use"), "{}", pipe.last_words());
    swap("4", &issue(-1, 365));
    pipe.says("that it is renewed", READY_WITHIN, |log| log.find("a new credential is in use")).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());
}

#[tokio::test]
async fn new_trust_roots_are_for_new_connections() {
    let (place, mut apple) = (Place::new("roots"), Apple::start().await);
    let (mount, ports) = (Mount::new(&place), Config::bare());
    let config = configuration(&apple, &mount, OLD, &ports);
    let key = ("AuthKey_KEY1234567.p8", apple.keys[0].as_str());
    mount.swap("1", &[("ca.pem", &apple.ca), key, ("ringcast.toml", &config)]);
    let mut pipe = start_pipe(&place, &mount.path("ringcast.toml"));
    let sent = ring_until(&mut pipe, 0, || apple.records().len() > 20).await;

    let moved = Identity::ephemeral().expect("an identity can be made");
    mount.swap("2", &[("ca.pem", moved.ca_pem()), key, ("ringcast.toml", &config)]);
    pipe.says("that the roots changed", READY_WITHIN, |log| log.find("the trust roots for APNs changed"))
        .await;
    let before = (apple.records().len(), apple.simulator.connections_total());
    let sent = ring_until(&mut pipe, sent, || apple.records().len() > before.0 + 20).await;
    assert_eq!(apple.simulator.connections_total(), before.1, "open connections stay");

    // Apple moves to a certificate of the new authority.
    let address = apple.listening.local_addr();
    apple.listening.shutdown().await;
    apple.listening = apple.simulator.listen(address, moved.server_config()).await.expect("its port is free");
    let before = apple.simulator.journal().count();
    let sent = ring_until(&mut pipe, sent, || apple.simulator.journal().count() > before + 20).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());
    let (outcomes, _) = answers(&pipe);
    let accepted = outcomes.iter().filter(|outcome| outcome["result"] == "accepted").count();
    assert_eq!((outcomes.len(), accepted), (sent, sent), "{}", pipe.last_words());
}

#[tokio::test]
async fn an_expired_certificate_is_a_mistake_and_keeps_nobody_else_from_ringing() {
    let (place, apple) = (Place::new("expired"), Apple::start().await);
    let (mount, ports) = (Mount::new(&place), Config::bare());
    let (authority, days) = (Authority::new(), time::Duration::DAY);
    let expired = authority.issue("com.old.voice", now() - days * 400, now() - days * 35);
    let soon = authority.issue("com.soon.voice", now() - days * 350, now() + days * 15 + days / 2);
    let config = ["old", "soon"].iter().fold(configuration(&apple, &mount, OLD, &ports), |text, app| {
        let file = format!("{}/{app}.pem", mount.0.display());
        text + &format!(
            "[apps.{app}]\nbundle_id = \"com.{app}.voice\"\n\
             [apps.{app}.auth]\ncert_file = \"{file}\"\nkey_file = \"{file}\"\n"
        )
    });
    let ca = ("ca.pem", apple.ca.as_str());
    let key = ("AuthKey_KEY1234567.p8", apple.keys[0].as_str());
    let old = expired.pem();
    mount.swap("1", &[ca, key, ("ringcast.toml", &config), ("old.pem", &old), ("soon.pem", &soon.pem())]);
    let file = mount.path("ringcast.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");

    let ended = run_ringcast(&["check", "--config", file], &[], place.as_ref()).await;
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    let day = expired.not_after.date().to_string();
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    for word in ["apps.old.auth.cert_file (", "ringcast.toml:19)", "old.pem", "expired on", &day, "renew"] {
        assert!(ended.stderr.contains(word), "{word} in {}", ended.stderr);
    }

    let mut worker = Worker::start_file(&place, file, &ports, "worker");
    let expiry = |app: &str, at: time::OffsetDateTime| {
        format!("ringcast_credential_expiry_timestamp_seconds{{app=\"{app}\"}} {}", at.unix_timestamp())
    };
    let lines = [expiry("old", expired.not_after), expiry("soon", soon.not_after)];
    let has_all = |_, text: &str| lines.iter().all(|line| text.lines().any(|other| other == line));
    let text = worker.await_endpoint("/metrics", READY_WITHIN, has_all).await;
    assert!(!text.contains("expiry_timestamp_seconds{app=\"acme\"}"), "a key does not expire");
    let log = worker.log();
    let line = |what: &str| log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{log}"));
    for (level, word) in [("ERROR", "old.pem expired on"), ("WARN", "soon.pem expires on")] {
        assert!(line(word).contains(level), "{log}");
    }
    assert!(line("expired on").contains(&day) && line("expired on").contains("\"old\""), "{log}");
    worker.await_endpoint("/readyz", READY_WITHIN, |_, text| !text.contains("with key")).await;
    worker.stop().await;

    // The good app rings.
    let mut pipe = start_pipe(&place, Path::new(file));
    pipe.write(invite(1, "acme", "ab01").as_bytes()).await;
    apple.await_key(OLD, &mut pipe).await;
    pipe.write(invite(2, "old", "ab02").as_bytes()).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());
    let (outcomes, _) = answers(&pipe);
    let of = |app: &str| outcomes.iter().find(|outcome| outcome["app"] == app).expect("an outcome each");
    assert_eq!(of("acme")["result"], "accepted");
    let device = &of("old")["devices"][0];
    assert_eq!(
        (&device["result"], &device["action"]),
        (&json!("rejected"), &json!("fix_config")),
        "{device}"
    );
    assert_eq!(device["reason"], "BadCertificate");

    // Renewed, all is right, with a word about the other.
    let renewed = authority.issue("com.old.voice", now() - days, now() + days * 365);
    mount.swap(
        "2",
        &[ca, key, ("ringcast.toml", &config), ("old.pem", &renewed.pem()), ("soon.pem", &soon.pem())],
    );
    let ended = run_ringcast(&["check", "--config", file], &[], place.as_ref()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("warning: apps.soon.auth.cert_file ("), "{}", ended.stdout);
}
