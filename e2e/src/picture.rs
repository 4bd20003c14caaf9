//! An eviction as a picture, drawn from what a run of the demo has seen and nothing else. Readable on light and on dark pages.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// What was seen of one eviction. Times are in seconds since the notice.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// What the picture is of, in a sentence.
    pub title: String,
    /// How long the notice was.
    pub notice: f64,
    /// The pods that were ready.
    pub service: Service,
    /// Every node that was there at any time.
    pub machines: Vec<Machine>,
    /// What happened, in order.
    pub moments: Vec<Moment>,
}

/// A service under a disruption budget.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Pods that it wants.
    pub wanted: usize,
    /// `minAvailable` of its budget.
    pub budget: usize,
    /// How many were ready, from when on.
    pub ready: Vec<(f64, usize)>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Its agent pool.
    pub agent_pool: String,
    /// Spot, or on-demand.
    pub spot: bool,
    /// When Azure was asked for it, if that was after the notice.
    pub asked: Option<f64>,
    /// When it took pods, if that was after the notice.
    pub ready: Option<f64>,
    /// When it was closed, by the notice or by a request to drain it.
    pub closed: Option<f64>,
    /// When no pod was left on it, where that was said.
    pub drained: Option<f64>,
    /// When it was gone.
    pub gone: Option<f64>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// When.
    pub at: f64,
    /// What, in a few words.
    pub what: String,
}

