//! A full node: 110 pods, all to be evicted at once.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_e2e::{World, eventually, objects};
use tokio::process::Command;

use crate::audit::{Audit, Evictions, millis};
use crate::machine;
use crate::nodes::{self, NAMESPACE};
use crate::raw::Raw;
use crate::report::{Figure, Goal, Report, median, rounded};

const FIGURES: [&str; 5] =
    ["evict_110", "evict_110_raw", "evict_110_vs_raw", "evict_110_vs_kubectl_drain", "blocked_pod_delay"];
const PODS: usize = 110;
const ROUNDS: usize = 5;
const NOTICE: Duration = Duration::from_mins(1);

/// What one kind of run showed.
#[derive(Default)]
struct Runs {
    /// First eviction received to last accepted.
    evictions: Vec<f64>,
    /// The beginning (a poll's answer, a program's start) to the last eviction accepted.
    whole: Vec<f64>,
    /// How busy the machine was just before.
    busy: Vec<f64>,
}

impl Runs {
    fn add(&mut self, busy: f64, began: Timestamp, evictions: Evictions) {
        self.busy.push(busy);
        self.whole.push(millis(began, evictions.last));
        self.evictions.push(evictions.millis());
    }
}

/// Measures, if any of it is asked for.
pub async fn measure(world: &World, report: &mut Report) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    let (wants_raw, wants_blocked) = (report.wants(&FIGURES[1..3]), report.wants(&FIGURES[4..]));
    let (mut raw, mut agent, mut blocked) = (Runs::default(), Runs::default(), Runs::default());
    for round in 0..ROUNDS {
        eprintln!("{PODS} pods on one node, round {} of {ROUNDS} …", round + 1);
        let pool = format!("storm{round}");
        let fresh = nodes::fresh(world, &pool, 3).await?;
        let [one, two, three] = fresh.as_slice() else { anyhow::bail!("not 3 nodes in {pool}") };
        // Who is first changes with each round.
        let mut order = [("raw", one), ("agent", two), ("blocked", three)];
        order.rotate_left(round % 3);
        for (kind, node) in order {
            match kind {
                "raw" if wants_raw => by_raw(world, node, &mut raw).await?,
                "agent" => by_agent(world, node, 0, &mut agent).await?,
                "blocked" if wants_blocked => by_agent(world, node, 1, &mut blocked).await?,
                _ => {}
            }
        }
        world.sim.remove_pool(&pool).await?;
    }

    let whole = median(&agent.whole);
    let busy = |runs: &Runs| rounded(median(&runs.busy));
    report.print(
        Figure::new("evict_110", "ms", Goal::None, agent.whole.clone())
            .with("from_first_request", rounded(median(&agent.evictions)))
            .with("busy_before", busy(&agent)),
    );
    if wants_raw {
        let ratio = median(&agent.evictions) / median(&raw.evictions);
        report.print(
            Figure::new("evict_110_raw", "ms", Goal::None, raw.evictions.clone())
                .with("busy_before", busy(&raw)),
        );
        let ratios = agent.evictions.iter().zip(&raw.evictions).map(|(agent, raw)| agent / raw).collect();
        report.print(
            Figure::new("evict_110_vs_raw", "ratio", Goal::Max(1.2), ratios)
                .value(ratio)
                .with("with_cordon", rounded(whole / median(&raw.evictions))),
        );
    }
    if wants_blocked {
        let delays =
            blocked.evictions.iter().zip(&agent.evictions).map(|(blocked, free)| blocked - free).collect();
        report.print(
            Figure::new("blocked_pod_delay", "ms", Goal::Max(50.0), delays)
                .value(median(&blocked.evictions) - median(&agent.evictions))
                .with("busy_before", busy(&blocked)),
        );
    }
    if report.wants(&["evict_110_vs_kubectl_drain"]) {
        let mut kubectl = Runs::default();
        by_kubectl(world, &mut kubectl).await?;
        let took = median(&kubectl.whole);
        report.print(
            Figure::new("evict_110_vs_kubectl_drain", "times", Goal::None, vec![took / whole])
                .with("kubectl_ms", rounded(took)),
        );
    }
    Ok(())
}

fn names(pods: &[Pod]) -> Vec<String> {
    pods.iter().map(ResourceExt::name_any).collect()
}

async fn by_raw(world: &World, node: &str, runs: &mut Runs) -> Result<()> {
    let pods = nodes::fill(world, node, PODS, 0).await?;
    let raw = Raw::prepare(world, &pods).await?;
    let busy = machine::settle().await?;
    let (audit, began) = (Audit::from_now(world)?, Timestamp::now());
    raw.go().await?;
    runs.add(busy, began, audit.evictions(&names(&pods)).await?);
    nodes::empty(world, node).await
}

/// With `blocked` pods that a disruption budget holds for ever; the others' evictions count.
async fn by_agent(world: &World, node: &str, blocked: usize, runs: &mut Runs) -> Result<()> {
    let pods = nodes::fill(world, node, PODS, blocked).await?;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), NAMESPACE);
    if blocked > 0 {
        let budget = json!({"metadata": {"name": node}, "spec": {
            "minAvailable": blocked, "selector": {"matchLabels": {"blocked": node}}}});
        objects::create(&budgets, budget).await?;
        eventually("the budget to be counted", async || {
            let status = budgets.get(node).await?.status;
            Ok(status.filter(|status| status.current_healthy == blocked as i32).map(|_| ()))
        })
        .await?;
    }
    let free: Vec<String> = names(&pods)
        .into_iter()
        .filter(|name| {
            !pods.iter().any(|pod| pod.name_any() == *name && pod.labels().contains_key("blocked"))
        })
        .collect();
    let busy = machine::settle().await?;
    let audit = Audit::from_now(world)?;
    let events = world.sim.evict(&[node], NOTICE).await?;
    let told = nodes::told(world, events.first().context("nothing was evicted")?, node).await?;
    runs.add(busy, told, audit.evictions(&free).await?);
    if blocked > 0 {
        let refused = audit.requests()?.iter().any(|it| it.eviction_of().is_some() && it.evicted().is_none());
        anyhow::ensure!(refused, "the disruption budget held nothing");
        budgets.delete(node, &DeleteParams::default()).await?;
    }
    nodes::empty(world, node).await
}

async fn by_kubectl(world: &World, runs: &mut Runs) -> Result<()> {
    eprintln!("the same by kubectl drain …");
    let node = nodes::fresh(world, "kubectl", 1).await?.pop().context("the simulator made no node")?;
    let pods = nodes::fill(world, &node, PODS, 0).await?;
    let busy = machine::settle().await?;
    let (audit, began) = (Audit::from_now(world)?, Timestamp::now());
    let mut kubectl = Command::new(world.cluster.kubectl())
        .arg("--kubeconfig")
        .arg(world.cluster.admin_kubeconfig())
        .args(["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--force"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    runs.add(busy, began, audit.evictions(&names(&pods)).await?);
    let status = kubectl.wait().await?;
    anyhow::ensure!(status.success(), "kubectl drain ended with {status}");
    world.sim.remove_pool("kubectl").await?;
    Ok(())
}
