//! What a notice and a voluntary drain put on the Node, and what comes off again. Pure.

use serde::Serialize;
use spotpool_crds::eviction::Phase;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainStatus};
use spotpool_crds::{EvictionNotice, names};

use crate::edit::{Edit, Taint};
use crate::node::Node;

/// The first write of a notice, all in one: annotation, taint, cordon, out of load balancers. An earlier agent
/// may have made it; a cordon that is somebody else's stays theirs.
pub fn notice(node: &Node, wanted: &EvictionNotice) -> Edit {
    Edit {
        taint: Taint::Put(wanted.event_type.clone()),
        unschedulable: Some(true),
        excluded: Some(true),
        annotations: vec![(names::EVICTION_ANNOTATION, text(&owning(node, wanted)))],
    }
}

/// A later write: what became of the notice.
pub fn progress(wanted: &EvictionNotice) -> Edit {
    Edit { annotations: vec![(names::EVICTION_ANNOTATION, text(wanted))], ..Edit::default() }
}

/// `wanted`, knowing whether the cordon is ours: it is if we make it now, or made it before.
pub fn owning(node: &Node, wanted: &EvictionNotice) -> EvictionNotice {
    let made_before = node.notice().is_some_and(|last| last.is_active() && last.cordoned);
    EvictionNotice { cordoned: made_before || !node.spec.unschedulable, ..wanted.clone() }
}

/// Takes the marks of a notice off that was taken back, or that is of another boot. Nothing if there are none.
pub fn cancelled(node: &Node) -> Edit {
    let Some(last) = node.notice().filter(EvictionNotice::is_active) else {
        return Edit::default();
    };
    Edit {
        taint: Taint::Remove,
        unschedulable: last.cordoned.then_some(false),
        excluded: Some(false),
        annotations: vec![(
            names::EVICTION_ANNOTATION,
            text(&EvictionNotice { phase: Phase::Cancelled, ..last }),
        )],
    }
}

/// Begins (or goes on with) the voluntary drain `id`: cordon and answer. A cordon of the drain before it is ours.
pub fn drain_begun(node: &Node, id: &str) -> Edit {
    if node.drain_request().is_none_or(|request| request.id != id) {
        return Edit::default(); // taken back meanwhile
    }
    let cordoned = holds_cordon(node) || !node.spec.unschedulable;
    let status = match node.drain_status().filter(|status| status.id == id) {
        Some(status) => DrainStatus { cordoned, ..status },
        None => DrainStatus {
            id: id.to_owned(),
            phase: DrainPhase::Draining,
            pods_left: 0,
            blocking_pdbs: Vec::new(),
            cordoned,
        },
    };
    Edit { unschedulable: Some(true), ..answer(&status) }
}

/// Writes how far the voluntary drain is.
pub fn drain_status(node: &Node, wanted: &DrainStatus) -> Edit {
    match node.drain_status() {
        Some(last) if last.id == wanted.id => {
            answer(&DrainStatus { cordoned: last.cordoned, ..wanted.clone() })
        }
        _ => Edit::default(),
    }
}

/// Gives the node back after a voluntary drain that ran out of time.
pub fn drain_timed_out(node: &Node, wanted: &DrainStatus) -> Edit {
    match node.drain_status() {
        Some(last) if last.id == wanted.id => Edit {
            unschedulable: last.cordoned.then_some(false),
            ..answer(&DrainStatus { phase: DrainPhase::TimedOut, cordoned: false, ..wanted.clone() })
        },
        _ => Edit::default(),
    }
}

/// Gives the node back because nobody asks for a drain any more, and takes the answer off with it.
pub fn drain_forgotten(node: &Node) -> Edit {
    if node.annotation(names::DRAIN_REQUEST_ANNOTATION).is_some() {
        return Edit::default();
    }
    Edit {
        unschedulable: holds_cordon(node).then_some(false),
        annotations: vec![(names::DRAIN_STATUS_ANNOTATION, None)],
        ..Edit::default()
    }
}

fn holds_cordon(node: &Node) -> bool {
    node.drain_status().is_some_and(|status| {
        status.cordoned && matches!(status.phase, DrainPhase::Draining | DrainPhase::Drained)
    })
}

fn answer(status: &DrainStatus) -> Edit {
    Edit { annotations: vec![(names::DRAIN_STATUS_ANNOTATION, text(status))], ..Edit::default() }
}

