//! `ringcast.toml` as the chart writes it: the same settings with the same types, and what `ringcast check` says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ringcast::simulator::{Certificate, Identity};
use serde_json::{Value, json};

use super::helm::{Cluster, Helm, example};
use super::objects::{leaves, list, rendered, text, with_values};
use super::schema;
use crate::certificate;
use crate::place::Place;
use crate::plan;
use crate::process::run_ringcast;

/// Where the chart mounts secrets. The throw-away ones of these tests lie in a folder of their own, and its name takes the
/// place of this in the configuration that is checked.
const SECRETS: &str = "/run/secrets";
/// Everything that a template, YAML or TOML could trip over, but for U+007F: Helm 3 itself does.
const ODD: &str =
    "\"a\" 'b' \\n \\ {{ .Values.image }} ${{ x }} $(HOME) %d # = [é] 🔔\u{2028}\u{85}\u{1}\ttab\nline";

#[tokio::test]
async fn ringcast_takes_the_configuration_of_every_example() {
    let mut checked = BTreeMap::new();
    for one in rendered().await {
        let text = one.objects.config_text();
        let environment = environment(one.objects.worker());
        if checked.insert((text, environment.clone()), &one.name).is_some() {
            continue;
        }
        let place = Place::new("chart-check");
        let text = lay_secrets(&place, text);
        place.write("ringcast.toml", &text);
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(key, value)| (&**key, &**value)).collect();
        let ended = run_ringcast(&["check", "--config", "ringcast.toml"], &environment, place.as_ref()).await;
        assert_eq!(ended.code, Some(0), "{}: {}\n{text}", one.name, ended.stderr);
    }
    assert!(checked.len() > 2, "the examples differ");
}

#[tokio::test]
async fn every_setting_arrives_as_it_is() {
    let overlay = json!({ "existingSecret": "secret", "config": every_setting() });
    let objects = with_values("minimal", Cluster::Bare, &[overlay]).await.remove(0);
    let mut expected = every_setting();
    for (section, keys) in [
        ("/amqp", &["uri_file", "ca_file", "client_key_file"][..]),
        ("/apns", &["ca_file", "proxy_credentials_file"]),
        ("/traces", &["ca_file", "headers_file"]),
        ("/apps/acme/auth_sandbox", &["key_file"]),
        ("/apps/z-9_/auth", &["key_file"]),
        ("/apps/z-9_/auth_sandbox", &["cert_file"]),
    ] {
        for key in keys {
            let file = &mut expected.pointer_mut(section).expect("it is set")[key];
            *file = json!(format!("{SECRETS}/ringcast/{}", text(file)));
        }
    }
    let found = objects.config();
    for (path, value) in in_toml(&expected) {
        assert_eq!(look(&found, &path), Some(value), "{path}");
    }
    let keys = |table: &toml::Table| -> Vec<String> { in_toml(table).into_keys().collect() };
    assert_eq!(keys(&found), in_toml(&expected).into_keys().collect::<Vec<_>>(), "and nothing else");
}

/// The table above sets every setting there is, each to something else than its default, and of the same type.
#[test]
fn no_setting_is_left_out_of_the_table() {
    let ours = in_toml(&every_setting());
    let any = |path: &str, app: &str| path.replace("apps.acme", app).replace("apps.z-9_", app);
    let mut keys: BTreeSet<String> = ours.keys().map(|path| any(path, "apps.*")).collect();
    // Refused: it would put a password into a ConfigMap.
    keys.insert("amqp.uri".to_owned());
    assert_eq!(keys, schema::settings());
    let defaults: toml::Table = toml::from_str(schema::DEFAULT).expect("it is TOML");
    for (path, value) in ours {
        if let Some(default) = look(&defaults, &any(&path, "apps.acme")) {
            assert!(default != value, "{path}");
            assert_eq!(default.type_str(), value.type_str(), "{path}");
        }
    }
}

/// Numbers reach templates as floats from files, and as integers from `--set`.
#[tokio::test]
async fn numbers_stay_what_they_are() {
    for helm in Helm::BOTH {
        let more =
            ["--set", "config.worker.invite_bytes_max=1048576", "--set", "config.amqp.consumer_priority=-7"];
        let rendered = helm.template(Some(&example("minimal")), &Value::Null, Cluster::Bare, &more).await;
        let objects = super::objects::read(&[rendered.expect("it renders")]).await.remove(0);
        let config = objects.config();
        assert_eq!(
            look(&config, "worker.invite_bytes_max"),
            Some(toml::Value::Integer(1_048_576)),
            "{helm:?}"
        );
        assert_eq!(look(&config, "amqp.consumer_priority"), Some(toml::Value::Integer(-7)), "{helm:?}");
    }
    // A float that is whole, small, or none of that: Ringcast must take what is written.
    for ratio in [json!(1.0), json!(0), json!(0.1), json!(0.000_001)] {
        let overlay = json!({ "config": { "traces": { "sample_ratio": ratio } } });
        let objects = with_values("minimal", Cluster::Bare, &[overlay]).await.remove(0);
        let found = look(&objects.config(), "traces.sample_ratio").expect("it is set");
        let number = found
            .as_float()
            .or_else(|| found.as_integer().and_then(|whole| i32::try_from(whole).ok()).map(f64::from));
        assert_eq!(number, ratio.as_f64(), "{found:?}");
        let place = Place::new("chart-ratio");
        place.write("ringcast.toml", lay_secrets(&place, objects.config_text()));
        let ended = run_ringcast(&["check", "--config", "ringcast.toml"], &[], place.as_ref()).await;
        assert_eq!(ended.code, Some(0), "{ratio}: {}", ended.stderr);
    }
}

