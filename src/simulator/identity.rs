//! Who the simulator is: a throw-away certificate authority, a server certificate, and a provider signing key.
//!
//! In a folder it is `ca.pem` (what a client trusts), `server.pem` and `server.key` (what TLS is served with),
//! `AuthKey_<key id>.p8` (what a client signs provider tokens with: PKCS#8 in PEM, as Apple's downloads are), and
//! `client-ca.pem` and `client-ca.key` (what clients' certificates are signed with). None of it is worth protecting
//! beyond the file modes: the server authority's own key is thrown away once it has signed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::pkcs8::der::pem;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use time::{Duration, OffsetDateTime};

use super::certificate::{AnyClient, Certificate};
use super::provider_token::is_apple_id;
use super::wall;

mod client;

use client::Authority;
pub use client::Issued;

/// The names every server certificate is good for. Apple's own are not among them, on purpose.
const SERVER_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// How long certificates are good for. Nothing renews them but a removed folder.
const VALIDITY: Duration = Duration::days(3650);

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is there and is not what its name says.
    #[error("{path}: {what}; remove the file to have it made anew")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// Some of the files that belong together are missing.
    #[error(
        "{missing}: missing, while {present} is there; put it back, or remove what belongs with it (ca.pem, server.pem and server.key; client-ca.pem and client-ca.key) to have it made anew"
    )]
    Incomplete {
        /// A file that is missing.
        missing: PathBuf,
        /// A file that is there.
        present: PathBuf,
    },
    /// What clients shall dial is no host name.
    #[error("{0:?} is no host name or address, as in ringcast-simulator or 10.0.0.7")]
    Name(String),
    /// The key id could not be a file's name.
    #[error("key id {0:?}: Apple's are ten letters or digits, as in AuthKey_KEY1234567.p8")]
    KeyId(String),
    /// Making or using keys and certificates failed.
    #[error("cannot {what}: {error}")]
    Crypto {
        /// Doing what.
        what: &'static str,
        /// Why.
        error: String,
    },
}

/// The public half of a signing key, as Apple keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey([u8; 65]);

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyingKey({:02x}{:02x}…)", self.0[1], self.0[2])
    }
}

impl VerifyingKey {
    /// From an uncompressed point on P-256 (SEC 1): `04`, x, y. `None` when it is no such thing.
    pub fn from_sec1(point: &[u8]) -> Option<Self> {
        let key = p256::PublicKey::from_sec1_bytes(point).ok()?;
        key.to_encoded_point(false).as_bytes().try_into().ok().map(Self)
    }

    /// From a signing key as Apple hands it out (`.p8`, PKCS#8 in PEM). `None` when it is no such thing.
    pub fn from_p8(text: &str) -> Option<Self> {
        let key = p256::SecretKey::from_pkcs8_pem(text).ok()?;
        key.public_key().to_encoded_point(false).as_bytes().try_into().ok().map(Self)
    }

    pub(super) fn as_sec1(&self) -> &[u8] {
        &self.0
    }
}

/// Certificate, keys and what they are served with.
#[derive(Clone)]
pub struct Identity {
    ca_pem: String,
    p8_pem: String,
    verifying_key: VerifyingKey,
    server_config: Arc<ServerConfig>,
    authority: Authority,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("verifying_key", &self.verifying_key).finish_non_exhaustive()
    }
}

