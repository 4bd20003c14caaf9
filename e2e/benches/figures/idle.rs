//! What an agent costs that has nothing to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use spotpool_e2e::{World, processes};

use crate::audit::Audit;
use crate::nodes;
use crate::report::{Figure, Goal, Report};

const SIZE: &str = "agent_binary_size";
const SHORT: [&str; 4] =
    ["agent_idle_rss", "agent_idle_anonymous", "agent_idle_cpu", "agent_idle_imds_requests"];
const LONG: &str = "agent_idle_api_requests";
const PODS: usize = 30;
/// After start-up, before the measurement.
const WARM: Duration = Duration::from_secs(10);
/// How often a kubelet asks for the agent's readiness, unless told.
const PROBE: Duration = Duration::from_secs(10);
const TIME: Duration = Duration::from_mins(1);
/// For how long requests are counted at least. In a whole run it is longer: watches end after five minutes, and what
/// their renewal asks for counts.
const LONG_TIME: Duration = Duration::from_mins(3);

/// An idle agent whose requests are counted.
pub struct Idle {
    node: String,
    audit: Audit,
    since: Timestamp,
}

/// Measures, if any of it is asked for. The agent stays idle until [`Idle::finish`].
pub async fn measure(world: &World, report: &mut Report) -> Result<Option<Idle>> {
    if report.wants(&[SIZE]) {
        let size = std::fs::metadata(&world.programs.node_agent)?.len() as f64 / 1e6;
        report.print(Figure::new(SIZE, "MB", Goal::Max(8.0), vec![size]));
    }
    let (wants_short, wants_long) = (report.wants(&SHORT), report.wants(&[LONG]));
    if !(wants_short || wants_long) {
        return Ok(None);
    }
    let agents = world.agents.as_ref().context("no agents run")?;
    let node = nodes::fresh(world, "idle", 1).await?.pop().context("the simulator made no node")?;
    nodes::fill(world, &node, PODS, nodes::alone).await?;
    agents.probe_every(PROBE);
    eprintln!("an idle agent on a node with {PODS} pods …");
    tokio::time::sleep(WARM).await;
    let idle = Idle { audit: Audit::from_now(world)?, since: Timestamp::now(), node };
    if wants_short {
        for_a_minute(world, &idle.node, report).await?;
    }
    agents.probe_every(Duration::ZERO);
    Ok(Some(idle))
}

async fn for_a_minute(world: &World, node: &str, report: &mut Report) -> Result<()> {
    let agents = world.agents.as_ref().context("no agents run")?;
    let agent = agents.process(node).context("no agent runs")?;
    let polls = async || {
        let state = world.sim.state().await?;
        state.vm(node).map(|vm| vm.imds_requests).context("the simulator forgot a machine")
    };
    let (polled, before, began) = (polls().await?, processes::cpu_time(agent.id())?, Instant::now());
    tokio::time::sleep(TIME).await;
    let (after, took) = (processes::cpu_time(agent.id())?, began.elapsed());
    let polled = (polls().await? - polled) as f64 / took.as_secs_f64();
    agent.check_running()?;
    let memory = processes::memory(agent.id())?;
    let cpu = after.0.saturating_sub(before.0).as_secs_f64() * 1000.0 * 60.0 / took.as_secs_f64();
    let print =
        |name, unit, max, value| Figure::new(name, unit, Goal::Max(max), vec![value]).with("pods", PODS);
    report.print(print(SHORT[0], "MiB", 10.0, memory.resident));
    report.print(print(SHORT[1], "MiB", 4.0, memory.anonymous));
    report.print(print(SHORT[2], "ms/min", 15.0, cpu).with("threads", after.1));
    report.print(print(SHORT[3], "requests/s", 1.2, polled));
    Ok(())
}

impl Idle {
    /// Counts what the agent has asked the apiserver for until now.
    pub async fn finish(mut self, world: &World, report: &mut Report) -> Result<()> {
        if report.wants(&[LONG]) {
            let until = self.since.checked_add(SignedDuration::try_from(LONG_TIME)?)?.max(Timestamp::now());
            nodes::sleep_until(until).await;
            let kinds = self.audit.asked_by(&self.node, until)?;
            let watches = self.audit.requests()?.iter();
            let watches = watches.filter(|it| it.is_from(&self.node) && it.verb == "watch").count();
            let asked = kinds.values().sum::<u32>();
            report.print(
                Figure::new(LONG, "requests", Goal::Max(0.0), vec![asked.into()])
                    .with("seconds", until.duration_since(self.since).as_secs())
                    .with("watches_ended", watches)
                    .with("kinds", json!(kinds)),
            );
        }
        nodes::empty(world, &self.node).await?;
        world.sim.remove_pool("idle").await?;
        Ok(())
    }
}
