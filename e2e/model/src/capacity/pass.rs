//! One reconciliation by the operator's own code: what the model knows goes into `gather`, its snapshot into `plan`,
//! and what is to be stored comes out of `intentions` and `status`.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node as KubeNode, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as KubeTime;
use kube::api::ObjectMeta;
use serde_json::json;
use spotpool_azure::{AgentPool, AzureError, Class};
use spotpool_core::{Action, Plan, plan};
use spotpool_crds::eviction::{Claimant, Phase, PodCounts, Source};
use spotpool_crds::spot_pool::{
    AgentPoolStatus, AzureError as StatusError, EventResponse, Operation, OperationKind, Role,
};
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason, DrainRequest, DrainStatus};
use spotpool_crds::{EvictionNotice, SpotPool, SpotPoolStatus, names};
use spotpool_operator::agent_pools::{Known, View};
use spotpool_operator::market::Facts;
use spotpool_operator::pool::act::{self, Outcome as Acted};
use spotpool_operator::pool::gather::{Gathered, gather};
use spotpool_operator::pool::report;

use super::state::{
    Act, Cached, Fault, Kind, Node, Outcome, Saved, SavedOperation, SavedPool, Seen, VmState, Written,
};
use super::{Bounds, Mutation};
use crate::time::{LONG, Time, stamp, time};

const UID: &str = "u";

/// What a plan comes to.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What is to be done; nothing if it does something that this model does not know.
    pub acts: Option<Vec<Act>>,
    /// Status with the intentions, as it is stored before anything is done.
    pub intended: Saved,
}

/// Makes plans, each once.
pub struct Planner {
    pool: SpotPool,
    names: Vec<String>,
    templates: Vec<AgentPool>,
    /// A status of which nothing is known but a name.
    blank: AgentPoolStatus,
    mutation: Option<Mutation>,
    planned: Memo<Seen, Planned>,
    reported: Memo<(Seen, BTreeMap<u8, Outcome>), Saved>,
}

/// What was reckoned before.
struct Memo<K, V>(Mutex<HashMap<K, Arc<V>>>);

impl<K: Clone + Eq + Hash, V> Memo<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn get(&self, key: &K, reckon: impl FnOnce() -> V) -> Arc<V> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = known().get(key) {
            return value.clone();
        }
        let value = Arc::new(reckon());
        known().insert(key.clone(), value.clone());
        value
    }
}

impl Planner {
    /// For a SpotPool of these bounds, in agent pools that Azure would describe so.
    pub fn new(bounds: &Bounds, mutation: Option<Mutation>) -> Result<Self, String> {
        let names: Vec<String> = bounds
            .pools
            .iter()
            .enumerate()
            .map(|(at, pool)| format!("p{at}{}", if pool.spot { "spot" } else { "reg" }))
            .collect();
        let agent_pools: Vec<_> = names
            .iter()
            .zip(&bounds.pools)
            .map(|(name, pool)| json!({"name": name, "maxNodes": pool.max}))
            .collect();
        // What waits for time alone is set to wait for none: a step of the model is as long as it likes.
        let pool = json!({
            "apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"name": "m", "namespace": "m", "uid": UID, "generation": 1},
            "spec": {
                "replicas": bounds.replicas, "agentPools": agent_pools,
                "fallback": {"maxNodes": bounds.fallback, "after": "0s", "growthAfter": "0s"},
                "failback": {"stabilization": "0s", "minOnDemandLifetime": "0s", "probe": "0s", "drainTimeout": "10m"},
                "standby": {"afterLoss": {"percent": 0}},
            },
        });
        let pool = serde_json::from_value(pool).map_err(|error| error.to_string())?;
        let templates = names.iter().zip(&bounds.pools).map(|(name, pool)| {
            let body = json!({"name": name, "properties": {
                "count": 0, "vmSize": "Standard_D4s_v5", "mode": "User", "type": "VirtualMachineScaleSets", "eTag": "e",
                "scaleSetPriority": if pool.spot { "Spot" } else { "Regular" }, "provisioningState": "Succeeded",
            }});
            AgentPool::read(body, stamp(0)).map_err(str::to_owned)
        });
        let templates = templates.collect::<Result<_, _>>()?;
        let blank = serde_json::from_value(json!({"name": ""})).map_err(|error| error.to_string())?;
        Ok(Self { pool, names, templates, blank, mutation, planned: Memo::new(), reported: Memo::new() })
    }

