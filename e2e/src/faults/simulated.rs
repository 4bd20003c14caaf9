//! A cluster in simulated time around the whole operator, and what a course with a fault must come to.
//!
//! Kubelets and agents are a model: Nodes follow machines, notices are claimed, drains that are asked for are done.

pub mod days;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spotpool_azure::ClusterId;
use spotpool_azure_sim::api::{GoneReason, Identity, OperationStatus, Priority, State, VmPhase, VmState};
use spotpool_azure_sim::model::{Cloud, WantedNode};
use spotpool_azure_sim::nodes::node_object;
use spotpool_azure_sim::server;
use spotpool_azure_sim::sim::{Sim, tokio_clock};
use spotpool_crds::names;
use spotpool_crds::voluntary_drain::DrainRequest;
use tokio::task::JoinHandle;

use super::apiserver::Apiserver;
use super::between::Between;
use super::courses::{Course, FALLBACK, FOREIGN, POOLS, WANTED, Wanted};
use super::operator::{self, NAMESPACE, Surroundings};
use super::{Fault, Plan};
use crate::simulation::notices;

/// When it all begins.
pub const START: &str = "2026-08-01T00:00:00Z";
/// The EvictionDrill, where there is one.
const DRILL: &str = "game-day";
/// A moment.
const TICK: Duration = Duration::from_secs(1);
/// An agent's drain of a node that holds nothing back.
const DRAIN: SignedDuration = SignedDuration::from_secs(10);
/// The end is the end when it has lasted for so long.
const LASTS: Duration = Duration::from_mins(1);
/// What must have ended by then. Azure is avoided for up to an hour, and a clock may be back by another.
const LONGEST: Duration = Duration::from_hours(5);
/// Once all is as wanted, status alone may change for so long: what was lost or spent lately is told in it.
const FADES: Duration = Duration::from_mins(30);
/// Then nothing may be written at all.
const QUIET: Duration = Duration::from_mins(15);
/// How long a Deployment takes to start the operator again.
const RESTART: Duration = Duration::from_secs(3);

/// The cluster. To be used on a paused runtime of one thread.
pub struct Cluster {
    /// The cloud.
    pub sim: Sim,
    around: Surroundings,
    identity: Identity,
    operator: Option<JoinHandle<Result<std::convert::Infallible>>>,
    driver: JoinHandle<()>,
    restart_at: Option<tokio::time::Instant>,
    /// When each drain was first seen, by its id.
    drains: BTreeMap<String, Timestamp>,
    /// As it was at the last tick.
    state: State,
    /// Nodes, as their kubelets would have them.
    wanted: BTreeMap<String, WantedNode>,
    /// Nodes that were asked to drain.
    asked: BTreeSet<String>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.driver.abort();
        if let Some(operator) = &self.operator {
            operator.abort();
        }
    }
}

/// What a course has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Machines ordered and deleted by the operator, by role.
    pub counts: BTreeMap<&'static str, usize>,
    /// Nodes and status, without what may differ.
    pub end: Value,
    /// The writes that were sent, refused ones included.
    pub writes: Vec<String>,
    /// How many events of Nodes there were.
    pub events: usize,
}

impl Outcome {
    /// The plans for a course of which this is the reference.
    pub fn plans(&self, course: Course) -> Vec<Plan> {
        let mut plans = Vec::new();
        for at in 1..=self.writes.len() {
            plans.extend(Fault::at_writes().map(|fault| Plan { course, fault, at }));
        }
        for at in 1..=self.events {
            plans.extend(Fault::of_watch().map(|fault| Plan { course, fault, at }));
        }
        plans
    }

    /// Whether it has come to the same despite `fault`, with nothing done more often. Less may be needed: while a refused
    /// fallback waits, spot may come.
    pub fn agrees(&self, reference: &Self) -> Result<()> {
        for (what, many) in &self.counts {
            let undisturbed = reference.counts.get(what).copied().unwrap_or_default();
            ensure!(*many <= undisturbed, "{what}: {many}; undisturbed {undisturbed}");
        }
        let (end, undisturbed) = (&self.end, &reference.end);
        ensure!(end == undisturbed, "the end is\n{end:#}\nundisturbed it is\n{undisturbed:#}");
        Ok(())
    }
}

