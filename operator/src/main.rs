//! The operator: keeps SpotPools at their size on spot capacity, inside what they allow.
//!
//! Everything that exists is made here, in order; what it does is in the modules.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures::StreamExt;
use futures::channel::mpsc;
use jiff::{SignedDuration, Timestamp};
use kube::Api;
use spotpool_azure::Clock;
use spotpool_operator::agent_pools::AgentPools;
use spotpool_operator::azure::AzureArgs;
use spotpool_operator::backup_drain::BackupDrains;
use spotpool_operator::drill;
use spotpool_operator::leader::{Elector, Leadership};
use spotpool_operator::metrics::{self, Metrics};
use spotpool_operator::neighbours::Neighbours;
use spotpool_operator::pool::{self, Parts};
use spotpool_operator::traces::Traces;
use spotpool_operator::vms::Vms;
use spotpool_operator::watches::{Nodes, Trigger};
use spotpool_operator::workloads::{Options, Workloads, label_key};
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
    let (azure, market) = (Arc::new(azure), Arc::new(market));
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
    let trigger = Trigger::default();
    let (nodes, node_stream) = Nodes::watch(client.clone(), trigger.clone());
    let options = Options {
        cost_label: args.cost_label.map(Arc::from),
        agent_grace: args.agent_grace.try_into().unwrap_or(SignedDuration::MAX),
    };
    let (workloads, workload_watches) =
        Workloads::watch(client.clone(), nodes.clone(), metrics.clone(), options, clock.clone());
    let agent_pools = Arc::new(AgentPools::new(
        azure.clone(),
        azure,
        nodes.clone(),
        trigger.clone(),
        metrics.clone(),
        clock.clone(),
    ));
    let vms = Arc::new(Vms::new(
        Arc::new(instances),
        nodes.clone(),
        trigger.clone(),
        metrics.clone(),
        clock.clone(),
    ));
    let backup_drains = BackupDrains::new(drain_client, trigger.clone(), metrics.clone());
    let traces = Arc::new(Traces::new(tracer.clone(), workloads.clone()));
    let neighbours = Arc::new(Neighbours::default());
    let elector = Elector::new(
        Api::namespaced(lease_client, &namespace),
        "spotpool-operator",
        identity,
        args.lease_duration,
        leadership,
    );

    let serve = admin::serve(listener, readiness, Arc::new(catalogue.into_registry()), tls);
    let watch = async {
        node_stream.collect::<()>().await;
        Err(Exit::Died("the watch of Nodes has ended".into()))
    };
    let lead = async {
        nodes.ready().await;
        cache.open();
        lease.open(); // a standby is ready too: it waits for the lease by design
        let held = if args.leader_election { elector.acquire(&shutdown).await } else { None };
        if shutdown.is_cancelled() {
            return Ok(());
        }
        metrics.leads();
        let (drill_listener, drills_triggered) = mpsc::unbounded();
        let drill_parts = drill::Parts {
            nodes: nodes.clone(),
            workloads: workloads.clone(),
            vms: vms.clone(),
            clock: clock.clone(),
        };
        let drill_namespaces = pool_namespaces.clone();
        let (mut listeners, namespaces): (Vec<_>, Vec<_>) = pool_namespaces
            .into_iter()
            .map(|namespace| {
                let (listener, triggered) = mpsc::unbounded();
                (listener, (namespace, triggered))
            })
            .unzip();
        listeners.push(drill_listener);
        let parts = Parts {
            nodes: nodes.clone(),
            agent_pools: agent_pools.clone(),
            market: market.clone(),
            workloads: workloads.clone(),
            vms: vms.clone(),
            backup_drains,
            neighbours: neighbours.clone(),
            traces: traces.clone(),
        };
        let keep = async {
            let Some(held) = held else {
                shutdown.cancelled().await;
                return Ok(());
            };
            elector.keep(held, &shutdown).await.map_err(|lost| Exit::Died(lost.to_string()))
        };
        tokio::select! {
            ended = keep => ended,
            () = trigger.clone().run(listeners) => Err(Exit::Died("the trigger has ended".into())),
            () = agent_pools.keep_fresh() => Err(Exit::Died("the agent pool cache has ended".into())),
            () = vms.keep_fresh() => Err(Exit::Died("the reading of VMs has ended".into())),
            () = market.keep_fresh(&nodes, &agent_pools, &trigger) => {
                Err(Exit::Died("the reading of prices has ended".into()))
            }
            never = neighbours.keep_fresh(client.clone(), &trigger) => match never {},
            never = traces.keep_looking() => match never {},
            () = workloads.keep_surveyed(&trigger) => {
                Err(Exit::Died("the survey of workloads has ended".into()))
            }
            () = drill::run(client.clone(), drill_parts, metrics.clone(), drill_namespaces, drills_triggered) => {
                Err(Exit::Died("the EvictionDrill controller has ended".into()))
            }
            () = pool::run(client, parts, metrics, namespaces) => Err(Exit::Died("the SpotPool controller has ended".into())),
        }
    };
    let end = tokio::select! {
        ended = lead => ended,
        ended = watch => ended,
        never = workload_watches => match never {},
        never = serve => match never {},
    };
    tracer.flush(LAST_SPANS).await;
    end
}

fn random_identity() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("operator-{:016x}", RandomState::new().hash_one(std::process::id()))
}
