//! A throw-away RabbitMQ node, for the demo and for the integration tests, which include this file.
//!
//! It runs the broker that Debian installs, or another one (see [`installed`]), on loopback, on ports and in a folder of its
//! own, as whoever starts it: no service, no root, nothing shared with a broker that runs already. Several may run at once.
//!
//! Nothing stays behind. A small shell, the guardian, waits at the end of a pipe. When its owner lets go, or panics, or is
//! killed, the pipe closes, and the guardian kills every process whose environment names the node's folder (the node, the
//! port mapper that Erlang leaves running, helpers, command-line tools) and removes the folder.

#![allow(dead_code, reason = "the demo uses one part of it, the integration tests another")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio, id};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

// By its path: this file has two parents, in two folders.
#[path = "installed.rs"]
mod installed;
#[path = "ports.rs"]
mod ports;
use installed::Installed;
pub(crate) use ports::Ports;

/// Usually three seconds; a machine that compiles at the same time needs many more.
const READY_WITHIN: Duration = Duration::from_mins(2);
const STOPPED_WITHIN: Duration = Duration::from_mins(1);
const CTL_WITHIN: Duration = Duration::from_mins(1);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// "AMQP", 0, 0-9-1: what a client says first (AMQP 0-9-1, 4.2.2).
const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
/// The type octet of a method frame, with which a server that is ready answers (AMQP 0-9-1, 4.2.3).
const METHOD_FRAME: u8 = 1;

/// Names a file; each test that asks for a broker writes its name there, a line each.
const USERS: &str = "RINGCAST_TEST_BROKER_USERS";

/// The file of its settings, in its folder.
const CONFIGURATION: &str = "rabbitmq.conf";

/// `$0` is the node's home folder, `$1` the folder to remove.
const GUARDIAN: &str = r#"
trap '' HUP INT TERM
home=$0 folder=$1
read -r _
tries=0
while [ "$tries" -lt 100 ]; do
    set -- $(grep -lsFxz "HOME=$home" /proc/[0-9]*/environ | cut -d / -f 3)
    if [ "$#" -eq 0 ]; then break; fi
    kill -KILL "$@" 2>/dev/null
    sleep 0.05
    tries=$((tries + 1))
done
rm -rf "$folder"
"#;

/// Why there is no broker, or not any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file, a folder or a program could not be used.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// [`installed::VARIABLE`] names a folder without RabbitMQ.
    #[error("{}: there is no RabbitMQ in {}; tests/broker makes such folders", installed::VARIABLE, .0.display())]
    NoBroker(PathBuf),
    /// Every block of ports is in use.
    #[error("every block of ports is in use")]
    NoPorts,
    /// The node ended by itself while it was awaited.
    #[error("the broker ended while it started ({status}); its last words:\n{log}")]
    Died {
        /// How it ended.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// A limit passed.
    #[error("the broker was not {what} within {} s; its last words:\n{log}", limit.as_secs())]
    TooSlow {
        /// `ready` or `stopped`.
        what: &'static str,
        /// How long it was given.
        limit: Duration,
        /// The end of its log.
        log: String,
    },
    /// `rabbitmqctl` said no.
    #[error("rabbitmqctl {args}: {output}")]
    Ctl {
        /// Its arguments.
        args: String,
        /// What it printed.
        output: String,
    },
}

/// The certificate files of a TLS listener, PEM.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// What the server's certificate is signed with.
    pub(crate) ca_file: PathBuf,
    /// The server's certificate; it should name `localhost` or 127.0.0.1.
    pub(crate) cert_file: PathBuf,
    /// Its key.
    pub(crate) key_file: PathBuf,
    /// Whether a client must show a certificate from a CA in `ca_file`. It may then log in with it (EXTERNAL), as the user of
    /// the certificate's common name.
    pub(crate) demands_certificate: bool,
}

