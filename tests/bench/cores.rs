//! A core for the process under measurement and the others for everything else, so that nobody who waits for it takes its time.
//!
//! `taskset` does it, which Debian always has (util-linux); without `unsafe` a program cannot.

use std::fs;
use std::process::{Command, Stdio};

use super::Failure;

/// Who may run where.
pub struct Cores {
    measured: u32,
}

impl Cores {
    /// Leaves the first core that this process may use, for good; `None` where there is no second one.
    pub fn divide() -> Result<Option<Self>, Failure> {
        let status = fs::read_to_string("/proc/self/status")?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let allowed = listed(allowed.ok_or("/proc/self/status names no cores")?.trim())?;
        let [measured, others @ ..] = &allowed[..] else { return Err("no core is allowed".into()) };
        if others.is_empty() {
            return Ok(None);
        }
        let others: Vec<_> = others.iter().map(u32::to_string).collect();
        let mut moving = Command::new("taskset");
        moving.args([
            "--all-tasks",
            "--cpu-list",
            "--pid",
            &others.join(","),
            &std::process::id().to_string(),
        ]);
        let moved = moving.stdout(Stdio::null()).status().map_err(|error| format!("taskset: {error}"))?;
        if !moved.success() {
            return Err(format!("taskset ended with {moved}").into());
        }
        Ok(Some(Self { measured: *measured }))
    }

    /// The same command, on the core that was left.
    pub fn give(&self, command: &Command) -> Command {
        let mut given = Command::new("taskset");
        given.arg("--cpu-list").arg(self.measured.to_string());
        given.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => given.env(name, value),
                None => given.env_remove(name),
            };
        }
        given
    }
}

/// `0-1,4` as 0, 1 and 4.
fn listed(text: &str) -> Result<Vec<u32>, Failure> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<u32>()?..=last.parse()?);
    }
    Ok(cores)
}
