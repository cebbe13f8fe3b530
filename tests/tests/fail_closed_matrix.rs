//! What other programs do to routes, rules, devices and filters, in each state of the daemon and the guard:
//! inner packets that leave site A's gateway by the WAN meanwhile. The table is printed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{Gateway, GatewayOptions, Lab, Process, Site, binary, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);

/// One thing that another program does, and how it is undone; lines of shell on gateway A.
struct Row {
    what: &'static str,
    act: &'static str,
    undo: &'static str,
    /// Whether it needs the tunnel's device.
    needs_device: bool,
}

const fn row(what: &'static str, act: &'static str, undo: &'static str) -> Row {
    Row { what, act, undo, needs_device: false }
}

const fn device_row(what: &'static str, act: &'static str, undo: &'static str) -> Row {
    Row { what, act, undo, needs_device: true }
}

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
    device_row("device down", "ip link set qvpn0 down", "ip link set qvpn0 up"),
    device_row(
        "device renamed",
        "ip link set qvpn0 down; ip link set qvpn0 name other; ip link set other up",
        "ip link set other down; ip link set other name qvpn0; ip link set qvpn0 up",
    ),
];

/// What the daemon and the guard do meanwhile.
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
}

fn shell(line: &str) -> String {
    line.replace("WAN4", V4).replace("WAN6", V6)
}

fn start_guard(lab: &Lab) -> Process {
    let dir = lab.gw_a.dir().display().to_string();
    let mut guard = lab.gw_a.spawn(binary("qvpn-ctl"), &["--config-dir", &dir, "guard", "--watch"]);
    let socket = lab.gw_a.dir().join("run/guard.socket");
    wait_until("the guard answers", START, || {
        assert!(guard.is_running(), "{}", guard.log());
        std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(())
    });
    guard
}

/// Counts, on the WAN's router, what comes from gateway A to site B's networks in clear.
fn count_clear(lab: &Lab) {
    lab.wan.nft(
        "table inet witness {\nchain seen {\ntype filter hook prerouting priority -400;\n\
         iifname site-a ip daddr 10.20.0.0/16 counter\niifname site-a ip6 daddr fd20::/64 counter\n}\n}\n",
    );
}

/// Packets in clear while hosts and the gateway send to both families for a moment.
fn clear_packets(lab: &Lab) -> u64 {
    let before = lab.wan.dropped();
    let from_lan = "ping -n -q -c 3 -i 0.01 -W 0.02";
    let _ = lab.lan_a.try_run(&format!("{from_lan} 10.20.0.2; {from_lan} fd20::2"));
    let _ =
        lab.gw_a.try_run(&format!("{from_lan} 10.20.0.2; {from_lan} -I wan 10.20.0.2; {from_lan} fd20::2"));
    lab.wan.dropped() - before
}

/// Runs all rows in one state; the cells of the table.
fn column(lab: &Lab, state: State) -> Vec<String> {
    ROWS.iter()
        .map(|row| {
            if row.needs_device && !state.has_device() {
                return "n/a".to_owned();
            }
            let _ = lab.gw_a.try_run(&shell(row.act));
            let clear = clear_packets(lab);
            let _ = lab.gw_a.try_run(&shell(row.undo));
            clear.to_string()
        })
        .collect()
}

fn matrix(lab: &Lab, options: &GatewayOptions) -> Vec<(State, Vec<String>)> {
    for site in Site::BOTH {
        let interface = if site == Site::A { options.interface.clone() } else { String::new() };
        let _ = lab.configure(site, &GatewayOptions { interface, ..options.clone() });
    }
    let mut guard = start_guard(lab);
    let _b = lab.start_daemon(Site::B);
    let mut a: Gateway<'_> = lab.start_daemon(Site::A);
    let mut columns = Vec::new();
    for state in STATES {
        if !a.process.is_running() {
            a = lab.start_daemon(Site::A);
        }
        a.wait_state("up", START);
        let cells = match state {
            State::Running => column(lab, state),
            State::Hung => {
                a.process.signal(Signal::SIGSTOP);
                let cells = column(lab, state);
                a.process.signal(Signal::SIGCONT);
                cells
            }
            // Each row meets a daemon that ends or starts.
            State::Restarting => {
                a.process.kill();
                let cells = std::thread::scope(|scope| {
                    let restarts = scope.spawn(|| {
                        (0..4).for_each(|_| lab.start_daemon(Site::A).process.kill());
                    });
                    let cells = column(lab, state);
                    restarts.join().unwrap();
                    cells
                });
                a = lab.start_daemon(Site::A);
                cells
            }
            State::GuardKilled => {
                guard.kill();
                let cells = column(lab, state);
                guard = start_guard(lab);
                cells
            }
            State::Stopped => {
                assert!(a.process.stop().success());
                column(lab, state)
            }
            State::Killed => {
                a.process.kill();
                column(lab, state)
            }
        };
        columns.push((state, cells));
    }
    guard.kill();
    columns
}

fn printed(kind: &str, columns: &[(State, Vec<String>)]) -> String {
    let mut text = format!("{kind:<22}");
    columns.iter().for_each(|(state, _)| write!(text, "{:>13}", format!("{state:?}")).unwrap());
    for (i, row) in ROWS.iter().enumerate() {
        write!(text, "\n{:<22}", row.what).unwrap();
        columns.iter().for_each(|(_, cells)| write!(text, "{:>13}", cells[i]).unwrap());
    }
    text
}

#[test]
fn nothing_leaves_in_clear_when_other_programs_change_routes_and_filters() {
    sandbox::run("nothing_leaves_in_clear_when_other_programs_change_routes_and_filters", || {
        let start = Instant::now();
        let lab = Lab::new();
        count_clear(&lab);
        // With the layers off, each row leaks.
        for row in ROWS.iter().filter(|row| !row.needs_device) {
            let _ = lab.gw_a.try_run(&shell(row.act));
            assert!(clear_packets(&lab) > 0, "{}: the check can fail", row.what);
            let _ = lab.gw_a.try_run(&shell(row.undo));
        }
        let one = GatewayOptions { qkd: "off".to_owned(), kms: None, ..GatewayOptions::default() };
        let columns = matrix(&lab, &one);
        println!("{}", printed("one prefix", &columns));
        let mut leaks = Vec::new();
        for (state, cells) in &columns {
            for (row, cell) in ROWS.iter().zip(cells) {
                if cell != "0" && cell != "n/a" {
                    leaks.push(format!("{} while {state:?}: {cell} packets in clear", row.what));
                }
            }
        }
        println!("took {:?}", start.elapsed());
        assert!(leaks.is_empty(), "{leaks:#?}");
    });
}
