//! How often Azure takes spot VMs of a size back, and what they cost lately: Resource Graph's `SpotResources`.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Method;
use http::header::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;
use url::Url;

use crate::Clock;
use crate::error::{AzureError, Class};
use crate::http::Transport;
use crate::market::{self, Cache, Known};
use crate::wire::{json_request, not_understood, understand};

/// <https://learn.microsoft.com/rest/api/azureresourcegraph/resourcegraph/resources/resources>; newer ones add
/// nothing that we use.
const API_VERSION: &str = "2021-03-01";
/// Rates are those of four weeks, prices change about once a day.
const FRESH_FOR: SignedDuration = SignedDuration::from_hours(1);
const MOST_PAGES: usize = 20;
/// So that a query stays far below Azure's bound on its length.
const SIZES_IN_A_QUERY: usize = 50;
/// The quota is 15 requests in 5 s, of all callers of the tenant's user.
const LONGEST_TURN: Duration = Duration::from_secs(10);

/// The share of spot VMs of a size that was evicted in an hour, over the last 28 days. Ordered: less is better.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
pub enum EvictionBand {
    /// Up to 5 %.
    #[strum(serialize = "0-5")]
    UpTo5,
    /// 5 to 10 %.
    #[strum(serialize = "5-10")]
    UpTo10,
    /// 10 to 15 %.
    #[strum(serialize = "10-15")]
    UpTo15,
    /// 15 to 20 %.
    #[strum(serialize = "15-20")]
    UpTo20,
    /// More than 20 %.
    #[strum(serialize = "20+")]
    Above20,
}

/// Spot prices of a size over the last 90 days, in US dollars an hour, Linux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceHistory {
    /// The newest price.
    pub newest: Decimal,
    /// Since when it holds, where Azure says so.
    pub since: Option<Timestamp>,
    /// The price before it, where Azure says so.
    pub before: Option<Decimal>,
    /// The lowest of all.
    pub lowest: Decimal,
    /// The highest of all.
    pub highest: Decimal,
    /// How many prices there were.
    pub prices: usize,
}

/// What is known of spot VMs of a size. Asking never waits; whoever wants it keeps it fresh.
pub trait EvictionRates: Send + Sync {
    /// How often they are evicted.
    fn band(&self, size: &str) -> Option<Known<EvictionBand>>;

    /// What they cost lately.
    fn price_history(&self, size: &str) -> Option<Known<PriceHistory>>;

    /// Reads what is unknown or old of `sizes`. What was known is kept through errors.
    fn refresh<'a>(&'a self, sizes: &'a [String]) -> BoxFuture<'a, Result<(), AzureError>>;
}

/// Eviction rates by Resource Graph, in one region.
pub struct ResourceGraph {
    transport: Arc<dyn Transport>,
    url: Url,
    subscription: String,
    region: String,
    bands: Cache<EvictionBand>,
    histories: Cache<PriceHistory>,
}

impl ResourceGraph {
    /// `transport` has to sign for ARM at `endpoint`.
    pub fn new(
        transport: Arc<dyn Transport>,
        endpoint: &Url,
        subscription: &str,
        region: &str,
        now: Clock,
    ) -> Result<Self, AzureError> {
        let mut url = endpoint.join("/providers/Microsoft.ResourceGraph/resources").map_err(|_| {
            AzureError::new(Class::Invalid, "InvalidRequest", "the Azure endpoint is no http(s) URL")
        })?;
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        Ok(Self {
            transport,
            url,
            subscription: subscription.to_owned(),
            region: market::region(region)?,
            bands: Cache::new(now.clone(), FRESH_FOR),
            histories: Cache::new(now, FRESH_FOR),
        })
    }

    /// The rows of `kind` for `sizes`. Names are checked before they come here.
    fn query(&self, kind: &str, sizes: &[&str], columns: &str) -> String {
        let sizes = sizes.iter().map(|size| format!("'{}'", size.to_ascii_lowercase()));
        format!(
            "SpotResources | where type =~ '{kind}' | where sku.name in~ ({}) and location in~ ('{}') | project {columns}",
            sizes.collect::<Vec<_>>().join(", "),
            self.region
        )
    }

