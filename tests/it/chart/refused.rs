//! Wrong values, each refused by both Helms in words that lead to what is right, whether the schema or a template says them.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::helm::{Cluster, Helm, example};

struct Case {
    /// Over the smallest example, or without it.
    file: Option<PathBuf>,
    values: Value,
    /// Where it is wrong, and what would be right.
    words: &'static [&'static str],
}

#[tokio::test]
async fn a_wrong_value_is_refused_with_what_would_be_right() {
    let (mut mistakes, cases) = (Vec::new(), cases());
    for case in &cases {
        for helm in Helm::BOTH {
            match helm.template(case.file.as_deref(), &case.values, Cluster::Bare, &[]).await {
                Ok(_) => mistakes.push(format!("{helm:?} takes {}", case.values)),
                Err(said) => {
                    for word in case.words.iter().filter(|word| !said.contains(**word)) {
                        mistakes.push(format!("{helm:?}: {}: no {word:?} in:\n{}", case.values, said.trim()));
                    }
                    if said.contains(PASSWORD) {
                        mistakes.push(format!("{helm:?}: {}: shows the password", case.values));
                    }
                }
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    assert!(cases.len() >= 10);
}

/// The example without the mistakes is taken: what is refused is refused for them.
#[tokio::test]
async fn the_example_itself_is_taken() {
    for helm in Helm::BOTH {
        let taken = helm.template(Some(&example("minimal")), &json!({}), Cluster::Bare, &[]).await;
        taken.unwrap_or_else(|error| panic!("{helm:?}: {error}"));
    }
}

/// Two mistakes are said at once: nobody should learn of the second after mending the first.
#[tokio::test]
async fn mistakes_are_said_together() {
    let values = json!({
        "existingSecret": "",
        "autoscaling": { "min": 9, "max": 3 },
        "config": { "worker": { "shutdown_grace": "11m" } },
    });
    for helm in Helm::BOTH {
        let said = helm.template(Some(&example("minimal")), &values, Cluster::Bare, &[]).await;
        let said = said.expect_err("it is wrong");
        for word in ["existingSecret", "autoscaling.min", "config.worker.shutdown_grace"] {
            assert!(said.contains(word), "{helm:?}: no {word} in {said}");
        }
    }
}

/// Never shown, wherever it was put by mistake.
const PASSWORD: &str = "s3cret";

fn case(values: Value, words: &'static [&'static str]) -> Case {
    Case { file: Some(example("minimal")), values, words }
}

fn alone(values: Value, words: &'static [&'static str]) -> Case {
    Case { file: None, values, words }
}

fn set(section: &str, key: &str, value: impl Into<Value>, words: &'static [&'static str]) -> Case {
    case(json!({ "config": { section: { key: value.into() } } }), words)
}

fn cases() -> Vec<Case> {
    let mut cases = of_the_chart();
    cases.extend(of_the_settings());
    cases.extend(of_secrets());
    cases
}

fn of_the_chart() -> Vec<Case> {
    let scale = |values: Value, words| case(json!({ "autoscaling": values }), words);
    vec![
        case(json!({ "replica": 3 }), &["replica"]),
        case(json!({ "replicas": "3" }), &["replicas", "integer", "string"]),
        case(json!({ "replicas": 0 }), &["replicas", "1"]),
        case(
            json!({ "existingSecret": "" }),
            &["existingSecret", "Secret", "amqp-uri", "kubectl create secret"],
        ),
        case(json!({ "image": { "digest": "latest" } }), &["digest"]),
        case(
            json!({ "image": { "pullPolicy": "Sometimes" } }),
            &["pullPolicy", "IfNotPresent", "Always", "Never"],
        ),
        scale(json!({ "min": 0 }), &["autoscaling", "min", "2"]),
        scale(json!({ "min": 1 }), &["autoscaling", "min", "2"]),
        scale(json!({ "min": 9, "max": 3 }), &["autoscaling.min is 9", "autoscaling.max is 3"]),
        scale(json!({ "kind": "vpa" }), &["kind", "auto", "keda", "hpa", "none"]),
        scale(json!({ "keda": { "fallback": { "replicas": 1 } } }), &["fallback", "replicas", "2"]),
        case(
            json!({ "autoscaling": { "kind": "hpa" }, "resources": { "requests": { "cpu": null } } }),
            &["hpa", "resources.requests.cpu"],
        ),
        // Nothing would scrape the workers under the job that KEDA asks for.
        scale(
            json!({ "kind": "keda", "keda": { "prometheus": { "serverAddress": "http://prometheus:9090" } } }),
            &["keda.prometheus.query", "monitoring.podMonitor.enabled is auto", "Prometheus operator"],
        ),
        case(
            json!({
                "autoscaling": { "kind": "keda", "keda": { "prometheus": { "serverAddress": "http://prometheus:9090" } } },
                "monitoring": { "podMonitor": { "enabled": false } },
            }),
            &["keda.prometheus.query", "monitoring.podMonitor.enabled is false"],
        ),
        case(json!({ "terminationGracePeriodSeconds": 60 }), &["terminationGracePeriodSeconds"]),
        case(
            json!({ "monitoring": { "podMonitor": { "enabled": "yes" } } }),
            &["podMonitor", "enabled", "auto"],
        ),
        case(
            json!({ "topology": { "enabled": true } }),
            &["topology.rabbitmqCluster.name", "connectionSecret"],
        ),
        case(
            json!({ "simulator": { "enabled": true } }),
            &["simulator.existingSecret", "apns-simulator --identity"],
        ),
        case(
            json!({ "extraEnv": [{ "name": "RINGCAST__AMQP__URI", "value": format!("amqp://u:{PASSWORD}@h") }] }),
            &["extraEnv", "RINGCAST__AMQP__URI", "existingSecret"],
        ),
        case(json!({ "strategy": { "maxSurge": 0, "maxUnavailable": 0 } }), &["maxSurge", "maxUnavailable"]),
        // Nothing could be drained.
        case(json!({ "pdb": { "maxUnavailable": 0 } }), &["pdb", "maxUnavailable", "1"]),
        // Helm takes null for "leave the default out".
        case(json!({ "autoscaling": null }), &["autoscaling"]),
        scale(json!({ "min": null }), &["autoscaling", "min"]),
        // No port would be every port.
        case(json!({ "networkPolicy": { "amqpPorts": null } }), &["networkPolicy", "amqpPorts"]),
    ]
}

