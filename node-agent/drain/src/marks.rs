//! What a notice and a voluntary drain put on the Node, and what comes off again. Pure.

use serde::Serialize;
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::EventResponse;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainStatus};
use spotpool_crds::{EvictionNotice, names};

use crate::edit::{Edit, Taint};
use crate::node::Node;

/// The first write of a notice, all in one: annotation, and by its response taint, cordon, out of load balancers.
/// An earlier agent may have made it, or another event's; a cordon that is somebody else's stays theirs.
pub fn notice(node: &Node, wanted: &EvictionNotice) -> Edit {
    let closes = wanted.response != EventResponse::Ignore;
    // One that is over may still owe the cordon.
    let held = node.notice().is_some_and(|last| last.cordoned);
    let release = if held { release(node) } else { Release::Nothing };
    let (unschedulable, cordoned) = match release {
        _ if closes => (Some(true), held || !node.spec.unschedulable),
        Release::Open => (Some(false), false),
        Release::Nothing | Release::HandOver | Release::Later => (None, false),
    };
    Edit {
        taint: if closes { Taint::Put(wanted.event_type.clone()) } else { Taint::Remove },
        unschedulable,
        excluded: Some(wanted.response == EventResponse::Drain),
        out_of_service: None,
        annotations: vec![(names::EVICTION_ANNOTATION, text(&EvictionNotice { cordoned, ..wanted.clone() }))],
    }
}

/// A later write: what became of the notice. Whoever has opened the node meanwhile has taken the cordon over.
pub fn progress(node: &Node, wanted: &EvictionNotice) -> Edit {
    let cordoned = node.notice().map_or(wanted.cordoned, |last| last.cordoned) && node.spec.unschedulable;
    let written = EvictionNotice { cordoned, ..wanted.clone() };
    Edit { annotations: vec![(names::EVICTION_ANNOTATION, text(&written))], ..Edit::default() }
}

/// Takes the marks of a notice off that holds no longer. Nothing if there are none.
pub fn ended(node: &Node, phase: Phase) -> Edit {
    let Some(last) = node.notice().filter(EvictionNotice::is_active) else {
        return Edit::default();
    };
    let edit = opened(node, EvictionNotice { phase, unfinished: Vec::new(), ..last });
    Edit { taint: Taint::Remove, excluded: Some(false), ..edit }
}

/// What an earlier notice still owes the node: it was over while somebody else held the node closed, too. Nothing
/// if it owes nothing, or they still do.
pub fn owed(node: &Node) -> Edit {
    match node.notice().filter(|last| !last.is_active() && last.cordoned) {
        Some(last) => opened(node, last),
        None => Edit::default(),
    }
}

/// With a cordon that `last` made taken off, or handed over.
fn opened(node: &Node, last: EvictionNotice) -> Edit {
    let release = if last.cordoned { release(node) } else { Release::Nothing };
    let cordoned = matches!(release, Release::Later);
    let mut annotations = vec![(names::EVICTION_ANNOTATION, text(&EvictionNotice { cordoned, ..last }))];
    if let (Release::HandOver, Some(status)) = (&release, node.drain_status()) {
        annotations.extend(answer(&DrainStatus { cordoned: true, ..status }).annotations);
    }
    let unschedulable = matches!(release, Release::Open).then_some(false);
    Edit { unschedulable, annotations, ..Edit::default() }
}

/// What becomes of a cordon of ours.
enum Release {
    /// Somebody has taken it off already, or it is not ours.
    Nothing,
    /// It comes off.
    Open,
    /// A voluntary drain goes on under it.
    HandOver,
    /// AKS or the cluster autoscaler keep the node closed, too, and would have to close it again.
    Later,
}

fn release(node: &Node) -> Release {
    if !node.spec.unschedulable {
        Release::Nothing
    } else if node.drain_status().is_some_and(|status| closes(&status)) {
        Release::HandOver
    } else if node.is_closed_by_others() {
        Release::Later
    } else {
        Release::Open
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
        Some(last) if last.id == wanted.id => {
            let end = DrainStatus { phase: DrainPhase::TimedOut, cordoned: false, ..wanted.clone() };
            with(answer(&end), given_back(node, last.cordoned))
        }
        _ => Edit::default(),
    }
}

/// Gives a drained node back though the drain is asked for still. Nothing while others hold the node closed, too.
pub fn drain_cancelled(node: &Node) -> Edit {
    let Some(last) = node.drain_status().filter(|status| status.phase == DrainPhase::Drained) else {
        return Edit::default();
    };
    if last.cordoned && node.spec.unschedulable && node.is_closed_by_others() {
        return Edit::default();
    }
    let given_back = given_back(node, last.cordoned);
    with(answer(&DrainStatus { phase: DrainPhase::Cancelled, cordoned: false, ..last }), given_back)
}

/// Gives the node back because nobody asks for a drain any more, and takes the answer off with it. Nothing while
/// somebody asks, or while others hold the node closed, too.
pub fn drain_forgotten(node: &Node) -> Edit {
    let asks = node.annotation(names::DRAIN_REQUEST_ANNOTATION).is_some();
    if asks || (holds_cordon(node) && node.spec.unschedulable && node.is_closed_by_others()) {
        return Edit::default();
    }
    let off = Edit { annotations: vec![(names::DRAIN_STATUS_ANNOTATION, None)], ..Edit::default() };
    with(off, given_back(node, holds_cordon(node)))
}

/// The cordon of a voluntary drain comes off, unless an event holds it, which takes it over.
fn given_back(node: &Node, is_ours: bool) -> Edit {
    if !is_ours || !node.spec.unschedulable {
        return Edit::default();
    }
    match node.notice().filter(|notice| notice.is_active() && notice.response != EventResponse::Ignore) {
        Some(notice) => Edit {
            annotations: vec![(
                names::EVICTION_ANNOTATION,
                text(&EvictionNotice { cordoned: true, ..notice }),
            )],
            ..Edit::default()
        },
        None => Edit { unschedulable: Some(false), ..Edit::default() },
    }
}

fn with(edit: Edit, more: Edit) -> Edit {
    let mut annotations = edit.annotations;
    annotations.extend(more.annotations);
    Edit { annotations, unschedulable: more.unschedulable, ..edit }
}

fn holds_cordon(node: &Node) -> bool {
    node.drain_status().is_some_and(|status| status.cordoned && closes(&status))
}

/// Whether a voluntary drain keeps the node closed in this phase.
fn closes(status: &DrainStatus) -> bool {
    matches!(status.phase, DrainPhase::Draining | DrainPhase::Drained)
}

fn answer(status: &DrainStatus) -> Edit {
    Edit { annotations: vec![(names::DRAIN_STATUS_ANNOTATION, text(status))], ..Edit::default() }
}

/// These types have no map keys and no floats: they always have a JSON form.
fn text<T: Serialize>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}

#[cfg(test)]
mod tests;
