//! The configuration as a whole: what is right, and in which order mistakes come.

mod credential;
mod refusal;
mod secret;

use super::source::{Entry, Layer, Path, Value};
use super::*;
use p256::SecretKey;
use p256::pkcs8::{self, EncodePrivateKey as _, LineEnding};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

/// A folder of key files and certificates for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringcast-config-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        let folder = Self(path);
        folder.write("key.p8", &pem(1));
        folder
    }

    /// Writes a file and gives its path.
    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("a temporary file");
        path.display().to_string()
    }

    /// A complete app, followed by more lines.
    fn app(&self, more: &str) -> String {
        let folder = self.0.display();
        format!(
            "[apps.acme]\nbundle_id = \"com.acme.voice\"\n\
             auth = {{ team_id = \"TEAM123456\", key_id = \"KEY1234567\", key_file = \"{folder}/key.p8\" }}\n{more}"
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pem(seed: u8) -> String {
    let key = SecretKey::from_slice(&[seed; 32]).expect("a scalar below the order");
    key.to_pkcs8_pem(LineEnding::LF).expect("a key in PEM").to_string()
}

fn certificate() -> String {
    let certified = rcgen::generate_simple_self_signed(["broker".to_owned()]).expect("a certificate");
    pkcs8::der::pem::encode_string("CERTIFICATE", LineEnding::LF, certified.cert.der()).expect("PEM")
}

fn read_with(text: &str, environment: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let variables: Vec<(OsString, OsString)> =
        environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    match read_layers(Layer::toml("c.toml", text), &variables) {
        Examined { config: Some(config), mistakes: None } => Ok(config),
        Examined { mistakes, .. } => Err(mistakes.expect("a refusal says why")),
    }
}

fn right(text: &str, environment: &[(&str, &str)]) -> Config {
    read_with(text, environment).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn wrong(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    match read_with(text, environment) {
        Ok(_) => panic!("no mistake was found in\n{text}\n{environment:?}"),
        Err(mistakes) => mistakes.lines().map(str::to_owned).collect(),
    }
}

/// `config/default.toml` with its commented keys: they have no space after the `#`.
fn uncommented() -> String {
    let key = |line: &&str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
    DEFAULT_TOML
        .lines()
        .map(|line| if key(&line) { &line[1..] } else { line })
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_reference_and_the_code_know_the_same_keys() {
    let file = Layer::toml("c.toml", "apps.acme.auth_sandbox = {}").expect("TOML");
    let mut reader = Reader::new(file, Layer::default(), Vec::new());
    let _ = read(&mut reader, String::new);
    let code: BTreeSet<String> = reader.keys().iter().map(Path::to_string).collect();
    let is_key = |(path, entry): (Path, Entry)| (entry.value != Value::Table).then(|| path.to_string());
    let reference: BTreeSet<String> =
        Layer::toml("default.toml", &uncommented()).expect("TOML").0.into_iter().filter_map(is_key).collect();
    assert_eq!(code, reference);
}

#[test]
fn the_reference_is_itself_a_right_configuration() {
    let folder = Folder::new("reference");
    let text = uncommented().replace("/run/secrets/AuthKey_", &format!("{}/AuthKey_", folder.0.display()));
    folder.write("AuthKey_KEY1234567.p8", &pem(1));
    folder.write("AuthKey_KEY7654321.p8", &pem(2));
    // `uri_file` stands beside `uri` there, as its default.
    let config = right(&text, &[("HOSTNAME", "ringcast-7c9f")]);
    assert_eq!(config.apns.credentials[0][1].key_id(), Some("KEY7654321"));
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let folder = Folder::new("defaults");
    let config = right(&folder.app(""), &[("HOSTNAME", "ringcast-7c9f")]);
    assert_eq!(config.amqp.uri, "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!(config.amqp.invites, ["ringcast.invites"]);
    assert_eq!(config.amqp.results_exchange, "ringcast.results");
    assert_eq!((config.amqp.prefetch, config.amqp.live, config.amqp.declare), (500, false, false));
    assert_eq!(
        config.apns.endpoint(crate::domain::app::Environment::Sandbox).host,
        "api.sandbox.push.apple.com"
    );
    assert_eq!(config.apns.request_timeout, Duration::from_secs(5));
    assert_eq!(config.apns.connections, 2..=8);
    assert_eq!(config.worker.name, "ringcast-7c9f");
    assert_eq!((config.worker.devices_max, config.worker.invite_bytes_max), (100, 65536));
    assert_eq!(config.worker.deadline_max, Duration::from_mins(5));
    assert_eq!((config.worker.ring_time_min, config.worker.attempts_max), (Duration::ZERO, 3));
    assert_eq!(config.worker.answer_grace, Duration::from_secs(1));
    assert_eq!(config.shutdown_grace, Duration::from_secs(30));
    assert_eq!(config.admin.listen.to_string(), "0.0.0.0:9090");
    assert_eq!(config.log.format, Format::Auto);
    assert_eq!(config.apps.len(), 1);
    assert_eq!(config.apps[0].topic(), "com.acme.voice.voip");
    assert_eq!(config.apps[0].payload.call_id, "callUUID");
    assert_eq!(config.apns.credentials[0][0].to_string(), "key KEY1234567 of team TEAM123456");
    assert_eq!(config.apns.credentials[0][1].key_id(), Some("KEY1234567"));
}

#[test]
fn a_proxy_has_a_place_and_perhaps_a_login() {
    let folder = Folder::new("proxy");
    let proxy = |lines: &str| right(&folder.app(&format!("[apns]\n{lines}")), &[]).apns.proxy;
    assert_eq!(proxy("proxy = \"\""), None);
    let found = proxy("proxy = \"http://proxy.internal:3128\"").expect("a proxy");
    assert_eq!((found.place.to_string(), found.credentials_file), ("proxy.internal:3128".to_owned(), None));
    let file = folder.write("login", "\n me:hush: \n");
    let found = proxy(&format!("proxy = \"HTTP://[::1]:8080\"\nproxy_credentials_file = {file:?}"));
    let found = found.expect("a proxy");
    assert_eq!(
        (found.place.to_string(), found.credentials_file),
        ("[::1]:8080".to_owned(), Some(PathBuf::from(file)))
    );
}

#[test]
fn apps_stand_by_name_and_share_the_template() {
    let folder = Folder::new("apps");
    let zeta = folder.app("expiration_max = \"30s\"\n").replace("apps.acme", "apps.zeta");
    let alpha = folder
        .app("[apps.alpha.payload]\ncall_id = \"\"\nhandle = \"\"\n")
        .replace("apps.acme", "apps.alpha");
    let config = right(&format!("{zeta}{alpha}"), &[]);
    let names: Vec<(usize, &str)> = config.apps.iter().map(|app| (app.index, app.name.as_str())).collect();
    assert_eq!(names, [(0, "alpha"), (1, "zeta")]);
    assert_eq!((config.apps[0].payload.call_id.as_str(), config.apps[0].payload.handle.as_str()), ("", ""));
    assert_eq!(config.apps[1].payload.handle, "handle");
    assert_eq!(config.apps[1].expiration_max, Duration::from_secs(30));
}

#[test]
fn the_environment_overrides_the_file_and_needs_none() {
    let folder = Folder::new("environment");
    let key_file = folder.0.join("key.p8").display().to_string();
    let uri_file = folder.write("uri", "amqp://a:b@broker/%2f\n");
    let config = right(
        "amqp.uri = \"amqp://file:pw@file/%2f\"\nworker.name = \"file\"\n",
        &[
            ("RINGCAST__APPS__ACME__BUNDLE_ID", "com.acme.voice"),
            ("RINGCAST__APPS__ACME__AUTH__TEAM_ID", "TEAM123456"),
            ("RINGCAST__APPS__ACME__AUTH__KEY_ID", "1234567890"),
            ("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &key_file),
            ("RINGCAST__AMQP__INVITES", r#"["a","b"]"#),
            ("RINGCAST__AMQP__PREFETCH", "0x10"),
            ("RINGCAST__AMQP__LIVE", "true"),
            ("RINGCAST__AMQP__URI_FILE", &uri_file),
            ("RINGCAST__WORKER__NAME", "1"),
            ("RINGCAST__LOG__FORMAT", "json"),
            ("RINGCAST_SERVICE_HOST", "10.0.0.1"),
        ],
    );
    assert_eq!(config.amqp.invites, ["a", "b"]);
    assert_eq!((config.amqp.prefetch, config.amqp.live), (16, true));
    assert_eq!(config.amqp.uri, "amqp://a:b@broker/%2f");
    assert_eq!(config.worker.name, "1", "texts are raw");
    assert_eq!(config.apns.credentials[0][0].key_id(), Some("1234567890"), "texts are raw, digits too");
    assert_eq!(config.log.format, Format::Json);
}

#[test]
fn what_comes_through_a_pipe_is_read_once() {
    let folder = Folder::new("once");
    let file = folder.0.join("c.toml");
    std::fs::write(&file, folder.app("")).expect("the test's folder can be written");
    let config = load(Some(&file), Vec::<(String, String)>::new()).expect("a right configuration");
    assert!(config.can_be_read_again());
    let key_file = folder.0.join("key.p8").display().to_string();
    let app = [
        ("RINGCAST__APPS__ACME__BUNDLE_ID", "com.acme.voice"),
        ("RINGCAST__APPS__ACME__AUTH__TEAM_ID", "TEAM123456"),
        ("RINGCAST__APPS__ACME__AUTH__KEY_ID", "KEY1234567"),
        ("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &key_file),
    ];
    assert!(load(None, app).expect("a right configuration").can_be_read_again(), "there is no file of it");
    let no_file = load(Some(std::path::Path::new("/dev/null")), app).expect("a right configuration");
    assert!(!no_file.can_be_read_again());
}

#[test]
fn a_later_uri_beats_an_earlier_uri_file() {
    let folder = Folder::new("uri");
    let uri_file = folder.write("uri", "amqp://a:b@from-file/%2f");
    let text = folder.app(&format!("[amqp]\nuri_file = \"{uri_file}\"\n"));
    assert_eq!(right(&text, &[]).amqp.uri, "amqp://a:b@from-file/%2f");
    let config = right(&text, &[("RINGCAST__AMQP__URI", "amqps://a:b@from-variable/x")]);
    assert_eq!(config.amqp.uri, "amqps://a:b@from-variable/x");
}

#[test]
fn all_mistakes_come_at_once_in_the_order_of_the_file_then_the_variables() {
    let text = "[worker]\nattempts_max = 0\n[apps.acme]\nbundle_id = 3\nenvironment = \"prod\"\n[amqp]\nlive = 1\nprefech = 2\n[apns]\nconnections = 0\n";
    let found = wrong(text, &[("RINGCAST__LOG__FORMAT", "xml"), ("RINGCAST__ADMIN__LISTEN", "x")]);
    let starts: Vec<&str> = found.iter().map(|line| line.split_once("): ").expect("a place").0).collect();
    assert_eq!(
        starts,
        [
            "worker.attempts_max (c.toml:2",
            "apps.acme.auth.team_id (c.toml:3",
            "apps.acme.auth.key_id (c.toml:3",
            "apps.acme.auth.key_file (c.toml:3",
            "apps.acme.bundle_id (c.toml:4",
            "apps.acme.environment (c.toml:5",
            "amqp.live (c.toml:7",
            "amqp.prefech (c.toml:8",
            "apns.connections (c.toml:10",
            "admin.listen (RINGCAST__ADMIN__LISTEN",
            "log.format (RINGCAST__LOG__FORMAT",
        ]
    );
}

#[test]
fn who_needs_the_broker_alone_is_told_of_what_there_is_not() {
    let folder = Folder::new("broker-side");
    let file = folder.0.join("c.toml");
    let found = |text: &str, variables: &[(&str, &str)]| {
        std::fs::write(&file, text).expect("the test's folder can be written");
        let mistakes = load_broker_side(Some(&file), variables.iter().copied()).err();
        let lines = mistakes.iter().flat_map(Mistakes::lines).map(str::to_owned);
        lines.map(|line| line.replace(&file.display().to_string(), "c.toml")).collect::<Vec<_>>()
    };
    let of_others = "[apns]\nconnections = 0\nx = 1\n[admin]\nlisten = 1\n[traces]\nx = 1\n[apps.acme]\nx = 1\n[apps.acme.y]\n";
    assert!(found(of_others, &[("RINGCAST__APPS__ACME__AUTH__KEY_FILE", "/none")]).is_empty());
    assert_eq!(
        found("prefetch = 5\n[amq]\nuri = \"amqp://worker:pw@rabbit/x\"\n[worker]\nnamme = \"x\"", &[]),
        [
            "prefetch (c.toml:1): is not a known key; did you mean amqp.prefetch?",
            "amq (c.toml:2): is not a known section; did you mean amqp?",
            "worker.namme (c.toml:5): is not a known key; did you mean worker.name?",
        ]
    );
    assert_eq!(
        found("", &[("RINGCAST__AMQ__URI", "amqp://worker:pw@rabbit/x")]),
        ["amq.uri (RINGCAST__AMQ__URI): is not a known key; did you mean amqp.uri?"]
    );
}

#[test]
fn a_file_that_is_no_toml_says_line_and_column() {
    let found = wrong("[amqp]\nuri = amqp://me:hush-hush@host\nlive = true", &[]);
    assert!(found[0].starts_with("c.toml:2:7: "), "{found:?}");
    assert!(!found.join("\n").contains("hush"), "{found:?}");
    let found = wrong("[amqp]\nlive = true\nlive = false", &[]);
    assert_eq!(found, ["c.toml:3:1: duplicate key \"live\"; keep one of the two"]);
    let found = wrong("[amqp]\nlive = true\n[worker]\n[amqp]\nlive = false", &[]);
    assert_eq!(found[0], "c.toml:4:2: duplicate key \"amqp\"; keep one of the two");
}

#[test]
fn a_file_that_cannot_be_read_is_one_mistake() {
    let missing = load(Some(std::path::Path::new("/none/c.toml")), Vec::<(String, String)>::new());
    let mistakes = missing.err().expect("a mistake").to_string();
    assert!(
        mistakes.starts_with("--config /none/c.toml: cannot be read: No such file or directory"),
        "{mistakes}"
    );
    let folder = Folder::new("unreadable");
    let latin = folder.0.join("latin.toml");
    std::fs::write(&latin, b"name = \"\xe9\"").expect("a file");
    let mistakes = load(Some(&latin), Vec::<(String, String)>::new()).err().expect("a mistake").to_string();
    assert!(mistakes.ends_with("is not UTF-8 text; it must be another file that is meant"), "{mistakes}");
}

#[test]
fn a_described_uri_has_no_password() {
    assert_eq!(
        describe_uri("amqps://me:hush@broker/%2f?heartbeat=10"),
        "amqps://me:***@broker:5671, vhost \"/\""
    );
    assert_eq!(describe_uri("me:hush"), "(not shown)");
}

/// It names files that only a cluster has; but for those it must be right.
#[test]
fn the_production_example_misses_nothing_but_its_files() {
    let text = include_str!("../../config/production.example.toml");
    for line in wrong(text, &[]) {
        assert!(line.contains("\"/run/secrets/") && line.contains("cannot be read"), "{line}");
    }
    let folder = Folder::new("production");
    folder.write("amqp-uri", "amqps://ringcast:pw@rabbitmq.messaging.svc:5671/calls\n");
    folder.write("amqp-ca.pem", &certificate());
    folder.write("AuthKey_ACMEPROD01.p8", &pem(1));
    folder.write("AuthKey_ACMESBOX01.p8", &pem(2));
    let (certificate, key) = credential::identity(4);
    folder.write("customer-voip.pem", &(certificate + &key));
    let place = folder.0.display().to_string();
    let text = text.replace("/run/secrets/ringcast/", &format!("{place}/"));
    let config = right(&text.replace("/run/secrets/apns/", &format!("{place}/")), &[]);
    assert!(config.amqp.uri.starts_with("amqps://"), "production goes over TLS");
    assert!(!config.amqp.declare, "production declares nothing by itself");
}
