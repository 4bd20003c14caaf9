//! Whether as much was ready as `spec.objective` asks for, and caution where it was not.
//!
//! What is wanted and what of it is ready is measured as time: what one look sees is so until the next. The error budget
//! is what may be missing over the window; while it burns more than twice as fast as it may, the SpotPool becomes cautious
//! step by step, and goes back step by step once it hardly burns.

mod caution;
mod history;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::spot_pool::{
    BurnRate, Drains, Objective, ObjectiveMode, ObjectiveStatus, Role, SpotPoolSpec, UnitSeconds,
};
use spotpool_crds::{Duration, Reason};

use crate::draft::Draft;
use crate::snapshot::Snapshot;
use crate::tally::Tally;
use crate::time::later_by;
use caution::{Caution, Signs};
use history::{Amount, History, Level, time};

/// What was never there counts as missing after this: until then a machine that was asked for may well come.
const GROWTH: SignedDuration = SignedDuration::from_mins(10);
/// Figures that move are taken anew at the ends of stretches of so many seconds.
const MOVES: i64 = 300;
/// What holds is written after so many seconds at the latest: a longer silence is no life of an operator's.
const WRITTEN: i64 = 6 * 3600;
/// While something is missing, it is looked at so often whether that is too much; and for the first time after this.
const WATCHED: SignedDuration = SignedDuration::from_secs(15);
/// One step of caution is this share of what is wanted, in percent.
const STEP: u32 = 10;

/// Of these windows burn rates are told.
pub const WINDOW_NAMES: [&str; 7] = ["5m", "30m", "1h", "2h", "6h", "1d", "3d"];
const WINDOWS: [(&str, i64); 7] = {
    let [m5, m30, h1, h2, h6, d1, d3] = WINDOW_NAMES;
    [(m5, 300), (m30, 1800), (h1, 3600), (h2, 7200), (h6, 21_600), (d1, 86_400), (d3, 259_200)]
};

/// Pairs of windows, long and short: it burns, or is calm, where both say so.
const QUICK: [i64; 2] = [3600, 300];
const SLOW: [i64; 2] = [6 * 3600, 1800];

/// What can be told of an objective now, also where status says what it was some minutes ago.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Burn rates by window.
    pub burn_rates: Vec<(&'static str, f64)>,
    /// What is left of the error budget, as a share of it.
    pub budget_left: Option<f64>,
    /// Unit-seconds since the beginning.
    pub unit_seconds: UnitSeconds,
    /// Steps of caution.
    pub caution: u32,
}

/// How much may be missing, in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowed(u32);

impl Allowed {
    /// Beside an availability in percent.
    fn beside(availability: &str) -> Option<Self> {
        let (whole, part) = availability.split_once('.').unwrap_or((availability, ""));
        let is_number = |text: &str| text.len() <= 2 && text.bytes().all(|it| it.is_ascii_digit());
        if whole.is_empty() || !is_number(whole) || !is_number(part) {
            return None;
        }
        let hundredths: u32 = format!("{whole}{part:0<2}").parse().ok()?;
        (5000..10_000).contains(&hundredths).then(|| Self(10_000 - hundredths))
    }

    /// Whether more than `times` what is allowed was missing.
    fn is_exceeded(self, amount: Amount, times: u32) -> bool {
        u128::from(amount.missing) * 10_000
            > u128::from(times) * u128::from(self.0) * u128::from(amount.wanted)
    }

