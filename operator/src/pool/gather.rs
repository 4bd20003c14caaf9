//! One consistent view for one plan, from stores and caches alone: nothing is asked of anybody here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use spotpool_azure::{AgentPool, AzureError, Class, EvictionPolicy, Priority, Scope};
use spotpool_core::avoidance::{Failure, avoided_until};
use spotpool_core::bills::Bills;
use spotpool_core::claims::{Claim, claimed_by};
use spotpool_core::floor::FloorMemory;
use spotpool_core::loss::{Lost, Restarts, lost, quarantine};
use spotpool_core::signals::Signals;
use spotpool_core::upkeep::Upkeep;
use spotpool_core::{
    AgentPoolView, Answered, Autoscaler, DrainView, Losses, Memory, Needs, NodeView, PastNeed, Probe,
    Relapses, Snapshot, Stall, Wishes, arrived,
};
use spotpool_crds::spot_pool::{
    AgentPoolStatus, AutoscalerStatus, AzureError as StatusError, FloorStatus, Operation, OperationKind,
    Readiness, Role,
};
use spotpool_crds::voluntary_drain::{DrainReason, DrainRequest, DrainStatus};
use spotpool_crds::{Reason, SpotPool, names};

use super::doomed::Notices;
use super::money;
use super::others::{Others, is_minimum_theirs};
use super::release::{self, Minimum};
use super::signals;
use crate::agent_pools::{Known, View};
use crate::market::decimal;
use crate::node::{agent_pool_of, annotation};
use crate::vms::signs;
use crate::workloads::Survey;

/// Everything that one reconciliation works on.
pub struct Gathered {
    /// For the plan.
    pub snapshot: Snapshot,
    /// The Nodes of the SpotPool's agent pools.
    pub nodes: Vec<Arc<Node>>,
    /// What Azure said of the agent pools of the spec.
    pub azure: BTreeMap<String, Known>,
    /// Whether Azure has answered at all.
    pub asked: bool,
    /// Why Azure could not be read, if so.
    pub unreachable: Option<AzureError>,
    /// Agent pools that another SpotPool has, and which.
    pub claimed: BTreeMap<String, String>,
    /// What went wrong with agent pools, and until when each is avoided for it.
    pub trouble: Troubles,
    /// Who else was seen to scale.
    pub others: Others,
    /// Minimums of agent pools that the SpotPool does not name any more, and that are to be returned.
    pub minimums: Vec<Minimum>,
    /// The notices on these nodes.
    pub notices: Notices,
    /// When the newest of them was seen.
    pub newest_notice: Option<Timestamp>,
    /// What workloads mean for it; empty until [`crate::workloads::Workloads::tell`].
    pub survey: Arc<Survey>,
    /// What workloads have cost; absent until there is a plan, and where nobody asks.
    pub bills: Option<Bills>,
}

/// The last error of an agent pool and what follows from it.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// As Azure gave it.
    pub last_error: Option<StatusError>,
    /// Nothing new is asked of the agent pool before this time.
    pub avoided_until: Option<Timestamp>,
    /// What for.
    pub avoided_for: String,
}

/// Its VMs were taken back minutes after they came.
const SHORT_LIVED: &str = "ShortLived";

/// No request of ours is under way for longer: its answer is awaited for 20 s.
const UNDER_WAY: SignedDuration = SignedDuration::from_mins(1);

impl Trouble {
    /// As status remembers it; an error is over once one of the agent pool's `nodes` has come after it.
    fn of(before: Option<&AgentPoolStatus>, nodes: &[NodeView]) -> Self {
        let came_after =
            |error: &StatusError| nodes.iter().any(|node| node.ready && node.created > error.time.0);
        Self {
            last_error: before
                .and_then(|before| before.last_error.clone())
                .filter(|error| !came_after(error)),
            avoided_until: before.and_then(|before| before.avoided_until.as_ref()).map(|until| until.0),
            avoided_for: before.map(|before| before.avoided_for.clone()).unwrap_or_default(),
        }
    }

    /// When Azure last had no capacity, if nothing has come since.
    fn refused_at(&self) -> Option<Timestamp> {
        let error = self.last_error.as_ref()?;
        (error.class == <&str>::from(Class::Capacity)).then_some(error.time.0)
    }

