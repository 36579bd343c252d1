//! Every metric family, declared once and handed down.
//!
//! The rooms call verbs on [`Metrics`]; names and labels stand here and nowhere else. `metrics/README.md` tells operators
//! what each means and what to do when it is odd; `tests/it/metrics.rs` lays it beside what a worker serves. Labels come
//! from closed sets: the `app` label holds configured names only, `reason` only words known to Apple's pages, else `other`.

mod amqp;
mod declaration;
mod hot;
mod labels;
mod shards;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use declaration::Declarations;
use hot::Hot;
use labels::status_label;

/// All families of one shard; those of the first serve the others' with them.
pub struct Metrics {
    registry: Registry,
    refreshers: Mutex<Vec<Box<dyn Fn() + Send>>>,
    beside: Mutex<Vec<Arc<Self>>>,
    invites: IntCounterVec,
    devices: IntCounterVec,
    device_actions: IntCounterVec,
    barred: IntCounterVec,
    apns_responses: IntCounterVec,
    stage_seconds: HistogramVec,
    slack_seconds: Histogram,
    expired: IntCounterVec,
    attempts: IntCounterVec,
    late_answers: IntCounterVec,
    ledger_entries: IntGaugeVec,
    ledger_answers: IntCounter,
    apns_pools: IntGaugeVec,
    apns_connections: IntGaugeVec,
    apns_streams: IntGaugeVec,
    apns_oldest_unanswered: GaugeVec,
    apns_goaways: IntCounterVec,
    apns_dials: IntCounterVec,
    apns_dial_failures: IntCounterVec,
    apns_ping_seconds: HistogramVec,
    apns_connection_ends: IntCounterVec,
    apns_circuit_open: IntGaugeVec,
    apns_usable: IntGaugeVec,
    apns_suspect_tokens: IntGaugeVec,
    provider_token_age: GaugeVec,
    provider_token_mints: IntCounterVec,
    credential_expiry: IntGaugeVec,
    credential_reloads: IntCounterVec,
    token_events: IntCounterVec,
    breaker_open: IntGaugeVec,
    spans: IntCounterVec,
    amqp_connected: IntGaugeVec,
    amqp_dials: IntCounterVec,
    amqp_blocked: IntGauge,
    amqp_unsettled: IntGauge,
    amqp_prefetch: IntGauge,
    amqp_publishes: IntCounterVec,
    amqp_untaken: IntGauge,
    amqp_oldest_untaken: Gauge,
    amqp_missing: IntGaugeVec,
    amqp_reading: IntGaugeVec,
    unknown_fields: IntCounter,
    clock_skew: Gauge,
    handler_panics: IntCounter,
    log_lines_dropped: IntCounter,
    hot: Hot,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Declares every family in a registry of its own, so that two workers can live in one process.
    #[expect(clippy::too_many_lines, reason = "the one list of families reads best in one piece")]
    fn declare() -> Self {
        let declare = Declarations { registry: Registry::new() };
        let mut metrics = Self {
            refreshers: Mutex::new(Vec::new()),
            beside: Mutex::new(Vec::new()),
            invites: declare.counters(
                "ringcast_invites_total",
                "Invites with a final outcome, by app (`unknown` when it could not be read or is not configured) and result.",
                &["app", "result"],
            ),
            devices: declare.counters(
                "ringcast_devices_total",
                "Devices with a final result, by app, environment and result.",
                &["app", "environment", "result"],
            ),
            device_actions: declare.counters(
                "ringcast_device_actions_total",
                "Devices whose result asks for something: `drop_token` (it is dead), `check_token` (of another app or environment?), `fix_config` (Apple refuses a setting), `fix_invite`, `report` (a bug).",
                &["app", "action"],
            ),
            barred: declare.counters(
                "ringcast_barred_total",
                "Devices that are `failed` without an attempt, by why: `delivery_limit` (the broker gave the invite up), `poison` (its handler died before), `unsaid` (given up, and the broker does not say why).",
                &["app", "environment", "why"],
            ),
            apns_responses: declare.counters(
                "ringcast_apns_responses_total",
                "Answers from APNs, by environment, HTTP status and Apple's reason (`none` for an empty one, `other` for an unknown word).",
                &["environment", "status", "reason"],
            ),
            stage_seconds: declare.histograms(
                "ringcast_stage_seconds",
                "Seconds spent per stage: `queue` from created_at to the worker, `slot` for a stream, `apns` for an answer, `confirm` for the broker's confirm, `total` in the worker.",
                &["stage"],
            ),
            slack_seconds: declare.histogram(
                "ringcast_slack_seconds",
                "Seconds left to the deadline when APNs accepted a push.",
            ),
            expired: declare.counters(
                "ringcast_expired_total",
                "Devices whose deadline came before any attempt, by the stage where it came.",
                &["stage"],
            ),
            attempts: declare.counters(
                "ringcast_attempts_total",
                "Attempts: `first`, and repeats by the class of the failure before: `unprocessed`, `transient`, `ambiguous`.",
                &["class"],
            ),
            late_answers: declare.counters(
                "ringcast_apns_late_answers_total",
                "Answers that came after their attempt was given up, by environment and HTTP status.",
                &["environment", "status"],
            ),
            ledger_entries: declare.gauges(
                "ringcast_ledger_entries",
                "Invites in this worker's memory: `in_flight` until they are settled, and `remembered` from then on, with their results for twice `worker.deadline_max`, in case they come again.",
                &["state"],
            ),
            ledger_answers: declare.counter(
                "ringcast_ledger_answers_total",
                "Invites that came again and were answered from memory, without a push.",
            ),
            apns_pools: declare.gauges(
                "ringcast_apns_pools",
                "Pools in use, one per environment and credential, by state: `usable`, `unconnected` (no connection), `refused` (Apple refuses the credential).",
                &["environment", "state"],
            ),
            apns_connections: declare.gauges(
                "ringcast_apns_connections",
                "Connections to APNs by state: `dialing`, `usable`, `draining`.",
                &["environment", "state"],
            ),
            apns_streams: declare.gauges(
                "ringcast_apns_streams",
                "Streams on usable connections: `used`, and `allowed` by the peer's settings and our own limit.",
                &["environment", "kind"],
            ),
            apns_oldest_unanswered: declare.float_gauges(
                "ringcast_apns_oldest_unanswered_seconds",
                "Age of the oldest request that APNs has not answered, 0 when there is none.",
                &["environment"],
            ),
            apns_goaways: declare.counters(
                "ringcast_apns_goaways_total",
                "GOAWAY frames from APNs, by the reason in their text (`none` when empty, `other` when unknown).",
                &["reason"],
            ),
            apns_dials: declare.counters(
                "ringcast_apns_dials_total",
                "Attempts to open a connection to APNs, by result: `connected`, `failed`.",
                &["environment", "result"],
            ),
            apns_dial_failures: declare.counters(
                "ringcast_apns_dial_failures_total",
                "Attempts to open a connection to APNs that failed, by why: `name` (DNS), `connect` (TCP), `proxy`, `trust` (its certificate), `tls`, `http2`, `closed` (by the peer, at once), `timeout`, `key` (it cannot sign, or the client certificate is refused).",
                &["environment", "reason"],
            ),
            apns_ping_seconds: declare.histograms(
                "ringcast_apns_ping_seconds",
                "Seconds from a PING to its PONG; one goes out when a connection opens, beside a request that looks late, and every 15 s.",
                &["environment"],
            ),
            apns_connection_ends: declare.counters(
                "ringcast_apns_connection_ends_total",
                "Connections to APNs that went out of use, by why: `goaway`, `closed`, `no_pong` (stalled), `unanswered`, `provider_token`, `replaced` (due), `shrunk`, `stopped`.",
                &["environment", "end"],
            ),
            apns_circuit_open: declare.gauges(
                "ringcast_apns_circuit_open",
                "1 while Apple refuses the credential of an app, so that its calls are rejected at once.",
                &["app", "environment"],
            ),
            apns_usable: declare.gauges(
                "ringcast_apns_usable",
                "1 while a push of an app can go out at once: its pool has a usable connection, and Apple does not refuse its credential; no series before the pool is needed.",
                &["app", "environment"],
            ),
            apns_suspect_tokens: declare.gauges(
                "ringcast_apns_suspect_tokens",
                "Device tokens that Apple rejected lately and that take a connection of their own.",
                &["environment"],
            ),
            provider_token_age: declare.float_gauges(
                "ringcast_provider_token_age_seconds",
                "Seconds since the `iat` of the provider token in use, by app.",
                &["app"],
            ),
            provider_token_mints: declare.counters(
                "ringcast_provider_token_mints_total",
                "Provider tokens signed, one per key, half hour and shard: `minted`, or `failed` for a key that cannot sign.",
                &["environment", "result"],
            ),
            credential_expiry: declare.gauges(
                "ringcast_credential_expiry_timestamp_seconds",
                "When the client certificate of an app expires, the earlier one of two; only apps with a certificate.",
                &["app"],
            ),
            credential_reloads: declare.counters(
                "ringcast_credential_reloads_total",
                "Changes of keys, certificates, trust roots, the broker's settings or the configuration file that were noticed: `taken` over, or `refused` for a mistake.",
                &["result"],
            ),
            token_events: declare.counters(
                "ringcast_token_events_total",
                "Token events that Apple's answers caused, by app, confidence (`dead`, `suspect`) and queue (`invalid`, `quarantine`).",
                &["app", "confidence", "to"],
            ),
            breaker_open: declare.gauges(
                "ringcast_breaker_open",
                "1 while so many tokens of an app are suspect that a setting is more likely to be wrong; their events go to quarantine.",
                &["app", "environment"],
            ),
            spans: declare.counters(
                "ringcast_spans_total",
                "Spans of traces, by what became of them: `exported`, `dropped` (no room to wait), `failed` (not taken).",
                &["result"],
            ),
            amqp_connected: declare.gauges(
                "ringcast_amqp_connected",
                "1 while the connection of that role (`consume`, `publish`) is usable.",
                &["role"],
            ),
            amqp_dials: declare.counters(
                "ringcast_amqp_dials_total",
                "Attempts to open the two connections to the broker, by result: `connected`, `failed`.",
                &["result"],
            ),
            amqp_blocked: declare.gauge(
                "ringcast_amqp_blocked",
                "1 while the broker blocks publishing (connection.blocked: a memory or disk alarm).",
            ),
            amqp_unsettled: declare.gauge(
                "ringcast_amqp_unsettled",
                "Deliveries held and not yet settled; the prefetch is their limit, together with the one before while it changes.",
            ),
            amqp_prefetch: declare.gauge(
                "ringcast_amqp_prefetch",
                "Deliveries that may be unsettled: `amqp.prefetch`, as it is now, of each shard.",
            ),
            amqp_publishes: declare.counters(
                "ringcast_amqp_publishes_total",
                "Results published, each try, by what became of it: `confirmed`, `returned` (no queue is bound), `nacked` (a queue refused it, e.g. because it is full), `lost` (not answered).",
                &["result"],
            ),
            amqp_reading: declare.gauges(
                "ringcast_amqp_reading",
                "1 while the worker consumes from the queue, 0 while it cannot.",
                &["queue"],
            ),
            amqp_untaken: declare.gauge(
                "ringcast_amqp_untaken",
                "Results that the broker did not take yet and that are published again; their invites stay unacknowledged.",
            ),
            amqp_oldest_untaken: declare.float_gauge(
                "ringcast_amqp_oldest_untaken_seconds",
                "Seconds since the oldest of them was first not taken, 0 when there is none.",
            ),
            amqp_missing: declare.gauges(
                "ringcast_amqp_missing",
                "1 while a queue or exchange of the topology, by name, is missing from the broker, as far as the last check saw.",
                &["name"],
            ),
            unknown_fields: declare.counter(
                "ringcast_unknown_fields_total",
                "Fields of invites that the contract does not name.",
            ),
            clock_skew: declare.float_gauge(
                "ringcast_clock_skew_seconds",
                "How far the last created_at more than 2 s in the future lay ahead of this worker's clock.",
            ),
            handler_panics: declare.counter(
                "ringcast_handler_panics_total",
                "Invites whose handler died; each is a bug to report.",
            ),
            log_lines_dropped: declare.counter(
                "ringcast_log_lines_dropped_total",
                "Lines of the log that were left out, because nobody took those before them from stderr.",
            ),
            hot: Hot::default(),
            registry: declare.registry,
        };
        metrics.start_at_zero();
        metrics.hot = Hot::of(&metrics);
        metrics
    }

