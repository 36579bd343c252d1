//! Senders that are not ours: curl and h2load against `apns-simulator`. What they get is Apple's table, read once more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::base64;
use crate::place::Place;
use crate::process::{APNS_SIMULATOR, Process};

const TOKEN: &str = "00aa11bb22cc33dd44ee55ff66007788";
const ID: &str = "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a";
const TOPIC: &str = "com.acme.voice.voip";
const PAYLOAD: &str = r#"{"aps":{},"callUUID":"6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a"}"#;
const PATIENCE: Duration = Duration::from_mins(1);

/// A simulator with a folder of its own.
struct Apple {
    place: Place,
    process: Process,
    urls: Vec<String>,
}

impl Apple {
    async fn start(name: &str, listeners: usize, more: &[&str]) -> Self {
        let place = Place::new(name);
        let mut args = vec!["--identity", "identity", "--journal", "journal.jsonl"];
        args.extend(["--listen", "127.0.0.1:0"].repeat(listeners));
        args.extend(more);
        let mut process = Process::start(APNS_SIMULATOR, &args, &[], place.as_ref(), "apns-simulator");
        let urls = process
            .says("where it listens", PATIENCE, |text| {
                let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
                let said = lines.filter_map(|line| line.trim().split_once("listening on "));
                let urls: Vec<_> = said.map(|(_, url)| url.replace("127.0.0.1", "localhost")).collect();
                (urls.len() == listeners).then_some(urls)
            })
            .await;
        Self { place, process, urls }
    }

    fn file(&self, name: &str) -> String {
        self.place.path("identity").join(name).to_str().expect("the test's paths are UTF-8").to_owned()
    }

    /// A provider token of its key, signed here (RFC 7518 section 3.4).
    fn authorization(&self) -> String {
        #[expect(clippy::disallowed_methods, reason = "a sender has a clock of its own")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs();
        let pem = std::fs::read_to_string(self.file("AuthKey_KEY1234567.p8")).expect("it makes its key");
        let key = SigningKey::from_pkcs8_pem(&pem).expect("it is a P-256 key");
        let url = |bytes: &[u8]| base64::encode(bytes).replace('+', "-").replace('/', "_").replace('=', "");
        let header = json!({ "alg": "ES256", "kid": "KEY1234567" }).to_string();
        let claims = json!({ "iss": "TEAM123456", "iat": now }).to_string();
        let signed = format!("{}.{}", url(header.as_bytes()), url(claims.as_bytes()));
        let signature: Signature = key.sign(signed.as_bytes());
        format!("bearer {signed}.{}", url(&signature.to_bytes()))
    }

    fn push(&self) -> Curl {
        let authorization = self.authorization();
        let headers = [
            ("authorization", authorization.as_str()),
            ("apns-topic", TOPIC),
            ("apns-push-type", "voip"),
            ("apns-priority", "10"),
            ("apns-expiration", "0"),
            ("apns-id", ID),
        ];
        Curl {
            method: "POST",
            url: self.urls[0].clone(),
            path: format!("/3/device/{TOKEN}"),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            body: PAYLOAD.into(),
            more: vec!["--cacert".into(), self.file("ca.pem")],
        }
    }

    /// Stops it and reads its journal.
    async fn stop(mut self) -> Vec<Value> {
        self.process.terminate();
        let status = self.process.ended(PATIENCE).await;
        assert!(status.success(), "{}", self.process.last_words());
        let text = std::fs::read_to_string(self.place.path("journal.jsonl")).expect("it writes its journal");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }
}

/// One request of curl's.
#[derive(Clone)]
struct Curl {
    method: &'static str,
    url: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    more: Vec<String>,
}

#[derive(Debug)]
struct Answer {
    status: String,
    version: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn reason(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["reason"].as_str().unwrap_or_default().to_owned()
    }
}