    async fn rows<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, AzureError> {
        let mut rows = Vec::new();
        let mut skip_token: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let mut body = json!({
                "subscriptions": [self.subscription],
                "query": query,
                "options": {"resultFormat": "objectArray"},
            });
            if let Some(token) = skip_token {
                body["options"]["$skipToken"] = token.into();
            }
            let answer = self.transport.execute(json_request(Method::POST, &self.url, &body)?).await?;
            if !answer.status().is_success() {
                return Err(AzureError::from_response(&answer));
            }
            let page: Page = understand(answer.body())?;
            rows.extend(page.data.iter().filter_map(|row| serde_json::from_str(row.get()).ok()));
            skip_token = page.skip_token.filter(|token| !token.is_empty());
            let used_up = used_up(answer.headers());
            if skip_token.is_none() {
                if let Some(wait) = used_up.and_then(|wait| SignedDuration::try_from(wait).ok()) {
                    self.bands.pause(wait);
                    self.histories.pause(wait);
                }
                return Ok(rows);
            }
            if let Some(wait) = used_up {
                tokio::time::sleep(wait).await;
            }
        }
        Err(not_understood("the list of spot VM sizes does not end"))
    }

    async fn read_bands(&self, sizes: &[&str]) -> Result<Vec<(String, EvictionBand)>, AzureError> {
        let query = self.query(
            "microsoft.compute/skuspotevictionrate/location",
            sizes,
            "skuName=tostring(sku.name), location, rate=tostring(properties.evictionRate)",
        );
        let rows: Vec<BandRow> = self.rows(&query).await?;
        let known = rows.into_iter().filter_map(|row| {
            let band = EvictionBand::from_str(row.rate.trim());
            if band.is_err() {
                tracing::debug!(size = row.sku_name, rate = row.rate, "an eviction rate of an unknown kind");
            }
            Some((row.sku_name, band.ok()?))
        });
        Ok(known.collect())
    }

    async fn read_histories(&self, sizes: &[&str]) -> Result<Vec<(String, PriceHistory)>, AzureError> {
        let query = self.query(
            "microsoft.compute/skuspotpricehistory/ostype/location",
            sizes,
            "skuName=tostring(sku.name), location, osType=tostring(properties.osType), spotPrices=properties.spotPrices",
        );
        let rows: Vec<HistoryRow> = self.rows(&query).await?;
        let linux = rows.into_iter().filter(|row| row.os_type.eq_ignore_ascii_case("linux"));
        Ok(linux.filter_map(|row| Some((row.sku_name, history(&row.spot_prices)?))).collect())
    }
}

/// Asks by `read` for what is due in `cache`.
async fn refresh<'a, V: Clone, F>(
    cache: &Cache<V>,
    sizes: &'a [String],
    read: impl Fn(Vec<&'a str>) -> F,
) -> Result<(), AzureError>
where
    F: Future<Output = Result<Vec<(String, V)>, AzureError>>,
{
    for asked in cache.due(sizes)?.chunks(SIZES_IN_A_QUERY) {
        match read(asked.to_vec()).await {
            Ok(found) => cache.store(asked, found),
            Err(error) => {
                cache.failed(asked, &error);
                return Err(error);
            }
        }
    }
    Ok(())
}

impl EvictionRates for ResourceGraph {
    fn band(&self, size: &str) -> Option<Known<EvictionBand>> {
        self.bands.get(size)
    }

    fn price_history(&self, size: &str) -> Option<Known<PriceHistory>> {
        self.histories.get(size)
    }

    fn refresh<'a>(&'a self, sizes: &'a [String]) -> BoxFuture<'a, Result<(), AzureError>> {
        async move {
            refresh(&self.bands, sizes, async |asked: Vec<&str>| self.read_bands(&asked).await).await?;
            refresh(&self.histories, sizes, async |asked: Vec<&str>| self.read_histories(&asked).await).await
        }
        .boxed()
    }
}

/// How long to wait, where this request was the last of the quota.
fn used_up(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let left: u32 = text("x-ms-user-quota-remaining")?.parse().ok()?;
    if left > 0 {
        return None;
    }
    // `hh:mm:ss`
    let seconds = text("x-ms-user-quota-resets-after").and_then(|time| {
        time.split(':').try_fold(0_u64, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))
    });
    Some(seconds.map_or(Duration::from_secs(5), Duration::from_secs).min(LONGEST_TURN))
}

fn history(prices: &[SpotPrice]) -> Option<PriceHistory> {
    let prices: Vec<_> =
        prices.iter().filter_map(|one| Some((one.since, market::price(&one.price)?))).collect();
    // Newest first; where there are dates, they say so themselves.
    let dated = prices.iter().filter(|(since, _)| since.is_some()).max_by_key(|(since, _)| *since);
    let (since, newest) = *dated.or(prices.first())?;
    let earlier = prices.iter().filter(|(at, _)| at.is_some() && *at < since).max_by_key(|(at, _)| *at);
    let amounts = || prices.iter().map(|(_, price)| *price);
    Some(PriceHistory {
        newest,
        since,
        before: earlier.map(|(_, price)| *price),
        lowest: amounts().min()?,
        highest: amounts().max()?,
        prices: prices.len(),
    })
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Box<RawValue>>,
    #[serde(rename = "$skipToken")]
    skip_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BandRow {
    sku_name: String,
    rate: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HistoryRow {
    sku_name: String,
    os_type: String,
    spot_prices: Vec<SpotPrice>,
}

#[derive(Deserialize)]
struct SpotPrice {
    #[serde(rename = "priceUSD")]
    price: Box<RawValue>,
    #[serde(default, rename = "effectiveDate")]
    since: Option<Timestamp>,
}

#[cfg(test)]
mod tests;
