//! How much of what is wanted is to be ready, and how much was.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::duration::Duration;
use crate::skew::known_or;

/// How much of what is wanted is to be ready, over time. Where it is missed too fast the SpotPool becomes cautious: more
/// on demand, inside the limits of `fallback`, and nothing of that given back.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// The share of the wanted unit-time that is to be ready, in percent, 50 to 99.99, such as `"99.5"`.
    #[schemars(regex(pattern = r"^[5-9][0-9](\.[0-9]{1,2})?$"), length(max = 5))]
    #[x_kube(validation = Rule::new(r"self.matches('^[5-9][0-9]([.][0-9]{1,2})?$')")
        .message("objective.availability must be a percentage from 50 to 99.99 in quotes, such as \"99.5\""))]
    pub availability: String,

    /// Over how long, 1h to 2160h.
    #[serde(default = "default_window")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h') && duration(self) <= duration('2160h')")
        .message("objective.window must be 1h to 2160h"))]
    pub window: Duration,
}

fn default_window() -> Duration {
    Duration::from_secs(720 * 3600)
}

/// What was measured of the objective, and what follows from it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectiveStatus {
    /// In short: what was reached, of what, and the mode.
    pub summary: String,
    /// Whether the SpotPool is cautious.
    #[serde(deserialize_with = "mode")]
    pub mode: ObjectiveMode,
    /// Steps of caution, 0 to 5.
    #[serde(default)]
    pub caution: i32,
    /// When the last step was taken, up or down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caution_changed: Option<Time>,
    /// Since when so little is missing that steps are taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calm_since: Option<Time>,
    /// What was reached over the window, in percent; empty while nothing was wanted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub availability: String,
    /// What is left of the error budget, in percent of it; negative once more was missed than it allows.
    #[serde(default)]
    pub budget_left_percent: i32,
    /// The same in unit-minutes.
    #[serde(default)]
    pub budget_left_unit_minutes: i64,
    /// How many times as fast as the objective allows units were missing, over each of these windows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["window".into()]))]
    pub burn_rates: Vec<BurnRate>,
    /// When these figures were taken: at a change, and every 5 minutes while they move.
    pub as_of: Time,
    /// Since when less is ready than counts as wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_since: Option<Time>,
    /// How long it took at last until as much was ready again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_replacement: Option<Duration>,
    /// How drains of nodes ended whose VM Azure took, since there is an objective.
    #[serde(default)]
    pub drains: Drains,
    /// What the figures are made of.
    pub measured: Measured,
}

/// How drains of nodes ended whose VM Azure took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drains {
    /// Over before the VM was taken.
    #[serde(default)]
    pub in_time: i64,
    /// Not over then.
    #[serde(default)]
    pub late: i64,
}

/// A word of a newer operator, which a rollback leaves: how cautious to be is reckoned anew from what was measured.
fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectiveMode, D::Error> {
    known_or(deserializer, ObjectiveMode::Normal)
}

/// Whether a SpotPool is cautious.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ObjectiveMode {
    /// As the spec says.
    #[default]
    Normal,
    /// More on demand, inside the limits of `fallback`, nothing of that given back, and more on standby.
    Cautious,
}

/// One burn rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BurnRate {
    /// Over how long: `5m`, `30m`, `1h`, `2h`, `6h`, `1d` or `3d`, and never longer than the objective's window.
    pub window: String,
    /// 1 uses up the error budget just within the objective's window.
    pub rate: String,
}

/// What was measured, for the operator that reads it next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Since when.
    pub since: Time,
    /// Since when what follows is so: until then all is in the sums below.
    pub at: Time,
    /// Units that count as wanted.
    pub wanted: i32,
    /// Of these, ready.
    pub ready: i32,
    /// Whether Azure cannot give what is missing: it does not answer, or has nothing, on-demand included.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outage: bool,
    /// Unit-seconds since the beginning.
    pub unit_seconds: UnitSeconds,
    /// The objective's window that `window_parts` are made for.
    pub window: Duration,
    /// Stretches of 5 minutes, the newest last: unit-seconds that counted as wanted, `-` those of them that were missing,
    /// `x` how many stretches in a row were so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub minutes: String,
    /// The same by hours.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hours: String,
    /// The same by 72nd parts of the window.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub window_parts: String,
}

/// Unit-seconds since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnitSeconds {
    /// That counted as wanted.
    #[serde(default)]
    pub wanted: i64,
    /// Of these, missing.
    #[serde(default)]
    pub missing: i64,
    /// Missing while Azure could not give them: neither wanted nor missing above.
    #[serde(default)]
    pub outage: i64,
}
