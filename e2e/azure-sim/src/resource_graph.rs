//! Resource Graph: eviction rates and price history of spot, by query.

mod kql;

use axum::body::Bytes;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use self::kql::Query;
use crate::market::Market;
use crate::model::Cloud;
use crate::refusal::Refusal;
use crate::reply;
use crate::sim::Sim;

/// api-versions that are served.
const VERSIONS: &[&str] =
    &["2018-09-01-preview", "2019-04-01", "2020-04-01-preview", "2021-03-01", "2022-10-01", "2024-04-01"];

/// Requests of one user in [`WINDOW`].
const QUOTA: usize = 15;
const WINDOW: SignedDuration = SignedDuration::from_secs(5);

/// Rows that one request may ask for.
const MOST_ROWS: u64 = 1000;

/// Answers `POST /providers/Microsoft.ResourceGraph/resources`.
pub fn answer(sim: &Sim, version: &str, body: &Bytes) -> Result<Response, Refusal> {
    if !VERSIONS.contains(&version) {
        return Err(Refusal::wrapped(
            400,
            "InvalidApiVersionParameter",
            format!(
                "The api-version '{version}' is invalid. The supported versions are '{}'.",
                VERSIONS.join(",")
            ),
        ));
    }
    Ok(sim.look(|cloud, now| {
        let (remaining, resets_after) = take(cloud, now);
        let mut response = match remaining {
            Some(_) => run(cloud, body, now).unwrap_or_else(|problem| bad_request(&problem, now)),
            None => error(429, "RateLimiting", &json!([{
                "code": "RateLimiting",
                "message": "Client application has been throttled and should not attempt to repeat the request until an amount of time has elapsed. Please see https://aka.ms/resourcegraph-throttling for help.",
            }]), now),
        };
        reply::set(&mut response, "x-ms-user-quota-remaining", &remaining.unwrap_or(0).to_string());
        let seconds = resets_after.as_secs() + i64::from(resets_after.subsec_nanos() > 0);
        reply::set(&mut response, "x-ms-user-quota-resets-after", &format!("00:00:{seconds:02}"));
        response
    }))
}

/// Takes one request from the quota; what is left of it (nothing: refused), and when it is whole again.
fn take(cloud: &mut Cloud, now: Timestamp) -> (Option<usize>, SignedDuration) {
    let recent = &mut cloud.market.graph_recent;
    while recent.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
        recent.pop_front();
    }
    let remaining = QUOTA.checked_sub(recent.len() + 1);
    if remaining.is_some() {
        recent.push_back(now);
    }
    let oldest = recent.front().copied().unwrap_or(now);
    (remaining, WINDOW - now.duration_since(oldest))
}

fn error(status: u16, code: &str, details: &Value, now: Timestamp) -> Response {
    let message = format!(
        "Please provide below info when asking for support: timestamp = {}, correlationId = simulated.",
        now.strftime("%Y-%m-%dT%H:%M:%S%.7fZ")
    );
    reply::json_body(status, &json!({"error": {"code": code, "message": message, "details": details}}))
}

fn bad_request(problem: &str, now: Timestamp) -> Response {
    let details = json!([
        {"code": "InvalidQuery", "message": "Query is invalid. Please refer to the documentation for the Azure Resource Graph service and fix the error before retrying."},
        {"code": "ParserFailure", "message": problem},
    ]);
    error(400, "BadRequest", &details, now)
}

fn run(cloud: &Cloud, body: &Bytes, now: Timestamp) -> Result<Response, String> {
    let sent: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let text = sent["query"].as_str().ok_or("there is no query")?;
    let options = &sent["options"];
    if options["resultFormat"].as_str().is_some_and(|format| format != "objectArray") {
        return Err("the simulator answers objectArray only".into());
    }
    let query = Query::parse(text)?;
    let found = query.run(rows(&cloud.market, &cloud.identity.location, now));

    let most = options["$top"].as_u64().unwrap_or(MOST_ROWS).min(MOST_ROWS) as usize;
    let skip = match options["$skipToken"].as_str() {
        Some(token) => skipped(token).ok_or("the skip token is invalid")?,
        None => options["$skip"].as_u64().unwrap_or(0) as usize,
    };
    let page: Vec<&Value> = found.iter().skip(skip).take(most.min(cloud.market.pages.graph)).collect();
    let (end, total) = (skip + page.len(), found.len());
    // With a limit of its own, a query has no further pages: it is truncated, and that is that.
    let truncated = query.limited() && query.cut(rows(&cloud.market, &cloud.identity.location, now));
    let mut answer = json!({
        "totalRecords": total,
        "count": page.len(),
        "resultTruncated": if truncated || (query.limited() && end < total) { "true" } else { "false" },
        "facets": [],
        "data": page,
    });
    if end < total && !query.limited() {
        answer["$skipToken"] = json!(token(end));
    }
    Ok(reply::json_body(200, &answer))
}

