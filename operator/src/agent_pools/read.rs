//! Reads of agent pools, their machines and our operations, and what becomes of what was known.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::SignedDuration;
use spotpool_azure::{AzureError, Class, Machine, OperationOutcome};
use tokio::time::Instant;

use super::AgentPools;
use super::due::{APPEARS_WITHIN, IDLE, LONGEST_IDLE, UNSETTLED};
use super::entry::{Entry, Joining, Listed, Written};

/// How often machines are listed while they and their Nodes do not match.
const RELIST: Duration = Duration::from_secs(30);
/// Machines of several agent pools that are listed within that time are taken in together: a plan that knows half of
/// them spreads over that half. What takes longer, as pages do that wait for their turn, keeps nobody waiting.
const TOGETHER: Duration = Duration::from_secs(10);
/// Losses are in status long before this.
const TOLD_FOR: SignedDuration = SignedDuration::from_mins(30);

/// Machines that were asked for.
pub(super) struct Answer {
    agent_pool: String,
    at: Instant,
    /// How many beginnings and ends of writes there were before.
    turn: u64,
    machines: Result<Vec<Machine>, AzureError>,
}

/// Lists of machines that are under way.
pub(super) type Lists<'a> = FuturesUnordered<BoxFuture<'a, Answer>>;

impl AgentPools {
    /// Asks how the operations stand whose time has come. Whether any is over.
    pub(super) async fn follow(&self) -> bool {
        let mut over = false;
        let now = Instant::now();
        for (name, followed) in self.followed().into_iter().filter(|(_, followed)| followed.ask_at <= now) {
            let outcome = self.operations.operation(&followed.url).await;
            self.metrics.azure_read("operation", &outcome);
            let (written, failure) = match outcome {
                Ok(OperationOutcome::Running(ask_in)) => (Written::Running(followed.ask_again(ask_in)), None),
                // A list tells the rest.
                Ok(OperationOutcome::Succeeded | OperationOutcome::Unknown) => (Written::Unknown, None),
                Ok(OperationOutcome::Failed(error)) => {
                    tracing::warn!(
                        agent_pool = name,
                        code = error.code,
                        message = error.message,
                        "Azure's operation failed"
                    );
                    (Written::Unknown, Some((error, self.now())))
                }
                // A URL that is refused is of no more use: a list will tell.
                Err(error) if matches!(error.class, Class::Invalid | Class::Denied) => {
                    tracing::warn!(agent_pool = name, %error, "cannot ask how an operation stands");
                    (Written::Unknown, None)
                }
                Err(error) => {
                    tracing::warn!(agent_pool = name, %error, "cannot ask how an operation stands; trying again");
                    (Written::Running(followed.ask_again(error.retry_after)), None)
                }
            };
            over |= written == Written::Unknown;
            if let Some(entry) = self.state().entry(&name) {
                entry.written = written;
                entry.failure = failure.or(entry.failure.take());
            }
        }
        over
    }

    /// A read failed. Nothing that is known is thrown away.
    fn not_read(&self, error: AzureError, what: &'static str) {
        let mut state = self.state();
        state.quiet_until = Some(Instant::now() + pause(&error));
        // Refused here, before the wire: Azure is reachable, we only do not ask.
        if !error.is_local() {
            tracing::warn!(%error, "{what}");
            if error.class == Class::Throttled {
                state.idle = (state.idle * 2).min(LONGEST_IDLE);
            }
            state.unreachable = Some(error);
        }
        drop(state);
        self.trigger.fire();
    }

