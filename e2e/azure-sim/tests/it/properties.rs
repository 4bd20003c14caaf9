//! What holds whatever happens in whatever order.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{
    Capacity, EventRequest, Identity, OperationStatus, PoolSpec, Priority, Settings, State, Targets, VmPhase,
};
use spotpool_azure_sim::model::{Cloud, ComputeName, Conditions, later};
use spotpool_azure_sim::scenario::Action;

use crate::{SIZE, VERSION};

#[derive(Debug, Clone, Copy)]
enum Step {
    Put(u64),
    Delete(usize),
    Evict(u32, u64),
    Kill(u32),
    Capacity(Option<u32>),
    Pass(u64),
}

fn steps(capacity: bool) -> impl Strategy<Value = Vec<Step>> {
    let limits = if capacity { proptest::option::of(0..8_u32).boxed() } else { Just(None).boxed() };
    let step = prop_oneof![
        (0..8_u64).prop_map(Step::Put),
        (0..8_usize).prop_map(Step::Delete),
        (1..4_u32, 0..60_u64).prop_map(|(count, notice)| Step::Evict(count, notice)),
        (1..3_u32).prop_map(Step::Kill),
        limits.prop_map(Step::Capacity),
        (0..120_u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..40)
}

struct World {
    cloud: Cloud,
    now: Timestamp,
    /// When each instance id was first seen to be ordered.
    ordered: BTreeMap<u64, Timestamp>,
    incarnation: u64,
}

impl World {
    fn new() -> Self {
        let now = "2026-08-01T00:00:00Z".parse().unwrap();
        let mut cloud = Cloud::new(Identity::default(), Settings::default(), false, 7);
        cloud.add_pool(&PoolSpec::spot("spota", SIZE, 3).zones(&["1", "2"]), now).unwrap();
        Self { cloud, now, ordered: BTreeMap::new(), incarnation: 0 }
    }

    fn state(&self) -> State {
        self.cloud.state(self.now)
    }

    /// Refusals are part of life: only what follows is checked.
    fn take(&mut self, step: Step) {
        match step {
            Step::Put(count) => {
                let body = json!({"properties": {"count": count}});
                drop(self.cloud.put_pool("spota", VERSION, &body, &Conditions::default(), self.now));
            }
            Step::Delete(place) => {
                let name = self.state().vms_of("spota").nth(place).map(|vm| vm.node.clone());
                let body = json!({"machineNames": [name]});
                drop(self.cloud.delete_machines("spota", &body, &Conditions::default(), self.now));
            }
            Step::Evict(count, notice) => {
                let targets = Targets::of_pool("spota", count);
                let request = EventRequest::new("Preempt", targets, Duration::from_secs(notice));
                drop(self.cloud.schedule(&request, self.now));
            }
            Step::Kill(count) => drop(self.cloud.kill(&Targets::of_pool("spota", count), self.now)),
            Step::Capacity(limit) => {
                self.cloud.set_capacity(Capacity::of(SIZE, Priority::Spot, limit));
            }
            Step::Pass(seconds) => self.now = later(self.now, Duration::from_secs(seconds)),
        }
        self.cloud.advance(self.now);
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let state = self.state();
        for vm in &state.vms {
            let first = *self.ordered.entry(vm.instance_id).or_insert(vm.created_at);
            prop_assert_eq!(first, vm.created_at, "instance id {} was used again", vm.instance_id);
        }
        let running = state.operations.iter().filter(|one| one.status == OperationStatus::InProgress).count();
        prop_assert!(running <= 1);
        let pool = state.pool("spota").unwrap();
        prop_assert!(pool.incarnation >= self.incarnation);
        self.incarnation = pool.incarnation;
        prop_assert!(pool.count >= pool.machines);
        Ok(())
    }

    fn settle(&mut self) {
        for _ in 0..5 {
            self.take(Step::Pass(600));
        }
    }
}

proptest! {
    #[test]
    fn ids_are_used_once_and_count_is_what_exists(steps in steps(false)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check()?;
            let pool = world.state().pool("spota").unwrap().clone();
            prop_assert_eq!(pool.count, pool.machines);
        }
        world.settle();
        world.check()?;
        prop_assert!(world.cloud.due(world.now).is_none());
        let state = world.state().pool("spota").unwrap().provisioning_state.clone();
        prop_assert_eq!(state.as_str(), "Succeeded");
    }

    #[test]
    fn a_put_heals_what_failed_for_want_of_capacity(steps in steps(true), wanted in 0..8_u64) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check()?;
        }
        world.settle();
        world.take(Step::Capacity(None));
        world.take(Step::Put(wanted));
        world.settle();
        world.check()?;
        let pool = world.state().pool("spota").unwrap().clone();
        prop_assert_eq!((pool.count, pool.machines), (wanted, wanted));
        prop_assert_eq!(pool.provisioning_state.as_str(), "Succeeded");
    }
}

