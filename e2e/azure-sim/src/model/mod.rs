//! The state machine: agent pools, machines, operations, scheduled events.
//!
//! Nothing here does I/O or reads a clock. Every method that depends on time takes `now`, and
//! [`Cloud::advance`] must have been called with the same `now` before.
//!
//! One room for each thing: `pools` and their `machines` (`instances` to Azure Compute), `operations` on them and
//! `upgrades`, what there is room for (`capacity`), what befalls machines (`evictions`), what they cost (`billing`),
//! how much a caller may ask (`throttles`), what a machine is told (`metadata`), which Nodes there are
//! (`node_objects`), and the scenario that plays by itself (`timeline`).

mod billing;
mod capacity;
mod evictions;
mod instances;
mod machines;
mod metadata;
mod node_objects;
mod operations;
mod pools;
mod throttles;
mod timeline;
mod upgrades;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::api::{
    Ack, ArmWrite, Capacity, EventState, Failure, GoneReason, Identity, KilledPod, PoolState, Priority,
    Quota, Settings, State, Switches, VmPhase, VmState,
};
use crate::body::{self, Properties};
use crate::events::Document;
use crate::faults::Faults;
use crate::market::Market;
use crate::names::{Fleet, Ids};
use crate::tokens::Tokens;

use billing::Meters;
pub(crate) use billing::Path;
pub use billing::{Breakdown, Charge, Invoice, MachineCharge, Period};
pub use capacity::{ALL_CORES, LOW_PRIORITY, cores, family};
pub use instances::ComputeName;
pub use metadata::ImdsGate;
pub use node_objects::WantedNode;
use operations::{ClusterOperation, Operation};
use throttles::Throttles;
pub use throttles::{Admission, Limit, Subscription};
use timeline::Timeline;

/// `at` plus a duration, at most the end of time.
pub fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

#[derive(Debug, Clone)]
struct Vm {
    state: VmState,
    gone_due: Option<(Timestamp, GoneReason)>,
    imds_recent: VecDeque<Timestamp>,
}

#[derive(Debug, Clone)]
struct Pool {
    fleet: Fleet,
    properties: Properties,
    next_instance: u64,
    vms: BTreeMap<u64, Vm>,
    gone: Vec<VmState>,
    events: Document,
    /// Index of the operation that runs.
    operation: Option<usize>,
    /// Index of the last operation that ended.
    last_operation: Option<usize>,
    /// When the cluster autoscaler brings it back to `minCount`.
    restore_at: Option<Timestamp>,
}

impl Pool {
    /// Machines that exist and are not on their way out.
    fn live(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values().filter(|vm| vm.state.phase != VmPhase::Deleting)
    }

    fn priority(&self) -> Priority {
        body::priority(&self.properties)
    }

    fn set(&mut self, key: &str, value: Value) {
        self.properties.insert(key.into(), value);
    }

    fn provisioning_state(&self) -> &str {
        body::text(&self.properties, "provisioningState")
    }
}

/// `If-Match` and `If-None-Match` of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `If-Match`.
    pub if_match: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
}

/// A write that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Whether the pool is new.
    pub created: bool,
    /// Id of the operation.
    pub operation: String,
    /// What its status URL must carry as a query.
    pub signature: String,
    /// Node names of the machines ordered.
    pub ordered: Vec<String>,
}

/// Why the control API does not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// One managed cluster's worth of Azure.
#[derive(Debug, Clone)]
pub struct Cloud {
    /// Which cluster this is.
    pub identity: Identity,
    /// Times and switches.
    pub settings: Settings,
    /// Faults in force.
    pub faults: Faults,
    /// The tenant, and what is allowed in it.
    pub tokens: Tokens,
    /// Prices, eviction rates, placement scores.
    pub market: Market,
    /// Whether someone else makes Nodes and reports them; else a machine registers as it boots.
    external_nodes: bool,
    ids: Ids,
    pools: BTreeMap<String, Pool>,
    /// Instance ids that removed pools have used up, and their machines.
    retired: BTreeMap<String, (u64, Vec<VmState>)>,
    past_events: Vec<EventState>,
    operations: Vec<Operation>,
    /// Operations on single machines that nobody's pool waits for: index, pool, machine.
    detached: Vec<(usize, String, u64)>,
    cluster_operation: Option<ClusterOperation>,
    /// What each pool has changed of the switches, and what comes of it.
    switches: BTreeMap<String, (Value, Switches)>,
    capacity: BTreeMap<(String, Priority, Option<String>), Capacity>,
    quotas: BTreeMap<String, Quota>,
    failures: Vec<Failure>,
    throttles: Throttles,
    meters: Meters,
    timeline: Timeline,
    arm_requests: BTreeMap<String, u64>,
    arm_writes: Vec<ArmWrite>,
    acks: Vec<Ack>,
    killed_pods: Vec<KilledPod>,
    killed_uids: HashSet<String>,
    /// Changes whenever the set of Nodes that should exist may have.
    nodes_version: u64,
}