    fn avoid(&mut self, until: Timestamp, what_for: &str) {
        if self.avoided_until.is_none_or(|known| known < until) {
            self.avoided_until = Some(until);
            what_for.clone_into(&mut self.avoided_for);
        }
    }

    /// Until when every write would fail, not only one that asks for machines.
    fn unwritable_until(&self) -> Option<Timestamp> {
        let takes_writes = [<&str>::from(Class::Capacity), SHORT_LIVED].contains(&self.avoided_for.as_str());
        self.avoided_until.filter(|_| !takes_writes)
    }
}

/// What went wrong, by agent pool.
#[derive(Clone, Debug, Default)]
pub struct Troubles(BTreeMap<String, Trouble>);

impl Troubles {
    /// Of one agent pool.
    pub fn of(&self, agent_pool: &str) -> Trouble {
        self.0.get(agent_pool).cloned().unwrap_or_default()
    }

    /// Has `agent_pool` left alone.
    fn avoid(&mut self, agent_pool: &str, until: Timestamp, what_for: &str) {
        self.0.entry(agent_pool.to_owned()).or_default().avoid(until, what_for);
    }

    /// Takes an error of `agent_pool` in: for itself, and for all whom it speaks of as well.
    pub fn note(
        &mut self,
        agent_pool: &str,
        azure: &BTreeMap<String, Known>,
        error: &AzureError,
        time: Timestamp,
    ) {
        let failure = match error.class {
            // Somebody was faster: nothing is wrong with the agent pool.
            Class::Conflict => return,
            Class::Capacity => Failure::Capacity,
            Class::Throttled => Failure::Throttled,
            Class::Invalid | Class::Denied => Failure::Refused,
            Class::Transient => Failure::Transient,
        };
        let own = self.0.entry(agent_pool.to_owned()).or_default();
        // Status keeps whole seconds: what is as old as what is there is the same.
        if own.last_error.as_ref().is_some_and(|last| last.time.0.as_second() >= time.as_second()) {
            return;
        }
        let stated = error.retry_after.or(error.avoid.map(|avoid| avoid.lasting));
        let until = avoided_until(failure, stated.and_then(|stated| stated.try_into().ok()), time);
        own.avoided_until = Some(until);
        own.avoided_for = error.class.to_string();
        // Refused here, before the wire, is no error of Azure's.
        if !error.is_local() {
            let (code, message) = (error.code.clone(), error.message.clone());
            let class = error.class.to_string();
            own.last_error = Some(StatusError { code, class, message, time: Time(time) });
        }
        let (Some(avoid), Some(from)) = (error.avoid, azure.get(agent_pool)) else { return };
        for (name, known) in azure {
            if name != agent_pool && reaches(avoid.scope, &from.pool, &known.pool) {
                self.0.entry(name.clone()).or_default().avoid(until, error.class.into());
            }
        }
    }
}

impl Troubles {
    /// Takes in that a scale-up does not get on, as if Azure had said that it has no capacity: which is what it means.
    pub fn note_stall(&mut self, stall: &Stall, now: Timestamp) {
        let own = self.0.entry(stall.agent_pool.clone()).or_default();
        own.avoid(avoided_until(Failure::Capacity, None, now), Class::Capacity.into());
        own.last_error = Some(StatusError {
            code: stall.reason.to_string(),
            class: Class::Capacity.to_string(),
            message: stall.message.clone(),
            time: Time(now),
        });
    }
}

/// Whether an error of `from` holds for `other` too.
fn reaches(scope: Scope, from: &AgentPool, other: &AgentPool) -> bool {
    let alike = from.priority == other.priority && from.vm_size.eq_ignore_ascii_case(&other.vm_size);
    match scope {
        Scope::AgentPool => false,
        Scope::Size => alike,
        Scope::Zone => alike && other.zones.iter().all(|zone| from.zones.contains(zone)),
        Scope::AllSpot => other.priority == Priority::Spot,
        Scope::AllOnDemand => other.priority == Priority::Regular,
        Scope::Everything => true,
    }
}

