//! `cargo demo`: the main job on a real control plane, from nothing, in one command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::SpotPoolStatus;
use spotpool_e2e::collector::Collector;
use spotpool_e2e::picture::{Account, Machine, Moment, Service};
use spotpool_e2e::timeline::{Actor, Seen, Timeline};
use spotpool_e2e::wait::within;
use spotpool_e2e::{OperatorOptions, Profile, Stage, World, WorldOptions, objects};

const NAMESPACE: &str = "demo";
const SPOT_POOL: &str = include_str!("../../../docs/examples/demo.yaml");
const SPOT: [&str; 2] = ["spotd8a", "spotd8b"];
const ON_DEMAND: &str = "regd8";
const WEB: usize = 6;
const BATCH: usize = 2;

/// Evicts two spot nodes at once and shows what becomes of their pods and of capacity.
#[derive(Parser)]
#[command(name = "cargo demo", version)]
struct Args {
    /// Keep everything running at the end, to play with; Ctrl-C ends it.
    #[arg(long)]
    watch: bool,
    /// Use the SpotPool in this file in place of docs/examples/demo.yaml. Its agent pools are spotd8a, spotd8b and regd8.
    #[arg(long, value_name = "FILE")]
    spotpool: Option<PathBuf>,
    /// Draw the eviction into this file, and write what is drawn beside it as JSON.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Use this cluster in place of one of our own. Its nodes must be kwok's.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Azure's times: VMs boot in 100 s, failback by its defaults, 1 min and one node first. Takes many minutes.
    #[arg(long)]
    real_times: bool,
    /// Programs as they are shipped (a longer build).
    #[arg(long)]
    release: bool,
}

#[derive(Clone, Copy)]
struct Times {
    boot: Duration,
    notice: Duration,
    limit: Duration,
}

impl Times {
    fn of(args: &Args) -> Self {
        let s = Duration::from_secs;
        if args.real_times {
            Self { boot: s(100), notice: s(30), limit: s(3600) }
        } else {
            Self { boot: s(8), notice: s(30), limit: s(180) }
        }
    }
}

