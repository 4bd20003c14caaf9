//! How Azure says that it cannot or will not: the errors of operations, and refusals that a scenario asks for.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::Priority;
use crate::refusal::Refusal;

/// A failure by the code that tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No spot capacity of the size, or the size is restricted.
    SkuNotAvailable,
    /// No capacity in the region.
    AllocationFailed,
    /// No capacity in the zone.
    ZonalAllocationFailed,
    /// The constraints cannot be met in the region.
    OverconstrainedAllocationRequest,
    /// The constraints cannot be met in the zone.
    OverconstrainedZonalAllocationRequest,
    /// The cores are more than the subscription may use.
    QuotaExceeded,
    /// The spot price is above the pool's `spotMaxPrice`.
    SpotPriceGreaterThanProvidedMaxPrice,
    /// Lack of capacity, in the older wrapper.
    ReconcileVMSSAgentPoolFailed,
    /// Another operation superseded this one.
    AKSOperationPreempted,
    /// The deletion of the pool superseded this operation.
    AKSOperationPreemptedByDelete,
    /// A race inside AKS, told by the operation.
    OriginalEtagNotExpect,
    /// A race inside AKS, told at once: 409.
    EtagMismatch,
    /// The cores are more than the subscription may use, told at once: 400.
    #[serde(rename = "ErrCode_InsufficientVCPUQuota")]
    InsufficientVcpuQuota,
    /// The size is not for agent pools, told at once: 400.
    VMSizeNotSupported,
    /// The subnet has too few addresses, told at once: 400.
    InsufficientSubnetSize,
    /// This very error of an operation.
    #[serde(rename = "custom")]
    Custom(Value),
}

impl FailureKind {
    /// Whether only a write that orders machines can fail so.
    pub fn needs_an_order(&self) -> bool {
        !matches!(
            self,
            Self::AKSOperationPreempted
                | Self::AKSOperationPreemptedByDelete
                | Self::OriginalEtagNotExpect
                | Self::EtagMismatch
                | Self::Custom(_)
        )
    }
}

/// When a failure shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Shows {
    /// In the answer to the write.
    AtOnce(Refusal),
    /// In the operation, as its `error`.
    Later(Value),
}

/// What an order was about.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// VM size.
    pub vm_size: &'a str,
    /// Azure region.
    pub location: &'a str,
    /// Availability zones of the pool.
    pub zones: &'a [String],
    /// Spot or on-demand.
    pub priority: Priority,
    /// The quota it counts against.
    pub quota: QuotaUse,
    /// `spotMaxPrice`.
    pub max_price: f64,
    /// What spot costs.
    pub price: f64,
}

/// How an order stands to a quota.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuotaUse {
    /// `LowPriorityCores`, or a family of on-demand cores.
    pub name: String,
    /// Cores that may be used.
    pub limit: u64,
    /// Cores in use.
    pub usage: u64,
    /// Cores that the order adds.
    pub required: u64,
}

impl QuotaUse {
    fn sentence(&self, location: &str) -> String {
        format!(
            "Operation could not be completed as it results in exceeding approved {} quota. Additional details - Deployment Model: Resource Manager, Location: {location}, Current Limit: {}, Current Usage: {}, Additional Required: {}, (Minimum) New Limit Required: {}. Setup Alerts when Quota reaches threshold. Learn more at https://aka.ms/quotamonitoringalerting .",
            self.name,
            self.limit,
            self.usage,
            self.required,
            self.usage + self.required
        )
    }
}

/// An error of Compute, as the operation of AKS hands it on: the code twice, the sentence in quotes.
fn nested(outer: &str, inner: &str, sentence: &str) -> Value {
    json!({
        "code": outer,
        "message": format!("Code=\"{inner}\" Message=\"{sentence}\""),
        "details": [{"code": inner, "message": sentence}],
    })
}

