//! `[apps.NAME.auth]` and `[apps.NAME.auth_sandbox]`: which key signs an app's provider tokens.

use std::collections::BTreeMap;

use super::mistake::show;
use super::pem;
use super::reader::Reader;
use super::section::Section;
use crate::apns::Credential;
use crate::domain::app::App;

/// Each app's credential by environment. `None`: one is missing or wrong, and the reader knows which.
pub(super) fn read(reader: &mut Reader, apps: &[App]) -> Option<Vec<[Credential; 2]>> {
    let mut seen = BTreeMap::new();
    let read: Vec<Option<[Credential; 2]>> = apps
        .iter()
        .map(|app| {
            let auth = read_credential(&mut reader.section(&["apps", &app.name, "auth"]), &mut seen);
            let (present, mut section) = reader.optional_section(&["apps", &app.name, "auth_sandbox"]);
            let sandbox = read_credential(&mut section, &mut seen);
            let sandbox = if present { sandbox } else { auth.clone() };
            Some([auth?, sandbox?])
        })
        .collect();
    read.into_iter().collect()
}

/// Whose a key was when it was met first: team and key id, then the key and the table it stands in.
type Seen = BTreeMap<(String, String), (p256::SecretKey, String)>;

fn read_credential(section: &mut Section<'_>, seen: &mut Seen) -> Option<Credential> {
    let team_id = section.required("team_id", "the ten characters of your team's id", check_id);
    let key_id = section.required("key_id", "the ten characters of the key's id", check_id);
    let key = section.required("key_file", "the path of Apple's .p8 file", |text| {
        pem::signing_key(text, key_id.as_deref())
    });
    section.not_built("cert_file", "leave it empty and give team_id, key_id and key_file");
    let (team_id, key_id, key) = (team_id?, key_id?, key?);
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
    Some(Credential { team_id, key_id, key })
}

fn check_id(text: &str) -> Result<String, String> {
    let letter = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
    if text.len() == 10 && text.chars().all(letter) {
        return Ok(text.to_owned());
    }
    Err("is not an id; give ten characters A-Z 0-9, as in \"ABCDE12345\"".to_owned())
}
