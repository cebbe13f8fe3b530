//! Where the programs under test are. Building them is the Makefile's work; here they are only found.

use std::path::PathBuf;

/// The path of a program of this workspace, beside the running test (`target/debug` or `target/release`), or in the folder
/// that `QVPN_BIN_DIR` names.
///
/// # Panics
/// If it isn't built.
#[must_use]
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("QVPN_BIN_DIR").map_or_else(beside_us, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} isn't built: run `cargo build --workspace --bins` first (`make test` does)",
        path.display()
    );
    path
}

fn beside_us() -> PathBuf {
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    folder
}
