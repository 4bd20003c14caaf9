//! Agent pools that capacity may come from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CreateAgentPool;

/// One AKS agent pool.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPool {
    /// Name of the agent pool in AKS: 1 to 12 lower-case letters and digits, a letter first.
    #[schemars(regex(pattern = "^[a-z][a-z0-9]{0,11}$"))]
    pub name: String,

    /// Most machines that may exist in it at any moment, machines under notice included, 0 to 1000.
    #[schemars(range(min = 0, max = 1000))]
    pub max_nodes: i32,

    /// How many units of capacity one node of it is worth, 1 to 100. Where agent pools of several sizes take turns,
    /// say what their nodes are worth to each other, such as 1 for 4 cores and 2 for 8. `replicas`,
    /// `onDemand.baseline` and `standby.units` count units, and agent pools are compared by their price for a unit;
    /// every `maxNodes` counts nodes.
    #[serde(default = "default_capacity_units")]
    #[schemars(range(min = 1, max = 100))]
    pub capacity_units: i32,

    /// The most that one of its VMs may cost an hour, in the operator's currency, such as `"0.18"`. While its
    /// price is higher, or not known, no new node is asked of it. Azure's own maximum price cannot be changed
    /// once an agent pool exists; this can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,6}(\.[0-9]{1,6})?$"), length(max = 13))]
    pub max_hourly_price: Option<String>,

    /// What becomes of a VM that Azure has taken and left deallocated, as agent pools with eviction policy `Deallocate`
    /// have it: it still uses quota. Its capacity is replaced elsewhere at once, either way. `Replace` deletes it;
    /// `Restart` has Azure start it again, after a minute and then ever more seldom, and deletes it after 10 attempts.
    #[serde(default)]
    pub on_deallocated: OnDeallocated,

    /// How the operator makes it where the cluster has no agent pool of this name. Without it, it must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<CreateAgentPool>,
}

/// What becomes of a VM that Azure has deallocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDeallocated {
    /// It is deleted, and its quota is free.
    #[default]
    Replace,
    /// It is started again, as often as is sensible.
    Restart,
}

fn default_capacity_units() -> i32 {
    1
}
