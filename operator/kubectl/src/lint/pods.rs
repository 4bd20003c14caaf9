//! Rules of what runs pods: where they may run, how they end, what they lose.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, LifecycleHandler, NodeSelectorTerm, TopologySpreadConstraint, Volume,
};
use spotpool_crds::names;

use super::manifests::{Manifests, Runner};
use super::{Finding, Rule, Severity};
use crate::workload::{PRIORITY_KEY, SPOT_KEY, SPOT_VALUE, Workload, avoids_spot, requires_spot, tolerates};

/// Azure's notice for a spot VM at best, in seconds. Kubernetes' own grace is as long: who writes it out means no more by it.
const NOTICE: i64 = 30;
/// The same less the drain's `reserve`: what a pod gets.
const ROOM: i64 = 28;
/// As long as a hook can be waited for under such a notice: a pod is left 5 s for its own end.
const HOOK_ROOM: Duration = Duration::from_secs(23);
/// Kubernetes' own, where a pod does not say, in seconds.
const USUAL_GRACE: i64 = 30;
const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

const TOLERATION: &str = "\
tolerations:
- {key: kubernetes.azure.com/scalesetpriority, operator: Equal, value: spot, effect: NoSchedule}";
const PREFERENCE: &str = "\
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      preference:
        matchExpressions:
        - {key: kubernetes.azure.com/scalesetpriority, operator: In, values: [spot]}";
const SPREAD: &str = "\
topologySpreadConstraints:
- {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: NAME}}}
- {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: NAME}}}";
const FAILURE_POLICY: &str = "\
podFailurePolicy:
  rules:
  - action: Ignore
    onPodConditions: [{type: DisruptionTarget, status: \"True\"}]
template:
  spec:
    restartPolicy: Never";
const REQUESTS: &str = "\
resources:
  requests: {cpu: 100m, memory: 128Mi}";

/// One workload, as every rule sees it.
struct Subject<'a> {
    file: &'a str,
    runner: &'a Runner,
    workload: Workload<'a>,
}

impl Subject<'_> {
    fn found(
        &self,
        rule: Rule,
        severity: Severity,
        wrong: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        Finding::new(rule, severity, self.file, self.workload.about(), wrong, fix)
    }

    /// Whether it says by label that it is meant for spot.
    fn opts_in(&self) -> bool {
        let labels = self.runner.meta().labels.iter().flatten();
        labels.into_iter().any(|(key, value)| key == names::WORKLOAD_LABEL && value == names::WORKLOAD_SPOT)
    }

    fn spread(&self) -> &[TopologySpreadConstraint] {
        self.workload.spec.topology_spread_constraints.as_deref().unwrap_or_default()
    }

    /// Of a notice, or of its own grace if that is less.
    fn time_to_end(&self) -> i64 {
        let grace = self.workload.spec.termination_grace_period_seconds.unwrap_or(USUAL_GRACE);
        if self.workload.may_run_on_spot() { grace.min(ROOM) } else { grace }
    }
}