/// These types have no map keys and no floats: they always have a JSON form.
fn text<T: Serialize>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::node;
    use serde_json::{Value, json};
    use spotpool_crds::eviction::{Claimant, PodCounts, Source};
    use spotpool_crds::spot_pool::EventResponse;

    fn wanted() -> EvictionNotice {
        EvictionNotice {
            by: Claimant::NodeAgent,
            event_id: "A".into(),
            event_type: "Preempt".into(),
            source: Source::Imds,
            response: EventResponse::Drain,
            observed_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            not_before: None,
            deadline: "2026-01-01T00:00:30Z".parse().unwrap(),
            phase: Phase::Noticed,
            pods: PodCounts::default(),
            cordoned: false,
            boot_id: "boot-1".into(),
            traceparent: None,
            doomed: Vec::new(),
            unfinished: Vec::new(),
        }
    }

    fn annotated(spec: &Value, notice: &EvictionNotice) -> Node {
        node(spec, &json!({names::EVICTION_ANNOTATION: serde_json::to_string(notice).unwrap()}))
    }

    #[test]
    fn a_cordon_is_ours_only_if_we_made_it() {
        let ours = EvictionNotice { cordoned: true, ..wanted() };
        let cancelled = EvictionNotice { phase: Phase::Cancelled, ..ours.clone() };
        for (node, is_ours) in [
            (node(&json!({}), &json!({})), true),
            (node(&json!({"unschedulable": true}), &json!({})), false),
            (annotated(&json!({"unschedulable": true}), &ours), true),
            (annotated(&json!({"unschedulable": true}), &wanted()), false),
            (annotated(&json!({"unschedulable": true}), &cancelled), false),
        ] {
            assert_eq!(owning(&node, &wanted()).cordoned, is_ours, "{node:?}");
            let edit = notice(&node, &wanted());
            assert_eq!((edit.unschedulable, edit.excluded), (Some(true), Some(true)));
        }
    }

    #[test]
    fn a_cancelled_notice_leaves_nothing_of_ours() {
        let ours = EvictionNotice { cordoned: true, ..wanted() };
        let edit = cancelled(&annotated(&json!({"unschedulable": true}), &ours));
        assert_eq!(
            (edit.taint.clone(), edit.unschedulable, edit.excluded),
            (Taint::Remove, Some(false), Some(false))
        );
        assert!(edit.annotations[0].1.as_ref().unwrap().contains("Cancelled"));
        assert_eq!(cancelled(&annotated(&json!({"unschedulable": true}), &wanted())).unschedulable, None);
        assert_eq!(cancelled(&node(&json!({"unschedulable": true}), &json!({}))), Edit::default());
    }

    fn asked(spec: &Value, id: &str, status: Option<(&str, &str, bool)>) -> Node {
        let request =
            json!({"id": id, "reason": "Failback", "voluntary": true, "notAfter": "2026-01-01T00:15:00Z"});
        let mut annotations = json!({names::DRAIN_REQUEST_ANNOTATION: request.to_string()});
        if let Some((id, phase, cordoned)) = status {
            let status = json!({"id": id, "phase": phase, "podsLeft": 3, "cordoned": cordoned});
            annotations[names::DRAIN_STATUS_ANNOTATION] = status.to_string().into();
        }
        node(spec, &annotations)
    }

    fn status_in(edit: &Edit) -> Option<DrainStatus> {
        serde_json::from_str(edit.annotations.first()?.1.as_ref()?).ok()
    }

    #[test]
    fn a_voluntary_drain_remembers_whose_the_cordon_is() {
        let cordoned = json!({"unschedulable": true});
        for (node, is_ours) in [
            (asked(&json!({}), "1", None), true),
            (asked(&cordoned, "1", None), false),
            (asked(&cordoned, "1", Some(("1", "Draining", true))), true),
            (asked(&cordoned, "1", Some(("0", "Drained", true))), true),
            (asked(&cordoned, "1", Some(("0", "TimedOut", true))), false),
        ] {
            let edit = drain_begun(&node, "1");
            assert_eq!(edit.unschedulable, Some(true));
            assert_eq!(status_in(&edit).unwrap().cordoned, is_ours, "{node:?}");
        }
        assert_eq!(drain_begun(&asked(&json!({}), "2", None), "1"), Edit::default());
    }

    #[test]
    fn a_node_is_given_back_as_it_was() {
        let cordoned = json!({"unschedulable": true});
        let status = DrainStatus {
            id: "1".into(),
            phase: DrainPhase::Draining,
            pods_left: 1,
            blocking_pdbs: vec!["n/web".into()],
            cordoned: true,
        };
        let edit = drain_timed_out(&asked(&cordoned, "1", Some(("1", "Draining", true))), &status);
        assert_eq!(edit.unschedulable, Some(false));
        let told = status_in(&edit).unwrap();
        assert_eq!((told.phase, told.blocking_pdbs.len(), told.cordoned), (DrainPhase::TimedOut, 1, false));
        let theirs = drain_timed_out(&asked(&cordoned, "1", Some(("1", "Draining", false))), &status);
        assert_eq!(theirs.unschedulable, None);

        let mut forgotten = asked(&cordoned, "1", Some(("1", "Drained", true)));
        assert_eq!(drain_forgotten(&forgotten), Edit::default(), "still asked for");
        forgotten.metadata.annotations.as_mut().unwrap().remove(names::DRAIN_REQUEST_ANNOTATION);
        let edit = drain_forgotten(&forgotten);
        assert_eq!(edit.unschedulable, Some(false));
        assert_eq!(edit.annotations, [(names::DRAIN_STATUS_ANNOTATION, None)]);
    }
}
