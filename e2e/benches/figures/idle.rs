//! What an agent costs that has nothing to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use spotpool_e2e::World;

use crate::report::{Figure, Goal, Report};
use crate::{machine, nodes};

const FIGURES: [&str; 4] = ["agent_idle_rss", "agent_idle_anonymous", "agent_idle_cpu", "agent_binary_size"];
const PODS: usize = 30;
/// After start-up, before the measurement.
const WARM: Duration = Duration::from_secs(10);
/// How often a kubelet asks for the agent's readiness, unless told.
const PROBE: Duration = Duration::from_secs(10);
const TIME: Duration = Duration::from_mins(1);

/// Measures, if any of it is asked for.
pub async fn measure(world: &World, report: &mut Report) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    let size = std::fs::metadata(&world.programs.node_agent)?.len() as f64 / 1e6;
    report.print(Figure::new("agent_binary_size", "MB", Goal::Max(8.0), vec![size]));
    if !report.wants(&FIGURES[..3]) {
        return Ok(());
    }
    eprintln!("an idle agent on a node with {PODS} pods, for {} s …", (WARM + TIME).as_secs());
    let agents = world.agents.as_ref().context("no agents run")?;
    let node = nodes::fresh(world, "idle", 1).await?.pop().context("the simulator made no node")?;
    nodes::fill(world, &node, PODS, nodes::alone).await?;
    let agent = agents.process(&node).context("no agent runs")?;
    agents.probe_every(PROBE);
    tokio::time::sleep(WARM).await;

    let (before, began) = (machine::cpu_time(agent.id())?, Instant::now());
    tokio::time::sleep(TIME).await;
    let (after, took) = (machine::cpu_time(agent.id())?, began.elapsed());
    agent.check_running()?;
    agents.probe_every(Duration::ZERO);
    let memory = machine::memory(agent.id())?;
    let cpu = after.0.saturating_sub(before.0).as_secs_f64() * 1000.0 * 60.0 / took.as_secs_f64();
    let print =
        |name, unit, max, value| Figure::new(name, unit, Goal::Max(max), vec![value]).with("pods", PODS);
    report.print(print(FIGURES[0], "MiB", 10.0, memory.resident));
    report.print(print(FIGURES[1], "MiB", 4.0, memory.anonymous));
    report.print(print(FIGURES[2], "ms/min", 15.0, cpu).with("threads", after.1));
    nodes::empty(world, &node).await?;
    world.sim.remove_pool("idle").await?;
    Ok(())
}