/// Gathers for `pool`; `all` are the SpotPools of every watched namespace.
pub fn gather(
    pool: &SpotPool,
    all: &[Arc<SpotPool>],
    nodes: &[Arc<Node>],
    view: View,
    now: Timestamp,
) -> Gathered {
    let names: BTreeSet<&str> = pool.spec.agent_pools.iter().map(|pool| pool.name.as_str()).collect();
    let claimed = claims(pool, all, &names);
    let ours = |node: &&Arc<Node>| {
        agent_pool_of(node).is_some_and(|name| names.contains(name) && !claimed.contains_key(name))
    };
    let mut nodes: Vec<Arc<Node>> = nodes.iter().filter(ours).cloned().collect();
    // A store has no order: what is written to them would come in another one each time.
    nodes.sort_unstable_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    let notices = Notices::of(&nodes);
    let status = pool.status.clone().unwrap_or_default();
    let before: BTreeMap<&str, &AgentPoolStatus> =
        status.agent_pools.iter().map(|pool| (pool.name.as_str(), pool)).collect();

    let asked = view.pools.is_some();
    let azure: BTreeMap<String, Known> =
        view.pools.clone().into_iter().flatten().filter(|(name, _)| names.contains(name.as_str())).collect();
    let said = |key: &str| pool.annotations().get(key).cloned();
    let mut snapshot = Snapshot {
        memory: memory(&status),
        wishes: Wishes {
            failback_paused: said(names::FAILBACK_PAUSED_ANNOTATION),
            // Status remembers it: no longer than a name or a time is.
            requested_failback: said(names::REQUESTED_FAILBACK_ANNOTATION)
                .map(|text| text.chars().take(100).collect()),
            budget_override: said(names::BUDGET_OVERRIDE_ANNOTATION),
        },
        currency: view.currency.clone(),
        leaving: pool.metadata.deletion_timestamp.is_some(),
        azure_silent: view.unreachable.as_ref().is_some_and(|error| error.class == Class::Transient),
        ..Snapshot::default()
    };
    let uid = pool.uid();
    let mut views: BTreeMap<String, Vec<NodeView>> = BTreeMap::new();
    let mut advised = signals::advised(&nodes, &notices);
    for node in &nodes {
        let warm_at = warm_at(node, &pool.spec.readiness);
        let is_warm = warm_at.is_some_and(|warm_at| warm_at <= now);
        let word = view.words.get(&node.uid().unwrap_or_default());
        let lost = lost(&signs(node), word, now);
        let Some(view) = node_view(node, &notices, is_warm, lost, uid.as_deref()) else { continue };
        let soonest = [snapshot.ready_at, warm_at.filter(|warm_at| *warm_at > now)];
        snapshot.ready_at = soonest.into_iter().flatten().min();
        views.entry(view.agent_pool.clone()).or_default().push(view);
    }
    let mut trouble = Troubles::default();
    for name in &names {
        let nodes = views.get(*name).map(Vec::as_slice).unwrap_or_default();
        trouble.0.insert((*name).to_owned(), Trouble::of(before.get(name).copied(), nodes));
    }
    for (name, known) in &azure {
        if let Some((error, time)) = &known.failure {
            trouble.note(name, &azure, error, *time);
        }
    }
    for agent_pool in &pool.spec.agent_pools {
        let name = &agent_pool.name;
        let before = before.get(name.as_str());
        let known = azure.get(name);
        let role = match known {
            _ if claimed.contains_key(name) => Err(Reason::AgentPoolClaimed),
            // What it sells does not change: Nodes go on counting while Azure cannot be asked.
            _ if !asked => before.and_then(|before| before.role).ok_or(Reason::AzureUnreachable),
            None => Err(Reason::AgentPoolNotFound),
            Some(known) => known.role,
        };
        let machines = known.map(|known| known.machines.clone()).unwrap_or_default();
        let nodes = views.remove(name).unwrap_or_default();
        let exist = machines.len().max(nodes.len());
        let autoscaler = autoscaler(before.copied(), known);
        // Found at adoption, and never more than still exist.
        let found = match autoscaler {
            // What there is beyond its own minimum comes and goes with pods.
            Some(range) => Some(range.own_min as i32),
            None => before.and_then(|before| before.kept),
        };
        let kept = match (role, found) {
            (Ok(Role::OnDemand), Some(kept)) => (kept.max(0) as usize).min(exist),
            (Ok(Role::OnDemand), None) => exist,
            _ => 0,
        };
        let busy = known.is_none_or(|known| known.busy);
        let mut operation = before.and_then(|before| before.operation.clone());
        if let Some(operation) = &mut operation {
            operation.arrived = operation.arrived.max(arrived(operation, &nodes) as i32);
        }
        snapshot.agent_pools.push(AgentPoolView {
            name: name.clone(),
            max_nodes: agent_pool.max_nodes.max(0) as u32,
            units: agent_pool.capacity_units.max(1) as u32,
            role,
            count: known.map_or(0, |known| known.pool.count),
            joining: known.map(|known| known.joining.clone()).unwrap_or_default(),
            count_stale_since: known.and_then(|known| known.count_stale_since),
            listed: known.map_or(0, |known| known.listed as u32),
            autoscaler,
            machines,
            busy,
            upkeep: known.and_then(|known| Upkeep::of(&known.pool.provisioning_state)),
            // Where nothing runs the operation is over, or never reached Azure.
            operation: operation.clone().filter(|operation| {
                let is_scale_up = operation.kind == OperationKind::ScaleUp;
                busy && (!is_scale_up
                    || operation.machines > 0 && known.is_none_or(|it| may_run(operation, it)))
            }),
            unanswered: operation
                .as_ref()
                .filter(|it| !busy && is_unanswered(it, now))
                .map_or(0, |operation| {
                    u32::try_from(operation.machines.saturating_sub(operation.arrived)).unwrap_or(0)
                }),
            ended: operation.filter(|operation| {
                let is_scale_up = operation.kind == OperationKind::ScaleUp && operation.accepted;
                is_scale_up
                    && !busy
                    && known.is_some_and(|known| !is_explained(known, &trouble.of(name), operation))
            }),
            avoided_until: trouble.of(name).avoided_until,
            unwritable_until: trouble.of(name).unwritable_until(),
            kept: kept as u32,
            vm_size: known.map(|known| known.pool.vm_size.clone()).unwrap_or_default(),
            zones: known.map(|known| known.pool.zones.clone()).unwrap_or_default(),
            market: money::market(before.copied(), known, &view.currency),
            max_hourly_price: agent_pool.max_hourly_price.as_deref().and_then(decimal),
            losses: before
                .and_then(|before| before.losses.as_ref())
                .map(|losses| Losses { count: losses.count.max(0) as u32, at: losses.at.0 }),
            signals: Signals {
                advised: advised.remove(name).unwrap_or_default(),
                ..signals::of(before.copied(), known, now)
            },
            refused_at: trouble.of(name).refused_at(),
            vanished: known.map(|known| known.vanished.clone()).unwrap_or_default(),
            deallocates: known
                .is_some_and(|known| known.pool.eviction_policy == Some(EvictionPolicy::Deallocate)),
            on_deallocated: agent_pool.on_deallocated,
            restarts: before
                .and_then(|before| before.restarts.as_ref())
                .map(|restarts| Restarts { count: restarts.count.max(0) as u32, at: restarts.at.0 }),
            nodes,
        });
    }
    for (index, until) in quarantine(&snapshot.agent_pools, now) {
        let pool = &mut snapshot.agent_pools[index];
        trouble.avoid(&pool.name, until, SHORT_LIVED);
        pool.avoided_until = trouble.of(&pool.name).avoided_until;
    }
    let newest_notice =
        notices.all().filter(|notice| notice.takes_capacity()).map(|notice| notice.observed_at).max();
    let mut others = Others::seen(&status, &azure, view.has_auto_provisioning, now);
    if snapshot.leaving {
        // Minimums are returned now.
        others.changes.clear();
    }
    let minimums = release::minimums(pool, view.pools.as_ref());
    Gathered {
        snapshot,
        nodes,
        azure,
        asked,
        unreachable: view.unreachable,
        claimed,
        trouble,
        others,
        minimums,
        notices,
        newest_notice,
        survey: Arc::default(),
        bills: None,
    }
}

