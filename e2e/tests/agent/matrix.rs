//! Every notice with every obstacle, many nodes side by side, each judged by the oracle.

use std::fmt::{self, Display};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget};
use spotpool_crds::eviction::Phase;
use spotpool_crds::names;
use spotpool_crds::spot_pool::BlockedByPdb;
use spotpool_crds::voluntary_drain::DrainPhase;
use spotpool_e2e::gateway::{Gateway, On, Trouble};
use spotpool_e2e::{eventually, run};
use spotpool_e2e_cluster::{STOP_AFTER_ANNOTATION, Signal};

use crate::corner::{Corner, Looks, alone, shared, whole_seconds};
use crate::oracle::{Oracle, Terms, no_promise_is_broken};

/// What [`Corner::policy`] keeps free.
const BY_POLICY: Terms = Terms { reserve: Duration::from_secs(4), ..Terms::PLAIN };
/// Beyond the end of every notice here.
const NEVER: Duration = Duration::from_mins(10);
/// Long enough for an agent, or an apiserver, to end and come back before the budget is overridden.
const PATIENCE: Duration = Duration::from_secs(15);

/// Pods of every kind on a node: two that just go, one that a budget holds, and those that are no business of a drain.
pub struct Pods {
    pub free: Vec<Pod>,
    pub held: Pod,
    pub staying: Vec<Pod>,
}

impl Pods {
    async fn on(corner: &Corner<'_>, node: &str, row: usize) -> Self {
        let plain = json!({});
        let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
        let finished = json!({"spec": {"restartPolicy": "Never"}});
        let pod = async |what: &str, change: &Value| corner.pod(node, &format!("{what}-{row}"), change).await;
        let (a, b, held, mirror, finished) = tokio::join!(
            pod("a", &plain),
            pod("b", &plain),
            pod("held", &plain),
            pod("mirror", &mirror),
            pod("finished", &finished),
        );
        let succeeded = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        let parameters = PatchParams::default();
        corner.pod_api().patch_status(&finished.name_any(), &parameters, &succeeded).await.unwrap();
        corner.budget(&held.name_any(), 1, 1).await;
        Self { free: vec![a, b], held, staying: vec![mirror, finished] }
    }

    pub async fn on_each(corner: &Corner<'_>) -> Vec<Self> {
        join_all(corner.nodes.iter().enumerate().map(|(row, node)| Self::on(corner, node, row))).await
    }
}

/// Lets the budget of a held pod allow its eviction.
async fn free(corner: &Corner<'_>, held: &Pod) {
    let budgets: Api<PodDisruptionBudget> =
        Api::namespaced(corner.stage.world.client.clone(), &corner.stage.name);
    let patch = Patch::Merge(json!({"spec": {"minAvailable": 0}}));
    budgets.patch(&held.name_any(), &PatchParams::default(), &patch).await.unwrap();
}

