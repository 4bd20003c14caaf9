//! Children end with the process that started them, however it ends, and not before.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use spotpool_e2e_cluster::{Cluster, ClusterOptions, Program, Signal, Supervised};

const GENEROUS: Duration = Duration::from_mins(1);
const MODE: &str = "SPOTPOOL_TEST_PARENT";

/// The state of a process as `ps` shows it; empty if there is none.
fn state(id: u32) -> String {
    let ps = Command::new("ps").args(["-o", "stat=", "-p", &id.to_string()]).output().unwrap();
    String::from_utf8(ps.stdout).unwrap().trim().to_owned()
}

/// Whether a process runs; one that is dead but not yet reaped does not.
fn runs(id: u32) -> bool {
    let state = state(id);
    !state.is_empty() && !state.starts_with('Z')
}

fn wait_until_gone(ids: &[u32]) -> Duration {
    let began = Instant::now();
    while let Some(id) = ids.iter().find(|id| runs(**id)) {
        assert!(began.elapsed() < GENEROUS, "process {id} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}

/// The process that is killed in the tests below: this test binary again, running `parent` only.
fn start_parent(mode: &str) -> (Child, Vec<u32>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "parent", "--nocapture"])
        .env(MODE, mode)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ids = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        // libtest prints the test's name without a line break before ours.
        let line = line.unwrap();
        if let Some((_, id)) = line.split_once("child=") {
            ids.push(id.parse().unwrap());
        } else if line.contains("all started") {
            return (child, ids);
        }
    }
    panic!("the parent ended too soon: {:?}", child.wait());
}

static PROGRAM: Mutex<Option<Supervised>> = Mutex::new(None);
static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);

#[tokio::test]
#[ignore = "it is run by the other tests, in a process that they kill"]
async fn parent() {
    let mode = std::env::var(MODE).unwrap_or_default();
    if mode == "cluster" {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        for (_, id) in cluster.process_ids() {
            println!("\nchild={id}");
        }
        *CLUSTER.lock().unwrap() = Some(cluster);
    } else {
        let log = tempfile::NamedTempFile::new().unwrap();
        // A child that ignores polite signals, and a grandchild.
        let program = Program::new("stubborn", "sh")
            .args(["-c", "trap '' TERM INT HUP; sleep 1000 & echo $!; while :; do wait; done"])
            .log(log.path())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let grandchild = loop {
            let text = std::fs::read_to_string(log.path()).unwrap();
            if text.ends_with('\n') {
                break text;
            }
            assert!(began.elapsed() < GENEROUS);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        println!("\nchild={}\nchild={}", program.id(), grandchild.trim());
        *PROGRAM.lock().unwrap() = Some(program);
    }
    println!("\nall started");
    if mode == "exit" {
        std::process::exit(0);
    }
    std::future::pending::<()>().await;
}

#[test]
fn children_die_with_a_killed_parent() {
    let (mut parent, ids) = start_parent("program");
    assert_eq!(ids.len(), 2);
    assert!(ids.iter().all(|id| runs(*id)));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until_gone(&ids);
}

#[test]
fn children_die_with_a_parent_that_exits_without_destructors() {
    let (mut parent, ids) = start_parent("exit");
    assert_eq!(ids.len(), 2);
    assert!(parent.wait().unwrap().success());
    wait_until_gone(&ids);
}

#[test]
fn a_whole_cluster_dies_with_a_killed_parent() {
    let (mut parent, ids) = start_parent("cluster");
    assert_eq!(ids.len(), 5, "etcd, API server, controller manager, scheduler, kwok");
    assert!(ids.iter().all(|id| runs(*id)));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until_gone(&ids);
}

#[tokio::test]
async fn a_program_gets_its_arguments_and_environment_and_its_end_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log/echo.log");
    let script = r#"cat; echo "$1|$2|$WORD|${HOME-none}|$(pwd)"; echo oops >&2; exit 3"#;
    let program = Program::new("echo", "sh")
        .args(["-c", script, "sh", "a b", "$c"])
        .env("WORD", "w")
        .env_remove("HOME")
        .dir(dir.path().canonicalize().unwrap())
        .log(&log)
        .spawn()
        .unwrap();
    assert_eq!(program.wait().await.code(), Some(3));
    assert_eq!(program.exit_status().unwrap().code(), Some(3));
    let expected = format!("a b|$c|w|none|{}\noops\n", dir.path().canonicalize().unwrap().display());
    assert_eq!(std::fs::read_to_string(&log).unwrap(), expected);
    let error = program.check_running().unwrap_err().to_string();
    assert!(error.contains("echo ended with exit status: 3") && error.contains("oops"), "{error}");
    program.term().unwrap();
    program.kill().unwrap();
}

#[tokio::test]
async fn a_program_that_does_not_stop_is_killed() {
    let polite = Program::new("polite", "sleep").arg("1000").spawn().unwrap();
    assert!(polite.check_running().is_ok());
    assert_eq!(polite.stop(GENEROUS).await.unwrap().signal(), Some(Signal::SIGTERM as i32));

    // Stopped, it cannot even see the SIGTERM.
    let frozen = Program::new("frozen", "sleep").arg("1000").spawn().unwrap();
    frozen.signal(Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    while !state(frozen.id()).starts_with('T') {
        assert!(began.elapsed() < GENEROUS);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = frozen.stop(Duration::from_millis(50)).await.unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn a_dropped_program_is_killed() {
    let program = Program::new("sleep", "sleep").arg("1000").spawn().unwrap();
    let id = program.id();
    drop(program);
    wait_until_gone(&[id]);
}

#[test]
fn a_program_that_is_not_there_is_an_error_at_once() {
    let error = Program::new("agent", "/nowhere/agent").spawn().unwrap_err();
    assert_eq!(format!("{error:#}"), "cannot start agent (/nowhere/agent): there is no such file");
}
