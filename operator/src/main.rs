//! The operator: keeps SpotPools at their size on spot capacity, inside what they allow.
//!
//! The process is made here, in order: whom it speaks to, who leads, what it serves. [`Operator`] joins what it does then.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use jiff::{SignedDuration, Timestamp};
use kube::Api;
use spotpool_azure::Clock;
use spotpool_operator::azure::AzureArgs;
use spotpool_operator::leader::{Elector, Leadership};
use spotpool_operator::metrics::{self, Metrics};
use spotpool_operator::operator::{Connections, Operator};
use spotpool_operator::workloads::{Options, label_key};
use spotpool_runtime::admin::{self, Readiness};
use spotpool_runtime::args::{self, CommonArgs};
use spotpool_runtime::catalogue::Catalogue;
use spotpool_runtime::exit::{self, ConfigError, Exit};
use spotpool_runtime::tls::Tls;
use spotpool_runtime::{client, otlp, shutdown, telemetry};
use tokio::net::TcpListener;

const PROGRAM: &str = "spotpool-operator";
/// How long the end of the program waits for the collector.
const LAST_SPANS: Duration = Duration::from_secs(2);
const USER_AGENT: &str = concat!("spotpool-operator/", env!("CARGO_PKG_VERSION"));

/// Keeps AKS spot node pools at their size, with on-demand fallback.
#[derive(Parser)]
#[command(name = "spotpool-operator", version)]
struct Args {
    #[command(flatten)]
    azure: AzureArgs,
    /// Namespaces whose SpotPools count: whoever may write one there spends money. Default: the operator's own.
    #[arg(long, env = "POOL_NAMESPACES", value_delimiter = ',', value_name = "NS,…")]
    pool_namespaces: Vec<String>,
    /// The operator's own namespace, for its lease. Default: that of the kubeconfig or the Pod.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NS")]
    pod_namespace: Option<String>,
    /// Name of this replica in the election. Default: a random one.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// Whether replicas elect a leader.
    #[arg(long, env = "LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// How long others wait after the leader's last sign of life; 3s to 5m.
    #[arg(long, env = "LEASE_DURATION", default_value = "15s", value_parser = lease_duration)]
    lease_duration: Duration,
    /// Label of pods by whose values what nodes cost is told, such as `team`. Off without it.
    #[arg(long, env = "COST_LABEL", value_name = "KEY", value_parser = label_key)]
    cost_label: Option<String>,
    /// How long a node may be without a ready agent before condition `AgentsHealthy` says so; 1s to 1h.
    #[arg(long, env = "AGENT_GRACE", default_value = "2m", value_parser = agent_grace)]
    agent_grace: Duration,
    /// Address of the admin server.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:9436")]
    listen: String,
    #[command(flatten)]
    common: CommonArgs,
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let between = Duration::from_secs(3)..=Duration::from_mins(5);
    duration(text).and_then(|it| if between.contains(&it) { Ok(it) } else { Err("must be 3s to 5m".into()) })
}

fn agent_grace(text: &str) -> Result<Duration, String> {
    let between = Duration::from_secs(1)..=Duration::from_hours(1);
    duration(text).and_then(|it| if between.contains(&it) { Ok(it) } else { Err("must be 1s to 1h".into()) })
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<spotpool_crds::Duration>().map(Duration::from).map_err(|error| error.to_string())
}

#[tokio::main]
async fn main() -> ExitCode {
    exit::on_panic();
    let args = args::parse::<Args>();
    exit::code(PROGRAM, Box::pin(run(args)).await)
}

async fn run(args: Args) -> Result<(), Exit> {
    telemetry::init(&args.common)?;
    let shutdown = shutdown::on_signal().map_err(|error| Exit::Died(format!("no signals: {error}")))?;
    let tls = Tls::load(&args.common)?;
    let listener = TcpListener::bind(&args.listen)
        .await
        .map_err(|error| ConfigError(format!("--listen {}: {error}", args.listen)))?;

    let leadership = if args.leader_election { Leadership::default() } else { Leadership::always() };
    let may_write = {
        let leadership = leadership.clone();
        Arc::new(move || leadership.holds())
    };
    let (azure, market, instances) = args.azure.connect(&args.common, USER_AGENT, may_write.clone())?;
    let lease_client = client::connect(&args.common, USER_AGENT).await?;
    let drain_client = client::connect_gated(&args.common, USER_AGENT, may_write.clone()).await?;
    let client = client::connect_gated(&args.common, USER_AGENT, may_write).await?;
    let mut catalogue = Catalogue::new(metrics::PREFIX);
    let metrics = Metrics::register(&mut catalogue);
    let (tracer, send_spans) = otlp::tracer(&args.common, PROGRAM, Vec::new())?;
    tokio::spawn(send_spans);
    let readiness = Readiness::default();
    let (cache, lease) = (readiness.gate("nodes"), readiness.gate("lease"));
    let namespace = args.pod_namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let identity = args.pod_name.unwrap_or_else(random_identity);
    let pool_namespaces =
        if args.pool_namespaces.is_empty() { vec![namespace.clone()] } else { args.pool_namespaces };

    let clock: Clock = Arc::new(Timestamp::now);
    let connections = Connections { client, drain_client, azure, instances, market, clock };
    let options = Options {
        cost_label: args.cost_label.map(Arc::from),
        agent_grace: args.agent_grace.try_into().unwrap_or(SignedDuration::MAX),
    };
    let (operator, watches) = Operator::watch(connections, options, metrics.clone(), tracer.clone());
    let elector = Elector::new(
        Api::namespaced(lease_client, &namespace),
        "spotpool-operator",
        identity,
        args.lease_duration,
        leadership,
    );

    let serve = admin::serve(listener, readiness, Arc::new(catalogue.into_registry()), tls);
    let lead = async {
        operator.ready().await;
        cache.open();
        lease.open(); // a standby is ready too: it waits for the lease by design
        let held = if args.leader_election { elector.acquire(&shutdown).await } else { None };
        if shutdown.is_cancelled() {
            return Ok(());
        }
        metrics.leads();
        let keep = async {
            let Some(held) = held else {
                shutdown.cancelled().await;
                return Ok(());
            };
            elector.keep(held, &shutdown).await.map_err(|lost| Exit::Died(lost.to_string()))
        };
        tokio::select! {
            ended = keep => ended,
            ended = operator.lead(pool_namespaces) => Err(Exit::Died(ended.to_string())),
        }
    };
    let end = tokio::select! {
        ended = lead => ended,
        ended = watches => Err(Exit::Died(ended.to_string())),
        never = serve => match never {},
    };
    tracer.flush(LAST_SPANS).await;
    end
}

fn random_identity() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("operator-{:016x}", RandomState::new().hash_one(std::process::id()))
}
