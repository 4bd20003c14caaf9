//! Whether something that is measured again and again grows.

/// Values over time, as they were measured.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

/// Fewer say nothing.
const LEAST: usize = 12;

impl Series {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Median of the third sixth, when all that is needed once is there, and of the last sixth.
    pub fn early_and_late(&self) -> Option<(f64, f64)> {
        let sixth = self.0.len() / 6;
        let window = |from: usize| median(&self.0[from..from + sixth]);
        (self.0.len() >= LEAST).then(|| (window(2 * sixth), window(self.0.len() - sixth)))
    }

    /// By how much it has grown, where that is more than `most`.
    pub fn growth_beyond(&self, most: f64) -> Option<String> {
        let (early, late) = self.early_and_late()?;
        (late - early > most).then(|| format!("{early:.2}, later {late:.2}, at most {most} more are allowed"))
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A judge that never finds anything would look just like health.
#[test]
fn a_slow_leak_is_found_and_noise_is_not() {
    let of = |value: fn(usize) -> f64| Series((0..60).map(value).collect());
    let noise = |at: usize| (at * 7 % 5) as f64 * 0.2;
    let leaks = of(|at| 20.0 + at as f64 * 0.05);
    assert!(leaks.growth_beyond(1.0).is_some(), "{:?}", leaks.early_and_late());
    let warms_up = Series((0..60).map(|at| if at < 10 { at as f64 } else { 10.0 + noise(at) }).collect());
    assert_eq!(warms_up.growth_beyond(1.0), None);
    let shrinks = of(|at| 60.0 - at as f64);
    assert_eq!(shrinks.growth_beyond(1.0), None);
    assert_eq!(of(|_| 1.0).early_and_late(), Some((1.0, 1.0)));
}
