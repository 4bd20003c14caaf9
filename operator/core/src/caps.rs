//! What fallback may cost: the caps of `fallback`, checked before anything is bought, and kept where they are passed.
//!
//! `hourlyBudget` bounds what all machines that stand in for spot cost an hour: those that run, are on their way or leave,
//! and those that are asked for. `monthlyBudget` bounds what is spent in the month together with what all of these are
//! bound to cost until their minimum lifetime is over. The baseline and the floor are bounded by neither.

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{AtCap, Role};

use crate::cost::{Costs, Rate, over, rates};
use crate::draft::{Draft, acts};
use crate::ledger::{Ledger, month_end, month_of, settled};
use crate::placement::Placement;
use crate::plan::Situation;
use crate::snapshot::AgentPoolView;
use crate::stall::COMES_WITHIN;
use crate::tally::kept;
use crate::time::later;
use crate::units::{Machines, standing_in};
use crate::wishes::Override;

mod money;
mod shed;
mod words;

pub use money::{Alert, Exhausted, Money};
use words::tell;

/// Shares of a budget that are told of, in percent.
const SHARES: [u32; 3] = [50, 80, 100];

/// What keeps a machine from being bought as fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// `fallback.maxNodes`.
    Nodes,
    /// `fallback.hourlyBudget`.
    Hourly,
    /// `fallback.monthlyBudget`.
    Monthly,
    /// Nobody knows what it costs.
    Price,
}

/// The budgets as they hold now.
#[derive(Clone, Copy, Debug, Default)]
struct Budgets {
    hourly: Option<Decimal>,
    monthly: Option<Decimal>,
}

/// An on-demand agent pool.
#[derive(Clone, Debug)]
struct Pool {
    /// Index of the agent pool.
    index: usize,
    units: u32,
    kept: u32,
    price: Option<Decimal>,
    /// Machines that exist or were asked for.
    paid: u32,
    /// Of these, those that nobody has asked to leave, and that Azure does not take.
    staying: u32,
    /// Until when each of its nodes has to live, the youngest first.
    lives: Vec<Timestamp>,
}

/// What fallback costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    hourly: Decimal,
    /// Until minimum lifetimes are over.
    bound: Decimal,
    machines: u32,
}

/// What fallback may cost, and does.
#[derive(Debug)]
pub(crate) struct Caps {
    rates: Vec<Option<Rate>>,
    /// As the spec has them.
    given: Budgets,
    /// As they hold: none while a person lifts them.
    held: Budgets,
    lifted: Override,
    at_cap: AtCap,
    base: u32,
    lifetime: SignedDuration,
    now: Timestamp,
    ledger: Option<Ledger>,
    spent: Decimal,
    pools: Vec<Pool>,
}

/// An amount of a spec; CEL has checked its form.
fn amount(text: Option<&String>) -> Option<Decimal> {
    text.and_then(|text| Decimal::from_str_exact(text).ok())
}

/// An amount for people.
fn said(amount: Decimal) -> Decimal {
    amount.round_dp(4).normalize()
}

