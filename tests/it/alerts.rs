//! The alerts (`charts/ringcast/alerts.yaml`) before three judges: the page that they link to (`page`), series that are made up,
//! one case on each side of each border (`alerts/rules.test.yaml`, by `promtool`), and real incidents under a real Prometheus
//! (`incident`).

mod caller;
mod incident;
mod page;
mod scene;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

const RULES: &str = include_str!("../../charts/ringcast/alerts.yaml");

/// Where the rules lie.
fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/ringcast/alerts.yaml")
}

#[tokio::test]
async fn promtool_finds_each_alert_silent_within_its_border_and_loud_beyond() {
    for (command, file) in [("check", rules()), ("test", "tests/it/alerts/rules.test.yaml".into())] {
        let output = Command::new("promtool")
            .args([command, "rules"])
            .arg(&file)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap_or_else(|error| {
                panic!("promtool does not start: {error}; Debian's package is `prometheus`")
            });
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&said));
    }
}
