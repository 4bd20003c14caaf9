//! The Kubernetes side: what kubelets and the cloud-controller-manager would do to Node objects.
//!
//! A level-triggered loop. It holds no memory of what it has done that an outage of the apiserver
//! could make wrong: after any error, and now and then, it lists again.

mod kubernetes;
mod object;

use std::collections::HashSet;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

pub use self::kubernetes::{Failure, KubeNodes, NodeApi};
pub use self::object::node_object;
pub(crate) use self::object::{boot_id, cluster_label, taint};
use crate::api::{Identity, KilledPod};
use crate::model::WantedNode;
use crate::sim::Sim;
use crate::upkeep::Upkeep;

/// Marks the Nodes that are ours to remove. A Node without it is never touched for being unknown.
pub const CLUSTER_LABEL: &str = "azure-sim.spotpool.dev/cluster";

/// How often to look for Nodes that somebody else removed.
const RESYNC: Duration = Duration::from_secs(5);
/// How long to wait after an error.
const RETRY: Duration = Duration::from_millis(500);
/// Nodes handled at once.
const AT_ONCE: usize = 32;

/// Keeps Nodes as the machines are, for ever.
pub async fn run(sim: Sim, api: impl NodeApi) {
    let mut changed = sim.nodes_changed();
    let mut keeper = Keeper::default();
    loop {
        changed.mark_unchanged();
        let pause = match keeper.pass(&sim, &api).await {
            Ok(()) if keeper.upkeep.draining => RETRY,
            Ok(()) => RESYNC,
            Err(error) => {
                tracing::warn!(error, "Nodes are not as they should be; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => keeper.known = None,
            // The sender lives as long as `sim` does.
            _ = changed.changed() => {}
        }
    }
}

/// What the loop knows between two passes.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Nodes that exist, as far as we know; absent when we must look.
    known: Option<HashSet<String>>,
    /// Whether the Nodes of an earlier simulator have been cleared away.
    started: bool,
    upkeep: Upkeep,
    /// Whether Nodes keep what their pools declare; nobody knows what an earlier simulator left.
    keeps_declared: Option<bool>,
}

impl Keeper {
    /// One pass: removes the Nodes of machines that are gone, creates those of machines that are up.
    /// Goes as far as it can, and answers the first error.
    pub async fn pass(&mut self, sim: &Sim, api: &impl NodeApi) -> Result<(), String> {
        let (identity, wanted, gone) =
            sim.look(|cloud, _| (cloud.identity.clone(), cloud.wanted_nodes(), cloud.gone_nodes()));
        let look = self.known.is_none();
        let known = match self.known.take() {
            Some(known) => known,
            None => api.list(&cluster_label(&identity)).await.map_err(|error| error.to_string())?,
        };
        let names: HashSet<&str> = wanted.iter().map(|node| node.vm.node.as_str()).collect();
        // Instance ids start again with each simulator, so at first even a known name is another's.
        let stale = known.iter().filter(|name| !self.started || !names.contains(name.as_str())).cloned();
        let leaving: HashSet<String> = gone.into_iter().chain(stale).collect();
        // Collected with loops: closures over borrows would leave the future's lifetimes open.
        let mut removals = Vec::new();
        for name in leaving {
            removals.push(remove(sim, api, name));
        }
        let mut creations = Vec::new();
        for node in &wanted {
            // A machine that does not run registers nothing.
            if node.ready && (!self.started || !known.contains(&node.vm.node)) {
                creations.push(create(sim, api, &identity, node));
            }
        }
        let removals = stream::iter(removals).buffer_unordered(AT_ONCE).collect::<Vec<Done>>();
        let creations = stream::iter(creations).buffer_unordered(AT_ONCE).collect::<Vec<Done>>();
        // At first one after the other: the names may be the same.
        let (removed, created) = if self.started {
            futures::join!(removals, creations)
        } else {
            let removed = removals.await;
            if let Some((_, Err(error))) = removed.iter().find(|(_, result)| result.is_err()) {
                return Err(error.clone());
            }
            (removed, creations.await)
        };
        self.started = true;
        let mut known = known;
        let mut problem = None;
        for (name, result) in removed {
            match result {
                Ok(()) => drop(known.remove(&name)),
                Err(error) => problem = Some(format!("removing {name}: {error}")),
            }
        }
        for (name, result) in created {
            match result {
                Ok(()) => {
                    self.upkeep.created(&name);
                    known.insert(name);
                }
                Err(error) => problem = Some(format!("creating {name}: {error}")),
            }
        }
        if let Some(problem) = problem {
            return Err(problem);
        }
        let keep = sim.look(|cloud, _| cloud.settings.switches.refuse_removal);
        if self.keeps_declared != Some(keep) {
            let done = api.keep_declared(&cluster_label(&identity), keep).await;
            // Whoever has no use for policies need not have the right to remove them.
            if keep || self.keeps_declared.is_some() {
                done.map_err(|error| error.to_string())?;
            }
            self.keeps_declared = Some(keep);
        }
        let wanted = sim.look(|cloud, _| cloud.wanted_nodes());
        self.upkeep.pass(sim, api, &identity, &wanted, look).await?;
        self.known = Some(known);
        Ok(())
    }
}

/// A Node's name, and how the work on it went.
type Done = (String, Result<(), String>);

async fn create(sim: &Sim, api: &impl NodeApi, identity: &Identity, wanted: &WantedNode) -> Done {
    let name = wanted.vm.node.clone();
    let created = match node_object(identity, wanted) {
        Ok(node) => api.create(node).await,
        Err(error) => Err(error.into()),
    };
    if created.is_ok() {
        sim.change(|cloud, now| cloud.node_registered(&name, now));
        tracing::info!(node = name, "Node registered");
    }
    (name, created.map_err(|error| error.to_string()))
}

async fn remove(sim: &Sim, api: &impl NodeApi, name: String) -> Done {
    let removed = remove_with_pods(sim, api, &name).await;
    (name, removed.map_err(|error| error.to_string()))
}

/// The machine is gone, and so is the kubelet that would have ended its pods.
async fn remove_with_pods(sim: &Sim, api: &impl NodeApi, name: &str) -> Result<(), Failure> {
    let mut pods = api.pods(name).await?;
    note(sim, name, &pods);
    api.delete(name).await?;
    // The scheduler may have bound more, until the Node was gone.
    let more = api.pods(name).await?;
    note(sim, name, &more);
    let noted: HashSet<Option<String>> = pods.iter().map(ResourceExt::uid).collect();
    pods.extend(more.into_iter().filter(|pod| !noted.contains(&pod.uid())));
    for pod in &pods {
        api.kill(pod).await?;
    }
    sim.change(|cloud, now| cloud.node_removed(name, now));
    tracing::info!(node = name, pods = pods.len(), "Node removed");
    Ok(())
}

pub(crate) fn note(sim: &Sim, node: &str, pods: &[Pod]) {
    let at = sim.now();
    let killed: Vec<KilledPod> = pods
        .iter()
        .filter_map(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
            let ended = matches!(phase.as_str(), "Succeeded" | "Failed");
            (!ended).then(|| KilledPod {
                at,
                node: node.to_owned(),
                namespace: pod.namespace().unwrap_or_default(),
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                owner_kind: pod
                    .owner_references()
                    .iter()
                    .find(|owner| owner.controller == Some(true))
                    .map(|owner| owner.kind.clone()),
                phase,
                terminating: pod.metadata.deletion_timestamp.is_some(),
            })
        })
        .collect();
    if !killed.is_empty() {
        sim.change(|cloud, _| cloud.pods_killed(killed));
    }
}

#[cfg(test)]
mod tests;
