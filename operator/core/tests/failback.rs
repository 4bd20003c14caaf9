//! Giving back: when, how many, and what a person says about it. What is returned too early is bought again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use proptest::prelude::*;
use spotpool_core::{Action, Plan, Snapshot};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use spotpool_crds::spot_pool::{Adoption, Mode, Operation, OperationKind, Window};
use world::{BOOT, World, asked_to_drain, says};

const SPEC: &str = "
replicas: 4
agentPools: [{name: spota, maxNodes: 6}, {name: spotb, maxNodes: 6}, {name: reg, maxNodes: 8}]
fallback: {maxNodes: 4, growthAfter: 5m}
failback: {stabilization: 10m, minOnDemandLifetime: 20m, maxConcurrent: 3, probe: 2m}
";

/// Four spot nodes are ready, and so many on-demand nodes too many, bought ten hours ago.
fn surplus(on_demand: u32) -> World {
    World::new(SPEC, &[Spot, Spot, OnDemand])
        .with("spota", 2, 0)
        .with("spotb", 2, 0)
        .with("reg", on_demand, 0)
}

/// A status that grows with the cluster is refused in the end, and with it every write that comes after.
#[test]
fn what_holds_for_hundreds_of_nodes_is_said_of_some() {
    let spec =
        SPEC.replace("reg, maxNodes: 8", "reg, maxNodes: 400").replace("{maxNodes: 4,", "{maxNodes: 400,");
    let roles = [Spot, Spot, OnDemand];
    let mut world = World::new(&spec, &roles).with("spota", 4, 0).with("reg", 400, 0);
    let now = world.now;
    for machine in &mut world.pool("reg").machines {
        machine.node_at = now;
    }
    world.reconcile();
    world.pass(11 * 60);
    let plan = world.reconcile();
    let steps = plan.steps.iter().skip(1);
    let kept: Vec<_> = steps.filter(|step| step.reason == Reason::MinimumLifetime).collect();
    assert_eq!(kept.len(), 21, "{:?}", plan.steps);
    assert_eq!(kept[20].message, "380 more like these");
}

/// Lets time pass minute by minute until a node is asked to drain.
fn until_asked(world: &mut World, minutes: u32) -> (Plan, u32) {
    for minute in 0..minutes {
        let plan = world.reconcile();
        if !asked_to_drain(&plan).is_empty() {
            return (plan, minute);
        }
        world.pass(60);
    }
    panic!("nothing was asked to drain in {minutes} minutes: {:?}", world.plan().steps)
}

fn window(schedule: &str, hours: u64) -> Window {
    let duration = spotpool_crds::Duration::from_secs(hours * 3600);
    Window { schedule: schedule.into(), time_zone: "Etc/UTC".into(), duration }
}

#[test]
fn the_first_goes_alone_and_the_others_follow_when_spot_stayed_whole() {
    let mut world = surplus(4);
    let (plan, _) = until_asked(&mut world, 12);
    assert_eq!(asked_to_drain(&plan), ["reg-000000"], "three may go at a time, and the first goes alone");
    assert!(says(&plan, Reason::FailbackProbe).contains("reg-000000 goes first, alone"));
    world.pass(10);
    assert!(
        matches!(&world.reconcile().actions[..], [Action::DeleteMachines { nodes, .. }] if nodes.len() == 1)
    );
    world.pass(30);
    let plan = world.reconcile();
    assert!(says(&plan, Reason::FailbackProbe).contains("has gone first; others follow from"));
    let follow = plan.wake.unwrap();
    assert_eq!(follow.duration_since(world.now).as_secs(), 120);
    world.pass(119);
    assert!(world.reconcile().actions.is_empty());
    world.pass(1);
    assert_eq!(asked_to_drain(&world.reconcile()).len(), 3);
}

#[test]
fn spot_that_breaks_after_the_first_has_gone_keeps_what_it_needs_and_has_the_next_go_alone_too() {
    let mut world = surplus(4);
    until_asked(&mut world, 12);
    world.pass(10);
    world.reconcile();
    // A spot node vanishes without a notice: nobody was evicting, and spot is not whole.
    world.pool("spota").machines.pop();
    world.pass(60);
    let plan = world.reconcile();
    let goes = asked_to_drain(&plan);
    assert!(goes.len() <= 1, "more than one may be needed: {:?}", plan.steps);
    world.pass(BOOT);
    for _ in 0..9 {
        world.reconcile();
        assert!(world.ready(OnDemand) >= 1, "one was needed less than 10 minutes ago");
        world.pass(60);
    }
}

