//! What other programs do to routes, rules, devices and filters, in each state of the daemon and the guard:
//! the number of inner packets that leave site A's gateway by the WAN in the meantime, printed as a table.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{Gateway, GatewayOptions, Lab, Site, binary, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);

/// An action of another program or of an operator, and how to undo it; lines of shell on gateway A.
struct Row {
    what: &'static str,
    act: &'static str,
    undo: &'static str,
    needs: Needs,
    /// The commands instead of it when the layers are off and a stand-in has the routes of the tunnel.
    off: &'static str,
}

/// What a row requires.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// The tunnel's device.
    Device,
    /// A protected LAN, which exists only inside a default route.
    Lan,
    /// A change of the config: through the daemon if it answers, otherwise through the file and the guard.
    Config,
    /// systemd as process 1.
    Systemd,
}

const fn row(what: &'static str, act: &'static str, undo: &'static str) -> Row {
    Row { what, act, undo, needs: Needs::Nothing, off: "" }
}

const fn special(
    what: &'static str,
    needs: Needs,
    act: &'static str,
    undo: &'static str,
    off: &'static str,
) -> Row {
    Row { what, act, undo, needs, off }
}

const fn device_row(what: &'static str, act: &'static str, undo: &'static str) -> Row {
    special(what, Needs::Device, act, undo, act)
}

/// The prefixes of the tunnel.
struct Kind {
    name: &'static str,
    allowed: [&'static str; 2],
    /// The prefixes that remain in the row that shrinks them: not those to which packets are sent.
    smaller: &'static str,
    interface: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "one prefix",
        allowed: ["10.20.0.0/16", "fd20::/64"],
        smaller: "10.20.128.0/17,fd20:0:0:0:8000::/65",
        interface: "",
    },
    Kind {
        name: "default route",
        allowed: ["0.0.0.0/0", "::/0"],
        smaller: "128.0.0.0/1,8000::/1",
        interface: "local = [{ prefix = \"10.10.0.0/16\", device = \"lan\" }, { prefix = \"fd10::/64\", \
         device = \"lan\" }]",
    },
];

const V4: &str = "198.51.100.2";
const V6: &str = "2001:db8:a::2";

