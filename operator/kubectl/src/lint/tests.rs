//! Each rule on manifests that are right, which the examples are, and on ones in which one thing is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Two Deployments, an autoscaler, a budget.
const SHARE: &str = include_str!("../../../../docs/examples/workloads/share.yaml");
const WEB: &str = include_str!("../../../../docs/examples/workloads/web.yaml");
const BATCH: &str = include_str!("../../../../docs/examples/workloads/batch.yaml");
const CHECKPOINT: &str = include_str!("../../../../docs/examples/checkpointing-job.yaml");

/// Makes something else of an object.
type Change = Box<dyn FnOnce(&mut Value)>;

fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect()
}

fn read(text: &str) -> Result<Manifests, Error> {
    let mut manifests = Manifests::default();
    manifests.add(text, "app.yaml").map(|()| manifests)
}

fn looked_at(documents: &[Value]) -> Report {
    let text: Vec<String> = documents.iter().map(ToString::to_string).collect();
    examine(&read(&text.join("\n---\n")).unwrap(), &[])
}

fn found(report: &Report) -> Vec<(Severity, String)> {
    report.findings.iter().map(|it| (it.severity, format!("{} {}", name(it.rule), it.about))).collect()
}

/// What is found beyond what the right ones have, if `change` is made in the object of this kind and name.
fn wrong(text: &str, kind: &str, called: &str, change: impl FnOnce(&mut Value)) -> Vec<(Severity, String)> {
    let mut all = documents(text);
    let before = found(&looked_at(&all));
    let it = all.iter_mut().find(|it| it["kind"] == kind && it["metadata"]["name"] == called).unwrap();
    change(it);
    found(&looked_at(&all)).into_iter().filter(|it| !before.contains(it)).collect()
}

#[test]
fn the_examples_have_no_error_and_no_warning() {
    let none: Vec<(Severity, String)> = Vec::new();
    for text in [SHARE, BATCH] {
        assert_eq!(found(&examine(&read(text).unwrap(), &[])), none);
    }
    // Each says what it is: the one has room on demand and no pods there, the other goes where there is room.
    let web = found(&examine(&read(WEB).unwrap(), &[]));
    assert_eq!(web, [(Severity::Info, "on-demand-share PodDisruptionBudget shop".into())]);
    let checkpoint = found(&examine(&read(CHECKPOINT).unwrap(), &[]));
    assert_eq!(checkpoint, [(Severity::Info, "spot-preference Job checkpointing-job".into())]);
}

/// The spec of a Deployment's or a Job's pods.
fn pods(it: &mut Value) -> &mut Value {
    it.pointer_mut("/spec/template/spec").unwrap()
}

