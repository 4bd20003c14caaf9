//! `export-history`: what became of a SpotPool's agent pools, for the policy lab. The operator keeps no history; a Prometheus that
//! scrapes it does.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use spotpool_crds::SpotPool;
use spotpool_crds::spot_pool::AgentPoolStatus;

use crate::Error;
use crate::cluster::{Cluster, find};
use crate::output::Printer;

/// What the lab knows the lines by.
const FORMAT: &str = "spotpool-history/v1";
/// Prometheus answers with 11,000 points of a series at most.
const POINTS: i64 = 10_000;
/// A loss may be counted so many seconds after its node is missed, or before.
const LATE: i64 = 15 * 60;
/// Prices are sums divided by counts: what differs by less is the same.
const SAME: f64 = 0.001;

/// What a Prometheus has of an agent pool, by time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// Machines that stay: those that exist and are not under notice.
    pub staying: BTreeMap<i64, f64>,
    /// A counter: nodes that Azure announced to take, or took without a word.
    pub lost: BTreeMap<i64, f64>,
    /// A counter: answers that there is no capacity.
    pub refused: BTreeMap<i64, f64>,
    /// What a machine costs an hour, where there was one.
    pub price: BTreeMap<i64, f64>,
}

/// How much a counter has risen from one sample to the next: a new process begins at 0.
fn rises(counter: &BTreeMap<i64, f64>) -> BTreeMap<i64, u32> {
    let values: Vec<(i64, f64)> = counter.iter().map(|(at, value)| (*at, *value)).collect();
    let rise = |pair: &[(i64, f64)]| match pair {
        [(_, was), (at, is)] if is < was => (*at, *is),
        [(_, was), (at, is)] => (*at, is - was),
        _ => (0, 0.0),
    };
    let rises = values.windows(2).map(rise);
    rises.filter(|(_, rise)| *rise > 0.0).map(|(at, rise)| (at, rise.round() as u32)).collect()
}

/// Changes of a count that nothing explains yet: when, and by how many.
#[derive(Default)]
struct Open(VecDeque<(i64, u32)>);

impl Open {
    fn add(&mut self, at: i64, nodes: u32) {
        if nodes > 0 {
            self.0.push_back((at, nodes));
        }
    }

    /// Takes so many, the oldest first: each with its time.
    fn take(&mut self, mut nodes: u32) -> Vec<(i64, u32)> {
        let mut taken = Vec::new();
        while nodes > 0
            && let Some((at, open)) = self.0.pop_front()
        {
            let some = open.min(nodes);
            taken.push((at, some));
            nodes -= some;
            if open > some {
                self.0.push_front((at, open - some));
            }
        }
        taken
    }

    /// Takes those of which nothing will be heard any more.
    fn take_before(&mut self, time: i64) -> Vec<(i64, u32)> {
        let old = self.0.iter().take_while(|(at, _)| *at < time).map(|(_, nodes)| nodes).sum();
        self.take(old)
    }
}

/// What has happened to the nodes of an agent pool: time, how, and how many. A loss is counted before or after its node is missed;
/// what goes and is never counted was given back.
fn moves(samples: &Samples) -> Vec<(i64, &'static str, u32)> {
    let (mut lost, mut moves) = (rises(&samples.lost), Vec::new());
    let (mut missed, mut counted) = (Open::default(), Open::default());
    let mut held = samples.staying.values().next().copied().unwrap_or_default();
    let all = |open: Vec<(i64, u32)>| open.iter().map(|(_, nodes)| nodes).sum::<u32>();
    let ends = std::iter::once((i64::MAX, None));
    for (at, staying) in samples.staying.iter().map(|(at, staying)| (*at, Some(*staying))).chain(ends) {
        let old = at.saturating_sub(LATE);
        moves.extend(missed.take_before(old).into_iter().map(|(at, nodes)| (at, "returned", nodes)));
        // Another came between two samples: nobody was ever missed.
        for (at, nodes) in counted.take_before(old) {
            moves.extend([(at, "arrived", nodes), (at, "lost", nodes)]);
        }
        let Some(staying) = staying else { break };
        let (more, fewer) =
            ((staying - held).max(0.0).round() as u32, (held - staying).max(0.0).round() as u32);
        held = staying;
        if more > 0 {
            moves.push((at, "arrived", more));
        }
        let told = counted.take(fewer);
        moves.extend(told.iter().map(|(at, nodes)| (*at, "lost", *nodes)));
        missed.add(at, fewer - all(told));
        // Those that were counted at samples of which the count of machines is not known belong here, too.
        let later = lost.split_off(&(at + 1));
        let rise: u32 = std::mem::replace(&mut lost, later).values().sum();
        let told = missed.take(rise);
        moves.extend(told.iter().map(|(at, nodes)| (*at, "lost", *nodes)));
        counted.add(at, rise - all(told));
    }
    moves
}

