//! Retail Prices: `GET /api/retail/prices`, which asks for no credentials.

use axum::Router;
use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::get;
use http::{HeaderMap, Uri};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::faults;
use crate::market::{Market, Offer};
use crate::names::stable_hash;
use crate::reply;
use crate::sim::Sim;
use crate::tls::{self, Scheme};

/// From this api-version on, values of filters are told apart by case.
const CASE_MATTERS_FROM: &str = "2023-01-01";

/// The route.
pub fn routes() -> Router<Sim> {
    Router::new().route("/api/retail/prices", get(prices))
}

async fn prices(
    State(sim): State<Sim>,
    scheme: Option<Extension<Scheme>>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let fault = sim.look(|cloud, _| cloud.faults.strike(faults::Request::Prices));
    reply::under_fault(fault, || answer(&sim, scheme, &headers, &uri)).await
}

fn answer(sim: &Sim, scheme: Option<Extension<Scheme>>, headers: &HeaderMap, uri: &Uri) -> Response {
    let query = |key: &str| {
        url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.into_owned())
    };
    let version = query("api-version").unwrap_or_default();
    let filter = query("$filter").unwrap_or_default();
    let skip: usize = query("$skip").and_then(|skip| skip.parse().ok()).unwrap_or(0);
    let matcher = Matcher { case_matters: version.as_str() >= CASE_MATTERS_FROM };
    let Ok(wanted) = Filter::parse(&filter) else {
        return reply::json_body(
            400,
            &json!({"Error": {"Code": "BadRequest", "Message": "Invalid OData parameters supplied"}}),
        );
    };
    let (rows, size) =
        sim.look(|cloud, _| (rows(&cloud.market, &cloud.identity.location), cloud.market.pages.prices));
    let found: Vec<Value> = rows.into_iter().filter(|row| matcher.holds(&wanted, row)).collect();
    let page: Vec<&Value> = found.iter().skip(skip).take(size).collect();
    let next = (skip + page.len() < found.len()).then(|| {
        let mut next = url::form_urlencoded::Serializer::new(String::new());
        if !version.is_empty() {
            next.append_pair("api-version", &version);
        }
        next.append_pair("$filter", &filter).append_pair("$skip", &(skip + page.len()).to_string());
        format!("{}/api/retail/prices?{}", tls::base(scheme, headers), next.finish())
    });
    reply::json_body(
        200,
        &json!({
            "BillingCurrency": "USD",
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Count": page.len(),
            "Items": page,
            "NextPageLink": next,
        }),
    )
}

// ---- what there is ----

/// Every item of every size: what a client is after, and what it must tell apart from that.
fn rows(market: &Market, region: &str) -> Vec<Value> {
    market.offers().iter().flat_map(|(size, offer)| items(size, offer, region)).collect()
}

fn items(size: &str, offer: &Offer, region: &str) -> Vec<Value> {
    let short = size.trim_start_matches("Standard_").replace('_', " ");
    let series: String = {
        let (kind, version) = short.split_once(' ').unwrap_or((&short, ""));
        kind.chars().filter(|letter| !letter.is_ascii_digit()).chain(version.chars()).collect()
    };
    let linux = format!("Virtual Machines {series} Series");
    let item = |product: &str, suffix: &str, kind: &str, price: f64, since: Timestamp| {
        let name = format!("{short}{suffix}");
        let product_id = format!("DZH318Z{:05X}", stable_hash(product) % 0x10_0000);
        json!({
            "currencyCode": "USD",
            "tierMinimumUnits": 0.0,
            "retailPrice": price,
            "unitPrice": price,
            "armRegionName": region,
            "location": display_name(region),
            "effectiveStartDate": since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "meterId": meter_id(&format!("{product}/{name}/{kind}/{region}")),
            "meterName": name,
            "productId": product_id,
            "skuId": format!("{product_id}/{:04X}", stable_hash(&name) % 0x1_0000),
            "productName": product,
            "skuName": name,
            "serviceName": "Virtual Machines",
            "serviceId": "DZH313Z7MMC8",
            "serviceFamily": "Compute",
            "unitOfMeasure": "1 Hour",
            "type": kind,
            "isPrimaryMeterRegion": true,
            "armSkuName": size,
        })
    };
    let mut items = Vec::new();
    if let Some((since, price)) = &offer.regular {
        let price: f64 = price.parse().unwrap_or_default();
        let windows = format!("{linux} Windows");
        items.push(item(&windows, "", "Consumption", rounded(price * 1.9), *since));
        items.push(item(
            &format!("{series} Series Cloud Services"),
            "",
            "Consumption",
            rounded(price * 1.2),
            *since,
        ));
        let mut reserved = item(&linux, "", "Reservation", rounded(price * 8760.0 * 0.6), *since);
        reserved["reservationTerm"] = json!("1 Year");
        items.push(reserved);
        items.push(item(&linux, "", "DevTestConsumption", price, *since));
        items.push(item(&linux, " Low Priority", "Consumption", rounded(price * 0.2), *since));
        items.push(item(&windows, " Low Priority", "Consumption", rounded(price * 0.4), *since));
        let mut bought = item(&linux, "", "Consumption", price, *since);
        bought["savingsPlan"] = json!([
            {"unitPrice": rounded(price * 0.5), "retailPrice": rounded(price * 0.5), "term": "3 Years"},
            {"unitPrice": rounded(price * 0.7), "retailPrice": rounded(price * 0.7), "term": "1 Year"},
        ]);
        items.push(bought);
    }
    if let Some((since, price)) = offer.spot.last().filter(|_| offer.spot_offered) {
        let price: f64 = price.parse().unwrap_or_default();
        items.push(item(&format!("{linux} Windows"), " Spot", "Consumption", rounded(price * 3.0), *since));
        items.push(item(&linux, " Spot", "Consumption", price, *since));
    }
    items
}

