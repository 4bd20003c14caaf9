//! Somebody has an agent's token, or the operator's: what it cannot be used for. All requests are dry runs, which pass
//! through the same admission as those that are meant.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, Method, Request};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::Deserialize as _;
use serde_json::{Value, json};
use spotpool_crds::names;
use spotpool_e2e::objects::apply;
use spotpool_e2e::{eventually, run};

use crate::corner::{Corner, shared};
use crate::rights::{agent_client, signed_in, stray_client};

const AGENT_OWN_NODE: &str = include_str!("../../../charts/rendered/agent/own-node.yaml");
const AGENT_OWN_PODS: &str = include_str!("../../../charts/rendered/agent/own-pods.yaml");
const OPERATOR_OWN_FINALIZER: &str = include_str!("../../../charts/rendered/operator/own-finalizer.yaml");
const OPERATOR_OWN_NODES: &str = include_str!("../../../charts/rendered/operator/own-nodes.yaml");
const OPERATOR_OWN_PODS: &str = include_str!("../../../charts/rendered/operator/own-pods.yaml");

/// What one would try.
#[derive(Debug)]
struct Attempt {
    method: Method,
    path: String,
    /// A list is a JSON patch, an object a strategic merge patch.
    body: Value,
    /// Whether the token names the node that it is of.
    named: bool,
}

fn patch(path: &str, body: Value) -> Attempt {
    Attempt { method: Method::PATCH, path: path.to_owned(), body, named: true }
}

fn add(path: &str, at: &str, value: &Value) -> Attempt {
    patch(path, json!([{"op": "add", "path": at, "value": value}]))
}

impl Attempt {
    fn of_stray(self) -> Self {
        Self { named: false, ..self }
    }

    /// What the API server says against it; `Ok` if nothing.
    async fn by(&self, client: &Client) -> Result<(), (u16, String)> {
        let kind = match (&self.method, &self.body) {
            (&Method::PATCH, Value::Array(_)) => "application/json-patch+json",
            (&Method::PATCH, _) if self.path.contains("spotpool.dev") => "application/merge-patch+json",
            (&Method::PATCH, _) => "application/strategic-merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(self.method.clone())
            .uri(format!("{}?dryRun=All", self.path))
            .header("content-type", kind)
            .body(self.body.to_string().into_bytes())
            .unwrap();
        match client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(refusal)) => Err((refusal.code, refusal.message.clone())),
            Err(error) => panic!("{self:?}: {error}"),
        }
    }
}

/// A node of one's own, one of somebody else's, a pod on each, and a SpotPool.
struct Scene {
    own: String,
    other: String,
    here: String,
    there: String,
    spot_pool: String,
}

impl Scene {
    async fn set(corner: &Corner<'_>) -> Self {
        let (own, other) = (&corner.nodes[0], &corner.nodes[1]);
        let mine = json!({"metadata": {"annotations": {"example.com/mine": "1"}}});
        corner.pod(own, "here", &mine).await;
        corner.pod(other, "there", &mine).await;
        let pools = json!([{"name": "nowhere", "maxNodes": 1}]);
        corner.stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let namespace = &corner.stage.name;
        Self {
            own: format!("/api/v1/nodes/{own}"),
            other: format!("/api/v1/nodes/{other}"),
            here: format!("/api/v1/namespaces/{namespace}/pods/here"),
            there: format!("/api/v1/namespaces/{namespace}/pods/there"),
            spot_pool: format!("/apis/spotpool.dev/v1alpha1/namespaces/{namespace}/spotpools/p"),
        }
    }