fn token(skip: usize) -> String {
    BASE64_STANDARD.encode(format!("{{\"$id\":\"1\",\"RowsToSkip\":{skip}}}"))
}

fn skipped(token: &str) -> Option<usize> {
    let text = BASE64_STANDARD.decode(token).ok()?;
    serde_json::from_slice::<Value>(&text).ok()?["RowsToSkip"].as_u64().map(|skip| skip as usize)
}

/// The table `SpotResources`.
fn rows(market: &Market, region: &str, now: Timestamp) -> Vec<Value> {
    let mut rows = Vec::new();
    for (size, offer) in market.offers() {
        // Names of sizes come in small letters here, whoever spells them how elsewhere.
        let sku = json!({"name": size.to_lowercase()});
        if let Some(band) = &offer.band {
            rows.push(json!({
                "id": format!("/providers/Microsoft.Compute/skuSpotEvictionRate/{size}/location/{region}"),
                "name": region,
                "type": "microsoft.compute/skuspotevictionrate/location",
                "location": region,
                "sku": sku,
                "properties": {"evictionRate": band},
            }));
        }
        for (os, factor) in [("linux", 1.0), ("windows", 3.0)] {
            let prices: Vec<Value> = Market::history(offer, now)
                .into_iter()
                .map(|(since, price)| {
                    let price = price.parse::<f64>().unwrap_or_default() * factor;
                    json!({"effectiveDate": since.to_string(), "priceUSD": (price * 1e6).round() / 1e6})
                })
                .collect();
            if !prices.is_empty() {
                rows.push(json!({
                    "id": format!("/providers/Microsoft.Compute/skuSpotPriceHistory/{size}/osType/{os}/location/{region}"),
                    "name": region,
                    "type": "microsoft.compute/skuspotpricehistory/ostype/location",
                    "location": region,
                    "sku": sku,
                    "properties": {"osType": os, "spotPrices": prices},
                }));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(query: &str) -> Vec<Value> {
        let now = "2026-08-01T00:00:00Z".parse().unwrap();
        Query::parse(query).unwrap().run(rows(&Market::default(), "eastus", now))
    }

    #[test]
    fn the_documented_queries_are_answered() {
        let rates = ask(
            "SpotResources\n| where type =~ 'microsoft.compute/skuspotevictionrate/location'\n| where sku.name in~ ('standard_d8s_v5','Standard_D8as_v5')\n| where location in~ ('eastus','southcentralus')\n| project skuName = tostring(sku.name), location, spotEvictionRate = tostring(properties.evictionRate)\n| order by skuName asc, location asc",
        );
        assert_eq!(
            rates,
            [
                json!({"skuName": "standard_d8as_v5", "location": "eastus", "spotEvictionRate": "0-5"}),
                json!({"skuName": "standard_d8s_v5", "location": "eastus", "spotEvictionRate": "5-10"}),
            ]
        );
        let prices = ask(
            "SpotResources | where type =~ 'microsoft.compute/skuspotpricehistory/ostype/location' | where sku.name in~ ('standard_d8s_v5','standard_d8as_v5') and properties.osType =~ 'Linux' and location in~ ('EastUS') | project skuName = tostring(sku.name), osType = tostring(properties.osType), location, latestSpotPriceUSD = todouble(properties.spotPrices[0].priceUSD) | order by latestSpotPriceUSD asc",
        );
        assert_eq!(
            prices,
            [
                json!({"skuName": "standard_d8as_v5", "osType": "linux", "location": "eastus", "latestSpotPriceUSD": 0.0619}),
                json!({"skuName": "standard_d8s_v5", "osType": "linux", "location": "eastus", "latestSpotPriceUSD": 0.0845}),
            ]
        );
        assert!(ask("SpotResources | where sku.name in ('Standard_D8s_v5')").is_empty(), "in minds the case");
    }

    #[test]
    fn other_queries_are_refused_with_the_reason() {
        for (query, reason) in [
            ("Resources | project id", "there is no table Resources"),
            ("SpotResources | summarize count()", "summarize is not understood"),
            ("SpotResources | where type", "a comparison expected"),
            ("SpotResources | where type =~ 'x", "no end of the text"),
            ("SpotResources where", "| or the end expected"),
            ("SpotResources | where location in~ ()", "a text expected"),
            ("SpotResources | take all", "a number expected"),
            ("", "a name expected"),
        ] {
            let said = Query::parse(query).unwrap_err();
            assert!(said.contains(reason), "{query}: {said}");
        }
    }

    #[test]
    fn tokens_lead_to_the_next_page_and_limits_have_none() {
        assert_eq!(skipped(&token(7)), Some(7));
        assert_eq!(skipped("nonsense"), None);
        let limited = Query::parse("SpotResources | take 2").unwrap();
        let now = "2026-08-01T00:00:00Z".parse().unwrap();
        let all = rows(&Market::default(), "eastus", now);
        assert!(limited.limited() && limited.cut(all.clone()));
        assert_eq!(limited.run(all).len(), 2);
    }
}