    /// How many times as fast as it may the budget burns, in hundredths.
    fn burn_rate(self, amount: Amount) -> u64 {
        let allowed = u128::from(self.0) * u128::from(amount.wanted);
        let rate = (u128::from(amount.missing) * 10_000 * 100).checked_div(allowed).unwrap_or_default();
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// What is left of the budget: in unit-seconds, and in percent of it, rounded down.
    fn left(self, amount: Amount) -> Option<(i64, i32)> {
        let budget = i128::from(amount.wanted) * i128::from(self.0);
        let left = budget - i128::from(amount.missing) * 10_000;
        let percent = (left * 100).checked_div_euclid(budget)?.max(-1_000_000);
        Some((left.div_euclid(10_000) as i64, percent as i32))
    }
}

/// What is there is measured against what has been there once, and against growth once that has waited for long enough.
fn level(snapshot: &Snapshot, tally: &Tally, now: Timestamp, draft: &mut Draft) -> Level {
    let memory = &snapshot.memory;
    let grown = memory.growth_since.map(|since| later_by(since, GROWTH));
    let wanted = match grown {
        Some(at) if at <= now => tally.wanted,
        _ => memory.established.max(tally.ready()).min(tally.wanted),
    };
    if let Some(at) = grown.filter(|at| *at > now) {
        draft.wake_at(at);
    }
    let ready = tally.serving().min(wanted);
    Level { wanted, ready, outage: ready < wanted && azure_has_nothing(snapshot) }
}

/// Whether nobody could do better: Azure does not answer, or has no capacity anywhere, on-demand included. Where nothing
/// on demand may be bought that is a choice, and no outage.
fn azure_has_nothing(snapshot: &Snapshot) -> bool {
    let mut usable = snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok());
    let has_on_demand = snapshot.agent_pools.iter().any(|pool| pool.role == Ok(Role::OnDemand));
    snapshot.azure_silent || (has_on_demand && usable.all(|pool| pool.refused_at.is_some()))
}

fn signs(history: &History, allowed: Allowed) -> Signs {
    let all = |windows: [i64; 2], times| {
        windows.into_iter().all(|length| allowed.is_exceeded(history.over(length), times))
    };
    let is_calm = |length: i64| {
        let amount = history.over(length);
        amount.missing == 0 || allowed.burn_rate(amount) < 100
    };
    Signs { burning: all(QUICK, 2) || all(SLOW, 2), calm: SLOW.into_iter().all(is_calm) }
}

/// Measures, decides how cautious to be, and makes `tally` so.
pub(crate) fn settle(
    spec: &SpotPoolSpec,
    snapshot: &Snapshot,
    tally: &mut Tally,
    now: Timestamp,
    draft: &mut Draft,
) -> Option<Told> {
    let Some(objective) = &spec.objective else {
        draft.memory.objective = None;
        return None;
    };
    // The schema takes no other; what is remembered stays until it can be read again.
    let allowed = Allowed::beside(&objective.availability)?;
    let before = draft.memory.objective.take();
    let level = level(snapshot, tally, now, draft);
    let second = now.as_second();
    let known = before.as_ref().and_then(|before| History::read(&before.measured, objective.window));
    let was = known.as_ref().map(|history| history.level);
    let mut history = known.map_or_else(|| History::new(second, objective.window), |it| it.until(second));
    history.level = level;

    let signs = signs(&history, allowed);
    let was_cautious = before.as_ref().map(caution_of).unwrap_or_default();
    let caution = was_cautious.next(signs, second);
    let was_short = before.as_ref().and_then(|before| before.short_since.as_ref()).map(|since| since.0);
    let is_short = level.missing() > 0;
    let replaced_after = was_short.filter(|_| !is_short).map(|since| {
        let after = now.duration_since(since);
        SignedDuration::from_secs(after.as_secs().max(0))
    });

    let mut current = figures(&history, allowed, caution, objective);
    let short_since = was_short.map_or(second, |since| since.as_second().min(second));
    current.short_since = is_short.then(|| time(short_since).into());
    current.last_replacement = match replaced_after {
        Some(after) => Some(Duration::from_secs(after.as_secs().unsigned_abs())),
        None => before.as_ref().and_then(|before| before.last_replacement),
    };
    // Counted by whoever sees them end; carried on here.
    current.drains = before.as_ref().map(|before| before.drains).unwrap_or_default();
    let told = told(&history, allowed, caution);
    let next = match before {
        Some(before)
            if was == Some(level)
                && was_cautious == caution
                && before.measured.window == objective.window
                && !is_worth_writing(&before, &current) =>
        {
            before
        }
        _ => current,
    };
    wake(&next, caution, signs, is_short, now, draft);
    be_cautious(spec, caution, &next, tally, draft);
    draft.memory.objective = Some(next);
    Some(told)
}

