//! What workloads have cost in a month: what the ledger says was spent, shared by what each of them had meanwhile.
//!
//! The ledger stays the only account: bills add up to its pages, to the last digit. Each time that it is written again, what it has
//! more is shared in proportion to what was metered since. What nobody metered is nobody's, and said to be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;

use crate::allocation::{OTHER, largest};
use crate::cost::{Amounts, over};
use crate::ledger::{Ledger, Page, month_end};

/// What was spent before the label was set, or while nobody could know on whom. No label's value begins so.
pub const UNKNOWN: &str = "(unknown)";
/// Workloads that are told by name.
pub const NAMED: usize = 20;

/// So long may nobody have metered: what was seen then is taken to have been so before. Operators are restarted.
const GAP: SignedDuration = SignedDuration::from_mins(10);
/// Digits that are kept of an amount, as in the ledger.
const DIGITS: u32 = 6;
/// Workloads that are metered by name until they are billed.
const METERED: usize = 500;

/// What workloads cost, added up over a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    lasted: Duration,
    /// Hourly costs times seconds: only what they are of each other counts.
    amounts: BTreeMap<Arc<str>, Decimal>,
}

impl Metered {
    /// Adds that workloads cost so much an hour for so long.
    pub fn add(&mut self, hourly: &BTreeMap<Arc<str>, Amounts>, lasted: Duration) {
        self.lasted = self.lasted.saturating_add(lasted);
        let millis = Decimal::from(u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX));
        for (workload, amounts) in hourly {
            let amount = amounts.total().saturating_mul(millis) / Decimal::ONE_THOUSAND;
            if amount <= Decimal::ZERO {
                continue;
            }
            let is_named = self.amounts.len() < METERED || self.amounts.contains_key(workload);
            let workload = if is_named { workload.clone() } else { OTHER.into() };
            let all = self.amounts.entry(workload).or_default();
            *all = all.saturating_add(amount);
        }
    }
}

/// What workloads have cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bills {
    /// The label by which they are told apart.
    pub label: String,
    /// When the ledger was written that they share.
    pub at: Timestamp,
    /// The month of its page.
    pub month: Bill,
    /// That of the page before.
    pub before: Option<Bill>,
}

impl Bills {
    /// Whether they share all that is in it.
    fn is_of(&self, ledger: &Ledger) -> bool {
        let is =
            |bill: &Bill, page: &Page| bill.month == page.month && bill.total() == page.spent.total().total();
        let before = match (&self.before, &ledger.before) {
            (Some(bill), Some(page)) => is(bill, page),
            (bill, page) => bill.is_none() && page.is_none(),
        };
        self.at == ledger.at && is(&self.month, &ledger.page) && before
    }
}

/// One month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    /// When it began.
    pub month: Timestamp,
    /// By workload.
    pub spent: BTreeMap<Arc<str>, Decimal>,
}

impl Bill {
    /// All of it.
    pub fn total(&self) -> Decimal {
        sum(&self.spent)
    }
}

fn sum(amounts: &BTreeMap<Arc<str>, Decimal>) -> Decimal {
    amounts.values().fold(Decimal::ZERO, |all, amount| all.saturating_add(*amount))
}

/// Bills of what is in `ledger`, of which `metered` was since `known`. `hourly` is what machines have cost an hour since then, by
/// the ledger of then.
pub fn billed(
    known: Option<&Bills>,
    label: &str,
    ledger: &Ledger,
    hourly: Decimal,
    metered: &Metered,
) -> Bills {
    let known = known.filter(|known| known.label == label);
    if let Some(known) = known.filter(|known| known.is_of(ledger)) {
        return known.clone();
    }
    let lasted = SignedDuration::try_from(metered.lasted).unwrap_or(SignedDuration::MAX);
    let from = ledger.at.saturating_sub(lasted).unwrap_or(ledger.at);
    let gap = known.map(|known| (known.at, from)).filter(|(at, from)| from.duration_since(*at) > GAP);
    // In the first seconds after a restart pods are not read yet: what they had of the month so far stands for it.
    let lately = if metered.amounts.is_empty() { so_far(known) } else { metered.amounts.clone() };
    let bill = |page: &Page| {
        let months = known.into_iter().flat_map(|known| known.before.iter().chain([&known.month]));
        let mut spent = months
            .filter(|bill| bill.month == page.month)
            .fold(BTreeMap::new(), |_, bill| bill.spent.clone());
        let total = page.spent.total().total();
        let missing = total.saturating_sub(sum(&spent));
        let rest = month_end(page.month);
        if missing < Decimal::ZERO {
            // A clock was put back, and the ledger with it.
            spent = shared(total, &spent);
        } else if missing > Decimal::ZERO {
            let unseen = gap.map(|(at, from)| {
                let seconds = from.min(rest).as_second().saturating_sub(at.max(page.month).as_second());
                over(hourly, seconds.max(0)).round_dp(DIGITS).min(missing)
            });
            let nobody = known.is_none() || lately.is_empty();
            let unseen = if nobody { missing } else { unseen.unwrap_or_default() };
            add(&mut spent, &UNKNOWN.into(), unseen);
            for (workload, amount) in shared(missing.saturating_sub(unseen), &lately) {
                add(&mut spent, &workload, amount);
            }
        }
        let left = rest.as_second().saturating_sub(ledger.at.as_second()).max(0);
        named(&mut spent, &lately, over(ledger.hourly.total().total(), left));
        spent.retain(|_, amount| !amount.is_zero());
        Bill { month: page.month, spent }
    };
    Bills {
        label: label.to_owned(),
        at: ledger.at,
        month: bill(&ledger.page),
        before: ledger.before.as_ref().map(bill),
    }
}