/// Gives notice, and says when.
pub async fn evict(corner: &Corner<'_>, node: &str, notice: Duration) -> Timestamp {
    corner.evict(&[node], notice).await.remove(0).scheduled_at
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Budget {
    /// Holds its pod to the end, which is then deleted.
    Never,
    /// Holds its pod to the end, and the team said that it shall.
    NeverAndLeave,
    /// Lets its pod go after three seconds.
    AfterThreeSeconds,
}

#[test]
fn whatever_the_notice_and_the_budget_every_pod_ends_in_time_or_is_named() {
    run(async {
        let world = shared().await;
        let budgets = [Budget::Never, Budget::NeverAndLeave, Budget::AfterThreeSeconds];
        let rows: Vec<(u64, Budget)> =
            [30, 10, 3, 0].into_iter().flat_map(|notice| budgets.map(|budget| (notice, budget))).collect();
        let corner = Corner::set(&world, "matrix", rows.len() as u32).await;
        corner.daemon_set("logs", &corner.nodes[0]).await;
        let all = Pods::on_each(&corner).await;
        // Takes all the time that it is given, and asks for more than there is.
        let greedy = json!({"metadata": {"annotations": {STOP_AFTER_ANNOTATION: "10m"}},
            "spec": {"terminationGracePeriodSeconds": 600}});
        // Somebody deletes this one already.
        let early = json!({"metadata": {"annotations": {STOP_AFTER_ANNOTATION: "2s"}}});
        join_all(corner.nodes.iter().enumerate().map(|(row, node)| {
            let (corner, greedy, early) = (&corner, &greedy, &early);
            async move {
                corner.pod(node, &format!("greedy-{row}"), greedy).await;
                corner.pod(node, &format!("early-{row}"), early).await;
            }
        }))
        .await;
        for (node, (_, budget)) in corner.nodes.iter().zip(&rows) {
            match budget {
                Budget::Never => {
                    corner.policy(node, BlockedByPdb::DeleteAtDeadline, Duration::from_secs(8)).await;
                }
                Budget::NeverAndLeave => {
                    corner.policy(node, BlockedByPdb::Leave, Duration::from_secs(1)).await;
                }
                Budget::AfterThreeSeconds => {
                    corner.policy(node, BlockedByPdb::DeleteAtDeadline, NEVER).await;
                }
            }
        }
        let oracle = Oracle::watching(&corner).await;
        let rows = rows.iter().enumerate();
        let findings =
            corner.nodes.iter().zip(&all).zip(rows).map(|((node, pods), (row, &(notice, budget)))| {
                let (corner, oracle) = (&corner, &oracle);
                async move {
                    corner.pod_api().delete(&format!("early-{row}"), &DeleteParams::default()).await.unwrap();
                    let event = evict(corner, node, Duration::from_secs(notice)).await;
                    let judged = oracle.judge(node, event, BY_POLICY);
                    let freed = async {
                        if budget == Budget::AfterThreeSeconds {
                            tokio::time::sleep(Duration::from_secs(3)).await;
                            free(corner, &pods.held).await;
                        }
                    };
                    let (mut finding, ()) = tokio::join!(judged, freed);
                    let held = format!("{}/{}", corner.stage.name, pods.held.name_any());
                    let is_named = finding.reported.contains_key(&held);
                    let is_deleted =
                        corner.asked_of_pods(node, "delete").iter().any(|asked| asked.code == 200);
                    // The least that each row must show, so that none can pass by something else.
                    let as_meant = match (budget, notice) {
                        (Budget::Never, _) => finding.ended.contains(&held) && is_deleted,
                        (Budget::NeverAndLeave, _) => is_named && !is_deleted,
                        (Budget::AfterThreeSeconds, 30) => finding.ended.contains(&held) && !is_deleted,
                        (Budget::AfterThreeSeconds, _) => finding.ended.contains(&held),
                    };
                    if !as_meant {
                        finding.faults.push(format!("the held pod is not as it should be: {finding:?}"));
                    }
                    (format!("notice of {notice} s, {budget:?}"), finding)
                }
            });
        let findings = join_all(findings).await;
        no_promise_is_broken(&corner, &findings).await;
        // What is no business of a drain is there as long as its VM is.
        let state = world.sim.state().await.unwrap();
        for (node, pods) in corner.nodes.iter().zip(&all) {
            if state.vm(node).unwrap().gone_at.is_none() {
                for pod in &pods.staying {
                    assert!(corner.is_untouched(pod).await, "{}", pod.name_any());
                }
            }
        }
    });
}

#[test]
fn of_110_pods_none_is_forgotten() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "many", 1).await;
        let node = corner.nodes[0].as_str();
        let names: Vec<String> = (0..109).map(|index| format!("p{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        corner.pods(node, &names).await;
        corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        let oracle = Oracle::watching(&corner).await;
        let event = evict(&corner, node, Duration::from_secs(30)).await;
        let finding = oracle.judge(node, event, Terms::PLAIN).await;
        assert_eq!(finding.ended.len(), 110, "{finding:?}");
        assert_eq!(finding.notice.as_ref().unwrap().phase, Phase::Drained);
        no_promise_is_broken(&corner, &[("110 pods", finding)]).await;
    });
}

/// How far a drain is when something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The cordon is on its way to the apiserver.
    CordonAsked,
    /// The cordon is on, and the agent does not know yet.
    CordonUnanswered,
    /// The evictions are on their way.
    Noticed,
    /// A budget holds a pod.
    Draining,
    /// All is done.
    Drained,
}

impl Moment {
    const ALL: [Self; 5] =
        [Self::CordonAsked, Self::CordonUnanswered, Self::Noticed, Self::Draining, Self::Drained];

