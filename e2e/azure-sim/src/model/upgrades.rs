//! Upgrades of Kubernetes and of node images: surge, cordon, drain, another image, one batch after the other.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::operations::Work;
use super::{Cloud, Vm, later};
use crate::api::{GoneReason, Priority, VmPhase};
use crate::body::Properties;

/// Where an upgrade stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Upgrade {
    /// The version of Kubernetes to come; absent for an image alone.
    version: Option<String>,
    image: String,
    waiting: VecDeque<u64>,
    batch: Vec<u64>,
    /// Machines that are there for the time of the upgrade.
    surge: Vec<u64>,
    /// Machines at once.
    size: usize,
    /// Only the surge is left to go.
    ending: bool,
    done: bool,
}

impl Upgrade {
    pub(super) fn new(version: Option<String>, image: String, machines: Vec<u64>, surge: Vec<u64>) -> Self {
        let size = surge.len().max(1);
        Self { version, image, waiting: machines.into(), surge, size, ..Self::default() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// What the pool says of itself afterwards.
    pub(super) fn apply(&self, properties: &mut Properties) {
        properties.insert("nodeImageVersion".into(), json!(self.image));
        if let Some(version) = &self.version {
            properties.insert("orchestratorVersion".into(), json!(version));
            properties.insert("currentOrchestratorVersion".into(), json!(version));
        }
    }
}

impl Cloud {
    /// The surge runs the new image from the start.
    pub(super) fn mark_image(&mut self, name: &str, upgrade: &Upgrade) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        for id in &upgrade.surge {
            if let Some(vm) = pool.vms.get_mut(id) {
                vm.state.image.clone_from(&upgrade.image);
            }
        }
    }

    /// How long AKS tries to drain a machine.
    fn drain_timeout(&self, name: &str) -> Duration {
        let minutes = self
            .pools
            .get(name)
            .and_then(|pool| pool.properties.get("upgradeSettings")?.get("drainTimeoutInMinutes")?.as_u64());
        Duration::from_mins(minutes.unwrap_or(30))
    }

    /// When a drain is over, one way or the other.
    pub(super) fn drain_ends(&self, name: &str, vm: &Vm) -> Option<Timestamp> {
        let since = vm.state.draining_since.filter(|_| vm.state.drained_at.is_none())?;
        let takes = if self.external_nodes { self.drain_timeout(name) } else { self.settings.update_time };
        Some(later(since, takes))
    }

    /// Without Kubernetes there are no pods: a drain takes a while and is done.
    pub(super) fn drain_due(&mut self, name: &str, now: Timestamp) {
        if self.external_nodes {
            return;
        }
        let takes = self.settings.update_time;
        let Some(pool) = self.pools.get_mut(name) else { return };
        for vm in pool.vms.values_mut() {
            if let Some(since) = vm.state.draining_since.filter(|since| later(*since, takes) <= now) {
                vm.state.drained_at.get_or_insert(later(since, takes));
            }
        }
    }

    /// Moves the upgrade of a pool on as far as it goes by now.
    pub(super) fn step_upgrade(&mut self, name: &str, now: Timestamp) {
        let Some(index) = self.pools.get(name).and_then(|pool| pool.operation) else { return };
        let Some(operation) = self.operations.get_mut(index).filter(|operation| operation.fails.is_none())
        else {
            return;
        };
        let Work::Upgrade(upgrade) = &mut operation.work else { return };
        let mut upgrade = mem::take(upgrade);
        let fails = self.step(name, &mut upgrade, now);
        if fails.is_some() {
            self.leave_upgrade(name, &upgrade, now);
        }
        if let Some(operation) = self.operations.get_mut(index) {
            operation.work = Work::Upgrade(upgrade);
            operation.fails = fails.map(|error| (now, error));
        }
    }

    fn step(&mut self, name: &str, upgrade: &mut Upgrade, now: Timestamp) -> Option<Value> {
        let (timeout, external) = (self.drain_timeout(name), self.external_nodes);
        let (boots_at, gone_at) = (later(now, self.boot_time(name)), later(now, self.settings.delete_time));
        let pool = self.pools.get_mut(name)?;
        let drains = pool.priority() == Priority::Regular;
        let there = |id: &u64| pool.vms.get(id).is_none_or(|vm| vm.state.registered_at.is_some());
        if !upgrade.surge.iter().all(there) {
            return None;
        }
        loop {
            let mut left = Vec::new();
            for id in mem::take(&mut upgrade.batch) {
                let Some(vm) = pool.vms.get_mut(&id) else { continue };
                let state = &mut vm.state;
                // One that was taken meanwhile is no longer the upgrade's to do.
                if matches!(state.phase, VmPhase::Deallocated | VmPhase::Deleting) {
                    continue;
                }
                if state.image == upgrade.image && state.phase == VmPhase::Running {
                    state.draining_since = None;
                    continue;
                }
                left.push(id);
                if state.phase != VmPhase::Running || state.image == upgrade.image {
                    continue;
                }
                if !drains || state.drained_at.is_some() {
                    state.phase = VmPhase::Reimaging;
                    state.boots_at = boots_at;
                    state.image.clone_from(&upgrade.image);
                    self.nodes_version += 1;
                } else if external && state.draining_since.is_some_and(|since| later(since, timeout) <= now) {
                    return Some(json!({
                        "code": "UpgradeFailed",
                        "message": format!(
                            "Drain node {} failed when evicting pods: the pods are still there after {} minutes. See https://aka.ms/aks/debugdrainfailures",
                            state.node, timeout.as_secs() / 60
                        ),
                    }));
                }
            }
            upgrade.batch = left;
            if !upgrade.batch.is_empty() {
                return None;
            }
            if upgrade.waiting.is_empty() {
                break;
            }
            upgrade.batch = upgrade.waiting.drain(..upgrade.size.min(upgrade.waiting.len())).collect();
            if drains {
                for id in &upgrade.batch {
                    if let Some(vm) = pool.vms.get_mut(id) {
                        vm.state.draining_since = Some(now);
                        vm.state.drained_at = None;
                    }
                }
                self.nodes_version += 1;
            }
        }
        for id in &upgrade.surge {
            let Some(vm) = pool.vms.get_mut(id).filter(|vm| vm.gone_due.is_none()) else { continue };
            if !upgrade.ending {
                vm.state.draining_since = Some(now);
                self.nodes_version += 1;
            } else if vm.state.drained_at.is_some() {
                vm.state.phase = VmPhase::Deleting;
                vm.gone_due = Some((gone_at, GoneReason::SurgeOver));
            }
        }
        upgrade.ending = true;
        upgrade.done = !upgrade.surge.iter().any(|id| pool.vms.contains_key(id));
        None
    }

    /// An upgrade ends before its time: nothing stays cordoned, and the surge goes.
    pub(super) fn leave_upgrade(&mut self, name: &str, upgrade: &Upgrade, now: Timestamp) {
        let gone_at = later(now, self.settings.delete_time);
        let Some(pool) = self.pools.get_mut(name) else { return };
        for vm in pool.vms.values_mut().filter(|vm| vm.gone_due.is_none()) {
            vm.state.draining_since = None;
            vm.state.drained_at = None;
        }
        for id in &upgrade.surge {
            if let Some(vm) = pool.vms.get_mut(id) {
                vm.state.phase = VmPhase::Deleting;
                vm.gone_due = Some((gone_at, GoneReason::SurgeOver));
            }
        }
        self.nodes_version += 1;
    }
}
