//! Pods: the restricted profile of Kubernetes' Pod Security Standards rule by rule, how long they may take to stop, their probes,
//! and whom they may talk to.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::helm::{Cluster, FULL_NAME};
use super::objects::{Objects, list, rendered, text, title, with_values};

/// The volume types that the restricted profile takes.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, Baseline and Restricted, in the order of the page.
#[tokio::test]
async fn pods_keep_to_the_restricted_profile() {
    let mut pods = 0;
    for one in rendered().await {
        for (name, pod) in self::pods(&one.objects) {
            pods += 1;
            let mistakes = against_the_profile(pod);
            assert!(mistakes.is_empty(), "{}: {name}: {mistakes:?}", one.name);
        }
    }
    assert!(pods > 20, "{pods}");
}

/// The rules themselves: each finds what breaks it.
#[tokio::test]
async fn each_rule_of_the_profile_finds_what_breaks_it() {
    let objects = with_values("minimal", Cluster::Bare, &[json!({})]).await.remove(0);
    let good = &objects.worker()["spec"]["template"]["spec"];
    for (path, value, rule) in [
        ("/hostNetwork", json!(true), "hostNetwork"),
        ("/hostPID", json!(true), "hostPID"),
        ("/hostIPC", json!(true), "hostIPC"),
        ("/volumes/0", json!({ "name": "a", "hostPath": { "path": "/" } }), "hostPath"),
        ("/volumes/0", json!({ "name": "a", "nfs": { "path": "/" } }), "nfs"),
        ("/securityContext/sysctls", json!([{ "name": "kernel.msgmax", "value": "1" }]), "sysctls"),
        ("/securityContext/seccompProfile", json!({ "type": "Unconfined" }), "seccompProfile"),
        ("/securityContext/seLinuxOptions", json!({ "user": "a" }), "seLinuxOptions"),
        ("/securityContext/appArmorProfile", json!({ "type": "Unconfined" }), "appArmorProfile"),
        ("/securityContext/windowsOptions", json!({ "hostProcess": true }), "windowsOptions"),
        ("/securityContext/runAsNonRoot", json!(false), "runAsNonRoot"),
        ("/securityContext/runAsUser", json!(0), "runAsUser"),
        ("/containers/0/securityContext/runAsUser", json!(0), "runAsUser"),
        ("/containers/0/securityContext/privileged", json!(true), "privileged"),
        ("/containers/0/securityContext/procMount", json!("Unmasked"), "procMount"),
        ("/containers/0/securityContext/allowPrivilegeEscalation", json!(true), "allowPrivilegeEscalation"),
        (
            "/containers/0/securityContext/capabilities",
            json!({ "drop": ["ALL"], "add": ["NET_RAW"] }),
            "capabilities.add",
        ),
        ("/containers/0/securityContext/capabilities", json!({}), "capabilities.drop"),
        ("/containers/0/securityContext/readOnlyRootFilesystem", json!(false), "readOnlyRootFilesystem"),
        ("/containers/0/ports/0/hostPort", json!(9090), "hostPort"),
        ("/containers/0/livenessProbe/httpGet/host", json!("10.0.0.1"), "host"),
        ("/automountServiceAccountToken", json!(true), "automountServiceAccountToken"),
    ] {
        let mut pod = good.clone();
        let (parent, key) = path.rsplit_once('/').expect("it is a path");
        let parent = pod.pointer_mut(parent).unwrap_or_else(|| panic!("{path}"));
        match key.parse::<usize>() {
            Ok(place) => parent[place] = value,
            Err(_) => parent[key] = value,
        }
        let mistakes = against_the_profile(&pod);
        assert!(mistakes.iter().any(|mistake| mistake.contains(rule)), "{path}: {mistakes:?}");
    }
}

