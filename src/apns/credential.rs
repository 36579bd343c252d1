//! What a worker shows APNs to say who it is: a key that signs provider tokens, or a client certificate.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Reader, SliceReader, Tag, Tagged};

/// Apple's extensions that list the topics of a certificate (Apple, *Sending notification requests to APNs*).
const TOPIC_EXTENSIONS: [ObjectIdentifier; 2] = [
    ObjectIdentifier::new_unwrap("1.2.840.113635.100.6.3.6"),
    ObjectIdentifier::new_unwrap("1.2.840.113635.100.6.3.4"),
];

/// Bytes of a fingerprint that people are shown.
const SHOWN_BYTES: usize = 8;

/// How an app proves to APNs who sends (`[apps.NAME.auth]`), already read and checked. Two apps with the same one share
/// their connections.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Provider tokens, signed with a key of the team.
    Token(ProviderKey),
    /// A client certificate of one app.
    Certificate(ClientCertificate),
}

/// A key that signs provider tokens.
#[derive(Clone)]
pub struct ProviderKey {
    /// `team_id`: ten characters.
    pub team_id: String,
    /// `key_id`: ten characters.
    pub key_id: String,
    /// The P-256 private key from the `.p8` file.
    pub key: p256::SecretKey,
}

/// A client certificate with its chain and its private key.
#[derive(Clone)]
pub struct ClientCertificate {
    identity: Arc<CertifiedKey>,
    fingerprint: [u8; 32],
    chain_digest: [u8; 32],
    not_before: i64,
    not_after: i64,
    topics: Vec<String>,
}

/// Why a certificate and a key are no identity.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// There is no certificate.
    #[error("there is no certificate")]
    Empty,
    /// The first certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// The key is of a kind that TLS cannot use.
    #[error("the key cannot be used: {0}")]
    Key(String),
    /// The key is another certificate's.
    #[error("the key does not belong to the certificate")]
    Mismatch,
    /// The key is a certificate's that stands further down; the place counts from 1.
    #[error("the key belongs to certificate {0}, and its own must come first")]
    Order(usize),
}

/// What tells credentials apart. APNs binds a connection to it, so each has pools of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CredentialName {
    /// Team, key id, and a digest of the public key: another key under the same id is another credential.
    Token { team_id: String, key_id: String, digest: [u8; 32] },
    /// The leaf's fingerprint, and a digest of the whole chain.
    Certificate { fingerprint: [u8; 32], chain_digest: [u8; 32] },
}

impl Credential {
    /// The id of the key that signs; `None` with a certificate.
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Self::Token(key) => Some(&key.key_id),
            Self::Certificate(_) => None,
        }
    }

    /// The certificate; `None` with a key.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        match self {
            Self::Token(_) => None,
            Self::Certificate(certificate) => Some(certificate),
        }
    }

    pub(super) fn name(&self) -> CredentialName {
        match self {
            Self::Token(ProviderKey { team_id, key_id, key }) => {
                let point = key.public_key().to_encoded_point(false);
                let digest = sha256(point.as_bytes());
                CredentialName::Token { team_id: team_id.clone(), key_id: key_id.clone(), digest }
            }
            Self::Certificate(certificate) => CredentialName::Certificate {
                fingerprint: certificate.fingerprint,
                chain_digest: certificate.chain_digest,
            },
        }
    }
}

/// For people: `key KEY1234567 of team TEAM123456`, `certificate 1a2b3c4d5e6f7081`.
impl fmt::Display for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(key) => write!(formatter, "key {} of team {}", key.key_id, key.team_id),
            Self::Certificate(certificate) => {
                write!(formatter, "certificate {}", certificate.short_fingerprint())
            }
        }
    }
}

/// Credentials are equal where APNs would take one for the other.
impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Credential {}

impl fmt::Debug for ProviderKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ProviderKey")
            .field("team_id", &self.team_id)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientCertificate")
            .field("fingerprint", &self.short_fingerprint())
            .finish_non_exhaustive()
    }
}

