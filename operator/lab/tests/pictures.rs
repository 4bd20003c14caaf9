//! Pictures of the pages are what the lab draws, and can be read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{drawn, here};
use spotpool_lab::measure::Measured;
use spotpool_lab::optimum::least_cost;
use spotpool_lab::policy::{self, SpotPool};
use spotpool_lab::report::{Heading, html, plots};
use spotpool_lab::scenario::{Scenario, Sources};
use spotpool_lab::simulate::simulate;
use spotpool_lab::study::{Tradeoff, play, tradeoff};

/// Where these are kept, they stay as they were drawn; `UPDATE=1` draws them anew.
fn is_kept(name: &str, drawn: &str) {
    let path = here("../../docs/images").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, drawn).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(
        drawn == kept,
        "docs/images/{name} is not what the lab draws: UPDATE=1 cargo test -p spotpool-lab --test pictures"
    );
}

fn g4dn() -> Scenario {
    let (manifest, cloud) = (here("examples/p3.yaml"), here("examples/p3-cloud.yaml"));
    let trace = here("traces/bamboo/g4dn-trace.csv");
    let traces = vec![(Some("spot".into()), trace.as_path())];
    let sources = Sources { manifest: Some(&manifest), cloud: Some(&cloud), traces, ..Sources::default() };
    Scenario::read(&sources, 10, 1).unwrap()
}

#[test]
fn the_picture_of_the_lab_is_of_a_trace_as_the_plan_plays_it() {
    let scenario = g4dn();
    let ours = simulate(&scenario, &mut SpotPool::new(&scenario)).unwrap();
    let heading = Heading::of(std::slice::from_ref(&scenario), &[0.0]);
    let below = format!(
        "Bamboo's trace of g4dn on AWS, {:.1} hours, 12 units wanted: {:.2} % of them ready, {:.0} % cheaper than on demand alone.",
        heading.hours,
        100.0 * ours.availability,
        ours.saving_percent
    );
    let plot = plots::capacity(&heading, &ours.series);
    is_kept("lab.svg", &plot.file("On-demand stands in where spot is missing", &below));
}

/// The command that writes the JSON stands on the page.
#[test]
fn the_picture_of_the_policy_is_drawn_from_what_the_lab_wrote() {
    let text = std::fs::read_to_string(here("../../docs/images/policy.json")).unwrap();
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["synthetic"], true);
    let of: Tradeoff = serde_json::from_value(written["tradeoff"].clone()).unwrap();
    let below = format!(
        "{} made-up courses, medians; crosses span the middle half. Filled: none is cheaper and more ready. Up and left is better.",
        of.courses
    );
    is_kept("policy.svg", &plots::tradeoff(&of).file("What each policy costs, and what it gives", &below));
}

/// Whoever pays must be able to trust the area: what is drawn adds up to what was measured.
#[test]
fn the_series_adds_up_to_what_was_measured() {
    for scenario in [g4dn(), drawn(3, 2)] {
        let ours = simulate(&scenario, &mut SpotPool::new(&scenario)).unwrap();
        let ends = ours.series.iter().skip(1).map(|point| point.at).chain([scenario.seconds]);
        let by_role = |on_demand: bool| -> f64 {
            let pools: Vec<usize> = (0..scenario.pools.len())
                .filter(|at| {
                    (scenario.pools[*at].role == spotpool_crds::spot_pool::Role::OnDemand) == on_demand
                })
                .collect();
            ours.series
                .iter()
                .zip(ends.clone())
                .map(|(point, end)| {
                    (end - point.at) as f64 / 60.0 * pools.iter().map(|pool| point.ready[*pool]).sum::<f64>()
                })
                .sum()
        };
        let wanted: f64 = ours
            .series
            .iter()
            .zip(ends.clone())
            .map(|(point, end)| point.wanted * (end - point.at) as f64 / 60.0)
            .sum();
        // Ready units are capped by what is wanted in the one, and not in the other.
        assert!(by_role(true) + by_role(false) >= wanted - ours.shortfall_unit_minutes - 1e-6);
        // Machines that boot or drain are paid for and not ready.
        assert!(by_role(true) > 0.0 && by_role(true) < ours.on_demand_minutes);
        assert!(ours.series.is_sorted_by(|one, next| one.cost <= next.cost && one.at < next.at));
        assert!(ours.series.last().unwrap().cost <= ours.cost);
    }
}

