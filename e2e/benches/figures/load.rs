//! What the agents ask of the apiserver: while nothing happens, and when it is back after an outage. Of fifty, for each
//! agent: at 5,000 nodes it is so many times as much.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde_json::json;
use spotpool_e2e::{World, eventually, processes};
use url::Url;

use crate::audit::{Audit, Request};
use crate::nodes;
use crate::report::{Figure, Goal, Report};

const FIGURES: [&str; 5] = [
    "agents_connections",
    "agents_watches",
    "agents_idle_requests",
    "agents_idle_busiest_second",
    "agents_reconnect_requests",
];
const POOL: &str = "load";
const AGENTS: u32 = 50;
const PODS: usize = 10;
/// As a kubelet asks, unless told.
const PROBE: Duration = Duration::from_secs(10);
/// Longer than any watch lasts, so that each is renewed once at least.
const IDLE: Duration = Duration::from_mins(5);
const OUTAGE: Duration = Duration::from_secs(5);
/// The longest that an agent waits before it tries again, and what a list takes.
const BACK: Duration = Duration::from_secs(20);

/// Measures, if any of it is asked for.
pub async fn measure(world: &World, report: &mut Report) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    let agents = world.agents.as_ref().context("no agents run")?;
    agents.probe_every(PROBE);
    let before = watches(world).await?;
    eprintln!("{AGENTS} nodes with an agent and {PODS} pods each …");
    let mut audit = Audit::from_now(world)?;
    let fresh = nodes::fresh(world, POOL, AGENTS).await?;
    let filled = fresh.iter().map(|node| nodes::fill(world, node, PODS, nodes::alone));
    let _: Vec<_> = futures::stream::iter(filled).buffered(4).try_collect().await?;

    let port = Url::parse(world.cluster.server_url())?.port().context("the apiserver has no port")?;
    let of_each = fresh.iter().map(|node| {
        let process = agents.process(node).with_context(|| format!("no agent runs for {node}"))?;
        Ok(processes::connections(process.id(), port)? as f64)
    });
    let figure = |name, unit, goal, runs| Figure::new(name, unit, goal, runs).with("agents", AGENTS);
    report.print(figure(FIGURES[0], "an agent", Goal::Max(1.0), of_each.collect::<Result<_>>()?));
    let open = f64::from(watches(world).await? - before) / f64::from(AGENTS);
    report.print(figure(FIGURES[1], "an agent", Goal::Max(2.0), vec![open]));

    eprintln!("nothing happens for {} s …", IDLE.as_secs());
    let since = Timestamp::now();
    tokio::time::sleep(IDLE).await;
    let idle = counted(&mut audit, since, Timestamp::now())?;
    let lasts: BTreeSet<u32> = watches_of_agents(&mut audit)?.filter_map(Request::watch_lasts).collect();
    ensure!(lasts.len() > 1, "all watches are asked for as long: {lasts:?}");
    let minutes = IDLE.as_secs_f64() / 60.0;
    report.print(
        figure(
            FIGURES[2],
            "a minute and agent",
            Goal::Max(0.6),
            vec![idle.total() / minutes / f64::from(AGENTS)],
        )
        .with("kinds", json!(idle.kinds))
        .with("watch_seconds", json!([lasts.first(), lasts.last()])),
    );
    report.print(figure(FIGURES[3], "of all", Goal::None, vec![idle.busiest.into()]));

    eprintln!("the apiserver goes and comes back …");
    world.cluster.stop_apiserver().await?;
    tokio::time::sleep(OUTAGE).await;
    let since = Timestamp::now();
    world.cluster.start_apiserver().await?;
    tokio::time::sleep(BACK).await;
    let open = eventually("all watches to be open again", async || {
        let open = watches(world).await? - before;
        Ok((open >= 2 * AGENTS as i32).then_some(open))
    })
    .await?;
    // A watch is in the log when it ends: those of them that are open count as well.
    let back = counted(&mut audit, since, Timestamp::now())?;
    let asked = (back.total() + f64::from(open)) / f64::from(AGENTS);
    report.print(
        figure(FIGURES[4], "an agent", Goal::Max(8.0), vec![asked])
            .with("kinds", json!(back.kinds))
            .with("busiest_second", back.busiest),
    );

    world.sim.remove_pool(POOL).await?;
    agents.probe_every(Duration::ZERO);
    Ok(())
}

/// Requests of all agents.
struct Counted {
    kinds: BTreeMap<String, u32>,
    /// The most in one second.
    busiest: u32,
}

impl Counted {
    fn total(&self) -> f64 {
        self.kinds.values().sum::<u32>().into()
    }
}

/// What agents asked for, Events and ends of watches among it, in some time.
fn counted(audit: &mut Audit, since: Timestamp, until: Timestamp) -> Result<Counted> {
    let (mut kinds, mut seconds) = (BTreeMap::new(), BTreeMap::<i64, u32>::new());
    let in_time = |it: &&Request| it.is_of_an_agent() && (since..until).contains(&it.done);
    for request in audit.requests()?.iter().filter(in_time) {
        *kinds.entry(request.kind()).or_default() += 1;
        *seconds.entry(request.done.as_second()).or_default() += 1;
    }
    Ok(Counted { kinds, busiest: seconds.into_values().max().unwrap_or_default() })
}

fn watches_of_agents(audit: &mut Audit) -> Result<impl Iterator<Item = &Request>> {
    Ok(audit.requests()?.iter().filter(|it| it.is_of_an_agent() && it.verb == "watch"))
}

/// Watches of Nodes and Pods that the apiserver has open.
async fn watches(world: &World) -> Result<i32> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = world.client.request_text(request).await?;
    let open = text.lines().filter(|line| {
        let of = |resource: &str| line.contains(&format!("resource=\"{resource}\""));
        line.starts_with("apiserver_longrunning_requests{") && (of("nodes") || of("pods"))
    });
    open.map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<i32>()?)).sum()
}
