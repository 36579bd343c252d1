//! `[amqp]`: where the broker is and which queues and exchanges are ours.

use std::path::PathBuf;

use lapin::uri::{AMQPScheme, AMQPUri};

use super::mistake::show;
use super::pem;
use super::reader::Reader;
use super::section::Section;
use super::source::{Origin, read_file};
use crate::amqp;

/// Names that the topology gives to something else; an invites queue of that name would eat what the worker writes.
const QUEUES_TAKEN: [&str; 6] = [
    "ringcast.dead",
    "ringcast.expired",
    "ringcast.ended",
    "ringcast.outcomes",
    "ringcast.invalid-tokens",
    "ringcast.quarantined-tokens",
];

/// Exchanges of another kind than the one for results.
const EXCHANGES_TAKEN: [&str; 3] = ["ringcast.dead", "ringcast.ended", "ringcast.live"];

/// What the URI may say after `?`; the client ignores anything else silently.
const PARAMETERS: [&str; 5] =
    ["auth_mechanism", "channel_max", "connection_timeout", "frame_max", "heartbeat"];

const URI_BYTES_MAX: u64 = 4096;

pub(super) fn read(reader: &mut Reader) -> amqp::Settings {
    let mut amqp = reader.section(&["amqp"]);
    let uri = read_uri(&mut amqp);
    let ca_file = amqp.text("ca_file", pem::trust_root);
    if ca_file.is_some() && uri.as_ref().is_some_and(|uri| !uri.starts_with("amqps://")) {
        amqp.refuse(
            "ca_file",
            "is set, but the broker's URI is amqp://, without TLS; write amqps:// there or \"\" here",
        );
    }
    let instead = "log in with the name and password of amqp.uri, over amqps://";
    amqp.not_built("client_cert_file", instead);
    amqp.not_built("client_key_file", instead);
    amqp::Settings {
        // Empty only beside a mistake, and then nobody gets these settings.
        uri: uri.unwrap_or_default(),
        ca_file,
        declare: amqp.boolean("declare"),
        invites: amqp.list("invites", check_invites),
        results_exchange: amqp.text("results_exchange", |name| {
            check_name(name)?;
            if EXCHANGES_TAKEN.contains(&name) {
                return Err("is the exchange of something else; give a topic exchange of its own".to_owned());
            }
            Ok(name.to_owned())
        }),
        live: amqp.boolean("live"),
        prefetch: amqp.number("prefetch", 1..=2000, "quorum queues take no more"),
    }
}

/// The URI of `uri` or of the file in `uri_file`, whichever the later layer says. `None`: a mistake was recorded.
fn read_uri(amqp: &mut Section<'_>) -> Option<String> {
    let file = amqp.text("uri_file", |text| Ok((!text.is_empty()).then(|| PathBuf::from(text))));
    let Some(file) = file else { return amqp.secret("uri", parse_uri) };
    let layer = |origin: Origin| match origin {
        Origin::Nowhere | Origin::Default => 0,
        Origin::File { .. } => 1,
        Origin::Environment { .. } => 2,
    };
    let (of_text, of_file) = (layer(amqp.origin("uri")), layer(amqp.origin("uri_file")));
    let text = amqp.secret("uri", parse_uri);
    if of_text == of_file {
        amqp.refuse("uri_file", "is set beside amqp.uri; keep one of the two");
    }
    if of_text >= of_file {
        return text;
    }
    let shown = show(&file.display().to_string());
    let content = read_file(&file, URI_BYTES_MAX).map_err(|what| format!("{shown} {what}"));
    let uri = content
        .and_then(|uri| parse_uri(uri.trim()).map_err(|what| format!("{shown}: what the file holds {what}")));
    uri.map_err(|what| amqp.refuse("uri_file", &what)).ok()
}

/// Checks a broker's URI. Errors never quote it.
fn parse_uri(text: &str) -> Result<String, String> {
    const RIGHT: &str = "give amqp://USER:PASSWORD@HOST:PORT/VHOST, with %2f for the vhost \"/\" and odd characters percent-encoded";
    let wrong = |what: &str| Err(format!("{what}; {RIGHT}"));
    let Some((scheme, rest)) = text.split_once("://") else {
        return wrong("is not a URI");
    };
    if !matches!(scheme, "amqp" | "amqps") {
        return wrong("has a scheme other than amqp and amqps");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("holds a blank or a newline");
    }
    let (before, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, vhost) = before.split_once('/').map_or((before, None), |(one, other)| (one, Some(other)));
    let (user, host) =
        authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if host.is_empty() || host.starts_with(':') {
        return wrong("names no host");
    }
    if host.starts_with('[') {
        return wrong("has an IPv6 address as its host, which the client cannot read; give a host name");
    }
    if vhost == Some("") {
        return wrong("ends in \"/\", which is the vhost with the empty name");
    }
    if user.is_some_and(|user| !user.contains(':')) {
        return wrong("has a user without a password");
    }
    let name = |parameter: &str| parameter.split('=').next().unwrap_or_default().to_owned();
    let known = |parameter: &str| PARAMETERS.contains(&name(parameter).as_str());
    if !parameters.is_empty() && !parameters.split('&').all(known) {
        let known = PARAMETERS.join(", ");
        return Err(format!("has a parameter after \"?\" that nothing reads; known are {known}"));
    }
    match text.parse::<AMQPUri>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => wrong("cannot be read as a broker's URI"),
    }
}

fn check_invites(queues: &[String]) -> Result<(), String> {
    if queues.is_empty() || queues.len() > 64 {
        return Err(format!("holds {} queues; give 1 to 64, as in [\"ringcast.invites\"]", queues.len()));
    }
    for (index, queue) in queues.iter().enumerate() {
        check_name(queue).map_err(|what| format!("entry {}, {}, {what}", index + 1, show(queue)))?;
        if QUEUES_TAKEN.contains(&queue.as_str()) {
            return Err(format!(
                "names {}, which is the queue of something else; name a queue of invites",
                show(queue)
            ));
        }
        if queues[..index].contains(queue) {
            return Err(format!("names {} twice; name each queue once", show(queue)));
        }
    }
    Ok(())
}

/// What AMQP allows as a name (a short string, AMQP 0-9-1 section 4.2.5.3) and the broker does not keep for itself.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
        return Err("is not a name; give 1 to 255 bytes".to_owned());
    }
    if name.starts_with("amq.") {
        return Err("begins with \"amq.\", which RabbitMQ keeps for itself; give another name".to_owned());
    }
    Ok(())
}

/// A broker's URI for people: the password masked, the parameters left out.
pub fn describe_uri(uri: &str) -> String {
    let Ok(uri) = uri.parse::<AMQPUri>() else { return "(not shown)".to_owned() };
    let scheme = match uri.scheme {
        AMQPScheme::AMQP => "amqp",
        AMQPScheme::AMQPS => "amqps",
    };
    let authority = uri.authority;
    let user = authority.userinfo.username.escape_debug().to_string();
    let vhost = uri.vhost.escape_debug().to_string();
    format!("{scheme}://{user}:***@{}:{}, vhost \"{vhost}\"", authority.host, authority.port)
}
