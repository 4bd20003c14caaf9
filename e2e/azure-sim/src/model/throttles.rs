//! Token buckets: the limits of the AKS resource provider and of ARM's front door.
//!
//! A bucket is the moment at which it will be full again, so that it is exact and needs no timer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use jiff::{SignedDuration, Timestamp};

use super::Cloud;
use crate::api::BucketState;
use crate::refusal::Refusal;

/// Buckets of a subscription, shared by its managed clusters.
///
/// Give clones of one to several simulators, and their callers compete for it.
#[derive(Debug, Clone, Default)]
pub struct Subscription {
    buckets: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    everything_else: Bucket,
    operations: Bucket,
    arm_global: [Bucket; 3],
    /// When the controllers of clusters that nobody simulates make their next request.
    others_next: Option<Timestamp>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            everything_else: Bucket::new(60, SignedDuration::from_secs(1)),
            operations: Bucket::new(200, SignedDuration::from_millis(500)),
            // 15 times what one caller may do.
            arm_global: [
                Bucket::new(3750, SignedDuration::from_micros(2_667)),
                Bucket::new(3000, SignedDuration::from_micros(6_667)),
                Bucket::new(3000, SignedDuration::from_micros(6_667)),
            ],
            others_next: None,
        }
    }
}

/// Buckets of one cluster and its one caller.
#[derive(Debug, Clone)]
pub(super) struct Throttles {
    subscription: Subscription,
    puts: BTreeMap<String, Bucket>,
    /// Reads, writes, deletes.
    arm: [Bucket; 3],
}

impl Default for Throttles {
    fn default() -> Self {
        Self {
            subscription: Subscription::default(),
            puts: BTreeMap::new(),
            arm: [
                Bucket::new(250, SignedDuration::from_millis(40)),
                Bucket::new(200, SignedDuration::from_millis(100)),
                Bucket::new(200, SignedDuration::from_millis(100)),
            ],
        }
    }
}

#[derive(Debug, Clone)]
struct Bucket {
    size: u32,
    /// One token comes back in this time.
    refill: SignedDuration,
    full_at: Option<Timestamp>,
    lowest: u32,
    taken: u64,
    exceeded: u64,
}

impl Bucket {
    fn new(size: u32, refill: SignedDuration) -> Self {
        Self { size, refill, full_at: None, lowest: size, taken: 0, exceeded: 0 }
    }

    /// How long until it would be full if nobody asked.
    fn debt(&self, now: Timestamp) -> SignedDuration {
        self.full_at.map_or(SignedDuration::ZERO, |at| at.duration_since(now).max(SignedDuration::ZERO))
    }

    fn level(&self, now: Timestamp) -> u32 {
        let (debt, refill) = (self.debt(now).as_nanos(), self.refill.as_nanos().max(1));
        self.size.saturating_sub(u32::try_from((debt + refill - 1) / refill).unwrap_or(u32::MAX))
    }

    /// Takes a token, or says how long until there is one.
    fn take(&mut self, now: Timestamp) -> Result<(), SignedDuration> {
        let owed = self.debt(now) + self.refill;
        let most = self.refill * i32::try_from(self.size).unwrap_or(i32::MAX);
        if owed > most {
            self.exceeded += 1;
            return Err(owed - most);
        }
        self.full_at = now.checked_add(owed).ok();
        self.taken += 1;
        self.lowest = self.lowest.min(self.level(now));
        Ok(())
    }

    fn state(&self, name: String, now: Timestamp) -> BucketState {
        BucketState {
            name,
            size: self.size,
            level: self.level(now),
            lowest: self.lowest,
            taken: self.taken,
            exceeded: self.exceeded,
        }
    }
}

/// Which of the resource provider's limits a request counts against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limit {
    /// PUT of this agent pool.
    Put(String),
    /// Everything else about agent pools, by the name of its handler.
    Shared(&'static str),
    /// The status of operations.
    Operations,
    /// Only the front door's.
    FrontDoor,
}

/// Whether a request may be handled, and what its answer says about limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// Rate limit headers.
    pub headers: Vec<(&'static str, String)>,
    /// Why it may not, and `Retry-After` in seconds.
    pub refused: Option<(Refusal, u64)>,
}

/// Reads, writes and deletes have limits of their own: place, name, headers.
fn front_door(method: &Method) -> (usize, &'static str, &'static str, &'static str) {
    match *method {
        Method::GET | Method::HEAD => (
            0,
            "read",
            "x-ms-ratelimit-remaining-subscription-reads",
            "x-ms-ratelimit-remaining-subscription-global-reads",
        ),
        Method::DELETE => (
            2,
            "delete",
            "x-ms-ratelimit-remaining-subscription-deletes",
            "x-ms-ratelimit-remaining-subscription-global-deletes",
        ),
        _ => (
            1,
            "write",
            "x-ms-ratelimit-remaining-subscription-writes",
            "x-ms-ratelimit-remaining-subscription-global-writes",
        ),
    }
}