/// The spec of the SpotPool that is to be shown, as it is written: what it may not say, the API server refuses.
fn spot_pool(args: &Args) -> Result<Value> {
    let Some(file) = &args.spotpool else {
        let mut spec = read_spot_pool(SPOT_POOL).context("docs/examples/demo.yaml")?;
        if args.real_times {
            spec["failback"] = json!({});
            spec["drain"] = json!({"escalateAfter": "60s"});
        }
        return Ok(spec);
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    read_spot_pool(&text).with_context(|| file.display().to_string())
}

fn read_spot_pool(text: &str) -> Result<Value> {
    let pool: Value = serde_yaml_ng::from_str(text).context("this is not one YAML document")?;
    if pool["kind"] != "SpotPool" {
        bail!("this is no SpotPool: begin with a copy of docs/examples/demo.yaml");
    }
    let names = pool["spec"]["agentPools"].as_array().into_iter().flatten();
    let unknown =
        names.filter_map(|it| it["name"].as_str()).find(|it| !SPOT.contains(it) && *it != ON_DEMAND);
    if let Some(unknown) = unknown {
        bail!("the demo has no agent pool {unknown}: name spotd8a, spotd8b or regd8");
    }
    Ok(pool["spec"].clone())
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let spec = match spot_pool(&args) {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let watching = AtomicBool::new(false);
    let interrupted = async {
        while tokio::signal::ctrl_c().await.is_ok() {
            // Then it is the way to end, and heard there.
            if !watching.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    let shown = tokio::select! {
        shown = Box::pin(demo(&args, spec, &watching)) => shown,
        () = interrupted => {
            eprintln!("\ninterrupted; everything that was started ends with this process");
            return ExitCode::from(130);
        }
    };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Refused>() => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the API server has against the SpotPool, in its own words.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(args: &Args, error: anyhow::Error) -> anyhow::Error {
    let (Some(file), Some(kube::Error::Api(status))) = (&args.spotpool, error.downcast_ref()) else {
        return error;
    };
    // Behind what it says of its own patch.
    let why = status.message.rsplit("Kind=SpotPool): ").next().unwrap_or_default();
    Refused(format!("{}: {why}", file.display())).into()
}

async fn demo(args: &Args, spec: Value, watching: &AtomicBool) -> Result<()> {
    let times = Times::of(args);
    eprintln!("building SpotPool and, the first time, a Kubernetes control plane (about 6 minutes) …");
    let collector = Collector::start().await?;
    let otlp = ["--otlp-endpoint".to_owned(), collector.endpoint.clone()];
    let world = World::start(WorldOptions {
        agent_args: otlp.to_vec(),
        profile: if args.release { Profile::Release } else { Profile::Dev },
        boot_time: times.boot,
        kubeconfig: args.kubeconfig.clone(),
        ..WorldOptions::default()
    })
    .await?;
    let began = Timestamp::now();
    println!(
        "times: VM boot {}s, notice {}s, failback stabilization {}, minimum lifetime {}",
        times.boot.as_secs(),
        times.notice.as_secs(),
        spec["failback"]["stabilization"].as_str().unwrap_or("1m"),
        spec["failback"]["minOnDemandLifetime"].as_str().unwrap_or("0s")
    );

    let stage = Stage::set(&world, NAMESPACE).await?;
    stage
        .agent_pools(&[
            PoolSpec::spot(SPOT[0], "Standard_D8s_v5", 2).zones(&["1"]),
            PoolSpec::spot(SPOT[1], "Standard_D8as_v5", 2).zones(&["2"]),
            PoolSpec::regular(ON_DEMAND, "Standard_D8s_v5", 0),
        ])
        .await?;
    workload(&world).await?;
    let options = OperatorOptions { args: otlp.to_vec(), ..OperatorOptions::default() };
    let operator = stage.operator(&options).await?;
    if let Err(error) = stage.spot_pool_as_written("workers", spec).await {
        operator.stop().await?;
        world.stop().await?;
        return Err(refused(args, error));
    }
    stage
        .status_is("workers", "the SpotPool to be ready", |status| {
            status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
        })
        .await?;
    // Plans do not wait for prices: an eviction in its first seconds would be answered without any.
    stage
        .status_is("workers", "the price of each agent pool to be known", |status| {
            status.agent_pools.iter().all(|pool| pool.price.is_some())
        })
        .await?;
    let timeline = Timeline::start(&world.client, &world.sim, NAMESPACE, true);
    within(times.limit, "all pods to run", async || Ok(all_running(&timeline.seen()).then_some(()))).await?;

    show(&stage, "before").await?;
    let (figures, event) = evict(&world, &stage, &timeline, times).await?;
    show(&stage, "after").await?;
    if let Some(file) = &args.svg {
        let account = account(&world, &timeline, times, &figures).await?;
        let json = file.with_extension("json");
        std::fs::write(file, account.draw()).with_context(|| format!("cannot write {}", file.display()))?;
        std::fs::write(&json, serde_json::to_string_pretty(&account)? + "\n")
            .with_context(|| format!("cannot write {}", json.display()))?;
    }
    let explained = explain(&collector, &event, times).await?;
    let seconds = Timestamp::now().duration_since(began).as_secs_f64();
    let mut line = json!({"demo": "ok", "seconds": round(seconds), "traceExplained": round(explained)});
    merge(&mut line, figures);
    println!("{line}");

    if args.watch {
        let kubectl = world.cluster.kubectl().display();
        println!(
            "\nstill running; Ctrl-C ends it. Look at it with\n\n  export KUBECONFIG={}\n  {kubectl} get spotpools -A\n  \
             {kubectl} -n {NAMESPACE} describe spotpool workers\n\nand evict a node with\n\n  {} evict NODE --notice 30s --sim-url {}\n",
            world.cluster.admin_kubeconfig().display(),
            world.programs.azure_sim.display(),
            world.sim.base_url(),
        );
        watching.store(true, Ordering::Relaxed);
        tokio::signal::ctrl_c().await?;
        println!("\nending …");
    }
    timeline.stop();
    operator.stop().await?;
    world.stop().await
}

/// A Deployment with a budget and a Job, which fill the four nodes.
async fn workload(world: &World) -> Result<()> {
    let pod = |app: &str, annotations: Value, restart: &str| {
        json!({
            "metadata": {"labels": {"app": app}, "annotations": annotations},
            "spec": {
                "restartPolicy": restart,
                "tolerations": [{"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}],
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": app}}}],
                "containers": [{"name": app, "image": app, "resources": {"requests": {"cpu": "3"}}}],
            }
        })
    };
    let manifests = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": NAMESPACE},
         "spec": {"replicas": WEB, "selector": {"matchLabels": {"app": "web"}}, "template": pod("web", json!({}), "Always")}},
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web", "namespace": NAMESPACE},
         "spec": {"minAvailable": WEB - 2, "selector": {"matchLabels": {"app": "web"}}}},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "batch", "namespace": NAMESPACE},
         "spec": {"parallelism": BATCH, "completions": BATCH, "template": pod("batch", json!({"kwok-run-for": "1h"}), "Never")}},
    ]});
    for item in manifests["items"].as_array().into_iter().flatten() {
        objects::apply(&world.client, &item.to_string(), |_| ()).await?;
    }
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), NAMESPACE);
    within(Duration::from_mins(1), "the Deployment to be available", async || {
        let ready =
            deployments.get("web").await?.status.and_then(|status| status.ready_replicas).unwrap_or(0);
        Ok((ready as usize == WEB).then_some(()))
    })
    .await
}