#[test]
fn each_rule_finds_what_it_is_for() {
    let spot = json!({"kubernetes.azure.com/scalesetpriority": "spot"});
    let all = json!([{"operator": "Exists"}]);
    let hard = |key: &str| json!([{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule"}]);
    let hosts = "kubernetes.io/hostname";
    let only_hosts = json!([{"maxSkew": 1, "topologyKey": hosts, "whenUnsatisfiable": "ScheduleAnyway"}]);
    let table: Vec<(&str, Severity, Change)> = vec![
        // Its label says that it is meant for spot.
        ("spot-toleration", Severity::Error, Box::new(|it| pods(it)["tolerations"] = json!([]))),
        (
            "spot-toleration",
            Severity::Error,
            Box::new({
                let spot = spot.clone();
                move |it| {
                    it["metadata"]["labels"] = json!({});
                    pods(it)["tolerations"] = json!([]);
                    pods(it)["nodeSelector"] = spot;
                }
            }),
        ),
        (
            "spot-toleration",
            Severity::Warning,
            Box::new(|it| {
                it["metadata"]["labels"] = json!({});
                // Of another value, or effect, is none.
                pods(it)["tolerations"] = json!([{"key": "kubernetes.azure.com/scalesetpriority",
                    "operator": "Equal", "value": "regular"}, {"operator": "Exists", "effect": "NoExecute"}]);
            }),
        ),
        (
            "spot-toleration",
            Severity::Info,
            Box::new(|it| {
                it["metadata"]["labels"] = json!({});
                pods(it)["tolerations"] = json!([]);
                pods(it)["affinity"] = json!({});
            }),
        ),
        ("tolerates-everything", Severity::Warning, Box::new(|it| pods(it)["tolerations"] = all)),
        ("spot-only", Severity::Warning, Box::new(|it| pods(it)["nodeSelector"] = spot)),
        (
            "spot-only",
            Severity::Warning,
            Box::new(|it| {
                pods(it)["nodeSelector"] = json!({"kubernetes.azure.com/priority": "spot"});
            }),
        ),
        ("spot-preference", Severity::Info, Box::new(|it| pods(it)["affinity"] = json!({}))),
        ("spread", Severity::Warning, Box::new(|it| pods(it)["topologySpreadConstraints"] = json!([]))),
        ("spread", Severity::Info, Box::new(|it| pods(it)["topologySpreadConstraints"] = only_hosts)),
        (
            "hard-spread",
            Severity::Warning,
            Box::new({
                let spread = json!([hard(hosts)[0], hard("topology.kubernetes.io/zone")[0]]);
                |it| pods(it)["topologySpreadConstraints"] = spread
            }),
        ),
        (
            "hard-spread",
            Severity::Warning,
            Box::new({
                let more = hard("kubernetes.azure.com/scalesetpriority")[0].clone();
                |it| pods(it)["topologySpreadConstraints"].as_array_mut().unwrap().push(more)
            }),
        ),
        ("grace", Severity::Warning, Box::new(|it| pods(it)["terminationGracePeriodSeconds"] = json!(31))),
        (
            "pre-stop",
            Severity::Error,
            Box::new(|it| {
                pods(it)["containers"][0]["lifecycle"]["preStop"] = json!({"sleep": {"seconds": 25}});
            }),
        ),
        (
            "pre-stop",
            Severity::Error,
            Box::new(|it| {
                let command = json!(["sh", "-c", "curl localhost/bye; /bin/sleep 20 && sleep 5s"]);
                pods(it)["containers"][0]["lifecycle"]["preStop"] = json!({"exec": {"command": command}});
            }),
        ),
        (
            "hook-timeout",
            Severity::Error,
            Box::new(|it| {
                let annotations = json!({"spotpool.dev/hook-timeout": "soon"});
                it["spec"]["template"]["metadata"]["annotations"] = annotations;
            }),
        ),
        (
            "hook-timeout",
            Severity::Info,
            Box::new(|it| {
                let annotations = json!({"spotpool.dev/hook-timeout": "2m"});
                it["spec"]["template"]["metadata"]["annotations"] = annotations;
            }),
        ),
        (
            "local-data",
            Severity::Warning,
            Box::new(|it| pods(it)["volumes"] = json!([{"name": "data", "hostPath": {"path": "/data"}}])),
        ),
        (
            "local-data",
            Severity::Info,
            Box::new(|it| pods(it)["volumes"] = json!([{"name": "data", "emptyDir": {}}])),
        ),
        (
            "requests",
            Severity::Warning,
            Box::new(|it| pods(it)["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi"}})),
        ),
        (
            "system-priority",
            Severity::Warning,
            Box::new(|it| pods(it)["priorityClassName"] = json!("system-node-critical")),
        ),
        ("replicas-twice", Severity::Warning, Box::new(|it| it["spec"]["replicas"] = json!(4))),
    ];
    for (rule, severity, change) in table {
        let found = wrong(SHARE, "Deployment", "web-spot", change);
        assert_eq!(found, [(severity, format!("{rule} Deployment web-spot"))], "{rule}");
    }
}

#[test]
fn what_only_looks_wrong_is_let_be() {
    let none: Vec<(Severity, String)> = Vec::new();
    let table: Vec<Change> = vec![
        // Pods cut apart by anti-affinity, and zones by spread.
        Box::new(|it| {
            pods(it)["topologySpreadConstraints"].as_array_mut().unwrap().remove(0);
            pods(it)["affinity"]["podAntiAffinity"] = json!({"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}]});
        }),
        // Nodes that are being emptied do not count.
        Box::new(|it| {
            let spread = &mut pods(it)["topologySpreadConstraints"][0];
            spread["whenUnsatisfiable"] = json!("DoNotSchedule");
            spread["nodeTaintsPolicy"] = json!("Honor");
        }),
        // A hook saves the work.
        Box::new(|it| {
            pods(it)["terminationGracePeriodSeconds"] = json!(600);
            it["spec"]["template"]["metadata"]["annotations"] = json!({"spotpool.dev/hook": ":8080/save"});
        }),
        // Kubernetes' own 30 s.
        Box::new(|it| pods(it)["terminationGracePeriodSeconds"] = Value::Null),
        Box::new(|it| pods(it)["terminationGracePeriodSeconds"] = json!(30)),
        Box::new(|it| pods(it)["volumes"] = json!([{"name": "m", "emptyDir": {"medium": "Memory"}}])),
        // A limit is a request.
        Box::new(|it| {
            let limits = json!({"limits": {"cpu": 1, "memory": "1Gi"}});
            pods(it)["containers"][0]["resources"] = limits;
        }),
    ];
    for (at, change) in table.into_iter().enumerate() {
        assert_eq!(wrong(SHARE, "Deployment", "web-spot", change), none, "{at}");
    }
    // What stays on demand is not told what it would lose on spot.
    let on_demand = wrong(SHARE, "Deployment", "web-base", |it| {
        pods(it)["terminationGracePeriodSeconds"] = json!(3600);
        pods(it)["topologySpreadConstraints"] = json!([]);
        pods(it)["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        pods(it)["tolerations"] =
            json!([{"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}]);
    });
    assert_eq!(on_demand, none);
}

#[test]
fn jobs_that_count_evictions_as_failures_are_told() {
    let job = |change: fn(&mut Value)| {
        wrong(CHECKPOINT, "Job", "checkpointing-job", |it| {
            it["spec"].as_object_mut().unwrap().remove("podFailurePolicy");
            change(it);
        })
    };
    let named = "job-disruptions Job checkpointing-job".to_owned();
    assert_eq!(job(|_| ()), [(Severity::Warning, named.clone())]);
    assert_eq!(
        job(|it| pods(it)["restartPolicy"] = json!("OnFailure")),
        [(Severity::Warning, named.clone())]
    );
    assert_eq!(job(|it| it["spec"]["backoffLimit"] = json!(0)), [(Severity::Error, named)]);
    let other = wrong(BATCH, "CronJob", "batch", |it| {
        let policy =
            json!({"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [3]}}]});
        it["spec"]["jobTemplate"]["spec"]["podFailurePolicy"] = policy;
    });
    assert_eq!(other, [(Severity::Warning, "job-disruptions CronJob batch".into())]);
}

#[test]
fn budgets_must_be_able_to_let_pods_go() {
    let budget = |spec: Value| {
        wrong(SHARE, "PodDisruptionBudget", "web", |it| {
            it["spec"] = json!({"selector": {"matchLabels": {"app": "web"}},
                "unhealthyPodEvictionPolicy": "AlwaysAllow"});
            it["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        })
    };
    let of = |rule: &str, severity| vec![(severity, format!("{rule} PodDisruptionBudget web"))];
    // web-base has 2 pods, web-spot 4 by its autoscaler.
    for never in [
        json!({"minAvailable": 6}),
        json!({"minAvailable": 7}),
        json!({"minAvailable": "100%"}),
        json!({"minAvailable": "90%"}),
        json!({"maxUnavailable": 0}),
        json!({"maxUnavailable": "0%"}),
    ] {
        assert_eq!(budget(never.clone()), of("budget-never-allows", Severity::Error), "{never}");
    }
    for more_than_on_demand in
        [json!({"minAvailable": 5}), json!({"minAvailable": "80%"}), json!({"maxUnavailable": 1})]
    {
        let found = budget(more_than_on_demand.clone());
        assert_eq!(found, of("on-demand-share", Severity::Info), "{more_than_on_demand}");
    }
    for right in [
        json!({"minAvailable": 1}),
        json!({"minAvailable": "10%"}),
        json!({"maxUnavailable": "60%"}),
        json!({}),
    ] {
        assert_eq!(budget(right.clone()), [], "{right}");
    }
    let other = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "wed"}}});
    assert_eq!(budget(other), of("budget-selects-nothing", Severity::Warning));
    // A selector that is empty is one of all.
    assert_eq!(budget(json!({"minAvailable": 1, "selector": {}})), []);
    assert_eq!(
        budget(json!({"selector": null, "minAvailable": 1})),
        of("budget-selects-nothing", Severity::Warning)
    );
    let broken = json!({"minAvailable": 1, "unhealthyPodEvictionPolicy": "IfHealthyBudget"});
    assert_eq!(budget(broken), of("budget-of-broken-pods", Severity::Info));

    let single = json!({"minAvailable": 1, "selector": {"matchLabels": {"share": "base"}}});
    let mut all = documents(SHARE);
    all[1]["spec"]["replicas"] = json!(1);
    all[4]["spec"] = single;
    let single = found(&looked_at(&all));
    assert!(single.contains(&of("budget-of-single-pod", Severity::Warning)[0]), "{single:?}");

    let mut all = documents(SHARE);
    let mut second = all[4].clone();
    second["metadata"]["name"] = json!("other");
    all.push(second.clone());
    let twice = found(&looked_at(&all));
    let overlap = |name: &str| (Severity::Error, format!("budgets-overlap Deployment {name}"));
    assert!(twice.contains(&overlap("web-base")) && twice.contains(&overlap("web-spot")), "{twice:?}");
    // An overlay has what its base has.
    *all.last_mut().unwrap() = all[4].clone();
    assert_eq!(found(&looked_at(&all)), []);
    // One of another namespace is nobody's here, and what is not given is not judged.
    second["metadata"]["namespace"] = json!("elsewhere");
    *all.last_mut().unwrap() = second;
    assert_eq!(found(&looked_at(&all)), []);
}

#[test]
fn a_quorum_on_spot_alone_is_told() {
    let set = |replicas: i32| {
        let mut all = documents(WEB);
        all[0]["kind"] = json!("StatefulSet");
        all[0]["spec"]["replicas"] = json!(replicas);
        found(&looked_at(&all[..1]))
    };
    assert_eq!(set(3), [(Severity::Warning, "on-demand-share StatefulSet shop".into())]);
    assert_eq!(set(2), []);
}

#[test]
fn pods_of_nobody_and_autoscalers_of_spot_pools_are_looked_at() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec":
        documents(BATCH)[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]});
    assert_eq!(found(&looked_at(&[pod])), [(Severity::Warning, "bare-pod Pod p".into())]);

    let mut hpa = documents(include_str!("../../../../docs/examples/hpa.yaml")).remove(0);
    assert_eq!(found(&looked_at(std::slice::from_ref(&hpa))), []);
    hpa["spec"]["metrics"][0]["external"]["target"] = json!({"type": "Value", "value": "10"});
    let wrong = "spot-pool-metric HorizontalPodAutoscaler spotpool-system/workers".to_owned();
    assert_eq!(found(&looked_at(&[hpa])), [(Severity::Error, wrong)]);
}

#[test]
fn each_finding_says_what_to_change_and_what_to_paste_is_yaml() {
    let mut all = documents(SHARE);
    all[2]["spec"]["template"]["spec"] = json!({"containers": [{"name": "web"}]});
    all[4]["spec"]["minAvailable"] = json!(6);
    let report = looked_at(&all);
    assert!(report.findings.iter().any(|it| !it.paste.is_empty()));
    for finding in &report.findings {
        assert!(!finding.wrong.contains('\n') && !finding.fix.is_empty(), "{finding:?}");
        let paste: Value = serde_yaml_ng::from_str(finding.paste).unwrap();
        assert_eq!(paste.is_object(), !finding.paste.is_empty(), "{finding:?}");
    }
    let text = anstream::adapter::strip_str(&render(&report, 80)).to_string();
    assert!(text.starts_with("error  "), "the worst first:\n{text}");
    assert!(text.contains("\n        tolerations:\n        - {key: ") && text.ends_with(" info\n"), "{text}");

    let ignored = [Rule::BudgetNeverAllows, Rule::SpotToleration];
    let text: Vec<String> = all.iter().map(ToString::to_string).collect();
    let left = examine(&read(&text.join("\n---\n")).unwrap(), &ignored);
    assert!(!left.findings.is_empty() && left.findings.iter().all(|it| !ignored.contains(&it.rule)));
}

#[test]
fn files_folders_and_lists_are_read_and_what_is_none_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let refused = || Manifests::read(dir.path()).unwrap_err().sentence().unwrap();
    assert!(refused().contains("there is no Deployment"), "{}", refused());
    write("share.yaml", SHARE);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": documents(BATCH)});
    std::fs::create_dir(dir.path().join("more")).unwrap();
    write("more/batch.json", &list.to_string());
    write("more/notes.txt", "{ no: yaml");
    write("values.yaml", "replicas: 3\n---\n---\n- a\n- list\n");
    let all = Manifests::read(dir.path()).unwrap();
    assert_eq!((all.objects, all.runners.len()), (5, 3));
    assert_eq!(Manifests::read(&dir.path().join("share.yaml")).unwrap().objects, 4);

    for (text, wanted) in [
        ("kind: Pod\nspec: {\n", "line 3"),
        ("a: 1\n---\nkind: Pod\n b: 2\n", "line 4"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: three}\n",
            "Deployment web: ",
        ),
    ] {
        write("bad.yaml", text);
        let refused = refused();
        assert!(refused.contains("bad.yaml: ") && refused.contains(wanted), "{refused}");
        assert!(!refused.contains('\n'), "{refused}");
        std::fs::remove_file(dir.path().join("bad.yaml")).unwrap();
    }
    let missing = Manifests::read(&dir.path().join("nowhere.yaml")).unwrap_err().sentence().unwrap();
    assert!(missing.starts_with("cannot read ") && missing.contains("nowhere.yaml"), "{missing}");
}

#[test]
fn each_rule_is_explained_and_no_other() {
    let page = include_str!("../../../../docs/how-to/workloads.md");
    let (_, rules) = page.split_once("\n## The rules\n").unwrap();
    let explained: Vec<&str> = rules.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let known: Vec<String> = Rule::value_variants().iter().map(|rule| name(*rule)).collect();
    assert_eq!(explained, known, "docs/how-to/workloads.md, in this order");
}

/// Any value, mostly made of words that manifests are made of.
fn anything() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "0",
        "-1",
        "100%",
        "",
        "spot",
        "Exists",
        "In",
        "NotIn",
        "Ignore",
        "DisruptionTarget",
        "DoNotSchedule",
        "sleep 9223372036854775807",
        "kubernetes.azure.com/scalesetpriority",
        "StatefulSet",
        "9999999999999999%",
        "ü",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        Just(json!(i64::MAX)),
        word.prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "replicas",
        "template",
        "metadata",
        "labels",
        "spec",
        "tolerations",
        "key",
        "operator",
        "value",
        "affinity",
        "containers",
        "name",
        "lifecycle",
        "preStop",
        "exec",
        "command",
        "sleep",
        "seconds",
        "minAvailable",
        "maxUnavailable",
        "selector",
        "matchLabels",
        "app",
        "backoffLimit",
        "jobTemplate",
        "volumes",
        "items",
        "kind",
    ]);
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    /// Whatever it is given, it answers.
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}", lines in prop::collection::vec("[ \\-a-z:{}\\[\\]&*!|>'\"#%@`\t]{0,20}", 0..8)) {
        for text in [text, lines.join("\n")] {
            if let Ok(manifests) = read(&text) {
                render(&examine(&manifests, &[]), 40);
            }
        }
    }

    /// A right manifest, of which one part has become anything else.
    #[test]
    fn no_manifest_makes_it_panic(
        at in prop::sample::select(vec!["", "/spec", "/spec/template", "/spec/template/spec", "/metadata",
            "/spec/selector", "/spec/template/spec/affinity", "/spec/template/spec/containers/0", "/spec/minAvailable",
            "/spec/replicas", "/spec/template/spec/topologySpreadConstraints/0", "/spec/jobTemplate/spec/backoffLimit",
            "/spec/template/spec/terminationGracePeriodSeconds", "/spec/metrics/0", "/spec/minReplicas"]),
        value in anything(),
    ) {
        for text in [SHARE, BATCH] {
            for which in 0..5 {
                let mut all = documents(text);
                let Some(part) = all.get_mut(which).and_then(|it| it.pointer_mut(at)) else { continue };
                *part = value.clone();
                let text: Vec<String> = all.iter().map(ToString::to_string).collect();
                if let Ok(manifests) = read(&text.join("\n---\n")) {
                    render(&examine(&manifests, &[]), 40);
                }
            }
        }
    }
}
