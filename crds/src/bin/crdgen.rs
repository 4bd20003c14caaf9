//! Prints the CustomResourceDefinitions as YAML, or compares them with a folder.
//!
//! `crdgen` prints; `crdgen DIR` writes `DIR/<plural>.yaml`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1);
    for crd in spotpool_crds::definitions() {
        let yaml = spotpool_crds::manifest(&crd)?;
        match &dir {
            None => print!("---\n{yaml}"),
            Some(dir) => std::fs::write(format!("{dir}/{}.yaml", crd.spec.names.plural), yaml)?,
        }
    }
    Ok(())
}
