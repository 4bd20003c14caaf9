use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};

use super::*;
use crate::error::Class;
use crate::stub::{Answers, Hands, answer};

const SIZE: &str = "Standard_D2s_v3";
const HOUR: Duration = Duration::from_hours(1);

/// A row as Azure writes it, for Linux on demand.
fn row(price: &str, change: impl Fn(&mut Value)) -> Value {
    let mut row = json!({
        "currencyCode": "USD", "tierMinimumUnits": 0.0, "unitPrice": 0.5, "armRegionName": "eastus",
        "location": "US East", "effectiveStartDate": "2026-01-01T00:00:00Z", "meterId": "m", "meterName": "D2s v3",
        "productId": "p", "skuId": "p/1", "productName": "Virtual Machines DSv3 Series", "skuName": "D2s v3",
        "serviceName": "Virtual Machines", "serviceId": "DZH313Z7MMC8", "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour", "type": "Consumption", "isPrimaryMeterRegion": true, "armSkuName": SIZE,
    });
    row["retailPrice"] = serde_json::from_str(price).unwrap();
    change(&mut row);
    row
}

fn spot(price: &str) -> Value {
    row(price, |row| {
        row["skuName"] = "D2s v3 Spot".into();
        row["meterName"] = "D2s v3 Spot".into();
    })
}

fn page(rows: &[Value], next: Option<&str>) -> Response<Bytes> {
    let body = json!({"BillingCurrency": "USD", "CustomerEntityId": "Default", "CustomerEntityType": "Retail",
        "Count": rows.len(), "Items": rows, "NextPageLink": next});
    answer(200, body.to_string())
}

fn prices(azure: &Arc<Answers>, hands: &Hands) -> RetailPrices {
    let endpoint = "https://prices.azure.com/api/retail/prices".parse().unwrap();
    RetailPrices::new(azure.clone(), endpoint, "East US", "usd", hands.clock()).unwrap()
}

fn sizes() -> Vec<String> {
    vec![SIZE.to_owned()]
}

fn asked(request: &Request<Bytes>) -> (String, String) {
    let url = Url::parse(&request.uri().to_string()).unwrap();
    let filter = url.query_pairs().find(|(name, _)| name == "$filter").map(|(_, value)| value.into_owned());
    (url.path().to_owned(), filter.unwrap_or_default())
}

async fn read(rows: Vec<Value>) -> (Option<String>, Option<String>) {
    let (azure, hands) = (Answers::by(move |_| Ok(page(&rows, None))), Hands::set());
    let prices = prices(&azure, &hands);
    prices.refresh(&sizes()).await.unwrap();
    let hourly =
        |priority| prices.price("standard_d2s_V3", priority, None).map(|price| price.hourly.to_string());
    (hourly(Priority::Spot), hourly(Priority::Regular))
}

#[tokio::test]
async fn one_request_tells_spot_from_on_demand() {
    let (azure, hands) =
        (Answers::by(|_| Ok(page(&[row("0.096", |_| {}), spot("0.0192")], None))), Hands::set());
    let prices = prices(&azure, &hands);
    assert_eq!(prices.price(SIZE, Priority::Spot, None), None);
    prices.refresh(&sizes()).await.unwrap();
    prices.refresh(&sizes()).await.unwrap();
    let price = prices.price(SIZE, Priority::Spot, None).unwrap();
    assert_eq!((price.hourly.to_string().as_str(), price.currency.as_str()), ("0.0192", "USD"));
    assert_eq!((price.source, price.read_at), (PriceSource::Azure, hands.clock()()));
    assert_eq!(prices.price(SIZE, Priority::Regular, None).unwrap().hourly.to_string(), "0.096");

    let requests = azure.asked();
    assert_eq!(requests.len(), 1, "asked again though fresh");
    assert_eq!(
        asked(&requests[0]),
        (
            "/api/retail/prices".to_owned(),
            "serviceName eq 'Virtual Machines' and armRegionName eq 'eastus' and armSkuName eq 'Standard_D2s_v3' and \
             priceType eq 'Consumption'"
                .to_owned()
        )
    );
    let query = requests[0].uri().query().unwrap();
    assert!(!query.contains(' ') && !query.contains('\''), "not escaped: {query}");
    assert!(requests[0].headers().get("authorization").is_none());
}

/// Whoever pays for Linux on demand is not told the price of Windows, of a reservation or of yesterday.
#[tokio::test]
async fn rows_of_other_offers_are_dropped() {
    let others = [
        row("0.001", |row| row["productName"] = "Virtual Machines DSv3 Series Windows".into()),
        row("0.002", |row| row["productName"] = "DSv3 Series Cloud Services".into()),
        row("0.003", |row| row["skuName"] = "D2s v3 Low Priority".into()),
        row("0.004", |row| row["meterName"] = "D2s v3 Low Priority".into()),
        row("500", |row| row["type"] = "Reservation".into()),
        row("0.005", |row| row["type"] = "DevTestConsumption".into()),
        row("0.006", |row| row["unitOfMeasure"] = "1/Month".into()),
        row("0.007", |row| row["armRegionName"] = "westus".into()),
        row("0.008", |row| row["armSkuName"] = "Standard_D4s_v3".into()),
        row("7.5", |row| row["currencyCode"] = "DKK".into()),
        row("9", |row| row["effectiveStartDate"] = "2027-01-01T00:00:00Z".into()),
        row("0.009", |row| row["effectiveEndDate"] = "2026-02-28T00:00:00Z".into()),
        row("0", |_| {}),
        row("-1", |_| {}),
        json!({"skuName": 5}),
        json!("nonsense"),
    ];
    assert_eq!(read(others.to_vec()).await, (None, None));
    let mut rows = others.to_vec();
    rows.push(row("0.096", |_| {}));
    rows.push(spot("0.0192"));
    rows.extend(others);
    assert_eq!(read(rows).await, (Some("0.0192".to_owned()), Some("0.096".to_owned())));
}

