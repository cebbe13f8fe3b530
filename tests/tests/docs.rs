//! The operators' pages are right: every error message of the programs has a row in `docs/errors.md`, and the
//! programs accept the config of the tutorial. `scripts/test-packages.sh` runs the commands of the tutorial
//! and of `docs/operating.md`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::binary;

/// The sources of errors that reach the operator. Errors of a config are not among them: they have line,
/// column and cause.
const SOURCES: [&str; 10] = [
    "qvpn-audit/src/error.rs",
    "qvpn-daemon/src/error.rs",
    "qvpn-ctl/src/error.rs",
    "qvpn-net/src/error.rs",
    "qvpn-net/src/plan.rs",
    "qvpn-dataplane/src/error.rs",
    "qvpn-dataplane/src/tun.rs",
    "qvpn-identity/src/error.rs",
    "qvpn-secret/src/lock.rs",
    "qvpn-api/src/control/error.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns the texts of `#[error("…")]` in a source file.
fn messages(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in source.split("#[error(").skip(1) {
        let Some(text) = part.trim_start().strip_prefix('"') else { continue };
        let mut message = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => message.extend(chars.next()),
                c => message.push(c),
            }
        }
        found.push(message);
    }
    found
}

/// Returns the longest constant part of a message's cause; nothing if it only contains another error. The
/// advice after the first semicolon may be worded differently on the page.
fn fixed(message: &str) -> Option<&str> {
    let cause = message.split("; ").next()?;
    let parts = cause.split('{').filter_map(|part| part.rsplit('}').next());
    let longest =
        parts.map(|part| part.trim_matches([' ', ':', '(', ')', '`', '"', ','])).max_by_key(|p| p.len())?;
    (longest.len() >= 8).then_some(longest)
}

/// Returns the text without line breaks and markup.
fn plain(text: &str) -> String {
    text.replace(['`', '\\'], "").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_error_message_has_its_row() {
    let page = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let page = plain(&page);
    let (mut seen, mut missing) = (0, BTreeSet::new());
    for source in SOURCES {
        let text = fs::read_to_string(root().join(source)).unwrap();
        for cause in messages(&text).iter().filter_map(|message| fixed(message)).map(plain) {
            seen += 1;
            if !page.contains(&cause) {
                missing.insert(format!("{source}: {cause}"));
            }
        }
    }
    assert!(seen > 40, "{seen} messages were found in the sources");
    assert!(missing.is_empty(), "docs/errors.md doesn't have:\n{}", Vec::from_iter(missing).join("\n"));
}

#[test]
fn every_event_is_on_the_page() {
    let source = fs::read_to_string(root().join("qvpn-api/src/events.rs")).unwrap();
    let page = fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    let names: Vec<&str> =
        source.split("#[serde(rename = \"").skip(1).filter_map(|part| part.split('"').next()).collect();
    assert!(names.len() > 20, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/monitoring.md doesn't have {missing:?}");
}

#[test]
fn the_units_point_to_existing_pages() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    for program in ["qvpn-ctl", "qvpn-daemon", "kme-sim"] {
        assert!(Command::new(binary(program)).arg("man").arg(&dir).status().unwrap().success());
    }
    let mut pages = 0;
    for unit in fs::read_dir(root().join("packaging/systemd")).unwrap() {
        let text = fs::read_to_string(unit.unwrap().path()).unwrap();
        for page in text.split_whitespace().filter_map(|word| word.split_once("man:").map(|(_, page)| page)) {
            let (name, section) = page.trim_end_matches(')').split_once('(').unwrap();
            assert!(dir.join(format!("{name}.{section}")).exists(), "there is no page {page}");
            pages += 1;
        }
    }
    assert!(pages > 4, "{pages}");
}

#[test]
fn the_guides_config_is_taken() {
    let guide = fs::read_to_string(root().join("docs/tutorial.md")).unwrap();
    let block = guide.split("<!-- config: site -->").nth(1).unwrap();
    let config = block.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide");
    fs::create_dir_all(&dir).unwrap();
    let ctl = |args: &[&str], input: &Path| {
        let input = fs::File::open(input).unwrap();
        Command::new(binary("qvpn-ctl")).args(args).stdin(input).output().unwrap()
    };
    let secret = dir.join("b.key");
    fs::write(&secret, ctl(&["genkey"], Path::new("/dev/null")).stdout).unwrap();
    let public = String::from_utf8(ctl(&["pubkey"], &secret).stdout).unwrap();
    assert!(config.contains("\"qvpn1-…\""), "the guide leaves the other site's key out");
    let file = dir.join("qvpn0.toml");
    fs::write(&file, config.replace("qvpn1-…", public.trim())).unwrap();
    let output = ctl(&["check", "--no-files", file.to_str().unwrap()], Path::new("/dev/null"));
    assert!(output.status.success(), "{output:?}");
}
