//! Whose a cordon is, and what becomes of it.

use super::*;
use crate::node::tests::node;
use serde_json::{Value, json};
use spotpool_crds::eviction::{Claimant, PodCounts, Source};

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

fn written(edit: &Edit) -> EvictionNotice {
    serde_json::from_str(edit.annotations[0].1.as_ref().unwrap()).unwrap()
}

#[test]
fn a_cordon_is_ours_only_if_we_made_it() {
    let ours = EvictionNotice { cordoned: true, ..wanted() };
    let cordoned = json!({"unschedulable": true});
    for (node, is_ours) in [
        (node(&json!({}), &json!({})), true),
        (node(&cordoned, &json!({})), false),
        (annotated(&cordoned, &ours), true),
        (annotated(&cordoned, &wanted()), false),
        // It was over, and owed the cordon still.
        (annotated(&cordoned, &EvictionNotice { phase: Phase::Cancelled, ..ours.clone() }), true),
        (annotated(&cordoned, &EvictionNotice { phase: Phase::Cancelled, ..wanted() }), false),
    ] {
        let edit = notice(&node, &wanted());
        assert_eq!(written(&edit).cordoned, is_ours, "{node:?}");
        assert_eq!((edit.unschedulable, edit.excluded), (Some(true), Some(true)));
    }
}

#[test]
fn the_marks_are_those_of_the_response() {
    let by = |response| EvictionNotice { response, ..wanted() };
    let plain = node(&json!({}), &json!({}));
    let drain = notice(&plain, &by(EventResponse::Drain));
    assert_eq!((drain.unschedulable, drain.excluded), (Some(true), Some(true)));
    // It takes no new pods; those that it has go on, and are to be reached.
    let cordon = notice(&plain, &by(EventResponse::Cordon));
    assert_eq!((cordon.unschedulable, cordon.excluded), (Some(true), Some(false)));
    assert_eq!((&cordon.taint, written(&cordon).cordoned), (&Taint::Put("Preempt".into()), true));
    let ignore = notice(&plain, &by(EventResponse::Ignore));
    assert_eq!((&ignore.taint, ignore.unschedulable), (&Taint::Remove, None));
    assert!(!written(&ignore).cordoned);
    assert!(Edit { annotations: Vec::new(), ..ignore }.is_done(&plain), "nothing but the annotation");
    // An event that wants less comes in place of one that wanted more.
    let held = annotated(
        &json!({"unschedulable": true}),
        &EvictionNotice { cordoned: true, ..by(EventResponse::Drain) },
    );
    let less = notice(&held, &by(EventResponse::Ignore));
    assert_eq!(
        (less.unschedulable, less.excluded, written(&less).cordoned),
        (Some(false), Some(false), false)
    );
    let less = notice(&held, &by(EventResponse::Cordon));
    assert_eq!((less.unschedulable, less.excluded, written(&less).cordoned), (Some(true), Some(false), true));
}

#[test]
fn a_notice_that_is_over_leaves_nothing_of_ours() {
    let ours = EvictionNotice { cordoned: true, unfinished: vec!["n/p: held".into()], ..wanted() };
    for phase in [Phase::Cancelled, Phase::Over] {
        let edit = ended(&annotated(&json!({"unschedulable": true}), &ours), phase);
        assert_eq!(
            (&edit.taint, edit.unschedulable, edit.excluded),
            (&Taint::Remove, Some(false), Some(false))
        );
        let written = written(&edit);
        assert_eq!((written.phase, written.cordoned, written.unfinished.len()), (phase, false, 0));
    }
    let theirs = annotated(&json!({"unschedulable": true}), &wanted());
    assert_eq!(ended(&theirs, Phase::Over).unschedulable, None);
    assert_eq!(ended(&node(&json!({"unschedulable": true}), &json!({})), Phase::Over), Edit::default());
}

