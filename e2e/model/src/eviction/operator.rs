//! The operator, where an agent is silent: when it claims a notice is `backup`'s word, what it hears of it comes from
//! `Notices`, and what it writes from `marks`. The order of it is written down after `backup_drain.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use spotpool_core::backup::{Backup, Named, Noticed, backup};
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{Claimant, Phase, Source};
use spotpool_crds::spot_pool::EventResponse;
use spotpool_drain::edit::Edit;
use spotpool_drain::marks;
use spotpool_operator::backup_drain::{may_claim, noticed, ours, progress};
use spotpool_operator::pool::doomed::Notices;

use super::Mutation;
use super::cluster::{NAMES, Object, event_id, sibling};
use super::drain;
use super::state::{Flow, Heard, Operator, Sibling, Task, Work};
use crate::time::{Time, stamp};

impl Operator {
    /// A new leader, that knows what stands on Nodes.
    pub fn start(node: &Arc<Object>, sibling: Sibling, now: Time, mutation: Option<Mutation>) -> Self {
        let mut operator = Self { view: (node.clone(), sibling), heard: [].into(), task: None };
        operator.tend(node, now, mutation);
        operator
    }

    /// Looks at the nodes as it last saw them; what it sets out to do begins with a read of this Node.
    pub fn tend(&mut self, live: &Arc<Object>, now: Time, mutation: Option<Mutation>) {
        let view = self.view.0.clone();
        let node = &view.watched;
        let mut nodes = vec![node.clone()];
        nodes.extend(sibling(self.view.1));
        let notices = Notices::of(&nodes);
        let written = notices.on(node);
        let claimed = written.filter(|it| it.is_active() && it.by == Claimant::Operator);

        let mut named = Vec::new();
        for (id, told) in notices.told(node).into_iter().flatten() {
            let Some(event) = number(id) else { continue };
            let heard =
                self.heard.entry(event).or_insert(Heard { at: now, by: [false; 2], silent_since: None });
            for (at, name) in NAMES.iter().enumerate() {
                heard.by[at] |= told.by.contains(*name);
            }
            heard.silent_since = None;
            named.push(Named {
                event_id: id.clone(),
                source: Source::Imds,
                seen: told.seen,
                heard: stamp(heard.at),
                not_before: told.not_before,
            });
        }
        let silent_since = claimed.and_then(|claimed| {
            let is_named = named.iter().any(|named| named.event_id == claimed.event_id);
            let heard = self.heard.get_mut(&number(&claimed.event_id)?)?;
            let by: BTreeSet<Arc<str>> = NAMES
                .iter()
                .zip(heard.by)
                .filter(|(_, told)| *told)
                .map(|(name, _)| (*name).into())
                .collect();
            let can_tell = heard.by[0] || notices.can_tell(node, &by);
            if is_named || !can_tell {
                return None;
            }
            Some(*heard.silent_since.get_or_insert(now))
        });
        self.heard.retain(|event, _| {
            let id = event_id(*event);
            named.iter().any(|named| named.event_id == id)
                || claimed.is_some_and(|claimed| claimed.event_id == id)
        });

        let is_ours = claimed.is_some();
        if !is_ours && written.is_some_and(EvictionNotice::is_active) {
            self.task = None;
        }
        if named.is_empty() && !is_ours {
            return;
        }
        let of_agent = |it: &EvictionNotice| it.by == Claimant::NodeAgent;
        let known = written.filter(|it| mutation != Some(Mutation::AgentNotAsked) || !of_agent(it));
        let seen = Noticed {
            notice: known,
            named: &named,
            silent_since: silent_since.map(stamp),
            boot_id: view.node.boot_id(),
            ready: true,
        };
        let decided = backup(&seen, stamp(now));
        if self.task.is_some() {
            return;
        }
        let base = live.clone();
        let work = match decided {
            Backup::Nothing | Backup::LookAgain(_) => return,
            Backup::Claim(claim) => {
                Work::Claim(Box::new(noticed(claim, EventResponse::Drain, view.node.boot_id())))
            }
            Backup::GiveBack(phase) => Work::GiveBack(phase == Phase::Over),
            Backup::GoOn => {
                let claimed = base.active().filter(|it| it.by == Claimant::Operator);
                let Some(notice) = claimed else { return };
                drains(notice.clone(), now)
            }
        };
        self.task = Some(Task { base, work });
        self.settle(now, mutation);
    }

    /// What it wants to write now.
    pub fn edit(&self, mutation: Option<Mutation>) -> Option<(&Arc<Object>, Edit)> {
        let task = self.task.as_ref()?;
        let node = &task.base.node;
        let edit = match &task.work {
            Work::Claim(wanted) => {
                if may_claim(node, &wanted.event_id) || mutation == Some(Mutation::AgentNotAsked) {
                    marks::notice(node, wanted)
                } else {
                    Edit::default()
                }
            }
            Work::GiveBack(over) => match &task.base.notice {
                Some(notice) if notice.by == Claimant::Operator => {
                    marks::ended(node, if *over { Phase::Over } else { Phase::Cancelled })
                }
                _ => Edit::default(),
            },
            Work::Drain(flow) => {
                let Flow { wanted, told, drain, .. } = &**flow;
                let is_new = told.as_ref().is_none_or(|told| {
                    EvictionNotice { pods: told.pods, ..wanted.clone() } != *told || drain.is_over
                });
                if is_new { progress(node, wanted) } else { return None }
            }
        };
        Some((&task.base, edit))
    }

    /// Goes on where what it wants stands already.
    pub fn settle(&mut self, now: Time, mutation: Option<Mutation>) {
        while let Some((base, edit)) = self.edit(mutation)
            && edit.is_done(&base.node)
        {
            let base = base.clone();
            let Some(task) = &mut self.task else { return };
            match &mut task.work {
                Work::Claim(wanted) => match ours(&base.node, &wanted.event_id) {
                    Some(claimed) => task.work = drains(claimed, now),
                    None => self.task = None,
                },
                Work::Drain(flow) if !flow.drain.is_over => flow.told = Some(flow.wanted.clone()),
                Work::Drain(_) | Work::GiveBack(_) => self.task = None,
            }
        }
    }

    /// The drain that is under way.
    pub fn drains(&self) -> Option<&Flow> {
        match &self.task.as_ref()?.work {
            Work::Drain(flow) => Some(flow),
            _ => None,
        }
    }
}

fn drains(notice: EvictionNotice, now: Time) -> Work {
    let drain = drain::begin(now, notice.pods);
    Work::Drain(Box::new(Flow { told: Some(notice.clone()), wanted: notice, ended: None, drain }))
}

fn number(id: &str) -> Option<u8> {
    id.strip_prefix('E')?.parse().ok()
}
