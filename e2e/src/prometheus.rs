//! A real Prometheus that scrapes our programs as the docs ask for: `honorLabels`, agents found as they come and go.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spotpool_e2e_cluster::{Program, Supervised, Tools, free_port};

use crate::eventually;

/// Seconds since 1970, and values.
pub type Series = Vec<(f64, f64)>;

/// A rule that it evaluates.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of the record or the alert.
    pub name: String,
    /// `ok`, `err`, or `unknown` before the first evaluation.
    pub health: String,
    /// What was wrong with the last evaluation; may be empty.
    pub error: String,
    /// Of an alert: `inactive`, `pending` or `firing`. Empty for a recording rule.
    pub state: String,
}

/// A running Prometheus.
pub struct Prometheus {
    /// Its address.
    pub url: String,
    targets: PathBuf,
    process: Supervised,
}

impl Prometheus {
    /// Starts it with a directory of its own, with rules if given. Scrapes each second.
    pub async fn start(dir: &Path, rules: &[PathBuf]) -> Result<Self> {
        let program = Tools::prometheus().await?;
        std::fs::create_dir_all(dir)?;
        let targets = dir.join("targets.json");
        std::fs::write(&targets, "[]")?;
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": rules,
            "scrape_configs": [{"job_name": "spotpool", "honor_labels": true,
                "file_sd_configs": [{"files": [targets], "refresh_interval": "1s"}]}],
        });
        let file = dir.join("prometheus.json");
        // JSON is YAML.
        std::fs::write(&file, config.to_string())?;
        let url = format!("127.0.0.1:{}", free_port()?);
        let process = Program::new("prometheus", program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={url}"))
            .log(dir.join("prometheus.log"))
            .spawn()?;
        let prometheus = Self { url: format!("http://{url}"), targets, process };
        eventually("Prometheus to be ready", async || {
            prometheus.process.check_running()?;
            let answer = reqwest::get(format!("{}/-/ready", prometheus.url)).await?;
            Ok(answer.status().is_success().then_some(()))
        })
        .await?;
        Ok(prometheus)
    }

    /// Scrapes these from now on, and no others.
    pub fn scrape(&self, urls: &[String]) -> Result<()> {
        let targets: Vec<&str> = urls.iter().map(|url| url.trim_start_matches("http://")).collect();
        let next = self.targets.with_extension("next");
        std::fs::write(&next, json!([{"targets": targets}]).to_string())?;
        // At once, or half a file might be read.
        Ok(std::fs::rename(next, &self.targets)?)
    }

    /// The samples of an instant query, now: labels and value.
    pub async fn query(&self, promql: &str) -> Result<Vec<(Value, f64)>> {
        let request = reqwest::Client::new().get(format!("{}/api/v1/query", self.url));
        let answer: Value = request.query(&[("query", promql)]).send().await?.json().await?;
        ensure!(answer["status"] == "success", "{promql}: {}", answer["error"]);
        let samples = answer["data"]["result"].as_array().context("no vector")?;
        let sample =
            |sample: &Value| Some((sample["metric"].clone(), sample["value"][1].as_str()?.parse().ok()?));
        samples.iter().map(|it| sample(it).with_context(|| format!("{promql}: {it}"))).collect()
    }

    /// What a query answered in the last `seconds`, each `step`: labels and points.
    pub async fn range(&self, promql: &str, seconds: u32, step: u32) -> Result<Vec<(Value, Series)>> {
        let now = jiff::Timestamp::now().as_second();
        let (start, end) = ((now - i64::from(seconds)).to_string(), now.to_string());
        let asked = [("query", promql), ("start", &start), ("end", &end), ("step", &step.to_string())];
        let request = reqwest::Client::new().get(format!("{}/api/v1/query_range", self.url)).query(&asked);
        let answer: Value = request.send().await?.json().await?;
        ensure!(answer["status"] == "success", "{promql}: {}", answer["error"]);
        let point = |point: &Value| Some((point[0].as_f64()?, point[1].as_str()?.parse().ok()?));
        let series = answer["data"]["result"].as_array().context("no matrix")?.iter().map(|series| {
            let points = series["values"].as_array().into_iter().flatten().filter_map(point).collect();
            (series["metric"].clone(), points)
        });
        Ok(series.collect())
    }

    /// Its rules, once each has been evaluated.
    pub async fn rules(&self) -> Result<Vec<Rule>> {
        eventually("each rule to be evaluated", async || {
            let answer: Value = reqwest::get(format!("{}/api/v1/rules", self.url)).await?.json().await?;
            let groups = answer["data"]["groups"].as_array().context("no groups")?;
            let text = |rule: &Value, key: &str| rule[key].as_str().unwrap_or_default().to_owned();
            let read = |rule: &Value| Rule {
                name: text(rule, "name"),
                health: text(rule, "health"),
                error: text(rule, "lastError"),
                state: text(rule, "state"),
            };
            let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
            let rules: Vec<Rule> = rules.map(read).collect();
            Ok(Some(rules).filter(|rules| rules.iter().all(|rule| rule.health != "unknown")))
        })
        .await
    }

    /// What became of the last scrape of each target that is not up.
    pub async fn faults(&self) -> Result<Vec<String>> {
        let answer: Value = reqwest::get(format!("{}/api/v1/targets", self.url)).await?.json().await?;
        let targets = answer["data"]["activeTargets"].as_array().context("no targets")?;
        let error = |target: &Value| {
            let error = target["lastError"].as_str().filter(|error| !error.is_empty())?;
            Some(format!("{}: {error}", target["scrapeUrl"]))
        };
        Ok(targets.iter().filter_map(error).collect())
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        self.process.stop(Duration::from_secs(20)).await.map(drop)
    }
}
