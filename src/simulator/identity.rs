//! Who the simulator is: a throw-away certificate authority, a server certificate, and a provider signing key.
//!
//! In a folder it is `ca.pem` (what a client trusts), `server.pem` and `server.key` (what TLS is served with) and
//! `AuthKey_<key id>.p8` (what a client signs provider tokens with: PKCS#8 in PEM, as Apple's downloads are). None of
//! it is worth protecting beyond the file modes: the authority's own key is thrown away once it has signed.

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
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use super::provider_token::is_apple_id;
use super::wall;

/// The names the server certificate is good for. Apple's own are not among them, on purpose.
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
        "{missing}: missing, while {present} is there; put it back, or remove ca.pem, server.pem and server.key together to have all three made anew"
    )]
    Incomplete {
        /// A file that is missing.
        missing: PathBuf,
        /// A file that is there.
        present: PathBuf,
    },
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
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("verifying_key", &self.verifying_key).finish_non_exhaustive()
    }
}

impl Identity {
    /// A new one, in memory only.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        let (tls, p8_pem) = (Tls::make()?, make_p8()?);
        let path = Path::new("(in memory)");
        Self::assemble(&tls, p8_pem, [path; 4])
    }

    /// The identity in `dir`, with the signing key called `key_id`; folder and files are made where they are missing.
    /// The three TLS files are made together or not at all; a signing key is made for each new `key_id`.
    pub fn open_or_create(dir: &Path, key_id: &str) -> Result<Self, IdentityError> {
        if !is_apple_id(key_id) {
            return Err(IdentityError::KeyId(key_id.to_owned()));
        }
        fs::create_dir_all(dir).map_err(at(dir))?;
        let paths = ["server.key", "server.pem", "ca.pem"].map(|name| dir.join(name));
        let [key, chain, ca] = &paths;
        let p8 = dir.join(format!("AuthKey_{key_id}.p8"));

        let (present, missing): (Vec<_>, Vec<_>) = paths.iter().partition(|path| path.exists());
        let tls = match (present.first(), missing.first()) {
            (_, None) => Tls { key: read(key)?, chain: read(chain)?, ca: read(ca)? },
            (None, Some(_)) => {
                let tls = Tls::make()?;
                write(key, &tls.key, 0o600)?;
                write(chain, &tls.chain, 0o644)?;
                write(ca, &tls.ca, 0o644)?;
                tls
            }
            (Some(present), Some(missing)) => {
                let (missing, present) = ((*missing).clone(), (*present).clone());
                return Err(IdentityError::Incomplete { missing, present });
            }
        };
        let p8_pem = if p8.exists() {
            read(&p8)?
        } else {
            let made = make_p8()?;
            write(&p8, &made, 0o600)?;
            made
        };
        Self::assemble(&tls, p8_pem, [key, chain, ca, &p8])
    }

    fn assemble(tls: &Tls, p8_pem: String, [key, chain, ca, p8]: [&Path; 4]) -> Result<Self, IdentityError> {
        let content =
            |path: &Path, what: &str| IdentityError::Content { path: path.into(), what: what.into() };
        if CertificateDer::from_pem_slice(tls.ca.as_bytes()).is_err() {
            return Err(content(ca, "holds no certificate in PEM"));
        }
        let certificates = CertificateDer::pem_slice_iter(tls.chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| content(chain, "holds no certificate in PEM"))?;
        let private_key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes())
            .map_err(|_| content(key, "holds no private key in PEM"))?;
        let mut server_config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(crypto("set up TLS"))?
                .with_no_client_auth()
                .with_single_cert(certificates, private_key)
                .map_err(|error| content(chain, &format!("does not go with {}: {error}", key.display())))?;
        server_config.alpn_protocols = vec![b"h2".to_vec()];
        let verifying_key = VerifyingKey::from_p8(&p8_pem).ok_or_else(|| {
            content(p8, "holds no P-256 private key in PKCS#8 PEM, as Apple's .p8 files do")
        })?;
        Ok(Self { ca_pem: tls.ca.clone(), p8_pem, verifying_key, server_config: Arc::new(server_config) })
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

    /// TLS 1.2 or 1.3, ALPN `h2` alone.
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
    fn make() -> Result<Self, IdentityError> {
        let made = crypto("make a certificate");
        let now = OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_millis(wall::unix_ms());
        let params = |name: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            CertificateParams::new(names).map(|mut params| {
                params.distinguished_name.push(DnType::CommonName, name);
                params.not_before = now - Duration::days(1);
                params.not_after = now + VALIDITY;
                params
            })
        };
        let mut authority = params("Ringcast APNs simulator CA", &[]).map_err(&made)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().map_err(&made)?).map_err(&made)?;

        let mut server = params("localhost", &SERVER_NAMES).map_err(&made)?;
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
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder that goes away with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ringcast-identity-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_there_is_used() {
        let folder = Folder::new("reuse");
        let first = Identity::open_or_create(&folder.0, "KEY1234567").unwrap();
        let again = Identity::open_or_create(&folder.0, "KEY1234567").unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.p8_pem(), again.p8_pem());
        assert_eq!(first.verifying_key(), again.verifying_key());
        let other = Identity::open_or_create(&folder.0, "KEY7654321").unwrap();
        assert_eq!(first.ca_pem(), other.ca_pem());
        assert_ne!(first.verifying_key(), other.verifying_key());

        let mut names: Vec<_> = fs::read_dir(&folder.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected =
            ["AuthKey_KEY1234567.p8", "AuthKey_KEY7654321.p8", "ca.pem", "server.key", "server.pem"];
        assert_eq!(names, expected);
        for private in ["AuthKey_KEY1234567.p8", "server.key"] {
            let mode = fs::metadata(folder.0.join(private)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{private}");
        }
        assert!(first.p8_pem().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    }

    #[test]
    fn half_an_identity_is_no_identity() {
        let folder = Folder::new("half");
        Identity::open_or_create(&folder.0, "KEY1234567").unwrap();
        fs::remove_file(folder.0.join("server.key")).unwrap();
        let error = Identity::open_or_create(&folder.0, "KEY1234567").unwrap_err().to_string();
        assert!(error.contains("server.key: missing") && error.contains("put it back"), "{error}");
    }

    #[test]
    fn spoilt_files_are_named() {
        for (name, what) in [
            ("ca.pem", "holds no certificate"),
            ("server.key", "holds no private key"),
            ("AuthKey_KEY1234567.p8", "holds no P-256 private key"),
        ] {
            let folder = Folder::new(&format!("spoilt-{name}"));
            Identity::open_or_create(&folder.0, "KEY1234567").unwrap();
            fs::write(folder.0.join(name), "rubbish").unwrap();
            let error = Identity::open_or_create(&folder.0, "KEY1234567").unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(what), "{error}");
        }
        let error = Identity::open_or_create(Path::new("/tmp"), "../up").unwrap_err().to_string();
        assert!(error.contains("ten letters or digits"), "{error}");
    }

    #[test]
    fn public_keys_are_read_strictly() {
        let identity = Identity::ephemeral().unwrap();
        let key = identity.verifying_key();
        assert_eq!(VerifyingKey::from_sec1(key.as_sec1()), Some(key));
        assert_eq!(VerifyingKey::from_sec1(&[4; 65]), None);
        assert_eq!(VerifyingKey::from_p8("rubbish"), None);
    }
}
