//! What the wanted capacity would cost where the spec wants it, and how far from it a SpotPool is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_core::{AgentPoolView, Market, NodeView, Plan, Snapshot, plan};
use spotpool_crds::SpotPoolSpec;
use spotpool_crds::spot_pool::Role;

/// Agent pools of the table: role, price, maxNodes, units of a node, nodes that are there.
type Pool = (Role, &'static str, u32, u32, u32);

fn planned(spec: &str, pools: &[Pool]) -> Plan {
    let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
    let name = |at: usize| format!("pool{at}");
    let listed: Vec<String> = (0..pools.len())
        .map(|at| {
            format!("{{name: {}, maxNodes: {}, capacityUnits: {}}}", name(at), pools[at].2, pools[at].3)
        })
        .collect();
    let spec: SpotPoolSpec = serde_yaml_ng::from_str(&format!(
        "agentPools: [{}]\nfallback: {{maxNodes: 20}}\n{spec}\n",
        listed.join(", ")
    ))
    .unwrap();
    let view = |(at, (role, price, max_nodes, units, nodes)): (usize, &Pool)| AgentPoolView {
        name: name(at),
        role: Ok(*role),
        max_nodes: *max_nodes,
        units: *units,
        market: Market { hourly_price: price.parse().ok(), ..Market::default() },
        nodes: (0..*nodes)
            .map(|number| NodeView {
                name: format!("{}-{number}", name(at)),
                agent_pool: name(at),
                ready: true,
                ..NodeView::default()
            })
            .collect(),
        ..AgentPoolView::default()
    };
    let agent_pools = pools.iter().enumerate().map(view).collect();
    plan(&spec, &Snapshot { agent_pools, ..Snapshot::default() }, now)
}

#[test]
fn the_plan_is_priced_where_the_spec_wants_it() {
    use Role::{OnDemand, Spot};
    let cheap = (Spot, "0.1", 10, 1, 0);
    let dear = (Spot, "0.2", 10, 1, 0);
    let fallback = (OnDemand, "0.5", 10, 1, 0);
    let lowest = "placement: {strategy: LowestPrice, maxSharePerPool: 100}";
    for (what, spec, pools, wanted) in [
        (
            "the first of the ranking",
            format!("replicas: 4\n{lowest}"),
            vec![dear, cheap, fallback],
            Some("0.4"),
        ),
        (
            "no more than it may hold",
            format!("replicas: 12\n{lowest}"),
            vec![cheap, dear, fallback],
            Some("1.4"),
        ),
        (
            "no more than its share",
            "replicas: 4\nplacement: {strategy: LowestPrice, maxSharePerPool: 50}".into(),
            vec![cheap, dear, fallback],
            Some("0.6"),
        ),
        (
            "beyond its share, where nobody else has room",
            "replicas: 4\nplacement: {strategy: LowestPrice, maxSharePerPool: 50}".into(),
            vec![cheap, fallback],
            Some("0.4"),
        ),
        (
            "the baseline on the cheapest on-demand",
            format!("replicas: 4\nonDemand: {{baseline: 2}}\n{lowest}"),
            vec![cheap, (OnDemand, "0.9", 10, 1, 0), fallback],
            Some("1.2"),
        ),
        ("standby, too", format!("replicas: 4\nstandby: {{units: 1}}\n{lowest}"), vec![cheap], Some("0.5")),
        ("whole nodes", format!("replicas: 5\n{lowest}"), vec![(Spot, "0.3", 10, 4, 0)], Some("0.6")),
        ("nothing", "replicas: 0".into(), vec![cheap], Some("0")),
        // Fallback is nobody's wish.
        ("more than spot may hold", format!("replicas: 11\n{lowest}"), vec![cheap, fallback], None),
        ("a baseline that has no place", "replicas: 1\nonDemand: {baseline: 1}".into(), vec![cheap], None),
        ("no price", format!("replicas: 1\n{lowest}"), vec![(Spot, "", 10, 1, 0)], None),
        // As what runs there is reckoned.
        (
            "a price that is assumed",
            format!("replicas: 1\n{lowest}"),
            vec![(Spot, "", 10, 1, 0), fallback],
            Some("0.5"),
        ),
    ] {
        let wanted: Option<Decimal> = wanted.map(|wanted| wanted.parse().unwrap());
        assert_eq!(planned(&spec, &pools).money.planned, wanted, "{what}");
    }
}

#[test]
fn kept_nodes_are_planned_where_they_are_and_a_ceiling_holds() {
    use Role::{OnDemand, Spot};
    let spec = "replicas: 4\nplacement: {strategy: LowestPrice, maxSharePerPool: 100}";
    let mut snapshot = Snapshot::default();
    for (name, role, price, kept) in
        [("a", Spot, "0.1", 0), ("b", Spot, "0.2", 0), ("c", OnDemand, "0.5", 0), ("d", OnDemand, "0.9", 1)]
    {
        let market = Market { hourly_price: price.parse().ok(), ..Market::default() };
        snapshot.agent_pools.push(AgentPoolView {
            name: name.into(),
            role: Ok(role),
            max_nodes: 9,
            kept,
            market,
            ..AgentPoolView::default()
        });
    }
    let listed = "agentPools: [{name: a, maxNodes: 9}, {name: b, maxNodes: 9}, {name: c, maxNodes: 9}, {name: d, maxNodes: 9}]";
    let spec: SpotPoolSpec =
        serde_yaml_ng::from_str(&format!("{spec}\nonDemand: {{baseline: 1}}\n{listed}")).unwrap();
    let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
    // One kept of 0.9 is the baseline, three of spot.
    assert_eq!(plan(&spec, &snapshot, now).money.planned, "1.2".parse().ok());
    snapshot.agent_pools[0].max_hourly_price = "0.05".parse().ok();
    assert_eq!(plan(&spec, &snapshot, now).money.planned, "1.5".parse().ok());
}

/// Else nobody would see that fallback makes a SpotPool dearer than it should be.
#[test]
fn what_runs_elsewhere_is_the_variance() {
    use Role::{OnDemand, Spot};
    let spec = "replicas: 4\nplacement: {strategy: LowestPrice, maxSharePerPool: 100}\nadoption: Reclaim";
    let variance = |spot: u32, fallback: u32, price: &'static str| {
        let pools = [(Spot, price, 10, 1, spot), (OnDemand, "0.5", 10, 1, fallback)];
        planned(spec, &pools).money.variance_percent()
    };
    for (spot, fallback, wanted) in [(4, 0, Some(0)), (2, 2, Some(200)), (0, 4, Some(400)), (3, 0, Some(-25))]
    {
        assert_eq!(variance(spot, fallback, "0.1"), wanted, "{spot} on spot, {fallback} on demand");
    }
    assert_eq!(variance(4, 0, "0"), None, "of nothing there is no share");
}
