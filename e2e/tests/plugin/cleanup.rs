//! What SpotPool leaves on a cluster when it goes in the middle of its work, and that it can be taken off.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::names;
use spotpool_e2e::objects::{create, is_ready, marks};
use spotpool_e2e::world::SYSTEM_NAMESPACE;
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, eventually, run};

use crate::{Plugin, is_one_sentence};

#[test]
fn what_is_left_when_spot_pool_goes_in_the_middle_of_its_work_is_taken_off() {
    run(async {
        let world = World::start(WorldOptions::default()).await.unwrap();
        let stage = Stage::set(&world, "leftover").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("leftover", "Standard_D4s_v5", 3)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "leftover", "maxNodes": 3}]);
        stage.spot_pool("p", json!({"replicas": 3, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "3 ready", |status| status.ready_replicas == 3).await.unwrap();
        let plugin = Plugin::new(&world.programs.kubectl_plugin, world.cluster.admin_kubeconfig());
        let names: Vec<String> =
            stage.nodes("leftover").await.unwrap().iter().map(ResourceExt::name_any).collect();
        let [doomed, drained, quiet] = &names[..] else { panic!("{names:?}") };

        // One is under notice, one is drained without end: a budget holds its pod.
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), "leftover");
        let pod = json!({"metadata": {"name": "held", "labels": {"app": "held"}},
            "spec": {"nodeName": drained, "containers": [{"name": "main", "image": "none"}]}});
        eventually("the pod to be accepted", async || create(&pods, pod.clone()).await.map(Some))
            .await
            .unwrap();
        eventually("the pod to run", async || Ok(Some(pods.get("held").await?).filter(is_ready)))
            .await
            .unwrap();
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "leftover");
        let budget = json!({"metadata": {"name": "held"},
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "held"}}}});
        create(&budgets, budget).await.unwrap();
        assert!(plugin.ok(&format!("drain {drained}")).await.contains("granted"));
        world.sim.evict(std::slice::from_ref(doomed), Duration::from_mins(30)).await.unwrap();
        let nodes: Api<Node> = Api::all(world.client.clone());
        eventually("both to be closed", async || {
            let (one, other) = (nodes.get(doomed).await?, nodes.get(drained).await?);
            let has = |node: &Node, key| node.annotations().contains_key(key);
            let both = has(&one, names::EVICTION_ANNOTATION) && has(&other, names::DRAIN_STATUS_ANNOTATION);
            Ok((both && [&one, &other].iter().all(|node| marks(node).iter().any(|it| it == "unschedulable")))
                .then_some(()))
        })
        .await
        .unwrap();

        // As long as it is installed this is not for people to do.
        is_one_sentence(&plugin.run("cleanup").await, "SpotPool is still installed");
        operator.process.kill().unwrap();
        let agents: Api<DaemonSet> = Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
        for agent in agents.list(&ListParams::default()).await.unwrap() {
            agents.delete(&agent.name_any(), &DeleteParams::default()).await.unwrap();
        }
        eventually("the agents to be gone", async || {
            let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
            Ok(pods.list(&ListParams::default()).await?.items.is_empty().then_some(()))
        })
        .await
        .unwrap();

        let before = nodes.list(&ListParams::default()).await.unwrap().items;
        let dry = plugin.ok("cleanup --dry-run").await;
        assert!(dry.contains("WOULD BE TAKEN OFF") && dry.contains(&format!("node/{drained}")), "{dry}");
        let marked = |nodes: &[Node]| nodes.iter().map(marks).collect::<Vec<_>>();
        let after = nodes.list(&ListParams::default()).await.unwrap().items;
        assert_eq!(marked(&before), marked(&after), "a dry run writes nothing");

        let said: Value = serde_json::from_str(&plugin.ok("cleanup -o json").await).unwrap();
        let of = |object: &str| {
            let found = said["objects"].as_array().unwrap().iter().find(|it| it["object"] == object);
            found.unwrap_or_else(|| panic!("{object}: {said}"))
        };
        assert!(
            of(&format!("node/{doomed}"))["left"].as_str().unwrap().starts_with("its VM goes at"),
            "{said}"
        );
        assert_eq!(of(&format!("node/{drained}"))["takenOff"], json!(["labels", "annotations", "cordon"]));
        assert_eq!(of(&format!("node/{quiet}"))["takenOff"], json!(["labels", "annotations"]));
        assert_eq!(of("spotpool/leftover/p")["takenOff"], json!(["finalizer"]));
        for name in [drained, quiet] {
            assert_eq!(marks(&nodes.get(name).await.unwrap()), Vec::<String>::new(), "{name}");
        }
        assert!(!marks(&nodes.get(doomed).await.unwrap()).is_empty(), "pods would come back to it");

        // Its deadline came and its VM did not go.
        let node = nodes.get(doomed).await.unwrap();
        let mut notice: Value =
            serde_json::from_str(&node.annotations()[names::EVICTION_ANNOTATION]).unwrap();
        notice["deadline"] = json!("2026-01-01T00:00:00Z");
        let patch = json!({"metadata": {"annotations": {names::EVICTION_ANNOTATION: notice.to_string()}}});
        nodes.patch(doomed, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        let said = plugin.ok("cleanup").await;
        assert!(
            said.contains("labels, load balancer label, annotations, taint, cordon, condition"),
            "{said}"
        );
        let node = nodes.get(doomed).await.unwrap();
        assert_eq!(marks(&node), Vec::<String>::new());
        assert!(!node.labels().contains_key(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL), "{:?}", node.labels());
        let conditions = node.status.unwrap().conditions.unwrap();
        assert!(conditions.iter().all(|it| it.type_ != names::EVICTION_NOTICED_CONDITION), "{conditions:?}");
        assert_eq!(plugin.ok("cleanup").await, "nothing of SpotPool is left\n");

        stage.spot_pools().delete("p", &DeleteParams::default()).await.unwrap();
        eventually("the SpotPool to go without an operator", async || {
            Ok(stage.spot_pools().get_opt("p").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
        world.stop().await.unwrap();
    });
}
