//! `[amqp]`: where the broker is and which queues and exchanges are ours.

use std::cell::Cell;
use std::path::PathBuf;

use super::certificate::BrokerCertificate;
use super::credential::refuse_certificate;
use super::mistake::{show, show_host};
use super::pem;
use super::reader::Reader;
use super::section::Section;
use super::source::{Origin, read_file};
use crate::amqp;
use crate::apns::ClientCertificate;

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

/// Hosts beside the URI's at most: a cluster has three or five.
const HOSTS_MAX: usize = 16;

/// `consumer_priority` at most, either way.
const PRIORITY_MAX: i32 = 100;

const WITHOUT_TLS: &str =
    "is set, but the broker's URI is amqp://, without TLS; write amqps:// there or \"\" here";

const URI_BYTES_MAX: u64 = 4096;

/// `[amqp]`.
pub(super) struct Broker {
    pub(super) settings: amqp::Settings,
    /// The client certificate that the settings name.
    pub(super) certificate: Option<BrokerCertificate>,
    /// Every file that was read for them.
    pub(super) files: Vec<PathBuf>,
}

pub(super) fn read(reader: &mut Reader) -> Broker {
    let mut amqp = reader.section(&["amqp"]);
    let mut files = Vec::new();
    let uri = read_uri(&mut amqp, &mut files);
    // `None` only beside a mistake.
    let facts = uri.as_deref().and_then(|uri| amqp::facts(uri).ok());
    let hosts = amqp.list("hosts", check_hosts);
    let ca_file = amqp.text("ca_file", pem::trust_root);
    files.extend(ca_file.clone());
    let is_plain = facts.as_ref().is_some_and(|facts| !facts.is_tls);
    if ca_file.is_some() && is_plain {
        amqp.refuse("ca_file", WITHOUT_TLS);
    }
    let certificate = read_certificate(&mut amqp, facts.as_ref(), &mut files);
    let client = certificate.as_ref().map(|(_, client)| client.clone());
    Broker {
        settings: amqp::Settings {
            // Empty only beside a mistake, and then nobody gets these settings.
            uri: uri.unwrap_or_default(),
            hosts,
            ca_file,
            client,
            declare: amqp.boolean("declare"),
            invites: amqp.list("invites", check_invites),
            results_exchange: amqp.text("results_exchange", |name| {
                check_name(name)?;
                if EXCHANGES_TAKEN.contains(&name) {
                    return Err(
                        "is the exchange of something else; give a topic exchange of its own".to_owned()
                    );
                }
                Ok(name.to_owned())
            }),
            live: amqp.boolean("live"),
            prefetch: amqp.number("prefetch", 1..=amqp::PREFETCH_MAX, "quorum queues take no more"),
            consumer_priority: amqp.number(
                "consumer_priority",
                -PRIORITY_MAX..=PRIORITY_MAX,
                "a few steps tell workers apart",
            ),
        },
        certificate: certificate.map(|(certificate, _)| certificate),
        files,
    }
}

/// The client certificate of `client_cert_file` and `client_key_file`; `None` for "", and after a mistake.
fn read_certificate(
    amqp: &mut Section<'_>,
    facts: Option<&amqp::Facts>,
    files: &mut Vec<PathBuf>,
) -> Option<(BrokerCertificate, amqp::ClientFiles)> {
    let [cert_key, key_key] = ["client_cert_file", "client_key_file"];
    let (cert_file, chain) = read_file_of(amqp, cert_key, pem::certificates);
    let (key_file, key) = read_file_of(amqp, key_key, pem::private_key);
    files.extend(cert_file.iter().chain(&key_file).cloned());
    let missing = match (&cert_file, &key_file) {
        (None, None) => {
            if facts.is_some_and(|facts| facts.user.is_none()) {
                amqp.refuse(
                    cert_key,
                    "is not set, but amqp.uri has auth_mechanism=external, by which it says who logs in; give the certificate's file",
                );
            }
            return None;
        }
        (Some(_), Some(_)) => None,
        (Some(_), None) => Some((cert_key, key_key)),
        (None, Some(_)) => Some((key_key, cert_key)),
    };
    if let Some((set, missing)) = missing {
        amqp.refuse(set, &format!("is set, but amqp.{missing} is not; set both or neither"));
    } else if facts.is_some_and(|facts| !facts.is_tls) {
        amqp.refuse(cert_key, WITHOUT_TLS);
    }
    let certificate = match ClientCertificate::new(chain?, key?) {
        Ok(certificate) => certificate,
        Err(error) => {
            refuse_certificate(amqp, [cert_key, key_key], &error);
            return None;
        }
    };
    let (cert_file, key_file) = (cert_file?, key_file?);
    let place = format!("{}.{cert_key} ({})", amqp.path(), amqp.origin(cert_key));
    let certificate = BrokerCertificate { place, file: cert_file.clone(), certificate };
    Some((certificate, amqp::ClientFiles { cert_file, key_file }))
}

/// The path that a key gives, `None` for "", and what `read` makes of the file, `None` after a mistake, too.
fn read_file_of<T>(
    amqp: &mut Section<'_>,
    key: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> (Option<PathBuf>, Option<T>) {
    let given = Cell::new(None);
    let read = amqp.text(key, |text| {
        if text.is_empty() {
            return Ok(None);
        }
        given.set(Some(PathBuf::from(text)));
        read(text).map(Some)
    });
    (given.into_inner(), read)
}

/// The URI of `uri` or of the file in `uri_file`, whichever the later layer says. `None`: a mistake was recorded.
fn read_uri(amqp: &mut Section<'_>, files: &mut Vec<PathBuf>) -> Option<String> {
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
    files.push(file.clone());
    let content = read_file(&file, URI_BYTES_MAX).map_err(|what| format!("{shown} {what}"));
    let uri = content
        .and_then(|uri| parse_uri(uri.trim()).map_err(|what| format!("{shown}: what the file holds {what}")));
    uri.map_err(|what| amqp.refuse("uri_file", &what)).ok()
}

/// Checks a broker's URI. Errors never quote it.
fn parse_uri(text: &str) -> Result<String, String> {
    const RIGHT: &str = "give amqp://USER:PASSWORD@HOST:PORT/VHOST, with %2f for the vhost \"/\" and odd characters percent-encoded";
    amqp::facts(text).map(|_| text.to_owned()).map_err(|what| format!("{what}; {RIGHT}"))
}

fn check_hosts(hosts: &[String]) -> Result<(), String> {
    if hosts.len() > HOSTS_MAX {
        return Err(format!("holds {} hosts; give at most {HOSTS_MAX}", hosts.len()));
    }
    for (index, host) in hosts.iter().enumerate() {
        amqp::check_host(host).map_err(|what| format!("entry {}, {}, {what}", index + 1, show_host(host)))?;
    }
    Ok(())
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
    let Ok(amqp::Facts { endpoint, user, vhost, .. }) = amqp::facts(uri) else {
        return "(not shown)".to_owned();
    };
    let vhost = vhost.escape_debug();
    match (endpoint.split_once("://"), user) {
        (Some((scheme, host)), Some(user)) => {
            format!("{scheme}://{}:***@{host}, vhost \"{vhost}\"", user.escape_debug())
        }
        _ => format!("{endpoint}, vhost \"{vhost}\""),
    }
}