/// A secret in the place of a name: it is not shown.
fn of_secrets() -> Vec<Case> {
    let uri = format!("amqps://u:{PASSWORD}@h/");
    let keda = |values: Value, words| case(json!({ "autoscaling": { "keda": values } }), words);
    vec![
        case(json!({ "amqpUriKey": uri }), &["amqpUriKey", "into the Secret"]),
        case(json!({ "existingSecret": uri }), &["existingSecret", "a-z 0-9 - ."]),
        case(
            json!({ "image": { "repository": format!("u:{PASSWORD}@h/ringcast") } }),
            &["image.repository", "image.pullSecrets"],
        ),
        keda(json!({ "amqpUriKey": uri }), &["autoscaling.keda.amqpUriKey", "into the Secret"]),
        keda(
            json!({ "prometheus": { "customHeaders": format!("Authorization=Bearer {PASSWORD}") } }),
            &["customHeaders", "authenticationRef"],
        ),
    ]
}

fn of_the_settings() -> Vec<Case> {
    vec![
        set("amqp", "prefetchh", json!(5), &["config", "amqp", "prefetchh"]),
        set("amqp", "uri", json!(format!("amqp://ring:{PASSWORD}@host/")), &["config", "amqp", "uri"]),
        set("amqp", "prefetch", json!(0), &["config", "amqp", "prefetch", "1"]),
        set("amqp", "prefetch", json!("many"), &["config", "amqp", "prefetch", "integer"]),
        set("amqp", "invites", json!("ringcast.invites"), &["config", "amqp", "invites", "array"]),
        set("amqp", "declare", json!("yes"), &["config", "amqp", "declare", "boolean"]),
        set("apns", "connections", json!(9), &["config.apns.connections is 9", "connections_max is 8"]),
        set(
            "apns",
            "proxy",
            json!(format!("http://u:{PASSWORD}@proxy:3128")),
            &["config.apns.proxy", "proxy_credentials_file"],
        ),
        set("apns", "request_timeout", json!("5 minutes"), &["config", "apns", "request_timeout"]),
        set("worker", "shutdown_grace", json!(30), &["config", "worker", "shutdown_grace", "string"]),
        set("worker", "shutdown_grace", json!("11m"), &["config.worker.shutdown_grace is 11m", "1s to 10m"]),
        set("worker", "ring_time_min", json!("5m"), &["config.worker.ring_time_min", "deadline_max"]),
        set("traces", "sample_ratio", json!(1.5), &["config", "traces", "sample_ratio", "1"]),
        set(
            "traces",
            "otlp_endpoint",
            json!(format!("https://u:{PASSWORD}@collector/")),
            &["config.traces.otlp_endpoint", "headers_file"],
        ),
        set("admin", "listen", json!("0.0.0.0:70000"), &["config.admin.listen", "PORT"]),
        set("log", "format", json!("text"), &["config", "log", "format", "auto", "json", "human"]),
        set("queue", "name", json!("a"), &["config", "queue"]),
        set("apps", "Acme", json!({ "bundle_id": "com.acme.voice" }), &["config", "apps", "Acme"]),
        alone(json!({ "existingSecret": "a" }), &["config.apps is empty", "config.apps.acme", "bundle_id"]),
        alone(
            json!({ "existingSecret": "a", "config": { "apps": { "acme": { "bundle_id": "a" } } } }),
            &["config.apps.acme.auth is missing", "key_file"],
        ),
        case(
            json!({ "config": { "apps": { "acme": { "environment": "staging" } } } }),
            &["environment", "production", "sandbox"],
        ),
        case(
            json!({ "config": { "apps": { "acme": { "auth": { "team_id": "ACME" } } } } }),
            &["auth", "team_id"],
        ),
        case(
            json!({ "config": { "apps": { "acme": { "bundle": "com.acme.voice" } } } }),
            &["apps", "acme", "bundle"],
        ),
    ]
}
