//! The one way out: every request to Azure, whoever makes it, goes through a [`Transport`].

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};

use crate::error::{AzureError, Class};

/// Azure's instance metadata: link-local, plain HTTP, and it refuses what came through a proxy.
const METADATA_HOST: &str = "169.254.169.254";
/// Azure's load balancers forget idle connections after four minutes; we forget them first.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Sends one request and brings the whole answer, whatever its status. An error means that no answer came.
/// Nothing is retried or redirected here.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Sends `request`. The future may be dropped; whether the request was carried out is then unknown.
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, AzureError>>;
}

/// How [`HttpsTransport`] behaves.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Sent where a request has no `User-Agent` of its own.
    pub user_agent: String,
    /// Certificates (DER) trusted besides the system's: those of `--ca-bundle`.
    pub extra_roots: Vec<Vec<u8>>,
    /// How long a connection may take to come up: name, TCP, proxy and TLS together.
    pub connect_timeout: Duration,
    /// How long all of a request may take, its answer's last byte included.
    pub request_timeout: Duration,
    /// Longest answer that is read, in bytes.
    pub longest_answer: usize,
}

impl HttpOptions {
    /// The limits that suit Azure.
    pub fn new(user_agent: impl Into<String>) -> Self {
        Self {
            user_agent: user_agent.into(),
            extra_roots: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(20),
            longest_answer: 16 << 20,
        }
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;
type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<Stream>, BoxError>;

/// HTTP/1.1 over TLS by rustls and ring, as the Kubernetes client has it.
///
/// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` are honoured as curl honours them, but never for
/// the metadata service, nor for this machine itself.
pub struct HttpsTransport {
    client: Client<Connector, Full<Bytes>>,
    proxies: Arc<Matcher>,
    user_agent: HeaderValue,
    options: HttpOptions,
}

impl fmt::Debug for HttpsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsTransport").field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

impl HttpsTransport {
    /// A transport with the proxies of the environment.
    pub fn new(options: HttpOptions) -> Result<Self, AzureError> {
        Self::with_proxies(options, Matcher::from_env())
    }

    fn with_proxies(options: HttpOptions, proxies: Matcher) -> Result<Self, AzureError> {
        let user_agent = HeaderValue::from_str(&options.user_agent).map_err(|_| {
            AzureError::new(Class::Invalid, "InvalidRequest", "the user agent is no header value")
        })?;
        let tls = tls_config(&options.extra_roots)
            .map_err(|error| AzureError::new(Class::Invalid, "InvalidRequest", format!("TLS: {error}")))?;
        let proxies = Arc::new(proxies);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector(Arc::new(tls), proxies.clone(), options.connect_timeout));
        Ok(Self { client, proxies, user_agent, options })
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, AzureError> {
        let (mut parts, body) = request.into_parts();
        parts.headers.entry(USER_AGENT).or_insert_with(|| self.user_agent.clone());
        if let Route::Absolute(proxy) = route(&self.proxies, &parts.uri)
            && let Some(auth) = proxy.basic_auth()
        {
            parts.headers.insert(PROXY_AUTHORIZATION, auth.clone());
        }
        // Hyper writes the host of the address; one left from elsewhere would be sent to the wrong server.
        parts.headers.remove(HOST);
        let request = Request::from_parts(parts, Full::new(body));
        let answer = self.client.request(request).await.map_err(|error| no_answer(&error))?;
        let (parts, body) = answer.into_parts();
        let body = match Limited::new(body, self.options.longest_answer).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let bound = self.options.longest_answer >> 20;
                let message = format!("the answer is larger than {bound} MiB");
                return Err(AzureError::new(Class::Transient, "NotUnderstood", message));
            }
            Err(error) => return Err(no_answer(error.as_ref())),
        };
        Ok(Response::from_parts(parts, body))
    }
}

impl Transport for HttpsTransport {
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, AzureError>> {
        async move {
            let limit = self.options.request_timeout;
            timeout(limit, self.exchange(request)).await.unwrap_or_else(|_| {
                let message = format!("no whole answer within {} s", limit.as_secs_f32());
                Err(AzureError::new(Class::Transient, "Timeout", message))
            })
        }
        .boxed()
    }
}

