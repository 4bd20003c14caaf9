//! Row P: an agent pool that nobody could be charged for is told of, with the command that mends it.

use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::{condition, world};

#[test]
fn an_agent_pool_without_cost_tags_is_told_of_and_nothing_is_written_to_it() {
    run(async {
        let stage = Stage::set(world().await, "tags").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("tagsa", "Standard_D4s_v5", 1)
                    .property("tags", json!({"Team": "a", "cost-center": "7"})),
                PoolSpec::spot("tagsb", "Standard_D4s_v5", 0)
                    .property("tags", json!({"env": "prod", "team": "a"})),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let spec = |names: &[&str]| {
            let pools: Vec<_> = names.iter().map(|name| json!({"name": name, "maxNodes": 3})).collect();
            json!({"replicas": 1, "agentPools": pools, "costTags": ["team", "cost-center"]})
        };
        stage.spot_pool("p", spec(&["tagsa", "tagsb"])).await.unwrap();
        let status = stage
            .status_is("p", "the missing tag", |status| condition(status, "CostTagsPresent") == "False")
            .await
            .unwrap();
        let told = status.conditions.iter().find(|it| it.type_ == "CostTagsPresent").unwrap();
        assert_eq!(told.reason, "CostTagsMissing");
        assert_eq!(
            told.message,
            "agent pool tagsb lacks the tags cost-center: az aks nodepool update -g GROUP --cluster-name CLUSTER -n tagsb \
             --tags env=prod team=a cost-center=VALUE"
        );
        stage.spot_pool("p", spec(&["tagsa"])).await.unwrap();
        let present = |status: &_| condition(status, "CostTagsPresent") == "True";
        stage.status_is("p", "all tags", present).await.unwrap();
        let mut none = spec(&["tagsa"]);
        none["costTags"] = json!([]);
        stage.spot_pool("p", none).await.unwrap();
        stage
            .status_is("p", "no check", |status| condition(status, "CostTagsPresent").is_empty())
            .await
            .unwrap();
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.writes_to("tagsa").count() + state.writes_to("tagsb").count(), 0);
        operator.stop().await.unwrap();
    });
}
