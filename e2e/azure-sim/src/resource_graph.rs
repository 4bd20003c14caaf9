//! Resource Graph: eviction rates and price history of spot, by queries in as much of KQL as these need.

use std::cmp::Ordering;
use std::iter::Peekable;

use axum::body::Bytes;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

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

// ---- queries ----

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Number(u64),
    Sign(&'static str),
}

/// Longer signs first.
const SIGNS: &[&str] = &["=~", "!~", "==", "!=", "~", "=", "(", ")", ",", ".", "[", "]", "|"];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length;
        if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push(Token::Sign(sign));
            length = sign.len();
        } else if first == '\'' || first == '"' {
            let end = rest[1..].find(first).ok_or_else(|| format!("no end of the text at {rest:?}"))?;
            tokens.push(Token::Text(rest[1..=end].to_owned()));
            length = end + 2;
        } else {
            let part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            length = rest.find(|letter| !part(letter)).unwrap_or(rest.len());
            let word = &rest[..length];
            match word.parse() {
                _ if word.is_empty() => return Err(format!("{first:?} is not understood")),
                Ok(number) => tokens.push(Token::Number(number)),
                Err(_) => tokens.push(Token::Word(word.to_owned())),
            }
        }
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// A value of a row: `properties.spotPrices[0].priceUSD`.
#[derive(Debug, Clone, PartialEq)]
struct Place(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Element(usize),
}

impl Place {
    fn of<'a>(&self, row: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(row, |value, step| match step {
            Step::Member(name) => value.get(name),
            Step::Element(index) => value.get(index),
        })
    }

    /// What a projected column is called that nobody gave a name.
    fn name(&self) -> String {
        let parts = self.0.iter().map(|step| match step {
            Step::Member(name) => name.clone(),
            Step::Element(index) => index.to_string(),
        });
        parts.collect::<Vec<_>>().join("_")
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cast {
    AsIs,
    Text,
    Number,
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    place: Place,
    any_of: Vec<String>,
    fold: bool,
    negate: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Where(Vec<Condition>),
    Project(Vec<(String, Cast, Place)>),
    Order(Vec<(Place, bool)>),
    Take(usize),
}

#[derive(Debug, Clone, PartialEq)]
struct Query(Vec<Stage>);

struct Parser<'a>(Peekable<std::slice::Iter<'a, Token>>);

