//! The printed rights and policies, as the broker keeps them: what each user may and may not, and what comes of the limits.

use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties, ErrorKind};
use ringcast::amqp::live::Onlooker;
use ringcast::amqp::{Error, Settings, supervisor};
use ringcast::cli::topology;
use ringcast::worker::mailbox::GivenUp;

use super::{Peer, Rig, settings};
use crate::broker::Broker;
use crate::vhost::{Vhost, list, start_broker};

const ACCESS_REFUSED: u16 = 403;

/// What somebody tries.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// To consume from a queue.
    Take(&'static str),
    /// To publish: an exchange, and a key.
    Write(&'static str, &'static str),
    /// To make a queue of this name; without one, of a name that the broker chooses.
    Make(&'static str),
    /// To bind a queue of one's own to an exchange.
    LookOn(&'static str),
    /// To drop what is in a queue.
    Purge(&'static str),
    Delete(&'static str),
}

use Deed::{Delete, LookOn, Make, Purge, Take, Write};

/// Who may what. What stands at `yes` is what the user is for, but for one thing: with the default exchange comes every queue, since
/// RabbitMQ knows no rights on its keys.
const TABLE: [(&str, &[Deed], &[Deed]); 3] = [
    (
        "worker",
        &[
            Take("ringcast.invites"),
            Take("ringcast.expired"),
            Take("ringcast.ended"),
            Write("ringcast.results", "outcome.acme"),
            Write("ringcast.results", "invalid_token.acme"),
            Write("ringcast.live", ""),
            Write("", "whoever-asked-for-a-reply"),
            Write("", "ringcast.outcomes"),
        ],
        &[
            Take("ringcast.outcomes"),
            Take("ringcast.invalid-tokens"),
            Take("ringcast.quarantined-tokens"),
            Take("ringcast.dead"),
            Write("ringcast.ended", ""),
            Write("ringcast.dead", ""),
            Make("ringcast.invites"),
            Make("made"),
            Make(""),
            LookOn("ringcast.live"),
            Purge("ringcast.outcomes"),
            Delete("ringcast.invites"),
        ],
    ),
    (
        "PUBLISHER",
        &[
            Write("", "ringcast.invites"),
            Write("", "ringcast.outcomes"),
            Write("ringcast.ended", ""),
            // For a `reply_to` without a queue; in no-ack mode alone.
            Take("amq.rabbitmq.reply-to"),
        ],
        &[
            Take("ringcast.invites"),
            Take("ringcast.expired"),
            Take("ringcast.ended"),
            Take("ringcast.outcomes"),
            Take("ringcast.dead"),
            Write("ringcast.results", "outcome.acme"),
            Write("ringcast.live", ""),
            Write("ringcast.dead", ""),
            Make("made"),
            Make(""),
            LookOn("ringcast.live"),
            Purge("ringcast.invites"),
            Delete("ringcast.invites"),
        ],
    ),
    (
        "READER",
        &[
            Take("ringcast.outcomes"),
            Take("ringcast.invalid-tokens"),
            Take("ringcast.quarantined-tokens"),
            Take("ringcast.dead"),
            Purge("ringcast.outcomes"),
            Make(""),
            LookOn("ringcast.live"),
        ],
        &[
            Take("ringcast.invites"),
            Take("ringcast.expired"),
            Take("ringcast.ended"),
            Write("", "ringcast.invites"),
            Write("", "ringcast.outcomes"),
            Write("ringcast.results", "outcome.acme"),
            Write("ringcast.live", ""),
            Write("ringcast.ended", ""),
            Make("made"),
            LookOn("ringcast.results"),
            LookOn("ringcast.ended"),
            Purge("ringcast.invites"),
            Delete("ringcast.outcomes"),
        ],
    ),
];

/// Tries it on a channel of its own, which a refusal closes.
async fn attempt(connection: &Connection, deed: Deed) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    let none = FieldTable::default;
    let own = || async {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        channel.queue_declare("".into(), options, none()).await
    };
    match deed {
        Take(queue) => {
            // A stream wants a prefetch.
            channel.basic_qos(1, BasicQosOptions::default()).await?;
            let no_ack = queue.starts_with("amq.");
            let options = BasicConsumeOptions { no_ack, ..Default::default() };
            drop(channel.basic_consume(queue.into(), "".into(), options, none()).await?);
        }
        Write(exchange, key) => {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            channel.basic_publish(exchange.into(), key.into(), options, b"{}", properties).await?.await?;
        }
        Make("") => drop(own().await?),
        Make(queue) => {
            drop(channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), none()).await?);
        }
        LookOn(exchange) => {
            let queue = own().await?.name().clone();
            let options = QueueBindOptions::default();
            channel.queue_bind(queue, exchange.into(), "".into(), options, none()).await?;
        }
        Purge(queue) => drop(channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?),
        Delete(queue) => drop(channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?),
    }
    // So that what was taken goes back before the next one.
    channel.close(200, "OK".into()).await
}

/// The printed commands, in words.
fn commands(text: &str) -> Vec<Vec<&str>> {
    // Nothing in these names or definitions holds a quote or a blank.
    text.lines()
        .filter_map(|line| line.strip_prefix("rabbitmqctl "))
        .map(|command| command.split(' ').map(|word| word.trim_matches('\'')).collect())
        .collect()
}

/// A broker with the topology and with the three users, their rights and the policies as printed; and the worker's settings.
async fn equip() -> (Broker, Settings) {
    let broker = start_broker().await;
    supervisor::declare(&settings(broker.uri())).await.unwrap();
    for user in ["worker", "PUBLISHER", "READER"] {
        broker.ctl(&["add_user", user, "secret"]).await.unwrap();
    }
    let all = settings(of(&broker, "worker"));
    let text =
        topology::policies(&all, Duration::from_mins(5)).unwrap() + &topology::permissions(&all).unwrap();
    let commands = commands(&text);
    assert_eq!(commands.len(), 6);
    for command in commands {
        broker.ctl(&command).await.unwrap();
    }
    (broker, all)
}

fn of(broker: &Broker, user: &str) -> String {
    broker.uri().replace("guest:guest", &format!("{user}:secret"))
}

#[tokio::test]
async fn the_printed_rights_are_enough_and_no_more() {
    let (broker, all) = equip().await;
    let policies = list(&broker, "/", "list_policies", &[]).await;
    assert_eq!(policies.len(), 3, "{policies:?}");
    let mut wrong = Vec::new();
    for (user, allowed, refused) in TABLE {
        let uri = of(&broker, user);
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
        for deed in allowed {
            if let Err(error) = attempt(&connection, *deed).await {
                wrong.push(format!("{user} may not {deed:?}: {error}"));
            }
        }
        for deed in refused {
            match attempt(&connection, *deed).await {
                Ok(()) => wrong.push(format!("{user} may {deed:?}")),
                Err(error) => match error.kind() {
                    ErrorKind::ProtocolError(said) if said.get_id() == ACCESS_REFUSED => {}
                    _ => wrong.push(format!("{user} tries {deed:?}: {error}")),
                },
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        matches!(topology::declare(&all).await, Err(Error::Declare { .. })),
        "the worker may declare nothing"
    );
}

#[tokio::test]
async fn with_the_printed_rights_a_call_goes_all_the_way() {
    let (broker, all) = equip().await;
    let mut rig = Rig::start(all, 5);
    rig.await_consuming().await;
    assert_eq!(rig.outbox.publish(super::result("r", "outcome.acme")).await, Ok(()));
    let publisher = Peer::new(&of(&broker, "PUBLISHER")).await;
    publisher.fill("ringcast.invites", ["1".to_owned()]).await;
    rig.next().await.receipt.reject();
    let reader = Peer::new(&of(&broker, "READER")).await;
    assert_eq!(reader.read("ringcast.outcomes", 1).await.len(), 1);
    assert_eq!(reader.read("ringcast.dead", 1).await.len(), 1);
    let onlooker = Onlooker::begin(&settings(of(&broker, "READER")), "onlooker").await;
    onlooker.expect("who reads results may look on").close().await;
    let refused = Onlooker::begin(&settings(of(&broker, "PUBLISHER")), "onlooker").await.err();
    assert!(
        matches!(&refused, Some(Error::Declare { reason, .. }) if reason.contains("READER")),
        "{refused:?}"
    );
    rig.stop().await;
}

#[tokio::test]
async fn the_printed_policies_act() {
    let vhost = Vhost::new().await;
    let all = settings(vhost.uri());
    supervisor::declare(&all).await.unwrap();
    // So short that a test can wait for it, and so few that it can fill it.
    let text = topology::policies(&all, Duration::from_millis(100)).unwrap();
    assert!(text.contains(r#""max-length":1000000,"#), "{text}");
    for command in commands(&text.replace(r#""max-length":1000000,"#, r#""max-length":3,"#)) {
        vhost.ctl(&command).await;
    }
    let peer = Peer::new(&vhost.uri()).await;
    // A queue hears of its policy a moment later, and those invites that came before wait for ever.
    let expired = tokio::time::timeout(super::LIMIT, async {
        while peer.ready("ringcast.expired").await == 0 {
            peer.fill("ringcast.invites", ["late".to_owned()]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(expired.await.is_ok(), "no invite expires");
    peer.channel.queue_purge("ringcast.invites".into(), QueuePurgeOptions::default()).await.unwrap();
    let mut rig = Rig::start(all, 100);
    let given_up = rig.next().await;
    assert_eq!((given_up.body.as_ref(), given_up.given_up), (b"late".as_slice(), Some(GivenUp::Expired)));
    given_up.receipt.ack();

    peer.fill("ringcast.outcomes", (1..=5).map(|n| n.to_string())).await;
    peer.await_ready("ringcast.outcomes", 3).await;
    let kept: Vec<_> =
        peer.read("ringcast.outcomes", 3).await.into_iter().map(|message| message.data).collect();
    assert_eq!(kept, [b"3", b"4", b"5"], "the oldest went");
    rig.stop().await;
}
