//! What changes in steps over time.

/// A value that holds from each of its times until the next. Times are seconds since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course<T>(Vec<(i64, T)>);

impl<T: Copy + PartialEq> Course<T> {
    /// Always the same.
    pub fn always(value: T) -> Self {
        Self(vec![(0, value)])
    }

    /// Of steps in the order of their times; of several at one time the last counts. What comes first holds from the start.
    pub fn of(steps: impl IntoIterator<Item = (i64, T)>) -> Self {
        let mut course: Vec<(i64, T)> = Vec::new();
        for (at, value) in steps {
            if course.last().is_some_and(|(last, _)| *last == at) {
                course.pop();
            }
            if course.last().is_none_or(|(_, last)| *last != value) {
                course.push((at, value));
            }
        }
        Self(course)
    }

    /// What holds at `time`, if anything ever does.
    pub fn at(&self, time: i64) -> Option<T> {
        let after = self.0.partition_point(|(at, _)| *at <= time);
        self.0.get(after.saturating_sub(1)).map(|(_, value)| *value)
    }

    /// When it next changes after `time`.
    pub fn next_change(&self, time: i64) -> Option<i64> {
        self.0.get(self.0.partition_point(|(at, _)| *at <= time)).map(|(at, _)| *at)
    }

    /// What holds from one time until another, as if that were all: its times are seconds since `from`.
    #[must_use]
    pub fn between(&self, from: i64, until: i64) -> Self {
        let begin = self.at(from).map(|value| (from, value));
        let rest = self.0.iter().copied().filter(|(at, _)| *at > from && *at < until);
        Self::of(begin.into_iter().chain(rest).map(|(at, value)| (at - from, value)))
    }

    /// Its steps.
    pub fn steps(&self) -> &[(i64, T)] {
        &self.0
    }
}
