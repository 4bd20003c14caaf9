//! Which agent pool takes the next machine. Prices are those of an hour.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use spotpool_core::ranking::{DISTRUST, remaining_losses};
use spotpool_core::{Action, AgentPoolView, Losses, Market, NodeView, Plan, Score, Snapshot, plan};
use spotpool_crds::spot_pool::Role;
use spotpool_crds::{Reason, SpotPoolSpec};

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn spot(name: &str, price: Option<&str>, evictions: f64) -> AgentPoolView {
    AgentPoolView {
        name: name.to_owned(),
        max_nodes: 20,
        role: Ok(Role::Spot),
        vm_size: format!("size of {name}"),
        zones: vec![name.to_owned()],
        market: Market {
            hourly_price: price.map(|price| price.parse().unwrap()),
            evictions_an_hour: Some(evictions),
            score: None,
            ..Market::default()
        },
        ..AgentPoolView::default()
    }
}

fn on_demand(name: &str, price: &str) -> AgentPoolView {
    AgentPoolView { role: Ok(Role::OnDemand), ..spot(name, Some(price), 0.0) }
}

fn planned(strategy: &str, replicas: i32, mut pools: Vec<AgentPoolView>, nodes: Vec<NodeView>) -> Plan {
    for node in nodes {
        pools.iter_mut().find(|pool| pool.name == node.agent_pool).unwrap().nodes.push(node);
    }
    let names: Vec<_> = pools.iter().map(|pool| format!("{{name: {}, maxNodes: 20}}", pool.name)).collect();
    let spec: SpotPoolSpec = serde_yaml_ng::from_str(&format!(
        "replicas: {replicas}\nagentPools: [{}]\nfallback: {{maxNodes: 9}}\nplacement: {{{strategy}}}\n\
         standby: {{afterLoss: {{percent: 0}}}}\n",
        names.join(", ")
    ))
    .unwrap();
    let snapshot = Snapshot { agent_pools: pools, ..Snapshot::default() };
    plan(&spec, &snapshot, now())
}

fn asked(plan: &Plan) -> Vec<(&str, u32)> {
    let scale_ups = plan.actions.iter().filter_map(|action| match action {
        Action::ScaleUp { agent_pool, new, .. } => Some((agent_pool.as_str(), *new)),
        _ => None,
    });
    scale_ups.collect()
}

fn place(strategy: &str, replicas: i32, pools: Vec<AgentPoolView>) -> Vec<(String, u32)> {
    let plan = planned(strategy, replicas, pools, Vec::new());
    asked(&plan).into_iter().map(|(name, new)| (name.to_owned(), new)).collect()
}

fn each(wanted: &[(&str, u32)]) -> Vec<(String, u32)> {
    wanted.iter().map(|(name, new)| ((*name).to_owned(), *new)).collect()
}

const ALL: &str = "maxSharePerPool: 100";

#[test]
fn each_strategy_looks_at_what_it_says() {
    let cheap = || spot("cheap", Some("0.03"), 0.25);
    let calm = || spot("calm", Some("0.05"), 0.025);
    let pools = || vec![calm(), cheap()];
    for (strategy, first) in [
        ("strategy: LowestPrice, maxSharePerPool: 100", "cheap"),
        ("strategy: LowestEvictionRate, maxSharePerPool: 100", "calm"),
        ("strategy: Ordered, maxSharePerPool: 100", "calm"),
        ("strategy: Balanced, maxSharePerPool: 100", "cheap"),
    ] {
        assert_eq!(place(strategy, 1, pools()), each(&[(first, 1)]), "{strategy}");
    }
    // 25 % an hour makes a node half as dear again, which a small difference in price does not outweigh.
    let nearly = || spot("cheap", Some("0.045"), 0.25);
    assert_eq!(place("strategy: Balanced", 1, vec![calm(), nearly()]), each(&[("calm", 1)]));
    assert_eq!(place("strategy: LowestPrice", 1, vec![calm(), nearly()]), each(&[("cheap", 1)]));
}

#[test]
fn balanced_spreads_because_what_stands_together_goes_together() {
    let pools =
        || vec![spot("a", Some("0.04"), 0.05), spot("b", Some("0.04"), 0.05), spot("c", Some("0.05"), 0.05)];
    assert_eq!(place("strategy: Balanced", 8, pools()), each(&[("a", 3), ("b", 3), ("c", 2)]));
    // Two pools of one size in one zone are nearly one.
    let mut twins = pools();
    twins[2].market.hourly_price = twins[0].market.hourly_price;
    twins[1].vm_size = twins[0].vm_size.clone();
    twins[1].zones = twins[0].zones.clone();
    let placed = place("strategy: Balanced", 8, twins);
    assert_eq!(placed, each(&[("a", 2), ("b", 2), ("c", 4)]));
    // The others do not spread, but for the share.
    let (first, second) = (("a", 5), ("b", 3));
    assert_eq!(place("strategy: Ordered, maxSharePerPool: 60", 8, pools()), each(&[first, second]));
    assert_eq!(place(&format!("strategy: Ordered, {ALL}"), 8, pools()), each(&[("a", 8)]));
}

