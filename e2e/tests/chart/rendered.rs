//! `charts/rendered` is what the chart makes: the harness, `kubectl spotpool doctor` and reviewers read it there, so that
//! the rights that are installed are those that the tests ran with.

use std::collections::BTreeMap;

use crate::helm::{charts, example, template};

/// Templates whose result is kept.
const KEPT: [&str; 8] = [
    "agent/rbac.yaml",
    "agent/own-node.yaml",
    "agent/own-pods.yaml",
    "operator/rbac.yaml",
    "operator/own-finalizer.yaml",
    "operator/own-nodes.yaml",
    "operator/own-pods.yaml",
    "flow-control.yaml",
];

#[test]
fn what_the_tests_install_is_what_the_chart_installs() {
    let rendered = template(&example("managed-identity.yaml"), &[]).unwrap();
    let mut by_template: BTreeMap<&str, String> = BTreeMap::new();
    for document in rendered.split("---\n# Source: spotpool/templates/").skip(1) {
        let (source, text) = document.split_once('\n').unwrap();
        let all = by_template.entry(source).or_default();
        if !all.is_empty() {
            all.push_str("---\n");
        }
        all.push_str(text.trim_end());
        all.push('\n');
    }
    for kept in KEPT {
        let wanted = format!(
            "# Made from charts/spotpool/templates/{kept}: UPDATE=1 cargo test -p spotpool-e2e --test chart\n{}",
            by_template[kept]
        );
        let path = charts().join("rendered").join(kept);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "charts/rendered/{kept} is not what the chart makes: UPDATE=1 cargo test -p spotpool-e2e --test chart"
        );
    }
}
