//! Checks of what runs: disruption budgets, tolerations, autoscalers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use spotpool_crds::names;
use spotpool_crds::spot_pool::Role;

use super::{Facts, Finding, Found, Level};
use crate::workload::{
    SPOT_KEY, SPOT_VALUE, Workload, never_lets_go, overlap, required, requires_spot, unsafe_metric,
};

/// A budget, and why it never lets a pod go, if it never does.
fn never(budget: &PodDisruptionBudget) -> Option<(i32, i32)> {
    let status = budget.status.as_ref()?;
    let is_stuck =
        status.disruptions_allowed == 0 && never_lets_go(status.desired_healthy, status.expected_pods);
    is_stuck.then_some((status.desired_healthy, status.expected_pods))
}

fn about(budget: &PodDisruptionBudget) -> String {
    format!("PodDisruptionBudget {}/{}", budget.namespace().unwrap_or_default(), budget.name_any())
}

pub(super) fn blocking(check: &'static str, facts: &Facts) -> Found {
    let stuck = facts.budgets.as_ref()?.iter().filter_map(|budget| {
        let (desired, expected) = never(budget).filter(|(_, expected)| *expected > 1)?;
        let wrong = format!("it wants {desired} of {expected} pods healthy, so none may ever be evicted: failback waits for it in vain, and a notice deletes its pods past it");
        let fix = "set maxUnavailable to at least 1, or minAvailable below the number of pods";
        Some(Finding::new(check, Level::Warn, about(budget), wrong, fix))
    });
    Some(stuck.collect())
}

pub(super) fn single(check: &'static str, facts: &Facts) -> Found {
    let stuck = facts.budgets.as_ref()?.iter().filter_map(|budget| {
        never(budget).filter(|(_, expected)| *expected == 1)?;
        let wrong = "its workload has a single pod, which it never lets go: failback waits for it in vain, and a notice deletes it past the budget".into();
        Some(Finding::new(check, Level::Warn, about(budget), wrong, "run two replicas, or take the budget off"))
    });
    Some(stuck.collect())
}

fn workloads(facts: &Facts) -> Option<Vec<Workload<'_>>> {
    let deployments = facts.deployments.as_ref()?.iter().filter_map(|object| {
        let spec = object.spec.as_ref()?;
        workload("Deployment", &object.metadata, spec.replicas, &spec.template)
    });
    let sets = facts.stateful_sets.as_ref()?.iter().filter_map(|object| {
        let spec = object.spec.as_ref()?;
        workload("StatefulSet", &object.metadata, spec.replicas, &spec.template)
    });
    Some(deployments.chain(sets).filter(|workload| workload.replicas > 0).collect())
}

fn workload<'a>(
    kind: &'static str,
    meta: &ObjectMeta,
    replicas: Option<i32>,
    template: &'a PodTemplateSpec,
) -> Option<Workload<'a>> {
    Some(Workload::of(kind, meta, replicas, template.metadata.as_ref(), template.spec.as_ref()?))
}

pub(super) fn overlapping(check: &'static str, facts: &Facts) -> Found {
    let budgets = facts.budgets.as_ref()?;
    let found = workloads(facts)?.into_iter().filter_map(|workload| {
        let its = budgets.iter().filter(|budget| workload.is_under(budget));
        let names: Vec<String> = its.map(ResourceExt::name_any).collect();
        (names.len() > 1).then(|| {
            let wrong = overlap(names.iter().map(String::as_str));
            Finding::new(check, Level::Fail, workload.about(), wrong, "leave one budget for these pods")
        })
    });
    Some(found.collect())
}

/// Spot agent pools, and SpotPools whose ready units are spot for the most part, by name.
fn spot(facts: &Facts) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut agent_pools, mut pools) = (BTreeSet::new(), BTreeSet::new());
    for pool in &facts.pools {
        let Some(status) = &pool.status else { continue };
        let spot = status.agent_pools.iter().filter(|it| it.role == Some(Role::Spot));
        agent_pools.extend(spot.map(|it| it.name.clone()));
        if status.capacity.ready_spot > status.capacity.ready_on_demand {
            pools.insert(pool.name_any());
        }
    }
    (agent_pools, pools)
}