impl Cloud {
    /// An empty cluster. `external_nodes`: someone calls [`Cloud::node_registered`].
    pub fn new(identity: Identity, settings: Settings, external_nodes: bool, seed: u64) -> Self {
        Self {
            identity,
            settings,
            faults: Faults::default(),
            tokens: Tokens::default(),
            market: Market::default(),
            external_nodes,
            ids: Ids::seeded(seed),
            pools: BTreeMap::new(),
            retired: BTreeMap::new(),
            past_events: Vec::new(),
            operations: Vec::new(),
            detached: Vec::new(),
            cluster_operation: None,
            switches: BTreeMap::new(),
            capacity: BTreeMap::new(),
            quotas: BTreeMap::new(),
            failures: Vec::new(),
            throttles: Throttles::default(),
            meters: Meters::default(),
            timeline: Timeline::default(),
            arm_requests: BTreeMap::new(),
            arm_writes: Vec::new(),
            acks: Vec::new(),
            killed_pods: Vec::new(),
            killed_uids: HashSet::new(),
            nodes_version: 0,
        }
    }

    /// Does everything that is due by `now`, each step of a scenario at its own time.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some((at, step)) = self.timeline.next(now) {
            self.advance_without_timeline(at);
            self.play(step, at);
        }
        self.advance_without_timeline(now);
    }

    fn advance_without_timeline(&mut self, now: Timestamp) {
        let names: Vec<String> = self.pools.keys().cloned().collect();
        for name in names {
            self.boot(&name, now);
            self.run_events(&name, now);
            self.delete_due(&name, now);
            self.drain_due(&name, now);
            self.step_upgrade(&name, now);
            self.finish_operation(&name, now);
            self.restore_min_count(&name, now);
        }
        self.finish_detached(now);
        self.finish_cluster_operation(now);
    }

    /// When something is due next; absent when all that is left waits for Nodes.
    pub fn due(&self, now: Timestamp) -> Option<Timestamp> {
        let mut times: Vec<Timestamp> = self.timeline.due().into_iter().collect();
        times.extend(self.cluster_operation.as_ref().map(|operation| operation.ends_at));
        for (name, pool) in &self.pools {
            for vm in pool.vms.values() {
                if matches!(vm.state.phase, VmPhase::Creating | VmPhase::Reimaging) {
                    times.push(vm.state.boots_at);
                }
                times.extend(vm.gone_due.as_ref().map(|(at, _)| *at));
                times.extend(self.drain_ends(name, vm));
            }
            times.extend(pool.events.due(self.settings.kill_after, self.settings.started_for));
            if let Some(operation) = pool.operation.and_then(|index| self.operations.get(index)) {
                times.extend(operation.fails.as_ref().map(|(at, _)| *at));
                times.push(operation.earliest);
            }
            times.extend(pool.restore_at);
        }
        times.into_iter().filter(|at| *at > now).min()
    }

    /// The switches as they hold for a pool.
    pub fn switches(&self, pool: &str) -> &Switches {
        self.switches.get(pool).map_or(&self.settings.switches, |(_, switches)| switches)
    }

    /// Counts a request to ARM.
    pub fn count_request(&mut self, kind: &str) {
        *self.arm_requests.entry(kind.to_owned()).or_default() += 1;
    }

    /// Records a write to ARM.
    pub fn record_write(&mut self, write: ArmWrite) {
        self.arm_writes.push(write);
    }

    /// Everything there is to see.
    pub fn state(&self, now: Timestamp) -> State {
        let pools = self.pools.iter().map(|(name, pool)| PoolState {
            name: name.clone(),
            vmss: pool.fleet.name.clone(),
            vm_size: body::text(&pool.properties, "vmSize").to_owned(),
            priority: pool.priority(),
            count: body::count(&pool.properties),
            machines: pool.live().count() as u64,
            zones: body::texts(&pool.properties, "availabilityZones"),
            provisioning_state: pool.provisioning_state().to_owned(),
            e_tag: body::text(&pool.properties, "eTag").to_owned(),
            operation: pool
                .operation
                .and_then(|index| self.operations.get(index))
                .map(|operation| operation.state.id.clone()),
            incarnation: pool.events.incarnation(),
        });
        let mut vms: Vec<VmState> = self
            .pools
            .values()
            .flat_map(|pool| pool.gone.iter().chain(pool.vms.values().map(|vm| &vm.state)))
            .chain(self.retired.values().flat_map(|(_, gone)| gone))
            .cloned()
            .collect();
        vms.sort_by(|a, b| (&a.pool, a.instance_id).cmp(&(&b.pool, b.instance_id)));
        let mut events: Vec<EventState> = self
            .past_events
            .iter()
            .chain(self.pools.values().flat_map(|pool| pool.events.states()))
            .cloned()
            .collect();
        events.sort_by_key(|event| event.scheduled_at);
        State {
            now,
            identity: self.identity.clone(),
            settings: self.settings.clone(),
            pools: pools.collect(),
            vms,
            operations: self.operations.iter().map(|operation| operation.state.clone()).collect(),
            events,
            capacity: self.capacity.values().cloned().collect(),
            faults: self.faults.active().to_vec(),
            arm_requests: self.arm_requests.clone(),
            arm_writes: self.arm_writes.clone(),
            acks: self.acks.clone(),
            killed_pods: self.killed_pods.clone(),
            buckets: self.buckets(now),
            quotas: self.quotas.values().cloned().collect(),
            failures: self.failures.clone(),
            cluster_operation: self.cluster_operation.as_ref().map(|operation| operation.kind.clone()),
            timeline: self.timeline.states(),
        }
    }
}