    /// What holds the agent there.
    fn hold(self, gateway: &Gateway) {
        match self {
            Self::CordonAsked => gateway.begin(On::NodeWrites, Trouble::Hold),
            Self::CordonUnanswered => gateway.begin(On::NodeWrites, Trouble::Mute),
            Self::Noticed => gateway.begin(On::Evictions, Trouble::Hold),
            Self::Draining | Self::Drained => {}
        }
    }

    /// Gives notice and waits for the moment to come; the budget is obeyed for as long as `patience`.
    async fn come(
        self,
        corner: &Corner<'_>,
        node: &str,
        gateway: &Gateway,
        pods: &Pods,
        patience: Duration,
    ) -> Timestamp {
        corner.policy(node, BlockedByPdb::DeleteAtDeadline, patience).await;
        if self == Self::Drained {
            free(corner, &pods.held).await;
        }
        self.hold(gateway);
        // Longer than any moment takes to come on a busy machine, and an apiserver to come back.
        let event = evict(corner, node, Duration::from_mins(2)).await;
        match self {
            Self::CordonAsked | Self::CordonUnanswered | Self::Noticed => gateway.struck(1).await.unwrap(),
            Self::Draining => {
                corner.phase_is(node, Phase::Draining).await;
                corner.gone(&pods.free).await;
            }
            Self::Drained => drop(corner.phase_is(node, Phase::Drained).await),
        }
        if self == Self::Noticed {
            corner.phase_is(node, Phase::Noticed).await;
        }
        event
    }
}

impl Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[test]
fn a_notice_taken_back_at_any_moment_costs_no_pod_more_and_the_node_is_whole_again() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "takeback", Moment::ALL.len() as u32).await;
        let all = Pods::on_each(&corner).await;
        let gateways = join_all(corner.nodes.iter().map(|node| corner.gateway(node))).await;
        let oracle = Oracle::watching(&corner).await;
        let rows = corner.nodes.iter().zip(&all).zip(&gateways).zip(Moment::ALL);
        let findings = rows.map(|(((node, pods), gateway), moment)| {
            let (corner, oracle) = (&corner, &oracle);
            async move {
                let event = moment.come(corner, node, gateway, pods, NEVER).await;
                let read = corner.metric(node, "spotpool_agent_polls", "\"changed\"").await;
                corner.sim().cancel(node).await.unwrap();
                corner.counted(node, "spotpool_agent_polls", "\"changed\"", read + 1.0).await;
                gateway.end();
                let finding = oracle.judge_cancelled(node, event, BY_POLICY).await;
                let looks = corner.node_is(node, "no marks", Looks::is_clean).await;
                assert!(looks.notice.is_none_or(|notice| notice.phase == Phase::Cancelled));
                if moment != Moment::Drained {
                    assert!(corner.is_untouched(&pods.held).await, "{moment}");
                }
                // The agent is as good as new.
                let again = evict(corner, node, Duration::from_secs(30)).await;
                corner.policy(node, BlockedByPdb::DeleteAtDeadline, Duration::from_secs(1)).await;
                let drained = oracle.judge(node, again, BY_POLICY).await;
                [(format!("{moment}"), finding), (format!("the next notice after {moment}"), drained)]
            }
        });
        let findings: Vec<_> = join_all(findings).await.into_iter().flatten().collect();
        no_promise_is_broken(&corner, &findings).await;
    });
}

#[test]
fn a_notice_right_after_one_that_was_taken_back_is_not_built_on_marks_that_are_gone() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "rebuilt", 1).await;
        let node = corner.nodes[0].as_str();
        let gateway = corner.gateway(node).await;
        let oracle = Oracle::watching(&corner).await;
        evict(&corner, node, Duration::from_mins(2)).await;
        corner.phase_is(node, Phase::Drained).await;
        corner.node_is(node, "the condition", |looks| looks.condition.is_some()).await;
        // The answers to these writes have come.
        tokio::time::sleep(Duration::from_secs(1)).await;
        // The marks come off, and the agent hears nothing of it: neither an answer nor by its watch.
        gateway.begin(On::Everything, Trouble::Mute);
        corner.sim().cancel(node).await.unwrap();
        corner.node_is(node, "no marks", Looks::is_clean).await;
        let notices = corner.metric(node, "spotpool_agent_notices_total", "\"Preempt\"").await;
        let pods = corner.pods(node, &["a"]).await;
        let noticed = evict(&corner, node, Duration::from_secs(30)).await;
        corner.counted(node, "spotpool_agent_notices_total", "\"Preempt\"", notices + 1.0).await;
        gateway.end();
        corner.gone(&pods).await;
        let terms = Terms { may_ask_again: true, ..Terms::PLAIN };
        let finding = oracle.judge(node, noticed, terms).await;
        assert!(corner.look(node).await.is_marked());
        no_promise_is_broken(&corner, &[("the second notice", finding)]).await;
    });
}

