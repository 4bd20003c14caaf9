//! The report as one page: nothing of it is fetched, and nothing in it runs.

use jiff::Timestamp;
use spotpool_crds::drill::Target;

use super::report::{COURSE, Report, STEPS};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
table{border-collapse:collapse;margin:.5rem 0 1.5rem;width:100%}td,th{border-bottom:1px solid #d5dae0;padding:.25rem .6rem;\
text-align:left;vertical-align:top}.Succeeded,.held{color:#116329}.Failed,.did{color:#b3261e}.Aborted,.Refused{color:#8a5a00}\
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif}svg .grid{stroke:#d5dae0}\
svg .wanted{stroke:#1b1f24;stroke-dasharray:5 4}";

/// Wide enough for a name to the left of the bars.
const LEFT: f64 = 260.0;
const WIDTH: f64 = 1000.0;
/// Where the last moment is.
const RIGHT: f64 = WIDTH - 20.0;
const LINE: f64 = 24.0;
/// Of the graph.
const HEIGHT: f64 = 180.0;
const COLOURS: [&str; 7] = ["#9aa4b2", "#d29922", "#d29922", "#2f81f7", "#b3261e", "#116329", "#116329"];

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut body = format!(
        "<h1>Drill {}: <span class=\"{2}\">{2}</span></h1><p>{}</p>",
        escaped(&report.drill),
        escaped(&report.message),
        report.phase
    );
    body.push_str(&format!(
        "<p>SpotPool <code>{}</code>, {} of {} nodes, {}.</p>",
        escaped(&report.pool),
        report.targets.len(),
        report.candidates,
        escaped(&report.method)
    ));
    body.push_str(&picture(report));
    body.push_str(&graph(report));
    let heads = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    body.push_str(&table("Verdict", &heads(&["expectation", "expected", "was", ""]), &report.verdict_rows()));
    body.push_str(&table("SpotPool", &heads(&COURSE), &report.course_rows()));
    body.push_str(&table("Nodes", &report.node_heads(), &report.node_rows()));
    body.push_str(&table("Held up by", &heads(&["node", "what"]), &report.held_rows()));
    body.push_str(&table("Timeline", &heads(&["since the beginning", "what"]), &report.moment_rows()));
    body.push_str(&table(
        "Runs before",
        &heads(&["over", "result", "nodes", "message"]),
        &report.past_rows(),
    ));
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Drill {}</title><style>{STYLE}</style>\n<body>{body}</body></html>\n",
        escaped(&report.drill)
    )
}

fn table(title: &str, heads: &[String], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let line = |tag: &str, cells: &[String]| {
        let cells: Vec<String> =
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{}</tr>\n", cells.concat())
    };
    let rows: String = rows.iter().map(|row| line("td", row)).collect();
    format!("<h2>{title}</h2><table>{}{rows}</table>", line("th", heads))
}

/// A line for each node: from one step to the next a bar.
fn picture(report: &Report) -> String {
    let Some(from) = report.from else { return String::new() };
    let whole = report.to.duration_since(from).as_secs_f64().max(1.0);
    let x = |at: Timestamp| place(report, from, at);
    let mut drawn = String::new();
    for (row, target) in report.targets.iter().enumerate() {
        let y = LINE * (row as f64 + 1.0);
        drawn.push_str(&format!("<text x=\"0\" y=\"{:.0}\">{}</text>", y + 4.0, escaped(&target.node)));
        let steps = taken(target);
        for (index, (name, colour, at)) in steps.iter().enumerate() {
            let end = steps.get(index + 1).map_or(*at, |next| next.2);
            let (begin, width) = (x(*at), (x(end) - x(*at)).max(3.0));
            drawn.push_str(&format!(
                "<rect x=\"{begin:.1}\" y=\"{:.0}\" width=\"{width:.1}\" height=\"12\" fill=\"{colour}\"><title>{name} {}</title></rect>",
                y - 6.0,
                report.since(Some(&(*at).into()))
            ));
        }
    }
    let height = LINE * (report.targets.len() as f64 + 2.0);
    drawn.push_str(&format!(
        "<text x=\"{LEFT}\" y=\"{0:.0}\">0 s</text><text x=\"{RIGHT}\" y=\"{0:.0}\" text-anchor=\"end\">{whole:.0} s</text>",
        height - 6.0
    ));
    let legend: Vec<String> = STEPS
        .iter()
        .zip(COLOURS)
        .filter(|((name, _), _)| report.steps().iter().any(|(taken, _)| taken == name))
        .map(|((name, _), colour)| format!("<span style=\"color:{colour}\">&#9632;</span> {name} "))
        .collect();
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">{drawn}</svg><p>{}</p>", legend.concat())
}

