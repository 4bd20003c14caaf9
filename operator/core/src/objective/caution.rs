//! How cautious a SpotPool is: steps up while its error budget burns, steps down once it has been calm for a while.

use jiff::SignedDuration;

/// Most steps.
pub(super) const MOST: u32 = 5;
/// While it burns, the next step comes after this: a machine that was asked for has had time to come and count.
pub(super) const NEXT: SignedDuration = SignedDuration::from_mins(15);
/// It must have been calm for so long before a step is taken back, and since the last step.
pub(super) const CALM: SignedDuration = SignedDuration::from_hours(1);

/// What the burn rates say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signs {
    /// The budget burns too fast, now and over a while.
    pub burning: bool,
    /// It hardly burns, now and over a while.
    pub calm: bool,
}

/// Steps taken, in whole seconds of Unix time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Caution {
    pub steps: u32,
    /// When the last was taken, up or down.
    pub changed: Option<i64>,
    /// Since when it is calm; kept only while there are steps to take back.
    pub calm_since: Option<i64>,
}

impl Caution {
    /// The next state, at most one step away.
    pub fn next(self, signs: Signs, now: i64) -> Self {
        // A clock that was ahead must not hold it for ever.
        let changed = self.changed.map(|at| at.min(now));
        let calm_since = signs.calm.then(|| self.calm_since.map_or(now, |since| since.min(now)));
        let here = Self { changed, calm_since: calm_since.filter(|_| self.steps > 0), ..self };
        if signs.burning && self.steps < MOST && here.up_at().is_none_or(|at| at <= now) {
            return Self { steps: self.steps + 1, changed: Some(now), calm_since: None };
        }
        if here.down_at().is_some_and(|at| at <= now) {
            let steps = self.steps - 1;
            return Self { steps, changed: Some(now), calm_since: calm_since.filter(|_| steps > 0) };
        }
        here
    }

    /// From when the next step up may be taken; at once for the first.
    pub fn up_at(self) -> Option<i64> {
        self.changed.filter(|_| self.steps > 0).map(|at| at.saturating_add(NEXT.as_secs()))
    }

    /// When the next step is taken back, if it stays calm.
    pub fn down_at(self) -> Option<i64> {
        let since = self.calm_since.filter(|_| self.steps > 0)?;
        Some(since.max(self.changed.unwrap_or(since)).saturating_add(CALM.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    const BURNING: Signs = Signs { burning: true, calm: false };
    const NEITHER: Signs = Signs { burning: false, calm: false };
    const CALMED: Signs = Signs { burning: false, calm: true };

    #[test]
    fn steps_are_taken_while_it_burns_and_taken_back_once_it_is_calm() {
        let mut caution = Caution::default();
        let hour = CALM.as_secs();
        for (what, at, signs, steps) in [
            ("nothing burns", 0, CALMED, 0),
            ("the first step is taken at once", 10, BURNING, 1),
            ("the next not yet", 10 + 899, BURNING, 1),
            ("but then", 10 + 900, BURNING, 2),
            ("it burns no more, and that is not enough", 10 + 1800, NEITHER, 2),
            ("for however long", 90_000, NEITHER, 2),
            ("calm", 90_100, CALMED, 2),
            ("nearly for an hour", 90_099 + hour, CALMED, 2),
            ("interrupted", 90_099 + hour, NEITHER, 2),
            ("calm again", 100_000, CALMED, 2),
            ("for an hour", 100_000 + hour, CALMED, 1),
            ("the next step back takes another", 99_999 + 2 * hour, CALMED, 1),
            ("which is over", 100_000 + 2 * hour, CALMED, 0),
            ("and it stays so", 100_000 + 9 * hour, CALMED, 0),
        ] {
            caution = caution.next(signs, at);
            assert_eq!(caution.steps, steps, "{what}");
        }
    }

    #[test]
    fn a_clock_that_was_ahead_holds_nothing() {
        let ahead = Caution { steps: 2, changed: Some(1_000_000_000), calm_since: Some(1_000_000_000) };
        let home = ahead.next(CALMED, 1000);
        assert_eq!((home.steps, home.down_at()), (2, Some(1000 + CALM.as_secs())));
        assert_eq!(ahead.next(BURNING, 1000).up_at(), Some(1000 + NEXT.as_secs()));
    }

    fn signs() -> impl Strategy<Value = Signs> {
        prop_oneof![Just(BURNING), Just(NEITHER), Just(CALMED)]
    }

    proptest! {
        /// One step at a time, never more than there are; a step back comes an hour after any other step, so that it goes
        /// up and down at most once an hour; and whatever was, when it is calm it ends.
        #[test]
        fn it_never_oscillates_faster_than_its_hysteresis_and_always_recovers(
            course in proptest::collection::vec((signs(), -100i64..4000), 1..200),
        ) {
            let (mut caution, mut now) = (Caution::default(), 0i64);
            let (mut moved, mut steps) = (None::<i64>, 0u32);
            for (signs, passes) in course {
                // Clocks may step back a little.
                now += passes;
                caution = caution.next(signs, now);
                prop_assert!(caution.steps <= MOST && caution.steps.abs_diff(steps) <= 1);
                if caution.steps > steps && steps > 0 {
                    prop_assert!(moved.is_none_or(|at| now - at >= NEXT.as_secs()));
                }
                if caution.steps < steps {
                    prop_assert!(signs.calm);
                    prop_assert!(moved.is_none_or(|at| now - at >= CALM.as_secs()));
                }
                // A clock that went back takes the time of the last step along.
                moved = moved.map(|at| at.min(now));
                if caution.steps != steps {
                    (moved, steps) = (Some(now), caution.steps);
                }
            }
            for _ in 0..=MOST {
                now += CALM.as_secs();
                caution = caution.next(CALMED, now);
            }
            prop_assert_eq!(caution.steps, 0);
            prop_assert_eq!(caution.calm_since, None);
        }
    }
}
