//! A real Prometheus that scrapes what a test names, and judges by the rules that the test brings.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::broker::Ports;
use crate::http;
use crate::place::Place;
use crate::process::{POLL_EVERY, Process};

/// Debian's package of that name has it.
const PROGRAM: &str = "prometheus";
/// How often targets are scraped, and rules evaluated.
const EVERY: &str = "500ms";
/// How often it is asked again: between two scrapes nothing changes, and each question costs it time for the next.
const ASK_EVERY: Duration = Duration::from_millis(250);
const READY_WITHIN: Duration = Duration::from_mins(1);

/// See the module. Killed when the test lets go of it.
#[derive(Debug)]
pub(crate) struct Prometheus {
    process: Process,
    ports: Ports,
    // Last: it is removed when the program is gone.
    _place: Place,
}

/// What is scraped: `/metrics` at a port on loopback.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// The label `instance` of all its series.
    pub(crate) instance: &'a str,
    pub(crate) port: u16,
}

/// A sample, or the newest one of a series.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// A series over some time.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) labels: BTreeMap<String, String>,
    /// Seconds since 1970, and the value then.
    pub(crate) values: Vec<(f64, f64)>,
}

/// An alert that fires.
#[derive(Clone, Debug)]
pub(crate) struct Alert {
    pub(crate) name: String,
    /// Those of its rule and of its series, without its name.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Prometheus {
    /// Starts it and waits until it answers. All series have the label `job="ringcast"`.
    pub(crate) async fn start(targets: &[Target<'_>], rule_files: &[PathBuf]) -> Self {
        let target = |target: &Target<'_>| {
            json!({
                "targets": [format!("127.0.0.1:{}", target.port)],
                "labels": { "instance": target.instance },
            })
        };
        let targets: Vec<Value> = targets.iter().map(target).collect();
        Self::scrape(&json!([{ "job_name": "ringcast", "static_configs": targets }]), rule_files).await
    }

    /// The same without rules; all series have this label `namespace`, too.
    pub(crate) async fn start_in(namespace: &str, targets: &[Target<'_>]) -> Self {
        let target = |target: &Target<'_>| {
            json!({
                "targets": [format!("127.0.0.1:{}", target.port)],
                "labels": { "instance": target.instance, "namespace": namespace },
            })
        };
        let targets: Vec<Value> = targets.iter().map(target).collect();
        Self::scrape(&json!([{ "job_name": "ringcast", "static_configs": targets }]), &[]).await
    }

    /// The same for targets of which each is a job of its own, and a broker that serves single queues, as the job `rabbitmq`. They
    /// are scraped half as often, and have twice the time to answer: where they are many, they share a processor.
    pub(crate) async fn start_jobs(jobs: &[(&str, u16)], broker: u16, rule_files: &[PathBuf]) -> Self {
        let targets = |port: &u16| json!([{ "targets": [format!("127.0.0.1:{port}")] }]);
        let job = |(name, port): &(&str, u16)| {
            json!({
                "job_name": name,
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "static_configs": targets(port),
            })
        };
        let of_broker = json!({
            "job_name": "rabbitmq",
            "metrics_path": "/metrics/detailed",
            "params": { "family": ["queue_coarse_metrics"] },
            "scrape_interval": "2s",
            "scrape_timeout": "2s",
            "static_configs": targets(&broker),
        });
        Self::scrape(&jobs.iter().map(job).chain([of_broker]).collect(), rule_files).await
    }

