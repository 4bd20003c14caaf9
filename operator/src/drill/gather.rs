//! What one step of a drill looks at, from stores alone but for the SpotPool.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use spotpool_core::drill;
use spotpool_crds::eviction::PREEMPT;
use spotpool_crds::spot_pool::{Mode, Role};
use spotpool_crds::voluntary_drain::{DrainRequest, DrainStatus};
use spotpool_crds::{EvictionDrill, EvictionNotice, Reason, SpotPool, names};

use crate::agent_pools::AgentPools;
use crate::market::decimal;
use crate::node::annotation;
use crate::node::{agent_pool_of, is_ready};
use crate::pool::doomed::Notices;
use crate::workloads::Workloads;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Gathers for `drill`; `nodes` are those of the whole cluster.
pub fn gather(
    drill: &EvictionDrill,
    pool: Option<&SpotPool>,
    nodes: &[Arc<Node>],
    workloads: &Workloads,
    agent_pools: &AgentPools,
    other: Option<String>,
) -> drill::Snapshot {
    let notices = Notices::of(nodes);
    let preempts = |node: &Node| notices.on(node).is_some_and(takes_the_vm) || notices.names(node).is_some();
    let ours: Vec<&Arc<Node>> =
        nodes.iter().filter(|node| pool.is_some_and(|pool| is_of(node, pool))).collect();
    let names: BTreeSet<&str> = ours.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
    let drilled = workloads.drilled(&names);
    let views = ours.iter().map(|node| view(node, drill, pool, &notices));
    drill::Snapshot {
        uid: drill.uid().unwrap_or_default(),
        generation: drill.metadata.generation.unwrap_or_default(),
        pool: pool.map(pool_view),
        nodes: views.collect(),
        noticed: nodes.iter().filter(|node| preempts(node)).map(|node| node.name_any()).collect(),
        unready_budgets: drilled.as_ref().map(|drilled| drilled.unready_budgets.clone()),
        pods: drilled.map(|drilled| drilled.pods),
        occupied: agent_pools.occupied(),
        other,
    }
}

fn takes_the_vm(notice: &EvictionNotice) -> bool {
    notice.is_active() && notice.event_type == PREEMPT
}

fn is_of(node: &Node, pool: &SpotPool) -> bool {
    node.labels().get(names::POOL_LABEL) == Some(&pool.name_any())
        && node.labels().get(names::POOL_NAMESPACE_LABEL) == pool.namespace().as_ref()
}

fn pool_view(pool: &SpotPool) -> drill::Pool {
    let status = pool.status.clone().unwrap_or_default();
    let name = pool.name_any();
    let idle = match () {
        () if pool.metadata.deletion_timestamp.is_some() => Some(format!("SpotPool {name} is being deleted")),
        () if pool.spec.suspend => Some(format!("SpotPool {name} is suspended: set spec.suspend to false")),
        () if pool.spec.mode == Mode::Observe => {
            Some(format!("SpotPool {name} only observes: set spec.mode to Enforce"))
        }
        () => None,
    };
    let in_danger = [Reason::ObjectiveMissed, Reason::ObjectiveBurning].map(|reason| reason.to_string());
    let objective = status.conditions.iter().find(|it| it.type_ == "ObjectiveMet");
    let money = status.money.as_ref();
    drill::Pool {
        idle,
        wanted: status.replicas.max(0) as u32,
        ready: status.ready_replicas.max(0) as u32,
        burning: objective.filter(|it| in_danger.contains(&it.reason)).map(|it| it.message.clone()),
        busy: status
            .agent_pools
            .iter()
            .filter(|pool| pool.operation.is_some())
            .map(|pool| pool.name.clone())
            .collect(),
        hourly: money.and_then(|money| decimal(&money.hourly.as_ref()?.total)),
        currency: money.map(|money| money.currency.clone()).unwrap_or_default(),
    }
}

fn view(node: &Node, drill: &EvictionDrill, pool: Option<&SpotPool>, notices: &Notices) -> drill::Node {
    let agent_pool = agent_pool_of(node).unwrap_or_default().to_owned();
    let request: Option<DrainRequest> = annotation(node, names::DRAIN_REQUEST_ANNOTATION);
    let status: Option<DrainStatus> = annotation(node, names::DRAIN_STATUS_ANNOTATION);
    let closed = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let is_going = node.metadata.deletion_timestamp.is_some()
        || notices.on(node).is_some_and(EvictionNotice::takes_capacity)
        || notices.names(node).is_some();
    let entry = pool.and_then(|pool| pool.spec.agent_pools.iter().find(|it| it.name == agent_pool));
    let told = pool.and_then(|pool| pool.status.as_ref());
    let told = told.and_then(|status| status.agent_pools.iter().find(|it| it.name == agent_pool));
    let selected = match drill.spec.target.node_selector.clone().map(Selector::try_from) {
        None => true,
        Some(Ok(selector)) => selector.matches(node.labels()),
        Some(Err(_)) => false,
    };
    let notice = notices.on(node).filter(|notice| notice.event_type == PREEMPT);
    let held = notice.map(|notice| notice.unfinished.clone());
    drill::Node {
        name: node.name_any(),
        uid: node.uid().unwrap_or_default(),
        vm: node.spec.as_ref().and_then(|spec| spec.provider_id.clone()).unwrap_or_default(),
        zone: node.labels().get(ZONE_LABEL).cloned().unwrap_or_default(),
        units: entry.map_or(1, |entry| entry.capacity_units.max(1)) as u32,
        is_spot: told.is_some_and(|told| told.role == Some(Role::Spot)),
        selected,
        ready: is_ready(node) && !closed && !is_going && request.is_none(),
        alive: is_ready(node),
        closed,
        notice: notice.map(|notice| drill::Notice { phase: notice.phase, pods: notice.pods }),
        request: request.map(|request| request.id),
        held: held.or_else(|| Some(status.as_ref()?.blocking_pdbs.clone())).unwrap_or_default(),
        drain: status.map(|status| (status.id, status.phase, status.pods_left)),
        agent_pool,
    }
}