    /// By policy: what it must refuse, with a part of what it says.
    fn attempts(&self) -> BTreeMap<&'static str, Vec<(Attempt, &'static str)>> {
        BTreeMap::from([
            ("spotpool-agent-own-node", self.on_nodes_by_an_agent()),
            ("spotpool-agent-own-pods", self.on_pods_by_an_agent()),
            ("spotpool-operator-own-nodes", self.on_nodes_by_the_operator()),
            ("spotpool-operator-own-pods", self.on_pods_by_the_operator()),
            ("spotpool-operator-own-finalizer", self.on_spot_pools_by_the_operator()),
        ])
    }

    fn on_nodes_by_an_agent(&self) -> Vec<(Attempt, &'static str)> {
        let (node, status, other) = (&*self.own, &format!("{}/status", self.own), &*self.other);
        let notice = || annotations(&json!({names::EVICTION_ANNOTATION: "{}"}));
        let elsewhere = "may write only that Node, not";
        let taints = "an agent may write only spotpool.dev/evicting";
        let in_status = "of its Node's status, an agent may write only the condition";
        let conditions = "of its Node's conditions";
        vec![
            (patch(other, notice()), elsewhere),
            (patch(&format!("{other}/status"), condition("EvictionNoticed", "True")), elsewhere),
            (patch(node, notice()).of_stray(), "the agent of node \"\" may write only"),
            (patch(node, labels(&json!({"type": null}))), "labels of its Node: type"),
            (patch(node, labels(&json!({"kubernetes.io/hostname": "db"}))), "kubernetes.io/hostname"),
            (patch(node, labels(&json!({names::POOL_LABEL: "mine"}))), names::POOL_LABEL),
            (patch(status, labels(&json!({"example.com/db": "true"}))), "labels of its Node: example.com/db"),
            (
                patch(node, labels(&json!({names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL: "true"}))),
                "only with the value spotpool.dev",
            ),
            (patch(node, annotations(&json!({names::POLICY_ANNOTATION: "{}"}))), names::POLICY_ANNOTATION),
            (
                patch(node, annotations(&json!({names::DRAIN_REQUEST_ANNOTATION: "{}"}))),
                names::DRAIN_REQUEST_ANNOTATION,
            ),
            (
                patch(status, annotations(&json!({"example.com/x": "y"}))),
                "annotations of its Node: example.com/x",
            ),
            (patch(node, json!({"metadata": {"finalizers": ["example.com/x"]}})), "owners or finalizers"),
            (
                patch(node, json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}})),
                "only taints and unschedulable",
            ),
            (patch(node, json!({"spec": {"taints": null}})), taints),
            (add(node, "/spec/taints/-", &json!({"key": "example.com/x", "effect": "NoSchedule"})), taints),
            (
                add(node, "/spec/taints/-", &json!({"key": names::EVICTING_TAINT, "effect": "NoExecute"})),
                taints,
            ),
            (
                add(
                    node,
                    "/spec/taints/-",
                    &json!({"key": names::OUT_OF_SERVICE_TAINT, "value": names::OUT_OF_SERVICE_VALUE, "effect": "NoExecute"}),
                ),
                taints,
            ),
            (patch(status, json!({"status": {"capacity": {"cpu": "9000"}}})), in_status),
            (
                patch(
                    status,
                    json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.9.9.9"}]}}),
                ),
                in_status,
            ),
            (patch(status, condition("Ready", "False")), conditions),
            (patch(status, condition("PreemptionScheduled", "True")), conditions),
            (
                patch(status, json!({"status": {"conditions": [{"$patch": "delete", "type": "Ready"}]}})),
                conditions,
            ),
        ]
    }

    fn on_pods_by_an_agent(&self) -> Vec<(Attempt, &'static str)> {
        let (pod, status, other) = (&*self.here, &format!("{}/status", self.here), &*self.there);
        let deadline = || annotations(&json!({names::DEADLINE_ANNOTATION: "2026-01-01T00:00:00Z"}));
        // Of a deletion with a body, the API server does not look at the query.
        let delete = |path: &str| Attempt {
            method: Method::DELETE,
            path: path.to_owned(),
            body: json!({"dryRun": ["All"]}),
            named: true,
        };
        let (elsewhere, nowhere) = ("only pods of that Node", "this token names no node");
        let in_status = "of a pod's status, an agent may write only the condition DisruptionTarget";
        let metadata = "labels, owners or finalizers of a pod";
        vec![
            (patch(other, deadline()), elsewhere),
            (patch(&format!("{other}/status"), condition("DisruptionTarget", "True")), elsewhere),
            (delete(other), elsewhere),
            (patch(pod, deadline()).of_stray(), nowhere),
            (delete(pod).of_stray(), nowhere),
            (evict(pod).of_stray(), nowhere),
            (patch(pod, annotations(&json!({"example.com/mine": "2"}))), "of a pod: example.com/mine"),
            (patch(pod, annotations(&json!({"example.com/mine": null}))), "of a pod: example.com/mine"),
            (patch(pod, annotations(&json!({names::HOOK_ANNOTATION: ":80/"}))), names::HOOK_ANNOTATION),
            (patch(status, annotations(&json!({"example.com/new": "1"}))), "of a pod: example.com/new"),
            (patch(pod, labels(&json!({"app": "web"}))), metadata),
            (patch(status, labels(&json!({"app": "web"}))), metadata),
            (patch(pod, json!({"metadata": {"finalizers": ["example.com/x"]}})), metadata),
            (
                patch(pod, json!({"spec": {"containers": [{"name": "main", "image": "miner"}]}})),
                "may not write the spec",
            ),
            (patch(status, json!({"status": {"message": "all is well"}})), in_status),
            (add(status, "/status/hostIP", &json!("169.254.169.254")), in_status),
            (patch(status, condition("Ready", "False")), in_status),
        ]
    }

    fn on_nodes_by_the_operator(&self) -> Vec<(Attempt, &'static str)> {
        let node = &*self.own;
        let taints = "of a Node's taints, the operator may write only";
        let taint = |key: &str, value: &str, effect: &str| {
            add(node, "/spec/taints/-", &json!({"key": key, "value": value, "effect": effect}))
        };
        vec![
            (patch(node, labels(&json!({"type": null}))), "labels of a Node: type"),
            (patch(node, labels(&json!({"example.com/db": "true"}))), "labels of a Node: example.com/db"),
            (
                patch(node, labels(&json!({names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL: "true"}))),
                "only with the value spotpool.dev",
            ),
            (
                patch(node, annotations(&json!({"example.com/x": "y"}))),
                "annotations of a Node: example.com/x",
            ),
            (
                patch(node, annotations(&json!({names::REQUESTED_DRAIN_ANNOTATION: "please"}))),
                names::REQUESTED_DRAIN_ANNOTATION,
            ),
            (
                patch(node, json!({"metadata": {"finalizers": ["example.com/x"]}})),
                "owners or finalizers of a Node",
            ),
            (
                patch(node, json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}})),
                "only taints and unschedulable",
            ),
            (patch(node, json!({"spec": {"taints": null}})), taints),
            (taint("example.com/x", "", "NoSchedule"), taints),
            (taint(names::EVICTING_TAINT, "Preempt", "NoExecute"), taints),
            (taint(names::OUT_OF_SERVICE_TAINT, "nodeshutdown", "NoExecute"), taints),
        ]
    }

    fn on_pods_by_the_operator(&self) -> Vec<(Attempt, &'static str)> {
        let status = &format!("{}/status", self.here);
        let (only, in_status) = ("of a pod, the operator may write only", "of a pod's status, the operator");
        vec![
            (patch(status, labels(&json!({"app": "web"}))), only),
            (patch(status, annotations(&json!({"example.com/mine": "2"}))), only),
            (patch(status, json!({"metadata": {"finalizers": ["example.com/x"]}})), only),
            (patch(status, json!({"status": {"message": "all is well"}})), in_status),
            (patch(status, condition("Ready", "False")), in_status),
        ]
    }

    fn on_spot_pools_by_the_operator(&self) -> Vec<(Attempt, &'static str)> {
        let (pool, only) = (&*self.spot_pool, "only its finalizer");
        vec![
            (patch(pool, json!({"spec": {"replicas": 500}})), only),
            (
                patch(pool, annotations(&json!({names::BUDGET_OVERRIDE_ANNOTATION: "2026-01-01T00:00:00Z"}))),
                only,
            ),
            (patch(pool, json!({"metadata": {"finalizers": ["example.com/x"]}})), only),
        ]
    }
}

