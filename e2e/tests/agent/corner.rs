//! One test's own nodes, each with a real agent, and what can be seen of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{EventRequest, EventState, PoolSpec, SettingsPatch, Targets};
use spotpool_azure_sim::client::SimClient;
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::BlockedByPdb;
use spotpool_crds::told::{self, Author};
use spotpool_crds::voluntary_drain::DrainStatus;
use spotpool_crds::{EvictionNotice, Reason, names};
use spotpool_e2e::gateway::Gateway;
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::wire::OpenWire;
use spotpool_e2e::world::SYSTEM_NAMESPACE;
use spotpool_e2e::{Agents, Stage, World, WorldOptions, eventually};
use spotpool_e2e_cluster::STOP_AFTER_ANNOTATION;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::task::JoinHandle;

/// How long the agents of this world wait for a budget, where no policy says.
pub const ESCALATE_AFTER: Duration = Duration::from_secs(3);
/// How often they poll.
pub const POLL: Duration = Duration::from_millis(300);

/// The test that takes the apiserver away has the world alone.
static WORLD: OnceCell<RwLock<World>> = OnceCell::const_new();

async fn world() -> &'static RwLock<World> {
    WORLD
        .get_or_init(async || {
            let mut options = WorldOptions {
                agent_args: vec![
                    format!("--poll-interval={}ms", POLL.as_millis()),
                    format!("--escalate-after={}s", ESCALATE_AFTER.as_secs()),
                    "--log-level=info,spotpool_node_agent=debug,spotpool_drain=debug".into(),
                ],
                ..WorldOptions::default()
            };
            options.cluster.audit_log = true;
            let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/agent-audit.yaml");
            options.cluster.apiserver_args = vec![format!("--audit-policy-file={policy}")];
            let world = World::start(options).await.unwrap();
            // A node is looked at for a while after its time has come; what had to be done in time is compared
            // with the announced time, not with the end.
            let grace = Some(Duration::from_secs(5));
            let settings =
                SettingsPatch { kill_after: grace, started_for: grace, ..SettingsPatch::default() };
            world.sim.change_settings(&settings).await.unwrap();
            RwLock::new(world)
        })
        .await
}

pub async fn shared() -> RwLockReadGuard<'static, World> {
    world().await.read().await
}

pub async fn alone() -> RwLockWriteGuard<'static, World> {
    world().await.write().await
}

/// A namespace and an agent pool of its own, of the same name.
pub struct Corner<'a> {
    pub stage: Stage<'a>,
    pub nodes: Vec<String>,
}

/// A request of an agent, as the apiserver's audit log has it.
#[derive(Debug)]
pub struct Asked {
    pub verb: String,
    /// With its group and subresource: `pods/eviction`, `events.k8s.io/events`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub at: Timestamp,
    pub answered_at: Timestamp,
    pub code: u64,
    pub body: Value,
}

impl<'a> Corner<'a> {
    pub async fn set(world: &'a World, name: &str, nodes: u32) -> Self {
        Self::of(world, name, PoolSpec::spot(name, "Standard_D4s_v5", nodes)).await
    }

    /// With an agent pool of this kind.
    pub async fn of(world: &'a World, name: &str, pool: PoolSpec) -> Self {
        let stage = Stage::set(world, name).await.unwrap();
        stage.agent_pools(&[pool]).await.unwrap();
        let nodes = stage.nodes(name).await.unwrap().iter().map(ResourceExt::name_any).collect();
        Self { stage, nodes }
    }

    pub fn agents(&self) -> &Agents {
        self.stage.world.agents.as_ref().unwrap()
    }

    pub fn sim(&self) -> &SimClient {
        &self.stage.world.sim
    }

    pub fn node_api(&self) -> Api<Node> {
        Api::all(self.stage.world.client.clone())
    }

    pub fn pod_api(&self) -> Api<Pod> {
        Api::namespaced(self.stage.world.client.clone(), &self.stage.name)
    }

    pub async fn look(&self, node: &str) -> Looks {
        Looks::of(&self.node_api().get(node).await.unwrap())
    }

