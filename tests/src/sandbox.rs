//! Runs a test, or a whole program, as a child in new namespaces, where it is root and cannot change the
//! machine. When the child ends, even by a crash, the kernel removes its processes, interfaces and mounts.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Set in the child to the name of the test.
const INSIDE: &str = "QVPN_LAB_INSIDE";

/// The child's exit code at the end of the test: with a wrong test name nothing would run, which would look
/// like success.
const DONE: i32 = 42;

/// Runs `body` in the sandbox. Call it first in a `#[test]`, with the test's own name.
///
/// # Panics
/// If the test fails inside, `name` isn't its name, or the system forbids user namespaces.
#[track_caller]
pub fn run(name: &str, body: impl FnOnce()) {
    test(name, User::Rather, body);
}

/// As [`run`], but root stays the machine's root, for programs that change their groups, which a user
/// namespace forbids. Other users can't run such a test, and skip it.
#[track_caller]
pub fn run_as_root(name: &str, body: impl FnOnce()) {
    let inside = std::env::var_os(INSIDE).is_some();
    match inside || nix::unistd::geteuid().is_root() {
        true => test(name, User::IfNeeded, body),
        false => println!("skipped: only root can run the programs of this test"),
    }
}

#[track_caller]
fn test(name: &str, user: User, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        prepare();
        body();
        std::process::exit(DONE);
    }
    let mut command = unshare(user);
    let words = ["--exact", name, "--nocapture", "--include-ignored"];
    command.arg(std::env::current_exe().unwrap()).args(words).env(INSIDE, name);
    let status = command.stdin(Stdio::null()).status().unwrap();
    match status.code() {
        Some(DONE) => {}
        Some(0) => {
            panic!("there is no test `{name}` in this file: give sandbox::run the name of its own test")
        }
        _ => panic!("`{name}` failed in its sandbox ({status}); its messages are above"),
    }
}

/// Runs `body` in the sandbox, for a `main` function: the program runs itself again with the same arguments.
pub fn main(body: impl FnOnce() -> ExitCode) -> ExitCode {
    program(User::Rather, body)
}

/// As [`main`], but root stays the machine's root, so programs inside can force the sizes of their socket
/// buffers as daemons do, which measurements need. For other users it is the same as `main`.
pub fn main_as_root(body: impl FnOnce() -> ExitCode) -> ExitCode {
    program(User::IfNeeded, body)
}

fn program(user: User, body: impl FnOnce() -> ExitCode) -> ExitCode {
    if std::env::var_os(INSIDE).is_some() {
        prepare();
        return body();
    }
    let mut command = unshare(user);
    command.arg(std::env::current_exe().unwrap()).args(std::env::args_os().skip(1)).env(INSIDE, "main");
    let status = command.status().unwrap();
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Whether to make a user namespace.
#[derive(Clone, Copy, PartialEq)]
enum User {
    /// Yes, if the system allows it: any user can then do the rest.
    Rather,
    /// Only if the rest doesn't work without.
    IfNeeded,
}

/// Returns `unshare` with options that this system allows.
fn unshare(namespace: User) -> Command {
    let works = |args: &[&str]| {
        let probe = Command::new("unshare").args(args).args(["--net", "--mount", "true"]).output();
        probe.expect("`unshare` is missing: install util-linux").status.success()
    };
    let user = ["--user", "--map-root-user"];
    let args: &[&str] = if namespace == User::IfNeeded && works(&[]) {
        &[]
    } else if works(&user) {
        &user
    } else if works(&[]) {
        &[]
    } else {
        panic!(
            "this system lets you make no namespaces: run as root, or allow user namespaces (Debian: `sysctl \
             -w kernel.unprivileged_userns_clone=1`; Ubuntu 24.04: `sysctl -w \
             kernel.apparmor_restrict_unprivileged_userns=0`; in a container: --privileged)"
        );
    };
    let mut command = Command::new("unshare");
    command.args(args).args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    // In Debian, an ordinary user's PATH does not contain sbin.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

/// Mounts private directories for files that programs write, so that nothing remains and parallel tests don't
/// conflict.
fn prepare() {
    for dir in ["/run", "/var/lib", "/var/log"] {
        mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", dir]);
    }
    fs::create_dir_all("/run/qvpn").unwrap();
    fs::create_dir_all("/run/lab").unwrap();
    fs::create_dir_all("/var/lib/qvpn").unwrap();
    let tun = Path::new("/dev/net/tun");
    if let Err(error) = OpenOptions::new().read(true).write(true).open(tun) {
        panic!(
            "{} can't be opened ({error}): `modprobe tun`, and let this user read and write it",
            tun.display()
        );
    }
}

fn mount(args: &[&str]) {
    let status = Command::new("mount").args(args).status().unwrap();
    assert!(status.success(), "mount {args:?}");
}