/// What has happened, by time; at one time arrivals first, so that there is always what is lost.
fn events(name: &str, samples: &Samples) -> Vec<(i64, Value)> {
    let moves = moves(samples).into_iter().map(|(at, event, nodes)| (at, event, json!({"nodes": nodes})));
    // How many were asked for is not among the metrics: that there were not all of them is what counts.
    let refused =
        rises(&samples.refused).into_keys().map(|at| (at, "refused", json!({"asked": 1, "got": 0})));
    let mut known = samples.price.values().next().copied();
    let prices = samples.price.iter().filter_map(|(at, price)| {
        let is_news = known.is_some_and(|known| (price / known - 1.0).abs() > SAME);
        is_news.then(|| {
            known = Some(*price);
            (*at, "price", json!({"hourlyPrice": rounded(*price)}))
        })
    });
    let mut all: Vec<(i64, &str, Value)> = moves.chain(refused).chain(prices).collect();
    all.sort_by_key(|(at, event, _)| (*at, *event));
    let event = |(at, event, mut more): (i64, &str, Value)| {
        more["at"] = stamp(at).into();
        more["agentPool"] = name.into();
        more["event"] = event.into();
        (at, more)
    };
    all.into_iter().map(event).collect()
}

/// Prices of Azure have six digits at most.
fn rounded(price: f64) -> f64 {
    (price * 1e6).round() / 1e6
}

fn stamp(at: i64) -> String {
    Timestamp::from_second(at).unwrap_or_default().to_string()
}

/// The lines of a history.
fn lines(
    pools: &[AgentPoolStatus],
    samples: &BTreeMap<String, Samples>,
    from: i64,
    to: i64,
) -> Result<Vec<Value>, Error> {
    let (mut header, mut all) = (Vec::new(), Vec::new());
    for pool in pools {
        let none = Samples::default();
        let of = samples.get(&pool.name).unwrap_or(&none);
        let listed = pool.price.as_ref().and_then(|price| price.hourly.parse().ok());
        let price = of.price.values().next().copied().or(listed).filter(|price| *price > 0.0).ok_or_else(|| {
            Error::NotFound(format!(
                "no price of agent pool {} is known, neither to Prometheus nor to the operator: see its condition AzureReachable",
                pool.name
            ))
        })?;
        let nodes = of.staying.values().next().copied().unwrap_or_default();
        header.push(json!({"name": pool.name, "role": pool.role, "size": pool.vm_size, "zones": pool.zones,
            "hourlyPrice": rounded(price), "nodes": nodes as u32}));
        all.extend(events(&pool.name, of));
    }
    all.sort_by_key(|(at, _)| *at);
    let first = json!({"format": FORMAT, "from": stamp(from), "to": stamp(to), "agentPools": header});
    Ok(std::iter::once(first).chain(all.into_iter().map(|(_, event)| event)).collect())
}

/// A Prometheus, and of which SpotPool it is asked.
struct Prometheus<'a> {
    url: &'a str,
    client: reqwest::Client,
    of: String,
    from: i64,
    to: i64,
    step: i64,
}

