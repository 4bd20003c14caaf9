//! What a VM costs an hour: the Retail Prices API, which knows list prices and today's spot prices.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use crate::Clock;
use crate::agent_pools::Priority;
use crate::error::AzureError;
use crate::http::Transport;
use crate::market::{self, Cache, Known};
use crate::wire::{not_understood, request, understand};

/// The version whose documentation names the filters that we use; values are told apart by case in it.
/// <https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices>
const API_VERSION: &str = "2023-01-01-preview";
/// Spot prices change about once a day, list prices once in years.
const FRESH_FOR: SignedDuration = SignedDuration::from_hours(1);
/// A size has a dozen rows; a page holds a hundred or more.
const MOST_PAGES: usize = 10;

/// What VMs cost. Asking for a price never waits; whoever wants prices keeps them fresh.
pub trait Prices: Send + Sync {
    /// What a VM of `size` costs an hour; `given`, a price from the spec, overrides what Azure says.
    fn price(&self, size: &str, priority: Priority, given: Option<Decimal>) -> Option<Price>;

    /// Reads the prices of those `sizes` of which none is known or that are old. Prices are kept through errors.
    fn refresh<'a>(&'a self, sizes: &'a [String]) -> BoxFuture<'a, Result<(), AzureError>>;
}

/// A price an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// How much.
    pub hourly: Decimal,
    /// Of what, by ISO 4217: `USD`.
    pub currency: String,
    /// Who says so.
    pub source: PriceSource,
    /// When it was read; for a given price, now.
    pub read_at: Timestamp,
}

impl Price {
    /// How old it is; zero where clocks disagree.
    pub fn age(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.read_at)).unwrap_or_default()
    }
}

/// Where a price comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
pub enum PriceSource {
    /// Azure's Retail Prices API: list prices, without discounts of the subscription.
    Azure,
    /// The spec.
    Given,
}

/// Prices by the Retail Prices API, for Linux in one region.
pub struct RetailPrices {
    transport: Arc<dyn Transport>,
    endpoint: Url,
    region: String,
    currency: String,
    now: Clock,
    cache: Cache<Offer>,
}

/// What a size costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Offer {
    spot: Option<Decimal>,
    regular: Option<Decimal>,
}

impl RetailPrices {
    /// Prices at `endpoint`, such as [`Cloud::prices_endpoint`](crate::Cloud::prices_endpoint), in `currency`.
    /// `transport` has to be one without tokens: prices are public.
    pub fn new(
        transport: Arc<dyn Transport>,
        endpoint: Url,
        region: &str,
        currency: &str,
        now: Clock,
    ) -> Result<Self, AzureError> {
        let (region, currency) = (market::region(region)?, market::name(currency)?.to_ascii_uppercase());
        let cache = Cache::new(now.clone(), FRESH_FOR);
        Ok(Self { transport, endpoint, region, currency, now, cache })
    }

    fn first_page(&self, size: &str) -> Url {
        let filter = format!(
            "serviceName eq 'Virtual Machines' and armRegionName eq '{}' and armSkuName eq '{size}' and priceType eq \
             'Consumption'",
            self.region
        );
        let mut url = self.endpoint.clone();
        url.query_pairs_mut()
            .append_pair("api-version", API_VERSION)
            .append_pair("currencyCode", &format!("'{}'", self.currency))
            .append_pair("$filter", &filter);
        url
    }

    async fn offer(&self, size: &str) -> Result<Offer, AzureError> {
        let mut rows = Vec::new();
        let mut next = Some(self.first_page(size));
        for _ in 0..MOST_PAGES {
            let Some(url) = next else { return Ok(self.choose(size, &rows)) };
            let answer = self.transport.execute(request(Method::GET, &url)?).await?;
            if !answer.status().is_success() {
                return Err(AzureError::from_response(&answer));
            }
            let page: Page = understand(answer.body())?;
            // One row that cannot be read must not hide the others.
            rows.extend(page.items.iter().filter_map(|row| serde_json::from_str::<Row>(row.get()).ok()));
            next = page.next.filter(|link| !link.is_empty()).map(|link| self.link(&link)).transpose()?;
        }
        Err(not_understood("the list of prices does not end"))
    }

    fn link(&self, link: &str) -> Result<Url, AzureError> {
        Url::parse(link)
            .ok()
            .filter(|url| url.origin() == self.endpoint.origin())
            .ok_or_else(|| not_understood("the next page of prices is on another host"))
    }