/// `WAN4` and `WAN6` stand for the next hops.
const ROWS: &[Row] = &[
    row(
        "route added",
        "ip route add 10.20.0.0/16 via WAN4; ip -6 route add fd20::/64 via WAN6",
        "ip route del 10.20.0.0/16 via WAN4; ip -6 route del fd20::/64 via WAN6",
    ),
    row(
        "route prepended",
        "ip route prepend 10.20.0.0/16 via WAN4; ip -6 route prepend fd20::/64 via WAN6",
        "ip route del 10.20.0.0/16 via WAN4; ip -6 route del fd20::/64 via WAN6",
    ),
    row(
        "route appended",
        "ip route append 10.20.0.0/16 via WAN4; ip -6 route append fd20::/64 via WAN6",
        "ip route del 10.20.0.0/16 via WAN4; ip -6 route del fd20::/64 via WAN6",
    ),
    row(
        "route replaced",
        "ip route replace 10.20.0.0/16 via WAN4 dev wan onlink table 29046; ip -6 route replace fd20::/64 \
         via WAN6 dev wan onlink table 29046",
        "true",
    ),
    row(
        "more specific route",
        "ip route add 10.20.0.2 via WAN4; ip -6 route add fd20::2 via WAN6",
        "ip route del 10.20.0.2; ip -6 route del fd20::2",
    ),
    row(
        "lower metric",
        "ip route add 10.20.0.0/16 via WAN4 metric 0; ip -6 route add fd20::/64 via WAN6 metric 1",
        "ip route del 10.20.0.0/16 via WAN4; ip -6 route del fd20::/64 via WAN6",
    ),
    row(
        "connected address",
        "ip addr add 10.20.0.9/24 dev wan; ip -6 addr add fd20::9/64 dev wan nodad; ROUTER=$(ip neigh show \
         WAN4 dev wan | cut -d ' ' -f 3); for a in 10.20.0.2 fd20::2; do ip neigh replace $a lladdr $ROUTER \
         dev wan; done",
        "ip addr del 10.20.0.9/24 dev wan; ip -6 addr del fd20::9/64 dev wan; ip neigh flush to 10.20.0.2 \
         nud all; ip -6 neigh flush to fd20::2 nud all",
    ),
    row(
        "rules flushed",
        "ip rule flush; ip -6 rule flush; ip rule add lookup main; ip -6 rule add lookup main",
        "true",
    ),
    row(
        "rule before ours",
        "ip rule add priority 9 lookup main; ip -6 rule add priority 9 lookup main",
        "ip rule del priority 9; ip -6 rule del priority 9",
    ),
    row(
        "foreign mark",
        "nft 'table inet other { chain marking { type filter hook prerouting priority 0; meta mark set \
         0x71760000; }; }'",
        "nft delete table inet other",
    ),
    row("ruleset flushed", "nft flush ruleset", "true"),
    row(
        "both flushed",
        "ip route flush table 29046; ip -6 route flush table 29046; ip rule flush; ip -6 rule flush; \
         ip rule add lookup main; ip -6 rule add lookup main; nft flush ruleset",
        "true",
    ),
    special(
        "routing daemon withdraws",
        Needs::Nothing,
        "ip route add 10.20.0.0/16 dev qvpn0 proto zebra metric 20; ip -6 route add fd20::/64 dev qvpn0 \
         proto zebra metric 20; \
         ip route del 10.20.0.0/16 proto zebra metric 20; ip -6 route del fd20::/64 proto zebra metric 20",
        "true",
        STAND_IN_WITHDRAWS,
    ),
    special("networkd restarts", Needs::Systemd, "true", "true", ""),
    special(
        "LAN device down",
        Needs::Lan,
        "ip link set lan down",
        "ip link set lan up; ip -6 addr replace fd10::1/64 dev lan nodad",
        "",
    ),
    special(
        "peer removed",
        Needs::Config,
        "CTL peer remove qvpn0 site-b || { sed -i 's/^allowed_ips.*/allowed_ips = []/' CONFIG; kill -HUP \
         GUARD; sleep 0.1; }",
        "cp CONFIG.kept CONFIG; CTL reload qvpn0 || kill -HUP GUARD",
        STAND_IN_WITHDRAWS,
    ),
    special(
        "prefix shrunk",
        Needs::Config,
        "CTL peer set qvpn0 site-b --allowed-ips SMALLER || { sed -i 's/^allowed_ips.*/allowed_ips = \
         [\"192.0.2.0\\/24\"]/' CONFIG; \
         kill -HUP GUARD; sleep 0.1; }",
        "cp CONFIG.kept CONFIG; CTL reload qvpn0 || kill -HUP GUARD",
        STAND_IN_WITHDRAWS,
    ),
    device_row("device down", "ip link set qvpn0 down", "ip link set qvpn0 up"),
    device_row(
        "device renamed",
        "ip link set qvpn0 down; ip link set qvpn0 name other; ip link set other up",
        "ip link set other down; ip link set other name qvpn0; ip link set qvpn0 up",
    ),
    device_row("device moved", "ip link set qvpn0 netns away", "ip -n away link set qvpn0 netns $$"),
    // The last row, since it ends the daemon.
    device_row("device deleted", "ip link del qvpn0", "true"),
];

const STAND_IN: &str = "ip link add qvpn0 type veth peer name qvpn0-end; ip link set qvpn0 up; ip link set \
 qvpn0-end up; \
                        ip route add 10.20.0.0/16 dev qvpn0; ip -6 route add fd20::/64 dev qvpn0";
const STAND_IN_WITHDRAWS: &str = "ip route del 10.20.0.0/16 dev qvpn0; ip -6 route del fd20::/64 dev qvpn0";

/// The state of the daemon and of the guard during the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Hung,
    Restarting,
    GuardKilled,
    Stopped,
    Killed,
}

const STATES: [State; 6] =
    [State::Running, State::Hung, State::Restarting, State::GuardKilled, State::Stopped, State::Killed];

impl State {
    fn has_device(self) -> bool {
        !matches!(self, Self::Restarting | Self::Stopped | Self::Killed)
    }

