//! A proxy that says what a test wants it to say.

use std::net::Ipv4Addr;
use std::time::Duration;

use rustls::RootCertStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::apns::tls::Trust;

const TARGET: &str = "api.push.apple.com:443";

/// Takes one connection, reads the request, writes the pieces one by one, and keeps the connection if told so. Gives the
/// request and what came after it.
async fn script(pieces: Vec<Vec<u8>>, keep: bool) -> (SocketAddr, JoinHandle<(String, Vec<u8>)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        for piece in pieces {
            if stream.write_all(&piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut after = Vec::new();
        if keep {
            // Ended by us or reset: either way nothing more comes.
            let _ = stream.read_to_end(&mut after).await;
        }
        (String::from_utf8(request).unwrap(), after)
    });
    (address, peer)
}

async fn tunnel(
    pieces: &[&[u8]],
    keep: bool,
    login: Option<&str>,
) -> (Result<impl Io + use<>, ProxyError>, JoinHandle<(String, Vec<u8>)>) {
    let (address, peer) = script(pieces.iter().map(|piece| piece.to_vec()).collect(), keep).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let login = login.map(|login| Login::parse(login.as_bytes()).unwrap());
    let opened = timeout(Duration::from_secs(20), open_tunnel(stream, TARGET, login)).await;
    (opened.expect("every script ends"), peer)
}