/// What is known of whom, of the month.
fn so_far(known: Option<&Bills>) -> BTreeMap<Arc<str>, Decimal> {
    let spent = known.into_iter().flat_map(|known| &known.month.spent);
    let told = spent.filter(|(workload, _)| ***workload != *UNKNOWN);
    told.map(|(workload, amount)| (workload.clone(), *amount)).collect()
}

fn add(spent: &mut BTreeMap<Arc<str>, Decimal>, workload: &Arc<str>, amount: Decimal) {
    let all = spent.entry(workload.clone()).or_default();
    *all = all.saturating_add(amount);
}

/// An amount in proportion to `weights`; what does not divide is of the one that has the most.
fn shared(amount: Decimal, weights: &BTreeMap<Arc<str>, Decimal>) -> BTreeMap<Arc<str>, Decimal> {
    let whole = sum(weights);
    if whole <= Decimal::ZERO {
        return BTreeMap::new();
    }
    let of = |weight: &Decimal| (amount.saturating_mul(*weight) / whole).trunc_with_scale(DIGITS);
    let mut all: BTreeMap<Arc<str>, Decimal> =
        weights.iter().map(|(workload, weight)| (workload.clone(), of(weight))).collect();
    let left = amount.saturating_sub(sum(&all));
    if let Some((most, _)) = weights.iter().max_by_key(|(_, weight)| **weight) {
        add(&mut all, most, left);
    }
    all
}

