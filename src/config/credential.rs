//! `[apps.NAME.auth]` and `[apps.NAME.auth_sandbox]`: which key signs an app's provider tokens, or which certificate its
//! connections present.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::certificate::AppCertificate;
use super::mistake::show;
use super::pem;
use super::reader::Reader;
use super::section::Section;
use crate::apns::{CertificateError, ClientCertificate, Credential, ProviderKey};
use crate::domain::app::App;

/// What the apps' tables say.
#[derive(Default)]
pub(super) struct Credentials {
    /// By the index of an app and of an environment; empty beside a mistake.
    pub(super) by_app: Vec<[Credential; 2]>,
    /// The certificates among them, each with its place.
    pub(super) certificates: Vec<AppCertificate>,
    /// Every file that was read for them.
    pub(super) files: Vec<PathBuf>,
}

/// Each app's credential by environment. Where one is missing or wrong the reader knows which.
pub(super) fn read(reader: &mut Reader, apps: &[App]) -> Credentials {
    let mut found = Credentials::default();
    let mut seen = BTreeMap::new();
    let read: Vec<Option<[Credential; 2]>> = apps
        .iter()
        .map(|app| {
            let mut section = reader.section(&["apps", &app.name, "auth"]);
            let auth = read_credential(&mut section, app, &mut seen, &mut found);
            let (present, mut section) = reader.optional_section(&["apps", &app.name, "auth_sandbox"]);
            let sandbox = read_credential(&mut section, app, &mut seen, &mut found);
            let sandbox = if present { sandbox } else { auth.clone() };
            Some([auth?, sandbox?])
        })
        .collect();
    found.by_app = read.into_iter().collect::<Option<_>>().unwrap_or_default();
    found
}

/// Whose a key was when it was met first: team and key id, then the key and the table it stands in.
type Seen = BTreeMap<(String, String), (p256::SecretKey, String)>;

fn read_credential(
    section: &mut Section<'_>,
    app: &App,
    seen: &mut Seen,
    found: &mut Credentials,
) -> Option<Credential> {
    let given = Cell::new(None);
    let chain = section.text("cert_file", |text| {
        if text.is_empty() {
            return Ok(None);
        }
        given.set(Some(PathBuf::from(text)));
        pem::certificates(text).map(Some)
    });
    let Some(cert_file) = given.into_inner() else {
        return read_key(section, seen, found).map(Credential::Token);
    };
    let of_a_key = ["team_id", "key_id"].map(|key| section.know(key));
    if of_a_key.contains(&true) {
        section.know("key_file");
        section.refuse(
            "cert_file",
            "is set beside team_id or key_id; give cert_file and key_file for a certificate, or team_id, key_id and key_file for a key",
        );
        return None;
    }
    let key_file = Cell::new(None);
    let key = section.required("key_file", "the path of the certificate's private key", |text| {
        key_file.set(Some(PathBuf::from(text)));
        pem::private_key(text)
    });
    let certificate = match ClientCertificate::new(chain?, key?) {
        Ok(certificate) => certificate,
        Err(error) => {
            refuse_certificate(section, ["cert_file", "key_file"], &error);
            return None;
        }
    };
    let place = format!("{}.cert_file ({})", section.path(), section.origin("cert_file"));
    found.files.extend([cert_file.clone()].into_iter().chain(key_file.into_inner()));
    found.certificates.push(AppCertificate {
        app: app.name.clone(),
        topic: app.topic(),
        place,
        file: cert_file,
        certificate: certificate.clone(),
    });
    Some(Credential::Certificate(certificate))
}

/// Records what is wrong with a certificate and a key; `keys` name the two.
pub(super) fn refuse_certificate(section: &mut Section<'_>, keys: [&str; 2], error: &CertificateError) {
    let [cert_file, key_file] = keys;
    let (key, what) = match error {
        CertificateError::Mismatch => (
            key_file,
            format!(
                "holds a key that does not belong to the certificate in {cert_file}; give the key that it was requested with"
            ),
        ),
        CertificateError::Order(place) => (
            cert_file,
            format!(
                "holds as number {place} the certificate that the key belongs to; move that one to the top"
            ),
        ),
        CertificateError::Key(cause) => (
            key_file,
            format!(
                "holds a key that TLS cannot use ({cause}); give RSA of 2048 bits or more, or ECDSA on P-256"
            ),
        ),
        CertificateError::Empty | CertificateError::Unreadable(_) => {
            (cert_file, format!("holds no certificate that can be used: {error}; give another one, in PEM"))
        }
    };
    section.refuse(key, &what);
}

fn read_key(section: &mut Section<'_>, seen: &mut Seen, found: &mut Credentials) -> Option<ProviderKey> {
    let team_id = section.required("team_id", "the ten characters of your team's id", check_id);
    let key_id = section.required("key_id", "the ten characters of the key's id", check_id);
    let file = Cell::new(None);
    let key = section.required("key_file", "the path of Apple's .p8 file", |text| {
        file.set(Some(PathBuf::from(text)));
        pem::signing_key(text, key_id.as_deref())
    });
    let (team_id, key_id, key) = (team_id?, key_id?, key?);
    found.files.extend(file.into_inner());
    let place = section.path().to_string();
    let (first, owner) =
        seen.entry((team_id.clone(), key_id.clone())).or_insert_with(|| (key.clone(), place));
    if *first != key {
        let what = format!(
            "holds another key than {owner}, under the same team {} and key id {}; one of the two is wrong",
            show(&team_id),
            show(&key_id)
        );
        section.refuse("key_file", &what);
    }
    Some(ProviderKey { team_id, key_id, key })
}

fn check_id(text: &str) -> Result<String, String> {
    let letter = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
    if text.len() == 10 && text.chars().all(letter) {
        return Ok(text.to_owned());
    }
    Err("is not an id; give ten characters A-Z 0-9, as in \"ABCDE12345\"".to_owned())
}
