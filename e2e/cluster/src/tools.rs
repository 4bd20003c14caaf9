//! The programs of a control plane, built from source once and kept in a cache outside `target`.
//!
//! Versions are those of `tools/go.mod`, `kwok/go.mod` (two modules, because no KWOK release builds with the
//! Kubernetes release that we test against), `prometheus/go.mod`, `helm/go.mod` and `gitops/go.mod`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::progress::Progress;
use crate::supervise::{Program, output};

/// Folder in which the built programs are kept, in place of the user's cache folder.
pub const TOOLS_DIR_ENV: &str = "SPOTPOOL_TOOLS_DIR";
/// Folder of ready-made programs (as `setup-envtest` makes one); what it holds is used instead of being built.
pub const ASSETS_ENV: &str = "KUBEBUILDER_ASSETS";

/// To be raised when the way of building changes in a manner that the hashed inputs do not show.
const RECIPE: &str = "1";

/// Where the stock KWOK stages are in its module, and which of them we use.
const STAGES: [&str; 4] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
];

struct Module {
    name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// The module that the programs are from.
    path: &'static str,
    /// Build tags, with commas between them.
    tags: &'static str,
    /// The program itself, where it is one of ours.
    main_go: &'static str,
}

const KUBERNETES: Module = Module {
    name: "kubernetes",
    go_mod: include_str!("../tools/go.mod"),
    go_sum: include_str!("../tools/go.sum"),
    path: "k8s.io/kubernetes",
    tags: "",
    main_go: "",
};

const KWOK: Module = Module {
    name: "kwok",
    go_mod: include_str!("../kwok/go.mod"),
    go_sum: include_str!("../kwok/go.sum"),
    path: "sigs.k8s.io/kwok",
    tags: "",
    main_go: "",
};

const PROMETHEUS: Module = Module {
    name: "prometheus",
    go_mod: include_str!("../prometheus/go.mod"),
    go_sum: include_str!("../prometheus/go.sum"),
    path: "github.com/prometheus/prometheus",
    tags: "remove_all_sd",
    main_go: "",
};

/// What GitOps tools make of objects: ours, around their libraries.
const GITOPS: Module = Module {
    name: "gitops",
    go_mod: include_str!("../gitops/go.mod"),
    go_sum: include_str!("../gitops/go.sum"),
    path: "github.com/fluxcd/cli-utils",
    tags: "",
    main_go: include_str!("../gitops/main.go"),
};

const HELM: Module = Module {
    name: "helm",
    go_mod: include_str!("../helm/go.mod"),
    go_sum: include_str!("../helm/go.sum"),
    path: "helm.sh/helm/v4",
    tags: "",
    main_go: "",
};

const TFLINT: Module = Module {
    name: "tflint",
    go_mod: include_str!("../tflint/go.mod"),
    go_sum: include_str!("../tflint/go.sum"),
    path: "github.com/terraform-linters/tflint",
    tags: "",
    main_go: "",
};

/// Has the CustomResourceDefinitions of PodMonitor and PrometheusRule in its archive. No program of it is built.
const PROMETHEUS_OPERATOR: &str = "github.com/prometheus-operator/prometheus-operator@v0.85.0";

/// Program and package. etcd's package ends in `v3`, so it is built by a command of its own.
const PROGRAMS: [(&str, &str); 5] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
];

/// Where the programs are.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Tools {
    /// etcd.
    pub etcd: PathBuf,
    /// The API server.
    pub apiserver: PathBuf,
    /// The controller manager.
    pub controller_manager: PathBuf,
    /// The scheduler.
    pub scheduler: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// KWOK, which plays the kubelets of fake nodes.
    pub kwok: PathBuf,
    /// The folder of KWOK's stock stage files.
    pub(crate) kwok_stages: PathBuf,
}

impl Tools {
    /// Finds the programs, and builds those that are not there yet: minutes the first time, nothing afterwards.
    pub async fn ensure() -> Result<Self> {
        let missing: Vec<_> = PROGRAMS.into_iter().filter(|(name, _)| given(name).is_none()).collect();
        let cache = cache_dir()?;
        let built = ensure(&cache, &KUBERNETES, &missing).await?;
        let kwok = ensure(&cache, &KWOK, &[("kwok", "sigs.k8s.io/kwok/cmd/kwok")]).await?;
        let find = |name: &str| given(name).unwrap_or_else(|| built.join(name));
        Ok(Self {
            etcd: find("etcd"),
            apiserver: find("kube-apiserver"),
            controller_manager: find("kube-controller-manager"),
            scheduler: find("kube-scheduler"),
            kubectl: find("kubectl"),
            kwok: kwok.join("kwok"),
            kwok_stages: kwok.join("stages"),
        })
    }

