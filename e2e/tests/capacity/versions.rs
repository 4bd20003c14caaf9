//! Every version of a SpotPool, so that a test can say "never".

use std::sync::{Arc, Mutex};

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use spotpool_crds::SpotPool;
use spotpool_e2e::{Stage, eventually};
use tokio::task::JoinHandle;

/// Follows a SpotPool until it is dropped.
pub struct Versions {
    seen: Arc<Mutex<Vec<SpotPool>>>,
    task: JoinHandle<()>,
}

impl Drop for Versions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Versions {
    /// From the version that is there now.
    pub async fn follow(stage: &Stage<'_>, name: &str) -> Self {
        let seen: Arc<Mutex<Vec<SpotPool>>> = Arc::default();
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let (api, sees) = (stage.spot_pools(), seen.clone());
        let task = tokio::spawn(async move {
            let mut versions = watcher(api, config).default_backoff().applied_objects().boxed();
            while let Some(version) = versions.next().await {
                match version {
                    Ok(version) => sees.lock().unwrap().push(version),
                    Err(error) => eprintln!("versions: {error:#}"),
                }
            }
        });
        let versions = Self { seen, task };
        eventually("the first version", async || Ok((!versions.so_far().is_empty()).then_some(())))
            .await
            .unwrap();
        versions
    }

    /// All until now.
    pub fn so_far(&self) -> Vec<SpotPool> {
        self.seen.lock().unwrap().clone()
    }
}
