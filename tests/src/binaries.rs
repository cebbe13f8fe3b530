//! Finds the programs under test. The Makefile builds them.

use std::path::PathBuf;

/// Returns the path of a program of this workspace, beside the running test (`target/debug` or
/// `target/release`), or in the directory that `QVPN_BIN_DIR` names.
///
/// # Panics
/// If it isn't built.
#[must_use]
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("QVPN_BIN_DIR").map_or_else(beside_us, PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} isn't built: run `cargo build --workspace --bins` first (`make test` does)",
        path.display()
    );
    path
}

fn beside_us() -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir
}
