//! `ringcast`: makes iPhones ring. The subcommands, logging and exit codes; everything else is in the library.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ringcast::amqp::Error;
use ringcast::app::{self, Ending};
use ringcast::cli;
use ringcast::cli::watch::{Filter, Form};
use ringcast::config::{self, BrokerSide, Config};
use ringcast::domain::id::CallId;
use ringcast::domain::outcome::InviteResult;
use ringcast::logging::{self, Level};

/// Done.
const DONE: u8 = 0;
/// Anything else, a grace that ran out included.
const FAILED: u8 = 1;
/// The command line is wrong (sysexits `EX_USAGE`).
const USAGE: u8 = 64;
/// A peer is unavailable (sysexits `EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;
/// The configuration is wrong (sysexits `EX_CONFIG`).
const CONFIGURATION: u8 = 78;

/// Takes call invites from RabbitMQ, pushes them to iPhones through APNs, and publishes one outcome for each.
#[derive(Parser)]
#[command(
    name = "ringcast",
    version,
    after_help = "Exit codes: 0 done, 1 anything else, 64 usage, 69 a peer is \
unavailable, 78 configuration.\nResults go to stdout, logs to stderr."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The worker: consumes invites until SIGTERM, outlives a missing broker or APNs and says so in /readyz
    Run(Configuration),
    /// Reads everything, reports every mistake at once, exits 78 when there is one
    Check(Check),
    /// What the broker must hold
    #[command(subcommand)]
    Topology(Topology),
    /// The same delivery without a broker: invites as JSON lines on stdin, outcomes and token events on stdout
    Pipe(Configuration),
    /// Results as they pass, live, from workers with amqp.live = true
    Watch(Watch),
}

#[derive(Subcommand)]
enum Topology {
    /// Makes all queues, exchanges and bindings; running it again changes nothing
    Declare(Configuration),
    /// Prints the rabbitmqctl commands for limits and times to live, which AMQP cannot set
    Policies(Configuration),
    /// Prints the rabbitmqctl commands for the least rights of worker, publisher and reader
    Permissions(Configuration),
}

#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "help is read on a terminal")]
struct Configuration {
    /// The TOML file. Variables go over it: RINGCAST__AMQP__PREFETCH is amqp.prefetch. It may be left out when they say all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct Check {
    #[command(flatten)]
    configuration: Configuration,
    /// Go to the broker and to APNs, too: name, TLS, login, queues and exchanges; whether Apple takes each app's credential and
    /// topic, by a push to a token that no phone has. Exits 69 where a worker could not work
    #[arg(long)]
    connect: bool,
}

#[derive(Args)]
struct Watch {
    #[command(flatten)]
    configuration: Configuration,
    /// Each result as it was published, one JSON object a line, device tokens whole
    #[arg(long)]
    json: bool,
    /// Only this app's, several times for several
    #[arg(long = "app", value_name = "NAME")]
    apps: Vec<String>,
    /// Only outcomes with this result, several times for several
    #[arg(long = "result", value_name = "RESULT", value_parser = result)]
    results: Vec<InviteResult>,
    /// Only this call's, with each device, and each stage's time where workers have worker.timeline = true
    #[arg(long, value_name = "ID", value_parser = call_id)]
    call: Option<CallId>,
}

fn result(text: &str) -> Result<InviteResult, String> {
    let known = InviteResult::ALL.iter().find(|result| result.as_str() == text);
    known.copied().ok_or_else(|| {
        let words: Vec<&str> = InviteResult::ALL.iter().map(|result| result.as_str()).collect();
        format!("no such result; there are {}", words.join(", "))
    })
}

fn call_id(text: &str) -> Result<CallId, String> {
    CallId::parse(text)
        .ok_or_else(|| "a call id is a UUID, as in 6f1c0f3e-7d1a-4b0e-9a55-0c2f8f1f2d10".to_owned())
}

fn main() -> ExitCode {
    let _last = logging::LastLines;
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Help and version come this way too, and are no mistake.
            let code = match error.print() {
                _ if error.use_stderr() => USAGE,
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => unwritten(&error),
                _ => DONE,
            };
            return ExitCode::from(code);
        }
    };
    let code = match command_line.command {
        Command::Run(place) => run(&place),
        Command::Check(wanted) => check(&wanted),
        Command::Topology(Topology::Declare(place)) => with_broker_side(&place, |side| declare(&side)),
        Command::Topology(Topology::Policies(place)) => {
            with_broker_side(&place, |side| told(cli::topology::policies(&side.amqp, side.deadline_max)))
        }
        Command::Topology(Topology::Permissions(place)) => {
            with_broker_side(&place, |side| told(cli::topology::permissions(&side.amqp)))
        }
        Command::Watch(wanted) => with_broker_side(&wanted.configuration, |side| watch(&wanted, side)),
        Command::Pipe(place) => pipe(&place),
    };
    ExitCode::from(code)
}

fn run(place: &Configuration) -> u8 {
    match app::run(|| read(place)) {
        Ok(Ok(done)) => ending(Ok(done)),
        Ok(Err(code)) => code,
        Err(error) => ending(Err(error)),
    }
}

fn pipe(place: &Configuration) -> u8 {
    match read(place) {
        Ok((config, _)) => ending(cli::pipe::run(config)),
        Err(code) => code,
    }
}

