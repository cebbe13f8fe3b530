//! Fail closed, shown by captures of everything that both gateways send into the WAN during LAN traffic:
//! after any fault of a daemon, no inner packet is in clear, and no key seals beyond its age. `leak.rs` tests
//! kill and stop.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{
    Capture, Gateway, GatewayOptions, INTERFACE, KmeOptions, Lab, Outer, Packet, Packets, Site, Stream,
    binary, sandbox, wait_until,
};

const START: Duration = Duration::from_secs(20);
/// A key seals for three intervals of a second, but at least for this time, in seconds.
const MAX_AGE: f64 = 10.0;

fn options() -> GatewayOptions {
    GatewayOptions { initiator: Some(Site::A), ..GatewayOptions::default() }
}

#[track_caller]
fn wait_up(gateways: &[Gateway<'_>; 2]) {
    for gateway in gateways {
        gateway.wait_state("up", START);
    }
}

/// Captures of both gateways' packets, and the time when they began.
struct Watch<'a>([Capture<'a>; 2]);

impl<'a> Watch<'a> {
    fn start(lab: &'a Lab) -> Self {
        Self(Site::BOTH.map(|site| Capture::start(&lab.wan, site.name(), site.wan(Outer::V4))))
    }

    /// Ends the captures, and checks that nothing was in clear and that the captures contain the tunnel's
    /// packets. Returns the packets of each gateway's link.
    #[track_caller]
    fn prove_no_clear(self, lab: &Lab) -> [Packets; 2] {
        let seen = self.0.map(Capture::stop);
        for packets in &seen {
            let clear = packets.with_any(&lab.inner_patterns());
            assert!(clear.is_empty(), "{} packets in clear, the first: {:?}", clear.len(), clear[0]);
            assert!(packets.data().len() > 100, "the capture saw the tunnel");
        }
        seen
    }

    /// Does the same, and checks that no key was used beyond its age at a rekey interval of a second.
    #[track_caller]
    fn prove(self, lab: &Lab) -> [Packets; 2] {
        let seen = self.prove_no_clear(lab);
        for packets in &seen {
            let longest = packets.longest_use_of_a_key();
            println!("{} keys, the longest in use for {longest:.3} s", packets.keys().len());
            assert!(longest <= MAX_AGE, "a key was in use for {longest} s");
        }
        seen
    }
}

/// Returns the data packets that a site sent, by the capture of its own link.
fn sent_by(packets: &Packets, site: Site) -> Vec<&Packet> {
    let own = site.wan(Outer::V4).parse().ok();
    packets.data().into_iter().filter(|packet| packet.source == own).collect()
}

fn unix_time() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn wait_traffic(lab: &Lab, limit: Duration) -> Duration {
    let start = Instant::now();
    for from in Site::BOTH {
        wait_until(&format!("traffic from {}", from.name()), limit, || {
            lab.lan(from).pings(from.other().host()[0]).then_some(())
        });
    }
    start.elapsed()
}

#[test]
fn a_stopped_process_sends_nothing_and_wakes_without_its_key() {
    sandbox::run("a_stopped_process_sends_nothing_and_wakes_without_its_key", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = lab.start_both(&options());
        wait_up(&gateways);
        let watch = Watch::start(&lab);
        let stream = Stream { count: 8_000, rate: 500, ..Stream::default() }.start(&lab);
        let before = gateways[0].peer()["tx_packets"].as_u64().unwrap();
        gateways[0].wait_peer("traffic", START, |p| p["tx_packets"].as_u64() > Some(before + 300));
        gateways[0].process.signal(Signal::SIGSTOP);
        let stopped = unix_time();
        // Wait until all its keys are too old.
        std::thread::sleep(Duration::from_secs_f64(MAX_AGE + 1.0));
        let going_on = unix_time();
        gateways[0].process.signal(Signal::SIGCONT);
        let took = wait_traffic(&lab, Duration::from_secs(20));
        println!("traffic passes {took:?} after the process went on");
        let _ = stream.finish();
        let [at_a, _] = watch.prove(&lab);
        let sent = sent_by(&at_a, Site::A);
        let meanwhile = sent.iter().filter(|p| p.at > stopped + 0.1 && p.at < going_on).count();
        assert_eq!(meanwhile, 0, "a stopped process sends nothing");
        // Packets from its LAN are queued in the tunnel's device, and its old key must not seal them.
        let old: Vec<u32> = sent.iter().filter(|p| p.at < stopped).filter_map(|p| p.index()).collect();
        let late = sent.iter().filter(|p| p.at >= going_on && p.index().is_some_and(|i| old.contains(&i)));
        assert_eq!(late.count(), 0, "an old key sealed after the stop");
        assert!(sent.iter().any(|p| p.at >= going_on), "a new key does");
    });
}

