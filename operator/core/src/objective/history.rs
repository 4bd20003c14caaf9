//! How much was wanted and how much of it was missing, in unit-seconds: exact sums over stretches of time, few enough for
//! a status.

use std::collections::VecDeque;
use std::fmt::Write as _;

use jiff::Timestamp;
use spotpool_crds::Duration;
use spotpool_crds::spot_pool::{Measured, UnitSeconds};

/// Stretches that a ring remembers besides the one that is under way.
const KEPT: usize = 72;
const MINUTES: i64 = 5 * 60;
const HOURS: i64 = 3600;

/// The most that passes between two looks. An operator that lives looks every few minutes and writes every few hours:
/// what is longer is an outage of it, or a clock that jumped, and the rest counts as neither wanted nor missing.
const LONGEST_GAP: i64 = 12 * 3600;

/// Unit-seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub wanted: u64,
    pub missing: u64,
}

/// Stretches of one length, the newest last. The newest is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ring {
    seconds: i64,
    parts: VecDeque<Amount>,
}

impl Ring {
    fn new(seconds: i64) -> Self {
        Self { seconds, parts: VecDeque::from([Amount::default()]) }
    }

    /// Spreads `amount` evenly from `from`, which is in the newest stretch, to `to`, which is in the newest afterwards.
    fn add(&mut self, from: i64, to: i64, amount: Amount) {
        let first = from.div_euclid(self.seconds);
        let until = |end: i64| Amount {
            wanted: share(amount.wanted, end - from, to - from),
            missing: share(amount.missing, end - from, to - from),
        };
        let mut done = Amount::default();
        for part in first..=to.div_euclid(self.seconds) {
            if part > first {
                self.parts.push_back(Amount::default());
            }
            // Cumulative, so that nothing is lost to rounding.
            let reached = until(to.min((part + 1) * self.seconds));
            if let Some(newest) = self.parts.back_mut() {
                newest.wanted += reached.wanted - done.wanted;
                newest.missing += reached.missing - done.missing;
            }
            done = reached;
        }
        while self.parts.len() > KEPT + 1 {
            self.parts.pop_front();
        }
    }

    /// Of the last `seconds` before `at`. Of the stretch in which they begin a part counts, missing rounded up.
    fn sum(&self, at: i64, seconds: i64) -> Amount {
        let from = at - seconds;
        let mut end = at;
        let mut start = at.div_euclid(self.seconds) * self.seconds;
        let mut sum = Amount::default();
        for part in self.parts.iter().rev() {
            if end <= from && start < end {
                break;
            }
            let (inside, span) = (end - start.max(from), end - start);
            if inside >= span {
                sum.wanted += part.wanted;
                sum.missing += part.missing;
            } else {
                sum.wanted += share(part.wanted, inside, span);
                sum.missing += part.missing - share(part.missing, span - inside, span);
            }
            (start, end) = (start - self.seconds, start);
        }
        sum
    }

    /// The same in stretches of another length. In the oldest nothing was measured before `since`.
    fn resized(&self, since: i64, at: i64, seconds: i64) -> Self {
        let newest = at.div_euclid(self.seconds);
        let oldest = newest - self.parts.len() as i64 + 1;
        let mut resized = Self::new(seconds);
        for (index, part) in self.parts.iter().enumerate() {
            let start = (oldest + index as i64) * self.seconds;
            let end = at.min(start + self.seconds);
            let start = if index == 0 { start.max(since).min(end) } else { start };
            resized.add(start, end, *part);
        }
        resized
    }

    fn write(&self) -> String {
        let mut text = String::new();
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            let mut same = 1;
            while parts.next_if_eq(&part).is_some() {
                same += 1;
            }
            let space = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{space}{}", part.wanted);
            if part.missing > 0 {
                let _ = write!(text, "-{}", part.missing);
            }
            if same > 1 {
                let _ = write!(text, "x{same}");
            }
        }
        text
    }

    fn read(seconds: i64, text: &str) -> Option<Self> {
        let mut parts = VecDeque::new();
        for run in text.split(' ') {
            let (part, same) = run.split_once('x').unwrap_or((run, "1"));
            let (wanted, missing) = part.split_once('-').unwrap_or((part, "0"));
            // Larger than any that we write, and sums of it still fit.
            let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number < 1 << 48);
            let part = Amount { wanted: number(wanted)?, missing: number(missing)? };
            let same = same.parse::<usize>().ok().filter(|same| *same + parts.len() <= KEPT + 1)?;
            parts.extend(std::iter::repeat_n(part, same));
        }
        Some(Self { seconds, parts })
    }
}

