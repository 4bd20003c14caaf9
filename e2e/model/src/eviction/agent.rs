//! The agent: what it makes of documents is `notice`'s and `claim`'s own, what it writes `marks`'. The order of it is
//! written down after `agent.rs`, `flow.rs` and `flow/report.rs`.

use std::sync::Arc;
use std::time::Duration;

use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{Claimant, Phase, PodCounts};
use spotpool_crds::spot_pool::{EventResponse, Events};
use spotpool_drain::edit::Edit;
use spotpool_drain::marks;
use spotpool_drain::npd::Hearing;
use spotpool_node_agent::claim::{self, Unnamed};
use spotpool_node_agent::document::Document;
use spotpool_node_agent::notice::{Decision, Notice, Seen, Vm};

use super::Mutation;
use super::cluster::{Object, identity};
use super::drain;
use super::state::{Agent, Flow, Tidying};
use crate::time::{Time, stamp};

impl Agent {
    /// Starts, and goes on where an earlier one stopped.
    pub fn start(node: &Arc<Object>, now: Time, mutation: Option<Mutation>) -> Self {
        let written = node.active().filter(|_| mutation != Some(Mutation::Forgets));
        let seen = written.map_or_else(Seen::default, Seen::resuming);
        let mut agent = Self {
            seen,
            read: None,
            heard: None,
            since: now,
            view: node.clone(),
            flow: None,
            ended: None,
            tidies: None,
        };
        agent.think(now, mutation);
        agent
    }

    /// Takes a document in.
    pub fn poll(&mut self, document: &Document, incarnation: u8, now: Time, mutation: Option<Mutation>) {
        self.seen.read(document, &identity(), stamp(now));
        (self.read, self.heard) = (Some(incarnation), Some(now));
        self.think(now, mutation);
    }

    /// Sees its Node as it is.
    pub fn see(&mut self, node: &Arc<Object>, now: Time, mutation: Option<Mutation>) {
        self.view = node.clone();
        self.think(now, mutation);
    }

    /// Decides, and does what costs no write, until nothing is left of that.
    pub fn think(&mut self, now: Time, mutation: Option<Mutation>) {
        loop {
            let view = self.view.clone();
            self.decide(&view, now);
            self.tend(&view, now);
            match self.edit(mutation) {
                Some(edit) if edit.is_done(&view.node) => self.written(&view),
                _ => return,
            }
        }
    }

    fn hearing(&self) -> Hearing {
        let patience = Duration::from_millis(3500);
        Hearing { heard_at: self.heard.map(stamp), since: stamp(self.since), patience, booted_at: None }
    }

    fn decide(&mut self, view: &Object, now: Time) {
        let policy = Events::default();
        let vm = Vm { policy: &policy, boot_id: view.node.boot_id(), claims: &[], hearing: self.hearing() };
        let (decisions, _) = self.seen.decide(&vm, stamp(now));
        for decision in decisions {
            match (decision, &mut self.flow) {
                (Decision::Change(notice), Some(flow)) if flow.wanted.response == notice.response => {
                    let wanted = &mut flow.wanted;
                    *wanted = EvictionNotice {
                        phase: wanted.phase,
                        pods: wanted.pods,
                        cordoned: wanted.cordoned,
                        unfinished: std::mem::take(&mut wanted.unfinished),
                        ..noticed(&notice)
                    };
                }
                (Decision::Begin(notice) | Decision::Change(notice), _) => self.begin(&notice, view, now),
                (Decision::End { phase, .. }, Some(flow)) => flow.ended = Some(phase),
                (Decision::End { phase, .. }, None) => self.ended = Some(phase),
                (Decision::Tell { .. } | Decision::Pass { .. }, _) => {}
            }
        }
    }

    fn begin(&mut self, notice: &Notice, view: &Object, now: Time) {
        let mut wanted = noticed(notice);
        if let Some(last) = view.active().filter(|last| last.event_id == wanted.event_id) {
            (wanted.phase, wanted.pods, wanted.unfinished) = (last.phase, last.pods, last.unfinished.clone());
        }
        let drain = drain::begin(now, wanted.pods);
        self.flow = Some(Flow { wanted, told: None, ended: None, drain });
    }

