//! What a person says by annotation: a pause, failback now, this node.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::spot_pool::SpotPoolSpec;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason};
use spotpool_crds::{Reason, names};

use crate::action::Action;
use crate::draft::{Draft, acts};
use crate::memory::Answered;
use crate::snapshot::{DrainView, Snapshot};
use crate::time::later;

/// What a person has said of voluntary moves, as it stands in the SpotPool's annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `spotpool.dev/failback-paused`.
    pub failback_paused: Option<String>,
    /// `spotpool.dev/requested-failback`.
    pub requested_failback: Option<String>,
    /// `spotpool.dev/budget-override`.
    pub budget_override: Option<String>,
}

/// Budgets are lifted for so long at most: whoever needs more changes the spec.
const LONGEST_OVERRIDE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Whether a person has lifted the budgets of fallback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Override {
    No,
    Until(Timestamp),
    /// Why not, in words.
    Ignored(String),
}

/// Whether a person has paused voluntary moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    No,
    Until(Timestamp),
    /// Until the annotation is changed; why, in words.
    Open(String),
}

impl Wishes {
    pub(crate) fn pause(&self, now: Timestamp) -> Pause {
        let key = names::FAILBACK_PAUSED_ANNOTATION;
        match self.failback_paused.as_deref().map(str::trim) {
            None | Some("false") => Pause::No,
            Some("true") => Pause::Open(format!("until annotation {key} is taken off")),
            Some(text) => match text.parse::<Timestamp>() {
                Ok(until) if until > now => Pause::Until(until),
                Ok(_) => Pause::No,
                // Whoever wrote it wanted a pause.
                Err(_) => Pause::Open(format!(
                    "because annotation {key} is `{}`: use `true` or a time such as 2026-01-31T06:00:00Z",
                    text.chars().take(40).collect::<String>()
                )),
            },
        }
    }

    pub(crate) fn budget_override(&self, now: Timestamp) -> Override {
        let Some(text) = self.budget_override.as_deref().map(str::trim) else { return Override::No };
        let shown: String = text.chars().take(40).collect();
        let latest = now.saturating_add(LONGEST_OVERRIDE).unwrap_or(Timestamp::MAX);
        let why = match text.parse::<Timestamp>() {
            Ok(until) if until <= now => return Override::No,
            Ok(until) if until <= latest => return Override::Until(until),
            Ok(_) => "name a time at most 7 days ahead",
            Err(_) => "name a time such as 2026-01-31T06:00:00Z",
        };
        let key = names::BUDGET_OVERRIDE_ANNOTATION;
        Override::Ignored(format!("annotation {key} is `{shown}` and lifts no budget: {why}"))
    }

    /// The wish for failback that has no answer yet.
    pub(crate) fn failback(&self, answered: Option<&Answered>) -> Option<&str> {
        let wish = self.requested_failback.as_deref()?;
        (answered.map(|answered| answered.value.as_str()) != Some(wish)).then_some(wish)
    }
}

/// Grants wishes for nodes to be drained, as many as may drain at a time, and shows the nodes as asked to leave: so that
/// the same plan asks for what replaces them.
pub(crate) fn grant_drains(
    spec: &SpotPoolSpec,
    snapshot: &Snapshot,
    now: Timestamp,
    draft: &mut Draft,
) -> Option<Snapshot> {
    let usable = || snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok()).flat_map(|pool| &pool.nodes);
    let mut wished: Vec<_> = usable().filter(|node| node.drain_wished && node.stays()).collect();
    if wished.is_empty() {
        return None;
    }
    wished.sort_by_key(|node| &node.name);
    let drains = |drain: &DrainView| drain.phase != Some(DrainPhase::Drained);
    let under_way =
        usable().filter(|node| node.noticed.is_none() && node.drain.as_ref().is_some_and(drains)).count();
    let most = spec.failback.max_concurrent.max(1) as usize;
    let granted = wished.len().min(most.saturating_sub(under_way));
    let not_after = later(now, spec.failback.drain_timeout);
    for node in &wished[..granted] {
        draft.step(
            Reason::ManualDrain,
            Some(&node.agent_pool),
            format!("drain {} and replace it, as a person asked", node.name),
        );
        draft.actions.push(Action::RequestDrain {
            node: node.name.clone(),
            reason: DrainReason::Manual,
            not_after,
        });
    }
    for node in &wished[granted..] {
        draft.step(
            Reason::ManualDrain,
            Some(&node.agent_pool),
            format!("{} waits for its drain: failback.maxConcurrent is {most}", node.name),
        );
    }
    if !acts(spec) {
        return None;
    }
    let granted: BTreeSet<String> = wished[..granted].iter().map(|node| node.name.clone()).collect();
    let mut after = snapshot.clone();
    for node in after.agent_pools.iter_mut().flat_map(|pool| &mut pool.nodes) {
        if granted.contains(&node.name) {
            let reason = DrainReason::Manual;
            node.drain = Some(DrainView { not_after, phase: None, reason, is_ours: true });
        }
    }
    Some(after)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;

    #[test]
    fn a_pause_is_true_or_a_time_and_nonsense_is_a_pause_that_says_so() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let pause =
            |text: &str| Wishes { failback_paused: Some(text.into()), ..Wishes::default() }.pause(now);
        assert_eq!(Wishes::default().pause(now), Pause::No);
        assert_eq!(pause("false"), Pause::No);
        assert!(matches!(pause("true"), Pause::Open(why) if why.contains("is taken off")));
        assert_eq!(pause("2026-01-01T13:00:00+01:00"), Pause::No, "that is now");
        assert_eq!(pause("2026-01-01T13:00:01+01:00"), Pause::Until("2026-01-01T12:00:01Z".parse().unwrap()));
        for nonsense in ["", "yes", "tomorrow", "2026-01-01", "1h"] {
            assert!(
                matches!(pause(nonsense), Pause::Open(why) if why.contains("use `true` or a time")),
                "{nonsense}"
            );
        }
    }

    #[test]
    fn budgets_are_lifted_until_a_time_within_a_week_and_by_nothing_else() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let lifted = |text: &str| {
            Wishes { budget_override: Some(text.into()), ..Wishes::default() }.budget_override(now)
        };
        assert_eq!(Wishes::default().budget_override(now), Override::No);
        assert_eq!(lifted("2026-01-01T12:00:00Z"), Override::No, "it is over");
        assert_eq!(lifted("2026-01-08T12:00:00Z"), Override::Until("2026-01-08T12:00:00Z".parse().unwrap()));
        for (wrong, wanted) in [
            ("2026-01-08T12:00:01Z", "at most 7 days ahead"),
            ("9999-01-01T00:00:00Z", "at most 7 days ahead"),
            ("true", "name a time such as"),
            ("", "name a time such as"),
            ("2h", "name a time such as"),
        ] {
            assert!(matches!(lifted(wrong), Override::Ignored(why) if why.contains(wanted)), "{wrong}");
        }
    }

    #[test]
    fn each_value_is_one_wish() {
        let wishes = Wishes { requested_failback: Some("b".into()), ..Wishes::default() };
        let answered = |value: &str| Answered { value: value.into(), answer: String::new() };
        assert_eq!(wishes.failback(None), Some("b"));
        assert_eq!(wishes.failback(Some(&answered("a"))), Some("b"));
        assert_eq!(wishes.failback(Some(&answered("b"))), None);
        assert_eq!(Wishes::default().failback(None), None);
    }
}
