//! TLS to the broker: whom to trust, what to show, and what a refusal means.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::{ClientFiles, Error, Settings};

/// Reads the certificates to believe, the machine's own and those of `amqp.ca_file`, and the client certificate if there is
/// one. It reads files, so it runs where blocking is allowed.
pub(super) async fn connector(settings: &Settings) -> Result<TlsConnector, Error> {
    let (ca_file, client) = (settings.ca_file.clone(), settings.client.clone());
    let read = move || configure(ca_file.as_deref(), client.as_ref());
    let config = tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|died| Err(Error::Configuration(format!("TLS cannot be set up: {died}"))))?;
    Ok(TlsConnector::from(Arc::new(config)))
}

fn configure(ca_file: Option<&Path>, client: Option<&ClientFiles>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of both versions")
        .with_root_certificates(read_roots(ca_file)?);
    let Some(client) = client else { return Ok(builder.with_no_client_auth()) };
    let chain = read_certificates("amqp.client_cert_file", &client.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&client.key_file).map_err(|error| {
        wrong("amqp.client_key_file", &client.key_file, &format!("cannot be read: {error}"))
    })?;
    builder.with_client_auth_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong(
            "amqp.client_key_file",
            &client.key_file,
            "holds a key that does not belong to the certificate in amqp.client_cert_file",
        ),
        error => wrong("amqp.client_cert_file", &client.cert_file, &format!("cannot be used: {error}")),
    })
}

fn read_roots(ca_file: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        for certificate in read_certificates("amqp.ca_file", file)? {
            roots.add(certificate).map_err(|error| {
                wrong("amqp.ca_file", file, &format!("holds a certificate that is none: {error}"))
            })?;
        }
    }
    if roots.is_empty() {
        return Err(Error::Configuration(
            "no trusted certificates: the machine has none; set amqp.ca_file to the broker's CA".to_owned(),
        ));
    }
    Ok(roots)
}

fn read_certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(key, file, &format!("cannot be read: {error}")))?;
    if certificates.is_empty() {
        return Err(wrong(key, file, "holds no certificate"));
    }
    Ok(certificates)
}

fn wrong(key: &str, file: &Path, what: &str) -> Error {
    Error::Configuration(format!("{key} {} {what}", file.display()))
}

/// Why there is no TLS, with the setting to mend; `None` where the error is not one of TLS. The peer's refusal of a client
/// certificate comes in TLS 1.3 only after the handshake, with what is read first. `shows_certificate`: whether one is shown.
pub(super) fn explain(error: &io::Error, shows_certificate: bool) -> Option<String> {
    Some(match said(error)? {
        rustls::Error::InvalidCertificate(error) => explain_certificate(error),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert, shows_certificate),
        rustls::Error::InvalidMessage(_) => {
            "no TLS: what answers there does not speak it; give the port for amqps (5671 as a rule)"
                .to_owned()
        }
        error => format!("no TLS: {error}"),
    })
}

/// What TLS said, where it is why a stream failed.
pub(super) fn said(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn explain_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "the broker's certificate comes from a CA that is not trusted here; put that CA's certificate into amqp.ca_file".to_owned()
        }
        CertificateError::NotValidForName => {
            "the broker's certificate is for another host name; give the name that it holds in amqp.uri or amqp.hosts".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the broker's certificate is not for \"{}\" but for {}; give the name that it holds in amqp.uri or amqp.hosts",
            expected.to_str(),
            presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", ")
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the broker's certificate has expired; renew it at the broker, or set this machine's clock right".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the broker's certificate is not valid yet; set this machine's clock right, or the broker's certificate".to_owned()
        }
        error => format!("the broker's certificate cannot be trusted: {error}"),
    }
}

/// A name as people write it, out of `DnsName("localhost")` or `IpAddress(127.0.0.1)`, as the TLS library lists those of a
/// certificate.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.map_or(name, |inner| inner.trim_matches('"'))
}

fn explain_alert(alert: AlertDescription, shows_certificate: bool) -> String {
    const SHOW: &str = "set amqp.client_cert_file and amqp.client_key_file";
    let what = match (alert, shows_certificate) {
        (AlertDescription::CertificateRequired | AlertDescription::NoCertificate, _) => {
            return format!("the broker demands a client certificate; {SHOW}");
        }
        // The two by which TLS 1.2 turns away who shows none.
        (AlertDescription::HandshakeFailure | AlertDescription::BadCertificate, false) => {
            return format!(
                "the broker broke the TLS handshake off ({alert:?}), as it does where it demands a client certificate; {SHOW}"
            );
        }
        (AlertDescription::CertificateExpired, true) => "says that it has expired; renew it",
        (AlertDescription::UnknownCA, true) => {
            "does not know its CA; show one from a CA that the broker trusts, or let it trust that CA"
        }
        (AlertDescription::CertificateRevoked, true) => "says that it is revoked; renew it",
        (
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::HandshakeFailure,
            true,
        ) => {
            return format!(
                "the broker refuses the client certificate in amqp.client_cert_file ({alert:?}); show one that it trusts"
            );
        }
        (alert, _) => return format!("no TLS: the broker broke it off ({alert:?})"),
    };
    format!("the broker refuses the client certificate in amqp.client_cert_file: it {what}")
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn the_names_in_a_certificate_are_told_as_people_write_them() {
        let error = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.internal").unwrap(),
            presented: ["DnsName(\"b.internal\")", "IpAddress(127.0.0.1)", "c"].map(str::to_owned).into(),
        };
        assert_eq!(
            explain_certificate(&error),
            "the broker's certificate is not for \"a.internal\" but for b.internal, 127.0.0.1, c; give the name that it holds in amqp.uri or amqp.hosts"
        );
    }
}
