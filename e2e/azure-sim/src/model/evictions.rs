//! What befalls machines: scheduled events, and ends without notice.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Cloud, Refused};
use crate::api::{EventRequest, EventState, GoneReason, Priority, Targets, VmPhase};
use crate::body;
use crate::events::Draft;

impl Cloud {
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
                        .map(|id| (id, pool.fleet.vm(id), pool.fleet.node(id)))
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
            if let Some(fleet) = self.pools.get(&pool).map(|pool| &pool.fleet) {
                killed.push(fleet.node(id));
            }
            self.remove_vm(&pool, id, GoneReason::Killed, now);
        }
        Ok(killed)
    }

    pub(super) fn resolve(
        &self,
        targets: &Targets,
        spare_doomed: bool,
    ) -> Result<Vec<(String, u64)>, Refused> {
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
            if self
                .pools
                .get(&found.0)
                .and_then(|pool| pool.vms.get(&found.1))
                .is_some_and(|vm| vm.state.phase == VmPhase::Deallocated)
                && spare_doomed
            {
                return Err(Refused::Invalid(format!("{wanted} does not run")));
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

    pub(super) fn run_events(&mut self, name: &str, now: Timestamp) {
        let reboots = self.switches(name).reboots_machines;
        let Some(pool) = self.pools.get_mut(name) else { return };
        let blows = pool.events.advance(now, self.settings.kill_after, self.settings.started_for);
        if reboots {
            for (instance, _) in &blows.rebooted {
                if let Some(vm) = pool.vms.get_mut(instance) {
                    vm.state.reboots += 1;
                    self.nodes_version += 1;
                }
            }
        }
        let deallocates = body::text(&pool.properties, "scaleSetEvictionPolicy") == "Deallocate";
        for (instance, at) in blows.killed {
            if deallocates {
                self.deallocate_vm(name, instance, at);
            } else {
                self.remove_vm(name, instance, GoneReason::Evicted, at);
            }
        }
    }
}
