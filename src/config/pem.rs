//! Files in PEM: trust roots, signing keys, client certificates and their keys.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use p256::SecretKey;
use p256::pkcs8::DecodePrivateKey as _;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::source::read_file;

/// Every public CA of a system together stays below this.
const ROOTS_BYTES_MAX: u64 = 4 << 20;

/// Apple's file has about 260 bytes.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// A certificate, its chain and its key are some ten kilobytes, with all that openssl writes beside them.
const IDENTITY_BYTES_MAX: u64 = 256 << 10;

/// The path of a file of trusted certificates, found good; `None` for "".
pub(super) fn trust_root(text: &str) -> Result<Option<PathBuf>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let right = "give a file of certificates, each between BEGIN CERTIFICATE and END CERTIFICATE";
    let path = PathBuf::from(text);
    let content = read_file(&path, ROOTS_BYTES_MAX)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(content.as_bytes()) {
        let certificate = certificate.map_err(|_| format!("is not whole PEM; {right}"))?;
        let place = roots.len() + 1;
        roots
            .add(certificate)
            .map_err(|_| format!("holds as number {place} no readable certificate; {right}"))?;
    }
    if roots.is_empty() {
        return Err(format!("holds no certificate in PEM; {right}"));
    }
    Ok(Some(path))
}

/// The signing key in a file. `key_id`: what the settings call it, where that is known. Errors never quote the file.
pub(super) fn signing_key(text: &str, key_id: Option<&str>) -> Result<SecretKey, String> {
    const RIGHT: &str = "give Apple's file AuthKey_<key id>.p8: PEM, a P-256 key between BEGIN PRIVATE KEY and END PRIVATE KEY";
    if text.contains("-----BEGIN") || text.contains('\n') {
        return Err("is the key itself; give the path of a file that holds it".to_owned());
    }
    let content = read_file(Path::new(text), KEY_BYTES_MAX)?;
    let content = content.trim_start_matches('\u{feff}').trim();
    let what = match content {
        "" => "is empty",
        _ if content.contains("BEGIN CERTIFICATE") => "holds a certificate, not a key",
        _ if content.contains("BEGIN ENCRYPTED PRIVATE KEY") => "holds a key under a passphrase",
        _ if content.contains("BEGIN EC PRIVATE KEY") => {
            "holds a key in the SEC1 form; turn it with `openssl pkcs8 -topk8 -nocrypt`, or"
        }
        _ if !content.contains("BEGIN PRIVATE KEY") => "holds no key in PEM",
        _ => match SecretKey::from_pkcs8_pem(content) {
            Ok(key) => return check_name(Path::new(text), key_id).map(|()| key),
            Err(_) => "holds a key that is damaged or not on the curve P-256",
        },
    };
    let join = if what.ends_with("or") { "" } else { ";" };
    Err(format!("{what}{join} {RIGHT}"))
}

/// A client's certificate, followed by those that vouch for it, if any.
pub(super) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    const RIGHT: &str = "give a file with the certificate between BEGIN CERTIFICATE and END CERTIFICATE";
    if is_der(Path::new(text)) {
        return Err("is a certificate in DER, as Apple gives it; turn it into PEM with `openssl x509 -inform der -in FILE.cer -out FILE.pem`"
            .to_owned());
    }
    let content = read_identity(text)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content.as_bytes()).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(format!("holds no certificate in PEM; {RIGHT}")),
        Ok(chain) => Ok(chain),
        Err(_) => Err(format!("is not whole PEM; {RIGHT}")),
    }
}

/// A client certificate's private key: PKCS#8, PKCS#1 (RSA) or SEC1 (EC). Errors never quote the file.
pub(super) fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, String> {
    const RIGHT: &str =
        "give a file with the certificate's key between BEGIN PRIVATE KEY and END PRIVATE KEY";
    let content = read_identity(text)?;
    if content.contains("BEGIN ENCRYPTED PRIVATE KEY") || content.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(format!("holds a key under a passphrase; take it off with `openssl pkey`, or {RIGHT}"));
    }
    PrivateKeyDer::from_pem_slice(content.as_bytes()).map_err(|error| match error {
        pem::Error::NoItemsFound => format!("holds no private key in PEM; {RIGHT}"),
        _ => format!("is not whole PEM; {RIGHT}"),
    })
}

/// A file that holds a client certificate, its key, or both.
fn read_identity(text: &str) -> Result<String, String> {
    if text.contains("-----BEGIN") || text.contains('\n') {
        return Err("is the content itself; give the path of a file that holds it".to_owned());
    }
    let extension = Path::new(text).extension().unwrap_or_default();
    if ["p12", "pfx"].iter().any(|pkcs12| extension.eq_ignore_ascii_case(pkcs12)) {
        return Err(
            "is a PKCS#12 file; turn it into PEM with `openssl pkcs12 -in FILE.p12 -nodes -out FILE.pem` (OpenSSL 3 wants -legacy, too, for one from Keychain Access)"
                .to_owned(),
        );
    }
    read_file(Path::new(text), IDENTITY_BYTES_MAX)
}

/// Whether a file is named as Apple names certificates, and begins as one does in DER: a sequence of at least 256 bytes.
fn is_der(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    let mut start = [0; 2];
    ["cer", "crt", "der"].iter().any(|der| extension.eq_ignore_ascii_case(der))
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok())
        && start == [0x30, 0x82]
}

/// Apple names the file after the key, so a name in that form that says another key is a mix-up.
fn check_name(path: &Path, key_id: Option<&str>) -> Result<(), String> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let named = name.strip_prefix("AuthKey_").and_then(|name| name.strip_suffix(".p8"));
    match (named, key_id) {
        (Some(named), Some(key_id)) if named.len() == 10 && named != key_id => {
            Err(format!("is by its name the key {named}, but key_id says {key_id}; make them agree"))
        }
        _ => Ok(()),
    }
}
