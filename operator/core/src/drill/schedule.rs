//! When a run begins.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spotpool_crds::Reason;
use spotpool_crds::drill::{DrillPhase, DrillRun, DrillSchedule, HourlyCosts, ReadyAt, UnitsReady};

use super::{Draft, SCHEDULE, TOO_LATE, choice, guard, short};

impl Draft<'_> {
    pub(super) fn begin_if_due(&mut self) {
        let due = match &self.spec.schedule {
            Some(_) => self.scheduled(),
            None => (self.status.ran_generation != self.snapshot.generation)
                .then(|| format!("{}-{}", short(&self.snapshot.uid), self.snapshot.generation)),
        };
        let Some(run) = due else { return };
        if let Some(other) = &self.snapshot.other {
            return self.wait(format!("waits for drill {other}: one runs at a time"));
        }
        if self.snapshot.pods.is_none() || self.snapshot.unready_budgets.is_none() {
            return self.wait("waits until pods and disruption budgets have been read".into());
        }
        self.remember_last();
        self.status.ran_generation = self.snapshot.generation;
        let choice = choice::choose(self.spec, self.snapshot);
        let run = DrillRun {
            id: run,
            method: self.spec.method,
            seed: short(&self.snapshot.uid),
            candidates: choice.candidates as i32,
            targets: choice.targets,
            ..DrillRun::default()
        };
        let mut refusals = guard::hindrances(self.spec, self.snapshot, &run.targets, self.now);
        refusals.extend(choice.refusal);
        refusals.extend(guard::refusals(self.spec, self.snapshot, &run.targets));
        let nodes = self.sentence(&run);
        if !refusals.is_empty() {
            self.status.run = Some(DrillRun { targets: Vec::new(), ..run });
            return self.end(DrillPhase::Refused, Reason::DrillRefused, refusals.join("; "));
        }
        if self.spec.dry_run {
            self.status.run = Some(run);
            let words = format!("would take {nodes}; dryRun: nothing is taken");
            return self.end(DrillPhase::Planned, Reason::DrillPlanned, words);
        }
        let ready = self.ready_units();
        let units = UnitsReady {
            wanted: self.snapshot.pool.as_ref().map_or(0, |pool| pool.wanted) as i32,
            before: ready as i32,
            lowest: ready as i32,
            now: ready as i32,
            since: Some(Time(self.now)),
            course: vec![ReadyAt { at: Time(self.now), ready: ready as i32 }],
            ..UnitsReady::default()
        };
        let hourly_cost = self.hourly().map(|(hourly, currency)| HourlyCosts {
            currency,
            before: hourly.to_string(),
            highest: hourly.to_string(),
            now: hourly.to_string(),
        });
        self.status.run = Some(DrillRun { started_at: Some(Time(self.now)), units, hourly_cost, ..run });
        let words = format!("takes {nodes}");
        self.moment(words.clone());
        self.tell(Reason::DrillStarted, words.clone());
        self.status.phase = Some(DrillPhase::Running);
        self.status.message = words;
        self.advance();
    }

    /// The run that is due by the schedule. Keeps `nextRunAt`.
    pub(super) fn scheduled(&mut self) -> Option<String> {
        let is_new = self.status.ran_generation != self.snapshot.generation;
        self.status.ran_generation = self.snapshot.generation;
        let schedule = self.spec.schedule.as_ref().filter(|schedule| !schedule.suspend);
        let Some(schedule) = schedule else {
            self.status.next_run_at = None;
            self.wait_for_schedule("its schedule is suspended".into());
            return None;
        };
        let next = crate::next_time(SCHEDULE, &schedule.cron, &schedule.time_zone, self.now);
        let next = match next {
            Ok(next) => next,
            Err(what_to_change) => {
                self.status.next_run_at = None;
                if self.status.message != what_to_change {
                    self.remember_last();
                    self.end(DrillPhase::Refused, Reason::DrillRefused, what_to_change);
                }
                return None;
            }
        };
        // A schedule that was changed is followed from now on.
        let told = self.status.next_run_at.as_ref().map(|at| at.0).filter(|_| !is_new);
        let due = told.and_then(|told| self.due_since(told, schedule));
        let waits = self.snapshot.other.is_some() || !self.is_read();
        if let Some(due) = due.filter(|_| waits) {
            // Whoever waits stays due.
            self.status.next_run_at = Some(Time(due));
        } else {
            self.status.next_run_at = Some(Time(next));
            self.wake_at(next);
        }
        if due.is_none() {
            self.wait_for_schedule(format!("runs next at {next:.0}"));
        }
        due.map(|at| format!("{}-{}", short(&self.snapshot.uid), at.as_second()))
    }

    /// The first time of the schedule since `told` that has come and is not too late.
    pub(super) fn due_since(&self, told: Timestamp, schedule: &DrillSchedule) -> Option<Timestamp> {
        let from = told.max(self.now.saturating_sub(TOO_LATE).ok()?);
        let before = from.saturating_sub(SignedDuration::from_secs(1)).ok()?;
        let due = crate::next_time(SCHEDULE, &schedule.cron, &schedule.time_zone, before).ok()?;
        Some(due).filter(|due| *due <= self.now)
    }

    pub(super) fn is_read(&self) -> bool {
        self.snapshot.pods.is_some() && self.snapshot.unready_budgets.is_some()
    }

    /// How the last run went is told until the next, also after one that waited in vain.
    pub(super) fn wait_for_schedule(&mut self, words: String) {
        let last = self.status.run.as_ref().and_then(|run| Some((run.result?, run.message.clone())));
        let (phase, message) = last.unwrap_or((DrillPhase::Pending, words));
        (self.status.phase, self.status.message) = (Some(phase), message);
    }
}
