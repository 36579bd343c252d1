//! The way to an endpoint through an HTTP proxy: CONNECT (RFC 9110 §9.3.6), and inside the tunnel the same TLS as without it.
//!
//! The proxy is told the endpoint's name as configured and looks it up itself: a network that needs a proxy may know no
//! names outside. Nothing here has a time limit; the pool gives an opening one.

use std::error::Error;
use std::fmt;
use std::io::{self, Cursor, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::Endpoint;
use super::dial::{BoxedIo, Dial, DialError, Dialer, Dialling, Io, encrypt, look_up};
use super::tls::Tls;

/// `user:password` has not half as many bytes.
const LOGIN_BYTES_MAX: u64 = 4096;

/// What a proxy says beside its status is shown up to here.
const REASON_CHARS_MAX: usize = 80;

/// `apns.proxy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Where it is; reached in plain TCP.
    pub place: Endpoint,
    /// `apns.proxy_credentials_file`: holds `user:password`, read anew at each dial.
    pub credentials_file: Option<PathBuf>,
}

/// What goes wrong between us and the endpoint's TLS; a sentence that begins with `the proxy …`.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Its name has no address.
    #[error("has no address: {0} (apns.proxy)")]
    Name(io::Error),
    /// It did not take the connection.
    #[error("cannot be connected at {address}: {cause} (apns.proxy)")]
    Connect {
        /// The address tried.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The file with the login cannot be used any more.
    #[error("was not asked: apns.proxy_credentials_file {path} {cause}")]
    LoginFile {
        /// The path as configured.
        path: String,
        /// What is wrong with it; never what it holds.
        cause: String,
    },
    /// 407 without a login, or 401, which is what tinyproxy says to a wrong one.
    #[error(
        "wants a login ({0}), and apns.proxy_credentials_file is not set; give a file that holds user:password"
    )]
    LoginMissing(u16),
    /// The same in spite of one.
    #[error("does not take the login ({0}); the user or password in apns.proxy_credentials_file is wrong")]
    LoginWrong(u16),
    /// Any other status that opens no tunnel.
    #[error("opens no way to {target}: {said}")]
    Refused {
        /// The endpoint, as it was asked for.
        target: String,
        /// Status and reason, as far as they can be shown.
        said: String,
    },
    /// No HTTP, or nothing at all.
    #[error("gives no HTTP answer to CONNECT: {0} (is an HTTP proxy there? apns.proxy)")]
    Mute(String),
}

/// A user and a password, as the header carries them. Never shown.
#[derive(Clone)]
pub struct Login(HeaderValue);

impl Login {
    /// Reads `user:password` from a file; blanks and newlines around it do not count. Errors say what is wrong and what
    /// would be right, and never quote the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        const RIGHT: &str = "give a file that holds user:password on one line";
        let cannot = |error: &io::Error| format!("cannot be read: {error}; {RIGHT}");
        let file = std::fs::File::open(path).map_err(|error| cannot(&error))?;
        let mut bytes = Vec::new();
        file.take(LOGIN_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
        Self::parse(&bytes).map_err(|what| format!("{what}; {RIGHT}"))
    }

