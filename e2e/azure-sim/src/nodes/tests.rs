use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;
use crate::api::{PoolSpec, Settings, Targets};
use crate::model::Cloud;

/// A cluster that can be away.
#[derive(Default)]
struct Fake {
    away: AtomicBool,
    /// Whether a disruption budget keeps every pod.
    budget: AtomicBool,
    nodes: Mutex<BTreeMap<String, Node>>,
    pods: Mutex<Vec<Pod>>,
}

impl Fake {
    fn there(&self) -> Result<(), Failure> {
        if self.away.load(Ordering::Relaxed) { Err("connection refused".into()) } else { Ok(()) }
    }

    fn names(&self) -> Vec<String> {
        self.nodes.lock().unwrap().keys().cloned().collect()
    }
}

impl NodeApi for Fake {
    async fn list(&self, _: &str) -> Result<HashSet<String>, Failure> {
        self.there().map(|()| self.names().into_iter().collect())
    }
    async fn create(&self, node: Node) -> Result<(), Failure> {
        self.there()?;
        self.nodes.lock().unwrap().insert(node.name_any(), node);
        Ok(())
    }
    async fn delete(&self, name: &str) -> Result<(), Failure> {
        self.there()?;
        self.nodes.lock().unwrap().remove(name);
        Ok(())
    }
    async fn pods(&self, node: &str) -> Result<Vec<Pod>, Failure> {
        self.there()?;
        let on = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
        Ok(self.pods.lock().unwrap().iter().filter(on).cloned().collect())
    }
    async fn kill(&self, pod: &Pod) -> Result<(), Failure> {
        self.there()?;
        self.pods.lock().unwrap().retain(|other| other.uid() != pod.uid());
        Ok(())
    }
    async fn evict(&self, pod: &Pod) -> Result<(), Failure> {
        if self.budget.load(Ordering::Relaxed) { Ok(()) } else { self.kill(pod).await }
    }
    async fn read(&self, name: &str) -> Result<Option<Node>, Failure> {
        self.there().map(|()| self.nodes.lock().unwrap().get(name).cloned())
    }
    async fn read_all(&self, _: &str) -> Result<Vec<Node>, Failure> {
        self.there().map(|()| self.nodes.lock().unwrap().values().cloned().collect())
    }
    async fn patch(&self, name: &str, patch: &Value) -> Result<(), Failure> {
        self.there()?;
        let mut nodes = self.nodes.lock().unwrap();
        let node = nodes.get_mut(name).unwrap();
        let mut value = json!(node);
        merge(&mut value, patch);
        *node = serde_json::from_value(value).unwrap();
        Ok(())
    }
    async fn keep_declared(&self, _: &str, _: bool) -> Result<(), Failure> {
        self.there()
    }
    async fn patch_status(&self, name: &str, patch: &Value) -> Result<(), Failure> {
        self.patch(name, patch).await
    }
}

/// A JSON merge patch.
fn merge(value: &mut Value, patch: &Value) {
    let Some(members) = patch.as_object() else {
        *value = patch.clone();
        return;
    };
    for (key, change) in members {
        if change.is_null() {
            if let Some(object) = value.as_object_mut() {
                object.remove(key);
            }
        } else {
            merge(&mut value[key], change);
        }
    }
}

fn sim(count: u32) -> Sim {
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), true, 1);
    let pool = PoolSpec::spot("spota", "Standard_E8s_v5", count)
        .zones(&["1"])
        .property("nodeLabels", json!({"team": "batch"}))
        .property("nodeTaints", json!(["bare:NoExecute"]));
    cloud.add_pool(&pool, Timestamp::now()).unwrap();
    Sim::new(cloud)
}

fn pod(name: &str, node: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": name,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running"},
    }))
    .unwrap()
}

