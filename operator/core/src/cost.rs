//! What machines cost an hour. A price that nobody knows is assumed, and said to be: never nothing.

use rust_decimal::Decimal;
use spotpool_crds::spot_pool::{Role, SpotPoolSpec};

use crate::snapshot::{AgentPoolView, Snapshot};
use crate::tally::kept;
use crate::units::{Machines, standing_in};

/// What one machine costs an hour, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How much.
    pub hourly: Decimal,
    /// Why so much.
    pub basis: Basis,
}

/// How a price is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// It was read.
    Known,
    /// It was read before the operator last started.
    LastKnown,
    /// Of spot: what the size costs on demand.
    OnDemandOfSize,
    /// The dearest that is known on demand of the SpotPool.
    Dearest,
}

/// Amounts of money by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Spot.
    pub spot: Decimal,
    /// On-demand that there always is.
    pub base: Decimal,
    /// On-demand in the stead of spot.
    pub fallback: Decimal,
}

impl Amounts {
    /// All of it.
    pub fn total(&self) -> Decimal {
        self.spot.saturating_add(self.base).saturating_add(self.fallback)
    }

    /// Both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, Decimal::saturating_add)
    }

    /// Each that much an hour, for so long.
    pub(crate) fn over(&self, seconds: i64) -> Self {
        self.each(|hourly| over(hourly, seconds))
    }

    /// Each of them changed.
    #[must_use]
    pub fn each(&self, change: impl Fn(Decimal) -> Decimal) -> Self {
        Self { spot: change(self.spot), base: change(self.base), fallback: change(self.fallback) }
    }

    fn with(&self, other: &Self, both: impl Fn(Decimal, Decimal) -> Decimal) -> Self {
        Self {
            spot: both(self.spot, other.spot),
            base: both(self.base, other.base),
            fallback: both(self.fallback, other.fallback),
        }
    }
}

/// What `hourly` comes to in so many seconds.
pub(crate) fn over(hourly: Decimal, seconds: i64) -> Decimal {
    hourly.saturating_mul(Decimal::from(seconds)) / Decimal::from(3600)
}

/// What an agent pool's machines are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    pub spot: u32,
    pub base: u32,
    pub fallback: u32,
}

/// What a machine of each agent pool costs, in their order; `None` where no price is known at all.
pub fn rates(snapshot: &Snapshot) -> Vec<Option<Rate>> {
    let dearest = snapshot.agent_pools.iter().filter_map(on_demand).max();
    let rate = |pool: &AgentPoolView| {
        let rate = |hourly, basis| Some(Rate { hourly, basis });
        let market = &pool.market;
        match (market.hourly_price, market.last_price, market.on_demand_price, dearest) {
            (Some(price), ..) => rate(price, Basis::Known),
            (None, Some(price), ..) => rate(price, Basis::LastKnown),
            (None, None, Some(price), _) => rate(price, Basis::OnDemandOfSize),
            (None, None, None, Some(price)) => rate(price, Basis::Dearest),
            (None, None, None, None) => None,
        }
    };
    snapshot.agent_pools.iter().map(rate).collect()
}

/// What a machine of this size costs on demand, as far as it is known.
fn on_demand(pool: &AgentPoolView) -> Option<Decimal> {
    let market = &pool.market;
    let own = market.hourly_price.or(market.last_price).filter(|_| pool.role == Ok(Role::OnDemand));
    own.or(market.on_demand_price)
}

/// What the machines that `count` counts are for, by agent pool.
pub(crate) fn split(
    spec: &SpotPoolSpec,
    snapshot: &Snapshot,
    base: u32,
    rates: &[Option<Rate>],
    count: impl Fn(&AgentPoolView) -> u32,
) -> Vec<Split> {
    let is_on_demand = |pool: &AgentPoolView| pool.role == Ok(Role::OnDemand);
    let machines: Vec<Machines> = snapshot
        .agent_pools
        .iter()
        .zip(rates)
        .map(|(pool, rate)| Machines {
            units: pool.units,
            kept: kept(spec, pool),
            number: if is_on_demand(pool) { count(pool) } else { 0 },
            price: rate.map(|rate| rate.hourly),
        })
        .collect();
    let fallback = standing_in(base, &machines);
    let of = |((pool, all), fallback): ((&AgentPoolView, &Machines), u32)| match pool.role {
        Ok(Role::Spot) => Split { spot: count(pool), ..Split::default() },
        Ok(Role::OnDemand) => Split { spot: 0, base: all.number - fallback, fallback },
        Err(_) => Split::default(),
    };
    snapshot.agent_pools.iter().zip(&machines).zip(fallback).map(of).collect()
}

