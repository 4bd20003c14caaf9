//! One page that needs nothing else: figures, and three plots.

use std::fmt::Write;

use crate::measure::{CLASSES, Measured};
use crate::report::Heading;
use crate::study::frontier;

const COLOURS: [&str; 10] = [
    "#2f7d32", "#1565c0", "#ef6c00", "#6a1b9a", "#00838f", "#c62828", "#9e9d24", "#5d4037", "#ad1457",
    "#546e7a",
];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 320.0;
/// Left, right, top, bottom of a plot's frame.
const MARGINS: (f64, f64, f64, f64) = (70.0, 20.0, 12.0, 46.0);

const STYLE: &str = "
:root{--back:#fff;--text:#1c1c1c;--dim:#666;--line:#ddd;--row:#f4f8f4}
@media (prefers-color-scheme:dark){:root{--back:#15181b;--text:#e6e6e6;--dim:#9aa0a6;--line:#343a40;--row:#1d2620}}
body{background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}p{max-width:46em}.dim{color:var(--dim)}
.synthetic{border:2px solid #ef6c00;padding:.4em .8em;font-weight:600}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--dim)}td:first-child,th:first-child{text-align:left}tr.ours{background:var(--row);font-weight:600}
svg{width:100%;height:auto}svg text{fill:var(--text);font:12px system-ui,sans-serif}svg .dim{fill:var(--dim)}
svg .grid{stroke:var(--line)}svg .wanted{stroke:var(--text);stroke-dasharray:5 4}
.key{display:flex;flex-wrap:wrap;gap:.3em 1.2em}.key i{display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em}";

/// The page. The first of `of` is the one that capacity is drawn of.
pub fn page(heading: &Heading, of: &[Measured]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{name}: policy lab</title><style>{STYLE}</style>\n<h1>What would it have cost? {name}</h1>\n",
        name = escaped(&heading.name)
    );
    if heading.synthetic {
        html.push_str("<p class=\"synthetic\">Synthetic: evictions, refusals and prices were drawn, not observed.</p>\n");
    }
    let _ = writeln!(
        html,
        "<p>{:.1} hours, each policy in the same course of things. Full capacity could not have cost less than {:.2}.</p>",
        heading.hours, heading.least_cost
    );
    table(&mut html, of);
    html.push_str("<h2>Cost against availability</h2>\n<p>Up is more of what was wanted ready, left is cheaper. The line joins \
                   those that no other policy beats in both.</p>\n");
    scatter(&mut html, heading, of);
    let drawn: Vec<&Measured> = of.iter().filter(|it| !it.series.is_empty()).collect();
    if let Some(ours) = drawn.first() {
        let _ = writeln!(
            html,
            "<h2>Ready capacity over time: {}</h2>\n<p>Units that carry pods, by agent pool; dashed is what is wanted.</p>",
            escaped(&ours.policy)
        );
        capacity(&mut html, heading, ours);
        html.push_str("<h2>Cost over time</h2>\n<p>What was paid until then, by policy.</p>\n");
        costs(&mut html, heading, &drawn);
    }
    html.push_str("<p class=\"dim\">Made by spotpool-lab.</p></html>\n");
    html
}

fn table(html: &mut String, of: &[Measured]) {
    html.push_str("<div class=\"wide\"><table><tr><th>Policy<th>Cost<th>Saving<th>Ready<th>All ready<th>Missing, unit-min\
                   <th>On-demand, min<th>Launches spot + on-demand<th>Back and forth<th>Evictions survived</tr>\n");
    for (at, it) in of.iter().enumerate() {
        let _ = writeln!(
            html,
            "<tr{}><td>{}<td>{:.2}<td>{:.1} %<td>{:.3} %<td>{:.2} %<td>{:.0}<td>{:.0}<td>{} + {}<td>{}<td>{} of {}</tr>",
            if at == 0 { " class=\"ours\"" } else { "" },
            escaped(&it.policy),
            it.cost,
            it.saving_percent,
            it.availability * 100.0,
            it.whole * 100.0,
            it.shortfall_unit_minutes,
            it.on_demand_minutes,
            it.spot_launches,
            it.on_demand_launches,
            it.oscillations,
            it.evictions_survived,
            it.evictions
        );
    }
    html.push_str("</table></div>\n<h2>How much was ready, in shares of the time</h2>\n<div class=\"wide\"><table><tr><th>Policy");
    for least in CLASSES {
        let _ = match least {
            100 => write!(html, "<th>all"),
            0 => write!(html, "<th>less"),
            _ => write!(html, "<th>≥ {least} %"),
        };
    }
    html.push_str("</tr>\n");
    for it in of {
        let _ = write!(html, "<tr><td>{}", escaped(&it.policy));
        for share in it.ready_distribution {
            let _ = write!(html, "<td>{:.2} %", share * 100.0);
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
}

/// A frame with axes, from `least` to `most` in both directions.
struct Plot {
    least: (f64, f64),
    most: (f64, f64),
}

impl Plot {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let (left, right, top, bottom) = MARGINS;
        let part =
            |value: f64, least: f64, most: f64| (value - least) / (most - least).max(f64::MIN_POSITIVE);
        let across = part(x, self.least.0, self.most.0) * (WIDTH - left - right);
        let up = part(y, self.least.1, self.most.1) * (HEIGHT - top - bottom);
        (left + across, HEIGHT - bottom - up)
    }

    fn begin(&self, html: &mut String, labels: (&str, &str)) {
        let _ = write!(
            html,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over {}\">",
            labels.1, labels.0
        );
        for x in ticks(self.least.0, self.most.0) {
            let ((x1, y1), (_, y2)) = (self.at(x, self.least.1), self.at(x, self.most.1));
            let _ = write!(
                html,
                "<path class=\"grid\" d=\"M{x1:.1} {y1:.1}V{y2:.1}\"/><text x=\"{x1:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                y1 + 16.0,
                said(x)
            );
        }
        for y in ticks(self.least.1, self.most.1) {
            let ((x1, y1), (x2, _)) = (self.at(self.least.0, y), self.at(self.most.0, y));
            let _ = write!(
                html,
                "<path class=\"grid\" d=\"M{x1:.1} {y1:.1}H{x2:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                x1 - 6.0,
                y1 + 4.0,
                said(y)
            );
        }
        let middle = (MARGINS.2 + HEIGHT - MARGINS.3) / 2.0;
        let _ = write!(
            html,
            "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"dim\" x=\"14\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle:.1})\">{}</text>",
            f64::midpoint(MARGINS.0, WIDTH - MARGINS.1),
            HEIGHT - 8.0,
            labels.0,
            labels.1
        );
    }

    fn line(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = self.at(x, y);
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
        }
        path
    }
}

/// About six round values.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let span = (most - least).max(f64::MIN_POSITIVE);
    let rough = span / 6.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|by| by * power).find(|step| *step >= rough).unwrap_or(rough);
    let first = (least / step).ceil() as i64;
    let last = (most / step + 1e-9).floor() as i64;
    (first..=last).map(|at| at as f64 * step).collect()
}

fn said(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn scatter(html: &mut String, heading: &Heading, of: &[Measured]) {
    let costs = || of.iter().map(|it| it.cost);
    let most = costs().fold(heading.least_cost, f64::max) * 1.12;
    let least = of.iter().map(|it| it.availability * 100.0).fold(100.0, f64::min);
    let plot =
        Plot { least: (0.0, least - (100.0 - least) * 0.08), most: (most, 100.0 + (100.0 - least) * 0.04) };
    plot.begin(html, ("cost", "ready unit-time of what is wanted, %"));
    let edge = frontier(of);
    let points = edge.iter().map(|at| (of[*at].cost, of[*at].availability * 100.0));
    let _ = write!(
        html,
        "<path d=\"{}\" fill=\"none\" stroke=\"#888\" stroke-width=\"1.5\"/>",
        plot.line(points)
    );
    let (x, bottom) = plot.at(heading.least_cost, plot.least.1);
    let _ = write!(
        html,
        "<path class=\"wanted\" d=\"M{x:.1} {bottom:.1}V{:.1}\"/><text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\">least for full capacity</text>",
        MARGINS.2,
        x + 5.0,
        bottom - 6.0
    );
    let mut labels: Vec<(f64, f64, f64)> = Vec::new();
    for (at, it) in of.iter().enumerate() {
        let (x, y) = plot.at(it.cost, it.availability * 100.0);
        // Labels that would lie over each other move down.
        let mut label = y + 4.0;
        let width = it.policy.len() as f64 * 6.4;
        let end = x > WIDTH - 200.0;
        let from = if end { x - 9.0 - width } else { x + 9.0 };
        while labels.iter().any(|(left, wide, other)| {
            from < left + wide && *left < from + width && (other - label).abs() < 12.0
        }) {
            label += 4.0;
        }
        labels.push((from, width, label));
        let colour = COLOURS[at % COLOURS.len()];
        let _ = write!(
            html,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{}\" fill=\"{colour}\"/><text x=\"{from:.1}\" y=\"{label:.1}\">{}</text>",
            if at == 0 { 7 } else { 5 },
            escaped(&it.policy)
        );
    }
    html.push_str("</svg>\n");
}

fn capacity(html: &mut String, heading: &Heading, of: &Measured) {
    let most = of.series.iter().map(|it| it.ready.iter().sum::<u32>().max(it.wanted)).max().unwrap_or(1);
    let plot = Plot { least: (0.0, 0.0), most: (heading.hours, f64::from(most) * 1.08) };
    plot.begin(html, ("hours", "units"));
    let hours = |at: i64| at as f64 / 3600.0;
    for pool in 0..heading.pools.len() {
        // A value holds until the next.
        let mut upper = Vec::new();
        let mut lower = Vec::new();
        for (at, point) in of.series.iter().enumerate() {
            let until = of.series.get(at + 1).map_or(heading.hours, |next| hours(next.at));
            let below = f64::from(point.ready[..pool].iter().sum::<u32>());
            let above = below + f64::from(point.ready[pool]);
            upper.extend([(hours(point.at), above), (until, above)]);
            lower.extend([(hours(point.at), below), (until, below)]);
        }
        let outline = plot.line(upper.into_iter().chain(lower.into_iter().rev()));
        let colour = COLOURS[pool % COLOURS.len()];
        let _ = write!(html, "<path d=\"{outline}Z\" fill=\"{colour}\" fill-opacity=\".75\"/>");
    }
    let wanted = of.series.iter().map(|it| (hours(it.at), f64::from(it.wanted)));
    let last = of.series.last().map(|it| (heading.hours, f64::from(it.wanted)));
    let _ = writeln!(
        html,
        "<path class=\"wanted\" fill=\"none\" d=\"{}\"/></svg>",
        plot.line(wanted.chain(last))
    );
    key(html, heading.pools.iter().map(String::as_str));
}

fn costs(html: &mut String, heading: &Heading, of: &[&Measured]) {
    let most = of.iter().map(|it| it.cost).fold(0.0, f64::max);
    let plot = Plot { least: (0.0, 0.0), most: (heading.hours, most * 1.05) };
    plot.begin(html, ("hours", "cost"));
    for (at, it) in of.iter().enumerate() {
        let points = it.series.iter().map(|point| (point.at as f64 / 3600.0, point.cost));
        let path = plot.line(points.chain([(heading.hours, it.cost)]));
        let (colour, width) = (COLOURS[at % COLOURS.len()], if at == 0 { 3 } else { 1 });
        let _ =
            write!(html, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>");
    }
    html.push_str("</svg>\n");
    key(html, of.iter().map(|it| it.policy.as_str()));
}

fn key<'a>(html: &mut String, names: impl Iterator<Item = &'a str>) {
    html.push_str("<div class=\"key\">");
    for (at, name) in names.enumerate() {
        let _ = write!(
            html,
            "<span><i style=\"background:{}\"></i>{}</span>",
            COLOURS[at % COLOURS.len()],
            escaped(name)
        );
    }
    html.push_str("</div>\n");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
