//! Which settings Ringcast gets from the benchmarks.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::Failure;
use super::program::{KEY_ID, TEAM_ID, TOPIC};
use super::traffic::app;

/// For `more` of `config()`, where answers are held back or late on purpose: nothing is sent again.
pub const PATIENT: &str = "request_timeout = \"60s\"\n";

/// What differs from the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    pub prefetch: u64,
    pub connections: u64,
    pub connections_max: u64,
    /// Apps, named by `traffic::app()`.
    pub apps: u64,
    /// Keys that the apps have in turn, named by `key_id()`; each makes a pool.
    pub keys: u64,
}

impl Worker {
    /// The defaults, said aloud because others take the same.
    pub const DEFAULT: Self = Self { prefetch: 500, connections: 2, connections_max: 8, apps: 1, keys: 1 };

    /// The settings as a file; APNs is whoever listens at `port` with the identity in that folder. `more` is what else there is,
    /// settings of `[apns]` first.
    pub fn config(&self, to: &Path, identity: &Path, port: u16, more: &str) -> Result<PathBuf, Failure> {
        // A TOML text, quoted and escaped.
        let file = |name: &str| format!("{:?}", identity.join(name).display().to_string());
        let (ca_file, Self { prefetch, connections, connections_max, .. }) = (file("ca.pem"), self);
        let bundle_id = TOPIC.trim_end_matches(".voip");
        let mut text = format!(
            "[amqp]\nprefetch = {prefetch}\n[log]\nlevel = \"warn,lapin=off\"\n[apns]\n\
             production = \"https://127.0.0.1:{port}\"\nca_file = {ca_file}\n\
             connections = {connections}\nconnections_max = {connections_max}\n{more}"
        );
        for number in 0..self.apps {
            let (app, key_id) = (app(number), key_id(number % self.keys));
            let key_file = file(&format!("AuthKey_{key_id}.p8"));
            write!(
                text,
                "[apps.{app}]\nbundle_id = \"{bundle_id}\"\n[apps.{app}.auth]\nteam_id = \"{TEAM_ID}\"\nkey_id = \"{key_id}\"\n\
                 key_file = {key_file}\n"
            )?;
        }
        fs::write(to, text)?;
        Ok(to.to_owned())
    }
}

/// The id of a key; the first one is the simulator's own.
pub fn key_id(number: u64) -> String {
    if number == 0 { KEY_ID.to_owned() } else { format!("KEY{number:07}") }
}
