//! The reference: the same pushes, sent by the bare h2 crate.
//!
//! It opens the same number of connections through the same dial (name, TCP, TLS, ALPN), keeps as many streams in flight as
//! `ringcast pipe` does, and sends requests that are the same byte for byte but for ids, tokens and times. It reads no
//! invite, looks at no clock, retries nothing, remembers nothing and writes no outcome; what is the same in every push is
//! prepared, and ids, tokens and bodies are written without a formatter. What Ringcast costs beyond it is Ringcast's own;
//! what it costs itself is the price of HTTP/2 over TLS with this library.
//!
//! Fed, it sends what comes on stdin, when it comes: of each line it takes call id and token, and that is all it knows of invites.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey;
use ringcast::apns::{Endpoint, dial, tls};
use ringcast::clock::Clock;
use tokio::io::AsyncBufReadExt;
use tokio::net::unix::pipe;
use tokio::task::{JoinSet, LocalSet};

use super::program::{KEY_ID, TEAM_ID, TOPIC};
use super::{Failure, traffic};

const APNS_EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
const APNS_ID: HeaderName = HeaderName::from_static("apns-id");
const APNS_PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
const APNS_PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
const APNS_TOPIC: HeaderName = HeaderName::from_static("apns-topic");

/// How often it says how far it is.
const PUSHES_A_LINE: u64 = 10_000;

/// What the reference is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Task {
    /// The endpoint's port on 127.0.0.1
    #[arg(long)]
    pub port: u16,
    /// The folder with its identity
    #[arg(long)]
    pub identity: std::path::PathBuf,
    /// Number of the run
    #[arg(long)]
    pub run: u32,
    /// How many pushes
    #[arg(long)]
    pub pushes: u64,
    /// Connections
    #[arg(long)]
    pub connections: u64,
    /// Streams in flight, on all connections together
    #[arg(long)]
    pub streams: u64,
}

/// Sends all, says on stdout how many were accepted so far, and lives on to be weighed until stdin ends.
pub fn run(task: &Task) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, push_all(task))?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// What the reference is told that sends what comes.
#[derive(Clone, Debug, clap::Args)]
pub struct Fed {
    /// The endpoint's port on 127.0.0.1
    #[arg(long)]
    pub port: u16,
    /// The folder with its identity
    #[arg(long)]
    pub identity: std::path::PathBuf,
    /// Connections
    #[arg(long)]
    pub connections: u64,
}

/// Sends each line of stdin as it comes, until stdin has ended and all is answered.
pub fn run_fed(fed: &Fed) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, push_as_they_come(fed))
}

