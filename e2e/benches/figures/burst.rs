//! Notices of 500 nodes at once, in a cluster of 5,000: from the first of them until replacement of all is asked for.
//!
//! 500 agents are played by a stand-in that writes what they write. What the apiserver adds is in `notice_to_put`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{ArmWrite, Fault, FaultAction, FaultTarget};
use spotpool_crds::names;
use spotpool_e2e::simulation::Dice;
use spotpool_e2e::wait::within;
use spotpool_e2e::{Profile, processes};

use crate::audit::millis;
use crate::report::{Figure, Goal, Report, median, rounded};
use crate::standin::{FALLBACK, NODES, PODS, Scene, Shape, spot_pool, value};

const NOTICED: usize = 500;
/// Surveys and prices have been read by then.
const WARM: Duration = Duration::from_secs(10);
/// Long past the goal.
const LONGEST: Duration = Duration::from_mins(2);
/// What is asked for in excess would be asked by then.
const AFTER: Duration = Duration::from_secs(3);

/// How they come.
struct Course {
    figure: &'static str,
    /// Spot agent pools that they are of, and the first of these.
    pools: usize,
    first: usize,
    /// From the first to the last.
    over: Duration,
    /// How long Azure takes for a PUT.
    arm: Duration,
    rounds: usize,
}

const COURSES: [Course; 3] = [
    Course {
        figure: "mass_notice_to_put_500",
        pools: 10,
        first: 1,
        over: Duration::ZERO,
        arm: Duration::ZERO,
        rounds: 3,
    },
    // As agents ask once a second, each at its own time, and Azure answers.
    Course {
        figure: "mass_notice_to_put_500_polled",
        pools: 10,
        first: 1,
        over: Duration::from_secs(1),
        arm: Duration::from_secs(1),
        rounds: 1,
    },
    // Each of the notices names all 500.
    Course {
        figure: "mass_notice_to_put_500_one_pool",
        pools: 1,
        first: 0,
        over: Duration::ZERO,
        arm: Duration::ZERO,
        rounds: 1,
    },
];

/// What one round showed.
struct Round {
    /// Until the first PUT arrived, and the last that was needed, in milliseconds.
    first: f64,
    last: f64,
    /// PUTs by agent pool.
    puts: BTreeMap<String, usize>,
    decisions: f64,
    cpu: f64,
    peak: f64,
}

/// Measures, if any of it is asked for. Needs no cluster.
pub async fn measure(report: &mut Report) -> Result<()> {
    for course in &COURSES {
        if !report.wants(&[course.figure]) {
            continue;
        }
        let mut rounds = Vec::new();
        for at in 0..course.rounds {
            eprintln!("{}, round {} of {} …", course.figure, at + 1, course.rounds);
            rounds.push(course.round().await?);
        }
        let of = |what: fn(&Round) -> f64| rounds.iter().map(what).collect::<Vec<_>>();
        let most = |what: fn(&Round) -> usize| rounds.iter().map(what).max().unwrap_or_default();
        report.print(
            Figure::new(course.figure, "ms", Goal::Max(3000.0), of(|round| round.last))
                .with("first_put", rounded(median(&of(|round| round.first))))
                .with("nodes", NODES)
                .with("pods", PODS)
                .with("agent_pools_noticed", course.pools)
                .with("puts", most(|round| round.puts.values().sum()))
                .with("puts_of_one_agent_pool", most(|round| round.puts.values().copied().max().unwrap_or(0)))
                .with("decisions", median(&of(|round| round.decisions)))
                .with("operator_cpu_ms", median(&of(|round| round.cpu)).round())
                .with("operator_peak_mib", median(&of(|round| round.peak)).round()),
        );
    }
    Ok(())
}