fn texts(svg: &str) -> Vec<(f64, f64, f64, String)> {
    let number = |tag: &str, name: &str| -> f64 {
        tag.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
    };
    let elements = svg.split("<text").skip(1).map(|it| it.split("</text>").next().unwrap());
    let upright = elements.filter(|it| !it.contains("rotate"));
    upright
        .map(|it| {
            let (tag, text) = it.split_once('>').unwrap();
            let text = text.replace("<tspan class=\"dim\">", "").replace("</tspan>", "");
            let width = text.chars().count() as f64 * 6.5;
            let left = number(tag, "x")
                - if tag.contains("middle") {
                    width / 2.0
                } else if tag.contains("\"end\"") {
                    width
                } else {
                    0.0
                };
            (left, number(tag, "y"), width, text)
        })
        .collect()
}

/// A name that lies on another is two names that nobody can read.
#[test]
fn no_text_of_a_plot_lies_on_another_or_leaves_it() {
    let mut scenario = drawn(1, 2);
    // Ten agent pools.
    for at in 0..5 {
        let (mut pool, mut of_spec) =
            (scenario.pools[at % 4].clone(), scenario.spec.agent_pools[at % 4].clone());
        pool.name = format!("spotextra{at}");
        of_spec.name.clone_from(&pool.name);
        scenario.pools.insert(4, pool);
        scenario.spec.agent_pools.insert(4, of_spec);
    }
    let played = vec![play(&scenario, policy::all(&scenario)).unwrap()];
    let heading = Heading::of(std::slice::from_ref(&scenario), &[least_cost(&scenario)]);
    let spread = tradeoff(&played, &[heading.least_cost]);
    let page = html::page(&heading, &played, &spread);
    let plots: Vec<&str> = page.split("<svg").skip(1).map(|it| it.split("</svg>").next().unwrap()).collect();
    assert_eq!(plots.len(), 3);
    assert!(played[0].iter().all(|it| plots[0].contains(&it.policy) && plots[2].contains(&it.policy)));
    assert!(heading.pools.len() == 10 && heading.pools.iter().all(|it| plots[1].contains(&it.name)));
    for plot in plots {
        let texts = texts(plot);
        for (at, (left, base, width, text)) in texts.iter().enumerate() {
            assert!(*left >= 0.0 && left + width <= 900.0, "{text} leaves the plot");
            for (other, y, wide, said) in &texts[at + 1..] {
                let is_apart = left + width <= *other || other + wide <= *left || (base - y).abs() >= 12.0;
                assert!(is_apart, "{text} lies on {said}");
            }
        }
    }
}

#[test]
fn over_several_courses_a_policy_is_held_against_the_first_in_the_same_course() {
    let of = |cost: f64, availability: f64| {
        let mut it = simulate(&g4dn(), &mut SpotPool::new(&g4dn())).unwrap();
        (it.cost, it.availability) = (cost, availability);
        it
    };
    let played: Vec<Vec<Measured>> =
        vec![vec![of(10.0, 0.9), of(20.0, 1.0)], vec![of(100.0, 0.8), of(50.0, 0.9)]];
    let spread = tradeoff(&played, &[5.0, 50.0]);
    assert_eq!((spread.courses, spread.least_cost), (2, 0.5));
    assert_eq!(Some(spread.policies[1].cost), Some([0.5, 2.0, 2.0]));
    let one = tradeoff(&played[..1], &[5.0]);
    assert_eq!((one.policies[1].cost, one.least_cost), ([20.0; 3], 5.0));
}
