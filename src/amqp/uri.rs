//! The broker's URI: read once, checked against what the client library would silently ignore or misread.
//!
//! The library's own errors quote the whole URI, password and all; nothing here does.

use lapin::uri::{AMQPScheme, AMQPUri};

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

/// Whether `uri` is one that the worker can use; the error says what is wrong with it and never quotes it.
pub fn check_uri(uri: &str) -> Result<(), String> {
    Endpoint::parse(uri).map(drop)
}

/// Whom a URI logs in, and where; for commands that an operator runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The virtual host.
    pub vhost: String,
}

/// Reads both from a URI.
pub fn login(uri: &str) -> Result<Login, String> {
    let uri = Endpoint::parse(uri)?.uri;
    Ok(Login { user: uri.authority.userinfo.username, vhost: uri.vhost })
}

/// Where the broker is and how to log in.
#[derive(Clone)]
pub(super) struct Endpoint {
    uri: AMQPUri,
}

impl Endpoint {
    /// Reads a URI (RabbitMQ docs, *RabbitMQ URI Specification* and *URI Query Parameters*).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("it is not a URI: give amqp://USER:PASSWORD@HOST:PORT/VHOST".to_owned());
        };
        if !matches!(scheme, "amqp" | "amqps") {
            return Err("its scheme is neither amqp nor amqps".to_owned());
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
            return Err("it holds a blank, a newline or a `#`: percent-encode odd characters".to_owned());
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, vhost) = match place.split_once('/') {
            Some((authority, vhost)) => (authority, Some(vhost)),
            None => (place, None),
        };
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if host.is_empty() || host.starts_with(':') {
            return Err("it names no host".to_owned());
        }
        if vhost == Some("") {
            return Err(
                "it ends in `/`, which names a virtual host without a name: write `/%2f` for the usual one"
                    .to_owned(),
            );
        }
        if vhost.is_some_and(|vhost| vhost.contains('/')) {
            return Err("its virtual host holds a `/`: write `%2f`".to_owned());
        }
        check_parameters(query)?;
        // The library's message may quote what it read.
        let mut uri: AMQPUri = text.parse().map_err(|_| {
            "its host, port, user, password or parameters cannot be read: percent-encode odd characters"
                .to_owned()
        })?;
        if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            // The library takes "localhost" for every IPv6 address.
            address.clone_into(&mut uri.authority.host);
        }
        let bytes = *uri.query.frame_max.get_or_insert(FRAME_MAX);
        if !(FRAME_MIN..=FRAME_MAX).contains(&bytes) {
            return Err(format!("its frame_max must be {FRAME_MIN} to {FRAME_MAX} bytes"));
        }
        let seconds = *uri.query.heartbeat.get_or_insert(HEARTBEAT);
        if !(1..=HEARTBEAT_MAX).contains(&seconds) {
            return Err(format!("its heartbeat must be 1 to {HEARTBEAT_MAX} seconds"));
        }
        if uri.query.channel_max.is_some_and(|channels| channels < CHANNELS_MIN) {
            return Err(format!("its channel_max must be at least {CHANNELS_MIN}"));
        }
        Ok(Self { uri })
    }

    /// What the client library gets. Its `Debug` and `Display` show the password: never print it.
    pub(super) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    /// The host, for DNS and for the name in the certificate.
    pub(super) fn host(&self) -> &str {
        &self.uri.authority.host
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.uri.authority.port
    }

    /// Whether TLS is asked for. It is then used, or there is no connection.
    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }
}

impl std::fmt::Display for Endpoint {
    /// Scheme, host and port.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.host();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        write!(formatter, "{}://{host}:{}", self.uri.scheme, self.port())
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Endpoint({self})")
    }
}

/// The library reads five parameters, ignores one of them, and ignores all others, `verify` included.
fn check_parameters(query: &str) -> Result<(), String> {
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split('=').next().unwrap_or_default() {
            "frame_max" | "heartbeat" | "channel_max" | "auth_mechanism" => {}
            "connection_timeout" => {
                return Err("its connection_timeout would be ignored: the limit is fixed".to_owned());
            }
            _ => {
                return Err(
                    "it has a parameter other than frame_max, heartbeat, channel_max and auth_mechanism; \
                     certificates are settings of their own"
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
        assert_eq!(endpoint.to_string(), "amqp://broker:5673");
        let expected = Login { user: "u".into(), vhost: "v/h".into() };
        assert_eq!(login("amqp://u:p%40ss@broker:5673/v%2fh"), Ok(expected));
        assert_eq!(endpoint.uri().authority.userinfo.password, "p@ss");
        assert_eq!(endpoint.uri().query.frame_max, Some(131_072));
        assert_eq!(endpoint.uri().query.heartbeat, Some(HEARTBEAT));
        assert!(!endpoint.is_tls());
        let endpoint = Endpoint::parse("amqps://broker?heartbeat=30&frame_max=16384\n").unwrap();
        assert_eq!((endpoint.port(), endpoint.uri().vhost.as_str(), endpoint.is_tls()), (5671, "/", true));
        assert_eq!(endpoint.uri().query.frame_max, Some(16_384));
        assert_eq!(endpoint.uri().query.heartbeat, Some(30));
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_localhost() {
        let endpoint = Endpoint::parse("amqp://u:p@[::1]:5673/%2f").unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("::1", 5673));
        assert_eq!(endpoint.to_string(), "amqp://[::1]:5673");
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
            ("amqp://u:hunter2@h:port/v", "port"),
            ("amqp://u:hunter2@h:99999/v", "port"),
            ("amqp://u:hunter2@h/", "%2f"),
            ("amqp://u:hunter2@h//", "%2f"),
            ("amqp://u:hunter2/x@h/v", "cannot be read"),
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
            let error = check_uri(uri).expect_err(uri);
            assert!(!error.contains("hunter2"), "{uri}: {error}");
            assert!(error.contains(word) || word == "cannot be read", "{uri}: {error}");
        }
    }

    #[test]
    fn an_endpoint_shows_no_password() {
        let endpoint = Endpoint::parse("amqp://u:hunter2@h/v").unwrap();
        assert!(!format!("{endpoint} {endpoint:?}").contains("hunter2"));
    }
}