    /// Returns why a row can't be run in this state with this kind of prefix.
    fn not_applicable(self, row: &Row, kind: &Kind) -> bool {
        match row.needs {
            Needs::Nothing => false,
            Needs::Device => !self.has_device(),
            Needs::Lan => kind.interface.is_empty(),
            // `qvpn-ctl` would wait for the daemon's answer.
            Needs::Config => self == Self::Hung,
            Needs::Systemd => true,
        }
    }
}

const NOT_APPLICABLE: &str = "n/a: rows about the device, while there is none; a LAN outside of what is \
 protected; a hung \
                              daemon, which takes no change; networkd, which scripts/guest/run.sh restarts \
                              in the emulated guest";

/// Returns the commands of a row for the shell.
fn shell(line: &str, kind: &Kind, lab: &Lab, guard: u32) -> String {
    let (ctl, dir) = (binary("qvpn-ctl"), lab.gw_a.dir().display().to_string());
    let ctl = format!("{} --config-dir {dir}", ctl.display());
    line.replace("WAN4", V4)
        .replace("WAN6", V6)
        .replace("SMALLER", kind.smaller)
        .replace("CTL", &ctl)
        .replace("CONFIG", &format!("{dir}/qvpn0.toml"))
        .replace("GUARD", &guard.to_string())
}

/// Counts, on the WAN's router, packets in clear from gateway A to networks of the sites.
fn count_clear(lab: &Lab) {
    lab.wan.nft(
        "table inet witness {\nchain seen {\ntype filter hook prerouting priority -400;\n\
         iifname site-a ip daddr { 10.10.0.0/16, 10.20.0.0/16 } counter\n\
         iifname site-a ip6 daddr { fd10::/64, fd20::/64 } counter\n}\n}\n",
    );
}

/// Returns the number of packets in clear while hosts and the gateway send to both families for a moment.
fn clear_packets(lab: &Lab, needs: Needs) -> u64 {
    let addresses = match needs {
        Needs::Lan => ["10.10.0.2", "fd10::2", "10.20.0.2", "fd20::2"].as_slice(),
        _ => &["10.20.0.2", "fd20::2", "-I wan 10.20.0.2", "-I wan fd20::2"],
    };
    clear_packets_to(lab, addresses)
}

fn clear_packets_to(lab: &Lab, own: &[&str]) -> u64 {
    let before = lab.wan.dropped();
    let pings = |addresses: &[&str]| {
        let ping = |address: &&str| format!("ping -n -q -c 3 -i 0.01 -W 0.02 {address} & ");
        addresses.iter().map(ping).collect::<String>() + "wait"
    };
    let _ = lab.lan_a.try_run(&pings(&["10.20.0.2", "fd20::2"]));
    let _ = lab.gw_a.try_run(&pings(own));
    lab.wan.dropped() - before
}

/// Runs all rows in one state; returns the cells of the table.
fn column(lab: &Lab, kind: &Kind, state: State, guard: u32) -> Vec<String> {
    let run = |line: &str| drop(lab.gw_a.try_run(&shell(line, kind, lab, guard)));
    ROWS.iter()
        .map(|row| {
            if state.not_applicable(row, kind) {
                return "n/a".to_owned();
            }
            run(row.act);
            let clear = clear_packets(lab, row.needs);
            run(row.undo);
            clear.to_string()
        })
        .collect()
}