    /// Waits until the node looks as wanted; on failure tells how it looks and what its agent says.
    pub async fn node_is(&self, node: &str, what: &str, holds: impl Fn(&Looks) -> bool) -> Looks {
        let looked =
            eventually(what, async || Ok(Some(Looks::of(&self.node_api().get(node).await?)).filter(&holds)))
                .await;
        match looked {
            Ok(looks) => looks,
            Err(error) => panic!("{error:#}; {node} is {:?}; {}", self.look(node).await, self.log(node)),
        }
    }

    /// Waits until the notice on the node is in this phase.
    pub async fn phase_is(&self, node: &str, phase: Phase) -> EvictionNotice {
        let in_phase = |looks: &Looks| looks.notice.as_ref().is_some_and(|notice| notice.phase == phase);
        self.node_is(node, &format!("the notice to be {phase:?}"), in_phase).await.notice.unwrap()
    }

    /// Waits until the answer to a drain request is as wanted.
    pub async fn answer_is(
        &self,
        node: &str,
        what: &str,
        holds: impl Fn(&DrainStatus) -> bool,
    ) -> DrainStatus {
        self.node_is(node, what, |looks| looks.answer.as_ref().is_some_and(&holds)).await.answer.unwrap()
    }

    /// The end of an agent's log.
    pub fn log(&self, node: &str) -> String {
        let log = std::fs::read_to_string(self.agents().log(node)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(40).collect();
        format!("its agent said:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Pods on a node that end 300 ms after they are told, once they are Running.
    pub async fn pods(&self, node: &str, pods: &[&str]) -> Vec<Pod> {
        let plain = json!({});
        join_all(pods.iter().map(|name| self.pod(node, name, &plain))).await
    }

    /// The same for one that differs in something.
    pub async fn pod(&self, node: &str, name: &str, change: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "labels": {"app": name}, "annotations": {STOP_AFTER_ANNOTATION: "300ms"}},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        });
        merge(&mut pod, change);
        // The namespace gets its ServiceAccount a moment after it was made.
        eventually(&format!("pod {name} to be accepted"), async || {
            create(&self.pod_api(), pod.clone()).await.map(Some)
        })
        .await
        .unwrap();
        eventually(&format!("pod {name} to run"), async || {
            Ok(Some(self.pod_api().get(name).await?).filter(is_ready))
        })
        .await
        .unwrap()
    }

