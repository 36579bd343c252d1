//! A small client on the `h2` crate, and a world with one simulator and one signing key.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::simulator::provider_token::tests::sign;
use crate::simulator::{Options, Peer, Simulator, VerifyingKey};

pub(super) const START_S: u64 = 1_795_000_000;
pub(super) const TOKEN: &str = "00aa11bb22cc33dd";
pub(super) const ID: &str = "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a";

pub(super) struct World {
    pub(super) simulator: Simulator,
    key: EcdsaKeyPair,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Its wall clock starts at [`START_S`] and goes with tokio's.
    pub(super) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let start = Instant::now();
        let mut options = Options::new(VerifyingKey::from_sec1(key.public_key().as_ref()).unwrap());
        options.clock =
            Arc::new(move || START_S * 1000 + u64::try_from(start.elapsed().as_millis()).unwrap());
        change(&mut options);
        Self { simulator: Simulator::new(options).unwrap(), key }
    }

    pub(super) fn provider_token(&self, iat: u64) -> String {
        self.sign("TEAM123456", "KEY1234567", iat)
    }

    /// The header of another team or key id, all signed with the one key there is.
    pub(super) fn authorization(&self, team_id: &str, key_id: &str, iat: u64) -> String {
        format!("bearer {}", self.sign(team_id, key_id, iat))
    }

    pub(super) fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey::from_sec1(self.key.public_key().as_ref()).unwrap()
    }

    fn sign(&self, team_id: &str, key_id: &str, iat: u64) -> String {
        let header = format!(r#"{{"alg":"ES256","kid":"{key_id}"}}"#);
        sign(&self.key, &header, &format!(r#"{{"iss":"{team_id}","iat":{iat}}}"#))
    }

    pub(super) async fn connect(&self) -> Client {
        self.connect_as(Peer::default()).await
    }

    pub(super) async fn connect_as(&self, peer: Peer) -> Client {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let simulator = self.simulator.clone();
        let served = tokio::spawn(async move { simulator.serve_peer(far, peer).await });
        let mut client = Client::handshake(near, self.provider_token(START_S)).await.unwrap();
        client.served = Some(served);
        client
    }
}

pub(super) struct Client {
    pub(super) http2: SendRequest<Bytes>,
    pub(super) authorization: String,
    pub(super) ended: JoinHandle<Result<(), h2::Error>>,
    pub(super) served: Option<JoinHandle<()>>,
    pings: h2::PingPong,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn reason(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap();
        json["reason"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub(super) async fn handshake<IO>(io: IO, token: String) -> Result<Self, h2::Error>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (http2, mut connection) = h2::client::handshake(io).await?;
        let pings = connection.ping_pong().unwrap();
        let ended = tokio::spawn(connection);
        Ok(Self { http2, authorization: format!("bearer {token}"), ended, served: None, pings })
    }

    /// Once it is back, everything the server sent before has been seen.
    pub(super) async fn ping(&mut self) -> bool {
        let pong = self.pings.ping(h2::Ping::opaque());
        matches!(tokio::time::timeout(Duration::from_secs(1), pong).await, Ok(Ok(_)))
    }

    pub(super) fn request(&self, token: &str) -> Request<()> {
        Request::post(format!("https://localhost/3/device/{token}"))
            .header("authorization", &self.authorization)
            .header("apns-topic", "com.acme.voice.voip")
            .header("apns-push-type", "voip")
            .header("apns-priority", "10")
            .header("apns-expiration", "0")
            .header("apns-id", ID)
            .body(())
            .unwrap()
    }

    /// Sends now; the answer is a future.
    pub(super) fn start(
        &mut self,
        request: Request<()>,
        body: &str,
    ) -> impl Future<Output = Result<Answer, h2::Error>> + use<> {
        let sent = self.http2.send_request(request, body.is_empty()).and_then(|(response, mut stream)| {
            if !body.is_empty() {
                stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
            }
            Ok(response)
        });
        async move {
            let (head, mut stream) = sent?.await?.into_parts();
            let mut body = Vec::new();
            while let Some(chunk) = stream.data().await {
                body.extend_from_slice(&chunk?);
            }
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.into() })
        }
    }

    pub(super) async fn push(&mut self, token: &str) -> Result<Answer, h2::Error> {
        let request = self.request(token);
        self.start(request, r#"{"aps":{}}"#).await
    }

    /// What became of the last push: its status, or how it failed.
    pub(super) async fn outcome(&mut self, token: &str) -> String {
        match self.push(token).await {
            Ok(answer) if answer.body.is_empty() => answer.status.to_string(),
            Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            Err(error) => describe(&error),
        }
    }
}

pub(super) fn describe(error: &h2::Error) -> String {
    let kind = if error.is_reset() {
        "reset"
    } else if error.is_go_away() {
        "goaway"
    } else if error.is_io() {
        "io"
    } else {
        "other"
    };
    let whose = if error.is_remote() { "remote" } else { "local" };
    let reason = error.reason().map_or_else(String::new, |reason| format!(" {reason:?}"));
    format!("{whose} {kind}{reason}")
}
