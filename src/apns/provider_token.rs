//! The provider token: a JWT that says who sends (Apple, *Establishing a token-based connection to APNs*).
//!
//! `iat` stands in buckets of half an hour and the signature is deterministic (RFC 6979), so that every worker mints the
//! very same token without asking another one: APNs counts how many tokens a team uses.

use std::sync::Arc;

use http::HeaderValue;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use p256::ecdsa::signature::{Error as SignatureError, Signer};
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use parking_lot::Mutex;
use serde::Serialize;

use super::{Credential, ProviderKey};
use crate::clock::Clock;

/// Seconds of one bucket. A token is at most this old when it is minted, a connection keeps it for at least 20 minutes, so
/// the oldest in use is 50 minutes old; Apple refuses one older than an hour.
const BUCKET_SECONDS: i64 = 30 * 60;

/// Older by the wall clock, a token is replaced whatever else holds: the machine slept, or its clock jumped.
const AGE_SECONDS_MAX: i64 = 55 * 60;

/// A signed token, ready for the header.
#[derive(Debug)]
pub(super) struct ProviderToken {
    /// `bearer <jwt>`, marked sensitive: never indexed, never printed. `None` with a certificate.
    pub header: Option<HeaderValue>,
    /// `iat`, Unix seconds.
    pub issued_at: i64,
}

/// Mints the tokens of one key, one per bucket. A certificate needs none, and its mint gives an empty one for ever.
#[derive(Debug)]
pub(super) struct TokenMint {
    signer: Option<Box<TokenSigner>>,
    clock: Clock,
    current: Mutex<Option<Arc<ProviderToken>>>,
}

#[derive(Debug)]
struct TokenSigner {
    team_id: String,
    key_id: String,
    key: Option<SigningMaterial>,
}

/// The key as jsonwebtoken wants it: PKCS#8.
struct SigningMaterial(EncodingKey);

impl std::fmt::Debug for SigningMaterial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SigningMaterial")
    }
}

/// A token could not be signed: a broken key.
#[derive(Debug, thiserror::Error)]
#[error("the provider token of key {key_id} cannot be signed: {cause}")]
pub struct MintError {
    key_id: String,
    cause: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: i64,
}

impl TokenMint {
    pub(super) fn new(credential: &Credential, clock: Clock) -> Self {
        let signer = match credential {
            Credential::Certificate(_) => None,
            Credential::Token(ProviderKey { team_id, key_id, key }) => {
                let key = key.to_pkcs8_der().ok();
                let key = key.map(|der| SigningMaterial(EncodingKey::from_ec_der(der.as_bytes())));
                Some(Box::new(TokenSigner { team_id: team_id.clone(), key_id: key_id.clone(), key }))
            }
        };
        Self { signer, clock, current: Mutex::new(None) }
    }

    /// The token of this half hour. A clock that goes back a little keeps the one it has: a new one would be a needless
    /// update. One whose `iat` lies far ahead was minted by a clock that was wrong, and Apple refuses it.
    pub(super) fn current(&self) -> Result<Arc<ProviderToken>, MintError> {
        let Some(signer) = &self.signer else {
            return Ok(Arc::new(ProviderToken { header: None, issued_at: 0 }));
        };
        let now = self.clock.unix_ms().div_euclid(1000);
        let issued_at = now - now.rem_euclid(BUCKET_SECONDS);
        let mut current = self.current.lock();
        let ahead = now + BUCKET_SECONDS;
        if let Some(token) = current.as_ref().filter(|token| (issued_at..=ahead).contains(&token.issued_at)) {
            return Ok(Arc::clone(token));
        }
        let token = Arc::new(signer.mint(issued_at)?);
        *current = Some(Arc::clone(&token));
        Ok(token)
    }

    /// Whether Apple takes this token by the wall clock: not from the future, and not close to an hour old.
    pub(super) fn is_fresh(&self, token: &ProviderToken) -> bool {
        let age = self.clock.unix_ms().div_euclid(1000) - token.issued_at;
        self.signer.is_none() || (-BUCKET_SECONDS..AGE_SECONDS_MAX).contains(&age)
    }