/// One that is only files' names: what is no absolute name lies in the mounted Secret, which is mounted whole, so that a change
/// of it reaches the pods.
#[tokio::test]
async fn secrets_are_mounted_whole() {
    for one in rendered().await {
        let spec = &one.objects.worker()["spec"]["template"]["spec"];
        let container = &list(&spec["containers"])[0];
        let mounts = list(&container["volumeMounts"]);
        assert!(
            mounts.iter().all(|mount| mount["subPath"].is_null() && mount["subPathExpr"].is_null()),
            "{}",
            one.name
        );
        for (path, secret) in [("/etc/ringcast", false), ("/run/secrets/ringcast", true)] {
            let mount = mounts.iter().find(|mount| mount["mountPath"] == path);
            let mount = mount.unwrap_or_else(|| panic!("{}: nothing at {path}", one.name));
            assert_eq!(mount["readOnly"], true, "{}: {path}", one.name);
            let volume = list(&spec["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
            let volume = volume.expect("the volume is there");
            assert_eq!(volume["secret"].is_object(), secret, "{}: {volume}", one.name);
            assert!(volume["secret"]["items"].is_null(), "{}: {volume}", one.name);
        }
        // Every file that the configuration names lies below a mount.
        let config = serde_json::to_value(one.objects.config()).expect("it is a tree");
        let mut found = Vec::new();
        leaves(&config, "", &mut found);
        for (key, value) in
            found.into_iter().filter(|(key, value)| key.ends_with("_file") && !text(value).is_empty())
        {
            let is_mounted = |mount: &Value| Path::new(text(value)).starts_with(text(&mount["mountPath"]));
            assert!(mounts.iter().any(is_mounted), "{}: {key}: {value} is not mounted", one.name);
        }
    }
}

/// Pods are replaced when the configuration is another, and only then: Ringcast takes over without a start what it can, but a
/// `ConfigMap`'s other settings wait for one.
#[tokio::test]
async fn the_checksum_is_that_of_the_configuration() {
    let overlays = [
        json!({}),
        json!({ "config": { "amqp": { "prefetch": 501 } } }),
        json!({ "replicas": 5, "pdb": { "enabled": false }, "priorityClassName": "calls", "commonLabels": { "team": "a" } }),
    ];
    let objects = with_values("minimal", Cluster::Bare, &overlays).await;
    let sums: Vec<&str> = objects
        .iter()
        .map(|objects| {
            text(&objects.worker()["spec"]["template"]["metadata"]["annotations"]["checksum/config"])
        })
        .collect();
    assert!(sums[0].len() == 64, "{sums:?}");
    assert_ne!(sums[0], sums[1], "another configuration");
    assert_eq!(sums[0], sums[2], "the same configuration");
}

/// Every setting, set to what is not its default. A file's name with a slash in front is meant as it stands.
fn every_setting() -> Value {
    let payload = json!({
        "call_id": "id", "handle": "", "name": "\"a\" 'b' \\ {{ . }} ${{ x }} [é] 🔔\tb", "has_video": "true", "deadline": "17", "opaque": true,
    });
    json!({
        "amqp": {
            "uri_file": "uri",
            "hosts": ["b.example:5673", "[::1]:5672"],
            "ca_file": "broker_ca-1.pem",
            "client_cert_file": "/etc/client.pem",
            "client_key_file": "client-key.pem",
            "declare": true,
            "invites": ["ringcast.vip", ODD.replace('\n', "")],
            "results_exchange": ODD,
            "live": true,
            "prefetch": 2000,
            "consumer_priority": -100,
        },
        "apns": {
            "production": "https://relay.example:2197",
            "sandbox": "https://relay.example",
            "ca_file": "apns.pem",
            "proxy": "http://proxy.example:3128",
            "proxy_credentials_file": "proxy",
            "connections": 3,
            "connections_max": 64,
            "request_timeout": "100ms",
            "reload_interval": "0s",
        },
        "worker": {
            "name": ODD,
            "shards": 64,
            "devices_max": 1000,
            "invite_bytes_max": 1_048_576,
            "deadline_max": "10m",
            "ring_time_min": "1500ms",
            "attempts_max": 10,
            "answer_grace": "0s",
            "suspect_percent_max": 100,
            "timeline": true,
            "shutdown_grace": "1m",
        },
        "admin": { "listen": "[::]:19090" },
        "traces": {
            "otlp_endpoint": "https://collector.example/v1/traces",
            "ca_file": "otlp.pem",
            "headers_file": "headers",
            "sample_ratio": 0.000_125,
            "service_name": ODD,
        },
        "log": { "format": "json", "level": "debug,h2=off" },
        "apps": {
            "acme": {
                "bundle_id": "com.acme.voice",
                "environment": "sandbox",
                "expiration_max": "10m",
                "auth": { "team_id": "0123456789", "key_id": "1234567890", "key_file": "/etc/AuthKey.p8" },
                "auth_sandbox": { "team_id": "TEAM123456", "key_id": "KEY7654321", "key_file": "AuthKey.p8" },
                "payload": payload,
            },
            "z-9_": {
                "bundle_id": "com.zeta.voice",
                "auth": { "key_file": "zeta.pem", "cert_file": "/etc/zeta.pem" },
                "auth_sandbox": { "key_file": "/etc/sandbox.pem", "cert_file": "sandbox.pem" },
            },
        },
    })
}

/// Each setting by its dotted name. A list is one setting.
fn in_toml(settings: &impl serde::Serialize) -> BTreeMap<String, toml::Value> {
    fn walk(value: toml::Value, path: &str, found: &mut BTreeMap<String, toml::Value>) {
        match value {
            toml::Value::Table(table) => table.into_iter().for_each(|(key, value)| {
                walk(value, &if path.is_empty() { key } else { format!("{path}.{key}") }, found);
            }),
            leaf => _ = found.insert(path.to_owned(), leaf),
        }
    }
    let mut found = BTreeMap::new();
    walk(toml::Value::try_from(settings).expect("TOML has all of it"), "", &mut found);
    found
}

fn look(table: &toml::Table, path: &str) -> Option<toml::Value> {
    in_toml(table).remove(path)
}

/// Writes a file of the right kind for each that the configuration names below [`SECRETS`], and returns the configuration with
/// their places.
pub(super) fn lay_secrets(place: &Place, config: &str) -> String {
    let folder = place.path("secrets");
    std::fs::create_dir_all(&folder).expect("the test's folder can be written");
    let tls = certificate::make(place, "secret");
    let table: toml::Table = toml::from_str(config).expect("it is TOML");
    let settings = in_toml(&table);
    // An app's certificate is for that app alone, and its key goes with it; here both lie in one file.
    let identity = Identity::ephemeral().expect("an identity can be made");
    let now_ms = u64::try_from(plan::now().unix_timestamp()).expect("after 1970") * 1000;
    let issue = |auth: &str| {
        let app = auth.split(".auth").next().unwrap_or_default();
        let bundle_id = settings[&format!("{app}.bundle_id")].as_str().expect("it is a text").to_owned();
        let issued = identity.issue(&Certificate::new(&bundle_id, now_ms)).expect("a certificate");
        issued.certificate_pem + &issued.key_pem
    };
    let is_tls = ["amqp.ca_file", "amqp.client_cert_file"].iter().any(|key| settings.contains_key(*key));
    for (path, value) in &settings {
        let Some(below) = value.as_str().and_then(|file| file.strip_prefix(SECRETS)) else { continue };
        let file = folder.join(below.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().expect("it lies in a folder")).expect("the folder can be made");
        let (table, key) = path.rsplit_once('.').expect("a section and a key");
        let has_certificate =
            settings.get(&format!("{table}.cert_file")).is_some_and(|file| file.as_str() != Some(""));
        let read = |file: &Path| std::fs::read_to_string(file).expect("it was made");
        let content = match key {
            "uri_file" if is_tls => "amqps://ring:pass@broker.example/%2f\n".to_owned(),
            "uri_file" => "amqp://ring:pass@broker.example/%2f\n".to_owned(),
            "ca_file" => read(&tls.ca_file),
            "cert_file" | "key_file" if has_certificate => {
                if file.exists() {
                    continue;
                }
                issue(table)
            }
            "client_cert_file" => read(&tls.cert_file),
            "key_file" | "client_key_file" => read(&tls.key_file),
            "proxy_credentials_file" => "user:password\n".to_owned(),
            "headers_file" => "authorization: Bearer secret\n".to_owned(),
            _ => panic!("{path}: what is in {value:?}?"),
        };
        std::fs::write(&file, content).expect("the test's folder can be written");
    }
    config.replace(SECRETS, folder.to_str().expect("the test's paths are UTF-8"))
}

/// Ringcast's variables in the workers' pod, as a cluster would set them.
fn environment(deployment: &Value) -> Vec<(String, String)> {
    let container = &list(&deployment["spec"]["template"]["spec"]["containers"])[0];
    let of = |variable: &Value| {
        let value = if variable["value"].is_string() { text(&variable["value"]) } else { "from-the-cluster" };
        (text(&variable["name"]).to_owned(), value.to_owned())
    };
    list(&container["env"]).iter().map(of).filter(|(name, _)| name.starts_with("RINGCAST__")).collect()
}
