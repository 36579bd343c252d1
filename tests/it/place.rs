//! A folder that a test has to itself. It is removed at the end, also after a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static MADE: AtomicU32 = AtomicU32::new(0);

/// See the module.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    /// Makes the folder; `name` only helps to recognise it.
    pub(crate) fn new(name: &str) -> Self {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringcast-it-{}-{number}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("the temp folder can be written");
        Self { path }
    }

    /// Where `name` lies or would lie.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file and returns where.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the test's folder can be written");
        path
    }
}

impl AsRef<Path> for Place {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A failure here would hide the test's own; the run's last check looks for leftovers.
        let _ = fs::remove_dir_all(&self.path);
    }
}