    /// RFC 7617 §2: a user without a colon, a password, neither with a control character.
    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() as u64 > LOGIN_BYTES_MAX {
            return Err("is too long for a login");
        }
        let text = str::from_utf8(bytes).map_err(|_| "is not UTF-8 text")?.trim();
        match text.split_once(':') {
            _ if text.is_empty() => Err("is empty"),
            None => Err("holds no colon between user and password"),
            Some(_) if text.contains(['\n', '\r']) => Err("holds more than one line"),
            Some(_) if text.contains(char::is_control) => Err("holds a control character"),
            Some(("", _)) => Err("holds no user before the colon"),
            Some(_) => {
                let mut header = HeaderValue::try_from(format!("Basic {}", base64(text.as_bytes())))
                    .expect("base64 can stand in a header");
                header.set_sensitive(true);
                Ok(Self(header))
            }
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Login(not shown)")
    }
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |place| u32::from(chunk.get(place).copied().unwrap_or_default());
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let sextet = (group >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

/// The way to an endpoint over TLS, through a proxy.
pub fn proxy_dial(proxy: Proxy, endpoint: Endpoint, tls: Arc<Tls>) -> Dial {
    Arc::new(ProxyDialer { proxy, endpoint, tls })
}

struct ProxyDialer {
    proxy: Proxy,
    endpoint: Endpoint,
    tls: Arc<Tls>,
}

impl Dialer for ProxyDialer {
    fn resolve(&self) -> Dialling<Vec<SocketAddr>> {
        let place = self.proxy.place.clone();
        Box::pin(async move {
            let found = look_up(&place).await;
            found.map_err(|cause| DialError::Proxy {
                proxy: place.to_string(),
                cause: ProxyError::Name(cause),
            })
        })
    }

    fn connect(&self, address: SocketAddr) -> Dialling<BoxedIo> {
        let (proxy, endpoint, config) = (self.proxy.clone(), self.endpoint.clone(), self.tls.current());
        Box::pin(async move {
            let tunnel = async {
                let login = read_login(proxy.credentials_file).await?;
                let stream = TcpStream::connect(address)
                    .await
                    .map_err(|cause| ProxyError::Connect { address, cause })?;
                // Off is slower and nothing else: not a reason to give the connection up.
                let _ = stream.set_nodelay(true);
                open_tunnel(stream, &endpoint.to_string(), login).await
            };
            let tunnel = tunnel.await;
            let tunnel =
                tunnel.map_err(|cause| DialError::Proxy { proxy: proxy.place.to_string(), cause })?;
            encrypt(&endpoint.host, config, tunnel).await
        })
    }
}

/// What the file says now: a changed password needs no restart.
async fn read_login(file: Option<PathBuf>) -> Result<Option<Login>, ProxyError> {
    let Some(file) = file else { return Ok(None) };
    let path = file.display().to_string();
    let read = tokio::task::spawn_blocking(move || Login::read(&file)).await;
    let read = read.unwrap_or_else(|error| Err(format!("cannot be read: {error}")));
    read.map(Some).map_err(|cause| ProxyError::LoginFile { path, cause })
}

/// Asks for the way to `target` and gives what carries bytes to it, those first that came together with the answer.
async fn open_tunnel(
    stream: TcpStream,
    target: &str,
    login: Option<Login>,
) -> Result<impl Io + use<>, ProxyError> {
    let has_login = login.is_some();
    let request = connect_request(target, login).map_err(|error| mute(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| mute(&error))?;
    let mut connection = pin!(connection.without_shutdown());
    let mut answer = pin!(sender.send_request(request));
    // Biased: an answer goes before the end of the connection that brought it.
    let (response, ended) = tokio::select! {
        biased;
        response = &mut answer => (response, None),
        ended = &mut connection => (answer.await, Some(ended)),
    };
    let response = response.map_err(|error| mute(&error))?;
    // The library takes 204 for the end of an exchange, not for a tunnel; no proxy is known to say it.
    if !response.status().is_success() || response.status() == StatusCode::NO_CONTENT {
        return Err(refusal(&response, target, has_login));
    }
    let ended = match ended {
        Some(ended) => ended,
        None => connection.await,
    };
    let parts = ended.map_err(|error| mute(&error))?;
    let (read, write) = parts.io.into_inner().into_split();
    let came_along = Cursor::new(parts.read_buf);
    Ok(tokio::io::join(AsyncReadExt::chain(came_along, read), write))
}

fn connect_request(target: &str, login: Option<Login>) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut request = Request::builder().method(Method::CONNECT).uri(target).header(HOST, target);
    if let Some(Login(login)) = login {
        request = request.header(PROXY_AUTHORIZATION, login);
    }
    request.body(Empty::new())
}

fn refusal<B>(response: &Response<B>, target: &str, has_login: bool) -> ProxyError {
    let status = response.status();
    if matches!(status, StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED) {
        let wrong = if has_login { ProxyError::LoginWrong } else { ProxyError::LoginMissing };
        return wrong(status.as_u16());
    }
    let reason = response.extensions().get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
    let reason = reason.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().as_bytes());
    let reason: String = String::from_utf8_lossy(reason)
        .chars()
        .filter(|letter| !letter.is_control())
        .take(REASON_CHARS_MAX)
        .collect();
    let said = format!("{} {reason}", status.as_u16()).trim().to_owned();
    ProxyError::Refused { target: target.to_owned(), said }
}

/// An error with what is below it, in one sentence.
fn mute(error: &dyn Error) -> ProxyError {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        text = format!("{text}: {cause}");
        below = cause.source();
    }
    ProxyError::Mute(text)
}

#[cfg(test)]
mod tests;