const RULES: &[fn(&Subject<'_>) -> Option<Finding>] = &[
    toleration,
    tolerates_everything,
    spot_only,
    preference,
    spread,
    hard_spread,
    grace,
    pre_stop,
    hook_timeout,
    bare_pod,
    job_disruptions,
    local_data,
    requests,
    system_priority,
];

pub(super) fn findings(manifests: &Manifests) -> Vec<Finding> {
    let subjects = manifests.workloads().map(|(file, runner, workload)| Subject { file, runner, workload });
    subjects
        .flat_map(|subject| RULES.iter().filter_map(move |rule| rule(&subject)).collect::<Vec<_>>())
        .collect()
}

fn toleration(it: &Subject<'_>) -> Option<Finding> {
    if it.workload.tolerates_spot() || avoids_spot(it.workload.spec) {
        return None;
    }
    let (severity, wrong) = if let Some(key) = requires_spot(it.workload.spec) {
        let wrong = format!(
            "it wants nodes with {key}={SPOT_VALUE} and does not tolerate their taint: it can never run"
        );
        (Severity::Error, wrong)
    } else if it.opts_in() {
        let label = names::WORKLOAD_LABEL;
        (
            Severity::Error,
            format!(
                "its label {label}={SPOT_VALUE} says that it is meant for spot nodes, and it does not tolerate their taint: it never runs there"
            ),
        )
    } else if prefers_spot(it) {
        (
            Severity::Warning,
            "it prefers spot nodes and does not tolerate their taint: it never runs there".into(),
        )
    } else {
        (Severity::Info, "it does not tolerate the taint of spot nodes: it runs on demand alone".into())
    };
    let fix = "if it is meant for spot, add to the spec of its pods:";
    Some(it.found(Rule::SpotToleration, severity, wrong, fix).paste(TOLERATION))
}

fn tolerates_everything(it: &Subject<'_>) -> Option<Finding> {
    let tolerations = it.workload.spec.tolerations.as_deref().unwrap_or_default();
    let comes_back = tolerates(tolerations, names::UNSCHEDULABLE_TAINT, "")
        && tolerates(tolerations, names::EVICTING_TAINT, "Preempt");
    comes_back.then(|| {
        let wrong = "it tolerates the taints of a node that is being emptied: a pod that is evicted may be put on the same node again, and goes with the VM";
        let fix = "instead of every taint tolerate that of spot nodes:";
        it.found(Rule::ToleratesEverything, Severity::Warning, wrong, fix).paste(TOLERATION)
    })
}

fn spot_only(it: &Subject<'_>) -> Option<Finding> {
    let key = requires_spot(it.workload.spec).filter(|_| it.workload.tolerates_spot())?;
    let wrong = format!(
        "it runs on nodes with {key}={SPOT_VALUE} alone: on-demand that stands in for spot is of no use to it"
    );
    let fix = "prefer spot instead of requiring it:";
    Some(it.found(Rule::SpotOnly, Severity::Warning, wrong, fix).paste(PREFERENCE))
}

/// Whether its node affinity has a preference, of this sort, about spot.
fn has_preference(it: &Subject<'_>, is_it: impl Fn(&NodeSelectorTerm) -> bool) -> bool {
    let preferred = it.workload.spec.affinity.as_ref().and_then(|affinity| {
        affinity.node_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_ref()
    });
    preferred.into_iter().flatten().any(|term| is_it(&term.preference))
}

fn is_about_spot(key: &str) -> bool {
    [SPOT_KEY, PRIORITY_KEY].contains(&key)
}

fn prefers_spot(it: &Subject<'_>) -> bool {
    has_preference(it, |term| {
        term.match_expressions.iter().flatten().any(|it| {
            let has_spot = it.values.iter().flatten().any(|value| value == SPOT_VALUE);
            is_about_spot(&it.key) && it.operator == "In" && has_spot
        })
    })
}

fn preference(it: &Subject<'_>) -> Option<Finding> {
    let says =
        has_preference(it, |term| term.match_expressions.iter().flatten().any(|it| is_about_spot(&it.key)))
            || it.spread().iter().any(|it| is_about_spot(&it.topology_key));
    if says || !it.workload.may_run_on_spot() || requires_spot(it.workload.spec).is_some() {
        return None;
    }
    let wrong = "it may run on spot and does not prefer it: the scheduler puts it on demand as gladly, where it costs more and holds up giving back";
    let fix = "say that it prefers spot:";
    Some(it.found(Rule::SpotPreference, Severity::Info, wrong, fix).paste(PREFERENCE))
}

fn spread(it: &Subject<'_>) -> Option<Finding> {
    let is_service = matches!(it.runner, Runner::Deployment(_) | Runner::StatefulSet(_));
    if !is_service || it.workload.replicas < 2 || !it.workload.may_run_on_spot() {
        return None;
    }
    let apart = it.workload.spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let required = apart.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_deref());
    let preferred = apart.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_deref());
    let apart = required.unwrap_or_default().iter();
    let apart = apart.chain(preferred.unwrap_or_default().iter().map(|it| &it.pod_affinity_term));
    let keys: Vec<&str> = apart
        .map(|term| term.topology_key.as_str())
        .chain(it.spread().iter().map(|it| it.topology_key.as_str()))
        .collect();
    let (severity, wrong) = match (keys.contains(&HOST), keys.contains(&ZONE)) {
        (true, true) => return None,
        (true, false) => (
            Severity::Info,
            "nothing spreads its pods over zones: Azure often takes many spot VMs of one zone at once",
        ),
        (false, _) => (
            Severity::Warning,
            "nothing that it says spreads its pods over nodes: one eviction may take several of them at once",
        ),
    };
    let fix = "spread them as well as can be, with the labels of its pods:";
    Some(it.found(Rule::Spread, severity, wrong, fix).paste(SPREAD))
}

