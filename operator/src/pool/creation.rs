//! An agent pool as Azure is asked to make it.

use std::collections::BTreeMap;

use kube::ResourceExt;
use spotpool_azure::{AzureError, Class, CreateAgentPool, MaxPrice, Priority};
use spotpool_crds::SpotPool;
use spotpool_crds::spot_pool::CapacityType;

/// Tags that tell whose it is. Azure's names of tags may have no slash in them, as those of labels have.
const TAGS: [&str; 2] = ["spotpool-pool", "spotpool-pool-namespace"];

/// What Azure is asked for, without machines: those come by the ordinary way, inside all limits.
pub fn wanted(pool: &SpotPool, agent_pool: &str) -> Result<CreateAgentPool, AzureError> {
    let refused = |why: &str| AzureError::new(Class::Invalid, "InvalidRequest", why);
    let named = pool.spec.agent_pools.iter().find(|named| named.name == agent_pool);
    let create = named
        .and_then(|named| named.create.as_ref())
        .ok_or_else(|| refused("the spec does not say how to make this agent pool"))?;
    let priority = match create.capacity_type {
        CapacityType::Spot => Priority::Spot,
        CapacityType::OnDemand => Priority::Regular,
    };
    let spot_max_price = match create.spot_max_price.as_deref() {
        None | Some("-1") => None,
        Some(price) => Some(price.parse::<MaxPrice>().map_err(refused)?),
    };
    let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok());
    Ok(CreateAgentPool {
        zones: create.zones.clone(),
        spot_max_price,
        labels: create.node_labels.clone(),
        taints: create.node_taints.clone(),
        tags: tags(pool, &create.tags),
        max_pods: number(create.max_pods),
        os_disk_size_gb: number(create.os_disk_size_gb),
        os_sku: create.os_sku.clone(),
        vnet_subnet_id: create.vnet_subnet_id.clone(),
        ..CreateAgentPool::new(agent_pool, priority, &create.vm_size)
    })
}

/// Those of the spec, and ours where it has none of that name: in capitals and small letters it is the same to Azure.
fn tags(pool: &SpotPool, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let ours = TAGS.into_iter().zip([pool.name_any(), pool.namespace().unwrap_or_default()]);
    let is_given = |name: &str| given.keys().any(|tag| tag.eq_ignore_ascii_case(name));
    let ours = ours.filter(|(name, _)| !is_given(name)).map(|(name, value)| (name.to_owned(), value));
    given.clone().into_iter().chain(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(create: &serde_json::Value) -> SpotPool {
        let mut pool: SpotPool = serde_json::from_value(json!({
            "apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"name": "workers", "namespace": "batch"},
            "spec": {"replicas": 1, "agentPools": [{"name": "spota", "maxNodes": 3}]},
        }))
        .unwrap();
        pool.spec.agent_pools[0].create = serde_json::from_value(create.clone()).unwrap();
        pool
    }

    #[test]
    fn all_that_the_spec_says_is_asked_for_and_no_machines() {
        let subnet =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n";
        let create = json!({"vmSize": "Standard_D4s_v5", "capacityType": "Spot", "zones": ["1"], "osDiskSizeGB": 64,
            "osSKU": "AzureLinux", "maxPods": 60, "vnetSubnetID": subnet, "nodeLabels": {"team": "a"},
            "nodeTaints": ["batch=yes:NoSchedule"], "tags": {"team": "a", "Spotpool-Pool": "mine"}, "spotMaxPrice": "0.18"});
        let asked = wanted(&pool(&create), "spota").unwrap();
        let tags = [("Spotpool-Pool", "mine"), ("spotpool-pool-namespace", "batch"), ("team", "a")];
        let wanted = CreateAgentPool {
            zones: vec!["1".into()],
            spot_max_price: Some("0.18".parse().unwrap()),
            labels: [("team".to_owned(), "a".to_owned())].into(),
            taints: vec!["batch=yes:NoSchedule".into()],
            tags: tags.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            max_pods: Some(60),
            os_disk_size_gb: Some(64),
            os_sku: Some("AzureLinux".into()),
            vnet_subnet_id: Some(subnet.into()),
            ..CreateAgentPool::new("spota", Priority::Spot, "Standard_D4s_v5")
        };
        assert_eq!((&asked, asked.count), (&wanted, 0));

        let plain = json!({"vmSize": "Standard_D4s_v5", "capacityType": "OnDemand"});
        let asked = super::wanted(&pool(&plain), "spota").unwrap();
        assert_eq!((asked.priority, asked.spot_max_price, asked.tags.len()), (Priority::Regular, None, 2));
        assert!(super::wanted(&pool(&serde_json::Value::Null), "spota").is_err());
        assert!(super::wanted(&pool(&plain), "other").is_err());
    }
}
