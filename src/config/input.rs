//! Where a configuration was read from, so that it can be read again, and what became of it since.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::source::{Path, Value};
use super::{Config, Mistakes, load};

/// See the module. It holds the environment, and with it secrets: there is no `Debug`.
#[derive(Clone, Default)]
pub(super) struct Input {
    /// The file of `--config`.
    pub(super) file: Option<PathBuf>,
    /// The environment as it was at start.
    pub(super) variables: Vec<(OsString, OsString)>,
    /// What the file and the environment set.
    pub(super) written: BTreeMap<Path, Value>,
    /// The files of credentials and of trust roots.
    pub(super) files: Vec<PathBuf>,
}

impl Config {
    /// Reads the same file and environment again.
    pub fn read_again(&self) -> Result<Self, Mistakes> {
        load(self.input.file.as_deref(), self.input.variables.iter().cloned())
    }

    /// Whether all of it can be read again. A pipe, as in `--config <(…)`, gives what it holds once.
    pub fn can_be_read_again(&self) -> bool {
        // One that is missing for a moment comes back.
        self.files().all(|file| std::fs::metadata(file).map_or(true, |facts| facts.is_file()))
    }

    /// The files whose change [`Config::read_again`] may show: the configuration's own, those of the apps' credentials and of
    /// the broker's, and the trust roots.
    pub fn files(&self) -> impl Iterator<Item = &std::path::Path> {
        self.input.file.iter().chain(&self.input.files).map(PathBuf::as_path)
    }

    /// The keys, dotted, that `other` sets to something else, those left aside that a running worker takes over.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (&self.input.written, &other.input.written);
        let all = ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(path)));
        all.filter(|path| !is_taken_over(path) && ours.get(path) != theirs.get(path))
            .map(Path::to_string)
            .collect()
    }
}

/// As `amqp::Settings::renewed` has them.
const AMQP_TAKEN_OVER: [&str; 8] = [
    "uri",
    "uri_file",
    "hosts",
    "ca_file",
    "client_cert_file",
    "client_key_file",
    "prefetch",
    "consumer_priority",
];

fn is_taken_over(path: &Path) -> bool {
    let names: Vec<&str> = path.0.iter().map(String::as_str).collect();
    match names[..] {
        ["amqp", key] => AMQP_TAKEN_OVER.contains(&key),
        _ => matches!(names[..], ["apns", "ca_file"] | ["apps", _, "auth" | "auth_sandbox", ..]),
    }
}
