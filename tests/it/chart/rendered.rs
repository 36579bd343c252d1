//! Every example, as both Helms render it for a bare cluster and for one with operators, before judges that are not ours.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::process::Command;

use super::helm::{Cluster, FULL_NAME, Helm, examples};
use super::objects::{Objects, Rendered, by_title, judge, leaves, list, rendered, text, title, with_values};
use crate::place::Place;

const ALERTS: &str = include_str!("../../../charts/ringcast/alerts.yaml");
const PAGE: &str = include_str!("../../../charts/ringcast/README.md");
const DASHBOARD: &str = include_str!("../../../charts/ringcast/dashboard.json");

/// Values that the chart's page shows, whole or a part, over the smallest example.
#[tokio::test]
async fn values_on_the_page_are_taken() {
    let example = super::helm::example("minimal");
    let example = example.to_str().expect("its name is UTF-8");
    let shown: Vec<&str> =
        PAGE.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect();
    assert!(!shown.is_empty(), "the page shows values");
    for values in shown {
        for helm in Helm::BOTH {
            let args =
                ["template", super::helm::RELEASE, super::helm::CHART, "--values", example, "--values", "-"];
            let output = helm.run(&args, values).await;
            assert!(
                output.status.success(),
                "{helm:?}: {}\n{values}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

#[tokio::test]
async fn lint_finds_nothing() {
    for file in examples() {
        for helm in Helm::BOTH {
            let file = file.to_str().expect("its name is UTF-8");
            let output = helm.run(&["lint", "--strict", super::helm::CHART, "--values", file], "").await;
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{helm:?}: {file}: {}", String::from_utf8_lossy(&said));
        }
    }
}

/// And the judges themselves: each refuses a field that is not known, and a wrong type, in an object that is right otherwise.
#[tokio::test]
async fn every_object_is_what_its_api_takes() {
    let full = rendered().await.iter().filter(|one| one.cluster == Cluster::WithOperators);
    let mut kinds = BTreeSet::new();
    let mut spoiled = Vec::new();
    for object in full.flat_map(|one| &one.objects.0) {
        if object["spec"].is_object() && kinds.insert(text(&object["kind"])) {
            for (key, value) in [("bogus", json!("field")), ("spec", json!([1]))] {
                let mut wrong = object.clone();
                if key == "spec" {
                    wrong[key] = value;
                } else {
                    wrong["spec"][key] = value;
                }
                spoiled.push((format!("{key} of {}", title(object)), wrong.to_string()));
            }
        }
    }
    for kind in [
        "Deployment",
        "ScaledObject",
        "PodMonitor",
        "PrometheusRule",
        "Queue",
        "Exchange",
        "Binding",
        "Policy",
    ] {
        assert!(kinds.contains(kind), "no example renders a {kind}");
    }
    let texts: Vec<String> = spoiled.iter().map(|(_, text)| text.clone()).collect();
    let right = rendered().await.iter().map(|one| one.text.clone());
    // All at once: the judges take longer to start than to judge.
    let mut mistakes = judge(&texts.into_iter().chain(right).collect::<Vec<_>>()).await;
    for (number, (what, _)) in spoiled.iter().enumerate() {
        let file = format!("/{number}.yaml: ");
        let before = mistakes.len();
        mistakes.retain(|mistake| !mistake.contains(&file));
        assert!(mistakes.len() < before, "nobody minds {what}");
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[tokio::test]
async fn both_helms_render_the_same() {
    let mut compared = 0;
    for three in rendered().await.iter().filter(|one| one.helm == Helm::Three) {
        let four = other(three, |one| one.helm == Helm::Four && one.cluster == three.cluster).await;
        assert_eq!(by_title(&three.objects), by_title(&four.objects), "{}", three.name);
        compared += 1;
    }
    assert_eq!(compared, examples().len() * 2);
}

/// What `auto` stands for: the objects of operators are rendered where there are operators. Where an example says it outright,
/// they are there either way.
#[tokio::test]
async fn automatic_switches_follow_the_cluster() {
    let (mut bare, mut with_operators) = (BTreeSet::new(), BTreeSet::new());
    for overlay in [json!({})] {
        bare.extend(kinds(&with_values("minimal", Cluster::Bare, std::slice::from_ref(&overlay)).await[0]));
        with_operators.extend(kinds(&with_values("minimal", Cluster::WithOperators, &[overlay]).await[0]));
    }
    let more: Vec<&str> = with_operators.difference(&bare).map(String::as_str).collect();
    assert_eq!(more, ["PodMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"]);
    assert!(bare.is_subset(&with_operators), "{bare:?}");

    let said = [
        (json!({ "autoscaling": { "kind": "none" } }), &["ScaledObject", "TriggerAuthentication"][..]),
        (json!({ "monitoring": { "podMonitor": { "enabled": false } } }), &["PodMonitor"]),
        (json!({ "monitoring": { "prometheusRule": { "enabled": false } } }), &["PrometheusRule"]),
    ];
    for (overlay, without) in said {
        let found =
            kinds(&with_values("minimal", Cluster::WithOperators, std::slice::from_ref(&overlay)).await[0]);
        for kind in without {
            assert!(!found.contains(*kind), "{overlay} renders a {kind}");
        }
    }
    let said = [
        (json!({ "autoscaling": { "kind": "keda" } }), &["ScaledObject", "TriggerAuthentication"][..]),
        (json!({ "autoscaling": { "kind": "hpa" } }), &["HorizontalPodAutoscaler"]),
        (json!({ "monitoring": { "podMonitor": { "enabled": true } } }), &["PodMonitor"]),
        (json!({ "monitoring": { "prometheusRule": { "enabled": true } } }), &["PrometheusRule"]),
    ];
    for (overlay, with) in said {
        let found = kinds(&with_values("minimal", Cluster::Bare, std::slice::from_ref(&overlay)).await[0]);
        for kind in with {
            assert!(found.contains(*kind), "{overlay} renders no {kind}");
        }
    }
}

#[tokio::test]
async fn names_and_labels_are_the_recommended_ones() {
    let version = env!("CARGO_PKG_VERSION");
    for one in rendered().await {
        for (title, object) in by_title(&one.objects) {
            let metadata = &object["metadata"];
            let name = text(&metadata["name"]);
            // Whose account it is may be said.
            let is_ours = name.starts_with(FULL_NAME) || object["kind"] == "ServiceAccount";
            assert!(is_ours && name.len() <= 63, "{}: {title}", one.name);
            let labels = &metadata["labels"];
            for (label, value) in [
                ("app.kubernetes.io/name", "ringcast"),
                ("app.kubernetes.io/instance", super::helm::RELEASE),
                ("app.kubernetes.io/version", version),
                ("app.kubernetes.io/managed-by", "Helm"),
                ("helm.sh/chart", &format!("ringcast-{version}")),
            ] {
                assert_eq!(labels[label], value, "{}: {title}: {label}", one.name);
            }
        }
    }
    let long = "b".repeat(63);
    let names = [
        ("fullnameOverride", "bells", "bells"),
        ("nameOverride", "bells", "ring-bells"),
        ("nameOverride", &long, "ring-bb"),
    ];
    let overlay = |(key, name, _): &(&str, &str, &str)| {
        json!({
            *key: name,
            "topology": { "enabled": true, "rabbitmqCluster": { "name": "rabbit" } },
            "simulator": { "enabled": true, "existingSecret": "apple" },
        })
    };
    let overlays: Vec<Value> = names.iter().map(overlay).collect();
    for (objects, (_, _, begin)) in
        with_values("minimal", Cluster::WithOperators, &overlays).await.iter().zip(names)
    {
        for (title, object) in by_title(objects) {
            assert!(text(&object["metadata"]["name"]).starts_with(begin), "{begin}: {title}");
            // A Service's name is a DNS label, and so is a label's value as long.
            let longest = if object["apiVersion"] == "rabbitmq.com/v1beta1" { 253 } else { 63 };
            assert!(text(&object["metadata"]["name"]).len() <= longest, "{title}");
            for value in
                object["metadata"]["labels"].as_object().into_iter().flat_map(|labels| labels.values())
            {
                assert!(text(value).len() <= 63, "{title}: {value}");
            }
        }
    }
}

/// What cannot be changed in an object that is there has a name of its own for each content: a Job's template, a Binding's source.
#[tokio::test]
async fn what_cannot_be_changed_is_made_anew() {
    let names = async |example: &str, kind: &'static str, overlays: &[Value]| -> Vec<BTreeSet<String>> {
        let all = with_values(example, Cluster::WithOperators, overlays).await;
        let named = |objects: &Objects| {
            objects.of_kind(kind).map(|object| text(&object["metadata"]["name"]).to_owned()).collect()
        };
        all.iter().map(named).collect()
    };
    let changes = [
        json!({}),
        json!({ "resources": { "requests": { "memory": "65Mi" } } }),
        json!({ "existingSecret": "another" }),
        json!({ "image": { "pullPolicy": "Always" } }),
        json!({ "config": { "amqp": { "invites": ["ringcast.invites.more"] } } }),
    ];
    let jobs = names("declare", "Job", &changes).await;
    let distinct: BTreeSet<&String> = jobs.iter().flatten().collect();
    assert_eq!(distinct.len(), changes.len(), "{jobs:?}");
    let same = names("declare", "Job", &[json!({ "replicas": 7 })]).await;
    assert_eq!(same[0], jobs[0], "it is made of the same");

    let exchanges =
        [json!({}), json!({ "config": { "amqp": { "results_exchange": "ringcast.results.more" } } })];
    let bindings = names("topology", "Binding", &exchanges).await;
    let added: Vec<_> = bindings[1].difference(&bindings[0]).collect();
    assert_eq!(added.len(), 3, "of outcomes and both kinds of token events: {added:?}");
}

/// Names that YAML would take for a number, a truth or nothing.
#[tokio::test]
async fn names_stay_texts_whatever_they_look_like() {
    let overlay = json!({
        "fullnameOverride": "123",
        "existingSecret": "1e3",
        "amqpUriKey": "null",
        "priorityClassName": "1",
        "serviceAccount": { "name": "true" },
    });
    let objects = with_values("minimal", Cluster::WithOperators, &[overlay]).await.remove(0);
    for (title, object) in by_title(&objects) {
        assert!(object["metadata"]["name"].is_string(), "{title}");
        assert!(
            object["metadata"]["labels"].as_object().is_some_and(|all| all.values().all(Value::is_string))
        );
    }
    let worker = objects.find("Deployment", "123").expect("its name is a text");
    let pod = &worker["spec"]["template"]["spec"];
    assert_eq!(pod["priorityClassName"], "1");
    assert_eq!(pod["serviceAccountName"], "true");
    let secrets = list(&pod["volumes"]).iter().find(|volume| volume["name"] == "secrets");
    assert_eq!(secrets.expect("it is mounted")["secret"]["secretName"], "1e3");
}

/// Selectors find the workers' pods and no others: neither the simulator's, nor the one that tests the release.
#[tokio::test]
async fn selectors_find_the_workers_alone() {
    for one in rendered().await {
        let worker = one.objects.worker();
        let labels = &worker["spec"]["template"]["metadata"]["labels"];
        let mut others: Vec<&Value> =
            one.objects.of_kind("Pod").map(|pod| &pod["metadata"]["labels"]).collect();
        for owner in ["Deployment", "Job"].into_iter().flat_map(|kind| one.objects.of_kind(kind)) {
            if owner != worker {
                others.push(&owner["spec"]["template"]["metadata"]["labels"]);
            }
        }
        let mut selectors = vec![("Deployment", &worker["spec"]["selector"])];
        for kind in ["PodDisruptionBudget", "PodMonitor"] {
            selectors.extend(one.objects.of_kind(kind).map(|object| (kind, &object["spec"]["selector"])));
        }
        for constraint in list(&worker["spec"]["template"]["spec"]["topologySpreadConstraints"]) {
            selectors.push(("topologySpreadConstraints", &constraint["labelSelector"]));
        }
        for (kind, selector) in selectors {
            let wanted = selector["matchLabels"].as_object().expect("it matches labels");
            let takes = |labels: &Value| wanted.iter().all(|(label, value)| labels[label] == *value);
            assert!(!wanted.is_empty() && takes(labels), "{}: {kind}: {selector}", one.name);
            assert!(selector["matchExpressions"].is_null(), "{}: {kind}: read them, too", one.name);
            for other in &others {
                assert!(!takes(other), "{}: {kind} takes the pod with {other}", one.name);
            }
        }
    }
}

#[tokio::test]
async fn no_manifest_holds_a_secret() {
    let mut places = 0;
    for one in rendered().await {
        assert_eq!(one.objects.of_kind("Secret").count(), 0, "{}: secrets are made by others", one.name);
        for object in &one.objects.0 {
            let mut found = Vec::new();
            leaves(object, &title(object), &mut found);
            for (path, value) in found {
                let value = text(value);
                places += 1;
                assert!(!value.contains("PRIVATE KEY"), "{}: {path}", one.name);
                // user:password@ in any URI.
                for (_, rest) in value.match_indices("://").map(|(at, it)| value.split_at(at + it.len())) {
                    let authority = rest.split(['/', ' ', '"', '\n']).next().unwrap_or_default();
                    assert!(!authority.contains('@'), "{}: {path}", one.name);
                }
            }
        }
    }
    assert!(places > 1000, "{places}");
}

#[tokio::test]
async fn the_rules_are_the_alerts_and_the_board_is_the_board() {
    let full = with_values(
        "full",
        Cluster::WithOperators,
        &[json!({ "monitoring": { "prometheusRule": { "runbookBase": "" } } })],
    )
    .await
    .remove(0);
    let rule = full.only("PrometheusRule");
    let alerts = super::objects::read(&[ALERTS.to_owned()]).await.remove(0);
    assert_eq!(rule["spec"]["groups"], alerts.0[0]["groups"]);
    assert!(list(&rule["spec"]["groups"]).iter().any(|group| !list(&group["rules"]).is_empty()));
    let place = Place::new("chart-rules");
    // What KEDA asks Prometheus is a query like those of the alerts.
    let mut spec = rule["spec"].clone();
    let triggers = list(&full.only("ScaledObject")["spec"]["triggers"]);
    let queries = triggers
        .iter()
        .filter(|trigger| trigger["type"] == "prometheus")
        .map(|trigger| &trigger["metadata"]["query"]);
    let rules: Vec<Value> = queries.map(|query| json!({ "record": "workers", "expr": query })).collect();
    assert_eq!(rules.len(), 1, "the example lets KEDA ask Prometheus");
    spec["groups"].as_array_mut().expect("it is a list").push(json!({ "name": "keda", "rules": rules }));
    let file = place.write("rules.json", spec.to_string());
    let checked =
        Command::new("promtool").args(["check", "rules"]).arg(&file).kill_on_drop(true).output().await;
    let checked = checked
        .unwrap_or_else(|error| panic!("promtool does not start: {error}; Debian's package is `prometheus`"));
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat())
    );

    // Links lead to a copy of the runbook, where somebody says where it is.
    let base =
        json!({ "monitoring": { "prometheusRule": { "runbookBase": "https://docs.example/calls/" } } });
    let linking = with_values("full", Cluster::WithOperators, &[base]).await.remove(0);
    let linked = linking.only("PrometheusRule")["spec"]["groups"].to_string();
    let groups = alerts.0[0]["groups"].to_string();
    assert_eq!(linked, groups.replace("\"RUNBOOK.md", "\"https://docs.example/calls/RUNBOOK.md"));
    assert!(linked != groups);

    let board = |rendered: &Objects| {
        let mut files = rendered.of_kind("ConfigMap").filter_map(|map| map["data"].as_object()).flatten();
        text(files.find(|(name, _)| *name == "ringcast.json").expect("there is the dashboard").1).to_owned()
    };
    assert!(board(&full) == DASHBOARD, "the dashboard is not the file, byte for byte");
    let mut linked: Value = serde_json::from_str(&board(&linking)).expect("it is JSON");
    let links = linked["links"].take();
    assert_eq!(links[0]["url"], "https://docs.example/calls/RUNBOOK.md");
    linked["links"] = json!([]);
    assert_eq!(linked, serde_json::from_str::<Value>(DASHBOARD).expect("it is JSON"), "nothing else differs");
}

/// Series have the job that alerts and dashboard show: the operator makes it of namespace and name of the monitor.
#[tokio::test]
async fn the_monitor_scrapes_the_port_of_the_metrics() {
    for one in rendered().await {
        for monitor in one.objects.of_kind("PodMonitor") {
            assert_eq!(monitor["metadata"]["name"], FULL_NAME, "{}", one.name);
            assert!(monitor["spec"]["jobLabel"].is_null(), "{}", one.name);
            let endpoint = &list(&monitor["spec"]["podMetricsEndpoints"])[0];
            let container = &list(&one.objects.worker()["spec"]["template"]["spec"]["containers"])[0];
            let port = list(&container["ports"]).iter().find(|port| port["name"] == endpoint["port"]);
            let listen = one.objects.config();
            let listen =
                listen.get("admin").and_then(|admin| admin["listen"].as_str()).unwrap_or("0.0.0.0:9090");
            let number: u16 = listen.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
            assert_eq!(
                port.map(|port| &port["containerPort"]),
                Some(&json!(number)),
                "{}: {endpoint}",
                one.name
            );
        }
    }
    assert!(rendered().await.iter().any(|one| one.objects.of_kind("PodMonitor").count() == 1));
}

fn kinds(objects: &Objects) -> BTreeSet<String> {
    objects.0.iter().map(|object| text(&object["kind"]).to_owned()).collect()
}

/// The same example, rendered otherwise.
async fn other(one: &Rendered, is_it: impl Fn(&Rendered) -> bool) -> &'static Rendered {
    let mut found = rendered().await.iter().filter(|other| other.name == one.name && is_it(other));
    found.next().expect("it was rendered so, too")
}
