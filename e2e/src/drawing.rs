//! Dashboards drawn without Grafana, from what a Prometheus answers: to be looked at by whoever changes a panel. One SVG each,
//! with panels where Grafana puts them, titles, units, thresholds and legends.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::dashboards::{Dashboard, Kind, Panel, Query};
use crate::prometheus::{Prometheus, Series};

/// Of one of Grafana's 24 columns, and of one of its rows.
const CELL: (f64, f64) = (64.0, 34.0);
const COLOURS: [&str; 8] =
    ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#c8c8c8"];
/// How many points a line has.
const POINTS: u32 = 240;
/// What is left of a panel's height for lines beyond title and legend.
const TITLE: f64 = 34.0;
const LEGEND: f64 = 26.0;

/// What Grafana would set.
pub struct View<'a> {
    /// What variables stand for.
    pub variables: &'a [(&'a str, &'a str)],
    /// How far back lines go.
    pub seconds: u32,
}

struct Drawn<'a> {
    query: &'a Query,
    name: String,
    points: Series,
}

/// Draws a dashboard.
pub async fn draw(prometheus: &Prometheus, dashboard: &Dashboard, view: &View<'_>) -> Result<String> {
    let json = dashboard.json();
    let places = json["panels"].as_array().context("no panels")?;
    let bottom = places.iter().map(|it| number(it, "y") + number(it, "h")).fold(0.0, f64::max);
    let (width, height) = (24.0 * CELL.0, (bottom + 1.0) * CELL.1);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="#111217"/>"##
    );
    text(&mut svg, 8.0, 22.0, "#ffffff", 16, &dashboard.title);
    let mut panels = dashboard.panels();
    for place in places {
        let (x, y) = (number(place, "x") * CELL.0, (number(place, "y") + 1.0) * CELL.1);
        let (w, h) = (number(place, "w") * CELL.0, number(place, "h") * CELL.1);
        if place["type"] == "row" {
            text(&mut svg, x + 8.0, y + 22.0, "#cccccc", 14, place["title"].as_str().unwrap_or_default());
            continue;
        }
        let panel = panels.next().context("more places than panels")?;
        let _ = write!(
            svg,
            r##"<rect x="{}" y="{}" width="{}" height="{}" fill="#181b1f" stroke="#2f3338"/>"##,
            x + 2.0,
            y + 2.0,
            w - 4.0,
            h - 4.0
        );
        text(&mut svg, x + 10.0, y + 18.0, "#d8d9da", 12, &panel.title);
        let lines = lines(prometheus, panel, view).await?;
        let at = Frame { x: x + 10.0, y: y + TITLE, w: w - 20.0, h: h - TITLE - 8.0 };
        match panel.kind {
            _ if lines.is_empty() => text(&mut svg, at.x, at.y + at.h / 2.0, "#777777", 14, "No data"),
            Kind::Stat => stat(&mut svg, &at, panel, &lines),
            Kind::Bargauge => bars(&mut svg, &at, panel, &lines),
            Kind::Timeseries => timeseries(&mut svg, &at, panel, &lines),
        }
    }
    Ok(svg + "</svg>\n")
}

