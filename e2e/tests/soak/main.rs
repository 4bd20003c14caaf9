//! Evictions without end: what adds up over days (memory, connections, watches, metric series, marks on nodes, machines bought)
//! must not, however often nodes go, notices are taken back and programs are killed.
//!
//! `SPOTPOOL_SOAK=1h SPOTPOOL_SOAK_NODES=200 cargo test -p spotpool-e2e --test soak -- --nocapture` runs for an hour,
//! `SPOTPOOL_SEED=17` with other dice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod growth;
mod health;
mod scene;
mod scrape;
mod trouble;

use std::time::Duration;

use spotpool_e2e::{asked, run};

use crate::scene::Scene;

/// How long and how large; the short form is what CI runs.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// Of the dice.
    pub seed: u64,
    /// How long nodes are troubled.
    pub time: Duration,
    /// Nodes that the SpotPool keeps.
    pub nodes: u32,
}

impl Soak {
    fn wanted() -> Self {
        Self {
            seed: asked("SPOTPOOL_SEED").unwrap().unwrap_or(1),
            time: asked("SPOTPOOL_SOAK").unwrap().unwrap_or(spotpool_crds::Duration::from_secs(35)).into(),
            nodes: asked("SPOTPOOL_SOAK_NODES").unwrap().unwrap_or(8),
        }
    }
}

#[test]
fn nothing_adds_up_however_often_nodes_are_evicted() {
    let soak = Soak::wanted();
    eprintln!("{soak:?}; again: SPOTPOOL_SEED={} cargo test -p spotpool-e2e --test soak", soak.seed);
    run(async {
        let scene = Scene::set(soak).await.unwrap();
        let before = scene.at_first_rest().await.unwrap();
        let (done, health) = trouble::make(&scene).await.unwrap();
        let mut findings = health.findings();
        health.tell();
        match scene.at_rest_like(&before).await {
            Ok(after) => {
                eprintln!("{} long-running requests before, {} after", before.total(), after.total());
            }
            Err(unrest) => findings.push(format!("{unrest:#}")),
        }
        eprintln!("{done:?}");
        assert!(done.evicted >= 5 && done.taken_back >= 10, "too little happened to say anything: {done:?}");
        assert!(findings.is_empty(), "seed {}: {findings:#?}", soak.seed);
    });
}
