//! A core for the process under measurement, and the others for the rest of the benchmark: where they share one, each pays for the caches
//! that the other has emptied, and waits for it.
//!
//! `taskset` does it, which Debian always has (util-linux); without `unsafe` a program cannot. Whatever else runs on the machine is not
//! kept off.

use std::fs;
use std::process::{Command, Stdio};

use super::Failure;

/// Who may run where.
pub struct Cores {
    /// `None`: wherever there is room.
    measured: Option<u32>,
}

impl Cores {
    /// Leaves the last core that this process may use, for good. Where there is no other one, or it may not, all share what there is.
    pub fn divide() -> Result<Self, Failure> {
        let status = fs::read_to_string("/proc/self/status")?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let mut usable = listed(allowed.ok_or("/proc/self/status names no cores")?.trim())?;
        // More may be allowed than there are.
        if let Ok(online) = fs::read_to_string("/sys/devices/system/cpu/online") {
            let online = listed(online.trim())?;
            usable.retain(|core| online.contains(core));
        }
        // A quota may be less than the cores are.
        let one = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        let measured = usable.pop();
        if one || usable.is_empty() {
            return Ok(Self { measured: None });
        }
        let others: Vec<_> = usable.iter().map(u32::to_string).collect();
        let mut moving = Command::new("taskset");
        moving.args([
            "--all-tasks",
            "--cpu-list",
            "--pid",
            &others.join(","),
            &std::process::id().to_string(),
        ]);
        let why = match moving.stdout(Stdio::null()).status() {
            Ok(moved) if moved.success() => return Ok(Self { measured }),
            Ok(ended) => ended.to_string(),
            Err(error) => error.to_string(),
        };
        eprintln!("no core for the measured process alone: taskset: {why}");
        Ok(Self { measured: None })
    }

    /// The same program, arguments and environment, on the core that was left for it.
    pub fn give(&self, command: &Command) -> Command {
        let mut given;
        if let Some(core) = self.measured {
            given = Command::new("taskset");
            given.arg("--cpu-list").arg(core.to_string()).arg(command.get_program());
        } else {
            given = Command::new(command.get_program());
        }
        given.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => given.env(name, value),
                None => given.env_remove(name),
            };
        }
        given
    }

    /// For the first line of a benchmark.
    pub fn told(&self) -> &'static str {
        if self.measured.is_some() { ", one of them for the process that is measured" } else { "" }
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
