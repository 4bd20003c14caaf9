//! Plays the kubelet for the agent's Pods: a real agent process for each, with that Pod's own token, its
//! `/readyz` copied into the Pod's Ready condition.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::client::SimClient;
use spotpool_crds::names;
use spotpool_e2e_cluster::{Cluster, Program, Signal, Supervised, free_port};
use tokio::task::JoinHandle;

use crate::eventually;
use crate::objects::object;

/// The apiserver grants no shorter tokens.
const TOKEN_SECONDS: i64 = 600;
/// How often processes and Pods are looked after.
const LOOK: Duration = Duration::from_millis(200);

/// The agents that run.
pub struct Agents {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    cluster: Arc<Cluster>,
    sim: SimClient,
    program: PathBuf,
    args: Vec<String>,
    dir: PathBuf,
    http: reqwest::Client,
    running: Mutex<BTreeMap<String, Agent>>,
    /// Where the apiserver seems to be, by node.
    detours: Mutex<BTreeMap<String, String>>,
    probe_millis: AtomicU64,
}

/// One agent, by node name.
struct Agent {
    pod_uid: String,
    process: Arc<Supervised>,
    admin: u16,
    notice: u16,
    task: JoinHandle<()>,
}

impl Agents {
    /// Starts playing. `args` are given to every agent beyond node name, metadata address and ports.
    pub async fn start(
        cluster: Arc<Cluster>,
        sim: SimClient,
        program: &Path,
        args: Vec<String>,
    ) -> Result<Self> {
        let client = cluster.client().await?;
        let shared = Arc::new(Shared {
            dir: cluster.dir().join("agents"),
            cluster,
            sim,
            program: program.to_owned(),
            args,
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?,
            running: Mutex::default(),
            detours: Mutex::default(),
            probe_millis: AtomicU64::new(LOOK.as_millis() as u64),
        });
        std::fs::create_dir_all(&shared.dir)?;
        let task = tokio::spawn(play(shared.clone(), client));
        Ok(Self { shared, task })
    }

    /// The agent process of a node, if one runs now.
    pub fn process(&self, node: &str) -> Option<Arc<Supervised>> {
        self.shared.running().get(node).map(|agent| agent.process.clone())
    }

    /// Where the agent of a node serves `/metrics` and `/readyz`.
    pub fn admin_url(&self, node: &str) -> Option<String> {
        self.shared.running().get(node).map(|agent| format!("http://127.0.0.1:{}", agent.admin))
    }

    /// Where the agent of a node relays its notice.
    pub fn notice_url(&self, node: &str) -> Option<String> {
        self.shared.running().get(node).map(|agent| format!("http://127.0.0.1:{}/v1/notice", agent.notice))
    }

    /// Probes the readiness of every agent, and looks after its Pod, at most this often from now on, as a kubelet does
    /// each `periodSeconds`. By default that is five times a second.
    pub fn probe_every(&self, period: Duration) {
        self.shared.probe_millis.store(period.as_millis() as u64, Ordering::Relaxed);
    }

    /// The log of a node's agent.
    pub fn log(&self, node: &str) -> PathBuf {
        self.shared.dir.join(format!("{node}.log"))
    }

    /// Leads the agent of a node to the apiserver by way of `server` from now on. It is started anew for that.
    pub async fn lead_through(&self, node: &str, server: &str) -> Result<()> {
        self.shared.detours().insert(node.to_owned(), server.to_owned());
        self.shared.detour(node, &self.shared.kubeconfig(node))?;
        self.start_anew(node).await
    }

    /// Ends the agent of a node at once and waits until the next one is ready.
    pub async fn start_anew(&self, node: &str) -> Result<()> {
        let last = self.process(node).with_context(|| format!("no agent runs for {node}"))?;
        last.kill()?;
        eventually(&format!("the next agent of {node}"), async || {
            let next = self.process(node).filter(|next| next.id() != last.id());
            let Some(url) = next.and_then(|_| self.admin_url(node)) else { return Ok(None) };
            let answer = self.shared.http.get(format!("{url}/readyz")).send().await?;
            Ok(answer.status().is_success().then_some(()))
        })
        .await
    }

