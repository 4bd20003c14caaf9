use super::*;
use serde_json::{Value, json};
use spotpool_core::allocation::{PoolCost, allocate};
use spotpool_crds::spot_pool::{PdbFloor, Role};
use std::collections::BTreeMap;

/// A cluster of two spot nodes and an on-demand node of the SpotPool, and a node of others.
fn nodes() -> Vec<Arc<k8s_openapi::api::core::v1::Node>> {
    let node = |name: &str, pool: &str, spot: bool| {
        let mut labels = json!({"kubernetes.azure.com/agentpool": pool, "kubernetes.io/hostname": name});
        let mut taints = json!([]);
        if spot {
            labels["kubernetes.azure.com/scalesetpriority"] = "spot".into();
            taints = json!([{"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", "effect": "NoSchedule"}]);
        }
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
            "status": {"allocatable": {"cpu": "4", "memory": "16Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True"}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    };
    vec![
        node("s0", "spot", true),
        node("s1", "spot", true),
        node("r0", "reg", false),
        node("x0", "system", false),
    ]
}

fn scope(enabled: bool) -> Scope {
    let pool = |name: &str, role| ScopePool {
        name: name.into(),
        role: Some(role),
        vm_size: "Standard_D4s_v5".into(),
        units: 1,
        ..ScopePool::default()
    };
    Scope {
        agent_pools: vec![pool("spot", Role::Spot), pool("reg", Role::OnDemand)],
        floor: PdbFloor { enabled, max_units: Some(9), namespace_selector: None },
    }
}

fn pod(name: &str, app: &str, node: &str, kind: &str) -> Value {
    let uid = name.bytes().fold(0u128, |uid, byte| (uid << 8) | u128::from(byte));
    let mut spec = json!({"containers": [{"resources": {"requests": {"cpu": "1500m"}}}],
        "tolerations": [{"operator": "Exists"}]});
    if !node.is_empty() {
        spec["nodeName"] = node.into();
    }
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("{uid:x}"), "labels": {"app": app}, "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": kind, "name": app, "uid": "o", "controller": true}]}, "spec": spec})
}

fn budget(desired: i32, allowed: i32) -> Value {
    json!({"metadata": {"name": "web", "namespace": "shop", "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"observedGeneration": 1, "desiredHealthy": desired, "currentHealthy": 4, "expectedPods": 4,
            "disruptionsAllowed": allowed}})
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn known(pods: &[Value], budgets: &[Value], now: Timestamp) -> Known {
    let mut known = Known::default();
    known.pod(watcher::Event::Init, now);
    for pod in pods {
        known.pod(watcher::Event::InitApply(read(pod)), now);
    }
    known.pod(watcher::Event::InitDone, now);
    known.budget(watcher::Event::Init, now);
    for budget in budgets {
        known.budget(watcher::Event::InitApply(read(budget)), now);
    }
    known.budget(watcher::Event::InitDone, now);
    known.namespace(watcher::Event::Init);
    let namespace = json!({"metadata": {"name": "shop", "labels": {"team": "a"}}});
    known.namespace(watcher::Event::InitApply(read(&namespace)));
    known.namespace(watcher::Event::InitDone);
    known
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).unwrap()
}

#[test]
fn what_a_budget_needs_is_counted_from_where_its_pods_are() {
    let web = |nodes: &[&str]| -> Vec<Value> {
        nodes
            .iter()
            .enumerate()
            .map(|(at, node)| pod(&format!("web-{at}"), "web", node, "ReplicaSet"))
            .collect()
    };
    let daemon = |cpu: &str| {
        let mut daemon = pod("log-0", "log", "r0", "DaemonSet");
        daemon["spec"]["containers"][0]["resources"]["requests"]["cpu"] = cpu.into();
        daemon
    };
    for (what, pods, desired, needed) in [
        ("two fit a node", web(&["s0", "s0", "s1", "s1"]), 4, 2),
        ("one is safe on a node of others", web(&["s0", "s0", "s1", "x0"]), 3, 1),
        ("on-demand here is not safe, it is the room", web(&["s0", "r0", "r0", "r0"]), 4, 2),
        ("pods without a node count", web(&["", "", "s0"]), 3, 2),
        ("nothing here", web(&["x0", "x0"]), 2, 0),
        ("nothing must be healthy", web(&["s0", "s0"]), 0, 0),
        ("DaemonSets have theirs first", [web(&["s0", "s0"]), vec![daemon("2")]].concat(), 2, 2),
        (
            "another namespace's pods are not of this budget",
            {
                let mut pods = web(&["s0", "s0"]);
                pods[0]["metadata"]["namespace"] = "other".into();
                pods
            },
            2,
            1,
        ),
    ] {
        let known = known(&pods, &[budget(desired, 1)], at(0));
        let survey = survey::survey(&known, &nodes(), &scope(true), at(0));
        assert_eq!(survey.floor.unwrap().units, Some(needed), "{what}");
    }
}

