//! Prices, eviction rates, placement scores: what the market for machines of a size is like, in the cluster's region.

use std::collections::{BTreeMap, VecDeque};
use std::str::FromStr;

use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, put};
use axum::{Json, Router};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::Priority;
use crate::client::{SimClient, SimError};
use crate::model::{Path, Refused};
use crate::reply;
use crate::sim::Sim;

/// Size, price on demand, price as spot, eviction band. Illustrative, and of the right order of magnitude.
const KNOWN: &[(&str, &str, &str, &str)] = &[
    ("Standard_D2s_v3", "0.096", "0.0192", "5-10"),
    ("Standard_D2s_v5", "0.096", "0.0211", "0-5"),
    ("Standard_D4s_v5", "0.192", "0.0422", "0-5"),
    ("Standard_D8s_v5", "0.384", "0.0845", "5-10"),
    ("Standard_D16s_v5", "0.768", "0.1690", "10-15"),
    ("Standard_D4as_v5", "0.172", "0.0310", "5-10"),
    ("Standard_D8as_v5", "0.344", "0.0619", "0-5"),
    ("Standard_D8ds_v5", "0.452", "0.0904", "15-20"),
    ("Standard_E8s_v5", "0.504", "0.1008", "0-5"),
    ("Standard_F8s_v2", "0.338", "0.0676", "20+"),
];

/// Bands of eviction rates, in percent an hour.
const BANDS: &[&str] = &["0-5", "5-10", "10-15", "15-20", "20+"];

/// What a placement score may say.
const SCORES: &[&str] = &["High", "Medium", "Low", "DataNotFoundOrStale", "RestrictedSkuNotAvailable"];

/// When the prices that are known from the start began to hold.
const LONG_AGO: Timestamp = Timestamp::constant(1_735_689_600, 0);

/// A price to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PriceChange {
    /// VM size as Azure spells it.
    pub vm_size: String,
    /// Spot or on-demand.
    pub priority: Priority,
    /// US dollars an hour as a decimal number; when absent, there is no such offer (any more).
    #[serde(default)]
    pub price: Option<String>,
}

/// An eviction rate to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BandChange {
    /// VM size as Azure spells it.
    pub vm_size: String,
    /// `0-5`, `5-10`, `10-15`, `15-20` or `20+`; when absent, none is known.
    #[serde(default)]
    pub band: Option<String>,
}

/// A placement score to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScoreChange {
    /// VM size as Azure spells it.
    pub vm_size: String,
    /// The cluster's region when absent.
    #[serde(default)]
    pub region: Option<String>,
    /// A zone; when absent, the region and each zone that has no score of its own.
    #[serde(default)]
    pub zone: Option<String>,
    /// `High`, `Medium`, `Low`, `DataNotFoundOrStale` or `RestrictedSkuNotAvailable`.
    pub score: String,
    /// Whether the subscription's quota would do.
    #[serde(default = "yes")]
    pub quota_available: bool,
}

fn yes() -> bool {
    true
}

/// Sizes of pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pages {
    /// Items on a page of retail prices.
    pub prices: usize,
    /// Rows on a page of Resource Graph.
    pub graph: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Self { prices: 1000, graph: 1000 }
    }
}

/// What is known of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// On-demand price and since when.
    pub regular: Option<(Timestamp, String)>,
    /// Spot prices and since when each, oldest first.
    pub spot: Vec<(Timestamp, String)>,
    /// Whether spot is on offer at all.
    pub spot_offered: bool,
    /// Eviction rate.
    pub band: Option<String>,
}

/// A placement score, and whether quota would do.
pub type Score = (String, bool);

/// The market, as part of the model.
#[derive(Debug, Clone)]
pub struct Market {
    offers: BTreeMap<String, Offer>,
    /// What machines are billed by, which nobody can read: by size in small letters, and priority.
    paths: BTreeMap<(String, Priority), Path>,
    /// By size, region and zone.
    scores: BTreeMap<(String, String, Option<String>), Score>,
    pub(crate) pages: Pages,
    /// Requests to Resource Graph that count against its quota.
    pub(crate) graph_recent: VecDeque<Timestamp>,
}

impl Default for Market {
    fn default() -> Self {
        let offers = KNOWN.iter().map(|&(size, regular, spot, band)| {
            let offer = Offer {
                regular: Some((LONG_AGO, regular.to_owned())),
                spot: vec![(LONG_AGO, spot.to_owned())],
                spot_offered: true,
                band: Some(band.to_owned()),
            };
            (size.to_owned(), offer)
        });
        let paths = KNOWN.iter().flat_map(|&(size, regular, spot, _)| {
            [(Priority::Regular, regular), (Priority::Spot, spot)].map(|(priority, price)| {
                let price = Decimal::from_str(price).map(|price| (Timestamp::MIN, price));
                ((size.to_lowercase(), priority), price.into_iter().collect())
            })
        });
        Self {
            offers: offers.collect(),
            paths: paths.collect(),
            scores: BTreeMap::new(),
            pages: Pages::default(),
            graph_recent: VecDeque::new(),
        }
    }
}