    /// Lists agent pools, and the machines of those where they may have changed. Returns the lists that take longer.
    pub(super) async fn read(&self) -> Lists<'_> {
        let turn = self.state().turn;
        let began = Instant::now();
        let listed = self.azure.list().await;
        self.metrics.azure_read("list", &listed);
        let pools = match listed {
            Ok(pools) => pools,
            Err(error) => {
                self.not_read(error, "cannot list agent pools");
                return Lists::new();
            }
        };
        let mut to_list = Vec::new();
        {
            let mut state = self.state();
            state.unreachable = None;
            state.idle = (state.idle * 3 / 4).max(IDLE);
            state.quiet_until = None;
            let mut before = state.entries.take().unwrap_or_default();
            let wanted = state.wanted.clone();
            let nodes = self.nodes.names();
            let mut entries = BTreeMap::new();
            for pool in pools {
                let name = pool.name.clone();
                let mut entry = before.remove(&name).unwrap_or_else(|| Entry::new(pool.clone(), turn));
                // What was written before this list was asked for is in it. What was written, or answered, since may not be.
                let settled = entry.turn <= turn && entry.written == Written::Unknown;
                if settled {
                    entry.written = Written::Read;
                }
                // While our own operation runs its ETag moves along.
                let was_touched = entry.written == Written::Read && entry.pool.etag != pool.etag;
                let changed = was_touched
                    || entry.pool.count != pool.count
                    || entry.pool.provisioning_state != pool.provisioning_state;
                if entry.written == Written::Read {
                    entry.pool = pool;
                }
                let outdated = match &entry.machines {
                    None => true,
                    // Booting and dying take their time, and the watch of Nodes tells most of it.
                    Some(listed) if listed.at.elapsed() >= RELIST => {
                        let gone = self.existing(&entry).count() < listed.names.len();
                        settled || changed || gone || self.differs(&entry, nodes.get(&name))
                    }
                    Some(_) => settled || changed,
                };
                // As most fallback is most of the time: nothing is there to be listed.
                let empty = entry.pool.count == 0 && !entry.pool.busy() && !nodes.contains_key(&name);
                if outdated && empty {
                    entry.machines = Some(Listed { names: Vec::new(), at: began });
                } else if wanted.contains(&name) && outdated {
                    if !entry.listing {
                        to_list.push(name.clone());
                    }
                    // Until they are listed again nothing may be planned from the old ones. A list that only
                    // differs from the Nodes is as good as it was.
                    if settled || changed {
                        entry.machines = None;
                    }
                }
                entries.insert(name, entry);
            }
            state.made.retain(|name, at| !entries.contains_key(name) && at.elapsed() < APPEARS_WITHIN);
            state.entries = Some(entries);
        }
        // Not all can be had now where there are many. Nothing is replaced in an agent pool whose machines are not known: those
        // that lose some go first, and then who has waited longest, so that none waits for ever.
        let losing = if to_list.is_empty() { HashSet::new() } else { self.losing() };
        {
            let mut state = self.state();
            let entries = state.entries.get_or_insert_default();
            to_list.sort_by_key(|name| {
                (!losing.contains(name), entries.get(name).and_then(|entry| entry.tried))
            });
            for name in &to_list {
                if let Some(entry) = entries.get_mut(name) {
                    (entry.tried, entry.listing) = (Some(Instant::now()), true);
                }
            }
        }
        let mut lists: Lists<'_> = to_list.into_iter().map(|name| self.list_machines(name).boxed()).collect();
        let mut answers = Vec::new();
        let gather = async {
            while let Some(answer) = lists.next().await {
                answers.push(answer);
            }
        };
        let _late = tokio::time::timeout(TOGETHER, gather).await;
        self.take_in(answers);
        {
            let mut state = self.state();
            state.odd_nodes = self.odd_nodes(&state);
        }
        self.trigger.fire();
        lists
    }

    async fn list_machines(&self, agent_pool: String) -> Answer {
        let (at, turn) = (Instant::now(), self.state().turn);
        let machines = self.azure.machines(&agent_pool).await;
        self.metrics.azure_read("machines", &machines);
        Answer { agent_pool, at, turn, machines }
    }

    /// Takes in which machines there are, and compares all with the Nodes.
    pub(super) fn take_in(&self, answers: impl IntoIterator<Item = Answer>) {
        let mut failed = Vec::new();
        let mut state = self.state();
        for Answer { agent_pool, at, turn, machines } in answers {
            let Some(entry) = state.entry(&agent_pool) else {
                continue;
            };
            entry.listing = false;
            match machines {
                // What has been written since may not be in it.
                Ok(_) if entry.turn > turn => {}
                Ok(machines) => {
                    let names = machines.into_iter().map(|machine| machine.name).collect();
                    entry.machines = Some(Listed { names, at });
                }
                Err(error) => failed.push(error),
            }
        }
        drop(state);
        for error in failed {
            self.not_read(error, "cannot list machines");
        }
        let nodes = self.nodes.names();
        let none = BTreeSet::new();
        let mut state = self.state();
        for (name, entry) in state.entries.iter_mut().flatten() {
            let its = nodes.get(name).unwrap_or(&none);
            let joining = self.existing(entry).filter(|machine| !its.contains(*machine));
            let first = || Joining { seen: self.now(), at: Instant::now() };
            let since = |machine: &String| entry.joining.get(machine).copied().unwrap_or_else(first);
            entry.joining = joining.map(|machine| (machine.clone(), since(machine))).collect();
            if let Some(listed) = &entry.machines {
                let now = self.now();
                let vanished = self.nodes.vanished(name, &listed.names, listed.at);
                entry.vanished.retain(|at| now.duration_since(*at) < TOLD_FOR);
                entry.vanished.extend(std::iter::repeat_n(now, vanished));
            }
            let since = entry.count_stale_since.unwrap_or_else(|| self.now());
            entry.count_stale_since = entry.is_count_stale().then_some(since);
        }
        let since = state.unsettled_since.unwrap_or_else(Instant::now);
        state.unsettled_since = self.is_unsettled(&state, &nodes).then_some(since);
    }
}

/// How long a list waits after one that failed.
fn pause(error: &AzureError) -> Duration {
    let pause = match error.class {
        // Nothing changes until a person has acted.
        Class::Denied | Class::Invalid => Duration::from_secs(30),
        _ => UNSETTLED,
    };
    error.retry_after.unwrap_or(pause).min(LONGEST_IDLE)
}
