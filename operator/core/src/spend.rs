//! Amounts of money by agent pool: all of it is some agent pool's.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use crate::cost::Amounts;

/// In the place of an agent pool's name: those that the SpotPool does not name any more.
pub const OTHERS: &str = "";

/// What is, or was, spent on each agent pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByPool(BTreeMap<String, Amounts>);

impl ByPool {
    /// All of it.
    pub fn total(&self) -> Amounts {
        self.0.values().fold(Amounts::default(), |all, amounts| all.plus(amounts))
    }

    /// What is an agent pool's.
    pub fn of(&self, agent_pool: &str) -> Amounts {
        self.0.get(agent_pool).copied().unwrap_or_default()
    }

    /// Agent pools of which there is something, with what.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Amounts)> {
        self.0.iter().map(|(agent_pool, amounts)| (agent_pool.as_str(), amounts))
    }

    /// Adds to what is an agent pool's.
    pub fn add(&mut self, agent_pool: &str, amounts: &Amounts) {
        let all = self.of(agent_pool).plus(amounts);
        // What is nothing is not there, so that equals compare as equal.
        if all == Amounts::default() {
            self.0.remove(agent_pool);
        } else {
            self.0.insert(agent_pool.to_owned(), all);
        }
    }

    pub(crate) fn plus(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (agent_pool, amounts) in other.iter() {
            all.add(agent_pool, amounts);
        }
        all
    }

    /// Each that much an hour, for so long.
    pub(crate) fn over(&self, seconds: i64) -> Self {
        self.each(|amounts| amounts.over(seconds))
    }

    pub(crate) fn each(&self, change: impl Fn(&Amounts) -> Amounts) -> Self {
        let mut all = Self::default();
        for (agent_pool, amounts) in self.iter() {
            all.add(agent_pool, &change(amounts));
        }
        all
    }

    /// As it is, or nothing of a kind of which there would be less than nothing in all. An agent pool by itself may come to
    /// less than nothing while a clock is wrong: it owes what comes back once the clock is right.
    pub(crate) fn never_below_nothing(&self) -> Self {
        let total = self.total();
        let kept = |of: Decimal, amount: Decimal| if of < Decimal::ZERO { Decimal::ZERO } else { amount };
        self.each(|amounts| Amounts {
            spot: kept(total.spot, amounts.spot),
            base: kept(total.base, amounts.base),
            fallback: kept(total.fallback, amounts.fallback),
        })
    }

    /// Whether each agent pool is one of these.
    pub(crate) fn is_of(&self, is_named: impl Fn(&str) -> bool) -> bool {
        self.0.keys().all(|agent_pool| agent_pool == OTHERS || is_named(agent_pool))
    }

    /// What is of agent pools that are none of these is the others' from now on.
    pub(crate) fn gathered(&self, is_named: impl Fn(&str) -> bool) -> Self {
        let mut all = Self::default();
        for (agent_pool, amounts) in self.iter() {
            all.add(if is_named(agent_pool) { agent_pool } else { OTHERS }, amounts);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn some(pools: &[(u8, i32, i32)]) -> ByPool {
        let mut all = ByPool::default();
        for (pool, spot, fallback) in pools {
            let amounts =
                Amounts { spot: (*spot).into(), fallback: (*fallback).into(), ..Amounts::default() };
            all.add(&format!("pool{}", pool % 4), &amounts);
        }
        all
    }

    proptest! {
        /// Else money would be lost, or spent twice, when an agent pool is taken off the list or a clock put back.
        #[test]
        fn agent_pools_make_up_the_total(pools: Vec<(u8, i32, i32)>, named in 0_u8..5, seconds in -9000_i64..9000) {
            let all = some(&pools);
            let is_named = |name: &str| name.ends_with(|last: char| last.to_digit(10).unwrap() < u32::from(named));
            let gathered = all.gathered(is_named);
            prop_assert_eq!(gathered.total(), all.total());
            prop_assert!(gathered.is_of(is_named));
            prop_assert_eq!(all.is_of(is_named), gathered == all);
            let later = all.plus(&all.over(seconds));
            let whole = all.total().plus(&all.total().over(seconds));
            let off = later.total().total() - whole.total();
            prop_assert!(off.abs() < Decimal::new(1, 9), "{}", off);
            let kept = later.never_below_nothing().total();
            let never = |amount: Decimal| amount.max(Decimal::ZERO);
            prop_assert_eq!(kept.spot, never(later.total().spot));
            prop_assert_eq!(kept.fallback, never(later.total().fallback));
        }
    }

    #[test]
    fn an_agent_pool_that_a_wrong_clock_puts_below_nothing_is_right_again_with_the_clock() {
        let amounts = |spot: i32| Amounts { spot: spot.into(), ..Amounts::default() };
        let (mut spent, mut hourly) = (ByPool::default(), ByPool::default());
        spent.add("old", &amounts(10));
        spent.add("new", &amounts(1));
        hourly.add("new", &amounts(3));
        let back = spent.plus(&hourly.over(-3600)).never_below_nothing();
        assert_eq!((back.of("new"), back.total()), (amounts(-2), amounts(8)));
        assert_eq!(back.plus(&hourly.over(3600)).never_below_nothing(), spent);
        // Further back than there is money: nothing is left, of none.
        assert_eq!(spent.plus(&hourly.over(-36_000)).never_below_nothing(), ByPool::default());
    }
}