impl Parser<'_> {
    fn wanted<T>(&mut self, what: &str) -> Result<T, String> {
        Err(match self.0.peek() {
            Some(token) => format!("{what} expected, not {token:?}"),
            None => format!("{what} expected, but the query is over"),
        })
    }

    fn word(&mut self) -> Result<&str, String> {
        if matches!(self.0.peek(), Some(Token::Word(_)))
            && let Some(Token::Word(word)) = self.0.next()
        {
            return Ok(word);
        }
        self.wanted("a name")
    }

    fn takes(&mut self, sign: &str) -> bool {
        self.0.next_if(|token| matches!(token, Token::Sign(found) if *found == sign)).is_some()
    }

    fn takes_word(&mut self, wanted: &str) -> bool {
        self.0.next_if(|token| matches!(token, Token::Word(word) if word == wanted)).is_some()
    }

    fn sign(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { self.wanted(sign) }
    }

    fn text(&mut self) -> Result<String, String> {
        if let Some(Token::Text(text)) = self.0.next_if(|token| matches!(token, Token::Text(_))) {
            return Ok(text.clone());
        }
        self.wanted("a text")
    }

    fn number(&mut self) -> Result<usize, String> {
        if let Some(Token::Number(number)) = self.0.next_if(|token| matches!(token, Token::Number(_))) {
            return Ok(*number as usize);
        }
        self.wanted("a number")
    }

    fn place(&mut self) -> Result<Place, String> {
        let first = self.word()?.to_owned();
        self.place_from(first)
    }

    fn place_from(&mut self, first: String) -> Result<Place, String> {
        let mut steps = vec![Step::Member(first)];
        loop {
            if self.takes(".") {
                steps.push(Step::Member(self.word()?.to_owned()));
            } else if self.takes("[") {
                steps.push(Step::Element(self.number()?));
                self.sign("]")?;
            } else {
                return Ok(Place(steps));
            }
        }
    }

    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut all = vec![one(self)?];
        while self.takes(",") {
            all.push(one(self)?);
        }
        Ok(all)
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let place = self.place()?;
        let (fold, negate) = if self.takes("=~") {
            (true, false)
        } else if self.takes("!~") {
            (true, true)
        } else if self.takes("==") {
            (false, false)
        } else if self.takes("!=") {
            (false, true)
        } else if self.takes_word("in") {
            let fold = self.takes("~");
            self.sign("(")?;
            let any_of = self.list(Self::text)?;
            self.sign(")")?;
            return Ok(Condition { place, any_of, fold, negate: false });
        } else {
            return self.wanted("a comparison");
        };
        Ok(Condition { place, any_of: vec![self.text()?], fold, negate })
    }

    fn column(&mut self) -> Result<(String, Cast, Place), String> {
        let first = self.word()?.to_owned();
        if self.takes("=") {
            let second = self.word()?.to_owned();
            let (cast, place) = self.value(second)?;
            return Ok((first, cast, place));
        }
        let (cast, place) = self.value(first)?;
        Ok((place.name(), cast, place))
    }

    fn value(&mut self, first: String) -> Result<(Cast, Place), String> {
        let cast = match first.as_str() {
            "tostring" => Cast::Text,
            "todouble" | "toreal" => Cast::Number,
            _ => return Ok((Cast::AsIs, self.place_from(first)?)),
        };
        self.sign("(")?;
        let place = self.place()?;
        self.sign(")")?;
        Ok((cast, place))
    }

    fn stage(&mut self) -> Result<Stage, String> {
        let verb = self.word()?.to_owned();
        match verb.as_str() {
            "where" => {
                let mut conditions = vec![self.condition()?];
                while self.takes_word("and") {
                    conditions.push(self.condition()?);
                }
                Ok(Stage::Where(conditions))
            }
            "project" => Ok(Stage::Project(self.list(Self::column)?)),
            "order" | "sort" => {
                if !self.takes_word("by") {
                    return self.wanted("by");
                }
                let key = |parser: &mut Self| {
                    let place = parser.place()?;
                    // KQL sorts downwards unless told.
                    let up = parser.takes_word("asc");
                    parser.takes_word("desc");
                    Ok((place, up))
                };
                self.list(key).map(Stage::Order)
            }
            "limit" | "take" => self.number().map(Stage::Take),
            other => Err(format!("{other} is not understood")),
        }
    }
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let mut parser = Parser(tokens.iter().peekable());
        let table = parser.word()?;
        if !table.eq_ignore_ascii_case("SpotResources") {
            return Err(format!("there is no table {table}"));
        }
        let mut stages = Vec::new();
        while parser.takes("|") {
            stages.push(parser.stage()?);
        }
        if parser.0.peek().is_some() {
            return parser.wanted("| or the end");
        }
        Ok(Self(stages))
    }

    fn limited(&self) -> bool {
        self.0.iter().any(|stage| matches!(stage, Stage::Take(_)))
    }

    /// Whether a limit of the query left something out.
    fn cut(&self, rows: Vec<Value>) -> bool {
        let unlimited =
            Self(self.0.iter().filter(|stage| !matches!(stage, Stage::Take(_))).cloned().collect());
        unlimited.run(rows.clone()).len() > self.run(rows).len()
    }

    fn run(&self, mut rows: Vec<Value>) -> Vec<Value> {
        for stage in &self.0 {
            match stage {
                Stage::Where(conditions) => {
                    rows.retain(|row| conditions.iter().all(|condition| condition.holds(row)));
                }
                Stage::Project(columns) => {
                    for row in &mut rows {
                        let cells = columns.iter().map(|(name, cast, place)| {
                            (name.clone(), cast.of(place.of(row).unwrap_or(&Value::Null)))
                        });
                        let cells: Map<String, Value> = cells.collect();
                        *row = Value::Object(cells);
                    }
                }
                Stage::Order(keys) => rows.sort_by(|a, b| {
                    keys.iter().fold(Ordering::Equal, |order, (place, up)| {
                        let theirs = compare(place.of(a), place.of(b));
                        order.then(if *up { theirs } else { theirs.reverse() })
                    })
                }),
                Stage::Take(most) => rows.truncate(*most),
            }
        }
        rows
    }
}

impl Condition {
    fn holds(&self, row: &Value) -> bool {
        let found = self.place.of(row).and_then(Value::as_str).unwrap_or_default();
        let same = |text: &String| if self.fold { text.eq_ignore_ascii_case(found) } else { text == found };
        self.any_of.iter().any(same) != self.negate
    }
}

impl Cast {
    fn of(self, value: &Value) -> Value {
        match (self, value) {
            (Self::Text, Value::Null) => json!(""),
            (Self::Text, Value::String(text)) => json!(text),
            (Self::Text, other) => json!(other.to_string()),
            (Self::Number, Value::String(text)) => json!(text.parse::<f64>().ok()),
            (Self::Number | Self::AsIs, other) => other.clone(),
        }
    }
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default())
        }
        (a, b) => {
            let text =
                |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_lowercase();
            text(a).cmp(&text(b))
        }
    }
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
