//! What the program is told: `config/default.toml`, then the file of `--config`, then the environment.
//!
//! Every mistake is found at once and reported by its dotted key with where it was set. An unknown key is a mistake: nothing
//! that an operator writes is silently ignored. Files that settings name (keys, trust roots) are read here, so that a worker
//! that starts has everything it needs.

mod app;
mod broker;
mod certificate;
mod credential;
mod endpoint;
mod input;
mod mistake;
mod pem;
mod reader;
mod section;
mod source;
#[cfg(test)]
mod tests;
mod traces;
mod unit;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use broker::describe_uri;
pub use certificate::{AppCertificate, BrokerCertificate, Concern, date};
pub use mistake::Mistakes;

use crate::domain::app::App;
use crate::logging::{self, Format};
use crate::{admin, amqp, apns, otlp, worker};
use input::Input;
use reader::Reader;
use source::Layer;

/// Every key with its default, its unit and its reason. It is parsed at each start: there is no second copy in code.
pub const DEFAULT_TOML: &str = include_str!("../config/default.toml");

/// What each room is told. Its `amqp.uri` holds a password, so that there is no `Debug`.
#[derive(Clone)]
pub struct Config {
    /// `[amqp]`.
    pub amqp: amqp::Settings,
    /// `[apns]` and the apps' credentials.
    pub apns: apns::Settings,
    /// `[worker]`.
    pub worker: worker::Settings,
    /// `[apps.NAME]`, by name; an app's `index` is its place here. At least one.
    pub apps: Vec<Arc<App>>,
    /// `[admin]`.
    pub admin: admin::Settings,
    /// The key of its address with where it was set: `admin.listen (config.toml:12)`.
    pub admin_place: String,
    /// `[traces]`.
    pub traces: otlp::Settings,
    /// `[log]`.
    pub log: logging::Settings,
    /// `worker.shards`: how many of them the process runs.
    pub shards: usize,
    /// `worker.shutdown_grace`: how long finishing may take.
    pub shutdown_grace: Duration,
    /// `apns.reload_interval`: how often the files of credentials are looked at; zero: never.
    pub reload_interval: Duration,
    /// The client certificates among the apps' credentials.
    pub certificates: Vec<AppCertificate>,
    /// The client certificate that the broker is shown.
    pub broker_certificate: Option<BrokerCertificate>,
    input: Input,
}

/// Reads all layers. `environment` is the whole environment (`std::env::vars_os()`): of it `RINGCAST__…` is read, and
/// `HOSTNAME` where `worker.name` is empty.
///
/// Errors: every mistake at once. Where the file is not TOML at all, none of its keys: what could be read would mislead.
pub fn load<K, V>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (K, V)>,
) -> Result<Config, Mistakes>
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    match examine(file, environment) {
        Examined { config: Some(config), mistakes: None } => Ok(config),
        Examined { mistakes, .. } => Err(mistakes.expect("without a configuration there is a mistake")),
    }
}

/// What was read, right or not.
pub struct Examined {
    /// Beside a mistake: as far as it could be read, defaults in place of what is wrong, and for nothing but to be judged.
    /// `None`: the file is not TOML at all.
    pub config: Option<Config>,
    /// What is wrong with it.
    pub mistakes: Option<Mistakes>,
}

/// Like [`load`], for who judges the rest of a wrong configuration, too.
pub fn examine<K, V>(file: Option<&Path>, environment: impl IntoIterator<Item = (K, V)>) -> Examined
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    let variables = variables(environment);
    let layer = file.map_or_else(|| Ok(Layer::default()), Layer::file);
    let mut examined = read_layers(layer, &variables);
    if let Some(config) = &mut examined.config {
        config.input.file = file.map(Path::to_path_buf);
        config.input.variables = variables;
    }
    examined
}

/// What somebody needs who deals with the broker alone: looks on, or makes its queues.
#[derive(Clone, Debug)]
pub struct BrokerSide {
    /// `[amqp]`.
    pub amqp: amqp::Settings,
    /// `worker.deadline_max`: the longest that an invite may wait.
    pub deadline_max: Duration,
    /// `[log]`.
    pub log: logging::Settings,
    /// The apps' names, as far as the file has any.
    pub apps: BTreeSet<String>,
}

/// The sections that [`load_broker_side`] does not judge.
const OF_OTHERS: [&str; 4] = ["apns", "admin", "traces", "apps"];

/// Reads `[amqp]`, `[worker]`, `[log]` and the apps' names alone: who administers the broker has no keys of Apple's. Errors: every
/// mistake in these, and every section that there is not.
pub fn load_broker_side<K, V>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (K, V)>,
) -> Result<BrokerSide, Mistakes>
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    let variables = variables(environment);
    let mut reader = layers(file.map_or_else(|| Ok(Layer::default()), Layer::file), &variables)?;
    let amqp = broker::read(&mut reader).settings;
    let (worker, ..) = read_worker(&mut reader, || host_name(&variables));
    let log = read_log(&mut reader);
    let apps = reader.tables_below("apps");
    for name in OF_OTHERS {
        reader.section(&[name]);
    }
    let of_us = |mistake: &mistake::Mistake| !mistake.is_of(&OF_OTHERS);
    let mistakes: Vec<_> = reader.finish().into_iter().filter(of_us).collect();
    if mistakes.is_empty() {
        Ok(BrokerSide { amqp, deadline_max: worker.deadline_max, log, apps })
    } else {
        Err(Mistakes::new(mistakes))
    }
}