/// Runs a course, undisturbed or with a fault, on a paused runtime of one thread.
pub async fn run(course: Course, fault: Option<(Fault, usize)>) -> Result<Outcome> {
    let mut cluster = Cluster::of(course.cloud()?, &course.spec())?;
    let outcome = cluster.course(course, fault).await;
    outcome.with_context(|| cluster.story())
}

impl Cluster {
    /// With one SpotPool.
    fn of(cloud: Cloud, spec: &Value) -> Result<Self> {
        let start = START.parse()?;
        let clock = tokio_clock(start);
        let identity = cloud.identity.clone();
        let sim = Sim::with_clock(cloud, clock.clone());
        let apiserver = Apiserver::default();
        apiserver.put(
            "spotpools",
            json!({
                "apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
                "metadata": {"name": "workers", "namespace": NAMESPACE, "uid": "pool", "generation": 1,
                    "creationTimestamp": START},
                "spec": spec,
            }),
        );
        let state = sim.look(|cloud, now| cloud.state(now));
        let around = Surroundings {
            apiserver,
            azure: server::router(sim.clone()),
            between: Between::new(clock),
            cluster: ClusterId {
                subscription_id: identity.subscription.clone(),
                resource_group: identity.resource_group.clone(),
                cluster_name: identity.cluster.clone(),
            },
        };
        let driver = sim.clone();
        let mut cluster = Self {
            sim,
            around,
            identity,
            operator: None,
            driver: tokio::spawn(async move { driver.drive().await }),
            restart_at: None,
            drains: BTreeMap::new(),
            state,
            wanted: BTreeMap::new(),
            asked: BTreeSet::new(),
        };
        cluster.observe()?;
        cluster.start_operator();
        Ok(cluster)
    }

    fn start_operator(&mut self) {
        let number = self.around.between.begin();
        self.operator = Some(tokio::spawn(operator::run(self.around.clone(), number)));
    }

