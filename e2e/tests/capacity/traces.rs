//! Row M: one trace tells an eviction from the notice until the pods run again, by agent and operator, without a gap.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Targets};
use spotpool_crds::names;
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};
use tokio::net::TcpListener;

use crate::{collector, world_with_agents};

/// A pod's hook that answers at once.
struct Hook {
    port: u16,
    traceparents: Arc<Mutex<Vec<String>>>,
}

impl Hook {
    async fn listen() -> Self {
        let traceparents: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = traceparents.clone();
        let answer = async move |headers: HeaderMap| {
            let traceparent = headers.get("traceparent").and_then(|it| it.to_str().ok()).unwrap_or_default();
            told.lock().unwrap().push(traceparent.to_owned());
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new().route("/going", post(answer));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { port, traceparents }
    }
}

#[test]
fn one_trace_tells_an_eviction_from_the_notice_until_the_pods_run_again() {
    run(async {
        let (collector, stage) =
            (collector().await, Stage::set(world_with_agents().await, "traced").await.unwrap());
        stage.agent_pools(&[PoolSpec::spot("traceda", "Standard_D4s_v5", 2)]).await.unwrap();
        let options = OperatorOptions {
            args: vec!["--otlp-endpoint".into(), collector.endpoint.clone()],
            ..OperatorOptions::default()
        };
        let operator = stage.operator(&options).await.unwrap();
        let pools = json!([{"name": "traceda", "maxNodes": 4}]);
        let spec = json!({"replicas": 2, "agentPools": pools, "drain": {"escalateAfter": "1m"}});
        stage.spot_pool("p", spec).await.unwrap();
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();

        // So large that there is one on each node, and none fits beside another.
        let deployments: Api<Deployment> = Api::namespaced(stage.world.client.clone(), &stage.name);
        let container = json!({"name": "web", "image": "none", "resources": {"requests": {"cpu": "2500m"}}});
        let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "nodeSelector": {"kubernetes.azure.com/agentpool": "traceda"},
                "tolerations": [{"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}],
                "containers": [container]}}}});
        create(&deployments, web).await.unwrap();
        let runs = async || {
            let web = deployments.get("web").await?;
            let ready = web.status.and_then(|status| status.ready_replicas).unwrap_or_default();
            Ok((ready == 2).then_some(()))
        };
        eventually("both pods to run", runs).await.unwrap();

        let node = stage.nodes("traceda").await.unwrap().remove(0).name_any();
        let events = stage.world.sim.evict(&[node.as_str()], Duration::from_secs(20)).await.unwrap();
        let event = &events[0];
        let wanted = BTreeSet::from([
            "eviction",
            "notice",
            "mark node",
            "drain",
            "ask pods to go",
            "pods end",
            "operator sees it",
            "plan",
            "note what will be asked",
            "ask Azure",
            "operation",
            "node comes",
            "pods run",
            "recovery",
        ]);
        // Two programs send it, each in several requests.
        let trace = eventually("the whole trace", async || {
            let trace = collector.trace(&event.event_id);
            let missing: Vec<_> = wanted.difference(&trace.names()).copied().collect();
            anyhow::ensure!(missing.is_empty(), "no span {missing:?} in {:?}", trace.names());
            let orphans = trace.orphans();
            anyhow::ensure!(orphans.is_empty(), "spans without the one that they hang on: {orphans:?}");
            Ok(Some(trace))
        })
        .await
        .unwrap();
        eprintln!("{}", trace.picture(80));
        let explained = trace.explained().unwrap();
        assert!(explained >= 0.95, "only {explained:.3} of the time has a name");

        let whole = trace.span("eviction").unwrap();
        assert_eq!(whole.program, "spotpool-node-agent");
        assert_eq!(whole.text("spotpool.event.id"), Some(event.event_id.as_str()));
        assert_eq!(whole.text("k8s.node.name"), Some(node.as_str()));
        assert_eq!(whole.text("spotpool.drain.phase"), Some("Drained"));
        let drain = trace.span("drain").unwrap();
        let evictions: Vec<_> = drain.span.events.iter().filter(|event| event.name == "eviction").collect();
        assert_eq!(evictions.len(), 1, "one pod was there to evict: {:?}", drain.span.events);
        let asked = trace.span("ask Azure").unwrap();
        assert_eq!(asked.program, "spotpool-operator");
        assert_eq!(asked.text("spotpool.reason"), Some("ReplaceEvicted"));
        let come = trace.span("node comes").unwrap().text("k8s.node.name").unwrap();
        let there: Vec<String> =
            stage.nodes("traceda").await.unwrap().iter().map(ResourceExt::name_any).collect();
        assert!(there.iter().any(|node| node == come), "{come} in {there:?}");

