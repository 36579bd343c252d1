//! Provider tokens: the JWT in `authorization`, and what a connection remembers of it.
//!
//! Source: Apple, "Establishing a token-based connection to APNs". The signature is checked with another library than
//! a worker would sign with, and only in the form of RFC 7518 (raw r‖s).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Environment;
use super::identity::VerifyingKey;
use super::rules::Reason;

/// A provider token is good for an hour after its `iat`; one from further ahead than that is no good either ("within
/// one hour of the current time").
const AGE_MAX_MS: u64 = 3_600_000;
/// A connection may change its token once in 20 minutes.
const UPDATE_INTERVAL_MS: u64 = 20 * 60_000;
/// Verified tokens remembered. Past that the memory starts anew.
const REMEMBERED_MAX: usize = 1024;
/// No token of Apple's shape is longer.
const TOKEN_BYTES_MAX: usize = 4096;

/// A signing key that Apple knows: the public half of a `.p8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Apple's ten-character team id, the token's `iss`.
    pub team_id: String,
    /// The key's ten characters, the token's `kid`.
    pub key_id: String,
    /// Checks its signatures.
    pub verifying_key: VerifyingKey,
    /// The one environment the key is for; `None`: both, as keys from before 2025.
    pub environment: Option<Environment>,
    /// The bundle ids that a topic-specific key may push to; `None`: all of the team's.
    pub bundle_ids: Option<Arc<[String]>>,
}

impl Credential {
    /// A key for all topics and both environments.
    pub fn new(team_id: &str, key_id: &str, verifying_key: VerifyingKey) -> Self {
        let (team_id, key_id) = (team_id.to_owned(), key_id.to_owned());
        Self { team_id, key_id, verifying_key, environment: None, bundle_ids: None }
    }
}

/// What a provider token says of itself: enough to recognise it, not enough to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// Key id.
    pub kid: String,
    /// Team id.
    pub iss: String,
    /// Issued at, in seconds since 1970-01-01 UTC.
    pub iat: u64,
    /// The first bytes of the whole token's SHA-256 in hex: tells tokens apart that say the same.
    pub digest: String,
}

/// A provider token that was found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) claims: Arc<Claims>,
    bundle_ids: Option<Arc<[String]>>,
}

impl Admitted {
    /// Whether the key may push to this app.
    pub(super) fn may_push_to(&self, bundle_id: &str) -> bool {
        self.bundle_ids.as_ref().is_none_or(|ids| ids.iter().any(|id| id == bundle_id))
    }
}

/// All keys Apple knows, and the tokens already verified.
#[derive(Debug)]
pub(super) struct Keyring {
    environment: Environment,
    /// What is said of a key of the other environment.
    other_environment: Reason,
    keys: Mutex<Keys>,
    /// Goes up when a key goes: what was verified before counts no more.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Keys {
    credentials: Vec<Credential>,
    verified: HashMap<Box<[u8]>, Verdict>,
}

/// Of the token itself, whatever the time and the connection.
type Verdict = Result<Admitted, Reason>;

impl Keyring {
    pub(super) fn new(
        environment: Environment,
        other_environment: Reason,
        credentials: Vec<Credential>,
    ) -> Self {
        let keys = Mutex::new(Keys { credentials, verified: HashMap::new() });
        Self { environment, other_environment, keys, generation: AtomicU64::new(0) }
    }

    /// One more key; it may have the id of another.
    pub(super) fn trust(&self, credential: Credential) {
        let mut keys = self.keys.lock();
        keys.credentials.push(credential);
        keys.verified.clear(); // what was refused may be right now
    }

    /// Forgets all keys with this id, on live connections, too. False when there was none.
    pub(super) fn revoke(&self, key_id: &str) -> bool {
        let mut keys = self.keys.lock();
        let before = keys.credentials.len();
        keys.credentials.retain(|credential| credential.key_id != key_id);
        keys.verified.clear();
        self.generation.fetch_add(1, Relaxed);
        keys.credentials.len() < before
    }

    fn verify(&self, token: &[u8]) -> Verdict {
        let mut keys = self.keys.lock();
        if let Some(known) = keys.verified.get(token) {
            return known.clone();
        }
        let verdict = self.verify_anew(&keys.credentials, token);
        if keys.verified.len() >= REMEMBERED_MAX {
            keys.verified.clear();
        }
        keys.verified.insert(token.into(), verdict.clone());
        verdict
    }

    fn verify_anew(&self, credentials: &[Credential], token: &[u8]) -> Verdict {
        let parsed = parse(token).ok_or(Reason::InvalidProviderToken)?;
        let signed = |credential: &&Credential| {
            credential.key_id == parsed.claims.kid
                && credential.team_id == parsed.claims.iss
                && UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, credential.verifying_key.as_sec1())
                    .verify(parsed.signed, &parsed.signature)
                    .is_ok()
        };
        let is_here = |credential: &&Credential| {
            credential.environment.is_none_or(|environment| environment == self.environment)
        };
        let right: Vec<_> = credentials.iter().filter(signed).collect();
        match right.iter().copied().find(is_here) {
            Some(credential) => {
                let bundle_ids = credential.bundle_ids.clone();
                Ok(Admitted { claims: Arc::new(parsed.claims), bundle_ids })
            }
            None if right.is_empty() => Err(Reason::InvalidProviderToken),
            None => Err(self.other_environment),
        }
    }
}

