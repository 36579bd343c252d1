//! The broker's URI: read once, checked against what the client library would silently ignore or misread.
//!
//! The library's own errors quote the whole URI, password and all; nothing here does.

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};

use super::host::Host;

/// Bytes of a frame at most. The library keeps 64 buffers of that size a connection, 8 MiB, and believes a broker that
/// says "no limit" (RabbitMQ's own default is the same number).
pub(super) const FRAME_MAX: u32 = 131_072;
/// Below this, tokens of OAuth 2 and long headers do not fit; RabbitMQ 4 takes nothing less.
const FRAME_MIN: u32 = 8_192;
/// Seconds. Half of it is the pace of sending, twice of it the patience with a silent broker: a path that carries nothing
/// any more is left after 10 to 12.5 s, by either side. RabbitMQ recommends 5 to 20; less takes a busy peer for a dead one.
const HEARTBEAT: u16 = 5;
const HEARTBEAT_MAX: u16 = 600;
/// A connection of ours opens fewer.
const CHANNELS_MIN: u16 = 128;

/// What a URI says, without the password; for those who check it and for commands that an operator runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Scheme, host and port, as in `amqps://rabbit.internal:5671`.
    pub endpoint: String,
    /// Whether it asks for TLS.
    pub is_tls: bool,
    /// The user; `None` where the client certificate says who logs in (`auth_mechanism=external`).
    pub user: Option<String>,
    /// The virtual host.
    pub vhost: String,
}

/// Reads a URI; the error says what is wrong with it and never quotes it.
pub fn facts(uri: &str) -> Result<Facts, String> {
    let endpoint = Endpoint::parse(uri)?;
    let text = endpoint.at(&endpoint.host());
    let (is_tls, is_external) = (endpoint.is_tls(), endpoint.is_external());
    let AMQPUri { authority, vhost, .. } = endpoint.uri;
    let user = (!is_external).then_some(authority.userinfo.username);
    Ok(Facts { endpoint: text, is_tls, user, vhost })
}

/// Whether `text` is a further host; the error says what is wrong with it.
pub fn check_host(text: &str) -> Result<(), String> {
    Host::parse(text, 0).map(drop)
}

/// Where the broker is and how to log in.
#[derive(Clone)]
pub(super) struct Endpoint {
    uri: AMQPUri,
}

impl Endpoint {
    /// Reads a URI (RabbitMQ docs, *RabbitMQ URI Specification* and *URI Query Parameters*).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("is not a URI".to_owned());
        };
        if !matches!(scheme, "amqp" | "amqps") {
            return Err("has a scheme other than amqp and amqps".to_owned());
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
            return Err("holds a blank, a newline or a `#`".to_owned());
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, vhost) = match place.split_once('/') {
            Some((authority, vhost)) => (authority, Some(vhost)),
            None => (place, None),
        };
        let (login, host) =
            authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
        if host.is_empty() || host.starts_with(':') {
            return Err("names no host".to_owned());
        }
        if vhost == Some("") {
            return Err("ends in \"/\", which is the vhost with the empty name: write %2f for the usual one"
                .to_owned());
        }
        if vhost.is_some_and(|vhost| vhost.contains('/')) {
            return Err("has a vhost with a `/`: write `%2f`".to_owned());
        }
        check_parameters(query)?;
        // The library's message may quote what it read.
        let mut uri: AMQPUri = text.parse().map_err(|_| "cannot be read as a broker's URI".to_owned())?;
        // The library takes "localhost" for every IPv6 address.
        uri.authority.host = Host::parse(host, 0).map_err(|what| format!("names a host that {what}"))?.name;
        let bytes = *uri.query.frame_max.get_or_insert(FRAME_MAX);
        if !(FRAME_MIN..=FRAME_MAX).contains(&bytes) {
            return Err(format!("has a frame_max other than {FRAME_MIN} to {FRAME_MAX} bytes"));
        }
        let seconds = *uri.query.heartbeat.get_or_insert(HEARTBEAT);
        if !(1..=HEARTBEAT_MAX).contains(&seconds) {
            return Err(format!("has a heartbeat other than 1 to {HEARTBEAT_MAX} seconds"));
        }
        if uri.query.channel_max.is_some_and(|channels| channels < CHANNELS_MIN) {
            return Err(format!("has a channel_max below {CHANNELS_MIN}"));
        }
        if login.is_some_and(|login| !login.contains(':')) {
            return Err("has a user without a password".to_owned());
        }
        let endpoint = Self { uri };
        if endpoint.is_external() && !endpoint.is_tls() {
            return Err(
                "has auth_mechanism=external, which logs in by the client certificate, but not amqps"
                    .to_owned(),
            );
        }
        if endpoint.is_external() && login.is_some() {
            return Err(
                "has auth_mechanism=external, which logs in by the client certificate, and USER:PASSWORD@ as well: leave that out"
                    .to_owned(),
            );
        }
        Ok(endpoint)
    }

    /// What the client library gets. Its `Debug` and `Display` show the password: never print it.
    pub(super) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    /// The host, for DNS and for the name in the certificate, with its port.
    pub(super) fn host(&self) -> Host {
        Host { name: self.uri.authority.host.clone(), port: self.port() }
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.uri.authority.port
    }

    /// Whether TLS is asked for. It is then used, or there is no connection.
    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    /// Whether the client certificate says who logs in.
    pub(super) fn is_external(&self) -> bool {
        self.uri.query.auth_mechanism == Some(SASLMechanism::External)
    }

    /// Scheme, host and port of a host that is reached by this URI.
    pub(super) fn at(&self, host: &Host) -> String {
        format!("{}://{host}", self.uri.scheme)
    }
}

