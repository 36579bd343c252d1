//! How a family comes into the registry.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// From 1 ms to 60 s: the slow end is a call's life, the fast end the time in the worker.
const SECONDS_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0,
    30.0, 60.0,
];

pub(super) fn declare_build_info(registry: &Registry) {
    let options = Opts::new("ringcast_build_info", "Always 1; the version is in the label.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let gauge = IntGauge::with_opts(options).expect(VALID);
    gauge.set(1);
    register(registry, gauge);
}

/// Why declaring cannot fail: names and labels are the literals above, each used once, as the tests show.
const VALID: &str = "a literal, valid and unique metric name";

pub(super) fn register(registry: &Registry, family: impl prometheus::core::Collector + 'static) {
    registry.register(Box::new(family)).expect(VALID);
}

pub(super) struct Declarations {
    pub(super) registry: Registry,
}

impl Declarations {
    fn add<F: prometheus::core::Collector + Clone + 'static>(&self, family: prometheus::Result<F>) -> F {
        let family = family.expect(VALID);
        register(&self.registry, family.clone());
        family
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    pub(super) fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histogram(&self, name: &str, help: &str) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS_BUCKETS.to_vec())))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(SECONDS_BUCKETS.to_vec());
        self.add(HistogramVec::new(options, labels))
    }
}
