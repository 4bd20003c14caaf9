//! Keeps our requests below Azure's limits, which are token buckets, some of them shared with others.
//!
//! | Azure's bucket | size, refill | shared with | ours |
//! | --- | --- | --- | --- |
//! | PUT of one agent pool | 20, 1 a minute | nobody | 20, 1 a minute; the last 5 are for emergencies |
//! | everything else on agent pools | 60, 1 a second | the subscription's clusters | 20, 1 in 4 s |
//! | operation status | 200, 2 a second | the subscription's clusters | 60, 1 a second |
//!
//! The shares allow for two clusters in trouble for any time beside 38 quiet ones: a quiet operator lists 40
//! times an hour, so 40 of them need less than half of the shared bucket. When more are in trouble, Azure's own
//! word has to help: a 429 closes the bucket for the time that it names, and a bit longer, differently for each
//! cluster. A notice costs no read, and writes have a bucket for each agent pool.
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
    /// GET of a further page of them: leaves some to lists that begin.
    Page,
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
/// What further pages leave to lists that begin: of a large agent pool they take minutes.
const LEFT_TO_LISTS: f64 = 2.0;
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
            Kind::Page => LEFT_TO_DELETES + LEFT_TO_LISTS,
            Kind::Put(_, Urgency::Routine) => f64::from(RESERVE),
            Kind::Put(_, Urgency::Emergency) | Kind::Delete | Kind::Status => 0.0,
        };
        if matches!(kind, Kind::Read | Kind::Page)
            && let Some(wait) = self.paused_until.and_then(|until| wait_until(until, now))
        {
            return Err(wait);
        }
        self.bucket(kind).take(keep, now)
    }

    /// Azure refused with 429; `retry_after` is its word on how long.
    pub fn refused(&mut self, kind: Kind<'_>, retry_after: Option<Duration>, now: Timestamp) {
        let jitter = self.jitter;
        (self.unanswered, self.paused_until) = (0, None);
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
        // What has come back of the next one is kept as time, or frequent restarts would starve the bucket.
        let part = bucket.level.max(0.0).fract() / bucket.size.per_second;
        let at = now.checked_sub(SignedDuration::try_from_secs_f64(part).unwrap_or_default());
        WriteBudget { left: bucket.level as u32, at: at.unwrap_or(now) }
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
            Kind::Read | Kind::Page | Kind::Delete => &mut self.shared,
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
    // Names differ in their last bytes, which FNV hardly mixes into the high bits (murmur's finalizer does).
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    f64::from((mixed >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_nanosecond((1.8e18 + seconds * 1e9) as i128).unwrap()
    }

    const ROUTINE: Kind<'_> = Kind::Put("spota", Urgency::Routine);
    const EMERGENCY: Kind<'_> = Kind::Put("spota", Urgency::Emergency);

    fn full() -> Throttle {
        let mut throttle = Throttle::new("c");
        throttle.restore("spota", WriteBudget { left: 20, at: at(0.0) }, at(0.0));
        throttle
    }

    /// Azure's bucket, as documented.
    struct Azure {
        level: f64,
        most: f64,
        per_second: f64,
        at: f64,
    }

    impl Azure {
        fn take(&mut self, now: f64) -> bool {
            self.level = (self.level + (now - self.at) * self.per_second).min(self.most);
            self.at = now;
            let enough = self.level >= 1.0 - 1e-6;
            if enough {
                self.level -= 1.0;
            }
            enough
        }
    }

    /// Without the reserve, an hour of growth would leave an eviction without a write.
    #[test]
    fn routine_writes_leave_five_for_emergencies() {
        let mut throttle = full();
        let taken = (0..30).filter(|_| throttle.take(ROUTINE, at(0.0)).is_ok()).count();
        assert_eq!(taken, 15);
        assert_eq!(throttle.write_budget("spota", at(0.0)).left, RESERVE);
        let wait = throttle.take(ROUTINE, at(0.0)).unwrap_err();
        assert!((Duration::from_secs(59)..=Duration::from_secs(61)).contains(&wait), "{wait:?}");
        let taken = (0..30).filter(|_| throttle.take(EMERGENCY, at(0.0)).is_ok()).count();
        assert_eq!(taken, 5);
        assert!(throttle.take(EMERGENCY, at(59.0)).is_err());
        assert!(throttle.take(EMERGENCY, at(60.5)).is_ok());
        assert!(
            throttle.take(Kind::Put("spotb", Urgency::Routine), at(0.0)).is_ok(),
            "each pool has its own"
        );
    }

    #[test]
    fn what_is_not_known_after_a_restart_is_assumed_to_be_little() {
        let mut throttle = Throttle::new("c");
        assert_eq!(throttle.write_budget("spota", at(0.0)).left, 10);
        assert_eq!((0..30).filter(|_| throttle.take(ROUTINE, at(0.0)).is_ok()).count(), 5);
        // A status that says more came too late to be believed.
        throttle.restore("spota", WriteBudget { left: 20, at: at(0.0) }, at(1.0));
        assert_eq!(throttle.write_budget("spota", at(1.0)).left, 5);
        // One from the future counts from now.
        let mut other = Throttle::new("c");
        other.restore("spota", WriteBudget { left: 3, at: at(9_999.0) }, at(0.0));
        assert_eq!(other.write_budget("spota", at(61.0)).left, 4);
        other.restore("spotb", WriteBudget { left: u32::MAX, at: at(0.0) }, at(0.0));
        assert_eq!(other.write_budget("spotb", at(1e6)).left, 20);
    }

    #[test]
    fn a_429_closes_its_bucket_as_long_as_azure_says_and_no_other() {
        for cluster in ["a", "b", "s/rg/c"] {
            let mut throttle = Throttle::new(cluster);
            throttle.refused(Kind::Read, Some(Duration::from_secs(40)), at(0.0));
            assert!(throttle.take(Kind::Read, at(39.9)).is_err());
            assert!(throttle.take(Kind::Delete, at(39.9)).is_err(), "the same bucket");
            assert!(throttle.take(Kind::Delete, at(51.0)).is_ok(), "one is there by then");
            assert!(throttle.take(Kind::Status, at(0.0)).is_ok());
            assert!(throttle.take(EMERGENCY, at(0.0)).is_ok());
            throttle.refused(EMERGENCY, Some(Duration::from_secs(20)), at(0.0));
            assert!(throttle.take(EMERGENCY, at(19.9)).is_err());
            assert!(
                throttle.take(EMERGENCY, at(25.1)).is_ok(),
                "an emergency needs no more than Azure's word"
            );
            assert!(throttle.take(ROUTINE, at(120.0)).is_err(), "the bucket was empty");
        }
    }

    #[test]
    fn a_429_without_a_word_waits_longer_each_time_and_ends() {
        let mut throttle = Throttle::new("c");
        let mut waits = Vec::new();
        let mut now = 0.0;
        for _ in 0..8 {
            throttle.refused(Kind::Status, None, at(now));
            let wait = throttle.take(Kind::Status, at(now)).unwrap_err().as_secs_f64();
            waits.push(wait);
            now += wait;
        }
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1] + 1e-6), "{waits:?}");
        assert!(waits[0] >= 15.0 && waits[7] <= 380.0, "{waits:?}");
        throttle.answered(Kind::Status, None, at(now));
        throttle.refused(Kind::Status, None, at(now));
        assert!(throttle.take(Kind::Status, at(now)).unwrap_err() < Duration::from_secs(20));
    }

    /// A hundred operators that come back in one second take the subscription down again.
    #[test]
    fn clusters_come_back_from_an_outage_at_different_times() {
        let mut back = std::collections::BTreeSet::new();
        for cluster in 0..40 {
            let mut throttle = Throttle::new(&format!("subscription/group/cluster-{cluster}"));
            throttle.unanswered(at(0.0));
            assert!(throttle.take(Kind::Read, at(0.0)).is_ok(), "one alone means nothing");
            for _ in 0..9 {
                throttle.unanswered(at(0.0));
            }
            assert!(throttle.take(EMERGENCY, at(0.0)).is_ok(), "writes are tried");
            let wait = throttle.take(Kind::Read, at(0.0)).unwrap_err();
            assert!((25..=95).contains(&wait.as_secs()), "{wait:?}");
            back.insert(wait.as_secs());
            throttle.answered(EMERGENCY, None, at(1.0));
            assert!(throttle.take(Kind::Read, at(1.0)).is_ok(), "an answer to anything ends it");
        }
        assert!(back.len() >= 20, "{back:?}");
        assert!((jitter_of("A/b") - jitter_of("a/B")).abs() < f64::EPSILON, "names have no case in Azure");
    }

    #[test]
    fn arms_own_count_lowers_ours() {
        let mut throttle = full();
        throttle.answered(EMERGENCY, Some(3), at(0.0));
        assert_eq!(throttle.write_budget("spota", at(0.0)).left, 3);
        assert!(throttle.take(ROUTINE, at(0.0)).is_err());
        throttle.answered(EMERGENCY, Some(199), at(0.0));
        assert_eq!(throttle.write_budget("spota", at(0.0)).left, 3, "never raises it");
    }

    #[test]
    fn a_clock_that_is_set_back_neither_fills_nor_blocks_for_ever() {
        let mut throttle = full();
        throttle.refused(EMERGENCY, Some(Duration::from_mins(1)), at(1e6));
        assert!(throttle.take(EMERGENCY, at(0.0)).is_err(), "empty");
        assert!(throttle.take(EMERGENCY, at(200.0)).is_ok(), "the closing time is a clock's ago");
    }

    proptest! {
        /// Whatever is asked for and whenever, with restarts in between: what we let through, Azure takes.
        #[test]
        fn azure_never_has_to_refuse_a_write(
            steps in prop::collection::vec((0.0_f64..200.0, any::<bool>(), 0_u8..20), 1..400),
            known in any::<bool>(),
        ) {
            let mut azure = Azure { level: 20.0, most: 20.0, per_second: 1.0 / 60.0, at: 0.0 };
            let mut throttle = if known { full() } else { Throttle::new("c") };
            let mut now = 0.0;
            for (pause, urgent, restart) in steps {
                // Mostly bursts.
                now += if pause > 100.0 { pause - 100.0 } else { 0.0 };
                if restart == 0 {
                    let saved = throttle.write_budget("spota", at(now));
                    now += pause;
                    throttle = Throttle::new("c");
                    throttle.restore("spota", saved, at(now));
                }
                let urgency = if urgent { Urgency::Emergency } else { Urgency::Routine };
                if throttle.take(Kind::Put("spota", urgency), at(now)).is_ok() {
                    prop_assert!(azure.take(now), "refused at {now}");
                    if urgency == Urgency::Routine {
                        prop_assert!(throttle.write_budget("spota", at(now)).left >= RESERVE);
                    }
                }
            }
        }

        /// Two clusters in trouble for however long, beside 38 quiet ones, stay inside the subscription's bucket.
        #[test]
        fn two_clusters_in_trouble_share_the_subscription(
            steps in prop::collection::vec((0.0_f64..8.0, 0_usize..2, any::<bool>()), 1..600),
        ) {
            let mut azure = Azure { level: 60.0, most: 60.0, per_second: 1.0 - 38.0 * 40.0 / 3600.0, at: 0.0 };
            let mut both = ["a", "b"].map(Throttle::new);
            let mut now = 0.0;
            for (pause, who, delete) in steps {
                now += if pause > 4.0 { pause - 4.0 } else { 0.0 };
                let kind = if delete { Kind::Delete } else { Kind::Read };
                if both[who].take(kind, at(now)).is_ok() {
                    prop_assert!(azure.take(now), "refused at {now}");
                }
            }
        }

        /// The wait that is named is enough, and not much too long.
        #[test]
        fn the_wait_is_right(taken in 0_u32..40, pause in 0.0_f64..50.0) {
            let mut throttle = full();
            for _ in 0..taken {
                let _ = throttle.take(ROUTINE, at(0.0));
            }
            if let Err(wait) = throttle.clone().take(ROUTINE, at(pause)) {
                let then = pause + wait.as_secs_f64();
                prop_assert!(throttle.clone().take(ROUTINE, at(then + 0.001)).is_ok());
                prop_assert!(throttle.take(ROUTINE, at(then - 0.1)).is_err());
            }
        }
    }
}