/// What a SpotPool's machines cost an hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// By agent pool, in the order of the snapshot.
    pub pools: Vec<Amounts>,
    /// How many machines that is of each.
    pub machines: Vec<u32>,
    /// All of them; `None` while the price of any is neither known nor can be assumed.
    pub all: Option<Amounts>,
    /// What the same machines would cost on demand, if that is known of each size.
    pub equivalent: Option<Decimal>,
    /// What stands for prices that are not known.
    pub assumptions: Vec<String>,
}

impl Costs {
    /// Of machines that exist: those that leave, or are no Nodes yet, cost the same.
    pub(crate) fn of(spec: &SpotPoolSpec, snapshot: &Snapshot, base: u32, rates: &[Option<Rate>]) -> Self {
        let exist = |pool: &AgentPoolView| pool.charged().count() as u32 + pool.without_node();
        let split = split(spec, snapshot, base, rates, exist);
        let mut costs =
            Self { all: Some(Amounts::default()), equivalent: Some(Decimal::ZERO), ..Self::default() };
        for ((pool, rate), machines) in snapshot.agent_pools.iter().zip(rates).zip(split) {
            let amounts = rate.map(|rate| machines.at(rate.hourly)).unwrap_or_default();
            costs.pools.push(amounts);
            let number = machines.spot + machines.base + machines.fallback;
            costs.machines.push(number);
            if number == 0 {
                continue;
            }
            costs.all = costs.all.filter(|_| rate.is_some()).map(|all| all.plus(&amounts));
            let equivalent = on_demand(pool).map(|price| price.saturating_mul(Decimal::from(number)));
            costs.equivalent = costs.equivalent.zip(equivalent).map(|(all, pool)| all.saturating_add(pool));
            costs.assumptions.extend(assumption(pool, *rate));
        }
        costs
    }

    /// How much less it costs than all of it on demand, in percent of that.
    pub fn saving_percent(&self) -> Option<i32> {
        let (all, equivalent) = (self.all?.total(), self.equivalent.filter(|price| !price.is_zero())?);
        percent(equivalent.saturating_sub(all), equivalent)
    }
}

/// So much of `whole`, which is not nothing, in percent.
pub(crate) fn percent(part: Decimal, whole: Decimal) -> Option<i32> {
    let percent = part.saturating_mul(Decimal::ONE_HUNDRED).checked_div(whole)?;
    percent.round().to_string().parse().ok()
}

impl Split {
    /// What they cost at this price each.
    pub(crate) fn at(self, price: Decimal) -> Amounts {
        let of = |machines: u32| price.saturating_mul(Decimal::from(machines));
        Amounts { spot: of(self.spot), base: of(self.base), fallback: of(self.fallback) }
    }
}

