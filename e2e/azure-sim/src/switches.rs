//! How hostile this Azure is: what its documents leave open, and what it does only sometimes.
//!
//! Each switch holds for all pools; a pool may have its own value of any that concerns pools.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::{CountAfterFailure, millis, optional_millis};

/// Whether answers show the eTags of pools; they are kept and compared either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ETags {
    /// As since autumn 2025.
    #[default]
    Present,
    /// As before, when the header was honoured and the body left it out.
    Absent,
}

/// How a status document names its operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OperationNames {
    /// With the bytes of the first three groups reversed.
    #[default]
    ByteSwapped,
    /// As the URL does.
    Same,
}

/// What becomes of a scale-up that cannot be had in full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Allocation {
    /// The machines that can be had come, the rest is refused.
    #[default]
    Partial,
    /// None comes.
    AllOrNothing,
}

/// What becomes of another `count` for a pool that the cluster autoscaler scales.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CountOfAutoscaled {
    /// 400: manual scaling is disabled.
    #[default]
    Refused,
    /// Accepted, and not acted upon.
    Ignored,
}

/// The code that refuses a change of an immutable property.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ImmutableChanges {
    /// `PropertyChangeNotAllowed`.
    #[default]
    PropertyChangeNotAllowed,
    /// `OperationNotAllowed`, which means other things too.
    OperationNotAllowed,
}

/// When a write that exceeds a quota is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum QuotaRefusal {
    /// The operation fails, with `QuotaExceeded`.
    #[default]
    AfterAcceptance,
    /// 400 `ErrCode_InsufficientVCPUQuota`.
    AtOnce,
}

/// All switches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Switches {
    /// Whether requests over a limit are refused. They are counted either way. For the subscription.
    pub throttling: bool,
    /// Requests a minute with which other clusters' controllers use the subscription's shared bucket. For the
    /// subscription.
    pub others_per_minute: u32,
    /// Agent pools on a page; all on one when absent. For the cluster.
    pub pools_per_page: Option<u32>,
    /// Machines on a page. For the cluster.
    pub machines_per_page: u32,
    /// Whether a page, when it is full, leads to one more that is empty. For the cluster.
    pub last_page_empty: bool,
    /// Whether answers show eTags.
    pub e_tags: ETags,
    /// Seconds of `Retry-After` on accepted writes and on the status of running operations; none when absent.
    pub retry_after: Option<u32>,
    /// How a status document names its operation.
    pub operation_names: OperationNames,
    /// The least time that operations take, if not the setting `updateTimeMs`.
    #[serde(rename = "operationTimeMs", alias = "operationTime", with = "optional_millis")]
    pub operation_time: Option<Duration>,
    /// From the order for a machine until its Node registers, if not the setting `bootTimeMs`.
    #[serde(rename = "bootTimeMs", alias = "bootTime", with = "optional_millis")]
    pub boot_time: Option<Duration>,
    /// What becomes of a scale-up that cannot be had in full.
    pub allocation: Allocation,
    /// Whether `count` falls when a machine is evicted, if not the setting of that name.
    pub count_follows_evictions: Option<bool>,
    /// What `count` says after a failed allocation, if not the setting of that name.
    pub count_after_failure: Option<CountAfterFailure>,
    /// What becomes of another `count` for an autoscaled pool.
    pub count_of_autoscaled: CountOfAutoscaled,
    /// Whether the cluster autoscaler brings a pool that evictions took below `minCount` back to it.
    pub autoscaler_restores_min_count: bool,
    /// The code that refuses a change of an immutable property.
    pub immutable_changes: ImmutableChanges,
    /// When a write that exceeds a quota is refused.
    pub quota_refusal: QuotaRefusal,
    /// From a `simulateEviction` until its event starts.
    #[serde(rename = "simulatedNoticeMs", alias = "simulatedNotice", with = "millis")]
    pub simulated_notice: Duration,
    /// Whether a machine has another bootID once a Reboot or Redeploy of it is over.
    pub reboots_machines: bool,
    /// Whether the Nodes of machines that are gone stay, silent, as while the cloud provider is behind.
    pub leaves_nodes: bool,
    /// Whether labels and taints that the pool declares are put back on its Nodes.
    pub put_back: bool,
    /// Whether the API server refuses to take declared labels and taints off Nodes. For the cluster.
    pub refuse_removal: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            throttling: false,
            others_per_minute: 0,
            pools_per_page: None,
            machines_per_page: 100,
            last_page_empty: false,
            e_tags: ETags::default(),
            retry_after: None,
            operation_names: OperationNames::default(),
            operation_time: None,
            boot_time: None,
            allocation: Allocation::default(),
            count_follows_evictions: None,
            count_after_failure: None,
            count_of_autoscaled: CountOfAutoscaled::default(),
            autoscaler_restores_min_count: true,
            immutable_changes: ImmutableChanges::default(),
            quota_refusal: QuotaRefusal::default(),
            simulated_notice: Duration::from_secs(30),
            reboots_machines: false,
            leaves_nodes: false,
            put_back: false,
            refuse_removal: false,
        }
    }
}

/// Switches that hold for more than one pool.
const NOT_OF_POOLS: &[&str] =
    &["throttling", "othersPerMinute", "poolsPerPage", "machinesPerPage", "lastPageEmpty", "refuseRemoval"];

impl Switches {
    /// These switches with some changed: an object of the switches to change, `null` for "none".
    pub fn with(&self, changes: &serde_json::Value) -> Result<Self, String> {
        let serde_json::Value::Object(changes) = changes else {
            return Err("switches must be an object".into());
        };
        // Twice through serde, so that a name is known by either of its spellings.
        let alone = serde_json::Value::Object(changes.clone());
        let parsed: Self = serde_json::from_value(alone).map_err(|error| format!("switches: {error}"))?;
        let (mut all, parsed) = match (serde_json::to_value(self), serde_json::to_value(parsed)) {
            (Ok(all), Ok(parsed)) => (all, parsed),
            (Err(error), _) | (_, Err(error)) => return Err(error.to_string()),
        };
        for key in changes.keys() {
            let key = if parsed.get(key).is_some() { key.clone() } else { format!("{key}Ms") };
            all[&key] = parsed[&key].clone();
        }
        serde_json::from_value(all).map_err(|error| format!("switches: {error}"))
    }

    /// The same for one pool; switches that pools have no say in are refused.
    pub fn of_pool(&self, changes: &serde_json::Value) -> Result<Self, String> {
        if let Some(key) = changes
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .find(|key| NOT_OF_POOLS.contains(&key.as_str()))
        {
            return Err(format!("switches: `{key}` cannot be set for one pool"));
        }
        self.with(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn some_are_changed_and_nonsense_is_refused() {
        let first = Switches::default().with(&json!({"eTags": "absent", "operationTime": "2m"})).unwrap();
        assert_eq!((first.e_tags, first.operation_time), (ETags::Absent, Some(Duration::from_mins(2))));
        let second = first.with(&json!({"operationTimeMs": null, "retryAfter": 7})).unwrap();
        assert_eq!(
            (second.e_tags, second.operation_time, second.retry_after),
            (ETags::Absent, None, Some(7))
        );
        for (wrong, said) in [
            (json!({"etags": "absent"}), "unknown field `etags`"),
            (json!({"eTags": "gone"}), "unknown variant `gone`"),
            (json!([]), "must be an object"),
        ] {
            let error = first.with(&wrong).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(
            first.of_pool(&json!({"throttling": true})).unwrap_err().contains("cannot be set for one pool")
        );
    }
}
