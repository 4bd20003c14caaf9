//! Checks of SpotPools: what they say, and what the operator says of them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::Value;
use spotpool_crds::spot_pool::{AgentPoolStatus, Mode, Role};
use spotpool_crds::{Reason, SpotPool, SpotPoolStatus, names};

use super::{Facts, Finding, Found, Level};
use crate::explain::remedy;
use crate::output::short;
use crate::status::condition;

/// An operator looks at a change within this time.
const LOOKS_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// Prices are read every hour.
const PRICES_ARE_OLD: SignedDuration = SignedDuration::from_hours(6);

pub(super) fn about(pool: &SpotPool) -> String {
    format!("SpotPool {}/{}", pool.namespace().unwrap_or_default(), pool.name_any())
}

fn status(pool: &SpotPool) -> SpotPoolStatus {
    pool.status.clone().unwrap_or_default()
}

/// A finding for each SpotPool of which `look` says what is wrong and what to do.
#[expect(clippy::unnecessary_wraps, reason = "what every check gives; SpotPools are always read")]
fn each(
    check: &'static str,
    level: Level,
    facts: &Facts,
    look: impl Fn(&SpotPool, &SpotPoolStatus) -> Vec<(String, String)>,
) -> Found {
    let found = facts.pools.iter().flat_map(|pool| {
        let wrongs = look(pool, &status(pool));
        wrongs.into_iter().map(|(wrong, fix)| Finding::new(check, level, about(pool), wrong, fix))
    });
    Some(found.collect())
}

/// A condition that is as it should not be, with what helps against its reason.
fn told(status: &SpotPoolStatus, kind: &str, bad: &str) -> Vec<(String, String)> {
    let Some(condition) = condition(status, kind).filter(|it| it.status == bad) else { return Vec::new() };
    let reason = serde_json::from_value::<Reason>(Value::String(condition.reason.clone())).ok();
    let fix = reason.and_then(remedy).unwrap_or("kubectl spotpool explain says more");
    vec![(format!("{kind} is {bad} ({}): {}", condition.reason, condition.message), fix.to_owned())]
}

fn in_plan(status: &SpotPoolStatus, reason: Reason) -> Option<String> {
    status.plan.iter().find(|step| step.reason == reason).map(|step| step.message.clone())
}

fn help(reason: Reason) -> String {
    remedy(reason).unwrap_or_default().to_owned()
}

pub(super) fn watched(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Fail, facts, |pool, status| {
        let made = pool.metadata.creation_timestamp.as_ref().map_or(facts.now, |made| made.0);
        if status.observed_generation > 0 || facts.now.duration_since(made) < LOOKS_WITHIN {
            return Vec::new();
        }
        let namespace = pool.namespace().unwrap_or_default();
        let fix = format!(
            "add {namespace} to the operator's --pool-namespaces, and bind ClusterRole spotpool-operator-pools there"
        );
        vec![("no operator has ever looked at it".into(), fix)]
    })
}

/// When somebody last wrote something besides status.
fn changed(pool: &SpotPool) -> Option<Timestamp> {
    let writes = pool.metadata.managed_fields.iter().flatten();
    let writes = writes.filter(|write| write.subresource.as_deref() != Some("status"));
    writes.filter_map(|write| Some(write.time.as_ref()?.0)).max()
}

pub(super) fn current(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |pool, status| {
        let generation = pool.metadata.generation.unwrap_or_default();
        let is_behind = status.observed_generation > 0 && status.observed_generation < generation;
        let changed = changed(pool).filter(|changed| facts.now.duration_since(*changed) > LOOKS_WITHIN);
        let Some(changed) = changed.filter(|_| is_behind) else { return Vec::new() };
        let ago = short(facts.now.duration_since(changed).as_secs());
        let wrong = format!("the operator has not looked at its last change, {ago} ago");
        vec![(wrong, "look at the operator's log: it names what it fails at".into())]
    })
}

pub(super) fn azure_reachable(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Fail, facts, |_, status| told(status, "AzureReachable", "False"))
}

fn agent_pools(
    status: &SpotPoolStatus,
    look: impl Fn(&AgentPoolStatus) -> Option<(String, String)>,
) -> Vec<(String, String)> {
    status.agent_pools.iter().filter_map(look).collect()
}

pub(super) fn azure_permissions(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Fail, facts, |_, status| {
        agent_pools(status, |pool| {
            let error = pool.last_error.as_ref().filter(|error| error.class == "Denied")?;
            let wrong = format!(
                "Azure denies the operator agent pool {}: {}: {}",
                pool.name, error.code, error.message
            );
            Some((
                wrong,
                "give the operator's identity the rights that docs/reference/azure-access.md lists".into(),
            ))
        })
    })
}

