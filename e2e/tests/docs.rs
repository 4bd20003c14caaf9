//! Every link between pages leads somewhere: to a file that is there, and in a page to a heading.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// What a page has that others may point to, and what it points to.
#[derive(Default)]
struct Page {
    headings: BTreeSet<String>,
    links: Vec<String>,
}

/// A heading as GitHub and mdBook name it in an address.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|it| it.is_alphanumeric() || [' ', '-', '_'].contains(it));
    kept.map(|it| if it == ' ' { '-' } else { it }).collect::<String>().to_lowercase()
}

fn read(text: &str) -> Page {
    let (mut page, mut heading) = (Page::default(), None);
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&heading.take().unwrap());
                let again = (1..).map(|count| format!("{slug}-{count}"));
                let free = std::iter::once(slug.clone()).chain(again).find(|it| !page.headings.contains(it));
                page.headings.extend(free);
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    *heading += &text;
                }
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.to_string());
            }
            _ => {}
        }
    }
    page
}

/// A path without its `..`, as text.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        if part == Component::ParentDir {
            path.pop();
        } else {
            path.push(part);
        }
        path
    })
}

/// Pages of the repository, by their path in it. Those that are parts of a page are not read alone.
fn pages(root: &Path) -> BTreeMap<PathBuf, Page> {
    let listed = Command::new("git").args(["ls-files", "--", "*.md"]).current_dir(root).output().unwrap();
    assert!(listed.status.success());
    let files = String::from_utf8(listed.stdout).unwrap();
    let files = files.lines().filter(|file| !file.starts_with("operator/kubectl/notes/")).map(PathBuf::from);
    files.map(|file| (file.clone(), read(&std::fs::read_to_string(root.join(file)).unwrap()))).collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages = pages(root);
    let mut wrong = Vec::new();
    for (file, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (target, heading) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if target.is_empty() { file.clone() } else { normal(&file.parent().unwrap().join(target)) };
            let headings = pages.get(&target).map(|page| &page.headings);
            let leads = root.join(&target).exists()
                && (heading.is_empty() || headings.is_none_or(|headings| headings.contains(heading)));
            if !leads {
                wrong.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(pages.len() > 100, "{} pages", pages.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn headings_and_links_are_read_as_readers_see_them() {
    let page =
        read("# A `flag`, or two\n## Twice\n## Twice\n[a](b.md#c) `[no](link)`\n\n```\n[no](link)\n```\n");
    assert_eq!(page.headings, ["a-flag-or-two", "twice", "twice-1"].map(str::to_owned).into());
    assert_eq!(page.links, ["b.md#c"]);
}
