//! Whom to ask next: what [`plan`] says of each pod, against what was asked and answered so far and what the
//! pod's group has room for.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::answer::Answer;
use crate::budgets::Budgets;
use crate::groups::{CROWD_IN_FLIGHT, FIRST_WINDOW, Groups, Key, Load, MOST_IN_FLIGHT, Room, SLOW};
use crate::holds::Holds;
use crate::known::{Deletion, Known, names};
use crate::plan::{self, Action, Asked, Standing, Terms};
use crate::pods::{Pod, Pods};
use crate::report::{Budget, Progress};

/// An eviction that is not answered in this is sent again.
const HANGS: Duration = Duration::from_secs(5);
/// In this time every agent asks for the document once: who hears last must get its cordon through.
const ALL_HEAR_WITHIN: Duration = Duration::from_secs(1);
/// As good as any later time, and cannot overflow an instant.
const ABOUT_A_YEAR: Duration = Duration::from_secs(1 << 25);
/// Budgets named in reports.
const MOST_BUDGETS: usize = 10;

/// Wall-clock time that a correction of the node's clock does not bend during a drain.
pub struct Clock {
    /// When the drain began.
    pub began: Timestamp,
    since: Instant,
}

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self::at(Timestamp::now())
    }

    /// Begins now, and now is `began`.
    pub fn at(began: Timestamp) -> Self {
        Self { began, since: Instant::now() }
    }

    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.since.elapsed()).unwrap_or(SignedDuration::MAX);
        self.began.checked_add(passed).unwrap_or(Timestamp::MAX)
    }

    /// The instant of a time; the past is the beginning.
    pub fn instant(&self, time: Timestamp) -> Instant {
        let ahead = Duration::try_from(time.duration_since(self.began)).unwrap_or_default();
        self.since + ahead.min(ABOUT_A_YEAR)
    }
}

/// All that a drain remembers.
#[derive(Default)]
pub struct Schedule {
    pods: BTreeMap<String, Known>,
    groups: Groups,
    /// When it was last found which pods are under which budget.
    regrouped: Option<Instant>,
    /// Nodes that go at the same time, this one included.
    crowd: usize,
}

/// A request to send.
pub struct Request {
    /// For this pod.
    pub pod: Arc<Pod>,
    /// To do this.
    pub action: Action,
    /// Whether its condition is to be set first.
    pub mark: bool,
}

/// An answer that came.
pub struct Heard {
    /// For this pod.
    pub pod: Arc<Pod>,
    /// To a deletion, not an eviction.
    pub deleted: bool,
    /// Whether the pod is marked now.
    pub marked: bool,
    /// What it was.
    pub answer: Answer,
}

/// What an answer means for the numbers.
pub enum Outcome {
    /// Nothing new.
    Nothing,
    /// The pod goes, of its own.
    Evicted,
    /// The pod goes, although these held it.
    Escalated(Vec<Budget>),
}

/// All pods at one moment.
pub struct View {
    /// What stands but for the counts of what was accepted.
    pub progress: Progress,
    /// What to send now.
    pub send: Vec<Request>,
    /// When something else becomes due without anything happening.
    pub wake: Option<Instant>,
    /// Namespaces whose budgets are worth knowing.
    pub curious: Vec<String>,
    /// Pods wait for room that answers make, which come soon.
    pub hurries: bool,
}

/// A pod that could be asked now.
struct Candidate<'a> {
    pod: &'a Arc<Pod>,
    action: Action,
    /// Asked whatever its group has room for.
    overdue: bool,
    /// The last time it was asked.
    sent: Option<Instant>,
}

/// Evictions of one node that may be in flight so long after the drain began, where so many nodes go at once.
///
/// An apiserver that has as many before it as it can handle gains nothing by more, and the nodes that hear of their
/// notice last wait for their cordon behind them: evicted pods come to those.
fn most_in_flight(crowd: usize, since: Duration) -> usize {
    if since < ALL_HEAR_WITHIN && crowd > 1 {
        (CROWD_IN_FLIGHT / crowd).clamp(FIRST_WINDOW, MOST_IN_FLIGHT)
    } else {
        MOST_IN_FLIGHT
    }
}

impl Schedule {
    /// Of a node that goes together with others: so many in all.
    pub fn among(crowd: usize) -> Self {
        Self { crowd, ..Self::default() }
    }