fn against_the_profile(pod: &Value) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut rule = |holds: bool, what: &str| {
        if !holds {
            mistakes.push(what.to_owned());
        }
    };
    let off = |value: &Value| value.is_null() || *value == json!(false);
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        rule(off(&pod[key]), key);
    }
    for volume in list(&pod["volumes"]) {
        for kind in
            volume.as_object().into_iter().flat_map(|volume| volume.keys()).filter(|key| *key != "name")
        {
            rule(VOLUMES.contains(&kind.as_str()), kind);
        }
    }
    let of_pod = &pod["securityContext"];
    rule(list(&of_pod["sysctls"]).is_empty(), "sysctls");
    rule(of_pod["seccompProfile"]["type"] == "RuntimeDefault", "seccompProfile");
    rule(of_pod["runAsNonRoot"] == true, "runAsNonRoot");
    // Beyond the profile: a number, since a kubelet cannot tell a name's from root's.
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        rule(of_pod[key].as_u64().is_some_and(|id| id > 0), key);
    }
    // Beyond it, too: nothing here asks the API server.
    rule(pod["automountServiceAccountToken"] == false, "automountServiceAccountToken");
    let containers =
        ["initContainers", "containers", "ephemeralContainers"].map(|key| list(&pod[key])).concat();
    rule(!containers.is_empty(), "no container");
    for context in containers.iter().map(|container| &container["securityContext"]).chain([of_pod]) {
        rule(off(&context["windowsOptions"]["hostProcess"]), "windowsOptions");
        rule(context["seLinuxOptions"].is_null(), "seLinuxOptions");
        let armour = &context["appArmorProfile"]["type"];
        rule(armour.is_null() || ["RuntimeDefault", "Localhost"].contains(&text(armour)), "appArmorProfile");
        let seccomp = &context["seccompProfile"]["type"];
        rule(seccomp.is_null() || ["RuntimeDefault", "Localhost"].contains(&text(seccomp)), "seccompProfile");
        rule(context["runAsUser"] != json!(0), "runAsUser");
        rule(context["runAsNonRoot"] != json!(false), "runAsNonRoot");
    }
    for container in &containers {
        let context = &container["securityContext"];
        rule(off(&context["privileged"]), "privileged");
        rule(context["procMount"].is_null() || context["procMount"] == "Default", "procMount");
        rule(context["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation");
        let capabilities = &context["capabilities"];
        rule(list(&capabilities["drop"]).contains(&json!("ALL")), "capabilities.drop");
        rule(list(&capabilities["add"]).iter().all(|add| add == "NET_BIND_SERVICE"), "capabilities.add");
        rule(context["readOnlyRootFilesystem"] == true, "readOnlyRootFilesystem");
        for port in list(&container["ports"]) {
            rule(port["hostPort"].is_null() || port["hostPort"] == 0, "hostPort");
        }
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"].map(|key| &container[key]) {
            for handler in ["httpGet", "tcpSocket"] {
                rule(text(&probe[handler]["host"]).is_empty(), "host of a probe");
            }
        }
    }
    mistakes
}

/// The worker's own grace, two seconds for spans that are on the way, and five to spare: never a kill in the middle of it.
#[tokio::test]
async fn a_pod_may_stop_for_longer_than_the_worker() {
    let cases = [
        (json!({}), 35),
        (json!({ "worker": { "shutdown_grace": "1s" } }), 6),
        (json!({ "worker": { "shutdown_grace": "1000ms" } }), 6),
        (json!({ "worker": { "shutdown_grace": "1001ms" } }), 7),
        (json!({ "worker": { "shutdown_grace": "90s" } }), 95),
        (json!({ "worker": { "shutdown_grace": "10m" } }), 605),
        (json!({ "traces": { "otlp_endpoint": "" } }), 35),
        (json!({ "traces": { "otlp_endpoint": "http://collector:4318" } }), 37),
        (
            json!({ "worker": { "shutdown_grace": "1m" }, "traces": { "otlp_endpoint": "http://collector:4318" } }),
            67,
        ),
    ];
    let overlays: Vec<Value> = cases.iter().map(|(config, _)| json!({ "config": config })).collect();
    let found = with_values("minimal", Cluster::Bare, &overlays).await;
    for ((config, seconds), objects) in cases.iter().zip(found) {
        let pod = &objects.worker()["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], *seconds, "{config}");
    }
}

#[tokio::test]
async fn probes_ask_the_port_that_is_served() {
    let overlays = [json!({}), json!({ "config": { "admin": { "listen": "[::]:19090" } } })];
    let found = with_values("minimal", Cluster::Bare, &overlays).await;
    for (objects, port) in found.iter().zip([9090, 19090]) {
        let container = &list(&objects.worker()["spec"]["template"]["spec"]["containers"])[0];
        let ports = list(&container["ports"]);
        assert_eq!(ports.len(), 1, "{ports:?}");
        assert_eq!((&ports[0]["name"], &ports[0]["containerPort"]), (&json!("metrics"), &json!(port)));
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            let asked = &container[probe]["httpGet"];
            assert_eq!((&asked["path"], &asked["port"]), (&json!(path), &json!("metrics")), "{probe}");
        }
        // Its grace is the worker's, ten minutes perhaps: one that hangs has no use for it, and holds invites.
        let liveness = &container["livenessProbe"];
        let number = |key: &str| liveness[key].as_u64().expect("it is said");
        let gone = number("periodSeconds") * number("failureThreshold")
            + number("timeoutSeconds")
            + number("terminationGracePeriodSeconds");
        assert!(gone <= 60, "{gone} s until one that hangs is gone: {liveness}");
    }
}

