//! Dashboards: Grafana's JSON from our short source, see `charts/spotpool/dashboards/README.md`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// All of them.
pub const NAMES: [&str; 3] = ["executive", "oncall", "debug"];

/// A dashboard as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dashboard {
    /// By which Grafana knows it.
    pub uid: String,
    /// Its title.
    pub title: String,
    /// What it is for.
    pub description: String,
    /// From when on it shows.
    pub time: String,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// Panels that belong together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What they have in common.
    pub title: String,
    /// From left to right.
    pub panels: Vec<Panel>,
}

/// One figure.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// What that is, and what is bad.
    pub help: String,
    /// How it is shown.
    pub kind: Kind,
    /// Grafana's name of it.
    pub unit: String,
    /// Of 24.
    pub width: u32,
    /// Digits after the point.
    pub decimals: Option<u32>,
    /// Colour, and from which value on; null is from the beginning.
    #[serde(default)]
    pub thresholds: Vec<(String, Option<f64>)>,
    /// What it needs that not every cluster has.
    pub rare: Option<String>,
    /// What it shows, each with lines of its own.
    pub queries: Vec<Query>,
}

/// How a panel shows its figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One number.
    Stat,
    /// Bars.
    Bargauge,
    /// Lines over time.
    Timeseries,
}

/// What is asked of Prometheus.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// PromQL, with `$pools` and Grafana's variables.
    pub expr: String,
    /// Names of its lines.
    #[serde(default)]
    pub legend: String,
    /// Whether its lines are put on each other.
    #[serde(default)]
    pub stack: bool,
    /// Whether its lines are dashed.
    #[serde(default)]
    pub dashed: bool,
}

/// What `$pools` stands for.
const POOLS: &str = r#"cluster=~"$cluster",namespace=~"$namespace",pool=~"$pool""#;
/// Present while any SpotPool is.
const VARIABLES_OF: &str = "spotpool_operator_pool_nodes";
const HEIGHTS: [(Kind, u32); 3] = [(Kind::Stat, 4), (Kind::Bargauge, 4), (Kind::Timeseries, 8)];

impl Query {
    /// As Grafana sends it, but for its variables.
    pub fn promql(&self) -> String {
        self.expr.replace("$pools", POOLS)
    }
}

/// Where a dashboard is: its source is `yaml`, what Grafana imports is `json`.
pub fn file(name: &str, extension: &str) -> PathBuf {
    let dashboards = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/spotpool/dashboards");
    dashboards.join(name).with_extension(extension)
}

impl Dashboard {
    /// Reads its source.
    pub fn read(name: &str) -> Result<Self> {
        let path = file(name, "yaml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())
    }

    /// All panels.
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }

    /// What Grafana imports.
    pub fn json(&self) -> Value {
        let (mut panels, mut y, mut id) = (Vec::new(), 0, 0);
        let mut next_id = || {
            id += 1;
            id
        };
        for row in &self.rows {
            panels.push(
                json!({"id": next_id(), "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}),
            );
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > 24 {
                    (x, y) = (0, y + height);
                    height = 0;
                }
                let h = HEIGHTS.iter().find(|(kind, _)| *kind == panel.kind).map_or(8, |(_, height)| *height);
                panels.push(panel.json(next_id(), &json!({"x": x, "y": y, "w": panel.width, "h": h})));
                x += panel.width;
                height = height.max(h);
            }
            y += height;
        }
        json!({
            "uid": self.uid, "title": self.title, "description": self.description, "tags": ["spotpool"],
            "schemaVersion": 39, "version": 1, "editable": true, "graphTooltip": 1, "refresh": "30s",
            "time": {"from": self.time, "to": "now"}, "timezone": "utc",
            "annotations": {"list": []},
            "links": [{"type": "dashboards", "tags": ["spotpool"], "asDropdown": false, "includeVars": true,
                "keepTime": true, "title": "SpotPool"}],
            "templating": {"list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                variable("cluster", "Cluster", VARIABLES_OF),
                variable("namespace", "Namespace", &format!("{VARIABLES_OF}{{cluster=~\"$cluster\"}}")),
                variable("pool", "SpotPool",
                    &format!("{VARIABLES_OF}{{cluster=~\"$cluster\",namespace=~\"$namespace\"}}")),
            ]},
            "panels": panels,
        })
    }
}

/// "All" matches what has no such label, too.
fn variable(name: &str, label: &str, series: &str) -> Value {
    let query = format!("label_values({series}, {name})");
    json!({"name": name, "label": label, "type": "query", "datasource": datasource(), "definition": query,
        "query": {"query": query, "refId": "variable"}, "refresh": 2, "sort": 1, "includeAll": true, "multi": true,
        "allValue": ".*", "current": {"text": "All", "value": "$__all"}})
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

impl Panel {
    fn json(&self, id: u32, place: &Value) -> Value {
        let target = |(index, query): (usize, &Query)| {
            let instant = self.kind != Kind::Timeseries;
            let legend = if query.legend.is_empty() { "__auto" } else { &query.legend };
            json!({"refId": letter(index), "datasource": datasource(), "expr": query.promql(), "legendFormat": legend,
                "instant": instant, "range": !instant})
        };
        let mut defaults = json!({"unit": self.unit, "color": {"mode": "palette-classic"}, "custom": {}});
        if let Some(decimals) = self.decimals {
            defaults["decimals"] = decimals.into();
        }
        if !self.thresholds.is_empty() {
            let step = |(color, from): &(String, Option<f64>)| json!({"color": color, "value": from});
            let steps: Vec<Value> = self.thresholds.iter().map(step).collect();
            defaults["color"] = json!({"mode": "thresholds"});
            defaults["thresholds"] = json!({"mode": "absolute", "steps": steps});
        }
        let options = match self.kind {
            Kind::Timeseries => {
                defaults["custom"] = json!({"lineWidth": 1, "fillOpacity": 10, "spanNulls": false});
                json!({"legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                    "tooltip": {"mode": "multi", "sort": "desc"}})
            }
            Kind::Stat => json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value",
                "graphMode": "none", "textMode": "auto"}),
            Kind::Bargauge => {
                json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal",
                "displayMode": "basic"})
            }
        };
        let overrides: Vec<Value> = self.queries.iter().enumerate().filter_map(look).collect();
        json!({
            "id": id, "type": format!("{:?}", self.kind).to_lowercase(), "title": self.title,
            "description": self.description(), "datasource": datasource(), "gridPos": place,
            "targets": self.queries.iter().enumerate().map(target).collect::<Vec<_>>(),
            "fieldConfig": {"defaults": defaults, "overrides": overrides}, "options": options,
        })
    }

    fn description(&self) -> String {
        match &self.rare {
            Some(rare) => format!("{} Needs {rare}.", self.help),
            None => self.help.clone(),
        }
    }
}

/// How the lines of a query look, where that is other than usual.
fn look((index, query): (usize, &Query)) -> Option<Value> {
    let mut properties = Vec::new();
    if query.stack {
        properties.push(json!({"id": "custom.stacking", "value": {"group": "A", "mode": "normal"}}));
        properties.push(json!({"id": "custom.fillOpacity", "value": 40}));
    }
    if query.dashed {
        properties.push(json!({"id": "custom.lineStyle", "value": {"dash": [10, 10], "fill": "dash"}}));
        properties.push(json!({"id": "custom.fillOpacity", "value": 0}));
    }
    let matcher = json!({"id": "byFrameRefID", "options": letter(index)});
    (!properties.is_empty()).then(|| json!({"matcher": matcher, "properties": properties}))
}

fn letter(index: usize) -> String {
    char::from(b'A' + index as u8).to_string()
}
