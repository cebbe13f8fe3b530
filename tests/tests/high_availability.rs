//! An active/passive pair under the real keepalived, by the packages' example: whichever part of the active
//! gateway fails, the other one takes over with fresh keys, and nothing leaves in clear.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::{Capture, Gateway, GatewayOptions, KmeOptions, PairGateway, PairLab, Process, Site, sandbox};

const LIMIT: Duration = Duration::from_secs(30);
/// What a gap may be on a machine that does other things too; the measured one is printed.
const MAX_GAP: Duration = Duration::from_secs(8);

/// Pings each 50 ms from site B's LAN to site A's.
struct Pings(Process);

impl Pings {
    fn start(pair: &PairLab) -> Self {
        let args = ["-n", "-D", "-i", "0.05", "-W", "1", "10.10.0.2"];
        let mut ping = pair.lab.lan_b.spawn("ping", &args);
        for _ in 0..5 {
            ping.line("bytes from", LIMIT);
        }
        Self(ping)
    }

    /// Waits until replies come again, and returns the longest time between two of them.
    #[track_caller]
    fn finish(mut self, what: &str) -> Duration {
        // Skips the replies that came before.
        while self.0.find_line(Duration::from_millis(1), |_| true).is_ok() {}
        for _ in 0..10 {
            self.0.line("bytes from", LIMIT);
        }
        self.0.signal(Signal::SIGINT);
        self.0.wait(LIMIT);
        let log = self.0.log();
        let replies = log.lines().filter(|line| line.contains("bytes from"));
        let times: Vec<f64> = replies.map(|line| line[1..line.find(']').unwrap()].parse().unwrap()).collect();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        println!("{what}: largest gap {longest:.2} s");
        let longest = Duration::from_secs_f64(longest);
        assert!(longest < MAX_GAP, "{what}: {longest:?}");
        longest
    }
}

/// The pair, site B and a capture of what leaves both sites.
struct Scene<'a> {
    first: PairGateway<'a>,
    second: PairGateway<'a>,
    b: Gateway<'a>,
    captures: [Capture<'a>; 2],
}

fn options() -> GatewayOptions {
    GatewayOptions { rekey_interval: "5s".to_owned(), ..GatewayOptions::default() }
}

/// Starts everything, and waits until the first gateway carries traffic.
fn begin(pair: &PairLab) -> Scene<'_> {
    let captures = [("bridge", "198.51.100.12"), ("site-b", "203.0.113.1")]
        .map(|(device, neighbour)| Capture::start(&pair.lab.wan, device, neighbour));
    let b = pair.lab.start_daemon(Site::B);
    let first = pair.start(false);
    let second = pair.start(true);
    first.wait_mode("active", LIMIT);
    second.wait_mode("standby", LIMIT);
    b.wait_state("up", LIMIT);
    tests::wait_until("traffic flows", LIMIT, || pair.lab.lan_b.pings("10.10.0.2").then_some(()));
    Scene { first, second, b, captures }
}