    /// kubectl alone, for a cluster that is there already: from `KUBEBUILDER_ASSETS`, from `PATH`, or built.
    pub(crate) async fn kubectl() -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let assets = std::env::var_os(ASSETS_ENV).map(PathBuf::from);
        let found = assets.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join("kubectl"));
        if let Some(kubectl) = found.into_iter().find(|path| path.is_file()) {
            return Ok(kubectl);
        }
        Ok(ensure(&cache_dir()?, &KUBERNETES, &[PROGRAMS[4]]).await?.join("kubectl"))
    }

    /// promtool, which checks and tests Prometheus' rules.
    pub async fn promtool() -> Result<PathBuf> {
        Self::of_prometheus("promtool").await
    }

    /// Prometheus itself, with static and file service discovery alone.
    pub async fn prometheus() -> Result<PathBuf> {
        Self::of_prometheus("prometheus").await
    }

    /// Helm, which installs the charts.
    pub async fn helm() -> Result<PathBuf> {
        if let Some(program) = given("helm") {
            return Ok(program);
        }
        Ok(ensure(&cache_dir()?, &HELM, &[("helm", "helm.sh/helm/v4/cmd/helm")]).await?.join("helm"))
    }

    /// A linter of Terraform with its own rules of the language; those of Azure's provider cannot be fetched as a module.
    pub async fn tflint() -> Result<PathBuf> {
        if let Some(program) = given("tflint") {
            return Ok(program);
        }
        Ok(ensure(&cache_dir()?, &TFLINT, &[("tflint", TFLINT.path)]).await?.join("tflint"))
    }

    /// Says how Flux and Argo CD see objects, see `gitops/main.go`.
    pub async fn gitops() -> Result<PathBuf> {
        Ok(ensure(&cache_dir()?, &GITOPS, &[("gitops", ".")]).await?.join("gitops"))
    }

    /// The kubelet, for nodes that are no fakes. It is built apart: few need it.
    pub async fn kubelet() -> Result<PathBuf> {
        if let Some(program) = given("kubelet") {
            return Ok(program);
        }
        let package = "k8s.io/kubernetes/cmd/kubelet";
        Ok(ensure(&cache_dir()?, &KUBERNETES, &[("kubelet", package)]).await?.join("kubelet"))
    }

    /// The folder of the Prometheus operator's CustomResourceDefinitions, in Go's own cache of modules.
    pub fn monitoring_crds() -> Result<PathBuf> {
        let _progress = Progress::new(format!("fetching {PROMETHEUS_OPERATOR}"));
        let mut go = Command::new("go");
        go.current_dir(std::env::temp_dir()).args(["mod", "download", "-json", PROMETHEUS_OPERATOR]);
        let said = output(go.env("GOFLAGS", "").env("GOWORK", "off"))?;
        let said: serde_json::Value = serde_json::from_str(&said).context("what go mod download said")?;
        let dir = said["Dir"].as_str().context("go mod download named no folder")?;
        Ok(PathBuf::from(dir).join("example/prometheus-operator-crd"))
    }

    /// Each is built when it is asked for: few need both.
    async fn of_prometheus(name: &str) -> Result<PathBuf> {
        if let Some(program) = given(name) {
            return Ok(program);
        }
        let package = format!("github.com/prometheus/prometheus/cmd/{name}");
        Ok(ensure(&cache_dir()?, &PROMETHEUS, &[(name, &package)]).await?.join(name))
    }
}

/// A program that `KUBEBUILDER_ASSETS` has.
fn given(name: &str) -> Option<PathBuf> {
    let assets = PathBuf::from(std::env::var_os(ASSETS_ENV)?);
    Some(assets.join(name)).filter(|path| path.is_file())
}

fn cache_dir() -> Result<PathBuf> {
    let dir = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(dir) = dir(TOOLS_DIR_ENV) {
        return std::path::absolute(&dir).with_context(|| format!("{TOOLS_DIR_ENV} is no usable path"));
    }
    let user = dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache")));
    let user = user.with_context(|| {
        format!(
            "neither HOME nor XDG_CACHE_HOME is set; set {TOOLS_DIR_ENV} to a folder for the built programs"
        )
    })?;
    Ok(user.join("spotpool/e2e"))
}