#[test]
fn only_chosen_namespaces_count_and_what_is_not_known_is_said() {
    let pods = [pod("web-0", "web", "s0", "ReplicaSet")];
    let known = known(&pods, &[budget(1, 1)], at(0));
    let with = |selector: Value| {
        let mut scope = scope(true);
        scope.floor.namespace_selector = Some(serde_json::from_value(selector).unwrap());
        survey::survey(&known, &nodes(), &scope, at(0)).floor.unwrap().units
    };
    assert_eq!(with(json!({})), Some(1));
    assert_eq!(with(json!({"matchLabels": {"team": "a"}})), Some(1));
    assert_eq!(with(json!({"matchLabels": {"team": "b"}})), Some(0));

    let mut elsewhere = scope(true);
    elsewhere.agent_pools[1].name = "other".into();
    elsewhere.agent_pools[1].vm_size = "Standard_E8s_v5".into();
    let floor = survey::survey(&known, &nodes(), &elsewhere, at(0)).floor.unwrap();
    assert_eq!((floor.units, floor.unknown.contains("Standard_E8s_v5 of other")), (None, true), "{floor:?}");
    elsewhere.agent_pools[1].vm_size = "Standard_D4s_v5".into();
    let floor = survey::survey(&known, &nodes(), &elsewhere, at(0)).floor.unwrap();
    assert_eq!(floor.units, Some(1), "as a spot node of the same size has it");

    let unread = survey::survey(&Known::default(), &nodes(), &scope(true), at(0));
    assert_eq!((unread.floor.unwrap().units, unread.room.complete), (None, false));
}

#[test]
fn a_budget_is_told_of_once_it_has_been_blocked_for_a_minute_and_forgotten_at_once() {
    let pods = [pod("web-0", "web", "s0", "ReplicaSet"), pod("web-1", "web", "x0", "ReplicaSet")];
    let mut known = known(&pods, &[budget(4, 0)], at(0));
    let told =
        |known: &Known, second| survey::survey(known, &nodes(), &scope(false), at(second)).blocked.unwrap();
    assert_eq!(told(&known, 59), []);
    assert!(known.ripens(AGENT_GRACE, at(59), at(60)) && !known.ripens(AGENT_GRACE, at(60), at(70)));
    let blocked = told(&known, 60);
    assert_eq!(blocked.len(), 1);
    assert_eq!(
        (blocked[0].owner.as_str(), blocked[0].pods, blocked[0].since.0),
        ("ReplicaSet/web", 1, at(0))
    );
    // News of it does not start the clock anew; that it lets a pod go ends it.
    known.budget(watcher::Event::Apply(read(&budget(5, 0))), at(61));
    assert_eq!(told(&known, 62)[0].since.0, at(0));
    known.budget(watcher::Event::Apply(read(&budget(4, 1))), at(63));
    assert_eq!(told(&known, 300), []);
    // Elsewhere it is none of our business.
    let away = [pod("web-1", "web", "x0", "ReplicaSet")];
    assert_eq!(told(&self::known(&away, &[budget(4, 0)], at(0)), 300), []);
}

#[test]
fn room_is_what_pods_leave_of_nodes_and_what_would_move_is_told() {
    let pods = [
        pod("web-0", "web", "r0", "ReplicaSet"),
        pod("log-0", "log", "r0", "DaemonSet"),
        pod("web-1", "web", "s0", "ReplicaSet"),
    ];
    let survey = survey::survey(&known(&pods, &[], at(0)), &nodes(), &scope(false), at(0));
    let room = &survey.room;
    let moves: BTreeMap<&str, usize> =
        room.pods.iter().map(|(node, pods)| (node.as_str(), pods.len())).collect();
    assert_eq!(moves, BTreeMap::from([("r0", 1)]), "none of DaemonSets");
    let free: BTreeMap<&str, i64> = room.places.iter().map(|it| (it.node.as_str(), it.free.cpu)).collect();
    assert_eq!(free, BTreeMap::from([("r0", 1000), ("s0", 2500), ("s1", 4000), ("x0", 4000)]));
}