const AKS: &str = names::AKS_REMEDIATOR_TAINT;
const AUTOSCALER: &str = names::AUTOSCALER_DELETION_TAINT;
const CANDIDATE: &str = "DeletionCandidateOfClusterAutoscaler";

/// A node as others have left it: cordoned or not, with their taint.
fn left(cordoned: bool, taint: Option<&str>, notice: Option<&EvictionNotice>) -> Node {
    let mut spec = json!({});
    if cordoned {
        spec["unschedulable"] = true.into();
    }
    if let Some(taint) = taint {
        spec["taints"] = json!([{"key": taint, "effect": "NoSchedule"}]);
    }
    notice.map_or_else(|| node(&spec, &json!({})), |notice| annotated(&spec, notice))
}

#[test]
fn nobody_is_fought_over_a_cordon() {
    let (ours, theirs) = (EvictionNotice { cordoned: true, ..wanted() }, wanted());
    let owing = EvictionNotice { phase: Phase::Over, ..ours.clone() };
    // What others have done before the notice: it is drained all the same, and whose the cordon is, is known.
    for (who, node, is_ours) in [
        ("nobody", left(false, None, None), true),
        ("a person", left(true, None, None), false),
        ("AKS", left(true, Some(AKS), None), false),
        ("AKS, without a cordon yet", left(false, Some(AKS), None), true),
        ("the autoscaler", left(false, Some(AUTOSCALER), None), true),
        ("the autoscaler, which looks for candidates", left(false, Some(CANDIDATE), None), true),
    ] {
        let edit = notice(&node, &wanted());
        assert_eq!((edit.unschedulable, written(&edit).cordoned), (Some(true), is_ours), "{who}");
        let patch =
            edit.json_patch(&node).into_iter().find(|op| op["path"] == "/spec/taints" && op["op"] == "add");
        let others = node.spec.taints.as_ref().map_or(0, Vec::len);
        let ours = 1 + usize::from(!node.spec.unschedulable);
        let taints = patch.unwrap()["value"].as_array().unwrap().len();
        assert_eq!(taints, others + ours, "{who}: their taints stay");
    }
    // What they do meanwhile: nothing is put back.
    for (what, node, is_ours) in [
        ("nothing", left(true, None, Some(&ours)), true),
        ("AKS closes it, too", left(true, Some(AKS), Some(&ours)), true),
        ("a person opens it", left(false, None, Some(&ours)), false),
        ("AKS opens its own", left(false, None, Some(&theirs)), false),
    ] {
        let edit = progress(&node, &ours);
        assert_eq!(
            (edit.unschedulable, &edit.taint, written(&edit).cordoned),
            (None, &Taint::Keep, is_ours),
            "{what}"
        );
    }
    // And when it is over.
    for (who, node, opens, owes) in [
        ("only we", left(true, None, Some(&ours)), true, false),
        ("a person", left(true, None, Some(&theirs)), false, false),
        ("nobody any more", left(false, None, Some(&ours)), false, false),
        ("AKS, too", left(true, Some(AKS), Some(&ours)), false, true),
        ("the autoscaler, too", left(true, Some(AUTOSCALER), Some(&ours)), false, true),
        ("AKS alone", left(true, Some(AKS), Some(&theirs)), false, false),
        ("only we; the autoscaler looks on", left(true, Some(CANDIDATE), Some(&ours)), true, false),
    ] {
        let edit = ended(&node, Phase::Over);
        let (does_open, written) = (edit.unschedulable == Some(false), written(&edit));
        assert_eq!(
            (does_open, written.cordoned, &edit.taint),
            (opens, owes, &Taint::Remove),
            "{who} keeps it closed"
        );
    }
    // What was owed is paid when the others are done, if it is still ours to pay.
    for (what, node, wanted) in [
        ("still closed by AKS", left(true, Some(AKS), Some(&owing)), None),
        ("AKS has opened it", left(false, None, Some(&owing)), Some(None)),
        ("AKS took off its taint alone", left(true, None, Some(&owing)), Some(Some(false))),
        ("nothing owed", left(true, None, Some(&EvictionNotice { cordoned: false, ..owing.clone() })), None),
        ("it is not over", left(true, None, Some(&ours)), None),
    ] {
        let edit = owed(&node);
        assert_eq!((!edit.is_done(&node)).then_some(edit.unschedulable), wanted, "{what}");
        assert!(edit.is_done(&node) || !written(&edit).cordoned, "{what}");
    }
}