    /// The plan for what is seen now.
    pub fn plan(&self, seen: &Seen) -> Planned {
        let (seen, before) = settled(seen);
        let planned = self.planned.get(&seen, || {
            let (pool, gathered, plan) = self.think(&seen);
            let intentions = act::intentions(&plan, stamp(0));
            let status = report::status(&pool, &gathered, &plan, &intentions, &Acted::default(), stamp(0));
            Planned { acts: self.acts(&plan), intended: saved(&status) }
        });
        Planned { acts: planned.acts.clone(), intended: as_before(&planned.intended, &before) }
    }

    /// What is stored once all was tried, as of the time of the plan.
    pub fn report(&self, seen: &Seen, results: &BTreeMap<u8, Outcome>) -> Saved {
        let (seen, before) = settled(seen);
        let key = (seen, results.clone());
        let report = self.reported.get(&key, || {
            let (pool, gathered, plan) = self.think(&key.0);
            let intentions = act::intentions(&plan, stamp(0));
            let mut acted = Acted::default();
            for action in &plan.actions {
                let result =
                    action.agent_pool().and_then(|name| self.place(name)).and_then(|at| results.get(&at));
                let error = match result {
                    Some(Outcome::Accepted) => {
                        acted.done.push(action.clone());
                        continue;
                    }
                    Some(Outcome::Conflict) => AzureError::new(Class::Conflict, "Changed", "it has changed"),
                    Some(Outcome::Capacity) => AzureError::new(Class::Capacity, "AllocationFailed", "none"),
                    Some(Outcome::Unknown) => AzureError::new(Class::Transient, "NoAnswer", "no answer"),
                    None => continue,
                };
                if let Some(name) = action.agent_pool() {
                    acted.failed.insert(name.to_owned(), error);
                }
            }
            saved(&report::status(&pool, &gathered, &plan, &intentions, &acted, stamp(0)))
        });
        as_before(&report, &before)
    }

    /// How many plans were made, and how many reports.
    pub fn made(&self) -> (usize, usize) {
        (self.planned.len(), self.reported.len())
    }

    fn think(&self, seen: &Seen) -> (SpotPool, Gathered, Plan) {
        let now = stamp(0);
        let mut pool = self.pool.clone();
        pool.status = Some(status(&seen.saved, &self.names, &self.blank));
        let nodes = seen.vms.iter().enumerate().filter_map(|(at, vm)| self.node(at, vm, vm.node.as_ref()?));
        let nodes: Vec<_> = nodes.map(Arc::new).collect();
        let pools = seen.cache.as_ref().map(|cache| {
            let known = |at: usize| (self.names[at].clone(), self.known(at, &cache[at], &seen.vms));
            (0..cache.len()).map(known).collect()
        });
        let view = View { pools, ..View::default() };
        let gathered = gather(&pool, &[], &nodes, view, now);
        let plan = plan(&pool.spec, &gathered.snapshot, now);
        (pool, gathered, plan)
    }

    fn known(&self, at: usize, cached: &Cached, vms: &[VmState]) -> Known {
        let template = &self.templates[at];
        let provisioning_state = if cached.busy { "Scaling" } else { "Succeeded" }.to_owned();
        let mut pool = template.clone();
        (pool.count, pool.provisioning_state) = (cached.count.into(), provisioning_state);
        let listed = vms.iter().enumerate().filter(|(_, vm)| vm.listed && usize::from(vm.pool) == at);
        let there = listed.clone().filter(|(_, vm)| !vm.seen_gone);
        Known {
            role: Ok(match template.priority {
                spotpool_azure::Priority::Spot => Role::Spot,
                spotpool_azure::Priority::Regular => Role::OnDemand,
            }),
            machines: there.map(|(place, vm)| self.name(place, vm)).collect(),
            listed: listed.count(),
            joining: BTreeMap::new(),
            count_stale_since: cached.stale_since.map(stamp),
            busy: cached.busy || cached.written != Written::Read || !cached.listed,
            is_others_operation: cached.busy && cached.written == Written::Read,
            unanswered: None,
            failure: cached
                .failed_at
                .map(|at| (AzureError::new(Class::Capacity, "AllocationFailed", "none"), stamp(at))),
            vanished: Vec::new(),
            write_budget: None,
            market: Facts::default(),
            pool,
        }
    }

