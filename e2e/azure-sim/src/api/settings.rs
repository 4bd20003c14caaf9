//! Which cluster is played, at what pace, and what may be one way or another.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Switches, millis, optional_millis};

/// Which managed cluster the simulator plays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Subscription id.
    pub subscription: String,
    /// Resource group of the managed cluster.
    pub resource_group: String,
    /// Name of the managed cluster.
    pub cluster: String,
    /// Azure region.
    pub location: String,
    /// The resource group that holds the scale sets, `MC_<group>_<cluster>_<location>` unless told.
    pub node_resource_group: String,
}

impl Identity {
    /// An identity with the node resource group that AKS would choose.
    pub fn new(subscription: &str, resource_group: &str, cluster: &str, location: &str) -> Self {
        Self {
            subscription: subscription.into(),
            resource_group: resource_group.into(),
            cluster: cluster.into(),
            location: location.into(),
            node_resource_group: format!("MC_{resource_group}_{cluster}_{location}"),
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new("00000000-0000-0000-0000-000000000000", "spotpool-rg", "spotpool-sim", "eastus")
    }
}

/// What a pool's `count` says after some of the asked machines could not be allocated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CountAfterFailure {
    /// It stays as asked, above the machines that exist.
    #[default]
    Asked,
    /// It falls to the machines that exist.
    Existing,
}

/// Times and switches. They may be changed while the simulator runs and hold from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// From the order for a machine until its Node registers.
    #[serde(rename = "bootTimeMs", alias = "bootTime", with = "millis")]
    pub boot_time: Duration,
    /// From the order to delete a machine until it is gone.
    #[serde(rename = "deleteTimeMs", alias = "deleteTime", with = "millis")]
    pub delete_time: Duration,
    /// From acceptance of a write until a lack of capacity shows as a failed operation.
    #[serde(rename = "failTimeMs", alias = "failTime", with = "millis")]
    pub fail_time: Duration,
    /// The least time any operation takes.
    #[serde(rename = "updateTimeMs", alias = "updateTime", with = "millis")]
    pub update_time: Duration,
    /// From `Started` until a machine under Preempt or Terminate is gone.
    #[serde(rename = "killAfterMs", alias = "killAfter", with = "millis")]
    pub kill_after: Duration,
    /// From `Started` until the event vanishes from the document.
    #[serde(rename = "startedForMs", alias = "startedFor", with = "millis")]
    pub started_for: Duration,
    /// How long the first answer about scheduled events takes for each machine.
    #[serde(rename = "imdsFirstAnswerMs", alias = "imdsFirstAnswer", with = "millis")]
    pub imds_first_answer: Duration,
    /// Whether a pool's `count` falls when a machine is evicted.
    pub count_follows_evictions: bool,
    /// What `count` says after a failed allocation.
    pub count_after_failure: CountAfterFailure,
    /// Everything else that can be one way or another.
    #[serde(default)]
    pub switches: Switches,
}

impl Settings {
    /// Azure's pace, scaled to the given boot time (100 s is about right for the real thing).
    pub fn with_boot_time(boot_time: Duration) -> Self {
        Self {
            boot_time,
            delete_time: boot_time.mul_f64(0.3),
            fail_time: boot_time.mul_f64(0.2),
            update_time: boot_time.mul_f64(0.05),
            kill_after: Duration::from_millis(500),
            started_for: Duration::from_secs(2),
            imds_first_answer: Duration::ZERO,
            count_follows_evictions: true,
            count_after_failure: CountAfterFailure::Asked,
            switches: Switches::default(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::with_boot_time(Duration::from_secs(100))
    }
}

/// Settings to change; absent ones stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // each is the field of [`Settings`] of that name
pub struct SettingsPatch {
    #[serde(
        rename = "bootTimeMs",
        alias = "bootTime",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub boot_time: Option<Duration>,
    #[serde(
        rename = "deleteTimeMs",
        alias = "deleteTime",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub delete_time: Option<Duration>,
    #[serde(
        rename = "failTimeMs",
        alias = "failTime",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub fail_time: Option<Duration>,
    #[serde(
        rename = "updateTimeMs",
        alias = "updateTime",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub update_time: Option<Duration>,
    #[serde(
        rename = "killAfterMs",
        alias = "killAfter",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub kill_after: Option<Duration>,
    #[serde(
        rename = "startedForMs",
        alias = "startedFor",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub started_for: Option<Duration>,
    #[serde(
        rename = "imdsFirstAnswerMs",
        alias = "imdsFirstAnswer",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub imds_first_answer: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_follows_evictions: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_after_failure: Option<CountAfterFailure>,
    /// Switches to change; absent ones stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switches: Option<Value>,
}

impl SettingsPatch {
    /// Changes of switches only.
    pub fn switches(changes: Value) -> Self {
        Self { switches: Some(changes), ..Self::default() }
    }
}
