//! What the programs use, and what they say of themselves, from the beginning to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use kube::ResourceExt;
use spotpool_e2e::processes;

use crate::growth::Series;
use crate::scene::{Clock, Scene};
use crate::scrape::Scrape;

/// Allowed beyond what there was after a third of the time. Not for each eviction but in all: the longer a soak, the
/// smaller the leak that it finds.
const MORE_MEMORY: f64 = 1.5;
const MORE_FILES: f64 = 4.0;
const MORE_THREADS: f64 = 2.0;
/// Reasons that come up late have series of their own.
const MORE_SERIES: f64 = 60.0;
/// Part of the name of every node and every machine.
const OF_A_NODE: &str = "aks-";

/// Which program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Operator,
    Agent(String),
}

/// A process from its start to its end.
#[derive(Default)]
struct Life {
    memory: Series,
    resident: Series,
    files: Series,
    threads: Series,
    series: Series,
    last: Scrape,
}

/// All that was seen.
#[derive(Default)]
pub struct Health {
    lives: BTreeMap<(Who, u32), Life>,
    impossible: BTreeSet<String>,
    scrapes: usize,
}

impl Health {
    /// Watches until the time is over.
    pub async fn watch(scene: &Scene, clock: Clock) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let every = (clock.time() / 300).clamp(Duration::from_millis(400), Duration::from_secs(10));
        let mut health = Self::default();
        while !clock.is_over() {
            let (id, url) = scene.operator();
            health.look(&http, Who::Operator, id, &url).await;
            let nodes = [scene.veterans().await?, scene.serving().await?].concat();
            for node in nodes.iter().map(ResourceExt::name_any) {
                let agent = scene.agents().process(&node).zip(scene.agents().admin_url(&node));
                if let Some((process, url)) = agent {
                    health.look(&http, Who::Agent(node), process.id(), &url).await;
                }
            }
            tokio::time::sleep(every).await;
        }
        Ok(health)
    }

    /// One that is killed just now says nothing.
    async fn look(&mut self, http: &reqwest::Client, who: Who, pid: u32, url: &str) {
        if let Err(error) = self.try_to_look(http, who.clone(), pid, url).await {
            tracing::debug!(?who, "{error:#}");
        }
    }

    async fn try_to_look(&mut self, http: &reqwest::Client, who: Who, pid: u32, url: &str) -> Result<()> {
        let memory = processes::memory(pid)?;
        let (files, threads) = (processes::open_files(pid)?, processes::threads(pid)?);
        let answer = http.get(format!("{url}/metrics")).send().await?.error_for_status()?;
        let scrape = Scrape::read(&answer.text().await.context("a scrape that broke off")?);
        let life = self.lives.entry((who.clone(), pid)).or_default();
        life.memory.push(memory.anonymous);
        life.resident.push(memory.resident);
        life.files.push(files as f64);
        life.threads.push(threads as f64);
        life.series.push(scrape.series() as f64);
        let about = |what: String| format!("{who:?}, process {pid}: {what}");
        let named = scrape.naming(OF_A_NODE).into_iter().map(|series| format!("{series} names a node"));
        self.impossible.extend(scrape.impossible_after(&life.last).into_iter().chain(named).map(about));
        life.last = scrape;
        self.scrapes += 1;
        Ok(())
    }

    /// What has grown, and what cannot be.
    pub fn findings(&self) -> Vec<String> {
        let mut findings: Vec<String> = self.impossible.iter().cloned().collect();
        for ((who, pid), life) in &self.lives {
            for (what, series, most) in [
                ("MiB of memory", &life.memory, MORE_MEMORY),
                ("open files", &life.files, MORE_FILES),
                ("threads", &life.threads, MORE_THREADS),
                ("metric series", &life.series, MORE_SERIES),
            ] {
                let grown = series.growth_beyond(most);
                findings.extend(grown.map(|grown| format!("{who:?}, process {pid}, {what}: {grown}")));
            }
        }
        findings
    }

    /// Says what the operator and those agents used that lived longest.
    pub fn tell(&self) {
        eprintln!("{} processes, {} scrapes; early and late:", self.lives.len(), self.scrapes);
        let mut lives: Vec<_> = self.lives.iter().collect();
        lives.sort_by_key(|(_, life)| std::cmp::Reverse(life.memory.len()));
        for ((who, pid), life) in lives.iter().take(4) {
            let of = |series: &Series| {
                series.early_and_late().map_or("-".into(), |(early, late)| format!("{early:.2} {late:.2}"))
            };
            eprintln!(
                "  {who:?} {pid}, seen {} times: anonymous MiB {}, resident MiB {}, files {}, threads {}, series {}",
                life.memory.len(),
                of(&life.memory),
                of(&life.resident),
                of(&life.files),
                of(&life.threads),
                of(&life.series)
            );
        }
    }
}
