//! Where things lie in a plot: axes with round values, and labels that lie on nothing.

use std::fmt::Write;

/// Width of a plot.
pub const WIDTH: f64 = 900.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
const LEFT: f64 = 78.0;
/// Ticks of an availability, in percent. Each about halves what is missing.
const READY: [f64; 15] =
    [0.0, 50.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99, 99.995, 99.999];
/// Round values of each power of ten.
const ROUND: [f64; 10] = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];
/// Hours between two ticks of time.
const HOURS: [f64; 12] = [0.25, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0, 24.0, 48.0, 120.0, 240.0, 720.0];
/// From here on time is told in days.
const LONG: f64 = 72.0;
/// A letter is about so wide, a line of text so high.
const LETTER: f64 = 6.7;
pub const LINE: f64 = 15.0;

/// One direction of a plot.
pub struct Axis {
    label: String,
    least: f64,
    most: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From `least` to `most`, with about six round values.
    pub fn linear(label: impl Into<String>, least: f64, most: f64) -> Self {
        let span = (most - least).max(f64::MIN_POSITIVE);
        let rough = span / 6.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|by| by * power).into_iter().find(|step| *step >= rough);
        Self { label: label.into(), least, most, ticks: every(step.unwrap_or(rough), least, most, 1.0) }
    }

    /// From `least` to `most`, by their [`log10`](f64::log10): twice as much is everywhere as far away.
    pub fn multiples(label: impl Into<String>, least: f64, most: f64) -> Self {
        let (low, high) = (least.log10(), most.log10());
        let mut ticks: Vec<(f64, String)> = Vec::new();
        for power in low.floor() as i32..=high.floor() as i32 {
            for value in ROUND.map(|by| by * 10_f64.powi(power)) {
                let far = ticks.last().map_or(low, |(before, _)| before + (high - low) / 14.0);
                if (far..=high).contains(&value.log10()) {
                    ticks.push((value.log10(), said(value)));
                }
            }
        }
        Self { label: label.into(), least: low, most: high, ticks }
    }

    /// So many hours from the start.
    pub fn time(hours: f64) -> Self {
        let (label, unit) = if hours > LONG { ("days", 24.0) } else { ("hours", 1.0) };
        let step = HOURS.into_iter().find(|step| hours / step <= 12.0).unwrap_or(hours);
        Self { label: label.into(), least: 0.0, most: hours, ticks: every(step, 0.0, hours, unit) }
    }

    /// Shares that are ready, 0 to 1, as [`nines`]: near to all a little more is worth as much as much more is far from it.
    pub fn ready(label: &str, shares: impl Iterator<Item = f64> + Clone) -> Self {
        let ticks = READY.map(|percent| (nines(percent / 100.0), format!("{percent} %")));
        let (low, high) = (shares.clone().map(nines), shares.map(nines));
        let (low, high) = (low.fold(f64::INFINITY, f64::min), high.fold(0.0, f64::max));
        let first = ticks.iter().rposition(|(at, _)| *at < low).unwrap_or(0).min(ticks.len() - 2);
        let last = ticks.iter().position(|(at, _)| *at > high).unwrap_or(ticks.len() - 1);
        let ticks = ticks[first..=last].to_vec();
        Self {
            label: label.into(),
            least: ticks[0].0,
            most: ticks[ticks.len() - 1].0.max(high) + 0.02,
            ticks,
        }
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.least) / (self.most - self.least).max(f64::MIN_POSITIVE)
    }
}

/// How many nines a share has; more than five of them look alike.
pub fn nines(share: f64) -> f64 {
    -(1.0 - share).max(1e-5).log10()
}

fn every(step: f64, least: f64, most: f64, unit: f64) -> Vec<(f64, String)> {
    let (first, last) = ((least / step).ceil() as i64, (most / step + 1e-9).floor() as i64);
    (first..=last).map(|at| (at as f64 * step, said(at as f64 * step / unit))).collect()
}