#[tokio::test]
async fn nodes_follow_machines_through_an_outage() {
    let (sim, fake, mut keeper) = (sim(3), Fake::default(), Keeper::default());
    sim.change(|_, _| ()); // boots
    fake.away.store(true, Ordering::Relaxed);
    assert!(keeper.pass(&sim, &fake).await.is_err());
    assert!(sim.look(|cloud, now| cloud.state(now)).vms.iter().all(|vm| vm.registered_at.is_none()));
    fake.away.store(false, Ordering::Relaxed);
    keeper.pass(&sim, &fake).await.unwrap();
    let names = fake.names();
    assert_eq!(names.len(), 3);
    assert!(sim.look(|cloud, now| cloud.state(now)).vms.iter().all(|vm| vm.registered_at.is_some()));

    fake.pods.lock().unwrap().extend([pod("a", &names[0]), pod("b", &names[1])]);
    fake.away.store(true, Ordering::Relaxed);
    sim.change(|cloud, now| cloud.kill(&Targets::named(&names[..1]), now)).unwrap();
    assert!(keeper.pass(&sim, &fake).await.is_err());
    assert_eq!(fake.names().len(), 3);
    fake.away.store(false, Ordering::Relaxed);
    keeper.pass(&sim, &fake).await.unwrap();
    assert_eq!(fake.names(), names[1..]);
    let state = sim.look(|cloud, now| cloud.state(now));
    assert_eq!(state.killed_pods.len(), 1);
    assert_eq!(state.killed_pods[0].owner_kind.as_deref(), Some("ReplicaSet"));
    assert!(!state.killed_pods[0].terminating);
    assert!(state.vm(&names[0]).unwrap().node_removed_at.is_some());
    assert_eq!(fake.pods.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn nodes_that_somebody_deleted_come_back_after_a_new_list() {
    let (sim, fake, mut keeper) = (sim(1), Fake::default(), Keeper::default());
    sim.change(|_, _| ());
    keeper.pass(&sim, &fake).await.unwrap();
    fake.nodes.lock().unwrap().clear();
    keeper.known = None;
    keeper.pass(&sim, &fake).await.unwrap();
    assert_eq!(fake.names().len(), 1);
}

#[tokio::test]
async fn nodes_of_an_earlier_simulator_are_replaced() {
    let (sim, fake, mut keeper) = (sim(1), Fake::default(), Keeper::default());
    sim.change(|_, _| ());
    let name = sim.look(|cloud, now| cloud.state(now)).vms[0].node.clone();
    let old = |name: &str| Node {
        metadata: kube::api::ObjectMeta { name: Some(name.into()), ..<_>::default() },
        ..<_>::default()
    };
    fake.create(old(&name)).await.unwrap();
    fake.create(old("aks-old-1-vmss000000")).await.unwrap();
    keeper.pass(&sim, &fake).await.unwrap();
    assert_eq!(fake.names(), std::slice::from_ref(&name));
    assert!(fake.nodes.lock().unwrap()[&name].spec.is_some());
}

fn unschedulable(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
}

/// Whoever looks at an upgrade must see what AKS shows: a cordon, a drain that respects budgets, another boot.
#[tokio::test]
async fn aks_cordons_and_drains_what_it_upgrades_and_the_node_boots_again() {
    let mut cloud = Cloud::new(
        Identity::default(),
        Settings::with_boot_time(std::time::Duration::from_millis(20)),
        true,
        1,
    );
    cloud.add_pool(&PoolSpec::regular("rega", "Standard_D8s_v5", 1), Timestamp::now()).unwrap();
    let (sim, fake, mut keeper) = (Sim::new(cloud), Fake::default(), Keeper::default());
    sim.change(|_, _| ());
    keeper.pass(&sim, &fake).await.unwrap();
    let name = fake.names()[0].clone();
    let of = |name: &str| fake.nodes.lock().unwrap()[name].clone();
    let boot_id = |node: &Node| node.status.clone().unwrap().node_info.unwrap().boot_id;
    let first_boot = boot_id(&of(&name));
    fake.pods.lock().unwrap().push(pod("a", &name));
    fake.budget.store(true, Ordering::Relaxed);
    sim.change(|cloud, now| cloud.upgrade_image("rega", now)).unwrap();
    let pause = || tokio::time::sleep(std::time::Duration::from_millis(30));
    for _ in 0..4 {
        pause().await;
        sim.change(|_, _| ());
        keeper.pass(&sim, &fake).await.unwrap();
    }
    assert_eq!(fake.names().len(), 2, "the surge is there");
    assert!(unschedulable(&of(&name)) && keeper.upkeep.draining, "cordoned, and held up by the budget");
    fake.budget.store(false, Ordering::Relaxed);
    for _ in 0..12 {
        pause().await;
        sim.change(|_, _| ());
        keeper.pass(&sim, &fake).await.unwrap();
    }
    let node = of(&name);
    assert!(fake.pods.lock().unwrap().is_empty());
    assert!(!unschedulable(&node));
    assert_ne!(boot_id(&node), first_boot);
    assert_eq!(node.labels()["type"], "kwok");
    let image = sim.look(|cloud, now| cloud.state(now)).vm(&name).unwrap().image.clone();
    assert_eq!(node.labels()["kubernetes.azure.com/node-image-version"], image);
    assert_eq!(fake.names(), [name], "the surge is gone");
    assert!(sim.look(|cloud, now| cloud.state(now)).killed_pods.is_empty());
}

#[tokio::test]
async fn the_node_of_a_deallocated_machine_stays_and_is_not_ready() {
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), true, 1);
    let policy =
        PoolSpec::spot("spota", "Standard_D8s_v5", 1).property("scaleSetEvictionPolicy", json!("Deallocate"));
    let start = Timestamp::now();
    cloud.add_pool(&policy, start).unwrap();
    let time = std::sync::Arc::new(Mutex::new(start));
    let clock = time.clone();
    let sim = Sim::with_clock(cloud, std::sync::Arc::new(move || *clock.lock().unwrap()));
    let (fake, mut keeper) = (Fake::default(), Keeper::default());
    sim.change(|_, _| ());
    keeper.pass(&sim, &fake).await.unwrap();
    let name = fake.names()[0].clone();
    fake.pods.lock().unwrap().push(pod("a", &name));
    let request = crate::api::EventRequest::new("Preempt", Targets::of_pool("spota", 1), RETRY);
    sim.change(|cloud, now| cloud.schedule(&request, now)).unwrap();
    *time.lock().unwrap() = crate::model::later(start, RESYNC);
    sim.change(|_, _| ());
    keeper.pass(&sim, &fake).await.unwrap();
    let node = fake.nodes.lock().unwrap()[&name].clone();
    assert!(!node.labels().contains_key("type"), "KWOK plays its kubelet no more");
    let taints = node.spec.clone().unwrap().taints.unwrap();
    assert!(taints.iter().any(|taint| taint.key == "node.cloudprovider.kubernetes.io/shutdown"));
    let condition = node.status.unwrap().conditions.unwrap().remove(0);
    assert_eq!((condition.type_.as_str(), condition.status.as_str()), ("Ready", "Unknown"));
    assert_eq!(fake.pods.lock().unwrap().len(), 1, "its pods stay bound");
    assert_eq!(sim.look(|cloud, now| cloud.state(now)).killed_pods.len(), 1, "and are dead");
}