fn annotations(annotations: &Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

fn labels(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"status": {"conditions": [{"type": kind, "status": status, "reason": "Forged", "message": ""}]}})
}

fn evict(pod: &str) -> Attempt {
    let (place, name) = pod.split_once("/pods/").unwrap();
    let namespace = place.rsplit('/').next().unwrap();
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace}});
    Attempt { method: Method::POST, path: format!("{pod}/eviction"), body, named: true }
}

/// Who tries: with a token that names a node, and with one that does not. Operators have no node.
struct Thief {
    named: Client,
    stray: Client,
}

impl Thief {
    async fn tries(&self, attempt: &Attempt) -> Result<(), (u16, String)> {
        attempt.by(if attempt.named { &self.named } else { &self.stray }).await
    }

    /// As a user of this name whose token is of a Pod on `node`.
    async fn called(corner: &Corner<'_>, user: &str, node: &str) -> Self {
        let kubeconfig = Kubeconfig::read_from(corner.stage.world.cluster.admin_kubeconfig()).unwrap();
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        config.auth_info.impersonate = Some(user.to_owned());
        let stray = Client::try_from(config.clone()).unwrap();
        let claim = HeaderName::from_static("impersonate-extra-authentication.kubernetes.io%2fnode-name");
        config.headers.push((claim, HeaderValue::from_str(node).unwrap()));
        Self { named: Client::try_from(config).unwrap(), stray }
    }
}