/// How a workload says that it wants spot nodes, if it does.
fn wants_spot(spec: &PodSpec, agent_pools: &BTreeSet<String>) -> Option<String> {
    if let Some(key) = requires_spot(spec) {
        return Some(format!("label {key}={SPOT_VALUE}"));
    }
    let named = required(spec, names::AGENT_POOL_LABEL);
    let is_spot = !named.is_empty() && named.is_subset(agent_pools);
    is_spot.then(|| format!("agent pool {}", named.into_iter().collect::<Vec<_>>().join(", ")))
}

pub(super) fn tolerations(check: &'static str, facts: &Facts) -> Found {
    let (agent_pools, pools) = spot(facts);
    let found = workloads(facts)?.into_iter().filter_map(|workload| {
        let spec = workload.spec;
        if workload.tolerates_spot() {
            return None;
        }
        let named = required(spec, names::POOL_LABEL);
        let pool = named.iter().find(|name| pools.contains(*name));
        let (level, wrong) = match (wants_spot(spec, &agent_pools), pool) {
            (Some(by), _) => {
                (Level::Fail, format!("it wants spot nodes by {by}, and does not tolerate their taint: it can never run"))
            }
            (None, Some(pool)) => (
                Level::Warn,
                format!("it wants nodes of SpotPool {pool}, most of which are spot, and does not tolerate their taint"),
            ),
            (None, None) => return None,
        };
        let fix = format!("add the toleration {{key: {SPOT_KEY}, operator: Equal, value: {SPOT_VALUE}, effect: NoSchedule}}");
        Some(Finding::new(check, level, workload.about(), wrong, fix))
    });
    Some(found.collect())
}

pub(super) fn spot_only(check: &'static str, facts: &Facts) -> Found {
    let (agent_pools, _) = spot(facts);
    let stands_in =
        |pool: &&spotpool_crds::SpotPool| pool.spec.fallback.as_ref().is_some_and(|it| it.max_nodes > 0);
    let falls_back: BTreeSet<String> = facts
        .pools
        .iter()
        .filter(stands_in)
        .flat_map(|pool| pool.spec.agent_pools.iter().map(|it| it.name.clone()))
        .collect();
    let found = workloads(facts)?.into_iter().filter_map(|workload| {
        let by = wants_spot(workload.spec, &agent_pools)?;
        let named = required(workload.spec, names::AGENT_POOL_LABEL);
        let is_concerned =
            if named.is_empty() { !falls_back.is_empty() } else { !named.is_disjoint(&falls_back) };
        is_concerned.then(|| {
            let wrong = format!(
                "it runs on spot alone, by {by}: on-demand that stands in for spot is of no use to it"
            );
            let fix = format!(
                "ask for label {}=NAME of the SpotPool instead, and prefer spot by affinity",
                names::POOL_LABEL
            );
            Finding::new(check, Level::Warn, workload.about(), wrong, fix)
        })
    });
    Some(found.collect())
}

pub(super) fn autoscalers(check: &'static str, facts: &Facts) -> Found {
    let found = facts.autoscalers.as_ref()?.iter().filter_map(|object| {
        let spec = &object.spec.as_ref()?;
        if spec.scale_target_ref.kind != "SpotPool" {
            return None;
        }
        let about = format!("HorizontalPodAutoscaler {}/{}", object.namespace().unwrap_or_default(), object.name_any());
        let is_there = facts.pools.iter().any(|pool| {
            pool.namespace() == object.namespace() && pool.name_any() == spec.scale_target_ref.name
        });
        if !is_there {
            let wrong = format!("it scales SpotPool {}, which does not exist", spec.scale_target_ref.name);
            return Some(Finding::new(check, Level::Fail, about, wrong, "name a SpotPool of its namespace"));
        }
        let unsafe_metric = unsafe_metric(spec)?;
        let wrong = format!("its {} metric is no AverageValue of an external or object metric: the HPA multiplies it by pods that a SpotPool does not have", unsafe_metric.type_);
        Some(Finding::new(check, Level::Fail, about, wrong, "use a target of type AverageValue, see docs/how-to/demand.md"))
    });
    Some(found.collect())
}
