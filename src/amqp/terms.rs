//! On which terms a queue is consumed: how many deliveries may be unsettled, and whom the broker serves first.

use lapin::types::{AMQPValue, FieldTable};

use super::Settings;
use super::topology::EXPIRED;

/// `amqp.prefetch` at most: quorum queues take no more.
pub const PREFETCH_MAX: u16 = 2000;

/// The terms of one queue's consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) prefetch: u16,
    priority: i32,
}

impl Terms {
    /// What the settings mean for `queue`: one of the invites queues, or that of what the broker gave up on.
    pub(super) fn of(settings: &Settings, queue: &str) -> Self {
        let aside = aside(settings.prefetch);
        let prefetch = match queue {
            EXPIRED => aside,
            _ => share(settings.prefetch - aside, settings.invites.len()),
        };
        Self { prefetch, priority: settings.consumer_priority }
    }

    /// For `basic.consume` (RabbitMQ docs, *Consumer Priorities*).
    pub(super) fn arguments(self) -> FieldTable {
        let mut arguments = FieldTable::default();
        if self.priority != 0 {
            arguments.insert("x-priority".into(), AMQPValue::LongInt(self.priority));
        }
        arguments
    }
}

/// The part of the prefetch that is for what the broker gave up on. Its answers take no push, so that few at once are many
/// a second, and however long that queue is, the invites keep the rest.
fn aside(prefetch: u16) -> u16 {
    (prefetch / 20).max(1)
}

/// The prefetch of each of `queues` consumers, so that together they keep to `prefetch`.
fn share(prefetch: u16, queues: usize) -> u16 {
    (prefetch / u16::try_from(queues.max(1)).unwrap_or(u16::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_share_the_prefetch() {
        assert_eq!(share(500, 1), 500);
        assert_eq!(share(500, 3), 166);
        assert_eq!(share(1, 3), 1);
        assert_eq!(share(7, 0), 7);
        for (prefetch, kept) in [(1, 1), (2, 1), (39, 1), (500, 25), (2000, 100)] {
            assert_eq!(aside(prefetch), kept);
        }
    }

    #[test]
    fn a_priority_is_an_argument_unless_it_is_the_default() {
        assert_eq!(Terms { prefetch: 1, priority: 0 }.arguments(), FieldTable::default());
        let table = Terms { prefetch: 1, priority: -7 }.arguments();
        assert_eq!(table.inner().get("x-priority"), Some(&AMQPValue::LongInt(-7)));
    }
}
