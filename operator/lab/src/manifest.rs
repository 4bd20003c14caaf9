//! A SpotPool out of a file, held to what the API server would refuse.

use serde_json::Value;
use spotpool_crds::spot_pool::{SpotPool, SpotPoolSpec};

use crate::input::{BadInput, in_words};

/// Reads a SpotPool.
pub fn read(place: &str, text: &str) -> Result<SpotPool, BadInput> {
    let value: Value =
        serde_yaml_ng::from_str(text).map_err(|error| BadInput::of(place, error.to_string()))?;
    if value["kind"] != "SpotPool" {
        return Err(BadInput::of(place, format!("kind is {}: give a file with one SpotPool", value["kind"])));
    }
    let pool: SpotPool = serde_yaml_ng::from_str(text).map_err(|error| {
        BadInput::of(place, format!("{}: see docs/reference/spotpool.md", in_words(&error.to_string())))
    })?;
    let known = serde_json::to_value(&pool.spec).map_err(|error| BadInput::of(place, error.to_string()))?;
    if let Some(field) = unknown(&value["spec"], &known, "spec") {
        return Err(BadInput::of(place, format!("{field} is no field of a SpotPool: correct or remove it")));
    }
    check(&pool.spec).map_err(|what| BadInput::of(place, what))?;
    Ok(pool)
}

/// The first field that is written and that reading has dropped.
fn unknown(written: &Value, known: &Value, path: &str) -> Option<String> {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => written.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match known.get(key) {
                Some(known) => unknown(value, known, &path),
                // Empty ones are left out where the spec is written.
                None if value.is_null() || *value == Value::Array(Vec::new()) => None,
                None => Some(path),
            }
        }),
        (Value::Array(written), Value::Array(known)) => {
            let pairs = written.iter().zip(known).enumerate();
            pairs
                .into_iter()
                .find_map(|(at, (written, known))| unknown(written, known, &format!("{path}[{at}]")))
        }
        _ => None,
    }
}

/// The rules of the CRD that a simulation would stumble over: Kubernetes checks them by schema and CEL.
pub fn check(spec: &SpotPoolSpec) -> Result<(), String> {
    let within = |what: &str, value: i32, least: i32, most: i32| {
        let is_within = (least..=most).contains(&value);
        is_within.then_some(()).ok_or_else(|| format!("{what} is {value}: set {least} to {most}"))
    };
    within("spec.replicas", spec.replicas, 0, 5000)?;
    within("the number of spec.agentPools", spec.agent_pools.len() as i32, 1, 32)?;
    for (at, pool) in spec.agent_pools.iter().enumerate() {
        within(&format!("maxNodes of {}", pool.name), pool.max_nodes, 0, 1000)?;
        within(&format!("capacityUnits of {}", pool.name), pool.capacity_units, 1, 100)?;
        if spec.agent_pools[..at].iter().any(|other| other.name == pool.name) {
            return Err(format!("agent pool {} is there twice: name each once", pool.name));
        }
    }
    within("spec.placement.maxSharePerPool", spec.placement.max_share_per_pool, 1, 100)?;
    within("spec.onDemand.baseline", spec.on_demand.baseline, 0, 1000)?;
    within("spec.standby.units", spec.standby.units, 0, 1000)?;
    within("spec.standby.afterLoss.percent", spec.standby.after_loss.percent, 0, 100)?;
    within("spec.failback.maxConcurrent", spec.failback.max_concurrent, 1, 100)?;
    if let Some(fallback) = &spec.fallback {
        within("spec.fallback.maxNodes", fallback.max_nodes, 0, 1000)?;
        if fallback.growth_after < fallback.after {
            return Err(
                "fallback.growthAfter must be at least fallback.after: raise the one or lower the other"
                    .into(),
            );
        }
        for (what, amount) in
            [("hourlyBudget", &fallback.hourly_budget), ("monthlyBudget", &fallback.monthly_budget)]
        {
            let is_amount =
                |text: &String| text.parse().is_ok_and(|amount: f64| amount > 0.0 && amount.is_finite());
            if amount.as_ref().is_some_and(|amount| !is_amount(amount)) {
                return Err(format!(
                    "fallback.{what} must be an amount above 0, such as 6.00: leave it out for no cap"
                ));
            }
        }
    }
    Ok(())
}
