//! Why a SpotPool has as many nodes as it has.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde::Serialize;
use spotpool_core::{Opening, opening};
use spotpool_crds::spot_pool::AgentPoolStatus;
use spotpool_crds::{Duration, SpotPool, SpotPoolStatus, names};

use super::{Section, remedy, render_sections, when};
use crate::output::counted;
use crate::status::{Row, condition, heading, is_right, money, role, row};

/// A SpotPool, explained.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// In short.
    #[serde(flatten)]
    pub row: Row,
    /// Under headings.
    pub sections: Vec<Section>,
}

/// Explains it from what stands on it.
pub fn view(pool: &SpotPool, now: Timestamp) -> View {
    let status = pool.status.clone().unwrap_or_default();
    let section = |about, says| Section { about, says };
    let sections = vec![
        section("Why this count", count(pool, &status, now)),
        section("Why these agent pools", status.agent_pools.iter().map(|it| agent_pool(it, now)).collect()),
        section("What it is doing", doing(&status)),
        section("What comes next", next(pool, &status, now)),
        section("What would change it", changes(pool, &status)),
    ];
    View { row: row(pool), sections }
}

/// As text.
pub fn render(view: &View, now: Timestamp, prose: usize) -> String {
    heading(&view.row, now, prose) + &render_sections(&view.sections, prose)
}

fn count(pool: &SpotPool, status: &SpotPoolStatus, now: Timestamp) -> Vec<String> {
    let spec = &pool.spec;
    if status.observed_generation == 0 {
        return vec![format!(
            "{} units are wanted by spec.replicas; no operator has looked at it yet",
            spec.replicas
        )];
    }
    let wanted = status.replicas;
    let floor = status.floor.as_ref().map_or(0, |floor| floor.units);
    let by = if wanted == spec.replicas {
        "spec.replicas says so".to_owned()
    } else if wanted == spec.on_demand.baseline {
        format!("onDemand.baseline is more than the {} of spec.replicas", spec.replicas)
    } else if wanted == floor {
        format!(
            "disruption budgets need more than the {} of spec.replicas (onDemand.pdbFloor)",
            spec.replicas
        )
    } else {
        format!("spec.replicas is {} now, and the operator has not looked at that yet", spec.replicas)
    };
    let mut says = vec![format!("{} wanted: {by}", counted(wanted, "unit"))];
    let capacity = &status.capacity;
    says.push(format!(
        "{} ready: {} on spot, {} on demand",
        counted(status.ready_replicas, "unit"),
        capacity.ready_spot,
        capacity.ready_on_demand
    ));
    let since = |what: &str, at: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        at.as_ref().map(|at| format!("{what} since {}", when(at.0, now)))
    };
    if capacity.on_the_way > 0 {
        says.push(format!("{} asked of Azure and not ready yet", counted(capacity.on_the_way, "unit")));
    }
    if capacity.evicting > 0 {
        says.push(format!("{} under notice: still there, worth nothing", counted(capacity.evicting, "unit")));
    }
    says.extend(since("capacity that was there is missing", &capacity.lost_since));
    says.extend(since("growth waits for capacity", &capacity.growth_since));
    if status.fallback.nodes > 0 {
        let nodes = counted(status.fallback.nodes, "on-demand node");
        says.extend(since(&format!("{nodes} in the place of spot"), &status.fallback.since));
    }
    if let Some(floor) = &status.floor {
        let capped = match floor.capped_by.as_str() {
            "" => String::new(),
            by => format!("; {by} keeps it below the {} that are needed", floor.needed.unwrap_or_default()),
        };
        says.push(format!("{} kept on demand for disruption budgets{capped}", counted(floor.units, "unit")));
    }
    if spec.standby.units > 0 {
        says.push(format!(
            "{} of spot kept ready beyond that (standby.units)",
            counted(spec.standby.units, "unit")
        ));
    }
    says.extend(money(status));
    says
}