/// Whether status must be written although nothing has changed but the time.
fn is_worth_writing(before: &ObjectiveStatus, current: &ObjectiveStatus) -> bool {
    let (then, now) = (before.as_of.0.as_second(), current.as_of.0.as_second());
    let measured = now - before.measured.at.0.as_second();
    let same = ObjectiveStatus {
        as_of: current.as_of.clone(),
        measured: current.measured.clone(),
        ..before.clone()
    };
    let is_short = before.short_since.is_some();
    let stretch = |second: i64| second.div_euclid(MOVES);
    // A clock that went back, and what has held for long.
    let is_first = before.availability.is_empty() && !current.availability.is_empty();
    !(0..WRITTEN).contains(&measured)
        || is_first
        || (stretch(then) != stretch(now) && (is_short || same != *current))
}

fn caution_of(status: &ObjectiveStatus) -> Caution {
    Caution {
        steps: status.caution.clamp(0, caution::MOST as i32) as u32,
        changed: status.caution_changed.as_ref().map(|at| at.0.as_second()),
        calm_since: status.calm_since.as_ref().map(|since| since.0.as_second()),
    }
}

/// What there is to see of it.
fn figures(history: &History, allowed: Allowed, caution: Caution, objective: &Objective) -> ObjectiveStatus {
    let availability = &objective.availability;
    let over = history.over_window();
    let is_measured = history.totals.wanted > 0 && over.wanted > 0;
    let thousandths = u128::from(over.wanted.saturating_sub(over.missing)) * 100_000;
    let reached = thousandths.checked_div(u128::from(over.wanted)).filter(|_| is_measured);
    let reached = reached.map(|it| format!("{}.{:03}", it / 1000, it % 1000)).unwrap_or_default();
    let (left, percent) = allowed.left(over).unwrap_or((0, 100));
    let mode = if caution.steps > 0 { ObjectiveMode::Cautious } else { ObjectiveMode::Normal };
    let cautious = match caution.steps {
        0 => "Normal".to_owned(),
        steps => format!("Cautious {steps}/{}", caution::MOST),
    };
    let summary = match reached.as_str() {
        "" => format!("unknown of {availability}%, {cautious}"),
        reached => format!("{reached}% of {availability}%, {cautious}"),
    };
    let rate = |(window, length): (&str, i64)| {
        let rate = allowed.burn_rate(history.over(length));
        BurnRate { window: window.to_owned(), rate: format!("{}.{:02}", rate / 100, rate % 100) }
    };
    let (since, until) = history.span();
    ObjectiveStatus {
        summary,
        mode,
        caution: caution.steps as i32,
        caution_changed: caution.changed.map(|at| time(at).into()),
        calm_since: caution.calm_since.map(|since| time(since).into()),
        availability: reached,
        budget_left_percent: percent,
        budget_left_unit_minutes: left.div_euclid(60),
        burn_rates: if since == until { Vec::new() } else { WINDOWS.into_iter().map(rate).collect() },
        as_of: time(until).into(),
        short_since: None,
        last_replacement: None,
        drains: Drains::default(),
        measured: history.write(objective.window),
    }
}

fn told(history: &History, allowed: Allowed, caution: Caution) -> Told {
    let rate = |(window, length)| (window, allowed.burn_rate(history.over(length)) as f64 / 100.0);
    let over = history.over_window();
    let budget = over.wanted as f64 * f64::from(allowed.0) / 10_000.0;
    Told {
        burn_rates: WINDOWS.into_iter().map(rate).collect(),
        budget_left: (budget > 0.0).then(|| 1.0 - over.missing as f64 / budget),
        unit_seconds: history.totals,
        caution: caution.steps,
    }
}

/// When time alone changes something.
fn wake(
    status: &ObjectiveStatus,
    caution: Caution,
    signs: Signs,
    is_short: bool,
    now: Timestamp,
    draft: &mut Draft,
) {
    let second = now.as_second();
    let moves = is_short || caution.steps > 0 || status.burn_rates.iter().any(|it| it.rate != "0.00");
    if moves {
        draft.wake_at(time((second.div_euclid(MOVES) + 1) * MOVES));
    }
    let is_unknown = status.availability.is_empty() && status.measured.wanted > 0;
    if is_unknown || (is_short && caution.steps == 0) {
        draft.wake_at(later_by(now, WATCHED));
    }
    let up = caution.up_at().filter(|_| signs.burning && caution.steps < caution::MOST);
    for at in [up, caution.down_at()].into_iter().flatten() {
        draft.wake_at(time(at));
    }
}

