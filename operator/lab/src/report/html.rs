//! One page that needs nothing else: figures, and three plots.

use std::fmt::Write;

use crate::measure::{CLASSES, Measured};
use crate::report::Heading;
use crate::report::plots::{self, DARK, LIGHT, escaped};
use crate::study::{self, Tradeoff};

const STYLE: &str = "
body{background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}p{max-width:46em}.dim{color:var(--dim)}
.synthetic{border:2px solid #d55e00;padding:.4em .8em;font-weight:600}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
th,td{padding:.25em .45em;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--dim);white-space:normal;vertical-align:bottom}td:first-child,th:first-child{text-align:left}tr.ours{background:var(--row);font-weight:600}
svg{width:100%;min-width:680px;height:auto}
";

/// The page. The first policy of the first course is the one that capacity is drawn of.
pub fn page(heading: &Heading, played: &[Vec<Measured>], tradeoff: &Tradeoff) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{name}: policy lab</title><style>:root{{{LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}{STYLE}{}</style>\n\
         <h1>What would it have cost? {name}</h1>\n",
        plots::STYLE,
        name = escaped(&heading.name)
    );
    if heading.synthetic {
        html.push_str("<p class=\"synthetic\">Synthetic: evictions, refusals and prices were drawn, not observed.</p>\n");
    }
    let _ = writeln!(
        html,
        "<p>{:.1} hours, each policy in the same course of things. Full capacity could not have cost less than {:.2}. Costs are in the \
         currency of the prices.</p>",
        heading.hours, heading.least_cost
    );
    table(&mut html, &study::means(played));
    html.push_str("<h2>Cost against availability</h2>\n<p>Up is more of what was wanted ready, left is cheaper. Filled dots are the \
                   efficient frontier, joined by a line: no other policy is cheaper and more ready than these.");
    if tradeoff.courses > 1 {
        let _ = write!(
            html,
            " Dots are medians of {} courses, the thin cross at each spans the middle half of them.",
            tradeoff.courses
        );
    }
    html.push_str("</p>\n");
    html.push_str(&plots::tradeoff(tradeoff).inline());
    let Some((first, ours)) = played.first().and_then(|first| Some((first, first.first()?))) else {
        return html;
    };
    let of_first = if played.len() > 1 { " in the first course" } else { "" };
    let _ = writeln!(
        html,
        "<h2>Ready capacity over time{of_first}: {}</h2>\n<p>Units that carry pods, by agent pool; on-demand is hatched.</p>",
        escaped(&ours.policy)
    );
    html.push_str(&plots::capacity(heading, &ours.series).inline());
    let _ = writeln!(html, "<h2>Cost over time{of_first}</h2>\n<p>What was paid until then, by policy.</p>");
    html.push_str(&plots::costs(heading, first).inline());
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
            _ => write!(html, "<th>≥ {least} %"),
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
