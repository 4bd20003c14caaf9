//! Early signs that Azure may take spot back, before it says so.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is made of signs that come before a notice: Azure's hint to move away from a VM, a price that rose, an eviction
/// band that became worse, the hours of the day at which an agent pool has lost nodes before.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlySignals {
    /// Most units of spot that are asked for ahead, 0 to 1000: while Azure advises to move away from nodes, so much more
    /// spot is kept in other agent pools. Never on-demand. With 0 the signs only make agent pools dearer in `placement`.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub pre_raise: i32,
}

/// The early signs at one spot agent pool.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignalsStatus {
    /// Nodes that Azure advises to move away from, and that are not under notice.
    #[serde(default)]
    pub advised: i32,
    /// The last price of the size and the one before it, where it rose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_rise: Option<PriceRiseStatus>,
    /// The eviction band as it was known last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub band: Option<BandStatus>,
    /// What was lost at which hour of the day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<HoursStatus>,
}

/// A price that rose, in US dollars an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PriceRiseStatus {
    /// From this.
    pub from: String,
    /// To this.
    pub to: String,
    /// Since when, says Azure.
    pub since: Time,
}

/// An eviction band and the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BandStatus {
    /// The last that was known.
    pub is: String,
    /// Another one that was known before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    /// When `is` was first seen.
    pub since: Time,
}

/// Losses by hour of the day, the first one being that from 00:00 to 01:00 UTC. All counts are halved every 7 days.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoursStatus {
    /// Nodes that Azure took or announced to take.
    #[schemars(length(max = 24))]
    pub losses: Vec<i32>,
    /// Hours of nodes: one for each node that was there when the operator first looked in that hour.
    #[schemars(length(max = 24))]
    pub node_hours: Vec<i32>,
    /// The hour that was counted last.
    pub counted: Time,
    /// When all counts were halved at last, or first counted.
    pub halved: Time,
}