async fn push_as_they_come(fed: &Fed) -> Result<(), Failure> {
    let template = Rc::new(Template::new(&fed.identity, fed.port)?);
    let senders = connect(&fed.identity, fed.port, fed.connections).await?;
    let stdin = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut stdin = tokio::io::BufReader::with_capacity(1 << 16, stdin);
    let mut pushes = JoinSet::new();
    let mut line = String::new();
    for (number, sender) in (0..).zip(senders.iter().cycle()) {
        line.clear();
        if stdin.read_line(&mut line).await? == 0 {
            break;
        }
        let (call_id, token) = (text_of(&line, "call_id")?, text_of(&line, "token")?);
        let ids = Ids { call_id, token, is_first: number < fed.connections };
        let (template, mut sender) = (Rc::clone(&template), sender.clone());
        pushes.spawn_local(async move { push(&template, &mut sender, &ids).await });
        while let Some(ended) = pushes.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = pushes.join_next().await {
        ended??;
    }
    Ok(())
}

/// A text of a JSON line without blanks that holds nothing to escape; its length is known.
fn text_of<const LENGTH: usize>(line: &str, name: &str) -> Result<[u8; LENGTH], Failure> {
    let (_, rest) = line.split_once(name).ok_or("an invite lacks a name")?;
    let text =
        rest.strip_prefix("\":\"").and_then(|rest| rest.split_once('"')).ok_or("an invite lacks a text")?.0;
    Ok(text.as_bytes().try_into()?)
}

async fn connect(identity: &Path, port: u16, connections: u64) -> Result<Vec<SendRequest<Bytes>>, Failure> {
    let tls = tls::Tls::new(&tls::Trust::load(Some(&identity.join("ca.pem")))?, None)?;
    let dial = dial::tls_dial(Endpoint { host: "127.0.0.1".to_owned(), port }, tls);
    let address = (std::net::Ipv4Addr::LOCALHOST, port).into();
    let mut senders = Vec::new();
    for _ in 0..connections {
        let (sender, connection) =
            h2::client::Builder::new().enable_push(false).handshake(dial.connect(address).await?).await?;
        tokio::spawn(connection);
        senders.push(sender);
    }
    Ok(senders)
}

async fn push_all(task: &Task) -> Result<(), Failure> {
    let template = Rc::new(Template::new(&task.identity, task.port)?);
    let senders = connect(&task.identity, task.port, task.connections).await?;
    let Task { run, pushes, connections, .. } = *task;
    let accepted = Rc::new(Cell::new(0_u64));
    let mut lanes = JoinSet::new();
    // By callgrind a task for each stream costs less than one for all of them, and less on a LocalSet than beside it.
    for (first, sender) in (0..task.streams).zip(senders.iter().cycle()) {
        let (template, mut sender, accepted) = (Rc::clone(&template), sender.clone(), Rc::clone(&accepted));
        let numbers = (first..pushes).step_by(usize::try_from(task.streams)?);
        lanes.spawn_local(async move {
            for number in numbers {
                let (call_id, token) =
                    (traffic::call_id_bytes(run, number), traffic::token_bytes(run, number));
                let ids = Ids { call_id, token, is_first: number < connections };
                push(&template, &mut sender, &ids).await?;
                accepted.set(accepted.get() + 1);
                if accepted.get().is_multiple_of(PUSHES_A_LINE) || accepted.get() == pushes {
                    writeln!(io::stdout(), "{}", accepted.get())?;
                }
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = lanes.join_next().await {
        ended??;
    }
    Ok(())
}

async fn push(template: &Template, sender: &mut SendRequest<Bytes>, ids: &Ids) -> Result<(), Failure> {
    let request = template.request(ids)?;
    poll_fn(|cx| sender.poll_ready(cx)).await?;
    let (answer, mut stream) = sender.send_request(request, false)?;
    stream.send_data(template.body(ids), true)?;
    let status = answer.await?.status();
    if status == StatusCode::OK {
        Ok(())
    } else {
        Err(format!("the push of {} was answered {status}", String::from_utf8_lossy(&ids.call_id)).into())
    }
}

/// What is a push's own.
struct Ids {
    call_id: [u8; 36],
    token: [u8; 64],
    /// It is the first on its connection.
    is_first: bool,
}

/// What is the same in every request.
struct Template {
    authority: Authority,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Where the call id stands in the body.
    call_id: Range<usize>,
}

impl Template {
    fn new(identity: &Path, port: u16) -> Result<Self, Failure> {
        let mut authorization = HeaderValue::try_from(format!("bearer {}", provider_token(identity)?))?;
        authorization.set_sensitive(true);
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(AUTHORIZATION, authorization);
        headers.insert(APNS_TOPIC, HeaderValue::from_static(TOPIC));
        headers.insert(APNS_PUSH_TYPE, HeaderValue::from_static("voip"));
        headers.insert(APNS_PRIORITY, HeaderValue::from_static("10"));
        headers.insert(APNS_EXPIRATION, HeaderValue::from_static("0"));
        // Each push has its own; its place is kept.
        headers.insert(APNS_ID, HeaderValue::from_static(""));
        let call_id = traffic::call_id(0, 0);
        let body = traffic::push_body(&call_id, traffic::deadline());
        let start = body.find(&call_id).ok_or("the body has no call id")?;
        Ok(Self {
            authority: Authority::try_from(format!("127.0.0.1:{port}"))?,
            headers,
            body: body.into_bytes(),
            call_id: start..start + call_id.len(),
        })
    }

    /// The first request on a connection brings the name of `apns-id` into the peer's header table, as the worker's does
    /// (`src/apns/request.rs`); the ids themselves stay out of it.
    fn request(&self, ids: &Ids) -> Result<Request<()>, Failure> {
        const DEVICE: &[u8] = b"/3/device/";
        let mut path = Vec::with_capacity(DEVICE.len() + ids.token.len());
        path.extend_from_slice(DEVICE);
        path.extend_from_slice(&ids.token);
        let mut parts = uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(path))?);
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(parts)?;
        *request.headers_mut() = self.headers.clone();
        let mut id = HeaderValue::from_bytes(&ids.call_id)?;
        id.set_sensitive(!ids.is_first);
        if let Some(place) = request.headers_mut().get_mut(APNS_ID) {
            *place = id;
        }
        Ok(request)
    }

    fn body(&self, ids: &Ids) -> Bytes {
        let mut body = self.body.clone();
        body[self.call_id.clone()].copy_from_slice(&ids.call_id);
        Bytes::from(body)
    }
}

/// A provider token of the simulator's key (Apple, *Establishing a token-based connection to APNs*).
fn provider_token(identity: &Path) -> Result<String, Failure> {
    let pem = std::fs::read_to_string(identity.join(format!("AuthKey_{KEY_ID}.p8")))?;
    let key = SigningKey::from_pkcs8_pem(&pem).map_err(|error| error.to_string())?;
    let header = base64url(format!(r#"{{"alg":"ES256","kid":"{KEY_ID}"}}"#).as_bytes());
    let issued_at = Clock::system().unix_ms() / 1000;
    let claims = base64url(format!(r#"{{"iss":"{TEAM_ID}","iat":{issued_at}}}"#).as_bytes());
    let signed = format!("{header}.{claims}");
    let signature: Signature = key.sign(signed.as_bytes());
    Ok(format!("{signed}.{}", base64url(&signature.to_bytes())))
}

/// RFC 4648 §5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word =
            group.iter().chain([0; 2].iter()).take(3).fold(0, |word, byte| word << 8 | usize::from(*byte));
        for sextet in 0..=group.len() {
            text.push(char::from(ALPHABET[word >> (18 - 6 * sextet) & 63]));
        }
    }
    text
}
