//! Keeps our requests below Azure's limits, which are token buckets, some of them shared with others.
//!
//! | Azure's bucket | size, refill | shared with | ours |
//! | --- | --- | --- | --- |
//! | PUT of one agent pool | 20, 1 a minute | nobody | 20, 1 a minute; the last 5 are for emergencies |
//! | everything else on agent pools | 60, 1 a second | the subscription's clusters | 20, 1 in 4 s |
//! | operation status | 200, 2 a second | the subscription's clusters | 60, 1 a second |
//!
//! The shares allow for a few clusters in trouble at once beside many quiet ones: a quiet operator lists 40
//! times an hour, so 40 of them need less than half of the shared bucket. When all are in trouble, nothing but
//! Azure's own word helps: a 429 closes the bucket for the time that it names, and a bit longer, differently
//! for each cluster. A notice still costs no read, and writes have a bucket for each agent pool.
//!
//! Pure: whoever calls says what time it is.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// How urgent a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Capacity is lost, or about to be: may use the last writes.
    Emergency,
    /// Anything that can wait a minute.
    Routine,
}

/// What is left of an agent pool's writes, to be kept across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBudget {
    /// Whole writes.
    pub left: u32,
    /// When that was so; they come back by one a minute.
    pub at: Timestamp,
}

/// Which of Azure's buckets a request counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// GET of agent pools and machines.
    Read,
    /// `deleteMachines`, from the same bucket as reads; it may use up what reads leave.
    Delete,
    /// GET of an operation's status.
    Status,
    /// PUT of this agent pool.
    Put(&'a str, Urgency),
}

/// Writes of an agent pool that only an emergency may use.
pub const RESERVE: u32 = 5;
/// What reads leave to `deleteMachines`.
const LEFT_TO_DELETES: f64 = 4.0;
/// What is assumed of an agent pool whose budget is not known: somebody may have written before us.
const UNKNOWN: f64 = 10.0;
/// What a 429 means that does not say for how long, the first time; twice as long each time after.
const UNSAID: Duration = Duration::from_secs(15);
const LONGEST: Duration = Duration::from_hours(1);
const LONGEST_UNSAID: Duration = Duration::from_mins(5);
/// Between two tries while Azure gives no answer at all.
const OUTAGE: Duration = Duration::from_secs(5);
const LONGEST_OUTAGE: Duration = Duration::from_mins(1);

const SHARED: Size = Size { most: 20.0, per_second: 0.25 };
const STATUS: Size = Size { most: 60.0, per_second: 1.0 };
const PUT: Size = Size { most: 20.0, per_second: 1.0 / 60.0 };

#[derive(Clone, Copy, Debug)]
struct Size {
    most: f64,
    per_second: f64,
}

/// The buckets of one cluster.
#[derive(Clone, Debug)]
pub struct Throttle {
    shared: Bucket,
    status: Bucket,
    puts: BTreeMap<String, Bucket>,
    /// Requests in a row without an answer.
    unanswered: u32,
    /// Reads wait until then: Azure does not answer.
    paused_until: Option<Timestamp>,
    /// 0 to 1, by cluster: so that many do not come back at the same moment.
    jitter: f64,
}

impl Throttle {
    /// Full buckets for reads; agent pools start with what is assumed or [restored](Self::restore). `cluster`
    /// only has to differ between clusters.
    pub fn new(cluster: &str) -> Self {
        Self {
            shared: Bucket::new(SHARED, SHARED.most),
            status: Bucket::new(STATUS, STATUS.most),
            puts: BTreeMap::new(),
            unanswered: 0,
            paused_until: None,
            jitter: jitter_of(cluster),
        }
    }

    /// Takes what the request needs, or says how long to wait.
    pub fn take(&mut self, kind: Kind<'_>, now: Timestamp) -> Result<(), Duration> {
        let keep = match kind {
            Kind::Read => LEFT_TO_DELETES,
            Kind::Put(_, Urgency::Routine) => f64::from(RESERVE),
            Kind::Put(_, Urgency::Emergency) | Kind::Delete | Kind::Status => 0.0,
        };
        if kind == Kind::Read
            && let Some(wait) = self.paused_until.and_then(|until| wait_until(until, now))
        {
            return Err(wait);
        }
        self.bucket(kind).take(keep, now)
    }

    /// Azure refused with 429; `retry_after` is its word on how long.
    pub fn refused(&mut self, kind: Kind<'_>, retry_after: Option<Duration>, now: Timestamp) {
        let jitter = self.jitter;
        self.unanswered = 0;
        self.bucket(kind).refused(retry_after, jitter, now);
    }