fn rounded(price: f64) -> f64 {
    (price * 1e6).round() / 1e6
}

fn display_name(region: &str) -> String {
    match region {
        "eastus" => "US East".into(),
        "eastus2" => "US East 2".into(),
        "westus2" => "US West 2".into(),
        "westeurope" => "EU West".into(),
        "northeurope" => "EU North".into(),
        other => other.to_uppercase(),
    }
}

fn meter_id(of: &str) -> String {
    crate::names::Ids::seeded(stable_hash(of)).guid()
}

// ---- filters ----

/// The part of OData that the service understands: `and`, `or`, `eq`, `ne`, `contains`; not `not`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Is(String, String),
    IsNot(String, String),
    Contains(String, String),
    ContainsNot(String, String),
}

/// Fields that may be filtered by; `priceType` is called `type` in an item.
const FIELDS: &[&str] = &[
    "armRegionName",
    "location",
    "meterId",
    "meterName",
    "productId",
    "skuId",
    "productName",
    "skuName",
    "serviceName",
    "serviceId",
    "serviceFamily",
    "priceType",
    "armSkuName",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, ()> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        match next {
            ' ' => {}
            '(' | ')' | ',' => tokens.push(Token::Sign(next)),
            '\'' => {
                let mut value = String::new();
                loop {
                    match chars.next() {
                        // Doubled within a value.
                        Some('\'') if chars.peek() == Some(&'\'') => value.extend(chars.next()),
                        Some('\'') => break,
                        Some(letter) => value.push(letter),
                        None => return Err(()),
                    }
                }
                tokens.push(Token::Text(value));
            }
            letter if letter.is_ascii_alphanumeric() => {
                let mut word = String::from(letter);
                while let Some(letter) = chars.next_if(char::is_ascii_alphanumeric) {
                    word.push(letter);
                }
                tokens.push(Token::Word(word));
            }
            _ => return Err(()),
        }
    }
    Ok(tokens)
}

struct Parser<'a>(std::iter::Peekable<std::slice::Iter<'a, Token>>);

impl Parser<'_> {
    fn word(&mut self) -> Result<String, ()> {
        match self.0.next() {
            Some(Token::Word(word)) => Ok(word.clone()),
            _ => Err(()),
        }
    }

    fn field(&mut self) -> Result<String, ()> {
        let field = self.word()?;
        if !FIELDS.contains(&field.as_str()) {
            return Err(());
        }
        Ok(if field == "priceType" { "type".to_owned() } else { field })
    }

    fn value(&mut self) -> Result<String, ()> {
        match self.0.next() {
            Some(Token::Text(value)) => Ok(value.clone()),
            _ => Err(()),
        }
    }

    fn sign(&mut self, wanted: char) -> Result<(), ()> {
        (self.0.next() == Some(&Token::Sign(wanted))).then_some(()).ok_or(())
    }

    fn series(&mut self, between: &str, one: fn(&mut Self) -> Result<Filter, ()>) -> Result<Vec<Filter>, ()> {
        let mut parts = vec![one(self)?];
        let between = Token::Word(between.to_owned());
        while self.0.next_if(|token| **token == between).is_some() {
            parts.push(one(self)?);
        }
        Ok(parts)
    }

    fn any(&mut self) -> Result<Filter, ()> {
        self.series("or", Self::all).map(Filter::Any)
    }

    fn all(&mut self) -> Result<Filter, ()> {
        self.series("and", Self::term).map(Filter::All)
    }

    fn term(&mut self) -> Result<Filter, ()> {
        if self.0.next_if(|token| **token == Token::Sign('(')).is_some() {
            let inner = self.any()?;
            self.sign(')')?;
            return Ok(inner);
        }
        let contains = Token::Word("contains".to_owned());
        if self.0.next_if(|token| **token == contains).is_some() {
            self.sign('(')?;
            let field = self.field()?;
            self.sign(',')?;
            let part = self.value()?;
            self.sign(')')?;
            // `contains(…) eq false` is how people write `not`, which is not understood.
            let equal = match self
                .0
                .next_if(|token| matches!(token, Token::Word(word) if word == "eq" || word == "ne"))
            {
                None => return Ok(Filter::Contains(field, part)),
                Some(operator) => *operator == Token::Word("eq".to_owned()),
            };
            let wanted = self.word()?.parse::<bool>().map_err(drop)?;
            return Ok(if wanted == equal {
                Filter::Contains(field, part)
            } else {
                Filter::ContainsNot(field, part)
            });
        }
        let field = self.field()?;
        match self.word()?.as_str() {
            "eq" => Ok(Filter::Is(field, self.value()?)),
            "ne" => Ok(Filter::IsNot(field, self.value()?)),
            _ => Err(()),
        }
    }
}

