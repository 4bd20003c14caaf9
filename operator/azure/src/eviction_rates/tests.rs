use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response};
use serde_json::Value;
use tokio::time::Instant;

use super::*;
use crate::stub::{Answers, Hands, answer};

const BANDS: &str = "microsoft.compute/skuspotevictionrate/location";

fn page(rows: &Value, skip_token: Option<&str>) -> Response<Bytes> {
    let count = rows.as_array().unwrap().len();
    let mut body = json!({"totalRecords": count, "count": count, "resultTruncated": "false", "facets": [], "data": rows});
    if let Some(token) = skip_token {
        body["$skipToken"] = token.into();
    }
    answer(200, body.to_string())
}

fn asked(request: &Request<Bytes>) -> Value {
    serde_json::from_slice(request.body()).unwrap()
}

fn is_about_bands(request: &Request<Bytes>) -> bool {
    asked(request)["query"].as_str().unwrap().contains(BANDS)
}

fn graph(azure: &Arc<Answers>, hands: &Hands) -> ResourceGraph {
    let endpoint = "https://management.azure.com/".parse().unwrap();
    ResourceGraph::new(azure.clone(), &endpoint, "sub", "eastus", hands.clock()).unwrap()
}

fn sizes(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("Standard_D{number}s_v3")).collect()
}

#[test]
fn bands_are_ordered_and_read_as_azure_writes_them() {
    let bands = ["0-5", "5-10", "10-15", "15-20", "20+"].map(|band| band.parse::<EvictionBand>().unwrap());
    assert!(bands.is_sorted() && bands[0] < bands[4]);
    assert_eq!(bands.map(|band| band.to_string()), ["0-5", "5-10", "10-15", "15-20", "20+"]);
    assert!("25-30".parse::<EvictionBand>().is_err());
}

#[tokio::test]
async fn bands_and_prices_are_read_in_one_query_each() {
    let azure = Answers::by(|request| {
        Ok(if is_about_bands(request) {
            page(
                &json!([
                    {"skuName": "Standard_D1s_v3", "location": "eastus", "rate": "5-10"},
                    {"skuName": "standard_d2s_v3", "location": "eastus", "rate": "20+"},
                    {"skuName": "standard_d3s_v3", "location": "eastus", "rate": "no idea"},
                    {"skuName": 7},
                ]),
                None,
            )
        } else {
            page(
                &json!([
                    {"skuName": "standard_d1s_v3", "location": "eastus", "osType": "linux", "spotPrices": [
                        {"priceUSD": 0.0192, "effectiveDate": "2026-02-20T00:00:00Z"},
                        {"priceUSD": 0.0211, "effectiveDate": "2026-01-20T00:00:00Z"},
                        {"priceUSD": "0.018", "effectiveDate": "2025-12-20T00:00:00Z"},
                    ]},
                    {"skuName": "standard_d1s_v3", "location": "eastus", "osType": "windows", "spotPrices": [{"priceUSD": 9.9}]},
                    {"skuName": "standard_d2s_v3", "location": "eastus", "osType": "Linux", "spotPrices": [{"priceUSD": 1.5}, {"priceUSD": 1.2}]},
                    {"skuName": "standard_d3s_v3", "location": "eastus", "osType": "linux", "spotPrices": []},
                ]),
                None,
            )
        })
    });
    let hands = Hands::set();
    let graph = graph(&azure, &hands);
    assert_eq!(graph.band("Standard_D1s_v3"), None);
    graph.refresh(&sizes(4)).await.unwrap();
    graph.refresh(&sizes(4)).await.unwrap();
    assert_eq!(graph.band("standard_D1s_v3").unwrap().value, EvictionBand::UpTo10);
    assert_eq!(graph.band("Standard_D2s_v3").unwrap().value, EvictionBand::Above20);
    assert_eq!(graph.band("Standard_D3s_v3"), None);
    let history = graph.price_history("Standard_D1s_v3").unwrap().value;
    assert_eq!(
        (history.newest.to_string(), history.lowest.to_string(), history.highest.to_string(), history.prices),
        ("0.0192".to_owned(), "0.018".to_owned(), "0.0211".to_owned(), 3)
    );
    assert_eq!(history.since.unwrap().to_string(), "2026-02-20T00:00:00Z");
    assert_eq!(history.before.unwrap().to_string(), "0.0211");
    let undated = graph.price_history("Standard_D2s_v3").unwrap().value;
    assert_eq!((undated.newest.to_string().as_str(), undated.since, undated.before), ("1.5", None, None));
    assert_eq!(graph.price_history("Standard_D3s_v3"), None);

    let requests = azure.asked();
    assert_eq!(requests.len(), 2, "asked again though fresh");
    assert_eq!(
        (requests[0].method(), requests[0].uri().path()),
        (&Method::POST, "/providers/Microsoft.ResourceGraph/resources")
    );
    assert_eq!(
        asked(&requests[0]),
        json!({
            "subscriptions": ["sub"],
            "query": "SpotResources | where type =~ 'microsoft.compute/skuspotevictionrate/location' | where sku.name \
                      in~ ('standard_d0s_v3', 'standard_d1s_v3', 'standard_d2s_v3', 'standard_d3s_v3') and location in~ \
                      ('eastus') | project skuName=tostring(sku.name), location, rate=tostring(properties.evictionRate)",
            "options": {"resultFormat": "objectArray"},
        })
    );
}

