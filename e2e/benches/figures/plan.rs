//! How long one plan takes for the greatest cluster that AKS allows.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use spotpool_core::fit::{Place, PlaceKind, Room};
use spotpool_core::floor::{BudgetDemand, FloorDemand, NAMED};
use spotpool_core::scheduling::{Pod, Resources, Shape, Taint, Toleration};
use spotpool_core::{AgentPoolView, DrainView, Losses, Market, NodeView, Score, Snapshot, plan};
use spotpool_crds::SpotPoolSpec;
use spotpool_crds::spot_pool::Role;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason};
use spotpool_e2e::simulation::Dice;

use crate::report::{Figure, Goal, Report};

const FIGURE: &str = "plan_p99_5000_nodes";
const NODES: usize = 5_000;
const AGENT_POOLS: usize = 100;
const BUDGETS: u32 = 2_000;
const PODS_OF_A_NODE: usize = 20;
const PLANS: usize = 600;

/// Measures, if it is asked for. One SpotPool has all agent pools, which is more than a SpotPool may name: whatever
/// is divided is faster.
pub fn measure(report: &mut Report) -> Result<()> {
    if !report.wants(&[FIGURE]) {
        return Ok(());
    }
    eprintln!("{PLANS} plans for {NODES} nodes in {AGENT_POOLS} agent pools …");
    let (room, floor) = (Arc::new(room()), floor());
    let now: Timestamp = "2026-08-01T00:00:00Z".parse()?;
    let mut dice = Dice::new(5_000);
    let mut runs = Vec::new();
    let mut actions = 0;
    for index in 0..PLANS {
        let (spec, mut snapshot) = situation(&mut dice, index, now)?;
        snapshot.room = Some(room.clone());
        snapshot.floor = Some(floor.clone());
        let started = Instant::now();
        let plan = black_box(plan(black_box(&spec), black_box(&snapshot), now));
        runs.push(started.elapsed().as_secs_f64() * 1000.0);
        actions += plan.actions.len();
    }
    if actions < PLANS {
        bail!("{actions} actions in {PLANS} plans: these are no situations to decide in");
    }
    let mut sorted = runs.clone();
    sorted.sort_by(f64::total_cmp);
    let p99 = sorted[sorted.len() * 99 / 100];
    let figure = Figure::new(FIGURE, "ms", Goal::Max(20.0), runs)
        .value(p99)
        .with("nodes", NODES)
        .with("agentPools", AGENT_POOLS)
        .with("budgets", BUDGETS)
        .with("median", crate::report::rounded(sorted[sorted.len() / 2]));
    report.print(figure);
    Ok(())
}

fn is_on_demand(agent_pool: usize) -> bool {
    agent_pool % 4 == 3
}

fn node_name(agent_pool: usize, number: usize) -> String {
    format!("aks-pool{agent_pool:03}-12345678-vmss{number:06}")
}

/// Nodes that are nearly full, and what runs on those that are on demand: some of it would find room on spot.
fn room() -> Room {
    let taint = Taint {
        key: "kubernetes.azure.com/scalesetpriority".into(),
        value: "spot".into(),
        effect: "NoSchedule".into(),
    };
    let requests = |cpu: i64| Resources { cpu, memory: cpu << 21, pods: 1, other: Vec::new() };
    let shapes: Vec<Arc<Shape>> = (1..=8)
        .map(|eighths| {
            let tolerations = vec![Toleration { key: Some(taint.key.clone()), value: None, effect: None }];
            Arc::new(Shape { requests: requests(eighths * 125), tolerations, ..Shape::default() })
        })
        .collect();
    let kind = |taints| Arc::new(PlaceKind { taints, ..PlaceKind::default() });
    let (spot, on_demand) = (kind(vec![taint.clone()]), kind(Vec::new()));
    let mut room = Room { complete: true, ..Room::default() };
    for at in 0..AGENT_POOLS {
        for number in 0..NODES / AGENT_POOLS {
            let node = node_name(at, number);
            let kind = if is_on_demand(at) { &on_demand } else { &spot };
            let free = Resources { pods: 20, ..requests((number as i64 * 7 + at as i64) % 10 * 100) };
            if is_on_demand(at) {
                let pod = |pod: usize| Pod {
                    namespace: format!("team-{}", at % 7).into(),
                    name: format!("{node}-{pod}").into(),
                    owner: format!("Deployment/service-{}", (number + pod) % 100).into(),
                    shape: shapes[(at + number * 3 + pod) % shapes.len()].clone(),
                };
                room.pods.insert(node.clone(), (0..PODS_OF_A_NODE).map(pod).collect());
            }
            room.places.push(Place { node, kind: kind.clone(), free, takes_pods: true, apart: Vec::new() });
        }
    }
    room
}

