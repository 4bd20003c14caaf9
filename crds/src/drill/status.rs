//! What a drill has done, and how that went.

use serde::Deserializer;

use super::{Condition, Deserialize, DrillMethod, JsonSchema, KubeSchema, Serialize, Time};
use crate::skew::{known, known_or};

// Words of a newer operator, which a rollback leaves here. A drill in a phase that is not known takes nothing, and what it may have
// closed is opened.
fn phase<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DrillPhase>, D::Error> {
    known(deserializer)
}
/// Nobody knows that all was well.
fn result<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DrillPhase, D::Error> {
    known_or(deserializer, DrillPhase::Failed)
}
fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DrillMethod, D::Error> {
    known_or(deserializer, DrillMethod::NoticeOnly)
}

/// What a drill has done. Written by the operator.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvictionDrillStatus {
    /// The `metadata.generation` that this is about; 0 until the operator has looked at it.
    #[serde(default)]
    pub observed_generation: i64,
    /// The `metadata.generation` that was last acted upon: a drill without a schedule runs once for each.
    #[serde(default)]
    pub ran_generation: i64,
    /// How far it is.
    #[serde(default, deserialize_with = "phase", skip_serializing_if = "Option::is_none")]
    pub phase: Option<DrillPhase>,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it runs next by its schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run_at: Option<Time>,
    /// The run that is under way, or was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<DrillRun>,
    /// Runs and refusals before it, the newest first, at most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past_runs: Vec<PastRun>,
    /// `Ready`, `Reconciling` and `Stalled`, as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How far a drill is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::Display,
    strum::IntoStaticStr,
)]
pub enum DrillPhase {
    /// It waits: for its time, for another drill, or until what it must know is known.
    Pending,
    /// Nodes are being taken.
    Running,
    /// No more nodes are taken; what was begun ends, and capacity comes back.
    Recovering,
    /// All that was expected held.
    Succeeded,
    /// Something that was expected did not hold.
    Failed,
    /// It was ended before its time.
    Aborted,
    /// It has taken nothing, because it would have gone beyond a limit.
    Refused,
    /// `dryRun`: it says what it would take.
    Planned,
}

impl DrillPhase {
    /// Whether nodes are, or may be, taken.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Running | Self::Recovering)
    }
}

impl EvictionDrillStatus {
    /// Whether a run is under way.
    pub fn is_under_way(&self) -> bool {
        self.phase.is_some_and(DrillPhase::is_under_way)
    }
}

/// One run.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillRun {
    /// Names it.
    pub id: String,
    /// How it ended, once it has.
    #[serde(default, deserialize_with = "phase", skip_serializing_if = "Option::is_none")]
    pub result: Option<DrillPhase>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How nodes are taken.
    #[serde(default, deserialize_with = "method")]
    pub method: DrillMethod,
    /// What the choice among equal nodes followed from.
    #[serde(default)]
    pub seed: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When all was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Since when no more nodes are taken because something has ended it before its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborted_at: Option<Time>,
    /// What has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub aborted_for: String,
    /// Nodes that might have been chosen.
    #[serde(default)]
    pub candidates: i32,
    /// The nodes that were chosen, in the order in which they are taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub targets: Vec<Target>,
    /// Units of the SpotPool that were ready.
    #[serde(default)]
    pub units: UnitsReady,
    /// What its machines cost an hour, as its status says; absent where no price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly_cost: Option<HourlyCosts>,
    /// What happened, the oldest first, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Moment>,
    /// What was expected, and what was measured; once it has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verdict: Vec<Expectation>,
}

