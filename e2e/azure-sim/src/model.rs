//! The state machine: agent pools, machines, operations, scheduled events.
//!
//! Nothing here does I/O or reads a clock. Every method that depends on time takes `now`, and
//! [`Cloud::advance`] must have been called with the same `now` before.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::api::{
    Ack, ArmWrite, Capacity, CountAfterFailure, EventRequest, EventState, GoneReason, Identity, KilledPod,
    OperationState, OperationStatus, PoolSpec, PoolState, Priority, Settings, SettingsPatch, State, Targets,
    VmPhase, VmState,
};
use crate::body::{self, Properties};
use crate::events::{Document, Draft};
use crate::faults::Faults;
use crate::names::{self, Ids};
use crate::refusal::{self, Refusal};

/// `at` plus a duration, at most the end of time.
pub fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// Requests a second that a metadata service answers to its machine.
const IMDS_RATE: usize = 5;

#[derive(Debug, Clone)]
struct Vm {
    state: VmState,
    gone_due: Option<(Timestamp, GoneReason)>,
    imds_recent: VecDeque<Timestamp>,
}

#[derive(Debug, Clone)]
struct Pool {
    vmss: String,
    properties: Properties,
    next_instance: u64,
    vms: BTreeMap<u64, Vm>,
    gone: Vec<VmState>,
    events: Document,
    /// Index of the operation that runs.
    operation: Option<usize>,
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
}

#[derive(Debug, Clone)]
struct Operation {
    state: OperationState,
    /// Machines whose Nodes it waits for.
    awaits: HashSet<u64>,
    /// Machines whose end it waits for.
    removes: HashSet<u64>,
    /// It does not succeed sooner.
    earliest: Timestamp,
    /// It fails then, for this.
    fails: Option<(Timestamp, Value)>,
    /// The rest of its status URL, which callers must repeat to the letter.
    signature: String,
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

/// What a metadata service makes of a request before it looks at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImdsGate {
    /// There is no such machine, or it does not run: nothing answers.
    Dead,
    /// More than five requests in a second.
    Throttled,
    /// Go ahead, after that long.
    Open(Duration),
}