/// `value` × `part` ÷ `whole`, rounded down; all of it where the whole is nothing.
fn share(value: u64, part: i64, whole: i64) -> u64 {
    if whole <= 0 {
        return value;
    }
    let (part, whole) = (u128::from(part.max(0).unsigned_abs()), u128::from(whole.unsigned_abs()));
    (u128::from(value) * part / whole) as u64
}

/// What is so until something else is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// Units that count as wanted.
    pub wanted: u32,
    /// Of these, ready.
    pub ready: u32,
    /// Whether what is missing cannot be had from Azure.
    pub outage: bool,
}

impl Level {
    pub fn missing(self) -> u32 {
        self.wanted.saturating_sub(self.ready)
    }
}

/// All that is remembered, in whole seconds of Unix time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    since: i64,
    at: i64,
    /// What is so since `at`.
    pub level: Level,
    pub totals: UnitSeconds,
    window: i64,
    minutes: Ring,
    hours: Ring,
    whole: Ring,
}

impl History {
    /// From `now` on.
    pub fn new(now: i64, window: Duration) -> Self {
        let window = seconds(window);
        Self {
            since: now,
            at: now,
            level: Level::default(),
            totals: UnitSeconds::default(),
            window,
            minutes: Ring::new(MINUTES),
            hours: Ring::new(HOURS),
            whole: Ring::new(part_of(window)),
        }
    }

    /// As it was written, for a window that may have been changed since.
    pub fn read(measured: &Measured, window: Duration) -> Option<Self> {
        let (at, was) = (measured.at.0.as_second(), part_of(seconds(measured.window)));
        let window = seconds(window);
        let whole = Ring::read(was, &measured.window_parts)?;
        let since = measured.since.0.as_second().min(at);
        Some(Self {
            since,
            at,
            level: Level {
                wanted: measured.wanted.max(0) as u32,
                ready: measured.ready.max(0) as u32,
                outage: measured.outage,
            },
            totals: measured.unit_seconds,
            window,
            minutes: Ring::read(MINUTES, &measured.minutes)?,
            hours: Ring::read(HOURS, &measured.hours)?,
            whole: if was == part_of(window) { whole } else { whole.resized(since, at, part_of(window)) },
        })
    }

    pub fn write(&self, window: Duration) -> Measured {
        Measured {
            since: time(self.since).into(),
            at: time(self.at).into(),
            wanted: self.level.wanted as i32,
            ready: self.level.ready as i32,
            outage: self.level.outage,
            unit_seconds: self.totals,
            window,
            minutes: self.minutes.write(),
            hours: self.hours.write(),
            window_parts: self.whole.write(),
        }
    }

    /// The same at `now`: what was so is taken to have been so until then.
    pub fn until(mut self, now: i64) -> Self {
        let passed = (now - self.at).clamp(0, LONGEST_GAP);
        let (from, to) = (self.at, self.at + passed);
        let unit_seconds = |units: u32| u64::from(units) * passed.unsigned_abs();
        let missing = unit_seconds(self.level.missing());
        // What Azure cannot give is neither wanted nor missing.
        let amount = if self.level.outage {
            Amount { wanted: unit_seconds(self.level.wanted) - missing, missing: 0 }
        } else {
            Amount { wanted: unit_seconds(self.level.wanted), missing }
        };
        for ring in [&mut self.minutes, &mut self.hours, &mut self.whole] {
            ring.add(from, to, amount);
        }
        let totals = &mut self.totals;
        totals.wanted = totals.wanted.saturating_add_unsigned(amount.wanted);
        totals.missing = totals.missing.saturating_add_unsigned(amount.missing);
        if self.level.outage {
            totals.outage = totals.outage.saturating_add_unsigned(missing);
        }
        // A clock that went back, or too far ahead, takes what is remembered along.
        self.since += now - to;
        self.at = now;
        self
    }

    /// Of the last `length`, but no longer than the window. What was not measured yet counts as wanted as it is now, and
    /// as ready: a SpotPool that has just been made has its whole error budget.
    pub fn over(&self, length: i64) -> Amount {
        let length = length.min(self.window);
        let ring = if length == self.window || length > HOURS * KEPT as i64 {
            &self.whole
        } else if length > MINUTES * KEPT as i64 {
            &self.hours
        } else {
            &self.minutes
        };
        let mut sum = ring.sum(self.at, length);
        let unmeasured = (self.since - (self.at - length)).clamp(0, length);
        sum.wanted += u64::from(self.level.wanted) * unmeasured.unsigned_abs();
        sum
    }