const WIDTH: f64 = 880.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 28.0;
const CHART_TOP: f64 = 78.0;
const CHART_HEIGHT: f64 = 84.0;
const LANE: f64 = 22.0;
const LINE: f64 = 19.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.soft{fill:#59636e}\
    .axis{stroke:#d1d9e0}.mark{stroke:#59636e;stroke-dasharray:3 3}.spot{fill:#1a7f37}.regular{fill:#0969da}.boot{fill:#8c959f;fill-opacity:.45}\
    .closed{fill:#d97706}.empty{fill:none;stroke:#d97706}.area{fill:#1a7f37;fill-opacity:.18}.course{fill:none;stroke:#1a7f37;stroke-width:2}.budget{stroke:#cf222e;stroke-width:1.5}\
    @media (prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9198a1}.axis{stroke:#3d444d}.mark{stroke:#9198a1}.spot{fill:#3fb950}\
    .regular{fill:#58a6ff}.closed{fill:#f0883e}.empty{stroke:#f0883e}.area{fill:#3fb950;fill-opacity:.2}.course{stroke:#3fb950}.budget{stroke:#ff7b72}}";

impl Account {
    /// The picture.
    pub fn draw(&self) -> String {
        let end = self.end();
        let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * at.clamp(0.0, end) / end;
        let lanes_top = CHART_TOP + CHART_HEIGHT + 34.0;
        let lanes_end = lanes_top + LANE * self.machines.len() as f64;
        let moments_top = lanes_end + 66.0;
        let rows = self.moments.len().div_ceil(2);
        let height = moments_top + LINE * rows as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n",
            title = escaped(&self.title)
        );
        text(&mut svg, 12.0, 26.0, "title", &self.title);
        let service = &self.service;
        let subtitle = format!(
            "{} has {} pods; its disruption budget asks for {} of them to be ready",
            service.name, service.wanted, service.budget
        );
        text(&mut svg, 12.0, 47.0, "soft", &subtitle);

        let y = |ready: usize| CHART_TOP + CHART_HEIGHT * (1.0 - ready as f64 / service.wanted.max(1) as f64);
        for second in (0..=end as usize).step_by(5) {
            let at = x(second as f64);
            let _ = writeln!(svg, "<path class=\"axis\" d=\"M{at:.1} {CHART_TOP}V{lanes_end:.1}\"/>");
            let _ = writeln!(
                svg,
                "<text class=\"soft\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{second} s</text>",
                lanes_end + 17.0
            );
        }
        let mut course = String::new();
        for (index, (at, ready)) in service.ready.iter().enumerate() {
            let to = if index == 0 {
                format!("M{:.1} {:.1}", x(*at), y(*ready))
            } else {
                format!("H{:.1}V{:.1}", x(*at), y(*ready))
            };
            course.push_str(&to);
        }
        let _ = write!(course, "H{:.1}", x(end));
        let bottom = CHART_TOP + CHART_HEIGHT;
        let _ = writeln!(svg, "<path class=\"area\" d=\"{course}V{bottom:.1}H{:.1}Z\"/>", x(0.0));
        let _ = writeln!(svg, "<path class=\"course\" d=\"{course}\"/>");
        let _ =
            writeln!(svg, "<path class=\"budget\" d=\"M{LEFT} {0:.1}H{1:.1}\"/>", y(service.budget), x(end));
        text(&mut svg, 12.0, CHART_TOP + 10.0, "", &format!("{} pods ready", service.name));
        for count in [service.wanted, service.budget, 0] {
            let _ = writeln!(
                svg,
                "<text class=\"soft\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{count}</text>",
                LEFT - 6.0,
                y(count) + 4.0
            );
        }

        let mut named = "";
        for (index, machine) in self.machines.iter().enumerate() {
            let top = lanes_top + LANE * index as f64;
            if machine.agent_pool != named {
                named = &machine.agent_pool;
                let kind = if machine.spot { "spot" } else { "on-demand" };
                text(&mut svg, 12.0, top + 13.0, "", &format!("{named} ({kind})"));
            }
            for (class, from, to) in machine.bars(end) {
                let _ = writeln!(
                    svg,
                    "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\"/>",
                    x(from),
                    (x(to) - x(from)).max(1.0),
                    LANE - 6.0
                );
            }
        }
        for (at, what) in [(0.0, "notice"), (self.notice, "the notice is over")] {
            let _ = writeln!(
                svg,
                "<path class=\"mark\" d=\"M{0:.1} {1:.1}V{2:.1}\"/>",
                x(at),
                CHART_TOP - 6.0,
                lanes_end
            );
            let _ = writeln!(
                svg,
                "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\">{what}</text>",
                x(at),
                CHART_TOP - 10.0
            );
        }

        let mut at = LEFT;
        for (class, what) in [
            ("boot", "boots"),
            ("spot", "spot, takes pods"),
            ("regular", "on demand, takes pods"),
            ("closed", "closed, is being emptied"),
            ("empty", "empty"),
        ] {
            let top = lanes_end + 28.0;
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{at:.1}\" y=\"{top:.1}\" width=\"12\" height=\"12\" rx=\"3\"/>"
            );
            text(&mut svg, at + 17.0, top + 10.5, "soft", what);
            at += 40.0 + 6.6 * what.len() as f64;
        }
        for (index, moment) in self.moments.iter().enumerate() {
            let left = if index < rows { 12.0 } else { WIDTH / 2.0 };
            let top = moments_top + LINE * (index % rows) as f64;
            let _ = writeln!(
                svg,
                "<text text-anchor=\"end\" x=\"{:.1}\" y=\"{top:.1}\">{} s</text>",
                left + 54.0,
                seconds(moment.at)
            );
            text(&mut svg, left + 64.0, top, "soft", &moment.what);
        }
        svg + "</svg>\n"
    }

    /// The last second that is drawn: a multiple of five.
    fn end(&self) -> f64 {
        let last = self.moments.iter().map(|moment| moment.at).fold(self.notice, f64::max);
        (last / 5.0).ceil() * 5.0
    }
}

impl Machine {
    /// What it was, from when to when.
    fn bars(&self, end: f64) -> Vec<(&'static str, f64, f64)> {
        let works = if self.spot { "spot" } else { "regular" };
        let gone = self.gone.unwrap_or(end);
        let mut bars = Vec::new();
        if let Some(asked) = self.asked {
            bars.push(("boot", asked, self.ready.unwrap_or(gone)));
        }
        if self.asked.is_none() || self.ready.is_some() {
            bars.push((works, self.ready.unwrap_or(0.0), self.closed.unwrap_or(gone)));
        }
        if let Some(closed) = self.closed {
            bars.push(("closed", closed, self.drained.unwrap_or(gone)));
        }
        if let Some(drained) = self.drained {
            bars.push(("empty", drained, gone));
        }
        bars
    }
}

/// Hundredths where they matter.
fn seconds(at: f64) -> String {
    if at < 1.0 { format!("{at:.2}") } else { format!("{at:.1}") }
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, what: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let _ = writeln!(svg, "<text{class} x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(what));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
