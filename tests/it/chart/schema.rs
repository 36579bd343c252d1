//! `values.schema.json`: that it knows exactly Ringcast's settings and the chart's values, and closes every table.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::helm::{CHART, Helm};
use super::objects::read;

/// Every setting of Ringcast, with its default.
pub(super) const DEFAULT: &str = include_str!("../../../config/default.toml");

/// The names of all settings, `apps.*.auth.key_file`. Those without a default stand in comments.
pub(super) fn settings() -> BTreeSet<String> {
    let with_all: String = DEFAULT
        .lines()
        .map(|line| {
            let key = line
                .strip_prefix('#')
                .filter(|rest| rest.starts_with(|letter: char| letter.is_ascii_lowercase()));
            key.unwrap_or(line).to_owned() + "\n"
        })
        .collect();
    let table: toml::Table = toml::from_str(&with_all).expect("it is TOML, also with the comments");
    let mut found = BTreeSet::new();
    names(&serde_json::to_value(table).expect("it is a tree"), "", &mut found);
    found.into_iter().map(|name| name.replace("apps.acme", "apps.*")).collect()
}

#[test]
fn its_settings_are_those_of_ringcast() {
    let schema = schema();
    let mut found = BTreeSet::new();
    properties(&schema, &schema["properties"]["config"], "", &mut found);
    // The one that the chart refuses may be named for it.
    found.insert("amqp.uri".to_owned());
    assert_eq!(found, settings());
}

#[test]
fn every_table_is_closed() {
    let schema = schema();
    let mut open = Vec::new();
    walk(&schema, "", &mut |path, part| {
        if part["properties"].is_object() && part["additionalProperties"] != json!(false) {
            open.push(path.to_owned());
        }
    });
    assert!(open.is_empty(), "{open:?}");
}

/// Each has words of its own, and each stands in values.yaml, where people look.
#[tokio::test]
async fn its_values_are_those_of_the_file() {
    let shown = Helm::Four.run(&["show", "values", CHART], "").await;
    let values = read(&[String::from_utf8(shown.stdout).expect("it is UTF-8")]).await.remove(0).0.remove(0);
    let schema = schema();
    let mut mistakes = Vec::new();
    compare(&schema, &schema, &values, "", &mut mistakes);
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

fn compare(root: &Value, part: &Value, values: &Value, path: &str, mistakes: &mut Vec<String>) {
    let part = resolve(root, part);
    let (Some(properties), Some(values)) = (part["properties"].as_object(), values.as_object()) else {
        return;
    };
    for (key, below) in properties {
        let path = format!("{path}.{key}");
        match values.get(key) {
            // Settings have their own page; `global` is Helm's, `enabled` a parent's, and resources are Kubernetes'.
            _ if [".config", ".global", ".enabled"].contains(&path.as_str())
                || path.ends_with(".resources") => {}
            Some(value) => compare(root, below, value, &path, mistakes),
            None => mistakes.push(format!("{path} is in the schema, not in values.yaml")),
        }
    }
    mistakes.extend(
        values
            .keys()
            .filter(|key| !properties.contains_key(*key))
            .map(|key| format!("{path}.{key} is not in the schema")),
    );
}

fn schema() -> Value {
    let file = format!("{}/{CHART}/values.schema.json", env!("CARGO_MANIFEST_DIR"));
    let schema = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let schema: Value = serde_json::from_str(&schema).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#", "both Helms read this one");
    schema
}

/// Names of what is no table.
fn names(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| names(value, &join(path, key), found)),
        _ => _ = found.insert(path.to_owned()),
    }
}

/// Names of the properties that have none themselves.
fn properties(root: &Value, part: &Value, path: &str, found: &mut BTreeSet<String>) {
    let part = resolve(root, part);
    if *part == json!(false) {
        return;
    }
    let any = part["patternProperties"].as_object().and_then(|patterns| patterns.values().next());
    let any = any.or_else(|| Some(&part["additionalProperties"]).filter(|more| more.is_object()));
    if let Some(properties_) = part["properties"].as_object() {
        properties_.iter().for_each(|(key, below)| properties(root, below, &join(path, key), found));
    } else if let Some(any) = any {
        properties(root, any, &join(path, "*"), found);
    } else {
        found.insert(path.to_owned());
    }
}

fn resolve<'a>(root: &'a Value, part: &'a Value) -> &'a Value {
    match part["$ref"].as_str() {
        Some(place) => {
            let found = root.pointer(place.trim_start_matches('#'));
            resolve(root, found.unwrap_or_else(|| panic!("{place} leads nowhere")))
        }
        None => part,
    }
}

fn walk(part: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, part);
    match part {
        Value::Object(map) => map.iter().for_each(|(key, below)| walk(below, &join(path, key), visit)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, below)| walk(below, &join(path, &i.to_string()), visit));
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[test]
fn settings_are_read_with_those_in_comments() {
    let settings = settings();
    for name in ["amqp.prefetch", "apps.*.bundle_id", "apps.*.auth.key_file", "apps.*.payload.opaque"] {
        assert!(settings.contains(name), "{name}");
    }
}
