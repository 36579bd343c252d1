//! The simulator in Apple's place: started as its pod starts it, it is what the workers' configuration expects.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use super::helm::{Cluster, FULL_NAME, NAMESPACE};
use super::objects::{list, text, with_values};
use crate::place::Place;
use crate::process::{APNS_SIMULATOR, Process};

const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn workers_trust_the_simulator_under_the_name_of_its_service() {
    let objects = with_values("staging", Cluster::Bare, &[json!({})]).await.remove(0);
    let name = format!("{FULL_NAME}-simulator");
    let pod = &objects.find("Deployment", &name).expect("there is the simulator")["spec"]["template"];
    let container = &list(&pod["spec"]["containers"])[0];
    assert_eq!(container["command"], json!(["/usr/bin/apns-simulator"]));

    // What the workers dial is the Service, which leads to that pod.
    let service = objects.only("Service");
    assert_eq!(
        (&service["metadata"]["name"], &service["metadata"]["namespace"]),
        (&json!(name), &json!(NAMESPACE))
    );
    let selector = service["spec"]["selector"].as_object().expect("it selects");
    assert!(selector.iter().all(|(label, value)| pod["metadata"]["labels"][label] == *value), "{selector:?}");
    let port = &list(&service["spec"]["ports"])[0];
    let served = list(&container["ports"]).iter().find(|served| served["name"] == port["targetPort"]);
    assert_eq!(served.expect("it is served")["containerPort"], 2197);
    let config = objects.config();
    for environment in ["production", "sandbox"] {
        assert_eq!(config["apns"][environment].as_str(), Some(&*format!("https://{name}:{}", port["port"])));
    }
    assert!(config["apns"].get("proxy").is_none(), "a proxy is for Apple's hosts");

    // Where the pod has files, this machine has others; the port is a free one.
    let place = Place::new("chart-staging");
    let identity = place.path("identity");
    let script = objects
        .find("ConfigMap", &name)
        .map(|map| place.write("script.toml", text(&map["data"]["script.toml"])));
    let script = script.expect("the example has a script");
    let path = |path: &Path| path.to_str().expect("the test's paths are UTF-8").to_owned();
    let replaced = |arg: &Value| {
        let arg = text(arg);
        match arg.split_once('=') {
            Some(("--listen", _)) => "--listen=127.0.0.1:0".to_owned(),
            Some((option @ "--identity", "/identity")) => format!("{option}={}", path(&identity)),
            Some((option @ "--script", "/script/script.toml")) => format!("{option}={}", path(&script)),
            _ => arg.to_owned(),
        }
    };
    let args: Vec<String> = list(&container["args"]).iter().map(replaced).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut simulator = Process::start(APNS_SIMULATOR, &args, &[], place.as_ref(), "apns-simulator");
    let port = simulator
        .says("where it listens", PATIENCE, |said| {
            let (_, rest) = said.split_once("listening on ")?;
            let (address, _) = rest.split_once('\n')?;
            address.trim().rsplit(':').next()?.parse::<u16>().ok()
        })
        .await;

    // The files that the configuration names are those of the identity; and the certificate is good for the Service's name.
    let file = |file: &str| identity.join(Path::new(file).file_name().expect("a file's name"));
    let ca = file(config["apns"]["ca_file"].as_str().expect("it is set"));
    assert!(file(config["apps"]["acme"]["auth"]["key_file"].as_str().expect("it is set")).is_file());
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "30",
            "--http2",
            "--noproxy",
            "*",
            "--write-out",
            "%{http_code}",
        ])
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1"), "--cacert", &path(&ca)])
        .arg(format!("https://{name}:{port}/"))
        .kill_on_drop(true)
        .output()
        .await
        .expect("curl starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // It is Apple's side that answers: a GET is no push.
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("MethodNotAllowed") || answer.contains("BadPath"), "{answer}");
}
