//! What has been spent, kept so that it holds across restarts, clocks that are put right and month ends.
//!
//! Spend is a function of time: what was written down, and the rates since then. It has to be written again only when a
//! rate changes. Months and hours are those of UTC, amounts are charged by the second.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use rust_decimal::Decimal;

use crate::arrivals::{Arrival, arrivals};
use crate::cost::{Rate, Split, over, split};
use crate::plan::Situation;
use crate::snapshot::AgentPoolView;
use crate::spend::ByPool;

/// Written again after so long, so that people see it move.
const REFRESHED_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// Digits that are kept of an amount.
const DIGITS: u32 = 6;

/// What has been spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// When it was written.
    pub at: Timestamp,
    /// The currency in which its month was begun.
    pub currency: String,
    /// What machines cost an hour since then.
    pub hourly: ByPool,
    /// When the newest node among them was made: younger ones are charged from the beginning.
    pub newest: Timestamp,
    /// The month of `at`.
    pub page: Page,
    /// The month that was written before: a clock that is put back finds it again.
    pub before: Option<Page>,
    /// What fallback had cost in the hour of `at`.
    pub hour: Decimal,
    /// Shares of budgets of which an Event has told.
    pub told: Told,
}

/// One month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// When it began.
    pub month: Timestamp,
    /// Up to when it is reckoned.
    pub until: Timestamp,
    /// What was spent in it until then.
    pub spent: ByPool,
}

/// Shares of budgets, in percent, of which an Event has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Of this hourly budget …
    pub hourly_budget: Option<Decimal>,
    /// … so much.
    pub hourly: u32,
    /// Of this monthly budget …
    pub monthly_budget: Option<Decimal>,
    /// … so much, in the month of the page.
    pub monthly: u32,
}

/// When the month of `time` began.
pub fn month_of(time: Timestamp) -> Timestamp {
    floor(time, |time| time.date().first_of_month().at(0, 0, 0, 0))
}

fn hour_of(time: Timestamp) -> Timestamp {
    floor(time, |time| time.date().at(time.hour(), 0, 0, 0))
}

fn floor(time: Timestamp, floor: impl Fn(DateTime) -> DateTime) -> Timestamp {
    TimeZone::UTC.to_timestamp(floor(TimeZone::UTC.to_datetime(time))).unwrap_or(time)
}

/// When the month that began at `month` ends.
pub fn month_end(month: Timestamp) -> Timestamp {
    let next = TimeZone::UTC.to_datetime(month).checked_add(1.month());
    next.and_then(|next| TimeZone::UTC.to_timestamp(next)).unwrap_or(Timestamp::MAX)
}

fn seconds(from: Timestamp, to: Timestamp) -> i64 {
    to.as_second().saturating_sub(from.as_second())
}

impl Page {
    fn empty(month: Timestamp, until: Timestamp) -> Self {
        Self { month, until, spent: ByPool::default() }
    }

    /// At another time of the month; back takes off what was charged, and never more than there is.
    fn reckoned(&self, until: Timestamp, hourly: &ByPool) -> Self {
        let spent = self.spent.plus(&hourly.over(seconds(self.until, until)));
        Self { month: self.month, until, spent: spent.never_below_nothing() }
    }
}

impl Ledger {
    fn open(now: Timestamp, currency: &str) -> Self {
        Self {
            at: now,
            currency: currency.to_owned(),
            hourly: ByPool::default(),
            newest: now,
            page: Page::empty(month_of(now), now),
            before: None,
            hour: Decimal::ZERO,
            told: Told::default(),
        }
    }