/// Why no answer came. Only the innermost cause, which never holds the URL: that may be signed.
fn no_answer(error: &(dyn StdError + 'static)) -> AzureError {
    let mut cause = error;
    let mut timed_out = false;
    while let Some(source) = cause.source() {
        cause = source;
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        timed_out |= kind == Some(io::ErrorKind::TimedOut);
    }
    let mut message = cause.to_string();
    if message.contains("invalid peer certificate") {
        message.push_str("; where a proxy or a private cloud signs for Azure, name its CA in --ca-bundle");
    }
    let code = if timed_out { "Timeout" } else { "ConnectionFailed" };
    AzureError::new(Class::Transient, code, message)
}

/// How a request leaves.
enum Route {
    /// To the server itself.
    Direct,
    /// Through a `CONNECT` tunnel, as TLS must.
    Tunnel(Intercept),
    /// To the proxy, with the whole address in the request line.
    Absolute(Intercept),
}

fn route(proxies: &Matcher, address: &Uri) -> Route {
    let host = address.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if host == METADATA_HOST || loopback {
        return Route::Direct;
    }
    match proxies.intercept(address) {
        None => Route::Direct,
        Some(proxy) if address.scheme() == Some(&Scheme::HTTPS) => Route::Tunnel(proxy),
        Some(proxy) => Route::Absolute(proxy),
    }
}

fn tls_config(extra_roots: &[Vec<u8>]) -> Result<ClientConfig, rustls::Error> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let extra = extra_roots.iter().map(|der| der.clone().into());
    let config = match Verifier::new_with_extra_roots(extra, provider) {
        // rustls' word for a verifier of one's choice; this one verifies
        Ok(verifier) => config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
        // No reason to stop: a simulator needs none, and an operator without Azure still watches and drains.
        Err(error) if extra_roots.is_empty() => {
            tracing::warn!(%error, "no https to Azure: this system has no certificate authorities; give --ca-bundle");
            config.with_root_certificates(RootCertStore::empty())
        }
        Err(error) => return Err(error),
    };
    Ok(config.with_no_client_auth())
}

fn connector(tls: Arc<ClientConfig>, proxies: Arc<Matcher>, limit: Duration) -> Connector {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(limit)); // shared out among a name's addresses
    let to_proxy = HttpsConnector::from((http.clone(), tls.clone()));
    let to_server =
        service_fn(move |address: Uri| connect(address, http.clone(), to_proxy.clone(), proxies.clone()));
    let https = HttpsConnector::from((to_server, tls));
    BoxCloneSyncService::new(service_fn(move |address: Uri| {
        let connecting = https.clone().oneshot(address);
        async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
            timeout(limit, connecting).await.map_err(|_| BoxError::from(ConnectFailed(late())))?
        }
    }))
}

async fn connect(
    address: Uri,
    http: HttpConnector,
    to_proxy: HttpsConnector<HttpConnector>,
    proxies: Arc<Matcher>,
) -> Result<Stream, BoxError> {
    match route(&proxies, &address) {
        Route::Direct => {
            let tcp = http.oneshot(address).await?;
            Ok(Stream { io: MaybeHttpsStream::Http(tcp), names_proxy: false })
        }
        Route::Tunnel(proxy) => {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            Ok(Stream { io: tunnel.oneshot(address).await?, names_proxy: false })
        }
        Route::Absolute(proxy) => {
            Ok(Stream { io: to_proxy.oneshot(proxy.uri().clone()).await?, names_proxy: true })
        }
    }
}