/// Else a team's bill would lack what runs, or hold what runs on other nodes.
#[test]
fn nodes_are_used_by_all_pods_on_them_told_apart_by_the_label() {
    let pods = [
        pod("web-0", "web", "s0", "ReplicaSet"),
        pod("web-1", "web", "r0", "ReplicaSet"),
        pod("log-0", "log", "s0", "DaemonSet"),
        pod("db-0", "db", "x0", "StatefulSet"),
        pod("new-0", "new", "", "ReplicaSet"),
    ];
    let mut known = known(&pods, &[], at(0));
    let costs: Vec<PoolCost> = ["spot", "reg"]
        .iter()
        .zip([2, 1])
        .map(|(name, machines)| {
            let hourly = spotpool_core::cost::Amounts { spot: machines.into(), ..<_>::default() };
            PoolCost { agent_pool: (*name).to_owned(), hourly, machines }
        })
        .collect();
    let told = |known: &Known, key: &str| {
        let usage = usage::usage(known, &nodes(), &scope(false), key).unwrap();
        let told = allocate(&costs, &usage);
        told.iter().map(|(of, costs)| format!("{of} {}", costs.spot.normalize())).collect::<Vec<_>>()
    };
    // 1.5 of 4 cores, no memory.
    assert_eq!(told(&known, "app"), ["(idle) 2.4375", "log 0.1875", "web 0.375"]);
    assert_eq!(told(&known, "team"), ["(idle) 2.4375", "(none) 0.5625"]);
    known.pod(watcher::Event::Delete(read(&pods[0])), at(0));
    assert_eq!(told(&known, "app"), ["(idle) 2.625", "log 0.1875", "web 0.1875"]);
    let unread = usage::usage(&Known::default(), &nodes(), &scope(false), "app");
    assert_eq!(unread, None, "before pods are read nobody is idle");
}

/// An agent's Pod; without a word on readiness where `ready` is none.
fn agent(name: &str, node: &str, ready: Option<bool>) -> Value {
    let mut agent = pod(name, "agent", node, "DaemonSet");
    agent["metadata"]["labels"]["app.kubernetes.io/name"] = "spotpool-node-agent".into();
    if let Some(ready) = ready {
        let status = if ready { "True" } else { "False" };
        agent["status"] = json!({"conditions": [{"type": "Ready", "status": status}]});
    }
    agent
}

/// Else nobody hears of it that nodes die without a notice, or everybody does at each rollout.
#[test]
fn a_node_is_without_an_agent_once_none_was_ready_for_the_grace() {
    let grace = SignedDuration::from_mins(2);
    let told = |known: &Known, second| {
        let told = known.agents.told(&nodes(), &scope(false), grace, at(second));
        told.map(|told| (told.nodes, told.without, told.named.join(" ")))
    };
    let some = |without, named: &str| Some((3, without, named.to_owned()));
    let ready = [
        agent("a0", "s0", Some(true)),
        agent("a1", "s1", Some(true)),
        agent("a2", "r0", Some(true)),
        agent("ax", "x0", Some(false)),
    ];
    assert_eq!(told(&Known::default(), 500), None, "nobody has looked");
    let mut known = known(&ready, &[], at(0));
    assert_eq!(told(&known, 0), some(0, ""), "that all are ready is known at once");
    let event = |known: &mut Known, pod: &Value, gone: bool, second| {
        let pod = read(pod);
        let event = if gone { watcher::Event::Delete(pod) } else { watcher::Event::Apply(pod) };
        known.pod(event, at(second));
    };
    // A rollout: the old Pod goes, the next one is ready within the grace.
    event(&mut known, &ready[0], true, 200);
    event(&mut known, &agent("b0", "s0", None), false, 201);
    assert_eq!(told(&known, 319), some(0, ""));
    let (version, new) = (known.version, agent("b0", "s0", Some(true)));
    event(&mut known, &new, false, 319);
    assert_ne!(known.version, version, "which has a survey made");
    assert_eq!(told(&known, 400), some(0, ""));
    // It falls silent: what is told of it while it is does not start the clock anew, nor does a list.
    event(&mut known, &agent("b0", "s0", Some(false)), false, 500);
    event(&mut known, &agent("b0", "s0", None), false, 600);
    assert_eq!(told(&known, 619), some(0, ""));
    assert_eq!(told(&known, 620), some(1, "s0"));
    assert!(known.ripens(grace, at(619), at(620)) && !known.ripens(grace, at(620), at(630)));
    known.pod(watcher::Event::Init, at(630));
    known.pod(watcher::Event::InitApply(read(&agent("b0", "s0", None))), at(630));
    known.pod(watcher::Event::InitApply(read(&ready[1])), at(630));
    known.pod(watcher::Event::InitDone, at(630));
    assert_eq!(told(&known, 640), some(1, "s0"));
    assert_eq!(told(&known, 750), some(2, "r0 s0"), "one went while nobody watched");
    event(&mut known, &new, false, 751);
    assert_eq!(told(&known, 760), some(1, "r0"));
    known.agents.sweep(&[]);
    assert!(!known.ripens(grace, at(740), at(760)), "of nodes that are gone nothing is kept");
}

