use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::stub::{Answers, Hands, answer};

const MINUTE: Duration = Duration::from_mins(1);

fn scores(azure: &Arc<Answers>, hands: &Hands) -> SpotPlacementScores {
    let endpoint = "https://management.azure.com/".parse().unwrap();
    SpotPlacementScores::new(azure.clone(), &endpoint, "sub", "eastus", hands.clock()).unwrap()
}

/// Azure's own example (azure-rest-api-specs, GenerateSpotPlacementScores.json, 2025-06-05), its rows changed.
fn example() -> Value {
    json!({
        "desiredLocations": ["eastus"], "desiredSizes": [{"sku": "Standard_D2_v2"}], "desiredCount": 1,
        "availabilityZones": true,
        "placementScores": [
            {"sku": "Standard_D2_v2", "region": "eastus", "availabilityZone": "1", "score": "High", "isQuotaAvailable": true},
            {"sku": "Standard_D2_v2", "region": "eastus", "availabilityZone": "2", "score": "Low", "isQuotaAvailable": false},
            {"sku": "Standard_D2_v2", "region": "eastus", "availabilityZone": "3", "score": "DataNotFoundOrStale", "isQuotaAvailable": true},
            {"sku": "Standard_D2_v2", "region": "eastus2", "availabilityZone": "3", "score": "High", "isQuotaAvailable": true},
            {"sku": "Standard_D4_v2", "region": "eastus", "score": "RestrictedSkuNotAvailable"}
        ]
    })
}

#[test]
fn scores_are_ordered() {
    use PlacementScore::{High, Low, Medium, Restricted};
    assert!([Restricted, Low, Medium, High].is_sorted());
}

#[tokio::test]
async fn scores_are_read_by_zone() {
    let (azure, hands) = (Answers::by(|_| Ok(answer(200, example().to_string()))), Hands::set());
    let scores = scores(&azure, &hands);
    let sizes = ["Standard_D2_v2", "Standard_D4_v2", "Standard_D8_v2"].map(str::to_owned);
    scores.refresh(&sizes, 3).await.unwrap();
    let found = scores.placements("standard_d2_v2").unwrap().value;
    assert_eq!(
        found,
        Placements::from([
            ("1".to_owned(), Placement { score: PlacementScore::High, quota_available: true }),
            ("2".to_owned(), Placement { score: PlacementScore::Low, quota_available: false }),
        ])
    );
    assert_eq!(scores.placements("Standard_D4_v2").unwrap().value[""].score, PlacementScore::Restricted);
    assert_eq!(scores.placements("Standard_D8_v2"), None);

    let requests = azure.asked();
    assert_eq!(
        requests[0].uri(),
        "https://management.azure.com/subscriptions/sub/providers/Microsoft.Compute/locations/eastus/placementScores/spot/generate?api-version=2025-06-05"
    );
    assert_eq!(
        serde_json::from_slice::<Value>(requests[0].body()).unwrap(),
        json!({
            "desiredLocations": ["eastus"],
            "desiredSizes": [{"sku": "Standard_D2_v2"}, {"sku": "Standard_D4_v2"}, {"sku": "Standard_D8_v2"}],
            "desiredCount": 3, "availabilityZones": true,
        })
    );
    hands.forward(29 * MINUTE);
    scores.refresh(&sizes[..2], 3).await.unwrap();
    assert_eq!(azure.asked().len(), 1, "Azure asks to keep scores for a while");
    hands.forward(MINUTE);
    scores.refresh(&sizes, 3).await.unwrap();
    assert_eq!(azure.asked().len(), 2);
}

#[tokio::test]
async fn five_sizes_go_into_a_call_and_four_calls_into_an_hour() {
    let (azure, hands) = (Answers::by(|_| Ok(answer(200, r#"{"placementScores":[]}"#))), Hands::set());
    let sizes: Vec<_> = (10..22).map(|number| format!("Standard_D{number}_v2")).collect();
    let scores = scores(&azure, &hands);
    for _ in 0..60 {
        scores.refresh(&sizes, 0).await.unwrap();
        hands.forward(MINUTE);
    }
    let sent: Vec<Value> =
        azure.asked().iter().map(|one| serde_json::from_slice(one.body()).unwrap()).collect();
    let asked = |call: &Value| -> Vec<String> {
        let sizes = call["desiredSizes"].as_array().unwrap().iter();
        sizes.map(|size| size["sku"].as_str().unwrap().to_owned()).collect()
    };
    let calls: Vec<_> = sent.iter().map(asked).collect();
    // Those that wait longest come first, so that each has its turn.
    assert_eq!(calls, [&sizes[..5], &sizes[5..10], &[&sizes[10..], &sizes[..3]].concat(), &sizes[3..8]]);
    assert_eq!(sent[0]["desiredCount"], 1);
}

#[tokio::test]
async fn an_hour_passes_after_too_many_calls() {
    let (azure, hands) = (Answers::by(|_| Ok(answer(429, ""))), Hands::set());
    let scores = scores(&azure, &hands);
    let sizes = vec!["Standard_D2_v2".to_owned()];
    assert_eq!(scores.refresh(&sizes, 1).await.unwrap_err().class, Class::Throttled);
    for _ in 0..59 {
        hands.forward(MINUTE);
        scores.refresh(&sizes, 1).await.unwrap();
    }
    assert_eq!(azure.asked().len(), 1);
}

/// The role is optional: an operator without it works, and does not ask every minute.
#[tokio::test]
async fn without_the_role_it_is_off_for_a_day() {
    let refused = r#"{"error":{"code":"AuthorizationFailed","message":"The client does not have authorization to perform action 'Microsoft.Compute/locations/placementScores/generate/action'"}}"#;
    let (azure, hands) = (Answers::by(move |_| Ok(answer(403, refused))), Hands::set());
    let scores = scores(&azure, &hands);
    let sizes = vec!["Standard_D2_v2".to_owned()];
    for _ in 0..24 * 60 {
        scores.refresh(&sizes, 1).await.unwrap();
        hands.forward(MINUTE);
    }
    assert_eq!(azure.asked().len(), 1);
    scores.refresh(&sizes, 1).await.unwrap();
    assert_eq!(azure.asked().len(), 2, "a role that was granted meanwhile is never noticed");
}

#[tokio::test]
async fn what_was_known_is_kept_through_errors() {
    let hands = Hands::set();
    let (began, clock) = (hands.clock()(), hands.clock());
    let azure = Answers::by(move |_| {
        Ok(if clock() == began { answer(200, example().to_string()) } else { answer(500, "") })
    });
    let scores = scores(&azure, &hands);
    let sizes = vec!["Standard_D2_v2".to_owned()];
    scores.refresh(&sizes, 1).await.unwrap();
    hands.forward(60 * MINUTE);
    assert_eq!(scores.refresh(&sizes, 1).await.unwrap_err().class, Class::Transient);
    assert_eq!(scores.placements("Standard_D2_v2").unwrap().age(hands.clock()()), 60 * MINUTE);
    assert!(scores.refresh(&["x\"y".to_owned()], 1).await.is_err());
}