fn assumption(pool: &AgentPoolView, rate: Option<Rate>) -> Option<String> {
    let name = &pool.name;
    match rate {
        None => Some(format!("no price is known of {name}, nor any to assume: its cost is not counted yet")),
        Some(Rate { basis: Basis::Known | Basis::LastKnown, .. }) => None,
        Some(Rate { hourly, basis: Basis::OnDemandOfSize }) => Some(format!(
            "the spot price of {name} is not known: {hourly} an hour, what its size costs on demand"
        )),
        Some(Rate { hourly, basis: Basis::Dearest }) => Some(format!(
            "the price of {name} is not known: {hourly} an hour, the dearest on-demand price of the SpotPool"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;
    use crate::snapshot::{Market, NodeView};

    fn price(text: &str) -> Option<Decimal> {
        (!text.is_empty()).then(|| text.parse().unwrap())
    }

    /// Price, last price, price on demand of the size.
    fn pool(role: Role, prices: [&str; 3]) -> AgentPoolView {
        let market = Market {
            hourly_price: price(prices[0]),
            last_price: price(prices[1]),
            on_demand_price: price(prices[2]),
            ..Market::default()
        };
        AgentPoolView { name: "a".into(), role: Ok(role), market, ..AgentPoolView::default() }
    }

    fn with(mut pool: AgentPoolView, nodes: u32) -> AgentPoolView {
        pool.nodes = (0..nodes)
            .map(|number| NodeView {
                name: format!("{number}"),
                agent_pool: pool.name.clone(),
                ready: true,
                ..NodeView::default()
            })
            .collect();
        pool
    }

    #[test]
    fn a_price_that_is_missing_is_assumed_and_never_nothing() {
        use Role::{OnDemand, Spot};
        let dear = Some((OnDemand, ["0.9", "", ""]));
        for (of, other, wanted) in [
            ((Spot, ["0.1", "0.2", "0.3"]), dear, Some(("0.1", Basis::Known))),
            ((Spot, ["", "0.2", "0.3"]), dear, Some(("0.2", Basis::LastKnown))),
            ((Spot, ["", "", "0.3"]), dear, Some(("0.3", Basis::OnDemandOfSize))),
            ((Spot, ["", "", ""]), dear, Some(("0.9", Basis::Dearest))),
            ((OnDemand, ["", "", ""]), dear, Some(("0.9", Basis::Dearest))),
            ((OnDemand, ["", "0.4", ""]), dear, Some(("0.4", Basis::LastKnown))),
            // The price of spot says nothing of what on-demand costs.
            ((OnDemand, ["", "", ""]), Some((Spot, ["0.1", "", ""])), None),
            ((OnDemand, ["", "", ""]), Some((Spot, ["0.1", "", "0.5"])), Some(("0.5", Basis::Dearest))),
            ((Spot, ["", "", ""]), None, None),
        ] {
            let pools = [of].into_iter().chain(other).map(|(role, prices)| pool(role, prices));
            let snapshot = Snapshot { agent_pools: pools.collect(), ..Snapshot::default() };
            let wanted = wanted.map(|(hourly, basis)| Rate { hourly: hourly.parse().unwrap(), basis });
            assert_eq!(rates(&snapshot)[0], wanted, "{:?}", snapshot.agent_pools);
        }
    }

    #[test]
    fn what_runs_is_summed_by_what_it_is_for_and_compared_with_on_demand() {
        let spec: SpotPoolSpec = serde_yaml_ng::from_str(
            "replicas: 4\nagentPools: [{name: a, maxNodes: 9}, {name: b, maxNodes: 9}]\nonDemand: {baseline: 1}",
        )
        .unwrap();
        let pools = |spot: [&str; 3]| Snapshot {
            agent_pools: vec![
                with(pool(Role::Spot, spot), 3),
                with(pool(Role::OnDemand, ["0.4", "", "0.4"]), 3),
            ],
            ..Snapshot::default()
        };
        let cost = |snapshot: &Snapshot| Costs::of(&spec, snapshot, 1, &rates(snapshot));
        let costs = cost(&pools(["0.1", "", "0.4"]));
        let all = costs.all.unwrap();
        assert_eq!(
            (all.spot.to_string(), all.base.to_string(), all.fallback.to_string()),
            ("0.3".into(), "0.4".into(), "0.8".into())
        );
        assert_eq!(costs.equivalent, price("2.4"));
        // 1.5 instead of 2.4.
        assert_eq!(costs.saving_percent(), Some(38));
        assert_eq!(costs.assumptions, [""; 0]);
        // Nothing is said to be saved where nobody knows what the size costs on demand.
        let costs = cost(&pools(["", "", ""]));
        assert_eq!(
            (costs.all.unwrap().spot, costs.equivalent, costs.saving_percent()),
            ("1.2".parse().unwrap(), None, None)
        );
        assert!(
            costs.assumptions[0].contains("0.4 an hour, the dearest on-demand price"),
            "{:?}",
            costs.assumptions
        );
    }
}
