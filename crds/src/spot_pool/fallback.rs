//! On-demand in the place of spot: when it is bought, and when it is given back.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{AtCap, Window};
use crate::duration::Duration;

/// Limits of on-demand fallback.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("duration(self.growthAfter) >= duration(self.after)")
    .message("fallback.growthAfter must be at least fallback.after: raise the one or lower the other"))]
#[x_kube(validation = Rule::new("!has(self.hourlyBudget) || !has(self.monthlyBudget) || !self.hourlyBudget.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') || !self.monthlyBudget.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') || double(self.monthlyBudget) >= double(self.hourlyBudget)")
    .message("fallback.monthlyBudget is less than one hour of fallback.hourlyBudget: raise the one or lower the other"))]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// How long capacity that was lost or refused may be missing before on-demand is bought, 0s to 24h.
    #[serde(default = "default_after")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("fallback.after must be at most 24h"))]
    pub after: Duration,

    /// How long growth and a first start wait for spot that is on its way before on-demand is bought,
    /// 0s to 24h.
    #[serde(default = "default_growth_after")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("fallback.growthAfter must be at most 24h"))]
    pub growth_after: Duration,

    /// Most on-demand nodes bought to stand in for spot, 0 to 1000, running or on their way; nodes kept by
    /// `adoption: Keep` do not count.
    #[schemars(range(min = 0, max = 1000))]
    pub max_nodes: i32,

    /// The most that these nodes may cost an hour together, running, on their way or leaving, in the operator's
    /// currency, such as `"6.00"`. Without it there is no such cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') && self.matches('[1-9]')")
        .message("fallback.hourlyBudget must be an amount above 0, such as 6.00: leave it out for no cap, or set fallback.maxNodes to 0 to buy nothing"))]
    pub hourly_budget: Option<String>,

    /// The most that these nodes may cost in a month by UTC. None is bought unless what is spent, and what every one of
    /// them costs until its `failback.minOnDemandLifetime` is over, fits in. Without it there is no such cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') && self.matches('[1-9]')")
        .message("fallback.monthlyBudget must be an amount above 0, such as 900: leave it out for no cap, or set fallback.maxNodes to 0 to buy nothing"))]
    pub monthly_budget: Option<String>,

    /// What becomes of these nodes when they cost more than a cap allows, because a price rose, a budget was lowered or
    /// the month's is spent: `Hold` keeps them and buys no more, `Shed` returns as many as it takes.
    #[serde(default)]
    pub at_cap: AtCap,
}

/// How on-demand is given back.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failback {
    /// For how long on-demand that spot has replaced is kept, in case spot fails again: as much as was needed at most
    /// within this time stays, 0s to 24h. Nodes that a smaller pool does not need are kept as long.
    #[serde(default = "default_stabilization")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("failback.stabilization must be at most 24h"))]
    pub stabilization: Duration,

    /// How long an on-demand node lives at least, 0s to 24h.
    #[serde(default = "default_min_on_demand_lifetime")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("failback.minOnDemandLifetime must be at most 24h"))]
    pub min_on_demand_lifetime: Duration,

    /// Most nodes drained at a time, 1 to 100.
    #[serde(default = "default_max_concurrent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_concurrent: i32,

    /// How long a drain may wait for disruption budgets before the node is given back, 1s to 24h.
    #[serde(default = "default_drain_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("failback.drainTimeout must be 1s to 24h"))]
    pub drain_timeout: Duration,

    /// The first on-demand node goes alone: for how long no more may have been needed since it is gone before others follow,
    /// 0s to 24h. `0s` lets `maxConcurrent` go together from the start.
    #[serde(default = "default_probe")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("failback.probe must be at most 24h"))]
    pub probe: Duration,

    /// When nodes may be asked to leave without need, if not always. A drain that has begun goes on when it closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

fn default_after() -> Duration {
    Duration::from_secs(0)
}

fn default_growth_after() -> Duration {
    Duration::from_secs(300)
}

fn default_stabilization() -> Duration {
    Duration::from_secs(60)
}

fn default_min_on_demand_lifetime() -> Duration {
    Duration::from_secs(0)
}

fn default_max_concurrent() -> i32 {
    1
}

fn default_drain_timeout() -> Duration {
    Duration::from_secs(900)
}

fn default_probe() -> Duration {
    Duration::from_secs(60)
}

impl Default for Failback {
    fn default() -> Self {
        Self {
            stabilization: default_stabilization(),
            min_on_demand_lifetime: default_min_on_demand_lifetime(),
            max_concurrent: default_max_concurrent(),
            drain_timeout: default_drain_timeout(),
            probe: default_probe(),
            window: None,
        }
    }
}
