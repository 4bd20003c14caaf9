//! A SpotPool that cannot be meant is refused where it enters, with a sentence that says what to change.

use kube::api::{Patch, PatchParams, ValidationDirective};
use kube::{Api, Client};
use serde_json::{Value, json};
use spotpool_crds::SpotPool;
use spotpool_e2e::{World, WorldOptions, objects, run};
use tokio::sync::OnceCell;

static WORLD: OnceCell<World> = OnceCell::const_new();

async fn pools() -> Api<SpotPool> {
    let options = WorldOptions { agents: false, ..WorldOptions::default() };
    let world = WORLD.get_or_init(async || World::start(options).await.unwrap()).await;
    Api::namespaced(Client::clone(&world.client), "default")
}

fn spec(change: &[(&str, Value)]) -> Value {
    let mut spec = json!({"replicas": 1, "agentPools": [{"name": "spota", "maxNodes": 3}]});
    for (path, value) in change {
        let mut at = &mut spec;
        for key in path.split('.') {
            at = &mut at[key];
        }
        *at = value.clone();
    }
    spec
}

fn window(window: &Value) -> Value {
    spec(&[("failback", json!({"window": window}))])
}

fn objective(objective: &Value) -> Value {
    spec(&[("objective", objective.clone())])
}

fn after_loss(after_loss: &Value) -> Value {
    spec(&[("standby", json!({"afterLoss": after_loss}))])
}

fn money(limits: &Value) -> Value {
    let mut fallback = json!({"maxNodes": 1});
    fallback.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
    spec(&[("fallback", fallback)])
}

/// An agent pool to be made, with this changed.
fn create(change: &Value) -> Value {
    let mut create = json!({"vmSize": "Standard_D4s_v5", "capacityType": "Spot"});
    create.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    spec(&[("agentPools", json!([{"name": "spota", "maxNodes": 3, "create": create}]))])
}

async fn apply(pools: &Api<SpotPool>, name: &str, spec: &Value) -> Result<SpotPool, String> {
    let pool = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool", "metadata": {"name": name}, "spec": spec});
    let strict = Some(ValidationDirective::Strict);
    let params = PatchParams { field_validation: strict, dry_run: true, ..PatchParams::apply("e2e") };
    pools.patch(name, &params, &Patch::Apply(pool)).await.map_err(|error| error.to_string())
}