fn agent_pool(pool: &AgentPoolStatus, now: Timestamp) -> String {
    let mut said = format!("{} ({}", pool.name, role(pool.role));
    if !pool.vm_size.is_empty() {
        said.push_str(&format!(", {}", pool.vm_size));
    }
    said.push_str(&format!("): {}, {} ready", counted(pool.machines, "machine"), pool.ready));
    if let Some(rank) = &pool.rank {
        said.push_str(&format!("; rank {}: {}", rank.position, rank.why));
    }
    if let Some(reason) = &pool.unusable {
        said.push_str(&format!("; not used: {reason}"));
    }
    if let Some(until) = pool.avoided_until.as_ref().filter(|until| until.0 > now) {
        said.push_str(&format!("; avoided for {} until {}", pool.avoided_for, when(until.0, now)));
    }
    if let Some(losses) = &pool.losses {
        said.push_str(&format!("; lost {} lately, the last {}", losses.count, when(losses.at.0, now)));
    }
    if let Some(error) = &pool.last_error {
        said.push_str(&format!(
            "; Azure said {} ({}): {}",
            error.code,
            when(error.time.0, now),
            error.message
        ));
    }
    said
}

fn doing(status: &SpotPoolStatus) -> Vec<String> {
    let steps = status.plan.iter().map(|step| format!("{}: {}", step.reason, step.message));
    let told = |message: &str| status.plan.iter().any(|step| step.message == message);
    let wrong = status.conditions.iter().filter(|it| !is_right(it) && !it.message.is_empty());
    let wrong = wrong
        .filter(|it| {
            !["Ready", "Reconciling", "SpotAvailable", "FallbackActive"].contains(&it.type_.as_str())
        })
        .filter(|it| !told(&it.message))
        .map(|it| format!("{} is {} ({}): {}", it.type_, it.status, it.reason, it.message));
    steps.chain(wrong).collect()
}

/// What time alone brings, in order.
fn next(pool: &SpotPool, status: &SpotPoolStatus, now: Timestamp) -> Vec<String> {
    let spec = &pool.spec;
    let later =
        |at: Timestamp, duration: Duration| at.saturating_add(std::time::Duration::from(duration)).ok();
    let mut events: Vec<(Option<Timestamp>, String)> = Vec::new();
    let (fallback, capacity) = (&status.fallback, &status.capacity);
    if let Some(since) = &fallback.surplus_since {
        let needed_until = fallback.needed_before.first().map(|past| past.until.0);
        events.push((
            later(needed_until.map_or(since.0, |until| until.max(since.0)), spec.failback.stabilization),
            "more nodes are there than needed: the first may be asked to leave (failback.stabilization)"
                .to_owned(),
        ));
    }
    if let Some(limits) = &spec.fallback {
        if let Some(since) = &capacity.lost_since {
            events.push((
                later(since.0, limits.after),
                "on-demand may stand in for what was lost (fallback.after)".into(),
            ));
        }
        if let Some(since) = &capacity.growth_since {
            events.push((
                later(since.0, limits.growth_after),
                "on-demand may stand in for growth that spot has not brought (fallback.growthAfter)".into(),
            ));
        }
    }
    if let Some(until) = &fallback.paused_until {
        events.push((Some(until.0), "nodes may be asked to leave again: the last drain failed".into()));
    }
    if let Some(gone) = fallback.probe.as_ref().and_then(|probe| probe.gone_since.as_ref()) {
        events.push((
            later(gone.0, spec.failback.probe),
            "the others may follow the first that was given back (failback.probe)".into(),
        ));
    }
    for pool in &status.agent_pools {
        if let Some(until) = &pool.avoided_until {
            events.push((Some(until.0), format!("agent pool {} is tried again", pool.name)));
        }
    }
    if let Some(until) = status.money.as_ref().and_then(|money| money.override_until.as_ref()) {
        events.push((Some(until.0), "budgets of fallback hold again".into()));
    }
    if let Some(next) = status.floor.as_ref().and_then(|floor| floor.next.as_ref()) {
        events.push((
            None,
            format!(
                "{} will be kept on demand for disruption budgets if the need lasts",
                counted(next.units, "unit")
            ),
        ));
    }
    if let Some(window) = &spec.failback.window {
        match opening("failback.window", window, now) {
            Opening::Opens(at) => events.push((Some(at), "failback.window opens".into())),
            Opening::Open => events.push((None, "failback.window is open".into())),
            Opening::Invalid(why) => events.push((None, why)),
        }
    }
    for node in &fallback.draining {
        events.push((None, format!("{node} is asked to drain; its machine is deleted once it is empty")));
    }
    events.retain(|(at, _)| at.is_none_or(|at| at > now - SignedDuration::from_secs(1)));
    if events.is_empty() {
        events.push((None, "nothing, as long as nothing happens".into()));
    }
    events.sort_by_key(|(at, _)| at.unwrap_or(Timestamp::MAX));
    events
        .into_iter()
        .map(|(at, what)| match at {
            Some(at) => format!("{}: {what}", when(at, now)),
            None => what,
        })
        .collect()
}

