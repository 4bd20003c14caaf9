//! Rules of disruption budgets: each must let pods go at some time, and what it promises must be possible on spot.

use std::collections::BTreeSet;

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::manifests::{Manifests, Of, Runner};
use super::{Finding, Rule, Severity};
use crate::workload::{Workload, about, never_lets_go, overlap};

const LETS_ONE_GO: &str = "\
maxUnavailable: 1";
const BROKEN_GO: &str = "\
unhealthyPodEvictionPolicy: AlwaysAllow";

/// Enough pods that losing most of them at once is losing a majority.
const QUORUM: i32 = 3;

/// Of so many pods; a share is rounded up, as Kubernetes does.
fn scaled(amount: &IntOrString, expected: i32) -> Option<i32> {
    match amount {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let share: i64 =
                text.strip_suffix('%')?.parse().ok().filter(|share| (0..=100).contains(share))?;
            i32::try_from((i64::from(expected) * share + 99) / 100).ok()
        }
    }
}

/// How many of so many pods must be healthy.
fn desired(spec: &PodDisruptionBudgetSpec, expected: i32) -> Option<i32> {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => Some(expected.saturating_sub(scaled(most, expected)?)),
        (None, Some(least)) => scaled(least, expected),
        (None, None) => None,
    }
}

/// A workload, and where it is from.
type From<'a> = (&'a str, &'a Runner, Workload<'a>);

pub(super) fn findings(manifests: &Manifests) -> Vec<Finding> {
    let workloads: Vec<From<'_>> = manifests.workloads().collect();
    let of_budgets = manifests.budgets.iter().flat_map(|budget| of_budget(budget, &workloads));
    let of_workloads = workloads.iter().filter_map(|workload| of_workload(workload, manifests));
    of_budgets.chain(of_workloads).collect()
}

fn of_budget(budget: &Of<PodDisruptionBudget>, workloads: &[From<'_>]) -> Vec<Finding> {
    let meta = &budget.object.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let name = about("PodDisruptionBudget", namespace, meta.name.as_deref().unwrap_or_default());
    let Some(spec) = &budget.object.spec else { return Vec::new() };
    let mut found = Vec::new();
    let mut say = |rule, severity, wrong: String, fix: &str, paste| {
        found.push(Finding::new(rule, severity, &budget.file, name.clone(), wrong, fix).paste(paste));
    };

    let its: Vec<_> = workloads.iter().filter(|(_, _, it)| it.is_under(&budget.object)).collect();
    let is_empty = its.is_empty() && workloads.iter().any(|(_, _, it)| it.namespace == namespace);
    if is_empty || spec.selector.is_none() {
        let wrong = "it selects no pods of what was given: it protects nothing".into();
        let fix = "give its selector the labels of the pods, which are those of the template";
        say(Rule::BudgetSelectsNothing, Severity::Warning, wrong, fix, "");
    }

    let pods = its.iter().map(|(_, _, it)| it.replicas).fold(0, i32::saturating_add);
    let least = desired(spec, pods).unwrap_or_default();
    let stuck = never_lets_go(least, pods);
    // Of any number of pods none may go.
    let never = [1, 1000].iter().all(|many| desired(spec, *many).is_some_and(|least| least >= *many));
    if never || stuck && pods > 1 {
        let whose = if pods > 0 { format!("its {pods} pods") } else { "its pods".to_owned() };
        let wrong = format!("of {whose} none may ever be evicted: {IN_VAIN}");
        let fix = "let at least one go, instead of what it says now:";
        say(Rule::BudgetNeverAllows, Severity::Error, wrong, fix, LETS_ONE_GO);
    } else if stuck {
        let wrong = format!("its workload has a single pod, which it never lets go: {IN_VAIN}");
        say(
            Rule::BudgetOfSinglePod,
            Severity::Warning,
            wrong,
            "run two replicas, or take the budget off",
            "",
        );
    } else {
        let on_demand = its.iter().filter(|(_, _, it)| !it.may_run_on_spot()).map(|(_, _, it)| it.replicas);
        let on_demand = on_demand.fold(0, i32::saturating_add);
        if on_demand < least && on_demand < pods {
            let has_quorum = its.iter().any(|(_, runner, it)| is_quorum(runner, it));
            let severity = if has_quorum { Severity::Warning } else { Severity::Info };
            let on_spot = pods.saturating_sub(on_demand);
            let wrong = format!(
                "it wants {least} of {pods} pods healthy, and {on_spot} of them may be on spot nodes, which can all go at once"
            );
            say(Rule::OnDemandShare, severity, wrong, SHARE, "");
        }
    }

    if spec.unhealthy_pod_eviction_policy.as_deref() != Some("AlwaysAllow") {
        let wrong = "while fewer pods are healthy than it wants, even broken ones may not be evicted: one that never becomes ready can hold up a drain for ever".into();
        say(Rule::BudgetOfBrokenPods, Severity::Info, wrong, "let broken pods go:", BROKEN_GO);
    }
    found
}

fn of_workload((file, runner, workload): &From<'_>, manifests: &Manifests) -> Option<Finding> {
    let found = |rule, severity, wrong, fix: &str| {
        Some(Finding::new(rule, severity, file, workload.about(), wrong, fix))
    };
    let its = manifests.budgets.iter().filter(|budget| workload.is_under(&budget.object));
    // By name: the same budget may be in the base and in overlays.
    let its: BTreeSet<_> = its.filter_map(|budget| budget.object.metadata.name.as_deref()).collect();
    if its.len() > 1 {
        let wrong = overlap(its);
        return found(Rule::BudgetsOverlap, Severity::Error, wrong, "leave one budget for these pods");
    }
    if its.is_empty() && is_quorum(runner, workload) && workload.may_run_on_spot() {
        let pods = workload.replicas;
        let wrong = format!(
            "all of its {pods} pods may be on spot nodes, which can all go at once: a quorum is lost with them"
        );
        return found(Rule::OnDemandShare, Severity::Warning, wrong, SHARE);
    }
    None
}

const IN_VAIN: &str = "drains and upgrades wait for it in vain, and a notice deletes pods past it";
const SHARE: &str = "run as many pods as it must never lose in a workload of their own that does not tolerate spot, behind the same Service and budget: docs/how-to/workloads.md#a-share-on-demand";

/// Whether it is likely that its pods elect a leader among each other.
fn is_quorum(runner: &Runner, workload: &Workload<'_>) -> bool {
    matches!(runner, Runner::StatefulSet(_)) && workload.replicas >= QUORUM
}