#[test]
fn what_cannot_be_meant_is_refused_with_what_to_change() {
    let long = "x".repeat(64);
    let twice = json!([{"name": "spota", "maxNodes": 1}, {"name": "spota", "maxNodes": 2}]);
    let table: &[(&str, &str, Value)] = &[
        (&long, "use at most 63 characters", spec(&[])),
        ("p", "should be greater than or equal to 0", spec(&[("replicas", json!(-1))])),
        ("p", "should be less than or equal to 5000", spec(&[("replicas", json!(5001))])),
        (
            "p",
            "should be less than or equal to 1000",
            spec(&[("placement.earlySignals.preRaise", json!(1001))]),
        ),
        ("p", "duplicate entries", spec(&[("costTags", json!(["team", "team"]))])),
        ("p", "should have at least 1 items", spec(&[("agentPools", json!([]))])),
        ("p", "duplicate entries for key", spec(&[("agentPools", twice)])),
        (
            "p",
            "should match '^[a-z][a-z0-9]{0,11}$'",
            spec(&[("agentPools", json!([{"name": "Spot-A", "maxNodes": 1}]))]),
        ),
        (
            "p",
            "should be less than or equal to 1000",
            spec(&[("agentPools", json!([{"name": "a", "maxNodes": 1001}]))]),
        ),
        (
            "p",
            "should be greater than or equal to 1",
            spec(&[("agentPools", json!([{"name": "a", "maxNodes": 1, "capacityUnits": 0}]))]),
        ),
        (
            "p",
            "should be less than or equal to 100",
            spec(&[("agentPools", json!([{"name": "a", "maxNodes": 1, "capacityUnits": 101}]))]),
        ),
        ("p", "Required value", spec(&[("fallback", json!({}))])),
        ("p", "create.vmSize", create(&json!({"vmSize": "D4s v5"}))),
        ("p", "create.capacityType", create(&json!({"capacityType": "Regular"}))),
        (
            "p",
            "leave it out, or set capacityType to Spot",
            create(&json!({"capacityType": "OnDemand", "spotMaxPrice": "1"})),
        ),
        ("p", "such as 0.18, or -1", create(&json!({"spotMaxPrice": "0"}))),
        ("p", "such as 0.18, or -1", create(&json!({"spotMaxPrice": "0.123456"}))),
        ("p", "should match '^[1-9]$'", create(&json!({"zones": ["eastus-1"]}))),
        ("p", "duplicate entries", create(&json!({"zones": ["1", "1"]}))),
        ("p", "should be greater than or equal to 30", create(&json!({"osDiskSizeGB": 8}))),
        ("p", "create.osSKU", create(&json!({"osSKU": "Windows2022"}))),
        ("p", "should be less than or equal to 250", create(&json!({"maxPods": 500}))),
        ("p", "create.vnetSubnetID", create(&json!({"vnetSubnetID": "nodes"}))),
        ("p", "create.nodeLabels", create(&json!({"nodeLabels": {"team": "a b"}}))),
        ("p", "create.nodeTaints", create(&json!({"nodeTaints": ["team=a"]}))),
        ("p", "create.tags", create(&json!({"tags": {"team": "x".repeat(257)}}))),
        (
            "p",
            "onDemand.pdbFloor.enabled needs onDemand.pdbFloor.maxUnits: say how much on-demand it may keep",
            spec(&[("onDemand", json!({"pdbFloor": {"enabled": true}}))]),
        ),
        (
            "p",
            "should be less than or equal to 1000",
            spec(&[("onDemand", json!({"pdbFloor": {"enabled": true, "maxUnits": 1001}}))]),
        ),
        (
            "p",
            "fallback.after must be at most 24h",
            spec(&[("fallback", json!({"maxNodes": 1, "after": "25h", "growthAfter": "24h"}))]),
        ),
        (
            "p",
            "fallback.growthAfter must be at least fallback.after: raise the one or lower the other",
            spec(&[("fallback", json!({"maxNodes": 1, "after": "10m", "growthAfter": "5m"}))]),
        ),
        ("p", "fallback.hourlyBudget must be an amount above 0", money(&json!({"hourlyBudget": "-1"}))),
        ("p", "fallback.hourlyBudget must be an amount above 0", money(&json!({"hourlyBudget": "0.00"}))),
        ("p", "leave it out for no cap", money(&json!({"hourlyBudget": ""}))),
        ("p", "such as 6.00", money(&json!({"hourlyBudget": "6 USD"}))),
        ("p", "such as 6.00", money(&json!({"hourlyBudget": "6,00"}))),
        ("p", "such as 6.00", money(&json!({"hourlyBudget": "1e3"}))),
        ("p", "such as 6.00", money(&json!({"hourlyBudget": "NaN"}))),
        ("p", "Too long", money(&json!({"hourlyBudget": "1".repeat(18)}))),
        ("p", "expected string", money(&json!({"hourlyBudget": 6}))),
        ("p", "fallback.monthlyBudget must be an amount above 0", money(&json!({"monthlyBudget": "0"}))),
        ("p", "such as 900", money(&json!({"monthlyBudget": "a lot"}))),
        (
            "p",
            "fallback.monthlyBudget is less than one hour of fallback.hourlyBudget",
            money(&json!({"hourlyBudget": "10", "monthlyBudget": "9.99"})),
        ),
        ("p", "Unsupported value", money(&json!({"atCap": "Panic"}))),
        (
            "p",
            "failback.stabilization must be at most 24h",
            spec(&[("failback", json!({"stabilization": "48h"}))]),
        ),
        (
            "p",
            "failback.minOnDemandLifetime must be at most 24h",
            spec(&[("failback", json!({"minOnDemandLifetime": "48h"}))]),
        ),
        (
            "p",
            "failback.drainTimeout must be 1s to 24h",
            spec(&[("failback", json!({"drainTimeout": "0s"}))]),
        ),
        ("p", "should be less than or equal to 100", after_loss(&json!({"percent": 101}))),
        ("p", "should be greater than or equal to 0", after_loss(&json!({"percent": -1}))),
        ("p", "standby.afterLoss.for must be 1s to 168h", after_loss(&json!({"for": "0s"}))),
        (
            "p",
            "for no spare after a loss set standby.afterLoss.percent to 0",
            after_loss(&json!({"for": "169h"})),
        ),
        ("p", "should match", after_loss(&json!({"for": "4 hours"}))),
        ("p", "should be greater than or equal to 1", spec(&[("failback", json!({"maxConcurrent": 0}))])),
        ("p", "failback.probe must be at most 24h", spec(&[("failback", json!({"probe": "25h"}))])),
        ("p", "spec.failback.window.duration: Required value", window(&json!({"schedule": "0 22 * * *"}))),
        ("p", "should match", window(&json!({"schedule": "22:00", "duration": "4h"}))),
        ("p", "should match", window(&json!({"schedule": "0 22 * * * Europe/Berlin", "duration": "4h"}))),
        (
            "p",
            "should match",
            window(&json!({"schedule": "0 22 * * *", "timeZone": "Berlin time", "duration": "4h"})),
        ),
        (
            "p",
            "the duration of a window must be 1m to 168h",
            window(&json!({"schedule": "0 22 * * *", "duration": "30s"})),
        ),
        ("p", "Unsupported value", spec(&[("deletionPolicy", json!("Delete"))])),
        ("p", "drain.escalateAfter must be at most 10m", spec(&[("drain", json!({"escalateAfter": "11m"}))])),
        (
            "p",
            "drain.reserve must be at most 20s: Azure gives 30s at best",
            spec(&[("drain", json!({"reserve": "30s"}))]),
        ),
        ("p", "should match", spec(&[("drain", json!({"reserve": "-3s"}))])),
        ("p", "in quotes, such as \"99.5\"", objective(&json!({"availability": "100"}))),
        ("p", "in quotes, such as \"99.5\"", objective(&json!({"availability": "49.99"}))),
        ("p", "in quotes, such as \"99.5\"", objective(&json!({"availability": "99,5"}))),
        ("p", "in quotes, such as \"99.5\"", objective(&json!({"availability": "-99"}))),
        ("p", "may not be more than 5", objective(&json!({"availability": "99.999"}))),
        ("p", "spec.objective.availability", objective(&json!({"availability": 99.5}))),
        ("p", "spec.objective.availability: Required value", objective(&json!({"window": "24h"}))),
        (
            "p",
            "objective.window must be 1h to 2160h",
            objective(&json!({"availability": "99.5", "window": "59m"})),
        ),
        (
            "p",
            "objective.window must be 1h to 2160h",
            objective(&json!({"availability": "99.5", "window": "2161h"})),
        ),
        ("p", "Unsupported value", spec(&[("mode", json!("Dream"))])),
        ("p", "field not declared in schema", spec(&[("hourlyBudgett", json!("6.00"))])),
    ];
    run(async {
        let pools = pools().await;
        for (name, wanted, spec) in table {
            let refusal = apply(&pools, name, spec).await.expect_err(wanted);
            assert!(refusal.contains(wanted), "wanted `{wanted}` in: {refusal}");
        }
    });
}

