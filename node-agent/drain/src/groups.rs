//! Pods that the API server makes wait for each other, and how many of a group may be asked at a time.
//!
//! Evictions that share a disruption budget all write its status. The server lets one through and has those that
//! met it wait for half a second, at each meeting, while the disruption controller writes it, too. So, under a
//! budget, one request at a time may be *fresh*; one that has not come back by then sits out such a wait, in which
//! it does no harm, and the next may go. Without a budget nothing waits, and a window that grows with each quick
//! answer is as good as no limit.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::answer::Answer;
use crate::budgets::Budgets;
use crate::jitter::jittered;
use crate::pods::Pod;

/// Requests in flight at a time in all: only against absurdity, since a node has 250 pods at most.
pub const MOST_IN_FLIGHT: usize = 200;
/// The same for all nodes that go at once together, in the first second.
pub const CROWD_IN_FLIGHT: usize = 200;
/// Requests of one controller's pods that may be in flight before anything is known of them.
pub const FIRST_WINDOW: usize = 4;
/// The same for pods of no controller, which seldom share a budget.
const FIRST_WINDOW_OF_BARE: usize = 8;
/// An answer after this is no quick one.
const QUICK: Duration = Duration::from_millis(100);
/// An answer after this is worth a look at the budgets.
pub const SLOW: Duration = Duration::from_millis(300);
/// How long a request under a budget is fresh, in answers that met nobody, and its limits.
const FRESH: (u32, Duration, Duration) = (3, Duration::from_millis(20), Duration::from_millis(250));
/// Requests under one budget that may sit out the server's waits. Those that once met come back together and meet
/// again, while there is much room for others in between.
const MOST_PARKED: usize = 32;
/// A budget that is followed and lets nobody go is asked this often when its VM is about to go: with one more when
/// it changes, a pod is asked three times a second at most.
const EXHAUSTED_PRESSING: Duration = Duration::from_millis(700);
/// The same for a pod whose budget is not known.
pub const BLOCKED_PRESSING: Duration = Duration::from_millis(420);
/// First and longest wait where nothing presses.
pub const BLOCKED_PATIENT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// What pods of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// These budgets, of this namespace.
    Budgets(String, Vec<String>),
    /// This controller. Whether there are budgets is not known.
    Controller(String),
    /// This namespace, and no controller. Whether there are budgets is not known.
    Namespace(String),
    /// Nothing: no budget selects them.
    Free,
}

impl Key {
    /// The group of a pod, by what is known now.
    pub fn of(pod: &Pod, budgets: &Budgets) -> Self {
        match (budgets.of(pod), &pod.controller) {
            (Some(of_pod), _) if of_pod.is_empty() => Self::Free,
            (Some(of_pod), _) => {
                Self::Budgets(pod.namespace.clone(), of_pod.into_iter().map(|budget| budget.name).collect())
            }
            (None, Some(controller)) => Self::Controller(controller.uid.clone()),
            (None, None) => Self::Namespace(pod.namespace.clone()),
        }
    }

    fn is_under_budget(&self) -> bool {
        matches!(self, Self::Budgets(..))
    }
}

/// Requests of a group that are in flight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    fresh: usize,
    /// No longer fresh, but not slow either.
    young: usize,
    slow: usize,
    /// When one of the fresh is fresh no more.
    ages: Option<Instant>,
}

impl Load {
    /// Counts a request that was sent at `sent` and is fresh for as long as `fresh`.
    pub fn count(&mut self, sent: Instant, fresh: Duration, now: Instant) {
        let ages = sent + fresh;
        if ages > now {
            self.fresh += 1;
            self.ages = Some(self.ages.map_or(ages, |first| first.min(ages)));
        } else if sent + SLOW > now {
            self.young += 1;
        } else {
            self.slow += 1;
        }
    }
}

/// What is remembered of a group.
#[derive(Debug)]
struct Group {
    window: usize,
    shrunk: Option<Instant>,
    /// The last answer was that a budget holds the pod: until when nobody asks again.
    exhausted: Option<Instant>,
    /// When its budget last changed for the better: answers to earlier requests say nothing.
    freed: Option<Instant>,
    pause: Duration,
}

/// All groups of a drain.
#[derive(Debug)]
pub struct Groups {
    by_key: BTreeMap<Key, Group>,
    /// How long an answer takes that meets nobody, smoothed.
    latency: Duration,
}