fn hard_spread(it: &Subject<'_>) -> Option<Finding> {
    if !it.workload.may_run_on_spot() {
        return None;
    }
    let found = it.spread().iter().filter(|it| it.when_unsatisfiable == "DoNotSchedule").find_map(|hard| {
        let key = &hard.topology_key;
        if key == SPOT_KEY {
            Some(format!("its spread over {key} is hard: nodes on demand do not have this label, so its pods never run there"))
        } else if key == PRIORITY_KEY {
            Some(format!("its spread over {key} is hard: while one of the two sorts is missing, its pods stay Pending"))
        } else if hard.node_taints_policy.as_deref() != Some("Honor") {
            Some(format!("its spread over {key} is hard and counts nodes that are being emptied, as those with the fewest pods: what was evicted may stay Pending until they are gone"))
        } else {
            None
        }
    })?;
    let fix =
        "set whenUnsatisfiable: ScheduleAnyway; or, where the key is not about spot, nodeTaintsPolicy: Honor";
    Some(it.found(Rule::HardSpread, Severity::Warning, found, fix))
}

fn grace(it: &Subject<'_>) -> Option<Finding> {
    let grace = it.workload.spec.termination_grace_period_seconds?;
    let has_hook = it.workload.annotations.contains_key(names::HOOK_ANNOTATION);
    (grace > NOTICE && !has_hook && it.workload.may_run_on_spot()).then(|| {
        let wrong = format!("it wants {grace} s to end: of Azure's notice of {NOTICE} s it gets {ROOM} s at best, and is killed then");
        let fix = format!(
            "set terminationGracePeriodSeconds to at most {ROOM}, or save its work by a hook: docs/how-to/checkpoint.md"
        );
        it.found(Rule::Grace, Severity::Warning, wrong, fix)
    })
}

/// How long a preStop hook sleeps, as far as it says so in seconds.
fn sleeps(handler: &LifecycleHandler) -> i64 {
    let by_api = handler.sleep.as_ref().map_or(0, |sleep| sleep.seconds);
    let command = handler.exec.iter().flat_map(|exec| exec.command.iter().flatten());
    let text = command.map(String::as_str).collect::<Vec<_>>().join(" ");
    let words: Vec<&str> = text.split(|it: char| it.is_whitespace() || it == ';' || it == '&').collect();
    let said = words.windows(2).filter(|pair| pair[0] == "sleep" || pair[0].ends_with("/sleep"));
    let seconds = said.filter_map(|pair| pair[1].trim_end_matches('s').parse::<i64>().ok());
    seconds.fold(by_api, i64::saturating_add)
}

fn pre_stop(it: &Subject<'_>) -> Option<Finding> {
    let room = it.time_to_end();
    let sleep = |container: &Container| {
        container.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref()).map_or(0, sleeps)
    };
    let (name, seconds) = it
        .workload
        .spec
        .containers
        .iter()
        .map(|it| (&it.name, sleep(it)))
        .find(|(_, sleep)| *sleep >= room)?;
    let wrong = format!(
        "the preStop hook of container {name} sleeps {seconds} s, and the pod has {room} s: it is killed before it hears of SIGTERM"
    );
    let fix = "sleep a few seconds, enough to be out of the load balancer, and leave the rest of terminationGracePeriodSeconds to the program";
    Some(it.found(Rule::PreStop, Severity::Error, wrong, fix))
}

fn hook_timeout(it: &Subject<'_>) -> Option<Finding> {
    let said = it.workload.annotations.get(names::HOOK_TIMEOUT_ANNOTATION)?;
    let found = |severity, wrong: String, fix| Some(it.found(Rule::HookTimeout, severity, wrong, fix));
    let key = names::HOOK_TIMEOUT_ANNOTATION;
    match said.parse::<spotpool_crds::Duration>().map(Duration::from) {
        Ok(time) if time > HOOK_ROOM => {
            let room = HOOK_ROOM.as_secs();
            let wrong =
                format!("{key} is {said}: under a notice of 30 s the hook is waited for {room} s, no longer");
            found(
                Severity::Info,
                wrong,
                "make units of work so small that one of them and the checkpoint fit",
            )
        }
        Ok(_) => None,
        Err(_) => {
            let wrong = format!("{key} is {said}, which is no duration: the hook is not asked");
            found(Severity::Error, wrong, "write a duration from 1s to 10m, such as 15s")
        }
    }
}

