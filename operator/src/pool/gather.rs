//! One consistent view for one plan, from stores and caches alone: nothing is asked of anybody here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use spotpool_azure::{AzureError, Class, EvictionPolicy};
use spotpool_core::bills::Bills;
use spotpool_core::claims::{Claim, claimed_by};
use spotpool_core::floor::FloorMemory;
use spotpool_core::loss::{Restarts, lost, quarantine};
use spotpool_core::signals::Signals;
use spotpool_core::upkeep::Upkeep;
use spotpool_core::{
    AgentPoolView, Answered, Autoscaler, Losses, Memory, Needs, NodeView, PastNeed, Probe, Relapses,
    Snapshot, Wishes, arrived,
};
use spotpool_crds::spot_pool::{
    AgentPoolStatus, AutoscalerStatus, FloorStatus, Operation, OperationKind, Role,
};
use spotpool_crds::{Reason, SpotPool, names};

use super::doomed::Notices;
use super::money;
use super::node_view::{node_view, warm_at};
use super::others::{Others, is_minimum_theirs};
use super::release::{self, Minimum};
use super::signals;
use super::trouble::{SHORT_LIVED, Trouble, Troubles};
use crate::agent_pools::{Known, View};
use crate::market::decimal;
use crate::node::agent_pool_of;
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

/// No request of ours is under way for longer: its answer is awaited for 20 s.
const UNDER_WAY: SignedDuration = SignedDuration::from_mins(1);

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