/// Reads the configuration and starts logging, or says every mistake and gives the exit code.
fn read(place: &Configuration) -> Result<(Config, Level), u8> {
    let config = config::load(place.config.as_deref(), std::env::vars_os()).map_err(|it| refuse(&it))?;
    let level = start_logging(&config.log)?;
    Ok((config, level))
}

/// The level was read before, with everything else.
fn start_logging(settings: &logging::Settings) -> Result<Level, u8> {
    logging::start(settings).map_err(|mistake| refuse(&format!("log.level {mistake}")))
}

fn refuse(mistakes: &dyn Display) -> u8 {
    say(mistakes);
    CONFIGURATION
}

/// Says something on stderr. Where that cannot be written either, the exit code alone tells.
fn say(what: &dyn Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// stdout takes no more. Whoever reads no further, as `head`, knows why.
fn unwritten(error: &io::Error) -> u8 {
    if error.kind() != io::ErrorKind::BrokenPipe {
        say(&format!("stdout cannot be written: {error}; what it did not take is lost"));
    }
    FAILED
}

fn check(wanted: &Check) -> u8 {
    let (file, environment) = (wanted.configuration.config.as_deref(), std::env::vars_os());
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let config = match cli::check::run(file, environment, &mut out, &mut err) {
        Ok(Some(config)) => config,
        Ok(None) => return CONFIGURATION,
        Err(error) => return unwritten(&error),
    };
    if !wanted.connect {
        return DONE;
    }
    match block_on(cli::connect::run(&config, &mut out, &mut err)) {
        Ok(Ok(Ok(true))) => DONE,
        Ok(Ok(Ok(false))) => UNAVAILABLE,
        Ok(Ok(Err(error))) => unwritten(&error),
        Ok(Err(error)) => cannot_start(&error),
        Err(error) => no_runtime(&error),
    }
}

/// Reads what of the configuration is about the broker and starts logging, or says every mistake in that.
fn with_broker_side(place: &Configuration, command: impl FnOnce(BrokerSide) -> u8) -> u8 {
    let side = config::load_broker_side(place.config.as_deref(), std::env::vars_os());
    let started = side.map_err(|mistakes| refuse(&mistakes)).and_then(|side| {
        start_logging(&side.log)?;
        Ok(side)
    });
    match started {
        Ok(side) => command(side),
        Err(code) => code,
    }
}

fn declare(side: &BrokerSide) -> u8 {
    match block_on(cli::topology::declare(&side.amqp)) {
        Ok(Ok(things)) => {
            let lines: Vec<String> = things.iter().map(ToString::to_string).collect();
            print(&(lines.join("\n") + "\n"))
        }
        Ok(Err(error)) => failed(&error),
        Err(error) => no_runtime(&error),
    }
}

fn watch(wanted: &Watch, side: BrokerSide) -> u8 {
    let BrokerSide { amqp, apps, .. } = side;
    // A file without apps is an onlooker's own.
    if let Some(unknown) = wanted.apps.iter().find(|app| !apps.is_empty() && !apps.contains(*app)) {
        let known = Vec::from_iter(apps).join(", ");
        say(&format!("--app: {unknown:?} is not configured; there are {known}"));
        return USAGE;
    }
    let filter = Filter { apps: wanted.apps.clone(), results: wanted.results.clone(), call: wanted.call };
    let form = match (wanted.json, wanted.call) {
        (true, _) => Form::Json,
        (false, Some(_)) => Form::Story,
        (false, None) => Form::Line,
    };
    // A signal ends it where it stands, as it ends everything that only shows.
    let (mut out, mut told) = (io::stdout(), io::stderr());
    match block_on(cli::watch::run(&amqp, &filter, form, &mut out, &mut told)) {
        // Whoever reads no further has seen enough.
        Ok(Ok(error)) if error.kind() == io::ErrorKind::BrokenPipe => DONE,
        Ok(Ok(error)) => unwritten(&error),
        Ok(Err(error)) => failed(&error),
        Err(error) => no_runtime(&error),
    }
}

/// Runs what a signal ends where it stands. Process number 1, as in a container, must see to that itself: Linux keeps from it the
/// signals that it does not ask for (`pid_namespaces(7)`).
fn block_on<T>(command: impl Future<Output = T>) -> io::Result<T> {
    app::block_on(async {
        if std::process::id() != 1 {
            return Ok(command.await);
        }
        let mut signals = app::Signals::listen()?;
        tokio::select! {
            output = command => Ok(output),
            () = signals.next() => {
                logging::finish();
                std::process::exit(FAILED.into())
            }
        }
    })?
}

fn no_runtime(error: &io::Error) -> u8 {
    say(&format!("no runtime: {error}"));
    FAILED
}

fn failed(error: &Error) -> u8 {
    say(error);
    if error.is_unavailable() { UNAVAILABLE } else { FAILED }
}

fn told(text: Result<String, Error>) -> u8 {
    text.map_or_else(|error| failed(&error), |text| print(&text))
}

/// Prints a text of its own lines.
fn print(text: &str) -> u8 {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => DONE,
        Err(error) => unwritten(&error),
    }
}

fn ending(ending: Result<Ending, app::StartError>) -> u8 {
    match ending {
        Ok(Ending::Done) => DONE,
        Ok(Ending::GraceRanOut | Ending::Cut) => FAILED,
        Err(error) => cannot_start(&error),
    }
}

fn cannot_start(error: &app::StartError) -> u8 {
    say(error);
    if error.is_configuration() { CONFIGURATION } else { FAILED }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        CommandLine::command().debug_assert();
    }
}
