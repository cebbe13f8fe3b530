//! Runs each test again as a child within fresh user, network and mount namespaces, so that any user can run
//! it and nothing is left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::{Command, Stdio};

const INSIDE: &str = "QVPN_NET_TEST_INSIDE";

/// Runs `body` within new namespaces, where `lo` is up. `test` is the name of the calling test.
pub fn in_namespace(test: &str, body: impl AsyncFnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body());
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .status()
        .expect("`unshare` (package util-linux) is needed");
    assert!(
        status.success(),
        "the test failed in its namespace; if unshare was refused, allow user namespaces"
    );
}

/// Runs `ip` with these arguments and returns its output.
pub fn ip(args: &str) -> String {
    let output =
        Command::new("ip").args(args.split_whitespace()).output().expect("`ip` (package iproute2) is needed");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
