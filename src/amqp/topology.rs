//! Every queue, exchange and binding, as one table; what declares them, and what checks that they are there.
//!
//! The arguments are final from the first version on: RabbitMQ answers a declaration with other arguments by 406, for
//! everybody who declares. Limits and times to live are no arguments but policies, which AMQP cannot set.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use tokio::time::timeout;

use super::describe::{describe, reply_code};
use super::dial::Link;
use super::limit::{ANSWER, is_answer};
use super::{Error, Settings};

/// Where invites that the broker gave up on go; also a queue's name.
pub const DEAD: &str = "ringcast.dead";
/// The queue of invites that expired in the broker or were delivered too often.
pub const EXPIRED: &str = "ringcast.expired";
/// The fanout exchange and the stream queue of ended calls.
pub const ENDED: &str = "ringcast.ended";
/// The fanout exchange for copies of every result.
pub const LIVE: &str = "ringcast.live";
/// The queue that takes outcomes.
pub const OUTCOMES: &str = "ringcast.outcomes";
/// The queue that takes invalid-token events.
pub const INVALID_TOKENS: &str = "ringcast.invalid-tokens";
/// The queue that takes token events while an app's breaker is open.
pub const QUARANTINED_TOKENS: &str = "ringcast.quarantined-tokens";

/// How often a message may be returned before the broker gives up on it.
const DELIVERY_LIMIT: i32 = 20;
/// How long a notice of an ended call can be read: the longest life of a call invite, twice.
const ENDED_MAX_AGE: &str = "10m";

/// A queue or an exchange, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// An exchange.
    Exchange(String),
    /// A queue.
    Queue(String),
}

impl std::fmt::Display for Thing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exchange(name) => write!(formatter, "exchange {name}"),
            Self::Queue(name) => write!(formatter, "queue {name}"),
        }
    }
}

impl Thing {
    /// Its name in the broker.
    pub fn name(&self) -> &str {
        match self {
            Self::Exchange(name) | Self::Queue(name) => name,
        }
    }
}

/// "queue a is", or "queue a and exchange b are".
pub(super) fn list(things: &[Thing]) -> String {
    let names: Vec<_> = things.iter().map(ToString::to_string).collect();
    match names.split_last() {
        Some((last, [])) => format!("{last} is"),
        Some((last, others)) => format!("{} and {last} are", others.join(", ")),
        None => "nothing is".to_owned(),
    }
}

/// A value of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// AMQP long string.
    Text(&'static str),
    /// AMQP signed 32-bit integer.
    Number(i32),
}

/// The arguments of a declaration or binding, in the order of the contract.
pub type Arguments = Vec<(&'static str, Value)>;

/// Which way an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the message's headers.
    Headers,
    /// To every binding.
    Fanout,
    /// By patterns of the routing key.
    Topic,
}

/// One durable exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Whether the worker refuses to start without it.
    pub needed: bool,
}

/// One durable queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments, the queue type first.
    pub arguments: Arguments,
    /// Whether the worker refuses to start without it.
    pub needed: bool,
}

/// One binding of a queue to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The exchange that messages come from.
    pub exchange: String,
    /// The queue that they go to.
    pub queue: &'static str,
    /// The routing key or pattern.
    pub key: &'static str,
    /// Arguments of a headers binding.
    pub arguments: Arguments,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// In the order in which they are declared.
    pub exchanges: Vec<Exchange>,
    /// In the order in which they are declared, after the exchanges that they name.
    pub queues: Vec<Queue>,
    /// After the queues.
    pub bindings: Vec<Binding>,
    /// Whether results are copied to [`LIVE`].
    pub live: bool,
}