/// Units that were ready, over the same time as the bars above; what is wanted is dashed.
fn graph(report: &Report) -> String {
    let (units, Some(from)) = (&report.units, report.from) else { return String::new() };
    if units.course.is_empty() {
        return String::new();
    }
    let course = units.course.iter().map(|point| (point.at.0, point.ready));
    let most = course.clone().map(|(_, ready)| ready).max().unwrap_or_default().max(units.wanted).max(1);
    let x = |at: Timestamp| place(report, from, at);
    let y = |units: i32| HEIGHT - LINE - f64::from(units) / f64::from(most) * (HEIGHT - 2.0 * LINE);
    let right = x(report.to);
    let mut drawn = String::new();
    // About four lines, at whole units.
    let step = (most + 3) / 4;
    for ready in (0..=most).step_by(step.max(1) as usize) {
        drawn.push_str(&format!(
            "<path class=\"grid\" d=\"M{LEFT} {0:.1}H{right:.1}\"/><text x=\"{1:.0}\" y=\"{2:.1}\" text-anchor=\"end\">{ready}</text>",
            y(ready),
            LEFT - 6.0,
            y(ready) + 4.0
        ));
    }
    let mut path = String::new();
    for (at, ready) in course {
        // A value holds until the next.
        let (x, y, to) = (x(at), y(ready), if path.is_empty() { 'M' } else { 'H' });
        path.push_str(&format!("{to}{x:.1}{}{y:.1}", if to == 'M' { ' ' } else { 'V' }));
    }
    let wanted = y(units.wanted);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"ready units over time\"><text x=\"0\" y=\"{:.0}\">ready units</text>{drawn}\
         <path class=\"wanted\" fill=\"none\" d=\"M{LEFT} {wanted:.1}H{right:.1}\"/>\
         <path class=\"ready\" fill=\"none\" stroke=\"#2f81f7\" stroke-width=\"2\" d=\"{path}H{right:.1}\"/></svg>",
        HEIGHT / 2.0
    )
}

/// Where a time is, from left to right.
fn place(report: &Report, from: Timestamp, at: Timestamp) -> f64 {
    let whole = report.to.duration_since(from).as_secs_f64().max(1.0);
    let share = (at.duration_since(from).as_secs_f64() / whole).clamp(0.0, 1.0);
    LEFT + share * (RIGHT - LEFT)
}

/// The steps that a node has taken, by time.
fn taken(target: &Target) -> Vec<(&'static str, &'static str, Timestamp)> {
    let steps = STEPS.iter().zip(COLOURS);
    let mut steps: Vec<_> =
        steps.filter_map(|((name, at), colour)| Some((*name, colour, at(target)?.0))).collect();
    steps.sort_by_key(|(_, _, at)| *at);
    steps
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Names and messages come from the cluster: whoever writes them must not write the page.
    #[test]
    fn the_page_holds_what_was_seen_and_runs_nothing_of_it() {
        let time = |second: u32| format!("2026-01-01T00:00:{second:02}Z");
        let run = json!({"id": "r", "result": "Failed", "message": "<script>alert(1)</script>", "candidates": 3,
            "startedAt": time(0), "endedAt": time(40), "hourlyCost": {"currency": "USD", "before": "0.3", "highest": "0.75", "now": "0.4"},
            "units": {"wanted": 3, "before": 3, "lowest": 2, "now": 3, "shortSeconds": 20, "shortUnitSeconds": 25, "course": [{"at": time(0), "ready": 3},
                {"at": time(10), "ready": 2}, {"at": time(30), "ready": 3}]},
            "targets": [{"node": "n<1>", "uid": "u", "agentPool": "spota", "units": 1, "askedAt": time(1),
                "noticedAt": time(2), "drainedAt": time(9), "goneAt": time(32),
                "held": ["shop/web-0: held by <b>"], "pods": {"before": 9, "evicted": 6, "escalated": 2, "left": 1}}],
            "verdict": [{"expectation": "drainedInTime", "stated": "every node", "measured": "1 of 1 nodes", "held": true}]});
        let drill =
            serde_json::from_value(json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "EvictionDrill",
            "metadata": {"namespace": "batch", "name": "d"},
            "spec": {"target": {"spotPool": "workers"}, "amount": {"count": 1}, "limits": {"maxNodes": 1}},
            "status": {"phase": "Failed", "run": run}}))
            .unwrap();
        let report = Report::of(&drill, "2026-01-02T00:00:00Z".parse().unwrap()).unwrap();
        let page = page(&report);
        assert!(
            !page.contains("<script") && page.contains("&lt;script&gt;") && page.contains("n&lt;1&gt;"),
            "{page}"
        );
        assert!(!page.contains("<b>") && page.contains("held by &lt;b&gt;"), "{page}");
        assert_eq!(page.matches("<rect").count(), 4, "a bar for each step that was taken");
        // Three of three until 10 s of 40, two until 30 s: a quarter and three quarters of the way.
        assert!(page.contains("d=\"M260.0 24.0H440.0V68.0H800.0V24.0H980.0\""), "{page}");
        for wanted in [
            "+32s",
            "1 of 1 nodes",
            "batch/d",
            "never fewer than 2 of 3",
            "3 of 3, 40 s after the beginning",
            "for 20 s, 25 unit-seconds in all",
            "6 evicted, 2 deleted past their budget",
            "1 left",
            "shop/web-0",
            "0.3 USD",
            "at most 0.75 USD",
            "0.4 USD",
        ] {
            assert!(page.contains(wanted) && report.markdown().contains(wanted), "{wanted}");
        }
    }
}
