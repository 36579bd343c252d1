//! Apple's side of APNs, to push against: see `ringcast::simulator`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::NonEmptyStringValueParser;
use futures_util::future::join_all;
use ringcast::simulator::{
    Certificate, Environment, Identity, Listening, Options, Reason, Script, Simulator, Timeline, wall,
};
use tokio::signal::unix::{SignalKind, signal};

/// Simulates APNs: real TLS, real HTTP/2, Apple's rules, and faults on request.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
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
    /// A host name or address that clients dial it by, beside `localhost`, once or more: the server's certificate is made
    /// for it
    #[arg(long, value_name = "HOST")]
    name: Vec<String>,
    /// Apple's team id: ten letters or digits
    #[arg(long, value_name = "T", default_value = "TEAM123456", value_parser = apple_id)]
    team_id: String,
    /// The signing key's id: ten letters or digits
    #[arg(long, value_name = "K", default_value = "KEY1234567", value_parser = apple_id)]
    key_id: String,
    /// The one app that may be pushed to [default: any]
    #[arg(long, value_name = "B", value_parser = NonEmptyStringValueParser::new())]
    bundle_id: Option<String>,
    /// Also make a certificate for this app, to authenticate with instead of provider tokens: `client.pem` and
    /// `client-key.pem` in the folder
    #[arg(long, value_name = "B", value_parser = NonEmptyStringValueParser::new())]
    client_cert: Option<String>,
    /// How long that certificate is good for; below zero: it expired so many days ago
    #[arg(
        long,
        value_name = "DAYS",
        default_value_t = 365,
        requires = "client_cert",
        allow_negative_numbers = true
    )]
    client_cert_days: i32,
    /// Devices, keys, faults and orders, some with their times; `config/simulator.example.toml` shows every key
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
    /// GOAWAY after that many `BadDeviceToken` on one connection [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    bad_device_tokens_max: Option<u64>,
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

const DAY_MS: u64 = 24 * 3_600_000;

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
    let identity = Identity::open_or_create_for(&arguments.identity, &arguments.key_id, &arguments.name)
        .map_err(|error| Failure(CONFIGURATION, format!("--identity: {error}")))?;
    let script = match &arguments.script {
        None => Script::default(),
        Some(path) => {
            let wrong = |error: &dyn std::fmt::Display| {
                Failure(CONFIGURATION, format!("--script {}: {error}", path.display()))
            };
            let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
            let find_key = |key_id: &str| {
                Identity::open_or_create_key(&arguments.identity, key_id).map_err(|error| error.to_string())
            };
            Script::parse_with(&text, find_key).map_err(|error| wrong(&error))?
        }
    };
    if let Some(bundle_id) = &arguments.client_cert {
        let certificate = client_certificate(bundle_id, arguments.client_cert_days);
        identity
            .issue_into(&arguments.identity, &certificate)
            .map_err(|error| Failure(CONFIGURATION, format!("--client-cert: {error}")))?;
    }
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
        bad_device_tokens_max: arguments.bad_device_tokens_max,
        go_away_on_excess: arguments.goaway_on_excess,
        other_environment_reason: if arguments.wire_spelling {
            Reason::BadEnvironmentKeyInToken
        } else {
            Reason::BadEnvironmentKeyIdInToken
        },
        journal_entries_max: 0,
        journal_file: arguments.journal,
        ..Options::of(&identity)
    })
    .map_err(|error| {
        let path = journal.unwrap_or_default();
        Failure(CONFIGURATION, format!("--journal {}: {error}", path.display()))
    })?;
    let timeline = simulator.apply(script);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure(1, format!("cannot start: {error}")))?;
    runtime.block_on(serve(&simulator, &identity, &arguments.listen, timeline))
}

/// Begins a day before it must end, at the latest.
fn client_certificate(bundle_id: &str, days: i32) -> Certificate {
    let now_ms = wall::real()();
    let span_ms = u64::from(days.unsigned_abs()) * DAY_MS;
    let not_after_ms = if days < 0 { now_ms.saturating_sub(span_ms) } else { now_ms + span_ms };
    let not_before_ms = not_after_ms.min(now_ms).saturating_sub(DAY_MS);
    Certificate { not_before_ms, not_after_ms, ..Certificate::new(bundle_id, now_ms) }
}

async fn serve(
    simulator: &Simulator,
    identity: &Identity,
    addresses: &[SocketAddr],
    timeline: Timeline,
) -> Result<(), Failure> {
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
    let for_ever = async {
        timeline.play().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = for_ever => {}
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
        let expired =
            ["apns-simulator", "--identity", "d", "--client-cert", "com.acme", "--client-cert-days", "-3"];
        assert_eq!(Arguments::try_parse_from(expired).unwrap().client_cert_days, -3);
        let wrong = ["apns-simulator", "--identity", "d", "--key-id", "short"];
        let error = Arguments::try_parse_from(wrong).unwrap_err().to_string();
        assert!(error.contains("ten letters or digits"), "{error}");
    }
}
