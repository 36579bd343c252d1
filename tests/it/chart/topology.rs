//! The objects for RabbitMQ's topology operator, beside what `ringcast topology` itself declares and prints: the same queues,
//! exchanges, bindings and policies, or whoever comes second is refused (406).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::config::lay_secrets;
use super::helm::Cluster;
use super::objects::{Objects, list, rendered, text, with_values};
use crate::apple::Apple;
use crate::check::topology;
use crate::client::python;
use crate::load::declare;
use crate::place::Place;
use crate::process::run_ringcast;
use crate::vhost::Vhost;
use crate::worker::Config;

const KINDS: [&str; 4] = ["Exchange", "Queue", "Binding", "Policy"];

/// The example, and one with everything else that queues are made of.
async fn releases() -> Vec<Objects> {
    let other = json!({
        "topology": { "enabled": true, "rabbitmqCluster": { "name": "rabbit" } },
        "config": {
            "amqp": { "invites": ["ringcast.invites", "VIP", "très/c+(d)"], "results_exchange": "calls.results" },
            "worker": { "deadline_max": "90s" },
        },
    });
    let mut found = with_values("topology", Cluster::Bare, &[json!({})]).await;
    found.extend(with_values("minimal", Cluster::Bare, &[other]).await);
    found
}

/// Settings of Ringcast with what the release says of queues.
fn settings(apple: &Apple, objects: &Objects) -> Config {
    let mut settings = Config::new(apple);
    let config = objects.config();
    for (section, key) in [("amqp", "invites"), ("amqp", "results_exchange"), ("worker", "deadline_max")] {
        if let Some(value) = config.get(section).and_then(|section| section.get(key)) {
            settings.set(section, key, &json!(value).to_string());
        }
    }
    settings
}

#[tokio::test]
async fn the_operator_declares_what_ringcast_declares() {
    let place = Place::new("chart-topology");
    let apple = Apple::start(&place, (0, 0), "").await;
    for objects in releases().await {
        let mut settings = settings(&apple, &objects);
        let (ours, theirs) = (Vhost::new().await, Vhost::new().await);
        settings.text("amqp", "uri", &ours.uri());
        declare(&place, &settings).await;
        by_operator(&theirs.uri(), &objects).await;
        let expected = topology(&ours).await;
        assert_eq!(topology(&theirs).await, expected);
        assert!(expected.len() > 15, "{expected:?}");

        // Where the operator was first, Ringcast finds everything as it wants it.
        settings.text("amqp", "uri", &theirs.uri());
        declare(&place, &settings).await;
        assert_eq!(topology(&theirs).await, expected);
    }
}

