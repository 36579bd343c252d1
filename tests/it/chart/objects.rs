//! The objects that Helm rendered, as JSON; `objects.py` reads them and lays them before the judges.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::helm::{Cluster, Helm, example, examples};
use crate::client::python;
use crate::place::Place;

/// One `helm template`.
#[derive(Debug)]
pub(super) struct Rendered {
    /// The example's name, and what else tells it from the others.
    pub(super) name: String,
    pub(super) helm: Helm,
    pub(super) cluster: Cluster,
    pub(super) text: String,
    pub(super) objects: Objects,
}

/// The objects of one release.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Objects(pub(super) Vec<Value>);

impl Objects {
    pub(super) fn of_kind<'a>(&'a self, kind: &'static str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    pub(super) fn find(&self, kind: &'static str, name: &str) -> Option<&Value> {
        self.of_kind(kind).find(|object| object["metadata"]["name"] == name)
    }

    /// The only one of its kind.
    pub(super) fn only(&self, kind: &'static str) -> &Value {
        let mut found = self.of_kind(kind);
        let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(found.next().is_none(), "more than one {kind}");
        object
    }

    /// The workers' Deployment.
    pub(super) fn worker(&self) -> &Value {
        self.find("Deployment", super::helm::FULL_NAME).expect("there are workers")
    }

    /// The settings that the workers get.
    pub(super) fn config(&self) -> toml::Table {
        let text = self.config_text();
        toml::from_str(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
    }

    pub(super) fn config_text(&self) -> &str {
        let map =
            self.find("ConfigMap", super::helm::FULL_NAME).expect("there is the workers' configuration");
        map["data"]["ringcast.toml"].as_str().expect("it is a text")
    }
}

/// `kind/name` of an object.
pub(super) fn title(object: &Value) -> String {
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Every value in a tree, with the way to it.
pub(super) fn leaves<'a>(value: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves(value, &format!("{path}.{key}"), found));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| leaves(value, &format!("{path}[{i}]"), found));
        }
        leaf => found.push((path.to_owned(), leaf)),
    }
}

/// Every example by both Helms for both clusters, rendered once for all tests.
pub(super) async fn rendered() -> &'static [Rendered] {
    static ALL: OnceCell<Vec<Rendered>> = OnceCell::const_new();
    ALL.get_or_init(|| async {
        let mut wanted = Vec::new();
        for file in examples() {
            for helm in Helm::BOTH {
                for cluster in [Cluster::Bare, Cluster::WithOperators] {
                    wanted.push((file.clone(), helm, cluster));
                }
            }
        }
        let mut texts = Vec::new();
        for (file, helm, cluster) in &wanted {
            let text = helm.template(Some(file), &Value::Null, *cluster, &[]).await;
            texts.push(text.unwrap_or_else(|error| panic!("{}: {helm:?}: {error}", file.display())));
        }
        let objects = read(&texts).await;
        let all = wanted.into_iter().zip(texts).zip(objects);
        all.map(|(((file, helm, cluster), text), objects)| {
            let name = file.file_name().expect("it is a file").to_string_lossy().replace("-values.yaml", "");
            Rendered { name, helm, cluster, text, objects }
        })
        .collect()
    })
    .await
}

/// An example with values of the test's own over it, each by both Helms, which must agree; in order.
pub(super) async fn with_values(name: &str, cluster: Cluster, overlays: &[Value]) -> Vec<Objects> {
    let file = example(name);
    let mut texts = Vec::new();
    for overlay in overlays {
        for helm in Helm::BOTH {
            let text = helm.template(Some(&file), overlay, cluster, &[]).await;
            texts.push(text.unwrap_or_else(|error| panic!("{helm:?}: {overlay}: {error}")));
        }
    }
    let objects = read(&texts).await;
    let pairs = objects.chunks(2).zip(overlays);
    pairs
        .map(|(pair, overlay)| {
            assert_eq!(pair[0], pair[1], "Helm 3 and Helm 4 differ: {overlay}");
            pair[0].clone()
        })
        .collect()
}

/// Reads manifests; a key that stands twice in one map fails.
pub(super) async fn read(texts: &[String]) -> Vec<Objects> {
    let place = Place::new("chart-read");
    let output = run("read", &write(&place, texts)).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("it prints UTF-8");
    let objects: Vec<Objects> =
        lines.lines().map(|line| Objects(serde_json::from_str(line).expect("it prints JSON"))).collect();
    assert_eq!(objects.len(), texts.len());
    objects
}

/// What the judges have against manifests, a line each.
pub(super) async fn judge(texts: &[String]) -> Vec<String> {
    let place = Place::new("chart-judge");
    let files = write(&place, texts);
    let output = run("judge", &files).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.is_empty() && output.status.code().is_some_and(|code| code < 2), "{said}");
    let found = String::from_utf8(output.stdout).expect("it prints UTF-8");
    let mistakes: Vec<String> = found.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    assert_eq!(output.status.success(), mistakes.is_empty());
    mistakes
}

fn write(place: &Place, texts: &[String]) -> Vec<PathBuf> {
    texts.iter().enumerate().map(|(number, text)| place.write(&format!("{number}.yaml"), text)).collect()
}

async fn run(command: &str, files: &[PathBuf]) -> std::process::Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/chart/objects.py");
    let run = Command::new(python()).arg(script).arg(command).args(files).kill_on_drop(true).output();
    run.await.unwrap_or_else(|error| panic!("Python does not start: {error}"))
}

/// The objects by their titles; a title that stands twice fails.
pub(super) fn by_title(objects: &Objects) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    for object in &objects.0 {
        let title = title(object);
        assert!(found.insert(title.clone(), object).is_none(), "{title} stands there twice");
    }
    found
}
