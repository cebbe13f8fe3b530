//! Runs the real `qvpn-ctl` with files, with a fake daemon on a socket, and on a terminal, and compares its
//! output and its exit codes with what scripts and people rely on.
#![allow(clippy::unwrap_used)] // helpers of tests

mod ask;
mod check;
mod fake;
mod help;
mod hostile;
mod keys;
mod operate;
mod routes;
mod schemas;
mod show;
mod status;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Returns `qvpn-ctl` with its directories in `dir` and a plain environment.
fn ctl(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvpn-ctl"));
    command.args(args).env_clear();
    command.env("QVPN_SOCKET_DIR", dir).env("QVPN_CONFIG_DIR", dir);
    command
}

/// The output of a run and its exit code.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn run(dir: &Path, args: &[&str]) -> Run {
    ctl(dir, args).stdin(Stdio::null()).output().unwrap().into()
}

fn run_with_input(dir: &Path, args: &[&str], input: &[u8]) -> Run {
    let mut command = ctl(dir, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that refuses early closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap().into()
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let wrong: [&[&str]; 12] = [
        &[],
        &["dance"],
        &["show", "--jsn"],
        &["show", "a/b"],
        &["show", "sixteen-letters-"],
        &["rekey", "a/b"],
        &["events", "a/b"],
        &["peer"],
        &["peer", "list"],
        &["check"],
        &["block"],
        &["block", "--all", "x.toml"],
    ];
    for args in wrong {
        let run = run(dir.path(), args);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{args:?}: {run:?}");
    }
    // If no interface is configured, none can be left out.
    for args in [&["rekey"][..], &["events"]] {
        let run = run(dir.path(), args);
        assert_eq!((run.code, run.out.as_str()), (4, ""), "{args:?}: {run:?}");
    }
    for args in [&["--help"][..], &["--version"], &["show", "--help"], &["peer", "list", "--help"]] {
        assert_eq!(run(dir.path(), args).code, 0, "{args:?}");
    }
    assert!(
        run(dir.path(), &["--help"]).out.contains("Exit codes: 0 done, 1 failed, 2 usage, 3 config refused")
    );
}

#[test]
fn a_full_disk_fails_and_a_closed_pipe_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    for command in ["genkey", "genpsk"] {
        let output = ctl(dir.path(), &[command]).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let run = Run::from(output);
        assert_eq!(run.code, 1);
        assert!(run.err.contains("can't write the output: No space left on device"), "{run:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ctl(dir.path(), &["genkey"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(Run::from(output), Run { code: 0, out: String::new(), err: String::new() });
}