impl ClientCertificate {
    /// `chain`: the client's own certificate first. The key must be the one that belongs to it.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let leaf = chain.first().ok_or(CertificateError::Empty)?;
        let facts = x509_cert::Certificate::from_der(leaf)
            .map_err(|error| CertificateError::Unreadable(error.to_string()))?;
        let validity = facts.tbs_certificate.validity;
        let topics = facts
            .tbs_certificate
            .extensions
            .iter()
            .flatten()
            .filter(|extension| TOPIC_EXTENSIONS.contains(&extension.extn_id))
            .flat_map(|extension| read_topics(extension.extn_value.as_bytes()).unwrap_or_default())
            .collect();
        let fingerprint = sha256(leaf);
        let chain_digest = sha256(&chain.iter().flat_map(|one| sha256(one)).collect::<Vec<u8>>());
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| CertificateError::Key(error.to_string()))?;
        let identity = CertifiedKey::new(chain, key);
        match identity.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let belongs = |one: &CertificateDer<'static>| {
                    CertifiedKey::new(vec![one.clone()], Arc::clone(&identity.key)).keys_match().is_ok()
                };
                let place = identity.cert.iter().position(belongs);
                return Err(
                    place.map_or(CertificateError::Mismatch, |place| CertificateError::Order(place + 1))
                );
            }
            Err(error) => return Err(CertificateError::Unreadable(error.to_string())),
        }
        let seconds = |time: x509_cert::time::Time| {
            i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
        };
        Ok(Self {
            identity: Arc::new(identity),
            fingerprint,
            chain_digest,
            not_before: seconds(validity.not_before),
            not_after: seconds(validity.not_after),
            topics,
        })
    }

    /// From when on it is valid, Unix seconds.
    pub fn not_before(&self) -> i64 {
        self.not_before
    }

    /// Until when it is valid, Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// The topics that Apple wrote into it; empty where it lists none.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// The beginning of its SHA-256, in hex.
    pub fn short_fingerprint(&self) -> String {
        self.fingerprint[..SHOWN_BYTES].iter().fold(String::new(), |mut text, byte| {
            // Writing to a text cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    pub(super) fn identity(&self) -> &Arc<CertifiedKey> {
        &self.identity
    }
}

/// The topics in Apple's extension: a sequence in which each topic, a text, stands before the kinds of pushes that it is
/// for, a sequence of texts. `None`: it is nothing like that.
fn read_topics(value: &[u8]) -> Option<Vec<String>> {
    let outer = AnyRef::from_der(value).ok().filter(|outer| outer.tag() == Tag::Sequence)?;
    let mut reader = SliceReader::new(outer.value()).ok()?;
    let mut topics = Vec::new();
    while !reader.is_finished() {
        let element = AnyRef::decode(&mut reader).ok()?;
        if element.tag() == Tag::Utf8String {
            topics.push(String::from_utf8(element.value().to_vec()).ok()?);
        }
    }
    Some(topics)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut value = [0; 32];
    value.copy_from_slice(digest(&SHA256, bytes).as_ref());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8, key_id: &str) -> Credential {
        let key = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
        Credential::Token(ProviderKey { team_id: "TEAM123456".into(), key_id: key_id.into(), key })
    }

    fn certificate(extension: Option<&[u8]>) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut parameters = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
        parameters.not_before = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        parameters.not_after = time::OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        if let Some(value) = extension {
            let oid = [1, 2, 840, 113_635, 100, 6, 3, 6];
            let extension = rcgen::CustomExtension::from_oid_content(&oid, value.to_vec());
            parameters.custom_extensions.push(extension);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// As Apple writes them: a topic, then what it is for.
    const TOPICS: &[u8] = b"\x30\x2f\
        \x0c\x0ecom.acme.voice\x30\x05\x0c\x03app\
        \x0c\x0ecom.acme.voice\x30\x06\x0c\x04voip";

    #[test]
    fn another_key_under_the_same_id_is_another_credential() {
        assert_eq!(key(1, "KEY1234567"), key(1, "KEY1234567"));
        assert_ne!(key(1, "KEY1234567"), key(2, "KEY1234567"));
        assert_ne!(key(1, "KEY1234567"), key(1, "KEY7654321"));
    }

    #[test]
    fn a_certificate_says_how_long_it_is_valid_and_what_for() {
        let (leaf, private) = certificate(Some(TOPICS));
        let read = ClientCertificate::new(vec![leaf.clone()], private.clone_key()).unwrap();
        assert_eq!((read.not_before(), read.not_after()), (1_700_000_000, 1_800_000_000));
        assert_eq!(read.topics(), ["com.acme.voice", "com.acme.voice"]);
        assert_eq!(read.short_fingerprint().len(), 16);
        let (other, _) = certificate(None);
        let longer = ClientCertificate::new(vec![leaf, other.clone()], private).unwrap();
        assert_eq!(longer.short_fingerprint(), read.short_fingerprint());
        assert_ne!(Credential::Certificate(longer), Credential::Certificate(read), "another chain");
        for odd in [&b"\x05\x00"[..], b"\x30\x01\x0c", b"", b"text"] {
            assert_eq!(read_topics(odd).unwrap_or_default(), [""; 0], "{odd:?}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ((leaf, _), (_, other)) = (certificate(None), certificate(None));
        let refused = ClientCertificate::new(vec![leaf], other.clone_key()).unwrap_err();
        assert!(matches!(refused, CertificateError::Mismatch), "{refused}");
        let ((own, key), (authority, _)) = (certificate(None), certificate(None));
        let refused = ClientCertificate::new(vec![authority, own], key).unwrap_err();
        assert!(matches!(refused, CertificateError::Order(2)), "{refused}");
        let refused = ClientCertificate::new(Vec::new(), other.clone_key()).unwrap_err();
        assert!(matches!(refused, CertificateError::Empty), "{refused}");
        let refused = ClientCertificate::new(vec![CertificateDer::from(vec![0])], other).unwrap_err();
        assert!(matches!(refused, CertificateError::Unreadable(_)), "{refused}");
    }

    #[test]
    fn nothing_secret_is_printed() {
        let (leaf, private) = certificate(None);
        let bytes = format!("{:?}", &private.secret_der()[40..48]);
        let secret = bytes.trim_matches(['[', ']']).to_owned();
        let read = Credential::Certificate(ClientCertificate::new(vec![leaf], private).unwrap());
        let printed = format!("{read:?} {read} {:?}", key(1, "KEY1234567"));
        assert!(!printed.contains(&secret) && !printed.contains("1, 1, 1"), "{printed}");
    }
}