    async fn course(&mut self, course: Course, fault: Option<(Fault, usize)>) -> Result<Outcome> {
        course.prepare(self).await?;
        let before = self.state.arm_writes.len();
        self.asked.clear();
        self.drains.clear();
        self.around.between.arm(fault, self.around.apiserver.version());
        if let Some(spec) = course.drill() {
            let metadata = json!({"name": DRILL, "namespace": NAMESPACE, "uid": "drill", "generation": 1,
                "creationTimestamp": format!("{:.0}", self.around.between.now())});
            let drill = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "EvictionDrill",
                "metadata": metadata, "spec": spec});
            self.around.apiserver.put("evictiondrills", drill);
        }
        course.begin(self);
        self.settle(course.end()).await?;
        ensure!(self.around.between.is_over(), "the fault has not struck");
        let ended = self.around.between.writes().len();
        self.rest(FADES).await?;
        let faded = self.around.between.writes().len();
        self.rest(QUIET).await?;
        let writes = self.around.between.writes();
        let is_status = |write: &&String| write.ends_with("/status");
        if course.ends_quietly() {
            let more: Vec<_> = writes[ended..].iter().filter(|write| !is_status(write)).collect();
            ensure!(more.is_empty(), "writes go on after the end: {more:#?}");
            ensure!(writes.len() == faded, "the status is written on and on: {}", writes.len() - faded);
        }
        ensure!(self.is(course.end()), "what was as wanted did not stay so");
        let hasty = self.around.between.hasty();
        ensure!(hasty.is_empty(), "sent to Azure again within a second of its refusal: {hasty:#?}");
        let unknown = self.around.apiserver.unknown();
        ensure!(unknown.is_empty(), "the apiserver in memory does not know {unknown:?}");
        Ok(Outcome {
            counts: self.counts(before),
            end: self.end(),
            writes: writes[..ended].to_vec(),
            events: self.around.between.events(),
        })
    }

    /// Waits until so many machines run, all is over and has been for a while.
    pub async fn settle(&mut self, wanted: Wanted) -> Result<()> {
        let began = tokio::time::Instant::now();
        let mut since = None;
        loop {
            self.tick(TICK).await?;
            let now = tokio::time::Instant::now();
            if self.is(wanted) && self.around.between.is_over() {
                if now - *since.get_or_insert(now) >= LASTS {
                    return Ok(());
                }
            } else {
                since = None;
                ensure!(now - began < LONGEST, "not {wanted:?} after {:?}", now - began);
            }
        }
    }

    async fn rest(&mut self, time: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < until {
            self.tick(TICK * 60).await?;
        }
        Ok(())
    }

    /// Lets a moment pass, and kubelets, agents and the Deployment do their work.
    async fn tick(&mut self, time: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        if let Some(operator) = self.operator.take_if(|operator| operator.is_finished()) {
            match operator.await? {
                Ok(never) => match never {},
                Err(error) => return Err(error.context("the operator has ended")),
            }
        }
        if self.around.between.is_killed() && self.restart_at.is_none() {
            if let Some(operator) = self.operator.take() {
                operator.abort();
            }
            self.restart_at = Some(tokio::time::Instant::now() + RESTART);
        }
        if self.restart_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
            self.restart_at = None;
            self.start_operator();
        }
        self.observe()?;
        check(&self.state)
    }

    /// Makes Nodes what their machines, kubelets and agents would have made of them by now.
    fn observe(&mut self) -> Result<()> {
        let (wanted, state, now) = self.sim.look(|cloud, now| (cloud.wanted_nodes(), cloud.state(now), now));
        self.state = state;
        let wanted: BTreeMap<String, WantedNode> =
            wanted.into_iter().map(|wanted| (wanted.vm.node.clone(), wanted)).collect();
        for name in self.wanted.keys().filter(|name| !wanted.contains_key(*name)) {
            self.around.apiserver.remove("nodes", name);
        }
        let notices = notices(&self.state.events);
        for (name, wanted) in &wanted {
            let notice = notices.get(name).map(|event| crate::simulation::notice(event).to_string());
            let there = self.around.apiserver.get("nodes", "", name);
            if let Some(node) = &there
                && self.wanted.get(name) == Some(wanted)
                && is_settled(node, notice.is_some())
            {
                continue;
            }
            let mut node = if let Some(node) = there {
                (*node).clone()
            } else {
                let mut node = serde_json::to_value(node_object(&self.identity, wanted)?)?;
                node["metadata"]["uid"] = name.clone().into();
                node["metadata"]["creationTimestamp"] = format!("{now:.0}").into();
                node
            };
            if self.wanted.get(name) != Some(wanted) {
                let fresh = serde_json::to_value(node_object(&self.identity, wanted)?)?;
                node["status"] = fresh["status"].clone();
                let ready = if wanted.ready { "True" } else { "Unknown" };
                node["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
            }
            let annotations = &mut node["metadata"]["annotations"];
            set(annotations, names::EVICTION_ANNOTATION, notice.map_or(Value::Null, Value::from));
            let request = annotations[names::DRAIN_REQUEST_ANNOTATION].as_str();
            let request: Option<DrainRequest> = request.map(serde_json::from_str).transpose()?;
            let drain = request.map(|request| {
                let since = *self.drains.entry(request.id.clone()).or_insert(now);
                self.asked.insert(name.clone());
                let phase = if now.duration_since(since) >= DRAIN { "Drained" } else { "Draining" };
                json!({"id": request.id, "phase": phase, "podsLeft": 0, "blockingPdbs": [], "cordoned": true})
            });
            let goes = drain.is_some()
                || !annotations[names::EVICTION_ANNOTATION].is_null()
                || wanted.vm.draining_since.is_some();
            let status = drain.map_or(Value::Null, |drain| drain.to_string().into());
            set(annotations, names::DRAIN_STATUS_ANNOTATION, status);
            set(&mut node["spec"], "unschedulable", if goes { true.into() } else { Value::Null });
            self.around.apiserver.put("nodes", node);
        }
        self.wanted = wanted;
        Ok(())
    }

    fn is(&self, wanted: Wanted) -> bool {
        let pool = self.spot_pool();
        let status = &pool["status"];
        let (ready_spot, nodes) = (&status["capacity"]["readySpot"], &status["fallback"]["nodes"]);
        let says = *ready_spot == wanted.spot && nodes.as_u64().unwrap_or(0) == u64::from(wanted.on_demand);
        let draining = status["fallback"]["draining"].as_array().is_some_and(|it| !it.is_empty());
        let drills = self.drill().is_some_and(|drill| drill["status"]["run"]["result"].is_null());
        if !says || draining || drills || self.operator.is_none() {
            return false;
        }
        let state = &self.state;
        let count = |priority: Priority| {
            let there = |vm: &&VmState| vm.phase != VmPhase::Gone && vm.pool != FOREIGN;
            state.vms.iter().filter(there).filter(|vm| vm.priority == priority).count()
        };
        let busy = state.operations.iter().any(|it| it.status == OperationStatus::InProgress);
        !busy
            && count(Priority::Spot) == wanted.spot as usize
            && count(Priority::Regular) == wanted.on_demand as usize
    }

    fn spot_pool(&self) -> std::sync::Arc<Value> {
        self.around.apiserver.get("spotpools", NAMESPACE, "workers").unwrap_or_default()
    }

    fn drill(&self) -> Option<std::sync::Arc<Value>> {
        self.around.apiserver.get("evictiondrills", NAMESPACE, DRILL)
    }

    fn counts(&self, before: usize) -> BTreeMap<&'static str, usize> {
        let of = |spot: bool, kind: &str| -> usize {
            let writes =
                self.state.arm_writes[before..].iter().filter(|it| it.kind == kind && it.status < 300);
            let writes = writes.filter(|it| (it.pool != POOLS[2].0) == spot);
            if kind == "PUT pool" {
                writes.map(|write| write.machines_ordered.len()).sum()
            } else {
                writes.count()
            }
        };
        let evicted = self.state.vms.iter().filter(|vm| vm.gone_reason == Some(GoneReason::Evicted)).count();
        BTreeMap::from([
            ("spot ordered", of(true, "PUT pool")),
            ("on-demand ordered", of(false, "PUT pool")),
            ("deletions of spot", of(true, "POST deleteMachines")),
            ("deletions of on-demand", of(false, "POST deleteMachines")),
            ("nodes asked to drain", self.asked.len()),
            ("drains begun", self.drains.len()),
            ("machines evicted", evicted),
        ])
    }

    /// Nodes and status at the end: names, times and which of the spot agent pools it is may differ.
    fn end(&self) -> Value {
        let marks = |node: &Value| {
            let has = |key: &str, within: &str| !node["metadata"][within][key].is_null();
            json!({
                "member": has(names::POOL_LABEL, "labels"),
                "policy": has(names::POLICY_ANNOTATION, "annotations"),
                "drain": has(names::DRAIN_REQUEST_ANNOTATION, "annotations"),
                "cordoned": node["spec"]["unschedulable"],
                "priority": node["metadata"]["labels"]["kubernetes.azure.com/priority"],
                "taints": node["spec"]["taints"],
            })
        };
        let mut nodes: Vec<Value> =
            self.around.apiserver.all("nodes").iter().map(|node| marks(node)).collect();
        nodes.sort_by_key(ToString::to_string);
        let pool = self.spot_pool();
        let status = &pool["status"];
        let mut capacity = status["capacity"].clone();
        set(&mut capacity, "lostSince", Value::Null);
        let conditions: BTreeMap<&str, Value> = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| (it["type"].as_str().unwrap_or_default(), json!([it["status"], it["reason"]])))
            .collect();
        let operations: Vec<&Value> = status["agentPools"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| &it["operation"])
            .filter(|it| !it.is_null())
            .collect();
        let stale: Vec<&str> = self
            .state
            .pools
            .iter()
            .filter(|pool| pool.count != pool.machines)
            .map(|pool| pool.name.as_str())
            .collect();
        json!({
            "nodes": nodes, "conditions": conditions, "operations": operations, "staleCounts": stale,
            "capacity": capacity, "finalizers": pool["metadata"]["finalizers"],
            "replicas": status["replicas"], "readyReplicas": status["readyReplicas"],
            "drill": self.drill().map(|drill| drill["status"]["phase"].clone()),
        })
    }

    /// What led to a failure.
    fn story(&self) -> String {
        let state = &self.state;
        let mut lines = vec![format!("at {:.0}, wanted {WANTED}:", self.around.between.now())];
        for write in state.arm_writes.iter().rev().take(12).rev() {
            lines.push(format!(
                "{:.0} {} {} {} answered {}, count {:?} -> {:?}, ordered {:?}",
                write.at,
                write.kind,
                write.pool,
                write.body["properties"]["count"],
                write.status,
                write.count_before,
                write.count_after,
                write.machines_ordered
            ));
        }
        for vm in state.vms.iter().filter(|vm| vm.phase != VmPhase::Gone) {
            lines.push(format!("{} {:?}, ordered {:.0}", vm.node, vm.phase, vm.created_at));
        }
        for pool in &state.pools {
            lines.push(format!(
                "{}: {} counted, {} machines, {}",
                pool.name, pool.count, pool.machines, pool.provisioning_state
            ));
        }
        let status = &self.spot_pool()["status"];
        for key in ["plan", "agentPools", "fallback", "capacity"] {
            lines.push(format!("{key}: {}", status[key]));
        }
        lines.extend(self.drill().map(|drill| format!("drill: {}", drill["status"])));
        for event in self.around.apiserver.all("events") {
            let at = event["series"]["lastObservedTime"].as_str().or(event["eventTime"].as_str());
            lines.push(format!("{} Event {}: {}", at.unwrap_or_default(), event["reason"], event["note"]));
        }
        for (index, write) in self.around.between.writes().iter().enumerate() {
            lines.push(format!("write {}: {write}", index + 1));
        }
        lines.join("\n  ")
    }
}

