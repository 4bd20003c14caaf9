//! What a person can do about a reason.

use spotpool_crds::Reason;

/// What would change it; nothing where time or Azure must.
pub fn remedy(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::FallbackAtLimit => {
            "set fallback.maxNodes, or raise it, and name an on-demand agent pool, to let more on-demand stand in"
        }
        Reason::FallbackAtBudget | Reason::ShedOverBudget => {
            "raise fallback.hourlyBudget or fallback.monthlyBudget, or lift both for a time with annotation spotpool.dev/budget-override"
        }
        Reason::BudgetBelowPrice => "raise the budget to at least the price of one on-demand node",
        Reason::PriceUnknown => {
            "let the operator reach the Retail Prices API (--prices-endpoint), or take the budget off: what has no price is not bought under one"
        }
        Reason::BudgetOverrideIgnored => {
            "give annotation spotpool.dev/budget-override a time at most 7 days ahead, such as 2026-01-31T06:00:00Z"
        }
        Reason::NoCandidateWithRoom => {
            "raise maxNodes of an agent pool, or add another agent pool to spec.agentPools"
        }
        Reason::OnDemandUnavailable => {
            "add an on-demand agent pool of another size or zone to spec.agentPools, or ask Azure for quota"
        }
        Reason::AutoscalerAtMaximum => "raise maxCount of the cluster autoscaler for that agent pool",
        Reason::AgentPoolNotFound => {
            "create the agent pool (az aks nodepool add), or take it out of spec.agentPools"
        }
        Reason::AgentPoolClaimed => "take the agent pool out of one of the two SpotPools",
        Reason::AgentPoolUnsuitable => "use a User agent pool, and turn autoscaling off for single VMs",
        Reason::AgentPoolStopped => "start it (az aks nodepool start), or take it out of spec.agentPools",
        Reason::NoSpotAgentPool => "name at least one spot agent pool in spec.agentPools",
        Reason::Suspended => "set spec.suspend to false",
        Reason::Observing => "set spec.mode to Enforce",
        Reason::AzureUnreachable => {
            "see what Azure said, and give the operator's identity the rights of docs/reference/azure-access.md"
        }
        Reason::AgentsNotReady => {
            "look at the agents' DaemonSet, and at the logs of its Pods on the nodes that the condition names"
        }
        Reason::FailbackPaused => "take annotation spotpool.dev/failback-paused off the SpotPool",
        Reason::WindowInvalid => "mend failback.window: five fields of cron, an IANA time zone, a duration",
        Reason::WindowClosed => {
            "wait for failback.window, or wish for it now: kubectl spotpool failback POOL --now"
        }
        Reason::Stabilizing | Reason::MinimumLifetime => {
            "wait, or wish for it now: kubectl spotpool failback POOL --now"
        }
        Reason::PodsDoNotFit => {
            "raise maxNodes of spot agent pools, lower the pods' requests, or let them run on spot: they find no room there"
        }
        Reason::DrainTimedOut => {
            "look at the disruption budgets that held its pods, and raise failback.drainTimeout"
        }
        Reason::PriceAboveCeiling => "raise maxHourlyPrice of that agent pool, or wait for the price to fall",
        Reason::FloorAtLimit => "raise onDemand.pdbFloor.maxUnits, or maxNodes of on-demand agent pools",
        Reason::CostTagsMissing => "put the tags on the agent pool (az aks nodepool update --tags)",
        Reason::CountChangedElsewhere | Reason::MinimumChangedElsewhere => {
            "leave the agent pool's count to SpotPool: take it out of Terraform, Bicep or scripts"
        }
        Reason::NodeAutoProvisioning => {
            "keep node auto-provisioning away from these workloads, or turn it off"
        }
        Reason::ScaleUpStalled | Reason::ScaleUpIncomplete | Reason::NeverJoined => {
            "look at the agent pool in Azure: its VMs were asked for and have not become nodes"
        }
        Reason::ObjectiveBurning | Reason::ObjectiveMissed | Reason::Cautious => {
            "give it more spot agent pools to choose from, or more room for fallback"
        }
        _ => return None,
    })
}
