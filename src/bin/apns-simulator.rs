//! Apple's side of APNs, to push against: see `ringcast::simulator`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use futures_util::future::join_all;
use ringcast::simulator::{Environment, Identity, Listening, Options, Reason, Script, Simulator};
use tokio::signal::unix::{SignalKind, signal};

/// Simulates APNs: real TLS, real HTTP/2, Apple's rules, and faults on request.
#[derive(Debug, Parser)]
#[command(name = "apns-simulator", version)]
struct Arguments {
    /// Address to listen on, once or more; port 0 takes a free one. Scripts know them by these addresses, or by their
    /// numbers in this order, from 1
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2197")]
    listen: Vec<SocketAddr>,
    /// Folder with `ca.pem` (for a client to trust), `AuthKey_<K>.p8` (for it to sign with) and the server's files;
    /// what is missing is made
    #[arg(long, value_name = "DIR")]
    identity: PathBuf,
    /// Apple's team id: ten letters or digits
    #[arg(long, value_name = "T", default_value = "TEAM123456", value_parser = apple_id)]
    team_id: String,
    /// The signing key's id: ten letters or digits
    #[arg(long, value_name = "K", default_value = "KEY1234567", value_parser = apple_id)]
    key_id: String,
    /// The one app that may be pushed to [default: any]
    #[arg(long, value_name = "B")]
    bundle_id: Option<String>,
    /// Devices and faults; `config/simulator.example.toml` shows every key
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Append each request as a JSON line, whole device tokens included
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Where everything random comes from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The most streams a connection allows
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    max_concurrent_streams: u32,
    /// One stream until a valid provider token was answered, and after each 400 or 403, as Apple does
    #[arg(long)]
    strict_streams: bool,
    /// GOAWAY to a client that exceeds the stream limit
    #[arg(long)]
    goaway_on_excess: bool,
    /// Say `BadEnvironmentKeyInToken`, as seen on the wire, where Apple's page says `BadEnvironmentKeyIdInToken`
    #[arg(long)]
    wire_spelling: bool,
    /// Be the sandbox instead of production
    #[arg(long)]
    sandbox: bool,
}

fn apple_id(text: &str) -> Result<String, &'static str> {
    let right = ringcast::simulator::provider_token::is_apple_id(text);
    if right { Ok(text.to_owned()) } else { Err("must be ten letters or digits") }
}

/// Why the program ends early: its exit code and its last words.
struct Failure(u8, String);

const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN).init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, words)) => {
            eprintln!("apns-simulator: {words}");
            ExitCode::from(code)
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let script = match &arguments.script {
        None => Script::default(),
        Some(path) => {
            let wrong = |error: &dyn std::fmt::Display| {
                Failure(CONFIGURATION, format!("--script {}: {error}", path.display()))
            };
            let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
            Script::parse(&text).map_err(|error| wrong(&error))?
        }
    };
    let identity = Identity::open_or_create(&arguments.identity, &arguments.key_id)
        .map_err(|error| Failure(CONFIGURATION, format!("--identity: {error}")))?;
    let journal = arguments.journal.clone();
    let simulator = Simulator::new(Options {
        team_id: arguments.team_id,
        key_id: arguments.key_id,
        bundle_id: arguments.bundle_id,
        environment: if arguments.sandbox { Environment::Sandbox } else { Environment::Production },
        seed: arguments.seed,
        max_concurrent_streams: arguments.max_concurrent_streams,
        one_stream_first: arguments.strict_streams,
        one_stream_after_rejection: arguments.strict_streams,
        go_away_on_excess: arguments.goaway_on_excess,
        other_environment_reason: if arguments.wire_spelling {
            Reason::BadEnvironmentKeyInToken
        } else {
            Reason::BadEnvironmentKeyIdInToken
        },
        journal_entries_max: 0,
        journal_file: arguments.journal,
        ..Options::new(identity.verifying_key())
    })
    .map_err(|error| {
        let path = journal.unwrap_or_default();
        Failure(CONFIGURATION, format!("--journal {}: {error}", path.display()))
    })?;
    simulator.apply(script);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure(1, format!("cannot start: {error}")))?;
    runtime.block_on(serve(&simulator, &identity, &arguments.listen))
}

async fn serve(simulator: &Simulator, identity: &Identity, addresses: &[SocketAddr]) -> Result<(), Failure> {
    let cannot_wait = |error: io::Error| Failure(1, format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_wait)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_wait)?;
    let mut listening = Vec::new();
    for addr in addresses {
        let listen = simulator.listen(*addr, identity.server_config()).await;
        listening.push(listen.map_err(|error| Failure(UNAVAILABLE, format!("--listen {addr}: {error}")))?);
    }
    for listening in &listening {
        eprintln!("apns-simulator listening on https://{}", listening.local_addr());
    }
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    join_all(listening.into_iter().map(Listening::shutdown)).await;
    simulator.journal().flush().map_err(|error| Failure(1, format!("--journal: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let arguments = Arguments::try_parse_from(["apns-simulator", "--identity", "d"]).unwrap();
        assert_eq!((&*arguments.team_id, &*arguments.key_id), ("TEAM123456", "KEY1234567"));
        let wrong = ["apns-simulator", "--identity", "d", "--key-id", "short"];
        let error = Arguments::try_parse_from(wrong).unwrap_err().to_string();
        assert!(error.contains("ten letters or digits"), "{error}");
    }
}