impl Caps {
    /// Writes the ledger in `draft`, and says what a person has lifted.
    pub fn of(situation: &Situation<'_>, draft: &mut Draft) -> Self {
        let Situation { spec, snapshot, tally, now } = situation;
        let rates = rates(snapshot);
        let ledger = settled(situation, &rates);
        draft.memory.ledger.clone_from(&ledger);
        let fallback = spec.fallback.as_ref();
        let given = Budgets {
            hourly: amount(fallback.and_then(|fallback| fallback.hourly_budget.as_ref())),
            monthly: amount(fallback.and_then(|fallback| fallback.monthly_budget.as_ref())),
        };
        let lifted = snapshot.wishes.budget_override(*now);
        let held = if matches!(lifted, Override::Until(_)) { Budgets::default() } else { given };
        let pools = snapshot.agent_pools.iter().enumerate();
        let pools = pools.filter(|(_, pool)| pool.role == Ok(Role::OnDemand)).map(|(index, pool)| {
            let mut lives: Vec<Timestamp> = pool
                .charged()
                .map(|node| later(node.created, spec.failback.min_on_demand_lifetime))
                .collect();
            lives.sort_by(|a, b| b.cmp(a));
            let leaving = pool.charged().filter(|node| !node.stays()).count() as u32;
            let paid = pool.bound_to(0);
            Pool {
                index,
                units: pool.units,
                kept: kept(spec, pool),
                price: rates[index].map(|rate| rate.hourly),
                paid,
                staying: paid.saturating_sub(leaving),
                lives,
            }
        });
        let lifetime = std::time::Duration::from(spec.failback.min_on_demand_lifetime);
        Self {
            given,
            held,
            lifted,
            at_cap: fallback.map_or(AtCap::Hold, |fallback| fallback.at_cap),
            base: tally.base,
            lifetime: SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX),
            now: *now,
            spent: ledger.as_ref().map(|ledger| ledger.spent(*now)).unwrap_or_default(),
            pools: pools.collect(),
            ledger,
            rates,
        }
    }

    /// Whether anything is bounded.
    pub fn hold(&self) -> bool {
        self.held.hourly.is_some() || self.held.monthly.is_some()
    }

    /// What so many machines of each on-demand agent pool cost as fallback; `None` if that cannot be known.
    fn cost(&self, machines: impl Iterator<Item = u32>, at: Timestamp) -> Option<Cost> {
        let all: Vec<Machines> = self
            .pools
            .iter()
            .zip(machines)
            .map(|(pool, machines)| {
                let Pool { units, kept, price, .. } = *pool;
                Machines { units, kept, number: machines, price }
            })
            .collect();
        let mut cost = Cost::default();
        let fallback = standing_in(self.base, &all);
        for ((pool, all), fallback) in self.pools.iter().zip(&all).zip(fallback).filter(|(_, it)| *it > 0) {
            let price = pool.price?;
            // Those that are no nodes yet live longest, then the youngest.
            let to_come = all.number.saturating_sub(pool.lives.len() as u32).min(fallback);
            let coming = self.lifetime.saturating_add(COMES_WITHIN).as_secs();
            let lives = pool.lives.iter().take((fallback - to_come) as usize);
            let seconds: i64 = lives.map(|until| until.duration_since(at).as_secs().max(0)).sum();
            let seconds = seconds.saturating_add(coming.saturating_mul(i64::from(to_come)));
            cost.hourly = cost.hourly.saturating_add(price.saturating_mul(Decimal::from(fallback)));
            cost.bound = cost.bound.saturating_add(over(price, seconds));
            cost.machines += fallback;
        }
        Some(cost)
    }

    fn paid(&self) -> Option<Cost> {
        self.cost(self.pools.iter().map(|pool| pool.paid), self.now)
    }

    /// What keeps one more machine of agent pool `of` from being bought, if so many `machines` of each that is on demand are
    /// there then.
    pub fn bound(&self, of: usize, machines: impl Iterator<Item = u32>) -> Option<Bound> {
        if !self.hold() {
            return None;
        }
        if self.rates[of].is_none() {
            return Some(Bound::Price);
        }
        let Some(cost) = self.cost(machines, self.now) else { return Some(Bound::Price) };
        if self.held.hourly.is_some_and(|budget| cost.hourly > budget) {
            Some(Bound::Hourly)
        } else if self.held.monthly.is_some_and(|budget| self.spent.saturating_add(cost.bound) > budget) {
            Some(Bound::Monthly)
        } else {
            None
        }
    }

    /// Which budget is passed by so many machines, for good: more must not run.
    fn passed(&self, machines: impl Iterator<Item = u32>) -> Option<Bound> {
        let cost = self.cost(machines, self.now)?;
        if self.held.hourly.is_some_and(|budget| cost.hourly > budget) {
            Some(Bound::Hourly)
        } else if self.held.monthly.is_some_and(|budget| cost.machines > 0 && self.spent >= budget) {
            Some(Bound::Monthly)
        } else {
            None
        }
    }

    /// Says what budgets keep from being bought, and what a person has lifted; and how it all stands.
    pub fn conclude(
        &self,
        situation: &Situation<'_>,
        on_demand: &Placement,
        starts: bool,
        draft: &mut Draft,
    ) -> Money {
        let mut alerts = Vec::new();
        let exhausted = self.judge(situation, on_demand, draft);
        let paid = self.paid();
        if let (Some(ledger), Some(fallback)) = (&mut draft.memory.ledger, &situation.spec.fallback) {
            let hourly = paid.map(|paid| paid.hourly);
            alerts = tell(ledger, self.given, hourly, self.spent, fallback);
        }
        self.wake(draft);
        let starting = starts && situation.snapshot.memory.fallback_since.is_none() && acts(situation.spec);
        Money {
            starting: starting.then(|| self.starting(situation, on_demand)),
            alerts,
            exhausted,
            ..self.money(situation)
        }
    }

    /// How it stands, where nothing is decided.
    pub fn money(&self, situation: &Situation<'_>) -> Money {
        let Situation { spec, snapshot, tally, .. } = situation;
        let costs = Costs::of(spec, snapshot, tally.base, &self.rates);
        let left = |budget: Decimal, used: Decimal| (budget, budget.saturating_sub(used).max(Decimal::ZERO));
        let at = self.ledger.as_ref().map_or(self.now, |ledger| ledger.at);
        let paid = self.cost(self.pools.iter().map(|pool| pool.paid), at);
        let spent = self.ledger.as_ref().map(|ledger| ledger.page.spent.total().fallback).unwrap_or_default();
        let has_machines = |pool: &&AgentPoolView| pool.role.is_ok() && pool.committed() > 0;
        Money {
            hourly_budget: self.given.hourly.zip(paid).map(|(budget, paid)| left(budget, paid.hourly)),
            monthly_budget: self
                .given
                .monthly
                .zip(paid)
                .map(|(budget, paid)| left(budget, spent.saturating_add(paid.bound))),
            override_until: match self.lifted {
                Override::Until(until) => Some(until),
                _ => None,
            },
            prices_read_at: snapshot
                .agent_pools
                .iter()
                .filter(has_machines)
                .filter_map(|pool| pool.market.read_at)
                .min(),
            exhausted: Exhausted::default(),
            starting: None,
            alerts: Vec::new(),
            planned: None,
            costs,
        }
    }

    fn judge(&self, situation: &Situation<'_>, on_demand: &Placement, draft: &mut Draft) -> Exhausted {
        let verdict = |is: Option<bool>, reason, message: String| Exhausted { is, reason, message };
        match &self.lifted {
            Override::Until(until) if self.given.hourly.or(self.given.monthly).is_some() => {
                let message = format!("an annotation lifts the budgets of fallback until {until:.0}");
                draft.wake_at(*until);
                draft.step(Reason::BudgetOverridden, None, &message);
                return verdict(Some(false), Reason::BudgetOverridden, message);
            }
            Override::Ignored(why) => draft.step(Reason::BudgetOverrideIgnored, None, why),
            Override::Until(_) | Override::No => {}
        }
        if !self.hold() {
            return Exhausted::default();
        }
        let passed = self.passed(self.pools.iter().map(|pool| pool.paid)).map(|bound| {
            let does = match self.at_cap {
                AtCap::Hold => "nothing more is bought, what runs is kept (atCap Hold)",
                AtCap::Shed => "nothing more is bought, the dearest is returned (atCap Shed)",
            };
            let message = format!("{}: {does}", self.overspend(bound));
            draft.step(Reason::FallbackAtBudget, None, &message);
            verdict(Some(true), Reason::FallbackAtBudget, message)
        });
        let bound_by = on_demand.bound_by.filter(|(bound, _)| *bound != Bound::Nodes);
        let refused = bound_by.map(|(bound, pool)| {
            let (reason, message) = self.refusal(situation, on_demand.over_limit, bound, pool);
            draft.step(reason, None, &message);
            if bound == Bound::Monthly {
                draft.wake_at(month_end(month_of(self.now)));
            }
            verdict((reason == Reason::FallbackAtBudget).then_some(true), reason, message)
        });
        if let Some(verdict) = passed.or(refused) {
            return verdict;
        }
        if let Some(message) = self.too_small() {
            draft.step(Reason::BudgetBelowPrice, None, &message);
            return verdict(Some(true), Reason::BudgetBelowPrice, message);
        }
        let Some(paid) = self.paid().filter(|_| self.pools.iter().any(|pool| pool.price.is_some())) else {
            let message = "no price is known of what stands in for spot, or would".to_owned();
            return verdict(None, Reason::PriceUnknown, message);
        };
        let hourly =
            self.held.hourly.map(|budget| format!(" of {} allowed", said(budget))).unwrap_or_default();
        let message = format!("fallback costs {} an hour{hourly}", said(paid.hourly));
        verdict(Some(false), Reason::WithinBudget, message)
    }

    /// When time alone brings the month's spend to a share of its budget.
    fn wake(&self, draft: &mut Draft) {
        let Some((ledger, budget)) = self.ledger.as_ref().zip(self.given.monthly) else { return };
        let share = |share: u32| budget.saturating_mul(Decimal::from(share)) / Decimal::ONE_HUNDRED;
        let next = SHARES.into_iter().filter_map(|of| ledger.reaches(share(of), self.now)).min();
        if let Some(at) = next {
            draft.wake_at(at);
        }
    }
}