#[test]
fn an_agent_that_ends_at_any_moment_leaves_nothing_undone() {
    run(async {
        let world = shared().await;
        let signals = [Signal::SIGKILL, Signal::SIGTERM];
        let rows: Vec<_> =
            Moment::ALL.into_iter().flat_map(|moment| signals.map(|signal| (moment, signal))).collect();
        let corner = Corner::set(&world, "ends", rows.len() as u32).await;
        let all = Pods::on_each(&corner).await;
        let gateways = join_all(corner.nodes.iter().map(|node| corner.gateway(node))).await;
        let oracle = Oracle::watching(&corner).await;
        let rows = corner.nodes.iter().zip(&all).zip(&gateways).zip(&rows);
        let findings = rows.map(|(((node, pods), gateway), &(moment, signal))| {
            let (corner, oracle) = (&corner, &oracle);
            async move {
                let event = moment.come(corner, node, gateway, pods, PATIENCE).await;
                let process = corner.agents().process(node).unwrap();
                process.signal(signal).unwrap();
                if signal == Signal::SIGKILL {
                    process.wait().await;
                }
                gateway.end();
                // What was on its way when the agent died may still arrive.
                let may_ask_again = signal == Signal::SIGKILL && moment == Moment::Noticed;
                let mut finding = oracle.judge(node, event, Terms { may_ask_again, ..BY_POLICY }).await;
                if signal == Signal::SIGTERM && process.wait().await.code() != Some(0) {
                    finding.faults.push(format!("it did not end well: {}", process.log_tail()));
                }
                if finding.ended.len() != 3 {
                    finding.faults.push(format!("three pods were to end: {finding:?}"));
                }
                (format!("{signal} at {moment}"), finding)
            }
        });
        let findings = join_all(findings).await;
        no_promise_is_broken(&corner, &findings).await;
    });
}

#[test]
fn an_apiserver_that_is_away_at_any_moment_costs_no_pod() {
    run(async {
        let world = alone().await;
        let corner = Corner::set(&world, "away", Moment::ALL.len() as u32).await;
        let all = Pods::on_each(&corner).await;
        let gateways = join_all(corner.nodes.iter().map(|node| corner.gateway(node))).await;
        let oracle = Oracle::watching(&corner).await;
        let rows = corner.nodes.iter().zip(&all).zip(&gateways).zip(Moment::ALL);
        let events = rows.map(|(((node, pods), gateway), moment)| {
            let corner = &corner;
            async move { moment.come(corner, node, gateway, pods, PATIENCE).await }
        });
        let events = join_all(events).await;
        world.cluster.stop_apiserver().await.unwrap();
        for gateway in &gateways {
            gateway.end();
        }
        // The fault itself: this long, and neither longer nor shorter.
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.cluster.start_apiserver().await.unwrap();
        // An apiserver that has just started is slow.
        let terms = Terms { may_ask_again: true, slack: Duration::from_secs(9), ..BY_POLICY };
        let findings = corner.nodes.iter().zip(&events).zip(Moment::ALL).map(|((node, &event), moment)| {
            let oracle = &oracle;
            async move { (moment, oracle.judge(node, event, terms).await) }
        });
        let mut findings = join_all(findings).await;
        for (_, finding) in &mut findings {
            if finding.ended.len() != 3 {
                finding.faults.push(format!("three pods were to end: {finding:?}"));
            }
        }
        no_promise_is_broken(&corner, &findings).await;
    });
}

/// One document after another; of each event its id, its kind, and how many seconds after the beginning it is due.
type Documents = &'static [&'static [(&'static str, &'static str, u64)]];

