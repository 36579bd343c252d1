//! What is wrong with a configuration: all of it at once, one line each, and never a secret.

use std::fmt;
use std::net::Ipv6Addr;

use super::source::{Origin, Path};

/// Every mistake in a configuration: those of the file in its order, then those of the environment by variable. Displayed
/// as one line each: `apps.acme.bundle_id (config.toml:12): what is wrong; what would be right`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

/// One line of a [`Mistakes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    rank: Rank,
    line: String,
}

/// Where a mistake stands among the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    File { offset: usize },
    Environment { variable: String },
    Whole,
}

impl Mistakes {
    /// Puts mistakes in order. There must be at least one.
    pub(super) fn new(mut mistakes: Vec<Mistake>) -> Self {
        debug_assert!(!mistakes.is_empty(), "a refusal says why");
        mistakes.sort_by(|one, other| one.rank.cmp(&other.rank));
        mistakes.dedup();
        Self(mistakes)
    }

    /// Each mistake as one line, without its newline.
    pub fn lines(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|mistake| mistake.line.as_str())
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(formatter, "{newline}{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl Mistake {
    /// Whether it is about one of these sections, or a key in one.
    pub(super) fn is_of(&self, sections: &[&str]) -> bool {
        let key = self.line.split([' ', ':']).next().unwrap_or_default();
        sections.contains(&key.split('.').next().unwrap_or_default())
    }

    /// Something about a key: where it was set, and `what is wrong; what would be right`.
    pub(super) fn at(path: &Path, origin: &Origin, what: &str) -> Self {
        let rank = match origin {
            Origin::File { offset, .. } => Rank::File { offset: *offset },
            Origin::Environment { variable } => Rank::Environment { variable: variable.clone() },
            Origin::Default | Origin::Nowhere => Rank::Whole,
        };
        Self { rank, line: format!("{path} ({origin}): {what}") }
    }

    /// Something about the file itself. `place`: its name, with line and column where they are known.
    pub(super) fn in_file(place: &str, offset: usize, what: &str) -> Self {
        Self { rank: Rank::File { offset }, line: format!("{place}: {what}") }
    }
}

/// A value as a mistake may show it: quoted, on one line, at most 80 characters, without what looks like a secret.
pub(super) fn show(value: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let key_like = value.contains("PRIVATE KEY") || (value.starts_with("MI") && value.len() > 60);
    if key_like {
        return "(not shown: it looks like a private key)".to_owned();
    }
    let masked = mask(value);
    let mut shown: String = masked.chars().take(CHARACTERS_MAX).collect();
    if shown.len() < masked.len() {
        shown.push('…');
    }
    format!("\"{}\"", shown.escape_debug())
}

/// A host with a port as a mistake may show it: who writes a login there may leave off its `@`, too.
pub(super) fn show_host(text: &str) -> String {
    if text.contains("://") || text.contains('@') { show(text) } else { show(&mask_port(text)) }
}

/// Everything before the last `@`, the scheme left aside, may be a name and a password; so may what stands in a URL where a
/// port belongs.
fn mask(value: &str) -> String {
    let is_scheme = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let (scheme, rest) = match value.find("://") {
        Some(end) if is_scheme(&value[..end]) => value.split_at(end + 3),
        _ => ("", value),
    };
    match rest.rfind('@') {
        Some(at) => format!("{scheme}***{}", &rest[at..]),
        None if scheme.is_empty() => value.to_owned(),
        None => format!("{scheme}{}", mask_port(rest)),
    }
}

/// `HOST:PORT` and what follows it, without a port that is no number.
fn mask_port(place: &str) -> String {
    let (authority, rest) = place.split_at(place.find(['/', '?', '#']).unwrap_or(place.len()));
    match authority.split_once(':') {
        Some((host, port))
            if !host.starts_with('[')
                && !port.bytes().all(|byte| byte.is_ascii_digit())
                && authority.parse::<Ipv6Addr>().is_err() =>
        {
            format!("{host}:***{rest}")
        }
        _ => place.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_not_shown() {
        assert_eq!(show("https://me:pa@ss@host/x"), "\"https://***@host/x\"");
        assert_eq!(show("https://host"), "\"https://host\"");
        assert_eq!(show("me:pa@ss@host"), "\"***@host\"");
        assert_eq!(show("[me:pass@host, amqp://me:pass@host]"), "\"***@host]\"");
        assert_eq!(show("https://me:pass/x"), "\"https://me:***/x\"");
        assert_eq!(show("https://[::1]:2197/x"), "\"https://[::1]:2197/x\"");
        for text in ["host:5672", "::1", "[::1]:5672", "amqp://host"] {
            assert_eq!(show_host(text), format!("\"{text}\""));
        }
        for text in ["me:pass", "me:pass@host", "amqp://me:pass"] {
            assert!(!show_host(text).contains("pass"), "{}", show_host(text));
        }
        assert!(!show("-----BEGIN PRIVATE KEY-----\nMIGT").contains("MIGT"));
        assert!(!show(&format!("MIGTAgEAMBMGByqGSM49{}", "Zm9v".repeat(20))).contains("Zm9v"));
    }

    #[test]
    fn a_value_stays_on_one_short_line() {
        assert_eq!(show("a\nb\"c"), r#""a\nb\"c""#);
        assert_eq!(show(&"é".repeat(200)).chars().count(), 80 + 3);
    }
}
