//! Fifty nodes whose VMs Azure takes back in the same instant, an agent process for each.
//!
//! What is the limit of that? The requests come from 50 machines, so the bare program runs 50 times too, one for each
//! node, each with a connection of its own that is already there. Azure tells nobody of a notice: whoever polls once a
//! second hears of it at some moment of that second. So the bare programs are let go one after the other over a second.
//!
//! The other way to be fair is to have all begin in the same instant: agents that are frozen while the notice appears, and
//! thawed at once when each one's poll is due, against bare programs that are let go at once, or against one process over
//! one connection where that is quicker: it spares the apiserver 49 connections and us 49 processes on a machine that they
//! share with the apiserver.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use spotpool_azure_sim::api::EventState;
use spotpool_e2e::{World, eventually};
use spotpool_e2e_cluster::Signal;

use crate::audit::{Audit, millis};
use crate::machine;
use crate::nodes::{self, Nodes};
use crate::raw::Raw;
use crate::report::{Figure, Goal, Report, median, rounded};

const FIGURES: [&str; 5] = [
    "mass_cordon_50",
    "mass_evict_50x20",
    "mass_evict_raw",
    "mass_evict_vs_raw",
    "mass_evict_vs_same_instant",
];
const POOL: &str = "mass";
const POLL: Duration = Duration::from_secs(1);
/// What the agents have beyond the wait for their next poll.
const CORDON: Duration = Duration::from_millis(500);
/// Longer than a run: the events are taken back after it, and the nodes serve again.
const NOTICE: Duration = Duration::from_mins(3);
/// As a kubelet asks, unless told.
const PROBE: Duration = Duration::from_secs(10);
/// Evictions in flight of each node's bare program.
const IN_FLIGHT: usize = 6;
/// Evictions in flight where all nodes share one connection.
const ONE_CONNECTION: usize = 100;
/// Nodes that are set up at a time.
const SET_UP: usize = 4;

/// How much of it.
#[derive(Clone, Copy)]
pub struct Size {
    nodes: u32,
    pods: usize,
    rounds: usize,
}

impl Size {
    /// As the docs tell it.
    pub const WHOLE: Self = Self { nodes: 50, pods: 20, rounds: 8 };
    /// Just enough to see that it can be measured.
    pub const TRIED: Self = Self { nodes: 3, pods: 4, rounds: 1 };
}

/// Who evicts.
#[derive(Clone, Copy)]
enum Who {
    Agents,
    AgentsAtOnce,
    Processes,
    Polled,
    OneConnection,
}

/// What the runs showed, in milliseconds.
#[derive(Default)]
struct Runs {
    /// The event's appearance until the last node is cordoned.
    cordoned: Vec<f64>,
    /// The event's appearance until the first agent hears of it.
    told: Vec<f64>,
    /// The event's appearance until the last eviction is accepted.
    whole: Vec<f64>,
    /// First eviction received to last accepted: by agents as they poll, by agents that hear at once, by processes that
    /// begin over a second, by those that begin at once, over one connection.
    agents: Vec<f64>,
    agents_at_once: Vec<f64>,
    polled: Vec<f64>,
    processes: Vec<f64>,
    one: Vec<f64>,
    busy: Vec<f64>,
}

/// Measures, if any of it is asked for.
pub async fn measure(world: &World, nodes: &Nodes, size: Size, report: &mut Report) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    let wants_raw = report.wants(&FIGURES[2..]);
    let agents = world.agents.as_ref().context("no agents run")?;
    let Size { nodes: machines, pods, rounds } = size;
    eprintln!("{machines} nodes with an agent each …");
    let fresh = nodes::fresh(world, POOL, machines).await?;
    agents.probe_every(PROBE);
    let mut runs = Runs::default();
    for round in 0..rounds {
        eprintln!("{pods} pods on each of {machines} nodes, round {} of {rounds} …", round + 1);
        // Who is first changes with each round.
        let mut order = [Who::Processes, Who::AgentsAtOnce, Who::Polled, Who::Agents, Who::OneConnection];
        let first = round % order.len();
        order.rotate_left(first);
        for who in order {
            match who {
                Who::Agents => by_agents(world, nodes, &fresh, pods, &mut runs).await?,
                _ if !wants_raw => {}
                Who::AgentsAtOnce => at_once(world, nodes, &fresh, pods, &mut runs).await?,
                Who::Processes | Who::Polled | Who::OneConnection => {
                    by_raw(world, &fresh, pods, who, &mut runs).await?;
                }
            }
        }
    }
    agents.probe_every(Duration::ZERO);
    world.sim.remove_pool(POOL).await?;
    print(report, runs, wants_raw);
    Ok(())
}