/// A node that was chosen.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its name.
    pub node: String,
    /// The Node's uid: another node of that name is never taken.
    pub uid: String,
    /// Its VM, as in the Node's `spec.providerID`: another VM is never asked for.
    #[serde(default)]
    pub vm: String,
    /// Its agent pool.
    pub agent_pool: String,
    /// Its zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Units of capacity that it is worth.
    pub units: i32,
    /// Since when it may have been asked for: written before it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intended_at: Option<Time>,
    /// How often it may have been asked for: again where no answer came, and always the same VM.
    #[serde(default)]
    pub attempts: i32,
    /// When Azure, or the API server, had taken it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<Time>,
    /// Why it was not taken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
    /// When its notice was seen, or its agent began to drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noticed_at: Option<Time>,
    /// When it was seen closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned_at: Option<Time>,
    /// When nothing was left on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_at: Option<Time>,
    /// When it was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Time>,
    /// When as much was ready again as it was worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_at: Option<Time>,
    /// In a rehearsal: when it was open again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,
    /// What became of its pods.
    #[serde(default)]
    pub pods: DrilledPods,
    /// What its drain was held up by at any time, as its agent told, at most 3: in an eviction pods and why, in a rehearsal disruption
    /// budgets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<String>,
}

impl Target {
    /// Whether it is known what came of asking for it.
    pub fn is_answered(&self) -> bool {
        self.asked_at.is_some() || !self.refused.is_empty()
    }

    /// Whether nothing more is to come of it.
    pub fn is_over(&self, method: DrillMethod) -> bool {
        let done = match method {
            DrillMethod::SimulateEviction | DrillMethod::DeleteMachine => self.gone_at.is_some(),
            DrillMethod::NoticeOnly => self.released_at.is_some() || self.gone_at.is_some(),
        };
        self.intended_at.is_none() || !self.refused.is_empty() || done
    }

    /// Since when it is lost to the SpotPool: since its notice, or since it was gone where none was to come.
    pub fn lost_at(&self, method: DrillMethod) -> Option<&Time> {
        match method {
            DrillMethod::SimulateEviction | DrillMethod::NoticeOnly => self.noticed_at.as_ref(),
            DrillMethod::DeleteMachine => self.gone_at.as_ref(),
        }
    }
}

/// What became of the pods of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrilledPods {
    /// That a drain moves, when it was chosen.
    #[serde(default)]
    pub before: i32,
    /// Evicted.
    #[serde(default)]
    pub evicted: i32,
    /// Deleted past their disruption budget.
    #[serde(default)]
    pub escalated: i32,
    /// Left on it when last seen. With `DeleteMachine` they ended with it.
    #[serde(default)]
    pub left: i32,
}

/// Units of the SpotPool that were ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnitsReady {
    /// That it wanted when the run began.
    #[serde(default)]
    pub wanted: i32,
    /// Ready when the run began.
    #[serde(default)]
    pub before: i32,
    /// The fewest at any time since.
    #[serde(default)]
    pub lowest: i32,
    /// Ready now, or when the run ended.
    #[serde(default)]
    pub now: i32,
    /// Since when it is so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Wanted and not ready, in unit-seconds, until `since` or the end of the run.
    #[serde(default)]
    pub short_unit_seconds: i64,
    /// For how many seconds fewer were ready than wanted, until `since` or the end of the run.
    #[serde(default)]
    pub short_seconds: i64,
    /// How that went, the oldest first, at most 64: where there was more, every other is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub course: Vec<ReadyAt>,
}

/// What the SpotPool's machines cost an hour, by list prices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HourlyCosts {
    /// Of all amounts, by ISO 4217.
    #[serde(default)]
    pub currency: String,
    /// When the run began.
    #[serde(default)]
    pub before: String,
    /// The most at any time since.
    #[serde(default)]
    pub highest: String,
    /// Now, or when the run ended.
    #[serde(default)]
    pub now: String,
}

/// So many units were ready from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReadyAt {
    /// Since when.
    pub at: Time,
    /// How many.
    pub ready: i32,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// When it was seen.
    pub at: Time,
    /// In words.
    pub what: String,
}

/// What was expected, and what was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Expectation {
    /// The field of `spec.expect`.
    pub expectation: String,
    /// What it says.
    pub stated: String,
    /// What was the case.
    pub measured: String,
    /// Whether it held.
    pub held: bool,
}

/// A run that is over, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastRun {
    /// When it was over.
    pub ended_at: Time,
    /// How it ended.
    #[serde(deserialize_with = "result")]
    pub result: DrillPhase,
    /// The same in words.
    pub message: String,
    /// Nodes that were asked for.
    pub nodes: i32,
}