#[tokio::test]
async fn of_several_rows_the_one_that_holds_now_counts() {
    let since = |price: &str, date: &str| {
        row(price, |row| row["effectiveStartDate"] = format!("{date}T00:00:00Z").into())
    };
    let rows = vec![since("0.1", "2025-01-01"), since("0.3", "2026-02-01"), since("0.2", "2025-06-01")];
    assert_eq!(read(rows).await.1.as_deref(), Some("0.3"));
    // Nothing tells them apart: the dearer one, so that no budget is overrun.
    let rows = vec![since("0.1", "2025-01-01"), since("0.2", "2025-01-01"), since("0.15", "2025-01-01")];
    assert_eq!(read(rows).await.1.as_deref(), Some("0.2"));
    let rows = vec![
        row("0.1", |_| {}),
        row("0.9", |row| {
            row["isPrimaryMeterRegion"] = false.into();
            row["effectiveStartDate"] = "2026-02-01T00:00:00Z".into();
        }),
    ];
    assert_eq!(read(rows).await.1.as_deref(), Some("0.1"));
}

#[tokio::test]
async fn pages_are_followed_but_not_to_another_host() {
    let next = "https://prices.azure.com:443/api/retail/prices?$filter=x&$skip=100";
    let azure = Answers::by(move |request| {
        Ok(if asked(request).1 == "x" {
            page(&[spot("0.0192")], None)
        } else {
            page(&[row("0.096", |_| {})], Some(next))
        })
    });
    let hands = Hands::set();
    let both = prices(&azure, &hands);
    both.refresh(&sizes()).await.unwrap();
    assert!(
        both.price(SIZE, Priority::Spot, None).is_some()
            && both.price(SIZE, Priority::Regular, None).is_some()
    );

    for (link, asks) in [
        ("https://prices.azure.com.example.org/api/retail/prices", 1),
        ("http://prices.azure.com/api/retail/prices", 1),
        ("nonsense", 1),
        ("https://prices.azure.com/api/retail/prices?for=ever", MOST_PAGES),
    ] {
        let azure = Answers::by(move |_| Ok(page(&[row("0.096", |_| {})], Some(link))));
        let prices = prices(&azure, &hands);
        let error = prices.refresh(&sizes()).await.unwrap_err();
        assert_eq!(
            (error.class, error.code.as_str(), azure.asked().len()),
            (Class::Transient, "NotUnderstood", asks)
        );
        assert_eq!(
            prices.price(SIZE, Priority::Regular, None),
            None,
            "half a list was taken for a whole one"
        );
    }
}

/// The API is down for a day: decisions go on with the last prices, and their age is told.
#[tokio::test]
async fn the_last_good_price_is_kept_with_its_age() {
    let hands = Hands::set();
    let (began, clock) = (hands.clock()(), hands.clock());
    let azure = Answers::by(move |_| {
        Ok(if clock() == began { page(&[spot("0.0192")], None) } else { answer(503, "<html>down</html>") })
    });
    let prices = prices(&azure, &hands);
    prices.refresh(&sizes()).await.unwrap();
    for _ in 0..24 * 60 {
        hands.forward(Duration::from_mins(1));
        let _ = prices.refresh(&sizes()).await;
    }
    let price = prices.price(SIZE, Priority::Spot, None).unwrap();
    assert_eq!((price.hourly.to_string().as_str(), price.read_at), ("0.0192", began));
    assert_eq!(price.age(hands.clock()()), 24 * HOUR);
    let asked = azure.asked().len();
    assert!((200..300).contains(&asked), "{asked} requests in a day without an answer");
}

#[tokio::test]
async fn a_given_price_overrides_azure() {
    let (azure, hands) = (Answers::by(|_| Ok(page(&[spot("0.0192")], None))), Hands::set());
    let prices = prices(&azure, &hands);
    prices.refresh(&sizes()).await.unwrap();
    hands.forward(HOUR);
    let given: Decimal = "0.17".parse().unwrap();
    let price = prices.price(SIZE, Priority::Spot, Some(given)).unwrap();
    assert_eq!((price.hourly, price.source, price.read_at), (given, PriceSource::Given, hands.clock()()));

    let sovereign = GivenPrices::new("usd", hands.clock());
    sovereign.refresh(&sizes()).await.unwrap();
    assert_eq!(sovereign.price(SIZE, Priority::Spot, None), None);
    assert_eq!(sovereign.price(SIZE, Priority::Spot, Some(given)).unwrap().currency, "USD");
}

#[tokio::test]
async fn nothing_is_asked_about_a_size_that_is_none() {
    let (azure, hands) = (Answers::by(|_| Ok(page(&[], None))), Hands::set());
    let prices = prices(&azure, &hands);
    let wrong = vec![SIZE.to_owned(), "x' or armSkuName ne 'y".to_owned()];
    assert_eq!(prices.refresh(&wrong).await.unwrap_err().class, Class::Invalid);
    assert!(azure.asked().is_empty());
    let endpoint: Url = "https://prices.azure.com/".parse().unwrap();
    assert!(RetailPrices::new(azure.clone(), endpoint, "east'us", "USD", hands.clock()).is_err());
}