    /// As it is at `now`, at its rates.
    fn reckoned(&self, now: Timestamp) -> Self {
        let mut ledger = Self { at: now, ..self.clone() };
        let fallback = self.hourly.total().fallback;
        ledger.hour = if hour_of(now) == hour_of(self.at) {
            self.hour.saturating_add(over(fallback, seconds(self.at, now))).max(Decimal::ZERO)
        } else {
            over(fallback, seconds(hour_of(now).max(self.at.min(now)), now))
        };
        let month = month_of(now);
        if month == self.page.month {
            ledger.page = self.page.reckoned(now, &self.hourly);
            return ledger;
        }
        let ended = month_end(self.page.month);
        let left = if now > self.at { self.page.reckoned(ended, &self.hourly) } else { self.page.clone() };
        let known = self.before.as_ref().filter(|page| page.month == month).cloned();
        // Months without a page between them are those of a clock that jumped.
        let begun = Page::empty(month, if now > self.at { month } else { now });
        ledger.page = known.unwrap_or(begun).reckoned(now, &self.hourly);
        ledger.before = Some(left);
        ledger.told.monthly = 0;
        ledger
    }

    /// What fallback has cost in the month of `now`.
    pub fn spent(&self, now: Timestamp) -> Decimal {
        self.reckoned(now).page.spent.total().fallback
    }

    /// When fallback will have cost so much in this month, if it will.
    pub(crate) fn reaches(&self, amount: Decimal, now: Timestamp) -> Option<Timestamp> {
        let missing = amount.saturating_sub(self.spent(now));
        let hourly = self.hourly.total().fallback;
        if missing <= Decimal::ZERO || hourly.is_zero() {
            return None;
        }
        let wait = (missing.saturating_mul(Decimal::from(3600)) / hourly).ceil();
        let wait: i64 = wait.to_string().parse().ok()?;
        let at = now.checked_add(SignedDuration::from_secs(wait.min(i64::from(u32::MAX)))).ok()?;
        (at < month_end(month_of(now))).then_some(at)
    }

    fn charge(&mut self, arrival: &Arrival, now: Timestamp) {
        let hourly = arrival.machine.at(arrival.price);
        let month = self.page.month;
        let since = arrival.since.min(now);
        self.page.spent.add(&arrival.agent_pool, &hourly.over(seconds(since.max(month), now)));
        let in_hour = over(hourly.fallback, seconds(since.max(hour_of(now)), now));
        self.hour = self.hour.saturating_add(in_hour);
        if let Some(before) = self.before.as_mut().filter(|page| page.until == month && since < month) {
            before.spent.add(&arrival.agent_pool, &hourly.over(seconds(since.max(before.month), month)));
        }
    }

    fn rounded(mut self) -> Self {
        self.hour = rounded(self.hour);
        for page in [Some(&mut self.page), self.before.as_mut()].into_iter().flatten() {
            page.spent = page.spent.each(|amounts| amounts.each(rounded));
        }
        self
    }

    fn pages(&self) -> impl Iterator<Item = &Page> {
        [Some(&self.page), self.before.as_ref()].into_iter().flatten()
    }

    /// Agent pools that are none of these are the others from now on.
    fn gathered(mut self, is_named: impl Fn(&str) -> bool) -> Self {
        for page in [Some(&mut self.page), self.before.as_mut()].into_iter().flatten() {
            page.spent = page.spent.gathered(&is_named);
        }
        self
    }
}

fn rounded(amount: Decimal) -> Decimal {
    amount.round_dp(DIGITS).normalize()
}

