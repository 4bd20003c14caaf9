//! What holds whatever happens in whatever order.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use spotpool_azure_sim::api::{
    Capacity, EventRequest, Identity, OperationStatus, PoolSpec, Priority, Settings, State, Targets,
};
use spotpool_azure_sim::model::{Cloud, Conditions, later};

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
