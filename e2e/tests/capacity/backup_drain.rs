//! Rows B and F: a doomed node whose agent is silent. Its pods would die with the VM if the operator did not evict them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::eviction::{Claimant, Phase, Source};
use spotpool_crds::{EvictionNotice, names};
use spotpool_e2e::objects::{create, is_ready, takes_pods};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};
use spotpool_e2e_cluster::Signal;

use crate::world_with_agents;

struct Scene {
    stage: Stage<'static>,
    /// Nodes by name; the agent of the second is frozen.
    nodes: Vec<String>,
}

impl Scene {
    async fn set(name: &str, mode: &str) -> Self {
        let stage = Stage::set(world_with_agents().await, name).await.unwrap();
        stage.agent_pools(&[PoolSpec::spot(name, "Standard_D4s_v5", 2)]).await.unwrap();
        let pools = json!([{"name": name, "maxNodes": 6}]);
        stage.spot_pool("p", json!({"mode": mode, "replicas": 2, "agentPools": pools})).await.unwrap();
        let nodes: Vec<String> = stage.nodes(name).await.unwrap().iter().map(ResourceExt::name_any).collect();
        let scene = Self { stage, nodes };
        scene.signal(Signal::SIGSTOP);
        scene
    }

    fn signal(&self, signal: Signal) {
        self.stage.world.agents.as_ref().unwrap().signal(&self.nodes[1], signal).unwrap();
    }

    /// The operator, once the nodes belong to the SpotPool.
    async fn operator(&self, options: &OperatorOptions) -> spotpool_e2e::Operator {
        let operator = self.stage.operator(options).await.unwrap();
        eventually("the nodes to be marked", async || {
            let nodes = self.stage.nodes(&self.stage.name).await?;
            Ok(nodes.iter().all(|node| node.labels().contains_key(names::POOL_LABEL)).then_some(()))
        })
        .await
        .unwrap();
        operator
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.stage.world.client.clone(), &self.stage.name)
    }

    async fn pod(&self, name: &str, node: usize) {
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"nodeName": self.nodes[node],
            "terminationGracePeriodSeconds": 2, "containers": [{"name": "main", "image": "none"}]}});
        eventually("a pod to be accepted", async || create(&self.pods(), pod.clone()).await.map(Some))
            .await
            .unwrap();
        eventually("a pod to run", async || Ok(Some(self.pods().get(name).await?).filter(is_ready)))
            .await
            .unwrap();
    }

    async fn gone(&self, pod: &str) {
        eventually(&format!("pod {pod} to be gone"), async || {
            Ok(self.pods().get_opt(pod).await?.is_none().then_some(()))
        })
        .await
        .unwrap();
    }

    async fn node(&self, node: usize) -> Node {
        Api::all(self.stage.world.client.clone()).get(&self.nodes[node]).await.unwrap()
    }

    async fn notice(&self, node: usize) -> Option<EvictionNotice> {
        let node = self.node(node).await;
        node.annotations().get(names::EVICTION_ANNOTATION).map(|text| serde_json::from_str(text).unwrap())
    }

    async fn notice_is(
        &self,
        node: usize,
        what: &str,
        holds: impl Fn(&EvictionNotice) -> bool,
    ) -> EvictionNotice {
        let found = eventually(what, async || Ok(self.notice(node).await.filter(&holds))).await;
        match found {
            Ok(notice) => notice,
            Err(error) => panic!("{error:#}: {:?}", self.notice(node).await),
        }
    }

    async fn is_open(&self, node: usize) {
        eventually("the node to take pods again", async || {
            let node = self.node(node).await;
            let tainted = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            let is_marked = tainted.into_iter().any(|taint| taint.key == names::EVICTING_TAINT);
            Ok((takes_pods(&node) && !is_marked).then_some(()))
        })
        .await
        .unwrap();
    }

    async fn evict(&self, notice: Duration) {
        self.stage.world.sim.evict(&self.nodes, notice).await.unwrap();
    }
}

fn by_operator(notice: &EvictionNotice) -> bool {
    notice.by == Claimant::Operator
}

