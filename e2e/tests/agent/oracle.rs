//! Whether an eviction was handled as promised, judged from outside: by what the agent asked of the apiserver (its
//! audit log), by what became of each pod and each version of the node (watches), and by what Azure's stand-in saw.
//!
//! The promise: every pod that had to go has either ended in time, having been asked once, under its own UID, with
//! the grace that was due to it, or it is named with a reason. Nothing else was touched. The node's marks were whole
//! or absent at all times. No Preempt was ever acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::Phase;
use spotpool_e2e::eventually;
use tokio::task::JoinHandle;

use crate::corner::{Asked, Corner, History, Looks};

/// From the agent's reckoning of a pod's grace to the request's arrival, on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// A request may be on its way when the answer to another one comes.
const CROSSING: Duration = Duration::from_secs(1);

/// Watches a corner from before a notice to its end.
pub struct Oracle<'a> {
    corner: &'a Corner<'a>,
    histories: BTreeMap<String, History>,
    pods: Arc<Mutex<BTreeMap<String, Life>>>,
    task: JoinHandle<()>,
}

/// What was seen of one pod, by UID.
#[derive(Clone, Debug)]
struct Life {
    name: String,
    node: String,
    grace: Duration,
    /// Why nobody has to move it.
    is_exempt: bool,
    /// By the apiserver's clock, in whole seconds.
    ending_since: Option<Timestamp>,
    gone: Option<Timestamp>,
}

/// How strictly a run is judged.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Time that drains keep free before the deadline.
    pub reserve: Duration,
    /// How late a request may arrive after its grace was reckoned.
    pub slack: Duration,
    /// Whether a pod may be asked again although the API has taken a request for it: if its answer was lost, or
    /// the agent cannot see what became of it.
    pub may_ask_again: bool,
    /// Whether the operator wants the node emptied as well, and so evictions come that give a pod its own grace.
    pub is_wanted_empty: bool,
}

impl Terms {
    /// Of a run where nothing fails but the VM.
    pub const PLAIN: Self =
        Self { reserve: Duration::from_secs(2), slack: SLACK, may_ask_again: false, is_wanted_empty: false };
}

/// What the oracle found, for what more a test wants to know.
#[derive(Debug)]
pub struct Finding {
    /// Each is a broken promise.
    pub faults: Vec<String>,
    /// Names of pods that ended as they should.
    pub ended: BTreeSet<String>,
    /// Names of pods that are named in the report, with the reason.
    pub reported: BTreeMap<String, String>,
    /// The last notice on the node.
    pub notice: Option<EvictionNotice>,
}