/// Where Azure takes nodes all the time, a wait that began anew each time would keep on-demand that nobody needs, at
/// four times the price.
#[test]
fn on_demand_that_no_notice_needs_leaves_though_azure_goes_on_taking_nodes() {
    let mut world = surplus(4);
    world.spec.replicas = 3;
    world.spec.failback.probe = spotpool_crds::Duration::from_secs(0);
    world.reconcile();
    for minute in 0..12 {
        // One spot node goes every four minutes; three of four are enough.
        if minute % 4 == 0 {
            let fullest = if world.pools[0].machines.len() > 1 { "spota" } else { "spotb" };
            world.notice(fullest, 1, 5);
        }
        world.reconcile();
        world.pass(60);
    }
    for _ in 0..3 {
        world.reconcile();
        world.pass(60);
    }
    assert_eq!(world.ready(OnDemand), 1, "one at a time was needed, no more: {:?}", world.plan().steps);
}

/// What the last minutes needed is bought again at once when spot fails again: it stays, and only that.
#[test]
fn as_much_stays_as_was_needed_within_the_stabilization_and_the_rest_goes() {
    let mut world = surplus(4);
    world.spec.failback.probe = spotpool_crds::Duration::from_secs(0);
    world.reconcile();
    world.pass(400);
    world.notice("spota", 1, 5);
    world.reconcile();
    assert_eq!((world.memory.needs.units, world.launches.get("reg")), (1, None), "four are there");
    world.pass(BOOT);
    // Spot is whole again; of four on demand, one was needed two minutes ago.
    world.reconcile();
    assert_eq!(world.memory.needs.units, 0);
    world.pass(210);
    world.reconcile();
    world.pass(10);
    world.reconcile();
    assert_eq!(world.pool("reg").machines.len(), 1, "{:?}", world.plan().steps);
    let before = world.memory.needs.before.clone();
    assert_eq!(before.len(), 1);
    assert_eq!(world.plan().wake, Some(before[0].until + jiff::SignedDuration::from_mins(10)));
    world.pass(600);
    assert_eq!(asked_to_drain(&world.reconcile()).len(), 1);
}

/// Asked again and again while its Node lingers, Azure would refuse each time, and emergencies would lack the requests.
#[test]
fn a_machine_that_is_gone_is_not_deleted_again_while_its_node_lingers() {
    let mut world = surplus(1);
    until_asked(&mut world, 12);
    world.pass(10);
    let mut snapshot = world.snapshot();
    let deletes = |snapshot: &Snapshot| {
        let plan = spotpool_core::plan(&world.spec, snapshot, world.now);
        plan.actions.iter().any(|action| matches!(action, Action::DeleteMachines { .. }))
    };
    assert!(deletes(&snapshot), "it is drained");
    snapshot.agent_pools[2].machines.clear();
    assert!(!deletes(&snapshot), "Azure does not list it any more");
}

#[test]
fn with_a_probe_of_nothing_as_many_go_at_once_as_may() {
    let mut world = surplus(4);
    world.spec.failback.probe = spotpool_crds::Duration::from_secs(0);
    let (plan, _) = until_asked(&mut world, 12);
    assert_eq!(asked_to_drain(&plan).len(), 3);
}

