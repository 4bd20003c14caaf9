//! Two operators and one lease: one acts, and one that has lost the lease writes nothing any more.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Targets};
use spotpool_e2e::proxy::{Proxy, Spring};
use spotpool_e2e::{Operator, OperatorOptions, Stage, World, WorldOptions, eventually, run};
use spotpool_e2e_cluster::Signal;
use tokio::sync::OnceCell;

static WORLD: OnceCell<World> = OnceCell::const_new();

async fn world() -> &'static World {
    let options = WorldOptions { agents: false, ..WorldOptions::default() };
    WORLD.get_or_init(async || World::start(options).await.unwrap()).await
}

/// A replica whose every write passes a proxy.
struct Replica {
    operator: Operator,
    proxy: Proxy,
}

async fn replica(stage: &Stage<'_>, name: &str) -> Replica {
    let kubeconfig = stage.operator_kubeconfig().await.unwrap();
    let proxy = Proxy::start(&kubeconfig, stage.world.sim.base_url()).await.unwrap();
    let options = OperatorOptions {
        replica: name.into(),
        kubernetes: Some(proxy.kubernetes.clone()),
        azure_endpoint: Some(proxy.arm.clone()),
        // Short, since tests wait for its end; and no shorter, since a busy machine must be able to renew it.
        args: vec!["--lease-duration".into(), "6s".into()],
        ..OperatorOptions::default()
    };
    let operator = stage.operator(&options).await.unwrap();
    eventually(&format!("{name} to be ready"), async || Ok(operator.is_ready().await.then_some(())))
        .await
        .unwrap();
    Replica { operator, proxy }
}

async fn leader(stage: &Stage<'_>) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(stage.world.client.clone(), &stage.name);
    let lease = leases.get_opt("spotpool-operator").await.unwrap()?;
    lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
}

/// Whether a replica says that it leads.
async fn says_it_leads(replica: &Replica, wanted: bool) {
    eventually(&format!("a replica to say whether it leads: {wanted}"), async || {
        let text = reqwest::get(format!("{}/metrics", replica.operator.admin_url)).await?.text().await?;
        let line = format!("spotpool_operator_leader {}", u8::from(wanted));
        Ok(text.lines().any(|it| it == line).then_some(()))
    })
    .await
    .unwrap();
}

/// A stage with two ready nodes, a leader and a standby.
async fn two(name: &str) -> (Stage<'static>, Replica, Replica) {
    let stage = Stage::set(world().await, name).await.unwrap();
    let pool = format!("{name}a");
    stage.agent_pools(&[PoolSpec::spot(&pool, "Standard_D4s_v5", 2)]).await.unwrap();
    let first = replica(&stage, "first").await;
    eventually("the first to lead", async || {
        Ok((leader(&stage).await.as_deref() == Some("first")).then_some(()))
    })
    .await
    .unwrap();
    let second = replica(&stage, "second").await;
    let pools = json!([{"name": pool, "maxNodes": 10}]);
    stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
    stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
    // Prices and the marks of nodes come when they come, and are no writes of a loss.
    eventually("the leader to have nothing left to write", async || {
        let before = first.proxy.writes().len();
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok((first.proxy.writes().len() == before).then_some(()))
    })
    .await
    .unwrap();
    (stage, first, second)
}

async fn lose_one_node(stage: &Stage<'_>) {
    stage.world.sim.kill(&Targets::of_pool(&format!("{}a", stage.name), 1)).await.unwrap();
}

async fn healed(stage: &Stage<'_>) {
    let pool = format!("{}a", stage.name);
    let what = "the lost node to be replaced";
    let whole =
        |state: &spotpool_azure_sim::api::State| state.vms_of(&pool).filter(|vm| vm.is_up()).count() == 2;
    stage.world.sim.wait_until(what, spotpool_e2e::wait::GENEROUS, whole).await.unwrap();
    stage.status_is("p", "2 ready again", |status| status.ready_replicas == 2).await.unwrap();
}

#[test]
fn of_two_replicas_one_acts_and_the_other_takes_over_at_once_when_it_leaves() {
    run(async {
        let (stage, first, second) = two("leada").await;
        lose_one_node(&stage).await;
        healed(&stage).await;
        assert_eq!(second.proxy.take_writes(), [], "the standby wrote");
        says_it_leads(&first, true).await;
        says_it_leads(&second, false).await;
        assert!(!first.proxy.take_writes().is_empty());

        assert!(first.operator.stop().await.unwrap().success(), "a clean SIGTERM ends with 0");
        eventually("the second to lead", async || {
            Ok((leader(&stage).await.as_deref() == Some("second")).then_some(()))
        })
        .await
        .unwrap();
        says_it_leads(&second, true).await;
        lose_one_node(&stage).await;
        healed(&stage).await;
        second.operator.stop().await.unwrap();
    });
}

#[test]
fn a_leader_that_was_frozen_past_its_lease_starts_no_write_and_ends() {
    run(async {
        let (stage, first, second) = two("leadb").await;
        first.operator.process.signal(Signal::SIGSTOP).unwrap();
        // Work waits for it when it wakes up, and has been done by the other.
        lose_one_node(&stage).await;
        healed(&stage).await;
        lose_one_node(&stage).await;
        first.proxy.take_writes();
        first.operator.process.signal(Signal::SIGCONT).unwrap();
        let status =
            tokio::time::timeout(spotpool_e2e::wait::GENEROUS, first.operator.process.wait()).await.unwrap();
        assert_eq!(status.code(), Some(1), "a lost lease ends the process");
        assert_eq!(first.proxy.take_writes(), [], "written after the lease was lost");
        healed(&stage).await;
        assert_eq!(stage.nodes("leadba").await.unwrap().len(), 2);
        second.operator.stop().await.unwrap();
    });
}

#[test]
fn a_write_that_was_already_sent_is_fenced() {
    run(async {
        // The first write of a plan is the intention in status, the second the PUT.
        for (nth, name) in [(1, "leadc"), (2, "leadd")] {
            let (stage, first, second) = two(name).await;
            first.proxy.take_writes();
            first.proxy.trap(nth, Spring::Hold, first.operator.process.clone());
            lose_one_node(&stage).await;
            eventually("the write to be on its way", async || Ok(first.proxy.sprung().then_some(())))
                .await
                .unwrap();
            first.operator.process.signal(Signal::SIGSTOP).unwrap();
            healed(&stage).await;
            first.proxy.release();
            let held = eventually("the held write to be answered", async || {
                let writes = first.proxy.writes();
                Ok(writes.get(nth - 1).filter(|write| write.status.is_some()).cloned())
            })
            .await
            .unwrap();
            assert!(matches!(held.status, Some(409 | 412)), "{held:?} was not refused");
            first.operator.process.signal(Signal::SIGCONT).unwrap();
            first.operator.process.wait().await;
            assert_eq!(stage.nodes(&format!("{name}a")).await.unwrap().len(), 2);
            second.operator.stop().await.unwrap();
        }
    });
}
