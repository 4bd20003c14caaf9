//! Row P: an agent pool that the spec describes and the cluster does not have is made, with its tags, and none that exists is
//! touched.

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Envelope, Fault, FaultAction, FaultTarget, PoolSpec};
use spotpool_crds::SpotPoolStatus;
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::{condition, world};

const SIZE: &str = "Standard_D4s_v5";

fn create(capacity_type: &str) -> Value {
    json!({"vmSize": SIZE, "capacityType": capacity_type, "zones": ["1"], "nodeLabels": {"team": "a"},
        "tags": {"team": "a"}})
}

fn error(status: &SpotPoolStatus) -> String {
    let error = status.agent_pools.first().and_then(|pool| pool.last_error.as_ref());
    error.map(|error| format!("{}: {}", error.code, error.message)).unwrap_or_default()
}

#[test]
fn an_agent_pool_that_is_missing_is_made_once_and_outlives_its_spot_pool() {
    run(async {
        let stage = Stage::set(world().await, "creation").await.unwrap();
        // One that exists, and not as the spec would make it.
        stage.agent_pools(&[PoolSpec::spot("creationb", "Standard_D8s_v5", 1)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([
            {"name": "creationa", "maxNodes": 3, "create": create("Spot")},
            {"name": "creationb", "maxNodes": 1, "create": create("OnDemand")},
        ]);
        let placement = json!({"strategy": "Ordered", "maxSharePerPool": 100});
        let spec = json!({"replicas": 3, "agentPools": pools, "placement": placement, "costTags": ["team"]});
        stage.spot_pool("p", spec).await.unwrap();
        let ready =
            |status: &SpotPoolStatus| status.ready_replicas == 3 && condition(status, "Stalled") == "False";
        stage.status_is("p", "nodes of an agent pool that was not there", ready).await.unwrap();

        let state = stage.world.sim.state().await.unwrap();
        let made = state.pools.iter().find(|pool| pool.name == "creationa").unwrap();
        assert_eq!((made.vm_size.as_str(), made.zones.as_slice()), (SIZE, &["1".to_owned()][..]));
        let writes: Vec<_> =
            state.writes_to("creationa").filter(|write| write.if_none_match.is_some()).collect();
        assert_eq!(writes.len(), 1, "{writes:?}");
        let properties = &writes[0].body["properties"];
        assert_eq!(properties["count"], 0);
        assert_eq!(
            properties["tags"],
            json!({"team": "a", "spotpool-pool": "p", "spotpool-pool-namespace": "creation"})
        );
        // What exists keeps its size, whatever the spec would have made.
        assert!(state.writes_to("creationb").all(|write| write.if_none_match.is_none()));
        let kept = state.pools.iter().find(|pool| pool.name == "creationb").unwrap();
        assert_eq!(kept.vm_size, "Standard_D8s_v5");
        let events: Api<Event> = Api::namespaced(stage.world.client.clone(), "creation");
        eventually("an Event of it", async || {
            let events = events.list(&ListParams::default()).await?;
            Ok(events.items.iter().any(|it| it.reason.as_deref() == Some("CreateAgentPool")).then_some(()))
        })
        .await
        .unwrap();

        stage.spot_pools().delete("p", &DeleteParams::default()).await.unwrap();
        eventually("the SpotPool to be gone", async || {
            Ok(stage.spot_pools().get_opt("p").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.pools.iter().find(|pool| pool.name == "creationa").unwrap().machines, 2);
        operator.stop().await.unwrap();
    });
}

#[test]
fn what_azure_refuses_to_make_is_shown_in_its_words_and_observe_makes_nothing() {
    run(async {
        let stage = Stage::set(world().await, "refused").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("refuseda", SIZE, 0)]).await.unwrap();
        let words =
            "The VM size of Standard_D4s_v5 is not allowed in your subscription in location 'eastus'.";
        let action = FaultAction::Error {
            status: 400,
            code: "VMSizeNotSupported".into(),
            message: words.into(),
            envelope: Envelope::Flat,
            retry_after: None,
        };
        let target = FaultTarget::arm("PUT", "/agentPools/refusedb");
        stage.world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let of = |name: &str| json!([{"name": name, "maxNodes": 3, "create": create("Spot")}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": of("refusedb")})).await.unwrap();
        let status = stage
            .status_is("p", "Azure's words", |status| condition(status, "Stalled") == "True")
            .await
            .unwrap();
        assert_eq!(error(&status), format!("VMSizeNotSupported: {words}"));
        let stalled = status.conditions.iter().find(|it| it.type_ == "Stalled").unwrap();
        assert!(
            stalled.message.contains("refuses to make it") && stalled.message.contains(words),
            "{stalled:?}"
        );
        assert!(status.agent_pools[0].avoided_until.is_some());

        let observed = json!({"mode": "Observe", "replicas": 1, "agentPools": of("refusedc")});
        stage.spot_pool("o", observed).await.unwrap();
        stage
            .status_is("o", "what would be made", |status| {
                status.plan.iter().any(|step| step.message.contains("refusedc does not exist: have it made"))
            })
            .await
            .unwrap();
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.writes_to("refusedc").count(), 0);
        let asked = state.writes_to("refusedb").count();
        assert!(asked <= 1, "{asked} writes: a refusal must not be repeated at once");
        operator.stop().await.unwrap();
    });
}
