//! Certificate authentication: what a client's certificate says, and what Apple makes of it.
//!
//! Source: Apple, "Establishing a certificate-based connection to APNs". A certificate stands for one app: its subject's
//! `UID` is the bundle id, and an extension of Apple's lists the topics. TLS takes any certificate here, or none; one that
//! is expired, or that an unknown authority has signed, is refused request by request, as `BadCertificate`.

use std::fmt;
use std::sync::Arc;

use p256::pkcs8::der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use p256::pkcs8::der::{Decode, Reader, SliceReader, Tag, Tagged};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::Environment;
use super::rules::Reason;

/// `UID` in a subject (RFC 4519 section 2.39), as it stands in DER.
const UID: &[u8] = &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01];
/// Apple's arc 1.2.840.113635.100.6.3, as it stands in DER.
const APPLE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x63, 0x64, 0x06, 0x03];
/// Below [`APPLE`]: the certificate is good for the sandbox.
pub(super) const SANDBOX: u8 = 1;
/// Below [`APPLE`]: the certificate is good for production.
pub(super) const PRODUCTION: u8 = 2;
/// Below [`APPLE`]: the topics.
pub(super) const TOPICS: u8 = 6;

const YEAR_MS: u64 = 365 * DAY_MS;
const DAY_MS: u64 = 24 * 3_600_000;

/// What a client's certificate says, and whether it is to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The app: the subject's `UID`.
    pub bundle_id: String,
    /// What may stand in `apns-topic`.
    pub topics: Vec<String>,
    /// The one environment it is good for; `None`: both.
    pub environment: Option<Environment>,
    /// Good from then on, in milliseconds since 1970-01-01 UTC.
    pub not_before_ms: u64,
    /// Good until then.
    pub not_after_ms: u64,
    /// Whether the authority that signed it is known.
    pub trusted: bool,
}

impl Certificate {
    /// One as Apple hands out: for an app, its VoIP pushes and its complications, in both environments; from a day
    /// before `now_ms` for a year.
    pub fn new(bundle_id: &str, now_ms: u64) -> Self {
        Self {
            bundle_id: bundle_id.to_owned(),
            topics: ["", ".voip", ".complication"].map(|suffix| format!("{bundle_id}{suffix}")).into(),
            environment: None,
            not_before_ms: now_ms.saturating_sub(DAY_MS),
            not_after_ms: now_ms.saturating_add(YEAR_MS),
            trusted: true,
        }
    }

    /// Whether Apple takes it at that time.
    pub(super) fn check(&self, now_ms: u64) -> Result<(), Reason> {
        let good = self.trusted && (self.not_before_ms..=self.not_after_ms).contains(&now_ms);
        if good { Ok(()) } else { Err(Reason::BadCertificate) }
    }

    /// Reads a certificate's DER. One that says too little is read as far as it goes; what then is missing, fails.
    fn read(der: &[u8], trusted: bool) -> Self {
        let mut read =
            Self { topics: Vec::new(), not_before_ms: 1, not_after_ms: 0, trusted, ..Self::new("", 0) };
        if read.fill(der).is_none() {
            read.trusted = false;
        }
        read
    }

    /// RFC 5280 section 4.1.
    fn fill(&mut self, der: &[u8]) -> Option<()> {
        let certificate = children(AnyRef::from_der(der).ok()?.value())?;
        let to_be_signed = children(certificate.first()?.value())?;
        // The version is explicit in all but the oldest certificates.
        let serial = usize::from(!matches!(to_be_signed.first()?.tag(), Tag::Integer));
        let [validity, subject] = [3, 4].map(|after| to_be_signed.get(serial + after));
        let times = children(validity?.value())?;
        self.not_before_ms = read_time(times.first()?)?;
        self.not_after_ms = read_time(times.get(1)?)?;
        for set in children(subject?.value())? {
            for pair in children(set.value())? {
                if let [name, value] = children(pair.value())?[..]
                    && name.value() == UID
                {
                    self.bundle_id = String::from_utf8(value.value().to_vec()).ok()?;
                }
            }
        }
        let (mut sandbox, mut production) = (false, false);
        for field in &to_be_signed[serial + 5..] {
            let Tag::ContextSpecific { constructed: true, .. } = field.tag() else { continue };
            for extension in children(children(field.value())?.first()?.value())? {
                let parts = children(extension.value())?;
                match parts.first()?.value().strip_prefix(APPLE) {
                    Some([SANDBOX]) => sandbox = true,
                    Some([PRODUCTION]) => production = true,
                    Some([TOPICS]) => self.topics = read_topics(parts.last()?.value())?,
                    _ => {}
                }
            }
        }
        self.environment = match (sandbox, production) {
            (true, false) => Some(Environment::Sandbox),
            (false, true) => Some(Environment::Production),
            _ => None,
        };
        if self.topics.is_empty() && !self.bundle_id.is_empty() {
            self.topics.push(self.bundle_id.clone());
        }
        Some(())
    }
}

/// The topics between which what each is for stands in a sequence of its own.
fn read_topics(extension: &[u8]) -> Option<Vec<String>> {
    let list = children(AnyRef::from_der(extension).ok()?.value())?;
    let texts = list.iter().filter(|entry| entry.tag() == Tag::Utf8String);
    texts.map(|text| String::from_utf8(text.value().to_vec()).ok()).collect()
}

fn read_time(time: &AnyRef<'_>) -> Option<u64> {
    let since = match time.tag() {
        Tag::UtcTime => time.decode_as::<UtcTime>().ok()?.to_unix_duration(),
        _ => time.decode_as::<GeneralizedTime>().ok()?.to_unix_duration(),
    };
    u64::try_from(since.as_millis()).ok()
}

fn children(der: &[u8]) -> Option<Vec<AnyRef<'_>>> {
    let mut reader = SliceReader::new(der).ok()?;
    let mut children = Vec::new();
    while !reader.is_finished() {
        children.push(AnyRef::decode(&mut reader).ok()?);
    }
    Some(children)
}

/// Says whose certificates are to be believed.
#[derive(Debug, Clone, Default)]
pub(super) struct Authority(Option<Arc<dyn ClientCertVerifier>>);

impl Authority {
    /// Believes in what this authority has signed; `None`: in nothing.
    pub(super) fn new(ca_pem: Option<&str>) -> Result<Self, String> {
        let Some(pem) = ca_pem else { return Ok(Self(None)) };
        let wrong =
            |error: &dyn fmt::Display| format!("client_ca_pem: no certificate authority in PEM: {error}");
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self(Some(verifier.map_err(|error| wrong(&error))?)))
    }

    /// Judges what a client has shown in TLS.
    pub(super) fn read(&self, chain: &[CertificateDer<'_>], now_ms: u64) -> Option<Certificate> {
        let (leaf, intermediates) = chain.split_first()?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now_ms));
        let verdict = self.0.as_ref().map(|verifier| verifier.verify_client_cert(leaf, intermediates, now));
        let in_time_or_not = |error: &rustls::Error| {
            use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
            matches!(
                error,
                rustls::Error::InvalidCertificate(
                    Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
                )
            )
        };
        let trusted = match verdict {
            Some(Ok(_)) => true,
            Some(Err(error)) => in_time_or_not(&error), // the time is checked with each request
            None => false,
        };
        Some(Certificate::read(leaf, trusted))
    }
}

/// Lets every client through TLS, with any certificate or none, as long as it has the certificate's key.
#[derive(Debug)]
pub(super) struct AnyClient(Arc<CryptoProvider>);

impl AnyClient {
    pub(super) fn new(provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self(provider))
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
