//! What is said of a budget that binds.

use std::fmt::Write;

use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{AtCap, Fallback};

use super::{Alert, Bound, Budgets, Caps, SHARES, said};
use crate::cost::over;
use crate::ledger::{Ledger, Told};
use crate::placement::Placement;
use crate::plan::Situation;
use crate::stall::COMES_WITHIN;

impl Caps {
    /// By how much a budget is passed, in words that stay the same while nothing happens.
    pub(super) fn overspend(&self, bound: Bound) -> String {
        let hourly = self.paid().map(|paid| paid.hourly).unwrap_or_default();
        match (bound, self.held.hourly, self.held.monthly) {
            (Bound::Hourly, Some(budget), _) => format!(
                "fallback costs {} an hour, {} more than fallback.hourlyBudget of {}",
                said(hourly),
                said(hourly.saturating_sub(budget)),
                said(budget)
            ),
            (_, _, Some(budget)) => format!(
                "fallback.monthlyBudget of {} is spent, and fallback costs {} an hour",
                said(budget),
                said(hourly)
            ),
            _ => "the price of fallback is not known".to_owned(),
        }
    }

    /// What keeps `units` from being bought, with the numbers.
    pub(super) fn refusal(
        &self,
        situation: &Situation<'_>,
        units: u32,
        bound: Bound,
        of: usize,
    ) -> (Reason, String) {
        let pool = &situation.snapshot.agent_pools[of];
        let price = self.rates[of].map(|rate| rate.hourly).unwrap_or_default();
        let what = format!("{units} units more should fall back");
        let name = &pool.name;
        match (bound, self.held.hourly, self.held.monthly) {
            (Bound::Hourly, Some(budget), _) => {
                let hourly = self.paid().map(|paid| paid.hourly).unwrap_or_default();
                let message = format!(
                    "{what}: fallback costs {} an hour and one more of {name} {}, fallback.hourlyBudget is {}",
                    said(hourly),
                    said(price),
                    said(budget)
                );
                (Reason::FallbackAtBudget, message)
            }
            (Bound::Monthly, _, Some(budget)) => {
                let spent =
                    self.ledger.as_ref().map(|ledger| ledger.page.spent.total().fallback).unwrap_or_default();
                let coming = over(price, self.lifetime.saturating_add(COMES_WITHIN).as_secs());
                let message = format!(
                    "{what}: {} are spent and one more of {name} is bound to cost {}, beside what those that run are bound \
                     to; fallback.monthlyBudget is {}",
                    said(spent),
                    said(coming),
                    said(budget)
                );
                (Reason::FallbackAtBudget, message)
            }
            _ => {
                let message = format!("{what}: no price is known of {name}, so no budget can bound it");
                (Reason::PriceUnknown, message)
            }
        }
    }

    /// The least that one node of fallback costs an hour and until its minimum lifetime is over, if that is known of each
    /// on-demand agent pool.
    pub(super) fn cheapest(&self) -> Option<(Decimal, Decimal)> {
        let prices: Option<Vec<Decimal>> = self.pools.iter().map(|pool| pool.price).collect();
        let price = prices?.into_iter().min()?;
        Some((price, over(price, self.lifetime.saturating_add(COMES_WITHIN).as_secs())))
    }

    /// A budget that no node fits in, in words.
    pub(super) fn too_small(&self) -> Option<String> {
        let (hourly, bound) = self.cheapest()?;
        let (what, budget, cost) = match (self.given.hourly, self.given.monthly) {
            (Some(budget), _) if hourly > budget => ("hourlyBudget", budget, hourly),
            (_, Some(budget)) if bound > budget => ("monthlyBudget", budget, bound),
            _ => return None,
        };
        Some(format!(
            "fallback.{what} is {} and the cheapest on-demand node costs {}: nothing can be bought in the place of spot",
            said(budget),
            said(cost)
        ))
    }

    /// The first on-demand that is bought in the place of spot, and what may follow.
    pub(super) fn starting(&self, situation: &Situation<'_>, on_demand: &Placement) -> String {
        let mut cost = Some(Decimal::ZERO);
        let mut what = Vec::new();
        for placed in &on_demand.placed {
            let price = self.rates[placed.pool].map(|rate| rate.hourly);
            cost =
                cost.zip(price).map(|(cost, price)| cost + price.saturating_mul(Decimal::from(placed.new)));
            what.push(format!("{} of {}", placed.new, situation.snapshot.agent_pools[placed.pool].name));
        }
        let cost = cost.map(|cost| format!("for {} an hour", said(cost)));
        let cost = cost.unwrap_or_else(|| "at a price that is not known".to_owned());
        let mut note = format!("on-demand stands in for spot from now on: {}, {cost}", what.join(", "));
        if let Some(budget) = self.given.hourly {
            let _ = write!(note, "; fallback.hourlyBudget is {}", said(budget));
        }
        if let Some(budget) = self.given.monthly {
            let left = budget.saturating_sub(self.spent).max(Decimal::ZERO);
            let _ = write!(note, "; {} of fallback.monthlyBudget are left", said(left));
        }
        note
    }
}

/// Shares of budgets that are reached for the first time.
pub(super) fn tell(
    ledger: &mut Ledger,
    given: Budgets,
    hourly: Option<Decimal>,
    spent: Decimal,
    fallback: &Fallback,
) -> Vec<Alert> {
    let reached = |cost: Decimal, budget: Option<Decimal>| {
        let budget = budget.filter(|_| !cost.is_zero())?;
        let is_reached = |share: &u32| {
            let share = budget.saturating_mul(Decimal::from(*share)) / Decimal::ONE_HUNDRED;
            cost >= share
        };
        SHARES.into_iter().filter(is_reached).max()
    };
    let mut alerts = Vec::new();
    let mut alert = |share: u32, what: &str, cost: Decimal, budget: Option<Decimal>| {
        let budget = budget.map(|budget| said(budget).to_string()).unwrap_or_default();
        let note = format!("fallback has reached {share} % of fallback.{what}: {} of {budget}", said(cost));
        alerts.push(Alert { share, what: what.to_owned(), note });
    };
    let told = &mut ledger.told;
    if told.monthly_budget != given.monthly {
        *told = Told { monthly_budget: given.monthly, monthly: 0, ..told.clone() };
    }
    if let Some(share) = reached(spent, given.monthly).filter(|share| *share > told.monthly) {
        told.monthly = share;
        alert(share, "monthlyBudget", spent, given.monthly);
    }
    if told.hourly_budget != given.hourly || hourly == Some(Decimal::ZERO) {
        *told = Told { hourly_budget: given.hourly, hourly: 0, ..told.clone() };
    }
    let cost = hourly.unwrap_or_default();
    if let Some(share) = reached(cost, given.hourly).filter(|share| *share > told.hourly) {
        told.hourly = share;
        alert(share, "hourlyBudget", cost, given.hourly);
    }
    for alert in alerts.iter_mut().filter(|alert| alert.share == 100) {
        alert.note.push_str(match fallback.at_cap {
            AtCap::Hold => "; no more is bought",
            AtCap::Shed => "; no more is bought, and what is above it is returned",
        });
    }
    alerts
}