fn whole_seconds(wait: SignedDuration) -> u64 {
    u64::try_from((wait.as_millis() + 999) / 1000).unwrap_or(0).max(1)
}

impl Subscription {
    fn with<R>(&self, work: impl FnOnce(&mut Shared) -> R) -> R {
        work(&mut self.buckets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    /// Takes what the controllers of other clusters have taken until now, one request at a time.
    fn others(&mut self, per_minute: u32, now: Timestamp) {
        if per_minute == 0 {
            self.others_next = None;
            return;
        }
        let every = SignedDuration::from_secs(60) / i32::try_from(per_minute).unwrap_or(i32::MAX);
        let mut next = self.others_next.unwrap_or(now);
        while next <= now {
            // Theirs to see to, if there is none.
            let _ = self.everything_else.take(next);
            let Ok(later) = next.checked_add(every) else { break };
            next = later;
        }
        self.others_next = Some(next);
    }
}

impl Cloud {
    /// Puts this cluster in a subscription, whose buckets it shares with the others there.
    #[must_use]
    pub fn in_subscription(mut self, subscription: Subscription) -> Self {
        self.throttles.subscription = subscription;
        self
    }

    /// Counts a request against its limits; refuses it if one is exceeded and throttling is on.
    pub fn admit(&mut self, method: &Method, limit: &Limit, now: Timestamp) -> Admission {
        let switches = self.settings.switches.clone();
        let (place, verb, left, left_global) = front_door(method);
        let subscription_id = self.identity.subscription.clone();
        let throttles = &mut self.throttles;
        let mine = throttles.arm[place].take(now).err();
        let (all, global_level) = throttles.subscription.with(|shared| {
            shared.others(switches.others_per_minute, now);
            (shared.arm_global[place].take(now).err(), shared.arm_global[place].level(now))
        });
        let headers = vec![
            (left, throttles.arm[place].level(now).to_string()),
            (left_global, global_level.to_string()),
        ];
        let by_arm = mine.into_iter().chain(all).max().map(|wait| {
            let seconds = whole_seconds(wait);
            let refusal = Refusal::wrapped(
                429,
                "SubscriptionRequestsThrottled",
                format!(
                    "Number of '{verb}' requests for subscription '{subscription_id}' actor exceeded. Please try again after '{seconds}' seconds after additional tokens are available. Refer to https://aka.ms/arm-throttling for additional information."
                ),
            );
            (refusal, seconds)
        });
        let refused = by_arm.or_else(|| {
            let (handler, took) = match limit {
                Limit::Put(pool) => {
                    let minute = SignedDuration::from_mins(1);
                    let bucket =
                        throttles.puts.entry(pool.clone()).or_insert_with(|| Bucket::new(20, minute));
                    ("PutAgentPoolHandler", bucket.take(now))
                }
                Limit::Shared(handler) => {
                    (*handler, throttles.subscription.with(|shared| shared.everything_else.take(now)))
                }
                Limit::Operations => {
                    let took = throttles.subscription.with(|shared| shared.operations.take(now));
                    ("GetOperationStatusHandler", took)
                }
                Limit::FrontDoor => return None,
            };
            let seconds = whole_seconds(took.err()?);
            let refusal = Refusal::flat(
                429,
                "Throttled",
                format!(
                    "The {handler}.{method} request limit has been exceeded for SubID='{subscription_id}', please retry again in {seconds} seconds. For more information, please visit aka.ms/aks/throttling"
                ),
            );
            Some((refusal, seconds))
        });
        Admission { headers, refused: refused.filter(|_| switches.throttling) }
    }

    pub(super) fn buckets(&self, now: Timestamp) -> Vec<BucketState> {
        let throttles = &self.throttles;
        let mut states: Vec<BucketState> =
            throttles.puts.iter().map(|(pool, bucket)| bucket.state(format!("put/{pool}"), now)).collect();
        let names = ["Reads", "Writes", "Deletes"];
        states.extend(
            names.iter().zip(&throttles.arm).map(|(name, bucket)| bucket.state(format!("arm{name}"), now)),
        );
        let others = self.settings.switches.others_per_minute;
        throttles.subscription.with(|shared| {
            shared.others(others, now);
            states.push(shared.everything_else.state("shared".into(), now));
            states.push(shared.operations.state("operations".into(), now));
            states.extend(
                names
                    .iter()
                    .zip(&shared.arm_global)
                    .map(|(name, bucket)| bucket.state(format!("armGlobal{name}"), now)),
            );
        });
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Identity, Settings, Switches};
    use crate::model::later;
    use std::time::Duration;

    fn cloud(throttling: bool, subscription: Subscription) -> Cloud {
        let switches = Switches { throttling, ..Switches::default() };
        let settings = Settings { switches, ..Settings::default() };
        Cloud::new(Identity::default(), settings, false, 1).in_subscription(subscription)
    }

    fn start() -> Timestamp {
        "2026-08-01T00:00:00Z".parse().unwrap()
    }

    /// A controller sized for these figures must not meet others.
    #[test]
    fn each_limit_has_the_size_and_the_refill_that_azure_documents() {
        for (limit, method, size, refill, name) in [
            (Limit::Put("spota".into()), Method::PUT, 20_u32, Duration::from_mins(1), "put/spota"),
            (Limit::Shared("ListAgentPoolsHandler"), Method::GET, 60, Duration::from_secs(1), "shared"),
            (Limit::Operations, Method::GET, 200, Duration::from_millis(500), "operations"),
        ] {
            let (mut cloud, now) = (cloud(true, Subscription::default()), start());
            for taken in 0..size {
                assert_eq!(cloud.admit(&method, &limit, now).refused, None, "{name} after {taken}");
            }
            let (refusal, wait) = cloud.admit(&method, &limit, now).refused.unwrap();
            assert_eq!((refusal.status, refusal.code.as_str()), (429, "Throttled"));
            assert_eq!(wait, refill.as_secs().max(1));
            let said = format!("please retry again in {wait} seconds.");
            assert!(
                refusal.message.contains(&said) && refusal.message.contains("SubID='0000"),
                "{}",
                refusal.message
            );
            let before = later(now, refill.saturating_sub(Duration::from_millis(1)));
            assert!(cloud.admit(&method, &limit, before).refused.is_some());
            let then = later(now, refill);
            assert_eq!(cloud.admit(&method, &limit, then).refused, None);
            let state = cloud.buckets(then).into_iter().find(|bucket| bucket.name == name).unwrap();
            assert_eq!(
                (state.level, state.lowest, state.taken, state.exceeded),
                (0, 0, u64::from(size) + 1, 2)
            );
            let rested = cloud.buckets(later(now, Duration::from_hours(2)));
            assert!(rested.iter().all(|bucket| bucket.level == bucket.size));
        }
    }

    #[test]
    fn one_pool_does_not_use_up_the_writes_of_another_but_clusters_share_their_reads() {
        let (subscription, now) = (Subscription::default(), start());
        let mut one = cloud(true, subscription.clone());
        let mut other = cloud(true, subscription);
        for _ in 0..20 {
            one.admit(&Method::PUT, &Limit::Put("spota".into()), now);
        }
        assert!(one.admit(&Method::PUT, &Limit::Put("spota".into()), now).refused.is_some());
        assert!(one.admit(&Method::PUT, &Limit::Put("spotb".into()), now).refused.is_none());
        for _ in 0..60 {
            one.admit(&Method::GET, &Limit::Shared("ListAgentPoolsHandler"), now);
        }
        assert!(other.admit(&Method::GET, &Limit::Shared("ListAgentPoolsHandler"), now).refused.is_some());
        assert!(other.admit(&Method::GET, &Limit::Operations, now).refused.is_none());
    }

    #[test]
    fn callers_that_nobody_simulates_use_the_shared_bucket_too() {
        let (mut cloud, now) = (cloud(true, Subscription::default()), start());
        cloud.settings.switches.others_per_minute = 120;
        cloud.admit(&Method::GET, &Limit::Operations, now);
        let then = later(now, Duration::from_mins(2));
        // Two a second against a refill of one: the bucket has been empty for a while.
        assert!(cloud.admit(&Method::GET, &Limit::Shared("GetAgentPoolHandler"), then).refused.is_some());
        let shared = cloud.buckets(then).into_iter().find(|bucket| bucket.name == "shared").unwrap();
        assert!(shared.exceeded > 50, "{shared:?}");
    }

    #[test]
    fn answers_say_what_is_left_and_nobody_is_refused_when_throttling_is_off() {
        let (mut cloud, now) = (cloud(false, Subscription::default()), start());
        let first = cloud.admit(&Method::PUT, &Limit::Put("spota".into()), now);
        assert_eq!(
            first.headers,
            [
                ("x-ms-ratelimit-remaining-subscription-writes", "199".to_owned()),
                ("x-ms-ratelimit-remaining-subscription-global-writes", "2999".to_owned())
            ]
        );
        for _ in 0..400 {
            assert_eq!(cloud.admit(&Method::GET, &Limit::Shared("ListAgentPoolsHandler"), now).refused, None);
        }
        let exceeded =
            |name: &str| cloud.buckets(now).into_iter().find(|one| one.name == name).unwrap().exceeded;
        assert_eq!((exceeded("shared"), exceeded("armReads")), (190, 150), "but it is known");
    }

    #[test]
    fn the_front_door_has_limits_of_its_own() {
        let (mut cloud, now) = (cloud(true, Subscription::default()), start());
        for _ in 0..250 {
            assert_eq!(cloud.admit(&Method::GET, &Limit::FrontDoor, now).refused, None);
        }
        let (refusal, _) = cloud.admit(&Method::GET, &Limit::FrontDoor, now).refused.unwrap();
        assert_eq!(refusal.code, "SubscriptionRequestsThrottled");
        assert!(refusal.body()["error"]["message"].as_str().unwrap().contains("'read' requests"));
    }
}
