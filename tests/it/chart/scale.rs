//! How many workers there are: said by one place alone, never none, and never all taken away at once.

use serde_json::{Value, json};

use super::helm::{Cluster, FULL_NAME};
use super::objects::{Objects, list, rendered, text, with_values};

/// A Deployment that also says a number would undo what a scaler did, at each upgrade.
#[tokio::test]
async fn replicas_are_left_to_who_scales() {
    let scale = |values: Value| json!({ "replicas": 3, "autoscaling": values });
    let cases = [
        (scale(json!({ "kind": "none" })), Cluster::WithOperators, Some(3)),
        (scale(json!({ "kind": "auto" })), Cluster::Bare, Some(3)),
        (scale(json!({ "kind": "auto" })), Cluster::WithOperators, None),
        (scale(json!({ "kind": "keda" })), Cluster::Bare, None),
        (scale(json!({ "kind": "hpa" })), Cluster::WithOperators, None),
    ];
    for (overlay, cluster, replicas) in cases {
        let objects = with_values("minimal", cluster, std::slice::from_ref(&overlay)).await.remove(0);
        let found = objects.worker()["spec"].get("replicas").map(Value::as_u64);
        assert_eq!(found, replicas.map(Some), "{overlay} on {cluster:?}");
        let scalers = scalers(&objects);
        assert_eq!(scalers.len(), usize::from(replicas.is_none()), "{overlay} on {cluster:?}");
    }
}

/// No invite waits for a first worker to start, and one can go without the last one going.
#[tokio::test]
async fn there_are_always_two_workers_where_something_scales() {
    let mut seen = 0;
    for one in rendered().await {
        for scaler in scalers(&one.objects) {
            seen += 1;
            let spec = &scaler["spec"];
            let (least, most) = match text(&scaler["kind"]) {
                "ScaledObject" => (&spec["minReplicaCount"], &spec["maxReplicaCount"]),
                _ => (&spec["minReplicas"], &spec["maxReplicas"]),
            };
            let (least, most) = (least.as_u64().expect("it is said"), most.as_u64().expect("it is said"));
            assert!(least >= 2 && most >= least, "{}: {least} to {most}", one.name);
            assert!(spec["idleReplicaCount"].is_null(), "{}: idle is none", one.name);
            if let Some(fallback) = spec["fallback"]["replicas"].as_u64() {
                assert!(fallback >= least, "{}: {fallback} where KEDA cannot ask", one.name);
            }
            assert_eq!(spec["scaleTargetRef"]["name"], FULL_NAME, "{}", one.name);
        }
    }
    assert!(seen > 4, "{seen}");
}

/// Neither an update nor a drained node takes more than one worker away at once, unless somebody says so.
#[tokio::test]
async fn workers_go_one_by_one() {
    let objects = with_values("minimal", Cluster::Bare, &[json!({})]).await.remove(0);
    assert_eq!(objects.only("PodDisruptionBudget")["spec"]["maxUnavailable"], 1);
    // While the broker is away all are unready: a drain goes on. The field is newer than the oldest cluster.
    assert_eq!(objects.only("PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"], Value::Null);
    let newer = with_values("minimal", Cluster::WithOperators, &[json!({})]).await.remove(0);
    assert_eq!(newer.only("PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    let strategy = &objects.worker()["spec"]["strategy"];
    let rolling = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
    assert_eq!(*strategy, rolling);
    let without =
        with_values("minimal", Cluster::Bare, &[json!({ "pdb": { "enabled": false } })]).await.remove(0);
    assert_eq!(without.of_kind("PodDisruptionBudget").count(), 0);
}

/// KEDA reads the broker's URI from the same Secret as the workers, and asks about each of their queues.
#[tokio::test]
async fn keda_asks_about_every_queue_of_invites() {
    let overlays = [
        json!({ "existingSecret": "own", "amqpUriKey": "the-uri" }),
        json!({ "existingSecret": "own", "config": { "amqp": { "invites": ["ringcast.invites", "vip"] } } }),
        json!({ "existingSecret": "own", "autoscaling": { "keda": { "amqpUriKey": "keda-uri" } } }),
    ];
    let expected = [
        ("the-uri", vec!["ringcast.invites"]),
        ("amqp-uri", vec!["ringcast.invites", "vip"]),
        ("keda-uri", vec!["ringcast.invites"]),
    ];
    for (objects, (key, queues)) in
        with_values("minimal", Cluster::WithOperators, &overlays).await.iter().zip(expected)
    {
        let triggers = list(&objects.only("ScaledObject")["spec"]["triggers"]);
        let of_broker: Vec<&Value> =
            triggers.iter().filter(|trigger| trigger["type"] == "rabbitmq").collect();
        let asked: Vec<&str> =
            of_broker.iter().map(|trigger| text(&trigger["metadata"]["queueName"])).collect();
        assert_eq!(asked, queues);
        for trigger in of_broker {
            let login = objects.find("TriggerAuthentication", text(&trigger["authenticationRef"]["name"]));
            let login = list(&login.expect("it is there")["spec"]["secretTargetRef"]);
            assert_eq!(login, [json!({ "parameter": "host", "name": "own", "key": key })]);
        }
    }
}

fn scalers(objects: &Objects) -> Vec<&Value> {
    ["ScaledObject", "HorizontalPodAutoscaler"].into_iter().flat_map(|kind| objects.of_kind(kind)).collect()
}
