//! The figures that are kept in `docs/benchmarks.json`, and the tables that `docs/benchmarks.md` makes of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A figure as it was measured last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The median of the runs, if the figure is no count.
    pub value: f64,
    /// Such as `ms`; of a ratio or count, what is divided or counted.
    pub unit: String,
    /// `{"max": …}` or `{"min": …}`; empty where there is none.
    pub goal: BTreeMap<String, f64>,
    /// How many runs.
    pub runs: usize,
    /// The least of the runs, and the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<(f64, f64)>,
    /// When.
    pub at: Date,
    /// On what.
    pub machine: String,
}

/// All of them, by name.
pub type Kept = BTreeMap<String, Measured>;

/// Where the figures are kept, in the sources.
pub fn file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.json")
}

/// Reads what is kept.
pub fn read() -> Result<Kept> {
    let path = file();
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Keeps a figure, from its line, in the place of what was measured before.
pub fn keep(line: &Value, at: Date) -> Result<()> {
    let name = line["bench"].as_str().context("a line without a name")?;
    let number = |key: &str| line[key].as_f64();
    let measured = Measured {
        value: number("value").context("a line without a value")?,
        unit: line["unit"].as_str().unwrap_or_default().to_owned(),
        goal: serde_json::from_value(line["goal"].clone())?,
        runs: line["runs"].as_u64().and_then(|runs| runs.try_into().ok()).unwrap_or(1),
        range: number("min").zip(number("max")),
        at,
        machine: machine(),
    };
    let mut kept = read()?;
    kept.insert(name.to_owned(), measured);
    let mut text = serde_json::to_string_pretty(&kept)?;
    text.push('\n');
    Ok(std::fs::write(file(), text)?)
}

/// Processors, memory and kernel of this machine.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
        line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).trim().to_owned()
    };
    let model = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kib: f64 =
        field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores of {model}, {:.0} GiB, Linux {}", kib / 1024.0 / 1024.0, kernel.trim())
}

/// The figures of a part of the page: name, and what it is.
pub type Part = &'static [(&'static str, &'static str)];

/// The table of a part. Numbers stand as they were measured: nothing is rounded here.
pub fn table(part: Part, kept: &Kept) -> Result<String> {
    let mut table =
        "| figure | value | range | goal | runs | measured | what it is |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (name, what) in part {
        let of = kept.get(*name).with_context(|| {
            format!("{name} was never kept: cargo bench -p spotpool-e2e -- {name} --keep")
        })?;
        let range = of.range.map_or("–".to_owned(), |(least, most)| format!("{least} to {most}"));
        let goal = match (of.goal.get("max"), of.goal.get("min")) {
            (Some(max), _) if of.value > *max => format!("≤ {max}, **missed**"),
            (_, Some(min)) if of.value < *min => format!("≥ {min}, **missed**"),
            (Some(max), _) => format!("≤ {max}"),
            (_, Some(min)) => format!("≥ {min}"),
            (None, None) => "–".to_owned(),
        };
        let unit = if of.unit == "ratio" { "" } else { &of.unit };
        let value = format!("{} {unit}", of.value);
        writeln!(
            table,
            "| `{name}` | {} | {range} | {goal} | {} | {} | {what} |",
            value.trim(),
            of.runs,
            of.at
        )?;
    }
    Ok(table)
}

/// The machines of the page, and how many figures are of each.
pub fn machines(kept: &Kept) -> String {
    let mut machines: BTreeMap<&str, usize> = BTreeMap::new();
    for measured in kept.values() {
        *machines.entry(&measured.machine).or_default() += 1;
    }
    machines
        .iter()
        .fold(String::new(), |text, (machine, count)| text + &format!("- {machine}: {count} figures\n"))
}

/// The parts of the page, by the name of their marks.
pub const PARTS: &[(&str, Part)] = &[
    ("one node", ONE_NODE),
    ("many nodes", MANY_NODES),
    ("capacity", CAPACITY),
    ("agent", AGENT),
    ("apiserver", APISERVER),
    ("large cluster", LARGE_CLUSTER),
    ("many pools", MANY_POOLS),
    ("fallback", FALLBACK),
];

const ONE_NODE: Part = &[
    (
        "notice_to_cordon",
        "from the answer to the poll that brings the notice until a watch sees the Node cordoned",
    ),
    ("notice_to_cordon_total", "from the event's appearance; the wait for the next poll is in it"),
    ("evict_110", "last of 110 evictions accepted, no disruption budget"),
    (
        "evict_110_vs_raw",
        "first eviction received to last accepted, against [the raw limit](#what-the-raw-limit-is)",
    ),
    ("evict_110_vs_kubectl_drain", "how many times sooner than `kubectl drain`"),
    ("evict_30", "the same with 30 pods"),
    ("evict_30_vs_raw", "likewise, against its raw limit"),
    ("evict_30_vs_kubectl_drain", "likewise, against `kubectl drain`"),
    ("evict_110_one_pdb", "110 pods under one disruption budget that allows them all"),
    ("evict_110_one_pdb_vs_best_fixed", "against the best of 1, 2, 8, 32 and 110 in flight, in the same run"),
    ("evict_ten_pdbs_vs_one", "ten budgets of 11 pods each on one node, against one of 110"),
    ("blocked_pod_delay", "what one pod held by a budget costs the other 109"),
    ("blocked_pod_requests", "what the agent asks because of one pod that a budget holds, over 5 s"),
    ("drain_api_requests", "requests for a drain of 30 pods, watches and Events aside"),
    ("drain_api_requests_110", "the same for 110 pods"),
];