    /// Looks at all pods, and counts what it returns to be sent as sent.
    pub fn look(
        &mut self,
        pods: &Pods,
        holds: &Holds,
        terms: &Terms,
        budgets: &Budgets,
        clock: &Clock,
    ) -> View {
        let (now, tick) = (clock.now(), Instant::now());
        self.pods.retain(|uid, known| known.in_flight() || pods.contains(uid));
        let mut view = View {
            progress: Progress { all_asked: pods.complete, ..Progress::default() },
            send: Vec::new(),
            wake: None,
            curious: Vec::new(),
            hurries: false,
        };
        let asked = |uid: &str| self.pods.get(uid).map_or(Asked::Never, |known| known.asked(tick));
        let turn = plan::turn(pods.iter().map(|pod| (pod.as_ref(), asked(&pod.uid))));
        let mut loads: BTreeMap<Key, Load> = BTreeMap::new();
        let fresh = self.groups.fresh();
        let (mut in_flight, mut candidates) = (0, Vec::new());
        for pod in pods.iter().filter(|pod| pod.exempt.is_none()) {
            let known = self.pods.entry(pod.uid.clone()).or_default();
            let standing = Standing { held: holds.contains(&pod.uid), asked: known.asked(tick) };
            if standing.asked == Asked::Gone {
                continue;
            }
            let action = plan::action(pod, standing, turn, terms, now);
            view.progress.left += 1;
            if let Some(sent) = known.evicting {
                in_flight += 1;
                let key = known.key.get_or_insert_with(|| Key::of(pod, budgets));
                loads.entry(key.clone()).or_default().count(sent, fresh, tick);
                if tick.duration_since(sent) >= SLOW {
                    view.curious.push(pod.namespace.clone());
                }
                if let Some(next) = [SLOW, HANGS].map(|age| sent + age).into_iter().find(|next| *next > tick)
                {
                    view.wakes_at(next);
                }
            }
            match action {
                Action::Skip(_) | Action::Wait => continue,
                Action::Later { until, .. } => {
                    view.progress.all_asked = false;
                    if let Some(until) = until {
                        view.wakes_at(clock.instant(until));
                    }
                    continue;
                }
                Action::Evict { .. } | Action::Escalate { .. } => {}
            }
            view.progress.all_asked &= known.answers > 0;
            if known.is_blocked() {
                view.curious.push(pod.namespace.clone());
                for name in names(&known.held_by(budgets, pod)) {
                    if view.progress.blocking.len() < MOST_BUDGETS {
                        view.progress.blocking.insert(format!("{}/{name}", pod.namespace));
                    }
                }
            }
            // What is asked in any case, at these times.
            let last_call = plan::last_call(pod, terms).filter(|_| standing.asked != Asked::Refused);
            let overdue = last_call.or_else(|| plan::escalates_at(pod, terms));
            let is_overdue = overdue.is_some_and(|time| time <= now);
            if let Some(time) = overdue.filter(|time| *time > now) {
                view.wakes_at(clock.instant(time));
            }
            let deletes = matches!(action, Action::Escalate { .. });
            // Only a budget makes the server take so long; anything else is asked anew.
            let is_under_way = known.evicting.is_some_and(|sent| {
                let hangs = tick.duration_since(sent) >= HANGS;
                !hangs || matches!(known.key, Some(Key::Budgets(..)))
            });
            if known.deletion == Deletion::Sent || (is_under_way && !deletes) {
                continue;
            }
            let candidate = Candidate {
                pod,
                action,
                overdue: deletes || (is_overdue && standing.asked == Asked::Never),
                sent: known.sent[0],
            };
            // The first deletion does not wait for the next turn of a blocked eviction.
            let turns = deletes && known.deletion == Deletion::None;
            let key = known.key.get_or_insert_with(|| Key::of(pod, budgets)).clone();
            let next = if deletes {
                known.next
            } else if known.is_blocked() && matches!(key, Key::Budgets(..)) {
                // Its budget tells when to ask again.
                self.groups.exhausted_until(&key).max(known.after_three())
            } else {
                known.next()
            };
            match next.filter(|next| *next > tick && !turns) {
                Some(next) => view.wakes_at(next),
                None => candidates.push(candidate),
            }
        }
        candidates.sort_by_key(|it| (!it.overdue, it.sent, it.pod.tier, Reverse(it.pod.grace)));
        let pressing = terms.is_pressing(now);
        let most = most_in_flight(self.crowd, clock.since.elapsed());
        for candidate in candidates {
            let Some(known) = self.pods.get_mut(&candidate.pod.uid) else { continue };
            let key = known.key.get_or_insert_with(|| Key::of(candidate.pod, budgets));
            let load = loads.entry(key.clone()).or_default();
            if !candidate.overdue {
                if in_flight >= most {
                    view.hurries = true;
                    continue;
                }
                // Another pod of the same budget may just have been asked in its name.
                if known.last.is_some()
                    && let Some(until) = self.groups.exhausted_until(key).filter(|until| *until > tick)
                {
                    view.wakes_at(until);
                    continue;
                }
                match self.groups.room(key, load) {
                    Room::Yes => {}
                    Room::Full => {
                        if !matches!(key, Key::Budgets(..)) {
                            view.hurries = true;
                            // More pods than may go unseen: where there is no budget they may all go at once.
                            view.curious.push(candidate.pod.namespace.clone());
                        }
                        continue;
                    }
                    Room::Until(time) => {
                        view.wakes_at(time);
                        continue;
                    }
                }
            }
            let deletes = matches!(candidate.action, Action::Escalate { .. });
            if deletes {
                known.deletion = Deletion::Sent;
            } else {
                if known.last.is_some() {
                    self.groups.probed(key, pressing, tick);
                }
                known.evicting = Some(tick);
                load.count(tick, fresh, tick);
                in_flight += 1;
                view.wakes_at(tick + SLOW);
            }
            known.sent.rotate_right(1);
            known.sent[0] = Some(tick);
            if let (None, Some(what)) = (known.sent[1], &candidate.pod.unreadable) {
                let pod = format_args!("{}/{}", candidate.pod.namespace, candidate.pod.name);
                tracing::warn!(pod, what, "an annotation that cannot be read counts as not there");
            }
            view.send.push(Request {
                pod: candidate.pod.clone(),
                action: candidate.action,
                mark: deletes && !known.marked,
            });
        }
        view
    }