#[test]
fn a_hung_control_task_cannot_overuse_a_key() {
    sandbox::run("a_hung_control_task_cannot_overuse_a_key", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = lab.start_both(&options());
        wait_up(&gateways);
        let watch = Watch::start(&lab);
        let stream = Stream { count: 9_000, rate: 500, ..Stream::default() }.start(&lab);
        let before = gateways[0].peer()["tx_packets"].as_u64().unwrap();
        gateways[0].wait_peer("traffic", START, |p| p["tx_packets"].as_u64() > Some(before + 300));
        let mut hang = lab.gw_a.spawn(binary("lab-hang"), &[&gateways[0].process.id().to_string()]);
        println!("{}", hang.line("stopped", Duration::from_secs(5)));
        let hung = unix_time();
        std::thread::sleep(Duration::from_secs_f64(MAX_AGE + 3.0));
        assert!(gateways[0].try_show_within(Duration::from_secs(1)).is_none(), "the control task hangs");
        let over = unix_time();
        assert!(!lab.lan_a.pings(Site::B.host()[0]), "the lanes have ended their keys by themselves");
        hang.tell("");
        hang.line("let go", Duration::from_secs(5));
        let took = wait_traffic(&lab, Duration::from_secs(20));
        println!("traffic passes {took:?} after the control task went on");
        let _ = stream.finish();
        let [at_a, _] = watch.prove(&lab);
        let sent = sent_by(&at_a, Site::A);
        let ran_on = sent.iter().filter(|p| p.at > hung + 0.5 && p.at < hung + 5.0).count();
        assert!(ran_on > 1_000, "the lanes went on with the key that they had: {ran_on}");
        let last = sent.iter().map(|p| p.at).filter(|at| *at < over).fold(0.0, f64::max);
        println!("the lanes sealed for {:.3} s after the control task hung", last - hung);
        assert!(last - hung <= MAX_AGE, "and ended in time");
    });
}

/// Returns a copy of the daemon's program that a test may replace.
fn installed(lab: &Lab) -> PathBuf {
    let path = lab.gw_a.dir().join("qvpn-daemon");
    fs::copy(binary("qvpn-daemon"), &path).unwrap();
    path
}

#[test]
fn an_upgrade_leaks_nothing() {
    sandbox::run("an_upgrade_leaks_nothing", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        for site in Site::BOTH {
            let _ = lab.configure(site, &options());
        }
        let program = installed(&lab);
        let mut gateways =
            [lab.start_daemon_as(Site::A, INTERFACE, &program, &[]), lab.start_daemon(Site::B)];
        wait_up(&gateways);
        let watch = Watch::start(&lab);
        let stream = Stream { count: 6_000, rate: 500, ..Stream::default() }.start(&lab);
        wait_traffic(&lab, START);
        for crash in [false, true] {
            // As a package manager does: the new file replaces the old one while the old program runs.
            let new = program.with_extension("new");
            fs::copy(binary("qvpn-daemon"), &new).unwrap();
            fs::rename(&new, &program).unwrap();
            assert!(lab.lan_a.pings(Site::B.host()[0]), "the old program runs on");
            match crash {
                true => gateways[0].process.kill(),
                false => assert!(gateways[0].process.stop().success()),
            }
            let down = Instant::now();
            std::thread::sleep(Duration::from_millis(500));
            gateways[0] = lab.start_daemon_as(Site::A, INTERFACE, &program, &[]);
            wait_traffic(&lab, START);
            println!("traffic passes again {:?} after the old program ended", down.elapsed());
        }
        let _ = stream.finish();
        watch.prove(&lab);
    });
}