fn variables<K, V>(environment: impl IntoIterator<Item = (K, V)>) -> Vec<(OsString, OsString)>
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn layers(
    file: Result<Layer, Vec<mistake::Mistake>>,
    variables: &[(OsString, OsString)],
) -> Result<Reader, Mistakes> {
    let (environment, mut mistakes) = Layer::environment(variables);
    match file {
        Ok(file) => Ok(Reader::new(file, environment, mistakes).beside(source::strays(variables))),
        Err(of_file) => {
            mistakes.extend(of_file);
            Err(Mistakes::new(mistakes))
        }
    }
}

fn read_layers(file: Result<Layer, Vec<mistake::Mistake>>, variables: &[(OsString, OsString)]) -> Examined {
    let mut reader = match layers(file, variables) {
        Ok(reader) => reader,
        Err(mistakes) => return Examined { config: None, mistakes: Some(mistakes) },
    };
    let config = Some(read(&mut reader, || host_name(variables)));
    let mistakes = reader.finish();
    Examined { config, mistakes: (!mistakes.is_empty()).then(|| Mistakes::new(mistakes)) }
}

/// Reads every section.
fn read(reader: &mut Reader, host_name: impl Fn() -> String) -> Config {
    let broker = broker::read(reader);
    let endpoints = endpoint::read(reader);
    let (worker, shards, shutdown_grace) = read_worker(reader, host_name);
    let (admin, admin_place) = read_admin(reader);
    let traces = traces::read(reader);
    let log = read_log(reader);
    let apps = app::read(reader);
    let credentials = credential::read(reader, &apps);
    let files = endpoints.ca_file.iter().chain(&credentials.files).chain(&broker.files).cloned().collect();
    let input = Input { files, written: reader.written(), ..Input::default() };
    Config {
        amqp: broker.settings,
        apns: apns::Settings {
            endpoints: endpoints.places,
            ca_file: endpoints.ca_file,
            proxy: endpoints.proxy,
            connections: endpoints.connections,
            request_timeout: endpoints.request_timeout,
            credentials: credentials.by_app,
        },
        worker,
        apps: apps.into_iter().map(Arc::new).collect(),
        admin,
        admin_place,
        traces,
        log: logging::Settings { shows_threads: shards > 1, ..log },
        shards,
        shutdown_grace,
        reload_interval: endpoints.reload_interval,
        certificates: credentials.certificates,
        broker_certificate: broker.certificate,
        input,
    }
}

fn read_worker(reader: &mut Reader, host_name: impl Fn() -> String) -> (worker::Settings, usize, Duration) {
    const MINUTE: Duration = Duration::from_mins(1);
    let mut worker = reader.section(&["worker"]);
    let name = worker.text("name", |name| match name {
        "" => Ok(host_name()),
        name if name.len() > 128 => Err("is longer than 128 bytes; give a shorter name".to_owned()),
        name if name.chars().any(char::is_control) => {
            Err("holds a control character; give a plain name".to_owned())
        }
        name => Ok(name.to_owned()),
    });
    let shards = worker.number("shards", 1..=64, "each is a thread; more cores are more pods");
    let deadline_max = worker.duration(
        "deadline_max",
        Duration::from_secs(1)..=10 * MINUTE,
        "ended calls are kept for 10 minutes",
    );
    let ring_time_min =
        worker.duration("ring_time_min", Duration::ZERO..=10 * MINUTE, "no call rings longer");
    if ring_time_min >= deadline_max {
        worker.refuse(
            "ring_time_min",
            "is not less than worker.deadline_max, so no call would ever ring; lower it",
        );
    }
    let settings = worker::Settings {
        name,
        devices_max: worker.number("devices_max", 1..=1000, "an invite rings one callee"),
        invite_bytes_max: worker.number("invite_bytes_max", 1024..=1 << 20, "a push holds 5120 bytes"),
        deadline_max,
        ring_time_min,
        attempts_max: worker.number("attempts_max", 1..=10, "each may ring the phone"),
        answer_grace: worker.duration(
            "answer_grace",
            Duration::ZERO..=Duration::from_secs(30),
            "the outcome waits as long",
        ),
        suspect_percent_max: worker.number("suspect_percent_max", 1..=100, "100 believes every answer"),
        timeline: worker.boolean("timeline"),
    };
    let shutdown_grace = worker.duration(
        "shutdown_grace",
        Duration::from_secs(1)..=10 * MINUTE,
        "less answers nothing, more blocks a rollout",
    );
    (settings, shards, shutdown_grace)
}

fn read_admin(reader: &mut Reader) -> (admin::Settings, String) {
    let mut section = reader.section(&["admin"]);
    let listen = section.text("listen", |text| {
        text.parse::<SocketAddr>().map_err(|_| {
            "is not an IP address with a port; give one as in \"0.0.0.0:9090\" or \"[::]:9090\"".to_owned()
        })
    });
    (admin::Settings { listen }, format!("admin.listen ({})", section.origin("listen")))
}

fn read_log(reader: &mut Reader) -> logging::Settings {
    let mut log = reader.section(&["log"]);
    let words = [("auto", Format::Auto), ("json", Format::Json), ("human", Format::Human)];
    let format = log.word("format", &words);
    let level = log.text("level", |text| logging::check(text).map(|()| text.to_owned()));
    logging::Settings { format, level, shows_threads: false }
}

/// The host's name: in Kubernetes and in shells a variable, else asked of the kernel.
fn host_name(variables: &[(OsString, OsString)]) -> String {
    let variable = variables.iter().find(|(name, _)| name == "HOSTNAME");
    let variable = variable.and_then(|(_, value)| value.to_str().map(str::to_owned));
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let usable = |name: &String| !name.trim().is_empty();
    let name = variable.filter(usable).or_else(|| kernel().filter(usable));
    name.map_or_else(|| "ringcast".to_owned(), |name| name.trim().to_owned())
}
