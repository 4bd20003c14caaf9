//! `spotpool-node-agent`: on every node, watches Azure's notices for its VM, and drains the node by the deadline.
//!
//! ```text
//! imds ─► document ─┐
//! npd (of the Node) ┴► notice (decides) ─► agent ─► flow ──────► marks, edit ─► node (writes)
//!                                            ▲  └─► voluntary ─► spotpool-drain (evicts)
//!                      watch of Node, pods ──┘       └─► relay, telling (hooks, notify), announce, condition, metrics, trace
//! ```

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::names;
use spotpool_drain::Pods;
use spotpool_drain::pods::watch_pods;
use spotpool_runtime::admin::{self, Readiness};
use spotpool_runtime::catalogue::Catalogue;
use spotpool_runtime::exit::{self, ConfigError, Exit};
use spotpool_runtime::tls::Tls;
use spotpool_runtime::{args as flags, client, otlp, shutdown, telemetry};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use spotpool_node_agent::agent::{Agent, Inputs, Listening, Outputs};
use spotpool_node_agent::announce::Announcer;
use spotpool_node_agent::args::Args;
use spotpool_node_agent::condition::{self, Told};
use spotpool_node_agent::context::Context;
use spotpool_node_agent::hooks::{Caller, Reach};
use spotpool_node_agent::imds::{self, Imds, TimerSlots};
use spotpool_node_agent::metrics::{self, Metrics};
use spotpool_node_agent::node::{NodeHandle, watch_node};
use spotpool_node_agent::relay;
use spotpool_node_agent::time;

const PROGRAM: &str = "spotpool-node-agent";
/// How long the end of the program waits for the collector.
const LAST_SPANS: Duration = Duration::from_secs(2);

// One thread is plenty, and keeps the agent small: it runs on every node.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let slots = TimerSlots::begin();
    let args: Args = flags::parse();
    exit::code(PROGRAM, run(args, slots).await)
}

async fn run(args: Args, slots: TimerSlots) -> Result<(), Exit> {
    telemetry::init(&args.common)?;
    exit::on_panic();
    let shutdown = shutdown::on_signal().map_err(|error| Exit::Died(format!("signals: {error}")))?;
    let mut catalogue = Catalogue::new(metrics::PREFIX);
    let metrics = Metrics::register(&mut catalogue);
    let about = vec![("k8s.node.name", args.node_name.as_str().into())];
    let (tracer, send_spans) = otlp::tracer(&args.common, PROGRAM, about)?;
    let readiness = Readiness::default();
    let (imds_gate, node_gate, pods_gate) =
        (readiness.gate("imds"), readiness.gate("node"), readiness.gate("pods"));

    let imds =
        Imds::new(&args.imds_endpoint).map_err(|error| ConfigError(format!("--imds-endpoint: {error}")))?;
    let (pulse, approver) = (imds.pulse(), imds.approver());
    let tls = Tls::load(&args.common)?;
    let admin_listener = bind("--listen", args.listen).await?;
    let relay_listener = bind("--notice-listen", args.notice_listen).await?;
    let client =
        client::connect(&args.common, concat!("spotpool-node-agent/", env!("CARGO_PKG_VERSION"))).await?;

    let (urgent, is_urgent) = watch::channel(false);
    let (pods, known_pods) = watch::channel(Pods::default());
    let (node, known_node) = watch::channel(None);
    let (documents, new_documents) = mpsc::channel(4);
    let (relay, relayed) = watch::channel(None);
    let (condition, wanted_condition) = watch::channel(Told::default());
    let (announcer, post_events) = Announcer::new(client.clone(), &args.node_name);

    // These run as long as the program does; one that ends takes it along.
    let name: Arc<str> = args.node_name.as_str().into();
    let mut tasks = JoinSet::new();
    let (watched, is_urgent_there, of_client) = (name.clone(), is_urgent.clone(), client.clone());
    tasks.spawn(async move {
        watch_pods(of_client, &watched, pods, is_urgent_there).await;
        "the watch of pods"
    });
    let (watched, is_urgent_there, of_client) = (name, is_urgent.clone(), client.clone());
    tasks.spawn(async move {
        watch_node(of_client, &watched, node, is_urgent_there).await;
        "the watch of the Node"
    });
    let polling =
        imds::poll(imds, args.poll_interval, documents, is_urgent, metrics.clone(), imds_gate, slots);
    tasks.spawn(async move {
        polling.await;
        "polling of the metadata service"
    });
    tasks.spawn(async move {
        post_events.await;
        "posting of Events"
    });
    tasks.spawn(async move { match send_spans.await {} });
    // Probes and scrapes go on while a drain is finished, so these do not end with the signal.
    let admin = admin::serve(admin_listener, readiness, Arc::new(catalogue.into_registry()), tls);
    tasks.spawn(async move { match admin.await {} });
    let relaying = relay::serve(relay_listener, relayed);
    tasks.spawn(async move { match relaying.await {} });
    let mut listed = known_pods.clone();
    tokio::spawn(async move {
        if listed.wait_for(|pods| pods.complete).await.is_ok() {
            pods_gate.open();
        }
    });

    let node =
        NodeHandle::new(client.clone(), names::AGENT_FIELD_MANAGER, &args.node_name, known_node.clone());
    let keeping = condition::keep(node.clone(), wanted_condition);
    tasks.spawn(async move {
        keeping.await;
        "keeping the Node's condition"
    });
    let context = Context {
        node,
        client,
        pods: known_pods,
        announcer,
        metrics,
        tracer: tracer.clone(),
        hooks: Caller::new(Reach::beside(&args.imds_endpoint)),
        condition,
        approver,
        defaults: args.drain_policy(),
        events: args.events(),
    };
    let agent = Agent::new(context, Outputs { relay, urgent, gate: node_gate });
    let hearing =
        Listening { pulse, since: Timestamp::now(), interval: args.poll_interval, booted_at: booted_at() };
    let inputs = Inputs { documents: new_documents, hearing, node: known_node, shutdown };
    tracing::info!(node = args.node_name, imds = %args.imds_endpoint, manager = names::AGENT_FIELD_MANAGER, "started");
    let end = tokio::select! {
        ended = agent.run(inputs) => ended,
        Some(ended) = tasks.join_next() => Err(Exit::Died(match ended {
            Ok(what) => format!("{what} has ended"),
            Err(error) => format!("a task died: {error}"),
        })),
    };
    tracer.flush(LAST_SPANS).await;
    end
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, ConfigError> {
    TcpListener::bind(address).await.map_err(|error| ConfigError(format!("{flag} {address}: {error}")))
}

/// When the machine booted, if the kernel says: a condition that is older is of another boot.
fn booted_at() -> Option<Timestamp> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let uptime = Duration::try_from_secs_f64(seconds).ok()?;
    Some(time::earlier(Timestamp::now(), uptime))
}
