//! Prints the CustomResourceDefinitions as YAML, or compares them with a folder.
//!
//! `crdgen` prints; `crdgen DIR` writes `DIR/<plural>.yaml`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let crd = spotpool_crds::definition();
    let yaml = spotpool_crds::manifest(&crd)?;
    match std::env::args().nth(1) {
        None => print!("{yaml}"),
        Some(dir) => std::fs::write(format!("{dir}/{}.yaml", crd.spec.names.plural), yaml)?,
    }
    Ok(())
}