/// The cluster autoscaler's range, with the minimum that people gave it: the one that was found, or that somebody else
/// has set since.
fn autoscaler(before: Option<&AgentPoolStatus>, known: Option<&Known>) -> Option<Autoscaler> {
    let remembered = before.and_then(|before| before.autoscaler.as_ref());
    let number = |number: i32| number.max(0) as u32;
    let Some(known) = known else {
        let as_it_was = |it: &AutoscalerStatus| Autoscaler {
            min: number(it.min),
            max: number(it.max),
            own_min: number(it.own_min),
        };
        return remembered.map(as_it_was);
    };
    let (min, max) = (known.min(), known.pool.max_count.filter(|_| known.pool.autoscaled)?);
    let is_theirs = before.is_some_and(|before| is_minimum_theirs(before, known));
    let own_min = remembered.filter(|_| !is_theirs).map_or(min, |it| number(it.own_min));
    Some(Autoscaler { min, max, own_min })
}

/// Whether what Azure is at may be this scale-up: one that was not accepted only if it is to the count that was asked for.
fn may_run(operation: &Operation, known: &Known) -> bool {
    let aim = if known.pool.autoscaled { known.min() } else { known.pool.count };
    operation.accepted || !known.pool.busy() || i64::from(aim) == i64::from(operation.count)
}