    /// The token that a node's agent should sign in with now.
    pub fn token(&self, node: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.shared.kubeconfig(node).with_extension("kubeconfig.token"))?)
    }

    /// Gives the agent of a node another token, as the kubelet does before the last one runs out.
    pub async fn renew_token(&self, node: &str) -> Result<()> {
        let client = self.shared.cluster.client().await?;
        let on_node = ListParams::default()
            .labels(&format!("{}={}", names::APP_NAME_LABEL, names::AGENT_APP_NAME))
            .fields(&format!("spec.nodeName={node}"));
        let pod = Api::<Pod>::all(client.clone()).list(&on_node).await?.items.pop();
        let pod = pod.with_context(|| format!("{node} has no agent's Pod"))?;
        sign_in(&self.shared, &client, node, &pod).await
    }

    /// Sends a signal to a node's agent. A killed one is started again at once.
    pub fn signal(&self, node: &str, signal: Signal) -> Result<()> {
        self.process(node).with_context(|| format!("no agent runs for {node}"))?.signal(signal)
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.task.abort();
        for (_, agent) in std::mem::take(&mut *self.shared.running()) {
            agent.task.abort();
        }
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Agent>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn detours(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.detours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kubeconfig(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.kubeconfig"))
    }

    fn detour(&self, node: &str, kubeconfig: &Path) -> Result<()> {
        if let Some(server) = self.detours().get(node) {
            let text = std::fs::read_to_string(kubeconfig)?.replace(self.cluster.server_url(), server);
            std::fs::write(kubeconfig, text)?;
        }
        Ok(())
    }
}

/// Follows the agent's Pods for ever, through restarts of the apiserver.
async fn play(shared: Arc<Shared>, client: Client) {
    let pods: Api<Pod> = Api::all(client.clone());
    let selector = format!("{}={}", names::APP_NAME_LABEL, names::AGENT_APP_NAME);
    let mut changes = watcher(pods, watcher::Config::default().labels(&selector))
        .default_backoff()
        .applied_objects()
        .boxed();
    loop {
        match changes.try_next().await {
            Ok(Some(pod)) => follow(&shared, &client, pod).await,
            Ok(None) => return,
            // While a test has stopped the apiserver.
            Err(_) => {}
        }
    }
}

async fn follow(shared: &Arc<Shared>, client: &Client, pod: Pod) {
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { return };
    let uid = pod.uid().unwrap_or_default();
    let known = shared.running().get(&node).is_some_and(|agent| agent.pod_uid == uid);
    if pod.metadata.deletion_timestamp.is_some() {
        if known {
            // As the kubelet does; its keeper sees the end and reports the Pod gone.
            if let Some(agent) = shared.running().get(&node) {
                let _ = agent.process.term();
            }
        } else {
            gone(client, &pod).await;
        }
        return;
    }
    if known {
        return;
    }
    if let Err(error) = run(shared, client, &node, &pod).await {
        eprintln!("the agent of {node} cannot be started: {error:#}");
    }
}

async fn run(shared: &Arc<Shared>, client: &Client, node: &str, pod: &Pod) -> Result<()> {
    sign_in(shared, client, node, pod).await?;
    let (process, admin, notice) = launch(shared, node)?;
    let task = tokio::spawn(keep(shared.clone(), client.clone(), node.to_owned(), pod.clone()));
    let agent =
        Agent { pod_uid: pod.uid().unwrap_or_default(), process: Arc::new(process), admin, notice, task };
    if let Some(old) = shared.running().insert(node.to_owned(), agent) {
        old.task.abort();
    }
    Ok(())
}

fn launch(shared: &Shared, node: &str) -> Result<(Supervised, u16, u16)> {
    let (admin, notice) = (free_port()?, free_port()?);
    let process = Program::new(format!("agent of {node}"), &shared.program)
        .args(["--node-name", node, "--imds-endpoint", &shared.sim.imds_endpoint(node)])
        .args(["--listen", &format!("127.0.0.1:{admin}"), "--notice-listen", &format!("127.0.0.1:{notice}")])
        .arg("--kubeconfig")
        .arg(shared.kubeconfig(node))
        .args(&shared.args)
        .log(shared.dir.join(format!("{node}.log")))
        .spawn()?;
    Ok((process, admin, notice))
}

/// Writes the agent's kubeconfig with a fresh token.
async fn sign_in(shared: &Shared, client: &Client, node: &str, pod: &Pod) -> Result<()> {
    let token = issue(client, pod).await?;
    let account =
        pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let namespace = pod.namespace().unwrap_or_default();
    let kubeconfig = shared.kubeconfig(node);
    shared.cluster.service_account_kubeconfig(&namespace, account, &token, &kubeconfig)?;
    shared.detour(node, &kubeconfig)
}

/// A token that names this very Pod, as the kubelet would project it.
pub async fn issue(client: &Client, pod: &Pod) -> Result<String> {
    let namespace = pod.namespace().unwrap_or_default();
    let account =
        pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or("default".into());
    let request: TokenRequest = object(json!({"metadata": {}, "spec": {
        "audiences": [], "expirationSeconds": TOKEN_SECONDS,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "uid": pod.uid()}
    }}))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let request = accounts.create_token_request(&account, &PostParams::default(), &request).await?;
    Ok(request.status.context("the apiserver gave no token")?.token)
}