    /// A DaemonSet on the nodes of this corner; its pod on `node`, once it runs.
    pub async fn daemon_set(&self, name: &str, node: &str) -> Pod {
        let sets: Api<DaemonSet> = Api::namespaced(self.stage.world.client.clone(), &self.stage.name);
        let labels = json!({"daemon": name});
        let spec = json!({"nodeSelector": {names::AGENT_POOL_LABEL: self.stage.name},
            "tolerations": [{"operator": "Exists"}], "containers": [{"name": "main", "image": "none"}]});
        let template = json!({"metadata": {"labels": labels}, "spec": spec});
        let spec = json!({"selector": {"matchLabels": labels}, "template": template});
        create(&sets, json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
        let selected =
            ListParams::default().labels(&format!("daemon={name}")).fields(&format!("spec.nodeName={node}"));
        eventually(&format!("the pod of DaemonSet {name}"), async || {
            Ok(self.pod_api().list(&selected).await?.into_iter().find(is_ready))
        })
        .await
        .unwrap()
    }

    /// Whether the Pod of this node's agent is Ready.
    pub async fn agent_is_ready(&self, node: &str) -> Result<bool> {
        let pods: Api<Pod> = Api::namespaced(self.stage.world.client.clone(), SYSTEM_NAMESPACE);
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        Ok(pods.list(&on_node).await?.iter().any(is_ready))
    }

    /// Puts a gateway between a node's agent and the apiserver. The agent is started anew for that.
    pub async fn gateway(&self, node: &str) -> Gateway {
        let gateway = Gateway::start(self.stage.world.cluster.admin_kubeconfig()).await.unwrap();
        self.agents().lead_through(node, &gateway.url).await.unwrap();
        gateway
    }

    /// The same with a bare wire.
    pub async fn wire(&self, node: &str) -> OpenWire {
        let wire = OpenWire::to(self.stage.world.cluster.server_url()).await.unwrap();
        self.agents().lead_through(node, &wire.url).await.unwrap();
        wire
    }

    /// The memory that a node's agent has now.
    pub fn resident_kib(&self, node: &str) -> u64 {
        let process = self.agents().process(node).unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A budget for the pods of this label `app`, once it counts `healthy` of them.
    pub async fn budget(&self, app: &str, min_available: i32, healthy: i32) {
        let budgets: Api<PodDisruptionBudget> =
            Api::namespaced(self.stage.world.client.clone(), &self.stage.name);
        let spec = json!({"minAvailable": min_available, "selector": {"matchLabels": {"app": app}}});
        create(&budgets, json!({"metadata": {"name": app}, "spec": spec})).await.unwrap();
        eventually("the budget to count its pods", async || {
            let status = budgets.get(app).await?.status.unwrap_or_default();
            Ok((status.current_healthy == healthy).then_some(()))
        })
        .await
        .unwrap();
    }

    /// Takes that budget away: whatever it held may go.
    pub async fn no_budget(&self, app: &str) {
        let budgets: Api<PodDisruptionBudget> =
            Api::namespaced(self.stage.world.client.clone(), &self.stage.name);
        budgets.delete(app, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until all of these pods are gone.
    pub async fn gone(&self, pods: &[Pod]) {
        for pod in pods {
            eventually(&format!("pod {} to be gone", pod.name_any()), async || {
                let now = self.pod_api().get_opt(&pod.name_any()).await?;
                Ok(now.is_none_or(|now| now.uid() != pod.uid()).then_some(()))
            })
            .await
            .unwrap();
        }
    }

    /// Whether this very pod lives and nobody has asked it to end.
    pub async fn is_untouched(&self, pod: &Pod) -> bool {
        let now = self.pod_api().get_opt(&pod.name_any()).await.unwrap();
        now.is_some_and(|now| now.uid() == pod.uid() && now.metadata.deletion_timestamp.is_none())
    }

    pub async fn evict(&self, nodes: &[&str], notice: Duration) -> Vec<EventState> {
        self.sim().evict(nodes, notice).await.unwrap()
    }

    /// Puts annotations on a node, or takes them off.
    pub async fn annotate(&self, node: &str, annotations: Value) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        self.node_api().patch(node, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The operator's part: what the SpotPool says about drains.
    pub async fn policy(&self, node: &str, blocked: BlockedByPdb, escalate_after: Duration) {
        let policy = json!({"pool": "p", "namespace": self.stage.name, "mode": "Enforce", "hash": "h",
            "drain": {"blockedByPdb": blocked, "escalateAfter": format!("{}s", escalate_after.as_secs()), "reserve": "4s"}});
        self.annotate(node, json!({names::POLICY_ANNOTATION: policy.to_string()})).await;
    }

    /// The sum of a metric's samples whose line contains `part`.
    pub async fn metric(&self, node: &str, name: &str, part: &str) -> f64 {
        self.metrics(node).await.map_or(0.0, |text| {
            let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(part));
            samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        })
    }

    async fn metrics(&self, node: &str) -> Option<String> {
        let url = self.agents().admin_url(node)?;
        reqwest::get(format!("{url}/metrics")).await.ok()?.text().await.ok()
    }

    /// Waits until a metric is at least `least`.
    pub async fn counted(&self, node: &str, name: &str, part: &str, least: f64) {
        let counted = eventually(&format!("{name} {part} to be {least}"), async || {
            Ok((self.metric(node, name, part).await >= least).then_some(()))
        })
        .await;
        if let Err(error) = counted {
            panic!("{error:#}; {:?}; {}", self.metrics(node).await, self.log(node));
        }
    }

    /// Waits for an Event of this reason about an object of this name.
    pub async fn event(&self, reason: Reason, about: &str) -> Event {
        let events: Api<Event> = Api::all(self.stage.world.client.clone());
        eventually(&format!("an Event {reason} about {about}"), async || {
            let events = events.list(&ListParams::default().fields(&format!("reason={reason}"))).await?;
            // Other corners have pods of the same names.
            let is_here = |namespace: &Option<String>| {
                namespace.as_ref().is_none_or(|namespace| *namespace == self.stage.name)
            };
            let is_about = |event: &Event| {
                event.regarding.as_ref().is_some_and(|regarding| {
                    regarding.name.as_deref() == Some(about) && is_here(&regarding.namespace)
                })
            };
            let found = events.into_iter().find(is_about);
            if let Some(kind) = found.as_ref().and_then(|event| event.regarding.as_ref()?.kind.as_deref()) {
                assert!(
                    told::find(Author::NodeAgent, kind, reason.as_ref()).is_some(),
                    "{reason} on a {kind}"
                );
            }
            Ok(found)
        })
        .await
        .unwrap()
    }

    /// Everything that the agent of a node has asked of the apiserver, oldest first.
    pub fn asked(&self, node: &str) -> Vec<Asked> {
        let log = std::fs::read_to_string(self.stage.world.cluster.audit_log().unwrap()).unwrap();
        let lines = log.lines().filter(|line| line.contains(node));
        lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["user"]["extra"]["authentication.kubernetes.io/node-name"][0] == node)
            .map(|line| Asked::read(&line).with_context(|| line.to_string()).unwrap())
            .collect()
    }

    /// What it asked of the pods of this corner: evictions (`create`) and deletions (`delete`).
    pub fn asked_of_pods(&self, node: &str, verb: &str) -> Vec<Asked> {
        let of_pods =
            |asked: &Asked| asked.resource.starts_with("pods") && asked.namespace == self.stage.name;
        self.asked(node).into_iter().filter(|asked| of_pods(asked) && asked.verb == verb).collect()
    }

    /// Follows all that becomes of a node from now on.
    pub async fn history(&self, node: &str) -> History {
        let versions = Arc::new(Mutex::new(Vec::<Looks>::new()));
        let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
        let mut changes = watcher(self.node_api(), config).default_backoff().applied_objects().boxed();
        let seen = versions.clone();
        let task = tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                if let Ok(node) = change {
                    seen.lock().unwrap().push(Looks::of(&node));
                }
            }
        });
        let history = History { versions, task };
        eventually("the node to be followed", async || Ok((!history.versions().is_empty()).then_some(())))
            .await
            .unwrap();
        history
    }

