//! What a SpotPool costs, and what fallback may cost. Amounts are decimal numbers in text, in the operator's currency.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of on-demand nodes that stand in for spot when they cost more than a cap allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AtCap {
    /// They stay, and no more are bought.
    #[default]
    Hold,
    /// As many are returned as it takes, drained first, disruption budgets kept.
    Shed,
}

/// What a SpotPool costs, by list prices. Amounts are as of `ledger.at`: spend is written down again when something
/// changes, and every 10 minutes while anything costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MoneyStatus {
    /// Of all amounts, by ISO 4217.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub currency: String,
    /// What its machines cost an hour; absent while no price is known at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly: Option<HourlyCost>,
    /// How much less that is than `onDemandEquivalent`, in percent of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving_percent: Option<i32>,
    /// How much more `hourly.total` is than `hourly.planned`, in percent of that; negative where it is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variance_percent: Option<i32>,
    /// What has been spent in this month, by UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub this_month: Option<Spend>,
    /// The same by workload; only with the operator's `--cost-label`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_workload: Option<ByWorkload>,
    /// What on-demand in the stead of spot has cost in this hour, by UTC.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fallback_this_hour: String,
    /// `fallback.hourlyBudget`, and what is left of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly_budget: Option<BudgetStatus>,
    /// `fallback.monthlyBudget`, and what is left of it once every node that runs has lived its minimum lifetime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_budget: Option<BudgetStatus>,
    /// Until when annotation `spotpool.dev/budget-override` lifts both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_until: Option<Time>,
    /// When the oldest of the prices was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices_read_at: Option<Time>,
    /// What stands for prices that are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumptions: Vec<String>,
    /// What spend is reckoned from, across restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerStatus>,
}

/// What workloads have cost: what the ledger says was spent until `at`, shared by what their pods requested meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ByWorkload {
    /// The label of pods by whose values they are told apart.
    pub label: String,
    /// `ledger.at`.
    pub at: Time,
    /// The month of the ledger's page.
    pub this_month: WorkloadMonth,
    /// The month of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub month_before: Option<WorkloadMonth>,
}

/// One month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadMonth {
    /// Which, such as `2026-01`.
    pub month: String,
    /// What was spent on whom; it adds up to all that was spent.
    #[serde(default)]
    pub spent: Vec<WorkloadSpend>,
}

/// What was spent on a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSpend {
    /// A value of the label, at most 20; or `(none)`, `(idle)`, `(other)`, or `(unknown)`: before the label was set, or while
    /// no operator looked.
    pub workload: String,
    /// How much.
    pub amount: String,
}

/// Costs an hour, of all machines that exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HourlyCost {
    /// Spot.
    #[serde(default)]
    pub spot: String,
    /// On-demand that there always is: baseline, floor, kept nodes.
    #[serde(default)]
    pub on_demand: String,
    /// On-demand in the stead of spot.
    #[serde(default)]
    pub fallback: String,
    /// All of it.
    #[serde(default)]
    pub total: String,
    /// What the same machines would cost on demand; absent where that is not known of each size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand_equivalent: Option<String>,
    /// What the wanted capacity would cost, were all of it where the spec wants it; absent where that does not hold it, or a
    /// price is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<String>,
}

/// Amounts spent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spend {
    /// On spot.
    #[serde(default)]
    pub spot: String,
    /// On on-demand that there always is.
    #[serde(default)]
    pub on_demand: String,
    /// On on-demand in the stead of spot: this is what budgets bound.
    #[serde(default)]
    pub fallback: String,
}

/// A budget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// The cap.
    #[serde(default)]
    pub budget: String,
    /// What is left of it, never below nothing.
    #[serde(default)]
    pub left: String,
}

/// Spend is `page` and what `hourly` has cost since `at`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerStatus {
    /// When it was written.
    pub at: Time,
    /// The currency in which its month was begun.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub currency: String,
    /// Costs an hour since then.
    pub hourly: Spend,
    /// The same by agent pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent_pools: Vec<AgentPoolSpend>,
    /// When the newest of its nodes was made; younger ones are charged from their beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_node: Option<Time>,
    /// The month of `at`.
    pub page: LedgerPage,
    /// The month that was written before it: a clock that is put back finds it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_before: Option<LedgerPage>,
    /// What fallback had cost in the hour of `at`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hour: String,
    /// Shares of budgets of which an Event has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<ToldStatus>,
}

/// One month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerPage {
    /// Which, such as `2026-01`.
    pub month: String,
    /// Up to when it is reckoned.
    pub until: Time,
    /// What was spent in it until then.
    pub spent: Spend,
    /// The same by agent pool, those that the spec names. What they leave of it was spent on others before they were taken
    /// off the list. While the operator's clock is wrong an amount may be below nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent_pools: Vec<AgentPoolSpend>,
}

/// Amounts of one agent pool; those that are absent are nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPoolSpend {
    /// Its name.
    pub name: String,
    /// On spot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spot: String,
    /// On on-demand that there always is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub on_demand: String,
    /// On on-demand in the stead of spot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fallback: String,
}

/// Shares of budgets, in percent, of which an Event has told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToldStatus {
    /// Of this `fallback.hourlyBudget`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hourly_budget: String,
    /// 50, 80 or 100.
    #[serde(default)]
    pub hourly: i32,
    /// Of this `fallback.monthlyBudget`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub monthly_budget: String,
    /// 50, 80 or 100, in the month of the ledger's page.
    #[serde(default)]
    pub monthly: i32,
}
