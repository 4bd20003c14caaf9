//! One eviction with the operator beside it: from the notice to cordon, PUT and replacement.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::ResourceExt;
use serde_json::json;
use spotpool_azure_sim::api::{SettingsPatch, Targets};
use spotpool_crds::eviction::Phase;
use spotpool_e2e::{OperatorOptions, Stage, World, eventually, objects};

use crate::audit::{Audit, millis};
use crate::machine;
use crate::nodes::{self, Nodes};
use crate::report::{Figure, Goal, Report, median, rounded};

const FIGURES: [&str; 5] = [
    "notice_to_cordon",
    "notice_to_cordon_total",
    "drain_api_requests",
    "notice_to_put",
    "notice_to_replacement_ready_vs_boot",
];
const POOL: &str = "notices";
const NODES: u32 = 3;
const PODS: usize = 30;
const NOTICE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_secs(1);
/// Of the runs that do not measure the replacement, which would only make them longer.
const SHORT_BOOT: Duration = Duration::from_secs(2);
const LONG_BOOT: Duration = Duration::from_secs(15);
const SHORT_RUNS: usize = 6;
const LONG_RUNS: usize = 3;

/// What one run showed, in milliseconds where not said otherwise.
#[derive(Default)]
struct Runs {
    poll_to_cordon: Vec<f64>,
    total: Vec<f64>,
    requests: Vec<f64>,
    put: Vec<f64>,
    /// Those of the last run by kind.
    kinds: BTreeMap<String, u32>,
    replaced: Vec<f64>,
    busy: Vec<f64>,
}

/// Measures, if any of it is asked for.
pub async fn measure(world: &World, nodes: &Nodes, report: &mut Report) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    boot_time(world, SHORT_BOOT).await?;
    nodes::fresh(world, POOL, NODES).await?;
    let stage = Stage::set(world, "notices").await?;
    let operator = stage.operator(&OperatorOptions::default()).await?;
    stage
        .spot_pool("pool", json!({"replicas": NODES, "agentPools": [{"name": POOL, "maxNodes": 12}]}))
        .await?;
    let wants_replacement = report.wants(&FIGURES[4..]);
    let wants_others = report.wants(&FIGURES[..4]);
    let short = if wants_others { SHORT_RUNS } else { 0 };
    let all = short + if wants_replacement { LONG_RUNS } else { 0 };
    let (mut runs, mut ratios) = (Runs::default(), Vec::new());
    for run in 0..all {
        let boot = if run < short { SHORT_BOOT } else { LONG_BOOT };
        boot_time(world, boot).await?;
        eprintln!("a notice, run {} of {all}, VMs boot in {} s …", run + 1, boot.as_secs());
        // Each kind of run is spread over the poll interval.
        let (index, of) = if run < short { (run, short) } else { (run - short, LONG_RUNS) };
        let phase = POLL.mul_f64((index as f64 + 0.5) / of as f64);
        one(&stage, nodes, phase, &mut runs).await?;
        if run >= short {
            ratios.extend(runs.replaced.last().copied());
        }
    }
    operator.stop().await?;

    let busy = rounded(median(&runs.busy));
    let Runs { poll_to_cordon, total, requests, kinds, put, .. } = runs;
    let ms = |name, max, runs| Figure::new(name, "ms", max, runs).with("busy_before", busy);
    report.print(ms("notice_to_cordon", Goal::Max(50.0), poll_to_cordon));
    report.print(ms("notice_to_cordon_total", Goal::Max(POLL.as_millis() as f64 + 50.0), total));
    report.print(
        Figure::new("drain_api_requests", "requests", Goal::Max(36.0), requests)
            .with("pods", PODS)
            .with("kinds", json!(kinds)),
    );
    report.print(ms("notice_to_put", Goal::Max(300.0), put));
    if wants_replacement {
        let ordinary = ordinary_start(nodes);
        let limit = LONG_BOOT.as_secs_f64() * 1000.0 + ordinary;
        let took = median(&ratios);
        let ratios = ratios.iter().map(|took| took / limit).collect();
        report.print(
            Figure::new("notice_to_replacement_ready_vs_boot", "ratio", Goal::Max(1.1), ratios)
                .with("ms", rounded(took))
                .with("boot_ms", LONG_BOOT.as_millis() as u64)
                .with("node_created_to_ready_ms", rounded(ordinary)),
        );
    }
    Ok(())
}

