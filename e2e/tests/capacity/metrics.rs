//! Row M: what the reference says of metrics is what a scrape shows, and the figures move with what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget, PoolSpec, Priority};
use spotpool_crds::spot_pool::Drains;
use spotpool_crds::{SpotPoolStatus, names};
use spotpool_e2e::dashboards::{Dashboard, NAMES};
use spotpool_e2e::drawing::{View, draw};
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::prometheus::Prometheus;
use spotpool_e2e::wait::within;
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};
use spotpool_e2e_cluster::{RUN_FOR_ANNOTATION, Signal, Tools};
use spotpool_runtime::catalogue::Catalogue;

use crate::{seen, world_with_agents};

/// Families that show themselves only once something has happened that happens in
/// [`what_happens_rarely_is_in_a_scrape_too`] alone: whose program has each, and the labels of the sample looked for.
const RARE: [(Whose, &str, Labels); 9] = [
    (Whose::FirstAgent, "spotpool_agent_documents_not_understood_total", &[("what", "type")]),
    (Whose::FirstAgent, "spotpool_agent_hooks_total", &[]),
    (Whose::FirstAgent, "spotpool_agent_deadline_annotations_total", &[]),
    (Whose::Operator, "spotpool_operator_backup_drains_total", &[("result", "Claimed")]),
    (Whose::Operator, "spotpool_operator_budget", &[("period", "hour")]),
    (Whose::Operator, "spotpool_operator_budget_left", &[("period", "month")]),
    (Whose::Operator, "spotpool_operator_workload_hourly_cost", &[("workload", "red")]),
    (Whose::Operator, "spotpool_operator_workload_month_spend", &[("workload", "red")]),
    (Whose::Operator, "spotpool_operator_floor_hourly_cost", &RARE_POOL),
];
const RARE_POOL: [(&str, &str); 2] = [("namespace", "rare"), ("pool", "p")];

/// Labels that a sample has.
type Labels = &'static [(&'static str, &'static str)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Operator,
    FirstAgent,
}

/// One sample of a scrape.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads OpenMetrics as far as our programs write it: no label value of theirs has a quote or a comma in it.
fn samples(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let read = |line: &str| {
        // Without its exemplar, if it has one.
        let line = line.split_once(" # {").map_or(line, |(sample, _)| sample);
        let (name, value) = line.rsplit_once(' ')?;
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        let labels = labels.strip_suffix('}')?.split_terminator("\",");
        let label = |label: &str| {
            let (name, value) = label.split_once("=\"")?;
            Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
        };
        let labels = labels.map(label).collect::<Option<_>>()?;
        Some(Sample { name: name.to_owned(), labels, value: value.parse().ok()? })
    };
    lines.map(|line| read(line).unwrap_or_else(|| panic!("no sample: {line}"))).collect()
}

async fn scrape(url: &str) -> anyhow::Result<Vec<Sample>> {
    let request = reqwest::Client::new().get(format!("{url}/metrics"));
    let answer = request.header("accept", "application/openmetrics-text; version=1.0.0").send().await?;
    Ok(samples(&answer.text().await?))
}

/// The sum of a family's samples that have these labels.
fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Sample| {
        sample.name == name
            && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|it| it == value))
    };
    samples.iter().filter(has).map(|sample| sample.value).sum()
}

/// Every sample is of a family of the reference, with its labels and their values. Returns the families that were seen.
fn held_against(catalogue: &Catalogue, samples: &[Sample]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for sample in samples {
        let suffixes = ["", "_bucket", "_sum", "_count"];
        let described = catalogue.families().iter().find(|family| {
            let suffixes = if family.kind == "histogram" { &suffixes[1..] } else { &suffixes[..1] };
            suffixes.iter().any(|suffix| sample.name.strip_suffix(suffix) == Some(family.name.as_str()))
        });
        let family = described.unwrap_or_else(|| panic!("{} is not in the reference", sample.name));
        seen.insert(family.name.clone());
        let named: BTreeSet<&str> = family.labels.iter().map(|label| label.name).collect();
        let found: BTreeSet<&str> =
            sample.labels.keys().map(String::as_str).filter(|name| *name != "le").collect();
        assert_eq!(found, named, "labels of {}", family.name);
        for label in &family.labels {
            let value = &sample.labels[label.name];
            assert!(label.allows(value), "{}: {} is {value:?}", family.name, label.name);
        }
    }
    seen
}

/// What Grafana would set.
const VARIABLES: [(&str, &str); 5] = [
    ("$cluster", ".*"),
    ("$namespace", "metric"),
    ("$pool", ".*"),
    ("$__range", "10m"),
    ("$__rate_interval", "1m"),
];

