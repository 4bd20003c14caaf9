//! Prices, eviction rates and placement scores over HTTP: what a client would buy by must read as Azure's does.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::body::Body;
use http::Method;
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget, Identity, Priority, Settings};
use spotpool_azure_sim::market::{Pages, ScoreChange};
use spotpool_azure_sim::model::Cloud;
use spotpool_azure_sim::scenario::Step;
use spotpool_azure_sim::server;
use spotpool_azure_sim::sim::Sim;
use tower::ServiceExt;

use crate::{Answer, Bench, SIZE};

fn prices_url(bench: &Bench, filter: &str) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("api-version", "2023-01-01-preview")
        .append_pair("$filter", filter)
        .finish();
    format!("{}/api/retail/prices?{query}", bench.server.url())
}

/// Every page's items, from page to page by its link.
async fn all_prices(bench: &Bench, filter: &str) -> (usize, Vec<Value>) {
    let mut next = Some(prices_url(bench, filter));
    let (mut pages, mut items) = (0, Vec::new());
    while let Some(url) = next {
        let page = bench.get(&url).await;
        assert_eq!(page.status, 200, "{page:?}");
        let found = page.body["Items"].as_array().unwrap();
        assert_eq!(page.body["Count"], found.len());
        items.extend(found.iter().cloned());
        pages += 1;
        next = page.body["NextPageLink"].as_str().map(ToOwned::to_owned);
    }
    (pages, items)
}

const OF_SIZE: &str = "serviceName eq 'Virtual Machines' and armRegionName eq 'eastus' and armSkuName eq 'Standard_D8s_v5' and priceType eq 'Consumption'";

#[tokio::test]
async fn prices_come_in_pages_among_rows_that_nobody_is_after() {
    let bench = Bench::start().await;
    let (pages, whole) = all_prices(&bench, OF_SIZE).await;
    assert_eq!(pages, 1);
    bench.client.set_pages(&Pages { prices: 3, graph: 1000 }).await.unwrap();
    let (pages, items) = all_prices(&bench, OF_SIZE).await;
    assert_eq!((pages, &items), (whole.len().div_ceil(3), &whole));
    let count = |what: fn(&str, &str) -> bool| {
        let text = |item: &Value, key: &str| item[key].as_str().unwrap().to_owned();
        items.iter().filter(|item| what(&text(item, "productName"), &text(item, "skuName"))).count()
    };
    assert!(count(|product, _| product.ends_with(" Windows")) > 0);
    assert!(count(|_, sku| sku.ends_with(" Low Priority")) > 0);
    assert_eq!(count(|product, sku| sku.ends_with(" Spot") && !product.ends_with(" Windows")), 1);
    let spot = &items[items.len() - 1];
    assert_eq!(spot["skuName"], "D8s v5 Spot");
    assert_eq!((&spot["retailPrice"], &spot["unitOfMeasure"]), (&json!(0.0845), &json!("1 Hour")));
    assert_eq!((&spot["type"], &spot["currencyCode"]), (&json!("Consumption"), &json!("USD")));

    let (_, only_spot) = all_prices(&bench, &format!("{OF_SIZE} and contains(meterName,'Spot')")).await;
    assert!(only_spot.iter().all(|item| item["meterName"].as_str().unwrap().ends_with(" Spot")));
    for nothing in ["armSkuName eq 'standard_d8s_v5'", "armRegionName eq 'westus'"] {
        assert!(all_prices(&bench, nothing).await.1.is_empty(), "{nothing}");
    }
    let refused = bench.get(&prices_url(&bench, "not(contains(skuName,'Spot'))")).await;
    assert_eq!(refused.status, 400);
}

#[tokio::test]
async fn prices_move_vanish_and_fail() {
    let bench = Bench::start().await;
    let spot =
        format!("{OF_SIZE} and productName eq 'Virtual Machines Dsv5 Series' and contains(meterName,'Spot')");
    let price = async || {
        let items = all_prices(&bench, &spot).await.1;
        items.first().map(|item| item["retailPrice"].clone())
    };
    assert_eq!(price().await, Some(json!(0.0845)));
    bench.client.set_price(SIZE, Priority::Spot, Some("0.2001")).await.unwrap();
    assert_eq!(price().await, Some(json!(0.2001)));
    bench.client.set_price(SIZE, Priority::Spot, None).await.unwrap();
    assert_eq!(price().await, None);
    bench.client.set_price("Standard_X1", Priority::Regular, Some("9.5")).await.unwrap();
    assert!(!all_prices(&bench, "armSkuName eq 'Standard_X1'").await.1.is_empty());
    let wrong = bench.client.set_price(SIZE, Priority::Spot, Some("-1")).await.unwrap_err();
    assert!(wrong.to_string().contains("`-1` is no price"), "{wrong}");

    let fault = Fault { target: FaultTarget::Prices {}, times: Some(1), action: FaultAction::throttled(3) };
    bench.client.add_fault(&fault).await.unwrap();
    let url = prices_url(&bench, OF_SIZE);
    assert_eq!((bench.get(&url).await.status, bench.get(&url).await.status), (429, 200));
}