struct Frame {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

async fn lines<'a>(prometheus: &Prometheus, panel: &'a Panel, view: &View<'_>) -> Result<Vec<Drawn<'a>>> {
    let mut lines = Vec::new();
    for query in &panel.queries {
        let filled =
            view.variables.iter().fold(query.promql(), |text, (name, value)| text.replace(name, value));
        for (labels, points) in prometheus.range(&filled, view.seconds, view.seconds.div_ceil(POINTS)).await?
        {
            let name = legend(&query.legend, &labels);
            // Grafana's stat and bars ask for one moment.
            let is_now = panel.kind == Kind::Timeseries || points.last().is_some_and(|(_, v)| v.is_finite());
            if is_now {
                lines.push(Drawn { query, name, points });
            }
        }
    }
    Ok(lines)
}

fn legend(pattern: &str, labels: &Value) -> String {
    let mut name = pattern.to_owned();
    for (key, value) in labels.as_object().into_iter().flatten() {
        name = name.replace(&format!("{{{{{key}}}}}"), value.as_str().unwrap_or_default());
    }
    // What a series has no label of is nothing.
    let rest = name.split("{{").enumerate().map(|(part, text)| match part {
        0 => text,
        _ => text.split_once("}}").map_or("", |(_, after)| after),
    });
    rest.collect::<String>().trim().to_owned()
}

fn stat(svg: &mut String, at: &Frame, panel: &Panel, lines: &[Drawn<'_>]) {
    let width = at.w / lines.len() as f64;
    for (index, line) in lines.iter().enumerate() {
        let value = last(line);
        let x = at.x + width * index as f64;
        text(svg, x, at.y + at.h / 2.0 + 12.0, colour(panel, value, index), 30, &said(panel, value));
        text(svg, x, at.y + at.h - 4.0, "#999999", 11, &line.name);
    }
}

fn bars(svg: &mut String, at: &Frame, panel: &Panel, lines: &[Drawn<'_>]) {
    let most = lines.iter().map(last).fold(f64::MIN_POSITIVE, f64::max);
    let height = (at.h / lines.len() as f64).min(26.0);
    for (index, line) in lines.iter().enumerate() {
        let (y, value) = (at.y + height * index as f64, last(line));
        let _ = write!(
            svg,
            r#"<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>"#,
            at.x + at.w * 0.35,
            y + 3.0,
            (at.w * 0.45 * value / most).max(1.0),
            height - 6.0,
            colour(panel, value, index)
        );
        text(svg, at.x, y + height / 2.0 + 4.0, "#cccccc", 11, &line.name);
        text(svg, at.x + at.w * 0.82, y + height / 2.0 + 4.0, "#ffffff", 12, &said(panel, value));
    }
}

fn timeseries(svg: &mut String, at: &Frame, panel: &Panel, lines: &[Drawn<'_>]) {
    // Stacked lines stand on those before them.
    let mut floor: Series = Vec::new();
    let raised: Vec<Series> = lines
        .iter()
        .map(|line| {
            if !line.query.stack {
                return line.points.clone();
            }
            let below =
                |time: f64| floor.iter().find(|(at, _)| (at - time).abs() < 0.5).map_or(0.0, |it| it.1);
            let raised: Series = line.points.iter().map(|(time, v)| (*time, v + below(*time))).collect();
            floor.retain(|(time, _)| !raised.iter().any(|(at, _)| (at - time).abs() < 0.5));
            floor.extend(&raised);
            raised
        })
        .collect();
    let all = || raised.iter().flatten().filter(|(_, value)| value.is_finite());
    let (from, to) =
        all().fold((f64::MAX, f64::MIN), |(from, to), (time, _)| (from.min(*time), to.max(*time)));
    let (low, high) = all().fold((0.0_f64, f64::MIN), |(low, high), (_, v)| (low.min(*v), high.max(*v)));
    let high = if high > low { high } else { low + 1.0 };
    let (left, bottom) = (at.x + 52.0, at.y + at.h - LEGEND);
    let (w, h) = (at.w - 52.0, bottom - at.y);
    for tick in 0..=4 {
        let (share, y) = (f64::from(tick) / 4.0, bottom - h * f64::from(tick) / 4.0);
        let _ = write!(svg, r##"<path d="M{left} {y}h{w}" stroke="#2f3338" fill="none"/>"##);
        text(svg, at.x, y + 4.0, "#999999", 10, &said(panel, low + (high - low) * share));
    }
    // The highest of a stack first: what is painted over it is what it stands on.
    for (index, (line, points)) in lines.iter().zip(&raised).enumerate().rev() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        let mut is_gap = true;
        let across = |time: f64| left + w * (time - from) / (to - from).max(1.0);
        for (time, value) in points {
            if value.is_finite() {
                let px = across(*time);
                let py = bottom - h * (value - low) / (high - low);
                let _ = write!(path, "{}{px:.1} {py:.1}", if is_gap { "M" } else { "L" });
            }
            is_gap = !value.is_finite();
        }
        let dash = if line.query.dashed { r#" stroke-dasharray="6 4""# } else { "" };
        if let (true, Some((first, _)), Some((last, _))) = (line.query.stack, points.first(), points.last()) {
            let down = format!("L{:.1} {bottom}L{:.1} {bottom}Z", across(*last), across(*first));
            let _ = write!(svg, r#"<path d="{path}{down}" fill="{colour}"/>"#);
        }
        let _ = write!(svg, r#"<path d="{path}" stroke="{colour}" stroke-width="1.5" fill="none"{dash}/>"#);
    }
    let (mut x, mut y) = (at.x, bottom + 14.0);
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let name = if line.name.is_empty() { "(no name)" } else { &line.name };
        let wide = 22.0 + 6.2 * name.chars().count() as f64;
        if x + wide > at.x + at.w && x > at.x {
            (x, y) = (at.x, y + 13.0);
        }
        let _ = write!(svg, r#"<path d="M{x} {}h12" stroke="{colour}" stroke-width="3"/>"#, y - 4.0);
        text(svg, x + 16.0, y, "#cccccc", 11, name);
        x += wide;
    }
}

fn last(line: &Drawn<'_>) -> f64 {
    line.points.last().map_or(f64::NAN, |(_, value)| *value)
}

/// By the thresholds of a panel, as Grafana names colours; else the next of the palette.
fn colour(panel: &Panel, value: f64, index: usize) -> &'static str {
    let step = panel.thresholds.iter().rev().find(|(_, from)| from.is_none_or(|from| value >= from));
    match step.map(|(colour, _)| colour.as_str()) {
        None => COLOURS[index % COLOURS.len()],
        Some("red") => "#f2495c",
        Some("orange") => "#ff9830",
        Some("yellow") => "#fade2a",
        Some(_) => "#73bf69",
    }
}

/// A value as Grafana writes it, in the panel's unit.
fn said(panel: &Panel, value: f64) -> String {
    let digits = |value: f64, usual: usize| {
        format!("{value:.*}", panel.decimals.map_or(usual, |decimals| decimals as usize))
    };
    let usual = |value: f64| if value.fract().abs() < 1e-9 { 0 } else { 2 };
    match panel.unit.as_str() {
        "percentunit" => format!("{}%", digits(value * 100.0, 1)),
        "s" if value.abs() >= 5400.0 => format!("{} h", digits(value / 3600.0, 1)),
        "s" if value.abs() >= 90.0 => format!("{} min", digits(value / 60.0, 1)),
        "s" if value.abs() < 1.0 && value != 0.0 => format!("{} ms", digits(value * 1000.0, 0)),
        "s" => format!("{} s", digits(value, usual(value))),
        "ops" => format!("{} ops/s", digits(value, usual(value))),
        _ => digits(value, usual(value)),
    }
}

fn text(svg: &mut String, x: f64, y: f64, colour: &str, size: u32, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}" fill="{colour}" font-size="{size}">{words}</text>"#);
}

fn number(panel: &Value, key: &str) -> f64 {
    panel["gridPos"][key].as_f64().unwrap_or_default()
}