/// A panel's query has data, with all of Grafana's variables set.
async fn shows(prometheus: &Prometheus, promql: &str) {
    let promql = VARIABLES.iter().fold(promql.to_owned(), |text, (name, value)| text.replace(name, value));
    eventually(&format!("data for {promql}"), async || {
        let samples = prometheus.query(&promql).await?;
        Ok(samples.iter().any(|(_, value)| value.is_finite()).then_some(()))
    })
    .await
    .unwrap();
}

/// What promtool has against metrics in Prometheus' older text format.
async fn promtool_finds_nothing(classic: String) {
    let promtool = Tools::promtool().await.unwrap();
    let checked = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(promtool);
        command
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(classic.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let checked = checked.await.unwrap();
    let said = String::from_utf8_lossy(&checked.stderr) + String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn every_metric_of_the_reference_is_in_a_scrape_and_moves_and_no_other_is_there() {
    run(async {
        let stage = Stage::set(world_with_agents().await, "metric").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("metrica", "Standard_D4s_v5", 2),
                PoolSpec::regular("metricr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "metrica", "maxNodes": 4}, {"name": "metricr", "maxNodes": 2}]);
        let spec = json!({"replicas": 2, "agentPools": pools, "fallback": {"maxNodes": 2},
            "failback": {"stabilization": "1s", "minOnDemandLifetime": "1s", "probe": "0s"},
            "onDemand": {"pdbFloor": {"enabled": true, "maxUnits": 1}}, "objective": {"availability": "99.5"}});
        stage.spot_pool("p", spec).await.unwrap();
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
        let node = stage.nodes("metrica").await.unwrap().remove(0).name_any();
        let agent = stage.world.agents.as_ref().unwrap().admin_url(&node).unwrap();

        // A Job's pod on the node that goes, and a budget for the floor to look at.
        let client = &stage.world.client;
        let jobs: Api<Job> = Api::namespaced(client.clone(), &stage.name);
        let job = json!({"metadata": {"name": "work"}, "spec": {"backoffLimit": 6, "template": {
            "metadata": {"labels": {"app": "work"}, "annotations": {RUN_FOR_ANNOTATION: "1h"}},
            "spec": {"nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "none"}]}}}});
        eventually("the Job to be accepted", async || create(&jobs, job.clone()).await.map(Some))
            .await
            .unwrap();
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &stage.name);
        let budget = json!({"metadata": {"name": "work"}, "spec": {"maxUnavailable": 1,
            "selector": {"matchLabels": {"app": "work"}}}});
        create(&budgets, budget).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &stage.name);
        let worker = eventually("the Job's pod to have run for two seconds", async || {
            let pods = pods.list(&ListParams::default()).await?.items;
            let started = |pod: &Pod| pod.status.as_ref()?.start_time.as_ref().map(|time| time.0);
            let old = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(2);
            let is_it = |pod: &&Pod| is_ready(pod) && started(pod).is_some_and(|it| it < old);
            Ok(pods.iter().find(is_it).map(ResourceExt::name_any))
        })
        .await
        .unwrap();
        eventually("the agent to know whose its node is", async || {
            let node = [("namespace", "metric"), ("pool", "p"), ("agent_pool", "metrica")];
            Ok((sum(&scrape(&agent).await?, "spotpool_agent_node_info", &node) > 0.5).then_some(()))
        })
        .await
        .unwrap();
        // A real Prometheus looks on.
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/spotpool/rules");
        let rules = ["recording.yaml", "alerts.yaml"].map(|name| rules.join(name).canonicalize().unwrap());
        let dir = stage.world.cluster.dir().join("prometheus");
        let prometheus = Prometheus::start(&dir, &rules).await.unwrap();
        let mut urls = vec![operator.admin_url.clone()];
        for node in stage.nodes("metrica").await.unwrap() {
            urls.extend(stage.world.agents.as_ref().unwrap().admin_url(&node.name_any()));
        }
        prometheus.scrape(&urls).unwrap();
        eventually("Prometheus to have scraped all", async || {
            let up = prometheus.query("up == 1").await?.len();
            Ok((up == urls.len()).then_some(()))
        })
        .await
        .unwrap();
        // A scrape that a busy machine did not answer within a second is none of its faults.
        eventually("scrapes without a fault", async || {
            let faults = prometheus.faults().await?;
            anyhow::ensure!(faults.is_empty(), "{faults:?}");
            Ok(Some(()))
        })
        .await
        .unwrap();

        let (operator_before, agent_before) =
            (scrape(&operator.admin_url).await.unwrap(), scrape(&agent).await.unwrap());

        let evicted =
            stage.world.sim.evict(std::slice::from_ref(&node), Duration::from_secs(20)).await.unwrap();
        let event_id = &evicted[0].event_id;
        let rise = async |url: &str, before: &[Sample], name: &str, labels: &[(&str, &str)]| {
            let mut last = Vec::new();
            let risen = eventually(&format!("{name} {labels:?} to rise"), async || {
                last = scrape(url).await?;
                Ok((sum(&last, name, labels) > sum(before, name, labels)).then_some(()))
            })
            .await;
            if let Err(error) = risen {
                last.retain(|sample| !sample.name.ends_with("_bucket"));
                panic!("{error:#}: {last:#?}");
            }
        };
        for (name, labels) in [
            ("spotpool_agent_polls_total", ("result", "changed")),
            ("spotpool_agent_notices_total", ("type", "Preempt")),
            ("spotpool_agent_evictions_total", ("result", "accepted")),
            ("spotpool_agent_drain_seconds_count", ("kind", "forced")),
        ] {
            rise(&agent, &agent_before, name, &[labels]).await;
        }
        for name in [
            "spotpool_agent_notice_lead_seconds_count",
            "spotpool_agent_notice_to_cordon_seconds_count",
            "spotpool_agent_job_lost_work_seconds_total",
        ] {
            rise(&agent, &agent_before, name, &[]).await;
        }
        let agent_after = scrape(&agent).await.unwrap();
        let pool = [("namespace", "metric"), ("pool", "p")];
        for name in [
            "spotpool_operator_evictions_noticed_total",
            "spotpool_operator_scale_requests_total",
            "spotpool_operator_allocation_seconds_count",
            "spotpool_operator_time_to_replace_seconds_count",
            "spotpool_operator_notice_drains_total",
            "spotpool_operator_objective_wanted_unit_seconds_total",
        ] {
            rise(&operator.admin_url, &operator_before, name, &pool).await;
        }
        for name in [
            "spotpool_operator_azure_requests_total",
            "spotpool_operator_actions_total",
            "spotpool_operator_reconciles_total",
            "spotpool_operator_notice_to_request_seconds_count",
            "spotpool_operator_plan_seconds_count",
            "spotpool_operator_survey_seconds_count",
        ] {
            rise(&operator.admin_url, &operator_before, name, &[]).await;
        }

        // A drain in time is in status too, which another operator goes on from.
        let drains = |status: &SpotPoolStatus| status.objective.as_ref().map(|objective| objective.drains);
        let in_time = Drains { in_time: 1, late: 0 };
        stage
            .status_is("p", "the drain to be counted", |status| drains(status) == Some(in_time))
            .await
            .unwrap();

        let operator_after = scrape(&operator.admin_url).await.unwrap();
        let catalogues = [
            (spotpool_operator::metrics::catalogue(), operator_after),
            (spotpool_node_agent::metrics::catalogue(), agent_after),
        ];
        for (catalogue, samples) in &catalogues {
            let seen = held_against(catalogue, samples);
            let unseen = catalogue.families().iter().filter(|family| !seen.contains(&family.name));
            for family in unseen {
                let rare = RARE.iter().any(|(_, name, _)| *name == family.name);
                assert!(rare, "{} is in the reference and in no scrape", family.name);
            }
        }
        for name in NAMES {
            for panel in Dashboard::read(name).unwrap().panels().filter(|panel| panel.rare.is_none()) {
                for query in &panel.queries {
                    shows(&prometheus, &query.promql()).await;
                }
            }
        }
        for url in [&operator.admin_url, &urls[2]] {
            let classic = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
            promtool_finds_nothing(classic).await;
        }
        seen::rules_hold(&prometheus).await;
        // For people who change a panel: DRAW=<directory>. They see the drain to its end.
        if let Some(dir) = std::env::var_os("DRAW") {
            tokio::time::sleep(Duration::from_secs(30)).await;
            for name in NAMES {
                let view = View { variables: &VARIABLES, seconds: 90 };
                let svg = draw(&prometheus, &Dashboard::read(name).unwrap(), &view).await.unwrap();
                std::fs::write(Path::new(&dir).join(name).with_extension("svg"), svg).unwrap();
            }
        }
        seen::events_said(client, &worker, &node, event_id).await;
        operator.stop().await.unwrap();
        seen::is_alerted(&prometheus, "SpotPoolOperatorAbsent").await;
        prometheus.stop().await.unwrap();
        seen::the_agent_said(&stage.world.agents.as_ref().unwrap().log(&node), event_id);
        seen::the_operator_said(&stage.log("operator"), event_id);
    });
}

/// A pod that a budget counts, with what lets it be told of its end, and what it is billed to.
async fn red_pod(stage: &Stage<'_>, name: &str, node: &str) {
    let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), &stage.name);
    let annotations = json!({names::NOTIFY_ANNOTATION: "true", names::HOOK_ANNOTATION: ":8080/checkpoint",
        names::HOOK_TIMEOUT_ANNOTATION: "1s"});
    let container = json!({"name": "main", "image": "none", "resources": {"requests": {"cpu": "1"}}});
    let pod = json!({"metadata": {"name": name, "labels": {"team": "red"}, "annotations": annotations},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container]}});
    eventually("a pod to be accepted", async || create(&pods, pod.clone()).await.map(Some)).await.unwrap();
    eventually("a pod to run", async || Ok(Some(pods.get(name).await?).filter(is_ready))).await.unwrap();
}

#[test]
fn what_happens_rarely_is_in_a_scrape_too() {
    run(async {
        let stage = Stage::set(world_with_agents().await, "rare").await.unwrap();
        // Sizes that no other test sets a price of.
        for (size, priority, price) in
            [("Standard_E2s_v5", Priority::Spot, "36"), ("Standard_E2s_v5", Priority::Regular, "90")]
        {
            stage.world.sim.set_price(size, priority, Some(price)).await.unwrap();
        }
        stage
            .agent_pools(&[
                PoolSpec::spot("rarea", "Standard_E2s_v5", 2),
                PoolSpec::regular("rarer", "Standard_E2s_v5", 0),
            ])
            .await
            .unwrap();
        let nodes: Vec<String> =
            stage.nodes("rarea").await.unwrap().iter().map(ResourceExt::name_any).collect();
        for (name, node) in ["first", "second"].iter().zip(&nodes) {
            red_pod(&stage, name, node).await;
        }
        let options =
            OperatorOptions { args: vec!["--cost-label=team".into()], ..OperatorOptions::default() };
        let operator = stage.operator(&options).await.unwrap();
        let agents = stage.world.agents.as_ref().unwrap();
        let first_agent = agents.admin_url(&nodes[0]).unwrap();
        let scraped = async |whose| match whose {
            Whose::Operator => scrape(&operator.admin_url).await,
            Whose::FirstAgent => scrape(&first_agent).await,
        };
        let before = eventually("both to answer", async || {
            Ok(Some([scraped(Whose::Operator).await?, scraped(Whose::FirstAgent).await?]))
        })
        .await
        .unwrap();
        let pools = json!([{"name": "rarea", "maxNodes": 4}, {"name": "rarer", "maxNodes": 3}]);
        let spec = json!({"replicas": 2, "agentPools": pools,
            "fallback": {"maxNodes": 2, "hourlyBudget": "200", "monthlyBudget": "9000"},
            "onDemand": {"pdbFloor": {"enabled": true, "maxUnits": 1,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "rare"}}}}});
        stage.spot_pool("p", spec).await.unwrap();
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();

        // A budget that both pods must stay for: a node on demand, after a minute.
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(stage.world.client.clone(), &stage.name);
        let budget = json!({"metadata": {"name": "red"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"team": "red"}}}});
        create(&budgets, budget).await.unwrap();
        // A document that tells of what is not known.
        let unknown = json!({"EventId": "rare", "EventType": "Teleport", "EventStatus": "Scheduled",
            "ResourceType": "VirtualMachine", "Resources": [nodes[0]], "NotBefore": "", "EventSource": "Platform"});
        let document = json!({"DocumentIncarnation": 1_000, "Events": [unknown]}).to_string();
        let target = FaultTarget::scheduled_events(Some(&nodes[0]));
        let fault = Fault { target, times: Some(1), action: FaultAction::body(document) };
        stage.world.sim.add_fault(&fault).await.unwrap();
        within(Duration::from_mins(3), "the floor to cost something", async || {
            let told = scraped(Whose::Operator).await?;
            Ok((sum(&told, "spotpool_operator_floor_hourly_cost", &RARE_POOL) > 0.0).then_some(()))
        })
        .await
        .unwrap();
        // Both nodes go, and the agent of the second is silent.
        agents.signal(&nodes[1], Signal::SIGSTOP).unwrap();
        stage.world.sim.evict(&nodes, Duration::from_mins(1)).await.unwrap();

        for (whose, name, labels) in RARE {
            let before = &before[usize::from(whose == Whose::FirstAgent)];
            eventually(&format!("{name} to move"), async || {
                let now = scraped(whose).await?;
                Ok(((sum(&now, name, labels) - sum(before, name, labels)).abs() > 0.0).then_some(()))
            })
            .await
            .unwrap();
        }
        held_against(&spotpool_operator::metrics::catalogue(), &scraped(Whose::Operator).await.unwrap());
        held_against(&spotpool_node_agent::metrics::catalogue(), &scraped(Whose::FirstAgent).await.unwrap());
        operator.stop().await.unwrap();
    });
}
