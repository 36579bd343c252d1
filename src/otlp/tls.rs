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
