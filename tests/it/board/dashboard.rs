//! The dashboard as a file, and its queries as Grafana sends them.

use std::collections::BTreeSet;

use serde_json::Value;

pub(super) const TEXT: &str = include_str!("../../../charts/ringcast/dashboard.json");

/// What Grafana takes for the interval of the scrapes and of the points, in seconds.
const INTERVAL: u32 = 1;
/// The suffixes of a histogram's series.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// See the module.
pub(super) struct Dashboard {
    pub(super) json: Value,
}

/// One panel.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a>(pub(super) &'a Value);

impl Dashboard {
    pub(super) fn read() -> Self {
        Self { json: serde_json::from_str(TEXT).expect("dashboard.json is JSON") }
    }

    /// All panels, rows included.
    pub(super) fn panels(&self) -> impl Iterator<Item = Panel<'_>> {
        list(&self.json["panels"]).iter().map(Panel)
    }

    /// The panel of this title.
    pub(super) fn panel(&self, title: &str) -> Panel<'_> {
        let found = self.panels().find(|panel| panel.title() == title);
        found.unwrap_or_else(|| panic!("no panel {title:?}"))
    }

    /// Its variables, the data source among them.
    pub(super) fn variables(&self) -> &[Value] {
        list(&self.json["templating"]["list"])
    }

    /// The variables that Grafana asks Prometheus for: name, series, and the label whose values they take.
    pub(super) fn lists(&self) -> Vec<(&str, &str, &str)> {
        let asked = self.variables().iter().filter(|variable| variable["type"] == "query");
        asked
            .map(|variable| {
                let query = text(&variable["query"]["query"]);
                let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
                let (series, label) = inner
                    .and_then(|inner| inner.rsplit_once(", "))
                    .unwrap_or_else(|| panic!("label_values(SERIES, LABEL), not {query}"));
                (text(&variable["name"]), series, label)
            })
            .collect()
    }

    /// The annotations that come from Prometheus.
    pub(super) fn annotations(&self) -> impl Iterator<Item = &Value> {
        list(&self.json["annotations"]["list"]).iter().filter(|annotation| annotation["expr"].is_string())
    }

    /// Everything that is asked of Prometheus: where it stands, and the expression.
    pub(super) fn expressions(&self) -> Vec<(String, &str)> {
        let mut all = Vec::new();
        for panel in self.panels() {
            for target in panel.targets() {
                let place = format!("{:?}, query {}", panel.title(), text(&target["refId"]));
                all.push((place, text(&target["expr"])));
            }
        }
        for annotation in self.annotations() {
            let place = format!("the annotation {:?}", text(&annotation["name"]));
            all.push((place, text(&annotation["expr"])));
        }
        all
    }
}

impl<'a> Panel<'a> {
    pub(super) fn id(self) -> u64 {
        self.0["id"].as_u64().unwrap_or_else(|| panic!("a panel without id: {}", self.title()))
    }

    pub(super) fn title(self) -> &'a str {
        text(&self.0["title"])
    }

    /// `stat`, `timeseries`, `row` and so on.
    pub(super) fn kind(self) -> &'a str {
        text(&self.0["type"])
    }

    pub(super) fn targets(self) -> &'a [Value] {
        list(&self.0["targets"])
    }
}

/// The expression of a query (or annotation) as Grafana sends it, with all variables at "All": those with an `allValue`
/// become that, the others every value that there is. What stays a sign for ten minutes does so for as many seconds: a day of the
/// tests is over in a few minutes.
pub(super) fn sent(query: &Value, range_seconds: u32) -> String {
    let least = text(&query["interval"]).trim_end_matches('s').parse().unwrap_or(INTERVAL);
    sent_over(text(&query["expr"]), least, range_seconds).replace("[10m]", "[10s]")
}

/// The same for points that lie `interval` seconds apart. Grafana's page on its Prometheus data source has the rule for
/// `$__rate_interval`.
pub(super) fn sent_over(expr: &str, interval: u32, range_seconds: u32) -> String {
    let rate_interval = format!("{}s", (interval + INTERVAL).max(4 * INTERVAL));
    let range = format!("{range_seconds}s");
    let values = [
        ("$__rate_interval", rate_interval.as_str()),
        ("$__range", &range),
        ("$namespace", ".*"),
        ("$job", "(ringcast)"),
        ("$instance", ".*"),
        ("$app", ".*"),
        ("$environment", ".*"),
    ];
    let sent = values.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value));
    assert!(!sent.contains('$'), "a variable that nobody declared: {sent}");
    sent
}

/// The families that an expression asks for.
pub(super) fn families(expr: &str) -> BTreeSet<&str> {
    selectors(expr).map(|(family, _)| family).collect()
}

/// The selectors of an expression: the family, which is what stands before a `{` without a histogram's suffix, and for each of its
/// matchers the label and the value. No value has a comma or a brace.
pub(super) fn selectors(expr: &str) -> impl Iterator<Item = (&str, Vec<(&str, &str)>)> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    expr.match_indices('{').map(move |(at, _)| {
        let (head, body) = (&expr[..at], &expr[at + 1..]);
        let name = &head[head.rfind(|letter| !is_name(letter)).map_or(0, |at| at + 1)..];
        let family = OF_HISTOGRAMS.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        let body = body.split_once('}').unwrap_or_else(|| panic!("no end of {family}'s labels")).0;
        let matchers = body.split(',').filter(|matcher| !matcher.is_empty()).map(|matcher| {
            let (label, value) =
                matcher.split_once(['=', '!']).unwrap_or_else(|| panic!("no matcher: {matcher}"));
            (label, value.trim_start_matches(['=', '~']).trim_matches('"'))
        });
        (family, matchers.collect())
    })
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn families_stand_before_their_labels() {
    let expr = r#"histogram_quantile(0.5, rate(a_seconds_bucket{job="x"}[1m])) / on () sum by (le) (b_total{}) + c{d="e"}"#;
    assert_eq!(families(expr), BTreeSet::from(["a_seconds", "b_total", "c"]));
    assert!(families("vector(1)").is_empty());
}

#[test]
fn selectors_have_a_family_and_matchers() {
    let expr = r#"rate(a_seconds_sum{b="c",d!~"e|f"}[1m]) + g{h!="",i=~".*"} + j{}"#;
    let expected =
        [("a_seconds", vec![("b", "c"), ("d", "e|f")]), ("g", vec![("h", ""), ("i", ".*")]), ("j", vec![])];
    assert!(selectors(expr).eq(expected));
}

#[test]
fn rates_are_taken_over_what_grafana_takes() {
    let query =
        |interval: &str| serde_json::json!({ "expr": "rate(a[$__rate_interval])", "interval": interval });
    assert_eq!(sent(&query(""), 60), "rate(a[4s])");
    assert_eq!(sent(&query("15s"), 60), "rate(a[16s])");
    assert_eq!(sent(&serde_json::json!({ "expr": "rate(a[10m])" }), 60), "rate(a[10s])");
}