/// Whether kubelet and agent have nothing to do for a Node whose machine has not changed.
fn is_settled(node: &Value, is_noticed: bool) -> bool {
    let annotations = &node["metadata"]["annotations"];
    let is_asked = !annotations[names::DRAIN_REQUEST_ANNOTATION].is_null();
    let has_answered = !annotations[names::DRAIN_STATUS_ANNOTATION].is_null();
    !is_asked && !has_answered && is_noticed != annotations[names::EVICTION_ANNOTATION].is_null()
}

/// What must hold at every moment.
fn check(state: &State) -> Result<()> {
    for (name, _, most) in POOLS {
        let machines = state.vms_of(name).filter(|vm| vm.phase != VmPhase::Gone).count();
        // AKS makes more while it upgrades.
        let is_upgraded = state.vms_of(name).any(|vm| vm.draining_since.is_some());
        ensure!(
            is_upgraded || machines <= most as usize,
            "{name} has {machines} machines, maxNodes is {most}"
        );
    }
    let regular = state.vms_of(POOLS[2].0).filter(|vm| vm.phase != VmPhase::Gone).count();
    ensure!(regular <= FALLBACK as usize, "{regular} on-demand machines, fallback.maxNodes is {FALLBACK}");
    let foreign = state.arm_writes.iter().find(|write| write.pool == FOREIGN);
    ensure!(foreign.is_none(), "a foreign agent pool was written: {foreign:?}");
    let chosen = state.vms.iter().find(|vm| vm.gone_reason == Some(GoneReason::ScaledDown));
    ensure!(chosen.is_none(), "deleted by a lower count, undrained: {chosen:?}");
    Ok(())
}

fn set(object: &mut Value, key: &str, value: Value) {
    match value {
        Value::Null => {
            if let Some(object) = object.as_object_mut() {
                object.remove(key);
            }
        }
        value => object[key] = value,
    }
}
