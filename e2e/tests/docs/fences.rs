//! The fenced blocks of the pages, and what becomes of each: it is run here, another test runs it, or it says what it takes that
//! no test has.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::{files, root};

/// What a fence may say that its block takes, behind the language.
pub const NEEDS: [(&str, &str); 5] = [
    ("needs-azure", "a subscription"),
    ("needs-kubelet", "a node that is a machine"),
    ("needs-prometheus", "a Prometheus in the cluster, with a history"),
    ("needs-registry", "a registry to push to"),
    ("needs-software", "software that is not ours: KEDA, Alertmanager, Log Analytics"),
];

/// Blocks of pages that another test runs: where a page's path begins, the language, the test's folder, and words of its sources.
const RUN_BY: [(&str, &str, &str, &str); 5] = [
    ("docs/runbooks/", "sh", "rules", "\"docs/runbooks\""),
    ("docs/playbooks/", "sh", "rules", "\"docs/playbooks\""),
    ("docs/install/README.md", "sh", "install", "docs/install/README.md"),
    ("docs/how-to/audit.md", "yaml", "install", "docs/how-to/audit.md"),
    ("docs/reference/kubectl-spotpool.md", "console", "plugin", "keep_example"),
];

/// Languages of blocks that nobody pastes into a shell or a cluster.
const SHOWN: [&str; 6] = ["", "json", "kusto", "promql", "rust", "text"];

/// One fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The page's path in the repository.
    pub page: String,
    /// The first word behind the fence.
    pub language: String,
    /// The words after it.
    pub words: Vec<String>,
    pub text: String,
}

impl Block {
    fn of(page: &str, info: &str, text: &str) -> Self {
        let mut words = info.split_whitespace().map(str::to_owned);
        let language = words.next().unwrap_or_default();
        Self { page: page.to_owned(), language, words: words.collect(), text: text.to_owned() }
    }

    /// Whether it is to be run here.
    pub fn is_ours(&self) -> bool {
        let elsewhere = RUN_BY
            .iter()
            .any(|(page, language, ..)| self.page.starts_with(page) && self.language == *language);
        !elsewhere && !SHOWN.contains(&self.language.as_str()) && self.needs().is_none()
    }

    fn needs(&self) -> Option<&'static str> {
        NEEDS.iter().map(|(word, _)| *word).find(|word| self.words.iter().any(|it| it == word))
    }

    /// What a person would paste: commands without what they print.
    pub fn commands(&self) -> Vec<String> {
        if self.language == "sh" {
            return vec![self.text.clone()];
        }
        let (mut commands, mut goes_on) = (Vec::<String>::new(), false);
        for line in self.text.lines() {
            match (line.trim_start().strip_prefix("$ "), commands.last_mut()) {
                (_, Some(command)) if goes_on => {
                    command.push('\n');
                    command.push_str(line);
                }
                (Some(line), _) => commands.push(line.to_owned()),
                _ => continue,
            }
            goes_on =
                commands.last().is_some_and(|it| it.ends_with('\\') || it.matches('\'').count() % 2 == 1);
        }
        commands
    }

    /// What is wrong with how it is marked.
    fn complaint(&self) -> Option<String> {
        let said = self.words.join(" ");
        let wrong = match (self.language.as_str(), self.words.as_slice()) {
            (language, _) if SHOWN.contains(&language) => return None,
            ("sh", [word]) if word == "change" => return None,
            ("yaml", [word])
                if ["SpotPool", "EvictionDrill", "Pod", "Container", "prometheus"]
                    .contains(&word.as_str()) =>
            {
                return None;
            }
            ("console" | "sh" | "yaml", [_]) if self.needs().is_some() => return None,
            ("console", []) if self.commands().is_empty() => {
                "no line begins with `$ `: a block that is only shown has no language"
            }
            ("console" | "sh" | "yaml", []) => return None,
            ("console" | "sh" | "yaml", _) => "nobody knows what that means: see fences.rs",
            _ => "write console, sh or yaml, whose blocks are run",
        };
        Some(format!("{}: ```{} {said}: {wrong}", self.page, self.language))
    }
}

