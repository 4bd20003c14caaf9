//! What a drain remembers of one pod.

use std::time::Duration;

use tokio::time::Instant;

use crate::answer::Answer;
use crate::budgets::Budgets;
use crate::groups::{Key, SLOW, blocked_pause};
use crate::jitter::jittered;
use crate::plan::Asked;
use crate::pods::Pod;
use crate::report::Budget;

/// First and longest wait after no answer, and after a refusal.
const UNAVAILABLE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Longest wait that flow control may ask for where the deadline presses.
const LONGEST_THROTTLE: Duration = Duration::from_secs(1);
/// An accepted pod that does not begin to end is asked for again: the watch may be behind, or a webhook
/// may have answered.
const ACCEPTED: Duration = Duration::from_secs(5);
/// However often its budget changes, a pod is asked three times in this at most.
const THREE_IN: Duration = Duration::from_secs(1);
/// What is known of a pod beside what the API shows.
#[derive(Default)]
pub struct Known {
    /// Its group, once looked for.
    pub key: Option<Key>,
    /// An eviction that was sent and not answered.
    pub evicting: Option<Instant>,
    /// How far its deletion is.
    pub deletion: Deletion,
    /// The last three requests, the latest first.
    pub sent: [Option<Instant>; 3],
    /// How many answers there were.
    pub answers: u32,
    /// Whether the API has said that it goes.
    pub accepted: bool,
    /// It carries the condition that tells Jobs of the disruption.
    pub marked: bool,
    /// The last answer that means something.
    pub last: Option<Answer>,
    pause: Duration,
    /// When its pause is over.
    pub next: Option<Instant>,
}

/// How far the deletion of a pod past its budget is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Deletion {
    /// It was not asked for.
    #[default]
    None,
    /// It was asked for, and there is no answer yet.
    Sent,
    /// There is an answer.
    Answered,
}

impl Known {
    /// Whether anything was sent and not answered.
    pub fn in_flight(&self) -> bool {
        self.evicting.is_some() || self.deletion == Deletion::Sent
    }

    /// What came of asking it so far.
    pub fn asked(&self, tick: Instant) -> Asked {
        match &self.last {
            Some(Answer::Gone) => Asked::Gone,
            Some(Answer::Blocked { .. } | Answer::Refused(_)) => Asked::Refused,
            _ if self.evicting.is_some_and(|sent| tick.duration_since(sent) >= SLOW) => Asked::Silent,
            _ if self.sent[0].is_some() => Asked::Yes,
            _ => Asked::Never,
        }
    }

    /// Whether a budget held it at last.
    pub fn is_blocked(&self) -> bool {
        matches!(self.last, Some(Answer::Blocked { .. }))
    }

    /// From when on it may be asked again, of its own.
    pub fn next(&self) -> Option<Instant> {
        self.next.max(self.after_three())
    }

    /// From when on it has not been asked too often.
    pub fn after_three(&self) -> Option<Instant> {
        self.sent[2].map(|third| third + THREE_IN)
    }

    /// Takes an answer in.
    pub fn heard(&mut self, answer: Answer, pressing: bool, now: Instant) {
        let doubled =
            |(first, longest): (Duration, Duration), last: Duration| (last * 2).clamp(first, longest);
        self.answers += 1;
        self.pause = match &answer {
            Answer::Accepted | Answer::Gone => ACCEPTED,
            Answer::Blocked { .. } => blocked_pause(self.pause, pressing),
            Answer::Throttled { after } if pressing => after.unwrap_or(UNAVAILABLE.1).min(LONGEST_THROTTLE),
            Answer::Throttled { after } => after.unwrap_or(LONGEST_THROTTLE),
            Answer::Unavailable(_) | Answer::Refused(_) => doubled(UNAVAILABLE, self.pause),
        };
        self.next = Some(now + jittered(self.pause));
        // Silence is not a no, and does not undo one.
        let is_silence = matches!(answer, Answer::Unavailable(_) | Answer::Throttled { .. });
        if !(is_silence && self.asked(now) == Asked::Refused) {
            self.last = Some(answer);
        }
    }

    /// Why a pod that could not be seen off is still there.
    pub fn why(&self, budgets: &Budgets, pod: &Pod) -> String {
        match &self.last {
            Some(Answer::Blocked { .. }) => match names(&self.held_by(budgets, pod)).as_slice() {
                [] => "held by a disruption budget".to_owned(),
                [one] => format!("held by disruption budget {one}"),
                many => format!("held by disruption budgets {}", many.join(" and ")),
            },
            Some(Answer::Refused(why) | Answer::Unavailable(why)) => why.clone(),
            Some(Answer::Throttled { .. }) => "the API server asked to wait".to_owned(),
            Some(Answer::Accepted | Answer::Gone) => "not seen to end".to_owned(),
            None if self.sent[0].is_some() => "no answer".to_owned(),
            None => "never asked".to_owned(),
        }
    }

    /// The budgets that held the pod at last, as far as is known.
    pub fn held_by(&self, budgets: &Budgets, pod: &Pod) -> Vec<Budget> {
        let Some(Answer::Blocked { pdb }) = &self.last else { return Vec::new() };
        let of_pod = budgets.of(pod).unwrap_or_default();
        if of_pod.is_empty() {
            return pdb.iter().map(|name| Budget { name: name.clone(), uid: None }).collect();
        }
        of_pod
    }
}

/// Their names.
pub fn names(budgets: &[Budget]) -> Vec<&str> {
    budgets.iter().map(|budget| budget.name.as_str()).collect()
}
