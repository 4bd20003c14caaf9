//! The program, from outside.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spotpool-azure-sim"));
    command.args(args).env_remove("KUBECONFIG").env_remove("SIM_URL");
    command
}

fn run(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn bad_flags_are_2_and_one_line_that_says_which() {
    for (args, named) in [
        (&["serve"][..], "--kubeconfig"),
        (&["serve", "--kubeconfig", "/nonexistent"], "--kubeconfig"),
        (&["serve", "--no-kubernetes", "--pool", "spota"], "--pool"),
        (&["serve", "--no-kubernetes", "--pool", "Spot-A=Standard_D8s_v5"], "--pool"),
        (&["serve", "--no-kubernetes", "--boot-time", "soon"], "--boot-time"),
        (&["serve", "--no-kubernetes", "--scenario", "/nonexistent"], "--scenario"),
        (&["serve", "--no-kubernetes", "--scenario", "Cargo.toml"], "--scenario"),
        (&["serve", "--no-kubernetes", "--throttling", "maybe"], "--throttling"),
        (&["serve", "--no-kubernetes", "--listen", "192.0.2.1:1"], "--listen"),
        (&["list"], "--sim-url"),
        (&["evict", "--sim-url", "http://127.0.0.1:1"], "MACHINES"),
    ] {
        let output = run(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.lines().count() == 1 && said.contains(named), "{args:?}: {said}");
    }
    assert_eq!(run(&["list", "--sim-url", "http://127.0.0.1:1"]).status.code(), Some(1));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn it_serves_obeys_commands_and_stops_cleanly() {
    let mut served = program(&["serve", "--no-kubernetes", "--pool", "spota=Standard_D8s_v5,spot,count=2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(served.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let url = ready["url"].as_str().unwrap();
    let obey = |args: &[&str]| {
        let output = run(&[args, &["--sim-url", url]].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };

    let table = obey(&["list"]);
    let node = table.lines().find(|line| line.starts_with("aks-")).unwrap().split(' ').next().unwrap();
    assert!(obey(&["evict", node, "--notice", "1m"]).contains(node));
    assert!(obey(&["list"]).contains("Preempt Scheduled"));
    obey(&["evict", "--pool", "spota", "--notice", "0s"]);
    obey(&["cancel", node]);
    obey(&["capacity", "Standard_D8s_v5", "spot=0", "regular=any"]);
    let nobody = run(&["cancel", "nobody", "--sim-url", url]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("nobody"));

    let pid = served.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(served.wait().unwrap().code(), Some(0));
}

/// Words of the commands of the README's first block, in order. Of the shell they use quotes, comments and lines that go on.
fn commands_of_the_readme() -> Vec<Vec<String>> {
    let (_, block) = include_str!("../../README.md").split_once("```console\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let block = block.replace("\\\n", " ");
    let commands = block.lines().filter_map(|line| line.strip_prefix("$ spotpool-azure-sim "));
    let words = |command: &str| {
        let command = command.split(" #").next().unwrap_or_default().trim().to_owned();
        command.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
    };
    commands.map(words).collect()
}

/// As it stands there, but without a cluster, and on any port.
#[test]
fn the_first_commands_of_the_readme_work_in_their_order() {
    let commands = commands_of_the_readme();
    let (serve, others) = commands.split_first().unwrap();
    let serve =
        serve.join(" ").replace("--kubeconfig admin.kubeconfig", "--no-kubernetes").replace(":4711", ":0");
    let serve: Vec<&str> = serve.split(' ').collect();
    let mut served = program(&serve).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(served.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let mut verbs = Vec::new();
    for words in others {
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = program(&args).env("SIM_URL", ready["url"].as_str().unwrap()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        verbs.push(args[0]);
    }
    served.kill().unwrap();
    served.wait().unwrap();
    assert_eq!(verbs, ["list", "evict", "cancel", "capacity"]);
}

/// What the README shows people first: an hour of trouble in one command, and single steps beside it.
#[test]
fn it_plays_a_scenario_and_does_single_steps() {
    let mut served = program(&["serve", "--no-kubernetes", "--scenario", "scenarios/hostile-hour.yaml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(served.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let url = ready["url"].as_str().unwrap().to_owned();
    let act = |step: &str| run(&["act", step, "--sim-url", &url]);
    assert!(text(&run(&["list", "--sim-url", &url]).stdout).contains("spotd8b"));
    let done = act("failure: {pool: spotd8a, error: AllocationFailed}");
    assert!(done.status.success(), "{}", text(&done.stderr));
    for (step, said) in
        [("stop: absent", "no agent pool absent"), ("stopp: spotd8a", "unknown variant `stopp`")]
    {
        let refused = act(step);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(said), "{}", text(&refused.stderr));
    }
    let pid = served.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(served.wait().unwrap().code(), Some(0));
}
