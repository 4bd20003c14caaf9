//! How likely a request for spot VMs of a size is to succeed now: Azure's placement scores.
//!
//! They need a role of their own ("Compute Recommendations Role"), and do without where it is not granted.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Method;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use crate::Clock;
use crate::error::{AzureError, Class};
use crate::http::Transport;
use crate::market::{self, Cache, Known};
use crate::wire::{json_request, understand};

/// The first GA version.
/// <https://learn.microsoft.com/azure/virtual-machine-scale-sets/spot-placement-score>
const API_VERSION: &str = "2025-06-05";
/// Azure asks to keep scores for 15 to 30 minutes.
const FRESH_FOR: SignedDuration = SignedDuration::from_mins(30);
/// Reported by users, not documented: 4 calls an hour for the whole subscription, and none for an hour after a 429.
const BETWEEN_CALLS: SignedDuration = SignedDuration::from_mins(15);
const AFTER_TOO_MANY: Duration = Duration::from_hours(1);
/// Azure's limit on one call. Its other one, 8 regions, is far: a cluster is in one.
const SIZES_IN_A_CALL: usize = 5;
/// Without the role: until somebody may have granted it.
const WITHOUT_ROLE: SignedDuration = SignedDuration::from_hours(24);

/// How likely it is that capacity is there: not that it stays. Ordered: more is better.
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
pub enum PlacementScore {
    /// The subscription may not have this size here.
    #[strum(serialize = "RestrictedSkuNotAvailable")]
    Restricted,
    /// Unlikely.
    Low,
    /// Perhaps.
    Medium,
    /// Likely.
    High,
}

/// The score of a size in one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The score.
    pub score: PlacementScore,
    /// Whether the subscription's quota would do.
    pub quota_available: bool,
}

/// Scores by zone (`1`, `2`, `3`); `""` for a region without zones.
pub type Placements = BTreeMap<String, Placement>;

/// What Azure thinks of requests for spot VMs. Asking never waits; whoever wants it keeps it fresh.
pub trait PlacementScores: Send + Sync {
    /// The scores of a size, by zone. Zones of which Azure knows nothing are missing.
    fn placements(&self, size: &str) -> Option<Known<Placements>>;

    /// Reads what is unknown or old of `sizes`, for requests of `count` VMs: five sizes at most, every 15 minutes
    /// at most. What was known is kept through errors. Without the role it does nothing, for a day.
    fn refresh<'a>(&'a self, sizes: &'a [String], count: u32) -> BoxFuture<'a, Result<(), AzureError>>;
}

/// Placement scores by ARM, in one region.
pub struct SpotPlacementScores {
    transport: Arc<dyn Transport>,
    url: Url,
    region: String,
    cache: Cache<Placements>,
}

impl SpotPlacementScores {
    /// `transport` has to sign for ARM at `endpoint`.
    pub fn new(
        transport: Arc<dyn Transport>,
        endpoint: &Url,
        subscription: &str,
        region: &str,
        now: Clock,
    ) -> Result<Self, AzureError> {
        let region = market::region(region)?;
        let mut url = endpoint.clone();
        url.path_segments_mut()
            .map_err(|()| {
                AzureError::new(Class::Invalid, "InvalidRequest", "the Azure endpoint is no http(s) URL")
            })?
            .pop_if_empty()
            .extend(["subscriptions", subscription, "providers", "Microsoft.Compute", "locations", &region])
            .extend(["placementScores", "spot", "generate"]);
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        Ok(Self { transport, url, region, cache: Cache::new(now, FRESH_FOR) })
    }

    async fn ask(&self, sizes: &[&str], count: u32) -> Result<BTreeMap<String, Placements>, AzureError> {
        let body = json!({
            "desiredLocations": [self.region],
            "desiredSizes": sizes.iter().map(|size| json!({"sku": size})).collect::<Vec<_>>(),
            "desiredCount": count.max(1),
            "availabilityZones": true,
        });
        let answer = self.transport.execute(json_request(Method::POST, &self.url, &body)?).await?;
        if !answer.status().is_success() {
            return Err(AzureError::from_response(&answer));
        }
        let scores: Answer = understand(answer.body())?;
        let mut by_size: BTreeMap<String, Placements> = BTreeMap::new();
        for row in scores.placement_scores {
            // `DataNotFoundOrStale`, and what may come: Azure does not know.
            if let Ok(score) = PlacementScore::from_str(&row.score)
                && row.region.eq_ignore_ascii_case(&self.region)
            {
                let zone = row.availability_zone.unwrap_or_default();
                let placement = Placement { score, quota_available: row.is_quota_available };
                by_size.entry(row.sku.to_ascii_lowercase()).or_default().insert(zone, placement);
            }
        }
        Ok(by_size)
    }
}

impl PlacementScores for SpotPlacementScores {
    fn placements(&self, size: &str) -> Option<Known<Placements>> {
        self.cache.get(size)
    }

    fn refresh<'a>(&'a self, sizes: &'a [String], count: u32) -> BoxFuture<'a, Result<(), AzureError>> {
        async move {
            let due = self.cache.due(sizes)?;
            let Some(asked) = due.chunks(SIZES_IN_A_CALL).next() else { return Ok(()) };
            self.cache.pause(BETWEEN_CALLS);
            match self.ask(asked, count).await {
                Ok(found) => {
                    self.cache.store(asked, found);
                    Ok(())
                }
                Err(error) if error.status == 403 => {
                        self.cache.pause(WITHOUT_ROLE);
                        tracing::info!(
                            %error,
                            "no placement scores for a day: the identity lacks the Compute Recommendations Role on \
                             the subscription; agent pools are ranked without them"
                        );
                        Ok(())
                    }
                    Err(mut error) => {
                        if error.class == Class::Throttled {
                            error.retry_after.get_or_insert(AFTER_TOO_MANY);
                        }
                        self.cache.failed(asked, &error);
                        Err(error)
                    }
                }
        }
        .boxed()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    placement_scores: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    sku: String,
    region: String,
    #[serde(default)]
    availability_zone: Option<String>,
    score: String,
    #[serde(default)]
    is_quota_available: bool,
}

#[cfg(test)]
mod tests;
