//! Both Helms, as `tests/helm` puts them there, on the chart as it lies in the repository.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A name that does not hold the chart's.
pub(super) const RELEASE: &str = "ring";
/// What that makes of the names of objects.
pub(super) const FULL_NAME: &str = "ring-ringcast";
pub(super) const NAMESPACE: &str = "calls";

/// What a cluster with KEDA and the Prometheus operator has, by groups and by kinds: charts ask for either.
const OPERATORS: [&str; 6] = [
    "keda.sh/v1alpha1",
    "keda.sh/v1alpha1/ScaledObject",
    "keda.sh/v1alpha1/TriggerAuthentication",
    "monitoring.coreos.com/v1",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
];

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helm {
    Three,
    Four,
}

/// Of what kind the cluster is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// The oldest Kubernetes that the chart takes, and nothing else.
    Bare,
    /// The newest, with KEDA and the Prometheus operator.
    WithOperators,
}

impl Cluster {
    /// Of Kubernetes, among those that the judges know (`objects.py`).
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::Bare => "1.25.0",
            Self::WithOperators => "1.37.0",
        }
    }
}

impl Helm {
    pub(super) const BOTH: [Self; 2] = [Self::Three, Self::Four];

    fn program(self) -> PathBuf {
        let name = if self == Self::Three { "helm3" } else { "helm4" };
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(name);
        assert!(program.is_file(), "no Helm at {}: run 'tests/run prepare'", program.display());
        program
    }

    /// Runs it with `input` on standard input, and nobody's plugins and repositories.
    pub(super) async fn run(self, args: &[&str], input: &str) -> Output {
        let nowhere = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/home");
        let mut command = Command::new(self.program());
        for variable in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME", "HOME"] {
            command.env(variable, &nowhere);
        }
        let mut child = command
            .args(args)
            .env_remove("KUBECONFIG")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{self:?} does not start: {error}"));
        let mut stdin = child.stdin.take().expect("it is a pipe");
        // One that refuses its arguments does not read: that it ended says its output.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await.expect("a child can be awaited")
    }

    /// `helm template` with a values file of the chart, if any, and `values` over it: the manifests, or why not.
    pub(super) async fn template(
        self,
        file: Option<&Path>,
        values: &Value,
        cluster: Cluster,
        more: &[&str],
    ) -> Result<String, String> {
        let mut args = vec!["template", RELEASE, CHART, "--namespace", NAMESPACE];
        if let Some(file) = file {
            args.extend(["--values", file.to_str().expect("its name is UTF-8")]);
        }
        // Over the file: what comes later wins.
        args.extend(["--values", "-"]);
        args.extend(["--kube-version", cluster.version()]);
        if cluster == Cluster::WithOperators {
            args.extend(OPERATORS.iter().flat_map(|api| ["--api-versions", api]));
        }
        args.extend(more);
        // JSON may hold U+0085 as it is; YAML, as which Helm reads it, takes that for the end of a line.
        let json = values.to_string().replace('\u{85}', "\\u0085");
        let values = if values.is_null() { "{}".to_owned() } else { json };
        let output = self.run(&args, &values).await;
        let text = |bytes| String::from_utf8(bytes).expect("Helm writes UTF-8");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

/// From the root, where Helm runs.
pub(super) const CHART: &str = "charts/ringcast";

/// The chart's own examples: a values file for each way of running it.
pub(super) fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(CHART).join("ci");
    let entries = std::fs::read_dir(&folder).expect("the chart has its examples");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with("-values.yaml"));
    files.sort();
    assert!(files.len() > 1, "{files:?}");
    files
}

/// One of them by its first word.
pub(super) fn example(name: &str) -> PathBuf {
    let found = examples().into_iter().find(|file| file.ends_with(format!("{name}-values.yaml")));
    found.unwrap_or_else(|| panic!("there is no {name}-values.yaml among the chart's examples"))
}