/// The failure in Azure's words.
pub fn tell(kind: &FailureKind, order: &Order<'_>) -> Shows {
    let (size, location) = (order.vm_size, order.location);
    let zone = order.zones.first().map_or("1", String::as_str);
    let guidance =
        "Read more about improving likelihood of allocation success at http://aka.ms/allocation-guidance";
    let preempted = |code: &str, by: &str| json!({"code": code, "message": format!("This operation was preempted by {by}.")});
    Shows::Later(match kind {
        FailureKind::SkuNotAvailable => nested(
            "SkuNotAvailable",
            "SkuNotAvailable",
            &format!(
                "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size}' is currently not available in location '{location}'. Please try another size or deploy to a different location or different zone. See https://aka.ms/azureskunotavailable for details."
            ),
        ),
        FailureKind::AllocationFailed => nested(
            "AllocationFailed",
            "AllocationFailed",
            &format!(
                "Allocation failed. We do not have sufficient capacity for the requested VM size in this region. {guidance}"
            ),
        ),
        FailureKind::ZonalAllocationFailed => nested(
            "ZonalAllocationFailed",
            "ZonalAllocationFailed",
            &format!(
                "Allocation failed. We do not have sufficient capacity for the requested VM size {size} in zone {zone}. {guidance}"
            ),
        ),
        FailureKind::OverconstrainedAllocationRequest => {
            overconstrained("OverconstrainedAllocationRequest", order)
        }
        FailureKind::OverconstrainedZonalAllocationRequest => {
            overconstrained("OverconstrainedZonalAllocationRequest", order)
        }
        FailureKind::QuotaExceeded => {
            nested("QuotaExceeded", "OperationNotAllowed", &order.quota.sentence(location))
        }
        FailureKind::SpotPriceGreaterThanProvidedMaxPrice => nested(
            "SpotPriceGreaterThanProvidedMaxPrice",
            "SpotPriceGreaterThanProvidedMaxPrice",
            &format!(
                "Unable to perform operation 'Create VM' since the provided max price '{} USD' is lower than the current spot price '{} USD' for Azure Spot VM size '{size}'. For more information, see http://aka.ms/AzureSpot/errormessages.",
                order.max_price, order.price
            ),
        ),
        FailureKind::ReconcileVMSSAgentPoolFailed => json!({
            "code": "ReconcileVMSSAgentPoolFailed",
            "message": format!("Code=\"AllocationFailed\" Message=\"Allocation failed. We do not have sufficient capacity for the requested VM size in this region. {guidance}\""),
        }),
        FailureKind::AKSOperationPreempted => preempted("AKSOperationPreempted", "another operation"),
        FailureKind::AKSOperationPreemptedByDelete => {
            preempted("AKSOperationPreemptedByDelete", "a delete operation")
        }
        FailureKind::OriginalEtagNotExpect => json!({
            "code": "OriginalEtagNotExpect",
            "message": "The original etag of the agent pool is not as expected: it was changed by another operation.",
        }),
        FailureKind::EtagMismatch => {
            return Shows::AtOnce(Refusal::flat(
                409,
                "EtagMismatch",
                "Operation is not allowed: the resource was changed by another operation. Please retry.",
            ));
        }
        FailureKind::InsufficientVcpuQuota => {
            let quota = &order.quota;
            return Shows::AtOnce(Refusal::flat(
                400,
                "ErrCode_InsufficientVCPUQuota",
                format!(
                    "Insufficient vcpu quota requested {}, remaining {} for family {} for region {location}.",
                    quota.required,
                    quota.limit.saturating_sub(quota.usage),
                    quota.name
                ),
            ));
        }
        FailureKind::VMSizeNotSupported => {
            return Shows::AtOnce(Refusal::flat(
                400,
                "VMSizeNotSupported",
                format!("The VM size '{size}' is not supported for agent pools in location '{location}'."),
            ));
        }
        FailureKind::InsufficientSubnetSize => {
            return Shows::AtOnce(Refusal::flat(
                400,
                "InsufficientSubnetSize",
                "Pre-allocated IPs exceed the IPs available in the subnet of the agent pool.",
            ));
        }
        FailureKind::Custom(error) => error.clone(),
    })
}

