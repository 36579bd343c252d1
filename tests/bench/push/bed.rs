//! nginx as an endpoint that knows nothing of APNs, and the clients that push to it: `ringcast pipe`, the bare h2 client and `h2load`.
//!
//! What h2load sends is what Ringcast was seen to send: one push of each is written down by nginx, and they must be the same. So must
//! the bare client's be, but for its provider token and its `apns-id`, which are as long.

use std::fmt::Write;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ringcast::simulator::Identity;
use serde::Deserialize;
use tokio::time::Instant;

use super::Failure;
use super::child::{Running, Usage, run_whole};
use super::cores::Cores;
use super::place::Place;
use super::program::{self, KEY_ID};
use super::traffic::{self, Shape};
use super::worker::Worker;

/// How long nginx may take to listen, and to write down a push that was answered.
const NGINX_LATE: Duration = Duration::from_secs(30);

/// Paths that h2load takes in turn. It reads them when it starts, which should weigh little beside what it sends then.
const PATHS: u64 = 10_000;

/// Where Debian's package puts the module that answers, and other systems their own.
const ECHO_MODULES: [&str; 2] =
    ["/usr/lib/nginx/modules/ngx_http_echo_module.so", "/usr/lib64/nginx/modules/ngx_http_echo_module.so"];

/// The headers that a push may have, as nginx calls them.
const HEADERS: [&str; 8] = [
    "authorization",
    "apns_expiration",
    "apns_id",
    "apns_priority",
    "apns_push_type",
    "apns_topic",
    "content_type",
    "accept_encoding",
];

/// The endpoint and what it takes to push to it. The last one to be dropped is the folder.
pub struct Bed {
    cores: Cores,
    nginx: Running,
    place: Place,
    port: u16,
    /// What h2load says in every push, and the body it sends.
    headers: Vec<String>,
    body: PathBuf,
    paths: PathBuf,
}

