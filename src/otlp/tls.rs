//! TLS to the collector: the system's trust roots and those of a file.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The file cannot be read.
    #[error("traces.ca_file cannot be used: {0}")]
    File(#[from] pem::Error),
    /// It holds something that is no certificate, or TLS cannot be set up.
    #[error("TLS to the collector of traces cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

pub(super) fn configure(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, RootError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in ca_file.map(CertificateDer::pem_file_iter).transpose()?.into_iter().flatten() {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use p256::pkcs8::LineEnding;
    use p256::pkcs8::der::pem::encode_string;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::super::Endpoint;
    use super::super::post::{Collector, PostError};
    use super::*;

    /// A collector that shows this certificate and takes everything.
    async fn collector(issued: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Endpoint {
        let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has both versions")
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key.into())
            .expect("a certificate and its key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it listens").port();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not trust it hangs up.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = Vec::new();
                while !request.ends_with(b"spans") {
                    stream.read_buf(&mut request).await.expect("a request");
                }
                stream
                    .write_all(b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n")
                    .await
                    .expect("it takes the answer");
            }
        });
        Endpoint {
            is_tls: true,
            host: "localhost".to_owned(),
            port,
            authority: format!("localhost:{port}"),
            path: "/v1/traces".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_collector_behind_a_private_ca_is_trusted_by_its_file_alone() {
        let issued =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
        let file = std::env::temp_dir().join(format!("ringcast-otlp-{}.pem", std::process::id()));
        let pem = encode_string("CERTIFICATE", LineEnding::LF, issued.cert.der()).expect("PEM");
        std::fs::write(&file, pem).expect("a temporary file");
        let endpoint = collector(&issued).await;
        let post = async |ca_file| {
            let tls = configure(ca_file).expect("roots");
            let mut collector = Collector::new(endpoint.clone(), HeaderMap::new(), Some(tls));
            collector.post(Bytes::from_static(b"spans")).await
        };
        assert_eq!(post(Some(&file)).await, Ok(Bytes::new()));
        let refused = post(None).await.expect_err("nobody vouches for it");
        assert!(matches!(&refused, PostError::Passing(why) if why.contains("UnknownIssuer")), "{refused:?}");
        std::fs::remove_file(&file).expect("it was there");
    }
}
