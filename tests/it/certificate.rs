//! A certificate authority for the length of a test, and a server's certificate from it.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::base64;
use crate::broker::Tls;
use crate::place::Place;

/// Makes both for `localhost` and 127.0.0.1, in files whose names begin with `name`.
pub(crate) fn make(place: &Place, name: &str) -> Tls {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    ca.distinguished_name.push(DnType::CommonName, format!("Ringcast tests, {name}"));
    let ca_key = KeyPair::generate().expect("a key can be made");
    let ca = CertifiedIssuer::self_signed(ca, ca_key).expect("a certificate can be signed");

    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = CertificateParams::new(names).expect("the names are valid");
    let key = KeyPair::generate().expect("a key can be made");
    let certificate = server.signed_by(&key, &ca).expect("a certificate can be signed");
    Tls {
        ca_file: place.write(&format!("{name}-ca.pem"), pem("CERTIFICATE", ca.der())),
        cert_file: place.write(&format!("{name}-cert.pem"), pem("CERTIFICATE", certificate.der())),
        key_file: place.write(&format!("{name}-key.pem"), pem("PRIVATE KEY", key.serialized_der())),
        demands_certificate: false,
    }
}

/// RFC 7468: base64 in lines of 64.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
