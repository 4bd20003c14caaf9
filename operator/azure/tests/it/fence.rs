//! Azure's crates stay behind the fence: what replaces them one day must touch these files only.

use std::path::{Path, PathBuf};

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") || name == "Cargo.toml" {
            found.push(path);
        }
    }
}

#[test]
fn nobody_else_names_azures_crates() {
    let azure = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = azure.parent().and_then(Path::parent).unwrap();
    let mut all = Vec::new();
    for folder in ["crds", "operator", "node-agent", "e2e"] {
        files(&root.join(folder), &mut all);
    }
    assert!(all.len() > 100, "{} files", all.len());
    let old = ["src/pipeline.rs", "src/body.rs"].map(|file| azure.join(file));
    for path in all {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let names = |crates: &[&str]| {
            crates.iter().any(|name| {
                text.contains(&format!("{name}::"))
                    || text.contains(&format!("{name}.workspace"))
                    || text.contains(&format!("{name} ="))
            })
        };
        if !path.starts_with(azure) {
            let new =
                names(&["azure_core", "azure_identity", "azure_mgmt_containerservice", "old_azure_core"]);
            assert!(!new, "{} names a crate of Azure's", path.display());
        } else if path.starts_with(azure.join("src")) && !old.contains(&path) {
            let old = names(&["azure_mgmt_containerservice", "old_azure_core"]);
            assert!(!old, "{} names the old SDK", path.display());
        }
    }
}
