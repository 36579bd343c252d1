//! What the broker's side tells.

use std::time::Duration;

use super::Metrics;

impl Metrics {
    /// An attempt to connect to the broker ended: `connected` or `failed`.
    pub fn amqp_dial(&self, result: &str) {
        self.amqp_dials.with_label_values(&[result]).inc();
    }

    /// The connection of a role (`consume`, `publish`) became usable or was lost.
    pub fn amqp_connected(&self, role: &str, connected: bool) {
        self.amqp_connected.with_label_values(&[role]).set(i64::from(connected));
    }

    /// The broker blocks publishing, or does so no more.
    pub fn amqp_blocked(&self, blocked: bool) {
        self.amqp_blocked.set(i64::from(blocked));
    }

    /// Deliveries came (positive) or were settled or lost (negative).
    pub fn amqp_unsettled(&self, difference: i64) {
        self.amqp_unsettled.add(difference);
    }

    /// The fate of so many publications: `confirmed`, `returned`, `nacked`, `lost`.
    pub fn amqp_publish(&self, result: &str, count: u64) {
        self.amqp_publishes.with_label_values(&[result]).inc_by(count);
    }

    /// A queue is consumed from, or not any more. `queue`: a configured or fixed name.
    pub fn amqp_reading(&self, queue: &str, reading: bool) {
        self.amqp_reading.with_label_values(&[queue]).set(i64::from(reading));
    }

    /// How many results the broker did not take yet, and for how long the oldest.
    pub fn amqp_untaken(&self, count: usize, age: Duration) {
        self.amqp_untaken.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.amqp_oldest_untaken.set(age.as_secs_f64());
    }

    /// A queue or exchange of the topology is missing, or is not any more. `name`: a configured or fixed name.
    pub fn amqp_missing(&self, name: &str, missing: bool) {
        self.amqp_missing.with_label_values(&[name]).set(i64::from(missing));
    }

    /// How many deliveries may be unsettled: `amqp.prefetch` as it is now.
    pub fn amqp_prefetch(&self, prefetch: u16) {
        self.amqp_prefetch.set(i64::from(prefetch));
    }
}