    /// Runs `refresh` before each rendering, for gauges that only a scrape needs.
    pub fn refresh_with(&self, refresh: impl Fn() + Send + 'static) {
        self.refreshers.lock().push(Box::new(refresh));
    }

    /// A device's result asks for something: a word of the outcome's `action`, not `none`.
    pub fn device_action(&self, app: &str, action: &str) {
        self.device_actions.with_label_values(&[app, action]).inc();
    }

    /// A device is `failed` without an attempt; `why`: `delivery_limit`, `poison`, `unsaid`.
    pub fn barred(&self, app: &str, environment: &str, why: &str) {
        self.barred.with_label_values(&[app, environment, why]).inc();
    }

    /// APNs answered an attempt that was given up before.
    pub fn late_answer(&self, environment: &str, status: u16) {
        self.late_answers.with_label_values(&[environment, status_label(status)]).inc();
    }

    /// APNs accepted a push with this much time left.
    pub fn slack(&self, left: Duration) {
        self.slack_seconds.observe(left.as_secs_f64());
    }

    /// A device expired in a stage: `broker`, `queue`, `slot`, `retry`.
    pub fn expired(&self, stage: &str) {
        self.expired.with_label_values(&[stage]).inc();
    }

    /// How many invites are not settled, and how many settled ones are remembered.
    pub fn ledger_entries(&self, in_flight: usize, remembered: usize) {
        for (state, count) in [("in_flight", in_flight), ("remembered", remembered)] {
            self.ledger_entries.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// An invite came again and is answered from memory.
    pub fn ledger_answer(&self) {
        self.ledger_answers.inc();
    }

    /// A connection went out of use.
    pub fn apns_connection_end(&self, environment: &str, end: &str) {
        self.apns_connection_ends.with_label_values(&[environment, end]).inc();
    }

    /// Whether Apple refuses an app's credential.
    pub fn apns_circuit(&self, app: &str, environment: &str, is_open: bool) {
        self.apns_circuit_open.with_label_values(&[app, environment]).set(i64::from(is_open));
    }

    /// Whether a push of an app can go out at once; `None`: nobody needs its pool yet.
    pub fn apns_usable(&self, app: &str, environment: &str, is_usable: Option<bool>) {
        match is_usable {
            Some(usable) => self.apns_usable.with_label_values(&[app, environment]).set(i64::from(usable)),
            // An error says that there was none before, either.
            None => _ = self.apns_usable.remove_label_values(&[app, environment]),
        }
    }

    /// How many device tokens take a connection of their own.
    pub fn apns_suspect_tokens(&self, environment: &str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.apns_suspect_tokens.with_label_values(&[environment]).set(count);
    }

    /// How many connections are in a state: `dialing`, `usable`, `draining`. Several pools share an environment, so
    /// this takes a difference.
    pub fn apns_connections(&self, environment: &str, state: &str, difference: i64) {
        self.apns_connections.with_label_values(&[environment, state]).add(difference);
    }

    /// Streams of an environment, `used` and `allowed`.
    pub fn apns_streams(&self, environment: &str, used: usize, allowed: usize) {
        let signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.apns_streams.with_label_values(&[environment, "used"]).set(signed(used));
        self.apns_streams.with_label_values(&[environment, "allowed"]).set(signed(allowed));
    }

    /// The age of the oldest unanswered request of an environment.
    pub fn apns_oldest_unanswered(&self, environment: &str, age: Duration) {
        self.apns_oldest_unanswered.with_label_values(&[environment]).set(age.as_secs_f64());
    }

    /// A GOAWAY came; `reason` from a closed set.
    pub fn apns_goaway(&self, reason: &str) {
        self.apns_goaways.with_label_values(&[reason]).inc();
    }

    /// A connection attempt ended: `connected` or `failed`.
    pub fn apns_dial(&self, environment: &str, result: &str) {
        self.apns_dials.with_label_values(&[environment, result]).inc();
    }

    /// A connection attempt failed; `reason` from a closed set.
    pub fn apns_dial_failure(&self, environment: &str, reason: &str) {
        self.apns_dial_failures.with_label_values(&[environment, reason]).inc();
    }

    /// How many pools of an environment are in a state: `usable`, `unconnected`, `refused`.
    pub fn apns_pools(&self, environment: &str, state: &str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.apns_pools.with_label_values(&[environment, state]).set(count);
    }

    /// A PONG came, so long after its PING.
    pub fn apns_ping(&self, environment: &str, way: Duration) {
        self.apns_ping_seconds.with_label_values(&[environment]).observe(way.as_secs_f64());
    }

    /// A key signed a provider token, or could not: `minted`, `failed`.
    pub fn provider_token_mint(&self, environment: &str, result: &str) {
        self.provider_token_mints.with_label_values(&[environment, result]).inc();
    }

    /// The age of an app's provider token; `None`: it has none.
    pub fn provider_token_age(&self, app: &str, age_seconds: Option<f64>) {
        match age_seconds {
            Some(age) => self.provider_token_age.with_label_values(&[app]).set(age),
            // An error says that there was none before, either.
            None => _ = self.provider_token_age.remove_label_values(&[app]),
        }
    }

    /// When an app's certificate expires, Unix seconds; `None`: it has none.
    pub fn credential_expiry(&self, app: &str, unix_seconds: Option<i64>) {
        match unix_seconds {
            Some(seconds) => self.credential_expiry.with_label_values(&[app]).set(seconds),
            // An error says that there was none before, either.
            None => _ = self.credential_expiry.remove_label_values(&[app]),
        }
    }

    /// A change of credentials or trust roots was noticed: `taken`, `refused`.
    pub fn credential_reload(&self, result: &str) {
        self.credential_reloads.with_label_values(&[result]).inc();
    }

    /// Apple's answer caused a token event; `to`: `invalid` or `quarantine`.
    pub fn token_event(&self, app: &str, confidence: &str, to: &str) {
        self.token_events.with_label_values(&[app, confidence, to]).inc();
    }

    /// Whether an app's suspect tokens go to quarantine.
    pub fn breaker(&self, app: &str, environment: &str, is_open: bool) {
        self.breaker_open.with_label_values(&[app, environment]).set(i64::from(is_open));
    }

    /// Spans were `exported`, `dropped` for want of room, or `failed`.
    pub fn spans(&self, result: &str, count: usize) {
        self.spans.with_label_values(&[result]).inc_by(count as u64);
    }

    /// An invite held this many fields that the contract does not name.
    pub fn unknown_fields(&self, count: usize) {
        self.unknown_fields.inc_by(count as u64);
    }

    /// An invite's `created_at` lay this far in the future.
    pub fn clock_skew(&self, ahead: Duration) {
        self.clock_skew.set(ahead.as_secs_f64());
    }

    /// An invite's handler died.
    pub fn handler_panic(&self) {
        self.handler_panics.inc();
    }

    /// So many lines of the log were left out since the start. For a refresher: those run one at a time.
    pub fn log_lines_dropped(&self, total: u64) {
        self.log_lines_dropped.inc_by(total.saturating_sub(self.log_lines_dropped.get()));
    }
}
