//! Nodes, their pods, and what a watch tells of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{EventState, PoolSpec};
use spotpool_crds::{EvictionNotice, names};
use spotpool_e2e::{Stage, World, eventually, objects};
use tokio::task::JoinHandle;

/// Where the pods live that are evicted.
pub const NAMESPACE: &str = "bench";

/// What makes [`NAMESPACE`].
pub const NAMESPACE_MANIFEST: &str =
    r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}}"#;

/// A request that comes this long after the last eviction is not the drain's any more.
const AFTERMATH: Duration = Duration::from_secs(3);

/// When a watch told of a node's turns.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// First seen.
    pub appeared: Option<Timestamp>,
    /// First seen ready for pods.
    pub ready: Option<Timestamp>,
    /// First seen unschedulable.
    pub cordoned: Option<Timestamp>,
    /// Whether it was unschedulable at last.
    pub is_cordoned: bool,
    /// The notice on it at last.
    pub notice: Option<EvictionNotice>,
}

/// Follows all nodes.
pub struct Nodes {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    task: JoinHandle<()>,
}

impl Nodes {
    /// Starts to watch.
    pub fn watch(client: Client) -> Self {
        let seen = Arc::default();
        let task = tokio::spawn(follow(client, Arc::clone(&seen)));
        Self { seen, task }
    }

    /// Stops watching.
    pub fn stop(&self) {
        self.task.abort();
    }

    /// What was seen of a node.
    pub fn seen(&self, node: &str) -> Seen {
        lock(&self.seen).get(node).cloned().unwrap_or_default()
    }

    /// Forgets that these were cordoned, so that it is seen again.
    pub fn forget_cordons(&self, nodes: &[String]) {
        let mut seen = lock(&self.seen);
        for node in nodes {
            if let Some(seen) = seen.get_mut(node) {
                seen.cordoned = None;
            }
        }
    }

    /// What was seen of all.
    pub fn all(&self) -> BTreeMap<String, Seen> {
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<BTreeMap<String, Seen>>) -> MutexGuard<'_, BTreeMap<String, Seen>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(client: Client, seen: Arc<Mutex<BTreeMap<String, Seen>>>) {
    let nodes: Api<Node> = Api::all(client);
    let mut changes = watcher(nodes, watcher::Config::default()).default_backoff().applied_objects().boxed();
    while let Some(change) = changes.next().await {
        let (Ok(node), now) = (change, Timestamp::now()) else { continue };
        let mut seen = lock(&seen);
        let entry = seen.entry(node.name_any()).or_default();
        entry.appeared.get_or_insert(now);
        if objects::takes_pods(&node) {
            entry.ready.get_or_insert(now);
        }
        entry.is_cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        if entry.is_cordoned {
            entry.cordoned.get_or_insert(now);
        }
        let notice = node.annotations().get(names::EVICTION_ANNOTATION);
        entry.notice = notice.and_then(|text| serde_json::from_str(text).ok());
    }
}

/// Adds an agent pool of ready spot nodes with agents, and returns their names.
pub async fn fresh(world: &World, pool: &str, count: u32) -> Result<Vec<String>> {
    let stage = Stage::at(world, NAMESPACE);
    stage.agent_pools(&[PoolSpec::spot(pool, "Standard_D8s_v5", count)]).await?;
    Ok(stage.nodes(pool).await?.iter().map(ResourceExt::name_any).collect())
}

/// Puts pods of nobody's on a node, waits until they run, and returns them. Those that `group` names a group for carry
/// it as the label `group`.
pub async fn fill(
    world: &World,
    node: &str,
    count: usize,
    group: impl Fn(usize) -> Option<String>,
) -> Result<Vec<Pod>> {
    static FILLED: AtomicUsize = AtomicUsize::new(0);
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    // KWOK may take a pod for its predecessor of the same name.
    let turn = FILLED.fetch_add(1, Ordering::Relaxed);
    let manifests = (0..count).map(|index| {
        let mut labels = json!({"node": node});
        if let Some(group) = group(index) {
            labels["group"] = group.into();
        }
        json!({
            "metadata": {"name": format!("{node}-{turn}-{index:03}"), "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "app", "image": "app"}]},
        })
    });
    let manifests: Vec<_> = manifests.collect();
    let made = futures::stream::iter(manifests).map(|pod| objects::create(&pods, pod));
    let made: Vec<Pod> = made.buffer_unordered(16).try_collect().await?;
    let on_node = ListParams::default().labels(&format!("node={node}"));
    eventually(&format!("{count} pods to run on {node}"), async || {
        let ready = pods.list(&on_node).await?.iter().filter(|pod| objects::is_ready(pod)).count();
        Ok((ready == count).then_some(()))
    })
    .await?;
    Ok(made)
}

/// A [`fill`] without groups.
pub fn alone(_index: usize) -> Option<String> {
    None
}

/// Makes a disruption budget for a group of `pods` running pods and waits until it is counted.
pub async fn budget(world: &World, group: &str, pods: usize, min_available: usize) -> Result<()> {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), NAMESPACE);
    let spec = json!({"minAvailable": min_available, "selector": {"matchLabels": {"group": group}}});
    objects::create(&budgets, json!({"metadata": {"name": group}, "spec": spec})).await?;
    eventually(&format!("the budget of {group} to be counted"), async || {
        let status = budgets.get(group).await?.status;
        Ok(status.filter(|status| status.current_healthy == pods as i32).map(|_| ()))
    })
    .await
}

/// Removes a group's budget.
pub async fn remove_budget(world: &World, group: &str) -> Result<()> {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), NAMESPACE);
    budgets.delete(group, &DeleteParams::default()).await?;
    Ok(())
}

/// Removes what [`fill`] has made and is still there, and waits for its end.
pub async fn empty(world: &World, node: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    let on_node = ListParams::default().labels(&format!("node={node}"));
    pods.delete_collection(&DeleteParams::default().grace_period(0), &on_node).await?;
    eventually(&format!("the pods of {node} to be gone"), async || {
        Ok(pods.list_metadata(&on_node).await?.items.is_empty().then_some(()))
    })
    .await
}

/// When the metadata service told the node's agent of the event.
pub async fn told(world: &World, event: &EventState, node: &str) -> Result<Timestamp> {
    let when = |events: &[EventState]| {
        events.iter().find(|it| it.event_id == event.event_id).and_then(|it| it.told_at.get(node).copied())
    };
    let state = world
        .sim
        .wait_until("the agent to be told", Duration::from_secs(30), |state| when(&state.events).is_some())
        .await?;
    when(&state.events).context("the simulator forgot an event")
}

/// Waits until none of these pods is there any more.
pub async fn gone(world: &World, names: &[String]) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    let names: HashSet<&str> = names.iter().map(String::as_str).collect();
    eventually(&format!("{} pods to be gone", names.len()), async || {
        let there = pods.list_metadata(&ListParams::default()).await?;
        Ok((!there.iter().any(|pod| names.contains(pod.name_any().as_str()))).then_some(()))
    })
    .await
}

/// The names of pods.
pub fn names(pods: &[Pod]) -> Vec<String> {
    pods.iter().map(ResourceExt::name_any).collect()
}

/// Waits until a drain that has evicted its last pod has sent everything, and returns until when what it sent is the
/// drain's. The last may come a while after the last pod is gone.
pub async fn aftermath(last: Timestamp) -> Result<Timestamp> {
    let until = last.checked_add(AFTERMATH)?.max(Timestamp::now());
    sleep_until(until).await;
    Ok(until)
}

/// Waits for a time of the clock.
pub async fn sleep_until(time: Timestamp) {
    let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(left).await;
}
