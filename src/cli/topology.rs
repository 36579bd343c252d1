//! `ringcast topology`: makes the queues and exchanges, and prints the commands for what AMQP cannot make: limits, times to
//! live, and rights.

use std::fmt::Write as _;
use std::time::Duration;

use crate::amqp::topology::{
    DEAD, ENDED, EXPIRED, INVALID_TOKENS, LIVE, OUTCOMES, QUARANTINED_TOKENS, Thing, Topology,
};
use crate::amqp::{self, Error, Facts, Settings};

/// Dead letters are for people to look at: two weeks.
const DEAD_TTL_MS: u64 = 14 * 24 * 60 * 60 * 1000;
/// Invites, and dead letters, in one queue.
const INVITES_MAX: u64 = 100_000;
/// Results in one queue: some hundred megabytes.
const RESULTS_MAX: u64 = 1_000_000;

/// `declare`: makes everything that is not there yet, and returns what there is now. [`Error::is_unavailable`] tells a
/// broker that cannot be reached (exit code 69) from one that has something else under one of our names.
pub async fn declare(settings: &Settings) -> Result<Vec<Thing>, Error> {
    amqp::supervisor::declare(settings).await?;
    Ok(Topology::of(settings).things().map(|(thing, _)| thing).collect())
}

/// `policies`: the `rabbitmqctl` commands that bound the queues. Invites queues refuse what is too much, by their own
/// arguments; where results are read too slowly, the oldest go. `deadline_max`: the longest that an invite may wait.
pub fn policies(settings: &Settings, deadline_max: Duration) -> Result<String, Error> {
    let Facts { vhost, .. } = facts(settings)?;
    let policies = [
        (
            "ringcast-invites",
            "Full, an invites queue refuses; an invite that waited longer than any call rings is expired.",
            pattern(settings.invites.iter().map(String::as_str)),
            format!(r#"{{"max-length":{INVITES_MAX},"message-ttl":{}}}"#, deadline_max.as_millis()),
        ),
        (
            "ringcast-results",
            "Nobody reads: the oldest results go, and ringing goes on. Alert on the depth long before.",
            pattern([OUTCOMES, INVALID_TOKENS, QUARANTINED_TOKENS]),
            format!(r#"{{"max-length":{RESULTS_MAX},"overflow":"drop-head"}}"#),
        ),
        (
            "ringcast-dead",
            "Dead letters wait two weeks for somebody to look at them.",
            pattern([DEAD]),
            format!(r#"{{"max-length":{INVITES_MAX},"overflow":"drop-head","message-ttl":{DEAD_TTL_MS}}}"#),
        ),
    ];
    let mut text = String::new();
    for (name, why, queues, definition) in policies {
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "# {why}\nrabbitmqctl set_policy --vhost {} --apply-to queues {name} {} {}",
            quote(&vhost),
            quote(&queues),
            quote(&definition)
        );
    }
    text.push_str(
        "# How large a message may be is no policy, but a setting of the whole broker: max_message_size in rabbitmq.conf.\n",
    );
    Ok(text)
}

/// `permissions`: the `rabbitmqctl` commands for least rights of the worker (the user of the URI), of whoever publishes
/// invites, and of whoever reads results. Declaring needs more: run it as an administrator.
pub fn permissions(settings: &Settings) -> Result<String, Error> {
    let Facts { user, vhost, .. } = facts(settings)?;
    let results = settings.results_exchange.as_str();
    let invites = settings.invites.iter().map(String::as_str);
    let queues = [OUTCOMES, INVALID_TOKENS, QUARANTINED_TOKENS, DEAD];
    let nothing = "^$".to_owned();
    let onlooker = "^amq\\.gen-.*$".to_owned();
    let rights = [
        (
            "The worker: takes invites and writes results; amq.default is for reply_to.",
            // Who logs in by a certificate has the name that the broker reads from it.
            user.as_deref().unwrap_or("WORKER"),
            nothing.clone(),
            pattern([results, LIVE, "amq.default"]),
            pattern(invites.chain([EXPIRED, ENDED])),
        ),
        (
            "Whoever calls: writes invites (by queue name) and ended calls; for reply_to, amq.rabbitmq.reply-to needs no further right.",
            "PUBLISHER",
            nothing.clone(),
            pattern(["amq.default", ENDED]),
            nothing,
        ),
        (
            "Whoever reads results; the queues amq.gen-… are for onlookers of ringcast.live.",
            "READER",
            onlooker.clone(),
            onlooker,
            pattern(queues.into_iter().chain([LIVE])).replace(")$", "|amq\\.gen-.*)$"),
        ),
    ];
    let mut text = String::new();
    for (why, user, configure, write, read) in rights {
        let _ = writeln!(
            text,
            "# {why}\nrabbitmqctl set_permissions --vhost {} {} {} {} {}",
            quote(&vhost),
            quote(user),
            quote(&configure),
            quote(&write),
            quote(&read)
        );
    }
    text.push_str(
        "# amq.default leads to every queue: RabbitMQ knows no rights on its keys. Where those who call must not be able to write outcomes, \
         make an exchange for them, bound to the invites queues, and give PUBLISHER that one in its place.\n",
    );
    Ok(text)
}

fn facts(settings: &Settings) -> Result<Facts, Error> {
    amqp::facts(&settings.uri).map_err(|what| Error::Configuration(format!("amqp.uri {what}")))
}

/// A regular expression of exactly these names.
fn pattern<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().map(escape).collect();
    format!("^({})$", names.join("|"))
}

fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if !(c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | ':')) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// For a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            uri: "amqp://worker:hunter2@h/it%27s".into(),
            hosts: Vec::new(),
            ca_file: None,
            client: None,
            declare: false,
            invites: vec!["ringcast.invites".into(), "v+p".into()],
            results_exchange: "results".into(),
            live: false,
            prefetch: 1,
            consumer_priority: 0,
        }
    }

    #[test]
    fn policies_bound_each_queue_once() {
        let text = policies(&settings(), Duration::from_secs(90)).unwrap();
        assert!(text.contains(
            r"--vhost 'it'\''s' --apply-to queues ringcast-invites '^(ringcast\.invites|v\+p)$' '{"
        ));
        for queue in ["outcomes", "invalid-tokens", "quarantined-tokens", "dead"] {
            assert_eq!(text.matches(&format!(r"ringcast\.{queue}")).count(), 1, "{queue} in\n{text}");
        }
        assert!(text.contains(r#"'{"max-length":100000,"message-ttl":90000}'"#), "{text}");
        assert!(
            text.lines().all(|line| line.starts_with("# ") || line.starts_with("rabbitmqctl ")),
            "{text}"
        );
        assert!(text.contains("max_message_size"), "{text}");
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn who_logs_in_by_a_certificate_has_a_name_to_fill_in() {
        let uri = "amqps://h/calls?auth_mechanism=external".into();
        let text = permissions(&Settings { uri, ..settings() }).unwrap();
        assert!(text.contains("--vhost 'calls' 'WORKER' '^$'"), "{text}");
    }

    #[test]
    fn the_worker_may_configure_nothing() {
        let text = permissions(&settings()).unwrap();
        let worker = text.lines().nth(1).unwrap();
        assert_eq!(
            worker,
            r"rabbitmqctl set_permissions --vhost 'it'\''s' 'worker' '^$' '^(results|ringcast\.live|amq\.default)$' '^(ringcast\.invites|v\+p|ringcast\.expired|ringcast\.ended)$'"
        );
        assert!(!text.contains("hunter2"));
    }
}