/// Whether it may be on its way to Azure although nothing is seen of it.
fn is_unanswered(operation: &Operation, now: Timestamp) -> bool {
    let is_open = operation.kind == OperationKind::ScaleUp && !operation.accepted;
    is_open && now.duration_since(operation.since.0) < UNDER_WAY
}

/// Whether Azure said why the operation brought less than it should.
fn is_explained(known: &Known, trouble: &Trouble, operation: &Operation) -> bool {
    let failed = known.failure.as_ref().map(|(_, time)| *time);
    let told = trouble.last_error.as_ref().map(|error| error.time.0);
    failed.into_iter().chain(told).any(|at| at.as_second() >= operation.since.0.as_second() - 1)
}

fn claims(pool: &SpotPool, all: &[Arc<SpotPool>], names: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let uids: Vec<String> = all.iter().map(|pool| pool.uid().unwrap_or_default()).collect();
    let claims: Vec<Claim<'_>> = all
        .iter()
        .zip(&uids)
        .filter(|(pool, _)| release::has_claims(pool))
        .map(|(pool, uid)| Claim {
            spot_pool: format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any()),
            created: pool.metadata.creation_timestamp.as_ref().map(|time| time.0),
            uid,
            agent_pools: pool.spec.agent_pools.iter().map(|pool| pool.name.as_str()).collect(),
        })
        .collect();
    let uid = pool.uid().unwrap_or_default();
    let other = |name: &&str| claimed_by(&claims, name, &uid).map(|by| ((*name).to_owned(), by.to_owned()));
    names.iter().filter_map(other).collect()
}

fn memory(status: &spotpool_crds::SpotPoolStatus) -> Memory {
    let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
    Memory {
        established: status.capacity.established.max(0) as u32,
        lost_since: time(&status.capacity.lost_since),
        growth_since: time(&status.capacity.growth_since),
        surplus_since: time(&status.fallback.surplus_since),
        needs: Needs {
            units: status.fallback.needed.max(0) as u32,
            before: status
                .fallback
                .needed_before
                .iter()
                .map(|past| PastNeed { units: past.units.max(0) as u32, until: past.until.0 })
                .collect(),
        },
        paused_until: time(&status.fallback.paused_until),
        fallback_since: time(&status.fallback.since),
        failed_back_at: time(&status.fallback.failed_back_at),
        relapses: status
            .fallback
            .relapses
            .as_ref()
            .map(|relapses| Relapses { count: relapses.count.max(0) as u32, at: relapses.at.0 }),
        floor: status.floor.as_ref().map(floor_memory).unwrap_or_default(),
        probe: status
            .fallback
            .probe
            .as_ref()
            .map(|probe| Probe { node: probe.node.clone(), gone_since: time(&probe.gone_since) }),
        answered: status
            .fallback
            .request
            .as_ref()
            .map(|request| Answered { value: request.value.clone(), answer: request.answer.clone() }),
        objective: status.objective.clone(),
        ledger: status.money.as_ref().and_then(|money| money.ledger.as_ref()).map(money::ledger),
    }
}

fn floor_memory(floor: &FloorStatus) -> FloorMemory {
    FloorMemory {
        units: floor.units.max(0) as u32,
        since: floor.since.as_ref().map(|since| since.0),
        next: floor.next.as_ref().map(|next| (next.units.max(0) as u32, next.since.0)),
    }
}