fn changes(pool: &SpotPool, status: &SpotPoolStatus) -> Vec<String> {
    let mut says: Vec<String> = Vec::new();
    let mut add = |said: String| {
        if !says.contains(&said) {
            says.push(said);
        }
    };
    for step in &status.plan {
        if let Some(remedy) = remedy(step.reason) {
            let about = step.agent_pool.as_ref().map(|pool| format!(" ({pool})")).unwrap_or_default();
            add(format!("{}{about}: {remedy}", step.reason));
        }
    }
    if condition(status, "AzureReachable").is_some_and(|it| it.status == "False")
        && let Some(remedy) = remedy(spotpool_crds::Reason::AzureUnreachable)
    {
        add(remedy.to_owned());
    }
    if pool.annotations().contains_key(names::FAILBACK_PAUSED_ANNOTATION) {
        add(format!(
            "annotation {} pauses failback: take it off to let nodes go",
            names::FAILBACK_PAUSED_ANNOTATION
        ));
    }
    add("spec.replicas, or whoever sets it by /scale, such as an HPA".into());
    says
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_says_why_what_next_and_what_would_change_it() {
        let pool: SpotPool = serde_json::from_value(json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"namespace": "batch", "name": "workers",
                "annotations": {"spotpool.dev/failback-paused": "true"}},
            "spec": {"replicas": 4, "onDemand": {"baseline": 6}, "fallback": {"maxNodes": 2, "after": "5m"}, "failback": {"stabilization": "10m"},
                "agentPools": [{"name": "spota", "maxNodes": 4}]},
            "status": {"observedGeneration": 1, "replicas": 6, "readyReplicas": 3,
                "capacity": {"readySpot": 3, "lostSince": "2026-11-21T11:58:00Z"},
                "fallback": {"nodes": 2, "since": "2026-11-21T11:00:00Z", "surplusSince": "2026-11-21T11:55:00Z",
                    "needed": 1, "neededBefore": [{"units": 2, "until": "2026-11-21T11:57:00Z"}]},
                "agentPools": [{"name": "spota", "role": "Spot", "vmSize": "D4", "machines": 3, "ready": 3,
                    "rank": {"position": 1, "why": "0.05 a unit"}, "avoidedFor": "Capacity",
                    "avoidedUntil": "2026-11-21T12:03:00Z"}],
                "plan": [{"reason": "CapacityShort", "message": "3 of 6 ready"},
                    {"reason": "FallbackAtLimit", "message": "fallback.maxNodes of 2 is reached"}]}}))
        .unwrap();
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let text = anstream::adapter::strip_str(&render(&view(&pool, now), now, 200)).to_string();
        for wanted in [
            "6 units wanted: onDemand.baseline is more than the 4 of spec.replicas",
            "2 on-demand nodes in the place of spot since 2026-11-21T11:00:00Z, 60m ago",
            "spota (spot, D4): 3 machines, 3 ready; rank 1: 0.05 a unit; avoided for Capacity until",
            "FallbackAtLimit: fallback.maxNodes of 2 is reached",
            // In the order in which it comes.
            "  - 2026-11-21T12:03:00Z, in 3m: on-demand may stand in for what was lost (fallback.after)\n  - 2026-11-21T12:03:00Z, in 3m: agent pool spota is tried again\n  - 2026-11-21T12:07:00Z, in 7m: more nodes",
            "FallbackAtLimit: set fallback.maxNodes, or raise it",
            "annotation spotpool.dev/failback-paused pauses failback",
        ] {
            assert!(text.contains(wanted), "`{wanted}` is not in\n{text}");
        }
    }
}