impl Scene<'_> {
    /// Nothing was in clear, and nobody called the pair a duplicate.
    #[track_caller]
    fn end(self, pair: &PairLab) {
        let patterns = pair.lab.inner_patterns();
        for capture in self.captures {
            let packets = capture.stop();
            assert!(!packets.data().is_empty(), "the capture saw the tunnel");
            assert_eq!(packets.with_any(&patterns).len(), 0, "packets in clear");
        }
        let metrics = String::from_utf8(self.b.ctl(&["metrics", "qvpn0"]).stdout).unwrap();
        assert!(metrics.contains("qvpn_identity_duplicate_total{interface=\"qvpn0\",peer=\"site-a\"} 0"));
    }

    /// The QKD key of site B's epoch.
    fn key_id(&self) -> String {
        self.b.peer()["qkd_key_id"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_killed_daemon_is_replaced_comes_back_and_can_be_relieved() {
    sandbox::run_as_root("a_killed_daemon_is_replaced_comes_back_and_can_be_relieved", || {
        let pair = PairLab::new(&options());
        let kmes = pair.lab.start_kmes(&KmeOptions::default());
        let mut scene = begin(&pair);
        let standby = scene.second.daemon.peer();
        assert_eq!((&standby["state"], &standby["qkd_stock"]), (&"standby".into(), &().into()));
        assert_eq!(scene.second.daemon.show()["kmes"][0]["state"], "up", "its KME is checked");
        let refused = scene.second.daemon.ctl(&["rekey", "qvpn0"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("in standby"), "{refused:?}");

        let key = scene.key_id();
        let pings = Pings::start(&pair);
        scene.first.daemon.process.kill();
        scene.second.wait_mode("active", LIMIT);
        pings.finish("daemon killed");
        assert_ne!(scene.key_id(), key, "a fresh key");

        let pings = Pings::start(&pair);
        scene.first.restart_daemon();
        scene.first.wait_mode("active", LIMIT);
        scene.second.wait_mode("standby", LIMIT);
        pings.finish("failback");

        let pings = Pings::start(&pair);
        scene.first.away(true);
        scene.second.wait_mode("active", LIMIT);
        scene.first.wait_mode("standby", LIMIT);
        pings.finish("planned switch");
        let metrics = String::from_utf8(scene.second.daemon.ctl(&["metrics", "qvpn0"]).stdout).unwrap();
        assert!(metrics.contains("qvpn_takeovers_total{interface=\"qvpn0\"} 2"), "{metrics}");
        assert!(metrics.contains("qvpn_gateway_active{interface=\"qvpn0\"} 1"), "{metrics}");

        let pings = Pings::start(&pair);
        scene.first.away(false);
        scene.first.wait_mode("active", LIMIT);
        pings.finish("planned return");
        drop(kmes);
        scene.end(&pair);
    });
}

#[test]
fn a_gateway_without_a_link_or_a_kme_is_replaced() {
    sandbox::run_as_root("a_gateway_without_a_link_or_a_kme_is_replaced", || {
        let pair = PairLab::new(&options());
        let _kmes = pair.lab.start_kmes(&KmeOptions::default());
        let scene = begin(&pair);
        for network in ["wan", "lan"] {
            let pings = Pings::start(&pair);
            pair.link(false, network, false);
            scene.second.wait_mode("active", LIMIT);
            pings.finish(&format!("{network} link down"));
            let pings = Pings::start(&pair);
            pair.link(false, network, true);
            scene.first.wait_mode("active", LIMIT);
            scene.second.wait_mode("standby", LIMIT);
            pings.finish(&format!("{network} link up again"));
        }
        // Only the first gateway loses its way to the KME.
        let pings = Pings::start(&pair);
        pair.lab.gw_a.block("output", "tcp dport 8443");
        scene.second.wait_mode("active", LIMIT);
        scene.first.wait_mode("standby", LIMIT);
        pings.finish("KME gone");
        let ready = scene.first.daemon.ctl(&["ready", "qvpn0"]);
        assert_eq!((ready.status.code(), &ready.stdout[..]), (Some(5), &b"standby\n"[..]));
        scene.end(&pair);
    });
}

#[test]
fn a_dead_machine_is_replaced_and_a_split_network_is_named() {
    sandbox::run_as_root("a_dead_machine_is_replaced_and_a_split_network_is_named", || {
        let pair = PairLab::new(&options());
        let _kmes = pair.lab.start_kmes(&KmeOptions::default());
        let mut scene = begin(&pair);
        // The advertisements don't pass any more; both hold both addresses.
        for second in [false, true] {
            pair.node(second).block("input", "ip protocol 112");
        }
        scene.second.wait_mode("active", LIMIT);
        assert_eq!(scene.first.daemon.show()["gateway"]["state"], "active");
        let mut events = scene.b.events();
        events.line("identity.duplicate", Duration::from_secs(60));
        for second in [false, true] {
            pair.node(second).unblock();
        }
        scene.second.wait_mode("standby", LIMIT);
        scene.b.wait_state("up", LIMIT);
        tests::wait_until("traffic flows", LIMIT, || pair.lab.lan_b.pings("10.10.0.2").then_some(()));

        let pings = Pings::start(&pair);
        for network in ["lan", "wan"] {
            pair.link(false, network, false);
        }
        scene.first.power_off();
        scene.second.wait_mode("active", LIMIT);
        pings.finish("power off");
        let patterns = pair.lab.inner_patterns();
        for capture in scene.captures {
            assert_eq!(capture.stop().with_any(&patterns).len(), 0, "packets in clear");
        }
    });
}
