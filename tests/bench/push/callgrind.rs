//! Instructions and allocations, counted by Valgrind's callgrind: no clock, so nothing else on the machine counts in.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::Failure;
use super::summary::float;

/// What the C library calls its functions that allocate; Rust's own allocator is these. A block that grows counts, as in
/// Valgrind's own "total heap usage".
const ALLOCATORS: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];

/// The heart of SHA-256. Valgrind knows no instructions for it, so what it counts is not what a machine that has them does.
const SHA256: &str = "sha256_block_data_order";

/// What a process did over its whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// In user mode.
    pub instructions: u64,
    /// Of them, those of SHA-256.
    pub sha256: u64,
    /// Calls that allocate.
    pub allocations: u64,
}

/// What one push did, by two runs whose difference is `pushes`.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub instructions: f64,
    pub sha256: f64,
    pub allocations: f64,
}

impl Cost {
    pub fn of(few: &Profile, many: &Profile, pushes: u64) -> Self {
        let each = |few: u64, many: u64| float(many.saturating_sub(few)) / float(pushes);
        Self {
            instructions: each(few.instructions, many.instructions),
            sha256: each(few.sha256, many.sha256),
            allocations: each(few.allocations, many.allocations),
        }
    }

    /// The instructions that are not SHA-256's.
    pub fn others(&self) -> f64 {
        self.instructions - self.sha256
    }
}

/// The same program with the same arguments and environment under callgrind, which writes to `profile`. Pipes and files must
/// be set once more.
pub fn under(command: &Command, profile: &Path) -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--vgdb=no", "--tool=callgrind", "--dump-line=no"]);
    let mut file = OsStr::new("--callgrind-out-file=").to_owned();
    file.push(profile);
    valgrind.arg(file).arg(command.get_program());
    resemble(&mut valgrind, command);
    valgrind
}

/// Another program with the same arguments and environment.
pub fn by(program: &Path, command: &Command) -> Command {
    let mut other = Command::new(program);
    resemble(&mut other, command);
    other
}

fn resemble(other: &mut Command, command: &Command) {
    other.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
}

/// Reads what callgrind wrote.
pub fn read(path: &Path) -> Result<Profile, Failure> {
    let profile = parse(&fs::read_to_string(path)?)?;
    if profile.instructions == 0 || profile.allocations == 0 {
        return Err(format!("callgrind counted nothing: {profile:?}").into());
    }
    Ok(profile)
}

/// What is known of a function by its name, which is written once.
#[derive(Clone, Copy, Default)]
struct Function {
    allocates: bool,
    hashes: bool,
}

/// Callgrind's format (Valgrind's manual, *Callgrind Format Specification*), as far as it is needed: who is it about, what
/// did it do itself, how often did it call whom.
fn parse(text: &str) -> Result<Profile, Failure> {
    let mut functions = HashMap::new();
    let (mut profile, mut here, mut called) = (Profile::default(), Function::default(), Function::default());
    let (mut inclusive, mut sum) = (false, 0_u64);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            here = function(&mut functions, name)?;
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called = function(&mut functions, name)?;
        } else if let Some(call) = line.strip_prefix("calls=") {
            let count: u64 = call.split(' ').next().unwrap_or_default().parse()?;
            if called.allocates && !here.allocates {
                profile.allocations += count;
            }
            // The next line is what the called function cost.
            inclusive = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            if !inclusive {
                let cost: u64 = line.split(' ').nth(1).unwrap_or("0").parse()?;
                profile.instructions += cost;
                profile.sha256 += if here.hashes { cost } else { 0 };
            }
            inclusive = false;
        } else if let Some(total) = line.strip_prefix("totals: ") {
            sum = total.trim().parse()?;
        }
    }
    if profile.instructions != sum {
        return Err(format!("callgrind counted {sum} instructions, its functions {profile:?}").into());
    }
    Ok(profile)
}

/// `(12) name` where the name comes first, `(12)` from then on.
fn function<'a>(known: &mut HashMap<&'a str, Function>, name: &'a str) -> Result<Function, Failure> {
    let (id, name) = name.split_once(')').ok_or_else(|| format!("callgrind's `{name}` has no number"))?;
    if !name.is_empty() {
        let name = name.trim();
        // Recursion and versions are marked behind the name.
        let plain = name.split(['\'', '@']).next().unwrap_or(name).trim_start_matches("__libc_");
        let function = Function { allocates: ALLOCATORS.contains(&plain), hashes: name.contains(SHA256) };
        known.insert(id, function);
    }
    known.get(id).copied().ok_or_else(|| format!("callgrind's function {id} was never named").into())
}
