//! What users install must be what the programs speak: `UPDATE=1 cargo test -p spotpool-crds` rewrites.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

/// Compares a file with what it should be, or writes it.
fn is_current(path: &str, wanted: &str) {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{path} is not what the types say; run UPDATE=1 cargo test -p spotpool-crds");
}

#[test]
fn yaml_is_current() {
    for crd in spotpool_crds::definitions() {
        let path = format!("yaml/{}.yaml", crd.spec.names.plural);
        is_current(&path, &spotpool_crds::manifest(&crd).unwrap());
    }
}

#[test]
fn the_chart_of_the_crds_is_current() {
    for mut crd in spotpool_crds::definitions() {
        let path = format!("../charts/spotpool-crds/templates/{}.yaml", crd.spec.names.plural);
        // Whoever uninstalls the chart keeps their SpotPools: deleting the definition would delete every one of them.
        let keep = ("helm.sh/resource-policy".to_owned(), "keep".to_owned());
        crd.metadata.annotations.get_or_insert_default().extend([keep]);
        let wanted = spotpool_crds::manifest(&crd).unwrap();
        assert!(!wanted.contains("{{"), "helm would take a description for a template");
        is_current(&path, &wanted);
    }
}
