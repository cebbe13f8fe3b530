//! The resident guard keeps the block while daemons run, hang, are killed and return; a daemon keeps its own
//! block while there is no guard.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{Capture, GatewayOptions, KmeOptions, Lab, Outer, Site, Stream, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
/// The time limit for restoring a removed layer; far more than is measured, since the machine may be busy.
const RESTORED_WITHIN: Duration = Duration::from_secs(2);

/// Removes rules and routes of the block, and returns how long it took until they were back.
fn removed_and_restored(lab: &Lab, what: &str) -> Duration {
    let there = || {
        let rules = lab.gw_a.run("ip rule show priority 113; ip -6 rule show priority 113");
        let routes = lab.gw_a.run("ip route show table 29046; ip -6 route show table 29046");
        rules.matches("lookup 29046").count() == 2 && routes.matches("unreachable").count() == 2
    };
    assert!(there(), "{what}: the block is in place first");
    lab.gw_a.run(
        "ip rule del priority 113; ip -6 rule del priority 113; \
         ip route flush table 29046; ip -6 route flush table 29046",
    );
    let start = Instant::now();
    wait_until(&format!("{what}: rules and routes are back"), RESTORED_WITHIN, || there().then_some(()));
    println!("{what}: rules and routes were back after {:?}", start.elapsed());
    start.elapsed()
}

fn filter_is_there(lab: &Lab) -> bool {
    lab.gw_a.run("nft list tables").contains("inet qvpn-qvpn0")
}

#[test]
fn the_guard_keeps_the_block_without_the_daemon() {
    sandbox::run("the_guard_keeps_the_block_without_the_daemon", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        for site in Site::BOTH {
            let _ = lab.configure(site, &GatewayOptions::default());
        }
        let mut guard = lab.start_guard();
        assert!(filter_is_there(&lab), "before there is a daemon");
        let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
        let stream = Stream { count: 20_000, rate: 500, ..Stream::default() }.start(&lab);
        removed_and_restored(&lab, "no daemon");

        // A daemon that finds no socket would guard too.
        let socket = lab.gw_a.dir().join("run/guard.socket");
        std::fs::remove_file(&socket).unwrap();
        wait_until("the guard's socket is there again", START, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(())
        });

        let mut a = lab.start_daemon(Site::A);
        let _b = lab.start_daemon(Site::B);
        a.wait_state("up", START);
        wait_until("traffic", START, || lab.lan_a.pings(Site::B.host()[0]).then_some(()));
        removed_and_restored(&lab, "daemon runs");
        wait_until("traffic again", START, || lab.lan_a.pings(Site::B.host()[0]).then_some(()));

        // A second guard would undo what the first does.
        let second = a.ctl(&["guard", "--watch"]);
        assert_eq!(second.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&second.stderr).contains("a guard runs already"), "{second:?}");

        a.process.signal(Signal::SIGSTOP);
        removed_and_restored(&lab, "daemon hangs");
        assert!(filter_is_there(&lab));
        a.process.signal(Signal::SIGCONT);

        // Without the guard, the daemon does the same, and hands over when the guard returns.
        guard.kill();
        a.process.line("the guard has ended", START);
        removed_and_restored(&lab, "guard killed");
        assert!(filter_is_there(&lab));
        let mut guard = lab.start_guard();
        a.process.line("the guard keeps the block in force from now on", START);
        wait_until("traffic with the second guard", START, || {
            lab.lan_a.pings(Site::B.host()[0]).then_some(())
        });

        a.process.kill();
        removed_and_restored(&lab, "daemon killed");
        assert!(filter_is_there(&lab) && !lab.lan_a.pings(Site::B.host()[0]));
        lab.gw_a.run("nft flush ruleset");
        assert!(filter_is_there(&lab), "the guard owns it");
        guard.signal(Signal::SIGTERM);
        drop(stream);
        wait_until("the guard ends", START, || (!guard.is_running()).then_some(()));
        assert!(filter_is_there(&lab), "its filter stays");
        let seen = capture.stop();
        let clear = seen.with_any(&lab.inner_patterns());
        assert!(clear.is_empty(), "{} packets in clear, the first: {:?}", clear.len(), clear[0]);
        assert!(seen.data().len() > 100, "the capture saw the tunnel");
    });
}
