//! The image's programs as process number 1 of a container: its user, its files and nothing else, all of them read-only.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{MADE, PROGRAM};
use crate::client::{self, Outgoing};
use crate::http;
use crate::place::Place;
use crate::plan::{now, read_all, written};
use crate::process::{Ended, POLL_EVERY, Process};
use crate::vhost::Vhost;
use crate::worker::{Config, GRACE, READY_WITHIN};

const SIMULATOR: &str = "/usr/bin/apns-simulator";
const FILE: &str = "/etc/ringcast/ringcast.toml";

/// A program in a container of its own. Killed when the test lets go of it.
struct Contained {
    process: Process,
    /// The process number 1 by its number outside.
    pid: u32,
}

impl Contained {
    /// `args`: those of `tests/image`.
    async fn start(args: &[&str], place: &Place, name: &str) -> Self {
        LazyLock::force(&MADE);
        let mut process = Process::start(PROGRAM, args, &[], place.as_ref(), name);
        let until = Instant::now() + READY_WITHIN;
        loop {
            if let Some(pid) = first_of(process.pid()) {
                return Self { process, pid };
            }
            assert!(process.lives(), "{}", process.last_words());
            assert!(Instant::now() < until, "no process number 1; {}", process.last_words());
            sleep(POLL_EVERY).await;
        }
    }

    /// Lines of `/proc/PID/status`, by their names, without spaces at the ends.
    fn status(&self, name: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
    }

    /// SIGTERM to it alone, as an engine sends it, and its exit code.
    async fn stop(mut self) -> Option<i32> {
        kill("-TERM", self.pid);
        let code = self.process.ended(GRACE).await.code();
        println!("{}", self.process.last_words());
        code
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        if self.process.lives() {
            kill("-KILL", self.pid);
            self.process.end_now();
        }
    }
}

/// The child of `unshare` that is the program itself, and no longer the shell that mounts for it. What `tests/image` had started
/// before it became `unshare`, and was not told the end of, is another child, which nobody awaits.
fn first_of(unshare: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    let mut children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.find(|child: &u32| {
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        ["ringcast", "apns-simulator"].contains(&name.trim())
    })
}

fn kill(signal: &str, pid: u32) {
    // It may have ended meanwhile.
    let _ = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
}

/// What the containers of a test see at `/etc/ringcast`; they share its `tmp` at `/tmp`, which they can write to.
struct Mounted {
    place: Place,
    folder: PathBuf,
}

impl Mounted {
    fn new(name: &str) -> Self {
        let place = Place::new(name);
        let folder = place.path("mounted");
        fs::create_dir_all(folder.join("tmp")).expect("the test's folder can be written");
        let anybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(folder.join("tmp"), anybody).expect("it was made just now");
        Self { place, folder }
    }

    fn folder(&self) -> &str {
        self.folder.to_str().expect("the test's paths are UTF-8")
    }

    fn configure(&self, config: &Config) {
        config.write(&self.place, "mounted/ringcast.toml");
    }

    /// Runs the image's entrypoint until it ends.
    async fn entrypoint(&self, args: &[&str]) -> Ended {
        self.once(&[&["run", self.folder()], args].concat()).await
    }

    async fn once(&self, args: &[&str]) -> Ended {
        LazyLock::force(&MADE);
        let mut process = Process::start(PROGRAM, args, &[], self.place.as_ref(), "once");
        let status = process.ended(READY_WITHIN).await;
        Ended { code: status.code(), stdout: process.stdout(), stderr: process.stderr() }
    }
}