        // Whoever looks at a slow figure finds the trace of it.
        let request = reqwest::Client::new().get(format!("{}/metrics", operator.admin_url));
        let answer = request.header("accept", "application/openmetrics-text; version=1.0.0").send().await;
        let figures = answer.unwrap().text().await.unwrap();
        let id = event.event_id.replace('-', "").to_lowercase();
        for name in ["notice_to_request", "time_to_replace"] {
            let name = format!("spotpool_operator_{name}_seconds_bucket");
            let is_traced =
                |line: &str| line.starts_with(&name) && line.contains(&format!("trace_id=\"{id}\""));
            assert!(figures.lines().any(is_traced), "no exemplar of {id} in {name}: {figures}");
        }

        // An agent that goes with its VM while it drains tells of the whole no more: the operator does.
        let node = stage.nodes("traceda").await.unwrap().pop().unwrap().name_any();
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), &stage.name);
        let hook = Hook::listen().await;
        let annotations = json!({names::HOOK_ANNOTATION: format!(":{}/going", hook.port)});
        let held = json!({"metadata": {"name": "held", "labels": {"app": "held"}, "annotations": annotations},
            "spec": {"nodeName": node, "containers": [{"name": "held", "image": "none"}]}});
        create(&pods, held).await.unwrap();
        eventually("the pod to run", async || Ok(is_ready(&pods.get("held").await?).then_some(())))
            .await
            .unwrap();
        // Pods of fake nodes have addresses that lead nowhere.
        let status = Patch::Merge(json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}));
        pods.patch_status("held", &PatchParams::default(), &status).await.unwrap();
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(stage.world.client.clone(), &stage.name);
        let budget = json!({"metadata": {"name": "held"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "held"}}}});
        create(&budgets, budget).await.unwrap();
        eventually("the budget to know its pod", async || {
            let known = budgets.get("held").await?.status.is_some_and(|status| status.expected_pods == 1);
            Ok(known.then_some(()))
        })
        .await
        .unwrap();
        let events = stage.world.sim.evict(&[node.as_str()], Duration::from_mins(5)).await.unwrap();
        eventually("the drain to go on", async || {
            let node = stage.nodes("traceda").await?.into_iter().find(|it| it.name_any() == node);
            let notice = node.and_then(|node| node.annotations().get(names::EVICTION_ANNOTATION).cloned());
            Ok(notice.is_some_and(|notice| notice.contains(r#""phase":"Draining""#)).then_some(()))
        })
        .await
        .unwrap();
        // Its hook is asked, and can go on with the trace.
        let trace = eventually("the hook to be told of", async || {
            let trace = collector.trace(&events[0].event_id);
            Ok(trace.span("hook").is_some().then_some(trace))
        })
        .await
        .unwrap();
        let asked = trace.span("hook").unwrap();
        assert_eq!(
            (asked.text("k8s.pod.name"), asked.text("spotpool.hook.outcome")),
            (Some("held"), Some("answered"))
        );
        let given = hook.traceparents.lock().unwrap().clone();
        let id = events[0].event_id.replace('-', "").to_lowercase();
        assert!(given.len() == 1 && given[0].starts_with(&format!("00-{id}-")), "{given:?}");

        stage.world.sim.kill(&Targets::named(&[node.as_str()])).await.unwrap();
        let told = eventually("the operator to tell what the agent could not", async || {
            Ok(collector.trace(&events[0].event_id).span("eviction").cloned())
        })
        .await
        .unwrap();
        assert_eq!(told.program, "spotpool-operator");
        let status = told.span.status.unwrap();
        assert_eq!(status.message, "the node was gone before its drain was over");
        operator.stop().await.unwrap();
    });
}