impl Filter {
    fn parse(text: &str) -> Result<Self, ()> {
        let tokens = tokens(text)?;
        if tokens.is_empty() {
            return Ok(Self::All(Vec::new()));
        }
        let mut parser = Parser(tokens.iter().peekable());
        let filter = parser.any()?;
        parser.0.next().is_none().then_some(filter).ok_or(())
    }
}

struct Matcher {
    case_matters: bool,
}

impl Matcher {
    fn holds(&self, filter: &Filter, row: &Value) -> bool {
        let fold = |text: &str| if self.case_matters { text.to_owned() } else { text.to_lowercase() };
        let of = |field: &str| fold(row[field].as_str().unwrap_or_default());
        match filter {
            Filter::All(parts) => parts.iter().all(|part| self.holds(part, row)),
            Filter::Any(parts) => parts.iter().any(|part| self.holds(part, row)),
            Filter::Is(field, value) => of(field) == fold(value),
            Filter::IsNot(field, value) => of(field) != fold(value),
            Filter::Contains(field, part) => of(field).contains(&fold(part)),
            Filter::ContainsNot(field, part) => !of(field).contains(&fold(part)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_are_understood_or_refused() {
        let row = json!({"armSkuName": "Standard_D2s_v3", "type": "Consumption", "meterName": "D2s v3 Spot"});
        let strict = Matcher { case_matters: true };
        let holds = |text: &str| strict.holds(&Filter::parse(text).unwrap(), &row);
        for (text, wanted) in [
            ("", true),
            ("armSkuName eq 'Standard_D2s_v3'", true),
            ("armSkuName eq 'standard_d2s_v3'", false),
            ("armSkuName ne 'Standard_D2s_v3'", false),
            ("priceType eq 'Consumption' and contains(meterName,'Spot')", true),
            ("priceType eq 'Consumption' and contains(meterName, 'Low')", false),
            ("contains(meterName, 'Low') eq false", true),
            ("contains(meterName, 'Low') ne true", true),
            ("(armSkuName eq 'x' or armSkuName eq 'Standard_D2s_v3') and priceType eq 'Consumption'", true),
            ("armSkuName eq 'it''s'", false),
        ] {
            assert_eq!(holds(text), wanted, "{text}");
        }
        let lax = Matcher { case_matters: false };
        assert!(lax.holds(&Filter::parse("armSkuName eq 'standard_d2s_v3'").unwrap(), &row));
        for bad in [
            "type eq 'Consumption'",
            "not(contains(meterName,'Spot'))",
            "armSkuName = 'x'",
            "armSkuName eq x",
            "armSkuName eq 'x",
            "armSkuName eq 'x' and",
            "armSkuName eq 'x')",
            "currencyCode eq 'USD'",
        ] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_and_nothing_worse(
            text in r"[\PC]{0,4}( ?(armSkuName|priceType|eq|ne|and|or|contains|not|'|\(|\)|,|true|false|é))*",
        ) {
            if let Ok(filter) = Filter::parse(&text) {
                Matcher { case_matters: true }.holds(&filter, &json!({"type": "Consumption"}));
            }
        }
    }

    #[test]
    fn one_row_of_a_size_is_spot_and_one_is_on_demand() {
        let rows = rows(&Market::default(), "eastus");
        let of: Vec<&Value> = rows.iter().filter(|row| row["armSkuName"] == "Standard_D8s_v5").collect();
        let linux: Vec<(&str, f64)> = of
            .iter()
            .filter(|row| row["type"] == "Consumption")
            .filter(|row| row["productName"] == "Virtual Machines Dsv5 Series")
            .map(|row| (row["skuName"].as_str().unwrap(), row["retailPrice"].as_f64().unwrap()))
            .collect();
        assert_eq!(linux, [("D8s v5 Low Priority", 0.0768), ("D8s v5", 0.384), ("D8s v5 Spot", 0.0845)]);
        assert_eq!(of.len(), 9);
        let mut meters: Vec<&str> = rows.iter().map(|row| row["meterId"].as_str().unwrap()).collect();
        meters.sort_unstable();
        meters.dedup();
        assert_eq!(meters.len(), rows.len());
    }
}
