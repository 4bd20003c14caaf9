//! The plots. Each can be told apart without its colours: names stand at lines and dots, areas lie in the order of their key, and
//! on-demand is hatched.

use std::fmt::Write;

use crate::measure::{Measured, Point};
use crate::report::frame::{Axis, Frame, LINE, WIDTH, apart, names_beside, nines, tether};
use crate::report::{AgentPool, Heading};
use crate::study::{Tradeoff, frontier};

const POLICIES: [&str; 10] = [
    "#0072b2", "#d55e00", "#009e73", "#c2619b", "#c98a00", "#3f9fd8", "#8c6bb1", "#7f7f7f", "#a6611a",
    "#5f9a1b",
];
/// Neighbours differ in lightness.
const SPOT: [&str; 8] =
    ["#2b6cb0", "#8cc5ee", "#2f855a", "#9ad0a8", "#6b4fa0", "#c4a8e6", "#5c6b73", "#b8c4ca"];
const ON_DEMAND: [&str; 2] = ["#d55e00", "#efa75f"];
/// A cost of nothing has no logarithm.
const CENT: f64 = 0.01;
const HEIGHT: f64 = 340.0;
/// Room for names to the right.
const NAMES: f64 = 260.0;

/// What plots are styled by, on light and on dark pages; `--text`, `--dim`, `--line` and `--back` are the page's.
pub const STYLE: &str = "svg text{fill:var(--text);font:12px system-ui,sans-serif}svg .dim{fill:var(--dim)}svg .ours{font-weight:600}\
    svg .grid{stroke:var(--line)}svg .wanted,svg .tether{fill:none;stroke:var(--text)}svg .wanted{stroke-dasharray:5 4}svg .tether{stroke-opacity:.7}\
    svg .over{paint-order:stroke;stroke:var(--back);stroke-width:3px}svg .edge{fill:none;stroke:var(--dim);stroke-width:1.5}svg .beaten{fill:var(--back)}";
/// Colours of a page.
pub const LIGHT: &str = "--back:#fff;--text:#1f2328;--dim:#59636e;--line:#d9dee3;--row:#f1f6fb";
/// … of a dark one.
pub const DARK: &str = "--back:#15181b;--text:#e6edf3;--dim:#9198a1;--line:#343a40;--row:#1a2430";

/// A plot: what it says to those who cannot see it, how high it is, and its content.
pub struct Plot {
    label: String,
    height: f64,
    content: String,
}

impl Plot {
    /// For inside of a page.
    pub fn inline(&self) -> String {
        format!(
            "<div class=\"wide\"><svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">\n{}</svg></div>\n",
            self.height,
            escaped(&self.label),
            self.content
        )
    }

    /// As a file that stands for itself, with a title and a sentence below it.
    pub fn file(&self, title: &str, below: &str) -> String {
        let (title, below) = (escaped(title), escaped(below));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -52 {WIDTH} {}\" role=\"img\" aria-label=\"{title}. {}\">\n\
             <style>svg{{{LIGHT}}}@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}{STYLE}</style>\n\
             <rect y=\"-52\" width=\"{WIDTH}\" height=\"{}\" fill=\"var(--back)\"/>\n\
             <text class=\"ours\" x=\"12\" y=\"-29\" style=\"font-size:16px\">{title}</text>\
             <text class=\"dim\" x=\"12\" y=\"-9\">{below}</text>\n{}</svg>\n",
            self.height + 52.0,
            escaped(&self.label),
            self.height + 52.0,
            self.content
        )
    }
}

fn colour(at: usize) -> &'static str {
    POLICIES[at % POLICIES.len()]
}

