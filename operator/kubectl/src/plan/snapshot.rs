//! What a plan is made from, as far as Nodes and status tell it.

use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use rust_decimal::Decimal;
use spotpool_core::floor::FloorMemory;
use spotpool_core::upkeep::Upkeep;
use spotpool_core::{
    AgentPoolView, Answered, Autoscaler, DrainView, Losses, Market, Memory, Needs, NodeView, PastNeed, Probe,
    Relapses, Score, Snapshot, Wishes,
};
use spotpool_crds::eviction::EvictionNotice;
use spotpool_crds::spot_pool::{AgentPoolStatus, Role};
use spotpool_crds::voluntary_drain::{DrainReason, DrainRequest, DrainStatus};
use spotpool_crds::{Reason, SpotPool, SpotPoolStatus, names};

use super::AGENT_POOL;
use crate::explain::node::{annotation, is_cordoned, readiness};

/// The snapshot for the spec of `pool`, from the `status` that an operator has written.
pub fn of(pool: &SpotPool, status: &SpotPoolStatus, nodes: &[Node], now: Timestamp) -> Snapshot {
    let said = |key: &str| pool.annotations().get(key).cloned();
    let agent_pools = pool.spec.agent_pools.iter().map(|spec| {
        let known = status.agent_pools.iter().find(|it| it.name == spec.name);
        let its = nodes.iter().filter(|node| node.labels().get(AGENT_POOL) == Some(&spec.name));
        let nodes: Vec<NodeView> = its.map(|node| node_view(pool, node, &spec.name, now)).collect();
        let mut view = AgentPoolView {
            name: spec.name.clone(),
            max_nodes: spec.max_nodes.max(0) as u32,
            units: spec.capacity_units.max(1) as u32,
            role: role(known),
            max_hourly_price: spec.max_hourly_price.as_deref().and_then(|text| Decimal::from_str(text).ok()),
            on_deallocated: spec.on_deallocated,
            machines: nodes.iter().map(|node| node.name.clone()).collect(),
            listed: nodes.len() as u32,
            nodes,
            ..AgentPoolView::default()
        };
        if let Some(known) = known {
            fill(&mut view, known);
        }
        view
    });
    Snapshot {
        agent_pools: agent_pools.collect(),
        memory: memory(status),
        wishes: Wishes {
            failback_paused: said(names::FAILBACK_PAUSED_ANNOTATION),
            requested_failback: said(names::REQUESTED_FAILBACK_ANNOTATION),
            budget_override: said(names::BUDGET_OVERRIDE_ANNOTATION),
        },
        currency: status.money.as_ref().map(|money| money.currency.clone()).unwrap_or_default(),
        ..Snapshot::default()
    }
}

fn role(known: Option<&AgentPoolStatus>) -> Result<Role, Reason> {
    match known {
        Some(AgentPoolStatus { unusable: Some(reason), .. }) => Err(*reason),
        known => known.and_then(|known| known.role).ok_or(Reason::AzureUnreachable),
    }
}

fn fill(view: &mut AgentPoolView, known: &AgentPoolStatus) {
    let number = |number: i32| number.max(0) as u32;
    view.count = number(known.count);
    view.autoscaler = known.autoscaler.as_ref().map(|range| Autoscaler {
        min: number(range.min),
        max: number(range.max),
        own_min: number(range.own_min),
    });
    view.busy = known.operation.is_some();
    view.operation.clone_from(&known.operation);
    view.upkeep = Upkeep::of(&known.provisioning_state);
    view.avoided_until = known.avoided_until.as_ref().map(|until| until.0);
    view.kept = match known.role {
        Some(Role::OnDemand) => known.kept.map_or(view.listed, number).min(view.listed),
        _ => 0,
    };
    view.vm_size.clone_from(&known.vm_size);
    view.zones.clone_from(&known.zones);
    view.losses = known.losses.as_ref().map(|losses| Losses { count: number(losses.count), at: losses.at.0 });
    let price = known.price.as_ref();
    let hourly = price.and_then(|price| Decimal::from_str(&price.hourly).ok());
    view.market = Market {
        hourly_price: hourly,
        last_price: hourly,
        read_at: price.and_then(|price| price.read_at.as_ref()).map(|read| read.0),
        on_demand_price: None,
        evictions_an_hour: middle(&known.eviction_band),
        score: match known.placement_score.as_str() {
            "Restricted" => Some(Score::Restricted),
            "Low" => Some(Score::Low),
            "Medium" => Some(Score::Medium),
            "High" => Some(Score::High),
            _ => None,
        },
    };
}

