//! On-demand that disruption budgets need, and budgets that hold their pods.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// On-demand nodes kept because disruption budgets ask for pods that must be healthy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!self.enabled || has(self.maxUnits)")
    .message("onDemand.pdbFloor.enabled needs onDemand.pdbFloor.maxUnits: say how much on-demand it may keep"))]
#[serde(rename_all = "camelCase")]
pub struct PdbFloor {
    /// Whether as much on-demand is kept as the pods need that must be healthy by their disruption budgets, so that
    /// there is room for them when every spot node goes at once.
    #[serde(default)]
    pub enabled: bool,

    /// The most that is kept for this, 0 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_units: Option<i32>,

    /// Namespaces whose budgets count, by their labels. All, if it is absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// The on-demand that disruption budgets need.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FloorStatus {
    /// On-demand that is kept for budgets. What the pool always has is the most of this, the baseline and kept nodes.
    #[serde(default)]
    pub units: i32,
    /// Since when it is this much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// What budgets need now; absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<i32>,
    /// The field that keeps `units` below `needed`, if one does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub capped_by: String,
    /// What it will be if the need lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextFloor>,
    /// The budgets that need most, at most 20 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["namespace".into(), "name".into()]))]
    pub budgets: Vec<BudgetFloor>,
    /// How many budgets need anything.
    #[serde(default)]
    pub budgets_in_all: i32,
}

/// A floor to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NextFloor {
    /// How much.
    pub units: i32,
    /// Since when at least, or at most, so much is needed.
    pub since: Time,
}

/// What one disruption budget needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetFloor {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Pods that must be healthy by it, as its own status says.
    pub desired_healthy: i32,
    /// Of these, the pods that on-demand here must have room for: the rest runs where no spot VM can be lost, or not
    /// in this SpotPool.
    pub pods: i32,
    /// On-demand that these pods alone would need.
    pub units: i32,
    /// Pods of it that may not run on the SpotPool's on-demand nodes: nothing here can keep them.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub barred: i32,
}

/// A disruption budget that lets no pod go, with pods on the SpotPool's nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockedBudget {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whose pods these are, such as `Deployment/web`; of several the first by name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Pods that must be healthy.
    pub desired_healthy: i32,
    /// Pods that are.
    pub current_healthy: i32,
    /// Its pods on the SpotPool's nodes.
    pub pods: i32,
    /// Since when it has been seen to let no pod go.
    pub since: Time,
}
