//! Lists that come at the wrong moment. All were found by the model of the protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use serde_json::json;
use spotpool_azure::{
    Accepted, Class, CreateAgentPool, Created, Machine, OperationOutcome, OperationUrl, Urgency,
};

use spotpool_crds::names;

use super::entry::Joining;
use super::*;
use crate::pool::others::Others;

const SPOT: &str = "spota";

/// Azure with one agent pool, and some that have no more than a name.
struct Azure {
    /// Those.
    more: &'static [&'static str],
    /// Whose machines were asked for.
    asked: Mutex<Vec<String>>,
    /// Count, ETag and machines.
    pool: Mutex<(u32, &'static str, u32)>,
    /// The PUTs that came: count and ETag.
    puts: Mutex<Vec<(u32, String)>>,
    /// Answers to PUTs are given after this.
    answers: Notify,
}

impl Azure {
    fn agent_pool(&self, name: &str) -> AgentPool {
        let (count, etag, _) = *self.pool.lock().unwrap();
        let body = json!({"name": name, "properties": {
            "count": count, "eTag": etag, "mode": "User", "scaleSetPriority": "Spot", "provisioningState": "Succeeded"
        }});
        AgentPool::read(body, Timestamp::now()).unwrap()
    }
}

fn unused<T>() -> BoxFuture<'static, T> {
    panic!("no test asks for it")
}

impl spotpool_azure::AgentPools for Azure {
    fn list(&self) -> BoxFuture<'_, Result<Vec<AgentPool>, AzureError>> {
        let names = self.more.iter().chain([&SPOT]);
        let pools = names.map(|name| self.agent_pool(name)).collect();
        async { Ok(pools) }.boxed()
    }

    fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<AgentPool>, AzureError>> {
        unused()
    }

    fn machines<'a>(&'a self, agent_pool: &'a str) -> BoxFuture<'a, Result<Vec<Machine>, AzureError>> {
        self.asked.lock().unwrap().push(agent_pool.to_owned());
        let machines = self.pool.lock().unwrap().2;
        async move { Ok((0..machines).map(|at| Machine::named(format!("m{at}"))).collect()) }.boxed()
    }

    fn scale<'a>(
        &'a self,
        pool: &'a AgentPool,
        count: u32,
        _: Urgency,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        async move {
            self.puts.lock().unwrap().push((count, pool.etag.clone().unwrap()));
            self.answers.notified().await;
            Err(AzureError::new(Class::Transient, "NoAnswer", "no answer"))
        }
        .boxed()
    }

    fn correct_count<'a>(&'a self, _: &'a AgentPool, _: u32) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        unused()
    }

    fn set_autoscaler_range<'a>(
        &'a self,
        _: &'a AgentPool,
        _: u32,
        _: u32,
        _: Urgency,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        unused()
    }

    fn delete_machines<'a>(
        &'a self,
        _: &'a str,
        _: &'a [String],
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        unused()
    }

    fn create<'a>(&'a self, _: &'a CreateAgentPool) -> BoxFuture<'a, Result<Created, AzureError>> {
        unused()
    }

    fn write_budget(&self, _: &str) -> WriteBudget {
        WriteBudget { left: 20, at: Timestamp::UNIX_EPOCH }
    }

    fn restore_write_budget(&self, _: &str, _: WriteBudget) {}
}

impl spotpool_azure::Operations for Azure {
    fn operation<'a>(&'a self, _: &'a OperationUrl) -> BoxFuture<'a, Result<OperationOutcome, AzureError>> {
        unused()
    }
}

/// With two machines in each, of which nothing is known yet.
fn begin(more: &'static [&'static str], nodes: Nodes) -> (Arc<Azure>, AgentPools) {
    let azure = Arc::new(Azure {
        more,
        asked: Mutex::default(),
        pool: Mutex::new((2, "e1", 2)),
        puts: Mutex::default(),
        answers: Notify::new(),
    });
    let metrics = Metrics::register(&mut crate::metrics::catalogue());
    let clock: Clock = Arc::new(Timestamp::now);
    let agent_pools =
        AgentPools::new(azure.clone(), azure.clone(), nodes, Trigger::default(), metrics, clock);
    (azure, agent_pools)
}

/// With two machines, and what is known of them.
async fn known() -> (Arc<Azure>, AgentPools, Known) {
    let (azure, agent_pools) = begin(&[], Nodes::follow(futures::stream::pending(), Trigger::default()).0);
    agent_pools.view([SPOT].into_iter());
    drop(agent_pools.read().await);
    let known = now(&agent_pools);
    assert!(!known.busy, "a write would be refused: {known:?}");
    (azure, agent_pools, known)
}

fn now(agent_pools: &AgentPools) -> Known {
    agent_pools.view([SPOT].into_iter()).pools.unwrap().remove(SPOT).unwrap()
}

