"""The book of the pages: `book.py` is mdBook's preprocessor, `book.py check FOLDER` looks at what mdBook has made.

Pages link to sources, charts and manifests outside of their folder, as readers of the repository want it. In the book these become links
to SPOTPOOL_SOURCES (such as https://github.com/OWNER/REPOSITORY/blob/main), or, where that is not set, the path in words.
"""

import html.parser
import json
import os
import pathlib
import posixpath
import re
import sys
import urllib.parse

LINK = re.compile(r"\[((?:[^][]|\[[^]]*\])*)\]\(([^()\s]+)\)")


def outside(chapter):
    """The text of a chapter, without links that leave the book."""
    folder = posixpath.dirname("docs/" + chapter["path"])
    sources = os.environ.get("SPOTPOOL_SOURCES", "").rstrip("/")

    def replaced(found):
        words, target = found.groups()
        path = posixpath.normpath(posixpath.join(folder, target.split("#")[0]))
        if "://" in target or target.startswith("#"):
            return found.group(0)
        if path.startswith("docs/") and path != "docs/SUMMARY.md":
            # mdBook makes index.html of a README, and leaves links to it as they are.
            target = re.sub(r"(^|/)README[.]md", r"\1index.md", target)
            return f"[{words}]({target})"
        return f"[{words}]({sources}/{path})" if sources else f"{words} (`{path}`)"

    # Not inside of fences, where brackets are code.
    parts = re.split(r"(?ms)(^[ \t]*```.*?^[ \t]*```[ \t]*$)", chapter["content"])
    return "".join(part if index % 2 else LINK.sub(replaced, part) for index, part in enumerate(parts))


def preprocess():
    if sys.argv[1:2] == ["supports"]:
        return
    _, book = json.load(sys.stdin)

    def walk(items):
        for item in items:
            if "Chapter" in item:
                chapter = item["Chapter"]
                if chapter.get("path"):
                    chapter["content"] = outside(chapter)
                walk(chapter["sub_items"])

    walk(book.get("items") or book.get("sections"))
    json.dump(book, sys.stdout)


class Page(html.parser.HTMLParser):
    """What a page of the book points to, and what in it may be pointed to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names.update(value for key in ("id", "name") if (value := attrs.get(key)))
        link = attrs.get("href") if tag == "a" else attrs.get("src") if tag == "img" else None
        if link and not urllib.parse.urlsplit(link).scheme:
            self.links.append(urllib.parse.unquote(link))


def check(folder):
    folder = pathlib.Path(folder).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        if path.name in ("print.html", "404.html", "toc.html"):
            continue  # every chapter in one, and frames: their links are those of the chapters
        for link in page.links:
            target, _, name = link.partition("#")
            to = (path.parent / target).resolve() if target else path
            if not to.exists() or (name and to in pages and name not in pages[to].names):
                wrong.append(f"{path.relative_to(folder)}: {link}")
    if len(pages) < 50 or wrong:
        sys.exit("\n".join([f"{len(pages)} pages, {len(wrong)} links that lead nowhere", *sorted(set(wrong))]))
    print(f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links")


if sys.argv[1:2] == ["check"]:
    check(sys.argv[2])
else:
    preprocess()
