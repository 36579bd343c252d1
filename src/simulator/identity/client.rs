//! The authority that signs clients' certificates, another than the server's.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;

use super::super::Environment;
use super::super::certificate::{Certificate, PRODUCTION, SANDBOX, TOPICS};
use super::{IdentityError, VALIDITY, crypto, encode_pem, now};

const NAME: &str = "Ringcast APNs simulator client CA";
/// `UID` in a subject (RFC 4519 section 2.39).
const UID: [u64; 7] = [0, 9, 2342, 19_200_300, 100, 1, 1];
const APPLE: [u64; 8] = [1, 2, 840, 113_635, 100, 6, 3, 0];
/// 9999-12-31T23:59:59Z: there is no later date in a certificate.
const LAST_MS: u64 = 253_402_300_799_000;
/// DER's tags (X.680 section 8.6).
const UTF8_STRING: u8 = 0x0c;
const SEQUENCE: u8 = 0x30;

/// Certificate and key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// What the client shows.
    pub certificate_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
}

/// The authority; in PEM, as in its files.
#[derive(Clone)]
pub(super) struct Authority {
    pub(super) ca: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn make() -> Result<Self, IdentityError> {
        let made = crypto("make a certificate authority");
        let key = KeyPair::generate().map_err(&made)?;
        let certificate = params()?.self_signed(&key).map_err(&made)?;
        Ok(Self {
            ca: encode_pem("CERTIFICATE", certificate.der())?,
            key: encode_pem("PRIVATE KEY", key.serialized_der())?,
        })
    }

    /// Its key, where the PEM holds one.
    pub(super) fn read_key(&self) -> Option<KeyPair> {
        let der = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).ok()?;
        KeyPair::try_from(&der).ok()
    }

    pub(super) fn issue(&self, certificate: &Certificate) -> Result<Issued, IdentityError> {
        let made = crypto("make a client certificate");
        let key = self.read_key().expect("checked when it was read");
        let issuer = Issuer::new(params()?, key);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::from_oid(&UID), certificate.bundle_id.as_str());
        let name = format!("Apple Push Services: {}", certificate.bundle_id);
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = instant(certificate.not_before_ms);
        params.not_after = instant(certificate.not_after_ms);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let mut add = |below: u8, content: Vec<u8>| {
            let mut oid = APPLE;
            oid[7] = below.into();
            params.custom_extensions.push(CustomExtension::from_oid_content(&oid, content));
        };
        let nothing = || vec![0x05, 0];
        if certificate.environment != Some(Environment::Production) {
            add(SANDBOX, nothing());
        }
        if certificate.environment != Some(Environment::Sandbox) {
            add(PRODUCTION, nothing());
        }
        add(TOPICS, encode_topics(certificate));
        let key = KeyPair::generate().map_err(&made)?;
        let signed = params.signed_by(&key, &issuer).map_err(&made)?;
        Ok(Issued {
            certificate_pem: encode_pem("CERTIFICATE", signed.der())?,
            key_pem: encode_pem("PRIVATE KEY", key.serialized_der())?,
        })
    }
}

fn params() -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(crypto("make a certificate authority"))?;
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.not_before = now() - time::Duration::days(1);
    params.not_after = now() + VALIDITY;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn instant(ms: u64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_millis(ms.min(LAST_MS))
}

/// Each topic, and behind it what it is for: "app", or its suffix's name.
fn encode_topics(certificate: &Certificate) -> Vec<u8> {
    let mut list = Vec::new();
    for topic in &certificate.topics {
        let suffix = topic.strip_prefix(&certificate.bundle_id).and_then(|rest| rest.strip_prefix('.'));
        list.extend(encode(UTF8_STRING, topic.as_bytes()));
        list.extend(encode(SEQUENCE, &encode(UTF8_STRING, suffix.unwrap_or("app").as_bytes())));
    }
    encode(SEQUENCE, &list)
}

/// One value in DER (X.690 section 8.1.3); the contents here stay far below 64 KiB.
fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = match length {
        [0, short @ 0..0x80] => vec![tag, short],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [&head[..], content].concat()
}