#[test]
fn nothing_leaves_before_the_window_opens_and_the_plan_says_when_it_does() {
    // It is midnight; the window opens at six.
    let mut world = surplus(2);
    world.spec.failback.window = Some(window("0 6 * * *", 2));
    world.reconcile();
    world.pass(3600);
    let plan = world.reconcile();
    assert!(plan.actions.is_empty());
    let said = says(&plan, Reason::WindowClosed);
    let wanted =
        "2 more than needed; the first is drained from 2026-01-01T06:00:00Z, when failback.window opens";
    assert!(said.ends_with(wanted), "{said}");
    assert_eq!(plan.wake, Some("2026-01-01T06:00:00Z".parse().unwrap()));
    world.pass(5 * 3600 - 1);
    assert!(world.reconcile().actions.is_empty());
    world.pass(1);
    assert_eq!(asked_to_drain(&world.reconcile()).len(), 1);
    // A drain that has begun goes on when it closes; the next one waits.
    world.pass(2 * 3600);
    assert!(matches!(world.reconcile().actions[..], [Action::DeleteMachines { .. }]));
    world.pass(60);
    world.reconcile();
    world.pass(300);
    let plan = world.reconcile();
    assert!(plan.actions.is_empty());
    assert!(says(&plan, Reason::WindowClosed).contains("2026-01-02T06:00:00Z"));
    // Spot nodes that are too many wait as well.
    let mut world = surplus(0);
    world.spec.failback.window = Some(window("0 6 * * *", 2));
    world.spec.replicas = 2;
    world.reconcile();
    world.pass(3600);
    assert!(world.reconcile().actions.is_empty());
    world.pass(5 * 3600);
    assert_eq!(asked_to_drain(&world.reconcile()).len(), 2);
}

#[test]
fn an_emergency_waits_for_no_window() {
    let mut world = surplus(0);
    world.spec.failback.window = Some(window("0 6 * * *", 2));
    world.reconcile();
    world.notice("spota", 2, 30);
    let bought =
        |action: &Action| matches!(action, Action::ScaleUp { agent_pool, new: 2, .. } if agent_pool == "reg");
    assert!(world.reconcile().actions.iter().any(bought));
}

#[test]
fn a_window_that_makes_no_sense_keeps_every_node_and_says_what_to_change() {
    let mut world = surplus(0);
    world.spec.failback.window = Some(window("0 25 * * *", 2));
    assert!(
        says(&world.reconcile(), Reason::WindowInvalid).contains("is no cron schedule"),
        "before it matters"
    );
    let mut world = surplus(2);
    world.spec.failback.window = Some(window("0 25 * * *", 2));
    for _ in 0..100 {
        let plan = world.reconcile();
        assert!(plan.actions.is_empty(), "{:?}", plan.actions);
        world.pass(600);
    }
}

#[test]
fn a_pause_keeps_every_node_until_its_time_and_nonsense_is_a_pause() {
    for text in ["true", "2026-01-01T05:00:00Z", "later"] {
        let mut world = surplus(2);
        world.wishes.failback_paused = Some(text.into());
        world.reconcile();
        for _ in 0..29 {
            world.pass(600);
            let plan = world.reconcile();
            assert!(plan.actions.is_empty(), "{text}: {:?}", plan.actions);
            assert!(says(&plan, Reason::FailbackPaused).contains("failback is paused"), "{text}");
        }
        world.pass(600);
        let plan = world.reconcile();
        assert_eq!(asked_to_drain(&plan).len(), usize::from(text.starts_with("2026")), "{text}");
        world.wishes.failback_paused = None;
        until_asked(&mut world, 6);
    }
}

#[test]
fn a_wish_waits_for_no_clock_and_is_answered_once() {
    let mut world = surplus(4);
    world.spec.failback.window = Some(window("0 6 * * *", 2));
    world.wishes.requested_failback = Some("monday".into());
    assert_eq!(asked_to_drain(&world.reconcile()).len(), 3, "as many as may go at a time, at once");
    for _ in 0..10 {
        world.pass(60);
        world.reconcile();
    }
    assert_eq!(world.ready(OnDemand), 0);
    let answered = world.memory.answered.clone().unwrap();
    assert_eq!(
        (answered.value.as_str(), answered.answer.as_str()),
        ("monday", "no node is left that is not needed")
    );
    // The same text is no new wish, whatever comes.
    let mut world = World { memory: world.memory, ..surplus(2) };
    world.spec.failback.window = Some(window("0 6 * * *", 2));
    world.wishes.requested_failback = Some("monday".into());
    for _ in 0..60 {
        assert!(world.reconcile().actions.is_empty());
        world.pass(60);
    }
    world.wishes.requested_failback = Some("tuesday".into());
    assert_eq!(asked_to_drain(&world.reconcile()).len(), 2);
}