/// A push as nginx saw it.
#[derive(Deserialize, PartialEq, Eq, Debug)]
struct Seen {
    method: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Seen {
    /// Without what the bare client has of its own: the provider token, the id of the push, the second of the deadline.
    fn masked(&self) -> Self {
        let own = |name: &str| ["authorization", "apns_id"].contains(&name);
        let mask =
            |name: &str, value: &str| if own(name) { "x".repeat(value.len()) } else { value.to_owned() };
        Self {
            method: self.method.clone(),
            headers: self.headers.iter().map(|(name, value)| (name.clone(), mask(name, value))).collect(),
            body: self.body.replace(|letter: char| letter.is_ascii_digit(), "0"),
        }
    }
}

impl Bed {
    /// Starts nginx and looks at one push of each client.
    pub fn start(cores: Cores) -> Result<Self, Failure> {
        let place = Place::new("push");
        let folder = place.path("identity");
        Identity::open_or_create(&folder, KEY_ID)?;
        // Two free ports; both are held until both are known.
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (first, second) = (free()?, free()?);
        let (port, looking) = (first.local_addr()?.port(), second.local_addr()?.port());
        drop((first, second));
        let config = place.write("nginx.conf", nginx_config(&folder, port, looking)?);
        let mut command = nginx();
        command.arg("-p").arg(place.path("")).arg("-c").arg(config).args(["-e", "stderr"]);
        let nginx = Running::start("nginx", &mut command).map_err(missing)?;
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, looking)).is_err() {
            nginx.usage()?;
            if started.elapsed() > NGINX_LATE {
                return Err("nginx does not listen".into());
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        let mut paths = String::new();
        for number in 0..PATHS {
            writeln!(paths, "https://127.0.0.1:{port}/3/device/{}", traffic::token(0, number))?;
        }
        let (body, paths) = (place.path("body.json"), place.write("paths.txt", paths));
        let mut bed = Self { cores, nginx, place, port, headers: Vec::new(), body, paths };
        bed.look(looking)?;
        Ok(bed)
    }

    /// One push of each client, to the port where nginx writes them down.
    fn look(&mut self, port: u16) -> Result<(), Failure> {
        let invites = self.invites(0, 1)?;
        run_whole("ringcast", &mut self.ringcast_to(port, 1, &invites, &self.place.path("outcomes"))?)?;
        let ours = self.seen(0)?;
        if ours.method != "POST" || ours.body.is_empty() {
            return Err(format!("that is not a push: {ours:?}").into());
        }
        fs::write(&self.body, &ours.body)?;
        for (name, value) in ours.headers.iter().filter(|(_, value)| !value.is_empty()) {
            self.headers.push(format!("{}: {value}", name.replace('_', "-")));
        }
        run_whole("h2load", &mut self.h2load_to(port, 1, 1))?;
        let theirs = self.seen(1)?;
        if ours != theirs {
            return Err(format!("ringcast sends {ours:?}, h2load {theirs:?}").into());
        }
        run_whole("bare h2", &mut self.bare_to(port, 1, 0, 1)?)?;
        let bare = self.seen(2)?;
        if ours.masked() != bare.masked() {
            return Err(format!("ringcast sends {ours:?}, the bare client {bare:?}").into());
        }
        println!("all send {} headers and {} bytes of body\n", self.headers.len(), ours.body.len());
        Ok(())
    }

    /// A push that nginx wrote down, by its place. It writes after it has answered.
    fn seen(&self, number: usize) -> Result<Seen, Failure> {
        let started = Instant::now();
        loop {
            let log = fs::read_to_string(self.place.path("seen.log")).unwrap_or_default();
            if let Some(line) = log.split_inclusive('\n').nth(number).filter(|line| line.ends_with('\n')) {
                return Ok(serde_json::from_str(line)?);
            }
            if started.elapsed() > NGINX_LATE {
                return Err("nginx answered a push and did not write it down".into());
            }
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// What nginx has used so far.
    pub fn nginx(&self) -> Result<Usage, Failure> {
        self.nginx.usage()
    }

    /// Where `name` lies in the benchmark's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// The invites of a run, in a file.
    pub fn invites(&self, run: u32, count: u64) -> Result<PathBuf, Failure> {
        let path = self.place.path("invites");
        Shape::ONE.write(File::create(&path)?, run, 0..count)?;
        Ok(path)
    }

    fn ringcast_to(
        &self,
        port: u16,
        streams: u16,
        invites: &Path,
        outcomes: &Path,
    ) -> Result<Command, Failure> {
        let mut command = self.ringcast_pipe(port, streams)?;
        command.stdin(File::open(invites)?).stdout(File::create(outcomes)?);
        Ok(command)
    }

    /// `ringcast pipe` on one connection; stdin and stdout are the caller's matter.
    pub fn ringcast(&self, streams: u16) -> Result<Command, Failure> {
        self.ringcast_pipe(self.port, streams)
    }

    fn ringcast_pipe(&self, port: u16, streams: u16) -> Result<Command, Failure> {
        let folder = self.place.path("identity");
        let config = self.place.path(&format!("config-{port}-{streams}.toml"));
        let worker =
            Worker { prefetch: streams.into(), connections: 1, connections_max: 1, ..Worker::DEFAULT };
        worker.config(&config, &folder, port, "")?;
        program::ringcast("pipe", &config)
    }

    /// The bare h2 client, which this program is itself, with the pushes of a run on one connection.
    pub fn bare(&self, streams: u16, run: u32, count: u64) -> Result<Command, Failure> {
        self.bare_to(self.port, streams, run, count)
    }

    fn bare_to(&self, port: u16, streams: u16, run: u32, count: u64) -> Result<Command, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg("--identity").arg(self.place.path("identity"));
        for (name, value) in [
            ("--port", u64::from(port)),
            ("--run", u64::from(run)),
            ("--pushes", count),
            ("--connections", 1),
            ("--streams", u64::from(streams)),
        ] {
            command.arg(name).arg(value.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    }

    /// The same client on a core that it has to itself. Its stdin is empty and its stdout a pipe, unless told otherwise.
    pub fn alone(&self, client: &Command) -> Command {
        let mut alone = self.cores.give(client);
        alone.stdin(Stdio::null()).stdout(Stdio::piped());
        alone
    }

    /// `h2load` with `count` pushes on one connection.
    pub fn h2load(&self, streams: u16, count: u64) -> Command {
        self.h2load_to(self.port, streams, count)
    }

    fn h2load_to(&self, port: u16, streams: u16, count: u64) -> Command {
        let mut command = Command::new("h2load");
        command.args(["-t1", "-c1", "-w30", "-W30", &format!("-m{streams}"), &format!("-n{count}")]);
        command.arg("-B").arg(format!("https://127.0.0.1:{port}"));
        command.arg("-i").arg(&self.paths).arg("-d").arg(&self.body);
        for header in &self.headers {
            command.args(["-H", header]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

/// Whether the bare client says that every push was answered 200: the last thing it says is how many were.
pub fn check_bare(said: &str, count: u64) -> Result<(), Failure> {
    let last = said.lines().last().unwrap_or_default();
    if last == count.to_string() {
        Ok(())
    } else {
        Err(format!("the bare client did not push everything: it ended after {last}").into())
    }
}

/// Whether h2load says that every push was answered 200.
pub fn check(said: &str, count: u64) -> Result<(), Failure> {
    let line = |name: &str| said.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let good = line("requests:").contains(&format!(" {count} succeeded, 0 failed, 0 errored, 0 timeout"))
        && line("status codes:").starts_with(&format!("status codes: {count} 2xx,"));
    if good { Ok(()) } else { Err(format!("h2load did not push everything: {said}").into()) }
}

/// nginx is a server's program: not everybody's search path has its folder.
fn nginx() -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/usr/local/sbin");
    let mut command = Command::new("nginx");
    command.env("PATH", path);
    command
}

/// As it says it itself, on stderr.
pub fn nginx_version() -> Result<String, Failure> {
    let said = nginx().arg("-v").stdin(Stdio::null()).output().map_err(|error| missing(error.into()))?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    Ok(said.trim().rsplit(' ').next().unwrap_or_default().to_owned())
}

/// A program that does not start, and what helps.
#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
pub fn missing(error: Failure) -> Failure {
    format!("{error} (`tests/run packages` installs what is missing)").into()
}

/// One process, two ports: one that only answers, one that writes down what it was sent.
fn nginx_config(identity: &Path, port: u16, looking: u16) -> Result<String, Failure> {
    let module = ECHO_MODULES.into_iter().find(|module| Path::new(module).exists());
    let module = module.ok_or("nginx's echo module is not installed: run `tests/run packages`")?;
    let headers: Vec<String> = HEADERS.iter().map(|name| format!(r#"["{name}","$http_{name}"]"#)).collect();
    let headers = headers.join(",");
    let (chain, key) = (identity.join("server.pem"), identity.join("server.key"));
    let (chain, key) = (chain.display(), key.display());
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(temporary, "{kind}_temp_path temp_{kind};")?;
    }
    let server = |port: u16, log: &str| {
        format!(
            "server {{\n  listen 127.0.0.1:{port} ssl http2;\n  access_log {log};\n  location /3/device/ {{\n    \
             add_header apns-id $http_apns_id;\n    echo_read_request_body;\n    echo_status 200;\n    \
             echo_duplicate 0 \"\";\n  }}\n}}\n"
        )
    };
    // The index of streams: with the default every frame would search a long list.
    Ok(format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr error;\nload_module {module};\n\
         events {{ worker_connections 64; }}\nhttp {{\n{temporary}\
         http2_max_concurrent_streams 1000;\nhttp2_streams_index_size 4096;\nkeepalive_requests 100000000;\n\
         ssl_certificate \"{chain}\";\nssl_certificate_key \"{key}\";\nssl_protocols TLSv1.3;\n\
         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n\
         log_format seen escape=json '{{\"method\":\"$request_method\",\"headers\":[{headers}],\"body\":\"$request_body\"}}';\n\
         {}{}}}\n",
        server(port, "off"),
        server(looking, "seen.log seen"),
    ))
}
