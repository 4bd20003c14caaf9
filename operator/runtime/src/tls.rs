//! TLS for the admin server, with certificates from files that somebody else renews.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

use crate::args::CommonArgs;
use crate::exit::ConfigError;

/// A Secret that has changed is in its volume after a minute or so.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Certificate and key, as they are in their files now. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<TlsAcceptor>>);

/// What is in the two files.
#[derive(PartialEq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// By `--tls-cert-file` and `--tls-key-file`, if they are given. The files are read again when they change.
    pub fn load(args: &CommonArgs) -> Result<Option<Self>, ConfigError> {
        let (Some(certificate), Some(key)) = (&args.tls_cert_file, &args.tls_key_file) else {
            return Ok(None);
        };
        let pair = Pair::read(certificate, key).map_err(ConfigError)?;
        let acceptor = pair.acceptor().map_err(|error| {
            let (certificate, key) = (certificate.display(), key.display());
            ConfigError(format!("--tls-cert-file {certificate}, --tls-key-file {key}: {error}"))
        })?;
        let tls = Self(Arc::new(RwLock::new(acceptor)));
        tokio::spawn(tls.clone().follow(certificate.clone(), key.clone(), pair));
        Ok(Some(tls))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn follow(self, certificate: PathBuf, key: PathBuf, mut last: Pair) {
        let mut complaint = None;
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let read = Pair::read(&certificate, &key).and_then(|pair| {
                if pair == last {
                    return Ok(None);
                }
                let acceptor = pair.acceptor()?;
                Ok(Some((pair, acceptor)))
            });
            match read {
                Ok(changed) => {
                    complaint = None;
                    if let Some((pair, acceptor)) = changed {
                        *self.0.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
                        last = pair;
                        tracing::info!("serving with the new certificate");
                    }
                }
                // Half of a pair may be written; the next look sees it whole.
                Err(error) if complaint.as_ref() != Some(&error) => {
                    tracing::warn!(error, "the new certificate cannot be used, serving with the last one");
                    complaint = Some(error);
                }
                Err(_) => {}
            }
        }
    }
}

impl Pair {
    fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let read = |flag: &str, path: &Path| {
            fs::read(path).map_err(|error: io::Error| format!("{flag} {}: {error}", path.display()))
        };
        Ok(Self { certificate: read("--tls-cert-file", certificate)?, key: read("--tls-key-file", key)? })
    }

    fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("no PEM certificate: {error}"))?;
        if chain.is_empty() {
            return Err("no PEM certificate".into());
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| format!("no PEM key: {error}"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| format!("certificate and key do not go together: {error}"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
