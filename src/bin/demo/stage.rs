//! What the story is told on: a folder, a simulated Apple, a configuration file, and the worker that reads it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ringcast::admin::{self, Health};
use ringcast::app::{self, Core, Ending, StartError};
use ringcast::config::{self, Config};
use ringcast::metrics::Metrics;
use ringcast::pause::Jitter;
use ringcast::simulator::{Identity, Listening, Options, Simulator};
use ringcast::worker::{self, mailbox};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::road::{Names, TrayEnds};
use crate::town::APP;

const TEAM_ID: &str = "TEAM123456";
const KEY_ID: &str = "KEY1234567";

/// How long the worker may take to stop; its own grace is shorter.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);

/// A folder of the demo's own, readable for its user alone. Dropped, it is gone with all that is in it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes it. `run` is part of its name.
    pub(crate) fn make(run: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("ringcast-{run}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

/// The simulated Apple, listening on a free port.
pub(crate) struct Apple {
    /// What it knows and saw.
    pub(crate) simulator: Simulator,
    listening: Listening,
}

impl Apple {
    /// Makes keys and certificates in the folder, and listens.
    pub(crate) async fn start(folder: &Folder) -> Result<Self, String> {
        let identity =
            Identity::open_or_create(&folder.file("apple"), KEY_ID).map_err(|error| error.to_string())?;
        let options = Options { seed: 7, ..Options::new(identity.verifying_key()) };
        let simulator = Simulator::new(options).map_err(|error| error.to_string())?;
        let listening = simulator
            .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), identity.server_config())
            .await
            .map_err(|error| format!("the simulated Apple cannot listen: {error}"))?;
        Ok(Self { simulator, listening })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listening.local_addr()
    }

    /// Says goodbye to its connections.
    pub(crate) async fn stop(self) {
        self.listening.shutdown().await;
    }
}

/// Writes the worker's configuration into the folder and reads it as `ringcast run` would. `broker`: its URI and names.
pub(crate) fn configure(
    folder: &Folder,
    apple: SocketAddr,
    broker: Option<(&str, &Names)>,
) -> Result<(PathBuf, Config), String> {
    let file = folder.file("ringcast.toml");
    let amqp = match broker {
        None => String::new(),
        Some((uri, names)) => {
            let uri_file = folder.file("amqp-uri");
            write(&uri_file, uri)?;
            format!(
                "[amqp]\nuri_file = {}\ninvites = [{}]\nresults_exchange = {}\n\n",
                quoted(&uri_file),
                quoted(names.invites.as_ref()),
                quoted(names.results.as_ref()),
            )
        }
    };
    let admin = free_port().map_err(|error| format!("no free port: {error}"))?;
    let text = format!(
        "{amqp}\
         [apns]\nproduction = \"https://{apple}\"\nsandbox = \"https://{apple}\"\nca_file = {}\n\n\
         [worker]\nname = \"demo\"\nshutdown_grace = \"5s\"\n\n\
         [admin]\nlisten = \"127.0.0.1:{admin}\"\n\n\
         [apps.{APP}]\nbundle_id = \"com.example.{APP}\"\n\n\
         [apps.{APP}.auth]\nteam_id = \"{TEAM_ID}\"\nkey_id = \"{KEY_ID}\"\nkey_file = {}\n",
        quoted(&folder.file("apple/ca.pem")),
        quoted(&folder.file(&format!("apple/AuthKey_{KEY_ID}.p8"))),
    );
    write(&file, &text)?;
    // Not this process's environment: the demo's worker does what its file says.
    let nothing = std::iter::empty::<(OsString, OsString)>();
    let config = config::load(Some(&file), nothing).map_err(|mistakes| mistakes.to_string())?;
    Ok((file, config))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

/// A TOML text: JSON's quoting is TOML's, too.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// A port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr().map(|address| address.port())
}

/// The worker, on a thread of its own, as it is in a process of its own otherwise.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<Result<Ending, StartError>>,
    thread: JoinHandle<()>,
}

impl Running {
    /// The whole worker, as `ringcast run` starts it.
    pub(crate) fn serve(config: Config) -> io::Result<Self> {
        Self::start(|stopped| {
            let stop = async {
                // A sender that is gone means the same.
                let _ = stopped.await;
            };
            app::block_on(app::serve(config, None, stop, std::future::pending()))?
        })
    }

    /// The worker without its broker's side, as `ringcast pipe` starts it; and the ends of the two flows.
    pub(crate) fn pipe(config: Config) -> io::Result<(Self, TrayEnds)> {
        let prefetch = usize::from(config.amqp.prefetch);
        let (outbox, postings) = mailbox::outbox(2 * prefetch);
        let (deliveries, delivered) = mpsc::channel(prefetch);
        let running = Self::start(move |stopped| {
            app::block_on(async move {
                let metrics = Metrics::new();
                let admin = admin::start(config.admin, Arc::clone(&metrics), Health::new(), None)
                    .map_err(|cause| StartError::of_admin(&config, cause))?;
                let core = Core::start(&config, outbox, &metrics, &Jitter::random(), None)?;
                let (stop, stopping) = watch::channel(false);
                let working = worker::run(Arc::clone(&core.worker), delivered, stopping);
                let told = async {
                    let _ = stopped.await;
                    stop.send_replace(true);
                };
                tokio::join!(working, told);
                core.close().await;
                admin.stop();
                Ok(Ending::Done)
            })?
        })?;
        Ok((running, TrayEnds { deliveries, postings, prefetch }))
    }

    fn start(
        work: impl FnOnce(oneshot::Receiver<()>) -> Result<Ending, StartError> + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("worker".to_owned()).spawn(move || {
            // Nobody may wait any more.
            let _ = ending.send(work(stopped));
        })?;
        Ok(Self { stop: Some(stop), ended, thread })
    }

    /// Returns when the worker ends without being asked to, with a sentence that says so.
    pub(crate) async fn failure(&mut self) -> String {
        match (&mut self.ended).await {
            Ok(Ok(ending)) => format!("the worker ended by itself: {ending:?}"),
            Ok(Err(error)) => format!("the worker does not start: {error}"),
            Err(_) => "the worker died".to_owned(),
        }
    }

    /// Tells the worker to stop and waits until it has finished what it began. The error is a sentence.
    pub(crate) async fn stop(mut self) -> Result<(), String> {
        drop(self.stop.take());
        if self.ended.is_terminated() {
            return Ok(());
        }
        let ended = timeout(STOPPED_WITHIN, &mut self.ended).await;
        let ended = ended.map_err(|_| "the worker does not stop".to_owned())?;
        let joined = self.thread.join();
        match (ended, joined) {
            (Ok(Ok(Ending::Done)), Ok(())) => Ok(()),
            (Ok(Ok(ending)), _) => Err(format!("the worker did not finish: {ending:?}")),
            (Ok(Err(error)), _) => Err(format!("the worker does not start: {error}")),
            (Err(_), _) => Err("the worker died".to_owned()),
        }
    }
}
