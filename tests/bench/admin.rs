//! What a worker says on its admin endpoints.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::Failure;

/// Whether `/readyz` says 200. A worker that does not listen yet is not ready.
pub fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// How many invites of the app that is always there were accepted so far. A worker that does not listen yet has none.
pub fn accepted(admin: SocketAddr) -> u64 {
    let page = get(admin, "/metrics").unwrap_or_default();
    let name = r#"ringcast_invites_total{app="acme",result="accepted"} "#;
    let count = page.lines().find_map(|line| line.strip_prefix(name));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn get(admin: SocketAddr, path: &str) -> Result<String, Failure> {
    let mut stream = TcpStream::connect(admin)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: ringcast\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
