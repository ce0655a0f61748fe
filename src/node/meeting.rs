//! From `cluster:` of the config to what connects this node to others.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::StartError;
use crate::actors::cluster::hello::Identity;
use crate::actors::cluster::transport::{ClusterTls, Transport, advertised};
use crate::actors::cluster::wire::Pulse;
use crate::actors::context::NodeContext;
use crate::actors::root::ClusterSpec;
use crate::config;

/// Listens for other nodes and reads what is needed to meet them.
///
/// # Errors
/// The address or a file cannot be used.
pub(super) fn prepare(node: &NodeContext) -> Result<Option<ClusterSpec>, StartError> {
    let Some(config) = &node.config.cluster else { return Ok(None) };
    let address = config.listen;
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    let (listener, bound) =
        listen().map_err(|source| StartError::ClusterListen { address, source })?;
    let me = Identity {
        node: node.id.clone(),
        address: advertised(config.advertise.as_deref(), bound),
        build: env!("CARGO_PKG_VERSION").to_string(),
    };
    let transport = Transport {
        me,
        cookie: config.cookie.clone().into_bytes(),
        tls: config.tls.as_ref().map(tls).transpose().map_err(StartError::ClusterTls)?,
        pulse: Pulse::new(
            config.failure_detection,
            config.max_frame,
            node.metrics.cluster().largest_frame.clone(),
        ),
        handshake_timeout: config.handshake_timeout,
    };
    Ok(Some(ClusterSpec { transport: Arc::new(transport), listener: Arc::new(listener) }))
}

/// Both ends show a certificate of the same authority.
fn tls(config: &config::ClusterTls) -> Result<ClusterTls, String> {
    let (own, ca) = (&config.own, &config.ca);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", ca.display()))?;
    }
    let roots = Arc::new(roots);
    let key = PrivateKeyDer::from_pem_file(&own.key)
        .map_err(|error| format!("{}: {error}", own.key.display()))?;
    let chain = certificates(&own.cert)?;
    let unusable = |error: rustls::Error| format!("{}: {error}", own.cert.display());
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| format!("{}: {error}", ca.display()))?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(unusable)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    let name = ServerName::try_from(config.name.clone())
        .map_err(|_| format!("cluster.tls.name = {}: must be a DNS name", config.name))?;
    Ok(ClusterTls { acceptor: Arc::new(server).into(), connector: Arc::new(client).into(), name })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<_> = read.map_err(|error| format!("{}: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("{}: has no certificate", path.display()));
    }
    Ok(certificates)
}