/// The worker runs its configuration, and the release's test looks at the same with the same mounts.
#[tokio::test]
async fn the_test_of_a_release_checks_what_the_workers_run() {
    for one in rendered().await {
        let worker = &list(&one.objects.worker()["spec"]["template"]["spec"]["containers"])[0];
        assert_eq!(worker["args"], json!(["run", "--config", "/etc/ringcast/ringcast.toml"]), "{}", one.name);
        assert!(worker["command"].is_null(), "the image says which program");
        let is_test = |pod: &&Value| text(&pod["metadata"]["annotations"]["helm.sh/hook"]) == "test";
        let tests: Vec<&Value> = one.objects.of_kind("Pod").filter(is_test).collect();
        assert_eq!(tests.len(), 1, "{}", one.name);
        let (pod, container) = (&tests[0]["spec"], &list(&tests[0]["spec"]["containers"])[0]);
        assert_eq!(
            container["args"],
            json!(["check", "--connect", "--config", "/etc/ringcast/ringcast.toml"]),
            "{}",
            one.name
        );
        assert_eq!(pod["restartPolicy"], "Never");
        // Helm 3 deletes before `helm test --logs` reads, if it is told to delete what succeeded.
        let deleted = &tests[0]["metadata"]["annotations"]["helm.sh/hook-delete-policy"];
        assert_eq!(deleted, "before-hook-creation");
        for key in ["image", "imagePullPolicy", "volumeMounts", "env", "command"] {
            assert_eq!(container[key], worker[key], "{}: {key}", one.name);
        }
        let of_worker = &one.objects.worker()["spec"]["template"]["spec"];
        for key in [
            "volumes",
            "imagePullSecrets",
            "securityContext",
            "serviceAccountName",
            "nodeSelector",
            "tolerations",
        ] {
            assert_eq!(pod[key], of_worker[key], "{}: {key}", one.name);
        }
    }
}

#[tokio::test]
async fn the_image_is_the_one_that_was_asked_for() {
    let digest = format!("sha256:{:064x}", 7);
    let cases = [
        (
            json!({ "repository": "r.example/ringcast" }),
            format!("r.example/ringcast:{}", env!("CARGO_PKG_VERSION")),
        ),
        (json!({ "repository": "r.example/ringcast", "tag": "1.2" }), "r.example/ringcast:1.2".to_owned()),
        (
            json!({ "repository": "r.example/ringcast", "tag": "1.2", "digest": digest }),
            format!("r.example/ringcast@{digest}"),
        ),
    ];
    let overlays: Vec<Value> = cases.iter().map(|(image, _)| json!({ "image": image })).collect();
    for (objects, (image, expected)) in
        with_values("minimal", Cluster::Bare, &overlays).await.iter().zip(&cases)
    {
        for (name, pod) in pods(objects) {
            assert_eq!(list(&pod["containers"])[0]["image"], *expected, "{name}: {image}");
        }
    }
}

/// A limit of CPU would throttle just when many calls come at once; memory has one.
#[tokio::test]
async fn resources_are_bounded_but_for_the_processor() {
    for one in rendered().await {
        for (name, pod) in pods(&one.objects) {
            for container in list(&pod["containers"]) {
                let resources = &container["resources"];
                assert!(resources["limits"]["cpu"].is_null(), "{}: {name}", one.name);
                for (of, what) in [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")] {
                    assert!(!resources[of][what].is_null(), "{}: {name}: {of}.{what}", one.name);
                }
            }
        }
    }
}

