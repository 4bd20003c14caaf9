//! What fallback may cost: the caps of `fallback`, checked before anything is bought, and kept where they are passed.
//!
//! `hourlyBudget` bounds what all machines that stand in for spot cost an hour: those that run, are on their way or leave,
//! and those that are asked for. `monthlyBudget` bounds what is spent in the month together with what all of these are
//! bound to cost until their minimum lifetime is over. The baseline and the floor are bounded by neither.

use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{AtCap, Fallback, Role};
use spotpool_crds::voluntary_drain::DrainReason;

use crate::cost::{Amounts, Costs, Rate, over, percent, rates};
use crate::failback::Drains;
use crate::ledger::{Ledger, Told, month_end, month_of, settled};
use crate::placement::Placement;
use crate::plan::{Action, Draft, Situation, acts, kept, later};
use crate::snapshot::{AgentPoolView, NodeView};
use crate::stall::COMES_WITHIN;
use crate::units::{Machines, standing_in};
use crate::upkeep;
use crate::wishes::Override;

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

    fn sheds(&self) -> bool {
        self.at_cap == AtCap::Shed && self.hold()
    }

    /// Of `needed` units those that nodes which are asked to leave may still make up: what was shed is not taken back.
    pub fn regainable(&self, situation: &Situation<'_>, drains: &Drains<'_>, needed: u32) -> u32 {
        if !self.sheds() {
            return needed;
        }
        let mut machines: Vec<u32> = self.pools.iter().map(|pool| pool.staying).collect();
        let mut units = 0;
        for (node, role, worth) in &drains.open {
            let wished = node.drain.as_ref().is_some_and(|drain| drain.reason == DrainReason::Manual);
            if *role != Role::OnDemand || wished {
                continue;
            }
            if units >= needed {
                break;
            }
            self.count(situation, &mut machines, node, 1);
            if self.passed(machines.iter().copied()).is_some() {
                break;
            }
            units += worth;
        }
        units.max(situation.tally.base_missing().min(needed))
    }

    fn count(&self, situation: &Situation<'_>, machines: &mut [u32], node: &NodeView, change: i32) {
        let of = |pool: &Pool| situation.snapshot.agent_pools[pool.index].name == node.agent_pool;
        if let Some(at) = self.pools.iter().position(of) {
            machines[at] = machines[at].saturating_add_signed(change);
        }
    }

    /// Asks nodes to leave until what stays is within the budgets, the dearest first: voluntarily, and without waiting for
    /// spot, stabilization, a window or minimum lifetimes.
    pub fn shed(&self, situation: &Situation<'_>, drains: &Drains<'_>, draft: &mut Draft) {
        let Situation { spec, snapshot, tally, now } = situation;
        let mut machines: Vec<u32> = self.pools.iter().map(|pool| pool.staying).collect();
        let Some(why) = self.passed(machines.iter().copied()).filter(|_| self.sheds()) else { return };
        if upkeep::is_under_way(situation) {
            return;
        }
        if let Some(until) = draft.memory.paused_until.filter(|until| until > now) {
            draft.wake_at(until);
            let message =
                format!("a drain has failed; the next node over the budget is asked from {until:.0}");
            draft.step(Reason::ShedOverBudget, None, message);
            return;
        }
        let why = self.overspend(why);
        let returned: usize = draft.actions.iter().map(Action::machines_deleted).sum();
        let most = spec.failback.max_concurrent.max(1) as usize;
        let mut slots = most.saturating_sub(drains.open.len().saturating_sub(returned));
        let on_demand = || snapshot.agent_pools.iter().filter(|pool| pool.role == Ok(Role::OnDemand));
        // What is always there stays, and is ready already.
        let staying: u32 = on_demand().map(|pool| pool.staying() * pool.units).sum();
        let mut left = staying.saturating_sub(tally.base);
        let mut waiting = 0;
        for (node, units) in self.dearest_first(situation) {
            if self.passed(machines.iter().copied()).is_none() {
                break;
            }
            let Some(less) = left.checked_sub(units) else { continue };
            left = less;
            self.count(situation, &mut machines, node, -1);
            if slots == 0 {
                waiting += 1;
                continue;
            }
            slots -= 1;
            let message = format!("drain {}: {why}", node.name);
            draft.step(Reason::ShedOverBudget, Some(&node.agent_pool), message);
            draft.actions.push(Action::RequestDrain {
                node: node.name.clone(),
                reason: DrainReason::Failback,
                not_after: later(*now, spec.failback.drain_timeout),
            });
        }
        if waiting > 0 {
            let message =
                format!("{waiting} nodes more are over the budget; failback.maxConcurrent is {most}");
            draft.step(Reason::ShedOverBudget, None, message);
        }
    }

    /// Nodes that may be shed, with their units. The cluster autoscaler chooses by itself who goes of those that it has.
    fn dearest_first<'a>(&self, situation: &Situation<'a>) -> Vec<(&'a NodeView, u32)> {
        let Situation { spec, snapshot, .. } = situation;
        let mut nodes = Vec::new();
        for (pool, rate) in snapshot.agent_pools.iter().zip(&self.rates) {
            if pool.role != Ok(Role::OnDemand) || pool.autoscaler.is_some() {
                continue;
            }
            let mut staying: Vec<&NodeView> = pool.nodes.iter().filter(|node| node.stays()).collect();
            staying.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
            let bought = staying.into_iter().skip(kept(spec, pool) as usize);
            nodes.extend(bought.map(|node| (rate.map(|rate| rate.hourly), node, pool.units)));
        }
        nodes.sort_by(|(one, a, _), (other, b, _)| {
            other.cmp(one).then_with(|| (a.created, &a.name).cmp(&(b.created, &b.name)))
        });
        nodes.into_iter().map(|(_, node, units)| (node, units)).collect()
    }

    /// By how much a budget is passed, in words that stay the same while nothing happens.
    fn overspend(&self, bound: Bound) -> String {
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
    fn refusal(&self, situation: &Situation<'_>, units: u32, bound: Bound, of: usize) -> (Reason, String) {
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
    fn cheapest(&self) -> Option<(Decimal, Decimal)> {
        let prices: Option<Vec<Decimal>> = self.pools.iter().map(|pool| pool.price).collect();
        let price = prices?.into_iter().min()?;
        Some((price, over(price, self.lifetime.saturating_add(COMES_WITHIN).as_secs())))
    }

    /// A budget that no node fits in, in words.
    fn too_small(&self) -> Option<String> {
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

    /// The first on-demand that is bought in the place of spot, and what may follow.
    fn starting(&self, situation: &Situation<'_>, on_demand: &Placement) -> String {
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
fn tell(
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