impl Market {
    /// What is known, by size.
    pub fn offers(&self) -> &BTreeMap<String, Offer> {
        &self.offers
    }

    /// From `now` on, machines of that size cost that much (a decimal number of US dollars an hour), or are not on
    /// offer.
    pub fn set_price(
        &mut self,
        size: &str,
        priority: Priority,
        price: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let exact = price.map(|price| {
            let number = Decimal::from_str(price).or_else(|_| Decimal::from_scientific(price)).ok();
            number
                .filter(|number| *number >= Decimal::ZERO)
                .ok_or_else(|| Refused::Invalid(format!("`{price}` is no price")))
        });
        // Machines that run stay at the last price of an offer that is no more.
        if let Some(price) = exact.transpose()? {
            self.paths.entry((size.to_lowercase(), priority)).or_default().push((now, price));
        }
        let offer = self.offer_mut(size);
        match priority {
            Priority::Regular => offer.regular = price.map(|price| (now, price.to_owned())),
            Priority::Spot => {
                offer.spot_offered = price.is_some();
                offer.spot.extend(price.map(|price| (now, price.to_owned())));
            }
        }
        Ok(())
    }

    /// What a size has cost and since when, oldest first.
    pub(crate) fn path(&self, size: &str, priority: Priority) -> &[(Timestamp, Decimal)] {
        self.paths.get(&(size.to_lowercase(), priority)).map_or(&[], Vec::as_slice)
    }

    /// Sets the eviction rate of a size.
    pub fn set_band(&mut self, size: &str, band: Option<&str>) -> Result<(), Refused> {
        if let Some(band) = band
            && !BANDS.contains(&band)
        {
            return Err(Refused::Invalid(format!("`{band}` is none of {}", BANDS.join(", "))));
        }
        self.offer_mut(size).band = band.map(ToOwned::to_owned);
        Ok(())
    }

    /// What spot of a size costs now, if it is on offer.
    pub fn spot_price(&self, size: &str) -> Option<f64> {
        let (_, offer) = self.offers.iter().find(|(name, _)| name.eq_ignore_ascii_case(size))?;
        let (_, price) = offer.spot.last().filter(|_| offer.spot_offered)?;
        price.parse().ok()
    }

    /// Names of sizes are told apart by case in answers, and by nothing else.
    fn offer_mut(&mut self, size: &str) -> &mut Offer {
        let known = self.offers.keys().find(|name| name.eq_ignore_ascii_case(size)).cloned();
        self.offers.entry(known.unwrap_or_else(|| size.to_owned())).or_default()
    }

    /// Sets a placement score; `home` is the cluster's region.
    pub fn set_score(&mut self, change: ScoreChange, home: &str) -> Result<(), Refused> {
        let ScoreChange { vm_size, region, zone, score, quota_available } = change;
        if !SCORES.contains(&score.as_str()) {
            return Err(Refused::Invalid(format!("`{score}` is none of {}", SCORES.join(", "))));
        }
        let region = region.as_deref().unwrap_or(home).to_lowercase();
        self.scores.insert((vm_size.to_lowercase(), region, zone), (score, quota_available));
        Ok(())
    }

    /// The score of a size in a region and zone; `home` is the cluster's region, of which prices are known.
    pub(crate) fn score(&self, size: &str, region: &str, zone: Option<&str>, home: &str) -> Score {
        let key =
            |zone: Option<&str>| (size.to_lowercase(), region.to_lowercase(), zone.map(ToOwned::to_owned));
        if let Some(set) = self.scores.get(&key(zone)).or_else(|| self.scores.get(&key(None))) {
            return set.clone();
        }
        let mut offers = self.offers.iter();
        let offered = offers.any(|(name, offer)| name.eq_ignore_ascii_case(size) && offer.spot_offered);
        let score = if offered && region.eq_ignore_ascii_case(home) { "High" } else { "DataNotFoundOrStale" };
        (score.to_owned(), true)
    }

    /// Spot prices of the last 90 days, newest first, the one that held before them included.
    pub(crate) fn history(offer: &Offer, now: Timestamp) -> Vec<&(Timestamp, String)> {
        let from = now.checked_sub(SignedDuration::from_hours(90 * 24)).unwrap_or(Timestamp::MIN);
        let first = offer.spot.iter().rposition(|(since, _)| *since <= from).unwrap_or(0);
        offer.spot[first..].iter().rev().collect()
    }
}

// ---- control API ----

