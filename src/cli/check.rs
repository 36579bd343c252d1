//! `ringcast check`: reads everything a worker would read, and says what it found.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use crate::apns::Credential;
use crate::apns::tls::{self, RootError};
use crate::clock::Clock;
use crate::config::{self, Concern, Config, Examined, Mistakes, date, describe_uri};
use crate::domain::app::{App, Environment};

/// Reads the configuration and writes a summary to `out`, or every mistake to `err`, one line each. Gives the configuration
/// where all is right. Errors: one of the two cannot be written.
pub fn run<K, V>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (K, V)>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Option<Config>>
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    match check(file, environment) {
        Ok((config, summary)) => {
            out.write_all(summary.as_bytes())?;
            Ok(Some(config))
        }
        Err(mistakes) => {
            writeln!(err, "{mistakes}")?;
            Ok(None)
        }
    }
}

/// A right configuration and its summary, or its mistakes, a line each. What keeps a worker from its start is among them, and a
/// certificate that APNs or the broker would refuse, though a worker starts with it, for the sake of its other apps, and because
/// it may be replaced.
fn check<K, V>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (K, V)>,
) -> Result<(Config, String), String>
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    let Examined { config, mistakes } = config::examine(file, environment);
    let mut lines: Vec<String> = mistakes.iter().flat_map(Mistakes::lines).map(str::to_owned).collect();
    let mut warnings = String::new();
    if let Some(config) = &config {
        judge_roots(config, &mut lines);
        judge_certificates(config, &mut lines, &mut warnings);
    }
    match config {
        Some(config) if lines.is_empty() => {
            let summary = summarise(&config) + &warnings;
            Ok((config, summary))
        }
        _ => Err(lines.join("\n")),
    }
}

/// Loads what TLS to APNs needs, as a worker does at its start.
fn judge_roots(config: &Config, mistakes: &mut Vec<String>) {
    const KEY: &str = "apns.ca_file";
    // Where that is wrong, it is not known what there would be.
    if mistakes.iter().any(|line| line.starts_with(KEY)) {
        return;
    }
    let loaded = tls::Trust::load(config.apns.ca_file.as_deref()).and_then(|trust| {
        let dials = tls::dials(&config.apns, &trust)?;
        for credentials in &config.apns.credentials {
            for environment in Environment::ALL {
                dials(environment, &credentials[environment.index()])?;
            }
        }
        Ok(())
    });
    match loaded {
        Ok(()) => {}
        Err(error @ RootError::None(_)) => {
            mistakes.push(format!("{KEY}: {error}; install the system's (ca-certificates), or set it"));
        }
        Err(error) => mistakes.push(format!("{KEY}: {error}")),
    }
}

fn judge_certificates(config: &Config, mistakes: &mut Vec<String>, warnings: &mut String) {
    let now = Clock::system().unix_ms();
    let of_apps = config.certificates.iter().map(|one| (&one.place, one.concern(now)));
    let of_broker = config.broker_certificate.iter().map(|one| (&one.place, one.concern(now)));
    for (place, concern) in of_apps.chain(of_broker) {
        match concern {
            Some(Concern::Mistake(what)) => mistakes.push(format!("{place}: {what}")),
            // Writing to a text cannot fail.
            Some(Concern::Warning(what)) => _ = writeln!(warnings, "warning: {place}: {what}"),
            None => {}
        }
    }
}

/// What the worker would do, on a few lines: apps with topic, environment and key, endpoints, queues. Holds no secret.
pub fn summarise(config: &Config) -> String {
    let mut lines = String::new();
    let mut line = |text: String| {
        // Writing to a `String` cannot fail.
        let _ = writeln!(lines, "{text}");
    };
    let count = config.apps.len();
    line(format!("The configuration is right: {count} app{}.", if count == 1 { "" } else { "s" }));
    for app in &config.apps {
        line(format!("app {}: {}", app.name, describe_app(app, &config.apns.credentials[app.index])));
    }
    for environment in Environment::ALL {
        let endpoint = config.apns.endpoint(environment);
        line(format!("apns {}: {} port {}", environment.as_str(), endpoint.host, endpoint.port));
    }
    if let Some(proxy) = &config.apns.proxy {
        let login = if proxy.credentials_file.is_some() { ", with a login" } else { "" };
        line(format!("apns proxy: {} port {}{login}", proxy.place.host, proxy.place.port));
    }
    line(format!("amqp: {}", describe_broker(config)));
    let priority = match config.amqp.consumer_priority {
        0 => String::new(),
        priority => format!(", consumer priority {priority}"),
    };
    let queues = config.amqp.invites.join(", ");
    let each = match config.shards {
        1 => String::new(),
        shards => format!(" by each of {shards} shards"),
    };
    line(format!("invites from: {queues}, {} at once{each}{priority}", config.amqp.prefetch));
    let copies = if config.amqp.live { ", copied to ringcast.live" } else { "" };
    line(format!("results to: {}{copies}", config.amqp.results_exchange));
    line(format!("worker: {}", config.worker.name));
    line(format!("admin: {}", config.admin.listen));
    lines
}

fn describe_broker(config: &Config) -> String {
    let uri = describe_uri(&config.amqp.uri);
    let hosts = match &config.amqp.hosts[..] {
        [] => String::new(),
        hosts => format!(", or {}", hosts.join(", ")),
    };
    let certificate = config.broker_certificate.as_ref().map(|one| {
        let (name, end) = (one.certificate.short_fingerprint(), date(one.certificate.not_after()));
        format!(", showing certificate {name}, valid until {end}")
    });
    uri + &hosts + &certificate.unwrap_or_default()
}

