//! Row L: what people deploy to Azure for SpotPool reads as its tools would read it, and says what the charts expect.
//! Neither Bicep's compiler nor the provider of Terraform can be had as a package, so their own checks of types are not
//! made here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use spotpool_e2e::run;
use spotpool_e2e_cluster::Tools;
use tree_sitter::{Node, Parser};

/// Every file of a folder of `docs/install` whose name ends so, with what is in it.
fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let folder = install().join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|it| it == extension))
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension}");
    files
}

fn install() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/install")
}

fn parser() -> Parser {
    let mut parser = Parser::new();
    parser.set_language(&tree_sitter_bicep::LANGUAGE.into()).unwrap();
    parser
}

/// The first place that is no Bicep.
fn wrong(node: Node<'_>, text: &str) -> Option<String> {
    if !node.has_error() {
        return None;
    }
    if node.is_error() || node.is_missing() {
        let line = node.start_position().row;
        return Some(format!("line {}: {}", line + 1, text.lines().nth(line).unwrap_or_default().trim()));
    }
    (0..node.child_count()).filter_map(|at| node.child(at)).find_map(|child| wrong(child, text))
}

#[test]
fn bicep_parses_and_refers_to_what_is_there() {
    let mut parser = parser();
    let broken = "resource x 'A/b@2025-01-01' = { name: }";
    assert!(
        wrong(parser.parse(broken, None).unwrap().root_node(), broken).is_some(),
        "the parser sees no fault"
    );
    for (path, text) in files("bicep", "bicep") {
        let tree = parser.parse(&text, None).unwrap();
        assert_eq!(wrong(tree.root_node(), &text), None, "{}", path.display());
        let quoted = text.split('\'').skip(1).step_by(2);
        let named =
            quoted.filter(|text| Path::new(text).extension().is_some_and(|it| it == "bicep" || it == "json"));
        for other in named {
            assert!(path.with_file_name("").join(other).exists(), "{} refers to {other}", path.display());
        }
    }
}

/// The client must be the chart's ServiceAccount, and each role must be assigned.
#[test]
fn every_way_to_deploy_trusts_the_operators_service_account_and_assigns_every_role() {
    let roles: BTreeSet<String> = files("roles", "json")
        .iter()
        .map(|(path, _)| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let all =
        |folder, extension| files(folder, extension).into_iter().map(|(_, text)| text).collect::<String>();
    let (bicep, terraform) = (all("bicep", "bicep"), all("terraform", "tf"));
    let walk = std::fs::read_to_string(install().join("README.md")).unwrap();
    for text in [&bicep, &terraform, &walk] {
        assert!(text.contains("system:serviceaccount:$") && text.contains(":spotpool-operator"));
        assert!(text.contains("api://AzureADTokenExchange"));
    }
    for role in &roles {
        assert!(
            bicep.contains(&format!("loadJsonContent('../roles/{role}.json')")),
            "{role} is not in Bicep"
        );
        assert!(terraform.contains(&format!("\n    {role} ")), "{role} has no scope in Terraform");
        assert!(walk.contains(&format!("--role \"SpotPool {role}\"")), "{role} is not in the walk-through");
    }
}

#[test]
fn terraform_lints() {
    run(async {
        let tflint = Tools::tflint().await.unwrap();
        let lint = |folder: &Path| {
            let folder = folder.display().to_string();
            Command::new(&tflint)
                .args(["--chdir", &folder, "--enable-rule=terraform_unused_declarations"])
                .output()
        };
        let said = lint(&install().join("terraform")).unwrap();
        let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success() && text.trim().is_empty(), "{text}");

        let broken = tempfile::tempdir().unwrap();
        std::fs::write(broken.path().join("main.tf"), "locals {\n  unused = var.nothing\n}\n").unwrap();
        assert!(!lint(broken.path()).unwrap().status.success(), "the linter sees no fault");
    });
}
