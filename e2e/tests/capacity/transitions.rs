//! The operator as a black box: every field of a SpotPool, as its schema has it, is changed and changed back, and given what
//! nobody can mean.
//!
//! Fields come from the CRD, so a new one is here by itself; one for which nothing is known that it could be fails the test.
//! `SPOTPOOL_SEED=17` replays a sample, `SPOTPOOL_TRANSITIONS=all` takes every transition.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::CustomResourceExt;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, VmPhase};
use spotpool_crds::{SpotPool, SpotPoolStatus};
use spotpool_e2e::{OperatorOptions, Stage, asked, eventually, run};

use crate::hands::Hands;
use crate::schema::{self, BY_PATTERN, Known, fields, merge, nonsense, shuffled, with};
use crate::{market, world};

/// Transitions in CI.
const SAMPLE: usize = 10;

/// What is not in the schema.
const KNOWN: Known = Known { by_path: BY_PATH, identities: IDENTITIES, needed: &[], together: TOGETHER };

const BY_PATH: &[(&str, [&str; 2])] = &[
    ("warmup", ["1s", "2s"]),
    ("fallback.after", ["1m", "2m"]),
    ("fallback.growthAfter", ["6m", "10m"]),
    ("spotMaxPrice", ["0.5", "-1"]),
    ("hourlyBudget", ["200", "300.5"]),
    ("monthlyBudget", ["90000", "80000.5"]),
    ("costTags[]", ["cost center", "owner"]),
    ("tags{}", ["b", "c"]),
    ("startupTaints[]", ["example.com/warming", "example.com/cold"]),
    ("matchLabels{}", ["b", "c"]),
    ("matchExpressions[].key", ["team", "stage"]),
    ("matchExpressions[].operator", ["In", "NotIn"]),
    ("matchExpressions[].values[]", ["a", "b"]),
];

/// Another name is another agent pool, whose machines stay.
const IDENTITIES: &[&str] = &["agentPools[].name"];

const TOGETHER: &[(&str, &str, Value)] = &[
    ("agentPools[].create.capacityType", "spotMaxPrice", Value::Null),
    ("onDemand.pdbFloor.maxUnits", "enabled", Value::Bool(false)),
];

/// Everything that a SpotPool can say.
fn full(stage: &str) -> Value {
    let subnet = BY_PATTERN[BY_PATTERN.len() - 1].1[1];
    json!({
        "replicas": 2, "mode": "Enforce", "suspend": false, "adoption": "Keep", "deletionPolicy": "Retain",
        "agentPools": [
            {"name": format!("{stage}a"), "maxNodes": 6, "capacityUnits": 1, "maxHourlyPrice": "50",
                "onDeallocated": "Replace", "create": {
                    "vmSize": "Standard_D4s_v5", "capacityType": "Spot", "spotMaxPrice": "1", "zones": ["1"],
                    "osDiskSizeGB": 64, "osSKU": "AzureLinux", "maxPods": 60, "vnetSubnetID": subnet,
                    "nodeLabels": {"team": "a"}, "nodeTaints": ["team=a:NoSchedule"], "tags": {"team": "a"}}},
            {"name": format!("{stage}r"), "maxNodes": 6},
        ],
        "onDemand": {"baseline": 0, "pdbFloor": {"enabled": true, "maxUnits": 1, "namespaceSelector": {
            "matchLabels": {"nobody": "here"},
            "matchExpressions": [{"key": "nobody", "operator": "In", "values": ["here"]}]}}},
        "placement": {"strategy": "Balanced", "maxSharePerPool": 60, "earlySignals": {"preRaise": 0}},
        "standby": {"units": 0, "afterLoss": {"percent": 15, "for": "4h"}},
        "fallback": {"maxNodes": 2, "after": "0s", "growthAfter": "5m", "hourlyBudget": "100",
            "monthlyBudget": "70000", "atCap": "Hold"},
        "failback": {"stabilization": "0s", "minOnDemandLifetime": "0s", "maxConcurrent": 2, "drainTimeout": "15m",
            "probe": "0s", "window": {"schedule": "* * * * *", "duration": "1h", "timeZone": "Etc/UTC"}},
        "drain": {"blockedByPdb": "DeleteAtDeadline", "escalateAfter": "8s", "reserve": "2s"},
        "events": {"preempt": "Drain", "terminate": "Drain", "reboot": "Drain", "redeploy": "Drain",
            "freeze": "Ignore", "rebalance": "Ignore", "leadTime": "10m", "acknowledge": false},
        "readiness": {"warmup": "0s", "startupTaints": ["example.com/new"]},
        "objective": {"availability": "99.5", "window": "720h"},
        "costTags": ["team"],
    })
}