#[test]
fn a_doomed_node_with_a_silent_agent_is_drained_and_its_agent_takes_over_when_it_wakes_up() {
    run(async {
        let scene = Scene::set("backup", "Enforce").await;
        let operator = scene.operator(&OperatorOptions::default()).await;
        scene.pod("a", 0).await;
        scene.pod("b", 1).await;
        scene.evict(Duration::from_mins(2)).await;
        scene.gone("a").await;
        scene.gone("b").await;
        let drained = scene
            .notice_is(1, "the operator to have drained", |it| by_operator(it) && it.phase == Phase::Drained)
            .await;
        assert_eq!((drained.pods.evicted, drained.pods.left, drained.cordoned), (1, 0, true));
        assert_eq!((drained.source, drained.event_type.as_str()), (Source::Imds, "Preempt"));
        assert!(!takes_pods(&scene.node(1).await));
        let other = scene.notice(0).await.unwrap();
        assert_eq!((other.by, other.phase), (Claimant::NodeAgent, Phase::Drained), "its agent is alive");

        scene.signal(Signal::SIGCONT);
        let taken = scene.notice_is(1, "the agent to take over", |it| it.by == Claimant::NodeAgent).await;
        assert_eq!((&taken.event_id, taken.cordoned), (&drained.event_id, true), "the cordon is ours still");
        // And answers for it to the end.
        for node in &scene.nodes {
            scene.stage.world.sim.cancel(node).await.unwrap();
        }
        let over = scene.notice_is(1, "it to be taken back", |it| it.phase == Phase::Cancelled).await;
        assert_eq!(over.by, Claimant::NodeAgent);
        scene.is_open(1).await;
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_notice_that_is_taken_back_after_the_operators_claim_leaves_no_mark() {
    run(async {
        let scene = Scene::set("backout", "Enforce").await;
        let operator = scene.operator(&OperatorOptions::default()).await;
        scene.evict(Duration::from_mins(5)).await;
        scene.notice_is(1, "the operator's claim", by_operator).await;
        for node in &scene.nodes {
            scene.stage.world.sim.cancel(node).await.unwrap();
        }
        scene
            .notice_is(1, "the operator to take its marks off", |it| {
                by_operator(it) && it.phase == Phase::Cancelled && !it.cordoned
            })
            .await;
        scene.is_open(1).await;
        // The agent wakes up and finds nothing to do.
        scene.signal(Signal::SIGCONT);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(by_operator(&scene.notice(1).await.unwrap()));
        scene.is_open(1).await;
        operator.stop().await.unwrap();
    });
}

#[test]
fn the_next_leader_goes_on_with_a_backup_drain() {
    run(async {
        let scene = Scene::set("backlead", "Enforce").await;
        let options = |replica: &str| OperatorOptions {
            replica: replica.into(),
            args: vec!["--lease-duration".into(), "6s".into()],
            ..OperatorOptions::default()
        };
        let first = scene.operator(&options("first")).await;
        scene.pod("held", 1).await;
        let budgets: Api<PodDisruptionBudget> =
            Api::namespaced(scene.stage.world.client.clone(), &scene.stage.name);
        let budget = json!({"metadata": {"name": "held"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "held"}}}});
        create(&budgets, budget).await.unwrap();
        // Long enough for a lease to run out; the budget holds the pod until shortly before the end.
        let spec: Value = json!({"mode": "Enforce", "replicas": 2, "agentPools": [{"name": "backlead", "maxNodes": 6}],
            "drain": {"escalateAfter": "25s"}});
        scene.stage.spot_pool("p", spec).await.unwrap();
        scene.evict(Duration::from_secs(50)).await;
        scene
            .notice_is(1, "the drain to be under way", |it| by_operator(it) && it.phase == Phase::Draining)
            .await;
        first.process.kill().unwrap();
        let _second = scene.stage.operator(&options("second")).await.unwrap();
        scene.gone("held").await;
        let drained = scene.notice_is(1, "the next leader to end it", |it| it.phase == Phase::Drained).await;
        assert_eq!((drained.by, drained.pods.escalated), (Claimant::Operator, 1));
        let state = scene.stage.world.sim.state().await.unwrap();
        assert!(state.killed_pods.iter().all(|pod| pod.namespace != "backlead"), "{:?}", state.killed_pods);
    });
}

#[test]
fn under_observe_nobody_drains_in_the_agents_stead() {
    run(async {
        let scene = Scene::set("backlook", "Observe").await;
        let operator = scene.operator(&OperatorOptions::default()).await;
        scene.pod("b", 1).await;
        scene.evict(Duration::from_mins(2)).await;
        scene.notice_is(0, "the other's notice", |it| it.phase == Phase::Drained).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(scene.notice(1).await, None);
        assert!(is_ready(&scene.pods().get("b").await.unwrap()));
        scene.signal(Signal::SIGCONT);
        operator.stop().await.unwrap();
    });
}

#[test]
fn the_detectors_word_is_enough_where_the_agent_is_not_ready_and_counts_for_nothing_where_it_is() {
    run(async {
        let scene = Scene::set("backnpd", "Enforce").await;
        let operator = scene.operator(&OperatorOptions::default()).await;
        scene.pod("a", 0).await;
        scene.pod("b", 1).await;
        let due = Timestamp::now() + Duration::from_mins(2);
        let condition = async |node: usize, status: &str| {
            let now = format!("{:.0}", Timestamp::now());
            let message =
                format!("Preempt Scheduled: {}. EventId: NPD", due.strftime("%a, %d %b %Y %H:%M:%S GMT"));
            let condition = json!({"type": names::PREEMPTION_SCHEDULED_CONDITION, "status": status,
                "reason": "SpotEvictionIncoming", "message": message, "lastHeartbeatTime": now, "lastTransitionTime": now});
            let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
            let nodes: Api<Node> = Api::all(scene.stage.world.client.clone());
            nodes.patch_status(&scene.nodes[node], &PatchParams::default(), &patch).await.unwrap();
        };
        condition(0, "True").await;
        condition(1, "True").await;
        scene.gone("b").await;
        let notice =
            scene.notice_is(1, "the operator to have drained", |it| it.phase == Phase::Drained).await;
        assert_eq!((notice.by, notice.source), (Claimant::Operator, Source::NodeProblemDetector));
        condition(1, "False").await;
        scene.notice_is(1, "it to be taken back", |it| it.phase == Phase::Cancelled).await;
        scene.is_open(1).await;
        assert_eq!(
            scene.notice(0).await,
            None,
            "the metadata service knows of nothing, and its agent listens"
        );
        assert!(is_ready(&scene.pods().get("a").await.unwrap()));
        scene.signal(Signal::SIGCONT);
        operator.stop().await.unwrap();
    });
}