/// A Node that should exist.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedNode {
    /// The machine.
    pub vm: VmState,
    /// The pool's properties.
    pub properties: Properties,
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
    /// Whether someone else makes Nodes and reports them; else a machine registers as it boots.
    external_nodes: bool,
    ids: Ids,
    pools: BTreeMap<String, Pool>,
    /// Instance ids that removed pools have used up, and their machines.
    retired: BTreeMap<String, (u64, Vec<VmState>)>,
    past_events: Vec<EventState>,
    operations: Vec<Operation>,
    capacity: BTreeMap<(String, Priority), Capacity>,
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
            external_nodes,
            ids: Ids::seeded(seed),
            pools: BTreeMap::new(),
            retired: BTreeMap::new(),
            past_events: Vec::new(),
            operations: Vec::new(),
            capacity: BTreeMap::new(),
            arm_requests: BTreeMap::new(),
            arm_writes: Vec::new(),
            acks: Vec::new(),
            killed_pods: Vec::new(),
            killed_uids: HashSet::new(),
            nodes_version: 0,
        }
    }

    // ---- time ----

    /// Does everything that is due by `now`.
    pub fn advance(&mut self, now: Timestamp) {
        let names: Vec<String> = self.pools.keys().cloned().collect();
        for name in names {
            self.boot(&name, now);
            self.run_events(&name, now);
            self.delete_due(&name, now);
            self.finish_operation(&name, now);
        }
    }

    /// When something is due next; absent when all that is left waits for Nodes.
    pub fn due(&self, now: Timestamp) -> Option<Timestamp> {
        let mut times = Vec::new();
        for pool in self.pools.values() {
            for vm in pool.vms.values() {
                if vm.state.phase == VmPhase::Creating {
                    times.push(vm.state.boots_at);
                }
                times.extend(vm.gone_due.as_ref().map(|(at, _)| *at));
            }
            times.extend(pool.events.due(self.settings.kill_after, self.settings.started_for));
            if let Some(operation) = pool.operation.and_then(|index| self.operations.get(index)) {
                times.extend(operation.fails.as_ref().map(|(at, _)| *at));
                times.push(operation.earliest);
            }
        }
        times.into_iter().filter(|at| *at > now).min()
    }

    fn boot(&mut self, name: &str, now: Timestamp) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        for vm in pool.vms.values_mut() {
            if vm.state.phase == VmPhase::Creating && vm.state.boots_at <= now {
                vm.state.phase = VmPhase::Running;
                if !self.external_nodes {
                    vm.state.registered_at = Some(vm.state.boots_at);
                }
                self.nodes_version += 1;
            }
        }
    }

    fn run_events(&mut self, name: &str, now: Timestamp) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        let gone = pool.events.advance(now, self.settings.kill_after, self.settings.started_for);
        for (instance, at) in gone {
            self.remove_vm(name, instance, GoneReason::Evicted, at);
        }
    }

    fn delete_due(&mut self, name: &str, now: Timestamp) {
        let Some(pool) = self.pools.get(name) else { return };
        let due: Vec<(u64, GoneReason, Timestamp)> = pool
            .vms
            .iter()
            .filter_map(|(&id, vm)| {
                vm.gone_due.filter(|(at, _)| *at <= now).map(|(at, reason)| (id, reason, at))
            })
            .collect();
        for (instance, reason, at) in due {
            self.remove_vm(name, instance, reason, at);
        }
    }

    /// The machine is gone, whatever the reason.
    fn remove_vm(&mut self, name: &str, instance: u64, reason: GoneReason, at: Timestamp) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        let Some(mut vm) = pool.vms.remove(&instance) else { return };
        let counted = vm.state.phase != VmPhase::Deleting;
        vm.state.phase = VmPhase::Gone;
        vm.state.gone_at = Some(at);
        vm.state.gone_reason = Some(reason);
        if !self.external_nodes {
            vm.state.node_removed_at = Some(at);
        }
        pool.gone.push(vm.state);
        let left: HashSet<u64> = pool.vms.keys().copied().collect();
        pool.events.forget(instance, |other| left.contains(&other), at);
        let lost = matches!(reason, GoneReason::Evicted | GoneReason::Killed);
        if lost && counted && self.settings.count_follows_evictions {
            let count = body::count(&pool.properties).saturating_sub(1);
            pool.set("count", json!(count));
            let tag = self.ids.guid();
            pool.set("eTag", json!(tag));
        }
        self.nodes_version += 1;
    }

    fn finish_operation(&mut self, name: &str, now: Timestamp) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        let Some(operation) = pool.operation.and_then(|index| self.operations.get_mut(index)) else { return };
        if let Some((at, error)) = &operation.fails {
            if *at > now {
                return;
            }
            operation.state.status = OperationStatus::Failed;
            operation.state.ended_at = Some(*at);
            operation.state.error = Some(error.clone());
            let status = json!({"provisioningError": error});
            pool.set("status", status);
            pool.set("provisioningState", json!("Failed"));
            if self.settings.count_after_failure == CountAfterFailure::Existing {
                let live = pool.live().count();
                pool.set("count", json!(live));
            }
            pool.operation = None;
            return;
        }
        let booted = operation
            .awaits
            .iter()
            .filter_map(|id| pool.vms.get(id))
            .all(|vm| vm.state.phase == VmPhase::Deleting || vm.state.registered_at.is_some());
        let removed = !operation.removes.iter().any(|id| pool.vms.contains_key(id));
        if booted && removed && operation.earliest <= now {
            operation.state.status = OperationStatus::Succeeded;
            operation.state.ended_at = Some(now);
            pool.set("provisioningState", json!("Succeeded"));
            pool.properties.remove("status");
            pool.operation = None;
        }
    }

    // ---- agent pools ----

    /// All pools, as LIST answers them.
    pub fn list_pools(&self, version: &str) -> Vec<Value> {
        self.pools
            .iter()
            .map(|(name, pool)| body::resource(&self.identity, name, &pool.properties, version))
            .collect()
    }

    /// One pool, as GET answers it.
    pub fn get_pool(&self, name: &str, version: &str) -> Result<Value, Refusal> {
        let pool = self.pools.get(name).ok_or_else(|| Refusal::no_pool(name))?;
        Ok(body::resource(&self.identity, name, &pool.properties, version))
    }

    /// The count that ARM shows.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.pools.get(name).map(|pool| body::count(&pool.properties))
    }

    /// Creates or updates a pool, and reconciles its scale set to `count`.
    pub fn put_pool(
        &mut self,
        name: &str,
        version: &str,
        sent: &Value,
        conditions: &Conditions,
        now: Timestamp,
    ) -> Result<Accepted, Refusal> {
        body::check_name(name)?;
        let given = body::parse(sent, version)?;
        self.check_conditions(name, conditions)?;
        let existing = self.pools.get(name);
        if let Some(pool) = existing
            && pool.operation.is_some()
        {
            return Err(Refusal::busy(name, body::text(&pool.properties, "provisioningState")));
        }
        let created = existing.is_none();
        let properties = match existing {
            Some(pool) => body::update(&pool.properties, &given)?,
            None => body::create(given)?,
        };
        let wanted = body::count(&properties);
        if created {
            self.insert_pool(name, properties);
        } else if let Some(pool) = self.pools.get_mut(name) {
            pool.properties = properties;
        }

        let live = self.pools.get(name).map_or(0, |pool| pool.live().count() as u64);
        let (ordered, fails) = self.order(name, wanted.saturating_sub(live), now);
        let removed = self.scale_down(name, live.saturating_sub(wanted), now);
        let state = match (created, ordered.is_empty() && removed.is_empty() && fails.is_none()) {
            (true, _) => "Creating",
            (false, false) => "Scaling",
            (false, true) => "Updating",
        };
        let vmss = self.pools.get(name).map(|pool| pool.vmss.clone()).unwrap_or_default();
        let names = ordered.iter().map(|&id| names::node(&vmss, id)).collect();
        let (operation, signature) = self.begin(name, state, ordered, removed, fails, now);
        Ok(Accepted { created, operation, signature, ordered: names })
    }

    /// Deletes the named machines and lowers `count` by them.
    pub fn delete_machines(
        &mut self,
        name: &str,
        sent: &Value,
        conditions: &Conditions,
        now: Timestamp,
    ) -> Result<Accepted, Refusal> {
        self.check_conditions(name, conditions)?;
        let pool = self.pools.get_mut(name).ok_or_else(|| Refusal::no_pool(name))?;
        let wanted = sent.get("machineNames").and_then(Value::as_array);
        let valid: BTreeMap<&str, u64> =
            pool.live().map(|vm| (vm.state.node.as_str(), vm.state.instance_id)).collect();
        let chosen: Option<HashSet<u64>> = wanted
            .filter(|names| !names.is_empty())
            .and_then(|names| names.iter().map(|name| valid.get(name.as_str()?).copied()).collect());
        let Some(chosen) = chosen else {
            let valid: Vec<&str> = valid.into_keys().collect();
            return Err(Refusal::wrapped(
                400,
                "InvalidParameter",
                format!(
                    "Cannot find any valid machines to delete. Please check your input machine names. The valid machines to delete in agent pool '{name}' are: {}.",
                    valid.join(", ")
                ),
            ));
        };
        if pool.operation.is_some() {
            return Err(Refusal::busy(name, body::text(&pool.properties, "provisioningState")));
        }
        let at = later(now, self.settings.delete_time);
        for id in &chosen {
            if let Some(vm) = pool.vms.get_mut(id) {
                vm.state.phase = VmPhase::Deleting;
                vm.gone_due = Some((at, GoneReason::Deleted));
            }
        }
        let count = body::count(&pool.properties).saturating_sub(chosen.len() as u64);
        pool.set("count", json!(count));
        let (operation, signature) = self.begin(name, "Scaling", Vec::new(), chosen, None, now);
        Ok(Accepted { created: false, operation, signature, ordered: Vec::new() })
    }

    /// The machines of a pool, as the machines API lists them.
    pub fn machines(&self, name: &str) -> Result<Vec<Value>, Refusal> {
        let pool = self.pools.get(name).ok_or_else(|| Refusal::no_pool(name))?;
        Ok(pool
            .vms
            .values()
            .map(|vm| {
                let id = vm.state.instance_id;
                let mut machine = json!({
                    "id": format!("{}/machines/{}", body::pool_id(&self.identity, name), vm.state.node),
                    "name": vm.state.node,
                    "type": "Microsoft.ContainerService/managedClusters/agentPools/machines",
                    "properties": {
                        "network": {"ipAddresses": [{"family": "IPv4", "ip": address(id)}]},
                        "resourceId": names::vm_resource(&self.identity, &pool.vmss, id),
                    },
                });
                if let Some(zone) = &vm.state.zone {
                    machine["zones"] = json!([zone]);
                }
                machine
            })
            .collect())
    }

    /// An operation and the query that its status URL must carry.
    pub fn operation(&self, id: &str) -> Option<(&OperationState, &str)> {
        self.operations
            .iter()
            .find(|operation| operation.state.id.eq_ignore_ascii_case(id))
            .map(|operation| (&operation.state, operation.signature.as_str()))
    }

    fn check_conditions(&self, name: &str, conditions: &Conditions) -> Result<(), Refusal> {
        let current = self.pools.get(name).map(|pool| body::text(&pool.properties, "eTag"));
        let bare = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        match (&conditions.if_match, &conditions.if_none_match) {
            (None, None) => Ok(()),
            (Some(_), Some(_)) => Err(Refusal::invalid_parameter(
                "The headers If-Match and If-None-Match can't be set at the same time.",
            )),
            (Some(wanted), None) => match current {
                None => Err(Refusal::precondition(
                    "Resource not found but ETag header is provided. Please remove the header to create the resource.",
                )),
                Some(tag) if bare(wanted) == "*" || bare(wanted) == tag => Ok(()),
                Some(tag) => Err(Refusal::precondition(format!(
                    "The provided ETag '{}' does not match the current ETag '{tag}' of the agent pool.",
                    bare(wanted)
                ))),
            },
            (None, Some(unwanted)) => match current {
                Some(tag) if bare(unwanted) == "*" || bare(unwanted) == tag => Err(Refusal::precondition(
                    "The agent pool already exists and the If-None-Match header does not allow that.",
                )),
                _ => Ok(()),
            },
        }
    }

    fn insert_pool(&mut self, name: &str, properties: Properties) {
        let vmss = names::vmss(name, &names::digits(&self.identity, name));
        let (next_instance, gone) = self.retired.remove(name).unwrap_or_default();
        self.pools.insert(
            name.to_owned(),
            Pool {
                vmss,
                properties,
                next_instance,
                vms: BTreeMap::new(),
                gone,
                events: Document::default(),
                operation: None,
            },
        );
    }

    /// Orders machines as far as capacity goes; the second answer is when and why the rest fails.
    fn order(&mut self, name: &str, wanted: u64, now: Timestamp) -> (Vec<u64>, Option<(Timestamp, Value)>) {
        let Some(pool) = self.pools.get(name) else { return (Vec::new(), None) };
        let (vm_size, priority) = (body::text(&pool.properties, "vmSize").to_owned(), pool.priority());
        let zones = body::texts(&pool.properties, "availabilityZones");
        let capacity = self.capacity.get(&(vm_size.to_lowercase(), priority));
        let room = capacity.and_then(|capacity| capacity.limit).map_or(u64::MAX, |limit| {
            let used = self
                .pools
                .values()
                .flat_map(|pool| pool.vms.values())
                .filter(|vm| vm.state.vm_size.eq_ignore_ascii_case(&vm_size) && vm.state.priority == priority)
                .count();
            u64::from(limit).saturating_sub(used as u64)
        });
        let fails = (room < wanted).then(|| {
            let error = capacity
                .and_then(|capacity| capacity.error.clone())
                .unwrap_or_else(|| refusal::sku_not_available(&vm_size, &self.identity.location));
            (later(now, self.settings.fail_time), error)
        });
        let boots_at = later(now, self.settings.boot_time);
        let ids = (0..wanted.min(room))
            .filter_map(|_| self.add_vm(name, &vm_size, priority, &zones, now, boots_at))
            .collect();
        (ids, fails)
    }

    fn add_vm(
        &mut self,
        name: &str,
        vm_size: &str,
        priority: Priority,
        zones: &[String],
        now: Timestamp,
        boots_at: Timestamp,
    ) -> Option<u64> {
        let pool = self.pools.get_mut(name)?;
        let id = pool.next_instance;
        pool.next_instance += 1;
        // Zones are kept even: the new machine goes where the fewest are.
        let zone = zones
            .iter()
            .min_by_key(|zone| pool.live().filter(|vm| vm.state.zone.as_ref() == Some(zone)).count())
            .cloned();
        let state = VmState {
            name: names::vm(&pool.vmss, id),
            node: names::node(&pool.vmss, id),
            instance_id: id,
            pool: name.to_owned(),
            provider_id: names::provider_id(&self.identity, &pool.vmss, id),
            vm_size: vm_size.to_owned(),
            priority,
            zone,
            phase: VmPhase::Creating,
            created_at: now,
            boots_at,
            registered_at: None,
            gone_at: None,
            gone_reason: None,
            node_removed_at: None,
            imds_requests: 0,
        };
        pool.vms.insert(id, Vm { state, gone_due: None, imds_recent: VecDeque::new() });
        Some(id)
    }

    /// Marks machines to go: from the fullest zone the highest instance id, as scale sets do.
    fn scale_down(&mut self, name: &str, surplus: u64, now: Timestamp) -> HashSet<u64> {
        let at = later(now, self.settings.delete_time);
        let mut chosen = HashSet::new();
        let Some(pool) = self.pools.get_mut(name) else { return chosen };
        for _ in 0..surplus {
            let mut zones: BTreeMap<Option<&str>, (usize, u64)> = BTreeMap::new();
            for vm in pool.live() {
                let zone = zones.entry(vm.state.zone.as_deref()).or_insert((0, 0));
                *zone = (zone.0 + 1, vm.state.instance_id);
            }
            let Some(&(_, id)) = zones.values().max() else { break };
            if let Some(vm) = pool.vms.get_mut(&id) {
                vm.state.phase = VmPhase::Deleting;
                vm.gone_due = Some((at, GoneReason::ScaledDown));
            }
            chosen.insert(id);
        }
        chosen
    }

    fn begin(
        &mut self,
        name: &str,
        kind: &str,
        awaits: Vec<u64>,
        removes: HashSet<u64>,
        fails: Option<(Timestamp, Value)>,
        now: Timestamp,
    ) -> (String, String) {
        let id = self.ids.guid();
        let signature = format!(
            "api-version=2025-03-01&t={}&c={}&s={}&h={}",
            now.as_millisecond(),
            self.ids.opaque(1800),
            self.ids.opaque(342),
            self.ids.opaque(43)
        );
        let tag = self.ids.guid();
        if let Some(pool) = self.pools.get_mut(name) {
            pool.set("provisioningState", json!(kind));
            pool.set("eTag", json!(tag));
            pool.operation = Some(self.operations.len());
        }
        self.operations.push(Operation {
            state: OperationState {
                id: id.clone(),
                pool: name.to_owned(),
                kind: kind.to_owned(),
                status: OperationStatus::InProgress,
                started_at: now,
                ended_at: None,
                error: None,
            },
            awaits: awaits.into_iter().collect(),
            removes,
            earliest: later(now, self.settings.update_time),
            fails,
            signature: signature.clone(),
        });
        (id, signature)
    }

    // ---- the simulator's own handles ----

    /// Adds a pool whose machines run at once.
    pub fn add_pool(&mut self, spec: &PoolSpec, now: Timestamp) -> Result<(), Refused> {
        if self.pools.contains_key(&spec.name) {
            return Err(Refused::Invalid(format!("agent pool {} exists already", spec.name)));
        }
        let invalid = |refusal: Refusal| Refused::Invalid(refusal.message);
        body::check_name(&spec.name).map_err(invalid)?;
        let mut sent = json!({"count": spec.count, "vmSize": spec.vm_size});
        if spec.priority == Priority::Spot {
            sent["scaleSetPriority"] = json!("Spot");
        }
        if !spec.zones.is_empty() {
            sent["availabilityZones"] = json!(spec.zones);
        }
        for (key, value) in &spec.properties {
            sent[key] = value.clone();
        }
        let newest = body::VERSIONS.last().copied().unwrap_or_default();
        let given = body::parse(&json!({"properties": sent}), newest).map_err(invalid)?;
        let properties = body::create(given).map_err(invalid)?;
        self.insert_pool(&spec.name, properties);
        for _ in 0..spec.count {
            self.add_vm(&spec.name, &spec.vm_size, spec.priority, &spec.zones, now, now);
        }
        let tag = self.ids.guid();
        if let Some(pool) = self.pools.get_mut(&spec.name) {
            pool.set("provisioningState", json!("Succeeded"));
            pool.set("eTag", json!(tag));
        }
        self.nodes_version += 1;
        Ok(())
    }

    /// Removes a pool and its machines at once.
    pub fn remove_pool(&mut self, name: &str, now: Timestamp) -> Result<(), Refused> {
        let ids: Vec<u64> = self
            .pools
            .get(name)
            .ok_or_else(|| Refused::NotFound(format!("no agent pool {name}")))?
            .vms
            .keys()
            .copied()
            .collect();
        for id in ids {
            self.remove_vm(name, id, GoneReason::PoolRemoved, now);
        }
        if let Some(pool) = self.pools.remove(name) {
            if let Some(operation) = pool.operation.and_then(|index| self.operations.get_mut(index)) {
                operation.state.status = OperationStatus::Failed;
                operation.state.ended_at = Some(now);
                operation.state.error = Some(
                    json!({"code": "AKSOperationPreemptedByDelete", "message": "The agent pool was deleted."}),
                );
            }
            self.past_events.extend(pool.events.states().cloned());
            self.retired.insert(name.to_owned(), (pool.next_instance, pool.gone));
        }
        Ok(())
    }

    /// Puts events in the documents: one change for each scale set touched.
    pub fn schedule(&mut self, request: &EventRequest, now: Timestamp) -> Result<Vec<EventState>, Refused> {
        let takes = matches!(request.event_type.as_str(), "Preempt" | "Terminate");
        let targets = self.resolve(&request.targets, takes)?;
        let mut by_pool: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (pool, id) in targets {
            if request.event_type == "Preempt"
                && self.pools.get(&pool).is_some_and(|pool| pool.priority() == Priority::Regular)
            {
                return Err(Refused::Invalid(format!(
                    "agent pool {pool} is not spot: Azure does not evict it"
                )));
            }
            by_pool.entry(pool).or_default().push(id);
        }
        let mut added = Vec::new();
        for (name, ids) in by_pool {
            let Some(pool) = self.pools.get_mut(&name) else { continue };
            let groups: Vec<Vec<u64>> =
                if request.together { vec![ids] } else { ids.into_iter().map(|id| vec![id]).collect() };
            let drafts = groups
                .into_iter()
                .map(|group| Draft {
                    event_id: self.ids.guid().to_uppercase(),
                    pool: name.clone(),
                    machines: group
                        .into_iter()
                        .map(|id| (id, names::vm(&pool.vmss, id), names::node(&pool.vmss, id)))
                        .collect(),
                })
                .collect();
            added.extend(pool.events.add(drafts, request, now));
        }
        Ok(added)
    }

    /// Takes events out before they start: one by id, or those that name a machine.
    pub fn cancel(&mut self, what: &str, now: Timestamp) -> Result<Vec<String>, Refused> {
        let mut cancelled = Vec::new();
        for pool in self.pools.values_mut() {
            let ids: Vec<String> = pool
                .events
                .states()
                .filter(|event| {
                    event.event_id.eq_ignore_ascii_case(what)
                        || event.nodes.iter().chain(&event.resources).any(|name| name == what)
                })
                .map(|event| event.event_id.clone())
                .collect();
            cancelled.extend(ids.into_iter().filter(|id| pool.events.cancel(id, now)));
        }
        if cancelled.is_empty() {
            return Err(Refused::NotFound(format!("no event that can be cancelled has or names {what}")));
        }
        Ok(cancelled)
    }

    /// Machines vanish with no notice, as when their host fails.
    pub fn kill(&mut self, targets: &Targets, now: Timestamp) -> Result<Vec<String>, Refused> {
        let chosen = self.resolve(targets, false)?;
        let mut killed = Vec::new();
        for (pool, id) in chosen {
            if let Some(vmss) = self.pools.get(&pool).map(|pool| pool.vmss.clone()) {
                killed.push(names::node(&vmss, id));
            }
            self.remove_vm(&pool, id, GoneReason::Killed, now);
        }
        Ok(killed)
    }

    fn resolve(&self, targets: &Targets, spare_doomed: bool) -> Result<Vec<(String, u64)>, Refused> {
        let mut chosen = Vec::new();
        for wanted in &targets.names {
            let found = self.pools.iter().find_map(|(name, pool)| {
                let vm = pool.vms.values().find(|vm| vm.state.node == *wanted || vm.state.name == *wanted)?;
                Some((name.clone(), vm.state.instance_id))
            });
            let found = found.ok_or_else(|| Refused::NotFound(format!("no machine {wanted}")))?;
            if spare_doomed && self.pools.get(&found.0).is_some_and(|pool| pool.events.dooms(found.1)) {
                return Err(Refused::Invalid(format!("{wanted} is being evicted already")));
            }
            if !chosen.contains(&found) {
                chosen.push(found);
            }
        }
        if let Some(name) = &targets.pool {
            let pool =
                self.pools.get(name).ok_or_else(|| Refused::NotFound(format!("no agent pool {name}")))?;
            let free: Vec<u64> = pool
                .vms
                .values()
                .filter(|vm| vm.state.phase == VmPhase::Running && !pool.events.dooms(vm.state.instance_id))
                .map(|vm| vm.state.instance_id)
                .collect();
            let count = targets.count.map_or(free.len(), |count| count as usize);
            if free.len() < count {
                return Err(Refused::Invalid(format!(
                    "agent pool {name} has only {} running machines that no eviction names",
                    free.len()
                )));
            }
            chosen.extend(free.into_iter().take(count).map(|id| (name.clone(), id)));
        }
        if chosen.is_empty() {
            return Err(Refused::Invalid("no machine is named".into()));
        }
        Ok(chosen)
    }

    /// Limits the machines of a size and priority.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        let key = (capacity.vm_size.to_lowercase(), capacity.priority);
        if capacity.limit.is_none() {
            self.capacity.remove(&key);
        } else {
            self.capacity.insert(key, capacity);
        }
    }

    /// Changes settings from now on.
    pub fn patch_settings(&mut self, patch: &SettingsPatch) {
        let settings = &mut self.settings;
        let pairs = [
            (&mut settings.boot_time, patch.boot_time),
            (&mut settings.delete_time, patch.delete_time),
            (&mut settings.fail_time, patch.fail_time),
            (&mut settings.update_time, patch.update_time),
            (&mut settings.kill_after, patch.kill_after),
            (&mut settings.started_for, patch.started_for),
            (&mut settings.imds_first_answer, patch.imds_first_answer),
        ];
        for (setting, value) in pairs {
            if let Some(value) = value {
                *setting = value;
            }
        }
        if let Some(follows) = patch.count_follows_evictions {
            settings.count_follows_evictions = follows;
        }
        if let Some(after) = patch.count_after_failure {
            settings.count_after_failure = after;
        }
    }

    // ---- metadata ----

    /// Counts a metadata request and says whether it may be answered.
    pub fn imds_gate(&mut self, node: &str, now: Timestamp) -> ImdsGate {
        let first_answer = self.settings.imds_first_answer;
        let Some(vm) = self.vm_mut(node).filter(|vm| vm.state.is_up()) else { return ImdsGate::Dead };
        let first = vm.state.imds_requests == 0;
        vm.state.imds_requests += 1;
        while vm.imds_recent.front().is_some_and(|at| now.duration_since(*at) >= SignedDuration::from_secs(1))
        {
            vm.imds_recent.pop_front();
        }
        if vm.imds_recent.len() >= IMDS_RATE {
            return ImdsGate::Throttled;
        }
        vm.imds_recent.push_back(now);
        ImdsGate::Open(if first { first_answer } else { Duration::ZERO })
    }

    /// The scheduled events document that this machine is shown.
    pub fn document(&self, node: &str, version: &str) -> Option<Value> {
        let pool = self.pools.values().find(|pool| pool.vms.values().any(|vm| vm.state.node == node))?;
        Some(pool.events.json(version))
    }

    /// Records that a machine is answered with its document now.
    pub fn told(&mut self, node: &str, now: Timestamp) {
        let of_node = |pool: &&mut Pool| pool.vms.values().any(|vm| vm.state.node == node);
        if let Some(pool) = self.pools.values_mut().find(of_node) {
            pool.events.told(node, now);
        }
    }

    /// Records that a machine approved events; `false` when one of them is not in its document.
    pub fn acknowledge(&mut self, node: &str, event_ids: &[String], now: Timestamp) -> bool {
        let Some(pool) =
            self.pools.values_mut().find(|pool| pool.vms.values().any(|vm| vm.state.node == node))
        else {
            return false;
        };
        let mut known = true;
        for event_id in event_ids {
            let event_type = pool.events.current(event_id).map(|event| event.event_type.clone());
            known &= event_type.is_some();
            pool.events.approve(event_id, now);
            self.acks.push(Ack { at: now, node: node.to_owned(), event_id: event_id.clone(), event_type });
        }
        known
    }

    /// `/metadata/instance/compute` of this machine.
    pub fn instance(&self, node: &str) -> Option<Value> {
        let (name, pool, vm) = self.pools.iter().find_map(|(name, pool)| {
            pool.vms.values().find(|vm| vm.state.node == node).map(|vm| (name, pool, vm))
        })?;
        let spot = vm.state.priority == Priority::Spot;
        Some(json!({
            "azEnvironment": "AzurePublicCloud",
            "evictionPolicy": if spot { body::text(&pool.properties, "scaleSetEvictionPolicy") } else { "" },
            "location": self.identity.location,
            "name": vm.state.name,
            "osProfile": {"adminUsername": "azureuser", "computerName": node, "disablePasswordAuthentication": "true"},
            "osType": "Linux",
            "priority": if spot { "Spot" } else { "Regular" },
            "resourceGroupName": self.identity.node_resource_group,
            "resourceId": names::vm_resource(&self.identity, &pool.vmss, vm.state.instance_id),
            "subscriptionId": self.identity.subscription,
            "tags": format!("aks-managed-poolName:{name}"),
            "tagsList": [{"name": "aks-managed-poolName", "value": name}],
            "vmId": Ids::seeded(vm.state.instance_id).guid(),
            "vmScaleSetName": pool.vmss,
            "vmSize": vm.state.vm_size,
            "zone": vm.state.zone.clone().unwrap_or_default(),
        }))
    }

    fn vm_mut(&mut self, node: &str) -> Option<&mut Vm> {
        self.pools.values_mut().flat_map(|pool| pool.vms.values_mut()).find(|vm| vm.state.node == node)
    }

    // ---- Nodes ----

    /// Changes whenever [`Cloud::wanted_nodes`] may have.
    pub fn nodes_version(&self) -> u64 {
        self.nodes_version
    }

    /// The Nodes that should exist: of every machine that is up.
    pub fn wanted_nodes(&self) -> Vec<WantedNode> {
        self.pools
            .values()
            .flat_map(|pool| {
                pool.vms
                    .values()
                    .filter(|vm| vm.state.is_up())
                    .map(|vm| WantedNode { vm: vm.state.clone(), properties: pool.properties.clone() })
            })
            .collect()
    }

    /// Nodes of machines that are gone, as long as nobody has reported them removed.
    pub fn gone_nodes(&self) -> Vec<String> {
        let gone = self.pools.values().flat_map(|pool| &pool.gone);
        let retired = self.retired.values().flat_map(|(_, gone)| gone);
        gone.chain(retired).filter(|vm| vm.node_removed_at.is_none()).map(|vm| vm.node.clone()).collect()
    }

    /// The machine's Node exists.
    pub fn node_registered(&mut self, node: &str, now: Timestamp) {
        if let Some(vm) = self.vm_mut(node) {
            vm.state.registered_at.get_or_insert(now);
        }
    }

    /// The Node of a machine that is gone exists no more.
    pub fn node_removed(&mut self, node: &str, now: Timestamp) {
        let gone = self.pools.values_mut().flat_map(|pool| pool.gone.iter_mut());
        let retired = self.retired.values_mut().flat_map(|(_, gone)| gone.iter_mut());
        if let Some(vm) = gone.chain(retired).find(|vm| vm.node == node) {
            vm.node_removed_at.get_or_insert(now);
        }
    }

    /// Pods that were bound to a machine when it went; each is recorded once.
    pub fn pods_killed(&mut self, pods: Vec<KilledPod>) {
        for pod in pods {
            if self.killed_uids.insert(pod.uid.clone()) {
                self.killed_pods.push(pod);
            }
        }
    }

    // ---- records ----

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
            vmss: pool.vmss.clone(),
            vm_size: body::text(&pool.properties, "vmSize").to_owned(),
            priority: pool.priority(),
            count: body::count(&pool.properties),
            machines: pool.live().count() as u64,
            zones: body::texts(&pool.properties, "availabilityZones"),
            provisioning_state: body::text(&pool.properties, "provisioningState").to_owned(),
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
        }
    }
}

/// An address inside the default AKS virtual network.
fn address(instance: u64) -> String {
    let host = 4 + instance;
    format!("10.{}.{}.{}", 224 + host / 65_536 % 8, host / 256 % 256, host % 256)
}