#[tokio::test]
async fn without_a_configuration_the_image_says_which_file_it_lacks() {
    let mounted = Mounted::new("image-bare");
    let ended = mounted.entrypoint(&["--version"]).await;
    assert_eq!((ended.code, ended.stdout.trim()), (Some(0), concat!("ringcast ", env!("CARGO_PKG_VERSION"))));
    // Without arguments: those of CMD.
    let ended = mounted.entrypoint(&[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains(FILE), "{}", ended.stderr);
    for shell in ["/bin/sh", "/bin/bash", "/bin/busybox", "/usr/bin/dash"] {
        let ended = mounted.once(&["exec", mounted.folder(), shell, "-c", "true"]).await;
        assert_eq!(ended.code, Some(127), "{shell}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_call_rings_out_of_the_image_and_sigterm_ends_process_number_1() {
    let mounted = Mounted::new("image");
    let vhost = Vhost::new().await;
    let serve = ["exec", mounted.folder(), SIMULATOR, "--listen", "127.0.0.1:0", "--identity", "/tmp/apple"];
    let mut apple = Contained::start(&serve, &mounted.place, "apple").await;
    let port = apple.process.says("where it listens", READY_WITHIN, |text| {
        let rest = text.split_once("listening on https://127.0.0.1:")?.1;
        Some(rest.split_once('\n')?.0.trim().to_owned())
    });
    let port = port.await;

    // The machine's own roots are there, and `localhost` is found: else the sentence would be another one.
    let mut config = Config::bare();
    config
        .text("apns", "production", &format!("https://localhost:{port}"))
        .text("amqp", "uri", &format!("amqps://localhost:{port}/%2f"))
        .text("apps.acme", "bundle_id", "com.acme.voice")
        .text("apps.acme.auth", "team_id", "TEAM123456")
        .text("apps.acme.auth", "key_id", "KEY1234567")
        .text("apps.acme.auth", "key_file", "/tmp/apple/AuthKey_KEY1234567.p8");
    mounted.configure(&config);
    let ended = mounted.entrypoint(&["topology", "declare", "--config", FILE]).await;
    assert!(ended.stderr.contains("comes from a CA that is not trusted here"), "{}", ended.stderr);

    config.text("amqp", "uri", &vhost.uri()).text("apns", "ca_file", "/tmp/apple/ca.pem");
    mounted.configure(&config);
    for command in [&["check"][..], &["topology", "declare"]] {
        let ended = mounted.entrypoint(&[command, &["--config", FILE]].concat()).await;
        assert_eq!(ended.code, Some(0), "{command:?}: {}{}", ended.stdout, ended.stderr);
    }
    // What only looks listens for nothing elsewhere: the system ends it.
    let args = ["run", mounted.folder(), "watch", "--config", FILE];
    let mut watch = Contained::start(&args, &mounted.place, "watch").await;
    watch.process.says("that it looks", READY_WITHIN, |text| text.contains("watching ").then_some(())).await;
    assert_eq!(watch.stop().await, Some(1), "the onlooker");

    let worker = Contained::start(&["run", mounted.folder()], &mounted.place, "worker").await;
    let worker = live(worker, config.admin_port()).await;
    let identity = ["NSpid", "Uid", "Gid", "CapEff", "NoNewPrivs"].map(|name| worker.status(name));
    println!("{identity:?}");
    // Another user than root is shown outside as who he is there.
    if fs::metadata("/proc/self").expect("it is always there").uid() == 0 {
        let all = ["65532"; 4].join("\t");
        assert_eq!((&identity[1], &identity[2]), (&all, &all), "the user of the image");
    }
    assert!(identity[0].ends_with("\t1"), "process number 1: {}", identity[0]);
    assert_eq!(identity[3].trim_start_matches('0'), "", "no rights at all");
    assert_eq!(identity[4], "1", "and no way to more");
    client::publish(&vhost.uri(), "ringcast.invites", &[call()]).await;
    client::await_depth(&vhost.uri(), "ringcast.outcomes", 1, READY_WITHIN).await;
    let outcomes = read_all(&vhost.uri(), "ringcast.outcomes").await;
    assert_eq!(outcomes[0].json()["result"], "accepted", "{}", outcomes[0].json());

    assert_eq!(worker.stop().await, Some(0), "the worker");
    assert_eq!(apple.stop().await, Some(0), "the simulator");
}

async fn live(mut worker: Contained, port: u16) -> Contained {
    let until = Instant::now() + READY_WITHIN;
    while http::fetch(port, "/livez").await.is_none_or(|(status, _)| status != 200) {
        assert!(worker.process.lives() && Instant::now() < until, "{}", worker.process.last_words());
        sleep(POLL_EVERY).await;
    }
    worker
}

fn call() -> Outgoing {
    let body = json!({
        "call_id": "00000007-0000-4000-8000-000000000001",
        "app": "acme",
        "deadline": written(now() + Duration::from_mins(1)),
        "devices": [{ "token": format!("a11e{:060x}", 7) }],
    });
    Outgoing { body: body.to_string().into_bytes(), properties: json!({ "message_id": "invite-7" }) }
}