/// The middle of an eviction band, as the operator reckons with it.
fn middle(band: &str) -> Option<f64> {
    Some(match band {
        "0-5" => 0.025,
        "5-10" => 0.075,
        "10-15" => 0.125,
        "15-20" => 0.175,
        "20+" => 0.25,
        _ => return None,
    })
}

fn node_view(pool: &SpotPool, node: &Node, agent_pool: &str, now: Timestamp) -> NodeView {
    let notice = annotation::<EvictionNotice>(node, names::EVICTION_ANNOTATION).and_then(Result::ok);
    let request = annotation::<DrainRequest>(node, names::DRAIN_REQUEST_ANNOTATION).and_then(Result::ok);
    let answer = annotation::<DrainStatus>(node, names::DRAIN_STATUS_ANNOTATION).and_then(Result::ok);
    let readiness_wanted = &pool.spec.readiness;
    let taints: Vec<&str> = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten())
        .map(|taint| taint.key.as_str())
        .collect();
    let is_started = !taints.iter().any(|key| readiness_wanted.startup_taints.iter().any(|it| it == key));
    let warmup = SignedDuration::try_from(Duration::from(readiness_wanted.warmup)).unwrap_or_default();
    let is_warm = matches!(readiness(node), Some((true, since))
        if since.is_none_or(|since| now.duration_since(since) >= warmup));
    let cordoned = is_cordoned(node);
    let leaving = node.metadata.deletion_timestamp.is_some();
    let uid = pool.uid();
    // A rehearsal is the drill's alone: the node is closed for a moment, and stays.
    let is_drill = |request: &DrainRequest| request.reason == DrainReason::Drill;
    let rehearsed = request.as_ref().is_some_and(is_drill) && is_warm && is_started && !leaving;
    let request = request.filter(|request| !is_drill(request));
    NodeView {
        name: node.name_any(),
        agent_pool: agent_pool.to_owned(),
        created: node.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0),
        ready: is_warm && is_started && !cordoned && !leaving,
        cordoned: cordoned && !rehearsed,
        rehearsed,
        noticed: notice.filter(EvictionNotice::takes_capacity).map(|notice| notice.observed_at),
        lost: None,
        out_of_service: taints.contains(&names::OUT_OF_SERVICE_TAINT),
        drain: request.map(|request| DrainView {
            not_after: request.not_after,
            phase: answer.filter(|answer| answer.id == request.id).map(|answer| answer.phase),
            reason: request.reason,
            is_ours: request.spot_pool.is_none() || request.spot_pool == uid,
        }),
        drain_wished: node.annotations().contains_key(names::REQUESTED_DRAIN_ANNOTATION),
    }
}

/// What the last plan left to remember, without what has been spent: no budget is spent by asking.
fn memory(status: &SpotPoolStatus) -> Memory {
    let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
    let number = |number: i32| number.max(0) as u32;
    let fallback = &status.fallback;
    Memory {
        established: number(status.capacity.established),
        lost_since: time(&status.capacity.lost_since),
        growth_since: time(&status.capacity.growth_since),
        surplus_since: time(&fallback.surplus_since),
        needs: Needs {
            units: number(fallback.needed),
            before: fallback
                .needed_before
                .iter()
                .map(|past| PastNeed { units: number(past.units), until: past.until.0 })
                .collect(),
        },
        paused_until: time(&fallback.paused_until),
        fallback_since: time(&fallback.since),
        failed_back_at: time(&fallback.failed_back_at),
        relapses: fallback.relapses.as_ref().map(|it| Relapses { count: number(it.count), at: it.at.0 }),
        floor: status.floor.as_ref().map_or_else(FloorMemory::default, |floor| FloorMemory {
            units: number(floor.units),
            since: time(&floor.since),
            next: floor.next.as_ref().map(|next| (number(next.units), next.since.0)),
        }),
        probe: fallback
            .probe
            .as_ref()
            .map(|probe| Probe { node: probe.node.clone(), gone_since: time(&probe.gone_since) }),
        answered: fallback
            .request
            .as_ref()
            .map(|it| Answered { value: it.value.clone(), answer: it.answer.clone() }),
        objective: status.objective.clone(),
        ledger: None,
    }
}