pub(super) fn stalled(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Fail, facts, |_, status| {
        // These have checks of their own.
        let own = ["AgentPoolNotFound", "AgentPoolUnsuitable", "AgentPoolClaimed"];
        let is_own = condition(status, "Stalled").is_some_and(|it| own.contains(&it.reason.as_str()));
        if is_own { Vec::new() } else { told(status, "Stalled", "True") }
    })
}

pub(super) fn agents_healthy(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |_, status| told(status, "AgentsHealthy", "False"))
}

fn unusable(status: &SpotPoolStatus, reasons: &[Reason]) -> Vec<(String, String)> {
    agent_pools(status, |pool| {
        let reason = pool.unusable.filter(|reason| reasons.contains(reason))?;
        let why = match reason {
            Reason::AgentPoolStopped => "is stopped",
            _ => "is a System or Gateway pool, or one of single VMs that is autoscaled",
        };
        Some((format!("agent pool {} {why}", pool.name), help(reason)))
    })
}

pub(super) fn agent_pools_exist(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Fail, facts, |pool, status| {
        agent_pools(status, |entry| {
            let is_missing = entry.unusable == Some(Reason::AgentPoolNotFound);
            let named = pool.spec.agent_pools.iter().find(|named| named.name == entry.name);
            let name = &entry.name;
            match (is_missing, named.is_some_and(|named| named.create.is_some())) {
                (false, _) => None,
                (true, false) => {
                    Some((format!("agent pool {name} does not exist"), help(Reason::AgentPoolNotFound)))
                }
                // It is being made, unless Azure says otherwise. What it denies has a check of its own.
                (true, true) => {
                    let error = entry.last_error.as_ref().filter(|error| error.class != "Denied")?;
                    let (code, said) = (&error.code, &error.message);
                    let wrong =
                        format!("agent pool {name} does not exist, and could not be made: {code}: {said}");
                    let fix =
                        "mend what Azure names in spec.agentPools[].create, or make the agent pool yourself";
                    Some((wrong, fix.into()))
                }
            }
        })
    })
}

pub(super) fn agent_pools_usable(check: &'static str, facts: &Facts) -> Found {
    let reasons = [Reason::AgentPoolStopped, Reason::AgentPoolUnsuitable];
    each(check, Level::Fail, facts, |_, status| unusable(status, &reasons))
}

#[expect(clippy::unnecessary_wraps, reason = "what every check gives; SpotPools are always read")]
pub(super) fn claimed(check: &'static str, facts: &Facts) -> Found {
    let mut claims: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for pool in &facts.pools {
        for agent_pool in &pool.spec.agent_pools {
            claims.entry(&agent_pool.name).or_default().push(about(pool));
        }
    }
    let twice = claims.into_iter().filter(|(_, pools)| pools.len() > 1).map(|(name, pools)| {
        let wrong = format!("{} name it; the oldest has it, the others are stalled", pools.join(" and "));
        Finding::new(check, Level::Fail, format!("agent pool {name}"), wrong, help(Reason::AgentPoolClaimed))
    });
    Some(twice.collect())
}

/// Units that agent pools of a role may bring, as far as roles are known.
fn room(pool: &SpotPool, status: &SpotPoolStatus, role: Role) -> i64 {
    let of_role = |name: &str| status.agent_pools.iter().any(|it| it.name == name && it.role == Some(role));
    let pools = pool.spec.agent_pools.iter().filter(|it| of_role(&it.name));
    pools.map(|it| i64::from(it.max_nodes) * i64::from(it.capacity_units)).sum()
}

fn are_roles_known(status: &SpotPoolStatus) -> bool {
    !status.agent_pools.is_empty()
        && status.agent_pools.iter().all(|pool| pool.role.is_some() || pool.unusable.is_some())
}

pub(super) fn spot_room(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |pool, status| {
        let (room, on_demand) = (room(pool, status, Role::Spot), i64::from(pool.spec.on_demand.baseline));
        let wanted = i64::from(status.replicas) - on_demand;
        if !are_roles_known(status) || room == 0 || room >= wanted {
            return Vec::new();
        }
        let wrong = format!("its spot agent pools may have {room} units, and {wanted} are wanted of spot");
        vec![(wrong, "raise maxNodes of spot agent pools, or add another".into())]
    })
}

pub(super) fn fallback(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |pool, _| {
        if pool.spec.fallback.as_ref().is_some_and(|fallback| fallback.max_nodes > 0) {
            return Vec::new();
        }
        let wrong = "nothing is bought on demand while spot is missing: fallback.maxNodes is not set".into();
        vec![(wrong, "set fallback.maxNodes to the most on-demand nodes that may stand in".into())]
    })
}