/// Azure's limit makes a new leader wait minutes for the machines of a hundred agent pools: one under notice must not stand
/// in line.
#[tokio::test]
async fn machines_of_agent_pools_that_lose_some_are_listed_first() {
    const LOSES: &str = "loses";
    let notice = json!({"by": "NodeAgent", "eventId": "e", "type": "Preempt", "source": "IMDS", "response": "Drain",
        "observedAt": "2026-11-01T00:00:00Z", "deadline": "2026-11-01T00:00:30Z", "phase": "Noticed", "cordoned": true, "bootID": "b"});
    let node = |name: &str, notice: Option<String>| -> Node {
        let annotations: BTreeMap<&str, String> =
            notice.into_iter().map(|notice| (names::EVICTION_ANNOTATION, notice)).collect();
        let labels = BTreeMap::from([(names::AGENT_POOL_LABEL, name)]);
        serde_json::from_value(
            json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}}),
        )
        .unwrap()
    };
    let events =
        [node(SPOT, None), node(LOSES, Some(notice.to_string()))].map(|node| Ok(watcher::Event::Apply(node)));
    let (nodes, follow) = Nodes::follow(futures::stream::iter(events), Trigger::default());
    follow.for_each(|()| std::future::ready(())).await;
    let (azure, agent_pools) = begin(&["calm", LOSES], nodes);
    agent_pools.view(["calm", LOSES, SPOT].into_iter());
    drop(agent_pools.read().await);
    assert_eq!(*azure.asked.lock().unwrap(), [LOSES, "calm", SPOT]);
}

/// A VM was taken and listed no more between plan and PUT: with the new ETag the old count would pass, and one VM too many
/// would come.
#[tokio::test]
async fn a_count_of_before_a_list_is_not_written_with_the_etag_of_after_it() {
    let (azure, agent_pools, planned) = known().await;
    *azure.pool.lock().unwrap() = (1, "e2", 1);
    drop(agent_pools.read().await);
    let refused = agent_pools.scale(SPOT, &planned, 3, Urgency::Emergency).await.unwrap_err();
    assert_eq!((refused.class, azure.puts.lock().unwrap().len()), (Class::Conflict, 0), "{refused}");

    let planned = now(&agent_pools);
    assert!(!planned.busy, "nothing was written, so the next plan can act at once");
    azure.answers.notify_one();
    agent_pools.scale(SPOT, &planned, 2, Urgency::Emergency).await.unwrap_err();
    assert_eq!(*azure.puts.lock().unwrap(), [(2, "e2".to_owned())]);
}

/// A list from before the PUT reached Azure says nothing of it: the same machines would be asked for again.
#[tokio::test]
async fn a_list_while_the_answer_is_awaited_does_not_tell_what_became_of_a_write() {
    let (azure, agent_pools, planned) = known().await;
    let listed = async {
        tokio::task::yield_now().await;
        assert_eq!(azure.puts.lock().unwrap().len(), 1, "the PUT is under way");
        drop(agent_pools.read().await);
        azure.answers.notify_one();
    };
    let (answer, ()) = tokio::join!(agent_pools.scale(SPOT, &planned, 3, Urgency::Emergency), listed);
    assert!(answer.unwrap_err().outcome_unknown());
    assert!(now(&agent_pools).busy, "a plan would be made from what was known before");
    drop(agent_pools.read().await);
    assert!(!now(&agent_pools).busy, "a list of now tells");
}

/// A late PUT of an earlier leader brought a VM and an eviction took another: the count is what it was, the machines are not.
#[tokio::test]
async fn an_agent_pool_whose_etag_has_moved_is_listed_again_though_its_count_is_the_same() {
    let (azure, agent_pools, before) = known().await;
    *azure.pool.lock().unwrap() = (2, "e2", 3);
    drop(agent_pools.read().await);
    assert_eq!((before.listed, now(&agent_pools).listed), (2, 3));
}

/// ARM took it after we had given up: nobody is to be looked for who has changed the count.
#[tokio::test]
async fn a_count_that_lands_when_its_sender_has_given_up_is_nobody_elses() {
    let (azure, agent_pools, planned) = known().await;
    azure.answers.notify_one();
    assert!(agent_pools.scale(SPOT, &planned, 3, Urgency::Routine).await.unwrap_err().outcome_unknown());
    drop(agent_pools.read().await);
    let before = json!({"agentPools": [{"name": SPOT, "count": 2, "provisioningState": "Succeeded"}]});
    let before: SpotPoolStatus = serde_json::from_value(before).unwrap();
    let changes = || {
        let azure = BTreeMap::from([(SPOT.to_owned(), now(&agent_pools))]);
        Others::seen(&before, &azure, false, Timestamp::now()).changes
    };
    assert!(changes().is_empty(), "it has not landed");
    for (count, etag, is_theirs) in [(3, "e2", false), (4, "e3", true)] {
        *azure.pool.lock().unwrap() = (count, etag, count);
        drop(agent_pools.read().await);
        assert_eq!(!changes().is_empty(), is_theirs, "{count}");
    }
}

#[test]
fn a_clock_that_is_set_does_not_make_a_machine_that_boots_one_that_never_came() {
    let seen: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let joining = Joining { seen, at: Instant::now() };
    let after = |minutes| joining.since(seen + SignedDuration::from_mins(minutes)).duration_since(seen);
    assert_eq!(after(0), SignedDuration::ZERO);
    assert!(after(60) > SignedDuration::from_mins(59), "it is a moment old, whatever the clock says");
    assert!(after(-60) <= SignedDuration::from_mins(-60), "and no younger either");
}
