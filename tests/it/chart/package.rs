//! What `helm package` makes, and what Chart.yaml says of it.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::process::Command;

use super::helm::{CHART, Cluster, Helm, NAMESPACE, RELEASE, example};
use super::objects::read;
use crate::place::Place;

/// Files of the chart that it cannot do without, beside its templates.
const NEEDED: [&str; 6] = [
    "Chart.yaml",
    "values.yaml",
    "values.schema.json",
    "alerts.yaml",
    "dashboard.json",
    "templates/deployment.yaml",
];

#[tokio::test]
async fn its_versions_are_those_of_the_program() {
    let file = format!("{}/{CHART}/Chart.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let chart = read(&[text]).await.remove(0).0.remove(0);
    for key in ["version", "appVersion"] {
        assert_eq!(chart[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
    assert_eq!(
        (&chart["apiVersion"], &chart["name"], &chart["type"]),
        (&"v2".into(), &"ringcast".into(), &"application".into())
    );
}

#[tokio::test]
async fn a_package_holds_what_it_needs_and_no_more() {
    for helm in Helm::BOTH {
        let place = Place::new("chart-package");
        let folder = place.as_ref().to_str().expect("the test's paths are UTF-8");
        let output = helm.run(&["package", CHART, "--destination", folder], "").await;
        assert!(output.status.success(), "{helm:?}: {}", String::from_utf8_lossy(&output.stderr));
        let package = place.path(&format!("ringcast-{}.tgz", env!("CARGO_PKG_VERSION")));
        let package = package.to_str().expect("the test's paths are UTF-8");

        let listed = Command::new("tar").args(["-tzf", package]).kill_on_drop(true).output().await;
        let listed = String::from_utf8(listed.expect("tar starts").stdout).expect("names are UTF-8");
        let files: BTreeSet<&str> = listed.lines().map(|line| line.trim_start_matches("ringcast/")).collect();
        for needed in NEEDED {
            assert!(files.contains(needed), "{helm:?}: no {needed} in {files:?}");
        }
        for file in &files {
            let is_wanted = !file.starts_with("ci/")
                && !["png", "orig", "rs"]
                    .iter()
                    .any(|end| Path::new(file).extension().is_some_and(|its| its == *end));
            assert!(is_wanted, "{helm:?}: {file} is for nobody who installs it");
        }

        // What is installed from it is what the folder renders.
        let values = example("full");
        let values = values.to_str().expect("its name is UTF-8");
        let args = [
            "template",
            RELEASE,
            package,
            "--namespace",
            NAMESPACE,
            "--values",
            values,
            "--kube-version",
            Cluster::Bare.version(),
        ];
        let installed = helm.run(&args, "").await;
        assert!(installed.status.success(), "{helm:?}: {}", String::from_utf8_lossy(&installed.stderr));
        let folder = helm.template(Some(&example("full")), &serde_json::json!({}), Cluster::Bare, &[]).await;
        assert!(
            folder.expect("it renders").as_bytes() == installed.stdout,
            "{helm:?}: the package renders otherwise"
        );
    }
}

/// The oldest Kubernetes that the objects are checked for, and none before.
#[tokio::test]
async fn an_older_cluster_is_refused() {
    for helm in Helm::BOTH {
        let render =
            |version| helm.template(Some(&MINIMAL), &serde_json::Value::Null, Cluster::Bare, version);
        render(&["--kube-version", "1.25.0"]).await.unwrap_or_else(|error| panic!("{helm:?}: {error}"));
        let refused = render(&["--kube-version", "1.24.9"]).await.expect_err("1.24 is too old");
        assert!(refused.contains("1.25") && refused.contains("1.24.9"), "{helm:?}: {refused}");
    }
}

static MINIMAL: std::sync::LazyLock<std::path::PathBuf> = std::sync::LazyLock::new(|| example("minimal"));

/// Another chart may have it as a dependency, and turn it on and off by the condition that is usual.
#[tokio::test]
async fn another_chart_may_turn_it_on_and_off() {
    let place = Place::new("chart-parent");
    let parent = place.path("parent");
    let charts = parent.join("charts");
    std::fs::create_dir_all(&charts).expect("a folder can be made");
    let itself = Path::new(env!("CARGO_MANIFEST_DIR")).join(CHART);
    std::os::unix::fs::symlink(itself, charts.join("ringcast")).expect("a link can be made");
    let version = env!("CARGO_PKG_VERSION");
    let chart = format!(
        "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:\n  - name: ringcast\n    version: {version}\n    condition: ringcast.enabled\n"
    );
    std::fs::write(parent.join("Chart.yaml"), chart).expect("it can be written");
    let values = std::fs::read_to_string(example("minimal")).expect("the example can be read");
    let values = values.replace('\n', "\n  ");
    for helm in Helm::BOTH {
        for enabled in [true, false] {
            let values = format!("ringcast:\n  enabled: {enabled}\n  {values}");
            let folder = parent.to_str().expect("it is UTF-8");
            let output = helm.run(&["template", RELEASE, folder, "--values", "-"], &values).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{helm:?}, enabled {enabled}: {said}");
            let rendered = String::from_utf8_lossy(&output.stdout).contains("kind: Deployment");
            assert_eq!(rendered, enabled, "{helm:?}");
        }
    }
}
