//! `[traces]`: where spans go.

use std::path::Path;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::endpoint::split;
use super::mistake::show;
use super::pem;
use super::reader::Reader;
use super::source::read_file;
use crate::otlp::{Endpoint, Settings};

const HEADERS_BYTES_MAX: u64 = 16 << 10;

/// Where OTLP's traces are taken unless the endpoint says otherwise (OTLP, *OTLP/HTTP Request*).
const PATH: &str = "/v1/traces";

pub(super) fn read(reader: &mut Reader) -> Settings {
    let mut traces = reader.section(&["traces"]);
    // Not shown in a mistake: people write a password where it does not belong.
    let endpoint = traces.secret("otlp_endpoint", parse);
    let ca_file = traces.text("ca_file", pem::trust_root);
    let is_plain = matches!(&endpoint, Some(Some(endpoint)) if !endpoint.is_tls);
    if ca_file.is_some() && is_plain {
        traces.refuse(
            "ca_file",
            "is set, but traces.otlp_endpoint is http://, without TLS; write https:// there or \"\" here",
        );
    }
    let headers = traces.secret("headers_file", |text| {
        if text.is_empty() {
            return Ok(HeaderMap::new());
        }
        // Other programs take the headers themselves, as `name: value` or `name=value`.
        let shown =
            if text.contains([':', '=']) { "(not shown: it may be a header itself)" } else { &show(text) };
        read_headers(Path::new(text)).map_err(|what| format!("{shown} {what}"))
    });
    Settings {
        endpoint: endpoint.flatten(),
        ca_file,
        headers: headers.unwrap_or_default(),
        sample_ratio: traces.share("sample_ratio"),
        service_name: traces.text("service_name", |name| {
            let wrong = name.is_empty() || name.len() > 128 || name.chars().any(char::is_control);
            if wrong {
                Err("is no plain name of 1 to 128 bytes; give one".to_owned())
            } else {
                Ok(name.to_owned())
            }
        }),
    }
}

/// Errors never quote the value.
fn parse(text: &str) -> Result<Option<Endpoint>, String> {
    const RIGHT: &str = "give http://HOST:4318 or https://HOST/PATH, or \"\" for none";
    if text.is_empty() {
        return Ok(None);
    }
    let (is_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        _ => return Err(format!("does not begin with http:// or https://; {RIGHT}")),
    };
    if rest.contains('@') {
        return Err("holds a user or password; put an authorization header into the file that traces.headers_file names".to_owned());
    }
    let place = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(place);
    let (host, port) =
        split(&format!("http://{authority}"), authority).map_err(|what| format!("{what}; {RIGHT}"))?;
    let path = match path {
        "" | "/" => PATH,
        path if path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok() => path,
        _ => return Err(format!("has no path that can be asked for; {RIGHT}")),
    };
    Ok(Some(Endpoint {
        is_tls,
        host,
        port: port.unwrap_or(if is_tls { 443 } else { 80 }),
        authority: authority.to_owned(),
        path: path.to_owned(),
    }))
}

/// Errors never quote the file.
fn read_headers(file: &Path) -> Result<HeaderMap, String> {
    let text = read_file(file, HEADERS_BYTES_MAX)?;
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let header = line.split_once(':').and_then(|(name, value)| {
            let name = HeaderName::try_from(name.trim()).ok()?;
            Some((name, HeaderValue::try_from(value.trim()).ok()?))
        });
        let Some((name, mut value)) = header else {
            return Err(format!("holds no header in line {}; give one `name: value` a line", number + 1));
        };
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_path_by_default() {
        let place = |text| {
            let endpoint = parse(text).expect("it is right").expect("it is one");
            (endpoint.is_tls, endpoint.host, endpoint.port, endpoint.authority, endpoint.path)
        };
        let whole = |is_tls, host: &str, port, authority: &str, path: &str| {
            (is_tls, host.to_owned(), port, authority.to_owned(), path.to_owned())
        };
        let plain = whole(false, "collector", 4318, "collector:4318", "/v1/traces");
        assert_eq!(place("http://collector:4318"), plain);
        assert_eq!(place("http://collector:4318/"), plain);
        assert_eq!(place("https://[::1]"), whole(true, "::1", 443, "[::1]", "/v1/traces"));
        assert_eq!(
            place("https://otlp.example.com/otlp/v1/traces?team=a"),
            whole(true, "otlp.example.com", 443, "otlp.example.com", "/otlp/v1/traces?team=a")
        );
        assert_eq!(parse(""), Ok(None));
    }

    #[test]
    fn nothing_else_is_an_endpoint_and_no_mistake_quotes_it() {
        for wrong in [
            "collector:4318",
            "grpc://secret",
            "http://",
            "http://secret:0",
            "http://me:secret@h",
            "http://h?x",
        ] {
            let what = parse(wrong).expect_err(wrong);
            assert!(!what.contains("secret"), "{wrong}: {what}");
        }
    }
}