#[test]
fn a_broken_config_leaks_nothing() {
    sandbox::run("a_broken_config_leaks_nothing", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let mut gateways = lab.start_both(&options());
        wait_up(&gateways);
        let watch = Watch::start(&lab);
        let stream = Stream { count: 4_000, rate: 500, ..Stream::default() }.start(&lab);
        wait_traffic(&lab, START);
        let config = lab.gw_a.dir().join("qvpn0.toml");
        let good = fs::read_to_string(&config).unwrap();
        fs::write(&config, good.replace("listen_port", "listen_prot")).unwrap();
        gateways[0].process.signal(Signal::SIGHUP);
        gateways[0].process.line("stays in force", Duration::from_secs(5));
        assert!(lab.lan_a.pings(Site::B.host()[0]), "a broken config changes nothing in a running daemon");

        gateways[0].process.kill();
        let mut command = lab.gw_a.command(binary("qvpn-daemon"));
        let refused = command.arg("--config").arg(&config).stdin(Stdio::null()).output().unwrap();
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        // As at a boot with the broken config: no state of the former instance is left, and the boot unit
        // blocks the networks before the network is up.
        lab.gw_a.run(
            "ip link set wan down; ip route flush table 29046; ip -6 route flush table 29046; \
             ip rule del priority 113; ip -6 rule del priority 113; nft flush ruleset",
        );
        let blocked = gateways[0].ctl(&["block", &config.display().to_string()]);
        println!("{}", String::from_utf8_lossy(&blocked.stderr));
        let [net4, net6] = Site::B.networks();
        assert!(
            lab.gw_a.run(&format!("ip route show table 29046 {net4}")).contains("unreachable"),
            "{blocked:?}"
        );
        assert!(
            lab.gw_a.run(&format!("ip -6 route show table 29046 {net6}")).contains("unreachable"),
            "{blocked:?}"
        );
        lab.gw_a.run(
            "ip link set wan up; ip addr replace 2001:db8:a::1/64 dev wan; \
             ip route replace default via 198.51.100.2; ip -6 route replace default via 2001:db8:a::2",
        );
        for address in Site::B.host() {
            assert!(!lab.lan_a.pings(address));
        }
        fs::write(&config, good).unwrap();
        gateways[0] = lab.start_daemon(Site::A);
        wait_traffic(&lab, START);
        let _ = stream.finish();
        watch.prove(&lab);
    });
}

#[test]
fn without_keys_from_the_kms_traffic_ends_with_the_stock() {
    sandbox::run("without_keys_from_the_kms_traffic_ends_with_the_stock", || {
        let lab = Lab::new();
        let mut kmes = lab.start_kmes(&KmeOptions::default());
        let options = GatewayOptions { kms: Some("stock = 2".to_owned()), ..options() };
        let gateways = lab.start_both(&options);
        wait_up(&gateways);
        let watch = Watch::start(&lab);
        let stream = Stream { count: 9_000, rate: 500, ..Stream::default() }.start(&lab);
        wait_traffic(&lab, START);
        kmes.process.stop();
        for gateway in &gateways {
            gateway.wait_state("blocked", Duration::from_secs(20));
        }
        let blocked = unix_time();
        let _ = stream.finish();
        for packets in watch.prove(&lab) {
            let late = packets.data().iter().filter(|packet| packet.at > blocked + 0.1).count();
            assert_eq!(late, 0, "data packets while both are blocked");
        }
    });
}

/// The wall clock is set wrong while the daemons run, ten years back and ten ahead. The clock is injected,
/// since a test must not set the machine's.
#[test]
fn a_wall_clock_set_wrong_while_running_does_no_harm() {
    sandbox::run("a_wall_clock_set_wrong_while_running_does_no_harm", || {
        let lab = Lab::new();
        // Without QKD: with a clock this wrong the KMEs' certificates are refused, as shown below.
        let options = GatewayOptions { qkd: "off".to_owned(), kms: None, ..options() };
        for site in Site::BOTH {
            let _ = lab.configure(site, &options);
        }
        let clock = lab.clock(Site::A);
        let gateways = [lab.start_daemon_with(Site::A, &clock), lab.start_daemon(Site::B)];
        wait_up(&gateways);
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        let watch = Watch::start(&lab);
        let stream = Stream { count: 4_000, rate: 500, ..Stream::default() }.start(&lab);
        let mut rekeys = 0;
        for years in [-10, 10, 0] {
            clock.set_wall(years * 365 * 86_400);
            rekeys = gateways[0].peer()["rekeys"].as_u64().unwrap();
            gateways[0].wait_peer("rekeys go on", Duration::from_secs(10), |peer| {
                peer["rekeys"].as_u64() >= Some(rekeys + 2)
            });
        }
        assert!(rekeys > 0);
        for report in stream.finish() {
            assert_eq!((report.received.lost, report.refused), (0, 0), "{report:?}");
        }
        watch.prove(&lab);
    });
}

/// The machine is suspended for an hour (injected): at resume its keys are too old, and it does not use them.
#[test]
fn a_machine_that_slept_wakes_without_its_keys() {
    sandbox::run("a_machine_that_slept_wakes_without_its_keys", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        for site in Site::BOTH {
            let _ = lab.configure(site, &options());
        }
        let clock = lab.clock(Site::A);
        let gateways = [lab.start_daemon_with(Site::A, &clock), lab.start_daemon(Site::B)];
        wait_up(&gateways);
        let watch = Watch::start(&lab);
        let stream = Stream { count: 5_000, rate: 500, ..Stream::default() }.start(&lab);
        wait_traffic(&lab, START);
        std::thread::sleep(Duration::from_millis(300));
        let before = unix_time();
        clock.slept(Duration::from_secs(3600));
        let slept = unix_time();
        let took = wait_traffic(&lab, Duration::from_secs(20));
        println!("traffic passes {took:?} after an hour of sleep");
        let _ = stream.finish();
        let [at_a, _] = watch.prove(&lab);
        let sent = sent_by(&at_a, Site::A);
        let old: Vec<u32> = sent.iter().filter(|p| p.at < before).filter_map(|p| p.index()).collect();
        // A batch that is being sealed at that moment may still be sent.
        let late: Vec<f64> = sent
            .iter()
            .filter(|p| p.at > slept + 0.05 && p.index().is_some_and(|index| old.contains(&index)))
            .map(|p| p.at - slept)
            .collect();
        assert!(!old.is_empty() && late.is_empty(), "old keys sealed after the sleep: {late:?}");
    });
}

