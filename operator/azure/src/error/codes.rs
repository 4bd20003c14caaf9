//! The table: each code of Azure's, what it means, and what follows.

use std::time::Duration;

use super::{Avoid, Class, Quota, Scope};

/// Ours: refused before the wire, to stay below Azure's limits.
pub const LOCAL_BUDGET: &str = "LocalBudget";
/// Ours: another replica leads.
pub const NOT_LEADER: &str = "NotLeader";
/// Ours: there is no token for the moment.
pub const SIGN_IN_FAILED: &str = "SignInFailed";

/// What one code means, in one of its meanings.
#[derive(Debug)]
pub struct Row {
    pub code: &'static str,
    /// Some codes have several meanings: the first row that fits counts.
    pub when: When,
    /// How status, Events and metrics name it; mostly the code itself.
    pub known_as: &'static str,
    pub class: Class,
    pub avoid: Option<Avoid>,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reference"))]
    pub meaning: &'static str,
    /// What a person should do.
    pub advice: &'static str,
}

/// What tells the meanings of one code apart.
#[derive(Debug)]
pub enum When {
    Always,
    /// The HTTP status of the answer.
    Status(u16),
    /// The message, in any case.
    Mentions(&'static str),
}

impl When {
    fn fits(&self, status: u16, message: &str) -> bool {
        match self {
            Self::Always => true,
            Self::Status(wanted) => *wanted == status,
            Self::Mentions(words) => message.to_ascii_lowercase().contains(words),
        }
    }
}

// Capacity comes and goes within minutes, and one machine is asked for first: a fifth of what AKS allows (20, and one a minute).
const CAPACITY: Duration = Duration::from_mins(5);
// Prices change by the hour, and quota of nothing is for a person.
const HOUR: Duration = Duration::from_hours(1);
// Quota is freed by any scale-down, and raised by a request that takes minutes.
const QUOTA: Duration = Duration::from_mins(10);
// A person has to act; looked at again often enough to notice that they have.
const PERSON: Duration = Duration::from_mins(5);
/// Whoever grants a right waits to see it work; ARM's refusals cost none of AKS's writes.
const RIGHT: Duration = Duration::from_mins(1);

const fn row(code: &'static str, class: Class, meaning: &'static str, advice: &'static str) -> Row {
    Row { code, when: When::Always, known_as: code, class, avoid: None, meaning, advice }
}

impl Row {
    const fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    const fn known_as(mut self, name: &'static str) -> Self {
        self.known_as = name;
        self
    }

