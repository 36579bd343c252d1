//! Through a proxy that is not ours: tinyproxy, as Debian ships it, with a login, and with the way to one port alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::apple::Apple;
use crate::broker::Ports;
use crate::pipe::{invite, results};
use crate::place::Place;
use crate::process::{POLL_EVERY, Process, RINGCAST};
use crate::worker::{Config, GRACE, READY_WITHIN, Worker};

const LOGIN: &str = "ringcast:s3cret-word";
const ANSWERED_WITHIN: Duration = Duration::from_mins(1);

/// A running proxy, which lets through who logs in, to the simulator's port.
struct Proxy<'a> {
    place: &'a Place,
    ports: Ports,
    file: PathBuf,
    process: Process,
}

impl<'a> Proxy<'a> {
    async fn start(place: &'a Place, apple: &Apple) -> Self {
        let ports = Ports::claim().expect("there are free ports");
        let (user, password) = LOGIN.split_once(':').expect("it has two parts");
        let target = apple.url().rsplit(':').next().expect("a URL with a port");
        let text = format!(
            "Port {}\nListen 127.0.0.1\nTimeout 600\nMaxClients 100\nAllow 127.0.0.1\nConnectPort {target}\n\
             BasicAuth {user} {password}\nLogLevel Connect\nLogFile \"{}\"\n",
            ports.first,
            place.path("proxy.log").display(),
        );
        let file = place.write("tinyproxy.conf", text);
        let process = Self::spawn(place, &file);
        let mut proxy = Self { place, ports, file, process };
        proxy.await_open().await;
        proxy
    }

    fn spawn(place: &Place, file: &std::path::Path) -> Process {
        let file = file.to_str().expect("the test's paths are UTF-8");
        Process::start("tinyproxy", &["-d", "-c", file], &[], place.as_ref(), "tinyproxy")
    }

    async fn await_open(&mut self) {
        let until = Instant::now() + READY_WITHIN;
        while TcpStream::connect(("127.0.0.1", self.ports.first)).await.is_err() {
            assert!(self.process.lives(), "{}", self.process.last_words());
            assert!(Instant::now() < until, "the proxy does not listen; {}", self.process.last_words());
            sleep(POLL_EVERY).await;
        }
    }

    async fn start_again(&mut self) {
        self.process = Self::spawn(self.place, &self.file);
        self.await_open().await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.path("proxy.log")).unwrap_or_default()
    }

    /// How often it was asked for the way to the simulator.
    fn ways_opened(&self, apple: &Apple) -> usize {
        let asked = format!("CONNECT {} HTTP/1.1", apple.url().trim_start_matches("https://"));
        self.log().lines().filter(|line| line.contains(&asked)).count()
    }

    fn config(&self, apple: &Apple, login: &str) -> Config {
        let mut config = Config::new(apple);
        config
            .text("amqp", "uri", "amqp://guest:guest@127.0.0.1:9/%2f")
            .text("apns", "proxy", &format!("http://127.0.0.1:{}", self.ports.first))
            .path("apns", "proxy_credentials_file", &self.place.write("login", login));
        config
    }
}

