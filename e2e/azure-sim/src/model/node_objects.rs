//! The Node objects that machines call for, and what became of them.

use jiff::Timestamp;

use super::Cloud;
use crate::api::{KilledPod, VmPhase, VmState};
use crate::body::Properties;

/// A Node that should exist.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedNode {
    /// The machine.
    pub vm: VmState,
    /// The pool's properties.
    pub properties: Properties,
    /// Whether its kubelet runs.
    pub ready: bool,
    /// Whether AKS sees to it that the pool's labels and taints are on it.
    pub put_back: bool,
}

impl Cloud {
    /// Changes whenever [`Cloud::wanted_nodes`] may have.
    pub fn nodes_version(&self) -> u64 {
        self.nodes_version
    }

    /// The Nodes that should exist: of every machine that is up, and of those that have been and will be again.
    pub fn wanted_nodes(&self) -> Vec<WantedNode> {
        self.pools
            .iter()
            .flat_map(|(name, pool)| {
                let put_back = self.switches(name).put_back;
                let left = pool.gone.iter().filter(move |vm| self.leaves(vm)).map(|vm| WantedNode {
                    vm: vm.clone(),
                    properties: pool.properties.clone(),
                    ready: false,
                    put_back: false,
                });
                let there = pool.vms.values().filter_map(move |vm| {
                    let ready = vm.state.is_up();
                    let stays = vm.state.registered_at.is_some() && vm.state.phase != VmPhase::Gone;
                    (ready || stays).then(|| WantedNode {
                        vm: vm.state.clone(),
                        properties: pool.properties.clone(),
                        ready,
                        put_back,
                    })
                });
                there.chain(left)
            })
            .collect()
    }

    /// Nodes of machines that are gone, as long as nobody has reported them removed.
    pub fn gone_nodes(&self) -> Vec<String> {
        let gone = self.pools.values().flat_map(|pool| &pool.gone);
        let retired = self.retired.values().flat_map(|(_, gone)| gone);
        let to_go = |vm: &&VmState| vm.node_removed_at.is_none() && !self.leaves(vm);
        gone.chain(retired).filter(to_go).map(|vm| vm.node.clone()).collect()
    }

    /// Whether the Node of a machine that is gone stays for now.
    fn leaves(&self, vm: &VmState) -> bool {
        let had_node = vm.registered_at.is_some() && vm.node_removed_at.is_none();
        had_node && self.pools.contains_key(&vm.pool) && self.switches(&vm.pool).leaves_nodes
    }

    /// The machine's Node exists.
    pub fn node_registered(&mut self, node: &str, now: Timestamp) {
        if let Some(vm) = self.vm_mut(node) {
            vm.state.registered_at.get_or_insert(now);
        }
    }

    /// The pods that AKS was to drain have left the machine's Node.
    pub fn node_drained(&mut self, node: &str, now: Timestamp) {
        if let Some(vm) = self.vm_mut(node) {
            vm.state.drained_at.get_or_insert(now);
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
}