impl Prometheus<'_> {
    /// The points of a query by agent pool, in as many parts as it takes.
    async fn range(&self, query: &str) -> Result<BTreeMap<String, BTreeMap<i64, f64>>, Error> {
        let mut found: BTreeMap<String, BTreeMap<i64, f64>> = BTreeMap::new();
        let query = query.replace("$of", &self.of);
        let mut start = self.from;
        while start <= self.to {
            let end = (start + POINTS * self.step).min(self.to);
            let answer = self.ask(&query, start, end).await?;
            for series in answer["data"]["result"].as_array().into_iter().flatten() {
                let Some(name) = series["metric"]["agent_pool"].as_str() else { continue };
                let points = series["values"].as_array().into_iter().flatten();
                let point =
                    |point: &Value| Some((point[0].as_f64()? as i64, point[1].as_str()?.parse().ok()?));
                found.entry(name.to_owned()).or_default().extend(points.filter_map(point));
            }
            start = end + self.step;
        }
        Ok(found)
    }

    async fn ask(&self, query: &str, start: i64, end: i64) -> Result<Value, Error> {
        let unreachable = |why: String| {
            let (url, hint) = (self.url, "kubectl port-forward gives it an address here");
            Error::NotFound(format!("Prometheus at {url} does not answer ({why}): {hint}"))
        };
        let request = self.client.get(format!("{}/api/v1/query_range", self.url.trim_end_matches('/')));
        let asked = [("start", start), ("end", end), ("step", self.step)];
        let answer = request.query(&[("query", query)]).query(&asked).send().await;
        let answer = answer.map_err(|error| unreachable(error.without_url().to_string()))?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(|_| unreachable(format!("{status}, and no JSON")))?;
        match body["status"].as_str() {
            Some("success") => Ok(body),
            _ => Err(unreachable(body["error"].as_str().unwrap_or("no status").to_owned())),
        }
    }

    async fn samples(&self) -> Result<BTreeMap<String, Samples>, Error> {
        let mut samples: BTreeMap<String, Samples> = BTreeMap::new();
        // A replica that does not lead keeps what it saw last: the one that leads sees at least as much.
        let staying = "max by (agent_pool) (spotpool_operator_agent_pool_nodes{$of,state=\"machines\"}) \
            - max by (agent_pool) (spotpool_operator_agent_pool_nodes{$of,state=\"evicting\"})";
        for (name, points) in self.range(staying).await? {
            samples.entry(name).or_default().staying = points;
        }
        let lost = "max by (agent_pool) (spotpool_operator_evictions_noticed_total{$of}) \
            + max by (agent_pool) (spotpool_operator_evictions_without_notice_total{$of})";
        for (name, points) in self.range(lost).await? {
            samples.entry(name).or_default().lost = points;
        }
        let refused =
            "max by (agent_pool) (spotpool_operator_agent_pool_errors_total{$of,class=\"Capacity\"})";
        for (name, points) in self.range(refused).await? {
            samples.entry(name).or_default().refused = points;
        }
        let price = "sum by (agent_pool) (max by (agent_pool, kind) (spotpool_operator_hourly_cost{$of})) \
            / (max by (agent_pool) (spotpool_operator_agent_pool_nodes{$of,state=\"machines\"}) > 0) > 0";
        for (name, points) in self.range(price).await? {
            samples.entry(name).or_default().price = points;
        }
        Ok(samples)
    }
}

