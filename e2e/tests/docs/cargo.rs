//! Commands that build, test or demonstrate are not run again by a test: what they name must be there.

use std::process::Command;
use std::sync::LazyLock;

use crate::fences::{Block, blocks, spoken};
use crate::{files, root};

struct Package {
    name: String,
    folder: String,
}

static PACKAGES: LazyLock<Vec<Package>> = LazyLock::new(|| {
    let named = |file: &String| {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let name = text.strip_prefix("[package]\nname = \"")?.split('"').next()?.to_owned();
        Some(Package { name, folder: file.trim_end_matches("/Cargo.toml").to_owned() })
    };
    files("*/Cargo.toml").iter().filter_map(named).collect()
});

impl Package {
    /// Its own sources: not those of packages in folders of its folder.
    fn sources(&self) -> Vec<String> {
        let inner: Vec<_> =
            PACKAGES.iter().filter(|it| it.folder.starts_with(&format!("{}/", self.folder))).collect();
        let mut found = files(&format!("{}/*.rs", self.folder));
        found.retain(|file| !inner.iter().any(|it| file.starts_with(&format!("{}/", it.folder))));
        found
    }
}

/// Whether this module answers for a command; the others are run.
pub fn is_of_the_workspace(command: &str) -> bool {
    let program = command.split_whitespace().find(|word| !is_setting(word)).unwrap_or_default();
    program == "cargo" || program.starts_with(".ci/")
}

fn is_setting(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|it| it.is_ascii_uppercase() || it == '_')
    })
}

/// Names of tests as libtest would filter them, as far as files and functions tell: `file::function`.
fn tests(sources: &[String]) -> Vec<String> {
    let of_file = |file: &String| {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let path = file.trim_end_matches(".rs").replace('/', "::");
        let names: Vec<String> = text
            .lines()
            .filter_map(|line| {
                line.trim_start().trim_start_matches("async ").strip_prefix("fn ")?.split(['(', '<']).next()
            })
            .map(|name| format!("{path}::{name}"))
            .collect();
        names
    };
    sources.iter().flat_map(of_file).collect()
}

/// What is wrong with a command, if anything.
fn complaint(command: &str) -> Result<(), String> {
    let command = command.split(" #").next().unwrap_or_default();
    let words: Vec<&str> = command.split_whitespace().collect();
    let (settings, words): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| is_setting(word));
    for setting in settings {
        let name = setting.split('=').next().unwrap_or_default();
        let read = files("*.rs").into_iter().chain(files(".ci/*"));
        let mut read = read.map(|file| std::fs::read_to_string(root().join(file)).unwrap());
        if !read.any(|text| text.contains(&format!("\"{name}\"")) || text.contains(&format!("${{{name}:-"))) {
            return Err(format!("nothing reads {name}"));
        }
    }
    if words[0] != "cargo" {
        return script(words[0]);
    }
    match words[1] {
        "demo" => demo(&words[2..]),
        "test" | "bench" | "build" | "update" => selection(&words[2..]),
        other => Err(format!("cargo {other}: not known to this test")),
    }
}

fn script(path: &str) -> Result<(), String> {
    let found = std::fs::metadata(root().join(path)).map_err(|_| format!("there is no {path}"))?;
    let runs = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111 != 0;
    runs.then_some(()).ok_or_else(|| format!("{path} cannot be run"))
}