    async fn scrape(scrape_configs: &Value, rule_files: &[PathBuf]) -> Self {
        let ports = Ports::claim().expect("there are free ports");
        let place = Place::new("prometheus");
        // JSON is YAML, too.
        let config = json!({
            "global": { "scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY },
            "rule_files": rule_files,
            "scrape_configs": scrape_configs,
        });
        place.write("prometheus.yml", config.to_string());
        let listen = format!("--web.listen-address=127.0.0.1:{}", ports.first);
        let args = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", &listen];
        let process = Process::start(PROGRAM, &args, &[], place.as_ref(), "prometheus");
        let mut prometheus = Self { process, ports, _place: place };
        prometheus.await_ready().await;
        prometheus
    }

    /// The port of its page and of its API.
    pub(crate) fn port(&self) -> u16 {
        self.ports.first
    }

    /// What an expression is now. A scalar is one sample without labels.
    pub(crate) async fn query(&self, expr: &str) -> Vec<Sample> {
        let data = self.get(&format!("/api/v1/query?query={}", encoded(expr))).await;
        if data["resultType"] == "scalar" {
            return vec![Sample { labels: BTreeMap::new(), value: point(&data["result"]).1 }];
        }
        let sample =
            |result: &Value| Sample { labels: texts(&result["metric"]), value: point(&result["value"]).1 };
        list(&data["result"]).iter().map(sample).collect()
    }

    /// What an expression was in the last `seconds`, by steps of half a second.
    pub(crate) async fn query_range(&self, expr: &str, seconds: u32) -> Vec<Series> {
        let end = self.query("time()").await[0].value;
        let start = end - f64::from(seconds);
        let data = self
            .get(&format!("/api/v1/query_range?query={}&start={start}&end={end}&step={EVERY}", encoded(expr)))
            .await;
        let series = |result: &Value| Series {
            labels: texts(&result["metric"]),
            values: list(&result["values"]).iter().map(point).collect(),
        };
        list(&data["result"]).iter().map(series).collect()
    }

    /// The alerts that fire now; those that are pending are not among them.
    pub(crate) async fn alerts(&self) -> Vec<Alert> {
        let data = self.get("/api/v1/alerts").await;
        let firing = list(&data["alerts"]).iter().filter(|alert| alert["state"] == "firing");
        let alert = |alert: &Value| {
            let mut labels = texts(&alert["labels"]);
            let name = labels.remove("alertname").expect("every alert has a name");
            Alert { name, labels, annotations: texts(&alert["annotations"]) }
        };
        firing.map(alert).collect()
    }

    /// The groups of rules as it has read them.
    pub(crate) async fn rules(&self) -> Value {
        self.get("/api/v1/rules").await["groups"].take()
    }

    /// Waits until an expression is as expected, and gives it.
    pub(crate) async fn await_query(
        &self,
        expr: &str,
        within: Duration,
        expected: impl Fn(&[Sample]) -> bool,
    ) -> Vec<Sample> {
        let until = Instant::now() + within;
        loop {
            let samples = self.query(expr).await;
            if expected(&samples) {
                return samples;
            }
            assert!(Instant::now() < until, "{expr} was not as expected in {within:?}, but {samples:?}");
            sleep(ASK_EVERY).await;
        }
    }

    /// Waits until each target was scraped.
    pub(crate) async fn await_scraped(&self, targets: usize, within: Duration) {
        let is_up = |samples: &[Sample]| samples.iter().filter(|up| up.value > 0.5).count() == targets;
        self.await_query("up", within, is_up).await;
    }

    /// Waits until an alert of this name fires.
    pub(crate) async fn await_alert(&self, name: &str, within: Duration) -> Alert {
        let until = Instant::now() + within;
        loop {
            let mut firing = self.alerts().await;
            if let Some(place) = firing.iter().position(|alert| alert.name == name) {
                return firing.swap_remove(place);
            }
            assert!(Instant::now() < until, "{name} did not fire in {within:?}, but {firing:?}");
            sleep(ASK_EVERY).await;
        }
    }

    async fn await_ready(&mut self) {
        let until = Instant::now() + READY_WITHIN;
        while http::fetch(self.port(), "/-/ready").await.is_none_or(|(status, _)| status != 200) {
            assert!(self.process.lives(), "Prometheus ended; {}", self.process.last_words());
            assert!(Instant::now() < until, "it was not ready; {}", self.process.last_words());
            sleep(POLL_EVERY).await;
        }
    }

    /// The `data` of an answer of its API.
    async fn get(&self, path: &str) -> Value {
        let answer = http::fetch(self.port(), path).await;
        let (_, text) = answer.unwrap_or_else(|| panic!("{path}: no answer; {}", self.process.last_words()));
        let mut answer: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error} in {text}"));
        assert_eq!(answer["status"], "success", "{path}: {text}");
        answer["data"].take()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It writes to its folder until the end.
        self.process.end_now();
    }
}

/// Time and value: `[1435781451.781, "1"]`. Texts, because JSON has no infinity.
fn point(pair: &Value) -> (f64, f64) {
    let value = pair[1].as_str().and_then(|value| value.parse().ok());
    value.and_then(|value| Some((pair[0].as_f64()?, value))).unwrap_or_else(|| panic!("a point: {pair}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(map: &Value) -> BTreeMap<String, String> {
    let pairs = map.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// RFC 3986, 2.1: all but unreserved letters by their bytes.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut coded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            coded.push(char::from(byte));
        } else {
            write!(coded, "%{byte:02X}").expect("a text takes everything");
        }
        coded
    })
}

#[tokio::test]
async fn a_real_prometheus_scrapes_asks_and_alerts() {
    let place = Place::new("rules");
    let rule = |name: &str, expr: &str| {
        json!({
            "alert": name, "expr": expr,
            "labels": { "side": "nobody" }, "annotations": { "summary": "{{ $labels.instance }} is {{ $value }}" },
        })
    };
    let rules = [rule("Always", r#"up{job="ringcast"} == 1"#), rule("Never", "up > 1")];
    let rules = json!({ "groups": [{ "name": "test", "rules": rules }] });
    let rules = place.write("rules.yml", rules.to_string());
    let watched = Prometheus::start(&[], &[]).await;
    let target = Target { instance: "the first", port: watched.port() };
    let prometheus = Prometheus::start(&[target], &[rules]).await;
    prometheus.await_scraped(1, READY_WITHIN).await;

    let alert = prometheus.await_alert("Always", READY_WITHIN).await;
    assert_eq!(alert.labels["side"], "nobody");
    assert_eq!(alert.annotations["summary"], "the first is 1");
    assert_eq!(prometheus.alerts().await.len(), 1, "and no other");

    let up = prometheus.await_query("up * 1 + 0.5", READY_WITHIN, |samples| samples.len() == 1).await;
    assert_eq!((up[0].labels["instance"].as_str(), up[0].value.to_string()), ("the first", "1.5".to_owned()));
    let series = prometheus.query_range("up", 60).await;
    assert_eq!((series.len(), series[0].labels["job"].as_str()), (1, "ringcast"));
    assert!(series[0].values.iter().any(|(_, value)| *value > 0.5), "{series:?}");
    assert!(prometheus.query("absent_from_all").await.is_empty());
    assert!(prometheus.query("1 / 0").await[0].value.is_infinite(), "a scalar");
}