#[test]
fn of_two_events_for_one_vm_the_nearer_counts_and_what_is_left_of_them_goes_on() {
    run(async {
        let world = shared().await;
        let rows: [(&str, Documents, u64); 5] = [
            ("before a Freeze", &[&[("P", "Preempt", 25), ("F", "Freeze", 900)]], 25),
            ("after a Freeze", &[&[("F", "Freeze", 3)], &[("F", "Freeze", 3), ("P", "Preempt", 25)]], 25),
            (
                "a nearer one comes",
                &[&[("A", "Preempt", 60)], &[("A", "Preempt", 60), ("B", "Preempt", 25)]],
                25,
            ),
            (
                "a later one comes",
                &[&[("A", "Preempt", 25)], &[("A", "Preempt", 25), ("B", "Preempt", 60)]],
                25,
            ),
            (
                "the other is taken back",
                &[&[("A", "Preempt", 40), ("B", "Preempt", 25)], &[("B", "Preempt", 25)]],
                25,
            ),
        ];
        let corner = Corner::set(&world, "twofold", rows.len() as u32).await;
        Pods::on_each(&corner).await;
        for node in &corner.nodes {
            corner.policy(node, BlockedByPdb::DeleteAtDeadline, NEVER).await;
        }
        let oracle = Oracle::watching(&corner).await;
        let state = world.sim.state().await.unwrap();
        let findings = corner.nodes.iter().zip(&rows).map(|(node, &(row, documents, due))| {
            let (corner, oracle) = (&corner, &oracle);
            let vm = state.vm(node).unwrap().name.clone();
            async move {
                let began = whole_seconds(Timestamp::now());
                let mut last = None;
                for (incarnation, events) in documents.iter().enumerate() {
                    let events: Vec<Value> = events
                        .iter()
                        .map(|(id, kind, seconds)| {
                            let time = began + Duration::from_secs(*seconds);
                            json!({"EventId": id, "EventType": kind, "EventStatus": "Scheduled", "Resources": [vm],
                                "NotBefore": time.to_string()})
                        })
                        .collect();
                    let body = json!({"DocumentIncarnation": 100 + incarnation, "Events": events});
                    let target = FaultTarget::scheduled_events(Some(node));
                    let action = FaultAction::body(body.to_string());
                    let read = corner.metric(node, "spotpool_agent_polls", "\"changed\"").await;
                    if let Some(last) = last {
                        corner.sim().clear_fault(last).await.unwrap();
                    }
                    last = Some(corner.sim().add_fault(&Fault { target, times: None, action }).await.unwrap());
                    corner.counted(node, "spotpool_agent_polls", "\"changed\"", read + 1.0).await;
                }
                let mut finding = oracle.judge(node, began, BY_POLICY).await;
                let deadline = finding.notice.as_ref().map(|notice| notice.deadline);
                if deadline != Some(began + Duration::from_secs(due)) || finding.ended.len() != 3 {
                    finding.faults.push(format!("not by {due} s after {began}: {finding:?}"));
                }
                (row, finding)
            }
        });
        let findings = join_all(findings).await;
        no_promise_is_broken(&corner, &findings).await;
    });
}