#[tokio::test]
async fn a_scenario_moves_the_market() {
    let bench = Bench::start().await;
    for step in [
        "spotPrice: {vmSize: standard_d8s_v5, price: 0.31}",
        "evictionRate: {vmSize: Standard_D8s_v5, band: 15-20}",
        "placementScore: {vmSize: Standard_D8s_v5, zone: '2', score: Low}",
    ] {
        bench.client.act(&Step::now(step).unwrap()).await.unwrap();
    }
    let spot =
        format!("{OF_SIZE} and contains(skuName,'Spot') and productName eq 'Virtual Machines Dsv5 Series'");
    assert_eq!(all_prices(&bench, &spot).await.1[0]["retailPrice"], 0.31);
    assert_eq!(query(&bench, RATES, json!({})).await.body["data"][0]["rate"], "15-20");
    let bad = Step::now("evictionRate: {vmSize: Standard_D8s_v5, band: often}").unwrap();
    assert!(bench.client.act(&bad).await.unwrap_err().to_string().contains("`often` is none of"));
}

const RATES: &str = "SpotResources | where type =~ 'microsoft.compute/skuspotevictionrate/location' | where sku.name in~ ('Standard_D8s_v5') and location in~ ('eastus') | project skuName=tostring(sku.name), location, rate=tostring(properties.evictionRate)";

async fn query(bench: &Bench, query: &str, options: Value) -> Answer {
    let url =
        format!("{}/providers/Microsoft.ResourceGraph/resources?api-version=2021-03-01", bench.server.url());
    bench.send(Method::POST, &url, &[], Some(&json!({"query": query, "options": options}))).await
}

#[tokio::test]
async fn eviction_rates_and_price_history_are_found_by_query() {
    let bench = Bench::start().await;
    let object = json!({"resultFormat": "objectArray"});
    let rates = query(&bench, RATES, object.clone()).await;
    assert_eq!(rates.status, 200, "{rates:?}");
    assert_eq!(
        rates.body["data"],
        json!([{"skuName": "standard_d8s_v5", "location": "eastus", "rate": "5-10"}])
    );
    assert_eq!((&rates.body["totalRecords"], &rates.body["resultTruncated"]), (&json!(1), &json!("false")));
    bench.client.set_eviction_rate(SIZE, Some("20+")).await.unwrap();
    assert_eq!(query(&bench, RATES, object.clone()).await.body["data"][0]["rate"], "20+");
    assert!(bench.client.set_eviction_rate(SIZE, Some("21")).await.is_err());

    bench.client.set_price(SIZE, Priority::Spot, Some("0.3")).await.unwrap();
    let history = "SpotResources | where type =~ 'microsoft.compute/skuspotpricehistory/ostype/location' and sku.name in~ ('standard_d8s_v5') and properties.osType =~ 'linux' | project properties, latest=todouble(properties.spotPrices[0].priceUSD)";
    let found = query(&bench, history, object.clone()).await.body["data"][0].clone();
    assert_eq!(found["latest"], 0.3);
    assert_eq!(found["properties"]["spotPrices"].as_array().unwrap().len(), 2);

    let unknown = query(&bench, "Resources | summarize count()", object).await;
    assert_eq!((unknown.status, unknown.code()), (400, "BadRequest"));
    assert_eq!(unknown.body["error"]["details"][0]["code"], "InvalidQuery");
}

