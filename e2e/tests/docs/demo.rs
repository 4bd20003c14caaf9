//! The first command of the README, with the change that it suggests.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use spotpool_e2e::picture::Account;

use crate::root;

fn demo(args: &[&str], files: &[&Path]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spotpool-demo"));
    for (arg, file) in args.iter().zip(files) {
        command.arg(arg).arg(file);
    }
    let output = command.output().unwrap();
    let said =
        [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat();
    (output, said)
}

#[test]
fn without_fallback_the_demo_shows_spot_alone_and_draws_it() {
    let folder = tempfile::tempdir().unwrap();
    let (changed, picture) = (folder.path().join("my-spotpool.yaml"), folder.path().join("eviction.svg"));
    let example = std::fs::read_to_string(root().join("docs/examples/demo.yaml")).unwrap();
    let text = example.replace("maxNodes: 3 ", "maxNodes: 0 ");
    assert_ne!(text, example);
    // A node of a busy machine may be late, and its budget is not what this is about.
    let text = text.replace("escalateAfter: 15s", "escalateAfter: 25s");
    std::fs::write(&changed, text).unwrap();
    let (output, said) = demo(&["--spotpool", "--svg"], &[&changed, &picture]);
    assert!(output.status.success(), "{said}");
    let figures: Value =
        serde_json::from_slice(output.stdout.split(|it| *it == b'\n').rfind(|it| !it.is_empty()).unwrap())
            .unwrap();
    assert_eq!((&figures["demo"], &figures["podsKilledWithVm"]), (&"ok".into(), &0.into()), "{said}");
    assert!(said.contains("0.0845") && said.contains(" % less than on demand"), "{said}");
    assert!(said.contains("ReplaceEvicted") && !said.contains("FallbackForShortfall"), "{said}");
    let account: Account =
        serde_json::from_slice(&std::fs::read(picture.with_extension("json")).unwrap()).unwrap();
    assert!(account.machines.iter().all(|it| it.spot) && account.machines.len() == 6, "{account:#?}");
    assert_eq!(std::fs::read_to_string(&picture).unwrap(), account.draw());
}

#[test]
fn a_file_that_is_no_spot_pool_of_the_demo_is_told_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.yaml");
    for (text, sentence) in [
        ("kind: Pod", "this is no SpotPool: begin with a copy of docs/examples/demo.yaml"),
        (
            "kind: SpotPool\nspec: {agentPools: [{name: mine}]}",
            "the demo has no agent pool mine: name spotd8a, spotd8b or regd8",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let (output, said) = demo(&["--spotpool"], &[&file]);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(sentence) && said.lines().count() == 1, "{said}");
    }
    let (output, said) = demo(&["--spotpool"], &[&folder.path().join("none.yaml")]);
    assert!(output.status.code() == Some(2) && said.contains("none.yaml"), "{said}");
}

/// Who mistypes a field in a copy of the example must be told of it, and of nothing else.
#[test]
fn a_field_that_the_api_server_refuses_is_told_in_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.yaml");
    let example = std::fs::read_to_string(root().join("docs/examples/demo.yaml")).unwrap();
    std::fs::write(&file, example.replace("hourlyBudget", "hourlyBudgets")).unwrap();
    let (output, said) = demo(&["--spotpool"], &[&file]);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let last = said.lines().next_back().unwrap();
    assert!(last.ends_with("my.yaml: .spec.fallback.hourlyBudgets: field not declared in schema"), "{said}");
}