#[test]
fn an_event_and_a_drain_that_was_asked_for_hand_the_cordon_on() {
    let drained = |notice: &EvictionNotice, cordoned: bool| {
        let status = json!({"id": "1", "phase": "Drained", "podsLeft": 0, "cordoned": cordoned});
        let annotations = json!({
            names::EVICTION_ANNOTATION: serde_json::to_string(notice).unwrap(),
            names::DRAIN_STATUS_ANNOTATION: status.to_string(),
        });
        node(&json!({"unschedulable": true}), &annotations)
    };
    let cordon = EvictionNotice { response: EventResponse::Cordon, ..wanted() };
    let status = |edit: &Edit| {
        let (_, text) = edit.annotations.iter().find(|(name, _)| *name == names::DRAIN_STATUS_ANNOTATION)?;
        serde_json::from_str::<DrainStatus>(text.as_ref()?).ok()
    };
    // The event made it and ends first.
    let edit = ended(&drained(&EvictionNotice { cordoned: true, ..cordon.clone() }, false), Phase::Over);
    assert_eq!((edit.unschedulable, written(&edit).cordoned), (None, false));
    assert!(status(&edit).unwrap().cordoned);
    // The drain made it and ends first.
    let edit = drain_forgotten(&drained(&cordon, true));
    assert_eq!(edit.unschedulable, None);
    let (_, text) = edit.annotations.iter().find(|(name, _)| *name == names::EVICTION_ANNOTATION).unwrap();
    assert!(serde_json::from_str::<EvictionNotice>(text.as_ref().unwrap()).unwrap().cordoned);
    // A hint holds nothing.
    let hint = EvictionNotice { response: EventResponse::Ignore, ..wanted() };
    assert_eq!(drain_forgotten(&drained(&hint, true)).unschedulable, Some(false));
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

    // Pods that wait for a node must not wait for an operator that does not come back.
    let rehearsed = asked(&cordoned, "1", Some(("1", "Drained", true)));
    let edit = drain_cancelled(&rehearsed);
    assert_eq!(edit.unschedulable, Some(false));
    let told = status_in(&edit).unwrap();
    assert_eq!((told.phase, told.cordoned), (DrainPhase::Cancelled, false));
    let theirs = drain_cancelled(&asked(&cordoned, "1", Some(("1", "Drained", false))));
    assert_eq!(theirs.unschedulable, None);
    let goes_on = drain_cancelled(&asked(&cordoned, "1", Some(("1", "Draining", true))));
    assert_eq!(goes_on, Edit::default());
    let mut remediated = rehearsed;
    remediated.spec.taints = Some(vec![json!({"key": AKS, "effect": "NoSchedule"})]);
    assert_eq!(drain_cancelled(&remediated), Edit::default(), "AKS would have to close it again");

    let mut forgotten = asked(&cordoned, "1", Some(("1", "Drained", true)));
    assert_eq!(drain_forgotten(&forgotten), Edit::default(), "still asked for");
    forgotten.metadata.annotations.as_mut().unwrap().remove(names::DRAIN_REQUEST_ANNOTATION);
    let edit = drain_forgotten(&forgotten);
    assert_eq!(edit.unschedulable, Some(false));
    let mut closed = forgotten.clone();
    closed.spec.taints = Some(vec![json!({"key": AKS, "effect": "NoSchedule"})]);
    assert_eq!(drain_forgotten(&closed), Edit::default(), "AKS would have to close it again");
    assert_eq!(edit.annotations, [(names::DRAIN_STATUS_ANNOTATION, None)]);
}
