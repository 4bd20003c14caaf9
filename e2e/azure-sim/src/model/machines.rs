//! Machines: ordered, booted, chosen to go, gone.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::capacity::Forecast;
use super::{Cloud, Pool, Vm, later};
use crate::api::{GoneReason, Priority, VmPhase, VmState};
use crate::body;
use crate::refusal::Refusal;

impl Cloud {
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
                        "resourceId": pool.fleet.resource(&self.identity, id),
                    },
                });
                if let Some(zone) = &vm.state.zone {
                    machine["zones"] = json!([zone]);
                }
                machine
            })
            .collect())
    }

    /// From the order for a machine of this pool until its Node registers.
    pub(super) fn boot_time(&self, name: &str) -> Duration {
        self.switches(name).boot_time.unwrap_or(self.settings.boot_time)
    }

    /// Orders what the forecast lets come.
    pub(super) fn allocate(&mut self, name: &str, forecast: &Forecast, now: Timestamp) -> Vec<u64> {
        let boots_at = later(now, self.boot_time(name));
        let Some((size, priority)) = self
            .pools
            .get(name)
            .map(|pool| (body::text(&pool.properties, "vmSize").to_owned(), pool.priority()))
        else {
            return Vec::new();
        };
        forecast
            .zones
            .iter()
            .filter_map(|zone| self.add_vm(name, &size, priority, zone.clone(), now, boots_at))
            .collect()
    }

    /// Zones are kept even: the next machine goes where the fewest are, `more` counted in.
    pub(super) fn emptiest_zone(
        &self,
        name: &str,
        zones: &[String],
        more: &BTreeMap<Option<String>, usize>,
    ) -> Option<String> {
        let in_zone = |zone: &String| {
            let there = self
                .pools
                .get(name)
                .map_or(0, |pool| pool.live().filter(|vm| vm.state.zone.as_ref() == Some(zone)).count());
            there + more.get(&Some(zone.clone())).copied().unwrap_or_default()
        };
        zones.iter().min_by_key(|zone| in_zone(zone)).cloned()
    }

    pub(super) fn add_vm(
        &mut self,
        name: &str,
        vm_size: &str,
        priority: Priority,
        zone: Option<String>,
        now: Timestamp,
        boots_at: Timestamp,
    ) -> Option<u64> {
        let pool = self.pools.get_mut(name)?;
        let id = pool.next_instance;
        pool.next_instance += 1;
        let state = VmState {
            name: pool.fleet.vm(id),
            node: pool.fleet.node(id),
            instance_id: id,
            pool: name.to_owned(),
            provider_id: pool.fleet.provider_id(&self.identity, id),
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
            reboots: 0,
            image: body::text(&pool.properties, "nodeImageVersion").to_owned(),
            draining_since: None,
            drained_at: None,
        };
        self.meters.start(&state, now);
        pool.vms.insert(id, Vm { state, gone_due: None, imds_recent: VecDeque::new() });
        Some(id)
    }

    /// Marks machines to go: from the fullest zone the highest instance id, as scale sets do. AKS cordons and
    /// drains them meanwhile.
    pub(super) fn scale_down(&mut self, name: &str, surplus: u64, now: Timestamp) -> HashSet<u64> {
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
                vm.state.draining_since = Some(now);
                vm.gone_due = Some((at, GoneReason::ScaledDown));
            }
            chosen.insert(id);
        }
        self.nodes_version += u64::from(!chosen.is_empty());
        chosen
    }

    pub(super) fn boot(&mut self, name: &str, now: Timestamp) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        for vm in pool.vms.values_mut().filter(|vm| vm.state.boots_at <= now) {
            let state = &mut vm.state;
            match state.phase {
                VmPhase::Creating => {
                    state.phase = VmPhase::Running;
                    if !self.external_nodes {
                        state.registered_at.get_or_insert(state.boots_at);
                    }
                }
                VmPhase::Reimaging => {
                    state.phase = VmPhase::Running;
                    state.reboots += 1;
                    state.draining_since = None;
                    state.drained_at = None;
                }
                _ => continue,
            }
            self.nodes_version += 1;
        }
    }

    pub(super) fn delete_due(&mut self, name: &str, now: Timestamp) {
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
    pub(super) fn remove_vm(&mut self, name: &str, instance: u64, reason: GoneReason, at: Timestamp) {
        let follows =
            self.switches(name).count_follows_evictions.unwrap_or(self.settings.count_follows_evictions);
        let restores = self.switches(name).autoscaler_restores_min_count;
        let restore_at = later(at, self.settings.update_time);
        let Some(pool) = self.pools.get_mut(name) else { return };
        let Some(mut vm) = pool.vms.remove(&instance) else { return };
        self.meters.stop(name, instance, at);
        let counted = vm.state.phase != VmPhase::Deleting;
        vm.state.phase = VmPhase::Gone;
        vm.state.gone_at = Some(at);
        vm.state.gone_reason = Some(reason);
        if !self.external_nodes {
            vm.state.node_removed_at = Some(at);
        }
        pool.gone.push(vm.state);
        forget_event(pool, instance, at);
        let lost = counted && matches!(reason, GoneReason::Evicted | GoneReason::Killed);
        // An autoscaled pool's count always falls: the autoscaler sees to the rest.
        if lost && (follows || body::is_autoscaled(&pool.properties)) {
            let count = body::count(&pool.properties).saturating_sub(1);
            pool.set("count", json!(count));
            let tag = self.ids.guid();
            pool.set("eTag", json!(tag));
            if restores && body::is_autoscaled(&pool.properties) && count < body::min_count(&pool.properties)
            {
                pool.restore_at = Some(restore_at);
            }
        }
        self.nodes_version += 1;
    }

    /// The machine stops, and stays: it is what the eviction policy `Deallocate` means.
    pub(super) fn deallocate_vm(&mut self, name: &str, instance: u64, at: Timestamp) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        let Some(vm) = pool.vms.get_mut(&instance) else { return };
        // One that is on its way out goes on that way.
        if vm.state.phase != VmPhase::Deleting {
            vm.state.phase = VmPhase::Deallocated;
            self.meters.stop(name, instance, at);
            vm.state.draining_since = None;
        }
        forget_event(pool, instance, at);
        self.nodes_version += 1;
    }

    pub(super) fn vm_mut(&mut self, node: &str) -> Option<&mut Vm> {
        self.pools.values_mut().flat_map(|pool| pool.vms.values_mut()).find(|vm| vm.state.node == node)
    }
}

/// Events that name nothing else go with the machine.
fn forget_event(pool: &mut Pool, instance: u64, at: Timestamp) {
    let left: HashSet<u64> = pool
        .vms
        .values()
        .filter(|vm| vm.state.phase != VmPhase::Deallocated)
        .map(|vm| vm.state.instance_id)
        .collect();
    pool.events.forget(instance, |other| left.contains(&other), at);
}

/// An address inside the default AKS virtual network.
fn address(instance: u64) -> String {
    let host = 4 + instance;
    format!("10.{}.{}.{}", 224 + host / 65_536 % 8, host / 256 % 256, host % 256)
}
