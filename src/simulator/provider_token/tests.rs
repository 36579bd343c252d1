//! Tests of the module above.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use super::*;

const NOW_S: u64 = 1_795_000_000;
const NOW_MS: u64 = NOW_S * 1000;
const MINUTE_MS: u64 = 60_000;

pub(in super::super) fn encode_base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

pub(in super::super) fn sign(key: &EcdsaKeyPair, header: &str, payload: &str) -> String {
    let signed = format!("{}.{}", encode_base64url(header.as_bytes()), encode_base64url(payload.as_bytes()));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode_base64url(signature.as_ref()))
}

struct World {
    keys: [EcdsaKeyPair; 3],
    keyring: Keyring,
}

const KEYS: [(&str, &str); 3] =
    [("TEAM123456", "KEY1234567"), ("TEAM123456", "KEY7654321"), ("TEAM654321", "KEYOTHER12")];

impl World {
    fn new() -> Self {
        let keys = KEYS.map(|_| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
        let credentials = KEYS
            .iter()
            .zip(&keys)
            .map(|((team_id, key_id), key)| {
                Credential::new(team_id, key_id, VerifyingKey::from_sec1(key.public_key().as_ref()).unwrap())
            })
            .collect();
        let other = Reason::BadEnvironmentKeyIdInToken;
        Self { keys, keyring: Keyring::new(Environment::Production, other, credentials) }
    }

    fn credential(&self, key: usize) -> Credential {
        self.keyring.keys.lock().credentials[key].clone()
    }

    fn token(&self, key: usize, iat: u64) -> String {
        let (team, kid) = KEYS[key];
        let header = format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#);
        format!("bearer {}", sign(&self.keys[key], &header, &format!(r#"{{"iss":"{team}","iat":{iat}}}"#)))
    }

    fn admit(&self, session: &mut Session, header: &str, now_ms: u64) -> Result<(), Reason> {
        session.admit(Some(header.as_bytes()), &self.keyring, now_ms).map(|_| ())
    }
}

#[test]
fn base64url_is_strict() {
    for bytes in [&b""[..], b"f", b"fo", b"foo", b"\xff\xfe\xfd\xfc"] {
        assert_eq!(decode_base64url(encode_base64url(bytes).as_bytes()).unwrap(), bytes);
    }
    for wrong in ["Zg==", "Zh", "Z", "Zm9v\n", "+/8"] {
        assert_eq!(decode_base64url(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn a_right_token_is_taken_again_and_again() {
    let world = World::new();
    let mut session = Session::default();
    let token = world.token(0, NOW_S);
    for minutes in [0, 1, 30, 60] {
        assert_eq!(world.admit(&mut session, &token, NOW_MS + minutes * MINUTE_MS), Ok(()));
    }
    let capital = token.replace("bearer", "Bearer");
    assert_eq!(world.admit(&mut Session::default(), &capital, NOW_MS), Ok(()));
}

#[test]
fn wrong_tokens_are_refused() {
    let world = World::new();
    let token = world.token(0, NOW_S);
    let sign = |header: &str, payload: &str| format!("bearer {}", sign(&world.keys[0], header, payload));
    let payload = format!(r#"{{"iss":"TEAM123456","iat":{NOW_S}}}"#);
    let header = r#"{"alg":"ES256","kid":"KEY1234567"}"#;
    assert_eq!(world.admit(&mut Session::default(), &sign(header, &payload), NOW_MS), Ok(()));
    for (what, header, reason) in [
        ("empty", String::new(), Reason::MissingProviderToken),
        ("scheme alone", "bearer ".into(), Reason::MissingProviderToken),
        ("other scheme", token.replace("bearer", "basic"), Reason::InvalidProviderToken),
        ("no scheme", token.replace("bearer ", ""), Reason::InvalidProviderToken),
        ("rubbish", "bearer rubbish".into(), Reason::InvalidProviderToken),
        ("cut", token[..token.len() - 4].into(), Reason::InvalidProviderToken),
        ("longer", format!("{token}.e30"), Reason::InvalidProviderToken),
        ("huge", format!("bearer {}", "a".repeat(5000)), Reason::InvalidProviderToken),
        ("HS256", sign(&header.replace("ES256", "HS256"), &payload), Reason::InvalidProviderToken),
        ("kid of nine", sign(&header.replace("4567", "456"), &payload), Reason::InvalidProviderToken),
        ("no kid", sign(r#"{"alg":"ES256"}"#, &payload), Reason::InvalidProviderToken),
        ("other team", sign(header, &payload.replace("123456", "654321")), Reason::InvalidProviderToken),
        (
            "key of another",
            sign(&header.replace("1234567", "7654321"), &payload),
            Reason::InvalidProviderToken,
        ),
        ("text iat", sign(header, r#"{"iss":"TEAM123456","iat":"1"}"#), Reason::InvalidProviderToken),
        ("an hour old", world.token(0, NOW_S - 3601), Reason::ExpiredProviderToken),
        ("an hour ahead", world.token(0, NOW_S + 3601), Reason::InvalidProviderToken),
    ] {
        assert_eq!(world.admit(&mut Session::default(), &header, NOW_MS), Err(reason), "{what}");
    }
    let missing = Session::default().admit(None, &world.keyring, NOW_MS);
    assert_eq!(missing, Err(Reason::MissingProviderToken));
}

#[test]
fn a_connection_keeps_team_and_key() {
    let world = World::new();
    let mut session = Session::default();
    assert_eq!(world.admit(&mut session, &world.token(0, NOW_S), NOW_MS), Ok(()));
    let hour = NOW_MS + 30 * MINUTE_MS;
    assert_eq!(world.admit(&mut session, &world.token(1, NOW_S), hour), Err(Reason::UnrelatedKeyIdInToken));
    assert_eq!(world.admit(&mut session, &world.token(2, NOW_S), hour), Err(Reason::InvalidProviderToken));
    assert_eq!(world.admit(&mut session, &world.token(0, NOW_S + 60), hour), Ok(()), "and lives on");
}

#[test]
fn a_token_changed_within_twenty_minutes_wedges_the_connection() {
    let world = World::new();
    let mut session = Session::default();
    let (first, second, third) =
        (world.token(0, NOW_S), world.token(0, NOW_S + 1), world.token(0, NOW_S + 2));
    assert_eq!(world.admit(&mut session, &first, NOW_MS), Ok(()));
    assert_eq!(world.admit(&mut session, &second, NOW_MS + 20 * MINUTE_MS), Ok(()));
    let soon = NOW_MS + 40 * MINUTE_MS - 1;
    assert_eq!(world.admit(&mut session, &third, soon), Err(Reason::TooManyProviderTokenUpdates));
    assert_eq!(world.admit(&mut session, &second, soon), Err(Reason::TooManyProviderTokenUpdates));
    assert_eq!(world.admit(&mut Session::default(), &third, soon), Ok(()), "another connection is fine");
}

#[test]
fn an_expired_token_wedges_the_connection() {
    let world = World::new();
    let mut session = Session::default();
    let later = NOW_MS + 61 * MINUTE_MS;
    assert_eq!(world.admit(&mut session, &world.token(0, NOW_S), NOW_MS), Ok(()));
    assert_eq!(world.admit(&mut session, &world.token(0, NOW_S), later), Err(Reason::ExpiredProviderToken));
    let fresh = world.token(0, NOW_S + 3660);
    assert_eq!(world.admit(&mut session, &fresh, later), Err(Reason::ExpiredProviderToken));
    assert_eq!(world.admit(&mut Session::default(), &fresh, later), Ok(()));
}

#[test]
fn a_key_of_the_other_environment_is_named_in_either_spelling() {
    for word in [Reason::BadEnvironmentKeyIdInToken, Reason::BadEnvironmentKeyInToken] {
        let world = World::new();
        let sandbox = Credential { environment: Some(Environment::Sandbox), ..world.credential(0) };
        let keyring = Keyring::new(Environment::Production, word, vec![sandbox]);
        let world = World { keyring, ..world };
        let refused = world.admit(&mut Session::default(), &world.token(0, NOW_S), NOW_MS);
        assert_eq!(refused, Err(word));
    }
}

#[test]
fn keys_come_and_go_while_connections_live() {
    let world = World::new();
    let (old, mut session) = (world.token(0, NOW_S), Session::default());
    assert_eq!(world.admit(&mut session, &old, NOW_MS), Ok(()));
    let credential = world.credential(0);
    assert!(world.keyring.revoke("KEY1234567"));
    assert!(!world.keyring.revoke("KEY1234567"), "it is gone");
    assert_eq!(world.admit(&mut session, &old, NOW_MS), Err(Reason::InvalidProviderToken));
    assert_eq!(world.admit(&mut Session::default(), &old, NOW_MS), Err(Reason::InvalidProviderToken));
    assert_eq!(world.admit(&mut Session::default(), &world.token(1, NOW_S), NOW_MS), Ok(()), "another key");
    world.keyring.trust(credential);
    assert_eq!(world.admit(&mut session, &old, NOW_MS), Ok(()), "and back");
}

#[test]
fn two_keys_may_have_one_id() {
    let world = World::new();
    let second = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let verifying_key = VerifyingKey::from_sec1(second.public_key().as_ref()).unwrap();
    let header = r#"{"alg":"ES256","kid":"KEY1234567"}"#;
    let token =
        format!("bearer {}", sign(&second, header, &format!(r#"{{"iss":"TEAM123456","iat":{NOW_S}}}"#)));
    let refused = world.admit(&mut Session::default(), &token, NOW_MS);
    assert_eq!(refused, Err(Reason::InvalidProviderToken));
    world.keyring.trust(Credential::new("TEAM123456", "KEY1234567", verifying_key));
    assert_eq!(world.admit(&mut Session::default(), &token, NOW_MS), Ok(()));
    assert_eq!(world.admit(&mut Session::default(), &world.token(0, NOW_S), NOW_MS), Ok(()));
}

#[test]
fn a_topic_specific_key_may_push_to_its_apps_alone() {
    let world = World::new();
    let bundle_ids: Option<Arc<[String]>> = Some(["com.acme.voice".to_owned()].into());
    let keyring = Keyring::new(
        Environment::Production,
        Reason::BadEnvironmentKeyIdInToken,
        vec![Credential { bundle_ids, ..world.credential(0) }],
    );
    let token = world.token(0, NOW_S);
    let admitted = Session::default().admit(Some(token.as_bytes()), &keyring, NOW_MS).unwrap();
    assert!(admitted.may_push_to("com.acme.voice"));
    assert!(!admitted.may_push_to("com.acme.voice.beta") && !admitted.may_push_to("com.acme"));
    let team_wide = Session::default().admit(Some(token.as_bytes()), &world.keyring, NOW_MS).unwrap();
    assert!(team_wide.may_push_to("com.acme"));
}

#[test]
fn the_memory_of_verified_tokens_is_bounded() {
    let world = World::new();
    for number in 0..REMEMBERED_MAX + 10 {
        let _ = world.keyring.verify(number.to_string().as_bytes());
    }
    assert!(world.keyring.keys.lock().verified.len() <= REMEMBERED_MAX);
}
