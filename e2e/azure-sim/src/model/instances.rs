//! Machines as Azure Compute shows them, and what it does to single ones.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Accepted, Cloud, Pool, Vm, later};
use crate::api::{EventRequest, Identity, Priority, Targets, VmPhase};
use crate::names::{FleetKind, Ids};
use crate::refusal::Refusal;

/// How Azure Compute calls a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComputeName {
    /// An instance of a scale set.
    Instance {
        /// The scale set.
        scale_set: String,
        /// Instance id.
        id: u64,
    },
    /// A machine of its own.
    Machine(String),
}

impl ComputeName {
    /// There is none, or no more.
    pub fn not_found(&self, identity: &Identity) -> Refusal {
        let resource = match self {
            Self::Instance { scale_set, id } => {
                format!("Microsoft.Compute/virtualMachineScaleSets/{scale_set}/virtualMachines/{id}")
            }
            Self::Machine(name) => format!("Microsoft.Compute/virtualMachines/{name}"),
        };
        Refusal::wrapped(
            404,
            "ResourceNotFound",
            format!(
                "The Resource '{resource}' under resource group '{}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
                identity.node_resource_group
            ),
        )
    }
}

impl Cloud {
    /// The pool whose machines go by that name: of a scale set, or the machine itself.
    fn fleet(&self, kind: FleetKind, name: &str) -> Option<(&String, &Pool)> {
        self.pools.iter().find(|(_, pool)| {
            pool.fleet.kind == kind
                && match kind {
                    FleetKind::ScaleSet => pool.fleet.name.eq_ignore_ascii_case(name),
                    FleetKind::VirtualMachines => {
                        pool.vms.values().any(|vm| vm.state.name.eq_ignore_ascii_case(name))
                    }
                }
        })
    }

    /// The instances of a scale set.
    pub fn instances(&self, scale_set: &str, view: bool) -> Option<Vec<Value>> {
        let (_, pool) = self.fleet(FleetKind::ScaleSet, scale_set)?;
        Some(pool.vms.values().map(|vm| self.virtual_machine(pool, vm, view)).collect())
    }

    /// Machines that belong to no scale set.
    pub fn virtual_machines(&self, view: bool) -> Vec<Value> {
        self.pools
            .values()
            .filter(|pool| pool.fleet.kind == FleetKind::VirtualMachines)
            .flat_map(|pool| pool.vms.values().map(move |vm| self.virtual_machine(pool, vm, view)))
            .collect()
    }

    /// One machine: by scale set and instance id, or by its own name.
    pub fn instance_of(&self, of: &ComputeName, view: bool) -> Option<Value> {
        let (pool, vm) = self.find(of)?;
        let pool = self.pools.get(&pool)?;
        Some(self.virtual_machine(pool, pool.vms.get(&vm)?, view))
    }

    fn find(&self, of: &ComputeName) -> Option<(String, u64)> {
        match of {
            ComputeName::Instance { scale_set, id } => {
                let (name, pool) = self.fleet(FleetKind::ScaleSet, scale_set)?;
                pool.vms.contains_key(id).then(|| (name.clone(), *id))
            }
            ComputeName::Machine(machine) => {
                let (name, pool) = self.fleet(FleetKind::VirtualMachines, machine)?;
                let vm = pool.vms.values().find(|vm| vm.state.name.eq_ignore_ascii_case(machine))?;
                Some((name.clone(), vm.state.instance_id))
            }
        }
    }

