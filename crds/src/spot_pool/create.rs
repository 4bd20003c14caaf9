//! What an agent pool is made like that does not exist.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the operator makes the agent pool where the cluster has none of its name: Linux, a User pool, without autoscaling and
/// without machines. Read then and only then: one that exists is never changed by it, and deleting the SpotPool does not
/// delete what was made.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.capacityType == 'Spot' || !has(self.spotMaxPrice)")
    .message("agentPools[].create.spotMaxPrice is for spot: leave it out, or set capacityType to Spot"))]
pub struct CreateAgentPool {
    /// VM size, such as `Standard_D8as_v5`.
    #[schemars(regex(pattern = "^(Standard|Basic)_[A-Za-z0-9_-]{1,60}$"))]
    pub vm_size: String,

    /// Whether its machines are spot or on-demand.
    pub capacity_type: CapacityType,

    /// Availability zones, such as `["1", "2"]`; without any it is regional.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), inner(regex(pattern = "^[1-9]$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub zones: Vec<String>,

    /// Size of the OS disk in GiB, 30 to 2048. Without it Azure's own choice.
    #[serde(default, rename = "osDiskSizeGB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 2048))]
    pub os_disk_size_gb: Option<i32>,

    /// Linux of its nodes, such as `Ubuntu` or `AzureLinux`. Without it Azure's own choice.
    #[serde(default, rename = "osSKU", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(Ubuntu|AzureLinux|Flatcar)[A-Za-z0-9]{0,16}$"))]
    pub os_sku: Option<String>,

    /// Most pods on a node, 10 to 250. Without it Azure's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 250))]
    pub max_pods: Option<i32>,

    /// Resource id of the subnet of its nodes, where the cluster brings its own network.
    #[serde(default, rename = "vnetSubnetID", skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(
            pattern = "^/subscriptions/[^/]+/resource[Gg]roups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+/subnets/[^/]+$"
        ),
        length(max = 512)
    )]
    pub vnet_subnet_id: Option<String>,

    /// Labels that it gives its nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 16,
        "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$"},
    ))]
    pub node_labels: BTreeMap<String, String>,

    /// Taints that it keeps on its nodes, as `key=value:NoSchedule`. AKS adds its own for spot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            regex(
                pattern = "^[A-Za-z0-9_./-]{1,316}(=[A-Za-z0-9_.-]{0,63})?:(NoSchedule|PreferNoSchedule|NoExecute)$"
            ),
            length(max = 400)
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub node_taints: Vec<String>,

    /// Tags of its scale set and VMs, by which Azure's bill can be split. `spotpool-pool` and `spotpool-pool-namespace` are
    /// added where they are not given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub tags: BTreeMap<String, String>,

    /// The most that is paid for an hour of one VM, in US dollars, such as `"0.18"`; `-1` is whatever it costs, up to the
    /// on-demand price. It cannot be changed once the agent pool exists; `maxHourlyPrice` can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 13))]
    #[x_kube(validation = Rule::new("self == '-1' || (self.matches('^[0-9]{1,6}([.][0-9]{1,5})?$') && self.matches('[1-9]'))")
        .message("agentPools[].create.spotMaxPrice must be an amount above 0 with at most five decimals, such as 0.18, or -1 for whatever it costs"))]
    pub spot_max_price: Option<String>,
}

/// What an agent pool sells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CapacityType {
    /// Spot VMs: cheap, and Azure may take them back.
    Spot,
    /// On-demand VMs.
    OnDemand,
}