/// Flags of the demo, which says itself what it takes.
fn demo(words: &[&str]) -> Result<(), String> {
    let help = Command::new(env!("CARGO_BIN_EXE_spotpool-demo")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let unknown = words.iter().find(|word| {
        word.starts_with("--") && !help.contains(&format!("{word} ")) && !help.contains(&format!("{word}\n"))
    });
    unknown.map_or(Ok(()), |word| Err(format!("cargo demo has no {word}")))
}

/// Package, test and a part of a test's name.
fn selection(words: &[&str]) -> Result<(), String> {
    let own: Vec<&str> = words.iter().copied().take_while(|word| !["--", "[--"].contains(word)).collect();
    let value =
        |flag: &str| own.iter().position(|word| *word == flag).and_then(|at| own.get(at + 1)).copied();
    let known = ["-p", "--test", "--workspace", "--release"];
    if let Some(unknown) = own.iter().find(|word| word.starts_with('-') && !known.contains(word)) {
        return Err(format!("{unknown}: not known to this test"));
    }
    let Some(name) = value("-p") else {
        return if own.contains(&"--workspace") { Ok(()) } else { Err("names no package".to_owned()) };
    };
    let package =
        PACKAGES.iter().find(|it| it.name == name).ok_or_else(|| format!("there is no package {name}"))?;
    let mut sources = package.sources();
    if let Some(test) = value("--test") {
        let at = format!("{}/tests/{test}", package.folder);
        sources.retain(|file| *file == format!("{at}.rs") || file.starts_with(&format!("{at}/")));
        if sources.is_empty() {
            return Err(format!("{name} has no test {test}"));
        }
    }
    let filters = own.iter().enumerate().filter(|(at, word)| {
        !word.starts_with('-') && !at.checked_sub(1).is_some_and(|at| ["-p", "--test"].contains(&own[at]))
    });
    let names = tests(&sources);
    for (_, filter) in filters {
        if !names.iter().any(|it| it.contains(filter)) {
            return Err(format!("no test of {name} has {filter} in its name"));
        }
    }
    Ok(())
}

#[test]
fn what_commands_of_the_workspace_name_is_there() {
    let ours: Vec<Block> = blocks().into_iter().filter(Block::is_ours).collect();
    let lines = |block: &Block| -> Vec<(String, String)> {
        let commands = block.commands();
        let lines = commands.iter().flat_map(|command| command.lines());
        lines
            .filter(|line| is_of_the_workspace(line))
            .map(|line| (block.page.clone(), line.to_owned()))
            .collect()
    };
    let mut commands: Vec<_> = ours.iter().filter(|it| it.language != "yaml").flat_map(lines).collect();
    commands.extend(
        spoken().into_iter().filter(|(_, code)| code.split(' ').count() > 2 && is_of_the_workspace(code)),
    );
    assert!(commands.len() > 25, "{commands:?}");
    for workflow in files(".github/workflows/*.yml") {
        let text = std::fs::read_to_string(root().join(&workflow)).unwrap();
        let run = text.lines().filter_map(|line| line.trim_start().strip_prefix("- run: "));
        let run = run.filter(|line| is_of_the_workspace(line));
        commands.extend(run.map(|line| (workflow.clone(), line.to_owned())));
    }
    let wrong = commands
        .iter()
        .filter_map(|(page, line)| complaint(line).err().map(|why| format!("{page}: {line}: {why}")));
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the check above is worth: each of these is a page that was not mended with the code.
#[test]
fn a_command_of_the_workspace_that_names_nothing_is_found() {
    for (command, good) in [
        ("cargo test -p spotpool-e2e --test docs names_nothing", true),
        ("cargo test -p spotpool-e2e --test docs cargo::", true),
        ("SPOTPOOL_SEED=17 cargo test -p spotpool-e2e --test ledger -- --nocapture   # so", true),
        ("cargo demo --watch", true),
        (".ci/run", true),
        ("SPOTPOOL_LUCK=17 cargo test --workspace", false),
        ("cargo test -p spotpool-e2e --test doc", false),
        ("cargo test -p spotpool-e3e", false),
        ("cargo test -p spotpool-core --test docs", false),
        ("cargo test -p spotpool-e2e --test docs sold_out_and_gone_home", false),
        ("cargo demo --look", false),
        ("cargo polish", false),
        (".ci/runs", false),
    ] {
        // Its own words stand in this file.
        let command = command.replace("sold_out_and_gone_home", &["sold", "on", "mars"].join("_"));
        assert_eq!(complaint(&command).is_ok(), good, "{command}: {:?}", complaint(&command));
    }
}