/// What 2,000 disruption budgets come to; how long that takes is `floor_2000_budgets`.
fn floor() -> FloorDemand {
    let budget = |at: usize| BudgetDemand {
        namespace: format!("team-{at}"),
        name: format!("service-{at}"),
        desired: 20,
        pods: 20,
        units: 2,
        barred: 0,
    };
    let budgets = (0..NAMED).map(budget).collect();
    FloorDemand { units: Some(400), unknown: String::new(), budgets, budgets_in_all: BUDGETS }
}

/// By turns: nothing to do; a zone is lost; half of everything is lost; growth by a half; a third too many; drains.
fn situation(dice: &mut Dice, index: usize, now: Timestamp) -> Result<(SpotPoolSpec, Snapshot)> {
    let kind = index % 6;
    let ago = |seconds: u64| now - SignedDuration::from_secs(seconds as i64);
    let mut snapshot = Snapshot::default();
    let zone = dice.below(3);
    for at in 0..AGENT_POOLS {
        let role = if is_on_demand(at) { Role::OnDemand } else { Role::Spot };
        let of_zone = dice.below(3);
        let mut pool = AgentPoolView {
            name: format!("pool{at:03}"),
            max_nodes: 1_000,
            units: 1 + dice.below(4) as u32,
            role: Ok(role),
            vm_size: format!("Standard_D{}s_v5", 1 << dice.below(7)),
            zones: vec![format!("westeurope-{of_zone}")],
            market: Market {
                hourly_price: Some((10 + dice.below(90) as i64).into()),
                evictions_an_hour: dice.percent(90).then(|| dice.below(25) as f64 / 100.0),
                score: [None, Some(Score::Low), Some(Score::Medium), Some(Score::High)]
                    [dice.below(4) as usize],
                ..Market::default()
            },
            losses: dice
                .percent(20)
                .then(|| Losses { count: 1 + dice.below(9) as u32, at: ago(dice.below(9_000)) }),
            avoided_until: dice.percent(5).then(|| now + SignedDuration::from_mins(5)),
            ..AgentPoolView::default()
        };
        for number in 0..NODES / AGENT_POOLS {
            let is_lost = match kind {
                1 => role == Role::Spot && of_zone == zone,
                2 => role == Role::Spot && dice.percent(50),
                _ => false,
            };
            let is_draining = kind == 5 && dice.percent(2);
            let name = node_name(at, number);
            pool.machines.push(name.clone());
            pool.nodes.push(NodeView {
                lost: None,
                out_of_service: false,
                name,
                agent_pool: pool.name.clone(),
                created: ago(3_600 + dice.below(400_000)),
                ready: !is_draining,
                rehearsed: false,
                cordoned: false,
                noticed: is_lost.then(|| ago(dice.below(20))),
                drain: is_draining.then(|| DrainView {
                    not_after: now + SignedDuration::from_mins(5),
                    phase: Some(if dice.percent(50) { DrainPhase::Drained } else { DrainPhase::Draining }),
                    reason: DrainReason::Failback,
                    is_ours: true,
                }),
                drain_wished: false,
            });
        }
        pool.count = pool.machines.len() as u32;
        pool.listed = pool.count;
        snapshot.agent_pools.push(pool);
    }
    let units = |role| -> u32 {
        let pools = snapshot.agent_pools.iter().filter(|pool| pool.role == Ok(role));
        pools.map(|pool| pool.nodes.len() as u32 * pool.units).sum()
    };
    let (spot, on_demand) = (units(Role::Spot), units(Role::OnDemand));
    let wanted = match kind {
        3 => (spot + on_demand) * 3 / 2,
        4 | 5 => (spot + on_demand) * 2 / 3,
        _ => spot + on_demand,
    };
    snapshot.memory.established = wanted.min(spot + on_demand);
    snapshot.memory.surplus_since = Some(ago(100_000));
    let pools: Vec<_> = snapshot
        .agent_pools
        .iter()
        .map(|pool| json!({"name": pool.name, "maxNodes": pool.max_nodes}))
        .collect();
    let spec = serde_json::from_value(json!({
        "replicas": wanted,
        "agentPools": pools,
        "onDemand": {"baseline": if kind == 4 { 0 } else { on_demand }, "pdbFloor": {"enabled": true, "maxUnits": 500}},
        "fallback": {"maxNodes": 1_000},
        "failback": {"maxConcurrent": 100, "probe": "0s"},
        "standby": {"units": 20, "afterLoss": {"percent": 0}},
    }))?;
    Ok((spec, snapshot))
}
