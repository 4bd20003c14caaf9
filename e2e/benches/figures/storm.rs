//! One node whose pods are all to be evicted at once, 30 of them and a full node's 110: by its agent, by the bare
//! program, by `kubectl drain`; and what one pod costs that a disruption budget holds.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use spotpool_e2e::World;
use tokio::process::Command;

use crate::audit::{Audit, Evictions, millis};
use crate::machine;
use crate::nodes;
use crate::raw::{CONCURRENCY, Raw};
use crate::report::{Figure, Goal, Report, median, rounded};

/// One size of node.
struct Size {
    pods: usize,
    rounds: usize,
    agent: &'static str,
    raw: &'static str,
    vs_raw: &'static str,
    vs_kubectl: &'static str,
    requests: Option<&'static str>,
    blocked: Option<[&'static str; 2]>,
}

const SIZES: [Size; 2] = [
    // Shorter runs vary more. Their requests are counted beside an operator, in `notice`.
    Size {
        pods: 30,
        rounds: 7,
        agent: "evict_30",
        raw: "evict_30_raw",
        vs_raw: "evict_30_vs_raw",
        vs_kubectl: "evict_30_vs_kubectl_drain",
        requests: None,
        blocked: None,
    },
    Size {
        pods: 110,
        rounds: 15,
        agent: "evict_110",
        raw: "evict_110_raw",
        vs_raw: "evict_110_vs_raw",
        vs_kubectl: "evict_110_vs_kubectl_drain",
        requests: Some("drain_api_requests_110"),
        blocked: Some(["blocked_pod_delay", "blocked_pod_requests"]),
    },
];
const NOTICE: Duration = Duration::from_mins(1);
/// For how long the requests for a held pod are counted, from its first refusal: it is to be over before the pod is
/// deleted, which is 8 s after the notice.
const HELD: Duration = Duration::from_secs(5);

/// What one kind of run showed.
#[derive(Default)]
struct Runs {
    /// First eviction received to last accepted.
    evictions: Vec<f64>,
    /// The beginning (a poll's answer, a program's start) to the last eviction accepted.
    whole: Vec<f64>,
    /// How busy the machine was just before.
    busy: Vec<f64>,
    /// How many requests the agent sent.
    requests: Vec<f64>,
}

impl Runs {
    fn add(&mut self, busy: f64, began: Timestamp, evictions: Evictions) {
        self.busy.push(busy);
        self.whole.push(millis(began, evictions.last));
        self.evictions.push(evictions.millis());
    }
}

/// What a pod cost that a budget held.
#[derive(Default)]
struct Held {
    runs: Runs,
    /// Requests because of it a second.
    requests: Vec<f64>,
    /// The most in any second.
    busiest: usize,
}

/// Measures, if any of it is asked for.
pub async fn measure(world: &World, report: &mut Report) -> Result<()> {
    for size in &SIZES {
        size.measure(world, report).await?;
    }
    Ok(())
}

impl Size {
    async fn measure(&self, world: &World, report: &mut Report) -> Result<()> {
        let wants_raw = report.wants(&[self.raw, self.vs_raw]);
        let wants_kubectl = report.wants(&[self.vs_kubectl]);
        let wants_blocked = self.blocked.is_some_and(|blocked| report.wants(&blocked));
        let wants_agent = report.wants(&[self.agent]) || self.requests.is_some_and(|it| report.wants(&[it]));
        if !(wants_raw || wants_kubectl || wants_blocked || wants_agent) {
            return Ok(());
        }
        let (mut raw, mut agent, mut held) = (Runs::default(), Runs::default(), Held::default());
        let pods = self.pods;
        for round in 0..self.rounds {
            eprintln!("{pods} pods on one node, round {} of {} …", round + 1, self.rounds);
            let pool = format!("s{pods}x{round}");
            let fresh = nodes::fresh(world, &pool, 3).await?;
            let [one, two, three] = fresh.as_slice() else { anyhow::bail!("not 3 nodes in {pool}") };
            // Who is first changes with each round.
            let mut order = [("raw", one), ("agent", two), ("held", three)];
            order.rotate_left(round % 3);
            for (kind, node) in order {
                match kind {
                    "raw" if wants_raw => self.by_raw(world, node, &mut raw).await?,
                    "agent" => self.by_agent(world, node, &mut agent).await?,
                    "held" if wants_blocked => self.with_held(world, node, &mut held).await?,
                    _ => {}
                }
            }
            world.sim.remove_pool(&pool).await?;
        }
        self.report(report, &agent, wants_raw.then_some(&raw), wants_blocked.then_some(&held));
        if wants_kubectl {
            let mut kubectl = Runs::default();
            self.by_kubectl(world, &mut kubectl).await?;
            let took = median(&kubectl.whole);
            let times = took / median(&agent.whole);
            report.print(
                Figure::new(self.vs_kubectl, "times", Goal::None, vec![times])
                    .with("kubectl_ms", rounded(took)),
            );
        }
        Ok(())
    }

