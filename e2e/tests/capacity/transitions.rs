//! The operator as a black box: every field of a SpotPool, as its schema has it, is changed and changed back, and given what
//! nobody can mean.
//!
//! Fields come from the CRD, so a new one is here by itself; one for which nothing is known that it could be fails the test.
//! `SPOTPOOL_SEED=17` replays a sample, `SPOTPOOL_TRANSITIONS=all` takes every transition.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::CustomResourceExt;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, VmPhase};
use spotpool_azure_sim::dice::Dice;
use spotpool_crds::{SpotPool, SpotPoolStatus};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::hands::Hands;
use crate::world;

/// Transitions in CI.
const SAMPLE: usize = 10;

/// What strings may be, by their pattern. Two of each are enough to go there and back.
const BY_PATTERN: &[(&str, [&str; 2])] = &[
    (r"^([0-9]+(h|m|s|ms))+$", ["2h", "1h"]),
    (r"^[0-9]{1,6}(\.[0-9]{1,6})?$", ["30", "40.5"]),
    (r"^[5-9][0-9](\.[0-9]{1,2})?$", ["99", "98.5"]),
    (r"^[1-9]$", ["2", "3"]),
    (r"^(Ubuntu|AzureLinux|Flatcar)[A-Za-z0-9]{0,16}$", ["AzureLinux", "Ubuntu2204"]),
    (r"^(Standard|Basic)_[A-Za-z0-9_-]{1,60}$", ["Standard_D8s_v5", "Standard_D16s_v5"]),
    (r"^[0-9A-Za-z*,/-]+( +[0-9A-Za-z*,/-]+){4}$", ["0 22 * * *", "*/5 * * * *"]),
    (r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$", ["Europe/Berlin", "Asia/Tokyo"]),
    (r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", ["b", "c"]),
    (
        r"^[A-Za-z0-9_./-]{1,316}(=[A-Za-z0-9_.-]{0,63})?:(NoSchedule|PreferNoSchedule|NoExecute)$",
        ["b=c:NoSchedule", "d:NoExecute"],
    ),
    (
        "^/subscriptions/[^/]+/resource[Gg]roups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+/subnets/[^/]+$",
        [
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/b",
        ],
    ),
];

/// … and by the end of their path, where the schema has no pattern, or not all that it allows ends while one waits.
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

/// Names are what an agent pool is known by: another name is another agent pool, whose machines stay.
const IDENTITIES: &[&str] = &["agentPools[].name"];

/// What must change along, for both to be meant.
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
        "standby": {"units": 0},
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

/// A field, or a part that may be left out.
struct Field {
    /// As `fallback.maxNodes` or `agentPools[].name`.
    path: String,
    /// Where it is in [`full`], as a JSON pointer.
    pointer: String,
    schema: Value,
    /// Whether it may be left out, and is then what it would not be.
    optional: bool,
}

fn schema() -> Value {
    let crd = serde_json::to_value(SpotPool::crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// All fields, by the schema; panics where [`full`] does not know one.
fn fields(schema: &Value, value: &Value, path: &str, pointer: &str, optional: bool, found: &mut Vec<Field>) {
    assert!(!value.is_null(), "{path} is new: say in `full` what it may be");
    if !path.is_empty() {
        let (path, pointer) = (path.to_owned(), pointer.to_owned());
        found.push(Field { path, pointer, schema: schema.clone(), optional });
    }
    let required: BTreeSet<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let optional = !required.contains(name.as_str()) && schema.get("default").is_none();
        let of = |path: &str| if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        fields(schema, &value[name], &of(path), &format!("{pointer}/{name}"), optional, found);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], &value[0], &format!("{path}[]"), &format!("{pointer}/0"), false, found);
    }
    if schema["additionalProperties"].is_object() {
        let key = value.as_object().and_then(|map| map.keys().next()).expect("a key in `full`");
        let pointer = format!("{pointer}/{key}");
        fields(&schema["additionalProperties"], &value[key], &format!("{path}{{}}"), &pointer, false, found);
    }
}

/// What else it could be, and be meant; `Null` is to leave it out.
fn others(field: &Field, now: &Value) -> Vec<Value> {
    let Field { schema, path, optional, .. } = field;
    let mut others = match schema["type"].as_str() {
        _ if schema["enum"].is_array() => schema["enum"].as_array().unwrap().clone(),
        Some("boolean") => vec![json!(true), json!(false)],
        Some("integer") => {
            let now = now.as_i64().unwrap();
            let (least, most) = range(schema);
            [now + 1, now - 1]
                .into_iter()
                .filter(|other| (least..=most).contains(other))
                .take(1)
                .map(Value::from)
                .collect()
        }
        Some("string") => {
            let by_path = BY_PATH.iter().find(|(end, _)| path.ends_with(end));
            let known =
                by_path.or_else(|| BY_PATTERN.iter().find(|(pattern, _)| schema["pattern"] == *pattern));
            let (_, known) =
                known.unwrap_or_else(|| panic!("{path} is new: say in `BY_PATTERN` what it may be"));
            let (most, least) = (limit(field, "<="), limit(field, ">="));
            let fits = |text: &&str| {
                let Ok(length) = text.parse::<spotpool_crds::Duration>() else { return true };
                most.is_none_or(|most| length <= most) && least.is_none_or(|least| length >= least)
            };
            let mut fitting: Vec<Value> =
                known.iter().filter(|text| fits(text)).map(|text| json!(text)).collect();
            // Of durations all that is short fits.
            if fitting.is_empty() {
                fitting.push(json!("3s"));
            }
            fitting
        }
        // Their parts are changed.
        Some("object" | "array") => Vec::new(),
        other => panic!("{path} is new: of type {other:?}"),
    };
    others.retain(|other| other != now);
    others.truncate(1);
    others.extend(optional.then_some(Value::Null));
    others
}

/// What the rules of a duration say it must be at most, or at least.
fn limit(field: &Field, operator: &str) -> Option<spotpool_crds::Duration> {
    let rules = field.schema["x-kubernetes-validations"].as_array()?;
    let before = format!("duration(self) {operator} duration('");
    rules.iter().find_map(|rule| {
        let rest = rule["rule"].as_str()?.split_once(&before)?.1;
        rest.split_once('\'')?.0.parse().ok()
    })
}

fn range(schema: &Value) -> (i64, i64) {
    let bound = |key: &str, none| schema[key].as_f64().map_or(none, |bound| bound as i64);
    (bound("minimum", i64::MIN), bound("maximum", i64::MAX))
}

/// What nobody can mean.
fn nonsense(field: &Field, now: &Value) -> Vec<Value> {
    let schema = &field.schema;
    let mut bad = Vec::new();
    match schema["type"].as_str() {
        _ if schema["enum"].is_array() => bad.extend([json!("Nonsense"), json!(""), json!(7)]),
        Some("boolean") => bad.extend([json!("yes"), json!(1)]),
        Some("integer") => {
            let (least, most) = range(schema);
            assert!(least > i64::MIN && most < i64::MAX, "{} has no bounds", field.path);
            bad.extend([json!(least - 1), json!(most + 1), json!(i64::MAX), json!("2"), json!(1.5)]);
        }
        Some("string") => {
            bad.extend([json!(7), json!(true), json!({"a": "b"})]);
            if schema["pattern"].is_string() {
                bad.extend([json!("\u{1f4a5}"), json!("a b;c")]);
            }
            if let Some(most) = schema["maxLength"].as_u64() {
                bad.push(json!("1".repeat(most as usize + 1)));
            }
            if schema["minLength"].as_u64() > Some(0) {
                bad.push(json!(""));
            }
            if limit(field, "<=").is_some() {
                bad.push(json!("9999h"));
            }
        }
        Some("object") => {
            bad.extend([json!("text"), json!([1])]);
            for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let mut without = now.clone();
                without.as_object_mut().unwrap().remove(required);
                bad.push(without);
            }
            if schema["properties"].is_object() {
                let mut more = now.clone();
                more["nonsense"] = json!(1);
                bad.push(more);
            }
        }
        Some("array") => {
            bad.extend([json!("text"), json!({"a": 1})]);
            if schema["minItems"].as_u64() > Some(0) {
                bad.push(json!([]));
            }
            if let Some(most) = schema["maxItems"].as_u64() {
                bad.push(json!(vec![now[0].clone(); most as usize + 1]));
            }
        }
        other => panic!("{} is new: of type {other:?}", field.path),
    }
    bad
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

fn merge(into: &mut Value, change: &Value) {
    let (Some(object), Some(change)) = (into.as_object_mut(), change.as_object()) else {
        *into = change.clone();
        return;
    };
    for (key, value) in change {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// `full` with one field as it could be otherwise.
fn with(full: &Value, field: &Field, other: &Value) -> Value {
    let mut spec = full.clone();
    let (parent, name) = field.pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap();
    if other.is_null() {
        parent.as_object_mut().unwrap().remove(name);
    } else if let Some(items) = parent.as_array_mut() {
        items[name.parse::<usize>().unwrap()] = other.clone();
    } else {
        parent[name] = other.clone();
    }
    for (_, sibling, value) in TOGETHER.iter().filter(|(path, ..)| *path == field.path) {
        let (parent, _) = field.pointer.rsplit_once('/').unwrap();
        merge(spec.pointer_mut(parent).unwrap(), &json!({*sibling: value}));
    }
    spec
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

/// Whether nothing is unknown but the agents, of which there are none here.
fn knows_all(status: &SpotPoolStatus) -> bool {
    status.conditions.iter().all(|it| it.status != "Unknown" || it.type_ == "AgentsHealthy")
}

fn shuffled<T>(mut things: Vec<T>, seed: u64) -> Vec<T> {
    let mut dice = Dice::new(seed);
    for at in (1..things.len()).rev() {
        things.swap(at, dice.below(at as u64 + 1) as usize);
    }
    things
}

/// Whoever tries something and takes it back has what there was, and whoever mistypes is told; neither brings the operator
/// down.
#[test]
fn every_field_goes_there_and_back_and_nonsense_stays_outside() {
    let given: Option<u64> = std::env::var("SPOTPOOL_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or(1);
    let again = format!("again: SPOTPOOL_SEED={seed} cargo test -p spotpool-e2e --test capacity transitions");
    println!("{again}");
    let full = full("trans");
    let mut found = Vec::new();
    fields(&schema(), &full, "", "", false, &mut found);
    let transitions: Vec<(&Field, Value)> = found
        .iter()
        .filter(|field| !IDENTITIES.contains(&field.path.as_str()))
        .flat_map(|field| {
            let now = full.pointer(&field.pointer).unwrap();
            let others = others(field, now);
            let is_part = matches!(field.schema["type"].as_str(), Some("object" | "array"));
            assert!(is_part || !others.is_empty(), "{} can be nothing else", field.path);
            others.into_iter().map(move |other| (field, other))
        })
        .collect();
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
                let answer = stage.spot_pool("p", with(&full, field, &bad)).await;
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
            settles(&stage, &what, &with(&full, field, other)).await;
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