/// What each policy cost against what it gave. Filled are those that no other beats in both.
pub fn tradeoff(of: &Tradeoff) -> Plot {
    let policies = &of.policies;
    let label = match (of.courses, policies.first()) {
        (1, _) | (_, None) => "cost, in the currency of the prices".to_owned(),
        (_, Some(first)) => format!("cost, as a multiple of what {} cost in the same course", first.policy),
    };
    let costs = || policies.iter().flat_map(|it| it.cost).chain([of.least_cost]).map(|cost| cost.max(CENT));
    let (least, most) = (costs().fold(f64::INFINITY, f64::min), costs().fold(0.0, f64::max));
    let ready = policies.iter().flat_map(|it| it.ready);
    let frame = Frame {
        x: Axis::multiples(label, least / 1.06, most * 1.06),
        y: Axis::ready("ready share of what is wanted", ready),
        right: 20.0,
        height: 460.0,
    };
    let place = |(cost, ready): (f64, f64)| (cost.max(CENT).log10(), nines(ready));
    let mut svg = String::new();
    frame.begin(&mut svg);
    let middles: Vec<(f64, f64)> = policies.iter().map(|it| (it.cost[1], it.ready[1])).collect();
    let edge = frontier(&middles);
    let line = frame.line(edge.iter().map(|at| place(middles[*at])));
    let _ = writeln!(svg, "<path class=\"edge\" d=\"{line}\"/>");
    let (x, _) = frame.at(place((of.least_cost, 0.0)).0, 0.0);
    let (left, base, said) = (x + 5.0, frame.floor() - 7.0, "least for full capacity");
    let _ = writeln!(
        svg,
        "<path class=\"wanted\" d=\"M{x:.1} {:.1}V14\"/><text class=\"dim over\" x=\"{left:.1}\" y=\"{base:.1}\">{said}</text>",
        frame.floor()
    );
    let dots: Vec<(f64, f64)> = middles.iter().map(|it| place(*it)).map(|(x, y)| frame.at(x, y)).collect();
    let names: Vec<&str> = policies.iter().map(|it| it.policy.as_str()).collect();
    let places = names_beside(&frame, &dots, &names, (left, base, said));
    for (at, it) in policies.iter().enumerate().filter(|_| of.courses > 1) {
        let [(left, top), (right, bottom)] =
            [(it.cost[0], it.ready[2]), (it.cost[2], it.ready[0])].map(place).map(|(x, y)| frame.at(x, y));
        let (x, y) = dots[at];
        let _ = writeln!(
            svg,
            "<path stroke=\"{}\" stroke-opacity=\".55\" d=\"M{left:.1} {y:.1}H{right:.1}M{x:.1} {top:.1}V{bottom:.1}\"/>",
            colour(at)
        );
    }
    for (at, (dot, place)) in dots.iter().zip(&places).enumerate() {
        let (x, y) = tether(*dot, *place, names[at]);
        if (x - dot.0).hypot(y - dot.1) > 14.0 {
            let _ = writeln!(svg, "<path class=\"tether\" d=\"M{:.1} {:.1}L{x:.1} {y:.1}\"/>", dot.0, dot.1);
        }
    }
    // Ours lies on the others.
    for (at, ((x, y), (left, base))) in dots.iter().zip(&places).enumerate().rev() {
        let fill =
            if edge.contains(&at) { format!("fill=\"{}\"", colour(at)) } else { "class=\"beaten\"".into() };
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{}\" {fill} stroke=\"{}\" stroke-width=\"2\"/>\
             <text class=\"over{}\" x=\"{left:.1}\" y=\"{base:.1}\">{}</text>",
            if at == 0 { 7 } else { 5 },
            colour(at),
            if at == 0 { " ours" } else { "" },
            escaped(names[at])
        );
    }
    Plot {
        label: "Cost against the ready share of what is wanted, by policy".into(),
        height: frame.height,
        content: svg,
    }
}

/// How an agent pool is drawn.
fn fill(pools: &[AgentPool], at: usize) -> String {
    let same = pools[..at].iter().filter(|pool| pool.on_demand == pools[at].on_demand).count();
    if pools[at].on_demand {
        format!("url(#hatch{})", same % ON_DEMAND.len())
    } else {
        SPOT[same % SPOT.len()].to_owned()
    }
}