    const fn avoid(mut self, scope: Scope, lasting: Duration) -> Self {
        self.avoid = Some(Avoid { scope, lasting });
        self
    }
}

const WAIT: &str = "Nothing; it is retried.";
const OTHER_SIZES: &str = "Add agent pools of other VM sizes or zones to spec.agentPools; more kinds of spot fail together less often.";
const RAISE_QUOTA: &str =
    "Request a higher quota in the Azure portal (Quotas, Compute), or free cores in this region.";
const GRANT: &str = "Grant the operator's identity the action named in the message on the cluster; docs list the role it needs.";
const REPORT: &str = "Check --azure-api-version, and report it: the request does not fit this API version.";

#[rustfmt::skip]
pub static TABLE: &[Row] = &[
    // Three meanings of one code.
    row("OperationNotAllowed", Class::Capacity, "quota is used up", RAISE_QUOTA)
        .when(When::Mentions("quota")).known_as("QuotaExceeded").avoid(Scope::Size, QUOTA),
    row("OperationNotAllowed", Class::Conflict, "another operation runs on the agent pool or cluster", WAIT)
        .when(When::Status(409)),
    row("OperationNotAllowed", Class::Invalid, "a property cannot be changed", "Make a new agent pool with the value that is wanted.")
        .avoid(Scope::AgentPool, PERSON),

    // Somebody was faster.
    row("PreconditionFailed", Class::Conflict, "the agent pool was changed since it was read (412)", WAIT),
    row("EtagMismatch", Class::Conflict, "the agent pool was changed while the request was handled", WAIT),
    row("OriginalEtagNotExpect", Class::Conflict, "the same, found by the operation", WAIT),
    row("AKSOperationPreempted", Class::Conflict, "another operation took the place of ours", WAIT),
    row("AKSOperationPreemptedByDelete", Class::Conflict, "a deletion took the place of ours", WAIT),
    row("AnotherOperationInProgress", Class::Conflict, "another operation runs", WAIT),
    row("OperationPreempted", Class::Conflict, "another operation took the place of ours", WAIT),
    row("Conflict", Class::Conflict, "something else runs or was faster", WAIT).when(When::Status(409)),

    // No capacity.
    row("SkuNotAvailable", Class::Capacity, "no capacity for this size, or it is restricted in the subscription", OTHER_SIZES)
        .avoid(Scope::Size, CAPACITY),
    row("AllocationFailed", Class::Capacity, "no capacity for this size in the region", OTHER_SIZES)
        .avoid(Scope::Size, CAPACITY),
    row("ZonalAllocationFailed", Class::Capacity, "no capacity for this size in the zone", OTHER_SIZES)
        .avoid(Scope::Zone, CAPACITY),
    row("OverconstrainedAllocationRequest", Class::Capacity, "no capacity that meets all constraints", OTHER_SIZES)
        .avoid(Scope::Size, CAPACITY),
    row("OverconstrainedZonalAllocationRequest", Class::Capacity, "no capacity in the zone that meets all constraints", OTHER_SIZES)
        .avoid(Scope::Zone, CAPACITY),
    row("SpotPriceGreaterThanProvidedMaxPrice", Class::Capacity, "the spot price is above the agent pool's spotMaxPrice",
        "Make an agent pool with spotMaxPrice -1, and bound the price by maxHourlyPrice.")
        .avoid(Scope::AgentPool, HOUR),
    row("QuotaExceeded", Class::Capacity, "quota is used up", RAISE_QUOTA).avoid(Scope::Size, QUOTA),
    row("ErrCode_InsufficientVCPUQuota", Class::Capacity, "quota is used up", RAISE_QUOTA).avoid(Scope::Size, QUOTA),
    row("InsufficientVCPUQuota", Class::Capacity, "quota is used up", RAISE_QUOTA).avoid(Scope::Size, QUOTA),

    // The request cannot succeed as it is.
    row("InsufficientSubnetSize", Class::Invalid, "the subnet has too few addresses", "Enlarge the agent pool's subnet, or use an agent pool in another.")
        .avoid(Scope::AgentPool, HOUR),
    row("SubnetIsFull", Class::Invalid, "the subnet has too few addresses", "Enlarge the agent pool's subnet, or use an agent pool in another.")
        .avoid(Scope::AgentPool, HOUR),
    row("VMSizeNotSupported", Class::Invalid, "the size cannot be used here", "Use another VM size.").avoid(Scope::Size, HOUR),
    row("PropertyChangeNotAllowed", Class::Invalid, "a property cannot be changed", "Make a new agent pool with the value that is wanted.")
        .avoid(Scope::AgentPool, PERSON),
    row("InvalidParameter", Class::Invalid, "a value is refused; for deleteMachines: a machine is gone", "Read the message; correct the agent pool or the SpotPool."),
    row("UnmarshalError", Class::Invalid, "the API version does not know a field", REPORT).avoid(Scope::AgentPool, PERSON),
    row("NoRegisteredProviderFound", Class::Invalid, "the API version is unknown here, or retired", "Set --azure-api-version to one that the message lists.")
        .avoid(Scope::Everything, PERSON),
    row("InvalidApiVersionParameter", Class::Invalid, "the API version is unknown", "Set --azure-api-version to one that the message lists.")
        .avoid(Scope::Everything, PERSON),
    row("InvalidResourceType", Class::Invalid, "the API version does not have agent pools", "Set --azure-api-version to a newer one.")
        .avoid(Scope::Everything, PERSON),
    row("ResourceNotFound", Class::Invalid, "the cluster or the agent pool does not exist", "Check --cluster-name and --resource-group, and spec.agentPools."),
    row("NotFound", Class::Invalid, "the cluster or the agent pool does not exist", "Check --cluster-name and --resource-group, and spec.agentPools."),
    row("ResourceGroupNotFound", Class::Invalid, "the resource group does not exist", "Check --resource-group and --subscription-id."),
    row("SubscriptionNotFound", Class::Invalid, "the subscription does not exist, or the identity has no rights in it", "Check --subscription-id, and the role assignment of the operator's identity."),

    // The identity may not, or nobody may.
    row("AuthorizationFailed", Class::Denied, "the identity lacks an action", GRANT).avoid(Scope::Everything, RIGHT),
    row("LinkedAuthorizationFailed", Class::Denied, "the identity lacks an action on something the agent pool uses, mostly its subnet", GRANT)
        .avoid(Scope::AgentPool, RIGHT),
    row("InvalidAuthenticationToken", Class::Denied, "the token is not accepted", "Check the identity and the cloud (--azure-cloud); tokens are renewed by themselves."),
    row("InvalidAuthenticationTokenTenant", Class::Denied, "the token is of another tenant", "Use an identity of the subscription's tenant."),
    row("ExpiredAuthenticationToken", Class::Denied, "the token is too old", "Check the clock of the node; tokens are renewed by themselves."),
    row("AuthenticationFailed", Class::Denied, "the token is not accepted", "Check the identity and the cloud (--azure-cloud); tokens are renewed by themselves."),
    row("RequestDisallowedByPolicy", Class::Denied, "an Azure Policy forbids it", "Read the message for the policy, and exempt the agent pool or change it.")
        .avoid(Scope::AgentPool, PERSON),
    row("ScopeLocked", Class::Denied, "a resource lock forbids it (409)", "Remove the lock on the cluster or its resource group.")
        .avoid(Scope::Everything, PERSON),
    row("ReadOnlyDisabledSubscription", Class::Denied, "the subscription is disabled", "Enable the subscription.")
        .avoid(Scope::Everything, PERSON),
    row("SubscriptionNotRegistered", Class::Denied, "the subscription has no Microsoft.ContainerService", "Register the resource provider in the subscription.")
        .avoid(Scope::Everything, PERSON),
    row("MissingSubscriptionRegistration", Class::Denied, "the subscription has no Microsoft.ContainerService", "Register the resource provider in the subscription.")
        .avoid(Scope::Everything, PERSON),

    // Limits on requests.
    row("Throttled", Class::Throttled, "AKS's limit on requests", WAIT),
    row("TooManyRequests", Class::Throttled, "ARM's limit on requests", WAIT),
    row("SubscriptionRequestsThrottled", Class::Throttled, "ARM's limit on requests", WAIT),
    row("OperationQuotaExceeded", Class::Throttled, "a limit on requests", WAIT),

    // May pass by itself.
    row("InternalServerError", Class::Transient, "something broke inside Azure", WAIT),
    row("InternalOperationError", Class::Transient, "something broke inside AKS", WAIT),
    row("ServiceUnavailable", Class::Transient, "Azure is not there for the moment", WAIT),
    row("ServerTimeout", Class::Transient, "Azure took too long", WAIT),
    row("GatewayTimeout", Class::Transient, "Azure took too long", WAIT),
    row("OperationTimedOut", Class::Transient, "the operation took too long", WAIT),
    row("OperationFailed", Class::Transient, "an operation failed and gave no reason", "Look at the agent pool in the Azure portal."),
    row("VMExtensionProvisioningError", Class::Transient, "nodes came up and did not join the cluster", "Check egress rules, DNS and the subnet; the message has the exit code.")
        .avoid(Scope::AgentPool, QUOTA),
    row("VMExtensionProvisioningTimeout", Class::Transient, "nodes came up and did not join the cluster in time", "Check egress rules, DNS and the subnet.")
        .avoid(Scope::AgentPool, QUOTA),

    // Ours.
    row(LOCAL_BUDGET, Class::Throttled, "we keep below Azure's limits: nothing was sent", "Nothing; five writes are kept for emergencies, the rest comes back by one a minute."),
    row(NOT_LEADER, Class::Conflict, "another replica leads: nothing was sent", "Nothing."),
    row("Timeout", Class::Transient, "no answer in time", "Check egress to Azure Resource Manager if it lasts."),
    row("ConnectionFailed", Class::Transient, "no connection", "Check egress to Azure Resource Manager, DNS and the proxy if it lasts."),
    row("NotUnderstood", Class::Transient, "the answer is not as documented", "Report it if it lasts; a proxy in between may be the cause."),
    row("CountNotCorrected", Class::Conflict, "Azure's count is not above the machines any more, or may change: nothing was sent", WAIT),
    row("OperationCanceled", Class::Conflict, "somebody cancelled the operation", "Nothing; it is planned anew."),
    row("InvalidName", Class::Invalid, "no name that Azure could have: nothing was sent", "Correct the VM size or region that the message shows."),

    // Ours, of signing in: no request is sent without a token.
    row("NoWorkloadIdentity", Class::Denied, "the pod was not given a workload identity", "Label the pod azure.workload.identity/use=\"true\", annotate its service account with the client id, and delete the pod."),
    row("NoFederatedToken", Class::Denied, "the federated token cannot be read", "Check that the token's volume is mounted in the pod; deleting the pod makes a new one."),
    row("FederatedTokenExpired", Class::Denied, "the federated token has expired (AADSTS700024)", "Check the node's clock and its kubelet; deleting the pod makes a new token."),
    row("FederatedTokenNotTrusted", Class::Denied, "Entra ID cannot verify the federated token (AADSTS700027)", "Check the cluster's OIDC issuer against that of the federated credential."),
    row("NoFederatedCredential", Class::Denied, "the identity does not trust the operator's service account (AADSTS70021, 700211 to 700213)", "Create a federated credential for the operator's service account (az identity federated-credential create)."),
    row("UnknownClient", Class::Denied, "the tenant has no identity with this client id (AADSTS700016)", "Correct azure.workload.identity/client-id on the operator's service account, and delete the pod."),
    row("ClientDisabled", Class::Denied, "the identity is disabled (AADSTS7000112)", "Enable it in Entra ID."),
    row("UnknownTenant", Class::Denied, "there is no such tenant in this cloud (AADSTS90002)", "Correct AZURE_TENANT_ID or --azure-cloud."),
    row("WrongCloud", Class::Denied, "the tenant knows no ARM by this name (AADSTS500011)", "Correct --azure-cloud."),
    row("NoManagedIdentity", Class::Denied, "the node's VM has no such managed identity", "Assign the identity to the node pool's scale set, or correct its client id."),
    row("NoAzureCli", Class::Denied, "az is not installed", "Install the Azure CLI; in a cluster use --azure-credential workload-identity."),
    row("AzureCliLoggedOut", Class::Denied, "az is not logged in any more", "Run az login."),
    row("SignInRefused", Class::Denied, "Entra ID refuses for another reason", "Read what Entra ID says in the message."),
    row(SIGN_IN_FAILED, Class::Transient, "no token for the moment", "Check egress to Entra ID or to the metadata service if it lasts."),
    row("SignInThrottled", Class::Throttled, "asked for tokens too often", WAIT),
    row("InvalidRequest", Class::Invalid, "our own checks refuse the request: nothing was sent", "Read the message; correct the SpotPool."),
];

/// The row for `code` in the meaning that fits.
pub fn find(status: u16, code: &str, message: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.code.eq_ignore_ascii_case(code) && row.when.fits(status, message))
}

