//! The references in the documents are right: each link leads to an existing file and heading, and each test
//! or line that a page names (`path::name`) exists.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn pages(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir()
            && !["target", "corpus", "artifacts"].contains(&name.as_str())
            && !name.starts_with('.')
        {
            pages(&path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
}

/// Returns a page without its blocks of code.
fn prose(text: &str) -> String {
    let mut code = false;
    let keep = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    };
    text.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

/// Returns the targets of `[text](target)` within the repository.
fn links(text: &str) -> Vec<String> {
    let inside = |rest: &str| rest.split(')').next().unwrap_or_default().to_owned();
    let all = text.split("](").skip(1).map(inside);
    all.filter(|link| !link.contains("://") && !link.starts_with("mailto:")).collect()
}

/// Returns the spans of the form `path::name`, where the path has a directory and a file extension.
fn names(text: &str) -> Vec<(String, String)> {
    let spans = text.split('`').skip(1).step_by(2);
    let pair = |span: &str| {
        let span = span.split_whitespace().collect::<Vec<_>>().join(" ");
        let (path, name) = span.split_once("::")?;
        let file = path.contains('/') && path.rsplit('/').next()?.contains('.');
        file.then(|| (path.to_owned(), name.to_owned()))
    };
    spans.filter_map(pair).collect()
}

/// Returns a heading's anchor, as repository hosts make it.
fn anchor(heading: &str) -> String {
    let plain = heading.trim_start_matches('#').trim().to_lowercase().replace(['`', '*'], "");
    let kept = plain.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> Vec<String> {
    prose(text).lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

#[track_caller]
fn wrong(page: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for link in links(&prose(text)) {
        let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
        let path = if file.is_empty() { page.to_owned() } else { page.parent().unwrap().join(file) };
        if !path.exists() {
            found.push(format!("{}: no file for the link {link}", page.display()));
        } else if !heading.is_empty() && path.extension().is_some_and(|e| e == "md") {
            let target = fs::read_to_string(&path).unwrap();
            if !anchors(&target).iter().any(|anchor| anchor == heading) {
                found.push(format!("{}: no heading for the link {link}", page.display()));
            }
        }
    }
    for (path, name) in names(&prose(text)) {
        let Ok(code) = fs::read_to_string(root().join(&path)) else {
            found.push(format!("{}: no file {path}", page.display()));
            continue;
        };
        let there = if path.ends_with(".rs") {
            let bound = |rest: &str| rest.starts_with(['(', '<', ' ', '!']);
            [format!("fn {name}"), format!("macro_rules! {name}")]
                .iter()
                .any(|item| code.match_indices(item).any(|(at, _)| bound(&code[at + item.len()..])))
        } else {
            code.split_whitespace().collect::<Vec<_>>().join(" ").contains(&name)
        };
        if !there {
            found.push(format!("{}: {path} has no `{name}`", page.display()));
        }
    }
    found
}

#[test]
fn links_and_names_in_the_pages_exist() {
    let mut all = Vec::new();
    pages(&root(), &mut all);
    assert!(all.len() > 15, "the pages are found: {all:?}");
    let (mut count, mut tests, mut bad) = (0, 0, Vec::new());
    for page in &all {
        let text = fs::read_to_string(page).unwrap();
        count += links(&prose(&text)).len();
        tests += names(&prose(&text)).len();
        bad.extend(wrong(page, &text));
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(count > 20 && tests > 50, "the search itself works: {count} links, {tests} names");
}

#[test]
fn the_search_can_fail() {
    let page = root().join("docs/protocol.md");
    let count = |text: &str| wrong(&page, text).len();
    assert_eq!(
        count(
            "[a](protocol.md) [b](https://example.org/x) [c](#9-data-packets) `tests/tests/claims.rs::anchor`"
        ),
        0
    );
    assert_eq!(count("[a](nowhere.md)"), 1);
    assert_eq!(count("[a](protocol.md#nothing-like-it)"), 1);
    assert_eq!(count("`tests/tests/claims.rs::no_such_test`"), 1);
    assert_eq!(count("`tests/tests/claims.rs::ancho`"), 1);
    assert_eq!(count("`docs/formal/run.sh::no such line`"), 1);
    assert_eq!(count("```\n[a](nowhere.md)\n```"), 0);
}