async fn refused(pieces: &[&[u8]], keep: bool, login: Option<&str>) -> String {
    match tunnel(pieces, keep, login).await.0 {
        Ok(_) => panic!("a way was opened by {pieces:?}"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn what_came_with_the_answer_is_read_first_and_nothing_is_lost() {
    let glued: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\n\r\nfirst", b", second"];
    let old: &[&[u8]] =
        &[b"HTTP/1.0 200 Connection established\r\nProxy-agent: x/1\r\n\r\nfirst, ", b"second"];
    let told_a_length: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst, second"];
    let hints: &[&[u8]] = &[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 299 x\r\n\r\nfirst, second"];
    let letters: Vec<&[u8]> = glued.iter().flat_map(|piece| piece.chunks(1)).collect();
    for pieces in [glued, old, told_a_length, hints, &letters] {
        let (opened, peer) = tunnel(pieces, true, Some("me:hush")).await;
        let mut opened = opened.unwrap_or_else(|error| panic!("{error} after {pieces:?}"));
        let mut read = [0; 13];
        opened.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"first, second");
        opened.write_all(b"hello").await.unwrap();
        opened.shutdown().await.unwrap();
        let (request, after) = peer.await.unwrap();
        assert_eq!(after, b"hello");
        assert_eq!(
            request,
            "CONNECT api.push.apple.com:443 HTTP/1.1\r\nhost: api.push.apple.com:443\r\n\
             proxy-authorization: Basic bWU6aHVzaA==\r\n\r\n"
        );
    }
}

#[tokio::test]
async fn every_refusal_has_its_own_sentence() {
    let login_wanted: &[&[u8]] =
        &[b"HTTP/1.1 407 Proxy Authentication Required\r\n", b"Content-Length: 9\r\n\r\n"];
    assert_eq!(
        refused(login_wanted, true, None).await,
        "wants a login (407), and apns.proxy_credentials_file is not set; give a file that holds user:password"
    );
    assert_eq!(
        refused(login_wanted, false, Some("me:hush")).await,
        "does not take the login (407); the user or password in apns.proxy_credentials_file is wrong"
    );
    let tinyproxy: &[&[u8]] = &[b"HTTP/1.0 401 Unauthorized\r\nConnection: close\r\n\r\n"];
    assert_eq!(
        refused(tinyproxy, false, Some("me:hush")).await,
        "does not take the login (401); the user or password in apns.proxy_credentials_file is wrong"
    );
    assert_eq!(
        refused(&[b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>"], false, None).await,
        "opens no way to api.push.apple.com:443: 502 Bad Gateway"
    );
    let long = format!("HTTP/1.1 599 a\tb{}\r\n\r\n", "c".repeat(500));
    assert_eq!(
        refused(&[long.as_bytes()], true, None).await,
        format!("opens no way to api.push.apple.com:443: 599 ab{}", "c".repeat(REASON_CHARS_MAX - 2))
    );
    assert!(refused(&[b"HTTP/1.1 204 No Content\r\n\r\n"], true, None).await.contains("204"));
    assert!(refused(&[b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"], true, None).await.contains("101"));
}

#[tokio::test]
async fn what_is_no_answer_is_told_apart_from_a_refusal() {
    let flood = vec![b'x'; 2_000_000];
    let endless: [&[u8]; 2] = [b"HTTP/1.1 200 OK\r\nx: ", &flood];
    let scripts: [(&[&[u8]], bool); 7] = [
        (&[], false),
        (&[b"HTTP/1.1 200 O"], false),
        (&[b"HTTP/1.1 403 by \x1bpolicy\r\n\r\n"], true),
        (&[b"SSH-2.0-OpenSSH_9.2\r\n"], true),
        (&[b"\x15\x03\x01\x00\x02\x02\x16"], true),
        (&[b"HTTP/2 200\r\n\r\n"], true),
        (&endless, true),
    ];
    for (pieces, keep) in scripts {
        let said = refused(pieces, keep, Some("me:hush")).await;
        assert!(said.starts_with("gives no HTTP answer to CONNECT: "), "{said}");
        assert!(said.ends_with(" (is an HTTP proxy there? apns.proxy)"), "{said}");
        assert!(said.len() < 200 && !said.contains("SSH"), "nothing of the peer's: {said}");
    }
}

fn dial(port: u16, credentials_file: Option<PathBuf>) -> Dial {
    let tls = Tls::new(&Trust::of(RootCertStore::empty()), None).unwrap();
    let proxy = Proxy { place: Endpoint { host: "127.0.0.1".to_owned(), port }, credentials_file };
    proxy_dial(proxy, Endpoint { host: "::1".to_owned(), port: 2197 }, tls)
}

async fn fail(dial: &Dial) -> String {
    let addresses = dial.resolve().await.unwrap();
    match timeout(Duration::from_secs(20), dial.connect(addresses[0])).await.expect("it ends") {
        Ok(_) => panic!("nobody speaks TLS here"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn the_login_is_read_at_each_dial_and_the_endpoint_goes_by_its_name() {
    let path = std::env::temp_dir().join(format!("ringcast-proxy-login-{}", std::process::id()));
    for (login, sent) in [("me:one\n", "bWU6b25l"), ("\tme:two: 2 ", "bWU6dHdvOiAy")] {
        let answer = b"HTTP/1.1 200 OK\r\n\r\nno TLS".to_vec();
        let (address, peer) = script(vec![answer], false).await;
        std::fs::write(&path, login).unwrap();
        let said = fail(&dial(address.port(), Some(path.clone()))).await;
        assert!(said.starts_with("TLS with ::1 failed: "), "{said}");
        let (request, _) = peer.await.unwrap();
        assert!(request.starts_with("CONNECT [::1]:2197 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!(": Basic {sent}\r\n")), "{request}");
    }
    std::fs::write(&path, "me").unwrap();
    let said = fail(&dial(9, Some(path.clone()))).await;
    let shown = path.display();
    assert_eq!(
        said,
        format!(
            "the proxy 127.0.0.1:9 was not asked: apns.proxy_credentials_file {shown} holds no colon between user \
             and password; give a file that holds user:password on one line"
        )
    );
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_named() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    let said = fail(&dial(free, None)).await;
    let begin = format!("the proxy 127.0.0.1:{free} cannot be connected at 127.0.0.1:{free}: ");
    assert!(said.starts_with(&begin) && said.ends_with(" (apns.proxy)"), "{said}");
}

#[test]
fn logins_are_read_strictly_and_never_shown() {
    for (wrong, what) in [
        ("", "is empty"),
        (" \n", "is empty"),
        ("hush", "holds no colon between user and password"),
        ("me:hush\nyou:hush", "holds more than one line"),
        ("me:hu\tsh", "holds a control character"),
        (":hush", "holds no user before the colon"),
        (&"x:".repeat(4096), "is too long for a login"),
    ] {
        assert_eq!(Login::parse(wrong.as_bytes()).unwrap_err(), what);
    }
    assert_eq!(Login::parse(b"me:\xff").unwrap_err(), "is not UTF-8 text");
    let login = Login::parse("mé:hush:2\r\n".as_bytes()).unwrap();
    assert_eq!(login.0.to_str().unwrap(), "Basic bcOpOmh1c2g6Mg==");
    assert!(login.0.is_sensitive());
    assert_eq!(format!("{login:?}"), "Login(not shown)");
    // RFC 4648 §10.
    for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
        assert_eq!(base64(bytes.as_bytes()), text);
    }
}