/// A running node, or one that was stopped and keeps its data. Dropped, it is gone with all it had.
#[derive(Debug)]
pub(crate) struct Broker {
    installed: Installed,
    folder: PathBuf,
    ports: Ports,
    /// The port of the mapper (epmd) that it is found by; nodes of a cluster have one mapper.
    mapper: u16,
    tls: bool,
    node: Option<Child>,
    /// Its standard input is the pipe that it waits on.
    guardian: Child,
}

impl Broker {
    /// Starts a node and waits until it speaks AMQP. `None` where RabbitMQ is not installed.
    pub(crate) async fn start() -> Result<Option<Self>, Error> {
        Self::launch(None).await
    }

    /// The same with a second listener, which speaks TLS.
    pub(crate) async fn start_with_tls(tls: &Tls) -> Result<Option<Self>, Error> {
        Self::launch(Some(tls)).await
    }

    async fn launch(tls: Option<&Tls>) -> Result<Option<Self>, Error> {
        let Some(mut broker) = Self::prepare(tls)? else { return Ok(None) };
        broker.start_again().await?;
        Ok(Some(broker))
    }

    /// A node that was not started yet. `None` where RabbitMQ is not installed.
    pub(crate) fn prepare(tls: Option<&Tls>) -> Result<Option<Self>, Error> {
        note_user()?;
        let Some(installed) = Installed::find()? else { return Ok(None) };
        let ports = Ports::claim().ok_or(Error::NoPorts)?;
        let folder = std::env::temp_dir().join(format!("ringcast-broker-{}-{}", id(), ports.first));
        let home = folder.join("home");
        fs::create_dir_all(&home).map_err(io_error("make the broker's folder"))?;
        let guardian = Command::new("sh")
            .args(["-c", GUARDIAN])
            .args([&home, &folder])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(io_error("start the broker's guardian"))?;
        // From here on every way out goes through `drop`, and so through the guardian.
        let mapper = ports.mapper();
        let broker = Self { installed, folder, ports, mapper, tls: tls.is_some(), node: None, guardian };
        broker.write_configuration(tls)?;
        Ok(Some(broker))
    }

    /// Puts prepared nodes into one cluster: one secret for all, and one port mapper, that of the first. When they start, the
    /// first founds the cluster, and the others join it.
    pub(crate) fn unite(nodes: &mut [Self]) -> Result<(), Error> {
        let Some(mapper) = nodes.first().map(|first| first.mapper) else { return Ok(()) };
        let peers: Vec<_> = (1..)
            .zip(&*nodes)
            .map(|(n, node)| format!("cluster_formation.classic_config.nodes.{n} = {}\n", node.name()))
            .collect();
        for (place, node) in nodes.iter_mut().enumerate() {
            node.mapper = mapper;
            // Erlang refuses a cookie that others may read.
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(node.folder.join("home/.erlang.cookie"))
                .and_then(|mut file| write!(file, "RINGCAST{mapper}"))
                .map_err(io_error("write the broker's cookie"))?;
            if place > 0 {
                OpenOptions::new()
                    .append(true)
                    .open(node.folder.join(CONFIGURATION))
                    .and_then(|mut file| file.write_all(peers.concat().as_bytes()))
                    .map_err(io_error("write the broker's configuration"))?;
            }
        }
        Ok(())
    }

    /// Its name among Erlang's nodes.
    pub(crate) fn name(&self) -> String {
        format!("t{}@localhost", self.ports.first)
    }

    /// Whether it was started and neither stopped nor killed since.
    pub(crate) fn runs(&self) -> bool {
        self.node.is_some()
    }

    /// Where clients connect, as `guest`, to the virtual host `/`.
    pub(crate) fn uri(&self) -> String {
        self.uri_of("%2f")
    }