/// Ready units by agent pool over time: spot below, on-demand on it.
pub fn capacity(heading: &Heading, of: &[Point]) -> Plot {
    let pools = &heading.pools;
    let total = |point: &Point| point.ready.iter().sum::<f64>();
    let most = of.iter().map(|point| total(point).max(point.wanted)).fold(1.0, f64::max);
    let frame = Frame {
        x: Axis::time(heading.hours),
        y: Axis::linear("ready units", 0.0, most * 1.08),
        right: NAMES,
        height: HEIGHT.max(90.0 + LINE * (pools.len() + 1) as f64),
    };
    let mut svg = String::new();
    for (at, colour) in ON_DEMAND.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<pattern id=\"hatch{at}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
             <rect width=\"6\" height=\"6\" fill=\"{colour}\"/><path d=\"M0 3H6\" stroke=\"#fff\" stroke-width=\"1.6\"/></pattern>"
        );
    }
    frame.begin(&mut svg);
    let mut order: Vec<usize> = (0..pools.len()).collect();
    order.sort_by_key(|at| pools[*at].on_demand);
    let hours = |point: &Point| point.at as f64 / 3600.0;
    // From the highest, whose foot the next ones cover.
    for below in (1..=order.len()).rev() {
        let sum = |point: &Point| order[..below].iter().map(|pool| point.ready[*pool]).sum();
        let top = frame.steps(of.iter().map(|point| (hours(point), sum(point))));
        let (left, floor) = frame.at(0.0, 0.0);
        let pool = order[below - 1];
        let _ = writeln!(
            svg,
            "<path fill=\"{}\" stroke=\"var(--back)\" stroke-width=\".5\" d=\"{top}V{floor:.1}H{left:.1}Z\"/>",
            fill(pools, pool)
        );
    }
    let wanted = frame.steps(of.iter().map(|point| (hours(point), point.wanted)));
    let _ = writeln!(svg, "<path class=\"wanted\" d=\"{wanted}\"/>");
    let (x, mut y) = (frame.end() + 14.0, 24.0);
    let _ = writeln!(
        svg,
        "<path class=\"wanted\" d=\"M{x:.1} {:.1}h11\"/><text x=\"{:.1}\" y=\"{y}\">wanted</text>",
        y - 4.0,
        x + 17.0
    );
    for pool in order.into_iter().rev() {
        y += LINE + 2.0;
        let mean = of.iter().map(|point| point.ready[pool]).sum::<f64>() / of.len().max(1) as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{y:.1}\">{}{} \
             <tspan class=\"dim\">mean {mean:.1}</tspan></text>",
            y - 10.0,
            fill(pools, pool),
            x + 17.0,
            escaped(&pools[pool].name),
            if pools[pool].on_demand { ", on-demand" } else { "" }
        );
    }
    Plot { label: "Ready units over time, by agent pool".into(), height: frame.height, content: svg }
}

/// What was paid until then, by policy.
pub fn costs(heading: &Heading, of: &[Measured]) -> Plot {
    let most = of.iter().map(|it| it.cost).fold(0.0, f64::max);
    let frame = Frame {
        x: Axis::time(heading.hours),
        y: Axis::linear("paid so far, in the currency of the prices", 0.0, most * 1.05),
        right: NAMES,
        height: HEIGHT,
    };
    let mut svg = String::new();
    frame.begin(&mut svg);
    for (at, it) in of.iter().enumerate().rev() {
        let points = it.series.iter().map(|point| (point.at as f64 / 3600.0, point.cost));
        let _ = writeln!(
            svg,
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"/>",
            frame.line(points.chain([(heading.hours, it.cost)])),
            colour(at),
            if at == 0 { 3.0 } else { 1.3 }
        );
    }
    let mut dearest: Vec<usize> = (0..of.len()).collect();
    dearest.sort_by(|one, other| of[*other].cost.total_cmp(&of[*one].cost));
    let ends: Vec<f64> = dearest.iter().map(|at| frame.at(0.0, of[*at].cost).1).collect();
    for ((at, end), y) in dearest.iter().zip(&ends).zip(apart(&ends, frame.floor())) {
        let x = frame.end();
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {end:.1}L{:.1} {y:.1}h6\" fill=\"none\" stroke=\"{}\"/><text{} x=\"{:.1}\" y=\"{:.1}\">{:.2} {}</text>",
            x + 16.0,
            colour(*at),
            if *at == 0 { " class=\"ours\"" } else { "" },
            x + 26.0,
            y + 4.0,
            of[*at].cost,
            escaped(&of[*at].policy)
        );
    }
    Plot { label: "Cost over time, by policy".into(), height: frame.height, content: svg }
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
