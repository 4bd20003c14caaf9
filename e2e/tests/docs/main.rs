//! What pages say holds: links lead somewhere, commands are run, manifests are taken, pictures are of what was seen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cargo;
mod commands;
mod demo;
mod fences;
mod pictures;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Files of the repository, those not yet committed as well; a `*` stands for folders, too.
fn files(pattern: &str) -> Vec<String> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard", "--", pattern];
    let listed = Command::new("git").args(list).current_dir(root()).output().unwrap();
    assert!(listed.status.success());
    let mut files: Vec<String> =
        String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    files.retain(|file| root().join(file).exists());
    files.sort();
    files.dedup();
    files
}

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
fn pages() -> BTreeMap<PathBuf, Page> {
    let pages = files("*.md").into_iter().filter(|file| !file.starts_with("operator/kubectl/notes/"));
    pages
        .map(|file| (PathBuf::from(&file), read(&std::fs::read_to_string(root().join(file)).unwrap())))
        .collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let pages = pages();
    let mut wrong = Vec::new();
    for (file, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (target, heading) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if target.is_empty() { file.clone() } else { normal(&file.parent().unwrap().join(target)) };
            let headings = pages.get(&target).map(|page| &page.headings);
            let leads = root().join(&target).exists()
                && (heading.is_empty() || headings.is_none_or(|headings| headings.contains(heading)));
            if !leads {
                wrong.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(pages.len() > 100, "{} pages", pages.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is no chapter.
const NOT_IN_THE_BOOK: [&str; 1] = ["docs/SUMMARY.md"];

#[test]
fn every_page_is_in_the_book() {
    let pages = pages();
    let summary = &pages[Path::new("docs/SUMMARY.md")].links;
    let listed: BTreeSet<PathBuf> = summary.iter().map(|link| Path::new("docs").join(link)).collect();
    let missing = pages.keys().filter(|page| page.starts_with("docs") && !listed.contains(*page));
    let missing: Vec<_> =
        missing.filter(|page| !NOT_IN_THE_BOOK.iter().any(|it| page.ends_with(it))).collect();
    assert!(missing.is_empty(), "put into docs/SUMMARY.md: {missing:?}");
    assert_eq!(listed.len(), summary.len(), "a page is listed twice");
}

#[test]
fn headings_and_links_are_read_as_readers_see_them() {
    let page =
        read("# A `flag`, or two\n## Twice\n## Twice\n[a](b.md#c) `[no](link)`\n\n```\n[no](link)\n```\n");
    assert_eq!(page.headings, ["a-flag-or-two", "twice", "twice-1"].map(str::to_owned).into());
    assert_eq!(page.links, ["b.md#c"]);
}