/// How long a Node needs from its creation to take pods: nothing of ours.
fn ordinary_start(nodes: &Nodes) -> f64 {
    let starts = nodes.all().into_values().filter_map(|seen| Some(millis(seen.appeared?, seen.ready?)));
    median(&starts.collect::<Vec<_>>())
}

async fn boot_time(world: &World, time: Duration) -> Result<()> {
    world.sim.change_settings(&SettingsPatch { boot_time: Some(time), ..SettingsPatch::default() }).await?;
    Ok(())
}

async fn one(stage: &Stage<'_>, nodes: &Nodes, phase: Duration, runs: &mut Runs) -> Result<()> {
    let world = stage.world;
    let node = whole(stage).await?;
    let pods = nodes::fill(world, &node, PODS, nodes::alone).await?;
    let pods = nodes::names(&pods);
    runs.busy.push(machine::settle().await?);
    after_poll(world, &node, phase).await?;

    let mut audit = Audit::from_now(world)?;
    let events = world.sim.evict(&[&node], NOTICE).await?;
    let event = events.first().context("nothing was evicted")?;
    let told = nodes::told(world, event, &node).await?;
    let evictions = audit.evictions(&pods).await?;
    let seen = eventually("the drain to be over", async || {
        let seen = nodes.seen(&node);
        let over = seen.notice.as_ref().is_some_and(|notice| notice.phase == Phase::Drained);
        Ok(over.then_some(seen))
    })
    .await?;
    let cordoned = seen.cordoned.context("the node was drained and not cordoned")?;
    let observed = seen.notice.context("the node was drained without a notice")?.observed_at;
    let replaced = eventually("the replacement", async || {
        let state = world.sim.state().await?;
        // Nobody knew of the notice before the agent was told.
        let orders = state.arm_writes.iter().filter(|it| it.at >= told && !it.machines_ordered.is_empty());
        let orders: Vec<_> = orders.collect();
        let ready =
            orders.iter().flat_map(|put| &put.machines_ordered).filter_map(|name| nodes.seen(name).ready);
        Ok(orders.first().map(|put| put.at).zip(ready.min()))
    })
    .await?;

    runs.poll_to_cordon.push(millis(told, cordoned));
    runs.total.push(millis(event.scheduled_at, cordoned));
    runs.put.push(millis(observed, replaced.0));
    runs.replaced.push(millis(event.scheduled_at, replaced.1));
    let until = nodes::aftermath(evictions.last).await?;
    let kinds = audit.asked_by(&node, until)?;
    runs.requests.push(kinds.values().sum::<u32>().into());
    runs.kinds = kinds;
    // While it is there its agent tells the operator of notices to others of its scale set, before theirs do.
    world.sim.kill(&Targets::named(&[&node])).await?;
    Ok(())
}

/// Waits until the pool is as wanted and Azure has nothing to do for it, and returns one of its nodes, whose
/// agent is ready.
async fn whole(stage: &Stage<'_>) -> Result<String> {
    eventually("the SpotPool to be whole", async || {
        let status = stage.status("pool").await?;
        let state = stage.world.sim.state().await?;
        let idle = state.pool(POOL).is_some_and(|pool| pool.operation.is_none());
        let nodes = stage.nodes(POOL).await?;
        let whole = nodes.len() == NODES as usize && nodes.iter().all(objects::takes_pods);
        if status.ready_replicas != NODES as i32 || !idle || !whole {
            return Ok(None);
        }
        let node = nodes.iter().map(ResourceExt::name_any).next();
        let Some(agents) = &stage.world.agents else { return Ok(node) };
        let Some(url) = node.as_deref().and_then(|node| agents.admin_url(node)) else { return Ok(None) };
        let answer = reqwest::get(format!("{url}/readyz")).await?;
        Ok(node.filter(|_| answer.status().is_success()))
    })
    .await
}

/// Waits until the node's agent has just asked the metadata service, and then as long as `phase`.
async fn after_poll(world: &World, node: &str, phase: Duration) -> Result<()> {
    let polls = async || {
        let state = world.sim.state().await?;
        state.vm(node).map(|vm| vm.imds_requests).context("the simulator forgot a machine")
    };
    let before = polls().await?;
    while polls().await? == before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(phase).await;
    Ok(())
}