/// Keeps those by name that will have cost the most when the month ends, if `coming` is spent until then as it was lately: so that
/// one that comes late has its bill, too.
fn named(spent: &mut BTreeMap<Arc<str>, Decimal>, lately: &BTreeMap<Arc<str>, Decimal>, coming: Decimal) {
    let coming = shared(coming.round_dp(DIGITS), lately);
    let of = |(workload, amount): (&Arc<str>, &Decimal)| {
        let more = coming.get(workload).copied().unwrap_or_default();
        (workload.clone(), amount.saturating_add(more))
    };
    let kept = largest(spent.iter().map(of).collect(), NAMED);
    let mut others = Decimal::ZERO;
    spent.retain(|workload, amount| {
        let is_kept = kept.contains_key(workload);
        if !is_kept {
            others = others.saturating_add(*amount);
        }
        is_kept
    });
    add(spent, &OTHER.into(), others);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;
    use crate::allocation::IDLE;
    use crate::ledger::{Told, month_of};
    use crate::spend::ByPool;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn pool(amount: &str) -> ByPool {
        let mut all = ByPool::default();
        all.add("spot", &Amounts { spot: amount.parse().unwrap(), ..Amounts::default() });
        all
    }

    /// So much spent in the month at 3.6 an hour, and in the month before.
    fn ledger(now: &str, spent: &str, before: Option<&str>) -> Ledger {
        let month = month_of(at(now));
        Ledger {
            at: at(now),
            currency: "USD".into(),
            hourly: pool("3.6"),
            newest: at(now),
            page: Page { month, until: at(now), spent: pool(spent) },
            before: before.map(|spent| Page {
                month: month_of(month - SignedDuration::from_hours(1)),
                until: month,
                spent: pool(spent),
            }),
            hour: Decimal::ZERO,
            told: Told::default(),
        }
    }

    fn metered(costs: &[(&str, &str)], seconds: u64) -> Metered {
        let mut metered = Metered::default();
        let amounts = |text: &str| Amounts { spot: text.parse().unwrap(), ..Amounts::default() };
        let hourly = costs.iter().map(|(name, cost)| (Arc::from(*name), amounts(cost))).collect();
        metered.add(&hourly, Duration::from_secs(seconds));
        metered
    }

    fn told(bill: &Bill) -> String {
        let told = bill.spent.iter().map(|(name, amount)| format!("{name} {}", amount.normalize()));
        told.collect::<Vec<_>>().join(", ")
    }

    fn next(known: Option<&Bills>, ledger: &Ledger, metered: &Metered) -> Bills {
        billed(known, "team", ledger, Decimal::new(36, 1), metered)
    }

    #[test]
    fn what_is_spent_is_shared_by_what_was_metered_and_restarts_do_not_matter() {
        let half = |seconds| metered(&[("red", "1.8"), (IDLE, "1.2"), ("blue", "0.6")], seconds);
        let begun = next(None, &ledger("2026-01-15T12:00:00Z", "5", None), &half(60));
        assert_eq!(told(&begun.month), "(unknown) 5", "before anybody asked");
        let hour = next(Some(&begun), &ledger("2026-01-15T13:00:00Z", "8.6", None), &half(3600));
        assert_eq!(told(&hour.month), "(idle) 1.2, (unknown) 5, blue 0.6, red 1.8");
        assert_eq!(
            next(Some(&hour), &ledger("2026-01-15T13:00:00Z", "8.6", None), &half(9)),
            hour,
            "nothing new"
        );
        // Nine minutes in which it restarted: what was seen last holds for them.
        let soon = next(Some(&hour), &ledger("2026-01-15T13:10:00Z", "9.2", None), &half(60));
        assert_eq!(told(&soon.month), "(idle) 1.4, (unknown) 5, blue 0.7, red 2.1");
        // It was away for an hour.
        let away = next(Some(&soon), &ledger("2026-01-15T14:20:00Z", "13.4", None), &half(600));
        assert_eq!(told(&away.month), "(idle) 1.6, (unknown) 8.6, blue 0.8, red 2.4");
        // Pods are not read yet: once for a moment, once for an hour.
        let unread = next(Some(&away), &ledger("2026-01-15T14:21:00Z", "13.46", None), &Metered::default());
        assert_eq!(told(&unread.month), "(idle) 1.62, (unknown) 8.6, blue 0.81, red 2.43");
        let long = next(Some(&away), &ledger("2026-01-15T15:20:00Z", "17", None), &Metered::default());
        assert_eq!(told(&long.month), "(idle) 1.6, (unknown) 12.2, blue 0.8, red 2.4");
        // The clock is put back.
        let back = next(Some(&away), &ledger("2026-01-15T12:20:00Z", "6.7", None), &half(1));
        assert_eq!(told(&back.month), "(idle) 0.8, (unknown) 4.3, blue 0.4, red 1.2");
        let other =
            billed(Some(&back), "app", &ledger("2026-01-15T12:20:00Z", "6.7", None), Decimal::ONE, &half(1));
        assert_eq!(told(&other.month), "(unknown) 6.7", "another label begins anew");
    }

    #[test]
    fn both_months_of_a_month_end_have_theirs() {
        let half = |seconds| metered(&[("red", "1.8"), ("blue", "1.8")], seconds);
        let begun = next(None, &ledger("2026-01-31T23:00:00Z", "0", None), &half(1));
        let over = next(Some(&begun), &ledger("2026-02-01T00:30:00Z", "1.8", Some("3.6")), &half(5400));
        assert_eq!(
            (told(&over.month).as_str(), over.before.as_ref().map(told)),
            ("blue 0.9, red 0.9", Some("blue 1.8, red 1.8".into()))
        );
        // Nobody was there from 23:00 to 00:15.
        let away = next(Some(&begun), &ledger("2026-02-01T00:30:00Z", "1.8", Some("3.6")), &half(900));
        assert_eq!(told(&away.month), "(unknown) 0.9, blue 0.45, red 0.45");
        assert_eq!(away.before.as_ref().map(told), Some("(unknown) 3.6".into()));
    }

    #[test]
    fn twenty_are_named_and_one_that_comes_late_and_costs_much_is_one_of_them() {
        let small: Vec<String> = (0..25).map(|at| format!("team-{at:02}")).collect();
        let costs: Vec<(&str, &str)> = small.iter().map(|name| (name.as_str(), "0.1")).collect();
        let begun = next(None, &ledger("2026-01-10T00:00:00Z", "0", None), &metered(&costs, 1));
        let day = next(Some(&begun), &ledger("2026-01-11T00:00:00Z", "50", None), &metered(&costs, 86_400));
        assert_eq!((day.month.spent.len(), day.month.spent[OTHER]), (21, 10.into()));
        let late: Vec<_> = costs.iter().copied().chain([("late", "1")]).collect();
        let minutes = next(Some(&day), &ledger("2026-01-11T00:10:00Z", "50.35", None), &metered(&late, 600));
        assert_eq!(minutes.month.spent["late"], "0.1".parse().unwrap());
        assert_eq!((minutes.month.spent.len(), minutes.month.total()), (21, "50.35".parse().unwrap()));
    }
}
