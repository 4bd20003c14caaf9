//! By the clock.

use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::EvictionDrillStatus;
use spotpool_crds::drill::DrillPhase;
use spotpool_e2e::objects::create;
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::{EVICTIONS, drill, drill_is, drills, over, whole, world};

#[test]
fn a_drill_runs_by_its_schedule_and_rests_when_told() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) = whole(world().await, "timed", 1, &OperatorOptions::default()).await.unwrap();
        let spec = json!({"amount": {"all": true}, "notice": "5s", "schedule": {"cron": "* * * * *"}});
        drill(&stage, "d", spec).await.unwrap();
        let waits =
            drill_is(&stage, "d", "it to wait for its time", |it| it.next_run_at.is_some()).await.unwrap();
        assert!(waits.run.is_none() && waits.message.starts_with("runs next at "), "{waits:?}");
        let ready = waits.conditions.iter().find(|it| it.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "True", "waiting for its time is as it should be");
        let at = waits.next_run_at.unwrap().0;
        let status =
            drill_is(&stage, "d", "its run", |it| it.phase == Some(DrillPhase::Succeeded)).await.unwrap();
        let began = status.run.unwrap().started_at.unwrap().0;
        assert!((0..10).contains(&began.duration_since(at).as_secs()), "{began} for {at}");
        assert_eq!(status.next_run_at.unwrap().0.duration_since(at).as_secs(), 60);
        let rest = Patch::Merge(json!({"spec": {"schedule": {"suspend": true}}}));
        drills(&stage).patch("d", &PatchParams::default(), &rest).await.unwrap();
        drill_is(&stage, "d", "it to rest", |it| it.next_run_at.is_none()).await.unwrap();
        operator.stop().await.unwrap();
    });
}

/// Two game days at once would be two outages at once, each inside its own limits.
#[test]
fn one_drill_runs_at_a_time_in_all_namespaces_of_an_operator() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let other = Stage::set(world().await, "queueb").await.unwrap();
        let pools = "spotpool-operator-pools";
        let binding = json!({"metadata": {"name": "queuea"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": pools},
            "subjects": [{"kind": "ServiceAccount", "name": "spotpool-operator", "namespace": "queuea"}]});
        create(&Api::<RoleBinding>::namespaced(other.world.client.clone(), &other.name), binding)
            .await
            .unwrap();
        other.agent_pools(&[PoolSpec::spot("queuebx", "Standard_D4s_v5", 1)]).await.unwrap();
        let args = vec!["--pool-namespaces".to_owned(), "queuea,queueb".to_owned()];
        let options = OperatorOptions { args, ..OperatorOptions::default() };
        let (stage, operator) = whole(world().await, "queuea", 1, &options).await.unwrap();
        let spec = json!({"replicas": 1, "agentPools": [{"name": "queuebx", "maxNodes": 3}]});
        other.spot_pool("p", spec).await.unwrap();
        other.status_is("p", "its node to be ready", |status| status.ready_replicas == 1).await.unwrap();

        let spec = json!({"amount": {"all": true}, "notice": "8s"});
        drill(&stage, "first", spec.clone()).await.unwrap();
        drill_is(&stage, "first", "the first to run", EvictionDrillStatus::is_under_way).await.unwrap();
        drill(&other, "second", spec).await.unwrap();
        let words = "waits for drill queuea/first: one runs at a time";
        drill_is(&other, "second", "the second to wait", |status| status.message == words).await.unwrap();
        let (first, second) = (over(&stage, "first").await.unwrap(), over(&other, "second").await.unwrap());
        let phases = (first.phase, second.phase);
        assert_eq!(
            phases,
            (Some(DrillPhase::Succeeded), Some(DrillPhase::Succeeded)),
            "{first:?} {second:?}"
        );
        assert!(second.run.unwrap().started_at.unwrap().0 >= first.run.unwrap().ended_at.unwrap().0);
        operator.stop().await.unwrap();
    });
}
