//! A running simulator: its socket and its tasks.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::routing::any;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::api::{Identity, PoolSpec, Settings};
use crate::client::{SimClient, SimError};
use crate::model::{Cloud, Refused, Subscription};
use crate::nodes::{self, KubeNodes};
use crate::reply;
use crate::scenario::Scenario;
use crate::sim::Sim;
use crate::tls::{Scheme, Tls, TlsError};
use crate::tokens::{AuthSettings, Tokens};
use crate::{arm, control, imds, market, prices, tokens};

/// For how long a client may take over its half of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How to run a simulator.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The same over TLS, which token clients insist on.
    pub tls_listen: SocketAddr,
    /// Who may sign in, and whether ARM asks for a token.
    pub auth: AuthSettings,
    /// Which managed cluster to play.
    pub identity: Identity,
    /// Times and switches.
    pub settings: Settings,
    /// Pools that are there from the start.
    pub pools: Vec<PoolSpec>,
    /// A scenario to begin with, after the settings and pools above.
    pub scenario: Option<Scenario>,
    /// The subscription whose limits its callers use up, alone unless other simulators are given it too.
    pub subscription: Subscription,
    /// Seed of all ids; the scenario's, or one taken from the time, when absent. The same seed and requests give the same ids.
    pub seed: Option<u64>,
    /// Where Node objects go. Without it, a machine counts as registered once it has booted.
    pub kubernetes: Option<kube::Config>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            auth: AuthSettings::default(),
            identity: Identity::default(),
            settings: Settings::default(),
            pools: Vec::new(),
            scenario: None,
            subscription: Subscription::default(),
            seed: None,
            kubernetes: None,
        }
    }
}

/// Why a simulator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// There is no certificate to serve.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A pool makes no sense.
    #[error("pool {0}: {1}")]
    Pool(String, Refused),
    /// The scenario makes no sense.
    #[error("{0}")]
    Scenario(Refused),
    /// The Kubernetes configuration cannot be used.
    #[error("Kubernetes client: {0}")]
    Kubernetes(#[source] Box<kube::Error>),
}

/// A running simulator. It stops when dropped, or cleanly by [`Server::stop`].
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    tls_address: SocketAddr,
    tls: Tls,
    sim: Sim,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Starts to listen, and the tasks behind.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let now = Timestamp::now();
        // Any seed will do; the time makes two runs tell their ids apart.
        let told = options.seed.or(options.scenario.as_ref().and_then(|scenario| scenario.seed));
        let seed = told.unwrap_or(now.as_nanosecond() as u64);
        let kube_nodes = match options.kubernetes {
            Some(config) => {
                Some(KubeNodes::new(config).map_err(|error| StartError::Kubernetes(Box::new(error)))?)
            }
            None => None,
        };
        let mut cloud = Cloud::new(options.identity, options.settings, kube_nodes.is_some(), seed)
            .in_subscription(options.subscription);
        cloud.tokens = Tokens::new(options.auth);
        for pool in &options.pools {
            cloud.add_pool(pool, now).map_err(|refused| StartError::Pool(pool.name.clone(), refused))?;
        }
        if let Some(scenario) = &options.scenario {
            cloud.begin_scenario(scenario, now).map_err(StartError::Scenario)?;
        }
        let (listener, address) = listen(options.listen).await?;
        let (tls_listener, tls_address) = listen(options.tls_listen).await?;
        let tls = Tls::new(tls_address.ip())?;

        let sim = Sim::new(cloud);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let driver = sim.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { driver.drive().await }));
        if let Some(kube_nodes) = kube_nodes {
            let nodes = nodes::run(sim.clone(), kube_nodes);
            tasks.spawn(stop.clone().run_until_cancelled_owned(nodes));
        }
        for (listener, tls) in [(listener, None), (tls_listener, Some(tls.clone()))] {
            let accepting = accept(listener, tls, router(sim.clone()), stop.clone(), tasks.clone());
            tasks.spawn(stop.clone().run_until_cancelled_owned(accepting));
        }
        Ok(Self { address, tls_address, tls, sim, stop, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `https://` and the address of the TLS listener: ARM, prices and the token endpoint (an authority host is
    /// this with a slash behind it).
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.tls_address)
    }

    /// The certificate authority that clients of [`Server::tls_url`] must trust, as PEM.
    pub fn ca_pem(&self) -> &str {
        self.tls.ca_pem()
    }

    /// A client of its control API.
    pub fn client(&self) -> Result<SimClient, SimError> {
        SimClient::new(&self.url())
    }

    /// The model itself, for tests in the same process.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// Stops and waits until all is still.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All that a simulator answers: ARM, metadata services, the control API.
///
/// For tests in the same process, without sockets and in whatever time `sim` keeps: call it as the tower
/// service that it is (`ServiceExt::oneshot`). Delays that faults ask for are tokio's. An answer that carries
/// [`crate::reply::Dropped`] among its extensions stands for a connection that was closed instead (see
/// [`crate::reply::is_dropped`]).
pub fn router(sim: Sim) -> Router {
    control::routes()
        .merge(tokens::routes())
        .merge(market::routes())
        .merge(prices::routes())
        .route("/imds/{node}/{*rest}", any(imds::handle))
        .fallback(arm::handle)
        .with_state(sim)
}

/// Serves connections. Not `axum::serve`: a fault may close a connection in place of an answer, and
/// an error of the service is how hyper is told to.
async fn accept(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = serve(stream, tls.clone(), router.clone());
                tasks.spawn(stop.clone().run_until_cancelled_owned(served));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn listen(on: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen(on, error);
    let listener = TcpListener::bind(on).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

async fn serve(stream: TcpStream, tls: Option<Tls>, router: Router) {
    // Polls are small and timed: they must not wait for a full segment.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    match tls {
        None => answer(stream, router.layer(Extension(Scheme::Http))).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => answer(stream, router.layer(Extension(Scheme::Https))).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
            Err(_) => tracing::debug!("no TLS in time"),
        },
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move {
            let response = match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            if reply::is_dropped(&response) {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset));
            }
            Ok(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended");
    }
}