fn print(report: &mut Report, runs: Runs, wants_raw: bool) {
    let busy = rounded(median(&runs.busy));
    let goal = Goal::Max((POLL + CORDON).as_millis() as f64);
    report.print(
        Figure::new(FIGURES[0], "ms", goal, runs.cordoned)
            .with("first_told", rounded(median(&runs.told)))
            .with("busy_before", busy),
    );
    let span = median(&runs.agents);
    report.print(
        Figure::new(FIGURES[1], "ms", Goal::None, runs.whole.clone())
            .with("from_first_request", rounded(span))
            .with("busy_before", busy),
    );
    if !wants_raw {
        return;
    }
    let (processes, one) = (median(&runs.processes), median(&runs.one));
    let instant = if one < processes { &runs.one } else { &runs.processes };
    let against =
        |agents: &[f64], raw: &[f64]| agents.iter().zip(raw).map(|(agents, raw)| agents / raw).collect();
    let span_at_once = median(&runs.agents_at_once);
    report.print(
        Figure::new(FIGURES[2], "ms", Goal::None, runs.polled.clone())
            .with("same_instant", rounded(processes))
            .with("one_connection", rounded(one)),
    );
    report.print(
        Figure::new(FIGURES[3], "ratio", Goal::Max(1.2), against(&runs.agents, &runs.polled))
            .value(span / median(&runs.polled))
            .with("from_notice", rounded(median(&runs.whole) / median(&runs.polled))),
    );
    report.print(
        Figure::new(FIGURES[4], "ratio", Goal::Max(1.2), against(&runs.agents_at_once, instant))
            .value(span_at_once / median(instant))
            .with("agents_at_once", rounded(span_at_once))
            .with("agents_as_they_poll", rounded(span / median(instant))),
    );
}

/// Fills all nodes.
async fn fill(world: &World, nodes: &[String], pods: usize) -> Result<Vec<Vec<Pod>>> {
    let filled = nodes.iter().map(|node| nodes::fill(world, node, pods, nodes::alone));
    futures::stream::iter(filled).buffered(SET_UP).try_collect().await
}

async fn by_raw(world: &World, fresh: &[String], pods: usize, who: Who, runs: &mut Runs) -> Result<()> {
    let pods = fill(world, fresh, pods).await?;
    let names = nodes::names(&pods.concat());
    let account = Raw::sign_in(world).await?;
    let raw: Vec<Raw> = match who {
        Who::OneConnection => vec![Raw::prepare(&account, &pods.concat(), ONE_CONNECTION).await?],
        Who::Agents | Who::AgentsAtOnce | Who::Processes | Who::Polled => {
            let all = pods.iter().map(|pods| Raw::prepare(&account, pods, IN_FLIGHT));
            futures::stream::iter(all).buffered(SET_UP).try_collect().await?
        }
    };
    machine::settle().await?;
    let mut audit = Audit::from_now(world)?;
    let machines = u32::try_from(fresh.len())?;
    let step = if matches!(who, Who::Polled) { POLL / machines } else { Duration::ZERO };
    let begun = raw.into_iter().zip(0..).map(|(raw, node)| async move {
        tokio::time::sleep(step * node).await;
        raw.go().await
    });
    try_join_all(begun).await?;
    let took = audit.evictions(&names).await?.millis();
    match who {
        Who::OneConnection => runs.one.push(took),
        Who::Polled => runs.polled.push(took),
        Who::Agents | Who::AgentsAtOnce | Who::Processes => runs.processes.push(took),
    }
    nodes::gone(world, &names).await
}

async fn by_agents(
    world: &World,
    nodes: &Nodes,
    fresh: &[String],
    pods: usize,
    runs: &mut Runs,
) -> Result<()> {
    let pods = fill(world, fresh, pods).await?;
    nodes.forget_cordons(fresh);
    runs.busy.push(machine::settle().await?);
    let mut audit = Audit::from_now(world)?;
    let events = world.sim.evict(fresh, NOTICE).await?;
    let appeared = events.first().context("nothing was evicted")?.scheduled_at;
    let names = nodes::names(&pods.concat());
    let evictions = audit.evictions(&names).await?;
    let cordoned: Vec<Timestamp> = eventually("all nodes to be cordoned", async || {
        Ok(fresh.iter().map(|node| nodes.seen(node).cordoned).collect())
    })
    .await?;
    let state = world.sim.state().await?;
    let of = |id: &str| events.iter().any(|event| event.event_id == id);
    let told =
        state.events.iter().filter(|event| of(&event.event_id)).flat_map(|event| event.told_at.values());

    runs.told.push(millis(appeared, *told.min().context("no agent was told")?));
    runs.cordoned.push(millis(appeared, cordoned.into_iter().max().context("no node was cordoned")?));
    runs.whole.push(millis(appeared, evictions.last));
    runs.agents.push(evictions.millis());
    serve_again(world, nodes, fresh, &names, &events).await
}

/// All agents hear of it in the same instant.
async fn at_once(world: &World, nodes: &Nodes, fresh: &[String], pods: usize, runs: &mut Runs) -> Result<()> {
    let agents = world.agents.as_ref().context("no agents run")?;
    let pods = fill(world, fresh, pods).await?;
    let names = nodes::names(&pods.concat());
    machine::settle().await?;
    fresh.iter().try_for_each(|node| agents.signal(node, Signal::SIGSTOP))?;
    let events = world.sim.evict(fresh, NOTICE).await?;
    // Then each one's next poll is due.
    tokio::time::sleep(POLL * 2).await;
    let mut audit = Audit::from_now(world)?;
    fresh.iter().try_for_each(|node| agents.signal(node, Signal::SIGCONT))?;
    runs.agents_at_once.push(audit.evictions(&names).await?.millis());
    serve_again(world, nodes, fresh, &names, &events).await
}

/// Takes the events back, and waits until the nodes take pods.
async fn serve_again(
    world: &World,
    nodes: &Nodes,
    fresh: &[String],
    evicted: &[String],
    events: &[EventState],
) -> Result<()> {
    nodes::gone(world, evicted).await?;
    for event in events {
        world.sim.cancel(&event.event_id).await?;
    }
    eventually("all nodes to serve again", async || {
        let serve = fresh.iter().all(|node| !nodes.seen(node).is_cordoned);
        Ok(serve.then_some(()))
    })
    .await
}