    /// Linux on demand and Linux as spot: the price that holds now; of several the latest, then the dearest.
    fn choose(&self, size: &str, rows: &[Row]) -> Offer {
        let now = (self.now)();
        let best = |spot: bool| {
            let rows = rows.iter().filter(|row| row.is_for(size, &self.region, &self.currency, spot, now));
            let ranked =
                rows.filter_map(|row| Some((row.is_primary, row.since, market::price(&row.retail_price)?)));
            ranked.max().map(|(_, _, price)| price)
        };
        Offer { spot: best(true), regular: best(false) }
    }
}

impl Prices for RetailPrices {
    fn price(&self, size: &str, priority: Priority, given: Option<Decimal>) -> Option<Price> {
        let price =
            |hourly, source, read_at| Price { hourly, currency: self.currency.clone(), source, read_at };
        if let Some(hourly) = given {
            return Some(price(hourly, PriceSource::Given, (self.now)()));
        }
        let Known { value, read_at } = self.cache.get(size)?;
        let hourly = match priority {
            Priority::Spot => value.spot?,
            Priority::Regular => value.regular?,
        };
        Some(price(hourly, PriceSource::Azure, read_at))
    }

    fn refresh<'a>(&'a self, sizes: &'a [String]) -> BoxFuture<'a, Result<(), AzureError>> {
        async move {
            for size in self.cache.due(sizes)? {
                match self.offer(size).await {
                    Ok(offer) if offer == Offer::default() => {
                        tracing::debug!(size, region = self.region, "Azure names no price of this size");
                        self.cache.store(&[size], []);
                    }
                    Ok(offer) => self.cache.store(&[size], [(size.to_owned(), offer)]),
                    Err(error) => {
                        self.cache.failed(&[size], &error);
                        return Err(error);
                    }
                }
            }
            Ok(())
        }
        .boxed()
    }
}

/// For clouds whose prices are not published: only what the spec gives.
pub struct GivenPrices {
    currency: String,
    now: Clock,
}

impl GivenPrices {
    /// Prices that are given in `currency`.
    pub fn new(currency: &str, now: Clock) -> Self {
        Self { currency: currency.to_ascii_uppercase(), now }
    }
}

impl Prices for GivenPrices {
    fn price(&self, _: &str, _: Priority, given: Option<Decimal>) -> Option<Price> {
        given.map(|hourly| Price {
            hourly,
            currency: self.currency.clone(),
            source: PriceSource::Given,
            read_at: (self.now)(),
        })
    }

    fn refresh<'a>(&'a self, _: &'a [String]) -> BoxFuture<'a, Result<(), AzureError>> {
        std::future::ready(Ok(())).boxed()
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "Items")]
    items: Vec<Box<RawValue>>,
    #[serde(rename = "NextPageLink")]
    next: Option<String>,
}

/// One row, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    currency_code: String,
    retail_price: Box<RawValue>,
    arm_region_name: String,
    arm_sku_name: String,
    product_name: String,
    sku_name: String,
    #[serde(default)]
    meter_name: String,
    unit_of_measure: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "effectiveStartDate")]
    since: Option<Timestamp>,
    #[serde(rename = "effectiveEndDate")]
    until: Option<Timestamp>,
    #[serde(default, rename = "isPrimaryMeterRegion")]
    is_primary: bool,
}

impl Row {
    fn is_for(&self, size: &str, region: &str, currency: &str, spot: bool, now: Timestamp) -> bool {
        let low_priority = self.sku_name.contains("Low Priority") || self.meter_name.contains("Low Priority");
        // The same size is sold under these names at prices of their own.
        let other_product =
            self.product_name.contains("Windows") || self.product_name.contains("Cloud Services");
        self.arm_sku_name.eq_ignore_ascii_case(size)
            && self.arm_region_name.eq_ignore_ascii_case(region)
            && self.currency_code.eq_ignore_ascii_case(currency)
            && self.kind == "Consumption"
            && self.unit_of_measure == "1 Hour"
            && !low_priority
            && !other_product
            && self.sku_name.ends_with(" Spot") == spot
            && self.since.is_none_or(|since| since <= now)
            && self.until.is_none_or(|until| now < until)
    }
}

#[cfg(test)]
mod tests;
