//! One notice that is acted upon: what is asked of pods, and what of it is noted. The functions are the drain's own
//! (`plan`, `noted`, `marks`); their order is written down after `executor.rs`, `flow/drain.rs` and `backup_drain.rs`.

use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::{BlockedByPdb, Drain};
use spotpool_drain::plan::{self, Action, Asked, Standing};
use spotpool_drain::{Ending, Pod, Progress, Report, Terms, noted};

use super::Mutation;
use super::state::{Draining, Flow, PODS, PodState};
use crate::time::{Time, stamp};

/// What pods are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It goes when it is asked to.
    Free,
    /// A disruption budget holds it, until it is deleted at last.
    Held,
    /// A disruption budget holds it, and its owner wants that obeyed to the end.
    Left,
}

const KINDS: [Kind; PODS] = [Kind::Free, Kind::Held, Kind::Left];

/// What the API says to a request for a pod.
fn answer(pod: usize, action: Action) -> Asked {
    match (KINDS[pod], action) {
        (Kind::Free, _) | (_, Action::Escalate { .. }) => Asked::Yes,
        _ => Asked::Refused,
    }
}

/// As the drain sees it.
fn view(pod: usize, state: PodState) -> Pod {
    Pod {
        namespace: "a".into(),
        name: format!("{:?}", KINDS[pod]),
        uid: pod.to_string(),
        grace: Duration::from_secs(30),
        terminating: state == PodState::Ends,
        blocked_by_pdb: (KINDS[pod] == Kind::Left).then_some(BlockedByPdb::Leave),
        ..Pod::default()
    }
}

/// The beginning of a drain.
pub fn begin(now: Time, before: PodCounts) -> Draining {
    Draining {
        began: now,
        has_said: false,
        before,
        evicted: 0,
        escalated: 0,
        asked: [Asked::Never; PODS],
        is_over: false,
    }
}

fn terms(notice: &EvictionNotice) -> Terms {
    let policy = DrainPolicy::from(&Drain::default());
    Terms::Preempt { noticed: notice.observed_at, deadline: notice.deadline, policy }
}

/// What is to be asked of a pod now; nothing if it is asked already, or waits.
fn due(flow: &Flow, pods: [PodState; PODS], pod: usize, now: Time) -> Option<Action> {
    if flow.ended.is_some() || flow.drain.is_over || pods[pod] != PodState::Runs {
        return None;
    }
    let views: Vec<Pod> = pods.iter().enumerate().map(|(at, state)| view(at, *state)).collect();
    let asked = |at: usize| if pods[at] == PodState::Gone { Asked::Gone } else { flow.drain.asked[at] };
    let turn = plan::turn(views.iter().enumerate().map(|(at, view)| (view, asked(at))));
    let standing = Standing { held: false, asked: asked(pod) };
    match plan::action(&views[pod], standing, turn, &terms(&flow.wanted), stamp(now)) {
        // The same question has the same answer.
        Action::Evict { .. } if flow.drain.asked[pod] != Asked::Never => None,
        action @ (Action::Evict { .. } | Action::Escalate { .. }) => Some(action),
        Action::Skip(_) | Action::Wait | Action::Later { .. } => None,
    }
}

/// The next pod that is asked now. They know nothing of each other, so that one order stands for all.
pub fn asks(flow: &Flow, pods: [PodState; PODS], now: Time) -> Option<usize> {
    (0..PODS).find(|pod| due(flow, pods, *pod, now).is_some())
}

/// Asks a pod, and hears the answer.
pub fn ask(flow: &mut Flow, pods: &mut [PodState; PODS], pod: usize, now: Time) {
    let Some(action) = due(flow, *pods, pod, now) else { return };
    let said = answer(pod, action);
    flow.drain.asked[pod] = said;
    if said == Asked::Yes {
        pods[pod] = PodState::Ends;
        match action {
            Action::Escalate { .. } => flow.drain.escalated += 1,
            _ => flow.drain.evicted += 1,
        }
    }
}

fn left(pods: [PodState; PODS], drain: &Draining) -> Vec<String> {
    let name = |pod: usize| {
        let why = match pods[pod] {
            PodState::Ends => "still ending",
            _ if drain.asked[pod] == Asked::Refused => "held",
            _ => "never asked",
        };
        format!("{}: {why}", named(pod))
    };
    (0..PODS).filter(|pod| pods[*pod] != PodState::Gone).map(name).collect()
}

fn named(pod: usize) -> String {
    format!("a/{:?}", KINDS[pod])
}

/// Whether a notice names the pod among those that are left.
pub fn names(notice: &EvictionNotice, pod: usize) -> bool {
    let name = named(pod);
    notice.unfinished.iter().any(|left| left.split(':').next() == Some(name.as_str()))
}

/// Looks at pods and clock, and notes what is new.
pub fn look(flow: &mut Flow, pods: [PodState; PODS], now: Time, mutation: Option<Mutation>) {
    let Flow { wanted, drain, ended, .. } = flow;
    if ended.is_some() {
        return;
    }
    let left_now = pods.iter().filter(|pod| **pod != PodState::Gone).count() as u32;
    if drain.is_over {
        // Until pods come, or there is new time.
        let goes_on = match wanted.phase {
            Phase::Drained => left_now > 0 && mutation != Some(Mutation::DoneWhenAsked),
            _ => wanted.deadline > stamp(now),
        };
        if goes_on {
            if wanted.phase == Phase::Incomplete {
                wanted.phase = Phase::Draining;
                wanted.unfinished.clear();
            }
            *drain = begin(now, wanted.pods);
        }
        return;
    }
    let terms = terms(wanted);
    let began: Timestamp = stamp(drain.began);
    let asked = |pod: usize| pods[pod] != PodState::Runs || drain.asked[pod] != Asked::Never;
    let progress = Progress {
        evicted: drain.evicted,
        escalated: drain.escalated,
        left: left_now,
        all_asked: (0..PODS).all(asked),
        ..Progress::default()
    };
    noted::progress(wanted, drain.before, &progress);
    let is_done = match mutation {
        Some(Mutation::DoneWhenAsked) => progress.all_asked,
        _ => left_now == 0,
    };
    let ending = if is_done {
        Some(Ending::Drained)
    } else if stamp(now) >= terms.gives_up_at(began) {
        Some(Ending::TimeOver)
    } else {
        None
    };
    if let Some(ending) = ending {
        let report = Report { ending, progress, left: left(pods, drain), local_storage: 0, unmanaged: 0 };
        noted::ending(wanted, drain.before, &report);
        drain.is_over = true;
        return;
    }
    let says_at = terms.says_what_is_left_at(began).filter(|_| mutation != Some(Mutation::SaysAtTheEnd));
    if !drain.has_said && says_at.is_some_and(|at| at <= stamp(now)) {
        drain.has_said = true;
        noted::unfinished(wanted, &left(pods, drain));
    }
}