impl Topology {
    /// The table, with the names of these settings.
    pub fn of(settings: &Settings) -> Self {
        use Value::{Number, Text};
        let quorum = ("x-queue-type", Text("quorum"));
        // A dead letter is handed over before the original goes: only from a quorum queue that refuses when full.
        let dead_lettering = [
            ("x-delivery-limit", Number(DELIVERY_LIMIT)),
            ("x-dead-letter-strategy", Text("at-least-once")),
            ("x-overflow", Text("reject-publish")),
        ];
        let with = |more: &[(&'static str, Value)]| [&[quorum], &dead_lettering[..], more].concat();
        let queue =
            |name: &str, arguments: Arguments, needed| Queue { name: name.to_owned(), arguments, needed };
        let results = &settings.results_exchange;

        let mut queues: Vec<_> = settings
            .invites
            .iter()
            .map(|name| queue(name, with(&[("x-dead-letter-exchange", Text(DEAD))]), true))
            .collect();
        queues.extend([
            queue(DEAD, vec![quorum], true),
            queue(
                EXPIRED,
                with(&[("x-dead-letter-exchange", Text("")), ("x-dead-letter-routing-key", Text(DEAD))]),
                // Without it, what the broker gives up on is not answered; all else is.
                false,
            ),
            queue(OUTCOMES, vec![quorum], true),
            queue(INVALID_TOKENS, vec![quorum], true),
            queue(QUARANTINED_TOKENS, vec![quorum], true),
            queue(ENDED, vec![("x-queue-type", Text("stream")), ("x-max-age", Text(ENDED_MAX_AGE))], false),
        ]);

        let exchange = |name: &str, kind, needed| Exchange { name: name.to_owned(), kind, needed };
        let died = |reason, queue| Binding {
            exchange: DEAD.to_owned(),
            queue,
            key: "",
            // Plain `all` ignores keys that begin with `x-`, and would let every death through.
            arguments: vec![("x-match", Text("all-with-x")), ("x-first-death-reason", Text(reason))],
        };
        let routed = |exchange: &str, key, queue| Binding {
            exchange: exchange.to_owned(),
            queue,
            key,
            arguments: vec![],
        };
        Self {
            exchanges: vec![
                exchange(DEAD, Kind::Headers, true),
                exchange(results, Kind::Topic, true),
                exchange(LIVE, Kind::Fanout, false),
                exchange(ENDED, Kind::Fanout, false),
            ],
            queues,
            bindings: vec![
                died("rejected", DEAD),
                died("maxlen", DEAD),
                died("expired", EXPIRED),
                died("delivery_limit", EXPIRED),
                routed(results, "outcome.#", OUTCOMES),
                routed(results, "invalid_token.#", INVALID_TOKENS),
                routed(results, "quarantined_token.#", QUARANTINED_TOKENS),
                routed(ENDED, "", ENDED),
            ],
            live: settings.live,
        }
    }

    /// Makes everything that is not there yet. The first refusal ends it.
    pub async fn declare(&self, link: &Link) -> Result<(), Error> {
        let channel = link.channel().await?;
        for exchange in &self.exchanges {
            let what = format!("exchange {}", exchange.name);
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let name = exchange.name.as_str().into();
            let request =
                channel.exchange_declare(name, exchange.kind.into(), options, FieldTable::default());
            make(&what, request).await?;
        }
        for queue in &self.queues {
            let what = format!("queue {}", queue.name);
            let (name, options) = (queue.name.as_str().into(), QueueDeclareOptions::durable());
            let request = channel.queue_declare(name, options, table(&queue.arguments));
            make(&what, request).await?;
        }
        for binding in &self.bindings {
            let what = format!("the binding of queue {} to exchange {}", binding.queue, binding.exchange);
            let request = channel.queue_bind(
                binding.queue.into(),
                binding.exchange.as_str().into(),
                binding.key.into(),
                QueueBindOptions::default(),
                table(&binding.arguments),
            );
            make(&what, request).await?;
        }
        Ok(())
    }

    /// Looks which things are missing of those that are used, without making any. It sees names only: neither types, arguments
    /// nor bindings (a result that no binding takes comes back as a return).
    pub async fn check(&self, link: &Link) -> Result<Presence, Error> {
        let mut presence = Presence::default();
        let mut channel = link.channel().await?;
        for (thing, needed) in self.used() {
            match look(&channel, &thing).await? {
                Look::There => presence.there.push(thing),
                Look::Hidden => {
                    presence.there.push(thing);
                    channel = link.channel().await?;
                }
                Look::Missing => {
                    let missing = if needed { &mut presence.needed } else { &mut presence.optional };
                    missing.push(thing);
                    // The answer "not found" closes the channel.
                    channel = link.channel().await?;
                }
            }
        }
        Ok(presence)
    }

    /// Those that this worker uses: without `amqp.live` nothing is copied to [`LIVE`].
    fn used(&self) -> impl Iterator<Item = (Thing, bool)> {
        self.things().filter(|(thing, _)| self.live || thing.name() != LIVE)
    }

    /// Every exchange and queue, and whether it is needed.
    pub fn things(&self) -> impl Iterator<Item = (Thing, bool)> {
        let exchanges = self.exchanges.iter().map(|it| (Thing::Exchange(it.name.clone()), it.needed));
        exchanges.chain(self.queues.iter().map(|it| (Thing::Queue(it.name.clone()), it.needed)))
    }
}

/// What a passive check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// There, as far as we may see.
    pub there: Vec<Thing>,
    /// Missing, and nothing works without.
    pub needed: Vec<Thing>,
    /// Missing, and the worker does without: what the broker gave up on is not answered, ended calls are not seen, or nobody
    /// can look on.
    pub optional: Vec<Thing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    There,
    Missing,
    /// The broker does not tell this user; consuming or publishing will.
    Hidden,
}

pub(super) async fn look(channel: &Channel, thing: &Thing) -> Result<Look, Error> {
    let looked = timeout(ANSWER, async {
        match thing {
            Thing::Exchange(name) => {
                let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
                // A passive declaration does not compare the type.
                channel
                    .exchange_declare(
                        name.as_str().into(),
                        ExchangeKind::Topic,
                        options,
                        FieldTable::default(),
                    )
                    .await
            }
            Thing::Queue(name) => channel
                .queue_declare(
                    name.as_str().into(),
                    QueueDeclareOptions::durable().passive(),
                    FieldTable::default(),
                )
                .await
                .map(drop),
        }
    });
    match looked.await {
        Ok(Ok(())) => Ok(Look::There),
        Ok(Err(error)) => match reply_code(&error) {
            Some(404) => Ok(Look::Missing),
            // ACCESS_REFUSED, or RESOURCE_LOCKED: an exclusive queue of somebody else. Consuming will say more.
            Some(403 | 405) => Ok(Look::Hidden),
            _ => Err(Error::Lost(format!("looking for {thing} failed: {}", describe(&error)))),
        },
        Err(_) => Err(Error::Lost(format!("looking for {thing} failed: no answer from the broker"))),
    }
}

async fn make<T>(what: &str, request: impl Future<Output = lapin::Result<T>>) -> Result<(), Error> {
    match timeout(ANSWER, request).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if is_answer(&error) => {
            let reason = explain(&describe(&error), reply_code(&error));
            Err(Error::Declare { what: what.to_owned(), reason })
        }
        Ok(Err(error)) => Err(Error::Lost(format!("declaring {what} failed: {}", describe(&error)))),
        Err(_) => Err(Error::Lost(format!("declaring {what} failed: no answer from the broker"))),
    }
}