impl Default for Groups {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), latency: FRESH.1 / FRESH.0 }
    }
}

/// Whether a pod of a group may be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Yes,
    /// Not before an answer comes.
    Full,
    /// Not before this time, or an answer.
    Until(Instant),
}

impl Groups {
    fn get(&mut self, key: &Key) -> &mut Group {
        self.by_key.entry(key.clone()).or_insert_with(|| Group {
            window: if matches!(key, Key::Namespace(_)) { FIRST_WINDOW_OF_BARE } else { FIRST_WINDOW },
            shrunk: None,
            exhausted: None,
            freed: None,
            pause: Duration::ZERO,
        })
    }

    /// How long a request is fresh.
    pub fn fresh(&self) -> Duration {
        (self.latency * FRESH.0).clamp(FRESH.1, FRESH.2)
    }

    /// Whether one more may be asked.
    pub fn room(&mut self, key: &Key, load: &Load) -> Room {
        match key {
            Key::Free => Room::Yes,
            Key::Budgets(..) => match load.ages {
                Some(ages) => Room::Until(ages),
                None if load.young + load.slow >= MOST_PARKED => Room::Full,
                None => Room::Yes,
            },
            // Pods of one controller are likely to share a budget: one that is late already stands for that.
            Key::Controller(_) if load.young + load.slow > 0 && load.ages.is_some() => {
                load.ages.map_or(Room::Yes, Room::Until)
            }
            Key::Controller(_) | Key::Namespace(_) => {
                if load.fresh + load.young < self.get(key).window {
                    Room::Yes
                } else {
                    Room::Full
                }
            }
        }
    }

    /// Until when no pod of this group need be asked a second time: its budget lets nobody go.
    pub fn exhausted_until(&mut self, key: &Key) -> Option<Instant> {
        if key.is_under_budget() { self.get(key).exhausted } else { None }
    }

    /// One pod of a group is asked again, in the name of all if its budget lets nobody go.
    pub fn probed(&mut self, key: &Key, pressing: bool, now: Instant) {
        let group = self.get(key);
        if group.exhausted.is_some() {
            group.pause = if pressing { EXHAUSTED_PRESSING } else { blocked_pause(group.pause, false) };
            group.exhausted = Some(now + jittered(group.pause));
        }
    }

    /// An answer came to what was asked of a pod of this group at `sent`.
    pub fn heard(&mut self, key: &Key, answer: &Answer, sent: Instant, pressing: bool, now: Instant) {
        let took = now.duration_since(sent);
        let group = self.get(key);
        match answer {
            Answer::Accepted => (group.exhausted, group.pause) = (None, Duration::ZERO),
            Answer::Blocked { .. }
                if group.exhausted.is_none() && group.freed.is_none_or(|freed| sent > freed) =>
            {
                group.pause = if pressing { EXHAUSTED_PRESSING } else { blocked_pause(group.pause, false) };
                group.exhausted = Some(now + jittered(group.pause));
            }
            _ => {}
        }
        if took < SLOW {
            self.latency = (self.latency * 7 + took) / 8;
        }
        let group = self.get(key);
        let is_trouble = matches!(answer, Answer::Throttled { .. } | Answer::Unavailable(_));
        if is_trouble || took >= SLOW {
            // Once for all that were in flight together.
            if group.shrunk.is_none_or(|last| now.duration_since(last) >= SLOW) {
                (group.window, group.shrunk) = ((group.window / 2).max(1), Some(now));
            }
        } else if took < QUICK {
            group.window = (group.window + 1).min(MOST_IN_FLIGHT);
        }
    }

    /// A budget may let pods go now.
    pub fn freed(&mut self, namespace: &str, name: &str, now: Instant) {
        for (key, group) in &mut self.by_key {
            if let Key::Budgets(of, names) = key
                && of == namespace
                && names.iter().any(|it| it == name)
            {
                (group.exhausted, group.freed, group.pause) = (None, Some(now), Duration::ZERO);
            }
        }
    }
}

/// The wait of a blocked pod after a wait of `last`.
pub fn blocked_pause(last: Duration, pressing: bool) -> Duration {
    if pressing { BLOCKED_PRESSING } else { (last * 2).clamp(BLOCKED_PATIENT.0, BLOCKED_PATIENT.1) }
}
