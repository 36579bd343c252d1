//! The provider token: a JWT that says who sends (Apple, *Establishing a token-based connection to APNs*).
//!
//! `iat` stands in buckets of half an hour and the signature is deterministic (RFC 6979), so that every worker mints the
//! very same token without asking another one: APNs counts how many tokens a team uses.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use p256::ecdsa::signature::{Error as SignatureError, Signer};
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::ProviderKey;
use crate::clock::Clock;
use crate::domain::app::Environment;
use crate::metrics::Metrics;

/// Seconds of one bucket. A token is at most this old when it is minted, a connection keeps it for at least 20 minutes, so
/// the oldest in use is 50 minutes old; Apple refuses one older than an hour.
const BUCKET_SECONDS: i64 = 30 * 60;

/// No push carries an older one.
const AGE_SECONDS_MAX: i64 = 50 * 60;

/// A connection whose token cannot be changed in time is replaced from this age on.
const WORN_SECONDS: i64 = 48 * 60;

/// A connection keeps its token at least this long: APNs answers a change within 20 minutes with 429
/// TooManyProviderTokenUpdates.
const KEPT: Duration = Duration::from_secs(20 * 60 + 30);

/// A signed token, ready for the header.
#[derive(Debug)]
pub(super) struct ProviderToken {
    /// `bearer <jwt>`, marked sensitive: never indexed, never printed.
    pub header: HeaderValue,
    /// `iat`, Unix seconds.
    pub issued_at: i64,
    minted: Instant,
    /// Seconds since `iat` at that moment.
    age_when_minted: i64,
}

/// The token of one connection, from its first request on.
#[derive(Debug, Default)]
pub(super) struct Pinned(Option<(Arc<ProviderToken>, Instant)>);

/// Why a connection has no token for a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum PinError {
    /// It can be neither used nor changed any more.
    #[error("the connection's provider token is too old to be used and too new to be changed")]
    Worn,
    #[error(transparent)]
    Mint(#[from] MintError),
}

impl Pinned {
    /// The `authorization` header of the next request. A newer token is taken once the one in use was kept long enough.
    pub(super) fn header(&mut self, mint: &TokenMint) -> Result<HeaderValue, PinError> {
        let usable = 1 - BUCKET_SECONDS..AGE_SECONDS_MAX;
        if let Some((token, since)) = &self.0 {
            let kept = since.elapsed() >= KEPT;
            if !kept && !usable.contains(&mint.age(token)) {
                return Err(PinError::Worn);
            }
            if !kept || mint.current()?.issued_at == token.issued_at {
                return Ok(token.header.clone());
            }
        }
        let token = mint.current()?;
        let header = token.header.clone();
        self.0 = Some((token, Instant::now()));
        Ok(header)
    }

    /// Whether the connection must be replaced, because its token gets too old before it may be changed.
    pub(super) fn is_worn(&self, mint: &TokenMint) -> bool {
        self.0.as_ref().is_some_and(|(token, since)| {
            let left = u64::try_from(AGE_SECONDS_MAX - mint.age(token)).unwrap_or(0);
            mint.age(token) >= WORN_SECONDS
                && since.elapsed() + Duration::from_secs(left.saturating_sub(30)) < KEPT
        })
    }
}

impl ProviderToken {
    /// Seconds since its `iat`, whatever became of the wall clock since it was minted.
    fn age_gone_by(&self) -> i64 {
        self.age_when_minted + i64::try_from(self.minted.elapsed().as_secs()).unwrap_or(i64::MAX / 2)
    }
}

/// Mints the tokens of one key, one per bucket.
#[derive(Debug)]
pub(super) struct TokenMint {
    team_id: String,
    key_id: String,
    key: Option<SigningMaterial>,
    environment: Environment,
    clock: Clock,
    metrics: Arc<Metrics>,
    current: Mutex<Option<Arc<ProviderToken>>>,
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
    /// A mint for one environment, which is what its metrics are counted under; the tokens are the same in both.
    pub(super) fn new(
        key: &ProviderKey,
        environment: Environment,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let ProviderKey { team_id, key_id, key } = key.clone();
        let key = key.to_pkcs8_der().ok();
        let key = key.map(|der| SigningMaterial(EncodingKey::from_ec_der(der.as_bytes())));
        Self { team_id, key_id, key, environment, clock, metrics, current: Mutex::new(None) }
    }

    /// The token of this half hour. A clock that goes back a little keeps the one it has: a new one would be a needless
    /// update. One whose `iat` lies far ahead was minted by a clock that was wrong, and Apple refuses it.
    pub(super) fn current(&self) -> Result<Arc<ProviderToken>, MintError> {
        let now = self.clock.unix_ms().div_euclid(1000);
        let issued_at = now - now.rem_euclid(BUCKET_SECONDS);
        let mut current = self.current.lock();
        let ahead = now + BUCKET_SECONDS;
        let holds = |token: &&Arc<ProviderToken>| {
            token.issued_at == issued_at
                || (issued_at..=ahead).contains(&token.issued_at) && token.age_gone_by() < BUCKET_SECONDS
        };
        if let Some(token) = current.as_ref().filter(holds) {
            return Ok(Arc::clone(token));
        }
        let minted = self.mint(issued_at, now);
        let result = if minted.is_ok() { "minted" } else { "failed" };
        self.metrics.provider_token_mint(self.environment.as_str(), result);
        let token = Arc::new(minted?);
        *current = Some(Arc::clone(&token));
        Ok(token)
    }