/// Prints the history of a SpotPool, a JSON object a line.
pub async fn run(
    cluster: &Cluster,
    printer: &Printer,
    name: &str,
    url: &str,
    since: std::time::Duration,
    step: std::time::Duration,
) -> Result<(), Error> {
    let (pools, _) = cluster.pools().await?;
    let pool: &SpotPool = find(&pools, name, &cluster.usual)?;
    let status = pool.status.as_ref().map(|status| status.agent_pools.as_slice()).unwrap_or_default();
    let to = cluster.now();
    let since = SignedDuration::try_from(since).unwrap_or(SignedDuration::MAX);
    let from =
        to.checked_sub(since).map_err(|_| Error::Config(format!("--since {since} is before all time")))?;
    let prometheus = Prometheus {
        url,
        client: reqwest::Client::new(),
        of: format!("namespace=\"{}\",pool=\"{}\"", pool.namespace().unwrap_or_default(), pool.name_any()),
        from: from.as_second(),
        to: to.as_second(),
        step: i64::try_from(step.as_secs()).unwrap_or(i64::MAX).max(1),
    };
    let samples = prometheus.samples().await?;
    // The history begins where Prometheus does.
    let Some(begin) = samples.values().filter_map(|it| it.staying.keys().next()).min() else {
        return Err(Error::NotFound(format!(
            "Prometheus at {url} has nothing of SpotPool {name} since {from}: does it scrape the operator, with honorLabels?"
        )));
    };
    let lines = lines(status, &samples, *begin, prometheus.to)?;
    printer.text(&lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;

    fn points(values: &[f64]) -> BTreeMap<i64, f64> {
        (0..).step_by(60).zip(values.iter().copied()).collect()
    }

    fn told(samples: &Samples) -> Vec<String> {
        let mut events = events("a", samples);
        events.sort_by_key(|(at, _)| *at);
        let tell = |(at, event): (i64, Value)| {
            let number = ["nodes", "hourlyPrice", "got"].iter().find_map(|key| event.get(*key));
            format!("{at} {} {}", event["event"].as_str().unwrap(), number.unwrap())
        };
        events.into_iter().map(tell).collect()
    }

    #[test]
    fn losses_arrivals_and_returns_are_told_apart() {
        let samples = Samples {
            staying: points(&[2.0, 1.0, 3.0, 3.0, 2.0]),
            // A node is lost and one arrives between two samples.
            lost: points(&[5.0, 6.0, 6.0, 7.0, 7.0]),
            ..Samples::default()
        };
        assert_eq!(
            told(&samples),
            ["60 lost 1", "120 arrived 2", "180 lost 1"],
            "the one that went later was that one"
        );
        let samples =
            Samples { staying: points(&[2.0, 1.0]), lost: points(&[0.0, 0.0]), ..Samples::default() };
        assert_eq!(told(&samples), ["60 returned 1"]);
        let samples =
            Samples { staying: points(&[2.0, 2.0]), lost: points(&[0.0, 1.0]), ..Samples::default() };
        assert_eq!(told(&samples), ["60 arrived 1", "60 lost 1"], "another has come between two samples");
    }

    #[test]
    fn a_loss_that_is_counted_late_is_told_when_the_node_was_missed() {
        let late = |late: f64| Samples {
            staying: BTreeMap::from([(0, 2.0), (60, 1.0), (120, 2.0), (3600, 2.0)]),
            lost: BTreeMap::from([(0, 0.0), (60 + late as i64, 1.0)]),
            ..Samples::default()
        };
        assert_eq!(told(&late(60.0)), ["60 lost 1", "120 arrived 1"]);
        // An hour later it is another one.
        assert_eq!(told(&late(3540.0)), ["60 returned 1", "120 arrived 1", "3600 arrived 1", "3600 lost 1"]);
    }

    #[test]
    fn a_counter_that_begins_anew_has_risen_by_what_it_says() {
        assert_eq!(rises(&points(&[7.0, 7.0, 2.0, 3.0])), BTreeMap::from([(120, 2), (180, 1)]));
        // A minute without samples hides nothing of a counter.
        assert_eq!(rises(&BTreeMap::from([(0, 1.0), (600, 4.0)])), BTreeMap::from([(600, 3)]));
        assert_eq!(rises(&BTreeMap::new()), BTreeMap::new());
    }

    #[test]
    fn prices_are_told_when_they_change_and_refusals_when_they_are_counted() {
        let samples = Samples {
            price: points(&[0.1, 0.100_01, 0.12, 0.12]),
            refused: points(&[0.0, 0.0, 0.0, 1.0]),
            ..Samples::default()
        };
        assert_eq!(told(&samples), ["120 price 0.12", "180 refused 0"]);
    }

    #[test]
    fn a_history_begins_with_what_there_was() {
        let pool: AgentPoolStatus = serde_json::from_value(json!({"name": "a"})).unwrap();
        let samples = BTreeMap::from([(
            "a".to_owned(),
            Samples { staying: points(&[4.0, 4.0]), price: points(&[0.1]), ..Samples::default() },
        )]);
        let lines = lines(std::slice::from_ref(&pool), &samples, 0, 60).unwrap();
        assert_eq!(lines.len(), 1, "nothing has happened");
        assert_eq!(lines[0]["agentPools"][0]["nodes"], 4);
        let error = super::lines(&[pool], &BTreeMap::new(), 0, 60).unwrap_err();
        assert!(error.to_string().contains("no price of agent pool a"), "{error}");
    }
}