fn pipe(place: &Place, config: &Config) -> Process {
    let file = config.write(place, "pipe.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    Process::start(RINGCAST, &["pipe", "--config", file], &[], place.as_ref(), "pipe")
}

/// Sends that many calls, each with a token of its own.
async fn call(pipe: &mut Process, group: u32, count: u32) {
    for number in 0..count {
        let line = invite(&call_id(group, number), 60, &[&format!("{group:08x}{number:056x}")]);
        pipe.write(format!("{line}\n").as_bytes()).await;
    }
}

fn call_id(group: u32, number: u32) -> String {
    format!("{group:08x}-0000-4000-8000-{number:012x}")
}

/// Waits until that many calls have their outcome.
async fn outcomes(pipe: &mut Process, count: usize) -> BTreeMap<String, Value> {
    let until = Instant::now() + ANSWERED_WITHIN;
    loop {
        let (outcomes, _) = results(&pipe.stdout());
        if outcomes.len() >= count {
            return outcomes;
        }
        assert!(Instant::now() < until && pipe.lives(), "{} outcomes; {}", outcomes.len(), pipe.last_words());
        sleep(POLL_EVERY).await;
    }
}

#[tokio::test]
async fn pushes_go_through_a_proxy_and_again_after_it_was_away() {
    let place = Place::new("proxy");
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut proxy = Proxy::start(&place, &apple).await;
    // As editors leave it.
    let config = proxy.config(&apple, &format!("{LOGIN}\n"));
    let mut pipe = pipe(&place, &config);
    call(&mut pipe, 1, 200).await;
    outcomes(&mut pipe, 200).await;
    let opened = proxy.ways_opened(&apple);
    assert!(opened > 0, "its log shows none:\n{}", proxy.log());

    proxy.process.kill().await;
    let away = format!("the proxy 127.0.0.1:{} cannot be connected", proxy.ports.first);
    pipe.says("that the proxy is away", READY_WITHIN, |log| log.contains(&away).then_some(())).await;
    call(&mut pipe, 2, 20).await;
    assert_eq!(results(&pipe.stdout()).0.len(), 200, "there is no other way");
    proxy.start_again().await;
    call(&mut pipe, 3, 20).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());

    let (outcomes, _) = results(&pipe.stdout());
    assert_eq!(outcomes.len(), 240);
    for (call_id, outcome) in &outcomes {
        assert_eq!(outcome["result"], "accepted", "{call_id}: {outcome}");
    }
    assert!(proxy.ways_opened(&apple) > opened, "new ways after its return:\n{}", proxy.log());
    let log = pipe.stderr();
    assert!(!log.contains("s3cret"), "the password is never shown:\n{log}");
    let mut pushed: Vec<String> = apple.stop().await.iter().map(|push| push.token().to_owned()).collect();
    assert_eq!(pushed.len(), 240, "each once");
    pushed.sort();
    pushed.dedup();
    assert_eq!(pushed.len(), 240, "each once");
}

#[tokio::test]
async fn a_wrong_login_is_said_and_mends_without_a_restart() {
    let place = Place::new("proxy-login");
    let apple = Apple::start(&place, (0, 0), "").await;
    let proxy = Proxy::start(&place, &apple).await;
    let config = proxy.config(&apple, "ringcast:wr0ng-word");
    let wrong = format!(
        "the proxy 127.0.0.1:{} does not take the login (401); the user or password in \
         apns.proxy_credentials_file is wrong",
        proxy.ports.first
    );

    // tinyproxy says 401 to a wrong login where RFC 9110 has 407.
    // A worker that waits for its first connection says so where an orchestrator looks.
    let mut worker = Worker::start(&place, &config, "worker");
    let names_login = |status: u16, text: &str| status == 503 && text.contains(&wrong);
    worker.await_endpoint("/readyz", READY_WITHIN, names_login).await;
    worker.stop().await;

    let mut pipe = pipe(&place, &config);
    pipe.write(format!("{}\n", invite(&call_id(1, 0), 2, &["ab01"])).as_bytes()).await;
    let late = outcomes(&mut pipe, 1).await;
    assert_eq!(late[&call_id(1, 0)]["result"], "expired", "{late:?}");
    let log = pipe.stderr();
    assert!(log.contains(&wrong), "{log}");
    assert!(!log.contains("wr0ng"), "the password is never shown:\n{log}");

    place.write("login", LOGIN);
    call(&mut pipe, 2, 20).await;
    let all = outcomes(&mut pipe, 21).await;
    let accepted = all.values().filter(|outcome| outcome["result"] == "accepted").count();
    assert_eq!(accepted, 20, "{all:?}");
    pipe.close_stdin();
    assert_eq!(pipe.ended(GRACE).await.code(), Some(0), "{}", pipe.last_words());
    assert_eq!(apple.stop().await.len(), 20);
}