/// Anything that a scenario may ask for, at any time.
fn anything() -> impl Strategy<Value = Value> {
    let pool = prop::sample::select(vec!["spota", "spotd", "auto", "vms", "rega", "absent"]);
    let error = prop::sample::select(vec![
        "SkuNotAvailable",
        "QuotaExceeded",
        "OriginalEtagNotExpect",
        "ErrCode_InsufficientVCPUQuota",
        "EtagMismatch",
    ]);
    let limit = || prop::option::of(0..6_u32);
    prop_oneof![
        4 => (pool.clone(), 0..6_u64).prop_map(|(pool, count)| json!({"scale": {"pool": pool, "count": count}})),
        4 => (pool.clone(), 0..3_u32, 0..60_u64).prop_map(|(pool, count, notice)| {
            json!({"evict": {"pool": pool, "count": count, "notice": format!("{notice}s")}})
        }),
        1 => (pool.clone(), 1..3_u32).prop_map(|(pool, count)| json!({"kill": {"pool": pool, "count": count}})),
        2 => pool.clone().prop_map(|pool| json!({"upgrade": {"pool": pool}})),
        1 => pool.clone().prop_map(|pool| json!({"upgrade": {"pool": pool, "kubernetes": "1.35.0"}})),
        1 => pool.clone().prop_map(|pool| json!({"stop": pool})),
        2 => pool.clone().prop_map(|pool| json!({"start": pool})),
        1 => (pool.clone(), any::<bool>()).prop_map(|(pool, preempt)| {
            json!({"operation": {"pool": pool, "for": "40s", "preempt": preempt}})
        }),
        1 => Just(json!({"operation": {"for": "20s"}})),
        2 => (limit(), prop::option::of(prop::sample::select(vec!["1", "2"]))).prop_map(|(limit, zone)| {
            json!({"capacity": {"vmSize": SIZE, "priority": "Spot", "zone": zone, "limit": limit}})
        }),
        1 => limit().prop_map(|limit| {
            json!({"quota": {"name": "LowPriorityCores", "limit": limit.map(|machines| machines * 8)}})
        }),
        1 => (pool.clone(), error).prop_map(|(pool, error)| json!({"failure": {"pool": pool, "error": error}})),
        1 => (pool.clone(), any::<bool>()).prop_map(|(pool, follows)| {
            json!({"switches": {"pool": pool, "set": {"countFollowsEvictions": follows}}})
        }),
        1 => pool.prop_map(|pool| json!({"removePool": pool})),
    ]
}

/// One of the things that callers of ARM and Compute do, beside PUT.
#[derive(Debug, Clone, Copy)]
enum Call {
    Put(u64),
    Abort,
    Delete,
    DeleteMachine,
    StartMachine,
}

fn calls() -> impl Strategy<Value = (&'static str, Call)> {
    let pool = prop::sample::select(vec!["spota", "spotd", "auto", "vms", "rega"]);
    let call = prop_oneof![
        4 => (0..6_u64).prop_map(Call::Put),
        2 => Just(Call::Abort),
        1 => Just(Call::Delete),
        2 => Just(Call::DeleteMachine),
        2 => Just(Call::StartMachine),
    ];
    (pool, call)
}

