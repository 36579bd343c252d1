//! One exposition for all shards of a process.
//!
//! Each shard has families of its own, so that no two threads write to the same place while they carry invites. Who asks gets
//! one sample a series, however many shards there are: counters and histograms add up, and gauges as it suits their meaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, Metric, MetricFamily, MetricType};

use super::Metrics;
use super::declaration::{declare_build_info, register};

/// Gauges of which the largest one counts: what is wrong in one shard is wrong. All that stand in neither list add up.
const LARGEST: [&str; 7] = [
    "ringcast_amqp_blocked",
    "ringcast_amqp_missing",
    "ringcast_amqp_oldest_untaken_seconds",
    "ringcast_apns_circuit_open",
    "ringcast_apns_oldest_unanswered_seconds",
    "ringcast_breaker_open",
    "ringcast_clock_skew_seconds",
];

/// Gauges of which the smallest one counts: what one shard does not have the worker does not have in full.
/// And the age of the newest provider token, since a shard takes a new one with its next push.
const SMALLEST: [&str; 5] = [
    "ringcast_amqp_connected",
    "ringcast_amqp_reading",
    "ringcast_apns_usable",
    "ringcast_credential_expiry_timestamp_seconds",
    "ringcast_provider_token_age_seconds",
];

impl Metrics {
    /// Those of a process, which are those of its first shard, too.
    pub fn new() -> Arc<Self> {
        let metrics = Self::declare();
        declare_build_info(&metrics.registry);
        #[cfg(target_os = "linux")]
        register(&metrics.registry, prometheus::process_collector::ProcessCollector::for_self());
        Arc::new(metrics)
    }

    /// Those of a further shard, which are served with these.
    pub fn beside(&self) -> Arc<Self> {
        let other = Arc::new(Self::declare());
        self.beside.lock().push(Arc::clone(&other));
        other
    }