#[test]
fn a_share_is_exceeded_rather_than_capacity_missed() {
    let mut pools = vec![spot("a", None, 0.05), spot("b", None, 0.05)];
    pools[1].max_nodes = 1;
    assert_eq!(place("strategy: Ordered, maxSharePerPool: 50", 8, pools), each(&[("a", 7), ("b", 1)]));
}

#[test]
fn an_unlikely_request_is_worth_less() {
    for (score, first) in [(Score::High, "a"), (Score::Low, "b"), (Score::Restricted, "b")] {
        let mut pools = vec![spot("a", Some("0.04"), 0.05), spot("b", Some("0.045"), 0.05)];
        pools[0].market.score = Some(score);
        assert_eq!(place("strategy: Balanced", 1, pools), each(&[(first, 1)]), "{score:?}");
    }
}

#[test]
fn a_price_above_the_ceiling_or_unknown_is_not_paid() {
    for (price, is_used) in [(Some("0.05"), true), (Some("0.0501"), false), (None, false)] {
        let mut pools = vec![spot("a", price, 0.05), spot("b", Some("0.09"), 0.05)];
        pools[0].max_hourly_price = Some("0.05".parse().unwrap());
        let first = if is_used { "a" } else { "b" };
        assert_eq!(place("strategy: LowestPrice", 1, pools.clone()), each(&[(first, 1)]), "{price:?}");
        pools.truncate(1);
        let plan = planned("", 1, pools, Vec::new());
        assert_eq!(plan.steps.iter().any(|step| step.reason == Reason::PriceAboveCeiling), !is_used);
    }
}

#[test]
fn a_price_that_nobody_knows_is_the_highest_known_and_never_zero() {
    let pools = vec![
        spot("unknown", None, 0.05),
        spot("dear", Some("0.09"), 0.05),
        spot("cheap", Some("0.04"), 0.05),
    ];
    let plan = planned("strategy: LowestPrice, maxSharePerPool: 100", 3, pools, Vec::new());
    assert_eq!(asked(&plan), [("cheap", 3)]);
    let order: Vec<_> = plan.ranks.iter().map(|rank| (rank.position, rank.pool)).collect();
    assert_eq!(order, [(1, 2), (2, 0), (3, 1)]);
    assert!(plan.ranks[1].why.contains("price not known"), "{}", plan.ranks[1].why);
}

#[test]
fn after_a_refusal_one_machine_shows_whether_capacity_is_back() {
    let refused = |creating: bool| {
        let mut pools = vec![spot("a", None, 0.05), spot("b", None, 0.05)];
        pools[0].refused_at = Some(now() - SignedDuration::from_mins(20));
        if creating {
            pools[0].machines = vec!["a-0".into()];
            pools[0].listed = 1;
            pools[0].count = 1;
        }
        pools
    };
    assert_eq!(
        place("strategy: Ordered, maxSharePerPool: 100", 5, refused(false)),
        each(&[("a", 1), ("b", 4)])
    );
    let plan = planned("strategy: Ordered, maxSharePerPool: 100", 30, refused(true), Vec::new());
    assert_eq!(asked(&plan), [("b", 20)]);
    assert!(plan.steps.iter().any(|step| step.reason == Reason::Probing), "{:?}", plan.steps);
}

fn node(pool: &str, index: usize, noticed: Option<Timestamp>) -> NodeView {
    NodeView {
        name: format!("{pool}-{index}"),
        agent_pool: pool.into(),
        created: now() - SignedDuration::from_hours(5),
        ready: true,
        noticed,
        ..NodeView::default()
    }
}

#[test]
fn an_agent_pool_that_loses_nodes_is_distrusted_for_a_while_and_its_siblings_a_little() {
    let pools =
        || vec![spot("a", Some("0.04"), 0.05), spot("b", Some("0.05"), 0.05), spot("c", Some("0.06"), 0.05)];
    // While it is losing nodes it comes last, whatever it costs.
    let losing = vec![node("a", 0, Some(now()))];
    let plan = planned(&format!("strategy: LowestPrice, {ALL}"), 2, pools(), losing);
    assert_eq!(asked(&plan), [("b", 2)]);
    assert_eq!(plan.losses["a"], Losses { count: 1, at: now() });
    // Once they are gone, it is twice as dear for a while.
    for (ago, first) in [(SignedDuration::from_mins(1), "b"), (DISTRUST + SignedDuration::from_secs(1), "a")]
    {
        let mut later = pools();
        later[0].losses = Some(Losses { count: 1, at: now() - ago });
        let plan = planned(&format!("strategy: LowestPrice, {ALL}"), 1, later, Vec::new());
        assert_eq!(asked(&plan), [(first, 1)], "{ago}");
    }
    // Another one in its zone is a quarter dearer.
    let mut siblings = pools();
    siblings[0].losses = Some(Losses { count: 1, at: now() - SignedDuration::from_mins(1) });
    siblings[1].zones = siblings[0].zones.clone();
    let plan = planned(&format!("strategy: LowestPrice, {ALL}"), 1, siblings, Vec::new());
    assert_eq!(asked(&plan), [("c", 1)]);
    assert!(plan.ranks[1].why.contains("near an agent pool that has just lost nodes"), "{:?}", plan.ranks);
}