/// The policies of the chart, each with its binding.
fn policies() -> Vec<(Value, Value)> {
    let texts =
        [AGENT_OWN_NODE, AGENT_OWN_PODS, OPERATOR_OWN_FINALIZER, OPERATOR_OWN_NODES, OPERATOR_OWN_PODS];
    let documents: Vec<Value> = texts
        .iter()
        .flat_map(|text| serde_yaml_ng::Deserializer::from_str(text))
        .map(|document| Value::deserialize(document).unwrap())
        .collect();
    documents.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

#[test]
fn a_stolen_token_is_of_no_use_beyond_what_its_program_writes() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "stolen", 2).await;
        let scene = Scene::set(&corner).await;
        let stray = stray_client(&corner).await;
        let agent = Thief { named: agent_client(&corner, &corner.nodes[0]).await, stray };
        let operator = signed_in(&corner.stage.operator_kubeconfig().await.unwrap()).await;
        let operator = Thief { named: operator.clone(), stray: operator };
        for (policy, attempts) in scene.attempts() {
            let thief = if policy.contains("agent") { &agent } else { &operator };
            eventually(&format!("{policy} to be in force"), async || {
                Ok(thief.tries(&attempts[0].0).await.is_err().then_some(()))
            })
            .await
            .unwrap();
            for (attempt, sentence) in &attempts {
                let refusal = thief.tries(attempt).await.expect_err(&format!("{attempt:?} was allowed"));
                assert!(refusal.0 == 403 && refusal.1.contains(sentence), "{attempt:?}: {refusal:?}");
            }
        }

        // Of these RBAC knows nothing, so no policy is asked.
        let secrets = Attempt {
            method: Method::GET,
            path: "/api/v1/namespaces/kube-system/secrets".into(),
            body: Value::Null,
            named: true,
        };
        let pods = format!("/api/v1/namespaces/{}/pods", corner.stage.name);
        let pod = json!({"metadata": {"name": "new"}, "spec": {"containers": [{"name": "main", "image": "miner"}]}});
        let pod = Attempt { method: Method::POST, path: pods, body: pod, named: true };
        let node = Attempt { method: Method::DELETE, path: scene.own.clone(), body: json!({}), named: true };
        for attempt in [&secrets, &pod, &node] {
            for thief in [&agent, &operator] {
                let refusal = thief.tries(attempt).await.expect_err(&format!("{attempt:?} was allowed"));
                assert_eq!(refusal.0, 403, "{attempt:?}: {refusal:?}");
            }
        }
    });
}

/// What docs/security.md names as left: whoever closes one of these has a sentence to take out there.
#[test]
fn what_a_stolen_token_of_an_agent_can_still_do_is_what_the_docs_say() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "remains", 2).await;
        let scene = Scene::set(&corner).await;
        corner.pod(&corner.nodes[1], "budgeted", &json!({})).await;
        corner.budget("budgeted", 1, 1).await;
        let agent = agent_client(&corner, &corner.nodes[0]).await;
        evict(&scene.there).by(&agent).await.unwrap();
        let held = evict(&scene.there.replace("/there", "/budgeted")).by(&agent).await;
        assert!(matches!(&held, Err((429, why)) if why.contains("disruption budget")), "{held:?}");
        for path in ["/api/v1/pods", &scene.other, "/apis/policy/v1/poddisruptionbudgets"] {
            let read = Attempt { method: Method::GET, path: path.into(), body: Value::Null, named: true };
            read.by(&agent).await.unwrap();
        }
    });
}