impl Curl {
    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    fn add(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn set(self, name: &str, value: &str) -> Self {
        self.without(name).add(name, value)
    }

    fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    async fn send(&self) -> Answer {
        let mut command = foreign("curl");
        command.args(["--http2", "--silent", "--show-error", "--path-as-is", "--max-time", "30"]);
        command.args(["--dump-header", "-", "--write-out", "\n%{http_code} %{http_version}"]);
        command.args(["--request", self.method]).args(&self.more);
        for (name, value) in &self.headers {
            command.args(["--header", &format!("{name}: {value}")]);
        }
        if !self.body.is_empty() {
            command.args(["--data-binary", &self.body]);
        }
        let said = run(command.arg(format!("{}{}", self.url, self.path))).await;
        let (rest, last) = said.trim_end().rsplit_once('\n').expect("curl writes a last line");
        let (status, version) = last.split_once(' ').expect("status and version");
        let (head, body) = rest.split_once("\r\n\r\n").expect("an empty line ends the headers");
        let headers = head.lines().filter_map(|line| line.split_once(": "));
        Answer {
            status: status.into(),
            version: version.into(),
            headers: headers.map(|(name, value)| (name.into(), value.trim().into())).collect(),
            body: body.into(),
        }
    }

    /// "200", or the status and Apple's reason.
    async fn outcome(&self) -> String {
        let answer = self.send().await;
        format!("{} {}", answer.status, answer.reason()).trim_end().to_owned()
    }
}

fn foreign(program: &str) -> Command {
    let mut command = Command::new(program);
    command.kill_on_drop(true).stdin(std::process::Stdio::null());
    command
}

async fn run(command: &mut Command) -> String {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = timeout(PATIENCE, command.output()).await.unwrap_or_else(|_| panic!("{name} does not end"));
    let output = output.unwrap_or_else(|error| panic!("no {name} here ({error}): run 'tests/run prepare'"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it writes text")
}

fn payload(bytes: usize) -> String {
    format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8))
}

#[tokio::test]
async fn curl_is_answered_by_apples_table() {
    let apple = Apple::start("curl", 1, &["--bundle-id", "com.acme.voice"]).await;
    let right = || apple.push();
    let answer = right().send().await;
    assert_eq!((&*answer.status, &*answer.version, &*answer.body), ("200", "2", ""), "{answer:?}");
    assert_eq!(answer.headers["apns-id"], ID, "echoed");
    assert!(!answer.headers.contains_key("apns-unique-id"), "in the sandbox alone");

    let get = Curl { method: "GET", ..right().body("") };
    let wrong = [
        ("no topic", right().without("apns-topic"), "400 MissingTopic"),
        ("alert topic", right().set("apns-topic", "com.acme.voice"), "400 BadTopic"),
        ("another app", right().set("apns-topic", "com.acme.chat.voip"), "400 TopicDisallowed"),
        ("bad path", right().path(format!("/2/device/{TOKEN}")), "404 BadPath"),
        ("deeper path", right().path(format!("/3/device/{TOKEN}/x")), "404 BadPath"),
        ("no device token", right().path("/3/device/"), "400 MissingDeviceToken"),
        ("no hex", right().path("/3/device/xyz0"), "400 BadDeviceToken"),
        ("odd hex", right().path("/3/device/abcde"), "400 BadDeviceToken"),
        ("GET", get, "405 MethodNotAllowed"),
        ("no authorization", right().without("authorization"), "403 MissingProviderToken"),
        ("rubbish", right().set("authorization", "bearer rubbish"), "403 InvalidProviderToken"),
        ("basic", right().set("authorization", "basic dTpw"), "403 InvalidProviderToken"),
        ("priority 7", right().set("apns-priority", "7"), "400 BadPriority"),
        ("a date", right().set("apns-expiration", "tomorrow"), "400 BadExpirationDate"),
        ("no UUID", right().set("apns-id", "1234"), "400 BadMessageId"),
        ("a long collapse id", right().add("apns-collapse-id", &"c".repeat(65)), "400 BadCollapseId"),
        ("a topic twice", right().add("apns-topic", TOPIC), "400 DuplicateHeaders"),
        ("another push type", right().set("apns-push-type", "alert"), "400 InvalidPushType"),
        ("an unknown push type", right().set("apns-push-type", "ring"), "400 InvalidPushType"),
        ("nothing in it", right().body(""), "400 PayloadEmpty"),
        ("no JSON", right().body("hello"), "400 PayloadEmpty"),
        ("5121 bytes", right().body(payload(5121)), "413 PayloadTooLarge"),
    ];
    for (what, request, expected) in &wrong {
        assert_eq!(request.outcome().await, *expected, "{what}");
    }
    for (what, request) in [
        ("5120 bytes", right().body(payload(5120))),
        ("no id", right().without("apns-id")),
        ("Bearer", right().set("authorization", &apple.authorization().replace("bearer", "Bearer"))),
    ] {
        assert_eq!(request.outcome().await, "200", "{what}");
    }
    let journal = apple.stop().await;
    assert_eq!(journal.len(), 1 + wrong.len() + 3);
    assert_eq!(journal.iter().filter(|record| record["processed"] == true).count(), 4);
    let said = journal[1..=wrong.len()].iter().map(|record| record["reason"].as_str().unwrap_or_default());
    let expected = wrong.iter().map(|(.., expected)| &expected[4..]);
    assert!(said.eq(expected), "the journal says what was answered");
}

#[tokio::test]
async fn curl_shows_a_certificate() {
    let shown = |apple: &Apple| {
        let mut push = apple.push().without("authorization");
        let files = [("--cert", "client.pem"), ("--key", "client-key.pem")];
        push.more.extend(files.iter().flat_map(|(option, name)| [(*option).to_owned(), apple.file(name)]));
        push
    };
    let apple = Apple::start("curl-cert", 1, &["--client-cert", "com.acme.voice", "--sandbox"]).await;
    let without = apple.push().without("authorization");
    assert_eq!(without.outcome().await, "403 MissingProviderToken");
    let answer = shown(&apple).send().await;
    assert_eq!((&*answer.status, &*answer.headers["apns-id"]), ("200", ID));
    assert!(answer.headers.contains_key("apns-unique-id"), "the sandbox says more");
    let other = shown(&apple).set("apns-topic", "com.acme.chat.voip");
    assert_eq!(other.outcome().await, "400 TopicDisallowed");
    assert_eq!(apple.stop().await[1]["certificate"], "com.acme.voice");

    let yesterday = ["--client-cert", "com.acme.voice", "--client-cert-days", "-1"];
    let apple = Apple::start("curl-expired", 1, &yesterday).await;
    assert_eq!(shown(&apple).outcome().await, "403 BadCertificate");
    apple.stop().await;
}

#[tokio::test]
async fn curl_meets_two_addresses_and_a_script() {
    let script = Place::new("curl-script");
    let text = "[[fault]]\naddress = 2\ndo = \"answer\"\nstatus = 503\nreason = \"Service Unavailable\"\n\
                [[key]]\nkey_id = \"KEY7654321\"\nteam_id = \"TEAM123456\"\n";
    let file = script.write("script.toml", text);
    let file = file.to_str().expect("the test's paths are UTF-8");
    let apple = Apple::start("curl-two", 2, &["--script", file]).await;
    assert!(std::path::Path::new(&apple.file("AuthKey_KEY7654321.p8")).exists(), "the script's key is made");
    let first = apple.push();
    let second = Curl { url: apple.urls[1].clone(), ..apple.push() };
    assert_eq!(first.outcome().await, "200");
    assert_eq!(second.outcome().await, "503 Service Unavailable");
    let urls = apple.urls.clone();
    for (record, url) in apple.stop().await.iter().zip(urls) {
        let address =
            record["address"].as_str().expect("the journal says where").replace("127.0.0.1", "localhost");
        assert_eq!(format!("https://{address}"), url);
    }
}

#[tokio::test]
async fn h2load_is_answered_two_thousand_times() {
    let apple = Apple::start("h2load", 1, &[]).await;
    let body: PathBuf = apple.place.write("body.json", PAYLOAD);
    let push = apple.push().without("apns-id");
    let mut command = foreign("h2load");
    command.args(["-n", "2000", "-c", "4", "-m", "50", "-t", "1", "-d"]).arg(body);
    for (name, value) in &push.headers {
        command.args(["-H", &format!("{name}: {value}")]);
    }
    let said = run(command.arg(format!("{}{}", push.url, push.path))).await;
    for line in ["2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout", "2000 2xx, 0 3xx, 0 4xx, 0 5xx"]
    {
        assert!(said.contains(line), "h2load does not say {line:?}:\n{said}");
    }

    let journal = apple.stop().await;
    assert_eq!(journal.len(), 2000, "each request once, and no other");
    let mut connections = BTreeMap::<u64, usize>::new();
    for record in &journal {
        assert_eq!((&record["status"], &record["processed"]), (&json!(200), &json!(true)), "{record}");
        assert_eq!((&record["token"], &record["topic"]), (&json!(TOKEN), &json!(TOPIC)));
        assert_eq!(record["body"], serde_json::from_str::<Value>(PAYLOAD).expect("it is JSON"));
        *connections.entry(record["connection"].as_u64().expect("a number")).or_default() += 1;
    }
    assert_eq!(connections.into_values().collect::<Vec<_>>(), [500; 4]);
    let ids: BTreeSet<_> = journal.iter().map(|record| record["apns_id"].as_str()).collect();
    assert_eq!(ids.len(), 2000, "one id for each, made up here");
    let order: Vec<_> = journal.iter().map(|record| record["sequence"].as_u64()).collect();
    assert!(order.into_iter().eq((1..=2000).map(Some)));
}