/// All fenced blocks of the pages, page by page.
pub fn blocks() -> Vec<Block> {
    let pages = files("README.md").into_iter().chain(files("docs/*.md"));
    pages.flat_map(|page| of_page(&page, &std::fs::read_to_string(root().join(&page)).unwrap())).collect()
}

/// Code in the middle of sentences, and the page.
pub fn spoken() -> Vec<(String, String)> {
    let code = |page: String| {
        let text = std::fs::read_to_string(root().join(&page)).unwrap();
        let events = Parser::new_ext(&text, Options::ENABLE_TABLES);
        let codes = events
            .filter_map(|event| if let Event::Code(code) = event { Some(code.to_string()) } else { None });
        codes.map(|code| (page.clone(), code)).collect::<Vec<_>>()
    };
    files("*.md").into_iter().flat_map(code).collect()
}

fn of_page(page: &str, text: &str) -> Vec<Block> {
    let (mut blocks, mut open) = (Vec::new(), None);
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                open = Some((info.to_string(), String::new()));
            }
            Event::Text(more) => {
                if let Some((_, text)) = &mut open {
                    text.push_str(&more);
                }
            }
            Event::End(TagEnd::CodeBlock) => {
                blocks.extend(open.take().map(|(info, text)| Block::of(page, &info, &text)));
            }
            _ => {}
        }
    }
    blocks
}

#[test]
fn every_block_is_run_or_says_what_it_takes() {
    let complaints: Vec<String> = blocks().iter().filter_map(Block::complaint).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// A test that was renamed or no longer reads its page would leave commands that nobody runs.
#[test]
fn tests_that_are_said_to_run_a_page_read_it() {
    for (page, language, test, words) in RUN_BY {
        assert!(
            blocks().iter().any(|it| it.page.starts_with(page) && it.language == language),
            "{page} has no {language}"
        );
        let sources = files(&format!("e2e/tests/{test}/*.rs"));
        let reads =
            sources.iter().any(|file| std::fs::read_to_string(root().join(file)).unwrap().contains(words));
        assert!(reads, "e2e/tests/{test} says nowhere {words}");
    }
}

/// The reference of the plugin is printed with what its test has seen: each command there is that test's, or one that is run here.
#[test]
fn every_command_of_the_plugin_that_is_shown_is_run() {
    let sources = files("e2e/tests/plugin/*.rs");
    let tests: String =
        sources.iter().map(|file| std::fs::read_to_string(root().join(file)).unwrap()).collect();
    let (ours, theirs): (Vec<Block>, Vec<Block>) = blocks().into_iter().partition(Block::is_ours);
    let run: String = ours.iter().flat_map(Block::commands).collect();
    let shown =
        theirs.iter().filter(|it| it.page.ends_with("kubectl-spotpool.md") && it.language == "console");
    let shown: Vec<String> = shown.flat_map(Block::commands).collect();
    assert!(shown.len() > 8);
    for command in shown {
        let verb = command.split_whitespace().nth(2).unwrap();
        assert!(
            tests.contains(&format!("\"{verb}")) || run.contains(&format!("kubectl spotpool {verb}")),
            "{command}"
        );
    }
}

#[test]
fn blocks_are_read_as_people_read_them() {
    let page = "1. a\n\n   ```console\n   $ one \\\n       more\n   said\n   $ two '\n   x'\n   ```\n\n```\n$ not\n```\n\n```sh needs-azure\naz\n```\n\n```bash\nx\n```\n";
    let found = of_page("p.md", page);
    assert_eq!(found[0].commands(), ["one \\\n    more", "two '\nx'"]);
    assert_eq!(found.iter().map(Block::is_ours).collect::<Vec<_>>(), [true, false, false, true]);
    let complaints: Vec<bool> = found.iter().map(|block| block.complaint().is_some()).collect();
    assert_eq!(complaints, [false, false, false, true], "{found:?}");
    assert!(Block::of("p.md", "console", "said\n").complaint().is_some());
    assert!(Block::of("p.md", "sh needs-luck", "x\n").complaint().is_some());
}