#[test]
fn the_fate_of_a_thousand_other_vms_is_read_and_no_more() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "foreign", 1).await;
        let node = corner.nodes[0].as_str();
        let pods = corner.pods(node, &["a", "b"]).await;
        let oracle = Oracle::watching(&corner).await;
        let vm = world.sim.state().await.unwrap().vm(node).unwrap().name.clone();
        let (set, _) = vm.rsplit_once('_').unwrap();
        let before = corner.resident_kib(node);
        let read = corner.metric(node, "spotpool_agent_polls", "\"changed\"").await;
        let asked = corner.asked(node).len();
        let target = FaultTarget::scheduled_events(Some(node));
        let documents = 12;
        for incarnation in 0..documents {
            let kinds = ["Preempt", "Reboot", "Redeploy", "Freeze", "Terminate"];
            let events: Vec<Value> = (0..1000)
                .map(|index| {
                    // Half of them are of our own scale set.
                    let of =
                        if index % 2 == 0 { set.to_owned() } else { format!("aks-other{}-vmss", index % 7) };
                    json!({"EventId": format!("{incarnation}-{index}"), "EventType": kinds[index % 5],
                        "ResourceType": "VirtualMachine", "Resources": [format!("{of}_{}", 1000 + index)],
                        "EventStatus": "Scheduled", "NotBefore": "Fri, 31 Dec 2100 23:59:59 GMT",
                        "Description": "", "EventSource": "Platform", "DurationInSeconds": -1})
                })
                .collect();
            let body = json!({"DocumentIncarnation": 1000 + incarnation, "Events": events}).to_string();
            assert!(body.len() > 150_000, "as large as Azure's would be: {}", body.len());
            let fault = Fault { target: target.clone(), times: Some(2), action: FaultAction::body(body) };
            world.sim.add_fault(&fault).await.unwrap();
        }
        corner.counted(node, "spotpool_agent_polls", "\"changed\"", read + f64::from(documents)).await;
        let after = corner.resident_kib(node);
        println!("{before} KiB before, {after} KiB after {documents} documents of 1,000 events");
        // Of a program built without optimization; what one document takes, and not twelve.
        assert!(after < before + 12 * 1024, "from {before} to {after} KiB");
        assert_eq!(corner.asked(node).len(), asked, "nothing was asked of the apiserver");
        assert!(corner.metric(node, "spotpool_agent_notices_total", "").await < 0.5);
        for pod in &pods {
            assert!(corner.is_untouched(pod).await);
        }
        assert!(oracle.versions(node).iter().all(|looks| looks.is_clean() && looks.notice.is_none()));
        // And it is as quick as ever.
        let event = evict(&corner, node, Duration::from_secs(30)).await;
        let finding = oracle.judge(node, event, Terms::PLAIN).await;
        assert_eq!(finding.ended.len(), 2);
        no_promise_is_broken(&corner, &[("after 12,000 foreign events", finding)]).await;
    });
}

#[test]
fn a_preempt_in_a_drain_that_was_asked_for_wins_and_taken_back_gives_way_to_it_again() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "meets", 2).await;
        let all = Pods::on_each(&corner).await;
        let (wins, yields) = (corner.nodes[0].as_str(), corner.nodes[1].as_str());
        corner.policy(wins, BlockedByPdb::DeleteAtDeadline, Duration::from_secs(2)).await;
        corner.policy(yields, BlockedByPdb::DeleteAtDeadline, NEVER).await;
        let until = Timestamp::now() + Duration::from_mins(10);
        for node in [wins, yields] {
            let request = json!({"id": "one", "reason": "Failback", "voluntary": true, "notAfter": until});
            corner.annotate(node, json!({names::DRAIN_REQUEST_ANNOTATION: request.to_string()})).await;
        }
        for node in [wins, yields] {
            corner.answer_is(node, "a budget to be named", |answer| !answer.blocking_pdbs.is_empty()).await;
        }
        let oracle = Oracle::watching(&corner).await;
        let event = evict(&corner, wins, Duration::from_secs(30)).await;
        let taken_back = evict(&corner, yields, Duration::from_mins(2)).await;
        let terms = Terms { is_wanted_empty: true, ..BY_POLICY };
        let won = oracle.judge(wins, event, terms).await;
        assert_eq!(won.ended.len(), 1, "the held pod: {won:?}");

        corner.phase_is(yields, Phase::Draining).await;
        corner.sim().cancel(yields).await.unwrap();
        let yielded = oracle.judge_cancelled(yields, taken_back, terms).await;
        corner.node_is(yields, "the marks to come off", |looks| looks.taint.is_none()).await;
        assert!(corner.is_untouched(&all[1].held).await);
        let versions = oracle.versions(yields);
        assert!(versions.iter().all(|looks| looks.cordoned), "cordoned throughout: {versions:?}");
        // What the operator wanted, it still gets.
        free(&corner, &all[1].held).await;
        corner.gone(std::slice::from_ref(&all[1].held)).await;
        corner.answer_is(yields, "the drain's end", |answer| answer.phase == DrainPhase::Drained).await;
        assert!(corner.asked_of_pods(yields, "delete").is_empty());
        eventually("the node to stay cordoned", async || {
            Ok(corner.look(yields).await.cordoned.then_some(()))
        })
        .await
        .unwrap();
        no_promise_is_broken(&corner, &[("the Preempt wins", won), ("it is taken back", yielded)]).await;
    });
}