fn all_running(seen: &Seen) -> bool {
    seen.ready("web") == WEB && seen.ready("batch") == BATCH
}

/// Evicts two nodes of one scale set at once and measures until on-demand is given back.
async fn evict(
    world: &World,
    stage: &Stage<'_>,
    timeline: &Timeline,
    times: Times,
) -> Result<(Value, String)> {
    let before = stage.status("workers").await?.capacity.ready_spot;
    let events = world.sim.evict_some(SPOT[0], 2, times.notice).await?;
    let notice = events.first().context("the simulator evicted nothing")?.scheduled_at;
    let doomed: Vec<String> = events.iter().flat_map(|event| event.nodes.clone()).collect();
    timeline.zero(notice);
    timeline.tell(
        Actor::Azure,
        notice,
        &format!("Preempt: {} will go in {} s", doomed.join(" and "), times.notice.as_secs()),
    );

    within(times.limit, "both nodes to be cordoned", async || {
        let seen = timeline.seen();
        Ok(doomed
            .iter()
            .all(|node| seen.nodes.get(node).is_some_and(|it| it.cordoned.is_some()))
            .then_some(()))
    })
    .await?;
    let running = async {
        let running = within(times.limit, "all pods to run again elsewhere", async || {
            let seen = timeline.seen();
            let moved = seen.pods.values().all(|pod| {
                pod.gone.is_some()
                    || pod.of_daemon_set
                    || !pod.node.as_ref().is_some_and(|node| doomed.contains(node))
            });
            Ok((moved && all_running(&seen)).then(Timestamp::now))
        })
        .await?;
        timeline.tell(Actor::Demo, running, "every pod runs again");
        Ok::<_, anyhow::Error>(running)
    };
    let whole = async {
        // Status still says what was before the notice for a moment.
        within(times.limit, "the loss to show", async || {
            Ok((stage.status("workers").await?.capacity.ready_spot < before).then_some(()))
        })
        .await?;
        let whole = within(times.limit, "spot to be whole", async || {
            let status = stage.status("workers").await?;
            Ok((status.capacity.ready_spot >= before).then(Timestamp::now))
        })
        .await?;
        timeline.tell(Actor::Demo, whole, "spot is whole again; on-demand stays until it is stable");
        Ok(whole)
    };
    let (running, whole) = tokio::try_join!(running, whole)?;
    let back = within(times.limit, "on-demand to be given back", async || {
        let state = world.sim.state().await?;
        let left = state.vms_of(ON_DEMAND).count();
        let status = stage.status("workers").await?;
        let settled =
            status.agent_pools.iter().all(|pool| pool.operation.is_none() && pool.count == pool.machines);
        Ok((left == 0 && status.fallback.nodes == 0 && settled).then(Timestamp::now))
    })
    .await?;
    timeline.tell(Actor::Demo, back, "on-demand is given back");

    let seen = timeline.seen();
    let fewest = seen.fewest_ready("web");
    timeline.tell(
        Actor::Demo,
        Timestamp::now(),
        &format!("never fewer than {fewest} of {WEB} web pods were ready; their budget asks for {}", WEB - 2),
    );
    if fewest < WEB - 2 {
        // Half of the nodes go before the first replacement can be there: no drain can keep a budget then.
        if times.boot < times.notice {
            bail!("the disruption budget was broken: only {fewest} of {WEB} web pods were ready");
        }
        let (boot, notice) = (times.boot.as_secs(), times.notice.as_secs());
        let why = format!(
            "a VM takes {boot} s to boot and the notice was {notice} s: nothing could keep the budget"
        );
        timeline.tell(Actor::Demo, Timestamp::now(), &why);
    }
    let state = world.sim.state().await?;
    let killed = state
        .killed_pods
        .iter()
        .filter(|pod| pod.owner_kind.as_deref() != Some("DaemonSet") && pod.namespace == NAMESPACE);
    let killed: Vec<&str> = killed.map(|pod| pod.name.as_str()).collect();
    if !killed.is_empty() {
        bail!("pods died with their VM: {}", killed.join(", "));
    }
    let since = |at: Timestamp| round(at.duration_since(notice).as_secs_f64());
    let cordoned = doomed.iter().filter_map(|node| seen.nodes.get(node)?.cordoned).max();
    let on_doomed = |node: &Option<String>| node.as_ref().is_some_and(|node| doomed.contains(node));
    let evicted = seen.pods.values().filter(|pod| on_doomed(&pod.node) && !pod.of_daemon_set);
    let last_eviction = evicted.filter_map(|pod| pod.leaving).max();
    let puts = state.arm_writes.iter().filter(|write| write.kind.starts_with("PUT") && write.at >= notice);
    let first_put = puts.map(|write| write.at).min();
    let figures = json!({
        "noticeToCordonSeconds": cordoned.map(since),
        "noticeToPutSeconds": first_put.map(since),
        "noticeToLastEvictionSeconds": last_eviction.map(since),
        "noticeToAllPodsRunningSeconds": since(running),
        "noticeToSpotWholeSeconds": since(whole),
        "failbackSeconds": round(back.duration_since(whole).as_secs_f64()),
        "fewestWebPodsReady": fewest,
        "podsKilledWithVm": 0,
    });
    let event = events.into_iter().next().context("the simulator evicted nothing")?;
    Ok((figures, event.event_id))
}