    fn name(&self, place: usize, vm: &VmState) -> String {
        format!("{}-{place}", self.names[usize::from(vm.pool)])
    }

    fn place(&self, name: &str) -> Option<u8> {
        self.names.iter().position(|known| known == name).map(|at| at as u8)
    }

    fn node(&self, place: usize, vm: &VmState, node: &Node) -> Option<KubeNode> {
        let name = self.name(place, vm);
        let mut annotations = BTreeMap::new();
        let noticed = node.noticed && self.mutation != Some(Mutation::NoticedCounts);
        if noticed {
            annotations.insert(names::EVICTION_ANNOTATION.to_owned(), serde_json::to_string(&notice()).ok()?);
        }
        if let Some(asked) = node.asked {
            let (request, status) = self.drain(asked, node, vm);
            annotations
                .insert(names::DRAIN_REQUEST_ANNOTATION.to_owned(), serde_json::to_string(&request).ok()?);
            if let Some(status) = status {
                annotations
                    .insert(names::DRAIN_STATUS_ANNOTATION.to_owned(), serde_json::to_string(&status).ok()?);
            }
        }
        let agent_pool = self.names[usize::from(vm.pool)].clone();
        let is_closed = noticed || node.answer.is_some_and(|answer| answer.drained);
        let ready = NodeCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(KubeTime(stamp(node.created))),
            ..NodeCondition::default()
        };
        Some(KubeNode {
            metadata: ObjectMeta {
                uid: Some(name.clone()),
                labels: Some([(names::AGENT_POOL_LABEL.to_owned(), agent_pool.clone())].into()),
                annotations: Some(annotations),
                creation_timestamp: Some(KubeTime(stamp(node.created))),
                name: Some(name),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                unschedulable: is_closed.then_some(true),
                provider_id: Some(format!(
                    "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/{agent_pool}/virtualMachines/{place}"
                )),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus { conditions: Some(vec![ready]), ..NodeStatus::default() }),
        })
    }

    fn drain(&self, asked: Time, node: &Node, vm: &VmState) -> (DrainRequest, Option<DrainStatus>) {
        let is_spot = self.templates[usize::from(vm.pool)].priority == spotpool_azure::Priority::Spot;
        let request = DrainRequest {
            id: asked.to_string(),
            reason: if is_spot { DrainReason::ScaleDown } else { DrainReason::Failback },
            voluntary: true,
            not_after: stamp(asked + 600),
            spot_pool: Some(UID.to_owned()),
        };
        let answer = match node.answer.filter(|answer| answer.to_this) {
            None if self.mutation == Some(Mutation::DrainNotAwaited) => Some(DrainPhase::Drained),
            None => None,
            Some(answer) if answer.drained => Some(DrainPhase::Drained),
            Some(_) => Some(DrainPhase::TimedOut),
        };
        let status = answer.map(|phase| DrainStatus {
            id: request.id.clone(),
            phase,
            pods_left: 0,
            blocking_pdbs: Vec::new(),
            cordoned: phase == DrainPhase::Drained,
        });
        (request, status)
    }

    fn acts(&self, plan: &Plan) -> Option<Vec<Act>> {
        let vm = |name: &String| name.rsplit('-').next().and_then(|place| place.parse().ok());
        let acts = plan.actions.iter().map(|action| {
            Some(match action {
                Action::ScaleUp { agent_pool, count, .. } => {
                    Act::Put { pool: self.place(agent_pool)?, count: *count as u8, corrects: false }
                }
                Action::CorrectCount { agent_pool, count } => {
                    Act::Put { pool: self.place(agent_pool)?, count: *count as u8, corrects: true }
                }
                Action::DeleteMachines { agent_pool, nodes, .. } => Act::Delete {
                    pool: self.place(agent_pool)?,
                    vms: nodes.iter().map(vm).collect::<Option<_>>()?,
                },
                Action::RequestDrain { node, .. } => Act::Drain(vm(node)?),
                Action::WithdrawDrain { node, .. } => Act::Withdraw(vm(node)?),
                Action::CreateAgentPool { .. }
                | Action::SetMinimum { .. }
                | Action::Restart { .. }
                | Action::TakeOutOfService { .. }
                | Action::ReturnToService { .. } => return None,
            })
        });
        acts.collect()
    }
}

fn settled(seen: &Seen) -> (Seen, BTreeMap<Time, Time>) {
    let mut seen = seen.clone();
    let before = seen.settle();
    (seen, before)
}