/// Each is left out in a copy of its policy for users of their own, who then must get through with something.
#[test]
fn every_validation_of_every_policy_holds_something_that_no_other_holds() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "mutants", 2).await;
        let scene = Scene::set(&corner).await;
        let all = scene.attempts();
        let mut mutants = Vec::new();
        let mut subjects = BTreeMap::<&str, Vec<Value>>::new();
        for (policy, binding) in policies() {
            let name = policy["metadata"]["name"].as_str().unwrap();
            let validations = policy["spec"]["validations"].as_array().unwrap().clone();
            for (number, validation) in validations.iter().enumerate() {
                let user = format!("{name}-without-{number}");
                let mut mutant = policy.clone();
                mutant["metadata"]["name"] = json!(user);
                mutant["spec"]["validations"].as_array_mut().unwrap().remove(number);
                mutant["spec"]["matchConditions"] =
                    json!([{"name": "user", "expression": format!("request.userInfo.username == '{user}'")}]);
                // The last one has nothing left to hold.
                if mutant["spec"]["validations"].as_array().is_some_and(Vec::is_empty) {
                    mutant["spec"]["validations"] = json!([{"expression": "true"}]);
                }
                let mut binding = binding.clone();
                binding["metadata"]["name"] = json!(user);
                binding["spec"]["policyName"] = json!(user);
                for document in [mutant, binding] {
                    apply(&world.client, &document.to_string(), |_| ()).await.unwrap();
                }
                let role = if name.contains("agent") { "spotpool-node-agent" } else { "spotpool-operator" };
                let user_of = |user: &str| json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user});
                subjects.entry(role).or_default().push(user_of(&user));
                if name.contains("finalizer") {
                    subjects.entry("spotpool-operator-pools").or_default().push(user_of(&user));
                }
                mutants.push((name.to_owned(), user, validation["expression"].clone(), validations.len()));
            }
        }
        for (role, subjects) in subjects {
            let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": format!("mutants-{role}")}, "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}});
            apply(&world.client, &binding.to_string(), |_| ()).await.unwrap();
        }
        for (policy, user, expression, validations) in mutants {
            let thief = Thief::called(&corner, &user, &corner.nodes[0]).await;
            let attempts = &all[policy.as_str()];
            // In force once it refuses what the others hold; one that held alone has nobody to wait for.
            let through = eventually(&format!("{user} to be in force"), async || {
                let (mut through, mut held) = (0, 0);
                for (attempt, _) in attempts {
                    match thief.tries(attempt).await {
                        Ok(()) => through += 1,
                        Err((403, why)) if why.contains(&format!("Policy '{user}'")) => held += 1,
                        Err((403, why)) => anyhow::bail!("not bound yet: {why}"),
                        Err(refusal) => panic!("{user}, {attempt:?}: {refusal:?}"),
                    }
                }
                Ok((validations == 1 || held > 0).then_some(through))
            })
            .await
            .unwrap();
            assert!(through > 0, "{policy} holds the same without {expression}");
        }
    });
}

#[test]
fn policies_name_every_field_that_the_api_server_knows() {
    run(async {
        let world = shared().await;
        let request = Request::get("/openapi/v3/api/v1").body(Vec::new()).unwrap();
        let api: Value = world.client.request(request).await.unwrap();
        for (schema, policy, of, written) in [
            ("NodeSpec", AGENT_OWN_NODE, "spec", &["taints", "unschedulable"][..]),
            ("NodeStatus", AGENT_OWN_NODE, "status", &["conditions"]),
            ("PodStatus", AGENT_OWN_PODS, "status", &["conditions"]),
            ("NodeSpec", OPERATOR_OWN_NODES, "spec", &["taints", "unschedulable"]),
            ("PodStatus", OPERATOR_OWN_PODS, "status", &["conditions"]),
        ] {
            let schema = &api["components"]["schemas"][format!("io.k8s.api.core.v1.{schema}")];
            for field in schema["properties"].as_object().unwrap().keys() {
                let named =
                    policy.contains(&format!("dyn(object).?{of}.?{field} == dyn(oldObject).?{of}.?{field}"));
                assert!(named || written.contains(&field.as_str()), "{of}.{field} may be written");
            }
        }
    });
}

/// A policy whose expressions do not fit the objects fails closed, for everything that its program writes.
#[test]
fn the_api_server_has_nothing_to_say_against_the_policies() {
    run(async {
        let world = shared().await;
        let _corner = Corner::set(&world, "typed", 1).await;
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(world.client.clone());
        for name in [
            "spotpool-agent-own-node",
            "spotpool-agent-own-pods",
            "spotpool-operator-own-nodes-typed",
            "spotpool-operator-own-pods-typed",
        ] {
            let status = eventually(&format!("{name} to be looked at"), async || {
                let policy = policies.get(name).await?;
                Ok(policy.status.filter(|status| status.type_checking.is_some()))
            })
            .await
            .unwrap();
            let warnings = status.type_checking.and_then(|it| it.expression_warnings).unwrap_or_default();
            assert!(warnings.is_empty(), "{name}: {warnings:#?}");
        }
    });
}