#[test]
fn a_wish_that_cannot_be_granted_gets_its_reason() {
    let answer = |world: &mut World| {
        world.wishes.requested_failback = Some("now".into());
        let plan = world.reconcile();
        assert!(asked_to_drain(&plan).is_empty(), "{:?}", plan.actions);
        assert!(says(&plan, Reason::FailbackRequested).contains("failback was asked for: "));
        world.memory.answered.clone().unwrap().answer
    };
    let mut young = surplus(1);
    young.pool("reg").machines[0].node_at = young.now - jiff::SignedDuration::from_mins(5);
    assert_eq!(answer(&mut young), "reg-000000 is kept until 2026-01-01T00:15:00Z, its minimum lifetime");
    let mut paused = surplus(1);
    paused.wishes.failback_paused = Some("true".into());
    assert_eq!(answer(&mut paused), "1 more than needed, kept because failback is paused by annotation");
    assert_eq!(answer(&mut surplus(0)), "no node is left that is not needed");
    let mut hit = surplus(1);
    hit.spec.replicas = 3;
    hit.notice("spota", 1, 3600);
    assert_eq!(answer(&mut hit), "1 more than needed, kept while Azure takes nodes");
    let mut blocked = surplus(1);
    blocked.machine("reg-000000").blocked = true;
    blocked.wishes.requested_failback = Some("now".into());
    assert_eq!(asked_to_drain(&blocked.reconcile()).len(), 1);
    blocked.pass(901);
    blocked.reconcile();
    assert_eq!(blocked.memory.answered.clone().unwrap().answer, "reg-000000 could not be drained in time");
    blocked.pass(60);
    assert!(blocked.reconcile().actions.is_empty(), "answered: not tried again");
}

#[test]
fn a_node_that_a_person_wants_gone_is_replaced_in_the_same_plan_and_not_taken_back() {
    let mut world = surplus(0);
    world.spec.failback.max_concurrent = 1;
    world.reconcile();
    world.machine("spota-000000").wished = true;
    world.machine("spotb-000000").wished = true;
    let plan = world.reconcile();
    assert_eq!(asked_to_drain(&plan), ["spota-000000"]);
    assert!(
        plan.actions.iter().any(|action| matches!(action, Action::ScaleUp { new: 1, .. })),
        "{:?}",
        plan.actions
    );
    assert!(
        plan.steps
            .iter()
            .any(|step| step.message == "spotb-000000 waits for its drain: failback.maxConcurrent is 1")
    );
    for _ in 0..20 {
        world.pass(60);
        let plan = world.reconcile();
        assert!(
            !plan.actions.iter().any(|action| matches!(action, Action::WithdrawDrain { .. })),
            "{:?}",
            plan.actions
        );
    }
    let gone =
        |name: &str| world.pools.iter().flat_map(|pool| &pool.machines).all(|machine| machine.name != name);
    assert!(gone("spota-000000") && gone("spotb-000000"));
    assert_eq!(world.ready(Spot), 4);
}

#[test]
fn a_drain_that_another_spot_pool_left_half_done_is_given_back_and_nothing_is_deleted() {
    // Found at adoption with a drain request of a SpotPool that is gone; its agent says that it is drained.
    let mut world = surplus(0).with("reg", 2, 2);
    world.spec.replicas = 6;
    let long_ago = world.now - jiff::SignedDuration::from_hours(1);
    for name in ["reg-000000", "spota-000000"] {
        let machine = world.machine(name);
        machine.drain = Some((long_ago, long_ago + jiff::SignedDuration::from_hours(9)));
        machine.foreign = true;
    }
    let plan = world.plan();
    assert!(says(&plan, Reason::DrainNotOurs).contains("the request is withdrawn"));
    assert!(
        !plan.actions.iter().any(|action| matches!(action, Action::DeleteMachines { .. })),
        "{:?}",
        plan.actions
    );
    for name in ["reg-000000", "spota-000000"] {
        let withdrawn = Action::WithdrawDrain { node: name.into(), reason: Reason::DrainNotOurs };
        assert!(plan.actions.contains(&withdrawn), "{:?}", plan.actions);
    }
}

