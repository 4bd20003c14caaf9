//! The life of machines, events and operations, on a clock of the test's own.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{
    EventRequest, GoneReason, Identity, PoolSpec, Settings, SettingsPatch, State, Targets, VmPhase,
};
use spotpool_azure_sim::model::{Cloud, Conditions, later};

use crate::{SIZE, VERSION};

/// A cloud and its time.
struct World {
    cloud: Cloud,
    now: Timestamp,
}

impl World {
    fn with(count: u32, external_nodes: bool) -> Self {
        let now = "2026-08-01T05:40:32Z".parse().unwrap();
        let mut cloud = Cloud::new(Identity::default(), Settings::default(), external_nodes, 1);
        cloud.add_pool(&PoolSpec::spot("spota", SIZE, count), now).unwrap();
        cloud.add_pool(&PoolSpec::regular("rega", SIZE, 1), now).unwrap();
        cloud.advance(now);
        Self { cloud, now }
    }

    fn new(count: u32) -> Self {
        Self::with(count, false)
    }

    fn pass(&mut self, millis: u64) -> &mut Self {
        self.now = later(self.now, Duration::from_millis(millis));
        self.cloud.advance(self.now);
        self
    }

    fn state(&self) -> State {
        self.cloud.state(self.now)
    }

    fn node(&self, instance: usize) -> String {
        self.state().vms.iter().filter(|vm| vm.pool == "spota").nth(instance).unwrap().node.clone()
    }

    fn phase(&self, instance: usize) -> VmPhase {
        self.state().vm(&self.node(instance)).unwrap().phase
    }

    /// What the machine with the highest id reads.
    fn document(&self) -> Value {
        let last = self.state().vms_of("spota").last().unwrap().node.clone();
        self.cloud.document(&last, "2020-07-01").unwrap()
    }

    fn schedule(&mut self, event_type: &str, instances: &[usize], notice: u64) -> Vec<String> {
        let nodes: Vec<String> = instances.iter().map(|&instance| self.node(instance)).collect();
        let request = EventRequest::new(event_type, Targets::named(&nodes), Duration::from_secs(notice));
        let events = self.cloud.schedule(&request, self.now).unwrap();
        events.into_iter().map(|event| event.event_id).collect()
    }

    fn put(&mut self, count: u64) -> String {
        let body = json!({"properties": {"count": count}});
        let none = Conditions::default();
        self.cloud.put_pool("spota", VERSION, &body, &none, self.now).unwrap().operation
    }

    fn status(&self, operation: &str) -> String {
        format!("{:?}", self.cloud.operation(operation).unwrap().0.status)
    }
}

#[test]
fn an_eviction_from_notice_to_the_end() {
    let mut world = World::new(3);
    world.schedule("Preempt", &[0, 1], 30);
    let document = world.document();
    assert_eq!(document["DocumentIncarnation"], 1, "two events, one change");
    assert_eq!(document["Events"].as_array().unwrap().len(), 2);
    assert_eq!(document["Events"][0]["EventStatus"], "Scheduled");
    assert_eq!(document["Events"][0]["NotBefore"], "Sat, 01 Aug 2026 05:41:02 GMT");
    assert_eq!(document["Events"][0]["DurationInSeconds"], -1);

    assert_eq!(world.pass(29_999).document(), document);
    let started = world.pass(1).document();
    assert_eq!(started["DocumentIncarnation"], 2);
    assert_eq!(started["Events"][0]["EventStatus"], "Started");
    assert_eq!(started["Events"][0]["NotBefore"], "");
    assert_eq!((world.phase(0), world.state().pool("spota").unwrap().count), (VmPhase::Running, 3));

    world.pass(500);
    assert_eq!((world.phase(0), world.phase(2)), (VmPhase::Gone, VmPhase::Running));
    assert_eq!(world.state().vm(&world.node(0)).unwrap().gone_reason, Some(GoneReason::Evicted));
    assert_eq!(world.state().pool("spota").unwrap().count, 1);
    assert_eq!(world.document()["Events"].as_array().unwrap().len(), 2, "still told");
    let ended = world.pass(1500).document();
    assert_eq!(ended, json!({"DocumentIncarnation": 3, "Events": []}));
    assert!(world.cloud.due(world.now).is_none());
}

#[test]
fn a_cancelled_event_never_starts() {
    let mut world = World::new(1);
    let events = world.schedule("Preempt", &[0], 30);
    world.pass(20_000);
    assert_eq!(world.cloud.cancel(&events[0], world.now).unwrap(), events);
    assert_eq!(world.document(), json!({"DocumentIncarnation": 2, "Events": []}));
    assert_eq!(world.pass(60_000).phase(0), VmPhase::Running);
    assert_eq!(world.state().events[0].status, "Cancelled");
    world.schedule("Preempt", &[0], 0);
    world.pass(0);
    assert!(world.cloud.cancel(&events[0], world.now).is_err(), "too late once started");
}

#[test]
fn other_events_leave_their_machines() {
    let mut world = World::new(1);
    world.schedule("Freeze", &[0], 10);
    let begun = EventRequest {
        status: "Started".into(),
        ..EventRequest::new("Reboot", Targets::of_pool("spota", 1), Duration::ZERO)
    };
    world.cloud.schedule(&begun, world.now).unwrap();
    let odd = EventRequest {
        status: "Advisory".into(),
        not_before_text: Some("2026-08-01T05:45:00Z".into()),
        ..EventRequest::new("SpotRebalanceRecommendation", Targets::of_pool("spota", 1), Duration::ZERO)
    };
    world.cloud.schedule(&odd, world.now).unwrap();
    let events = world.document()["Events"].clone();
    assert_eq!((&events[1]["EventStatus"], &events[1]["NotBefore"]), (&json!("Started"), &json!("")));
    assert_eq!(events[2]["NotBefore"], "2026-08-01T05:45:00Z");
    let left = world.pass(60_000).document()["Events"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1, "an unknown status stays until it is cancelled");
    assert_eq!(world.phase(0), VmPhase::Running);
    let regular = Targets::of_pool("rega", 1);
    let preempt = EventRequest::new("Preempt", regular, Duration::ZERO);
    assert!(world.cloud.schedule(&preempt, world.now).is_err(), "on-demand machines are not evicted");
}

