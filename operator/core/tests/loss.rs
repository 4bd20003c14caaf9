//! What becomes of nodes whose VMs went without a notice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use jiff::{SignedDuration, Timestamp};
use spotpool_core::loss::{Lost, Restarts, VmState, quarantine};
use spotpool_core::{Action, AgentPoolView, Losses, NodeView, Plan, Snapshot, plan};
use spotpool_crds::spot_pool::{OnDeallocated, Role};
use spotpool_crds::{Reason, SpotPoolSpec};

fn at(seconds: i64) -> Timestamp {
    "2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

/// Two nodes; the first is silent since second 0, and Azure says this of its VM.
fn pool(state: VmState) -> AgentPoolView {
    let node = |index: usize, lost: Option<Lost>| NodeView {
        name: format!("a-{index}"),
        agent_pool: "a".into(),
        created: at(-36_000),
        ready: lost.is_none(),
        lost,
        ..NodeView::default()
    };
    // A VM that is gone is not listed any more.
    let machines = (usize::from(state == VmState::Gone)..2).map(|index| format!("a-{index}")).collect();
    AgentPoolView {
        name: "a".into(),
        max_nodes: 9,
        role: Ok(Role::Spot),
        count: 2,
        listed: if state == VmState::Gone { 1 } else { 2 },
        machines,
        nodes: vec![node(0, Some(Lost { since: at(0), state })), node(1, None)],
        ..AgentPoolView::default()
    }
}

const NO_SPARE: &str = "standby: {afterLoss: {percent: 0}}\n";

fn planned(pool: AgentPoolView, extra: &str, now: i64) -> Plan {
    let spec = format!("replicas: 2\nagentPools: [{{name: a, maxNodes: 9}}]\n{NO_SPARE}{extra}");
    let spec: SpotPoolSpec = serde_yaml_ng::from_str(&spec).unwrap();
    plan(&spec, &Snapshot { agent_pools: vec![pool], ..Snapshot::default() }, at(now))
}

fn deletes(plan: &Plan) -> Vec<String> {
    let deleted = plan.actions.iter().find_map(|action| match action {
        Action::DeleteMachines { nodes, reason: Reason::LostDeleted, .. } => Some(nodes.clone()),
        _ => None,
    });
    deleted.unwrap_or_default()
}

#[test]
fn one_that_is_gone_is_taken_out_of_service_and_replaced_one_for_one() {
    let plan = planned(pool(VmState::Gone), "", 40);
    assert!(plan.actions.contains(&Action::TakeOutOfService { node: "a-0".into() }), "{:?}", plan.actions);
    let asked = plan.actions.iter().find_map(|action| match action {
        Action::ScaleUp { new, count, .. } => Some((*new, *count)),
        _ => None,
    });
    assert_eq!(asked, Some((1, 2)), "its Node is no machine");
    assert_eq!(plan.losses["a"], Losses { count: 1, at: at(0) });
    assert_eq!(plan.unannounced["a"], 1);
    // Counted once.
    let mut again = pool(VmState::Gone);
    again.losses = plan.losses.get("a").cloned();
    let plan = planned(again, "", 41);
    assert_eq!((plan.losses["a"].count, plan.unannounced.len()), (1, 0));
}

#[test]
fn a_machine_that_lingers_is_deleted_after_a_while_and_a_deallocated_one_at_once() {
    let idle = |state, deallocates, since: i64| {
        // Its replacement is on its way elsewhere: nothing else is written.
        let mut pool = AgentPoolView { deallocates, ..pool(state) };
        pool.nodes[0].lost = Some(Lost { since: at(since), state });
        pool.nodes[0].out_of_service = true;
        pool
    };
    let alone = |pool| {
        let spec = format!("replicas: 1\nagentPools: [{{name: a, maxNodes: 9}}]\n{NO_SPARE}");
        let spec: SpotPoolSpec = serde_yaml_ng::from_str(&spec).unwrap();
        plan(&spec, &Snapshot { agent_pools: vec![pool], ..Snapshot::default() }, at(119))
    };
    for (state, deallocates, since, wanted) in [
        (VmState::Failed, false, 0, false),
        (VmState::Failed, false, -1, true),
        (VmState::Deallocated, false, 0, false),
        (VmState::Deallocated, false, -1, true),
        (VmState::Deallocated, true, 100, true),
    ] {
        let plan = alone(idle(state, deallocates, since));
        assert_eq!(deletes(&plan) == ["a-0"], wanted, "{state:?} {deallocates} {since}: {:?}", plan.actions);
        assert!(wanted || plan.wake.is_some());
    }
    let busy = AgentPoolView { busy: true, ..idle(VmState::Deallocated, true, 0) };
    assert!(deletes(&alone(busy)).is_empty());
}

#[test]
fn a_deallocated_one_is_started_seldom_and_only_so_often() {
    let decide = |restarts: Option<Restarts>, out_of_service, extra, now| {
        let mut pool = AgentPoolView {
            deallocates: true,
            on_deallocated: OnDeallocated::Restart,
            restarts,
            max_nodes: 2,
            ..pool(VmState::Deallocated)
        };
        pool.nodes[0].out_of_service = out_of_service;
        planned(pool, extra, now)
    };
    let starts = |plan: &Plan| {
        plan.actions
            .iter()
            .any(|action| matches!(action, Action::Restart { nodes, .. } if nodes[..] == ["a-0"]))
    };
    let once = Some(Restarts { count: 1, at: at(60) });
    for (restarts, out_of_service, now, wanted) in [
        (None, true, 59, false),
        (None, true, 60, true),
        // Its pods are set free first.
        (None, false, 60, false),
        (once, true, 179, false),
        (once, true, 180, true),
        (Some(Restarts { count: 10, at: at(60) }), true, 90_000, false),
    ] {
        let plan = decide(restarts, out_of_service, "", now);
        assert_eq!(starts(&plan), wanted, "{restarts:?} {out_of_service} at {now}: {:?}", plan.actions);
        let counted = restarts.map_or(0, |restarts| restarts.count) + u32::from(wanted);
        assert_eq!(plan.restarts.get("a").map_or(0, |restarts| restarts.count), counted);
    }
    let over = decide(Some(Restarts { count: 10, at: at(60) }), true, "", 90_000);
    assert_eq!(deletes(&over), ["a-0"], "given up");
    let observed = decide(None, true, "mode: Observe", 60);
    assert!(
        observed.actions.is_empty()
            && observed.restarts.is_empty()
            && starts(&Plan { actions: observed.withheld.clone(), ..observed.clone() })
    );
}

#[test]
fn an_agent_pool_whose_vms_do_not_last_is_left_alone_if_another_is_free() {
    let mut short = pool(VmState::Gone);
    short.nodes[0].created = at(-299);
    let other =
        AgentPoolView { name: "b".into(), role: Ok(Role::Spot), max_nodes: 3, ..AgentPoolView::default() };
    assert_eq!(quarantine(&[short.clone(), other.clone()], at(1)), [(0, at(600))]);
    assert_eq!(quarantine(&[short.clone(), other.clone()], at(600)), []);
    let full = AgentPoolView { max_nodes: 0, ..other.clone() };
    assert_eq!(quarantine(&[short.clone(), full], at(1)), []);
    assert_eq!(quarantine(&[short.clone()], at(1)), [], "better one that does not last than none");
    short.nodes[0].created = at(-301);
    assert_eq!(quarantine(&[short, other], at(1)), []);
}