#[test]
fn what_observe_withholds_has_not_happened() {
    for blocked in [false, true] {
        let mut world = surplus(2);
        world.spec.mode = Mode::Observe;
        world.reconcile();
        world.pass(601);
        if blocked {
            // Asked for before the SpotPool was set to observe, and never ended.
            let now = world.now;
            let machine = world.machine("reg-000001");
            machine.blocked = true;
            machine.drain = Some((now, now));
        }
        let plan = world.reconcile();
        assert!(plan.actions.is_empty());
        let withheld = |action: &Action| match action {
            Action::RequestDrain { .. } => !blocked,
            Action::WithdrawDrain { .. } => blocked,
            _ => false,
        };
        assert!(plan.withheld.iter().any(withheld), "{:?}", plan.withheld);
        // Nothing that changes while nothing happens: else status would be written again and again.
        world.pass(1);
        let again = world.reconcile();
        assert_eq!((again.memory, again.steps), (plan.memory, plan.steps));
    }
}

#[test]
fn a_deleted_spot_pool_returns_what_it_bought_and_nothing_else() {
    for adoption in [Adoption::Keep, Adoption::Reclaim] {
        // Two found at adoption, three bought; nothing waits for a clock.
        let mut world = surplus(5);
        world.pool("reg").kept = 2;
        world.spec.adoption = adoption;
        world.spec.failback.max_concurrent = 2;
        world.spec.failback.window = Some(window("0 6 * * *", 2));
        world.wishes.failback_paused = Some("true".into());
        let now = world.now;
        world.machine("spota-000001").drain = Some((now, now + jiff::SignedDuration::from_hours(1)));
        world.leaving = true;
        let plan = world.reconcile();
        assert_eq!(
            asked_to_drain(&plan),
            ["reg-000002", "reg-000003"],
            "those found at adoption are the oldest"
        );
        let given_back = Action::WithdrawDrain { node: "spota-000001".into(), reason: Reason::Leaving };
        assert!(plan.actions.contains(&given_back), "{:?}", plan.actions);
        assert_eq!(plan.leaving.map(|leaving| (leaving.fallback_nodes, leaving.done)), Some((3, false)));
        assert!(says(&plan, Reason::ReturningFallback).contains("3 fallback nodes to return"));
        let mut done = false;
        for _ in 0..10 {
            world.pass(60);
            let plan = world.reconcile();
            assert!(!plan.actions.iter().any(|action| matches!(action, Action::ScaleUp { .. })));
            done = plan.leaving.unwrap().done;
        }
        assert!(done);
        assert_eq!((world.ready(Spot), world.ready(OnDemand)), (4, 2));
    }
}

#[test]
fn a_deleted_spot_pool_tries_a_blocked_drain_again_after_a_pause_and_nothing_while_suspended() {
    let mut world = surplus(1);
    world.machine("reg-000000").blocked = true;
    world.leaving = true;
    world.spec.suspend = true;
    let plan = world.reconcile();
    assert!(plan.actions.is_empty() && !plan.leaving.unwrap().done);
    assert!(
        says(&plan, Reason::ReturningFallback).contains("set suspend to false, or deletionPolicy to Retain")
    );
    world.spec.suspend = false;
    assert_eq!(asked_to_drain(&world.reconcile()), ["reg-000000"]);
    world.pass(901);
    let plan = world.reconcile();
    assert!(says(&plan, Reason::DrainTimedOut).contains("could not be drained in time"));
    assert_eq!(asked_to_drain(&plan).len(), 0);
    world.pass(599);
    let plan = world.reconcile();
    assert!(plan.actions.is_empty() && plan.wake.is_some(), "{:?}", plan.steps);
    world.machine("reg-000000").blocked = false;
    world.pass(1);
    assert_eq!(asked_to_drain(&world.reconcile()), ["reg-000000"]);
}

#[derive(Clone, Debug)]
enum Happens {
    Notice { pool: usize, many: usize, seconds: i64 },
    Resize(i32),
    Pass(i64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => (0usize..2, 1usize..4, 0i64..40).prop_map(|(pool, many, seconds)| Happens::Notice { pool, many, seconds }),
        1 => (0i32..9).prop_map(Happens::Resize),
        4 => (1i64..900).prop_map(Happens::Pass),
    ]
}

fn carry_on(world: &mut World, event: &Happens) {
    match event {
        Happens::Notice { pool, many, seconds } => {
            let name = world.pools[*pool].name.clone();
            world.notice(&name, *many, *seconds);
        }
        Happens::Resize(replicas) => world.spec.replicas = *replicas,
        Happens::Pass(seconds) => world.pass(*seconds),
    }
}

