//! What a SpotPool costs, and how its budgets stand.

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_crds::Reason;

use crate::cost::{Amounts, Costs, percent};

/// What a SpotPool costs, and how its budgets stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Money {
    /// What its machines cost an hour.
    pub costs: Costs,
    /// What the wanted capacity would cost an hour, were all of it where the spec wants it.
    pub planned: Option<Decimal>,
    /// `fallback.hourlyBudget`, and what is left of it.
    pub hourly_budget: Option<(Decimal, Decimal)>,
    /// `fallback.monthlyBudget`, and what is left of it.
    pub monthly_budget: Option<(Decimal, Decimal)>,
    /// Until when a person has lifted both.
    pub override_until: Option<Timestamp>,
    /// When the oldest of the prices was read.
    pub prices_read_at: Option<Timestamp>,
    /// Whether a budget keeps fallback from being bought.
    pub exhausted: Exhausted,
    /// That the first on-demand is about to be bought in the place of spot, in words: to be said before it is.
    pub starting: Option<String>,
    /// Shares of budgets that are reached for the first time.
    pub alerts: Vec<Alert>,
}

impl Money {
    /// What fallback costs an hour.
    pub fn fallback(&self) -> Option<Decimal> {
        self.costs.all.map(|all: Amounts| all.fallback)
    }

    /// How much more its machines cost than is planned, in percent of that; less than nothing where they cost less.
    pub fn variance_percent(&self) -> Option<i32> {
        let (all, planned) = (self.costs.all?.total(), self.planned.filter(|planned| !planned.is_zero())?);
        percent(all.saturating_sub(planned), planned)
    }
}

/// Whether a budget keeps fallback from being bought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// `None`: that cannot be known.
    pub is: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// In words, with the numbers.
    pub message: String,
}

impl Default for Exhausted {
    fn default() -> Self {
        Self { is: Some(false), reason: Reason::NoBudget, message: String::new() }
    }
}

/// A share of a budget that is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// In percent.
    pub share: u32,
    /// Of which budget.
    pub what: String,
    /// In words, with the numbers.
    pub note: String,
}
