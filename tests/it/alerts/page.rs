//! Each alert says what an operator needs, its section in the runbook is there, and both name only what is served.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{RULES, rules};
use crate::metrics::families;
use crate::prometheus::Prometheus;

const RUNBOOK: &str = include_str!("../../../charts/ringcast/RUNBOOK.md");
/// Families of the broker's, by which its plugin serves single queues.
const OF_BROKER: [&str; 2] = ["rabbitmq_queue_messages_ready", "rabbitmq_detailed_queue_messages_ready"];
/// Its cases, one or more for each alert.
const CASES: &str = include_str!("rules.test.yaml");
const SIDES: [&str; 6] = ["apple", "broker", "settings", "publisher", "load", "ringcast"];

#[tokio::test]
async fn every_alert_has_its_words_its_section_and_its_cases() {
    // Its own reading of the file is the one that counts.
    let prometheus = Prometheus::start(&[], &[rules()]).await;
    let sections = sections(RUNBOOK);
    let alerts = alerts(&prometheus).await;
    let names: BTreeSet<&str> = alerts.iter().map(|alert| text(&alert["name"])).collect();
    assert_eq!(names.len(), RULES.matches("- alert: ").count(), "each name once");
    assert_eq!(sections.keys().copied().collect::<BTreeSet<_>>(), names, "a section for each, and no other");
    for alert in &alerts {
        let name = text(&alert["name"]);
        let (labels, annotations) = (&alert["labels"], &alert["annotations"]);
        assert!(name.starts_with("Ringcast"), "{name}");
        let severities = values(&labels["severity"], &["page", "ticket"]);
        let sides = values(&labels["side"], &SIDES);
        assert!(!severities.is_empty() && !sides.is_empty(), "{name}: {labels}");
        for annotation in ["summary", "description", "runbook"] {
            let words = text(&annotations[annotation]);
            assert!(words.len() > 10, "{name} has no {annotation}");
            // What increased is extrapolated: 2.007 of 2.
            assert!(!words.contains("| humanize }"), "{name}: counts are whole, see `printf` in the others");
        }
        let anchor = format!("RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(annotations["runbook_url"], anchor.as_str(), "{name}");
        let section = sections[name];
        for side in sides {
            assert!(section.contains(&format!("`{side}`")), "{name}: its section does not say {side}");
        }
        for severity in severities {
            assert!(
                section.contains(&format!("`{severity}`")),
                "{name}: its section does not say {severity}"
            );
        }
        for part in ["**Means.**", "**Confirm.**", "**Do.**", "```promql"] {
            assert!(section.contains(part), "{name}: its section has no {part}");
        }
        let (fires, silent) = cases(name);
        assert!(fires && silent, "{name}: it must have a case in which it fires, and one in which not");
    }
}

#[tokio::test]
async fn rules_and_runbook_name_only_what_is_served() {
    let prometheus = Prometheus::start(&[], &[rules()]).await;
    let known = families();
    let mut expressions = queries(RUNBOOK);
    for query in &expressions {
        // An expression that Prometheus does not take fails here.
        prometheus.query(query).await;
    }
    for rule in every_rule(&prometheus).await {
        expressions.push(text(&rule["query"]).to_owned());
    }
    assert!(expressions.len() > 60, "{} expressions", expressions.len());
    let mut used = BTreeSet::new();
    for expression in &expressions {
        let recorded: BTreeSet<&str> = recorded_names(expression).collect();
        let mut names = metric_names(expression).peekable();
        assert!(names.peek().is_some() || !recorded.is_empty(), "{expression} names no family");
        for name in names {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is_known = known.contains(name)
                || family.is_some_and(|family| known.contains(family))
                || OF_BROKER.contains(&name);
            assert!(is_known, "{name}, which is not in src/metrics/README.md, is in {expression}");
        }
        used.extend(recorded);
    }
    // Those that are used are recorded here, and the others would be of no use.
    let recorded = RULES.lines().filter_map(|line| line.trim().strip_prefix("- record: "));
    assert_eq!(recorded.collect::<BTreeSet<_>>(), used);
}

#[test]
fn metric_names_are_found_where_they_stand() {
    let expression = r#"sum(rate(ringcast_a_total{ringcast="x"}[5m])) unless ringcast:b_c or process_d / up"#;
    assert_eq!(metric_names(expression).collect::<Vec<_>>(), ["ringcast_a_total", "process_d"]);
    assert_eq!(recorded_names(expression).collect::<Vec<_>>(), ["ringcast:b_c"]);
}

/// The sections of a page by their headings, which are names of alerts.
fn sections(page: &str) -> BTreeMap<&str, &str> {
    let parts = page.split("\n### ").skip(1).map(|part| part.split_once('\n').expect("a heading has a text"));
    parts.map(|(name, text)| (name.trim(), text)).collect()
}

/// The expressions in fenced blocks, one a line.
fn queries(page: &str) -> Vec<String> {
    let blocks = page.split("```promql\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.flat_map(str::lines).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Names that are Ringcast's, of a process or the broker's.
fn metric_names(expression: &str) -> impl Iterator<Item = &str> {
    let begins = ["ringcast_", "process_", "rabbitmq_"];
    words(expression).filter(move |word| begins.iter().any(|begin| word.starts_with(begin)))
}

/// Names of what the rules record.
fn recorded_names(expression: &str) -> impl Iterator<Item = &str> {
    words(expression).filter(|word| word.starts_with("ringcast:"))
}

fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|letter: char| !(letter.is_ascii_alphanumeric() || "_:".contains(letter)))
}

/// Those of `known` that a label can have. It may depend on the series: `{{ if … }}load{{ else }}apple{{ end }}`.
fn values<'a>(label: &'a Value, known: &[&str]) -> Vec<&'a str> {
    text(label).split(['{', '}']).map(str::trim).filter(|word| known.contains(word)).collect()
}

/// Whether there is a case in which the alert fires, and one in which it is asked for and does not.
fn cases(name: &str) -> (bool, bool) {
    let is_fired = |case: &&str| case.contains(&format!("alertname=\"{name}\", "));
    let of_it = || CASES.split("  - name: '").skip(1).filter(|case| case.contains(name));
    let fires = of_it().any(|case| is_fired(&case));
    let silent = of_it().any(|case| case.split("eval_time:").skip(1).any(|check| !is_fired(&check)));
    (fires, silent)
}

async fn alerts(prometheus: &Prometheus) -> Vec<Value> {
    let rules = every_rule(prometheus).await;
    rules.into_iter().filter(|rule| rule["type"] == "alerting").collect()
}

async fn every_rule(prometheus: &Prometheus) -> Vec<Value> {
    let groups = prometheus.rules().await;
    let groups = groups.as_array().expect("a list of groups");
    groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