#[test]
fn losses_are_counted_once_and_fade() {
    let hours = SignedDuration::from_hours;
    let losses = Losses { count: 5, at: now() };
    for (later, left) in [(0, 5), (5, 5), (6, 2), (12, 1), (18, 0), (24 * 400, 0), (-1, 5)] {
        assert_eq!(remaining_losses(&losses, now() + hours(later)), left, "{later} h later");
    }
    // The same notices again are no new losses; a later one is.
    let mut pools = vec![spot("a", None, 0.05)];
    pools[0].losses = Some(Losses { count: 2, at: now() - SignedDuration::from_secs(5) });
    let old = now() - SignedDuration::from_secs(5);
    let nodes = vec![node("a", 0, Some(old)), node("a", 1, Some(old)), node("a", 2, Some(now()))];
    let plan = planned("", 3, pools, nodes);
    // It is noon: of the two before it, one counts.
    assert_eq!(plan.losses["a"], Losses { count: 2, at: now() });
}

/// Else a pool that loses a node each hour, and each of its nodes seldom, would be the dearest for ever.
#[test]
fn losses_that_come_all_the_time_do_not_add_up_for_ever() {
    let mut losses = Losses { count: 1, at: now() };
    for hour in 1..1000 {
        let at = now() + SignedDuration::from_hours(hour);
        losses = Losses { count: remaining_losses(&losses, at) + 1, at };
    }
    assert!((6..=12).contains(&losses.count), "{losses:?}");
}

#[test]
fn on_demand_is_bought_where_it_is_cheapest() {
    let pools = vec![on_demand("dear", "0.40"), on_demand("cheap", "0.38")];
    for strategy in ["strategy: Balanced", "strategy: LowestPrice"] {
        assert_eq!(place(strategy, 1, pools.clone()), each(&[("cheap", 1)]), "{strategy}");
    }
    assert_eq!(place("strategy: Ordered", 3, pools), each(&[("dear", 3)]));
}

fn any_pool(index: usize) -> impl Strategy<Value = AgentPoolView> {
    (proptest::option::of(1u32..200), 0.0f64..0.3, 0u32..6, 0usize..3, any::<bool>(), any::<bool>()).prop_map(
        move |(price, evictions, max_nodes, zone, refused, dear)| {
            let mut pool = spot(&format!("p{index}"), None, evictions);
            pool.market.hourly_price = price.map(Into::into);
            pool.max_nodes = max_nodes;
            pool.zones = vec![zone.to_string()];
            pool.vm_size = format!("s{zone}");
            pool.refused_at = refused.then(now);
            pool.max_hourly_price = dear.then(|| 100.into());
            pool
        },
    )
}

proptest! {
    /// Whatever the market says: no more than wanted, no agent pool over its limit or above its ceiling, and nothing
    /// left out that could have been placed.
    #[test]
    fn placement_places_all_that_can_be(
        pools in (any_pool(0), any_pool(1), any_pool(2), any_pool(3)),
        replicas in 0i32..30,
        strategy in prop::sample::select(&["Balanced", "LowestPrice", "LowestEvictionRate", "Ordered"][..]),
        share in 1u32..101,
    ) {
        let pools = vec![pools.0, pools.1, pools.2, pools.3];
        let text = format!("strategy: {strategy}, maxSharePerPool: {share}");
        let plan = planned(&text, replicas, pools.clone(), Vec::new());
        let asked = asked(&plan);
        let takes = |pool: &AgentPoolView| {
            let dear = pool.max_hourly_price.is_some_and(|most| pool.market.hourly_price.is_none_or(|price| price > most));
            match (dear, pool.refused_at) {
                (true, _) => 0,
                (false, Some(_)) => pool.max_nodes.min(1),
                (false, None) => pool.max_nodes,
            }
        };
        for (name, new) in &asked {
            let pool = pools.iter().find(|pool| pool.name == *name).unwrap();
            prop_assert!(*new <= takes(pool), "{new} asked of {pool:?}");
        }
        let possible: u32 = pools.iter().map(takes).sum();
        let placed: u32 = asked.iter().map(|(_, new)| new).sum();
        prop_assert_eq!(placed, possible.min(replicas as u32));
    }
}