proptest! {
    /// Whatever happens: no node is asked to leave outside the window or in a pause, and of nodes that nobody has asked
    /// for yet the first on-demand node goes alone.
    #[test]
    fn no_node_is_asked_to_leave_when_none_may(
        events in proptest::collection::vec(happens(), 1..60), opens in 0u32..24, hours in 1u64..20, paused: bool,
    ) {
        let mut world = surplus(2);
        world.spec.failback.window = Some(window(&format!("0 {opens} * * *"), hours));
        if paused {
            world.wishes.failback_paused = Some("2026-01-01T06:00:00Z".into());
        }
        for event in events {
            carry_on(&mut world, &event);
            let open = spotpool_core::opening("failback.window", world.spec.failback.window.as_ref().unwrap(), world.now);
            let probing = world.memory.probe.is_some();
            let plan = world.reconcile();
            let on_demand = asked_to_drain(&plan).iter().filter(|node| node.starts_with("reg")).count();
            prop_assert!(asked_to_drain(&plan).is_empty() || open == spotpool_core::Opening::Open, "{:?}", plan.steps);
            prop_assert!(asked_to_drain(&plan).is_empty() || !paused || world.now >= "2026-01-01T06:00:00Z".parse().unwrap());
            prop_assert!(probing || on_demand <= 1, "{:?}", plan.steps);
        }
    }

    /// Whenever a SpotPool is deleted: it buys nothing more, returns all that it bought, keeps what it found and its
    /// baseline, and goes.
    #[test]
    fn a_deleted_spot_pool_goes_with_its_fallback_and_leaves_the_rest(
        events in proptest::collection::vec(happens(), 1..30), kept in 0u32..3, baseline in 0i32..3, reclaim: bool,
    ) {
        let mut world = surplus(kept);
        world.pool("reg").kept = kept;
        world.spec.on_demand.baseline = baseline;
        if reclaim {
            world.spec.adoption = Adoption::Reclaim;
        }
        for event in &events {
            carry_on(&mut world, event);
            world.reconcile();
            // As the operator remembers it: never more than still exist.
            let exist = world.pool("reg").machines.len() as u32;
            let pool = world.pool("reg");
            pool.kept = pool.kept.min(exist);
        }
        let found = world.pool("reg").kept;
        let had = world.pool("reg").machines.len() as u32;
        world.leaving = true;
        let mut done = false;
        for _ in 0..120 {
            let plan = world.reconcile();
            let harmless = |action: &Action| match action {
                Action::ScaleUp { .. } | Action::CorrectCount { .. } => false,
                Action::DeleteMachines { agent_pool, .. } => agent_pool == "reg",
                _ => true,
            };
            prop_assert!(plan.actions.iter().all(harmless), "{:?}", plan.actions);
            done = plan.leaving.unwrap().done;
            if done {
                break;
            }
            world.pass(60);
        }
        prop_assert!(done, "{:?}", world.plan().steps);
        let stays = found.max(baseline as u32);
        prop_assert_eq!(world.pool("reg").machines.len() as u32, had.min(stays));
    }
}

/// Found by the model of the protocol: its agent opened the node again, and it went down with the pods that had come.
#[test]
fn a_node_whose_machine_azure_is_deleting_is_not_taken_back() {
    let mut world = surplus(1);
    let (now, hour) = (world.now, jiff::SignedDuration::from_hours(1));
    world.memory.established = 4;
    let reg = world.pool("reg");
    reg.machines[0].drain = Some((now - hour, now + hour));
    world.pool("spota").machines[0].noticed_at = Some(now);
    let taken_back = |plan: &Plan| plan.actions.iter().any(|it| matches!(it, Action::WithdrawDrain { .. }));
    assert!(taken_back(&world.plan()), "quicker than any new machine: {:?}", world.plan().actions);

    let since = now.into();
    let kind = OperationKind::DeleteMachines;
    let deletion = Operation { kind, count: 0, machines: 1, coming: 0, since, arrived: 0, accepted: true };
    world.pool("reg").operation = Some((deletion, now + hour));
    assert!(!taken_back(&world.plan()), "{:?}", world.plan().actions);
}
