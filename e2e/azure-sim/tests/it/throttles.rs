//! Token buckets over HTTP.

use http::Method;
use serde_json::json;
use spotpool_azure_sim::api::SettingsPatch;

use crate::Bench;

/// A controller is told how long to wait, is on record with what it tried, and a test can see that a bucket was
/// never burnt.
#[tokio::test]
async fn a_bucket_that_is_empty_refuses_and_says_until_when() {
    let bench = Bench::start().await;
    bench.client.change_settings(&SettingsPatch::switches(json!({"throttling": true}))).await.unwrap();
    for _ in 0..20 {
        assert_ne!(bench.put("spota", json!({"count": 2})).await.status, 429);
    }
    let refused = bench.put("spota", json!({"count": 3})).await;
    assert_eq!((refused.status, refused.code()), (429, "Throttled"));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let said = refused.body["message"].as_str().unwrap();
    assert!(
        said.starts_with("The PutAgentPoolHandler.PUT request limit has been exceeded for SubID='0000"),
        "{said}"
    );
    assert!(said.contains(&format!("please retry again in {wait} seconds")), "{said}");
    let read = bench.get(&bench.pool_url("spota")).await;
    assert_eq!(read.status, 200, "reads have a bucket of their own");
    assert_eq!(read.header("x-ms-ratelimit-remaining-subscription-global-reads"), "3749");
    let reads: u32 = read.header("x-ms-ratelimit-remaining-subscription-reads").parse().unwrap();
    assert!(reads >= 248, "{reads}");

    let state = bench.client.state().await.unwrap();
    let bucket = state.bucket("put/spota").unwrap();
    assert_eq!((bucket.size, bucket.level, bucket.taken, bucket.exceeded), (20, 0, 20, 1));
    assert_eq!(state.bucket("shared").unwrap().exceeded, 0);
    let last = state.writes_to("spota").last().unwrap();
    assert_eq!((last.status, last.count_after), (429, Some(2)));
    assert_eq!(last.body["properties"]["count"], 3);
}

#[tokio::test]
async fn what_counts_against_which_bucket() {
    let bench = Bench::start().await;
    let pool = bench.pool_url("spota");
    let list = pool.replace("/spota?", "?");
    let taken =
        async |name: &str| bench.client.state().await.unwrap().bucket(name).map_or(0, |bucket| bucket.taken);
    for (method, url) in [
        (Method::GET, pool.clone()),
        (Method::GET, list),
        (Method::GET, bench.pool_url("spota/machines")),
        (Method::POST, bench.pool_url("spota/deleteMachines")),
        (Method::POST, bench.pool_url("spota/abort")),
        (Method::DELETE, bench.pool_url("absent")),
    ] {
        let before = taken("shared").await;
        bench.send(method.clone(), &url, &[], Some(&json!({}))).await;
        assert_eq!(taken("shared").await, before + 1, "{method} {url}");
    }
    let before = (taken("shared").await, taken("operations").await);
    let put = bench.put("spota", json!({"count": 2})).await;
    bench.get(put.header("azure-asyncoperation")).await;
    assert_eq!((taken("shared").await, taken("operations").await), (before.0, before.1 + 1));
    assert_eq!(taken("put/spota").await, 1);
}