fn said(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Two axes, and what is left beside them.
pub struct Frame {
    pub x: Axis,
    pub y: Axis,
    /// Room to the right of the axes.
    pub right: f64,
    pub height: f64,
}

impl Frame {
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let across = self.x.part(x) * (self.end() - LEFT);
        (LEFT + across, self.floor() - self.y.part(y) * (self.floor() - TOP))
    }

    /// Where the axes end to the right.
    pub fn end(&self) -> f64 {
        WIDTH - self.right
    }

    /// Where they begin below.
    pub fn floor(&self) -> f64 {
        self.height - BOTTOM
    }

    /// Draws the axes.
    pub fn begin(&self, svg: &mut String) {
        let (end, floor) = (self.end(), self.floor());
        for (x, said) in &self.x.ticks {
            let (x, _) = self.at(*x, self.y.least);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {floor:.1}V{TOP}\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{said}</text>",
                floor + 17.0
            );
        }
        for (y, said) in &self.y.ticks {
            let (_, y) = self.at(self.x.least, *y);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{end:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{said}</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
        let middle = f64::midpoint(TOP, floor);
        let _ = writeln!(
            svg,
            "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"dim\" x=\"16\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {middle:.1})\">{}</text>",
            f64::midpoint(LEFT, end),
            self.height - 8.0,
            self.x.label,
            self.y.label
        );
    }

    pub fn line(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = self.at(x, y);
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
        }
        path
    }

    /// A value that holds from each time until the next, and the last to the end.
    pub fn steps(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let (mut path, mut before) = (String::new(), String::new());
        for (x, y) in points {
            let (x, y) = self.at(x, y);
            let height = format!("{y:.1}");
            if before.is_empty() {
                path = format!("M{x:.1} {height}");
            } else if height != before {
                let _ = write!(path, "H{x:.1}V{height}");
            }
            before = height;
        }
        let _ = write!(path, "H{:.1}", self.end());
        path
    }
}

/// A rectangle that something lies in: left, right, top, bottom.
#[derive(Clone, Copy)]
struct Lot([f64; 4]);

impl Lot {
    fn of_text(left: f64, base: f64, text: &str) -> Self {
        Self([left, left + width(text), base - 11.0, base + 4.0])
    }

    fn meets(&self, other: &Self) -> bool {
        let ([l, r, t, b], [left, right, top, bottom]) = (self.0, other.0);
        l < right && left < r && t < bottom && top < b
    }
}

fn width(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER
}

/// Where to write the names of dots so that none lies on a dot, on another name, on `there` or outside, and each is nearest to
/// its own dot: left end and base line of each.
pub fn names_beside(
    frame: &Frame,
    dots: &[(f64, f64)],
    names: &[&str],
    there: (f64, f64, &str),
) -> Vec<(f64, f64)> {
    let dots_lie = dots.iter().map(|(x, y)| Lot([x - 8.0, x + 8.0, y - 8.0, y + 8.0]));
    let mut taken: Vec<Lot> = dots_lie.chain([Lot::of_text(there.0, there.1, there.2)]).collect();
    let mut places = Vec::new();
    for ((x, y), name) in dots.iter().zip(names) {
        let width = width(name);
        let beside = |away: f64| {
            let (right, left, slant) = (x + away, x - away - width, away * 0.9);
            let middle = x - width / 2.0;
            [
                (right, *y),
                (left, *y),
                (right, y - slant),
                (right, y + slant),
                (left, y - slant),
                (left, y + slant),
                (middle, y - away - 3.0),
                (middle, y + away + 3.0),
            ]
        };
        let distances = [10.0, 18.0, 28.0, 40.0, 54.0, 70.0, 90.0, 115.0, 145.0, 180.0];
        let inside = |lot: &Lot| {
            lot.0[0] > LEFT && lot.0[1] < frame.end() && lot.0[2] > TOP && lot.0[3] < frame.floor()
        };
        let is_nearest = |left: f64, base: f64| {
            let end = tether((*x, *y), (left, base), name);
            let far = |dot: &(f64, f64)| (dot.0 - end.0).hypot(dot.1 - end.1);
            dots.iter().all(|other| far(&(*x, *y)) <= far(other))
        };
        let free =
            distances.into_iter().flat_map(beside).map(|(left, y)| (left, y + 4.0)).find(|(left, base)| {
                let lot = Lot::of_text(*left, *base, name);
                inside(&lot) && !taken.iter().any(|other| other.meets(&lot)) && is_nearest(*left, *base)
            });
        let (left, base) = free.unwrap_or((x + 10.0, y + 4.0));
        taken.push(Lot::of_text(left, base, name));
        places.push((left, base));
    }
    places
}

/// Heights of lines of text that should stand at `wanted`, in order from the top, moved apart until each has its own line.
pub fn apart(wanted: &[f64], floor: f64) -> Vec<f64> {
    let mut heights: Vec<f64> = Vec::new();
    for wanted in wanted {
        let above = heights.last().map_or(TOP, |above| above + LINE);
        heights.push(wanted.max(above));
    }
    let mut most = floor;
    for height in heights.iter_mut().rev() {
        *height = height.min(most);
        most = *height - LINE;
    }
    heights
}

/// Where a line from a dot to its name ends: on the name, as near as may be.
pub fn tether(dot: (f64, f64), place: (f64, f64), name: &str) -> (f64, f64) {
    (dot.0.clamp(place.0 - 2.0, place.0 + width(name)), place.1 - 4.0)
}