impl Course {
    async fn round(&self) -> Result<Round> {
        let scene = Scene::start(Shape::one(), Profile::Release).await?;
        tokio::time::sleep(WARM).await;
        if !self.arm.is_zero() {
            let target = FaultTarget::arm("PUT", "/agentPools/");
            let fault = Fault { target, times: None, action: FaultAction::Delay { time: self.arm } };
            scene.azure.sim().change(|cloud, _| cloud.faults.add(fault));
        }
        let noticed = noticed(&scene, self.first..self.first + self.pools, NOTICED / self.pools);
        ensure!(noticed.len() == NOTICED, "{} nodes under notice", noticed.len());
        let operator = scene.operator.id();
        let decisions = async || -> Result<f64> {
            let text = scene.metrics().await?;
            value(&text, "spotpool_operator_plan_seconds_count", "").context("plans are not counted")
        };
        let (before, cpu) = (decisions().await?, processes::cpu_time(operator)?.0);

        let began = Timestamp::now();
        for node in &noticed {
            scene.cluster.changed(node);
            if !self.over.is_zero() {
                tokio::time::sleep(self.over / NOTICED as u32).await;
            }
        }
        let covered = within(LONGEST, "replacement of all to be asked for", async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let (spot, on_demand) = ordered(&writes(&scene, began));
            Ok((spot >= NOTICED && on_demand >= FALLBACK).then_some(()))
        });
        if let Err(error) = covered.await {
            let (spot, on_demand) = ordered(&writes(&scene, began));
            let plan = scene.cluster.plans();
            return Err(error.context(format!("{spot} on spot, {on_demand} on demand are asked for: {plan}")));
        }
        let used = processes::cpu_time(operator)?.0.saturating_sub(cpu);
        let decisions = decisions().await? - before;
        tokio::time::sleep(AFTER).await;
        let writes = writes(&scene, began);
        let (spot, on_demand) = ordered(&writes);
        ensure!((spot, on_demand) == (NOTICED, FALLBACK), "{spot} on spot, {on_demand} on demand: too many");
        let mut puts = BTreeMap::new();
        for write in &writes {
            ensure!(write.status < 300, "Azure refused a write: {write:?}");
            let (after, machines) = (millis(began, write.at), write.machines_ordered.len());
            eprintln!("  {machines} machines of {} after {after:.0} ms", write.pool);
            *puts.entry(write.pool.clone()).or_default() += 1;
        }
        let at = |choose: fn(f64, f64) -> f64| writes.iter().map(|it| millis(began, it.at)).reduce(choose);
        let round = Round {
            first: at(f64::min).context("no PUT")?,
            last: at(f64::max).context("no PUT")?,
            puts,
            decisions,
            cpu: used.as_secs_f64() * 1000.0,
            peak: processes::peak(operator)?,
        };
        scene.stop().await?;
        Ok(round)
    }
}

/// So many Nodes of each of some agent pools, as their agents write them, in the order in which that is seen.
pub fn noticed(scene: &Scene, pools: Range<usize>, each: usize) -> Vec<Value> {
    let instances: BTreeMap<String, u64> = scene
        .azure
        .sim()
        .look(|cloud, now| cloud.state(now).vms.into_iter().map(|vm| (vm.node, vm.instance_id)).collect());
    let now = Timestamp::now();
    let due = now + SignedDuration::from_secs(30);
    let mut noticed = Vec::new();
    for at in pools {
        let mut nodes = scene.cluster.nodes_of(&spot_pool(at));
        nodes.truncate(each);
        let instance = |node: &Value| {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            instances.get(name).copied().unwrap_or_default()
        };
        // Azure makes an event of each VM, and shows all of them to each of the scale set.
        let event = |instance: u64| format!("0AFB7276-2662-4943-8780-{at:04X}{instance:08X}");
        let doomed: Vec<Value> = nodes
            .iter()
            .map(|node| {
                let instance = instance(node);
                json!({"eventId": event(instance), "notBefore": due, "instances": instance.to_string()})
            })
            .collect();
        for node in &mut nodes {
            let notice = json!({
                "by": "NodeAgent", "eventId": event(instance(node)), "type": "Preempt", "source": "IMDS",
                "response": "Drain", "observedAt": now, "notBefore": due, "deadline": due, "phase": "Noticed",
                "cordoned": true, "bootID": node["status"]["nodeInfo"]["bootID"], "doomed": doomed,
            });
            node["metadata"]["annotations"][names::EVICTION_ANNOTATION] = notice.to_string().into();
            node["metadata"]["resourceVersion"] = "2".into();
            node["spec"]["unschedulable"] = true.into();
        }
        noticed.extend(nodes);
    }
    let mut dice = Dice::new(500);
    for at in (1..noticed.len()).rev() {
        noticed.swap(at, dice.below(at as u64 + 1) as usize);
    }
    noticed
}

/// PUTs since then.
pub fn writes(scene: &Scene, began: Timestamp) -> Vec<ArmWrite> {
    let all = scene.azure.sim().look(|cloud, now| cloud.state(now).arm_writes);
    all.into_iter().filter(|write| write.at >= began).collect()
}

/// Machines that were ordered, on spot and on demand.
fn ordered(writes: &[ArmWrite]) -> (usize, usize) {
    let of = |is_spot: bool| {
        let its = writes.iter().filter(|write| write.pool.starts_with("spot") == is_spot);
        its.map(|write| write.machines_ordered.len()).sum()
    };
    (of(true), of(false))
}