/// Each true by itself, and not together.
fn contradictions(full: &Value) -> Vec<(&'static str, Value)> {
    [
        ("growthAfter", json!({"fallback": {"after": "10m", "growthAfter": "5m"}})),
        ("monthlyBudget", json!({"fallback": {"hourlyBudget": "100", "monthlyBudget": "99"}})),
        ("maxUnits", json!({"onDemand": {"pdbFloor": {"enabled": true, "maxUnits": null}}})),
    ]
    .into_iter()
    .map(|(what, change)| {
        let mut spec = full.clone();
        merge(&mut spec, &change);
        (what, spec)
    })
    .collect()
}

/// What is left of a status without what time alone changes.
fn masked(status: &SpotPoolStatus) -> Value {
    let pools: Vec<Value> = status
        .agent_pools
        .iter()
        .map(|pool| {
            json!([
                pool.name,
                pool.role,
                pool.count,
                pool.machines,
                pool.ready,
                pool.kept,
                pool.unusable,
                pool.operation.is_some(),
                pool.avoided_for,
                pool.rank.as_ref().map(|rank| rank.position)
            ])
        })
        .collect();
    // There are no agents here, which is told after a while.
    let conditions = status.conditions.iter().filter(|it| it.type_ != "AgentsHealthy");
    let conditions: Vec<Value> = conditions.map(|it| json!([it.type_, it.status, it.reason])).collect();
    let capacity = &status.capacity;
    json!({
        "capacity": [capacity.wanted, capacity.ready_spot, capacity.ready_on_demand, capacity.on_the_way,
            capacity.evicting, capacity.established],
        "since": [capacity.lost_since.is_some(), capacity.growth_since.is_some(), status.fallback.since.is_some()],
        "agentPools": pools, "fallback": status.fallback.nodes, "draining": status.fallback.draining,
        "conditions": conditions, "floor": status.floor.as_ref().map(|floor| floor.units),
        "plan": status.plan.iter().map(|step| step.reason.to_string()).collect::<Vec<_>>(),
    })
}

/// Machines by agent pool, and how many writes Azure has had.
async fn azure(stage: &Stage<'_>) -> (BTreeMap<String, usize>, usize) {
    let state = stage.world.sim.state().await.unwrap();
    let of_stage = |pool: &str| pool.starts_with(&stage.name);
    let mut machines = BTreeMap::new();
    for vm in state.vms.iter().filter(|vm| of_stage(&vm.pool) && vm.phase != VmPhase::Gone) {
        *machines.entry(vm.pool.clone()).or_default() += 1;
    }
    (machines, state.arm_writes.iter().filter(|write| of_stage(&write.pool)).count())
}

/// Applies a spec and waits until the operator has seen it and has nothing left to do.
async fn settles(stage: &Stage<'_>, what: &str, spec: &Value) -> SpotPoolStatus {
    let applied =
        stage.spot_pool("p", spec.clone()).await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
    let generation = applied.metadata.generation.unwrap();
    stage
        .status_is("p", what, |status| {
            let works = status.conditions.iter().any(|it| it.type_ == "Reconciling" && it.status == "True");
            status.observed_generation >= generation
                && !works
                && status.agent_pools.iter().all(|pool| pool.operation.is_none())
        })
        .await
        .unwrap()
}

