//! The simulator against Microsoft's own clients of Azure: whoever tests SpotPool here relies on the simulator to
//! speak as Azure does, and these clients were written by people who never saw it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use spotpool_azure_sim::api::{Identity, PoolSpec, Settings};
use spotpool_azure_sim::names::stable_hash;
use spotpool_azure_sim::server::{Options, Server};
use spotpool_azure_sim::tokens::AuthSettings;

/// Set to 1 to go without this test.
const WITHOUT_PYTHON: &str = "SPOTPOOL_WITHOUT_PYTHON";
/// Folder for what is fetched and built once, in place of `spotpool` in the user's cache folder.
const CACHE_DIR: &str = "SPOTPOOL_CACHE_DIR";

/// What the names of environments that are not complete begin with.
const PARTIAL: &str = "partial-python-";

const REQUIREMENTS: &str = include_str!("../conformance/requirements.txt");

/// Every check that the script must have made. It says what it did; only this list says what it left out.
const CHECKS: &[&str] = &[
    "token_for_an_assertion_over_tls",
    "workload_identity_with_a_token_file",
    "managed_identity_of_a_machine",
    "token_refused_for_an_expired_assertion",
    "token_refused_for_an_unknown_client",
    "list_of_pools",
    "list_by_next_link_to_an_empty_last_page",
    "get_as_typed_model",
    "e_tag_and_all_else_survive_the_model",
    "pools_without_e_tags_are_scaled_all_the_same",
    "get_of_no_pool",
    "create_spot_pool",
    "scale_with_the_poller_to_the_end",
    "second_write_meanwhile_is_409",
    "failing_scale",
    "failing_scale_with_nested_quota_error",
    "stale_e_tag_is_412",
    "immutable_change_is_400",
    "retired_api_version_is_400",
    "retry_after_of_a_429_is_obeyed",
    "pollers_wait_as_long_as_they_are_told",
    "throttled_by_the_bucket_of_puts",
    "machines_by_next_link",
    "delete_machines",
    "abort_latest_operation",
    "instance_views",
    "simulate_eviction",
    "eviction_rates_by_resource_graph",
    "placement_scores",
    "delete_pool",
    "denied_action_is_403",
    "revoked_token_is_401_and_a_new_one_lets_in",
];

/// What the script says of one check.
#[derive(Debug, Deserialize)]
struct Line {
    check: String,
    ok: bool,
    #[serde(default)]
    detail: String,
}