/// What one connection remembers of its provider tokens.
#[derive(Debug, Default)]
pub(super) struct Session {
    current: Option<Current>,
    wedged: Option<Reason>,
}

#[derive(Debug)]
struct Current {
    token: Box<[u8]>,
    admitted: Admitted,
    first_used_ms: u64,
    generation: u64,
}

impl Session {
    /// Judges the `authorization` header of one request at `now_ms`.
    ///
    /// The first valid token binds the connection to its team and key. A token other than the last one, less than 20
    /// minutes after that one was first used here, is `TooManyProviderTokenUpdates`; this and `ExpiredProviderToken`
    /// stay: the connection is of no use any more, and a client must open another.
    pub(super) fn admit(
        &mut self,
        authorization: Option<&[u8]>,
        keyring: &Keyring,
        now_ms: u64,
    ) -> Result<Admitted, Reason> {
        if let Some(reason) = self.wedged {
            return Err(reason);
        }
        let token = bearer(authorization)?;
        let generation = keyring.generation.load(Relaxed);
        if let Some(current) = &mut self.current
            && *current.token == *token
        {
            if current.generation != generation {
                keyring.verify(token)?;
                current.generation = generation;
            }
            let admitted = current.admitted.clone();
            return self.check_age(&admitted.claims, now_ms).map(|()| admitted);
        }
        let admitted = keyring.verify(token)?;
        if let Some(Current { admitted: before, .. }) = &self.current {
            if before.claims.iss != admitted.claims.iss {
                return Err(Reason::InvalidProviderToken);
            }
            if before.claims.kid != admitted.claims.kid {
                return Err(Reason::UnrelatedKeyIdInToken);
            }
        }
        self.check_age(&admitted.claims, now_ms)?;
        if let Some(current) = &self.current
            && now_ms.saturating_sub(current.first_used_ms) < UPDATE_INTERVAL_MS
        {
            self.wedged = Some(Reason::TooManyProviderTokenUpdates);
            return Err(Reason::TooManyProviderTokenUpdates);
        }
        let first_used_ms = now_ms;
        self.current =
            Some(Current { token: token.into(), admitted: admitted.clone(), first_used_ms, generation });
        Ok(admitted)
    }

    fn check_age(&mut self, claims: &Claims, now_ms: u64) -> Result<(), Reason> {
        let issued_ms = claims.iat.saturating_mul(1000);
        if now_ms.saturating_sub(issued_ms) > AGE_MAX_MS {
            self.wedged = Some(Reason::ExpiredProviderToken);
            return Err(Reason::ExpiredProviderToken);
        }
        if issued_ms.saturating_sub(now_ms) > AGE_MAX_MS {
            return Err(Reason::InvalidProviderToken);
        }
        Ok(())
    }
}

/// Reads the claims without judging them, for the journal.
pub(super) fn fingerprint(authorization: &[u8]) -> Option<Arc<Claims>> {
    Some(Arc::new(parse(bearer(Some(authorization)).ok()?)?.claims))
}

fn bearer(authorization: Option<&[u8]>) -> Result<&[u8], Reason> {
    let authorization = authorization.ok_or(Reason::MissingProviderToken)?.trim_ascii();
    if authorization.is_empty() || authorization.eq_ignore_ascii_case(b"bearer") {
        return Err(Reason::MissingProviderToken);
    }
    match authorization.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Ok(token.trim_ascii_start()),
        _ => Err(Reason::InvalidProviderToken),
    }
}

struct Parsed<'a> {
    claims: Claims,
    signed: &'a [u8],
    signature: Vec<u8>,
}

fn parse(token: &[u8]) -> Option<Parsed<'_>> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: String,
    }
    #[derive(Deserialize)]
    struct Payload {
        iss: String,
        iat: u64,
    }
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let mut parts = token.split(|byte| *byte == b'.');
    let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let signed = &token[..header.len() + 1 + payload.len()];
    let header: Header = serde_json::from_slice(&decode_base64url(header)?).ok()?;
    let payload: Payload = serde_json::from_slice(&decode_base64url(payload)?).ok()?;
    if header.alg != "ES256" || !is_apple_id(&header.kid) || !is_apple_id(&payload.iss) {
        return None;
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token);
    let digest = digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let claims = Claims { kid: header.kid, iss: payload.iss, iat: payload.iat, digest };
    Some(Parsed { claims, signed, signature: decode_base64url(signature)? })
}

/// True for what team ids and key ids look like: ten letters or digits.
pub fn is_apple_id(id: &str) -> bool {
    id.len() == 10 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// RFC 4648 section 5, without padding, as RFC 7515 has it.
fn decode_base64url(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for digit in text {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(bits.checked_shr(held)?.to_le_bytes()[0]);
            bits &= (1 << held) - 1;
        }
    }
    (held < 6 && bits == 0).then_some(bytes)
}

#[cfg(test)]
pub(super) mod tests;