/// When a node is, or was, ready for work: its Ready condition, the warm-up, and every start-up taint gone. `None` if
/// that is not known yet.
fn warm_at(node: &Node, readiness: &Readiness) -> Option<Timestamp> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|it| it.type_ == "Ready" && it.status == "True")?;
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    if taints.into_iter().any(|taint| readiness.startup_taints.contains(&taint.key)) {
        return None;
    }
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let warmup = Duration::from(readiness.warmup);
    Some(since.saturating_add(SignedDuration::try_from(warmup).ok()?).unwrap_or(Timestamp::MAX))
}

fn node_view(
    node: &Node,
    notices: &Notices,
    is_warm: bool,
    lost: Option<Lost>,
    uid: Option<&str>,
) -> Option<NodeView> {
    let request: Option<DrainRequest> = annotation(node, names::DRAIN_REQUEST_ANNOTATION);
    let status: Option<DrainStatus> = annotation(node, names::DRAIN_STATUS_ANNOTATION);
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let leaving = node.metadata.deletion_timestamp.is_some();
    // A rehearsal is the drill's alone: the node is closed for a moment, and stays.
    let is_drill = |request: &DrainRequest| request.reason == DrainReason::Drill;
    let rehearsed = request.as_ref().is_some_and(is_drill) && is_warm && !leaving;
    let request = request.filter(|request| !is_drill(request));
    Some(NodeView {
        name: node.name_any(),
        agent_pool: agent_pool_of(node)?.to_owned(),
        created: node.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0),
        ready: is_warm && !cordoned && !leaving,
        cordoned: cordoned && !rehearsed,
        rehearsed,
        noticed: notices
            .on(node)
            .filter(|notice| notice.takes_capacity())
            .map(|notice| notice.observed_at)
            .or_else(|| notices.names(node)),
        lost,
        out_of_service: is_out_of_service(node),
        drain: request.map(|request| DrainView {
            not_after: request.not_after,
            phase: status.filter(|status| status.id == request.id).map(|status| status.phase),
            reason: request.reason,
            is_ours: request.spot_pool.is_none() || request.spot_pool.as_deref() == uid,
        }),
        drain_wished: node.annotations().contains_key(names::REQUESTED_DRAIN_ANNOTATION),
    })
}

