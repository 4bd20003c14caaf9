//! What the programs of a stage said last, for whoever reads of a failed test.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Of each program.
const LINES: usize = 3;
/// Of a line.
const LENGTH: usize = 300;
/// A test with dozens of agents is told of by a few of them.
const PROGRAMS: usize = 8;

/// Tells on stderr when it is dropped in a panic.
pub(crate) struct LastWords {
    /// Of the cluster.
    pub(crate) dir: PathBuf,
    /// Begins the names of its operators' logs, and of its agent pools.
    pub(crate) stage: String,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.tell();
            eprintln!("the logs of {} are in {}\n{told}", self.stage, self.dir.display());
        }
    }
}

impl LastWords {
    fn tell(&self) -> String {
        let of_operators = logs(&self.dir.join("log"), &format!("{}-", self.stage));
        let of_agents = logs(&self.dir.join("agents"), &format!("aks-{}", self.stage));
        let all: Vec<PathBuf> = of_operators.into_iter().chain(of_agents).flatten().collect();
        let mut told = String::new();
        for log in all.iter().take(PROGRAMS) {
            let text = std::fs::read(log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let name = log.strip_prefix(&self.dir).unwrap_or(log);
            let _ = writeln!(told, "{}:", name.display()); // text takes all
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                let cut: String = line.chars().take(LENGTH).collect();
                let _ = writeln!(told, "  {cut}"); // text takes all
            }
        }
        told
    }
}

/// The logs in a folder whose names begin so.
fn logs(folder: &Path, beginning: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let begins = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning));
        if begins && path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::LastWords;

    #[test]
    fn whoever_reads_of_a_failure_sees_the_last_lines_of_the_stages_own_programs() {
        let dir = tempfile::tempdir().unwrap();
        for (log, text) in [
            ("log/mine-operator.log", "one\ntwo\nthree\nfour\n"),
            ("log/mineral-operator.log", "another's\n"),
            ("log/etcd.log", "a server's\n"),
            ("agents/aks-minea-1.log", &"x".repeat(400)),
            ("agents/aks-minea-1.kubeconfig", "no log\n"),
        ] {
            let path = dir.path().join(log);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let words = LastWords { dir: dir.path().to_owned(), stage: "mine".into() };
        let cut = "x".repeat(300);
        let wanted =
            format!("log/mine-operator.log:\n  two\n  three\n  four\nagents/aks-minea-1.log:\n  {cut}\n");
        assert_eq!(words.tell(), wanted);
    }
}
