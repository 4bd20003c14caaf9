//! The Kubernetes client: one HTTP/2 connection, nothing retried behind the caller's back.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::AUTHORIZATION;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use crate::args::CommonArgs;
use crate::exit::ConfigError;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer may take to begin. Watches answer at once and then go on, so it does not end them.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the token's file is read.
const TOKEN_READ_AGAIN: Duration = Duration::from_mins(1);
/// A dead peer is found by HTTP/2 pings: sent after this much silence …
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// … and given up on after this long, which ends watches and requests on that connection.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Asked before each write; a write is refused where it says no.
pub type WriteGate = Arc<dyn Fn() -> bool + Send + Sync>;

/// Why a write was not sent.
#[derive(Debug, thiserror::Error)]
#[error("not sent: the leader lease is lost")]
pub struct WriteRefused;

/// Connects to the cluster of the kubeconfig, or of the Pod that we run in.
///
/// Two things differ from kube's own client. Requests share one HTTP/2 connection: a hundred evictions at
/// once must not cost a hundred TLS handshakes. And 429 is returned, not retried inside: for an eviction it
/// is an answer that the drain acts upon.
pub async fn connect(args: &CommonArgs, user_agent: &str) -> Result<Client, ConfigError> {
    connect_gated(args, user_agent, Arc::new(|| true)).await
}

/// The same, with every write asking `may_write` at the last moment before it is sent, so that none can be
/// forgotten.
pub async fn connect_gated(
    args: &CommonArgs,
    user_agent: &str,
    may_write: WriteGate,
) -> Result<Client, ConfigError> {
    let mut config = load(args.kubeconfig.as_deref()).await?;
    let added = extra_roots(args)?;
    if !added.is_empty() {
        config.root_cert.get_or_insert_default().extend(added);
    }
    let agent = http::HeaderValue::from_str(user_agent)
        .map_err(|error| ConfigError(format!("user agent: {error}")))?;
    config.headers.push((http::header::USER_AGENT, agent));
    client(&config, may_write)
        .map_err(|error| ConfigError(format!("cannot make a Kubernetes client: {error}")))
}

fn client(config: &Config, may_write: WriteGate) -> Result<Client, kube::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_nodelay(true);
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(http);
    let hyper: hyper_util::client::legacy::Client<_, Body> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .build(https);
    let token = config.auth_info.token_file.as_deref().map(TokenFile::new);
    // All other ways to sign in are kube's own.
    let auth_layer = if token.is_some() { None } else { config.auth_layer()? };
    let refused = token.clone();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth_layer)
        .layer(config.extra_headers_layer()?)
        .filter(move |mut request: http::Request<Body>| {
            if !request.method().is_safe() && !may_write() {
                return Err(BoxError::from(WriteRefused));
            }
            if let Some(token) = &token {
                request.headers_mut().insert(AUTHORIZATION, token.header()?);
            }
            Ok(request)
        })
        .map_response(move |response: http::Response<_>| {
            if response.status() == http::StatusCode::UNAUTHORIZED
                && let Some(token) = &refused
            {
                token.was_refused();
            }
            response
        })
        .timeout(RESPONSE_TIMEOUT)
        .map_err(BoxError::from)
        .service(hyper);
    Ok(Client::new(service.boxed_clone(), config.default_namespace.clone()))
}

/// The token that the kubelet keeps in a file. It is read again each minute, as kube itself does, and at once when the
/// API server has refused the last one: a node under notice has no minute to wait.
#[derive(Clone)]
struct TokenFile {
    path: Arc<Path>,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    header: Option<HeaderValue>,
    /// Absent if the file must be read first.
    read: Option<Instant>,
}

impl TokenFile {
    fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().into(), held: Arc::default() }
    }

    fn header(&self) -> Result<HeaderValue, BoxError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.read.is_none_or(|read| read.elapsed() >= TOKEN_READ_AGAIN) {
            match self.read() {
                Ok(header) => held.header = Some(header),
                // The last one may still do.
                Err(_) if held.header.is_some() => {}
                Err(error) => return Err(format!("{}: {error}", self.path.display()).into()),
            }
            held.read = Some(Instant::now());
        }
        held.header.clone().ok_or_else(|| "there is no token".into())
    }

    fn was_refused(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).read = None;
    }

    fn read(&self) -> Result<HeaderValue, BoxError> {
        let token = std::fs::read_to_string(&self.path)?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim()))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

async fn load(kubeconfig: Option<&Path>) -> Result<Config, ConfigError> {
    match kubeconfig {
        Some(path) => {
            let wrong = |error: &dyn std::fmt::Display| {
                ConfigError(format!("--kubeconfig {}: {error}", path.display()))
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(|error| wrong(&error))
        }
        None => Config::incluster().map_err(|error| {
            ConfigError(format!("not in a cluster ({error}); outside of one give --kubeconfig FILE"))
        }),
    }
}

/// The certificates of `--ca-bundle`, in DER.
pub fn extra_roots(args: &CommonArgs) -> Result<Vec<Vec<u8>>, ConfigError> {
    args.ca_bundle.as_deref().map_or(Ok(Vec::new()), certificates)
}

fn certificates(bundle: &Path) -> Result<Vec<Vec<u8>>, ConfigError> {
    let wrong = |why: String| ConfigError(format!("--ca-bundle {}: {why}", bundle.display()));
    let certificates = CertificateDer::pem_file_iter(bundle)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("holds no certificate in PEM form".into()));
    }
    Ok(certificates.into_iter().map(|certificate| certificate.to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_read_again_at_once_and_a_missing_file_costs_nothing() {
        let path = std::env::temp_dir().join(format!("spotpool-token-{}", std::process::id()));
        let token = TokenFile::new(&path);
        assert!(token.header().is_err(), "no file yet");
        std::fs::write(&path, "old\n").unwrap();
        assert_eq!(token.header().unwrap(), "Bearer old");
        std::fs::write(&path, "new").unwrap();
        assert_eq!(token.header().unwrap(), "Bearer old", "not read for each request");
        token.was_refused();
        assert_eq!(token.header().unwrap(), "Bearer new");
        std::fs::remove_file(&path).unwrap();
        token.was_refused();
        assert_eq!(token.header().unwrap(), "Bearer new", "the last one may still do");
    }
}
