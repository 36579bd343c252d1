//! Provider tokens: the JWT in `authorization`, and what a connection remembers of it.
//!
//! Source: Apple, "Establishing a token-based connection to APNs". The signature is checked with another library than
//! a worker would sign with, and only in the form of RFC 7518 (raw r‖s).

use std::collections::HashMap;
use std::sync::Arc;

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
#[derive(Debug, Clone)]
pub struct Credential {
    /// Apple's ten-character team id, the token's `iss`.
    pub team_id: String,
    /// The key's ten characters, the token's `kid`.
    pub key_id: String,
    /// Checks its signatures.
    pub verifying_key: VerifyingKey,
    /// The one environment the key is for; `None`: both, as keys from before 2025.
    pub environment: Option<Environment>,
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
}

/// All keys Apple knows, and the tokens already verified.
#[derive(Debug)]
pub(super) struct Keyring {
    environment: Environment,
    credentials: Vec<Credential>,
    verified: Mutex<HashMap<Box<[u8]>, Verdict>>,
}

/// Of the token itself, whatever the time and the connection.
type Verdict = Result<Arc<Claims>, Reason>;

impl Keyring {
    pub(super) fn new(environment: Environment, credentials: Vec<Credential>) -> Self {
        Self { environment, credentials, verified: Mutex::default() }
    }

    fn verify(&self, token: &[u8]) -> Verdict {
        if let Some(known) = self.verified.lock().get(token) {
            return known.clone();
        }
        let verdict = self.verify_anew(token);
        let mut verified = self.verified.lock();
        if verified.len() >= REMEMBERED_MAX {
            verified.clear();
        }
        verified.insert(token.into(), verdict.clone());
        verdict
    }

    fn verify_anew(&self, token: &[u8]) -> Verdict {
        let parsed = parse(token).ok_or(Reason::InvalidProviderToken)?;
        let known = |credential: &&Credential| {
            credential.key_id == parsed.claims.kid && credential.team_id == parsed.claims.iss
        };
        let credential = self.credentials.iter().find(known).ok_or(Reason::InvalidProviderToken)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, credential.verifying_key.as_sec1())
            .verify(parsed.signed, &parsed.signature)
            .map_err(|_| Reason::InvalidProviderToken)?;
        if credential.environment.is_some_and(|only| only != self.environment) {
            return Err(Reason::BadEnvironmentKeyIdInToken);
        }
        Ok(Arc::new(parsed.claims))
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
    claims: Arc<Claims>,
    first_used_ms: u64,
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
    ) -> Result<Arc<Claims>, Reason> {
        if let Some(reason) = self.wedged {
            return Err(reason);
        }
        let token = bearer(authorization)?;
        if let Some(current) = &self.current
            && *current.token == *token
        {
            let claims = current.claims.clone();
            return self.check_age(&claims, now_ms).map(|()| claims);
        }
        let claims = keyring.verify(token)?;
        if let Some(current) = &self.current {
            if current.claims.iss != claims.iss {
                return Err(Reason::InvalidProviderToken);
            }
            if current.claims.kid != claims.kid {
                return Err(Reason::UnrelatedKeyIdInToken);
            }
        }
        self.check_age(&claims, now_ms)?;
        if let Some(current) = &self.current
            && now_ms.saturating_sub(current.first_used_ms) < UPDATE_INTERVAL_MS
        {
            self.wedged = Some(Reason::TooManyProviderTokenUpdates);
            return Err(Reason::TooManyProviderTokenUpdates);
        }
        self.current = Some(Current { token: token.into(), claims: claims.clone(), first_used_ms: now_ms });
        Ok(claims)
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
    let claims = Claims { kid: header.kid, iss: payload.iss, iat: payload.iat };
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