fn bare_pod(it: &Subject<'_>) -> Option<Finding> {
    let Runner::Pod(pod) = it.runner else { return None };
    pod.metadata.owner_references.is_none().then(|| {
        let wrong = "nobody makes this pod again when it is evicted";
        it.found(Rule::BarePod, Severity::Warning, wrong, "make it by a Deployment, a StatefulSet or a Job")
    })
}

fn job_disruptions(it: &Subject<'_>) -> Option<Finding> {
    let job = it.runner.job().filter(|_| it.workload.may_run_on_spot())?;
    let ignores = job.pod_failure_policy.iter().flat_map(|policy| &policy.rules).any(|rule| {
        let conditions = rule.on_pod_conditions.iter().flatten();
        rule.action == "Ignore" && conditions.into_iter().any(|it| it.type_ == "DisruptionTarget")
    });
    if ignores {
        return None;
    }
    let (severity, wrong) = match job.backoff_limit.unwrap_or(6) {
        0 => (Severity::Error, "with backoffLimit 0 the first eviction fails it for good".to_owned()),
        limit => (
            Severity::Warning,
            format!("each eviction counts as a failure: more than {limit} and it has failed (backoffLimit)"),
        ),
    };
    let fix = "do not count disruptions, which needs restartPolicy Never:";
    Some(it.found(Rule::JobDisruptions, severity, wrong, fix).paste(FAILURE_POLICY))
}

fn local_data(it: &Subject<'_>) -> Option<Finding> {
    if !it.workload.may_run_on_spot() {
        return None;
    }
    let volumes = it.workload.spec.volumes.as_deref().unwrap_or_default();
    let named = |is_it: fn(&Volume) -> bool| -> Vec<&str> {
        volumes.iter().filter(|volume| is_it(volume)).map(|volume| volume.name.as_str()).collect()
    };
    let found = |severity, wrong: String| {
        let fix = "keep what must outlive a VM in a volume that any node can mount (Azure Files, Blob storage) or in a database";
        Some(it.found(Rule::LocalData, severity, wrong, fix))
    };
    let host = named(|volume| volume.host_path.is_some());
    if !host.is_empty() {
        let wrong = format!(
            "volume {} is a folder of the node: it is gone with the VM, and another node has another",
            host.join(", ")
        );
        return found(Severity::Warning, wrong);
    }
    if let Runner::StatefulSet(set) = it.runner {
        let claims = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
        let mut disks = claims.filter(|claim| {
            let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
            modes.into_iter().flatten().any(|mode| mode.starts_with("ReadWriteOnce"))
        });
        if let Some(disk) = disks.next() {
            let name = disk.metadata.name.as_deref().unwrap_or_default();
            let wrong = format!(
                "claim {name} is ReadWriteOnce: a pod that comes after must wait until the disk is off the VM that has gone, which takes minutes"
            );
            return found(Severity::Info, wrong);
        }
    }
    let own =
        named(|volume| volume.empty_dir.as_ref().is_some_and(|it| it.medium.as_deref() != Some("Memory")));
    if own.is_empty() {
        return None;
    }
    found(
        Severity::Info,
        format!(
            "what is written to emptyDir {} is gone with each pod, and an eviction is the end of a pod",
            own.join(", ")
        ),
    )
}

fn requests(it: &Subject<'_>) -> Option<Finding> {
    // A limit is a request where none is made.
    let lacks = |container: &&Container| {
        let has = |name: &str| {
            container.resources.as_ref().is_some_and(|it| {
                [&it.requests, &it.limits].into_iter().flatten().any(|found| found.contains_key(name))
            })
        };
        !has("cpu") || !has("memory")
    };
    let names: Vec<&str> =
        it.workload.spec.containers.iter().filter(lacks).map(|it| it.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        let wrong = format!("container {} does not request cpu and memory: neither the scheduler nor SpotPool knows what room it needs elsewhere", names.join(", "));
        it.found(Rule::Requests, Severity::Warning, wrong, "say what it needs:").paste(REQUESTS)
    })
}

fn system_priority(it: &Subject<'_>) -> Option<Finding> {
    let class = it.workload.spec.priority_class_name.as_deref()?;
    let is_misused = class.starts_with("system-") && it.workload.namespace != "kube-system";
    is_misused.then(|| {
        let wrong = format!("priority {class} is for what keeps the cluster alive: when spot is short it pushes everybody else off, and a drain asks it last");
        let fix = "use a PriorityClass of your own, or none";
        it.found(Rule::SystemPriority, Severity::Warning, wrong, fix)
    })
}
