//! Checks of the source tree that need no build of it: cycles of imports among the files of a crate, long
//! files and lines, and words that the glossary replaced. `make test` runs them; they take seconds:
//! `cargo test --manifest-path layout/Cargo.toml`.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub mod imports;
pub mod unsafe_code;
pub mod words;

/// Returns the repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns every text file of the repository, new ones too: its path from the root, and its text.
pub fn texts() -> BTreeMap<String, String> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").arg("-C").arg(root()).args(list).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    let text = |name: &str| Some((name.to_owned(), fs::read_to_string(root().join(name)).ok()?));
    names.lines().filter_map(text).collect()
}

/// Returns the root files of all targets in the crate at `dir`, where cargo looks for them.
pub fn targets(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.join("src/lib.rs"), dir.join("src/main.rs")];
    for kind in ["src/bin", "tests", "benches", "examples", "fuzz_targets"] {
        for entry in fs::read_dir(dir.join(kind)).into_iter().flatten() {
            let path = entry.unwrap().path();
            found.push(if path.is_dir() { path.join("main.rs") } else { path });
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs") && path.exists());
    found
}