impl<'a> Oracle<'a> {
    /// Watches all nodes and pods of `corner` from now on.
    pub async fn watching(corner: &'a Corner<'a>) -> Self {
        let histories = join_all(corner.nodes.iter().map(|node| corner.history(node))).await;
        let histories = corner.nodes.iter().cloned().zip(histories).collect();
        let pods: Arc<Mutex<BTreeMap<String, Life>>> = Arc::default();
        let seen = pods.clone();
        let all: Api<Pod> = Api::all(corner.stage.world.client.clone());
        let ours: BTreeSet<String> = corner.nodes.iter().cloned().collect();
        let mut changes = watcher(all, watcher::Config::default()).default_backoff().boxed();
        let (listed, is_listed) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut listed = Some(listed);
            let mut alive = BTreeSet::new();
            while let Some(change) = changes.next().await {
                let mut seen = seen.lock().unwrap();
                match change {
                    Ok(watcher::Event::Init) => alive.clear(),
                    Ok(watcher::Event::InitApply(pod)) => {
                        alive.extend(pod.uid());
                        see(&mut seen, &ours, &pod, false);
                    }
                    Ok(watcher::Event::InitDone) => {
                        // Gone while nobody could look.
                        for (_, life) in seen.iter_mut().filter(|(uid, _)| !alive.contains(*uid)) {
                            life.gone.get_or_insert_with(Timestamp::now);
                        }
                        if let Some(listed) = listed.take() {
                            let _ = listed.send(());
                        }
                    }
                    Ok(watcher::Event::Apply(pod)) => see(&mut seen, &ours, &pod, false),
                    Ok(watcher::Event::Delete(pod)) => see(&mut seen, &ours, &pod, true),
                    Err(_) => {}
                }
            }
        });
        is_listed.await.unwrap();
        Self { corner, histories, pods, task }
    }

    /// All that the node has looked like.
    pub fn versions(&self, node: &str) -> Vec<Looks> {
        self.histories[node].versions()
    }

    /// Waits until no pod is left that has to go: in the end they go with their VM.
    pub async fn over(&self, node: &str, noticed: Timestamp) {
        eventually(&format!("the end of {node}"), async || {
            Ok(self.due(node, noticed).iter().all(|(_, life)| life.gone.is_some()).then_some(()))
        })
        .await
        .unwrap();
    }

    /// Pods that had to go because of a notice at this time.
    fn due(&self, node: &str, noticed: Timestamp) -> Vec<(String, Life)> {
        let has_to_go =
            |life: &Life| life.node == node && !life.is_exempt && life.gone.is_none_or(|gone| gone > noticed);
        let pods = self.pods.lock().unwrap();
        pods.iter()
            .filter(|(_, life)| has_to_go(life))
            .map(|(uid, life)| (uid.clone(), life.clone()))
            .collect()
    }

    /// Waits for the end of an event and judges how it was handled on `node`.
    pub async fn judge(&self, node: &str, noticed: Timestamp, terms: Terms) -> Finding {
        self.over(node, noticed).await;
        let state = self.corner.sim().state().await.unwrap();
        if state.vm(node).is_some_and(|vm| vm.gone_at.is_none()) {
            // Its last word is written a moment after the last pod has gone.
            let has_ended = |looks: &Looks| {
                looks.notice.as_ref().is_some_and(|it| !matches!(it.phase, Phase::Noticed | Phase::Draining))
            };
            self.corner.node_is(node, "the notice to say how it ended", has_ended).await;
            // The watch may be behind, after an outage by seconds.
            let has_seen = async || Ok(self.versions(node).last().is_some_and(has_ended).then_some(()));
            eventually("the history to tell of it", has_seen).await.unwrap();
        }
        let (due, asked) = (self.due(node, noticed), self.asked(node, noticed));
        let notices = self.notices(node);
        let mut finding = self.judge_requests(node, &due, &asked, terms);
        let said = std::fs::read_to_string(self.corner.agents().log(node)).unwrap_or_default();
        for (uid, life) in &due {
            let was_ending = life.ending_since.is_some_and(|since| since < noticed);
            let was_taken = asked.iter().any(|it| uid_of(it) == Some(uid) && it.code / 100 == 2);
            let was_killed = state.killed_pods.iter().any(|pod| pod.uid == *uid);
            let has_ended = life.gone.is_some() && !was_killed;
            let report = reason(&life.name, &notices, &said);
            if has_ended && (was_taken || was_ending) {
                finding.ended.insert(life.name.clone());
            } else if report.is_none() {
                let what = if has_ended { "went without being asked" } else { "did not end in time" };
                finding.faults.push(format!("pod {} {what}, and no report names it", life.name));
            }
            finding.reported.extend(report.map(|reason| (life.name.clone(), reason)));
        }
        finding.notice = notices.into_iter().next_back();
        match &finding.notice {
            Some(notice) if notice.phase == Phase::Drained && finding.ended.len() < due.len() => {
                finding.faults.push(format!("Drained, it says, and {:?} ended of {due:?}", finding.ended));
            }
            None if !due.is_empty() => finding.faults.push("the node was never marked".to_owned()),
            _ => {}
        }
        finding
    }

    /// Judges a notice that was taken back before its time, once the node is given back: no pod had to go.
    pub async fn judge_cancelled(&self, node: &str, noticed: Timestamp, terms: Terms) -> Finding {
        let is_given_back = |looks: &Looks| looks.notice.as_ref().is_none_or(|notice| !notice.is_active());
        self.corner.node_is(node, "the node to be given back", is_given_back).await;
        let given_back = Timestamp::now();
        let due = self.due(node, noticed);
        let mut asked = self.asked(node, noticed);
        asked.retain(|asked| asked.at < given_back);
        let mut finding = self.judge_requests(node, &due, &asked, terms);
        for (uid, life) in &due {
            let was_taken = asked.iter().any(|it| uid_of(it) == Some(uid) && it.code / 100 == 2);
            if life.ending_since.is_some() && !was_taken {
                finding.faults.push(format!("pod {} ends although nobody asked it to", life.name));
            }
            if was_taken {
                finding.ended.insert(life.name.clone());
            }
        }
        finding.notice = self.notices(node).into_iter().next_back();
        finding
    }

    fn notices(&self, node: &str) -> Vec<EvictionNotice> {
        let versions = self.versions(node).into_iter();
        versions.filter_map(|looks| looks.notice).filter(EvictionNotice::is_active).collect()
    }

    /// Evictions and deletions that the agent of this node has asked for since then.
    fn asked(&self, node: &str, since: Timestamp) -> Vec<Asked> {
        let mut asked = self.corner.asked(node);
        asked.retain(|asked| {
            let ends_a_pod = asked.resource == "pods/eviction"
                || (asked.resource == "pods" && asked.verb.starts_with("delete"));
            ends_a_pod && asked.at >= since
        });
        asked
    }

    /// What holds at all times: marks, acknowledgements, and only the right requests.
    fn judge_requests(&self, node: &str, due: &[(String, Life)], asked: &[Asked], terms: Terms) -> Finding {
        let mut faults = marks(&self.versions(node));
        let notices = self.notices(node);
        let deadlines = || notices.iter().map(|notice| notice.deadline);
        for asked in asked {
            let uid = uid_of(asked);
            // The apiserver reads no body of a request that it turns away at once.
            if !due.iter().any(|(known, _)| Some(known.as_str()) == uid)
                && (!asked.body.is_null() || asked.code < 400)
            {
                faults.push(format!("it asked for a pod that does not have to go: {}", short(asked)));
            }
        }
        for (uid, life) in due {
            let of_pod: Vec<&Asked> = asked.iter().filter(|asked| uid_of(asked) == Some(uid)).collect();
            let mut wrong: Vec<String> =
                of_pod.iter().filter_map(|asked| grace(asked, life, deadlines(), terms)).collect();
            // At the last call a pod is deleted although an answer about its eviction is still out.
            let taken = of_pod.iter().filter(|asked| asked.code / 100 == 2);
            let known = taken.map(|asked| asked.answered_at).min().map(|answered| answered + CROSSING);
            if known.is_some_and(|known| of_pod.iter().any(|asked| asked.at > known)) && !terms.may_ask_again
            {
                wrong.push("it was asked again although the API had said yes".to_owned());
            }
            if life
                .ending_since
                .is_some_and(|since| of_pod.iter().any(|asked| since + terms.slack < asked.at))
                && !terms.may_ask_again
            {
                wrong.push("it was asked while it was ending".to_owned());
            }
            if let Some(why) = wrong.first() {
                let times: Vec<String> = of_pod.iter().map(|asked| short(asked)).collect();
                faults.push(format!("pod {}: {why}; {}", life.name, times.join(", ")));
            }
        }
        Finding { faults, ended: BTreeSet::new(), reported: BTreeMap::new(), notice: None }
    }
}