/// Whether nothing is unknown but the agents, of which there are none here. What comes later would change ranks.
fn knows_all(status: &SpotPoolStatus) -> bool {
    let conditions = status.conditions.iter();
    market::is_known(status)
        && conditions.into_iter().all(|it| it.status != "Unknown" || it.type_ == "AgentsHealthy")
}

/// Whoever tries something and takes it back has what there was, and whoever mistypes is told; neither brings the operator
/// down.
#[test]
fn every_field_goes_there_and_back_and_nonsense_stays_outside() {
    let seed = asked("SPOTPOOL_SEED").unwrap().unwrap_or(1);
    let again = format!("again: SPOTPOOL_SEED={seed} cargo test -p spotpool-e2e --test capacity transitions");
    println!("{again}");
    let full = full("trans");
    let (found, missing) = fields(&SpotPool::crd(), &full);
    assert!(missing.is_empty(), "new: say in `full` what they may be: {missing:?}");
    let transitions = schema::transitions(&found, &full, &KNOWN);
    let all = transitions.len();
    let mut transitions = shuffled(transitions, seed);
    if std::env::var("SPOTPOOL_TRANSITIONS").as_deref() != Ok("all") {
        transitions.truncate(SAMPLE);
    }
    run(async {
        let stage = Stage::set(world().await, "trans").await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let _hands = Hands::start(&stage.world.client, &["transa", "transr"]);
        let pools = [
            PoolSpec::spot("transa", "Standard_D4s_v5", 2),
            PoolSpec::regular("transr", "Standard_D4s_v5", 0),
        ];
        stage.agent_pools(&pools).await.unwrap();
        settles(&stage, "the first to be as wanted", &full).await;
        let first = stage.status_is("p", "prices and the objective to be known", knows_all).await.unwrap();
        let (machines, _) = azure(&stage).await;
        assert_eq!(machines, [("transa".to_owned(), 2)].into());

        let mut refused = 0;
        for field in &found {
            let now = full.pointer(&field.pointer).unwrap();
            for bad in nonsense(field, now) {
                let what = format!("{} as {bad}", field.path);
                let answer = stage.spot_pool("p", with(&full, field, &bad, &KNOWN)).await;
                let error = format!("{:#}", answer.map(drop).expect_err(&what));
                let name = field.path.trim_end_matches(['[', ']', '{', '}']).rsplit('.').next().unwrap();
                assert!(error.contains(name), "{what} is not named in: {error}");
                refused += 1;
            }
        }
        for (what, spec) in contradictions(&full) {
            let error = format!("{:#}", stage.spot_pool("p", spec).await.map(drop).expect_err(what));
            assert!(error.contains(what), "{what} is not named in: {error}");
            refused += 1;
        }
        println!("{refused} values refused of {} fields", found.len());

        for (field, other) in &transitions {
            let began = std::time::Instant::now();
            let what = format!("{} as {other}, and back", field.path);
            settles(&stage, &what, &with(&full, field, other, &KNOWN)).await;
            settles(&stage, &what, &full).await;
            let wanted = (masked(&first), &machines);
            let mut last = Value::Null;
            let same = eventually(&what, async || {
                last = masked(&stage.status("p").await?);
                let (now, _) = azure(&stage).await;
                Ok(((&last, &now) == (&wanted.0, wanted.1)).then_some(()))
            });
            if let Err(error) = same.await {
                panic!(
                    "{error:#}\nwas {}\nis  {last}\nmachines {:?}\n{again}",
                    wanted.0,
                    azure(&stage).await.0
                );
            }
            println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
        }
        println!("{} of {all} transitions", transitions.len());

        let (_, writes) = azure(&stage).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(azure(&stage).await.1, writes, "something is still being written\n{again}");
        assert!(operator.is_ready().await, "the operator is not ready\n{again}");
        // It is not restarted by anybody: had it ended, this would not be its end.
        assert!(operator.stop().await.unwrap().success(), "{again}");
    });
}