/// What to do about a refusal. RabbitMQ names the argument: "inequivalent arg 'x-delivery-limit' for queue …".
fn explain(said: &str, code: Option<u16>) -> String {
    match code {
        Some(406) => {
            match said.split_once("inequivalent arg '").and_then(|(_, rest)| rest.split_once('\'')) {
                Some((argument, _)) => format!(
                    "it exists with another {argument}, and RabbitMQ cannot change that ({said}); move its messages and \
                 delete it, or give this worker another name for it"
                ),
                None => format!(
                    "it exists in another form ({said}); delete it, or give this worker another name for it"
                ),
            }
        }
        Some(403) => {
            format!(
                "the user may not ({said}); declare as an administrator, \
                 and give the worker what `ringcast topology permissions` prints"
            )
        }
        Some(540) => format!("the broker cannot ({said}); RabbitMQ 3.10 or newer is needed"),
        _ => said.to_owned(),
    }
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Value::Text(text) => AMQPValue::LongString((*text).into()),
            Value::Number(number) => AMQPValue::LongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}

impl From<Kind> for ExchangeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Headers => Self::Headers,
            Kind::Fanout => Self::Fanout,
            Kind::Topic => Self::Topic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            uri: String::new(),
            hosts: Vec::new(),
            ca_file: None,
            client: None,
            declare: false,
            invites: vec!["ringcast.invites".into(), "vip".into()],
            results_exchange: "results".into(),
            live: false,
            prefetch: 1,
            consumer_priority: 0,
        }
    }

    fn shown(arguments: &Arguments) -> String {
        let show = |(name, value): &(&str, Value)| match value {
            Value::Text(text) => format!("{name}={text}"),
            Value::Number(number) => format!("{name}={number}"),
        };
        arguments.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_queues_are_as_the_contract_says() {
        let queues: Vec<_> = Topology::of(&settings())
            .queues
            .iter()
            .map(|queue| format!("{}: {}", queue.name, shown(&queue.arguments)))
            .collect();
        let invites = "x-queue-type=quorum x-delivery-limit=20 x-dead-letter-strategy=at-least-once \
                       x-overflow=reject-publish x-dead-letter-exchange=ringcast.dead";
        assert_eq!(
            queues,
            [
                format!("ringcast.invites: {invites}"),
                format!("vip: {invites}"),
                "ringcast.dead: x-queue-type=quorum".into(),
                "ringcast.expired: x-queue-type=quorum x-delivery-limit=20 x-dead-letter-strategy=at-least-once \
                 x-overflow=reject-publish x-dead-letter-exchange= x-dead-letter-routing-key=ringcast.dead"
                    .into(),
                "ringcast.outcomes: x-queue-type=quorum".into(),
                "ringcast.invalid-tokens: x-queue-type=quorum".into(),
                "ringcast.quarantined-tokens: x-queue-type=quorum".into(),
                "ringcast.ended: x-queue-type=stream x-max-age=10m".into(),
            ]
        );
    }

    #[test]
    fn the_bindings_are_as_the_contract_says() {
        let bindings: Vec<_> = Topology::of(&settings())
            .bindings
            .iter()
            .map(|it| format!("{} -{}{}-> {}", it.exchange, it.key, shown(&it.arguments), it.queue))
            .collect();
        assert_eq!(
            bindings,
            [
                "ringcast.dead -x-match=all-with-x x-first-death-reason=rejected-> ringcast.dead",
                "ringcast.dead -x-match=all-with-x x-first-death-reason=maxlen-> ringcast.dead",
                "ringcast.dead -x-match=all-with-x x-first-death-reason=expired-> ringcast.expired",
                "ringcast.dead -x-match=all-with-x x-first-death-reason=delivery_limit-> ringcast.expired",
                "results -outcome.#-> ringcast.outcomes",
                "results -invalid_token.#-> ringcast.invalid-tokens",
                "results -quarantined_token.#-> ringcast.quarantined-tokens",
                "ringcast.ended --> ringcast.ended",
            ]
        );
    }

    #[test]
    fn what_ringing_does_without_is_optional() {
        for live in [false, true] {
            let topology = Topology::of(&Settings { live, ..settings() });
            let optional = topology.used().filter(|(_, needed)| !needed).map(|(thing, _)| thing.to_string());
            let onlookers = if live { "exchange ringcast.live, " } else { "" };
            let others = "exchange ringcast.ended, queue ringcast.expired, queue ringcast.ended";
            assert_eq!(optional.collect::<Vec<_>>().join(", "), format!("{onlookers}{others}"));
        }
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_out() {
        let error = Error::Missing(vec![Thing::Queue("a".into())]);
        assert_eq!(
            error.to_string(),
            "queue a is missing: run `ringcast topology declare` or set amqp.declare = true"
        );
        let error = Error::Missing(vec![Thing::Queue("a".into()), Thing::Exchange("b".into())]);
        assert!(error.to_string().starts_with("queue a and exchange b are missing: "), "{error}");
    }

    #[test]
    fn a_conflict_names_the_argument() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received …";
        assert!(explain(said, Some(406)).contains("exists with another x-delivery-limit,"));
    }
}
