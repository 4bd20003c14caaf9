//! What is known of the market for VMs: prices, eviction rates, placement scores. Plans weigh agent pools by it and
//! never wait for it: what is not known is said and assumed.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spotpool_azure::{
    AgentPool, AzureError, Decimal, EvictionBand, EvictionRates, PlacementScore, PlacementScores, Price,
    PriceHistory, Prices, Priority,
};
use spotpool_core::signals::PriceRise;
use spotpool_core::{Market as View, Score};

use crate::agent_pools::AgentPools;
use crate::watches::{Nodes, Trigger};

/// How often the sources are given a chance; each asks Azure far more rarely.
const EVERY: Duration = Duration::from_mins(1);
/// … until the first Node has told the region.
const UNTIL_REGION: Duration = Duration::from_secs(2);
/// Machines in the request whose placement score is asked for: about what one wave of evictions takes.
const SCORED_REQUEST: u32 = 5;
/// Azure's and Kubernetes' label with the region of a Node.
const REGION_LABEL: &str = "topology.kubernetes.io/region";

/// Where facts about the market come from, in one region.
#[derive(Clone)]
pub struct Sources {
    /// Prices, where they can be had.
    pub prices: Option<Arc<dyn Prices>>,
    /// Eviction rates.
    pub rates: Arc<dyn EvictionRates>,
    /// Placement scores.
    pub scores: Arc<dyn PlacementScores>,
}

/// Makes [`Sources`] for a region.
pub type Open = Box<dyn Fn(&str) -> Result<Sources, AzureError> + Send + Sync>;

/// The market as far as it is known.
pub struct Market {
    open: Open,
    currency: String,
    sources: OnceLock<Sources>,
}

/// What is known of one agent pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What a machine costs.
    pub price: Option<Price>,
    /// What a machine of this size costs on demand.
    pub on_demand: Option<Price>,
    /// How often Azure evicts this size.
    pub band: Option<EvictionBand>,
    /// How likely it has capacity: the worst of the agent pool's zones.
    pub score: Option<PlacementScore>,
    /// What its size cost before.
    pub history: Option<PriceHistory>,
}

impl Market {
    /// Nothing is known before [`Self::keep_fresh`] runs.
    pub fn new(open: Open, currency: &str) -> Self {
        Self { open, currency: currency.to_owned(), sources: OnceLock::new() }
    }

    /// What is known of an agent pool now.
    pub fn of(&self, pool: &AgentPool) -> Facts {
        let Some(sources) = self.sources.get() else { return Facts::default() };
        let price_of = |priority| sources.prices.as_ref()?.price(&pool.vm_size, priority, None);
        let (price, on_demand) = (price_of(pool.priority), price_of(Priority::Regular));
        if pool.priority != Priority::Spot {
            return Facts { price, on_demand, ..Facts::default() };
        }
        let scores = sources.scores.placements(&pool.vm_size);
        let in_its_zones = |zone: &String| pool.zones.is_empty() || pool.zones.contains(zone);
        let score = scores.and_then(|known| {
            known
                .value
                .iter()
                .filter(|(zone, _)| in_its_zones(zone))
                .map(|(_, placement)| placement.score)
                .min()
        });
        Facts {
            price,
            on_demand,
            band: sources.rates.band(&pool.vm_size).map(|known| known.value),
            score,
            history: sources.rates.price_history(&pool.vm_size).map(|known| known.value),
        }
    }

    /// Adds what is known to a view of agent pools.
    pub fn tell(&self, view: &mut crate::agent_pools::View) {
        view.currency.clone_from(&self.currency);
        for known in view.pools.iter_mut().flat_map(|pools| pools.values_mut()) {
            known.market = self.of(&known.pool);
        }
    }

    /// Reads what is unknown or old of the agent pools that SpotPools name, for ever. News wakes the plans.
    pub async fn keep_fresh(&self, nodes: &Nodes, agent_pools: &AgentPools, trigger: &Trigger) {
        let mut last = Vec::new();
        loop {
            let Some(sources) = self.sources(nodes) else {
                tokio::time::sleep(UNTIL_REGION).await;
                continue;
            };
            let followed = agent_pools.named();
            let sizes_of = |wanted: fn(&AgentPool) -> bool| -> Vec<String> {
                let wanted = followed.iter().filter(|pool| wanted(pool));
                wanted.map(|pool| pool.vm_size.clone()).collect::<BTreeSet<_>>().into_iter().collect()
            };
            let sizes = sizes_of(|_| true);
            let spot = sizes_of(|pool| pool.priority == Priority::Spot);
            let prices = async {
                match &sources.prices {
                    Some(prices) => prices.refresh(&sizes).await,
                    None => Ok(()),
                }
            };
            let read = tokio::join!(
                prices,
                sources.rates.refresh(&spot),
                sources.scores.refresh(&spot, SCORED_REQUEST)
            );
            for (what, read) in [("prices", read.0), ("eviction rates", read.1), ("placement scores", read.2)]
            {
                if let Err(error) = read {
                    // Each source pauses by itself; what was known stays.
                    tracing::info!(what, class = %error.class, %error, "not read; decisions go on without news");
                }
            }
            let facts: Vec<_> = agent_pools.named().iter().map(|pool| self.of(pool)).collect();
            if facts != last {
                last = facts;
                trigger.fire();
            }
            let pause = if sizes.is_empty() { UNTIL_REGION } else { EVERY };
            tokio::time::sleep(pause).await;
        }
    }

    fn sources(&self, nodes: &Nodes) -> Option<Sources> {
        if let Some(sources) = self.sources.get() {
            return Some(sources.clone());
        }
        let region =
            nodes.all().iter().find_map(|node| node.metadata.labels.as_ref()?.get(REGION_LABEL).cloned())?;
        match (self.open)(&region) {
            Ok(sources) => Some(self.sources.get_or_init(|| sources).clone()),
            Err(error) => {
                tracing::warn!(region, %error, "a Node's region cannot be used");
                None
            }
        }
    }
}

impl Facts {
    /// The last change of the price, if it was a rise.
    pub fn price_rise(&self) -> Option<PriceRise> {
        let history = self.history.as_ref()?;
        let (from, to, since) = (history.before?, history.newest, history.since?);
        (from < to).then_some(PriceRise { from, to, since })
    }

    /// For the plan.
    pub fn view(&self) -> View {
        View {
            hourly_price: self.price.as_ref().map(|price| price.hourly),
            last_price: None,
            read_at: self.price.as_ref().map(|price| price.read_at),
            on_demand_price: self.on_demand.as_ref().map(|price| price.hourly),
            evictions_an_hour: self.band.map(middle),
            score: self.score.map(|score| match score {
                PlacementScore::Restricted => Score::Restricted,
                PlacementScore::Low => Score::Low,
                PlacementScore::Medium => Score::Medium,
                PlacementScore::High => Score::High,
            }),
        }
    }
}

/// The middle of a band; of the open one, what a pool of its lower bound would show.
fn middle(band: EvictionBand) -> f64 {
    match band {
        EvictionBand::UpTo5 => 0.025,
        EvictionBand::UpTo10 => 0.075,
        EvictionBand::UpTo15 => 0.125,
        EvictionBand::UpTo20 => 0.175,
        EvictionBand::Above20 => 0.25,
    }
}

/// A price from a spec; CEL has checked its form.
pub fn decimal(text: &str) -> Option<Decimal> {
    Decimal::from_str_exact(text).ok()
}
