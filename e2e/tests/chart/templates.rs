//! What values make of the templates: a table.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::helm::{charts, example, examples, find, objects, template};

const OPERATOR: &str = "Deployment spotpool-operator";
const AGENT: &str = "DaemonSet spotpool-node-agent";
const POD: &str = "/spec/template/spec";

fn rendered(values: &str, set: &[&str]) -> Vec<Value> {
    objects(&template(&example(values), set).unwrap())
}

fn of<'a>(objects: &'a [Value], what: &str) -> Option<&'a Value> {
    let (kind, name) = what.split_once(' ').unwrap();
    find(objects, kind, name)
}

/// Values, object, pointer into it (after `POD` where it begins with `~`), what must be there.
type Row = (&'static [&'static str], &'static str, &'static str, Value);

#[test]
fn values_become_what_they_say() {
    let image = |name: &str| json!(format!("myregistry.azurecr.io/spotpool/{name}:0.1.0"));
    let digest = format!("sha256:{}", "a".repeat(64));
    let by_digest: &'static str = Box::leak(format!("operator.image.digest={digest}").into_boxed_str());
    let rows: Vec<Row> = vec![
        // Two replicas that no spot eviction, drain or zone takes together.
        (&[], OPERATOR, "/spec/replicas", json!(2)),
        (
            &[],
            OPERATOR,
            "~/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0",
            json!({"key": "kubernetes.azure.com/scalesetpriority", "operator": "NotIn", "values": ["spot"]}),
        ),
        (
            &[],
            OPERATOR,
            "~/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/podAffinityTerm/topologyKey",
            json!("kubernetes.io/hostname"),
        ),
        (&[], OPERATOR, "~/topologySpreadConstraints/0/topologyKey", json!("topology.kubernetes.io/zone")),
        (&[], OPERATOR, "~/priorityClassName", json!("system-cluster-critical")),
        (&[], "PodDisruptionBudget spotpool-operator", "/spec/maxUnavailable", json!(1)),
        (&["operator.replicas=1"], OPERATOR, "/spec/replicas", json!(1)),
        // Agents: everywhere, on the host's network, with time to finish a drain.
        (&[], AGENT, "~/tolerations", json!([{"operator": "Exists"}])),
        (&[], AGENT, "~/hostNetwork", json!(true)),
        (&[], AGENT, "~/dnsPolicy", json!("ClusterFirstWithHostNet")),
        (&[], AGENT, "~/priorityClassName", json!("system-node-critical")),
        (&[], AGENT, "~/terminationGracePeriodSeconds", json!(60)),
        (&[], AGENT, "~/nodeSelector", json!({"kubernetes.io/os": "linux"})),
        (&[], AGENT, "/spec/updateStrategy/rollingUpdate/maxUnavailable", json!("5%")),
        (&["agent.maxUnavailable=2"], AGENT, "/spec/updateStrategy/rollingUpdate/maxUnavailable", json!(2)),
        // Images.
        (&[], OPERATOR, "~/containers/0/image", image("spotpool-operator")),
        (&[], AGENT, "~/containers/0/image", image("spotpool-node-agent")),
        (
            &["operator.image.tag=v9"],
            OPERATOR,
            "~/containers/0/image",
            json!("myregistry.azurecr.io/spotpool/spotpool-operator:v9"),
        ),
        (
            Box::leak(Box::new([by_digest])),
            OPERATOR,
            "~/containers/0/image",
            json!(format!("myregistry.azurecr.io/spotpool/spotpool-operator@{digest}")),
        ),
        (
            &["image.pullSecrets={one,two}"],
            AGENT,
            "~/imagePullSecrets",
            json!([{"name": "one"}, {"name": "two"}]),
        ),
        // Signing in.
        (
            &[],
            "ServiceAccount spotpool-operator",
            "/metadata/annotations/azure.workload.identity~1client-id",
            json!("22222222-2222-2222-2222-222222222222"),
        ),
        (
            &["azure.tenantId=33333333-3333-3333-3333-333333333333"],
            "ServiceAccount spotpool-operator",
            "/metadata/annotations/azure.workload.identity~1tenant-id",
            json!("33333333-3333-3333-3333-333333333333"),
        ),
        (&[], OPERATOR, "/spec/template/metadata/labels/azure.workload.identity~1use", json!("true")),
        (
            &["azure.credential=managed-identity"],
            OPERATOR,
            "/spec/template/metadata/labels/azure.workload.identity~1use",
            Value::Null,
        ),
        (
            &["azure.credential=managed-identity"],
            "NetworkPolicy spotpool-operator",
            "/spec/egress/1/to/0/ipBlock/cidr",
            json!("169.254.169.254/32"),
        ),
        (
            &["operator.port=9999"],
            "NetworkPolicy spotpool-operator",
            "/spec/ingress/0/ports/0/port",
            json!(9999),
        ),
        (
            &["tracing.otlpEndpoint=http://collector.monitoring:4318"],
            "NetworkPolicy spotpool-operator",
            "/spec/egress/0/ports/4/port",
            json!(4318),
        ),
        // Trust.
        (&["caBundle.configMap=ca"], AGENT, "~/volumes/0/configMap/name", json!("ca")),
        (
            &["caBundle.configMap=ca"],
            OPERATOR,
            "~/containers/0/volumeMounts/0/mountPath",
            json!("/etc/spotpool/ca"),
        ),
        // TLS: whoever asks must ask by HTTPS then.
        (&["tls.secret=cert"], AGENT, "~/volumes/0/secret/secretName", json!("cert")),
        (&["tls.secret=cert"], AGENT, "~/containers/0/livenessProbe/httpGet/scheme", json!("HTTPS")),
        (&["tls.secret=cert"], OPERATOR, "~/containers/0/readinessProbe/httpGet/scheme", json!("HTTPS")),
        (
            &[],
            OPERATOR,
            "~/containers/0/readinessProbe/httpGet",
            json!({"path": "/readyz", "port": "metrics"}),
        ),
        (
            &["tls.secret=cert", "caBundle.configMap=ca"],
            OPERATOR,
            "~/containers/0/volumeMounts/1/mountPath",
            json!("/etc/spotpool/tls"),
        ),
        (
            &["tls.secret=cert", "monitoring.podMonitors.enabled=true"],
            "PodMonitor spotpool-operator",
            "/spec/podMetricsEndpoints/0/scheme",
            json!("https"),
        ),
        // Monitoring: without honorLabels no alert names the right SpotPool.
        (
            &["monitoring.podMonitors.enabled=true"],
            "PodMonitor spotpool-node-agent",
            "/spec/podMetricsEndpoints/0",
            json!({"port": "metrics", "path": "/metrics", "interval": "15s", "honorLabels": true}),
        ),
        (
            &["monitoring.podMonitors.enabled=true"],
            "PodMonitor spotpool-operator",
            "/spec/podMetricsEndpoints/0/honorLabels",
            json!(true),
        ),
        (
            &[
                "monitoring.podMonitors.enabled=true",
                "monitoring.podMonitors.apiVersion=azmonitoring.coreos.com/v1",
            ],
            "PodMonitor spotpool-operator",
            "/apiVersion",
            json!("azmonitoring.coreos.com/v1"),
        ),
        (
            &["monitoring.dashboards.enabled=true"],
            "ConfigMap spotpool-dashboard-oncall",
            "/metadata/labels/grafana_dashboard",
            json!("1"),
        ),
    ];
    for (set, what, pointer, wanted) in rows {
        let objects = rendered("workload-identity.yaml", set);
        let pointer = match pointer.strip_prefix('~') {
            Some(rest) => format!("{POD}{rest}"),
            None => pointer.to_owned(),
        };
        let object = of(&objects, what).unwrap_or_else(|| panic!("{set:?}: no {what}"));
        let found = object.pointer(&pointer).cloned().unwrap_or_default();
        assert_eq!(found, wanted, "{set:?}: {what} {pointer}");
    }
}