#[tokio::test]
async fn what_the_pool_declares_is_put_back_and_nothing_else() {
    for switched in [true, false] {
        let (sim, fake, mut keeper) = (sim(1), Fake::default(), Keeper::default());
        sim.change(|cloud, _| {
            cloud.set_pool_switches("spota", &json!({"putBack": switched})).unwrap();
        });
        keeper.pass(&sim, &fake).await.unwrap();
        let name = fake.names()[0].clone();
        let taken = json!({
            "metadata": {"labels": {"team": null, "mine": "yes"}},
            "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
        });
        fake.patch(&name, &taken).await.unwrap();
        keeper.known = None;
        keeper.pass(&sim, &fake).await.unwrap();
        let node = fake.nodes.lock().unwrap()[&name].clone();
        let keys: Vec<String> =
            node.spec.clone().unwrap().taints.unwrap().into_iter().map(|taint| taint.key).collect();
        assert_eq!(node.labels()["mine"], "yes");
        assert_eq!(node.labels().contains_key("team"), switched);
        let all = ["mine", "bare", "kubernetes.azure.com/scalesetpriority"];
        assert_eq!(keys, if switched { &all[..] } else { &all[..1] });
    }
}

#[tokio::test]
async fn a_node_looks_like_one_of_aks() {
    let sim = sim(1);
    sim.change(|_, _| ());
    let wanted = sim.look(|cloud, _| cloud.wanted_nodes());
    let node = node_object(&Identity::default(), &wanted[0]).unwrap();
    let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
    assert_eq!(label("kubernetes.azure.com/agentpool"), "spota");
    assert_eq!(label("kubernetes.azure.com/scalesetpriority"), "spot");
    assert_eq!(label("topology.kubernetes.io/zone"), "eastus-1");
    assert_eq!(label("team"), "batch");
    let spec = node.spec.unwrap();
    let taints: Vec<String> = spec
        .taints
        .unwrap()
        .iter()
        .map(|taint| format!("{}={}:{}", taint.key, taint.value.clone().unwrap_or_default(), taint.effect))
        .collect();
    assert_eq!(taints, ["bare=:NoExecute", "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"]);
    assert!(spec.provider_id.unwrap().starts_with("azure:///subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/mc_spotpool-rg_spotpool-sim_eastus/"));
    let capacity = node.status.unwrap().capacity.unwrap();
    assert_eq!(capacity["cpu"].0, "8");
    assert_eq!(capacity["memory"].0, "64Gi");
}
