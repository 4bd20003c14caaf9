//! What is asked for, node by node, asked again, and taken back.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spotpool_crds::Duration;
use spotpool_crds::drill::{DrillMethod, DrillRun, Target};

use super::{Ask, Draft, LOOK_AGAIN, MOST_ATTEMPTS, Machine, UNHEARD, choice, guard, note, request_id};
use crate::time::{later, later_by};

impl Draft<'_> {
    /// Asks for the next node, or for all, once it is time and limits allow it.
    pub(super) fn ask_next(&mut self) {
        let Some(mut run) = self.status.run.take() else { return };
        let last = run.targets.iter().filter_map(|target| target.intended_at.as_ref()).map(|at| at.0).max();
        let due = last.map_or(self.now, |last| later(last, self.spec.stagger));
        let waiting: Vec<usize> =
            (0..run.targets.len()).filter(|at| run.targets[*at].intended_at.is_none()).collect();
        let is_together = Duration::default() == self.spec.stagger;
        let stage = if is_together { waiting.as_slice() } else { &waiting[..waiting.len().min(1)] };
        if due > self.now {
            if !stage.is_empty() {
                self.wake_at(due);
            }
        } else if !stage.is_empty() {
            if let Err(why) = self.choose_instead(&mut run, stage) {
                self.status.run = Some(run);
                return self.abort(why);
            }
            match guard::may_take(self.spec, self.snapshot, &run, stage) {
                Ok(()) => {
                    for at in stage {
                        let target = &mut run.targets[*at];
                        target.intended_at = Some(Time(self.now));
                        target.attempts = 1;
                        target.pods.left = self.snapshot.pods_on(&target.node) as i32;
                        let ask = self.ask_for(&run.id, target);
                        self.ask(ask);
                    }
                }
                Err(why) => {
                    self.status.message = format!("the next node waits: {why}");
                    self.wake_at(later_by(self.now, LOOK_AGAIN));
                }
            }
        }
        self.status.run = Some(run);
    }

    pub(super) fn ask_for(&self, run: &str, target: &Target) -> Ask {
        match self.spec.method {
            DrillMethod::SimulateEviction => Ask::Evict { node: target.node.clone(), vm: target.vm.clone() },
            DrillMethod::DeleteMachine => Ask::Delete {
                agent_pool: target.agent_pool.clone(),
                machines: vec![Machine {
                    node: target.node.clone(),
                    uid: target.uid.clone(),
                    vm: target.vm.clone(),
                }],
            },
            DrillMethod::NoticeOnly => Ask::Drain {
                node: target.node.clone(),
                uid: target.uid.clone(),
                request: request_id(run, &target.node),
                not_after: later(self.now, self.spec.rehearsed_notice()),
            },
        }
    }

    pub(super) fn ask(&mut self, ask: Ask) {
        if let Ask::Delete { agent_pool, machines } = &ask {
            for asked in &mut self.asks {
                match asked {
                    Ask::Delete { agent_pool: same, machines: all } if same == agent_pool => {
                        return all.extend(machines.iter().cloned());
                    }
                    _ => {}
                }
            }
        }
        self.asks.push(ask);
    }

    /// When a rehearsed node is opened again. One whose first request was lost has its whole time from the one that was heard.
    pub(super) fn rehearsed_until(&self, target: &Target) -> Timestamp {
        let from = target.asked_at.as_ref().or(target.intended_at.as_ref());
        from.map_or(self.now, |from| later(from.0, self.spec.rehearsed_notice()))
    }

    /// When a target is asked for again of which nothing was heard, if that is so. What AKS does just now may be what was asked.
    pub(super) fn unheard(&self, target: &Target) -> Option<Timestamp> {
        let intended = target.intended_at.as_ref().map(|at| at.0)?;
        let is_here = self.snapshot.nodes.iter().any(|node| node.uid == target.uid && node.ready);
        let is_unheard = !target.is_answered() && target.noticed_at.is_none() && is_here;
        let again = later_by(intended, UNHEARD * target.attempts.max(1));
        (is_unheard && guard::occupied(self.spec, self.snapshot, &[target]).is_none()).then_some(again)
    }

    /// Gives up what was asked for often enough, or not at all any more.
    pub(super) fn give_up_unheard(&self, run: &mut DrillRun) {
        let is_aborted = run.aborted_at.is_some();
        for target in &mut run.targets {
            let is_due = self.unheard(target).is_some_and(|again| again <= self.now);
            if is_due && (is_aborted || target.attempts >= MOST_ATTEMPTS) {
                target.refused = format!("no answer and no notice, asked {} times", target.attempts);
            }
        }
    }

    /// Asks again for the same VMs where neither an answer nor a sign has come.
    pub(super) fn ask_again(&mut self) {
        let Some(mut run) = self.status.run.take() else { return };
        for at in 0..run.targets.len() {
            let target = &run.targets[at];
            let Some(again) = self.unheard(target) else { continue };
            if again > self.now {
                self.wake_at(again);
            } else if let Err(why) = guard::may_take(self.spec, self.snapshot, &run, &[]) {
                self.status.message = format!("{} is asked for again later: {why}", target.node);
                self.wake_at(later_by(self.now, LOOK_AGAIN));
            } else {
                let ask = self.ask_for(&run.id, target);
                self.ask(ask);
                run.targets[at].attempts += 1;
            }
        }
        self.status.run = Some(run);
    }

    /// Opens rehearsed nodes again whose time is over, and all once the run is aborted.
    pub(super) fn withdraw_what_is_over(&mut self) {
        let Some(run) = &self.status.run else { return };
        let is_aborted = run.aborted_at.is_some();
        let mut wakes = Vec::new();
        for target in run.targets.iter().filter(|_| run.method == DrillMethod::NoticeOnly) {
            let Some(node) = self.snapshot.nodes.iter().find(|node| node.uid == target.uid) else { continue };
            if node.request.as_deref() != Some(request_id(&run.id, &target.node).as_str()) {
                continue;
            }
            let until = self.rehearsed_until(target);
            if is_aborted || until <= self.now {
                self.asks.push(Ask::Withdraw { node: target.node.clone(), uid: target.uid.clone() });
                wakes.push(later_by(self.now, LOOK_AGAIN));
            } else {
                wakes.push(until);
            }
        }
        for at in wakes {
            self.wake_at(at);
        }
    }

    /// Takes another node for each of these that has gone, or has pods of others; says why that cannot be.
    pub(super) fn choose_instead(&self, run: &mut DrillRun, stage: &[usize]) -> Result<(), String> {
        for at in stage {
            let target = &run.targets[*at];
            let strangers = guard::strangers(self.spec, self.snapshot, std::iter::once(target));
            let is_there = self.snapshot.nodes.iter().any(|node| node.uid == target.uid);
            if strangers.is_none() && is_there {
                continue;
            }
            match (choice::instead(self.spec, self.snapshot, &run.targets, target), strangers) {
                (Some(other), strangers) => {
                    let why = strangers.unwrap_or_else(|| "it has gone".into());
                    let what =
                        format!("{} is left alone, {} taken in its stead: {why}", target.node, other.node);
                    run.targets[*at] = other;
                    note(run, self.now, what);
                }
                (None, Some(strangers)) => return Err(format!("{strangers}; no other node may be taken")),
                (None, None) => {}
            }
        }
        Ok(())
    }
}
