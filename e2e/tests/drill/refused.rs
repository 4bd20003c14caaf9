//! Nothing is taken, and it is said why, with the numbers.

use kube::ResourceExt;
use serde_json::{Value, json};
use spotpool_crds::drill::DrillPhase;
use spotpool_e2e::{OperatorOptions, run};

use crate::{EVICTIONS, drill, is_open, over, pod, whole, world};

#[test]
fn a_drill_that_would_go_beyond_a_limit_is_refused_with_the_numbers() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) = whole(world().await, "refuse", 2, &OperatorOptions::default()).await.unwrap();
        let node = stage.nodes("refusea").await.unwrap()[0].name_any();
        pod(&stage, "default", &node, "stranger").await;
        let all = json!({"all": true});
        // Half past five on the last day of February of a leap year is not now.
        let hours = json!({"schedule": "30 5 29 2 *", "duration": "1m"});
        for (name, spec, wanted) in [
            (
                "nodes",
                json!({"amount": all, "limits": {"maxNodes": 1}}),
                "it would take 2 nodes, and limits.maxNodes is 1",
            ),
            (
                "ready",
                json!({"amount": all, "limits": {"maxNodes": 2, "minReadyUnits": 1}}),
                "2 units are ready and it would take 2 of them, and limits.minReadyUnits is 1",
            ),
            (
                "hours",
                json!({"amount": all, "limits": {"maxNodes": 2, "allowedHours": hours}}),
                "limits.allowedHours: it is ",
            ),
            (
                "spaces",
                json!({"amount": all, "limits": {"maxNodes": 2, "namespaces": ["refuse"]}}),
                "pods would be evicted outside limits.namespaces: 1 in default",
            ),
            (
                "many",
                json!({"amount": {"count": 3}}),
                "amount.count is 3, and 2 ready spot nodes are as target says",
            ),
            (
                "zone",
                json!({"amount": all, "target": {"spotPool": "p", "zones": ["nowhere-1"]}}),
                "no ready spot node is as target says",
            ),
            (
                "label",
                json!({"amount": all, "target": {"spotPool": "p", "nodeSelector": {"matchLabels": {"x": "y"}}}}),
                "no ready spot node is as target says",
            ),
            (
                "pool",
                json!({"amount": all, "target": {"spotPool": "other"}}),
                "there is no SpotPool other in this namespace",
            ),
            (
                "cron",
                json!({"amount": all, "schedule": {"cron": "0 25 * * *"}}),
                "schedule.cron `0 25 * * *` is no cron schedule",
            ),
        ] {
            drill(&stage, name, spec).await.unwrap();
            let status = over(&stage, name).await.unwrap();
            assert_eq!(status.phase, Some(DrillPhase::Refused), "{name}: {status:?}");
            assert!(status.message.contains(wanted), "{name}: {}", status.message);
            let stalled = status.conditions.iter().find(|it| it.type_ == "Stalled").unwrap();
            assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "DrillRefused"));
        }
        // Capacity that is not whole, and a SpotPool that does not act.
        stage.replicas("p", 3).await.unwrap();
        stage.status_is("p", "a third to be wanted", |status| status.replicas == 3).await.unwrap();
        drill(&stage, "short", json!({"amount": all})).await.unwrap();
        let message = over(&stage, "short").await.unwrap().message;
        assert!(message.contains("2 of 3 units of the SpotPool are ready"), "{message}");
        let suspend = kube::api::Patch::Merge(json!({"spec": {"suspend": true}}));
        stage.spot_pools().patch("p", &kube::api::PatchParams::default(), &suspend).await.unwrap();
        drill(&stage, "idle", json!({"amount": all})).await.unwrap();
        let message = over(&stage, "idle").await.unwrap().message;
        assert!(message.contains("SpotPool p is suspended: set spec.suspend to false"), "{message}");
        assert!(stage.nodes("refusea").await.unwrap().iter().all(is_open));
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_spec_that_contradicts_itself_is_not_admitted_and_says_what_to_change() {
    run(async {
        let stage = spotpool_e2e::Stage::set(world().await, "admit").await.unwrap();
        let with = |more: Value| {
            let mut spec = json!({"amount": {"count": 1}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        drill(&stage, "good", with(json!({}))).await.unwrap();
        for (spec, wanted) in [
            (with(json!({"amount": {}})), "amount needs exactly one of count, percent and all: true"),
            (with(json!({"amount": {"count": 1, "all": true}})), "amount needs exactly one of"),
            (with(json!({"amount": {"percent": 101}})), "less than or equal to 100"),
            (with(json!({"notice": "10s", "method": "SimulateEviction"})), "set method to NoticeOnly"),
            (with(json!({"notice": "10s", "method": "DeleteMachine"})), "set method to NoticeOnly"),
            (
                with(json!({"method": "DeleteMachine", "expect": {"maxPodsEscalated": 0}})),
                "expect.maxPodsEscalated counts pods that a drain deletes",
            ),
            (with(json!({"notice": "10m"})), "notice must be 1s to 5m"),
            (with(json!({"stagger": "2h"})), "stagger must be at most 1h"),
            (with(json!({"timeout": "1s"})), "timeout must be 10s to 24h"),
            (
                with(json!({"dryRun": true, "schedule": {"cron": "0 1 * * *"}})),
                "a schedule with dryRun takes nothing",
            ),
            (with(json!({"limits": {}})), "maxNodes: Required value"),
            (with(json!({"limit": {}})), "field not declared in schema"),
        ] {
            let refused = drill(&stage, "bad", spec.clone()).await.unwrap_err();
            let said = format!("{refused:#}");
            assert!(said.contains(wanted), "{spec}: {said}");
        }
    });
}
