//! Names of labels, annotations, taints and conditions. People script on these: they do not change.

/// API group of every type of ours.
pub const GROUP: &str = "spotpool.dev";

/// Node label: name of the SpotPool that the node belongs to. Written by the operator.
pub const POOL_LABEL: &str = "spotpool.dev/pool";
/// Node label: namespace of that SpotPool. Written by the operator.
pub const POOL_NAMESPACE_LABEL: &str = "spotpool.dev/pool-namespace";

/// Node annotation: the notice that the node is under, see [`crate::EvictionNotice`]. Written by the
/// node's agent.
pub const EVICTION_ANNOTATION: &str = "spotpool.dev/eviction";
/// Node annotation: what the agent needs to know of the SpotPool, see [`crate::NodePolicy`]. Written by
/// the operator.
pub const POLICY_ANNOTATION: &str = "spotpool.dev/policy";
/// Node annotation: the operator asks for a voluntary drain, see
/// [`crate::voluntary_drain::DrainRequest`].
pub const DRAIN_REQUEST_ANNOTATION: &str = "spotpool.dev/drain-request";
/// Node annotation: the agent's answer, see [`crate::voluntary_drain::DrainStatus`].
pub const DRAIN_STATUS_ANNOTATION: &str = "spotpool.dev/drain-status";

/// Node annotation, set by a person: drain this node and replace it. The operator takes it off when it answers with
/// [`DRAIN_REQUEST_ANNOTATION`].
pub const REQUESTED_DRAIN_ANNOTATION: &str = "spotpool.dev/requested-drain";

/// SpotPool annotation, set by a person: `true`, or until when (RFC 3339) no node is asked to leave without need.
pub const FAILBACK_PAUSED_ANNOTATION: &str = "spotpool.dev/failback-paused";
/// SpotPool annotation, set by a person: give back now what is no longer needed. Each new value is one wish; status says
/// which was answered and how.
pub const REQUESTED_FAILBACK_ANNOTATION: &str = "spotpool.dev/requested-failback";
/// SpotPool annotation, set by a person: until when (RFC 3339, at most 7 days ahead) the budgets of `fallback` do not hold.
pub const BUDGET_OVERRIDE_ANNOTATION: &str = "spotpool.dev/budget-override";
/// Finalizer of SpotPools that have marked nodes.
pub const FINALIZER: &str = "spotpool.dev/release";

/// Pod annotation, set by whoever owns the pod: `true` asks for [`DEADLINE_ANNOTATION`] when its node is under
/// notice.
pub const NOTIFY_ANNOTATION: &str = "spotpool.dev/notify";
/// Pod annotation: by when the pod must be gone, RFC 3339 in UTC. Written by the node's agent on pods that asked.
pub const DEADLINE_ANNOTATION: &str = "spotpool.dev/deadline";
/// Pod annotation, set by whoever owns the pod: port and path, such as `:8080/checkpoint`, that the node's agent
/// POSTs the notice to before it evicts the pod.
pub const HOOK_ANNOTATION: &str = "spotpool.dev/hook";
/// Pod annotation, set by whoever owns the pod: how long the answer to the hook is waited for, such as `10s`.
pub const HOOK_TIMEOUT_ANNOTATION: &str = "spotpool.dev/hook-timeout";
/// Pod annotation, set by whoever owns the pod: `Leave` or `DeleteAtDeadline`, in place of the SpotPool's
/// `drain.blockedByPdb`.
pub const BLOCKED_BY_PDB_ANNOTATION: &str = "spotpool.dev/blocked-by-pdb";
/// Pod label, set by whoever owns the pod: `last` has a drain ask it after the others, as log shippers want.
pub const DRAIN_ORDER_LABEL: &str = "spotpool.dev/drain-order";
/// Its value.
pub const DRAIN_ORDER_LAST: &str = "last";

/// Label of a workload, set by whoever owns it: `spot` says that its pods are meant for spot nodes. Nothing is done by it;
/// lint and the chart's `workloadPolicies` hold the workload to it.
pub const WORKLOAD_LABEL: &str = "spotpool.dev/workload";
/// Its value.
pub const WORKLOAD_SPOT: &str = "spot";

/// Well-known taint of a cordoned node, effect `NoSchedule`. Kubernetes' node controller keeps it in step with the cordon.
pub const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Taint on a node under notice; its value is the event type, its effect `NoSchedule`.
pub const EVICTING_TAINT: &str = "spotpool.dev/evicting";
/// Node condition that says the same to people and other tools. Written by the agent.
pub const EVICTION_NOTICED_CONDITION: &str = "EvictionNoticed";
/// Well-known Kubernetes label that takes a node out of cloud load balancers.
pub const EXCLUDE_FROM_LOAD_BALANCERS_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Its value where we have put it: one that somebody else has set is not ours to take off.
pub const EXCLUDE_FROM_LOAD_BALANCERS_VALUE: &str = "spotpool.dev";

/// Taint by which AKS's own auto-drain closes a node.
pub const AKS_REMEDIATOR_TAINT: &str = "remediator.kubernetes.azure.com/unschedulable";
/// Taint of a node that the cluster autoscaler is about to delete. Its softer `DeletionCandidateOf…` closes nothing.
pub const AUTOSCALER_DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Well-known Kubernetes taint that sets the pods of a node free whose VM does not run.
pub const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";
/// Its value where the operator has put it: one that a person has put is not ours to take off.
pub const OUT_OF_SERVICE_VALUE: &str = "spotpool.dev";
/// Taint by which the cloud provider says that a node's VM is stopped or deallocated.
pub const SHUTDOWN_TAINT: &str = "node.cloudprovider.kubernetes.io/shutdown";

/// Condition that AKS's node problem detector sets on a Node whose spot VM will be taken back.
pub const PREEMPTION_SCHEDULED_CONDITION: &str = "PreemptionScheduled";
/// The same for Azure's other events.
pub const VM_EVENT_SCHEDULED_CONDITION: &str = "VMEventScheduled";

/// AKS's label with the name of a node's agent pool.
pub const AGENT_POOL_LABEL: &str = "kubernetes.azure.com/agentpool";

/// Label on the agent's Pods, by which harness and operator find them.
pub const APP_NAME_LABEL: &str = "app.kubernetes.io/name";
/// Its value on agent Pods.
pub const AGENT_APP_NAME: &str = "spotpool-node-agent";
/// Its value on operator Pods.
pub const OPERATOR_APP_NAME: &str = "spotpool-operator";

/// Field manager of what the operator writes.
pub const OPERATOR_FIELD_MANAGER: &str = "spotpool-operator";
/// Field manager of what the agent writes.
pub const AGENT_FIELD_MANAGER: &str = "spotpool-node-agent";