/// With the times that were known before as they were; what is new stays as it is.
fn as_before(saved: &Saved, before: &BTreeMap<Time, Time>) -> Saved {
    let mut saved = saved.clone();
    for time in saved.times() {
        *time = before.get(time).copied().unwrap_or(*time);
    }
    saved
}

fn notice() -> EvictionNotice {
    EvictionNotice {
        by: Claimant::NodeAgent,
        event_id: "E".to_owned(),
        event_type: "Preempt".to_owned(),
        source: Source::Imds,
        response: EventResponse::Drain,
        // Who was first does not matter to a plan.
        observed_at: stamp(-1),
        not_before: None,
        deadline: stamp(29),
        phase: Phase::Noticed,
        pods: PodCounts::default(),
        cordoned: true,
        boot_id: "b".to_owned(),
        traceparent: None,
        doomed: Vec::new(),
        unfinished: Vec::new(),
    }
}

/// Status as it is stored, from what the model keeps of it.
fn status(saved: &Saved, names: &[String], blank: &AgentPoolStatus) -> SpotPoolStatus {
    let at = |time: Time| KubeTime(stamp(time));
    let long_ago = |began: bool| began.then(|| at(-LONG * 10));
    let mut status = SpotPoolStatus::default();
    status.capacity.established = saved.established.into();
    status.capacity.lost_since = saved.lost_since.map(at);
    status.capacity.growth_since = long_ago(saved.began[0]);
    status.fallback.surplus_since = long_ago(saved.began[1]);
    status.fallback.since = long_ago(saved.began[2]);
    let pools = names.iter().zip(&saved.pools).map(|(name, pool)| AgentPoolStatus {
        name: name.clone(),
        kept: pool.kept.map(Into::into),
        operation: pool.operation.as_ref().map(|operation| Operation {
            kind: match operation.kind {
                Kind::ScaleUp => OperationKind::ScaleUp,
                Kind::Delete => OperationKind::DeleteMachines,
                Kind::Correct => OperationKind::CorrectCount,
            },
            count: operation.count.into(),
            machines: operation.machines.into(),
            coming: operation.coming.into(),
            since: at(operation.since),
            arrived: operation.arrived.into(),
            accepted: operation.accepted,
        }),
        last_error: pool.error.map(|(fault, time)| StatusError {
            code: word(fault).to_owned(),
            class: word(fault).to_owned(),
            message: String::new(),
            time: at(time),
        }),
        avoided_until: pool.avoided.map(|(_, until)| at(until)),
        avoided_for: pool.avoided.map(|(fault, _)| word(fault).to_owned()).unwrap_or_default(),
        ..blank.clone()
    });
    status.agent_pools = pools.collect();
    status
}

/// What the model keeps of status.
fn saved(status: &SpotPoolStatus) -> Saved {
    let at = |at: &KubeTime| time(at.0);
    let pools = status.agent_pools.iter().map(|pool| SavedPool {
        kept: pool.kept.map(|kept| kept as u8),
        operation: pool.operation.as_ref().map(|operation| SavedOperation {
            kind: match operation.kind {
                OperationKind::ScaleUp => Kind::ScaleUp,
                OperationKind::DeleteMachines => Kind::Delete,
                _ => Kind::Correct,
            },
            count: operation.count as u8,
            machines: operation.machines as u8,
            coming: operation.coming as u8,
            arrived: operation.arrived as u8,
            since: at(&operation.since),
            accepted: operation.accepted,
        }),
        error: pool.last_error.as_ref().map(|error| (fault(&error.class), at(&error.time))),
        avoided: pool.avoided_until.as_ref().map(|until| (fault(&pool.avoided_for), at(until))),
    });
    Saved {
        established: status.capacity.established as u8,
        lost_since: status.capacity.lost_since.as_ref().map(at),
        began: [
            status.capacity.growth_since.is_some(),
            status.fallback.surplus_since.is_some(),
            status.fallback.since.is_some(),
        ],
        pools: pools.collect(),
    }
}

fn word(fault: Fault) -> &'static str {
    match fault {
        Fault::Capacity => "Capacity",
        Fault::Transient => "Transient",
        Fault::ShortLived => "ShortLived",
    }
}

fn fault(word: &str) -> Fault {
    match word {
        "Capacity" => Fault::Capacity,
        "ShortLived" => Fault::ShortLived,
        _ => Fault::Transient,
    }
}