#[tokio::test]
async fn the_network_policy_opens_what_the_settings_need() {
    let broker = ["TCP 5671", "TCP 5672"];
    let cases = [
        (json!({}), &["TCP 443", "TCP 2197"][..], &["TCP 3128", "TCP 4318"][..]),
        (
            json!({ "apns": { "production": "https://relay.example:8443", "sandbox": "https://relay.example:8444" } }),
            &["TCP 8443", "TCP 8444"],
            &[],
        ),
        (json!({ "apns": { "proxy": "http://proxy.example:3128" } }), &["TCP 3128"], &["TCP 4318"]),
        (json!({ "traces": { "otlp_endpoint": "http://collector:4318" } }), &["TCP 4318"], &[]),
        (
            json!({ "traces": { "otlp_endpoint": "https://collector.example/v1/traces" } }),
            &["TCP 443"],
            &["TCP 4318"],
        ),
        (json!({ "traces": { "otlp_endpoint": "http://collector.example/v1/traces" } }), &["TCP 80"], &[]),
    ];
    let overlays: Vec<Value> = cases
        .iter()
        .map(|(config, ..)| json!({ "config": config, "topology": { "declare": { "enabled": true, "existingSecret": "admin" } } }))
        .collect();
    let found = with_values("minimal", Cluster::Bare, &overlays).await;
    for (objects, (config, open, closed)) in found.iter().zip(cases) {
        let policy = objects.find("NetworkPolicy", FULL_NAME).expect("there is the workers' policy");
        let egress = ports(&policy["spec"]["egress"]);
        for port in ["UDP 53", "TCP 53"].iter().chain(&broker).chain(open) {
            assert!(egress.contains(*port), "{config}: {port} is closed: {egress:?}");
        }
        for port in closed {
            assert!(!egress.contains(*port), "{config}: {port} is open");
        }
        assert!(
            list(&policy["spec"]["egress"]).iter().all(|rule| !list(&rule["ports"]).is_empty()),
            "all ports are open"
        );
        let types: BTreeSet<&str> = list(&policy["spec"]["policyTypes"]).iter().map(text).collect();
        assert_eq!(types.into_iter().collect::<Vec<_>>(), ["Egress", "Ingress"]);
        // Those who go to the broker and to APNs; what workers are to the simulator it is not to itself.
        let selector = &policy["spec"]["podSelector"];
        for (title, labels, fenced) in labels(objects) {
            assert_eq!(takes(selector, labels), fenced, "{title}: {selector}");
        }
        // A name of a port, or its number.
        let ingress = ports(&policy["spec"]["ingress"]);
        assert!(
            ingress.iter().all(|port| ["TCP 9090", "TCP metrics"].contains(&port.as_str())),
            "{ingress:?}"
        );
        assert_eq!(ingress.len(), 1);
    }
}

#[tokio::test]
async fn whoever_goes_to_apple_gets_to_the_simulator() {
    let staging: Vec<_> = rendered().await.iter().filter(|one| one.name.contains("staging")).collect();
    assert!(!staging.is_empty());
    for one in staging {
        let name = format!("{FULL_NAME}-simulator");
        let policy = one.objects.find("NetworkPolicy", &name).expect("there is the simulator's policy");
        let from = &policy["spec"]["ingress"][0]["from"][0]["podSelector"];
        for (title, labels, goes_to_apple) in labels(&one.objects) {
            // Who declares queues goes to the broker alone.
            let wanted = goes_to_apple && labels["app.kubernetes.io/component"] != "declare";
            assert_eq!(takes(from, labels), wanted, "{title}: {from}");
        }
    }
}

/// Whether a label selector is for what has these labels.
fn takes(selector: &Value, labels: &Value) -> bool {
    let named = selector["matchLabels"].as_object().into_iter().flatten();
    let mut listed = list(&selector["matchExpressions"]).iter();
    named.into_iter().all(|(label, value)| labels[label] == *value)
        && listed
            .all(|one| one["operator"] == "In" && list(&one["values"]).contains(&labels[text(&one["key"])]))
}

/// The labels of each pod, and whether the workers' network policy is for it.
fn labels(objects: &Objects) -> Vec<(String, &Value, bool)> {
    let of = |object: &Value| !title(object).ends_with("-simulator");
    let found = objects.0.iter().filter_map(|object| match text(&object["kind"]) {
        "Pod" => Some((title(object), &object["metadata"]["labels"], of(object))),
        "Deployment" | "Job" => {
            Some((title(object), &object["spec"]["template"]["metadata"]["labels"], of(object)))
        }
        _ => None,
    });
    found.collect()
}

fn ports(rules: &Value) -> BTreeSet<String> {
    let all = list(rules).iter().flat_map(|rule| list(&rule["ports"]));
    all.map(|port| {
        let number = port["port"].as_str().map_or_else(|| port["port"].to_string(), str::to_owned);
        format!("{} {number}", port["protocol"].as_str().unwrap_or("TCP"))
    })
    .collect()
}

/// Every pod that comes of a release, with whose it is.
fn pods(objects: &Objects) -> Vec<(String, &Value)> {
    let found = objects.0.iter().filter_map(|object| match text(&object["kind"]) {
        "Pod" => Some((title(object), &object["spec"])),
        "Deployment" | "Job" => Some((title(object), &object["spec"]["template"]["spec"])),
        _ => None,
    });
    found.collect()
}