impl Identity {
    /// A new one, in memory only.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        let (tls, authority) = (Tls::make(&[])?, Authority::make()?);
        let path = Path::new("(in memory)");
        Self::assemble(&tls, make_p8()?, authority, [path; 6])
    }

    /// The identity in `dir`, with the signing key called `key_id`; folder and files are made where they are missing.
    /// The three TLS files are made together or not at all, and so are the two of the clients' authority; a signing key
    /// is made for each new `key_id`.
    pub fn open_or_create(dir: &Path, key_id: &str) -> Result<Self, IdentityError> {
        Self::open_or_create_for(dir, key_id, &[])
    }

    /// The same, with a server certificate that is good for further host names or addresses, beside `localhost`. One that
    /// is there and is not good for them is a mistake.
    pub fn open_or_create_for(dir: &Path, key_id: &str, names: &[String]) -> Result<Self, IdentityError> {
        if !is_apple_id(key_id) {
            return Err(IdentityError::KeyId(key_id.to_owned()));
        }
        if let Some(wrong) = names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
            return Err(IdentityError::Name(wrong.clone()));
        }
        fs::create_dir_all(dir).map_err(at(dir))?;
        let paths = ["server.key", "server.pem", "ca.pem", "client-ca.key", "client-ca.pem"];
        let [key, chain, ca, client_key, client_ca] = paths.map(|name| dir.join(name));

        let tls = if are_there(&[&key, &chain, &ca])? {
            let tls = Tls { key: read(&key)?, chain: read(&chain)?, ca: read(&ca)? };
            if let Some(name) = names.iter().find(|name| !tls.is_good_for(name)) {
                let what = format!(
                    "is not good for {name}, and neither are the ca.pem and server.key that go with it"
                );
                return Err(IdentityError::Content { path: chain, what });
            }
            tls
        } else {
            let tls = Tls::make(names)?;
            write(&key, &tls.key, 0o600)?;
            write(&chain, &tls.chain, 0o644)?;
            write(&ca, &tls.ca, 0o644)?;
            tls
        };
        let authority = if are_there(&[&client_key, &client_ca])? {
            Authority { key: read(&client_key)?, ca: read(&client_ca)? }
        } else {
            let authority = Authority::make()?;
            write(&client_key, &authority.key, 0o600)?;
            write(&client_ca, &authority.ca, 0o644)?;
            authority
        };
        let p8 = dir.join(format!("AuthKey_{key_id}.p8"));
        let p8_pem = open_or_make_p8(&p8)?;
        Self::assemble(&tls, p8_pem, authority, [&key, &chain, &ca, &p8, &client_key, &client_ca])
    }

    /// The public half of another signing key in `dir`: of `AuthKey_<key id>.p8`, which is made where it is missing.
    pub fn open_or_create_key(dir: &Path, key_id: &str) -> Result<VerifyingKey, IdentityError> {
        if !is_apple_id(key_id) {
            return Err(IdentityError::KeyId(key_id.to_owned()));
        }
        let path = dir.join(format!("AuthKey_{key_id}.p8"));
        read_p8(&path, &open_or_make_p8(&path)?)
    }

    fn assemble(
        tls: &Tls,
        p8_pem: String,
        authority: Authority,
        [key, chain, ca, p8, client_key, client_ca]: [&Path; 6],
    ) -> Result<Self, IdentityError> {
        let content =
            |path: &Path, what: &str| IdentityError::Content { path: path.into(), what: what.into() };
        for (path, pem) in [(ca, &tls.ca), (client_ca, &authority.ca)] {
            if CertificateDer::from_pem_slice(pem.as_bytes()).is_err() {
                return Err(content(path, "holds no certificate in PEM"));
            }
        }
        if authority.read_key().is_none() {
            return Err(content(client_key, "holds no private key in PEM"));
        }
        let certificates = CertificateDer::pem_slice_iter(tls.chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| content(chain, "holds no certificate in PEM"))?;
        let private_key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes())
            .map_err(|_| content(key, "holds no private key in PEM"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server_config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(crypto("set up TLS"))?
            .with_client_cert_verifier(AnyClient::new(provider))
            .with_single_cert(certificates, private_key)
            .map_err(|error| content(chain, &format!("does not go with {}: {error}", key.display())))?;
        server_config.alpn_protocols = vec![b"h2".to_vec()];
        let verifying_key = read_p8(p8, &p8_pem)?;
        let (ca_pem, server_config) = (tls.ca.clone(), Arc::new(server_config));
        Ok(Self { ca_pem, p8_pem, verifying_key, server_config, authority })
    }

    /// The certificate a client must trust, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The signing key, as Apple would have handed it out.
    pub fn p8_pem(&self) -> &str {
        &self.p8_pem
    }

    /// The signing key's public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.verifying_key.clone()
    }

    /// What clients' certificates are signed with, in PEM: for [`Options::client_ca_pem`](super::Options::client_ca_pem).
    pub fn client_ca_pem(&self) -> &str {
        &self.authority.ca
    }

    /// Makes a client certificate that says this. One that is not to be trusted is signed by an authority that nobody
    /// knows.
    pub fn issue(&self, certificate: &Certificate) -> Result<Issued, IdentityError> {
        if certificate.trusted {
            self.authority.issue(certificate)
        } else {
            Authority::make()?.issue(certificate)
        }
    }

    /// The same in the files `client.pem` and `client-key.pem` of `dir`, which are replaced.
    pub fn issue_into(&self, dir: &Path, certificate: &Certificate) -> Result<(), IdentityError> {
        let issued = self.issue(certificate)?;
        write(&dir.join("client-key.pem"), &issued.key_pem, 0o600)?;
        write(&dir.join("client.pem"), &issued.certificate_pem, 0o644)
    }

    /// TLS 1.2 or 1.3, ALPN `h2` alone. Clients may show a certificate.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server_config.clone()
    }
}