/// Some wrappers name the cause in plain words only; only words that can mean nothing else count.
pub fn named_in(message: &str) -> Option<&'static Row> {
    let mut words = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.find_map(|word| {
        TABLE
            .iter()
            .find(|row| row.class == Class::Capacity && matches!(row.when, When::Always) && row.code == word)
    })
}

/// What a status means where no code says more.
pub fn class_of_status(status: u16) -> Class {
    match status {
        401 | 403 => Class::Denied,
        409 | 412 => Class::Conflict,
        429 => Class::Throttled,
        408 => Class::Transient,
        400..=499 => Class::Invalid,
        _ => Class::Transient,
    }
}

/// What a person should do where the code is not in the table.
pub fn advice_for(class: Class) -> &'static str {
    match class {
        Class::Conflict | Class::Throttled => WAIT,
        Class::Transient => "Nothing; it is retried. Look at the cluster in the Azure portal if it lasts.",
        Class::Invalid => "Read the message; correct the agent pool or the SpotPool.",
        Class::Denied => GRANT,
        Class::Capacity => OTHER_SIZES,
    }
}

/// How far and how long a used-up quota reaches: by what it limits, longer where the limit is 0.
pub fn narrowed(avoid: Avoid, quota: &Quota) -> Avoid {
    let name = quota.name.as_deref().unwrap_or_default().to_ascii_lowercase();
    let scope = match name.as_str() {
        "" => avoid.scope,
        "lowprioritycores" | "spotcores" => Scope::AllSpot,
        "cores" | "totalregionalcores" | "totalregionalvcpus" => Scope::AllOnDemand,
        _ => Scope::Size,
    };
    let lasting = if quota.current_limit == Some(0) { HOUR } else { avoid.lasting };
    Avoid { scope, lasting }
}