#[test]
fn parts_can_be_left_out() {
    for (set, gone) in [
        (
            "operator.enabled=false",
            &[
                OPERATOR,
                "ServiceAccount spotpool-operator",
                "ClusterRole spotpool-operator",
                "NetworkPolicy spotpool-operator",
                "PodDisruptionBudget spotpool-operator",
                "ValidatingAdmissionPolicy spotpool-operator-own-nodes",
                "ValidatingAdmissionPolicyBinding spotpool-operator-own-pods",
            ][..],
        ),
        (
            "agent.enabled=false",
            &[
                AGENT,
                "ServiceAccount spotpool-node-agent",
                "ClusterRole spotpool-node-agent",
                "ValidatingAdmissionPolicy spotpool-agent-own-node",
                "ValidatingAdmissionPolicyBinding spotpool-agent-own-pods",
            ],
        ),
        (
            "rbac.enabled=false",
            &[
                "ClusterRole spotpool-operator",
                "Role spotpool-operator",
                "RoleBinding spotpool-operator-pools",
                "ClusterRoleBinding spotpool-node-agent",
            ],
        ),
        (
            "policies.enabled=false",
            &[
                "ValidatingAdmissionPolicy spotpool-agent-own-node",
                "ValidatingAdmissionPolicy spotpool-agent-own-pods",
                "ValidatingAdmissionPolicy spotpool-operator-own-finalizer",
                "ValidatingAdmissionPolicy spotpool-operator-own-nodes",
                "ValidatingAdmissionPolicyBinding spotpool-operator-own-pods",
            ],
        ),
        (
            "flowControl.enabled=false",
            &["FlowSchema spotpool-agent-marks", "PriorityLevelConfiguration spotpool-agent-drains"],
        ),
        ("operator.networkPolicy.enabled=false", &["NetworkPolicy spotpool-operator"]),
        ("operator.podDisruptionBudget.enabled=false", &["PodDisruptionBudget spotpool-operator"]),
        // It would keep a node from ever being drained.
        ("operator.replicas=1", &["PodDisruptionBudget spotpool-operator"]),
    ] {
        let (with, without) =
            (rendered("workload-identity.yaml", &[]), rendered("workload-identity.yaml", &[set]));
        for what in gone {
            assert!(of(&with, what).is_some(), "{what} is there otherwise");
            assert!(of(&without, what).is_none(), "{set}: {what} is there");
        }
    }
    // Not everybody has the Prometheus operator.
    let default = rendered("workload-identity.yaml", &[]);
    assert!(default.iter().all(|object| !object["apiVersion"].as_str().unwrap().contains("monitoring")));
    assert!(default.iter().all(|object| object["kind"] != "ConfigMap"));
}

