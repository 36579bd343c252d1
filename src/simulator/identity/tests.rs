//! Tests of the module above.

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
    let expected = [
        "AuthKey_KEY1234567.p8",
        "AuthKey_KEY7654321.p8",
        "ca.pem",
        "client-ca.key",
        "client-ca.pem",
        "server.key",
        "server.pem",
    ];
    assert_eq!(names, expected);
    for private in ["AuthKey_KEY1234567.p8", "server.key", "client-ca.key"] {
        let mode = fs::metadata(folder.0.join(private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{private}");
    }
    assert!(first.p8_pem().starts_with("-----BEGIN PRIVATE KEY-----\n"));
}

#[test]
fn a_certificate_is_made_for_the_names_that_clients_dial() {
    let folder = Folder::new("names");
    let make = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Identity::open_or_create_for(&folder.0, "KEY1234567", &names)
    };
    let first = make(&["ringcast-simulator", "10.0.0.7"]).unwrap();
    for there in [&["ringcast-simulator"][..], &["10.0.0.7", "localhost"], &[]] {
        assert_eq!(make(there).unwrap().ca_pem(), first.ca_pem(), "{there:?}");
    }
    let error = make(&["ringcast-simulator", "apns.test"]).unwrap_err().to_string();
    assert!(error.contains("server.pem: is not good for apns.test, and neither"), "{error}");
    let error = make(&["two words"]).unwrap_err().to_string();
    assert!(error.contains("\"two words\" is no host name or address"), "{error}");
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
        ("client-ca.pem", "holds no certificate"),
        ("client-ca.key", "holds no private key"),
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
