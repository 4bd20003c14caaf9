//! Azure evicts.

use kube::ResourceExt;
use serde_json::json;
use spotpool_crds::Reason;
use spotpool_crds::drill::DrillPhase;
use spotpool_crds::told::{self, Author};
use spotpool_e2e::{OperatorOptions, eventually, run};
use tokio::process::Command;

use crate::{EVICTIONS, drill, drill_is, ordered, over, pod, whole, world};

#[test]
fn azure_evicts_the_nodes_of_a_drill_and_it_tells_how_they_were_drained_and_replaced() {
    run(async {
        let _alone = EVICTIONS.write().await;
        let (stage, operator) =
            whole(world().await, "evicted", 3, &OperatorOptions::default()).await.unwrap();
        let nodes = stage.nodes("evicteda").await.unwrap();
        for (index, node) in nodes.iter().enumerate() {
            pod(&stage, "evicted", &node.name_any(), &format!("pod-{index}")).await;
        }
        let spec = json!({"amount": {"count": 2}, "method": "SimulateEviction",
            "limits": {"maxNodes": 2, "minReadyUnits": 1, "namespaces": ["evicted"]},
            "expect": {"replacedWithin": "1m", "maxPodsEscalated": 0, "minReadyUnits": 1}});
        // What a dry run names is what is taken then.
        let mut dry = spec.clone();
        dry["dryRun"] = json!(true);
        drill(&stage, "d", dry).await.unwrap();
        let planned = drill_is(&stage, "d", "the dry run", |it| it.phase == Some(DrillPhase::Planned));
        let planned = planned.await.unwrap();
        let names = |run: &spotpool_crds::drill::DrillRun| -> Vec<String> {
            run.targets.iter().map(|target| target.node.clone()).collect()
        };
        let would = names(planned.run.as_ref().unwrap());
        assert_eq!((would.len(), planned.run.as_ref().unwrap().candidates), (2, 3), "{planned:?}");

        drill(&stage, "d", spec).await.unwrap();
        let status =
            drill_is(&stage, "d", "the drill to succeed", |it| it.phase == Some(DrillPhase::Succeeded));
        let status = status.await.unwrap();
        let run = status.run.clone().unwrap();
        assert_eq!(names(&run), would);
        for target in &run.targets {
            let times = [
                &target.intended_at,
                &target.asked_at,
                &target.noticed_at,
                &target.cordoned_at,
                &target.drained_at,
                &target.gone_at,
                &target.replaced_at,
            ];
            assert!(times.iter().all(|time| time.is_some()), "{target:?}");
            assert_eq!((target.pods.evicted, target.pods.left), (1, 0), "{target:?}");
        }
        let held: Vec<(&str, bool)> =
            run.verdict.iter().map(|it| (it.expectation.as_str(), it.held)).collect();
        let all = ["drainedInTime", "replacedWithin", "maxPodsEscalated", "minReadyUnits"];
        assert_eq!(held, all.map(|name| (name, true)));
        assert_eq!((run.units.before, run.units.lowest, run.units.now), (3, 1, 3));
        assert!(run.units.short_unit_seconds > 0, "{:?}", run.units);
        assert_eq!(status.past_runs.len(), 1, "the dry run is remembered");
        assert_eq!(ordered(&stage).await, 2, "each is replaced once");
        let state = stage.world.sim.state().await.unwrap();
        let evicted =
            state.vms.iter().filter(|vm| vm.pool.starts_with("evicted") && vm.gone_reason.is_some());
        assert_eq!(evicted.count(), 2, "no other machine was evicted");

        let events: kube::Api<k8s_openapi::api::events::v1::Event> =
            kube::Api::namespaced(stage.world.client.clone(), "evicted");
        for reason in [Reason::DrillPlanned, Reason::DrillStarted, Reason::DrillSucceeded] {
            let event = eventually("an Event of the drill", async || {
                let all = events.list(&kube::api::ListParams::default()).await?;
                Ok(all.items.into_iter().find(|event| event.reason.as_deref() == Some(reason.as_ref())))
            });
            let about = event.await.unwrap().regarding.unwrap().kind.unwrap();
            assert!(told::find(Author::Operator, &about, reason.as_ref()).is_some(), "{reason} on {about}");
        }
        report(&stage, &would).await;
        let metrics =
            reqwest::get(format!("{}/metrics", operator.admin_url)).await.unwrap().text().await.unwrap();
        for counted in ["{result=\"Planned\"} 1", "{result=\"Succeeded\"} 1", "{result=\"Aborted\"} 0"] {
            assert!(metrics.contains(&format!("spotpool_operator_drills_total{counted}")), "{counted}");
        }
        operator.stop().await.unwrap();
    });
}

/// What the plugin says of drills: each node and each expectation in the report, and nothing that has to be fetched.
async fn report(stage: &spotpool_e2e::Stage<'_>, nodes: &[String]) {
    let plugin = async |args: &[&str]| {
        let mut command = Command::new(&stage.world.programs.kubectl_plugin);
        command.arg("drill").args(args).args(["-n", "evicted"]).env_clear();
        command.env("KUBECONFIG", stage.world.cluster.admin_kubeconfig());
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        println!("$ kubectl spotpool drill {} -n evicted\n{text}", args.join(" "));
        text
    };
    let listed = plugin(&["list"]).await;
    assert!(listed.contains("Succeeded") && listed.contains("evicted"), "{listed}");
    let mut said = Vec::new();
    for format in ["markdown", "html"] {
        let text = plugin(&["report", "d", "-o", format]).await;
        for wanted in nodes.iter().map(String::as_str).chain(["replacedWithin", "Succeeded", "1 of 3"]) {
            assert!(text.contains(wanted), "`{wanted}` is not in\n{text}");
        }
        said.push(text);
    }
    assert!(
        said[1].contains("ready units over time")
            && !said[1].contains("<script")
            && !said[1].contains("src="),
        "{}",
        said[1]
    );
}

#[test]
fn without_the_right_to_evict_a_drill_says_which_and_asks_for_no_more() {
    run(async {
        let _alone = EVICTIONS.write().await;
        let (stage, operator) = whole(world().await, "denied", 2, &OperatorOptions::default()).await.unwrap();
        let action = spotpool_azure_sim::api::FaultAction::Error {
            status: 403,
            code: "AuthorizationFailed".into(),
            message: "does not have authorization to perform action 'simulateEviction/action'".into(),
            envelope: spotpool_azure_sim::api::Envelope::Wrapped,
            retry_after: None,
        };
        let target = spotpool_azure_sim::api::FaultTarget::arm("POST", "/simulateEviction");
        let fault = spotpool_azure_sim::api::Fault { target, times: None, action };
        let fault = stage.world.sim.add_fault(&fault).await.unwrap();
        let spec = json!({"amount": {"all": true}, "method": "SimulateEviction", "stagger": "1s"});
        drill(&stage, "d", spec).await.unwrap();
        let status = over(&stage, "d").await.unwrap();
        assert_eq!(status.phase, Some(DrillPhase::Aborted), "{status:?}");
        assert!(status.message.contains("simulateEviction/action"), "{}", status.message);
        let asked = status.run.unwrap().targets.iter().filter(|it| it.intended_at.is_some()).count();
        assert_eq!(asked, 1, "the second would have been denied as well");
        stage.world.sim.clear_fault(fault).await.unwrap();
        operator.stop().await.unwrap();
    });
}
