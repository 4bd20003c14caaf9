//! What users install must be what the programs speak: `UPDATE=1 cargo test -p spotpool-crds` rewrites.

use kube::CustomResourceExt;

#[test]
fn yaml_is_current() {
    let crd = spotpool_crds::SpotPool::crd();
    let path = format!("{}/yaml/{}.yaml", env!("CARGO_MANIFEST_DIR"), crd.spec.names.plural);
    let wanted = spotpool_crds::manifest(&crd).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{path} is not what the types say; run UPDATE=1 cargo test -p spotpool-crds");
}