    /// The text exposition of every family (Prometheus text format 0.0.4).
    pub fn render(&self) -> String {
        let mut families = self.gather();
        for other in self.beside.lock().iter() {
            families = join(families, other.gather());
        }
        // Encoding fails only on a family without samples or a duplicate name, and `gather` yields neither.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }

    fn gather(&self) -> Vec<MetricFamily> {
        for refresh in self.refreshers.lock().iter() {
            refresh();
        }
        self.registry.gather()
    }
}

/// The families of both, each once.
fn join(ours: Vec<MetricFamily>, theirs: Vec<MetricFamily>) -> Vec<MetricFamily> {
    let mut by_name: BTreeMap<String, MetricFamily> =
        ours.into_iter().map(|family| (family.name().to_owned(), family)).collect();
    for mut family in theirs {
        match by_name.get_mut(family.name()) {
            Some(known) => {
                let series = known.take_metric().into_iter().chain(family.take_metric());
                let series = join_series(known.name(), known.get_field_type(), series);
                known.set_metric(series);
            }
            None => _ = by_name.insert(family.name().to_owned(), family),
        }
    }
    by_name.into_values().collect()
}

/// One sample for each set of labels, in the order of their values.
fn join_series(name: &str, kind: MetricType, series: impl Iterator<Item = Metric>) -> Vec<Metric> {
    let mut by_labels: BTreeMap<Vec<String>, Metric> = BTreeMap::new();
    for sample in series {
        let labels = sample.get_label().iter().map(|label| label.value().to_owned()).collect();
        match by_labels.get_mut(&labels) {
            Some(known) => match kind {
                MetricType::COUNTER => known.set_counter(sum(known, &sample)),
                MetricType::HISTOGRAM => {
                    let both = lay_together(known.get_histogram(), sample.get_histogram());
                    known.set_histogram(both);
                }
                _ => {
                    let both =
                        join_gauges(name, known.get_gauge().get_value(), sample.get_gauge().get_value());
                    let mut gauge = Gauge::default();
                    gauge.set_value(both);
                    known.set_gauge(gauge);
                }
            },
            None => _ = by_labels.insert(labels, sample),
        }
    }
    by_labels.into_values().collect()
}

fn join_gauges(name: &str, one: f64, other: f64) -> f64 {
    let (smaller, larger) = if one.total_cmp(&other).is_lt() { (one, other) } else { (other, one) };
    if LARGEST.contains(&name) {
        larger
    } else if SMALLEST.contains(&name) {
        smaller
    } else {
        one + other
    }
}

fn sum(one: &Metric, other: &Metric) -> Counter {
    let mut counter = Counter::default();
    counter.set_value(one.get_counter().get_value() + other.get_counter().get_value());
    counter
}

/// Both have the same buckets: they come from one declaration.
fn lay_together(one: &Histogram, other: &Histogram) -> Histogram {
    let bucket = |(one, other): (&Bucket, &Bucket)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(one.upper_bound());
        bucket.set_cumulative_count(one.cumulative_count() + other.cumulative_count());
        bucket
    };
    let mut both = Histogram::default();
    both.set_bucket(one.get_bucket().iter().zip(other.get_bucket()).map(bucket).collect());
    both.set_sample_count(one.get_sample_count() + other.get_sample_count());
    both.set_sample_sum(one.get_sample_sum() + other.get_sample_sum());
    both
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_series_of_several_shards_is_one_sample() {
        let first = Metrics::new();
        let shards = [Arc::clone(&first), first.beside(), first.beside()];
        for (metrics, number) in shards.iter().zip([1, 2, 3]) {
            metrics.invite(Some("acme"), "accepted");
            metrics.stage("apns", Duration::from_millis(80 * number));
            metrics.amqp_prefetch(500);
            metrics.amqp_unsettled(i64::try_from(number).unwrap());
            metrics.amqp_untaken(1, Duration::from_secs(10 * number));
            metrics.apns_oldest_unanswered("production", Duration::from_secs(7 - number));
            metrics.credential_expiry("acme", Some(1_000 * i64::try_from(number).unwrap()));
            metrics.amqp_connected("consume", number != 2);
            metrics.amqp_connected("publish", true);
            metrics.breaker("acme", "production", number == 2);
            metrics.apns_usable("acme", "production", Some(number != 2));
            metrics.apns_usable("acme", "sandbox", (number == 2).then_some(true));
            metrics.barred("acme", "production", "poison");
        }
        // Refreshed before it is asked, like the first.
        let third = Arc::downgrade(&shards[2]);
        shards[2].refresh_with(move || {
            if let Some(metrics) = third.upgrade() {
                metrics.apns_streams("sandbox", 5, 100);
            }
        });
        shards[2].invite(Some("acme"), "expired");
        let text = first.render();
        for line in [
            r#"ringcast_invites_total{app="acme",result="accepted"} 3"#,
            r#"ringcast_invites_total{app="acme",result="expired"} 1"#,
            r#"ringcast_stage_seconds_bucket{stage="apns",le="0.05"} 0"#,
            r#"ringcast_stage_seconds_bucket{stage="apns",le="0.1"} 1"#,
            r#"ringcast_stage_seconds_bucket{stage="apns",le="0.2"} 2"#,
            r#"ringcast_stage_seconds_bucket{stage="apns",le="+Inf"} 3"#,
            r#"ringcast_stage_seconds_sum{stage="apns"} 0.48"#,
            r#"ringcast_stage_seconds_count{stage="apns"} 3"#,
            "ringcast_amqp_prefetch 1500",
            "ringcast_amqp_unsettled 6",
            "ringcast_amqp_untaken 3",
            "ringcast_amqp_oldest_untaken_seconds 30",
            r#"ringcast_apns_oldest_unanswered_seconds{environment="production"} 6"#,
            r#"ringcast_credential_expiry_timestamp_seconds{app="acme"} 1000"#,
            r#"ringcast_amqp_connected{role="consume"} 0"#,
            r#"ringcast_amqp_connected{role="publish"} 1"#,
            r#"ringcast_breaker_open{app="acme",environment="production"} 1"#,
            r#"ringcast_apns_usable{app="acme",environment="production"} 0"#,
            r#"ringcast_apns_usable{app="acme",environment="sandbox"} 1"#,
            r#"ringcast_barred_total{app="acme",environment="production",why="poison"} 3"#,
            r#"ringcast_apns_streams{environment="sandbox",kind="allowed"} 100"#,
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line} in\n{text}");
        }
        for once in ["ringcast_build_info{", "process_start_time_seconds "] {
            assert_eq!(text.lines().filter(|line| line.starts_with(once)).count(), 1, "{once}");
        }
        let series: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| Some(line.rsplit_once(' ')?.0))
            .collect();
        assert_eq!(series.len(), series.iter().collect::<BTreeSet<_>>().len(), "each series once");
        assert!(text.contains("\n# TYPE ringcast_stage_seconds histogram\n"), "{text}");
    }

    #[test]
    fn the_operators_page_says_how_each_gauge_of_several_shards_is_to_be_read() {
        let page = include_str!("README.md");
        let row = |name: &&str| page.contains(&format!("| `{name}` | gauge"));
        assert!(LARGEST.iter().chain(&SMALLEST).all(row), "each is a gauge");
        let paragraph =
            page.split("\n\n").find(|text| text.starts_with("Several shards")).expect("a paragraph");
        let (_, paragraph) = paragraph.split_once(" Of ").expect("what does not add up");
        let (largest, smallest) = paragraph.split_once("served;").expect("both lists");
        for (names, text) in [(&LARGEST[..], largest), (&SMALLEST[..], smallest)] {
            let told: BTreeSet<&str> = text.split('`').filter(|word| word.starts_with("ringcast_")).collect();
            assert_eq!(told, names.iter().copied().collect());
        }
    }
}
