//! TLS to APNs: whom connections trust, and which client certificate they present.
//!
//! Trust roots may be replaced while the worker runs: connections that are open stay, new ones use the new roots.

use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use super::credential::Credential;
use super::dial::{Dial, tls_dial};
use super::proxy::proxy_dial;
use super::{Endpoint, Settings};
use crate::domain::app::Environment;

/// Why there can be no TLS at all.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file with roots cannot be used.
    #[error("apns.ca_file {path}: {cause}")]
    File {
        /// The path as configured.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Neither the system nor the settings have a root.
    #[error("no trust root: the system has none ({0}) and apns.ca_file is not set")]
    None(String),
    /// The TLS library refused its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The trust roots that new connections use: the system's and those of `apns.ca_file`. Clones share them.
#[derive(Clone, Debug)]
pub struct Trust(Arc<RwLock<Arc<RootCertStore>>>);

impl Trust {
    /// Reads the system's roots and those of a file.
    pub fn load(ca_file: Option<&Path>) -> Result<Self, RootError> {
        Ok(Self::of(read_roots(ca_file)?))
    }

    /// Just these.
    pub(super) fn of(roots: RootCertStore) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(roots))))
    }

    /// Takes the roots of another one over. True where they differ.
    pub fn replace(&self, other: &Self) -> bool {
        let roots = other.current();
        let differ = roots.roots != self.current().roots;
        if differ {
            *self.0.write() = roots;
        }
        differ
    }

    fn current(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.0.read())
    }
}

/// What the connections of one credential use: TLS 1.2 or newer, ALPN `h2`. Sessions are resumed across connections, but
/// never across credentials: a resumed session would carry the certificate of the first.
#[derive(Debug)]
pub struct Tls {
    trust: Trust,
    identity: Option<Arc<CertifiedKey>>,
    /// The configuration, and the roots that it was made from.
    made: Mutex<(Arc<RootCertStore>, Arc<ClientConfig>)>,
}

impl Tls {
    /// `identity`: the client certificate that is presented, if any.
    pub fn new(trust: &Trust, identity: Option<Arc<CertifiedKey>>) -> Result<Arc<Self>, RootError> {
        let roots = trust.current();
        let config = configure(&roots, identity.as_ref())?;
        Ok(Arc::new(Self { trust: trust.clone(), identity, made: Mutex::new((roots, config)) }))
    }

    /// The configuration for a connection that is opened now.
    pub(super) fn current(&self) -> Arc<ClientConfig> {
        let roots = self.trust.current();
        let mut made = self.made.lock();
        // What was possible with other roots is possible with these; if it ever were not, the old ones still serve.
        if !Arc::ptr_eq(&made.0, &roots)
            && let Ok(config) = configure(&roots, self.identity.as_ref())
        {
            *made = (roots, config);
        }
        Arc::clone(&made.1)
    }
}

/// Makes the way to an environment for a credential: each pool has its own.
pub type Dials = Arc<dyn Fn(Environment, &Credential) -> Result<Dial, RootError> + Send + Sync>;

/// The ways of a real worker: to the endpoints of the settings, through the proxy if there is one, over TLS, with the
/// certificate of the credential.
pub fn dials(settings: &Settings, trust: &Trust) -> Result<Dials, RootError> {
    let (endpoints, proxy, trust) = (settings.endpoints.clone(), settings.proxy.clone(), trust.clone());
    let plain = Tls::new(&trust, None)?;
    Ok(Arc::new(move |environment, credential| {
        let tls = match credential.certificate() {
            None => Arc::clone(&plain),
            Some(certificate) => Tls::new(&trust, Some(Arc::clone(certificate.identity())))?,
        };
        let endpoint: Endpoint = endpoints[environment.index()].clone();
        Ok(match proxy.clone() {
            Some(proxy) => proxy_dial(proxy, endpoint, tls),
            None => tls_dial(endpoint, tls),
        })
    }))
}

fn read_roots(ca_file: Option<&Path>) -> Result<RootCertStore, RootError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let failed = |cause: String| RootError::File { path: path.display().to_string(), cause };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        let errors: Vec<_> = native.errors.iter().map(ToString::to_string).collect();
        return Err(RootError::None(errors.join("; ")));
    }
    Ok(roots)
}

fn configure(
    roots: &Arc<RootCertStore>,
    identity: Option<&Arc<CertifiedKey>>,
) -> Result<Arc<ClientConfig>, RootError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(ca: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add(ca.cert.der().clone()).unwrap();
        Trust::of(roots)
    }

    #[test]
    fn new_roots_are_for_new_connections() {
        let [one, other] = ["one", "other"].map(|name| {
            rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate can be made")
        });
        let trusted = trust(&one);
        let tls = Tls::new(&trusted, None).expect("TLS");
        let first = tls.current();
        assert!(Arc::ptr_eq(&first, &tls.current()), "one configuration, so that sessions are resumed");
        assert!(!trusted.replace(&trust(&one)), "the same roots");
        assert!(Arc::ptr_eq(&first, &tls.current()));
        assert!(trusted.replace(&trust(&other)));
        let second = tls.current();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &tls.current()));
    }
}