#[test]
fn approval_hastens_a_planned_event_but_no_preempt() {
    let mut world = World::new(2);
    let events = [world.schedule("Redeploy", &[0], 600), world.schedule("Preempt", &[1], 600)].concat();
    assert!(world.cloud.acknowledge(&world.node(0), &events, world.now));
    world.pass(1);
    let statuses: Vec<String> = world.state().events.iter().map(|event| event.status.clone()).collect();
    assert_eq!(statuses, ["Started", "Scheduled"]);
    assert_eq!(world.state().acks.len(), 2);
}

#[test]
fn count_may_ignore_evictions_until_the_next_put() {
    let mut world = World::new(3);
    let stays = SettingsPatch { count_follows_evictions: Some(false), ..SettingsPatch::default() };
    world.cloud.patch_settings(&stays).unwrap();
    world.schedule("Preempt", &[0], 0);
    world.pass(0).pass(3000);
    let pool = world.state().pool("spota").unwrap().clone();
    assert_eq!((pool.count, pool.machines), (3, 2));
    let operation = world.put(3);
    assert_eq!(world.state().pool("spota").unwrap().machines, 3);
    assert_eq!(world.status(&operation), "InProgress");
    world.pass(100_000);
    assert_eq!(world.status(&operation), "Succeeded");
}

#[test]
fn an_operation_waits_for_the_nodes_of_its_machines() {
    let mut world = World::with(0, true);
    let operation = world.put(2);
    assert!(world.cloud.wanted_nodes().iter().all(|node| node.vm.pool == "rega"));
    world.pass(100_000);
    assert_eq!((world.phase(0), world.status(&operation)), (VmPhase::Running, "InProgress".into()));
    let wanted: Vec<String> = world.cloud.wanted_nodes().into_iter().map(|node| node.vm.node).collect();
    assert_eq!(wanted.len(), 3);
    world.cloud.node_registered(&world.node(0), world.now);
    assert_eq!(world.pass(1000).status(&operation), "InProgress");
    // One of them is lost before it ever joined: nobody waits for it.
    let lost = Targets::named(&[world.node(1)]);
    world.cloud.kill(&lost, world.now).unwrap();
    assert_eq!(world.pass(0).status(&operation), "Succeeded");
    assert_eq!(world.cloud.gone_nodes(), [world.node(1)]);
    world.cloud.node_removed(&world.node(1), world.now);
    assert!(world.cloud.gone_nodes().is_empty());
}

#[test]
fn a_deleted_machine_takes_its_event_with_it() {
    let mut world = World::new(2);
    world.schedule("Preempt", &[0], 600);
    let body = json!({"machineNames": [world.node(0)]});
    world.cloud.delete_machines("spota", &body, &Conditions::default(), world.now).unwrap();
    assert_eq!(world.phase(0), VmPhase::Deleting);
    world.pass(30_000);
    assert_eq!(world.phase(0), VmPhase::Gone);
    assert_eq!(world.document(), json!({"DocumentIncarnation": 2, "Events": []}));
    let pool = world.state().pool("spota").unwrap().clone();
    assert_eq!((pool.count, pool.machines, pool.provisioning_state.as_str()), (1, 1, "Succeeded"));
}

#[test]
fn zones_stay_even_on_the_way_down() {
    let now = "2026-08-01T00:00:00Z".parse().unwrap();
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), false, 1);
    cloud.add_pool(&PoolSpec::spot("spota", SIZE, 5).zones(&["1", "2", "3"]), now).unwrap();
    cloud.advance(now);
    let body = json!({"properties": {"count": 3}});
    cloud.put_pool("spota", VERSION, &body, &Conditions::default(), now).unwrap();
    let end = later(now, Duration::from_mins(1));
    cloud.advance(end);
    let state = cloud.state(end);
    let left: Vec<_> = state.vms_of("spota").map(|vm| (vm.instance_id, vm.zone.clone().unwrap())).collect();
    assert_eq!(left, [(0, "1".into()), (1, "2".into()), (2, "3".into())]);
}

/// An agent tells its node's next life by the bootID: it must change after a Reboot if told to, and never by itself.
#[test]
fn a_machine_that_was_rebooted_has_another_boot_if_told_to() {
    for (switched, reboots) in [(true, 1), (false, 0)] {
        let mut world = World::new(2);
        world.cloud.set_pool_switches("spota", &json!({"rebootsMachines": switched})).unwrap();
        for event_type in ["Reboot", "Freeze"] {
            let request = EventRequest {
                status: "Started".into(),
                ..EventRequest::new(event_type, Targets::named(&[world.node(0)]), Duration::ZERO)
            };
            world.cloud.schedule(&request, world.now).unwrap();
        }
        world.pass(1999);
        assert_eq!(world.state().vm(&world.node(0)).unwrap().reboots, 0);
        world.pass(1);
        let state = world.state();
        assert_eq!(state.vm(&world.node(0)).unwrap().reboots, reboots);
        assert_eq!(state.vm(&world.node(1)).unwrap().reboots, 0);
        assert_eq!(world.phase(0), VmPhase::Running);
    }
}
