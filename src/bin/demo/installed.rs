//! Which RabbitMQ is run: the one that Debian installed, or one that `tests/broker` unpacked into a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// Names the folder of an unpacked RabbitMQ; unset, it is the installed one.
pub(super) const VARIABLE: &str = "RINGCAST_TEST_BROKER";

/// RabbitMQ's own programs; those in `/usr/sbin` switch to another user.
#[derive(Debug)]
pub(super) struct Installed {
    bin: PathBuf,
    /// The folder of the `erl` that they start, where it is not the one on the path.
    erlang: Option<PathBuf>,
}

impl Installed {
    /// Finds it; `None` where nothing is installed and nothing else is named.
    pub(super) fn find() -> Result<Option<Self>, Error> {
        let Some(folder) = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) else {
            return Ok(programs(Path::new("/")).map(|bin| Self { bin, erlang: None }));
        };
        let folder = PathBuf::from(folder);
        let bin = programs(&folder).ok_or_else(|| Error::NoBroker(folder.clone()))?;
        Ok(Some(Self { bin, erlang: Some(folder.join("usr/lib/erlang/bin")) }))
    }

    /// One of its programs.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if let Some(erlang) = &self.erlang {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::iter::once(erlang.clone()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(path).expect("each part comes from a path"));
        }
        command
    }
}

/// Where Debian's package puts them below `root`.
fn programs(root: &Path) -> Option<PathBuf> {
    let mut versions: Vec<_> = fs::read_dir(root.join("usr/lib/rabbitmq/lib"))
        .map(|found| found.flatten().map(|folder| folder.path().join("sbin")).collect())
        .unwrap_or_default();
    versions.sort();
    std::iter::once(root.join("usr/lib/rabbitmq/bin"))
        .chain(versions.into_iter().rev())
        .find(|bin| bin.join("rabbitmq-server").is_file() && bin.join("rabbitmqctl").is_file())
}