/// The ledger at `now`, written again if anything about it has changed.
///
/// Nodes that have come are charged from when they were asked for, if that is known, else from when they were made; those
/// that have gone until now: so that a time in which nobody looked costs rather more than it did. While a machine runs of
/// which no price can even be assumed it stays as it was, and catches up once one can.
pub(crate) fn settled(situation: &Situation<'_>, rates: &[Option<Rate>]) -> Option<Ledger> {
    let Situation { spec, snapshot, tally, .. } = situation;
    // Status keeps whole seconds.
    let now = Timestamp::from_second(situation.now.as_second()).unwrap_or(situation.now);
    let memory = &snapshot.memory;
    let machines = |pool: &AgentPoolView| (pool.charged().count() + pool.overdue(now).count()) as u32;
    let split = split(spec, snapshot, tally.base, rates, machines);
    let mut hourly = ByPool::default();
    for ((pool, rate), machines) in snapshot.agent_pools.iter().zip(rates).zip(&split) {
        if *machines == Split::default() {
            continue;
        }
        let Some(rate) = rate else { return memory.ledger.clone() };
        hourly.add(&pool.name, &machines.at(rate.hourly));
    }
    let old = memory.ledger.as_ref();
    let newest = snapshot.nodes().map(|node| node.created).max();
    let known = match old {
        Some(ledger) => ledger.clone(),
        // What stood in for spot before there was a ledger is not forgotten; what else there was is nobody's.
        None => Ledger {
            newest: match memory.fallback_since {
                Some(since) => since.saturating_sub(SignedDuration::from_secs(1)).unwrap_or(since),
                None => newest.unwrap_or(now),
            },
            ..Ledger::open(now, &snapshot.currency)
        },
    };
    let mut arrivals = arrivals(situation, &known, rates, &split);
    if old.is_none() {
        arrivals.retain(|arrival| arrival.machine.fallback > 0);
    }
    let lasted = seconds(known.at, now).abs() >= REFRESHED_AFTER.as_secs() && hourly != ByPool::default();
    let is_named = |name: &str| snapshot.agent_pools.iter().any(|pool| pool.name == name);
    let is_of_these = known.pages().all(|page| page.spent.is_of(is_named));
    let is_same =
        known.hourly == hourly && arrivals.is_empty() && is_of_these && month_of(now) == known.page.month;
    if let Some(old) = old.filter(|_| is_same && !lasted) {
        return Some(old.clone());
    }
    let mut ledger = known.reckoned(now);
    for arrival in &arrivals {
        ledger.charge(arrival, now);
    }
    ledger.hourly = hourly;
    ledger.newest = newest.map_or(known.newest, |newest| newest.max(known.newest));
    if old.is_none() {
        ledger.newest = newest.unwrap_or(now);
    }
    // What a month's page was begun in is said until it ends.
    if ledger.currency.is_empty() || ledger.page.month != known.page.month {
        ledger.currency.clone_from(&snapshot.currency);
    }
    Some(ledger.gathered(is_named).rounded())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;
    use crate::cost::Amounts;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn fallback(amount: &str) -> Amounts {
        Amounts { fallback: amount.parse().unwrap(), ..Amounts::default() }
    }

    /// 3.6 an hour, 0.001 a second; ten spent in the month.
    fn ledger(now: &str) -> Ledger {
        let mut ledger = Ledger::open(at(now), "USD");
        ledger.hourly.add("reg", &fallback("3.6"));
        ledger.page.spent.add("reg", &fallback("4"));
        // Of an agent pool that is not named any more.
        ledger.page.spent.add(crate::spend::OTHERS, &fallback("6"));
        ledger.page.spent.add("spot", &Amounts { spot: 7.into(), ..Amounts::default() });
        ledger
    }

    fn months(ledger: &Ledger) -> (String, Option<String>) {
        let spent = |page: &Page| page.spent.total().fallback.normalize().to_string();
        (spent(&ledger.page), ledger.before.as_ref().map(spent))
    }

    #[test]
    fn months_and_hours_are_those_of_utc() {
        for (time, month, end) in [
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("2026-02-28T23:59:59.9Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            ("2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            ("2026-12-31T23:30:00+01:00", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("2027-01-01T00:30:00+01:00", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!((month_of(at(time)), month_end(month_of(at(time)))), (at(month), at(end)), "{time}");
        }
        assert_eq!(hour_of(at("2026-01-01T12:59:59Z")), at("2026-01-01T12:00:00Z"));
        assert!(month_end(month_of(Timestamp::MAX)) >= month_of(Timestamp::MAX));
    }

    #[test]
    fn spend_is_split_at_month_ends_and_a_clock_that_goes_wrong_loses_nothing() {
        // Where the clock goes, one after the other, and what this month and the one before have then.
        let before = |spent: &str| Some(spent.to_owned());
        let courses: &[&[(&str, &str, Option<String>)]] = &[
            &[("2026-01-15T12:00:00Z", "10", None), ("2026-01-15T13:00:00Z", "13.6", None)],
            // Over the end of the month: half an hour here, half an hour there.
            &[("2026-01-31T23:30:00Z", "10", None), ("2026-02-01T00:30:00Z", "1.8", before("11.8"))],
            // A year has passed in which nobody looked: the month of then is charged to its end, this one from its beginning.
            &[("2026-01-31T23:30:00Z", "10", None), ("2027-01-01T01:00:00Z", "3.6", before("11.8"))],
            // An hour ahead and back.
            &[
                ("2026-01-15T12:00:00Z", "10", None),
                ("2026-01-15T13:00:00Z", "13.6", None),
                ("2026-01-15T12:00:10Z", "10.01", None),
            ],
            // Over the end of the month and back.
            &[
                ("2026-01-31T23:30:00Z", "10", None),
                ("2026-02-01T00:30:00Z", "1.8", before("11.8")),
                ("2026-01-31T23:30:00Z", "10", before("1.8")),
                ("2026-02-01T00:30:00Z", "1.8", before("11.8")),
            ],
            // Years ahead and back: what was spent is there again.
            &[
                ("2026-01-15T12:00:00Z", "10", None),
                ("2031-05-01T00:00:00Z", "0", before("1435.6")),
                ("2026-01-15T12:00:10Z", "10.01", before("0")),
            ],
            // Back to the beginning of time, as hosts without a battery do, and right again.
            &[
                ("2026-01-15T12:00:00Z", "10", None),
                ("1970-01-01T00:00:10Z", "0", before("10")),
                ("2026-01-15T12:00:30Z", "10.03", before("2678.39")),
            ],
            // Never below nothing.
            &[("2026-01-15T12:00:00Z", "10", None), ("2026-01-15T02:00:00Z", "0", None)],
        ];
        for course in courses {
            let mut now = ledger(course[0].0);
            for (time, wanted, wanted_before) in *course {
                now = now.reckoned(at(time));
                let (month, before) = months(&now);
                assert_eq!(month, *wanted, "at {time} of {course:?}");
                assert_eq!(before, *wanted_before, "before {time} of {course:?}");
            }
        }
    }

    #[test]
    fn how_often_it_is_written_changes_nothing() {
        let mut often = ledger("2026-01-31T20:00:00Z");
        let once = often.reckoned(at("2026-02-01T06:00:00Z"));
        for minute in 0..=600 {
            often = often.reckoned(at("2026-01-31T20:00:00Z") + SignedDuration::from_mins(minute)).rounded();
        }
        assert_eq!(months(&often), months(&once));
        assert_eq!(often.hour, once.hour.normalize());
    }

    #[test]
    fn the_hour_begins_anew() {
        let now = ledger("2026-01-15T12:30:00Z").reckoned(at("2026-01-15T12:45:00Z"));
        assert_eq!(now.hour, "0.9".parse().unwrap());
        assert_eq!(now.reckoned(at("2026-01-15T13:10:00Z")).hour, "0.6".parse().unwrap());
        assert_eq!(now.reckoned(at("2026-01-15T18:10:00Z")).hour, "0.6".parse().unwrap());
    }

    #[test]
    fn it_is_known_when_a_budget_will_be_spent() {
        let now = at("2026-01-15T12:00:00Z");
        let ledger = ledger("2026-01-15T12:00:00Z");
        assert_eq!(ledger.reaches(12.into(), now), Some(at("2026-01-15T12:33:20Z")));
        assert_eq!(ledger.spent(at("2026-01-15T12:33:20Z")), 12.into());
        assert_eq!(ledger.reaches(10.into(), now), None, "it is spent");
        assert_eq!(ledger.reaches(10_000.into(), now), None, "not in this month");
    }
}
