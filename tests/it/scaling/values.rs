//! The replay goes by the chart's values.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Chart;
use super::hpa::Policy;

#[test]
fn the_replay_goes_by_the_values_of_the_chart() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/ringcast/values.yaml");
    let text = fs::read_to_string(file).expect("a chart has values");
    let values = read(&text);
    let of = |key: &str| match values.get(key).map(Vec::as_slice) {
        Some([value]) => value.as_str(),
        other => panic!("values.yaml: {key} is {other:?}"),
    };
    let number =
        |key: &str| of(key).parse::<u32>().unwrap_or_else(|error| panic!("values.yaml: {key}: {error}"));
    let chart = Chart::default();
    assert_eq!(number("autoscaling.min"), chart.min);
    assert_eq!(number("autoscaling.max"), chart.max);
    assert_eq!(number("autoscaling.keda.readyPerWorker"), chart.ready_per_worker);
    assert_eq!(number("autoscaling.keda.prometheus.occupancyPercent"), chart.occupancy_percent);
    assert_eq!(number("autoscaling.keda.fallback.failureThreshold"), chart.failure_threshold);
    let fallback = match number("autoscaling.keda.fallback.replicas") {
        0 => (2 * chart.min).min(chart.max),
        replicas => replicas,
    };
    assert_eq!(fallback, chart.fallback);
    assert_eq!(of("monitoring.podMonitor.interval"), format!("{}s", chart.scrape));
    for (direction, window, policies) in
        [("scaleUp", 0, &chart.behavior.up), ("scaleDown", chart.behavior.down_window, &chart.behavior.down)]
    {
        let key = |name: &str| format!("autoscaling.behavior.{direction}.{name}");
        assert_eq!(number(&key("stabilizationWindowSeconds")), window, "{direction}");
        assert_eq!(of(&key("selectPolicy")), "Max", "{direction}");
        let written: Vec<_> = policies.iter().map(policy).collect();
        assert_eq!(values.get(&key("policies")), Some(&written), "{direction}");
    }
}

fn policy(policy: &Policy) -> String {
    let (kind, value, period) = match policy {
        Policy::Pods(value, period) => ("Pods", value, period),
        Policy::Percent(value, period) => ("Percent", value, period),
    };
    format!("{{type: {kind}, value: {value}, periodSeconds: {period}}}")
}

/// What stands at the end of each path of keys, as it is written; of a list each entry. So much of YAML as values.yaml is made of.
fn read(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut values = BTreeMap::<String, Vec<String>>::new();
    let mut path: Vec<(usize, &str)> = Vec::new();
    for line in text.lines() {
        let content = line.split(" #").next().unwrap_or(line).trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let entry = content.strip_prefix("- ");
        // An entry may stand no deeper than the key of its list.
        path.retain(|(at, _)| *at < indent || (entry.is_some() && *at == indent));
        let value = match (entry, content.split_once(':')) {
            (Some(entry), _) => entry,
            (None, Some((key, value))) => {
                path.push((indent, key));
                value.trim()
            }
            (None, None) => continue,
        };
        if !value.is_empty() {
            let keys: Vec<&str> = path.iter().map(|(_, key)| *key).collect();
            values.entry(keys.join(".")).or_default().push(value.to_owned());
        }
    }
    values
}

#[test]
fn values_are_found_by_their_path() {
    let values =
        read("# a: 0\na: 1 # one\nb:\n  c:\n    - {d: 1}\n    - {d: 2}\n\n  # x\n  e: \"f\"\ng:\n- h\n");
    let shown: Vec<_> = values.iter().map(|(key, value)| format!("{key} {}", value.join(" "))).collect();
    assert_eq!(shown, ["a 1", "b.c {d: 1} {d: 2}", "b.e \"f\"", "g h"]);
}
