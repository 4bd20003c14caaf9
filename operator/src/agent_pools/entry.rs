//! What is known of one agent pool, and how far it can be relied on.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spotpool_azure::{AgentPool, AzureError, OperationUrl, WriteBudget};
use tokio::time::Instant;

use super::due::LONGEST_IDLE;

/// A PUT that was not answered may be carried out for so long.
const LANDS_WITHIN: Duration = Duration::from_mins(10);
/// A clock that differs by more from what has passed was set.
const CLOCK_SLIPS: SignedDuration = SignedDuration::from_mins(1);
/// How often an operation's own URL is asked: what fails mostly fails early, what succeeds takes minutes, and
/// this bucket is shared, too.
const OPERATION: Duration = Duration::from_secs(2);
const LONGEST_OPERATION: Duration = Duration::from_secs(15);

/// One agent pool in the cache.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) pool: AgentPool,
    /// `None` until they have been listed since the last change.
    pub(super) machines: Option<Listed>,
    /// Whether they are being listed.
    pub(super) listing: bool,
    /// When they were last asked for.
    pub(super) tried: Option<Instant>,
    pub(super) written: Written,
    /// At which of all beginnings and ends of writes it was written last.
    pub(super) turn: u64,
    /// What our last PUT asked for, and when we gave up waiting for its answer.
    pub(super) unanswered: Option<(u32, Instant)>,
    pub(super) failure: Option<(AzureError, Timestamp)>,
    pub(super) joining: BTreeMap<String, Joining>,
    pub(super) count_stale_since: Option<Timestamp>,
    /// When machines of it went that nobody had announced.
    pub(super) vanished: Vec<Timestamp>,
    /// What was left of its writes after our last one.
    pub(super) write_budget: Option<WriteBudget>,
}

impl Entry {
    /// One that is listed for the first time, after so many beginnings and ends of writes.
    pub(super) fn new(pool: AgentPool, turn: u64) -> Self {
        Self {
            pool,
            machines: None,
            listing: false,
            tried: None,
            written: Written::Read,
            turn,
            unanswered: None,
            failure: None,
            joining: BTreeMap::new(),
            count_stale_since: None,
            vanished: Vec::new(),
            write_budget: None,
        }
    }

    /// What our last PUT asked for, while it may yet be carried out.
    pub(super) fn unanswered(&self) -> Option<u32> {
        let (asked, at) = self.unanswered?;
        (at.elapsed() < LANDS_WITHIN).then_some(asked)
    }

    /// Whether Azure counts machines that it does not list, and does nothing about it.
    pub(super) fn is_count_stale(&self) -> bool {
        let settled = self.written == Written::Read && !self.pool.busy();
        let listed = self.machines.as_ref().map(|listed| listed.names.len());
        // A count is lowered only with If-Match.
        settled
            && self.pool.etag.is_some()
            && listed.is_some_and(|listed| (self.pool.count as usize) > listed)
    }
}

/// When a machine was first listed without a Node.
#[derive(Clone, Copy)]
pub(super) struct Joining {
    pub(super) seen: Timestamp,
    pub(super) at: Instant,
}

impl Joining {
    /// By the clock as it is now: one that was set meanwhile would make a machine that boots an old one, or an old one young.
    pub(super) fn since(&self, now: Timestamp) -> Timestamp {
        let lasted = SignedDuration::try_from(self.at.elapsed()).unwrap_or(SignedDuration::MAX);
        let was_set = (now.duration_since(self.seen) - lasted).abs() > CLOCK_SLIPS;
        if was_set { now.saturating_sub(lasted).unwrap_or(Timestamp::MIN) } else { self.seen }
    }
}

/// Machines as Azure listed them.
#[derive(Clone)]
pub(super) struct Listed {
    pub(super) names: Vec<String>,
    pub(super) at: Instant,
}

/// How our last write stands.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// What is here was read after it.
    Read,
    /// Only a list that is asked for from now on can tell.
    Unknown,
    /// Azure said where to ask.
    Running(Followed),
}

/// An operation that runs.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Followed {
    pub(super) url: OperationUrl,
    pub(super) since: Instant,
    /// When to ask how it stands.
    pub(super) ask_at: Instant,
}

impl Followed {
    pub(super) fn new(url: OperationUrl, ask_in: Option<Duration>) -> Self {
        let since = Instant::now();
        Self { url, since, ask_at: since + ask_in.unwrap_or(OPERATION) }
    }

    /// It still runs; Azure may have said when to ask again.
    pub(super) fn ask_again(mut self, ask_in: Option<Duration>) -> Self {
        let ask_in = ask_in.unwrap_or((self.since.elapsed() / 10).clamp(OPERATION, LONGEST_OPERATION));
        self.ask_at = Instant::now() + ask_in.min(LONGEST_IDLE);
        self
    }
}