    /// What Azure does about events other than a Preempt is up to a policy: writes one for a node.
    pub async fn events(&self, node: &str, events: Value) {
        let policy = json!({"pool": "p", "namespace": self.stage.name, "mode": "Enforce", "hash": "h", "events": events,
            "drain": {"blockedByPdb": "DeleteAtDeadline", "escalateAfter": "3s", "reserve": "2s"}});
        self.annotate(node, json!({names::POLICY_ANNOTATION: policy.to_string()})).await;
    }

    /// Schedules one event that names all of these nodes.
    pub async fn schedule(&self, kind: &str, nodes: &[&str], notice: Duration) -> EventState {
        let mut request = EventRequest::new(kind, Targets::named(nodes), notice);
        request.together = true;
        self.sim().schedule(&request).await.unwrap().remove(0)
    }

    /// Sets a condition of a node, as the kubelet or the node problem detector does.
    pub async fn condition(&self, node: &str, kind: &str, status: &str, message: &str) {
        let now = format!("{:.0}", Timestamp::now());
        let condition = json!({"type": kind, "status": status, "reason": "SpotEvictionIncoming", "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now});
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        self.node_api().patch_status(node, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Acknowledgements of this event.
    pub async fn acknowledged(&self, event_id: &str) -> usize {
        let state = self.sim().state().await.unwrap();
        state.acks.iter().filter(|ack| ack.event_id.eq_ignore_ascii_case(event_id)).count()
    }

    /// No pod of this corner has died with its VM, and no event of its was ever acknowledged.
    pub async fn nothing_was_lost(&self) {
        let state = self.sim().state().await.unwrap();
        let killed: Vec<_> =
            state.killed_pods.iter().filter(|pod| pod.namespace == self.stage.name).collect();
        assert!(killed.is_empty(), "{killed:?}");
        let acks: Vec<_> = state.acks.iter().filter(|ack| self.nodes.contains(&ack.node)).collect();
        assert!(acks.is_empty(), "{acks:?}");
    }
}

impl Asked {
    fn read(line: &Value) -> Option<Self> {
        let object = &line["objectRef"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut resource = text(&object["resource"]);
        if let Some(group) = object["apiGroup"].as_str() {
            resource = format!("{group}/{resource}");
        }
        let resource = match object["subresource"].as_str() {
            // The group of an eviction's body; the rights are those of the pod.
            Some("eviction") => "pods/eviction".to_owned(),
            Some(subresource) => format!("{resource}/{subresource}"),
            None => resource,
        };
        Some(Self {
            verb: text(&line["verb"]),
            resource,
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            at: line["requestReceivedTimestamp"].as_str()?.parse().ok()?,
            answered_at: line["stageTimestamp"].as_str()?.parse().ok()?,
            code: line["responseStatus"]["code"].as_u64().unwrap_or_default(),
            body: line["requestObject"].clone(),
        })
    }
}

/// How a node looks to whoever schedules on it.
#[derive(Clone, Debug)]
pub struct Looks {
    pub notice: Option<EvictionNotice>,
    pub answer: Option<DrainStatus>,
    pub cordoned: bool,
    /// Value and effect of our taint.
    pub taint: Option<(String, String)>,
    pub other_taints: Vec<String>,
    pub excluded: bool,
    /// Status, reason and message of condition EvictionNoticed.
    pub condition: Option<[String; 3]>,
}

impl Looks {
    pub fn of(node: &Node) -> Self {
        fn parsed<T: serde::de::DeserializeOwned>(
            annotations: &BTreeMap<String, String>,
            key: &str,
        ) -> Option<T> {
            let text = annotations.get(key)?;
            Some(serde_json::from_str(text).with_context(|| text.clone()).unwrap())
        }
        let spec = node.spec.clone().unwrap_or_default();
        let taints = spec.taints.unwrap_or_default();
        let (ours, others): (Vec<_>, Vec<_>) =
            taints.into_iter().partition(|taint| taint.key == names::EVICTING_TAINT);
        assert!(ours.len() <= 1, "{ours:?}");
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        Self {
            notice: parsed(node.annotations(), names::EVICTION_ANNOTATION),
            answer: parsed(node.annotations(), names::DRAIN_STATUS_ANNOTATION),
            cordoned: spec.unschedulable.unwrap_or(false),
            taint: ours.into_iter().next().map(|taint| (taint.value.unwrap_or_default(), taint.effect)),
            other_taints: others.into_iter().map(|taint| taint.key).collect(),
            excluded: node.labels().contains_key(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL),
            condition: conditions.into_iter().find(|it| it.type_ == names::EVICTION_NOTICED_CONDITION).map(
                |it| {
                    [
                        it.status.clone(),
                        it.reason.clone().unwrap_or_default(),
                        it.message.clone().unwrap_or_default(),
                    ]
                },
            ),
        }
    }

    /// Cordoned, tainted, labelled and annotated with a notice that holds.
    pub fn is_marked(&self) -> bool {
        let noticed = self.notice.as_ref().is_some_and(EvictionNotice::is_active);
        noticed
            && self.cordoned
            && self.excluded
            && self.taint == Some(("Preempt".into(), "NoSchedule".into()))
    }

    /// None of these, except for the memory of a notice that was taken back.
    pub fn is_clean(&self) -> bool {
        let noticed = self.notice.as_ref().is_some_and(EvictionNotice::is_active);
        !noticed && !self.cordoned && !self.excluded && self.taint.is_none()
    }
}

/// What became of a node, version by version.
pub struct History {
    versions: Arc<Mutex<Vec<Looks>>>,
    task: JoinHandle<()>,
}

impl History {
    pub fn versions(&self) -> Vec<Looks> {
        self.versions.lock().unwrap().clone()
    }

    /// The first version with marks, having seen that none had only some of them.
    pub async fn marked_in_one_write(&self) -> Looks {
        // The watch may be behind, after an outage by seconds.
        let has_marks = async || Ok(self.versions().iter().any(Looks::is_marked).then_some(()));
        eventually("the history to tell of the marks", has_marks).await.unwrap();
        let versions = self.versions();
        for looks in &versions {
            assert!(looks.is_marked() || looks.is_clean(), "half marked: {looks:?}");
        }
        versions.into_iter().find(Looks::is_marked).expect("marked at some time")
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whole seconds, as in Azure's dates.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap()
}

/// A JSON merge patch.
fn merge(target: &mut Value, patch: &Value) {
    match (target.as_object_mut(), patch.as_object()) {
        (Some(fields), Some(changes)) => {
            for (key, change) in changes {
                if change.is_null() {
                    fields.remove(key);
                } else {
                    merge(fields.entry(key).or_insert(Value::Null), change);
                }
            }
        }
        _ => *target = patch.clone(),
    }
}