fn hostile(script: &[(u64, Value, (&'static str, Call))]) -> Result<State, TestCaseError> {
    let mut now: Timestamp = "2026-08-01T00:00:00Z".parse().unwrap();
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), false, 7);
    let autoscaled = PoolSpec::spot("auto", SIZE, 2)
        .property("enableAutoScaling", json!(true))
        .property("minCount", json!(1))
        .property("maxCount", json!(4));
    for pool in [
        PoolSpec::spot("spota", SIZE, 3).zones(&["1", "2"]),
        PoolSpec::spot("spotd", SIZE, 2).property("scaleSetEvictionPolicy", json!("Deallocate")),
        autoscaled,
        PoolSpec::spot("vms", SIZE, 1).property("type", json!("VirtualMachines")),
        PoolSpec::regular("rega", SIZE, 2),
    ] {
        cloud.add_pool(&pool, now).unwrap();
    }
    let none = Conditions::default();
    let mut born: BTreeMap<String, Timestamp> = BTreeMap::new();
    for (seconds, action, (pool, call)) in script {
        now = later(now, Duration::from_secs(*seconds));
        cloud.advance(now);
        let action: Action = serde_json::from_value(action.clone()).unwrap();
        drop(cloud.act(action, now));
        cloud.advance(now);
        let state = cloud.state(now);
        let machine = state.vms_of(pool).next();
        // Refusals are part of life: only what follows is checked.
        match call {
            Call::Put(count) => {
                let body = json!({"properties": {"count": count, "vmSize": SIZE}});
                drop(cloud.put_pool(pool, VERSION, &body, &none, now));
            }
            Call::Abort => drop(cloud.abort(pool, now)),
            Call::Delete => drop(cloud.delete_pool(pool, &none, now)),
            Call::DeleteMachine => {
                let body = json!({"machineNames": [machine.map(|vm| &vm.node)]});
                drop(cloud.delete_machines(pool, &body, &none, now));
            }
            Call::StartMachine => {
                if let (Some(vm), Some(pool)) = (machine, state.pool(pool)) {
                    let name = ComputeName::Instance { scale_set: pool.vmss.clone(), id: vm.instance_id };
                    drop(cloud.start_machine(&name, now));
                }
            }
        }
        cloud.advance(now);
        let state = cloud.state(now);
        for vm in &state.vms {
            let first = *born.entry(vm.name.clone()).or_insert(vm.created_at);
            prop_assert_eq!(first, vm.created_at, "the name {} was used again", &vm.name);
        }
        for pool in &state.pools {
            let of_pool = |operation: &&spotpool_azure_sim::api::OperationState| {
                operation.pool == pool.name
                    && operation.status == OperationStatus::InProgress
                    && operation.kind != "StartVirtualMachine"
            };
            let running: Vec<_> = state.operations.iter().filter(of_pool).collect();
            let aborting = running.iter().any(|operation| operation.kind == "Canceling");
            prop_assert!(running.len() <= 1 + usize::from(aborting), "{running:?}");
            prop_assert_eq!(pool.operation.is_some(), !running.is_empty(), "{}: {:?}", pool.name, running);
        }
    }
    for _ in 0..2000 {
        let Some(due) = cloud.due(now) else { break };
        now = due;
        cloud.advance(now);
    }
    prop_assert!(cloud.due(now).is_none(), "something is due for ever");
    let state = cloud.state(now);
    let open: Vec<_> =
        state.operations.iter().filter(|operation| operation.status == OperationStatus::InProgress).collect();
    prop_assert!(open.is_empty(), "{open:?}");
    for vm in state.vms.iter().filter(|vm| vm.phase != VmPhase::Gone) {
        prop_assert!(matches!(vm.phase, VmPhase::Running | VmPhase::Deallocated), "{vm:?}");
        prop_assert!(vm.draining_since.is_none(), "{vm:?} is cordoned for ever");
    }
    Ok(state)
}

proptest! {
    /// A hostile hour must be the controller's trial, not the simulator's: whatever happens comes to an end, no
    /// machine is used twice, and the same script gives the same story, so that a failing seed can be replayed.
    #[test]
    fn anything_may_happen_at_any_time_and_happens_the_same_again(
        script in proptest::collection::vec((0..90_u64, anything(), calls()), 1..40)
    ) {
        let state = hostile(&script)?;
        prop_assert_eq!(json!(state), json!(hostile(&script)?));
    }
}