/// All in PEM.
struct Tls {
    key: String,
    chain: String,
    ca: String,
}

impl Tls {
    /// Whether a client that dials `name` would take the certificate for the right one.
    fn is_good_for(&self, name: &str) -> bool {
        let (Ok(certificate), Ok(name)) =
            (CertificateDer::from_pem_slice(self.chain.as_bytes()), ServerName::try_from(name))
        else {
            return false;
        };
        let certificate = ParsedCertificate::try_from(&certificate);
        certificate.is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
    }

    fn make(names: &[String]) -> Result<Self, IdentityError> {
        let made = crypto("make a certificate");
        let now = now();
        let params = |name: &str, names: Vec<String>| {
            CertificateParams::new(names).map(|mut params| {
                params.distinguished_name.push(DnType::CommonName, name);
                params.not_before = now - Duration::days(1);
                params.not_after = now + VALIDITY;
                params
            })
        };
        let mut authority = params("Ringcast APNs simulator CA", Vec::new()).map_err(&made)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().map_err(&made)?).map_err(&made)?;

        let names = SERVER_NAMES.iter().map(ToString::to_string).chain(names.iter().cloned()).collect();
        let mut server = params("localhost", names).map_err(&made)?;
        server.is_ca = IsCa::ExplicitNoCa;
        server.use_authority_key_identifier_extension = true;
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(&made)?;
        let certificate = server.signed_by(&key, &authority).map_err(&made)?;
        Ok(Self {
            key: encode_pem("PRIVATE KEY", key.serialized_der())?,
            chain: encode_pem("CERTIFICATE", certificate.der())?,
            ca: encode_pem("CERTIFICATE", authority.der())?,
        })
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_millis(wall::unix_ms())
}

/// True when all of them are there, false when none is.
fn are_there(paths: &[&Path]) -> Result<bool, IdentityError> {
    let (present, missing): (Vec<&Path>, Vec<&Path>) = paths.iter().copied().partition(|path| path.exists());
    match (present.first(), missing.first()) {
        (_, None) => Ok(true),
        (None, Some(_)) => Ok(false),
        (Some(present), Some(missing)) => {
            let (missing, present) = (missing.to_path_buf(), present.to_path_buf());
            Err(IdentityError::Incomplete { missing, present })
        }
    }
}

fn open_or_make_p8(path: &Path) -> Result<String, IdentityError> {
    if path.exists() {
        return read(path);
    }
    let made = make_p8()?;
    write(path, &made, 0o600)?;
    Ok(made)
}

fn read_p8(path: &Path, pem: &str) -> Result<VerifyingKey, IdentityError> {
    VerifyingKey::from_p8(pem).ok_or_else(|| IdentityError::Content {
        path: path.into(),
        what: "holds no P-256 private key in PKCS#8 PEM, as Apple's .p8 files do".into(),
    })
}

fn make_p8() -> Result<String, IdentityError> {
    let made = "make a signing key";
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(crypto(made))?;
    let secret: EcPrivateKeyBin<'_> = key.private_key().as_be_bytes().map_err(crypto(made))?;
    let key = p256::SecretKey::from_slice(secret.as_ref()).map_err(crypto(made))?;
    Ok(key.to_pkcs8_pem(LineEnding::LF).map_err(crypto(made))?.to_string())
}

fn encode_pem(label: &str, der: &[u8]) -> Result<String, IdentityError> {
    pem::encode_string(label, LineEnding::LF, der).map_err(crypto("write PEM"))
}

fn crypto<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> IdentityError {
    move |error| IdentityError::Crypto { what, error: error.to_string() }
}

fn at(path: &Path) -> impl Fn(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |error| IdentityError::File { path: path.clone(), error }
}

fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(at(path))
}

/// Writes whole files only: under another name first, then in place.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let draft = path.with_extension("tmp");
    let _ = fs::remove_file(&draft); // of a run that died here
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(at(path))
}

#[cfg(test)]
mod tests;
