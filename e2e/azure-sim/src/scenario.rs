//! Scenarios: a cloud and what is to happen to it when, in YAML.
//!
//! ```yaml
//! settings: {bootTime: 8s}
//! switches: {throttling: true}
//! pools:
//!   - {name: spota, vmSize: Standard_D8s_v5, priority: Spot, count: 2}
//! timeline:
//!   - {at: 90s, evict: {pool: spota, count: 1, notice: 30s}}
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::{
    BackgroundOperation, Capacity, EventRequest, Failure, Fault, PoolSpec, Quota, SettingsPatch, Targets,
    duration, millis,
};
use crate::market::{BandChange, ScoreChange};
use crate::tokens::AuthPatch;

/// What is wrong with a scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadScenario(String);

/// A scenario.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scenario {
    /// Seed of all ids. Only a simulator that starts with the scenario heeds it.
    pub seed: Option<u64>,
    /// Times.
    pub settings: SettingsPatch,
    /// Pools that are there from the start.
    pub pools: Vec<PoolSpec>,
    /// What there is room for from the start.
    pub capacity: Vec<Capacity>,
    /// Quotas from the start.
    pub quotas: Vec<Quota>,
    /// What happens when, counted from the scenario's start; in the order of time.
    pub timeline: Vec<Step>,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// From the scenario's start.
    pub at: Duration,
    /// What.
    pub action: Action,
}

/// Machines to evict, in one change of the documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evict {
    /// Node or VM names.
    #[serde(default)]
    pub names: Vec<String>,
    /// Or machines of this pool.
    #[serde(default)]
    pub pool: Option<String>,
    /// How many of the pool; all when absent.
    #[serde(default)]
    pub count: Option<u32>,
    /// From the event's appearance until it starts.
    #[serde(rename = "noticeMs", alias = "notice", with = "millis", default = "usual_notice")]
    pub notice: Duration,
    /// It takes itself back after that long.
    #[serde(
        rename = "cancelAfterMs",
        alias = "cancelAfter",
        with = "crate::api::optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub cancel_after: Option<Duration>,
}

fn usual_notice() -> Duration {
    Duration::from_secs(30)
}

/// Another image, or another Kubernetes, for a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpgradePool {
    /// The pool.
    pub pool: String,
    /// The version of Kubernetes; only another node image when absent.
    #[serde(default)]
    pub kubernetes: Option<String>,
}

/// A count that somebody else puts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scale {
    /// The pool.
    pub pool: String,
    /// Its new count.
    pub count: u64,
}

/// Switches to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSwitches {
    /// The pool; all when absent.
    #[serde(default)]
    pub pool: Option<String>,
    /// The switches.
    pub set: Value,
}

/// What spot costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpotPrice {
    /// VM size.
    pub vm_size: String,
    /// Dollars an hour; absent or `null`: not on offer.
    #[serde(default)]
    pub price: Option<f64>,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Machines get a Preempt and go.
    Evict(Evict),
    /// Any event.
    Event(EventRequest),
    /// Events of that id, or that name that machine, are taken back.
    Cancel(String),
    /// Machines vanish with no notice at all.
    Kill(Targets),
    /// There is room for so many machines.
    Capacity(Capacity),
    /// The subscription may use so many cores.
    Quota(Quota),
    /// Something breaks.
    Fault(Fault),
    /// Nothing is broken any more.
    ClearFaults(Nothing),
    /// Writes to come fail.
    Failure(Failure),
    /// AKS does something of its own accord.
    Operation(BackgroundOperation),
    /// Every pool has another eTag.
    ChangeETags(Nothing),
    /// A pool is upgraded.
    Upgrade(UpgradePool),
    /// A pool is stopped.
    Stop(String),
    /// A pool is started again.
    Start(String),
    /// Somebody else puts a count.
    Scale(Scale),
    /// Times change.
    Settings(SettingsPatch),
    /// Switches change.
    Switches(PoolSwitches),
    /// Spot costs something else. A pool whose `spotMaxPrice` is lower gets no more machines.
    SpotPrice(SpotPrice),
    /// Machines of a size are taken more often, or less.
    EvictionRate(BandChange),
    /// Machines of a size are easier to get, or harder.
    PlacementScore(ScoreChange),
    /// Clients, tokens and denied actions change.
    Auth(AuthPatch),
    /// Every token that is out is revoked.
    RevokeTokens(Nothing),
    /// A pool appears, its machines running.
    AddPool(PoolSpec),
    /// A pool is gone at once.
    RemovePool(String),
}