#[test]
fn only_nodes_that_should_have_an_agent_count() {
    let told = |pods: &[Value], change: &dyn Fn(&mut k8s_openapi::api::core::v1::Node), second| {
        let mut nodes = nodes();
        let mut node = (*nodes[0]).clone();
        change(&mut node);
        nodes[0] = Arc::new(node);
        let known = known(pods, &[], at(0));
        known.agents.told(&nodes, &scope(false), AGENT_GRACE, at(second)).map(|told| told.without)
    };
    let others = [agent("a1", "s1", Some(true)), agent("a2", "r0", Some(true))];
    let taint = |key: &'static str| {
        move |node: &mut k8s_openapi::api::core::v1::Node| {
            let taint = json!([{"key": key, "value": "x", "effect": "NoSchedule"}]);
            node.spec.get_or_insert_default().taints = serde_json::from_value(taint).unwrap();
        }
    };
    assert_eq!(told(&others, &|_| (), 300), Some(1));
    assert_eq!(told(&others, &|_| (), 60), None, "it may have been without for long, or come this moment");
    assert_eq!(told(&others, &taint("spotpool.dev/evicting"), 300), Some(0));
    assert_eq!(told(&others, &taint("node.kubernetes.io/out-of-service"), 300), Some(0));
    let since = |node: &mut k8s_openapi::api::core::v1::Node| {
        let conditions = json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(250)}]);
        node.status.get_or_insert_default().conditions = serde_json::from_value(conditions).unwrap();
    };
    assert_eq!(told(&others, &since, 300), Some(0), "it has been there for 50 s");
    assert_eq!(told(&others, &since, 370), Some(1));
    let unready = |node: &mut k8s_openapi::api::core::v1::Node| {
        node.status.get_or_insert_default().conditions = None;
    };
    assert_eq!(told(&others, &unready, 300), Some(0));
    let windows = |node: &mut k8s_openapi::api::core::v1::Node| {
        node.metadata.labels.get_or_insert_default().insert("kubernetes.io/os".into(), "windows".into());
    };
    assert_eq!(told(&others, &windows, 300), Some(0));
    // A label alone makes no agent.
    let mut false_one = agent("a0", "s0", Some(true));
    false_one["metadata"]["ownerReferences"][0]["kind"] = "ReplicaSet".into();
    assert_eq!(told(&[others.to_vec(), vec![false_one]].concat(), &|_| (), 300), Some(1));
    let mut ending = agent("a0", "s0", Some(true));
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(told(&[others.to_vec(), vec![ending]].concat(), &|_| (), 300), Some(1));
}

#[test]
fn a_relist_replaces_what_is_known_and_a_deletion_is_seen() {
    let (a, b) = (pod("a", "web", "s0", "ReplicaSet"), pod("b", "web", "s0", "ReplicaSet"));
    let mut known = known(&[a.clone(), b.clone()], &[], at(0));
    let version = known.version;
    known.pod(watcher::Event::Apply(read(&a)), at(0));
    assert_eq!(known.version, version, "nothing new");
    known.pod(watcher::Event::Delete(read(&a)), at(0));
    assert_eq!(known.pods.known.len(), 1);
    known.pod(watcher::Event::Init, at(0));
    known.pod(watcher::Event::InitApply(read(&a)), at(0));
    assert_eq!(known.pods.known.len(), 1, "the old list holds until the new one is whole");
    known.pod(watcher::Event::InitDone, at(0));
    assert!(known.pods.known.values().all(|running| &*running.pod.name == "a"));
}

#[test]
fn news_of_a_survey_wakes_plans_and_no_news_does_not() {
    let (nodes, _stream) = Nodes::follow(futures::stream::pending(), Trigger::default());
    let workloads = Workloads::unread(nodes, Metrics::register(&mut crate::metrics::catalogue()));
    let surveyed = Surveyed {
        scope: scope(false),
        survey: Arc::default(),
        made: (at(0), 99),
        asked: Instant::now(),
        bill: None,
        meter: Meter::default(),
    };
    workloads.surveys().insert("uid".into(), surveyed);
    assert!(!workloads.survey_again(), "still nothing is known");
    *workloads.known() = known(&[], &[], at(0));
    workloads.known().version = 100;
    assert!(workloads.survey_again(), "now it is known that no budget is blocked");
    assert!(!workloads.survey_again());
}