/// The market's part of the control API.
pub fn routes() -> Router<Sim> {
    Router::new()
        .route("/sim/prices", get(offers).put(set_price))
        .route("/sim/eviction-rates", put(set_band))
        .route("/sim/placement-scores", put(set_score))
        .route("/sim/pages", put(set_pages))
}

fn done(result: Result<(), Refused>) -> Response {
    match result {
        Ok(()) => reply::json_body(200, &Value::Null),
        Err(refused) => reply::error(400, &refused.to_string()),
    }
}

async fn offers(State(sim): State<Sim>) -> Response {
    reply::json_body(200, &sim.look(|cloud, _| json!(cloud.market.offers)))
}

async fn set_price(State(sim): State<Sim>, Json(change): Json<PriceChange>) -> Response {
    done(sim.look(|cloud, now| {
        cloud.market.set_price(&change.vm_size, change.priority, change.price.as_deref(), now)
    }))
}

async fn set_band(State(sim): State<Sim>, Json(change): Json<BandChange>) -> Response {
    done(sim.look(|cloud, _| cloud.market.set_band(&change.vm_size, change.band.as_deref())))
}

async fn set_score(State(sim): State<Sim>, Json(change): Json<ScoreChange>) -> Response {
    done(sim.look(|cloud, _| cloud.market.set_score(change, &cloud.identity.location)))
}

async fn set_pages(State(sim): State<Sim>, Json(pages): Json<Pages>) -> Response {
    if pages.prices == 0 || pages.graph == 0 {
        return reply::error(400, "a page holds something");
    }
    sim.look(|cloud, _| cloud.market.pages = pages);
    done(Ok(()))
}

/// The market, by the control API.
impl SimClient {
    /// Sets the price of a size from now on; `None`: not on offer.
    pub async fn set_price(
        &self,
        vm_size: &str,
        priority: Priority,
        price: Option<&str>,
    ) -> Result<(), SimError> {
        let price = price.map(ToOwned::to_owned);
        self.call(Method::PUT, "prices", Some(&PriceChange { vm_size: vm_size.into(), priority, price }))
            .await
    }

    /// Sets the eviction rate of a size; `None`: not known.
    pub async fn set_eviction_rate(&self, vm_size: &str, band: Option<&str>) -> Result<(), SimError> {
        let band = band.map(ToOwned::to_owned);
        self.call(Method::PUT, "eviction-rates", Some(&BandChange { vm_size: vm_size.into(), band })).await
    }

    /// Sets a placement score.
    pub async fn set_placement_score(&self, change: &ScoreChange) -> Result<(), SimError> {
        self.call(Method::PUT, "placement-scores", Some(change)).await
    }

    /// Sets how much a page of prices, and of Resource Graph, holds.
    pub async fn set_pages(&self, pages: &Pages) -> Result<(), SimError> {
        self.call(Method::PUT, "pages", Some(pages)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: &str = "Standard_D8s_v5";

    #[test]
    fn scores_are_found_from_the_particular_to_the_general() {
        let mut market = Market::default();
        let mut set = |region: Option<&str>, zone: Option<&str>, score: &str| {
            let (region, zone) = (region.map(Into::into), zone.map(Into::into));
            let change = ScoreChange {
                vm_size: SIZE.into(),
                region,
                zone,
                score: score.into(),
                quota_available: true,
            };
            market.set_score(change, "eastus")
        };
        set(None, Some("2"), "Low").unwrap();
        set(Some("westus"), None, "Medium").unwrap();
        assert!(set(None, None, "Splendid").is_err());
        let score =
            |size: &str, region: &str, zone: Option<&str>| market.score(size, region, zone, "eastus").0;
        assert_eq!(score(&SIZE.to_lowercase(), "EastUS", Some("2")), "Low");
        assert_eq!(score(SIZE, "eastus", Some("1")), "High");
        assert_eq!(score(SIZE, "westus", Some("1")), "Medium");
        assert_eq!(score(SIZE, "northeurope", None), "DataNotFoundOrStale");
        assert_eq!(score("Standard_X1", "eastus", None), "DataNotFoundOrStale");
    }

    #[test]
    fn history_begins_with_the_price_that_held_then() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut market = Market::default();
        for (when, price) in [("2026-01-01T00:00:00Z", "0.1"), ("2026-07-01T00:00:00Z", "0.2")] {
            market.set_price(SIZE, Priority::Spot, Some(price), at(when)).unwrap();
        }
        let prices = |now: &str| -> Vec<String> {
            let history = Market::history(&market.offers()[SIZE], at(now));
            history.into_iter().map(|(_, price)| price.clone()).collect()
        };
        assert_eq!(prices("2026-07-02T00:00:00Z"), ["0.2", "0.1"]);
        assert_eq!(prices("2026-12-01T00:00:00Z"), ["0.2"]);
        assert!(market.set_price(SIZE, Priority::Spot, Some("cheap"), LONG_AGO).is_err());
    }
}