/// `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// As it is written; the timeline is taken apart by hand, so that what is wrong with a step is said of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    settings: SettingsPatch,
    #[serde(default)]
    switches: Option<Value>,
    #[serde(default)]
    pools: Vec<PoolSpec>,
    #[serde(default)]
    capacity: Vec<Capacity>,
    #[serde(default)]
    quotas: Vec<Quota>,
    #[serde(default)]
    timeline: Vec<Value>,
}

impl Scenario {
    /// Reads a scenario in YAML (or JSON, which is YAML too).
    pub fn parse(text: &str) -> Result<Self, BadScenario> {
        let bad = |error: String| BadScenario(format!("the scenario is not valid: {error}"));
        let value: Value = serde_yaml_ng::from_str(text).map_err(|error| bad(error.to_string()))?;
        let written: Written = serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
        let mut timeline = Vec::new();
        for (place, step) in written.timeline.into_iter().enumerate() {
            let said = |error: String| bad(format!("step {} of the timeline: {error}", place + 1));
            timeline.push(Step::read(step).map_err(said)?);
        }
        timeline.sort_by_key(|step| step.at);
        let mut settings = written.settings;
        if let Some(switches) = written.switches {
            if settings.switches.is_some() {
                return Err(bad("switches are set twice, under `settings` and of their own".into()));
            }
            settings.switches = Some(switches);
        }
        Ok(Self {
            seed: written.seed,
            settings,
            pools: written.pools,
            capacity: written.capacity,
            quotas: written.quotas,
            timeline,
        })
    }
}

impl Step {
    /// Reads one action in YAML, to be done at once.
    pub fn now(text: &str) -> Result<Action, BadScenario> {
        let bad = |error: String| BadScenario(format!("the step is not valid: {error}"));
        let value: Value = serde_yaml_ng::from_str(text).map_err(|error| bad(error.to_string()))?;
        let Value::Object(mut members) = value else {
            return Err(bad("it must be one action, such as `stop: spota`".into()));
        };
        members.insert("at".into(), 0.into());
        Self::read(Value::Object(members)).map(|step| step.action).map_err(bad)
    }

    fn read(step: Value) -> Result<Self, String> {
        let Value::Object(mut members) = step else {
            return Err("it must be an object with `at` and one action".into());
        };
        let at = match members.remove("at") {
            Some(Value::String(text)) => duration(&text)?,
            Some(Value::Number(millis)) if millis.is_u64() => {
                Duration::from_millis(millis.as_u64().unwrap_or_default())
            }
            _ => return Err("`at` must say when, such as `at: 90s`".into()),
        };
        if members.len() != 1 {
            let names: Vec<&String> = members.keys().collect();
            return Err(format!("it must have one action beside `at`, and has {names:?}"));
        }
        let action = serde_json::from_value(Value::Object(members)).map_err(|error| error.to_string())?;
        Ok(Self { at, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A misspelt step that is silently left out makes a test that proves nothing.
    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        for (text, said) in [
            ("timelines: []", "unknown field `timelines`"),
            ("timeline: [{at: 1s, evct: {pool: spota}}]", "step 1 of the timeline: unknown variant `evct`"),
            ("timeline: [{at: 1s, evict: {pol: spota}}]", "unknown field `pol`"),
            (
                "timeline: [{at: 1s, stop: spota}, {at: soon, stop: spota}]",
                "step 2 of the timeline: `soon` is no duration",
            ),
            ("timeline: [{at: 1s, stop: spota, start: spota}]", "one action beside `at`"),
            ("timeline: [{stop: spota}]", "`at` must say when"),
            ("settings: {bootTym: 8s}", "unknown field `bootTym`"),
            ("pools: [{name: a}]", "missing field `vmSize`"),
            ("pools: [", "not valid"),
        ] {
            let error = Scenario::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn steps_are_in_the_order_of_time() {
        let text = "timeline: [{at: 2m, stop: b}, {at: 1500, start: a}]";
        let scenario = Scenario::parse(text).unwrap();
        let ats: Vec<Duration> = scenario.timeline.iter().map(|step| step.at).collect();
        assert_eq!(ats, [Duration::from_millis(1500), Duration::from_mins(2)]);
    }
}
