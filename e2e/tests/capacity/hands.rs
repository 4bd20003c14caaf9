//! Hands in the agents' place, which answer drain requests as a test wants it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use spotpool_crds::names;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason, DrainRequest, DrainStatus};
use tokio::task::JoinHandle;

/// What was asked of one node.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When it was first seen.
    pub at: Timestamp,
    /// When the node was last seen.
    pub last_seen: Timestamp,
    /// Why.
    pub reason: DrainReason,
}

/// Answers for the nodes of some agent pools until it is dropped.
pub struct Hands {
    asked: Arc<Mutex<BTreeMap<String, Asked>>>,
    busy: Arc<Mutex<bool>>,
    task: JoinHandle<()>,
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hands {
    /// Cordons and answers `Drained` at once; while `idle`, only cordons.
    pub fn start(client: &Client, agent_pools: &[&str]) -> Self {
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let busy = Arc::new(Mutex::new(true));
        let api: Api<Node> = Api::all(client.clone());
        let selector = format!("{} in ({})", names::AGENT_POOL_LABEL, agent_pools.join(","));
        let (seen, works) = (asked.clone(), busy.clone());
        let task = tokio::spawn(async move {
            loop {
                let empties = *works.lock().unwrap();
                if let Err(error) = look(&api, &selector, &seen, empties).await {
                    eprintln!("hands: {error:#}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { asked, busy, task }
    }

    /// Whether nodes are emptied from now on; else drains go on for ever.
    pub fn empty_nodes(&self, empty: bool) {
        *self.busy.lock().unwrap() = empty;
    }

    /// What was asked so far, by time.
    pub fn asked(&self) -> Vec<(String, Asked)> {
        let mut asked: Vec<_> =
            self.asked.lock().unwrap().iter().map(|(name, asked)| (name.clone(), asked.clone())).collect();
        asked.sort_by_key(|(_, asked)| asked.at);
        asked
    }
}

async fn look(
    api: &Api<Node>,
    selector: &str,
    seen: &Mutex<BTreeMap<String, Asked>>,
    empties: bool,
) -> Result<()> {
    for node in api.list(&ListParams::default().labels(selector)).await? {
        let annotation = |key: &str| node.annotations().get(key);
        let request: Option<DrainRequest> =
            annotation(names::DRAIN_REQUEST_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
        let answer: Option<DrainStatus> =
            annotation(names::DRAIN_STATUS_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
        let (cordoned, status) = match (request, answer) {
            (Some(request), answer) => {
                let now = Timestamp::now();
                {
                    let mut seen = seen.lock().unwrap();
                    let asked = Asked { at: now, last_seen: now, reason: request.reason };
                    seen.entry(node.name_any()).or_insert(asked).last_seen = now;
                }
                let phase = if empties { DrainPhase::Drained } else { DrainPhase::Draining };
                if answer.is_some_and(|answer| answer.id == request.id && answer.phase == phase) {
                    continue;
                }
                let status = DrainStatus {
                    id: request.id,
                    phase,
                    pods_left: u32::from(!empties),
                    blocking_pdbs: Vec::new(),
                    cordoned: true,
                };
                (true, json!(serde_json::to_string(&status)?))
            }
            (None, Some(_)) => (false, json!(null)),
            (None, None) => continue,
        };
        let patch = json!({"metadata": {"annotations": {names::DRAIN_STATUS_ANNOTATION: status}},
            "spec": {"unschedulable": cordoned}});
        let patched = api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        // It went while it was looked at.
        if let Err(error) = patched
            && !matches!(&error, kube::Error::Api(status) if status.code == 404)
        {
            return Err(error.into());
        }
    }
    Ok(())
}
