//! Takes our marks off nodes that no SpotPool has any more: it is deleted, or does not name their agent pool now. Their
//! machines stay; a drain that was asked for is taken back.
//!
//! An autoscaled agent pool gets the minimum back that people gave it. Status remembers that until it is so.
//!
//! One sweep does it for whatever reason, level by level. The finalizer only has a deleted SpotPool wait for the same
//! work, so that nothing of ours is left when it is gone, and for `deletionPolicy: ReturnFallback`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use spotpool_core::Plan;
use spotpool_crds::spot_pool::{AgentPoolStatus, DeletionPolicy, Mode};
use spotpool_crds::{SpotPool, names};

use super::Error;
use super::gather::Gathered;
use super::others::is_minimum_theirs;
use crate::agent_pools::{AgentPools, Known};
use crate::node::agent_pool_of;
use crate::watches::Nodes;

/// Marks that are left over do no harm for a while.
const EVERY: Duration = Duration::from_secs(10);
const PATCHES_AT_ONCE: usize = 8;
/// A deleted SpotPool does not wait longer for Azure to take minimums back: its finalizer must not hang.
const LONGEST_GOODBYE: SignedDuration = SignedDuration::from_mins(10);

/// Sweeps for ever. `spot_pools` are the stores of the watched namespaces, by name; marks of other namespaces
/// are another operator's.
pub async fn keep_clean(client: Client, nodes: Nodes, spot_pools: BTreeMap<String, Store<SpotPool>>) {
    for store in spot_pools.values() {
        // Before it is filled every node would look left over. An error ends the process elsewhere.
        let _ = store.wait_until_ready().await;
    }
    loop {
        let orphans = nodes.all().into_iter().filter(|node| is_orphan(node, &spot_pools)).collect();
        if let Err(error) = take_marks_off(&client, orphans).await {
            tracing::warn!(%error, "marks not removed from nodes that no SpotPool has; trying again");
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn is_orphan(node: &Arc<Node>, spot_pools: &BTreeMap<String, Store<SpotPool>>) -> bool {
    let labels = node.labels();
    let (Some(pool), Some(namespace)) =
        (labels.get(names::POOL_LABEL), labels.get(names::POOL_NAMESPACE_LABEL))
    else {
        return false;
    };
    let Some(store) = spot_pools.get(namespace) else { return false };
    let pool = store.get(&ObjectRef::new(pool).within(namespace));
    let named = |pool: &SpotPool| {
        pool.spec.agent_pools.iter().any(|it| Some(it.name.as_str()) == agent_pool_of(node))
    };
    !pool.is_some_and(|pool| named(&pool) && has_claims(&pool))
}

/// Takes our marks off these nodes, as far as they have not changed since they were seen: somebody may have them now.
async fn take_marks_off(client: &Client, nodes: Vec<Arc<Node>>) -> Result<(), Error> {
    let api = Api::<Node>::all(client.clone());
    let manager = Some(names::OPERATOR_FIELD_MANAGER.to_owned());
    let params = PatchParams { field_manager: manager, ..PatchParams::default() };
    let (api, params) = (&api, &params);
    let mut results = futures::stream::iter(nodes)
        .map(|node| async move {
            let patch = json!({"metadata": {
                "uid": node.uid(),
                "resourceVersion": node.resource_version(),
                "labels": {names::POOL_LABEL: null, names::POOL_NAMESPACE_LABEL: null},
                "annotations": {
                    names::POLICY_ANNOTATION: null,
                    names::DRAIN_REQUEST_ANNOTATION: null,
                    names::REQUESTED_DRAIN_ANNOTATION: null,
                },
            }});
            (node.name_any(), api.patch(&node.name_any(), params, &Patch::Merge(patch)).await)
        })
        .buffer_unordered(PATCHES_AT_ONCE);
    let mut outcome = Ok(());
    while let Some((node, result)) = results.next().await {
        match result {
            Ok(_) => tracing::info!(node, "no SpotPool has this node any more: marks removed"),
            // It went by itself.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => outcome = Err(Error::kubernetes("take our marks off a Node")(error)),
        }
    }
    outcome
}

/// Whether the SpotPool's agent pools are still its own: it is not being deleted, or has fallback to return first.
pub fn has_claims(pool: &SpotPool) -> bool {
    pool.metadata.deletion_timestamp.is_none() || is_held(pool) && returns_fallback(pool)
}

/// A minimum that is ours, of an agent pool that is not any more.
#[derive(Clone, Debug, PartialEq)]
pub struct Minimum {
    /// What status remembers of the agent pool.
    pub entry: AgentPoolStatus,
    /// The minimum that people gave it, if it can be returned now.
    pub due: Option<u32>,
}

/// Minimums of agent pools that `pool` has had and does not name, or of all while it is deleted; `azure` is what is
/// known of all agent pools, if anything is.
pub fn minimums(pool: &SpotPool, azure: Option<&BTreeMap<String, Known>>) -> Vec<Minimum> {
    let goes = pool.metadata.deletion_timestamp.is_some();
    let is_named = |name: &str| !goes && pool.spec.agent_pools.iter().any(|it| it.name == name);
    let entries = pool.status.iter().flat_map(|status| &status.agent_pools);
    let gone = entries.filter(|entry| entry.autoscaler.is_some() && !is_named(&entry.name));
    let acts = pool.spec.mode == Mode::Enforce && !pool.spec.suspend;
    gone.filter_map(|entry| {
        let Some(azure) = azure else {
            return may_be_ours(entry).then(|| Minimum { entry: entry.clone(), due: None });
        };
        let known = azure.get(&entry.name).filter(|known| known.pool.autoscaled)?;
        let own_min = own_min(entry).filter(|own_min| known.min() > *own_min)?;
        if is_minimum_theirs(entry, known) {
            return None;
        }
        let due = (acts && !known.busy).then_some(own_min);
        Some(Minimum { entry: entry.clone(), due })
    })
    .collect()
}

fn own_min(entry: &AgentPoolStatus) -> Option<u32> {
    Some(entry.autoscaler.as_ref()?.own_min.max(0) as u32)
}

/// Whether the minimum is above the one that people gave it, by all that status knows.
fn may_be_ours(entry: &AgentPoolStatus) -> bool {
    entry.operation.is_some() || entry.autoscaler.as_ref().is_some_and(|it| it.min > it.own_min)
}

/// Returns those that are due. Whether none is left to be tried again.
pub async fn return_minimums(agent_pools: &AgentPools, minimums: &[Minimum]) -> bool {
    let due = minimums.iter().filter_map(|minimum| Some((minimum.entry.name.as_str(), minimum.due?)));
    let writes = due.map(|(name, min)| async move {
        match agent_pools.set_minimum(name, min).await {
            Ok(()) => {
                tracing::info!(agent_pool = name, min, "the cluster autoscaler's own minimum is returned");
                true
            }
            Err(error) => {
                tracing::warn!(agent_pool = name, min, %error, "the cluster autoscaler's own minimum is not returned yet");
                false
            }
        }
    });
    futures::future::join_all(writes).await.into_iter().all(|done| done)
}

/// Whether a SpotPool that goes has still to wait for its minimums. It is asked again and again until it has not.
pub async fn must_wait(agent_pools: &AgentPools, pool: &SpotPool, now: Timestamp) -> bool {
    let had = pool.status.iter().flat_map(|status| &status.agent_pools);
    let had = had.filter(|entry| entry.autoscaler.is_some()).map(|entry| entry.name.as_str());
    let minimums = minimums(pool, agent_pools.view(had).pools.as_ref());
    let names = || minimums.iter().map(|it| it.entry.name.as_str()).collect::<Vec<_>>().join(", ");
    if minimums.is_empty() {
        return false;
    }
    if pool.spec.mode == Mode::Observe || pool.spec.suspend {
        tracing::warn!(agent_pools = names(), "their minimums are not returned: nothing is written to Azure");
        return false;
    }
    if has_waited_long(pool, now) {
        tracing::warn!(agent_pools = names(), "their minimums could not be returned: set minCount by hand");
        return false;
    }
    return_minimums(agent_pools, &minimums).await;
    true
}

/// Whether it has been about to go for so long that nobody should have to wait any more.
fn has_waited_long(pool: &SpotPool, now: Timestamp) -> bool {
    let since = pool.metadata.deletion_timestamp.as_ref().map_or(now, |since| since.0);
    now.duration_since(since) >= LONGEST_GOODBYE
}

/// Whether it waits for us before it goes.
pub fn is_held(pool: &SpotPool) -> bool {
    pool.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER)
}

/// `Observe` returns nothing: it writes nothing to Azure.
pub fn returns_fallback(pool: &SpotPool) -> bool {
    pool.spec.deletion_policy == DeletionPolicy::ReturnFallback && pool.spec.mode == Mode::Enforce
}

/// Whether it should be held from now on, because something of ours will be left otherwise. In `Observe` it is not:
/// what that marks, the sweep takes off.
pub fn must_hold(pool: &SpotPool, gathered: &Gathered, plan: &Plan) -> bool {
    let marks = !gathered.nodes.is_empty() || !plan.actions.is_empty();
    pool.spec.mode == Mode::Enforce && marks && !is_held(pool)
}

/// Puts our finalizer on, fenced by the version that `pool` was read at.
pub async fn hold(client: &Client, pool: &SpotPool) -> Result<SpotPool, Error> {
    let finalizers = pool.finalizers().iter().cloned().chain([names::FINALIZER.to_owned()]).collect();
    set_finalizers(client, pool, finalizers).await.map_err(Error::kubernetes("put the finalizer on"))
}

/// Takes our marks off the SpotPool's nodes, then lets it go.
pub async fn let_go(client: &Client, nodes: &Nodes, pool: &SpotPool) -> Result<(), Error> {
    let (name, namespace) = (pool.name_any(), pool.namespace().unwrap_or_default());
    let marked = |node: &Arc<Node>| {
        node.labels().get(names::POOL_LABEL) == Some(&name)
            && node.labels().get(names::POOL_NAMESPACE_LABEL) == Some(&namespace)
    };
    take_marks_off(client, nodes.all().into_iter().filter(marked).collect()).await?;
    let rest = pool.finalizers().iter().filter(|it| *it != names::FINALIZER).cloned().collect();
    match set_finalizers(client, pool, rest).await {
        Ok(_) => {
            tracing::info!(pool = name, namespace, "the SpotPool is deleted; its nodes are on their own");
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(Error::kubernetes("take the finalizer off")(error)),
    }
    Ok(())
}

async fn set_finalizers(
    client: &Client,
    pool: &SpotPool,
    finalizers: Vec<String>,
) -> Result<SpotPool, kube::Error> {
    let api = Api::<SpotPool>::namespaced(client.clone(), &pool.namespace().unwrap_or_default());
    let manager = Some(names::OPERATOR_FIELD_MANAGER.to_owned());
    let params = PatchParams { field_manager: manager, ..PatchParams::default() };
    let patch = json!({"metadata": {
        "uid": pool.uid(), "resourceVersion": pool.resource_version(), "finalizers": finalizers,
    }});
    api.patch(&pool.name_any(), &params, &Patch::Merge(patch)).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use spotpool_crds::SpotPoolSpec;

    use super::*;

    /// A namespace must not hang in `Terminating` because Azure refuses a minimum.
    #[test]
    fn a_goodbye_lasts_ten_minutes_at_most() {
        let spec: SpotPoolSpec =
            serde_json::from_value(serde_json::json!({"replicas": 1, "agentPools": []})).unwrap();
        let mut pool = SpotPool::new("workers", spec);
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        assert!(!has_waited_long(&pool, now), "nobody has deleted it");
        for (seconds, over) in [(-30, false), (0, false), (599, false), (600, true), (86_400, true)] {
            let since = now - SignedDuration::from_secs(seconds);
            pool.metadata.deletion_timestamp = Some(Time(since));
            assert_eq!(has_waited_long(&pool, now), over, "after {seconds} s");
        }
    }
}