#[test]
fn what_can_be_meant_is_taken_and_gets_its_defaults() {
    run(async {
        let pools = pools().await;
        let full = json!({"mode": "Observe", "suspend": true, "adoption": "Reclaim",
            "fallback": {"maxNodes": 0, "after": "1m", "growthAfter": "1m30s", "hourlyBudget": "0.000001",
                "monthlyBudget": "999999999.999999", "atCap": "Shed"},
            "failback": {"stabilization": "0s", "minOnDemandLifetime": "500ms", "maxConcurrent": 100, "drainTimeout": "24h"},
            "drain": {"blockedByPdb": "Leave", "escalateAfter": "10m", "reserve": "0s"}});
        let mut most = spec(&[("replicas", json!(5000))]);
        most.as_object_mut().unwrap().extend(full.as_object().unwrap().clone());
        apply(&pools, "most", &most).await.unwrap();
        let taken = apply(&pools, "least", &spec(&[])).await.unwrap();
        let filled = serde_json::to_value(&taken.spec).unwrap();
        assert_eq!(
            filled["failback"],
            json!({"stabilization": "1m", "minOnDemandLifetime": "0s", "maxConcurrent": 1, "drainTimeout": "15m",
                "probe": "1m"})
        );
        assert_eq!(filled["standby"], json!({"units": 0, "afterLoss": {"percent": 15, "for": "4h"}}));
        assert_eq!(filled["deletionPolicy"], json!("Retain"));
        let subnet =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n";
        let made = create(
            &json!({"zones": ["1", "2"], "osDiskSizeGB": 64, "osSKU": "AzureLinux", "maxPods": 60,
            "vnetSubnetID": subnet, "nodeLabels": {"example.com/team": "a"}, "nodeTaints": ["team=a:NoSchedule", "b:NoExecute"],
            "tags": {"cost center": "7, second floor"}, "spotMaxPrice": "0.18"}),
        );
        let taken = apply(&pools, "made", &made).await.unwrap();
        assert_eq!(
            serde_json::to_value(&taken.spec.agent_pools[0].create).unwrap(),
            made["agentPools"][0]["create"]
        );
        let taken = apply(&pools, "kept", &objective(&json!({"availability": "99.99"}))).await.unwrap();
        assert_eq!(taken.spec.objective.unwrap().window.to_string(), "720h");
        let nightly = window(&json!({"schedule": "0 22 * * 1-5", "duration": "4h"}));
        let taken = apply(&pools, "nightly", &nightly).await.unwrap();
        assert_eq!(taken.spec.failback.window.unwrap().time_zone, "Etc/UTC");
        assert_eq!(
            filled["drain"],
            json!({"blockedByPdb": "DeleteAtDeadline", "escalateAfter": "8s", "reserve": "2s"})
        );
    });
}

#[test]
fn hpa_can_scale_a_spot_pool() {
    run(async {
        let pools = pools().await;
        let manifest = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool", "metadata": {"name": "scaled"}, "spec": spec(&[])});
        pools.create(&kube::api::PostParams::default(), &objects::object(manifest).unwrap()).await.unwrap();
        let replicas = Patch::Merge(json!({"spec": {"replicas": 7}}));
        pools.patch_scale("scaled", &PatchParams::default(), &replicas).await.unwrap();
        assert_eq!(pools.get("scaled").await.unwrap().spec.replicas, 7);
        let refused = Patch::Merge(json!({"spec": {"replicas": 6000}}));
        assert!(pools.patch_scale("scaled", &PatchParams::default(), &refused).await.is_err());
    });
}
