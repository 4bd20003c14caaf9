//! Takes our marks off nodes that no SpotPool has any more: it was deleted, or does not name their agent
//! pool now. Their machines stay; a drain that was asked for is taken back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use spotpool_crds::{SpotPool, names};

use crate::watches::{Nodes, agent_pool_of};

/// Marks that are left over do no harm for a while.
const EVERY: Duration = Duration::from_secs(10);

/// Sweeps for ever. `spot_pools` are the stores of the watched namespaces, by name; marks of other namespaces
/// are another operator's.
pub async fn keep_clean(client: Client, nodes: Nodes, spot_pools: BTreeMap<String, Store<SpotPool>>) {
    for store in spot_pools.values() {
        // Before it is filled every node would look left over. An error ends the process elsewhere.
        let _ = store.wait_until_ready().await;
    }
    let api = Api::<Node>::all(client);
    loop {
        for node in nodes.all().iter().filter(|node| is_orphan(node, &spot_pools)) {
            let patch = json!({"metadata": {
                "uid": node.uid(),
                "labels": {names::POOL_LABEL: null, names::POOL_NAMESPACE_LABEL: null},
                "annotations": {names::POLICY_ANNOTATION: null, names::DRAIN_REQUEST_ANNOTATION: null},
            }});
            let manager = Some(names::OPERATOR_FIELD_MANAGER.to_owned());
            let params = PatchParams { field_manager: manager, ..PatchParams::default() };
            match api.patch(&node.name_any(), &params, &Patch::Merge(patch)).await {
                Ok(_) => tracing::info!(
                    node = node.name_any(),
                    "no SpotPool has this node any more: marks removed"
                ),
                Err(error) => {
                    tracing::warn!(node = node.name_any(), %error, "marks not removed; trying again");
                }
            }
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
    !pool.is_some_and(|pool| named(&pool))
}
