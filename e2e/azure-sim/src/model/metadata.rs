//! What the metadata service of a machine answers.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Cloud, Pool};
use crate::api::{Ack, Priority};
use crate::body;
use crate::names::{FleetKind, Ids};

/// Requests a second that a metadata service answers to its machine.
const IMDS_RATE: usize = 5;

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

impl Cloud {
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
            "resourceId": pool.fleet.resource(&self.identity, vm.state.instance_id),
            "subscriptionId": self.identity.subscription,
            "tags": format!("aks-managed-poolName:{name}"),
            "tagsList": [{"name": "aks-managed-poolName", "value": name}],
            "vmId": Ids::seeded(vm.state.instance_id).guid(),
            "vmScaleSetName": if pool.fleet.kind == FleetKind::ScaleSet { pool.fleet.name.as_str() } else { "" },
            "vmSize": vm.state.vm_size,
            "zone": vm.state.zone.clone().unwrap_or_default(),
        }))
    }
}
