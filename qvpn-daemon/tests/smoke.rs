//! How the program refuses a config and a command line; these tests need no network.

use std::io;
use std::process::{Command, Output};

fn daemon(args: &[&str]) -> io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_qvpn-daemon")).args(args).output()
}

#[test]
fn a_bad_config_is_refused_with_all_its_errors_and_exit_code_3() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qvpn0.toml");
    std::fs::write(&path, "[interface]\nlisten_prt = 51820\nlanes = 99\n").unwrap();
    let path = path.to_str().unwrap();
    let output = daemon(&["--config", path]).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains(&format!("{path}:2:1: ")) && text.contains("`listen_port`"), "{text}");
    assert!(text.contains(&format!("{path}:3:9: ")), "{text}");
}

#[test]
fn a_missing_config_is_refused_and_a_missing_option_is_usage() {
    let output = daemon(&["--config", "/nonexistent/qvpn0.toml"]).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonexistent/qvpn0.toml"));
    assert_eq!(daemon(&[]).unwrap().status.code(), Some(2));
}

#[test]
fn the_man_page_comes_from_the_help() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man");
    assert_eq!(daemon(&["man", pages.to_str().unwrap()]).unwrap().status.code(), Some(0));
    let page = std::fs::read_to_string(pages.join("qvpn-daemon.8")).unwrap().replace("\\-", "-");
    assert!(page.contains("--config") && page.contains("Exit codes"), "{page}");
    assert_eq!(daemon(&["man", "/proc/no-such-dir"]).unwrap().status.code(), Some(1));
    assert_eq!(daemon(&["man"]).unwrap().status.code(), Some(2));
}