/// The folder of a module's programs. Its name stands for everything that goes into them, and it appears, complete,
/// by a rename, so that it needs no other mark of being valid.
async fn ensure(cache: &Path, module: &Module, programs: &[(&str, &str)]) -> Result<PathBuf> {
    if programs.is_empty() {
        return Ok(cache.to_owned());
    }
    let names: Vec<&str> = programs.iter().map(|(name, _)| *name).collect();
    let mut hash = Sha256::new();
    let platform = [std::env::consts::OS, std::env::consts::ARCH];
    let inputs = [RECIPE, module.go_mod, module.go_sum].into_iter().chain(platform);
    let tags = (!module.tags.is_empty()).then_some(module.tags);
    let main_go = (!module.main_go.is_empty()).then_some(module.main_go);
    for input in inputs.chain(names.iter().copied()).chain(STAGES).chain(tags).chain(main_go) {
        hash.update(input);
        hash.update([0]);
    }
    // A number of twelve digits is enough to tell a handful of folders apart.
    let hash = hash.finalize().iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let dir = cache.join(format!("{}-{hash:012x}", module.name));
    if dir.is_dir() {
        return Ok(dir);
    }

    std::fs::create_dir_all(cache).with_context(|| {
        format!("cannot make the folder for built programs, {} (or set {TOOLS_DIR_ENV})", cache.display())
    })?;
    let _lock = lock(&cache.join("build.lock")).await?;
    if !dir.is_dir() {
        remove_partial(cache)?;
        let partial = tempfile::Builder::new().prefix("partial-").tempdir_in(cache)?;
        build(module, programs, partial.path())
            .await
            .with_context(|| format!("cannot build {}", names.join(", ")))?;
        std::fs::rename(partial.path(), &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(dir)
}

/// What a killed build left; whoever holds the lock may remove it.
fn remove_partial(cache: &Path) -> Result<()> {
    for entry in std::fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("partial-") {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// One build at a time on a machine: two would take twice as long and fetch everything twice.
async fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut progress = None;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                progress
                    .get_or_insert_with(|| Progress::new("another process is building the tools; waiting"));
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

async fn build(module: &Module, programs: &[(&str, &str)], dir: &Path) -> Result<()> {
    for (prerequisite, version) in [("go", "version"), ("git", "--version")] {
        output(Command::new(prerequisite).arg(version)).with_context(|| {
            format!("the test cluster is built from source and needs Rust, Go and git; please install {prerequisite}")
        })?;
    }
    let source = dir.join("source");
    std::fs::create_dir(&source)?;
    std::fs::write(source.join("go.mod"), module.go_mod)?;
    std::fs::write(source.join("go.sum"), module.go_sum)?;
    if !module.main_go.is_empty() {
        std::fs::write(source.join("main.go"), module.main_go)?;
    }

    let list = |what: &str| {
        let _progress = Progress::new(format!("fetching {}", module.path));
        let mut go = Command::new("go");
        go.current_dir(&source).args(["list", "-m", "-f", what, module.path]);
        output(go.env("GOFLAGS", "-mod=mod").env("GOWORK", "off")).map(|text| text.trim().to_owned())
    };
    let mut flags = String::from("-s -w");
    if module.name == KUBERNETES.name {
        flags.push(' ');
        flags += &stamp(&list("{{.Version}}")?)?;
    }

    let (odd, whole): (Vec<_>, Vec<_>) =
        programs.iter().partition(|(name, package)| !package.ends_with(name));
    let singles = odd.into_iter().map(|program| vec![program]);
    for batch in singles.chain((!whole.is_empty()).then_some(whole)) {
        let names: Vec<&str> = batch.iter().map(|(name, _)| *name).collect();
        // One package: exactly this file. Several: a folder, and each is named after its package.
        let target = match names[..] {
            [name] => dir.join(name),
            _ => dir.join(""),
        };
        let go = Program::new("go build", "go")
            .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
            .args(["-tags", module.tags, "-ldflags", &flags, "-o"])
            .arg(target)
            .args(batch.iter().map(|(_, package)| package))
            .dir(&source)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "")
            .env("GOWORK", "off")
            .env_remove("GOOS")
            .env_remove("GOARCH")
            .log(dir.join("build.log"));
        let _progress = Progress::new(format!("building {} (once; minutes when cold)", names.join(", ")));
        let go = go.spawn()?;
        let status = go.wait().await;
        if !status.success() {
            bail!("go build ended with {status}{}", go.log_tail());
        }
    }

    if module.name == KWOK.name {
        let stages = dir.join("stages");
        std::fs::create_dir(&stages)?;
        let stock = PathBuf::from(list("{{.Dir}}")?).join("kustomize/stage");
        for stage in STAGES {
            let from = stock.join(stage);
            let name = from.file_name().context("a stage is a file")?;
            let text = std::fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            // Not `copy`: files of Go's module cache are read-only, and so would be ours.
            std::fs::write(stages.join(name), text)?;
        }
    }
    std::fs::remove_dir_all(&source)?;
    Ok(())
}

/// The linker flags that tell the programs their version. Without them kubectl cannot parse its own.
fn stamp(version: &str) -> Result<String> {
    let mut parts = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        bail!("{version} is no version");
    };
    let values = [
        ("gitVersion", version),
        ("gitMajor", major),
        ("gitMinor", minor),
        ("gitCommit", "none"),
        ("gitTreeState", "clean"),
        ("buildDate", "1970-01-01T00:00:00Z"),
    ];
    let flag = |(name, value)| format!("-X k8s.io/component-base/version.{name}={value}");
    Ok(values.map(flag).join(" "))
}