/// So that a cause of ours has an outer error, as hyper's have.
#[derive(Debug, thiserror::Error)]
#[error("not connected")]
struct ConnectFailed(#[source] io::Error);

/// A connection to a server or to a proxy.
struct Stream {
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// Whether hyper has to put the whole address into the request line.
    names_proxy: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.names_proxy)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::http::StatusCode;
    use axum::response::Redirect;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::stub::{Authority, in_a_process, is_child, serve, serve_tls};

    fn options() -> HttpOptions {
        HttpOptions::new("spotpool-test/1")
    }

    fn to_get(url: &str) -> Request<Bytes> {
        Request::get(url).body(Bytes::new()).unwrap()
    }

    /// A server that says who called, and a proxy that says what it was asked.
    async fn echo() -> SocketAddr {
        let agent = |request: axum::extract::Request| async move {
            let header =
                |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            format!("{} {:?} {:?}", request.uri(), header("user-agent"), header("proxy-authorization"))
        };
        serve(Router::new().fallback(agent)).await
    }

    /// Answers `CONNECT` by joining the caller to `server`; tells what it was asked for.
    async fn tunnel_proxy(server: SocketAddr) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, heard) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut caller, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(caller.read_u8().await.unwrap());
                }
                asked.send(String::from_utf8(head).unwrap()).unwrap();
                let mut onward = TcpStream::connect(server).await.unwrap();
                caller.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut caller, &mut onward).await });
            }
        });
        (address, heard)
    }

    #[test]
    fn metadata_and_this_machine_are_never_proxied() {
        let proxies =
            Matcher::builder().all("http://proxy.example:3128").no("corp.example,10.0.0.0/8").build();
        for (address, way) in [
            ("http://169.254.169.254/metadata/identity/oauth2/token", "direct"),
            ("http://127.0.0.1:8080/", "direct"),
            ("http://[::1]:8080/", "direct"),
            ("https://localhost:8443/", "direct"),
            ("https://arm.corp.example/", "direct"),
            ("https://10.1.2.3/", "direct"),
            ("https://management.azure.com/subscriptions", "tunnel"),
            ("https://prices.azure.com/api/retail/prices", "tunnel"),
            ("https://login.microsoftonline.com/x/oauth2/v2.0/token", "tunnel"),
            ("http://example.org/", "absolute"),
        ] {
            let found = match route(&proxies, &address.parse().unwrap()) {
                Route::Direct => "direct",
                Route::Tunnel(_) => "tunnel",
                Route::Absolute(_) => "absolute",
            };
            assert_eq!(found, way, "{address}");
        }
    }

    #[tokio::test]
    async fn a_plain_request_goes_whole_to_the_proxy_with_its_password() {
        let proxy = echo().await;
        let proxies = Matcher::builder().http(format!("http://ann:secret@{proxy}")).build();
        let transport = HttpsTransport::with_proxies(options(), proxies).unwrap();
        let answer = transport.execute(to_get("http://azure.invalid/x?y=z")).await.unwrap();
        let seen = String::from_utf8(answer.body().to_vec()).unwrap();
        assert_eq!(
            seen,
            r#"http://azure.invalid/x?y=z Some("spotpool-test/1") Some("Basic YW5uOnNlY3JldA==")"#
        );
        assert!(!format!("{transport:?}").contains("secret"), "{transport:?}");
    }

    #[tokio::test]
    async fn tls_goes_through_a_tunnel_and_trusts_an_extra_root() {
        let authority = Authority::new();
        let router = Router::new().route("/x", get(|| async { "signed for" }));
        let server = serve_tls(&authority, "management.azure.test", router).await;
        let (proxy, mut asked) = tunnel_proxy(server).await;
        let proxies = || Matcher::builder().https(format!("http://ann:secret@{proxy}")).build();

        let strangers = HttpsTransport::with_proxies(options(), proxies()).unwrap();
        let error =
            strangers.execute(to_get("https://management.azure.test/x?sig=s3cr3t")).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Transient, "ConnectionFailed"));
        assert!(error.message.contains("--ca-bundle"), "{error}");
        assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");

        let trusting = HttpOptions { extra_roots: vec![authority.root_der()], ..options() };
        let transport = HttpsTransport::with_proxies(trusting, proxies()).unwrap();
        let answer = transport.execute(to_get("https://management.azure.test/x?sig=s3cr3t")).await.unwrap();
        assert_eq!(answer.body(), "signed for");
        let head = asked.recv().await.unwrap();
        assert!(head.starts_with("CONNECT management.azure.test:443 "), "{head}");
        assert!(head.contains("Basic YW5uOnNlY3JldA=="), "{head}");
    }

    #[tokio::test]
    async fn the_environments_proxy_is_used() {
        if !is_child() {
            let proxy = format!("http://{}", echo().await);
            let environment = vec![("HTTP_PROXY", proxy), ("NO_PROXY", "excluded.invalid".to_owned())];
            return in_a_process("http::tests::the_environments_proxy_is_used", environment).await;
        }
        let transport = HttpsTransport::new(options()).unwrap();
        let answer = transport.execute(to_get("http://azure.invalid/by-environment")).await.unwrap();
        assert!(answer.body().starts_with(b"http://azure.invalid/by-environment"));
        let unproxied = transport.execute(to_get("http://excluded.invalid/")).await.unwrap_err();
        assert_eq!(unproxied.code, "ConnectionFailed");
    }

    #[tokio::test]
    async fn a_system_without_authorities_has_plain_http_and_those_of_the_bundle() {
        if !is_child() {
            let none =
                vec![("SSL_CERT_FILE", "/dev/null".to_owned()), ("SSL_CERT_DIR", "/nowhere".to_owned())];
            let this = "http::tests::a_system_without_authorities_has_plain_http_and_those_of_the_bundle";
            return in_a_process(this, none).await;
        }
        let authority = Authority::new();
        let router = Router::new().route("/", get(|| async { "here" }));
        let (plain, tls) = (serve(router.clone()).await, serve_tls(&authority, "localhost", router).await);
        let (plain, tls) = (format!("http://{plain}/"), format!("https://localhost:{}/", tls.port()));
        let bare = HttpsTransport::new(options()).unwrap();
        assert_eq!(bare.execute(to_get(&plain)).await.unwrap().body(), "here");
        assert!(bare.execute(to_get(&tls)).await.unwrap_err().message.contains("--ca-bundle"));
        let bundled = HttpOptions { extra_roots: vec![authority.root_der()], ..options() };
        assert_eq!(HttpsTransport::new(bundled).unwrap().execute(to_get(&tls)).await.unwrap().body(), "here");
        let broken = HttpOptions { extra_roots: vec![b"no certificate".to_vec()], ..options() };
        assert_eq!(HttpsTransport::new(broken).unwrap_err().class, Class::Invalid);
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut_off() {
        let server = serve(Router::new().route("/", get(|| async { "x".repeat(3 << 20) }))).await;
        let url = format!("http://{server}/");
        let bounded = HttpOptions { longest_answer: 2 << 20, ..options() };
        let error = HttpsTransport::new(bounded).unwrap().execute(to_get(&url)).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.class), ("NotUnderstood", Class::Transient));
        assert_eq!(error.message, "the answer is larger than 2 MiB");
        let answer = HttpsTransport::new(options()).unwrap().execute(to_get(&url)).await.unwrap();
        assert_eq!(answer.body().len(), 3 << 20);
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = listener.local_addr().unwrap();
        // Takes the connection and says nothing: neither an answer nor its part of the TLS handshake.
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok(connection) = listener.accept().await {
                held.push(connection);
            }
        });
        let late = HttpOptions { request_timeout: Duration::from_millis(200), ..options() };
        let error = HttpsTransport::new(late)
            .unwrap()
            .execute(to_get(&format!("http://{silent}/x?sig=s3cr3t")))
            .await
            .unwrap_err();
        assert_eq!((error.code.as_str(), error.class), ("Timeout", Class::Transient));
        assert!(error.outcome_unknown() && !error.to_string().contains("s3cr3t"), "{error}");
        let unconnected = HttpOptions { connect_timeout: Duration::from_millis(200), ..options() };
        let error = HttpsTransport::new(unconnected)
            .unwrap()
            .execute(to_get(&format!("https://localhost:{}/x?sig=s3cr3t", silent.port())))
            .await
            .unwrap_err();
        assert_eq!(error.code, "Timeout", "{error}");
        assert_eq!(error.message, "no connection in time");
    }

    #[tokio::test]
    async fn refusals_and_redirects_are_answers() {
        let router = Router::new()
            .route("/moved", get(|| async { Redirect::temporary("http://azure.invalid/") }))
            .route("/refused", get(|| async { (StatusCode::FORBIDDEN, "no") }));
        let server = serve(router).await;
        let transport = HttpsTransport::new(options()).unwrap();
        for (path, status) in [("moved", 307), ("refused", 403)] {
            let answer = transport.execute(to_get(&format!("http://{server}/{path}"))).await.unwrap();
            assert_eq!(answer.status().as_u16(), status);
        }
    }
}
