//! How much on-demand is needed, and was needed lately: what the need has just fallen from may be needed again.
//!
//! The same as the stabilization window of a HorizontalPodAutoscaler: what counts is the highest need within it.

use jiff::{SignedDuration, Timestamp};

use crate::time::later_by;

/// More levels than these are told apart in no plan: two become one, the higher for the longer.
const MOST_LEVELS: usize = 8;

/// On-demand that is needed, in units, the base included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Now.
    pub units: u32,
    /// Before, where it was more: highest and longest ago first.
    pub before: Vec<PastNeed>,
}

/// A need that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastNeed {
    /// Units, more than were needed at any time since.
    pub units: u32,
    /// When they were last needed.
    pub until: Timestamp,
}

impl Needs {
    /// `units` are needed from `now` on; what is over for longer than `window` is forgotten.
    pub(crate) fn note(&mut self, units: u32, window: SignedDuration, now: Timestamp) {
        if units < self.units {
            self.before.push(PastNeed { units: self.units, until: now });
            if self.before.len() > MOST_LEVELS {
                self.before.pop();
                self.before[MOST_LEVELS - 1].until = now;
            }
        }
        self.units = units;
        self.before.retain(|past| past.units > units && later_by(past.until, window) > now);
    }

    /// The most that was needed within the window.
    pub(crate) fn most(&self) -> u32 {
        self.before.first().map_or(self.units, |past| past.units)
    }

    /// Since when less is needed than the most.
    pub(crate) fn less_since(&self) -> Option<Timestamp> {
        self.before.first().map(|past| past.until)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    const WINDOW: SignedDuration = SignedDuration::from_mins(10);

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(60 * minute).unwrap()
    }

    proptest! {
        /// Less than was needed within the window would be bought again at once; more for ever would never be given back.
        #[test]
        fn the_most_within_the_window_is_kept_and_forgotten_after_it(
            course in proptest::collection::vec((1i64..8, 0u32..30), 1..60),
        ) {
            let (mut needs, mut now) = (Needs::default(), 0);
            let mut seen: Vec<(i64, u32)> = Vec::new();
            for (minutes, units) in course {
                now += minutes;
                needs.note(units, WINDOW, at(now));
                seen.push((now, units));
                // Each level held until the next was seen.
                let until = |index: usize| seen.get(index + 1).map_or(now, |(next, _)| *next);
                let within = seen.iter().enumerate().filter(|(index, _)| until(*index) + 10 > now);
                let most = within.map(|(_, (_, units))| *units).max().unwrap();
                prop_assert!(needs.most() >= most, "{:?} is less than {most}", needs);
                prop_assert!(needs.before.len() <= MOST_LEVELS);
                if seen.len() <= MOST_LEVELS {
                    prop_assert_eq!(needs.most(), most);
                }
            }
            let last = needs.units;
            needs.note(last, WINDOW, at(now + 10));
            prop_assert_eq!((needs.most(), needs.before.len()), (last, 0));
        }
    }
}