/// A gateway restarts with its clock ten years back (injected). The peer treats its initiations as replays,
/// since their timestamp must grow; so the peer initiates.
#[test]
fn a_restart_with_the_clock_set_back_costs_a_round_trip() {
    sandbox::run("a_restart_with_the_clock_set_back_costs_a_round_trip", || {
        let lab = Lab::new();
        let options = GatewayOptions {
            qkd: "off".to_owned(),
            kms: None,
            // It initiated in its former instance too, so the peer knows its timestamp.
            initiator: Some(Site::A),
            // No rekey is due soon, so the restart itself must be detected.
            rekey_interval: "60s".to_owned(),
            ..GatewayOptions::default()
        };
        let clock = lab.clock(Site::A);
        for site in Site::BOTH {
            let _ = lab.configure(site, &options);
        }
        let [mut a, b] = [lab.start_daemon_with(Site::A, &clock), lab.start_daemon(Site::B)];
        for gateway in [&a, &b] {
            gateway.wait_state("up", START);
        }
        let watch = Watch::start(&lab);
        let stream = Stream { count: 12_000, rate: 500, ..Stream::default() }.start(&lab);
        wait_traffic(&lab, START);
        // First ahead, which the peer does not keep; then behind, where the peer initiates instead.
        for years in [10, -10] {
            a.process.kill();
            clock.set_wall(years * 365 * 86_400);
            let start = Instant::now();
            a = lab.start_daemon_with(Site::A, &clock);
            a.wait_state("up", Duration::from_secs(20));
            wait_traffic(&lab, Duration::from_secs(20));
            let took = start.elapsed();
            println!("traffic passes {took:?} after the restart with the clock {years} years off");
            assert!(took < Duration::from_secs(15), "{took:?}");
        }
        drop(stream);
        watch.prove_no_clear(&lab);
    });
}

/// The machine is a copy of another, with its keys and counters (the kernel's uevent is injected): its keys
/// end at once, and both sides agree on new ones.
#[test]
fn a_copied_machine_agrees_on_new_keys() {
    sandbox::run("a_copied_machine_agrees_on_new_keys", || {
        for copied in Site::BOTH {
            let lab = Lab::new();
            let _kmes = lab.start_kmes(&KmeOptions::default());
            // No rekey is due that would replace a key anyway.
            let options = GatewayOptions { rekey_interval: "60s".to_owned(), ..options() };
            let gateways = lab.start_both(&options);
            wait_up(&gateways);
            let own = &gateways[usize::from(copied == Site::B)];
            let key = own.peer()["qkd_key_id"].clone();
            let mut events = own.events();
            let watch = Watch::start(&lab);
            let stream = Stream { count: 3_000, rate: 500, ..Stream::default() }.start(&lab);
            wait_traffic(&lab, START);
            std::thread::sleep(Duration::from_millis(300));
            let before = unix_time();
            lab.gw(copied).run(&binary("lab-uevent").display().to_string());
            events.line("machine.copied", Duration::from_secs(5));
            let at = unix_time();
            let took = wait_traffic(&lab, Duration::from_secs(10));
            println!("{} was copied: traffic passes again after {took:?}", copied.name());
            let peer = own.wait_state("up", START);
            assert!(peer["qkd_key_id"].is_string() && peer["qkd_key_id"] != key, "{peer:#}");
            assert!(
                !peer["key_sources"].to_string().contains("chain"),
                "the chain is the original's: {peer:#}"
            );
            let _ = stream.finish();
            let seen = watch.prove(&lab);
            let sent = sent_by(&seen[usize::from(copied == Site::B)], copied);
            let old: Vec<u32> = sent.iter().filter(|p| p.at < before).filter_map(|p| p.index()).collect();
            let late = sent.iter().filter(|p| p.at > at && p.index().is_some_and(|i| old.contains(&i)));
            assert!(!old.is_empty());
            assert_eq!(late.count(), 0, "an old key sealed after the event");
        }
    });
}