    fn report(&self, report: &mut Report, agent: &Runs, raw: Option<&Runs>, held: Option<&Held>) {
        let whole = median(&agent.whole);
        let busy = |runs: &Runs| rounded(median(&runs.busy));
        report.print(
            Figure::new(self.agent, "ms", Goal::None, agent.whole.clone())
                .with("from_first_request", rounded(median(&agent.evictions)))
                .with("busy_before", busy(agent)),
        );
        if let Some(requests) = self.requests {
            let most = (self.pods + 6) as f64;
            report.print(
                Figure::new(requests, "requests", Goal::Max(most), agent.requests.clone())
                    .with("pods", self.pods),
            );
        }
        if let Some(raw) = raw {
            let limit = median(&raw.evictions);
            report.print(
                Figure::new(self.raw, "ms", Goal::None, raw.evictions.clone()).with("busy_before", busy(raw)),
            );
            let ratios = agent.evictions.iter().zip(&raw.evictions).map(|(agent, raw)| agent / raw).collect();
            report.print(
                Figure::new(self.vs_raw, "ratio", Goal::Max(1.2), ratios)
                    .value(median(&agent.evictions) / limit)
                    .with("with_cordon", rounded(whole / limit)),
            );
        }
        if let (Some(held), Some([delay, requests])) = (held, self.blocked) {
            let runs = &held.runs;
            let delays =
                runs.evictions.iter().zip(&agent.evictions).map(|(held, free)| held - free).collect();
            report.print(
                Figure::new(delay, "ms", Goal::Max(50.0), delays)
                    .value(median(&runs.evictions) - median(&agent.evictions))
                    .with("busy_before", busy(runs)),
            );
            report.print(
                Figure::new(requests, "requests/s", Goal::Max(3.0), held.requests.clone())
                    .with("busiest_second", held.busiest)
                    .with("seconds", HELD.as_secs()),
            );
        }
    }

    async fn by_raw(&self, world: &World, node: &str, runs: &mut Runs) -> Result<()> {
        let pods = nodes::fill(world, node, self.pods, nodes::alone).await?;
        let raw = Raw::prepare(&Raw::sign_in(world).await?, &pods, CONCURRENCY).await?;
        let busy = machine::settle().await?;
        let (mut audit, began) = (Audit::from_now(world)?, Timestamp::now());
        raw.go().await?;
        runs.add(busy, began, audit.evictions(&nodes::names(&pods)).await?);
        nodes::empty(world, node).await
    }

    async fn by_agent(&self, world: &World, node: &str, runs: &mut Runs) -> Result<()> {
        let pods = nodes::fill(world, node, self.pods, nodes::alone).await?;
        let (mut audit, evictions) = evict(world, node, &pods, runs).await?;
        if self.requests.is_some() {
            let until = nodes::aftermath(evictions.last).await?;
            runs.requests.push(audit.asked_by(node, until)?.values().sum::<u32>().into());
        }
        nodes::empty(world, node).await
    }

    /// With one pod that a disruption budget holds for ever; the others' evictions count.
    async fn with_held(&self, world: &World, node: &str, held: &mut Held) -> Result<()> {
        let group = format!("{node}-held");
        let pods = nodes::fill(world, node, self.pods, |index| (index == 0).then(|| group.clone())).await?;
        nodes::budget(world, &group, 1, 1).await?;
        let (stuck, free): (Vec<Pod>, Vec<Pod>) =
            pods.into_iter().partition(|pod| pod.labels().contains_key("group"));
        let stuck = stuck.first().context("no pod is in the group")?.name_any();
        let (mut audit, _) = evict(world, node, &free, &mut held.runs).await?;

        let refused = audit.requests()?.iter().find(|it| it.eviction_of() == Some(&stuck));
        let from = refused.context("the disruption budget held nothing")?.received;
        let until = from.checked_add(SignedDuration::try_from(HELD)?)?;
        nodes::sleep_until(until).await;
        let about = audit.requests()?.iter().filter(|it| it.is_from(node) && it.is_about(&stuck));
        let about = about.filter(|it| it.verb != "watch" && it.received <= until);
        ensure!(about.clone().all(|it| it.evicted().is_none()), "the disruption budget held nothing");
        let mut times: Vec<Timestamp> = about.map(|request| request.received).collect();
        times.sort_unstable();
        held.requests.push(times.len() as f64 / HELD.as_secs_f64());
        let busiest = times.iter().map(|from| {
            let in_second = |it: &&Timestamp| (0.0..1000.0).contains(&millis(*from, **it));
            times.iter().filter(in_second).count()
        });
        held.busiest = busiest.fold(held.busiest, usize::max);

        nodes::remove_budget(world, &group).await?;
        nodes::empty(world, node).await
    }

    async fn by_kubectl(&self, world: &World, runs: &mut Runs) -> Result<()> {
        eprintln!("the same by kubectl drain …");
        let pool = format!("kubectl{}", self.pods);
        let node = nodes::fresh(world, &pool, 1).await?.pop().context("the simulator made no node")?;
        let pods = nodes::fill(world, &node, self.pods, nodes::alone).await?;
        let busy = machine::settle().await?;
        let (mut audit, began) = (Audit::from_now(world)?, Timestamp::now());
        let mut kubectl = Command::new(world.cluster.kubectl())
            .arg("--kubeconfig")
            .arg(world.cluster.admin_kubeconfig())
            .args(["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--force"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        runs.add(busy, began, audit.evictions(&nodes::names(&pods)).await?);
        let status = kubectl.wait().await?;
        ensure!(status.success(), "kubectl drain ended with {status}");
        world.sim.remove_pool(&pool).await?;
        Ok(())
    }
}

/// Gives notice to a node and waits until these pods of it are evicted.
async fn evict(world: &World, node: &str, pods: &[Pod], runs: &mut Runs) -> Result<(Audit, Evictions)> {
    let busy = machine::settle().await?;
    let mut audit = Audit::from_now(world)?;
    let events = world.sim.evict(&[node], NOTICE).await?;
    let told = nodes::told(world, events.first().context("nothing was evicted")?, node).await?;
    let evictions = audit.evictions(&nodes::names(pods)).await?;
    runs.add(busy, told, evictions);
    Ok((audit, evictions))
}