#[tokio::test]
async fn rows_come_in_pages_by_skip_token() {
    let bench = Bench::start().await;
    bench.client.set_pages(&Pages { prices: 1000, graph: 4 }).await.unwrap();
    let all = "SpotResources | where type =~ 'microsoft.compute/skuspotevictionrate/location' | project id | order by id asc";
    let (mut options, mut ids, mut pages) = (json!({}), Vec::new(), 0);
    loop {
        let page = query(&bench, all, options).await.body;
        ids.extend(page["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        pages += 1;
        match page["$skipToken"].as_str() {
            Some(token) => options = json!({"$skipToken": token}),
            None => break,
        }
    }
    assert_eq!((ids.len(), pages), (10, 3));
    assert!(
        ids.is_sorted() && ids[0].starts_with("/providers/Microsoft.Compute/skuSpotEvictionRate/Standard_")
    );
    // A query with a limit has no second page, as with the real one.
    let limited = query(&bench, &format!("{all} | limit 2"), json!({})).await.body;
    assert_eq!((&limited["resultTruncated"], &limited["$skipToken"]), (&json!("true"), &Value::Null));
}

#[tokio::test]
async fn resource_graph_answers_fifteen_queries_in_five_seconds() {
    let start: Timestamp = "2026-08-01T00:00:00Z".parse().unwrap();
    let passed = Arc::new(AtomicI64::new(0));
    let clock = passed.clone();
    let sim = Sim::with_clock(
        Cloud::new(Identity::default(), Settings::default(), false, 1),
        Arc::new(move || start + SignedDuration::from_secs(clock.load(Ordering::SeqCst))),
    );
    let router = server::router(sim);
    let ask = async || {
        let uri = "http://arm/providers/Microsoft.ResourceGraph/resources?api-version=2024-04-01";
        let request = http::Request::post(uri).body(Body::from(json!({"query": RATES}).to_string())).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let quota = (header("x-ms-user-quota-remaining"), header("x-ms-user-quota-resets-after"));
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        (status, quota.0, quota.1, body["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let answered =
        |left: &str, resets: &str| (200, left.to_owned(), format!("00:00:0{resets}"), String::new());
    assert_eq!(ask().await, answered("14", "5"));
    passed.store(2, Ordering::SeqCst);
    for left in (0..14).rev() {
        assert_eq!(ask().await, answered(&left.to_string(), "3"));
    }
    assert_eq!(ask().await, (429, "0".into(), "00:00:03".into(), "RateLimiting".into()));
    passed.store(5, Ordering::SeqCst);
    assert_eq!(ask().await, answered("0", "2"), "the first has left the window");
    assert_eq!(ask().await.0, 429);
    passed.store(7, Ordering::SeqCst);
    assert_eq!(ask().await.0, 200);
}

#[tokio::test]
async fn placement_scores_are_those_of_the_official_example() {
    let bench = Bench::start().await;
    let score = |region: &str, zone: Option<&str>, score: &str| ScoreChange {
        vm_size: "Standard_D2_v2".into(),
        region: Some(region.into()),
        zone: zone.map(Into::into),
        score: score.into(),
        quota_available: true,
    };
    for change in [
        score("eastus", None, "High"),
        score("eastus2", None, "High"),
        score("eastus2", Some("1"), "DataNotFoundOrStale"),
    ] {
        bench.client.set_placement_score(&change).await.unwrap();
    }
    let url = format!(
        "{}/subscriptions/00000000-0000-0000-0000-000000000000/providers/Microsoft.Compute/locations/eastus/placementScores/spot/generate?api-version=2025-06-05",
        bench.server.url()
    );
    let example: Value =
        serde_json::from_str(include_str!("../fixtures/GenerateSpotPlacementScores.json")).unwrap();
    let asked = &example["parameters"]["spotPlacementScoresInput"];
    let ask = async |body: &Value| bench.send(Method::POST, &url, &[], Some(body)).await;
    let answer = ask(asked).await;
    assert_eq!((answer.status, &answer.body), (200, &example["responses"]["200"]["body"]), "{answer:?}");

    let with = |key: &str, value: Value| {
        let mut body = asked.clone();
        body[key] = value;
        body
    };
    let regional = ask(&with("availabilityZones", json!(false))).await.body;
    assert_eq!(regional["placementScores"].as_array().unwrap().len(), 2);
    assert_eq!(regional["placementScores"][0]["availabilityZone"], Value::Null);
    for bad in [
        with("desiredLocations", json!(["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"])),
        with(
            "desiredSizes",
            json!([{"sku": "1"}, {"sku": "2"}, {"sku": "3"}, {"sku": "4"}, {"sku": "5"}, {"sku": "6"}]),
        ),
        with("desiredSizes", json!([])),
        with("desiredCount", json!(0)),
        json!({}),
    ] {
        assert_eq!(ask(&bad).await.status, 400, "{bad}");
    }
    let old = bench.send(Method::POST, &url.replace("2025-06-05", "2024-01-01"), &[], Some(asked)).await;
    assert_eq!(old.code(), "NoRegisteredProviderFound");
}