/// The library reads five parameters, ignores one of them, and ignores all others, `verify` included.
fn check_parameters(query: &str) -> Result<(), String> {
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split('=').next().unwrap_or_default() {
            "frame_max" | "heartbeat" | "channel_max" | "auth_mechanism" => {}
            "connection_timeout" => {
                return Err("has a connection_timeout, which nothing reads: the limit is fixed".to_owned());
            }
            _ => {
                return Err(
                    "has a parameter after \"?\" that nothing reads: known are auth_mechanism, channel_max, frame_max and heartbeat"
                        .to_owned(),
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_filled_in() {
        let endpoint = Endpoint::parse("amqp://u:p%40ss@broker:5673/v%2fh").unwrap();
        let expected = Facts {
            endpoint: "amqp://broker:5673".into(),
            is_tls: false,
            user: Some("u".into()),
            vhost: "v/h".into(),
        };
        assert_eq!(facts("amqp://u:p%40ss@broker:5673/v%2fh"), Ok(expected));
        assert_eq!(endpoint.uri().authority.userinfo.password, "p@ss");
        assert_eq!(endpoint.uri().query.frame_max, Some(131_072));
        assert_eq!(endpoint.uri().query.heartbeat, Some(HEARTBEAT));
        assert!(!endpoint.is_tls());
        let endpoint = Endpoint::parse("amqps://broker?heartbeat=30&frame_max=16384").unwrap();
        assert_eq!((endpoint.port(), endpoint.uri().vhost.as_str(), endpoint.is_tls()), (5671, "/", true));
        assert_eq!(endpoint.uri().query.frame_max, Some(16_384));
        assert_eq!(endpoint.uri().query.heartbeat, Some(30));
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_localhost() {
        let endpoint = Endpoint::parse("amqp://u:p@[::1]:5673/%2f").unwrap();
        assert_eq!(endpoint.host(), Host { name: "::1".into(), port: 5673 });
        assert_eq!(endpoint.at(&endpoint.host()), "amqp://[::1]:5673");
    }

    #[test]
    fn a_wrong_uri_is_refused_and_never_quoted() {
        for (uri, word) in [
            ("hunter2", "not a URI"),
            ("amqp:hunter2", "not a URI"),
            ("http://u:hunter2@h/", "scheme"),
            ("AMQPS://u:hunter2@h/v", "scheme"),
            ("amqp://u:hunter2@/v", "no host"),
            ("amqp://u:hunter2@:5672/v", "no host"),
            ("amqp://u:hunter2@h:port/v", "cannot be read"),
            ("amqp://u:hunter2@h:99999/v", "cannot be read"),
            ("amqp://u:hunter2@h/", "%2f"),
            ("amqp://u:hunter2@h//", "%2f"),
            ("amqp://u:hunter2/x@h/v", "vhost"),
            ("amqp://u:hunter2 @h/v", "blank"),
            ("amqp://u:hunter2#@h/v", "#"),
            ("amqp://u:hunter2@h/v?verify=verify_none", "parameter"),
            ("amqp://u:hunter2@h/v?connection_timeout=1", "connection_timeout"),
            ("amqp://u:hunter2@h/v?frame_max=0", "frame_max"),
            ("amqp://u:hunter2@h/v?heartbeat=0", "heartbeat"),
            ("amqp://u:hunter2@h/v?heartbeat=hunter2", "cannot be read"),
            ("amqp://u:hunter2@h/v?channel_max=2", "channel_max"),
            ("amqp://u:hunter2@h/%ff", "cannot be read"),
        ] {
            let error = facts(uri).expect_err(uri);
            assert!(!error.contains("hunter2"), "{uri}: {error}");
            assert!(error.contains(word), "{uri}: {error}");
        }
    }

    #[test]
    fn a_certificate_logs_in_without_a_user() {
        let found = facts("amqps://h/v?auth_mechanism=EXTERNAL").unwrap();
        assert_eq!((found.user, found.is_tls), (None, true));
        for (uri, word) in [
            ("amqp://h/v?auth_mechanism=external", "amqps"),
            ("amqps://u:hunter2@h/v?auth_mechanism=external", "leave that out"),
        ] {
            let error = facts(uri).expect_err(uri);
            assert!(error.contains(word) && !error.contains("hunter2"), "{uri}: {error}");
        }
    }

    #[test]
    fn facts_hold_no_password() {
        let facts = facts("amqp://u:hunter2@h/v").unwrap();
        assert!(!format!("{facts:?}").contains("hunter2"));
    }
}