/// What a picture of the eviction shows.
async fn account(world: &World, timeline: &Timeline, times: Times, figures: &Value) -> Result<Account> {
    let (seen, zero) = (timeline.seen(), timeline.started());
    let since = |at: Timestamp| round(at.duration_since(zero).as_secs_f64());
    let after = |at: Option<Timestamp>| at.map(since).filter(|at| *at > 0.0);
    let writes = world.sim.state().await?.arm_writes;
    let mut machines = Vec::new();
    for agent_pool in SPOT.into_iter().chain([ON_DEMAND]) {
        let asked = writes.iter().find(|write| write.pool == agent_pool && write.at > zero);
        let of_pool = seen.nodes.iter().filter(|(name, _)| name.starts_with(&format!("aks-{agent_pool}-")));
        machines.extend(of_pool.map(|(_, node)| Machine {
            agent_pool: agent_pool.to_owned(),
            spot: agent_pool != ON_DEMAND,
            asked: asked.filter(|_| after(node.ready).is_some()).map(|write| since(write.at)),
            ready: after(node.ready),
            closed: after(node.cordoned.or(node.asked_to_drain)),
            drained: after(node.drained),
            gone: after(node.gone),
        }));
    }
    let course = seen.ready_over_time.get("web").into_iter().flatten();
    let ready = course.map(|(at, ready)| (since(*at).max(0.0), *ready)).collect();
    let at = |figure: &str| figures[figure].as_f64();
    let returned =
        Some(at("noticeToSpotWholeSeconds").unwrap_or_default() + at("failbackSeconds").unwrap_or_default());
    let on_demand = machines.iter().filter(|machine| !machine.spot);
    let stands_in = on_demand.clone().filter_map(|machine| machine.ready).reduce(f64::max);
    let gone =
        machines.iter().filter(|machine| machine.spot).filter_map(|machine| machine.gone).reduce(f64::max);
    let moments = [
        (at("noticeToCordonSeconds"), "both nodes closed: cordoned, tainted, out of load balancers"),
        (at("noticeToPutSeconds"), "Azure is asked for replacements"),
        (stands_in, "on-demand nodes stand in"),
        (at("noticeToSpotWholeSeconds"), "as many spot nodes as before"),
        (at("noticeToLastEvictionSeconds"), "the last pod has been asked to go"),
        (at("noticeToAllPodsRunningSeconds"), "every pod runs again"),
        (gone, "Azure has taken both VMs, with no pod on them"),
        (returned.filter(|_| stands_in.is_some()), "on-demand nodes are given back"),
    ];
    let moments =
        moments.into_iter().filter_map(|(at, what)| Some(Moment { at: round(at?), what: what.to_owned() }));
    Ok(Account {
        title: format!("Two of four spot nodes are evicted at once, {} s ahead", times.notice.as_secs()),
        notice: times.notice.as_secs_f64(),
        service: Service { name: "web".to_owned(), wanted: WEB, budget: WEB - 2, ready },
        machines,
        moments: moments.collect(),
    })
}

