//! What a Prometheus has seen of a SpotPool becomes a history that the policy lab reads.

use std::time::Duration;

use serde_json::Value;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::prometheus::Prometheus;
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, eventually, run};

use crate::{Plugin, is_one_sentence, keep_example};

#[test]
fn the_lab_replays_what_became_of_a_spot_pool() {
    run(async {
        let world = World::start(WorldOptions { agents: false, ..WorldOptions::default() }).await.unwrap();
        let stage = Stage::set(&world, "past").await.unwrap();
        let size = "Standard_D4s_v5";
        let pools = [
            PoolSpec::spot("pasta", size, 2),
            PoolSpec::spot("pastb", size, 0),
            PoolSpec::regular("pastr", size, 0),
        ];
        stage.agent_pools(&pools).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let prometheus = Prometheus::start(&world.cluster.dir().join("prometheus"), &[]).await.unwrap();
        prometheus.scrape(std::slice::from_ref(&operator.admin_url)).unwrap();
        let spec = serde_json::json!({"replicas": 2, "agentPools": [{"name": "pasta", "maxNodes": 2},
            {"name": "pastb", "maxNodes": 2}, {"name": "pastr", "maxNodes": 2}]});
        stage.spot_pool("p", spec).await.unwrap();
        stage
            .status_is("p", "2 ready, with prices", |status| {
                status.ready_replicas == 2 && status.agent_pools.iter().all(|pool| pool.price.is_some())
            })
            .await
            .unwrap();
        let plugin = Plugin::new(&world.programs.kubectl_plugin, world.cluster.admin_kubeconfig());
        let ask = format!("export-history p -n past --prometheus {} --since 10m --step 1s", prometheus.url);
        // Until it has seen both nodes.
        eventually("a history to begin", async || {
            let said = plugin.run(&ask).await;
            Ok((said.code == 0 && said.out.contains("\"nodes\":2")).then_some(()))
        })
        .await
        .unwrap();

        world.sim.evict_some("pasta", 1, Duration::from_secs(2)).await.unwrap();
        let happened = async |agent_pool: &str, event: &str| {
            eventually(&format!("{event} in {agent_pool}"), async || {
                let said = plugin.run(&ask).await.out;
                let lines: Vec<Value> =
                    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                let of = |line: &&Value| line["agentPool"] == agent_pool && line["event"] == event;
                Ok(lines.iter().find(of).cloned().map(|event| (event, said)))
            })
            .await
            .unwrap()
        };
        let (lost, _) = happened("pasta", "lost").await;
        assert_eq!(lost["nodes"], 1);
        let (arrived, history) = happened("pastb", "arrived").await;
        assert_eq!(arrived["nodes"], 1);
        assert!(!history.contains("returned"), "nothing was given back: {history}");

        let read = spotpool_lab::history::read("history.jsonl", &history)
            .unwrap_or_else(|error| panic!("{error}: {history}"));
        let [a, b, r] = read.header.agent_pools.as_slice() else { panic!("{history}") };
        assert_eq!((a.name.as_str(), b.name.as_str(), r.name.as_str()), ("pasta", "pastb", "pastr"));
        assert!(a.hourly_price > 0.0 && a.hourly_price < r.hourly_price, "{history}");
        assert!(a.size == size && read.supply.contains_key("pasta"));
        keep_example("export-history", &format!("$ kubectl spotpool export-history p\n{history}"));

        prometheus.stop().await.unwrap();
        is_one_sentence(&plugin.run(&ask).await, "does not answer");
        operator.stop().await.unwrap();
        world.stop().await.unwrap();
    });
}