    /// Seconds since the current token's `iat`; `None` before the first one, and with a certificate.
    pub(super) fn age_seconds(&self) -> Option<i64> {
        let issued_at = self.current.lock().as_ref()?.issued_at;
        Some(self.clock.unix_ms().div_euclid(1000) - issued_at)
    }
}

impl TokenSigner {
    fn mint(&self, issued_at: i64) -> Result<ProviderToken, MintError> {
        let failed = |cause: String| MintError { key_id: self.key_id.clone(), cause };
        // Installed already is as good: it is ours, the only one that this program has.
        let _ = DETERMINISTIC.install_default();
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        let key =
            self.key.as_ref().ok_or_else(|| failed("the key cannot be written as PKCS#8".to_owned()))?;
        let claims = Claims { iss: &self.team_id, iat: issued_at };
        let jwt =
            jsonwebtoken::encode(&header, &claims, &key.0).map_err(|error| failed(error.to_string()))?;
        let mut header =
            HeaderValue::from_str(&format!("bearer {jwt}")).map_err(|error| failed(error.to_string()))?;
        header.set_sensitive(true);
        Ok(ProviderToken { header: Some(header), issued_at })
    }
}

/// ES256 with the nonce of RFC 6979. jsonwebtoken's own providers draw it at random, so that no two workers would agree.
static DETERMINISTIC: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| match algorithm {
        Algorithm::ES256 => {
            let key =
                p256::SecretKey::from_pkcs8_der(key.as_bytes()).map_err(|_| ErrorKind::InvalidEcdsaKey)?;
            Ok(Box::new(Es256(SigningKey::from(key))))
        }
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    verifier_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    key_utils: KeyUtils::new_unimplemented(),
};

struct Es256(SigningKey);

impl Signer<Vec<u8>> for Es256 {
    /// The raw form r‖s of RFC 7518 §3.4.
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let signature: Signature = self.0.try_sign(message)?;
        Ok(signature.to_bytes().to_vec())
    }
}

impl JwtSigner for Es256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn mint(clock: &Clock) -> TokenMint {
        let key = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let key = ProviderKey { team_id: "TEAM123456".into(), key_id: "KEY1234567".into(), key };
        TokenMint::new(&Credential::Token(key), clock.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn every_worker_mints_the_same_token_for_the_same_half_hour() {
        let clock = Clock::simulated(1_795_253_400_000);
        let (one, other) = (mint(&clock), mint(&clock));
        let first = one.current().unwrap();
        assert_eq!(first.issued_at % BUCKET_SECONDS, 0);
        tokio::time::advance(Duration::from_mins(29)).await;
        assert_eq!(first.header, other.current().unwrap().header);
        tokio::time::advance(Duration::from_mins(2)).await;
        let next = one.current().unwrap();
        assert_eq!(next.issued_at, first.issued_at + BUCKET_SECONDS);
        assert_ne!(next.header, first.header);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_from_a_clock_that_was_ahead_is_replaced() {
        const DAY: i64 = 24 * 60 * 60;
        let clock = Clock::simulated(1_795_253_400_000);
        let mint = mint(&clock);
        let right = mint.current().unwrap();
        let ahead = ProviderToken { header: right.header.clone(), issued_at: right.issued_at + DAY };
        assert!(mint.is_fresh(&right) && !mint.is_fresh(&ahead));
        *mint.current.lock() = Some(Arc::new(ahead));
        assert_eq!(mint.current().unwrap().issued_at, right.issued_at);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert!(!mint.is_fresh(&right));
    }

    #[tokio::test(start_paused = true)]
    async fn the_token_is_what_apple_describes_and_is_never_printed() {
        let token = mint(&Clock::simulated(1_795_253_400_000)).current().unwrap();
        let text = token.header.as_ref().unwrap().to_str().unwrap().strip_prefix("bearer ").unwrap();
        let parts: Vec<&str> = text.split('.').collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[2].len(), 86, "64 bytes in base64url without padding");
        let header = jsonwebtoken::decode_header(text).unwrap();
        assert_eq!(
            (header.alg, header.kid.as_deref(), header.typ),
            (Algorithm::ES256, Some("KEY1234567"), None)
        );
        assert!(!format!("{token:?}").contains(parts[2]));
    }
}