    /// The same for another virtual host (percent-encoded where its name needs it).
    pub(crate) fn uri_of(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.ports.amqp())
    }

    /// Where clients connect over TLS; `None` without a TLS listener.
    pub(crate) fn uri_tls(&self, vhost: &str) -> Option<String> {
        self.tls.then(|| format!("amqps://guest:guest@localhost:{}/{vhost}", self.ports.amqps()))
    }

    /// The port of plain AMQP.
    pub(crate) fn port(&self) -> u16 {
        self.ports.amqp()
    }

    /// Stops the node cleanly. It keeps its data and can start again.
    pub(crate) async fn stop(&mut self) -> Result<(), Error> {
        let Some(node) = self.node.as_mut() else { return Ok(()) };
        // RabbitMQ takes SIGTERM as the wish to stop cleanly.
        let pid = node.id().to_string();
        Command::new("sh")
            .args(["-c", "kill -TERM \"$0\"", &pid])
            .status()
            .map_err(io_error("signal the broker"))?;
        let until = Instant::now() + STOPPED_WITHIN;
        while node.try_wait().map_err(io_error("await the broker's end"))?.is_none() {
            if Instant::now() >= until {
                let log = self.last_words();
                return Err(Error::TooSlow { what: "stopped", limit: STOPPED_WITHIN, log });
            }
            sleep(POLL_EVERY).await;
        }
        self.node = None;
        Ok(())
    }

    /// Kills the node, as a power cut would. What it wrote stays, and it can start again.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        let Some(mut node) = self.node.take() else { return Ok(()) };
        node.kill().map_err(io_error("kill the broker"))?;
        node.wait().map_err(io_error("await the broker's end"))?;
        Ok(())
    }

    /// Starts the node again on the same ports with the same data, and waits until it speaks AMQP.
    pub(crate) async fn start_again(&mut self) -> Result<(), Error> {
        if self.node.is_some() {
            return Ok(());
        }
        let console = File::create(self.folder.join("console")).map_err(io_error("make the broker's log"))?;
        let console_too = console.try_clone().map_err(io_error("make the broker's log"))?;
        let node = self
            .command("rabbitmq-server")
            .stdout(console)
            .stderr(console_too)
            .spawn()
            .map_err(io_error("start rabbitmq-server"))?;
        self.node = Some(node);
        self.await_ready().await
    }

    /// Runs `rabbitmqctl` on this node and returns what it printed.
    pub(crate) async fn ctl(&self, args: &[&str]) -> Result<String, Error> {
        let mut command = self.command("rabbitmqctl");
        command.arg("--quiet").args(args);
        let failed = |output: String| Error::Ctl { args: args.join(" "), output };
        let run = tokio::task::spawn_blocking(move || command.output());
        let ended = timeout(CTL_WITHIN, run).await.map_err(|_| failed("no answer".to_owned()))?;
        let output =
            ended.map_err(|died| failed(died.to_string()))?.map_err(io_error("start rabbitmqctl"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(failed(printed(&output)))
        }
    }

    async fn await_ready(&mut self) -> Result<(), Error> {
        let until = Instant::now() + READY_WITHIN;
        while !self.listens().await {
            if let Some(node) = self.node.as_mut()
                && let Some(status) = node.try_wait().map_err(io_error("await the broker"))?
            {
                self.node = None;
                return Err(Error::Died { status: status.to_string(), log: self.last_words() });
            }
            if Instant::now() >= until {
                return Err(Error::TooSlow { what: "ready", limit: READY_WITHIN, log: self.last_words() });
            }
            sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    /// Listening is not enough: a node that is ready answers the protocol header with a method. The listener for TLS opens last.
    async fn listens(&self) -> bool {
        let connect = async |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        let ask = async {
            let mut stream = connect(self.ports.amqp()).await?;
            stream.write_all(PROTOCOL_HEADER).await?;
            let answer = stream.read_u8().await?;
            if self.tls {
                connect(self.ports.amqps()).await?;
            }
            io::Result::Ok(answer)
        };
        matches!(timeout(Duration::from_secs(5), ask).await, Ok(Ok(METHOD_FRAME)))
    }

    fn write_configuration(&self, tls: Option<&Tls>) -> Result<(), Error> {
        const NO_DEMAND: &str =
            "ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n";
        const DEMAND: &str = "ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\n\
             ssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = PLAIN\n\
             auth_mechanisms.2 = EXTERNAL\n";
        let demands_certificate = tls.is_some_and(|tls| tls.demands_certificate);
        let mut text = format!(
            "loopback_users = none\n\
             listeners.tcp.1 = 127.0.0.1:{}\n\
             disk_free_limit.absolute = 50MB\n\
             vm_memory_high_watermark.absolute = 1GB\n\
             raft.wal_max_size_bytes = 32000000\n\
             log.console = false\n",
            self.ports.amqp()
        );
        if let Some(Tls { ca_file, cert_file, key_file, .. }) = tls {
            let lines = [
                format!("listeners.ssl.1 = 127.0.0.1:{}", self.ports.amqps()),
                format!("ssl_options.cacertfile = {}", ca_file.display()),
                format!("ssl_options.certfile = {}", cert_file.display()),
                format!("ssl_options.keyfile = {}", key_file.display()),
                if demands_certificate { DEMAND } else { NO_DEMAND }.to_owned(),
            ];
            text += &lines.join("\n");
        }
        let write = |name: &str, text: &str| {
            fs::write(self.folder.join(name), text).map_err(io_error("write the broker's configuration"))
        };
        write(CONFIGURATION, &text)?;
        let plugins = if demands_certificate {
            "[rabbitmq_auth_mechanism_ssl].
"
        } else {
            "[].
"
        };
        write("enabled_plugins", plugins)
    }

    /// One of RabbitMQ's programs in the environment of this node: all of it on loopback and in its folder, and schedulers
    /// that do not spin, since the machine has other work.
    fn command(&self, program: &str) -> Command {
        let ports = &self.ports;
        let mut command = self.installed.command(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RABBITMQ_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .env("HOME", self.folder.join("home"))
            .env("LANG", "C.UTF-8")
            .env("LC_ALL", "C.UTF-8")
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", ports.amqp().to_string())
            .env("RABBITMQ_DIST_PORT", ports.distribution().to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MIN", (ports.first + 10).to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MAX", (ports.first + 18).to_string())
            .env("ERL_EPMD_PORT", self.mapper.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", self.folder.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.folder.join("log"))
            .env("RABBITMQ_PID_FILE", self.folder.join("pid"))
            .env("RABBITMQ_CONF_ENV_FILE", self.folder.join("none.conf"))
            .env("RABBITMQ_CONFIG_FILE", self.folder.join("rabbitmq"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", self.folder.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.folder.join("enabled_plugins"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            )
            // The script then becomes the node instead of starting it: one process, whose id is known.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        // A group of its own: the terminal's Ctrl-C is for its owner, who then lets go of the guardian.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// The end of what the node wrote, for an error.
    fn last_words(&self) -> String {
        let mut words = fs::read_to_string(self.folder.join("console")).unwrap_or_default();
        if let Ok(logs) = fs::read_dir(self.folder.join("log")) {
            for log in logs.flatten().filter(|log| log.path().is_file()) {
                words += &fs::read_to_string(log.path()).unwrap_or_default();
            }
        }
        let lines: Vec<_> = words.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        // Nothing can be done about an error here; the guardian's limit is five seconds.
        let _ = self.guardian.wait();
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Notes which test asks for a broker, where somebody wants to know. A test's thread has its name.
pub(crate) fn note_user() -> Result<(), Error> {
    let Some(users) = std::env::var_os(USERS) else { return Ok(()) };
    let thread = std::thread::current();
    let test = thread.name().filter(|name| name.contains("::"));
    let test = test.expect("a test asks for a broker on its own thread");
    let noted = OpenOptions::new().create(true).append(true).open(users);
    noted
        .and_then(|mut file| file.write_all(format!("{test}\n").as_bytes()))
        .map_err(io_error("note who uses a broker"))
}

fn io_error(doing: &str) -> impl FnOnce(io::Error) -> Error {
    let doing = doing.to_owned();
    move |source| Error::Io { doing, source }
}

fn printed(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}
