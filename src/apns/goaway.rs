//! The reason in a GOAWAY's text, or in that of a connection which was refused. Apple puts the same JSON there as into an answer's body (*Handling notification responses
//! from APNs*); h2 shows it only in the error's text.

use crate::domain::response::Reason;

/// Bytes of a peer's text that are kept.
const TEXT_BYTES_MAX: usize = 200;

/// Words that say that other settings are needed: no new connection will do better.
const CONFIGURATION: [&str; 6] = [
    "BadCertificateEnvironment",
    "BadCertificate",
    "BadEnvironmentKeyIdInToken",
    "BadEnvironmentKeyInToken",
    "Forbidden",
    "InvalidProviderToken",
];

/// TLS's words for a client certificate that the peer does not take (RFC 8446 §6.2), as rustls writes them. In TLS 1.3 they come after
/// the handshake.
const CERTIFICATE_ALERTS: [&str; 7] = [
    "BadCertificate",
    "CertificateExpired",
    "CertificateRequired",
    "CertificateRevoked",
    "CertificateUnknown",
    "UnknownCA",
    "UnsupportedCertificate",
];

/// Further words that get a label of their own.
const OTHERS: [&str; 3] = ["IdleTimeout", "Shutdown", "InternalServerError"];

/// The reason as a label: one of Apple's words, `none` or `other`.
pub(super) fn label(why: &str) -> &'static str {
    if let Some(word) = CONFIGURATION.into_iter().chain(OTHERS).find(|word| why.contains(word)) {
        return word;
    }
    if why.contains("Maximum active streams") {
        return "MaximumStreams";
    }
    let named = Reason::known().iter().any(|reason| why.contains(reason.as_str()));
    if named || why.contains("reason") { "other" } else { "none" }
}

/// Whether the reason says that other settings are needed.
pub(super) fn blames_configuration(why: &str) -> bool {
    CONFIGURATION.iter().any(|word| why.contains(word)) || refuses_certificate(why)
}

/// Whether the peer does not take our client certificate.
pub(super) fn refuses_certificate(why: &str) -> bool {
    why.contains("received fatal alert") && CERTIFICATE_ALERTS.iter().any(|word| why.contains(word))
}

/// A peer's text for a log line or an outcome: bounded, without control characters.
pub(super) fn shorten(why: &str) -> String {
    let mut short: String = why.chars().filter(|c| !c.is_control()).collect();
    if short.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| short.is_char_boundary(*at)).unwrap_or(0);
        short.truncate(end);
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goaway_text_gives_a_label_from_a_closed_set() {
        for (why, is, configuration) in [
            (
                r#"connection error received: not a result of an error (b"{\"reason\":\"Shutdown\"}")"#,
                "Shutdown",
                false,
            ),
            (r#"… (b"{\"reason\":\"BadCertificateEnvironment\"}")"#, "BadCertificateEnvironment", true),
            ("Maximum active streams violated for this endpoint.", "MaximumStreams", false),
            (r#"(b"{\"reason\":\"Whatever\"}")"#, "other", false),
            ("", "none", false),
            ("broken pipe", "none", false),
            ("received fatal alert: CertificateExpired", "none", true),
            ("received fatal alert: UnknownCA", "none", true),
            ("received fatal alert: InternalError", "none", false),
            ("UnknownCA", "none", false),
        ] {
            assert_eq!((label(why), blames_configuration(why)), (is, configuration), "{why}");
        }
    }

    #[test]
    fn a_long_text_is_cut_and_its_control_characters_go() {
        assert_eq!(shorten("a\r\nb\u{1b}c"), "abc");
        let long = shorten(&"ä".repeat(500));
        assert!(long.len() <= TEXT_BYTES_MAX + 3 && long.ends_with('…'), "{long}");
    }
}