fn matrix(lab: &Lab, kind: &Kind) -> Vec<(State, Vec<String>)> {
    let options = |site: Site| GatewayOptions {
        qkd: "off".to_owned(),
        kms: None,
        allowed_ips: if site == Site::A { kind.allowed.map(str::to_owned).to_vec() } else { Vec::new() },
        interface: if site == Site::A { kind.interface.to_owned() } else { String::new() },
        ..GatewayOptions::default()
    };
    let config = lab.configure(Site::A, &options(Site::A));
    let _ = lab.configure(Site::B, &options(Site::B));
    std::fs::copy(&config, config.with_extension("toml.kept")).unwrap();
    let mut guard = lab.start_guard();
    let mut b = lab.start_daemon(Site::B);
    let mut a: Gateway<'_> = lab.start_daemon(Site::A);
    let mut columns = Vec::new();
    for state in STATES {
        if !a.process.is_running() {
            a = lab.start_daemon(Site::A);
        }
        a.wait_state("up", START);
        let pid = guard.id();
        let cells = match state {
            State::Running => column(lab, kind, state, pid),
            State::Hung => {
                a.process.signal(Signal::SIGSTOP);
                let cells = column(lab, kind, state, pid);
                a.process.signal(Signal::SIGCONT);
                cells
            }
            // Each row runs while the daemon ends or starts.
            State::Restarting => {
                a.process.kill();
                let cells = std::thread::scope(|scope| {
                    let restarts = scope.spawn(|| {
                        (0..4).for_each(|_| lab.start_daemon(Site::A).process.kill());
                    });
                    let cells = column(lab, kind, state, pid);
                    restarts.join().unwrap();
                    cells
                });
                a = lab.start_daemon(Site::A);
                cells
            }
            State::GuardKilled => {
                guard.kill();
                let cells = column(lab, kind, state, pid);
                guard = lab.start_guard();
                cells
            }
            State::Stopped => {
                assert!(a.process.stop().success());
                column(lab, kind, state, pid)
            }
            State::Killed => {
                a.process.kill();
                column(lab, kind, state, pid)
            }
        };
        // The last row has deleted the daemon's device.
        if state.has_device() {
            wait_until("the daemon ends with its device", START, || (!a.process.is_running()).then_some(()));
        }
        columns.push((state, cells));
    }
    guard.kill();
    b.process.kill();
    let (code, said) = unblock(lab);
    assert_eq!(code, Some(0), "{said}");
    columns
}

fn unblock(lab: &Lab) -> (Option<i32>, String) {
    let output = lab.gw_a.command(binary("qvpn-ctl")).arg("unblock").output().unwrap();
    (output.status.code(), format!("{output:?}"))
}

fn printed(kind: &str, columns: &[(State, Vec<String>)]) -> String {
    let mut text = format!("{kind:<26}");
    columns.iter().for_each(|(state, _)| write!(text, "{:>13}", format!("{state:?}")).unwrap());
    for (i, row) in ROWS.iter().enumerate() {
        write!(text, "\n{:<26}", row.what).unwrap();
        columns.iter().for_each(|(_, cells)| write!(text, "{:>13}", cells[i]).unwrap());
    }
    text
}

#[test]
fn nothing_leaves_in_clear_when_other_programs_change_routes_and_filters() {
    sandbox::run("nothing_leaves_in_clear_when_other_programs_change_routes_and_filters", || {
        let start = Instant::now();
        let lab = Lab::new();
        lab.gw_a.run("mkdir -p /run/netns && ip netns add away");
        count_clear(&lab);
        // With the layers off, each row leaks.
        for row in ROWS.iter().filter(|row| row.needs != Needs::Systemd) {
            let run = |line: &str| drop(lab.gw_a.try_run(&shell(line, &KINDS[0], &lab, 0)));
            if !row.off.is_empty() {
                run(STAND_IN);
                let clear = clear_packets_to(&lab, &["10.20.0.2", "fd20::2"]);
                assert_eq!(clear, 0, "{}: the stand-in has the routes", row.what);
                run(row.off);
                let clear = clear_packets_to(&lab, &["10.20.0.2", "fd20::2"]);
                assert!(clear > 0, "{}: the check can fail", row.what);
            } else {
                run(row.act);
                assert!(clear_packets(&lab, row.needs) > 0, "{}: the check can fail", row.what);
            }
            match row.off {
                "" => run(row.undo),
                _ => run("ip -n away link del qvpn0; ip link del qvpn0-end; ip link del other"),
            }
        }
        let mut leaks = Vec::new();
        for kind in &KINDS {
            let columns = matrix(&lab, kind);
            println!("{}\n", printed(kind.name, &columns));
            for (state, cells) in &columns {
                for (row, cell) in ROWS.iter().zip(cells) {
                    if cell != "0" && cell != "n/a" {
                        let name = kind.name;
                        leaks.push(format!("{name}: {} while {state:?}: {cell} packets in clear", row.what));
                    }
                }
            }
        }
        println!("{NOT_APPLICABLE}\ntook {:?}", start.elapsed());
        assert!(leaks.is_empty(), "{leaks:#?}");
    });
}
