//! TLS: certificate and key, read and checked before anything listens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Tls;

/// Why certificate and key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{key} = {}: {detail}", path.display())]
    Unreadable {
        /// The key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The certificate cannot be used with this key.
    #[error("frontend.tls.cert = {} and frontend.tls.key = {}: {detail}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

/// Reads certificate chain and private key, and checks that they belong together.
///
/// # Errors
/// [`TlsError::Unreadable`] for a file, [`TlsError::Unusable`] for the pair.
pub fn load_tls(tls: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let cert_error = |detail: String| unreadable("frontend.tls.cert", &tls.cert, detail);
    let certs: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect)
        .map_err(|error| cert_error(words(&error)))?;
    if certs.is_empty() {
        return Err(cert_error("has no certificate; give a PEM file with the whole chain".into()));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| {
        let detail = match error {
            pem::Error::NoItemsFound => "has no private key; give a PEM file with one".into(),
            error => words(&error),
        };
        unreadable("frontend.tls.key", &tls.key, detail)
    })?;
    let unusable = |error: rustls::Error| TlsError::Unusable {
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        detail: error.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn words(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        error => format!("is no PEM: {error}"),
    }
}

fn unreadable(key: &'static str, path: &Path, detail: String) -> TlsError {
    TlsError::Unreadable { key, path: path.to_owned(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cert: &str, key: &str) -> Result<(), String> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
        let tls = Tls { cert: dir.join(cert), key: dir.join(key) };
        let shown = |error: TlsError| error.to_string().replace(&format!("{}/", dir.display()), "");
        load_tls(&tls).map(drop).map_err(shown)
    }

    #[test]
    fn a_pair_that_cannot_be_used_is_refused_by_key_and_file() {
        assert_eq!(load("cert.pem", "key.pem"), Ok(()));
        let cases = [
            ("none.pem", "key.pem", "frontend.tls.cert = none.pem: cannot be read: "),
            ("key.pem", "key.pem", "frontend.tls.cert = key.pem: has no certificate; "),
            ("cert.pem", "none.pem", "frontend.tls.key = none.pem: cannot be read: "),
            ("cert.pem", "cert.pem", "frontend.tls.key = cert.pem: has no private key; "),
            (
                "cert.pem",
                "other_key.pem",
                "frontend.tls.cert = cert.pem and frontend.tls.key = other_key.pem: ",
            ),
        ];
        for (cert, key, text) in cases {
            let error = load(cert, key).expect_err(text);
            assert!(error.starts_with(text), "{error}");
        }
    }
}