/// The Job runs as its pod would: its arguments and variables, the release's configuration, and a URI from a Secret of its own.
#[tokio::test]
async fn the_job_declares_what_ringcast_declares() {
    let objects = with_values("declare", Cluster::Bare, &[json!({})]).await.remove(0);
    let pod = &objects.only("Job")["spec"]["template"]["spec"];
    let container = &list(&pod["containers"])[0];
    let secret = &container["env"][0];
    assert_eq!(secret["name"], "RINGCAST__AMQP__URI");
    assert!(secret["valueFrom"]["secretKeyRef"].is_object(), "{secret}");

    let place = Place::new("chart-job");
    let config = place.write("ringcast.toml", lay_secrets(&place, objects.config_text()));
    let args: Vec<&str> = list(&container["args"]).iter().map(text).collect();
    assert_eq!(args[..3], ["topology", "declare", "--config"]);
    let mount = list(&container["volumeMounts"]).iter().find(|mount| mount["mountPath"] == "/etc/ringcast");
    assert!(mount.is_some() && args[3] == "/etc/ringcast/ringcast.toml", "{args:?}");
    let (by_job, by_hand) = (Vhost::new().await, Vhost::new().await);
    let args = ["topology", "declare", "--config", config.to_str().expect("the test's paths are UTF-8")];
    let ended = run_ringcast(&args, &[("RINGCAST__AMQP__URI", &by_job.uri())], place.as_ref()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let apple = Apple::start(&place, (0, 0), "").await;
    let mut settings = settings(&apple, &objects);
    settings.text("amqp", "uri", &by_hand.uri());
    declare(&place, &settings).await;
    assert_eq!(topology(&by_job).await, topology(&by_hand).await);

    // Where workers may run, it may.
    let place = json!({ "nodeSelector": { "pool": "calls" }, "tolerations": [{ "operator": "Exists" }] });
    let placed = with_values("declare", Cluster::Bare, std::slice::from_ref(&place)).await.remove(0);
    let placed = &placed.only("Job")["spec"]["template"]["spec"];
    assert_eq!(
        (&placed["nodeSelector"], &placed["tolerations"]),
        (&place["nodeSelector"], &place["tolerations"])
    );

    // A Job cannot be changed: another configuration or image is another Job, and the same is the same.
    let overlays = [
        json!({ "config": { "amqp": { "invites": ["other"] } } }),
        json!({ "image": { "tag": "2" } }),
        json!({ "replicas": 7 }),
    ];
    let name = |objects: &Objects| objects.only("Job")["metadata"]["name"].clone();
    let names: Vec<Value> = with_values("declare", Cluster::Bare, &overlays).await.iter().map(name).collect();
    assert!(
        names[0] != name(&objects) && names[1] != name(&objects) && names[2] == name(&objects),
        "{names:?}"
    );
}

#[tokio::test]
async fn its_policies_are_those_that_ringcast_prints() {
    let place = Place::new("chart-policies");
    let apple = Apple::start(&place, (0, 0), "").await;
    for objects in releases().await {
        let file = settings(&apple, &objects).write(&place, "policies.toml");
        let file = file.to_str().expect("the test's paths are UTF-8");
        let printed = run_ringcast(&["topology", "policies", "--config", file], &[], place.as_ref()).await;
        let expected: BTreeMap<String, (String, Value)> = printed.stdout.lines().filter_map(policy).collect();
        assert_eq!(expected.len(), 3, "{}{}", printed.stdout, printed.stderr);
        let found = objects.of_kind("Policy").map(|policy| {
            let spec = &policy["spec"];
            assert_eq!(spec["applyTo"], "queues");
            assert!(spec["priority"].is_null() || spec["priority"] == 0);
            (text(&spec["name"]).to_owned(), (text(&spec["pattern"]).to_owned(), spec["definition"].clone()))
        });
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
    }
}

/// With an object the operator deletes what it stands for, and every call in it: an uninstall must leave the objects there.
#[tokio::test]
async fn its_objects_outlive_the_release() {
    let mut names = BTreeSet::new();
    for one in rendered().await {
        for object in KINDS.iter().flat_map(|kind| one.objects.of_kind(kind)) {
            assert_eq!(
                object["metadata"]["annotations"]["helm.sh/resource-policy"], "keep",
                "{}: {object}",
                one.name
            );
            let name = text(&object["metadata"]["name"]);
            // RFC 1123, as Kubernetes wants it.
            let is_plain = |letter: char| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter)
            };
            assert!(name.chars().all(is_plain) && !name.ends_with('-'), "{}: {name}", one.name);
            names.insert((text(&object["kind"]), name));
        }
    }
    assert!(names.len() > 15, "{names:?}");
}

/// Says, as the operator would, what the objects describe.
async fn by_operator(uri: &str, objects: &Objects) {
    let wanted: Vec<&Value> = KINDS.iter().flat_map(|kind| objects.of_kind(kind)).collect();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/chart/declare.py");
    let mut child = Command::new(python())
        .args([script, uri])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Python starts");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin.write_all(json!(wanted).to_string().as_bytes()).await.expect("it reads");
    drop(stdin);
    let ended = child.wait_with_output().await.expect("a child can be awaited");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// `rabbitmqctl set_policy --vhost '/' --apply-to queues NAME 'PATTERN' 'DEFINITION'`
fn policy(line: &str) -> Option<(String, (String, Value))> {
    let rest = line.strip_prefix("rabbitmqctl set_policy ")?.split_once("--apply-to queues ")?.1;
    let (name, rest) = rest.split_once(' ')?;
    let mut quoted = rest.split('\'').skip(1).step_by(2);
    let (pattern, definition) = (quoted.next()?, quoted.next()?);
    Some((
        name.to_owned(),
        (pattern.to_owned(), serde_json::from_str(definition).expect("a definition is JSON")),
    ))
}
