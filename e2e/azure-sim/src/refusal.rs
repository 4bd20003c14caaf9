//! Azure's refusals, each in the envelope and with the sentence that the real service uses.

use serde_json::{Value, json};

use crate::api::{Envelope, Identity};

/// An error answer to an ARM request.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// `code`.
    pub code: String,
    /// `message`.
    pub message: String,
    /// `target`, where the service gives one.
    pub target: Option<String>,
    /// Which envelope.
    pub envelope: Envelope,
}

impl Refusal {
    /// By the AKS resource provider.
    pub fn flat(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), target: None, envelope: Envelope::Flat }
    }

    /// By the ARM front door.
    pub fn wrapped(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { envelope: Envelope::Wrapped, ..Self::flat(status, code, message) }
    }

    /// A parameter that the resource provider does not accept.
    pub fn invalid_parameter(message: impl Into<String>) -> Self {
        Self::flat(400, "InvalidParameter", message)
    }

    /// A property that the api-version does not know.
    pub fn unknown_field(field: &str) -> Self {
        Self::flat(
            400,
            "UnmarshalError",
            format!("UnmarshalEntity encountered error: json: unknown field {field:?}."),
        )
    }

    /// A property that may not change.
    pub fn immutable(property: &str) -> Self {
        Self {
            target: Some(format!("properties.{property}")),
            ..Self::flat(
                400,
                "PropertyChangeNotAllowed",
                format!("Changing property 'properties.{property}' is not allowed."),
            )
        }
    }

    /// The pool has an operation running.
    pub fn busy(pool: &str, state: &str) -> Self {
        Self::flat(
            409,
            "OperationNotAllowed",
            format!(
                "Operation is not allowed: Another agentpool operation ({pool} - {state}) is in progress, please wait for it to finish before starting a new operation. See https://aka.ms/aks-pending-operation for more details"
            ),
        )
    }

    /// The cluster has an operation running.
    pub fn cluster_busy(state: &str) -> Self {
        Self::flat(
            409,
            "OperationNotAllowed",
            format!(
                "Operation is not allowed: Another operation ({state}) is in progress, please wait for it to finish before starting a new operation. See https://aka.ms/aks-pending-operation for more details"
            ),
        )
    }

    /// No such pool.
    pub fn no_pool(pool: &str) -> Self {
        Self::flat(404, "NotFound", format!("Could not find the agent pool: {pool}."))
    }

    /// No such managed cluster.
    pub fn no_cluster(cluster: &str, group: &str) -> Self {
        Self::wrapped(
            404,
            "ResourceNotFound",
            format!(
                "The Resource 'Microsoft.ContainerService/managedClusters/{cluster}' under resource group '{group}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
            ),
        )
    }

    /// An api-version that is not, or no longer, served.
    pub fn no_version(identity: &Identity, version: &str, supported: &[&str]) -> Self {
        Self::wrapped(
            400,
            "NoRegisteredProviderFound",
            format!(
                "No registered resource provider found for location '{location}' and API version '{version}' for type 'managedClusters/agentPools'. The supported api-versions are '{}'. The supported locations are '{location}'.",
                supported.join(", "),
                location = identity.location,
            ),
        )
    }

    /// `If-Match` or `If-None-Match` does not hold.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::flat(412, "PreconditionFailed", message)
    }

    /// The JSON body.
    pub fn body(&self) -> Value {
        match self.envelope {
            Envelope::Flat => {
                let mut body = json!({
                    "code": self.code, "details": null, "message": self.message, "subcode": "",
                });
                if let Some(target) = &self.target {
                    body["target"] = json!(target);
                }
                body
            }
            Envelope::Wrapped => json!({"error": {"code": self.code, "message": self.message}}),
        }
    }
}