    /// From when until when was measured.
    pub fn span(&self) -> (i64, i64) {
        (self.since, self.at)
    }

    /// Of the whole window.
    pub fn over_window(&self) -> Amount {
        self.over(self.window)
    }
}

/// In seconds.
pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(std::time::Duration::from(duration).as_secs()).unwrap_or(i64::MAX).clamp(1, 1 << 32)
}

/// The stretches into which a window is divided.
fn part_of(window: i64) -> i64 {
    window.div_euclid(KEPT as i64) + i64::from(window % KEPT as i64 > 0)
}

/// Whole seconds as status has them.
pub(super) fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400;

    fn amount(wanted: u64, missing: u64) -> Amount {
        Amount { wanted, missing }
    }

    fn level(wanted: u32, ready: u32) -> Level {
        Level { wanted, ready, outage: false }
    }

    fn days(days: u64) -> Duration {
        Duration::from_secs(days * 86_400)
    }

    /// A history from midnight, with each level for so many seconds.
    fn course(window: Duration, levels: &[(Level, i64)]) -> History {
        let mut now = 20_000 * DAY;
        let mut history = History::new(now, window);
        for (level, seconds) in levels {
            history.level = *level;
            now += seconds;
            history = history.until(now);
        }
        history
    }

    #[test]
    fn windows_count_what_lies_in_them() {
        // Two hours well, four of ten missing for 6 minutes, 24 minutes well.
        let history = course(days(30), &[(level(10, 10), 7200), (level(10, 6), 360), (level(10, 10), 1440)]);
        for (what, length, wanted) in [
            ("5 minutes", 300, amount(3000, 0)),
            // The last 30 minutes begin with the 6.
            ("30 minutes", 1800, amount(18_000, 1440)),
            ("an hour", 3600, amount(36_000, 1440)),
            ("2 hours", 7200, amount(72_000, 1440)),
            // 2.5 hours were measured; before, all counts as ready.
            ("6 hours", 21_600, amount(216_000, 1440)),
            ("3 days", 3 * DAY, amount(2_592_000, 1440)),
            ("30 days", 30 * DAY, amount(25_920_000, 1440)),
        ] {
            assert_eq!(history.over(length), wanted, "{what}");
        }
        assert_eq!(history.totals, UnitSeconds { wanted: 90_000, missing: 1440, outage: 0 });
    }

    #[test]
    fn of_the_stretch_in_which_a_window_begins_a_part_counts() {
        // Two whole stretches missing, then 100 s well: the last 5 minutes reach 200 s into the second.
        let history = course(days(30), &[(level(1, 0), 600), (level(1, 1), 100)]);
        assert_eq!(history.over(300), amount(300, 200));
        // One unit-second missing somewhere in a stretch is not rounded away.
        let history = course(days(30), &[(level(1, 1), 299), (level(1, 0), 1), (level(1, 1), 299)]);
        assert_eq!(history.over(300).missing, 1);
    }

    #[test]
    fn what_is_missing_is_forgotten_when_it_is_older_than_the_window() {
        let mut history = course(days(1), &[(level(8, 0), 600)]);
        history.level = level(8, 8);
        let day = |history: &History| history.over_window().missing;
        assert_eq!(day(&history), 4800);
        for _ in 0..4 {
            let now = history.at + 6 * 3600;
            history = history.until(now);
        }
        assert_eq!(day(&history), 2400, "the day begins in the middle of a stretch of 20 minutes");
        let now = history.at + 1200;
        history = history.until(now);
        assert_eq!(day(&history), 0);
        assert_eq!(history.totals.missing, 4800, "counted all the same");
    }

    #[test]
    fn clocks_that_jump_neither_wipe_out_nor_make_up_what_was_missing() {
        let before = course(days(30), &[(level(4, 4), 7200), (level(4, 1), 600)]);
        let missing = before.over_window().missing;
        assert_eq!(missing, 1800);
        let back = before.clone().until(before.at - 10 * DAY);
        assert_eq!((back.over(3600).missing, back.at - back.since), (1800, 7800));
        // Ten years ahead: no more than the longest gap is believed.
        let ahead = before.clone().until(before.at + 3650 * DAY);
        assert_eq!(ahead.over_window().missing, 1800 + 3 * LONGEST_GAP.unsigned_abs());
        let home = ahead.clone().until(before.at);
        assert_eq!(home.over_window().missing, ahead.over_window().missing);
    }

    #[test]
    fn what_azure_cannot_give_is_counted_apart() {
        let outage = Level { wanted: 10, ready: 2, outage: true };
        let history = course(days(30), &[(level(10, 10), 3600), (outage, 600)]);
        assert_eq!(history.totals, UnitSeconds { wanted: 37_200, missing: 0, outage: 4800 });
        assert_eq!(history.over(1800).missing, 0);
    }

    #[test]
    fn nonsense_is_not_read() {
        let good = course(days(30), &[(level(3, 2), 100)]).write(days(30));
        assert!(History::read(&good, days(30)).is_some());
        for nonsense in ["", "x", "1-", "-1", "1x0x", "1x99999", "99999999999999999999", "1 -2", "1  2"] {
            let bad = Measured { minutes: nonsense.into(), ..good.clone() };
            assert_eq!(History::read(&bad, days(30)), None, "{nonsense}");
        }
    }

    #[test]
    fn a_shorter_window_does_not_put_what_was_missing_before_the_beginning() {
        let long = Duration::from_secs(1430 * 3600);
        let history = course(long, &[(level(0, 0), 3175), (level(9, 0), 159), (level(0, 0), 33_791)]);
        let changed = History::read(&history.write(long), days(1)).unwrap();
        assert_eq!((history.over_window().missing, changed.over_window().missing), (1431, 1431));
    }

    fn levels(most: usize, longest: i64) -> impl Strategy<Value = Vec<(Level, i64)>> {
        let one = (0u32..12, 0u32..12, proptest::bool::weighted(0.1), 0..longest);
        proptest::collection::vec(
            one.prop_map(|(wanted, ready, outage, seconds)| {
                (Level { wanted, ready: ready.min(wanted), outage }, seconds)
            }),
            1..most,
        )
    }

    proptest! {
        /// An operator that is restarted reads what it wrote; how often it looks makes no difference.
        #[test]
        fn restarts_and_looks_change_nothing(levels in levels(60, 30_000), hours in 1u64..2161, looks in 1i64..7) {
            let window = Duration::from_secs(hours * 3600);
            let at_once = course(window, &levels);
            let mut now = 20_000 * DAY;
            let mut history = History::new(now, window);
            for (level, seconds) in &levels {
                history.level = *level;
                for look in 1..=looks {
                    let looked = history.clone().until(now + seconds * look / looks);
                    history = History::read(&looked.write(window), window).unwrap();
                }
                now += seconds;
            }
            prop_assert_eq!(&history, &at_once);
            let written = serde_size(&history.write(window));
            prop_assert!(written < 6_000, "{} bytes", written);
        }

        /// No window has more missing than wanted, or than a longer one of the same stretches; sums of all stretches are
        /// what was measured, to the unit-second.
        #[test]
        fn sums_agree(levels in levels(11, 7000), hours in 1u64..2161) {
            let history = course(Duration::from_secs(hours * 3600), &levels);
            let mut before = 0;
            for length in [300, 1800, 3600, 7200, 21_600] {
                let sum = history.minutes.sum(history.at, length);
                prop_assert!(sum.missing <= sum.wanted + 1 && sum.missing >= before);
                before = sum.missing;
            }
            let missing = |(level, seconds): &(Level, i64)| {
                u64::from(if level.outage { 0 } else { level.missing() }) * seconds.unsigned_abs()
            };
            let all: u64 = levels.iter().map(missing).sum();
            prop_assert_eq!(history.hours.sum(history.at, 3 * DAY).missing, all);
        }

        /// Another window keeps what is remembered.
        #[test]
        fn a_changed_window_keeps_what_was_missing(levels in levels(11, 7000), from in 24u64..2161, to in 24u64..2161) {
            let window = |hours: u64| Duration::from_secs(hours * 3600);
            let history = course(window(from), &levels);
            let changed = History::read(&history.write(window(from)), window(to)).unwrap();
            prop_assert_eq!(changed.over_window().missing, history.over_window().missing);
        }
    }

    fn serde_size(measured: &Measured) -> usize {
        measured.minutes.len() + measured.hours.len() + measured.window_parts.len()
    }
}
