//! Faults at every point of a course of events: what they are, which there are for a course, and how one is told again.
//!
//! [`simulated`] runs the whole operator in one process and in simulated time, between an apiserver in memory and the
//! simulator of Azure.

pub mod apiserver;
pub mod between;
pub mod courses;
pub mod flow;
pub mod operator;
pub mod simulated;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error};
use jiff::SignedDuration;
use strum::{Display, EnumIter, EnumString, IntoEnumIterator};

use crate::simulation::Dice;
use courses::Course;

/// What goes wrong. All but the last four happen at a write, these at an event of the watch of Nodes.
#[derive(Clone, Copy, Debug, Display, EnumIter, EnumString, PartialEq, Eq, PartialOrd, Ord)]
#[strum(serialize_all = "kebab-case")]
pub enum Fault {
    /// The operator dies and the write is never sent on.
    KillBefore,
    /// The write is carried out, and the operator dies before it hears of it.
    KillAfter,
    /// The same, and for a minute its successor is shown lists and watches as they were before it all began.
    StaleAfterKill,
    /// The operator dies, and the write is carried out [`ON_ITS_WAY`] later, under its successor.
    KillOnItsWay,
    /// The connection breaks before the write arrives.
    LoseRequest,
    /// The write is carried out, and the connection breaks.
    LoseAnswer,
    /// The write is carried out, and no answer comes.
    Timeout,
    /// No answer comes, and the write is carried out after its sender has given up.
    LandsLate,
    /// 409, of something between.
    Conflict,
    /// 429 with `Retry-After`, of something between.
    Throttle,
    /// 500, of something between.
    ServerError,
    /// Whoever is written to refuses every write for [`OUTAGE`], with 409.
    Refuse,
    /// Whoever is written to is away for [`OUTAGE`], watches included.
    Outage,
    /// The operator's clock jumps ahead by [`AHEAD`].
    ClockAhead,
    /// The operator's clock falls back by [`BACK`].
    ClockBack,
    /// The event is never told of, and a minute later the watch begins anew.
    Hide,
    /// This event and all later ones are told of a minute late.
    Stall,
    /// The watch is told that its version is too old.
    Expire,
    /// The connection breaks in the middle of the event.
    Disconnect,
}

/// How long whoever is written to is away, or refuses.
pub const OUTAGE: Duration = Duration::from_secs(10);
/// How long a write is on its way whose sender has died.
pub const ON_ITS_WAY: Duration = Duration::from_secs(25);
/// How late a stalled watch is, how long an event stays hidden, and how long a successor is shown old lists.
pub const STALE: Duration = Duration::from_mins(1);

/// Beyond some minutes, a machine that was asked for a moment ago counts as one that never came.
pub const AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// The operator waits as much longer for what it has timed.
pub const BACK: SignedDuration = SignedDuration::from_hours(1);

impl Fault {
    /// Those that happen at a write.
    pub fn at_writes() -> impl Iterator<Item = Self> {
        Self::iter().filter(|fault| !fault.is_of_watch())
    }

    /// Those that happen at an event of the watch of Nodes.
    pub fn of_watch() -> impl Iterator<Item = Self> {
        Self::iter().filter(|fault| fault.is_of_watch())
    }

    /// Whether the operator dies of it, and nothing else goes wrong.
    pub fn is_crash(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter)
    }

    /// Whether it happens at an event of the watch of Nodes.
    pub fn is_of_watch(self) -> bool {
        matches!(self, Self::Hide | Self::Stall | Self::Expire | Self::Disconnect)
    }
}

/// One fault at one point of one course: `eviction/kill-after/3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plan {
    /// What happens meanwhile.
    pub course: Course,
    /// What goes wrong.
    pub fault: Fault,
    /// At which write, or event; 1 is the first.
    pub at: usize,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.course, self.fault, self.at)
    }
}

impl FromStr for Plan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let plan = || {
            let mut parts = text.split('/');
            let (course, fault, at) = (parts.next()?, parts.next()?, parts.next()?);
            let end = parts.next();
            let plan =
                Self { course: course.parse().ok()?, fault: fault.parse().ok()?, at: at.parse().ok()? };
            (end.is_none() && plan.at > 0).then_some(plan)
        };
        plan().with_context(|| {
            let courses: Vec<String> = Course::iter().map(|it| it.to_string()).collect();
            let faults: Vec<String> = Fault::iter().map(|it| it.to_string()).collect();
            let (courses, faults) = (courses.join(", "), faults.join(", "));
            format!("{text:?} is no plan: write COURSE/FAULT/NUMBER, with a course of {courses} and a fault of {faults}")
        })
    }
}

/// So many of `plans`, chosen by `seed`, in their order.
pub fn sample(mut plans: Vec<Plan>, seed: u64, many: usize) -> Vec<Plan> {
    let mut dice = Dice::new(seed);
    while plans.len() > many {
        let index = dice.below(plans.len() as u64) as usize;
        plans.remove(index);
    }
    plans
}

/// What is asked for in the environment; without it, every test takes a sample of its own.
pub struct Wanted {
    /// `SPOTPOOL_FAULT_PLAN`: this one alone.
    pub plan: Option<Plan>,
    /// `SPOTPOOL_FAULT_PLANS`: `all`, `kill`, or what their names begin with.
    pub plans: Option<String>,
    /// `SPOTPOOL_FAULT_SEED`: of samples.
    pub seed: u64,
}

impl Wanted {
    /// As the environment has it.
    pub fn read() -> Result<Self, Error> {
        let plan = std::env::var("SPOTPOOL_FAULT_PLAN").ok();
        let seed = std::env::var("SPOTPOOL_FAULT_SEED").ok();
        Ok(Self {
            plan: plan.map(|plan| plan.parse()).transpose()?,
            plans: std::env::var("SPOTPOOL_FAULT_PLANS").ok(),
            seed: seed.map_or(Ok(1), |seed| seed.parse()).context("SPOTPOOL_FAULT_SEED is no number")?,
        })
    }

    /// Those of `all` that are asked for, if any are.
    pub fn of(&self, all: &[Plan]) -> Option<Vec<Plan>> {
        if let Some(plan) = self.plan {
            return Some(vec![plan]);
        }
        let word = self.plans.as_deref()?;
        let is_wanted = |plan: &&Plan| match word {
            "all" => true,
            "kill" => plan.fault.is_crash(),
            word => plan.to_string().starts_with(word),
        };
        Some(all.iter().filter(is_wanted).copied().collect())
    }
}