const MANY_NODES: Part = &[
    (
        "mass_cordon_50",
        "50 nodes of 20 pods whose events appear in the same instant, until the last is cordoned",
    ),
    ("mass_evict_50x20", "the same until the last of their 1,000 evictions is accepted"),
    (
        "mass_evict_vs_raw",
        "first eviction received to last accepted, against [the raw limit](#what-the-raw-limit-is): bare programs that hear of it over a second, as whoever polls",
    ),
    (
        "mass_evict_vs_same_instant",
        "the same where all agents hear of it in the same instant, against bare programs that all begin in one",
    ),
];

const CAPACITY: Part = &[
    ("notice_to_put", "from the agent's notice until the PUT arrives at ARM"),
    (
        "notice_to_replacement_ready_vs_boot",
        "notice until the replacement is Ready, against boot time and the time a Node takes to be Ready",
    ),
    ("arm_idle_reads", "one operator with 100 agent pools, a day of simulated time; all of them are lists"),
    ("arm_idle_writes", "in that day"),
    (
        "arm_shared_bucket_lowest",
        "40 operators in one subscription, 6 simulated hours with an outage of 20 minutes before: what was left at least of the bucket that they share; nothing was refused",
    ),
];

const AGENT: Part = &[
    ("agent_idle_rss", "with 30 pods on the node"),
    ("agent_idle_anonymous", "of it anonymous"),
    ("agent_idle_cpu", "at one poll a second, readiness probed as by a kubelet"),
    ("agent_idle_imds_requests", "over a minute"),
    (
        "agent_idle_api_requests",
        "beside watches and their renewal, from the audit log, for as long as the other figures of one node take, at least 3 minutes",
    ),
    ("agent_binary_size", "as it is shipped"),
];

const APISERVER: Part = &[
    ("agents_connections", "connections of each agent to the API server"),
    ("agents_watches", "watches that the API server has open for each agent"),
    ("agents_idle_requests", "of each agent, for five minutes in which nothing happens: watches are renewed"),
    ("agents_idle_busiest_second", "requests of all 50 in the busiest second of these five minutes"),
    (
        "agents_reconnect_requests",
        "of each agent, from the start of an API server that was away for 5 s until all watches are open again",
    ),
];

const LARGE_CLUSTER: Part = &[
    (
        "plan_p99_5000_nodes",
        "one plan for 5,000 nodes in 100 agent pools, without any cluster: calm, a zone lost, half of all lost, growth, surplus, drains; with the room on all nodes and what 2,000 disruption budgets need. 600 plans a run",
    ),
    ("operator_rss_5000_nodes", "the most in a minute"),
    ("operator_cpu_5000_nodes", "in that minute"),
    (
        "floor_2000_budgets",
        "one survey of all pods and budgets, mean of 20; aside from plans, at most every 3 s",
    ),
    (
        "mass_notice_to_put_500",
        "500 notices in one instant, 50 of each of ten agent pools, until the last PUT that is needed for all of them arrives",
    ),
    (
        "mass_notice_to_put_500_polled",
        "the same, the notices spread over a second as agents poll, and ARM taking a second for each PUT",
    ),
    ("mass_notice_to_put_500_one_pool", "in one instant, all of one scale set: each notice names all 500"),
];

const MANY_POOLS: Part = &[
    (
        "pools_100_start",
        "from the start until the machines of all 100 agent pools are listed: Azure's limit on reads is what takes so long",
    ),
    ("pools_100_rss", "after two minutes in which nothing happens"),
    (
        "pools_100_idle_requests",
        "requests to the API server in these two minutes, ends of watches among them",
    ),
    ("pools_100_idle_writes", "of these, writes"),
    (
        "pools_100_notice_to_put",
        "a notice in each SpotPool, one after the other: from the notice until the PUT for its replacement arrives",
    ),
    ("pools_100_notice_to_put_p99", "the second longest of these"),
    ("pools_100_notice_writes", "writes to the API server for each of these notices"),
];

const FALLBACK: Part = &[
    ("fallback_simulated_lost", "from the notice: spot is taken back and sold out"),
    ("fallback_simulated_refused", "from the failure of the operation that should bring more spot"),
    (
        "fallback_simulated_silent",
        "from the order of more spot, with which Azure does nothing and reports no error (`fallback.growthAfter`: 5 min)",
    ),
];