#[tokio::test]
async fn the_official_python_sdk_takes_it_for_azure() {
    if std::env::var_os(WITHOUT_PYTHON).is_some_and(|value| value == "1") {
        say(&format!(
            "WARNING: {WITHOUT_PYTHON}=1: the simulator was NOT checked against Microsoft's own clients of Azure"
        ));
        return;
    }
    let python = tokio::task::spawn_blocking(environment).await.unwrap().unwrap_or_else(|problem| {
        panic!(
            "{problem}\nThis test needs Python 3.10 or newer with `venv` and, the first time, the Python package index. Set {WITHOUT_PYTHON}=1 to go without it."
        )
    });

    let server = Server::start(Options {
        settings: Settings::with_boot_time(Duration::from_millis(300)),
        auth: AuthSettings { require_token: true, ..AuthSettings::default() },
        pools: vec![
            PoolSpec::spot("spota", "Standard_D8s_v5", 2),
            PoolSpec::spot("spotb", "Standard_D8as_v5", 0),
            PoolSpec::regular("rega", "Standard_D8s_v5", 1),
        ],
        ..Options::default()
    })
    .await
    .unwrap();
    let mut ca_file = tempfile::NamedTempFile::new().unwrap();
    ca_file.write_all(server.ca_pem().as_bytes()).unwrap();
    let auth = AuthSettings::default();
    let line = json!({
        "url": server.url(),
        "tlsUrl": server.tls_url(),
        "authorityHost": format!("{}/", server.tls_url()),
        "caFile": ca_file.path(),
        "tenantId": auth.tenant_id,
        "clientIds": [auth.clients[0].client_id],
        "identity": Identity::default(),
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/conformance.py");
    // Isolated from whatever else of Python there is; no proxy stands between two loopback addresses.
    let run = tokio::process::Command::new(&python)
        .arg("-I")
        .arg(script)
        .arg(line.to_string())
        .env("NO_PROXY", "127.0.0.1")
        .kill_on_drop(true)
        .output();
    let output =
        tokio::time::timeout(Duration::from_mins(5), run).await.expect("it ends in 5 minutes").unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Line> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let made: BTreeMap<&str, &Line> = lines.iter().map(|line| (line.check.as_str(), line)).collect();

    let mut wrong = String::new();
    for name in CHECKS {
        match made.get(name) {
            Some(line) if line.ok => {}
            Some(line) => writeln!(wrong, "\n{name} failed:\n{}", line.detail).unwrap(),
            None => writeln!(wrong, "\n{name} was not made").unwrap(),
        }
    }
    for name in made.keys().filter(|name| !CHECKS.contains(name)) {
        writeln!(wrong, "\n{name} is not in the list of checks").unwrap();
    }
    assert!(
        wrong.is_empty() && output.status.success(),
        "{wrong}\n{}; what it wrote on stderr:\n{complained}",
        output.status
    );
}

/// The interpreter of an environment that holds exactly the required packages: made once, kept outside the
/// repository. It appears, complete, by a rename, so its name is all that says it is valid.
fn environment() -> Result<PathBuf, String> {
    let said = run("python3", ["-c", "import sys; print(*sys.version_info[:3], sys.prefix)"])?;
    let mut version = said.split_whitespace().map_while(|part| part.parse::<u32>().ok());
    let (major, minor) = (version.next().unwrap_or(0), version.next().unwrap_or(0));
    if (major, minor) < (3, 10) {
        return Err(format!("python3 is {major}.{minor}"));
    }
    let cache = cache_dir()?;
    let dir = cache.join(format!("python-{:016x}", stable_hash(&format!("{said}\n{REQUIREMENTS}"))));
    let python = |dir: &Path| dir.join("bin/python");
    let problem = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
        format!("cannot {what} {} (or set {CACHE_DIR}): {error}", path.display())
    };
    std::fs::create_dir_all(&cache).map_err(|error| problem("make", &cache, &error))?;
    // One at a time on a machine: two would fetch everything twice.
    let lock = cache.join("python.lock");
    let lock = File::create(&lock).map_err(|error| problem("write", &lock, &error))?;
    lock.lock().map_err(|error| format!("cannot lock python.lock: {error}"))?;
    if dir.is_dir() {
        return Ok(python(&dir));
    }
    // What a killed run left; whoever holds the lock may remove it.
    for entry in std::fs::read_dir(&cache).map_err(|error| problem("read", &cache, &error))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            std::fs::remove_dir_all(entry.path())
                .map_err(|error| problem("remove", &entry.path(), &error))?;
        }
    }
    say("making an environment with Microsoft's Python clients of Azure (once; about 10 seconds)");
    let partial = tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(&cache)
        .map_err(|error| problem("write into", &cache, &error))?;
    let (venv, requirements) = (partial.path().join("venv"), partial.path().join("requirements.txt"));
    std::fs::write(&requirements, REQUIREMENTS).map_err(|error| problem("write", &requirements, &error))?;
    run("python3", [OsStr::new("-m"), OsStr::new("venv"), venv.as_os_str()])?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    run(python(&venv), install.map(OsStr::new).into_iter().chain([requirements.as_os_str()]))?;
    std::fs::rename(&venv, &dir).map_err(|error| problem("make", &dir, &error))?;
    Ok(python(&dir))
}

fn cache_dir() -> Result<PathBuf, String> {
    let given = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(dir) = given(CACHE_DIR) {
        return std::path::absolute(&dir).map_err(|error| format!("{CACHE_DIR} is no usable path: {error}"));
    }
    let user = given("XDG_CACHE_HOME").or_else(|| given("HOME").map(|home| home.join(".cache")));
    let user = user.ok_or_else(|| format!("neither HOME nor XDG_CACHE_HOME is set; set {CACHE_DIR}"))?;
    Ok(user.join("spotpool"))
}

fn run<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args);
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

/// Past the test harness, which keeps to itself what a test that passes prints.
fn say(line: &str) {
    std::io::stderr().write_all(format!("spotpool: {line}\n").as_bytes()).unwrap();
}