fn overconstrained(code: &str, order: &Order<'_>) -> Value {
    let mut constraints = vec!["VM Size", "Networking Constraints (such as Accelerated Networking or IPv6)"];
    if !order.zones.is_empty() {
        constraints.insert(0, "Availability Zone");
    }
    if order.priority == Priority::Spot {
        constraints.extend([
            "Low Priority VMs",
            "Preemptible VMs (VM might be preempted by another VM with a higher priority)",
        ]);
    }
    let list = format!("\n  - {}", constraints.join("\n  - "));
    let sentence = format!(
        "Allocation failed. VM(s) with the following constraints cannot be allocated, because the condition is too restrictive. Please remove some constraints and try again. Constraints applied are:{list}\n"
    );
    json!({
        "code": code,
        "message": format!("original error: Code=\"{code}\" Message=\"{sentence}\""),
        "details": [{"code": code, "message": sentence, "target": "6"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(zones: &[String]) -> Order<'_> {
        Order {
            vm_size: "Standard_D4s_v5",
            location: "eastus",
            zones,
            priority: Priority::Spot,
            quota: QuotaUse { name: "LowPriorityCores".into(), limit: 3, usage: 0, required: 6 },
            max_price: 0.05,
            price: 0.08,
        }
    }

    /// A controller that reads these must find each code where Azure puts it: outside, in `details`, or only in
    /// the message.
    #[test]
    fn each_failure_is_told_in_the_shape_that_azure_uses() {
        use FailureKind as K;
        let zones = ["2".to_owned()];
        for (kind, code, inner, part) in [
            (
                K::SkuNotAvailable,
                "SkuNotAvailable",
                Some("SkuNotAvailable"),
                "Following SKUs have failed for Capacity Restrictions: Standard_D4s_v5'",
            ),
            (K::AllocationFailed, "AllocationFailed", Some("AllocationFailed"), "sufficient capacity"),
            (
                K::ZonalAllocationFailed,
                "ZonalAllocationFailed",
                Some("ZonalAllocationFailed"),
                "VM size Standard_D4s_v5 in zone 2.",
            ),
            (
                K::OverconstrainedAllocationRequest,
                "OverconstrainedAllocationRequest",
                Some("OverconstrainedAllocationRequest"),
                "original error: Code=",
            ),
            (
                K::OverconstrainedZonalAllocationRequest,
                "OverconstrainedZonalAllocationRequest",
                Some("OverconstrainedZonalAllocationRequest"),
                "\n  - Low Priority VMs",
            ),
            (
                K::QuotaExceeded,
                "QuotaExceeded",
                Some("OperationNotAllowed"),
                "approved LowPriorityCores quota. Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: 3, Current Usage: 0, Additional Required: 6, (Minimum) New Limit Required: 6.",
            ),
            (
                K::SpotPriceGreaterThanProvidedMaxPrice,
                "SpotPriceGreaterThanProvidedMaxPrice",
                Some("SpotPriceGreaterThanProvidedMaxPrice"),
                "'0.05 USD' is lower than the current spot price '0.08 USD'",
            ),
            (
                K::ReconcileVMSSAgentPoolFailed,
                "ReconcileVMSSAgentPoolFailed",
                None,
                "Code=\"AllocationFailed\" Message=",
            ),
            (K::AKSOperationPreempted, "AKSOperationPreempted", None, "preempted by another operation"),
            (
                K::AKSOperationPreemptedByDelete,
                "AKSOperationPreemptedByDelete",
                None,
                "preempted by a delete",
            ),
            (K::OriginalEtagNotExpect, "OriginalEtagNotExpect", None, "etag"),
        ] {
            let Shows::Later(error) = tell(&kind, &order(&zones)) else {
                unreachable!("{kind:?} shows later")
            };
            assert_eq!(error["code"], code);
            assert_eq!(error["details"][0]["code"].as_str(), inner, "{error}");
            assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        }
        for (kind, status, code) in [
            (K::InsufficientVcpuQuota, 400, "ErrCode_InsufficientVCPUQuota"),
            (K::EtagMismatch, 409, "EtagMismatch"),
            (K::VMSizeNotSupported, 400, "VMSizeNotSupported"),
            (K::InsufficientSubnetSize, 400, "InsufficientSubnetSize"),
        ] {
            let Shows::AtOnce(refusal) = tell(&kind, &order(&zones)) else {
                unreachable!("{kind:?} shows at once")
            };
            assert_eq!((refusal.status, refusal.code.as_str()), (status, code));
        }
    }
}