impl Drop for Oracle<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn see(seen: &mut BTreeMap<String, Life>, nodes: &BTreeSet<String>, pod: &Pod, is_gone: bool) {
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { return };
    if !nodes.contains(&node) {
        return;
    }
    let now = Timestamp::now();
    let uid = pod.uid().unwrap_or_default();
    let life = seen.entry(uid).or_insert_with(|| Life {
        name: format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        node,
        grace: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds)
            .map_or(Duration::from_secs(30), |grace| Duration::from_secs(grace as u64)),
        is_exempt: false,
        ending_since: None,
        gone: None,
    });
    // That time has the grace in it.
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or_default());
    let ending_since = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0 - grace);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    // A pod that ends because it was told to is no pod that had finished.
    let has_finished = ending_since.is_none() && matches!(phase, Some("Succeeded" | "Failed"));
    let of_daemon_set = pod
        .owner_references()
        .iter()
        .any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true));
    life.is_exempt |=
        has_finished || of_daemon_set || pod.annotations().contains_key("kubernetes.io/config.mirror");
    life.ending_since = life.ending_since.or(ending_since);
    if is_gone {
        life.gone.get_or_insert(now);
    }
}

/// What is wrong with how the node's marks came and went.
fn marks(versions: &[Looks]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut last = None::<(&str, u8)>;
    for looks in versions {
        let notice = looks.notice.as_ref().filter(|notice| notice.is_active());
        let whole = [notice.is_some(), looks.taint.is_some(), looks.excluded];
        if whole.iter().any(|mark| *mark != whole[0]) || (whole[0] && !looks.cordoned) {
            faults.push(format!("half marked: {looks:?}"));
        }
        if let Some(notice) = notice {
            let this = (notice.event_id.as_str(), notice.phase as u8);
            if let Some(last) = last
                && last.0 == this.0
                && last.1 > this.1
                // There is more time than there was, or a pod came.
                && last.1 < Phase::Drained as u8
            {
                faults.push(format!("back to {:?} from {last:?}", notice.phase));
            }
            last = Some(this);
        }
    }
    faults
}