#[tokio::test(start_paused = true)]
async fn pages_and_the_quota_are_followed() {
    let azure = Answers::by(|request| {
        if !is_about_bands(request) {
            return Ok(page(&json!([]), None));
        }
        let mut answer = match asked(request)["options"]["$skipToken"].as_str() {
            None => page(&json!([{"skuName": "Standard_D0s_v3", "rate": "0-5"}]), Some("token-1")),
            Some("token-1") => page(&json!([{"skuName": "Standard_D1s_v3", "rate": "0-5"}]), Some("token-2")),
            Some(_) => page(&json!([{"skuName": "Standard_D2s_v3", "rate": "0-5"}]), None),
        };
        answer.headers_mut().insert("x-ms-user-quota-remaining", "0".parse().unwrap());
        answer.headers_mut().insert("x-ms-user-quota-resets-after", "00:00:04".parse().unwrap());
        Ok(answer)
    });
    let hands = Hands::set();
    let graph = graph(&azure, &hands);
    let begun = Instant::now();
    graph.refresh(&sizes(3)).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(8), "the quota was not waited for between pages");
    assert!(sizes(3).iter().all(|size| graph.band(size).is_some()));
    // The quota is the whole tenant user's: what is left of this refresh waits for it too.
    assert_eq!(azure.asked().len(), 3);
    hands.forward(Duration::from_secs(4));
    graph.refresh(&sizes(3)).await.unwrap();
    assert_eq!(azure.asked().len(), 4);
}

#[tokio::test]
async fn what_was_known_is_kept_when_azure_throttles() {
    let refusing = Arc::new(Mutex::new(false));
    let state = refusing.clone();
    let azure = Answers::by(move |request| {
        if *state.lock().unwrap() {
            let mut refused =
                answer(429, r#"{"error":{"code":"RateLimiting","message":"Please provide below info"}}"#);
            refused.headers_mut().insert("retry-after", "600".parse().unwrap());
            return Ok(refused);
        }
        Ok(if is_about_bands(request) {
            page(&json!([{"skuName": "Standard_D0s_v3", "rate": "0-5"}]), None)
        } else {
            page(&json!([]), None)
        })
    });
    let hands = Hands::set();
    let graph = graph(&azure, &hands);
    graph.refresh(&sizes(1)).await.unwrap();
    let read_at = graph.band("Standard_D0s_v3").unwrap().read_at;
    *refusing.lock().unwrap() = true;
    hands.forward(Duration::from_hours(1));
    let before = azure.asked().len();
    let error = graph.refresh(&sizes(1)).await.unwrap_err();
    assert_eq!((error.class, error.retry_after), (Class::Throttled, Some(Duration::from_mins(10))));
    for _ in 0..9 {
        hands.forward(Duration::from_mins(1));
        let _ = graph.refresh(&sizes(1)).await;
    }
    assert!(azure.asked().len() <= before + 2, "it was asked while it wanted a pause");
    assert_eq!(graph.band("Standard_D0s_v3").unwrap().read_at, read_at);
}

#[tokio::test]
async fn many_sizes_are_asked_in_parts_and_none_that_is_no_size() {
    let azure = Answers::by(|_| Ok(page(&json!([]), None)));
    let hands = Hands::set();
    graph(&azure, &hands).refresh(&sizes(120)).await.unwrap();
    assert_eq!(azure.asked().iter().filter(|request| is_about_bands(request)).count(), 3);

    let azure = Answers::by(|_| Ok(page(&json!([]), None)));
    let wrong = vec!["x') or 1==1 | project ('".to_owned()];
    assert_eq!(graph(&azure, &hands).refresh(&wrong).await.unwrap_err().class, Class::Invalid);
    assert!(azure.asked().is_empty());

    let endless = Answers::by(|_| Ok(page(&json!([]), Some("again"))));
    let error = graph(&endless, &hands).refresh(&sizes(1)).await.unwrap_err();
    assert_eq!((error.code.as_str(), endless.asked().len()), ("NotUnderstood", MOST_PAGES));
}
