//! Keys and certificates: what is right, and every mistake by its sentence.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::apns::Credential;

/// A certificate for a key, and what both look like in PEM.
pub(super) fn identity(seed: u8) -> (String, String) {
    let der = PrivateKeyDer::from_pem_slice(pem(seed).as_bytes()).expect("a key in PEM");
    let key = rcgen::KeyPair::try_from(&der).expect("a key");
    let parameters = rcgen::CertificateParams::new(["voip".to_owned()]).expect("a name");
    let certificate = parameters.self_signed(&key).expect("a certificate");
    let certificate = pkcs8::der::pem::encode_string("CERTIFICATE", LineEnding::LF, certificate.der());
    (certificate.expect("PEM"), pem(seed))
}

/// A folder with `voip.pem` and `voip.key`, which belong together, and more.
fn folder(test: &str) -> Folder {
    let folder = Folder::new(test);
    let (certificate, key) = identity(3);
    folder.write("voip.pem", &certificate);
    folder.write("voip.key", &key);
    folder.write("both.pem", &format!("Bag Attributes\n    friendlyName: VoIP\n{key}{certificate}"));
    folder.write("bad.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    folder.write("torn.pem", &certificate[..certificate.len() / 2]);
    folder.write("locked.key", &key.replace("PRIVATE", "ENCRYPTED PRIVATE"));
    let (authority, _) = identity(4);
    folder.write("upside-down.pem", &format!("{authority}{certificate}"));
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
    std::fs::write(folder.0.join("voip.cer"), &der).expect("the test's folder can be written");
    folder.write("odd.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    folder.write("torn.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n");
    folder
}

/// An app with these keys in its `auth`.
fn app(folder: &Folder, auth: &str) -> String {
    let auth = auth.replace("{}", &folder.0.display().to_string());
    format!("[apps.acme]\nbundle_id = \"com.acme.voice\"\n[apps.acme.auth]\n{auth}")
}

#[test]
fn a_certificate_takes_the_place_of_a_key() {
    let folder = folder("certificate");
    let secret = SecretKey::from_slice(&[3; 32]).expect("a scalar");
    folder.write("sec1.key", &secret.to_sec1_pem(LineEnding::LF).expect("PEM"));
    for files in ["voip.pem voip.key", "both.pem both.pem", "voip.pem sec1.key"] {
        let (certificate, key) = files.split_once(' ').expect("two names");
        let text = app(&folder, &format!("cert_file = \"{{}}/{certificate}\"\nkey_file = \"{{}}/{key}\"\n"));
        let config = right(&text, &[]);
        let [production, sandbox] = &config.apns.credentials[0];
        assert!(production.certificate().is_some() && production == sandbox, "{files}: {production:?}");
        assert_eq!(production.key_id(), None);
        let names: Vec<_> = config.files().filter_map(|file| file.file_name()?.to_str()).collect();
        assert_eq!(names, [certificate, key]);
        let [one] = &config.certificates[..] else { panic!("one certificate") };
        assert_eq!(one.place, "apps.acme.auth.cert_file (c.toml:4)");
        assert_eq!((one.app.as_str(), one.topic.as_str()), ("acme", "com.acme.voice.voip"));
    }
}

#[test]
fn the_two_environments_may_differ_in_kind() {
    let folder = folder("kinds");
    let sandbox = "[apps.acme.auth_sandbox]\ncert_file = \"{}/voip.pem\"\nkey_file = \"{}/voip.key\"\n";
    let config = right(&folder.app(&sandbox.replace("{}", &folder.0.display().to_string())), &[]);
    assert!(matches!(config.apns.credentials[0], [Credential::Token(_), Credential::Certificate(_)]));
    assert_eq!(config.certificates[0].place, "apps.acme.auth_sandbox.cert_file (c.toml:5)");
    // A variable may turn what the file says.
    let key_file = folder.0.join("key.p8").display().to_string();
    let config = right(
        &app(&folder, "team_id = \"TEAM123456\"\nkey_id = \"KEY1234567\"\ncert_file = \"{}/none\"\n"),
        &[("RINGCAST__APPS__ACME__AUTH__CERT_FILE", ""), ("RINGCAST__APPS__ACME__AUTH__KEY_FILE", &key_file)],
    );
    assert_eq!(config.apns.credentials[0][0].key_id(), Some("KEY1234567"));
}

/// The keys of an app's `auth`, and the one mistake that they make.
#[rustfmt::skip]
const MISTAKES: &[(&str, &str)] = &[
    ("team_id = \"TEAM123456\"\nkey_id = \"KEY1234567\"\ncert_file = \"{}/voip.pem\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:6): is set beside team_id or key_id; give cert_file and key_file for a certificate, or team_id, key_id and key_file for a key"),
    ("key_id = \"KEY1234567\"\ncert_file = \"{}/voip.pem\"", "apps.acme.auth.cert_file (c.toml:5): is set beside team_id or key_id; give"),
    ("cert_file = \"{}/voip.pem\"", "apps.acme.auth.key_file (c.toml:3): is missing; give the path of the certificate's private key"),
    ("cert_file = \"{}/voip.pem\"\nkey_file = \"{}/key.p8\"", "apps.acme.auth.key_file (c.toml:5): holds a key that does not belong to the certificate in cert_file; give the key that it was requested with"),
    ("cert_file = \"{}/none\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): \"{}/none\" cannot be read: No such file"),
    ("cert_file = \"{}/voip.key\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): \"{}/voip.key\" holds no certificate in PEM; give a file with the certificate"),
    ("cert_file = \"{}/torn.pem\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): \"{}/torn.pem\" is not whole PEM; give"),
    ("cert_file = \"{}/bad.pem\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): holds no certificate that can be used: the certificate cannot be read: "),
    ("cert_file = \"{}/VoIP.P12\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): \"{}/VoIP.P12\" is a PKCS#12 file; turn it into PEM with `openssl pkcs12 -in"),
    ("cert_file = \"-----BEGIN CERTIFICATE-----\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): \"-----BEGIN CERTIFICATE-----\" is the content itself; give the path"),
    ("cert_file = \"{}/voip.pem\"\nkey_file = \"{}/voip.pem\"", "apps.acme.auth.key_file (c.toml:5): \"{}/voip.pem\" holds no private key in PEM; give a file with the certificate's key"),
    ("cert_file = \"{}/voip.pem\"\nkey_file = \"{}/locked.key\"", "apps.acme.auth.key_file (c.toml:5): \"{}/locked.key\" holds a key under a passphrase; take it off with `openssl pkey`"),
    ("cert_file = \"{}/voip.pem\"\nkey_file = \"{}/torn.key\"", "apps.acme.auth.key_file (c.toml:5): \"{}/torn.key\" is not whole PEM; give"),
    ("cert_file = \"{}/upside-down.pem\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): holds as number 2 the certificate that the key belongs to; move that one to the top"),
    ("cert_file = \"{}/voip.cer\"\nkey_file = \"{}/voip.key\"", "apps.acme.auth.cert_file (c.toml:4): \"{}/voip.cer\" is a certificate in DER, as Apple gives it; turn it into PEM with"),
    ("cert_file = \"{}/voip.pem\"\nkey_file = \"{}/odd.key\"", "apps.acme.auth.key_file (c.toml:5): holds a key that TLS cannot use ("),
    ("team_id = \"TEAM123456\"\nkey_id = \"KEY1234567\"\nkey_file = \"{}/voip.pem\"", "apps.acme.auth.key_file (c.toml:6): \"{}/voip.pem\" holds a certificate, not a key; give Apple's file"),
];

#[test]
fn every_mistake_says_what_would_be_right() {
    let folder = folder("certificate-mistakes");
    for (auth, expected) in MISTAKES {
        let found = wrong(&app(&folder, auth), &[]);
        assert_eq!(found.len(), 1, "{auth}\nmakes one mistake, not\n{}", found.join("\n"));
        let expected = expected.replace("{}", &folder.0.display().to_string());
        assert!(found[0].starts_with(&expected), "{auth}\nsays\n{}\nnot\n{expected}", found[0]);
        assert!(!found[0].contains('\n'), "one line: {}", found[0]);
    }
}

#[test]
fn what_a_start_must_take_over_is_told_apart_from_credentials() {
    let folder = Folder::new("differences");
    folder.write("ca.pem", &certificate());
    let before = right(&folder.app("[worker]\nattempts_max = 2\n"), &[]);
    let again = |text: &str| before.differences(&right(text, &[]));
    assert!(again(&folder.app("\n[worker]\n# A word.\nattempts_max = 2\n")).is_empty());
    let text = folder.app(&format!("[apns]\nca_file = \"{}/ca.pem\"\n", folder.0.display()));
    assert_eq!(again(&text), ["worker.attempts_max"], "the roots are taken over at once");
    folder.write("AuthKey_KEY7654321.p8", &pem(2));
    let text = folder.app("[worker]\nattempts_max = 3\n[log]\nformat = \"json\"\n");
    let text = text.replace("KEY1234567", "KEY7654321").replace("key.p8", "AuthKey_KEY7654321.p8");
    assert_eq!(again(&text), ["worker.attempts_max", "log.format"]);
}