    /// Takes an answer in.
    pub fn heard(&mut self, heard: Heard, terms: &Terms, budgets: &Budgets, clock: &Clock) -> Outcome {
        let (now, pressing) = (Instant::now(), terms.is_pressing(clock.now()));
        let Heard { pod, deleted, marked, answer } = heard;
        let known = self.pods.entry(pod.uid.clone()).or_default();
        known.marked |= marked;
        let mut is_outdated = false;
        if deleted {
            known.deletion = Deletion::Answered;
        } else if let Some(sent) = known.evicting.take() {
            let key = known.key.get_or_insert_with(|| Key::of(&pod, budgets));
            self.groups.heard(key, &answer, sent, pressing, now);
            is_outdated = self.regrouped.is_some_and(|last| sent <= last);
        }
        let held_by = known.held_by(budgets, &pod);
        let goes = answer == Answer::Accepted && !known.accepted;
        known.accepted |= goes;
        known.heard(answer, pressing, now);
        if is_outdated && known.is_blocked() {
            known.next = None; // by a budget that may hold it no more
        }
        match (goes, deleted) {
            (false, _) => Outcome::Nothing,
            (true, false) => Outcome::Evicted,
            (true, true) => Outcome::Escalated(held_by),
        }
    }

    /// A budget may let pods go now.
    pub fn freed(&mut self, namespace: &str, budget: &str) {
        self.groups.freed(namespace, budget, Instant::now());
    }

    /// Which pods are under which budget has to be looked at again; those that were held are asked at once.
    pub fn regroup(&mut self) {
        self.regrouped = Some(Instant::now());
        for known in self.pods.values_mut() {
            known.key = None;
            if known.is_blocked() {
                known.next = None;
            }
        }
    }

    /// Pods that are still there, and why.
    pub fn left(&self, pods: &Pods, holds: &Holds, budgets: &Budgets) -> Vec<String> {
        let why = |pod: &Pod| {
            let known = self.pods.get(&pod.uid);
            if known.is_some_and(|known| known.last == Some(Answer::Gone)) {
                return None;
            }
            let why = match known {
                _ if pod.terminating => "still ending".to_owned(),
                Some(known) if known.sent[0].is_some() => known.why(budgets, pod),
                _ if holds.contains(&pod.uid) => "its hook has not answered".to_owned(),
                _ => "never asked".to_owned(),
            };
            Some(format!("{}/{}: {why}", pod.namespace, pod.name))
        };
        pods.iter().filter(|pod| pod.exempt.is_none()).filter_map(|pod| why(pod)).collect()
    }
}

impl View {
    fn wakes_at(&mut self, time: Instant) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_nodes_begins_gently_and_one_alone_does_not() {
        let second = Duration::from_secs(1);
        let begins = |crowd| most_in_flight(crowd, Duration::ZERO);
        assert_eq!(
            (begins(0), begins(1)),
            (MOST_IN_FLIGHT, MOST_IN_FLIGHT),
            "a node of no known scale set, and one alone"
        );
        assert_eq!((begins(2), begins(20), begins(50), begins(5000)), (100, 10, 4, 4));
        assert_eq!(most_in_flight(50, second), MOST_IN_FLIGHT, "all have heard");
    }
}