fn describe_app(app: &App, credentials: &[Credential; 2]) -> String {
    let [production, sandbox] = credentials;
    let describe = |credential: &Credential| match credential.certificate() {
        Some(certificate) => format!("{credential}, valid until {}", date(certificate.not_after())),
        None => credential.to_string(),
    };
    let keys = if production == sandbox {
        describe(production)
    } else {
        format!("{}, in the sandbox {}", describe(production), describe(sandbox))
    };
    format!("topic {}, {} unless a device says otherwise, {keys}", app.topic(), app.environment.as_str())
}

#[cfg(test)]
mod tests {
    use p256::SecretKey;
    use p256::pkcs8::der::pem::encode_string;
    use p256::pkcs8::{EncodePrivateKey as _, LineEnding};

    use super::*;

    fn checked(variables: &[(&str, &str)]) -> (bool, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let right = run(None, variables.iter().copied(), &mut out, &mut err).expect("memory can be written");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (right.is_some(), text(out), text(err))
    }

    #[test]
    fn a_right_configuration_is_summed_up_without_its_secrets() {
        let folder = std::env::temp_dir().join(format!("ringcast-check-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let key =
            SecretKey::from_slice(&[7; 32]).expect("a scalar").to_pkcs8_pem(LineEnding::LF).expect("PEM");
        let path = folder.join("key.p8");
        std::fs::write(&path, key.as_bytes()).expect("a file");
        let path = path.display().to_string();
        let login = folder.join("login");
        std::fs::write(&login, "me:hush").expect("a file");
        let login = login.display().to_string();
        let (right, out, err) = checked(&[
            ("HOSTNAME", "ringcast-7c9f"),
            ("RINGCAST__AMQP__URI", "amqps://me:hush@broker/calls"),
            ("RINGCAST__AMQP__HOSTS", r#"["broker-2", "broker-3:5673"]"#),
            ("RINGCAST__AMQP__CONSUMER_PRIORITY", "-5"),
            ("RINGCAST__WORKER__SHARDS", "4"),
            ("RINGCAST__APNS__PROXY", "http://proxy.internal:3128"),
            ("RINGCAST__APNS__PROXY_CREDENTIALS_FILE", &login),
            ("RINGCAST__APPS__ACME__BUNDLE_ID", "com.acme.voice"),
            ("RINGCAST__APPS__ACME__AUTH__TEAM_ID", "TEAM123456"),
            ("RINGCAST__APPS__ACME__AUTH__KEY_ID", "KEY1234567"),
            ("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &path),
            ("RINGCAST__APPS__ACME__AUTH_SANDBOX__TEAM_ID", "TEAM123456"),
            ("RINGCAST__APPS__ACME__AUTH_SANDBOX__KEY_ID", "KEY7654321"),
            ("RINGCAST__APPS__ACME__AUTH_SANDBOX__KEY_FILE", &path),
        ]);
        std::fs::remove_dir_all(&folder).expect("a folder to remove");
        assert!(right, "{err}");
        assert_eq!(
            out,
            "The configuration is right: 1 app.\n\
             app acme: topic com.acme.voice.voip, production unless a device says otherwise, key KEY1234567 of team TEAM123456, in the sandbox key KEY7654321 of team TEAM123456\n\
             apns production: api.push.apple.com port 443\n\
             apns sandbox: api.sandbox.push.apple.com port 443\n\
             apns proxy: proxy.internal port 3128, with a login\n\
             amqp: amqps://me:***@broker:5671, vhost \"calls\", or broker-2, broker-3:5673\n\
             invites from: ringcast.invites, 500 at once by each of 4 shards, consumer priority -5\n\
             results to: ringcast.results\n\
             worker: ringcast-7c9f\n\
             admin: 0.0.0.0:9090\n"
        );
        assert_eq!(err, "");
    }

    #[test]
    fn an_expired_certificate_stands_among_the_other_mistakes() {
        let folder = std::env::temp_dir().join(format!("ringcast-check-expired-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut parameters = rcgen::CertificateParams::new(vec!["voip".to_owned()]).expect("a name");
        parameters.not_after = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let path = folder.join("both.pem");
        let pem = |label, der: &[u8]| encode_string(label, LineEnding::LF, der).expect("PEM");
        let text = pem("CERTIFICATE", certificate.der()) + &pem("PRIVATE KEY", &key.serialize_der());
        std::fs::write(&path, text).expect("a file");
        let path = path.display().to_string();
        let (right, _, err) = checked(&[
            ("RINGCAST__AMQP__PREFETCH", "0"),
            ("RINGCAST__APPS__ACME__BUNDLE_ID", "com.acme.voice"),
            ("RINGCAST__APPS__ACME__AUTH__CERT_FILE", &path),
            ("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &path),
        ]);
        std::fs::remove_dir_all(&folder).expect("a folder to remove");
        assert!(!right);
        let lines: Vec<&str> = err.lines().collect();
        assert_eq!(lines.len(), 2, "{err}");
        assert!(lines[0].starts_with("amqp.prefetch (RINGCAST__AMQP__PREFETCH): 0 is out of range"), "{err}");
        assert!(
            lines[1].starts_with("apps.acme.auth.cert_file (RINGCAST__APPS__ACME__AUTH__CERT_FILE): "),
            "{err}"
        );
        assert!(lines[1].contains("expired on 2023-11-14"), "{err}");
    }

    #[test]
    fn mistakes_go_to_the_other_side_one_line_each() {
        let (right, out, err) = checked(&[("RINGCAST__AMQP__PREFETCH", "0"), ("RINGCAST__AMQP__LIVE", "on")]);
        assert!(!right);
        assert_eq!(out, "");
        let keys: Vec<&str> = err.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
        assert_eq!(keys, ["amqp.live", "amqp.prefetch", "apps"]);
    }
}
