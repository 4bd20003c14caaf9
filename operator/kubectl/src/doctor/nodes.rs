//! Checks of nodes: cordons that nobody takes off, notices and drains that do not end, clocks.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_crds::eviction::{EvictionNotice, PREEMPT, Phase};
use spotpool_crds::names;
use spotpool_crds::voluntary_drain::DrainRequest;

use super::{Facts, Finding, Found, Level};
use crate::cluster::pool_of;
use crate::explain::node::{annotation, is_cordoned, readiness};
use crate::output::short;

/// Azure takes a VM within this time after its deadline.
const TAKEN_WITHIN: SignedDuration = SignedDuration::from_mins(5);
/// Clocks may differ so much.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(5);

fn about(node: &Node) -> String {
    format!("Node {}", node.name_any())
}

fn notice(node: &Node) -> Option<EvictionNotice> {
    annotation::<EvictionNotice>(node, names::EVICTION_ANNOTATION)?.ok()
}

fn has_taint(node: &Node, key: &str) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == key)
}

/// Whether AKS is at work on the node's agent pool.
fn in_upkeep(facts: &Facts, node: &Node) -> bool {
    let Some(name) = node.labels().get(names::AGENT_POOL_LABEL) else { return false };
    let pools = facts.pools.iter().filter_map(|pool| pool.status.as_ref()).flat_map(|it| &it.agent_pools);
    let mut its = pools.filter(|pool| pool.name == *name);
    its.any(|pool| !["", "Succeeded"].contains(&pool.provisioning_state.as_str()))
}

pub(super) fn cordons(check: &'static str, facts: &Facts) -> Found {
    let found = facts.nodes.as_ref()?.iter().filter_map(|node| {
        pool_of(node)?;
        let notice = notice(node);
        let is_noticed = notice.as_ref().is_some_and(EvictionNotice::is_active);
        let is_asked = node.annotations().contains_key(names::DRAIN_REQUEST_ANNOTATION)
            || node.annotations().contains_key(names::DRAIN_STATUS_ANNOTATION);
        let by_others =
            [names::AKS_REMEDIATOR_TAINT, names::AUTOSCALER_DELETION_TAINT, names::OUT_OF_SERVICE_TAINT];
        let is_closed = is_cordoned(node) || has_taint(node, names::EVICTING_TAINT);
        if !is_closed
            || is_noticed
            || is_asked
            || by_others.iter().any(|key| has_taint(node, key))
            || in_upkeep(facts, node)
        {
            return None;
        }
        let name = node.name_any();
        let wrong = match notice {
            Some(notice) if notice.cordoned => {
                format!("our cordon was left on it although its notice is {:?}", notice.phase)
            }
            _ if has_taint(node, names::EVICTING_TAINT) => "our taint was left on it without a notice".into(),
            _ => "it is cordoned, by a person or another tool: it counts as nothing, and is replaced"
                .to_owned(),
        };
        let fix = if has_taint(node, names::EVICTING_TAINT) {
            format!("kubectl uncordon {name}, and kubectl taint node {name} {}-", names::EVICTING_TAINT)
        } else {
            format!("kubectl uncordon {name}, or have it replaced: kubectl spotpool drain {name}")
        };
        Some(Finding::new(check, Level::Warn, about(node), wrong, fix))
    });
    Some(found.collect())
}

pub(super) fn notices(check: &'static str, facts: &Facts) -> Found {
    let found = facts.nodes.as_ref()?.iter().filter_map(|node| {
        if let Some(Err(error)) = annotation::<EvictionNotice>(node, names::EVICTION_ANNOTATION) {
            let fix = format!("kubectl annotate node {} {}-", node.name_any(), names::EVICTION_ANNOTATION);
            return Some(Finding::new(check, Level::Fail, about(node), error, fix));
        }
        let notice = notice(node).filter(|it| it.is_active() && it.event_type == PREEMPT)?;
        let over = facts.now.duration_since(notice.deadline);
        let lives = matches!(readiness(node), Some((true, _)));
        if over > TAKEN_WITHIN && lives {
            let wrong = format!("Azure announced to take it {} ago, and it is still there and Ready", short(over.as_secs()));
            let fix = "look at the log of its agent and at the VM in Azure: the node is worth nothing as long as the notice stands";
            return Some(Finding::new(check, Level::Warn, about(node), wrong, fix));
        }
        (notice.phase == Phase::Noticed && over > SignedDuration::ZERO && lives).then(|| {
            let wrong = "its deadline has passed, and its drain has not begun".into();
            Finding::new(check, Level::Fail, about(node), wrong, "look at the log of its agent")
        })
    });
    Some(found.collect())
}

pub(super) fn drain_requests(check: &'static str, facts: &Facts) -> Found {
    let found = facts.nodes.as_ref()?.iter().filter_map(|node| {
        let request = match annotation::<DrainRequest>(node, names::DRAIN_REQUEST_ANNOTATION)? {
            Ok(request) => request,
            Err(error) => {
                let fix =
                    format!("kubectl annotate node {} {}-", node.name_any(), names::DRAIN_REQUEST_ANNOTATION);
                return Some(Finding::new(check, Level::Fail, about(node), error, fix));
            }
        };
        let over = facts.now.duration_since(request.not_after);
        let is_answered = node.annotations().contains_key(names::DRAIN_STATUS_ANNOTATION);
        (over > SignedDuration::from_mins(1) && !is_answered).then(|| {
            let wrong = format!(
                "it was asked to drain by {:.0} at the latest, and its agent has not answered",
                request.not_after
            );
            Finding::new(
                check,
                Level::Warn,
                about(node),
                wrong,
                "look at the log of its agent, and at the operator's",
            )
        })
    });
    Some(found.collect())
}

pub(super) fn clocks(check: &'static str, facts: &Facts) -> Found {
    let mut found = Vec::new();
    if let Some(behind) = facts.behind.filter(|behind| behind.abs() > CLOCKS_DIFFER) {
        let wrong =
            format!("this machine's clock and the API server's differ by {}", short(behind.abs().as_secs()));
        found.push(Finding::new(
            check,
            Level::Warn,
            "this machine".into(),
            wrong,
            "set this machine's clock by NTP",
        ));
    }
    for node in facts.nodes.as_ref()? {
        let Some(notice) = notice(node) else { continue };
        let ahead = notice.observed_at.duration_since(facts.now);
        if ahead > CLOCKS_DIFFER {
            let wrong =
                format!("its agent saw a notice {} from now: its clock is ahead", short(ahead.as_secs()));
            let fix =
                "let it keep its time by chrony or the hypervisor's clock: deadlines are reckoned by it";
            found.push(Finding::new(check, Level::Warn, about(node), wrong, fix));
        }
    }
    Some(found)
}