    /// Seconds since a token's `iat`: by the wall clock or by the time that went by, whichever says more, since the wall
    /// clock may have been set back. Negative where the clock was ahead when it was minted.
    pub(super) fn age(&self, token: &ProviderToken) -> i64 {
        let by_wall = self.clock.unix_ms().div_euclid(1000) - token.issued_at;
        if by_wall <= -BUCKET_SECONDS { by_wall } else { by_wall.max(token.age_gone_by()) }
    }

    /// Seconds since the current token's `iat`; `None` before the first one.
    pub(super) fn age_seconds(&self) -> Option<i64> {
        let issued_at = self.current.lock().as_ref()?.issued_at;
        Some(self.clock.unix_ms().div_euclid(1000) - issued_at)
    }

    fn mint(&self, issued_at: i64, now: i64) -> Result<ProviderToken, MintError> {
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
        Ok(ProviderToken { header, issued_at, minted: Instant::now(), age_when_minted: now - issued_at })
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
        let credential = ProviderKey { team_id: "TEAM123456".into(), key_id: "KEY1234567".into(), key };
        TokenMint::new(&credential, Environment::Production, clock.clone(), Metrics::new())
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
    async fn what_is_signed_and_what_cannot_be_is_counted() {
        let mut mint = mint(&Clock::simulated(1_795_253_400_000));
        mint.current().unwrap();
        mint.current().unwrap();
        tokio::time::advance(Duration::from_mins(31)).await;
        mint.key = None;
        mint.current().unwrap_err();
        let text = mint.metrics.render();
        for result in ["minted", "failed"] {
            let one = format!(r#"mints_total{{environment="production",result="{result}"}} 1"#);
            assert!(text.contains(&one), "{one} in {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_from_a_clock_that_was_ahead_is_replaced() {
        const DAY: i64 = 24 * 60 * 60;
        let clock = Clock::simulated(1_795_253_400_000);
        let mint = mint(&clock);
        let right = mint.current().unwrap();
        let ahead = || ProviderToken {
            header: right.header.clone(),
            issued_at: right.issued_at + DAY,
            minted: Instant::now(),
            age_when_minted: 0,
        };
        let mut pinned = Pinned(Some((Arc::new(ahead()), Instant::now())));
        assert!(matches!(pinned.header(&mint), Err(PinError::Worn)));
        *mint.current.lock() = Some(Arc::new(ahead()));
        assert_eq!(mint.current().unwrap().issued_at, right.issued_at);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_keeps_its_token_for_20_minutes_and_none_is_used_for_longer_than_50() {
        // A connection may take its token at any minute of the half hour.
        for half_minutes in 0..60 {
            let first_use = Duration::from_secs(30 * half_minutes);
            let is_late = first_use > Duration::from_mins(29);
            let clock = Clock::simulated(1_795_253_400_000);
            let mint = mint(&clock);
            tokio::time::advance(first_use).await;
            let mut pinned = Pinned::default();
            let (mut last, mut since) = (pinned.header(&mint).unwrap(), Instant::now());
            let mut replaced = false;
            for _ in 0..4 * 60 * 6 {
                tokio::time::advance(Duration::from_secs(10)).await;
                if pinned.is_worn(&mint) {
                    assert!(is_late, "taken after {first_use:?}");
                    (pinned, replaced) = (Pinned::default(), true);
                    (last, since) = (pinned.header(&mint).unwrap(), Instant::now());
                }
                let header = pinned.header(&mint).expect("it is replaced before it is worn");
                if header != last {
                    assert!(since.elapsed() > Duration::from_mins(20), "changed after {:?}", since.elapsed());
                    (last, since) = (header, Instant::now());
                }
                let (token, _) = pinned.0.as_ref().unwrap();
                assert!(mint.age(token) <= AGE_SECONDS_MAX, "{} s old", mint.age(token));
            }
            assert_eq!(replaced, is_late, "taken after {first_use:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_goes_back_does_not_keep_a_token_young() {
        let clock = Clock::simulated(1_795_253_400_000);
        let mint = mint(&clock);
        let token = mint.current().unwrap();
        tokio::time::advance(Duration::from_mins(40)).await;
        // As if the wall clock had stood still.
        let token =
            ProviderToken { header: token.header.clone(), issued_at: token.issued_at + 2_400, ..*token };
        assert_eq!(mint.age(&token), 2_400);
    }

    #[tokio::test(start_paused = true)]
    async fn the_token_is_what_apple_describes_and_is_never_printed() {
        let token = mint(&Clock::simulated(1_795_253_400_000)).current().unwrap();
        let text = token.header.to_str().unwrap().strip_prefix("bearer ").unwrap();
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
