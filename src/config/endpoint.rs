//! `[apns]`: where Apple's environments are, and how connections to them are kept.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::pem;
use super::reader::Reader;
use crate::apns::Endpoint;
use crate::domain::app::Environment;

/// Apple's hosts by environment (Apple, *Sending notification requests to APNs*). A token that reaches the wrong one is
/// answered like a bad token, so a mix-up would condemn every good token.
const APPLES: [(&str, Environment); 3] = [
    ("api.push.apple.com", Environment::Production),
    ("api.sandbox.push.apple.com", Environment::Sandbox),
    ("api.development.push.apple.com", Environment::Sandbox),
];

/// `[apns]` without the credentials.
pub(super) struct Endpoints {
    pub(super) places: [Endpoint; 2],
    pub(super) ca_file: Option<PathBuf>,
    pub(super) connections: RangeInclusive<usize>,
    pub(super) request_timeout: Duration,
    pub(super) reload_interval: Duration,
}

pub(super) fn read(reader: &mut Reader) -> Endpoints {
    let mut apns = reader.section(&["apns"]);
    let places =
        Environment::ALL.map(|environment| apns.text(environment.as_str(), |text| parse(text, environment)));
    apns.not_built("proxy", "leave it empty and let the worker reach the hosts of APNs directly");
    let least = apns.number("connections", 1..=64, "a pool of more is another pod");
    let most = apns.number("connections_max", 1..=64, "a pool of more is another pod");
    if most < least {
        // The place to point at is the one that somebody wrote.
        let (key, right) = if apns.is_set("connections_max") {
            ("connections_max", format!("is less than connections = {least}; give {least} or more"))
        } else {
            ("connections", format!("is more than connections_max = {most}; raise that as well"))
        };
        apns.refuse(key, &right);
    }
    Endpoints {
        places,
        ca_file: apns.text("ca_file", pem::trust_root),
        connections: least..=most,
        request_timeout: apns.duration(
            "request_timeout",
            Duration::from_millis(100)..=Duration::from_mins(1),
            "APNs answers within seconds or not at all",
        ),
        reload_interval: apns.duration(
            "reload_interval",
            Duration::ZERO..=Duration::from_hours(1),
            "who replaces a key waits for it to be used",
        ),
    }
}

fn parse(text: &str, environment: Environment) -> Result<Endpoint, String> {
    let wrong =
        |what: &str| Err(format!("{what}; give https://HOST or https://HOST:PORT and nothing after it"));
    let Some(rest) = text.strip_prefix("https://") else {
        return wrong("does not begin with https://");
    };
    if rest.contains(['/', '?', '#']) {
        return wrong("has a path");
    }
    if rest.contains('@') {
        return wrong("has a user or password");
    }
    let Ok(uri) = text.parse::<Uri>() else {
        return wrong("is not a URI");
    };
    let host = uri.host().unwrap_or_default();
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let named = |host: &str| {
        let label = |label: &str| !label.is_empty() && label.len() <= 63;
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
        host.len() <= 253 && host.chars().all(letter) && host.trim_end_matches('.').split('.').all(label)
    };
    let host = match bracketed {
        Some(address) if matches!(address.parse(), Ok(IpAddr::V6(_))) => address,
        None if named(host) => host,
        _ => return wrong("has no host name or address"),
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let port = match (uri.port_u16(), authority.rsplit_once(':').filter(|_| !authority.ends_with(']'))) {
        (Some(port), _) if port > 0 => port,
        (None, None) => 443,
        _ => return wrong("has no port from 1 to 65535"),
    };
    let bare = host.trim_end_matches('.').to_ascii_lowercase();
    if let Some((_, apples)) = APPLES.iter().find(|(name, _)| *name == bare)
        && *apples != environment
    {
        let apples = apples.as_str();
        return Err(format!(
            "is Apple's {apples} environment, where tokens of the other one look bad; give the right host"
        ));
    }
    Ok(Endpoint { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str) -> Result<(String, u16), String> {
        parse(text, Environment::Production).map(|endpoint| (endpoint.host, endpoint.port))
    }

    #[test]
    fn hosts_and_ports() {
        assert_eq!(place("https://api.push.apple.com"), Ok(("api.push.apple.com".to_owned(), 443)));
        assert_eq!(place("https://localhost:2197"), Ok(("localhost".to_owned(), 2197)));
        assert_eq!(place("https://127.0.0.1:1"), Ok(("127.0.0.1".to_owned(), 1)));
        assert_eq!(place("https://[::1]:8443"), Ok(("::1".to_owned(), 8443)));
        assert_eq!(place("https://[::1]"), Ok(("::1".to_owned(), 443)));
    }

    #[test]
    fn nothing_else_is_an_endpoint() {
        for wrong in [
            "",
            "api.push.apple.com",
            "http://api.push.apple.com",
            "https://",
            "https://:443",
            "https://host/",
            "https://host/3/device",
            "https://host?x",
            "https://me:pw@host",
            "https://host:0",
            "https://host:",
            "https://host:65536",
            "https://ho st",
            "https://[::1",
            "https://[localhost]",
            "https://a..b",
            "https://api.sandbox.push.apple.com",
            "https://API.Development.push.apple.com.:443",
        ] {
            assert!(place(wrong).is_err(), "{wrong:?} gave {:?}", place(wrong));
        }
        assert!(parse("https://api.push.apple.com", Environment::Sandbox).is_err());
        assert!(parse("https://api.sandbox.push.apple.com", Environment::Sandbox).is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(https://)?\\PC*") {
            let _ = place(&text);
        }
    }
}
