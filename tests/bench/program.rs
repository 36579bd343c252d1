//! The programs under measurement: which `ringcast` it is, and how it and Apple's side are started.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Failure;
use super::child::Running;

/// Whose key the simulator and the worker have, and what it may push to.
pub const TEAM_ID: &str = "TEAM123456";
pub const KEY_ID: &str = "KEY1234567";
pub const TOPIC: &str = "com.acme.voice.voip";

/// Names the `ringcast` to measure in place of the one that cargo built beside the benchmark; `tests/bench/run` gives the one that is shipped.
const VARIABLE: &str = "RINGCAST_BENCH_PROGRAM";

/// The program to measure.
pub fn path() -> Result<PathBuf, Failure> {
    let Some(path) = std::env::var_os(VARIABLE) else { return Ok(env!("CARGO_BIN_EXE_ringcast").into()) };
    let path = PathBuf::from(path);
    let found = path.canonicalize().ok().filter(|found| found.is_file());
    found.ok_or_else(|| format!("{VARIABLE} names {}, and there is no such file", path.display()).into())
}

/// What is measured on what, for the first line of a benchmark: `ringcast 0.1.0 (dist), 2 cores`.
pub fn head() -> Result<String, Failure> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let path = path()?;
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    // Cargo's folder has the name of the profile.
    let profile = path
        .parent()
        .and_then(name)
        .filter(|profile| ["dist", "release", "debug"].contains(&&profile[..]))
        .unwrap_or_else(|| path.display().to_string());
    let debug = match (&profile[..], cfg!(debug_assertions)) {
        ("debug", _) => ": the times mean nothing",
        (_, true) => ", measured by a debug build: the times mean nothing",
        (_, false) => "",
    };
    Ok(format!("ringcast {} ({profile}{debug}), {cores} cores", env!("CARGO_PKG_VERSION")))
}

/// `ringcast` with these arguments, in an environment without settings.
pub fn ringcast(verb: &str, config: &Path) -> Result<Command, Failure> {
    let mut command = Command::new(path()?);
    free_of_settings(&mut command);
    command.arg(verb).arg("--config").arg(config);
    Ok(command)
}

/// Takes the caller's own settings away.
pub fn free_of_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGCAST__") {
            command.env_remove(name);
        }
    }
}

/// A simulator on a free port of 127.0.0.1, which comes back too. It has its identity in that folder, and a script where one is given.
pub fn simulator(identity: &Path, script: Option<&Path>) -> Result<(Running, u16), Failure> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apns-simulator"));
    command.args(["--listen", "127.0.0.1:0", "--team-id", TEAM_ID, "--key-id", KEY_ID]);
    command.arg("--identity").arg(identity);
    if let Some(script) = script {
        command.arg("--script").arg(script);
    }
    let (simulator, line) = Running::serve("apns-simulator", &mut command)?;
    let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
    let port = port.ok_or_else(|| format!("apns-simulator did not say where it listens: {line}"))?;
    Ok((simulator, port))
}
