//! Row M: nodes without an agent. Whoever relies on drains must hear of it before Azure takes such a node.

use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};
use spotpool_e2e_cluster::Signal;

use crate::{condition, world_with_agents};
use kube::ResourceExt;
use serde_json::json;

#[test]
fn a_node_whose_agent_is_silent_is_told_of_and_no_longer_when_it_is_back() {
    run(async {
        let stage = Stage::set(world_with_agents().await, "unheard").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("unheard", "Standard_D4s_v5", 2)]).await.unwrap();
        let pools = json!([{"name": "unheard", "maxNodes": 4}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        let options = OperatorOptions { args: vec!["--agent-grace=2s".into()], ..OperatorOptions::default() };
        let operator = stage.operator(&options).await.unwrap();
        let is = async |wanted: &str| {
            let what = format!("AgentsHealthy to be {wanted}");
            stage.status_is("p", &what, |status| condition(status, "AgentsHealthy") == wanted).await.unwrap()
        };
        is("True").await;

        let node = stage.nodes("unheard").await.unwrap()[0].name_any();
        let signal = |signal| stage.world.agents.as_ref().unwrap().signal(&node, signal).unwrap();
        signal(Signal::SIGSTOP);
        let status = is("False").await;
        let told = status.conditions.iter().find(|it| it.type_ == "AgentsHealthy").unwrap();
        assert_eq!(told.reason, "AgentsNotReady");
        let (begin, end) = ("1 of 2 nodes have had no ready agent for over 2s", format!(": {node}. "));
        assert!(told.message.starts_with(begin) && told.message.contains(&end), "{}", told.message);

        // Each condition is a series of its status, which alerts go by.
        eventually("every condition in a scrape", async || {
            let conditions = stage.status("p").await?.conditions;
            let text = reqwest::get(format!("{}/metrics", operator.admin_url)).await?.text().await?;
            let is_told = |kind: &str, status: &str| {
                let labels = format!("condition=\"{kind}\",status=\"{}\"}} 1", status.to_lowercase());
                text.lines()
                    .any(|line| line.starts_with("spotpool_operator_condition{") && line.ends_with(&labels))
            };
            Ok(conditions.iter().all(|it| is_told(&it.type_, &it.status)).then_some(()))
        })
        .await
        .unwrap();

        signal(Signal::SIGCONT);
        is("True").await;
        operator.stop().await.unwrap();
    });
}