/// More on demand, in the place of as much spot once it is ready; one step more on standby; on-demand stays.
fn be_cautious(
    spec: &SpotPoolSpec,
    caution: Caution,
    status: &ObjectiveStatus,
    tally: &mut Tally,
    draft: &mut Draft,
) {
    if caution.steps == 0 {
        return;
    }
    let step = (tally.wanted * STEP).div_ceil(100);
    let most = tally.wanted.saturating_sub(tally.base);
    let on_demand = if spec.fallback.is_some() { (step * caution.steps).min(most) } else { 0 };
    // The first step comes on top. Those after it take the place of spot, once they are ready.
    let stands_in = on_demand.min(tally.on_demand_ready.saturating_sub(tally.base)).saturating_sub(step);
    tally.cautious = on_demand;
    tally.keeps_on_demand = true;
    tally.standby += step;
    tally.spot_target = (tally.spot_target + step).saturating_sub(stands_in);

    let rates: Vec<String> = [QUICK, SLOW]
        .into_iter()
        .flatten()
        .filter_map(|length| {
            let (window, _) = WINDOWS.into_iter().find(|(_, seconds)| *seconds == length)?;
            let rate = status.burn_rates.iter().find(|it| it.window == window)?;
            Some(format!("{} over {window}", rate.rate))
        })
        .collect();
    let wish = match &spec.fallback {
        Some(_) => format!("{on_demand} units on demand beyond the base"),
        None => "no on-demand, because spec.fallback is not set".to_owned(),
    };
    let ends = match caution.down_at() {
        Some(at) => format!("; calm, one step less from {:.0}", time(at)),
        None => String::new(),
    };
    let message = format!(
        "step {} of {}, burn rates {}: {wish}, {step} more on standby, on-demand is not given back{ends}",
        caution.steps,
        caution::MOST,
        rates.join(", "),
    );
    draft.step(Reason::Cautious, None, message);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;

    #[test]
    fn an_availability_is_read_to_the_hundredth_of_a_percent_and_nonsense_is_not() {
        for (text, allowed) in [("99.5", 50), ("99.99", 1), ("50", 5000), ("99", 100), ("95.05", 495)] {
            assert_eq!(Allowed::beside(text), Some(Allowed(allowed)), "{text}");
        }
        for text in ["", "49.99", "100", "99.999", "99,5", "-1", "+99", "99.-1", ".5", "nan", "1e2"] {
            assert_eq!(Allowed::beside(text), None, "{text}");
        }
    }

    /// By hand: rate = missing ÷ wanted ÷ (1 − objective); left = (1 − objective) × wanted − missing.
    #[test]
    fn burn_rates_and_budgets_are_those_of_the_hand_worked_table() {
        for (objective, wanted, missing, rate, exceeds_2, left) in [
            // 10 units for an hour, 1 of them missing for 3 minutes: 180 ÷ 36000 = 0.5 %.
            ("99.5", 36_000, 180, 100, false, Some((0, 0))),
            ("99.5", 36_000, 360, 200, false, Some((-180, -100))),
            ("99.5", 36_000, 361, 200, true, Some((-181, -101))),
            ("99.5", 36_000, 0, 0, false, Some((180, 100))),
            // The factor of a page: 2 % of a 30 days' budget in an hour. 14.4 × 0.1 % of 36000 is 518.4.
            ("99.9", 36_000, 519, 1441, true, Some((-483, -1342))),
            // 30 days of 8 units: 20 736 000; a budget of 103 680. All 8 missing for an hour are 28 800.
            ("99.5", 20_736_000, 28_800, 27, false, Some((74_880, 72))),
            ("99.99", 20_736_000, 28_800, 1388, true, Some((-26_727, -1289))),
            // More than 2 is never reached where half may be missing.
            ("50", 1000, 1000, 200, false, Some((-500, -100))),
            ("99.5", 0, 0, 0, false, None),
        ] {
            let (allowed, amount) = (Allowed::beside(objective).unwrap(), Amount { wanted, missing });
            let what = format!("{missing} of {wanted} at {objective}");
            assert_eq!(allowed.burn_rate(amount), rate, "{what}");
            assert_eq!(allowed.is_exceeded(amount, 2), exceeds_2, "{what}");
            assert_eq!(allowed.left(amount), left, "{what}");
        }
    }
}