pub(super) fn fallback_agent_pools(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Fail, facts, |pool, status| {
        let wants = pool.spec.fallback.as_ref().is_some_and(|fallback| fallback.max_nodes > 0)
            || pool.spec.on_demand.baseline > 0;
        if !wants || !are_roles_known(status) || room(pool, status, Role::OnDemand) > 0 {
            return Vec::new();
        }
        let wrong = "it wants on-demand, and none of its agent pools sells that with room for a node".into();
        vec![(wrong, "add an on-demand agent pool to spec.agentPools, with maxNodes above 0".into())]
    })
}

pub(super) fn budget_prices(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Fail, facts, |pool, status| {
        let Some(fallback) = &pool.spec.fallback else { return Vec::new() };
        if fallback.hourly_budget.is_none() && fallback.monthly_budget.is_none() {
            return Vec::new();
        }
        let said = |reason| in_plan(status, reason).map(|message| (message, help(reason)));
        if let Some(said) = said(Reason::BudgetBelowPrice).or_else(|| said(Reason::PriceUnknown)) {
            return vec![said];
        }
        let on_demand: Vec<_> =
            status.agent_pools.iter().filter(|it| it.role == Some(Role::OnDemand)).collect();
        if on_demand.is_empty() || on_demand.iter().any(|it| it.price.is_some()) {
            return Vec::new();
        }
        let wrong =
            "it has a budget, and no price of its on-demand agent pools is known: nothing is bought".into();
        vec![(wrong, help(Reason::PriceUnknown))]
    })
}

pub(super) fn prices_fresh(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |_, status| {
        let read = status.money.as_ref().and_then(|money| money.prices_read_at.as_ref());
        let age = read.map(|read| facts.now.duration_since(read.0)).filter(|age| *age > PRICES_ARE_OLD);
        let wrong = age.map(|age| format!("the oldest of its prices was read {} ago", short(age.as_secs())));
        let fix = "let the operator reach the Retail Prices API (prices.azure.com, or --prices-endpoint)";
        wrong.map(|wrong| (wrong, fix.to_owned())).into_iter().collect()
    })
}

pub(super) fn budget_exhausted(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |_, status| told(status, "BudgetExhausted", "True"))
}

pub(super) fn on_demand_available(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |_, status| told(status, "OnDemandAvailable", "False"))
}

pub(super) fn autoscaler_range(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |pool, status| {
        agent_pools(status, |it| {
            let range = it.autoscaler.as_ref()?;
            let spec = pool.spec.agent_pools.iter().find(|spec| spec.name == it.name)?;
            (range.max < spec.max_nodes).then(|| {
                let wrong = format!(
                    "agent pool {} is autoscaled up to {}, so its maxNodes of {} is never reached",
                    it.name, range.max, spec.max_nodes
                );
                (wrong, "raise the cluster autoscaler's maxCount, or lower maxNodes".into())
            })
        })
    })
}

pub(super) fn sole_owner(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |_, status| {
        // Two SpotPools with one agent pool have a check of their own.
        let mut found = told(status, "SoleOwner", "False");
        found.retain(|(wrong, _)| !wrong.contains("(AgentPoolClaimed)"));
        found
    })
}

pub(super) fn cost_tags(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |_, status| told(status, "CostTagsPresent", "False"))
}

pub(super) fn objective(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |_, status| told(status, "ObjectiveMet", "False"))
}

pub(super) fn switched_off(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |pool, _| {
        let wrong = match (pool.spec.suspend, pool.spec.mode) {
            (true, _) => ("it is suspended: nothing that is lost is replaced", Reason::Suspended),
            (false, Mode::Observe) => {
                ("it only observes: nothing that is lost is replaced", Reason::Observing)
            }
            (false, Mode::Enforce) => return Vec::new(),
        };
        vec![(wrong.0.into(), help(wrong.1))]
    })
}

pub(super) fn failback_paused(check: &'static str, facts: &Facts) -> Found {
    each(check, Level::Warn, facts, |pool, status| {
        let mut found = Vec::new();
        let key = names::FAILBACK_PAUSED_ANNOTATION;
        let value = pool.annotations().get(key).map(|text| text.trim());
        // A pause with an end is meant as it is.
        let is_open = |text: &str| text != "false" && text.parse::<Timestamp>().is_err();
        if let Some(value) = value.filter(|text| is_open(text)) {
            let wrong = format!("annotation {key} is `{value}`: on-demand is never given back");
            found.push((wrong, format!("take it off, or give it an end: {key}=2026-01-31T06:00:00Z")));
        }
        if let Some(said) = in_plan(status, Reason::BudgetOverrideIgnored) {
            found.push((said, help(Reason::BudgetOverrideIgnored)));
        }
        found
    })
}