/// Draws the trace of an eviction. How much of its time has a name.
async fn explain(collector: &Collector, event: &str, times: Times) -> Result<f64> {
    let trace = within(times.limit, "the trace to be whole", async || {
        let trace = collector.trace(event);
        Ok(trace.whole().is_some().then_some(trace))
    })
    .await?;
    println!("\nthe trace of event {event}, notice to pods running:\n\n{}", trace.picture(60));
    trace.explained().context("the trace has no end")
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn merge(line: &mut Value, more: Value) {
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
}

/// What all of it costs, and saves.
fn cost(status: &SpotPoolStatus) -> String {
    let Some(money) = &status.money else { return String::new() };
    let hourly = money.hourly.as_ref().map(|hourly| format!("; {} {} an hour", hourly.total, money.currency));
    let saving = money.saving_percent.map(|percent| format!(", {percent} % less than on demand"));
    hourly.unwrap_or_default() + &saving.unwrap_or_default()
}

/// The pools as a table.
async fn show(stage: &Stage<'_>, when: &str) -> Result<()> {
    let status = stage.status("workers").await?;
    println!(
        "\n{when}: {} of {} ready, {} on fallback{}",
        status.ready_replicas,
        status.replicas,
        status.fallback.nodes,
        cost(&status)
    );
    println!(
        "  {:<10} {:<9} {:<18} {:>5} {:>8} {:>5} {:>9}",
        "POOL", "ROLE", "SIZE", "COUNT", "MACHINES", "READY", "USD/HOUR"
    );
    for pool in &status.agent_pools {
        let role = pool.role.map(|role| format!("{role:?}")).unwrap_or_default();
        let price = pool.price.as_ref().map(|price| price.hourly.as_str()).unwrap_or_default();
        println!(
            "  {:<10} {:<9} {:<18} {:>5} {:>8} {:>5} {price:>9}",
            pool.name, role, pool.vm_size, pool.count, pool.machines, pool.ready
        );
    }
    println!();
    Ok(())
}
