//! Why something was decided. One value becomes condition reason, Event reason, metric label and log
//! field alike.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why the operator or the agent did, or did not do, something.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::AsRefStr,
    strum::Display,
    strum::EnumIter,
    strum::EnumMessage,
    strum::IntoStaticStr,
)]
pub enum Reason {
    /// Everything wanted is ready and nothing is in flight.
    AsWanted,
    /// Capacity is on its way.
    Progressing,
    /// Spot is asked for to reach the wanted size (first start, growth, or a pool that decayed).
    SpotBelowTarget,
    /// Spot is asked for in place of nodes under notice.
    ReplaceEvicted,
    /// Spot is asked for, or kept, ahead of an eviction that Azure only hints at.
    ReplaceAhead,
    /// Spot is asked for, or kept, beyond what is wanted because some was lost lately (`standby.afterLoss`).
    StandbyAfterLoss,
    /// Every agent pool has the tags of `costTags`.
    CostTagsPresent,
    /// An agent pool lacks a tag of `costTags`.
    CostTagsMissing,
    /// Early signs make an agent pool dearer.
    EarlySignal,
    /// On-demand is bought because `onDemand.baseline` asks for it.
    OnDemandBelowBaseline,
    /// On-demand is bought because `onDemand.pdbFloor` asks for it.
    OnDemandBelowFloor,
    /// Disruption budgets need more on-demand than is kept, or less; the floor follows once that has lasted.
    FloorChanging,
    /// Disruption budgets need more on-demand than `onDemand.pdbFloor.maxUnits`, or the agent pools, allow.
    FloorAtLimit,
    /// What disruption budgets need cannot be told yet; the floor stays as it is.
    FloorUnknown,
    /// On-demand is bought because spot was lost or refused.
    FallbackForShortfall,
    /// Growth waits for spot that is on its way before on-demand is bought.
    WaitingForSpot,
    /// Growth waits for a better agent pool that has an operation running, and does not go to a dearer one.
    WaitingForAgentPool,
    /// Machines that were asked for have neither become Nodes nor appeared in Azure for 10 minutes.
    ScaleUpStalled,
    /// An operation is over, and fewer machines have come than were asked for, without an error.
    ScaleUpIncomplete,
    /// On-demand is wanted, and no on-demand agent pool has capacity, quota or room for it.
    OnDemandUnavailable,
    /// On-demand can be had, as far as is known, or none is wanted.
    OnDemandAvailable,
    /// Fallback is wanted but `fallback.maxNodes` is reached, or no fallback is configured.
    FallbackAtLimit,
    /// Fallback is wanted, or runs, that `fallback.hourlyBudget` or `fallback.monthlyBudget` does not allow.
    FallbackAtBudget,
    /// The first on-demand node is about to be bought in the place of spot: what it costs, and what budgets leave.
    FallbackStarting,
    /// What fallback costs has reached 50, 80 or 100 percent of a budget.
    BudgetThreshold,
    /// A budget of `fallback` is less than one node of any on-demand agent pool costs.
    BudgetBelowPrice,
    /// No price is known of what a budget should bound: nothing is bought of it.
    PriceUnknown,
    /// A node is asked to drain because fallback costs more than a budget allows, and `fallback.atCap` is `Shed`.
    ShedOverBudget,
    /// An annotation lifts the budgets of `fallback` for a time.
    BudgetOverridden,
    /// An annotation should lift the budgets of `fallback`, and does not say until when as it must.
    BudgetOverrideIgnored,
    /// What fallback costs is within its budgets.
    WithinBudget,
    /// No budget bounds what fallback may cost.
    NoBudget,
    /// No agent pool has room for what is missing.
    NoCandidateWithRoom,
    /// An autoscaled agent pool is at the cluster autoscaler's `maxCount`, which is never changed.
    AutoscalerAtMaximum,
    /// The minimum of an autoscaled agent pool is raised to nodes that are there and counted on, so that the cluster
    /// autoscaler leaves them.
    HoldMinimum,
    /// The minimum of an autoscaled agent pool is lowered, because so many nodes are not needed; the cluster autoscaler
    /// takes those that are idle.
    LowerMinimum,
    /// A drain request is taken back because the cluster autoscaler has the node's agent pool now.
    LeftToAutoscaler,
    /// An agent pool has an operation running; what it cannot take goes elsewhere or waits.
    AgentPoolBusy,
    /// An agent pool's price is above its `maxHourlyPrice`, or not known.
    PriceAboveCeiling,
    /// An agent pool that had no capacity is tried again, with one node first.
    Probing,
    /// An agent pool is avoided after an error until a stated time.
    AgentPoolAvoided,
    /// Spot is whole again; on-demand is kept until it has been so for `failback.stabilization`.
    Stabilizing,
    /// A node is asked to drain because spot can carry the load again.
    Failback,
    /// What runs on a surplus on-demand node would find no room on the ready spot nodes; it is kept.
    PodsDoNotFit,
    /// The first node is given back alone; the others follow if spot stays whole.
    FailbackProbe,
    /// Nodes are no longer needed and leave when `failback.window` opens.
    WindowClosed,
    /// `failback.window` cannot be understood: nothing is given back until it is mended.
    WindowInvalid,
    /// A person has paused failback.
    FailbackPaused,
    /// A person asked for failback now.
    FailbackRequested,
    /// A person asked for this node to be drained and replaced.
    ManualDrain,
    /// A drain request that another SpotPool left on a node is taken back.
    DrainNotOurs,
    /// The SpotPool is being deleted and returns the on-demand nodes that it bought in the place of spot.
    ReturningFallback,
    /// The SpotPool is being deleted: its drain requests are taken back.
    Leaving,
    /// A surplus node is younger than `failback.minOnDemandLifetime`.
    MinimumLifetime,
    /// A node is asked to drain because fewer nodes are wanted.
    ScaleDown,
    /// A drained node's machine is deleted.
    ReturnDrained,
    /// Azure's count is above the machines that exist, and is lowered to them, so that no later change of the
    /// agent pool brings VMs back that nobody wants.
    CountCorrected,
    /// A drain request is taken back because its node is needed again.
    NodeNeededAgain,
    /// A drain ended without success (disruption budgets) and its request is withdrawn.
    DrainTimedOut,
    /// The named agent pool does not exist in the cluster.
    AgentPoolNotFound,
    /// An agent pool that does not exist is made, as its `create` says.
    CreateAgentPool,
    /// The named agent pool may not be managed (System or Gateway mode, or single VMs that are autoscaled).
    AgentPoolUnsuitable,
    /// Another, older SpotPool already has the agent pool.
    AgentPoolClaimed,
    /// The agent pool is stopped: it has no machines, and none can be asked for.
    AgentPoolStopped,
    /// AKS upgrades or starts the agent pool: its nodes count as they did, and nothing is moved meanwhile.
    AgentPoolInUpkeep,
    /// Somebody else has changed an agent pool's count.
    CountChangedElsewhere,
    /// Somebody else has changed the minimum of an autoscaled agent pool.
    MinimumChangedElsewhere,
    /// The cluster has node auto-provisioning, which buys nodes for pending pods as well.
    NodeAutoProvisioning,
    /// Nobody else was seen to change the agent pools.
    SoleOwner,
    /// None of the named agent pools is a spot pool.
    NoSpotAgentPool,
    /// `spec.suspend` is true.
    Suspended,
    /// `spec.mode` is `Observe`: planned and explained, not done.
    Observing,
    /// Azure could not be reached or refused.
    AzureUnreachable,
    /// Azure answers.
    AzureReachable,
    /// Each node has an agent that is ready, or has not been without for long.
    AgentsHealthy,
    /// Nodes have had no agent for long that is ready: their notices are heard late, or not at all.
    AgentsNotReady,
    /// Fewer ready units than wanted and no way to get more now.
    CapacityShort,
    /// Spot carries all that it should.
    SpotReady,
    /// On-demand stands in for spot.
    OnDemandStandsIn,
    /// No on-demand stands in for spot.
    NoFallback,
    /// The SpotPool is cautious, because its error budget burns or has burned too fast: more on demand, failback paused.
    Cautious,
    /// As much was ready as `objective` asks for.
    ObjectiveKept,
    /// Error budget is left, and it burns too fast.
    ObjectiveBurning,
    /// Little is missing any more; caution is taken back step by step.
    ObjectiveRecovering,
    /// Caution is over.
    ObjectiveRecovered,
    /// The error budget of `objective` is used up.
    ObjectiveMissed,
    /// Nothing that was wanted has been measured yet.
    ObjectiveUnknown,
    /// Azure refused a request, or an operation that it had accepted has failed.
    OperationFailed,
    /// Azure announced the eviction of this node's VM.
    SpotEvictionNoticed,
    /// Azure took an announced eviction back.
    SpotEvictionCancelled,
    /// Azure announced a freeze, reboot, redeploy or the end of this node's VM.
    MaintenanceNoticed,
    /// The announced event has come and gone, or the node has booted since: it is at work again.
    EventOver,
    /// Azure was told to go ahead with an announced event, because every node that it names is drained.
    EventAcknowledged,
    /// Azure recommends to move away from this spot VM, which it may take back soon.
    RebalanceRecommended,
    /// No agent has claimed a node's notice in time: the operator drains the node.
    BackupDrain,
    /// A VM does not run any more, says Azure: its node is out of service, and its pods are set free.
    OutOfService,
    /// A machine is deleted because its VM was lost and does not go by itself.
    LostDeleted,
    /// A machine is deleted because it has been there for half an hour and has not become a Node.
    NeverJoined,
    /// Azure is asked to start VMs that it had deallocated.
    RestartDeallocated,
    /// Every pod that a drain moves has left the node.
    DrainCompleted,
    /// The deadline came with pods left on the node.
    DrainIncomplete,
    /// A pod was asked to go within its disruption budgets, because its node is emptied.
    PodEvicted,
    /// A pod was deleted past its disruption budget because its VM is about to die.
    DisruptionBudgetOverridden,
    /// The node's voluntary drain began.
    VoluntaryDrainStarted,
    /// A pod's hook could not be asked, or did not answer well: its pod goes all the same.
    HookFailed,
    /// The metadata service sent something that could not be understood.
    MetadataNotUnderstood,
    /// A drill waits: for its time, for another drill, or until what it must know is known.
    DrillWaits,
    /// A drill without a run would take these nodes.
    DrillPlanned,
    /// A drill has taken nothing, because it would have gone beyond a limit.
    DrillRefused,
    /// A drill takes nodes on purpose.
    DrillStarted,
    /// Of a drill, no more nodes are taken; what was begun ends, and capacity comes back.
    DrillRecovering,
    /// A drill was ended before its time.
    DrillAborted,
    /// A drill is over, and all that was expected held.
    DrillSucceeded,
    /// A drill is over, and something that was expected did not hold.
    DrillFailed,
    /// A reason of a newer version, as a program reads it that does not know it. Nothing is ever decided for it.
    Unknown,
}