    fn tend(&mut self, view: &Object, now: Time) {
        if self.tidies.is_some() {
            return;
        }
        let is_free = self.flow.is_none() && self.seen.notice().is_none();
        if is_free && self.read.is_some() {
            let phase = match view.active() {
                Some(notice) if notice.by == Claimant::NodeAgent => Some(Phase::Over),
                Some(notice) => {
                    match claim::unnamed(notice, view.node.boot_id(), &self.hearing(), stamp(now)) {
                        Unnamed::GiveBack(phase) => Some(phase),
                        Unnamed::LookAgain(_) => None,
                    }
                }
                None => None,
            };
            if let Some(phase) = phase {
                let phase = self.ended.take().unwrap_or(phase);
                self.tidies = Some(Tidying::GiveBack(phase == Phase::Over));
                return;
            }
        }
        if !marks::owed(&view.node).is_done(&view.node) {
            self.tidies = Some(Tidying::Owed);
        }
    }

    /// What it wants to write now.
    pub fn edit(&self, mutation: Option<Mutation>) -> Option<Edit> {
        let node = &self.view.node;
        match self.tidies {
            Some(Tidying::GiveBack(over)) => return Some(marks::ended(node, ending(over))),
            Some(Tidying::Owed) => return Some(marks::owed(node)),
            None => {}
        }
        let flow = self.flow.as_ref()?;
        let wanted = &flow.wanted;
        let edit = match (&flow.ended, &flow.told) {
            (Some(phase), _) => marks::ended(node, *phase),
            (None, None) => marks::notice(node, wanted),
            // Numbers alone are no reason to write.
            (None, Some(told)) => {
                let kept = EvictionNotice { cordoned: told.cordoned, ..wanted.clone() };
                if (EvictionNotice { pods: told.pods, ..kept.clone() }) == *told {
                    return None;
                }
                if kept.event_id == told.event_id {
                    marks::progress(node, &kept)
                } else {
                    marks::notice(node, &kept)
                }
            }
        };
        Some(if mutation == Some(Mutation::EveryCordonIsOurs) { claiming(edit) } else { edit })
    }

    /// Its edit stands.
    fn written(&mut self, view: &Object) {
        if self.tidies.take().is_some() {
            return;
        }
        let Some(flow) = &mut self.flow else { return };
        if flow.ended.is_some() {
            self.flow = None;
            return;
        }
        flow.wanted.cordoned = view.notice.as_ref().is_some_and(|written| written.cordoned);
        flow.told = Some(flow.wanted.clone());
    }

    /// Whether it asks pods to go.
    pub fn drains(&self) -> Option<&Flow> {
        self.flow.as_ref().filter(|flow| flow.wanted.response == EventResponse::Drain)
    }
}

fn ending(over: bool) -> Phase {
    if over { Phase::Over } else { Phase::Cancelled }
}

/// The notice as it is first wanted on the Node.
fn noticed(notice: &Notice) -> EvictionNotice {
    EvictionNotice {
        by: Claimant::NodeAgent,
        event_id: notice.event_id.clone(),
        event_type: notice.kind.to_string(),
        source: notice.source,
        response: notice.response,
        observed_at: notice.observed_at,
        not_before: notice.not_before,
        deadline: notice.deadline,
        phase: Phase::Noticed,
        pods: PodCounts::default(),
        cordoned: false,
        boot_id: notice.boot_id.clone(),
        traceparent: None,
        doomed: notice.doomed.clone(),
        unfinished: Vec::new(),
    }
}

/// The same, with every cordon taken for its own.
fn claiming(edit: Edit) -> Edit {
    let ours = |text: String| text.replace("\"cordoned\":false", "\"cordoned\":true");
    let annotations = edit.annotations.into_iter().map(|(name, text)| (name, text.map(ours))).collect();
    Edit { annotations, ..edit }
}