    /// Azure answered, and said how many requests ARM still takes, if it did.
    pub fn answered(&mut self, kind: Kind<'_>, remaining: Option<u32>, now: Timestamp) {
        (self.unanswered, self.paused_until) = (0, None);
        let bucket = self.bucket(kind);
        bucket.refusals = 0;
        if let Some(remaining) = remaining {
            bucket.refill(now);
            bucket.level = bucket.level.min(f64::from(remaining));
        }
    }

    /// No answer, or a server's error. Reads pause the longer the more follow each other; writes never do.
    pub fn unanswered(&mut self, now: Timestamp) {
        self.unanswered = self.unanswered.saturating_add(1);
        // One alone means nothing.
        if self.unanswered > 1 {
            let steps = (self.unanswered - 2).min(8);
            let wait = (OUTAGE * 2_u32.pow(steps)).min(LONGEST_OUTAGE).mul_f64(0.5 + self.jitter);
            self.paused_until = Some(after(now, wait));
        }
    }

    /// What is left for writes of an agent pool.
    pub fn write_budget(&mut self, agent_pool: &str, now: Timestamp) -> WriteBudget {
        let bucket = self.bucket(Kind::Put(agent_pool, Urgency::Emergency));
        bucket.refill(now);
        WriteBudget { left: bucket.level as u32, at: now }
    }

    /// Puts back what was left before a restart, where that is less than what is assumed now, or nothing was
    /// written yet.
    pub fn restore(&mut self, agent_pool: &str, budget: WriteBudget, now: Timestamp) {
        let mut bucket = Bucket::new(PUT, f64::from(budget.left).min(PUT.most));
        bucket.at = Some(budget.at.min(now));
        bucket.refill(now);
        match self.puts.get_mut(agent_pool) {
            Some(known) => {
                known.refill(now);
                known.level = known.level.min(bucket.level);
            }
            None => drop(self.puts.insert(agent_pool.to_owned(), bucket)),
        }
    }

    fn bucket(&mut self, kind: Kind<'_>) -> &mut Bucket {
        match kind {
            Kind::Read | Kind::Delete => &mut self.shared,
            Kind::Status => &mut self.status,
            Kind::Put(agent_pool, _) => {
                self.puts.entry(agent_pool.to_owned()).or_insert_with(|| Bucket::new(PUT, UNKNOWN))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Bucket {
    size: Size,
    level: f64,
    at: Option<Timestamp>,
    closed_until: Option<Timestamp>,
    /// 429s in a row.
    refusals: u32,
}

impl Bucket {
    fn new(size: Size, level: f64) -> Self {
        Self { size, level, at: None, closed_until: None, refusals: 0 }
    }

    fn refill(&mut self, now: Timestamp) {
        // A clock that went back refills nothing; it counts from where it is now.
        let passed = self.at.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
        self.level = (self.level + passed * self.size.per_second).min(self.size.most);
        self.at = Some(now);
    }

    /// Takes one if `keep` are left after it.
    fn take(&mut self, keep: f64, now: Timestamp) -> Result<(), Duration> {
        self.refill(now);
        if let Some(wait) = self.closed_until.and_then(|until| wait_until(until, now)) {
            return Err(wait);
        }
        // A hair less than one counts: refills are sums of fractions.
        let missing = keep + 1.0 - self.level;
        if missing > 1e-9 {
            return Err(Duration::from_secs_f64(missing / self.size.per_second));
        }
        self.level -= 1.0;
        Ok(())
    }

    fn refused(&mut self, retry_after: Option<Duration>, jitter: f64, now: Timestamp) {
        self.refill(now);
        let unsaid = (UNSAID * 2_u32.pow(self.refusals.min(8))).min(LONGEST_UNSAID);
        let wait = retry_after.unwrap_or(unsaid).min(LONGEST);
        self.refusals = self.refusals.saturating_add(1);
        // Never earlier than Azure says; up to a quarter later. Its bucket is empty, whatever we thought of it,
        // and has one request in it by then.
        let wait = wait + wait.mul_f64(0.25 * jitter);
        self.level = self.level.min(1.0 - wait.as_secs_f64() * self.size.per_second);
        let until = after(now, wait);
        self.closed_until = self.closed_until.max(Some(until));
    }
}

/// How long until then; `None` if that is past, or so far off that the clock must have been set back.
fn wait_until(until: Timestamp, now: Timestamp) -> Option<Duration> {
    let wait = Duration::try_from(until.duration_since(now)).ok()?;
    (!wait.is_zero() && wait <= LONGEST * 2).then_some(wait)
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// FNV-1a: the same on every replica, version and machine.
fn jitter_of(cluster: &str) -> f64 {
    let hash = cluster.to_ascii_lowercase().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of the last byte are poorly mixed: fold the halves.
    f64::from((hash ^ (hash >> 32)) as u32) / f64::from(u32::MAX)
}