/// Whether the operator has put it out of service.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| {
        taint.key == names::OUT_OF_SERVICE_TAINT
            && taint.value.as_deref() == Some(names::OUT_OF_SERVICE_VALUE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, instance: u64, annotations: &serde_json::Value) -> Arc<Node> {
        let provider = format!(
            "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/aks-spota-1-vmss/virtualMachines/{instance}"
        );
        let node = json!({
            "metadata": {"name": name, "labels": {names::AGENT_POOL_LABEL: "spota"}, "annotations": annotations},
            "spec": {"providerID": provider},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn eviction(event: &str, phase: &str, doomed: &str) -> serde_json::Value {
        let notice = json!({
            "by": "NodeAgent", "eventId": event, "type": "Preempt", "source": "IMDS", "observedAt": "2026-01-01T00:00:00Z",
            "deadline": "2026-01-01T00:00:30Z", "phase": phase, "cordoned": true, "bootID": "b",
            "doomed": [{"eventId": event, "instances": doomed}]
        });
        json!({names::EVICTION_ANNOTATION: notice.to_string()})
    }

    /// Else machines that are on their way are asked for a second time, of another agent pool.
    #[test]
    fn what_nobody_answered_may_be_under_way_for_a_minute() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let operation = |accepted, kind| Operation {
            kind,
            count: 3,
            machines: 1,
            coming: 0,
            since: at.into(),
            arrived: 0,
            accepted,
        };
        let after = |operation: &Operation, seconds| {
            is_unanswered(operation, at + SignedDuration::from_secs(seconds))
        };
        let open = operation(false, OperationKind::ScaleUp);
        assert!(after(&open, 0) && after(&open, 59));
        assert!(!after(&open, 60), "it would be asked of a bad agent pool for ever");
        assert!(!after(&operation(true, OperationKind::ScaleUp), 0), "Azure has it");
        assert!(!after(&operation(false, OperationKind::DeleteMachines), 0), "it brings none");
    }

    fn noticed(nodes: &[Arc<Node>]) -> Vec<bool> {
        let notices = Notices::of(nodes);
        nodes
            .iter()
            .map(|node| node_view(node, &notices, true, None, None).unwrap().noticed.is_some())
            .collect()
    }

    /// Defaults are chosen by the policy lab, which knows no errors of Azure's: left alone for longer, they would be worse than it
    /// says.
    #[test]
    fn an_agent_pool_that_azure_has_no_capacity_for_is_left_alone_as_long_as_the_lab_reckons() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for code in [
            "SkuNotAvailable",
            "AllocationFailed",
            "ZonalAllocationFailed",
            "OverconstrainedAllocationRequest",
        ] {
            let error = AzureError::from_operation(Some(&json!({"code": code, "message": "none"})));
            let mut troubles = Troubles::default();
            troubles.note("a", &BTreeMap::new(), &error, now);
            let reckoned = avoided_until(Failure::Capacity, None, now);
            assert_eq!(troubles.of("a").avoided_until, Some(reckoned), "{code}");
        }
    }

    #[test]
    fn one_notice_tells_of_siblings_whose_agent_is_silent() {
        let nodes = [
            node("a", 0, &eviction("E1", "Noticed", "0-1")),
            node("b", 1, &json!({})),
            node("c", 2, &json!({})),
        ];
        assert_eq!(noticed(&nodes), [true, true, false]);
    }

    #[test]
    fn a_cancelled_notice_dooms_nobody() {
        let nodes = [node("a", 0, &eviction("E1", "Cancelled", "0-1")), node("b", 1, &json!({}))];
        assert_eq!(noticed(&nodes), [false, false]);
        // The own agent's word on the same event counts more than a sibling's older document.
        let nodes = [
            node("a", 0, &eviction("E1", "Draining", "0-1")),
            node("b", 1, &eviction("E1", "Cancelled", "")),
        ];
        assert_eq!(noticed(&nodes), [true, false]);
    }

    #[test]
    fn a_node_is_worth_nothing_when_its_vm_goes_or_it_is_emptied_and_is_kept_otherwise() {
        for (kind, response, phase, is_lost) in [
            ("Preempt", "Drain", "Noticed", true),
            // Nobody drains it, its VM goes all the same.
            ("Preempt", "Ignore", "Noticed", true),
            ("Reboot", "Drain", "Draining", true),
            ("Reboot", "Cordon", "Noticed", false),
            ("SpotRebalanceRecommendation", "Ignore", "Noticed", false),
            ("SpotRebalanceRecommendation", "Drain", "Drained", true),
            ("Redeploy", "Drain", "Over", false),
            ("Preempt", "Drain", "Over", false),
        ] {
            let notice = json!({"by": "NodeAgent", "eventId": "E", "type": kind, "source": "IMDS", "response": response,
                "observedAt": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:00:30Z", "phase": phase,
                "cordoned": true, "bootID": "b"});
            let node = node("a", 0, &json!({names::EVICTION_ANNOTATION: notice.to_string()}));
            assert_eq!(noticed(&[node]), [is_lost], "{kind} {response} {phase}");
        }
    }

    #[test]
    fn a_node_is_capacity_once_it_is_warm() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let node = |status: &str, taints: &serde_json::Value| -> Node {
            serde_json::from_value(
                json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
            )
            .unwrap()
        };
        let warming = json!([{"key": "example.com/warming", "effect": "NoSchedule"}]);
        let readiness = |warmup: u64| Readiness {
            warmup: spotpool_crds::Duration::from_secs(warmup),
            startup_taints: vec!["example.com/warming".into()],
        };
        for (status, taints, warmup, warm_from) in [
            ("True", &json!([]), 0, Some("2026-01-01T00:00:00Z")),
            ("True", &json!([]), 30, Some("2026-01-01T00:00:30Z")),
            ("True", &json!([{"key": "other", "effect": "NoSchedule"}]), 0, Some("2026-01-01T00:00:00Z")),
            ("True", &warming, 0, None),
            ("False", &json!([]), 0, None),
            ("Unknown", &json!([]), 0, None),
        ] {
            let warm = warm_at(&node(status, taints), &readiness(warmup));
            assert_eq!(warm, warm_from.map(at), "{status} {taints} {warmup}");
        }
    }

    #[test]
    fn an_annotation_that_is_nonsense_is_no_notice() {
        let nodes = [node("a", 0, &json!({names::EVICTION_ANNOTATION: "{\"phase\": 7"}))];
        assert_eq!(noticed(&nodes), [false]);
    }
}
