//! The lab itself, without the tunnel: the scenarios' tools work, and checks that should fail do.

use std::time::{Duration, Instant};

use tests::{Capture, KmeOptions, Lab, Outer, Site, Stream, sandbox, wait_until};

#[test]
fn each_host_reaches_only_its_neighbours() {
    sandbox::run("each_host_reaches_only_its_neighbours", || {
        let lab = Lab::new();
        for site in Site::BOTH {
            for address in site.gateway() {
                assert!(lab.lan(site).pings(address), "host to its gateway, {address}");
            }
            for outer in [Outer::V4, Outer::V6] {
                let far = site.other().wan(outer);
                assert!(lab.gw(site).pings(far), "gateway to gateway across the WAN, {far}");
            }
            let kme = site.kme_address().split(':').next().unwrap();
            assert!(lab.gw(site).pings(kme), "gateway to its KME");
            let far = site.other().kme_address().split(':').next().unwrap();
            assert!(!lab.gw(site).pings(far), "gateway to the other site's KME");
            assert!(!lab.lan(site).pings(site.other().host()[0]), "host to host without a tunnel");
        }
    });
}

#[test]
fn a_capture_sees_what_leaves_in_clear() {
    sandbox::run("a_capture_sees_what_leaves_in_clear", || {
        let lab = Lab::new();
        let patterns = lab.inner_patterns();
        let quiet = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4)).stop();
        assert!(quiet.with_any(&patterns).is_empty(), "{quiet:?}");

        let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
        let [far4, far6] = Site::B.host();
        assert!(!lab.lan_a.pings(far4) && !lab.lan_a.pings(far6));
        lab.lan_a.run(&format!("bash -c \"echo 'qvpn lab payload' > /dev/udp/{far4}/9\""));
        let seen = capture.stop();
        let clear = seen.with_any(&patterns);
        let to =
            |address: &str| clear.iter().filter(|p| p.destination == Some(address.parse().unwrap())).count();
        assert!(to(far4) >= 2 && to(far6) >= 1, "{seen:?}");
        assert_eq!(seen.with_udp_port(9).len(), 1, "{seen:?}");
        assert!(!seen.with_any(&[b"qvpn lab payload".to_vec()]).is_empty());
    });
}

/// Connects the LANs by plain routes, so that a stream takes the path of the tunnel's packets in clear.
fn join_in_clear(lab: &Lab) {
    for site in Site::BOTH {
        let [net4, net6] = site.networks();
        lab.wan.run(&format!(
            "ip route add {net4} via {} && ip -6 route add {net6} via {}",
            site.wan(Outer::V4),
            site.wan(Outer::V6)
        ));
    }
}

#[test]
fn a_stream_of_5000_a_second_loses_nothing_alone() {
    sandbox::run("a_stream_of_5000_a_second_loses_nothing_alone", || {
        let lab = Lab::new();
        join_in_clear(&lab);
        for ipv6 in [false, true] {
            let start = Instant::now();
            let reports = Stream { ipv6, ..Stream::default() }.run(&lab);
            for report in &reports {
                let received = &report.received;
                assert_eq!((report.sent, report.refused), (10_000, 0), "{report:?}");
                assert_eq!(
                    (received.distinct, received.lost, report.kernel_drops),
                    (10_000, 0, 0),
                    "{report:?}"
                );
                assert_eq!(
                    (received.duplicated, received.reordered, received.strange),
                    (0, 0, 0),
                    "{report:?}"
                );
            }
            let took = start.elapsed();
            assert!(
                took > Duration::from_millis(1900) && took < Duration::from_secs(6),
                "the rate was kept: {took:?}"
            );
        }
    });
}

#[test]
fn a_stream_counts_what_is_lost_and_the_rest() {
    sandbox::run("a_stream_counts_what_is_lost_and_the_rest", || {
        let lab = Lab::new();
        join_in_clear(&lab);
        lab.wan.drop_fraction("ip daddr 10.20.0.2 meta l4proto udp", 0.1);
        let [a, b] = Stream::default().run(&lab);
        assert_eq!(a.received.lost, 0, "{a:?}");
        assert_eq!(b.received.lost, lab.wan.dropped(), "{b:?}");
        assert!((600..1400).contains(&b.received.lost), "about a tenth: {b:?}");
        assert_eq!(b.received.distinct + b.received.lost, 10_000);

        lab.wan.unblock();
        lab.wan.block("forward", "ip daddr 10.20.0.2");
        let [a, b] = Stream { count: 500, ..Stream::default() }.run(&lab);
        assert_eq!((a.received.lost, b.received.lost), (0, 500));
        lab.wan.unblock();
        let [_, b] = Stream { count: 500, ..Stream::default() }.run(&lab);
        assert_eq!(b.received.lost, 0);
    });
}

#[test]
fn iperf3_runs_between_the_lans_alone() {
    sandbox::run("iperf3_runs_between_the_lans_alone", || {
        let lab = Lab::new();
        join_in_clear(&lab);
        let mut server = lab.lan_b.spawn("iperf3", &["--server", "--one-off", "--forceflush"]);
        server.line("Server listening", Duration::from_secs(10));
        let output = lab.lan_a.run("iperf3 --client 10.20.0.2 --time 1 --json");
        let json: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert!(json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() > 1e6, "{output}");
    });
}

#[test]
fn the_kmes_start_and_take_commands() {
    sandbox::run("the_kmes_start_and_take_commands", || {
        let lab = Lab::new();
        let mut kmes = lab.start_kmes(&KmeOptions::default());
        assert!(kmes.admin(&["stored"]).contains("kme-a1"));
        kmes.admin(&["pause-link", "kme-a1", "kme-b1"]);
        assert!(kmes.process.stop().success());
    });
}

#[test]
fn a_process_is_awaited_by_its_lines_and_its_end() {
    sandbox::run("a_process_is_awaited_by_its_lines_and_its_end", || {
        let lab = Lab::new();
        let mut cat = lab.lan_a.spawn("cat", &[]);
        cat.tell("first");
        cat.tell("second");
        assert_eq!(cat.line("sec", Duration::from_secs(5)), "second");
        assert!(cat.find_line(Duration::from_millis(50), |line| line == "first").is_err(), "it is past");
        assert!(cat.is_running());
        cat.kill();
        assert!(!cat.is_running());
        let error = cat.find_line(Duration::from_secs(5), |_| true).unwrap_err();
        assert_eq!(error, "it has ended");
        assert_eq!(wait_until("at once", Duration::from_secs(1), || Some(1)), 1);
    });
}

#[test]
#[should_panic(expected = "there is no test `no_such_test`")]
fn a_wrong_name_does_not_pass_as_success() {
    sandbox::run("no_such_test", || {});
}

#[test]
#[should_panic(expected = "failed in its sandbox")]
fn a_failure_inside_is_a_failure_outside() {
    sandbox::run("a_failure_inside_is_a_failure_outside", || panic!("as it should"));
}
