//! Spot placement scores: how likely Azure is to find that many machines of a size.

use axum::body::Bytes;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::refusal::Refusal;
use crate::reply;
use crate::sim::Sim;

/// api-versions that are served.
const VERSIONS: &[&str] = &["2025-02-01-preview", "2025-06-05"];

/// Zones of every region.
const ZONES: [&str; 3] = ["1", "2", "3"];

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    desired_locations: Vec<String>,
    desired_sizes: Vec<Size>,
    desired_count: u32,
    #[serde(default)]
    availability_zones: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Size {
    sku: String,
}

/// Answers `POST …/locations/{region}/placementScores/spot/generate`. `asked` is the URL as it came.
pub fn answer(
    sim: &Sim,
    region: &str,
    version: &str,
    body: &Bytes,
    asked: &str,
) -> Result<Response, Refusal> {
    if !VERSIONS.contains(&version) {
        return Err(Refusal::wrapped(
            400,
            "NoRegisteredProviderFound",
            format!(
                "No registered resource provider found for location '{region}' and API version '{version}' for type 'locations/placementScores'. The supported api-versions are '{}'. The supported locations are '{region}'.",
                VERSIONS.join(", ")
            ),
        ));
    }
    let invalid = |message: String| Refusal::wrapped(400, "InvalidParameter", message);
    let question: Question = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    for (what, count, most) in [
        ("desiredLocations", question.desired_locations.len(), 8),
        ("desiredSizes", question.desired_sizes.len(), 5),
    ] {
        if !(1..=most).contains(&count) {
            return Err(invalid(format!("The property '{what}' must hold between 1 and {most} values.")));
        }
    }
    if question.desired_count == 0 {
        return Err(invalid("The property 'desiredCount' must be at least 1.".into()));
    }
    let scores: Vec<Value> = sim.look(|cloud, _| {
        let one = |size: &str, region: &str, zone: Option<&str>| {
            let (score, quota) = cloud.market.score(size, region, zone, &cloud.identity.location);
            let mut row = json!({"sku": size, "region": region, "score": score, "isQuotaAvailable": quota});
            if let Some(zone) = zone {
                row["availabilityZone"] = json!(zone);
            }
            row
        };
        let mut scores = Vec::new();
        for Size { sku } in &question.desired_sizes {
            for region in &question.desired_locations {
                if question.availability_zones {
                    scores.extend(ZONES.map(|zone| one(sku, region, Some(zone))));
                } else {
                    scores.push(one(sku, region, None));
                }
            }
        }
        scores
    });
    let mut answer = json!(question);
    answer["placementScores"] = json!(scores);
    let mut response = reply::json_body(200, &answer);
    reply::set(&mut response, "location", asked);
    Ok(response)
}