/// What is wrong with the grace that was asked for.
fn grace(
    asked: &Asked,
    life: &Life,
    deadlines: impl Iterator<Item = Timestamp> + Clone,
    terms: Terms,
) -> Option<String> {
    let options = if asked.verb == "delete" { &asked.body } else { &asked.body["deleteOptions"] };
    let Some(got) = options["gracePeriodSeconds"].as_u64() else {
        return (!terms.is_wanted_empty).then(|| "no grace was asked for".to_owned());
    };
    let due = |deadline: Timestamp, at: Timestamp| -> u64 {
        let left = deadline.duration_since(at) - SignedDuration::try_from(terms.reserve).unwrap();
        let left = Duration::try_from(left).unwrap_or_default();
        life.grace.min(left).as_secs().max(1)
    };
    let reckoned = asked.at - terms.slack;
    let least = deadlines.clone().map(|deadline| due(deadline, asked.at)).min()?;
    let most = deadlines.map(|deadline| due(deadline, reckoned)).max()?;
    (!(least..=most).contains(&got)).then(|| format!("a grace of {got} s, due {least} to {most}"))
}

/// Why a pod is still there, in the words of the report.
fn reason(name: &str, notices: &[EvictionNotice], log: &str) -> Option<String> {
    let start = format!("{name}: ");
    let listed =
        notices.iter().rev().flat_map(|notice| &notice.unfinished).find_map(|it| it.strip_prefix(&start));
    let logged = || {
        let mut lines = log.lines().rev().filter(|line| line.contains("left on the node"));
        lines.find_map(|line| Some(line.split_once(&start)?.1.trim()))
    };
    let found = listed.or_else(logged)?;
    (!found.is_empty()).then(|| found.to_owned())
}

fn uid_of(asked: &Asked) -> Option<&str> {
    let options = if asked.verb == "delete" { &asked.body } else { &asked.body["deleteOptions"] };
    options["preconditions"]["uid"].as_str()
}

fn short(asked: &Asked) -> String {
    let Asked { verb, resource, name, at, code, .. } = asked;
    format!("{verb} {resource} {name} at {at:.3} answered {code}")
}

/// Tells all faults of a table at once, each with its row, and asks Azure's stand-in about acknowledgements.
pub async fn no_promise_is_broken<N: Display>(corner: &Corner<'_>, findings: &[(N, Finding)]) {
    let acks = corner.sim().state().await.unwrap().acks;
    assert!(acks.iter().all(|ack| ack.event_type.as_deref() != Some("Preempt")), "{acks:?}");
    let faults: Vec<String> = findings
        .iter()
        .flat_map(|(row, finding)| finding.faults.iter().map(move |fault| format!("[{row}] {fault}")))
        .collect();
    assert!(faults.is_empty(), "{} promises broken:\n{}", faults.len(), faults.join("\n"));
}