#[test]
fn no_container_may_more_than_run_its_program() {
    for values in examples() {
        for object in objects(&template(&values, &[]).unwrap()) {
            let Some(pod) = object.pointer(POD) else { continue };
            let name = &object["metadata"]["name"];
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{name}");
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            for container in pod["containers"].as_array().unwrap() {
                assert_eq!(
                    container["securityContext"],
                    json!({"allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}),
                    "{name}"
                );
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            }
            let volumes = pod["volumes"].as_array().into_iter().flatten();
            for volume in volumes {
                assert!(volume.get("configMap").is_some(), "{name} mounts {volume}");
            }
        }
    }
}

#[test]
fn no_secret_is_in_the_chart() {
    for values in examples() {
        for object in objects(&template(&values, &[]).unwrap()) {
            assert_ne!(object["kind"], "Secret");
        }
    }
}

#[test]
fn a_namespace_of_pools_gets_a_binding_and_no_other_does() {
    let objects = rendered("workload-identity.yaml", &["operator.poolNamespaces={batch,web}"]);
    let bound: Vec<&Value> = objects
        .iter()
        .filter(|object| {
            object["kind"] == "RoleBinding" && object["metadata"]["name"] == "spotpool-operator-pools"
        })
        .collect();
    let namespaces: Vec<&str> =
        bound.iter().map(|it| it["metadata"]["namespace"].as_str().unwrap()).collect();
    assert_eq!(namespaces, ["batch", "web"]);
    assert!(bound.iter().all(|it| it["subjects"][0]["namespace"] == "spotpool-system"));
    let args = &of(&objects, OPERATOR).unwrap()["spec"]["template"]["spec"]["containers"][0]["args"];
    assert!(args.as_array().unwrap().contains(&json!("--pool-namespaces=batch,web")), "{args}");
}

#[test]
fn rules_and_dashboards_are_the_files_that_are_tested() {
    let read = |name: &str| std::fs::read_to_string(charts().join("spotpool").join(name)).unwrap();
    let objects = rendered("prometheus.yaml", &["monitoring.rules.runbookBaseUrl="]);
    for name in ["recording", "alerts"] {
        let rules: Value = serde_yaml_ng::from_str(&read(&format!("rules/{name}.yaml"))).unwrap();
        assert_eq!(find(&objects, "PrometheusRule", &format!("spotpool-{name}")).unwrap()["spec"], rules);
    }
    for name in ["executive", "oncall", "debug"] {
        let map = find(&objects, "ConfigMap", &format!("spotpool-dashboard-{name}")).unwrap();
        let shown: Value =
            serde_json::from_str(map["data"][format!("spotpool-{name}.json")].as_str().unwrap()).unwrap();
        assert_eq!(shown, serde_json::from_str::<Value>(&read(&format!("dashboards/{name}.json"))).unwrap());
    }
    // Who is paged gets an address that opens.
    let objects = rendered("prometheus.yaml", &[]);
    let alerts = find(&objects, "PrometheusRule", "spotpool-alerts").unwrap();
    let urls = alerts["spec"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap());
    for rule in urls {
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        let page = url.strip_prefix("https://git.example.com/spotpool/blob/main/").unwrap();
        assert!(charts().join("..").join(page).is_file(), "{url}");
    }
}

#[test]
fn everything_lands_in_the_namespace_of_the_release_and_nothing_in_another() {
    let chart = charts().join("spotpool").display().to_string();
    let values =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/chart/everything.yaml").display().to_string();
    let rendered = crate::helm::helm(&[
        "template",
        "spotpool",
        &chart,
        "--namespace",
        "elsewhere",
        "--kube-version",
        "1.34.4",
        "--values",
        &values,
        "--set",
        "operator.poolNamespaces={elsewhere}",
    ])
    .unwrap();
    assert!(!rendered.contains("spotpool-system"), "a namespace is written out");
    for object in objects(&rendered) {
        let namespace = object["metadata"]["namespace"].as_str();
        assert!(namespace.is_none_or(|namespace| namespace == "elsewhere"), "{}", object["metadata"]);
    }
}

#[test]
fn the_harness_has_the_agents_pods_that_the_chart_makes() {
    let harness = objects(include_str!("../../manifests/agent-daemonset.yaml"));
    let objects = rendered("workload-identity.yaml", &[]);
    let chart = of(&objects, AGENT).unwrap();
    for key in [
        "serviceAccountName",
        "hostNetwork",
        "priorityClassName",
        "tolerations",
        "terminationGracePeriodSeconds",
    ] {
        assert_eq!(harness[0].pointer(POD).unwrap()[key], chart.pointer(POD).unwrap()[key], "{key}");
    }
    assert_eq!(harness[0]["spec"]["selector"], chart["spec"]["selector"]);
}

/// Whoever may write a SpotPool spends money, so an editor of a namespace must be given that right by name.
#[test]
fn no_role_gives_rights_on_spot_pools_to_those_who_may_edit_or_view_namespaces() {
    let everything = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/chart/everything.yaml");
    let objects = objects(&template(&everything, &[]).unwrap());
    let roles: Vec<_> = objects.iter().filter(|object| object["kind"] == "ClusterRole").collect();
    for role in &roles {
        assert!(role["aggregationRule"].is_null(), "{role}");
        let labels = role["metadata"]["labels"].as_object().unwrap();
        let aggregates = |label: &String| label.starts_with("rbac.authorization.k8s.io/");
        assert!(!labels.keys().any(aggregates), "{role}");
    }
    for role in ["spotpool-viewer", "spotpool-editor", "spotpool-driller"] {
        assert!(roles.iter().any(|object| object["metadata"]["name"] == role), "{role}");
        assert!(objects.iter().all(|object| object["roleRef"]["name"] != role), "{role} is bound");
    }
}