    fn virtual_machine(&self, pool: &Pool, vm: &Vm, view: bool) -> Value {
        let state = &vm.state;
        let provisioning = match state.phase {
            VmPhase::Creating => "Creating",
            VmPhase::Reimaging => "Updating",
            VmPhase::Deleting | VmPhase::Gone => "Deleting",
            VmPhase::Running | VmPhase::Deallocated => "Succeeded",
        };
        let power = match state.phase {
            VmPhase::Creating | VmPhase::Reimaging => "starting",
            VmPhase::Running => "running",
            VmPhase::Deallocated => "deallocated",
            VmPhase::Deleting | VmPhase::Gone => "stopping",
        };
        let set = pool.fleet.kind == FleetKind::ScaleSet;
        let mut properties = json!({
            "provisioningState": provisioning,
            "vmId": Ids::seeded(state.instance_id).guid(),
            "hardwareProfile": {"vmSize": state.vm_size},
            "osProfile": {"computerName": state.node},
        });
        if set {
            properties["latestModelApplied"] = json!(true);
        } else {
            properties["priority"] = json!(if state.priority == Priority::Spot { "Spot" } else { "Regular" });
        }
        if view {
            // While a machine is being deleted, there may be no view of it.
            properties["instanceView"] = if state.phase == VmPhase::Deleting {
                Value::Null
            } else {
                json!({"statuses": [
                    {"code": format!("ProvisioningState/{}", provisioning.to_lowercase()), "level": "Info",
                        "displayStatus": format!("Provisioning {}", provisioning.to_lowercase())},
                    {"code": format!("PowerState/{power}"), "level": "Info", "displayStatus": format!("VM {power}")},
                ]})
            };
        }
        let mut machine = json!({
            "id": pool.fleet.resource(&self.identity, state.instance_id),
            "name": state.name,
            "type": if set { "Microsoft.Compute/virtualMachineScaleSets/virtualMachines" } else { "Microsoft.Compute/virtualMachines" },
            "location": self.identity.location,
            "tags": {"aks-managed-poolName": state.pool},
            "properties": properties,
        });
        if set {
            machine["instanceId"] = json!(state.instance_id.to_string());
            machine["sku"] = json!({"name": state.vm_size, "tier": "Standard"});
        }
        if let Some(zone) = &state.zone {
            machine["zones"] = json!([zone]);
        }
        machine
    }

    /// `simulateEviction`: a Preempt comes, and the machine goes as by any other.
    pub fn simulate_eviction(&mut self, of: &ComputeName, now: Timestamp) -> Result<(), Refusal> {
        let found = self.find(of).and_then(|(name, id)| {
            let vm = self.pools.get(&name)?.vms.get(&id)?;
            Some((vm.state.node.clone(), vm.state.priority, self.switches(&name).simulated_notice))
        });
        let Some((node, priority, notice)) = found else { return Err(of.not_found(&self.identity)) };
        if priority == Priority::Regular {
            return Err(Refusal::wrapped(
                409,
                "OperationNotAllowed",
                "Simulate eviction is only supported for virtual machines of priority Spot.",
            ));
        }
        let request = EventRequest::new("Preempt", Targets::named(&[node]), notice);
        // A machine that is being evicted already is evicted once.
        drop(self.schedule(&request, now));
        Ok(())
    }

    /// Starts a machine that was deallocated.
    pub fn start_machine(&mut self, of: &ComputeName, now: Timestamp) -> Result<Accepted, Refusal> {
        let Some((name, id)) = self.find(of) else { return Err(of.not_found(&self.identity)) };
        let boots_at = later(now, self.boot_time(&name));
        let state = self.pools.get(&name).and_then(|pool| pool.vms.get(&id)).map(|vm| vm.state.clone());
        if let Some(state) = state.filter(|state| state.phase == VmPhase::Deallocated) {
            if !self.has_room(&state.vm_size, state.priority, state.zone.as_deref()) {
                return Err(Refusal::wrapped(
                    409,
                    "AllocationFailed",
                    "Allocation failed. We do not have sufficient capacity for the requested VM size in this region. Read more about improving likelihood of allocation success at http://aka.ms/allocation-guidance",
                ));
            }
            if let Some(vm) = self.pools.get_mut(&name).and_then(|pool| pool.vms.get_mut(&id)) {
                vm.state.phase = VmPhase::Creating;
                vm.state.boots_at = boots_at;
                vm.state.reboots += 1;
                self.meters.start(&vm.state, now);
                self.nodes_version += 1;
            }
        }
        Ok(self.begin_detached(&name, id, "StartVirtualMachine", now))
    }
}