/// Restarts the agent when it crashes, renews its token, copies its readiness, and reports the Pod's end.
async fn keep(shared: Arc<Shared>, client: Client, node: String, pod: Pod) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let mut reported = None;
    let mut issued = Instant::now();
    let mut probed = None::<Instant>;
    loop {
        let Some((process, admin)) =
            shared.running().get(&node).map(|agent| (agent.process.clone(), agent.admin))
        else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let ended = tokio::select! {
            _ = process.wait() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        // A Pod that ends is seen by the watch, and its process is asked to end; so looking is for those that vanish.
        let period = Duration::from_millis(shared.probe_millis.load(Ordering::Relaxed));
        if !ended && probed.is_some_and(|probed| probed.elapsed() < period.saturating_sub(LOOK)) {
            continue;
        }
        probed = Some(Instant::now());
        let live = pods.get_opt(&pod.name_any()).await;
        let live = match live {
            Ok(live) => live.filter(|live| live.uid() == pod.uid()),
            // The apiserver is away: the kubelet goes on with what it has.
            Err(_) => Some(pod.clone()),
        };
        match live {
            None => {
                // The Pod is gone with its VM: so is the process.
                let _ = process.kill();
                shared.running().remove(&node);
                return;
            }
            Some(live) if live.metadata.deletion_timestamp.is_some() => {
                let _ = process.term();
                if ended {
                    gone(&client, &live).await;
                    shared.running().remove(&node);
                    return;
                }
                continue;
            }
            Some(_) => {}
        }
        if ended {
            if let Ok((process, admin, notice)) = launch(&shared, &node)
                && let Some(agent) = shared.running().get_mut(&node)
            {
                (agent.process, agent.admin, agent.notice) = (Arc::new(process), admin, notice);
            }
            continue;
        }
        if issued.elapsed() > Duration::from_secs(TOKEN_SECONDS as u64 / 2)
            && sign_in(&shared, &client, &node, &pod).await.is_ok()
        {
            issued = Instant::now();
        }
        let answer = shared.http.get(format!("http://127.0.0.1:{admin}/readyz")).send().await;
        let ready = answer.is_ok_and(|answer| answer.status().is_success());
        if reported != Some(ready) && report(&pods, &pod, ready).await.is_ok() {
            reported = Some(ready);
        }
    }
}

async fn report(pods: &Api<Pod>, pod: &Pod, ready: bool) -> Result<()> {
    let text = if ready { "True" } else { "False" };
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
    let container = json!({"name": "agent", "image": "spotpool-node-agent", "imageID": "", "ready": ready,
        "restartCount": 0, "started": true, "state": {"running": {}}});
    let status = json!({"status": {"phase": "Running", "containerStatuses": [container], "conditions": [
        condition("Initialized", "True"), condition("PodScheduled", "True"),
        condition("ContainersReady", text), condition("Ready", text),
    ]}});
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Tells the apiserver that the Pod has ended.
async fn gone(client: &Client, pod: &Pod) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    // Whoever else saw its end may have been faster.
    let _ = pods.delete(&pod.name_any(), &params).await;
}
