//! The images that nodes are given: ours as they would be published, and one for everything else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A shell, as static as our own programs. Its package is Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// What holds a pod's namespaces when nothing else is said, and a shell for whoever says so.
const WORKLOAD: &str =
    "FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\", \"sleep\", \"1000000\"]\n";

/// What is missing on this machine to build images.
pub fn missing() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("buildah").is_file()) {
        return Some("images need buildah (apt-get install --no-install-recommends buildah)".to_owned());
    }
    (!Path::new(BUSYBOX).is_file())
        .then(|| format!("workloads need {BUSYBOX} (apt-get install --no-install-recommends busybox-static)"))
}

/// OCI archives of all images, that of workloads by this name.
pub fn build(workload: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let out = root.join("target/images");
    let said = run(&root.join(".ci/images"), [&out]);
    let mut archives: Vec<PathBuf> = said
        .lines()
        .map(|line| {
            let image: Value = serde_json::from_str(line).unwrap();
            let name = |key: &str| image[key].as_str().unwrap().to_owned();
            out.join(format!("{}-{}.tar", name("image"), name("arch")))
        })
        .collect();
    assert_eq!(archives.len(), 2, "{said}");

    let context = tempfile::tempdir().unwrap();
    let path = |name: &str| context.path().join(name).display().to_string();
    std::fs::copy(BUSYBOX, path("busybox")).unwrap();
    std::fs::write(path("Dockerfile"), WORKLOAD).unwrap();
    let archive = out.join("workload.tar");
    // buildah adds to an archive that is there.
    let _ = std::fs::remove_file(&archive);
    let target = format!("oci-archive:{}:{workload}", archive.display());
    let (here, storage, scratch) = (path("."), path("storage"), path("scratch"));
    for work in [
        ["build", "--quiet", "--layers=false", "--tag", workload, &here].as_slice(),
        &["push", "--quiet", workload, &target],
    ] {
        let own = ["--storage-driver", "vfs", "--root", &storage, "--runroot", &scratch];
        run(Path::new("buildah"), own.iter().chain(work));
    }
    archives.push(archive);
    archives
}

fn run<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>) -> String {
    let mut command = Command::new(program);
    // What cargo sets for a test would have everything built anew.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_")) {
        if !["CARGO_HOME", "CARGO_INCREMENTAL"].iter().any(|kept| name == *kept) {
            command.env_remove(name);
        }
    }
    let output = command.args(args).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}{errors}", program.display());
    said.into_owned()
}
