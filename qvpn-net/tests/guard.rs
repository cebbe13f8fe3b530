//! [`Guard`] against a real kernel: a gateway with a LAN and a WAN in namespaces of each test's own. Packets
//! that leave by the WAN are counted there, so that a leak of any cause is seen. Each test first shows
//! the leak without the guard.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use qvpn_net::{
    DeviceState, Filter, FilterPlan, Guard, IpNet, LayerState, Local, Net, NetError, RoutePlan, Table,
};
use serde_json::Value;

use crate::common::in_namespace;

/// Runs `body` at a gateway of its own; see [`in_namespace`].
fn with_guard(test: &str, body: impl AsyncFnOnce(Guard)) {
    in_namespace(test, async || {
        make_gateway();
        body(Guard::connect().unwrap()).await;
    });
}

fn try_sh(line: &str) -> bool {
    Command::new("sh")
        .args(["-c", line])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success()
}

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A WAN with a default route, a LAN host in a namespace of its own, and a stand-in for the TUN. Packets that
/// leave by the WAN are counted at the other device of its pair, by destination prefix.
fn make_gateway() {
    sh("
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
        ip link add wan type veth peer name isp
        ip link add qvpn0 type veth peer name far
        mount -t sysfs sysfs /sys
        mount -t tmpfs tmpfs /run
        mkdir /run/netns
        ip netns add lan-host
        ip link add lan type veth peer name lan netns lan-host
        for device in wan isp far lan; do ip link set $device up; done
        ip addr add 198.51.100.1/24 dev wan
        ip addr add 2001:db8::1/64 dev wan nodad
        ip addr add 10.10.0.1/16 dev lan
        ip addr add fd10::1/64 dev lan nodad
        ip netns exec lan-host sh -c '
            ip link set lo up
            ip link set lan up
            ip addr add 10.10.0.2/16 dev lan
            ip addr add fd10::2/64 dev lan nodad
            ip route add default via 10.10.0.1
            ip -6 route add default via fd10::1'
        ip neigh add 198.51.100.254 lladdr 02:00:00:00:00:01 dev wan
        ip neigh add 2001:db8::ff lladdr 02:00:00:00:00:01 dev wan
        ip route add default via 198.51.100.254
        ip -6 route add default via 2001:db8::ff
        echo 1 > /proc/sys/net/ipv4/ip_forward
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
    ");
    make_witness();
}

/// Counts at the device that receives them, where no filter of ours can hide a packet.
fn make_witness() {
    sh("nft -f - <<END
        table netdev witness {
            chain wan { type filter hook ingress device isp priority 0;
                ip daddr 10.20.0.0/16 counter
                ip6 daddr fd20::/64 counter
            }
        }
END");
}

/// Returns the number of packets to protected prefixes that left by the WAN.
fn leaked() -> u64 {
    counted("witness")
}

/// Counts the packets to private addresses that each of `devices` receives during `work`. Packets of the
/// devices themselves, such as neighbour discovery, do not count.
fn received<const N: usize>(devices: [&str; N], work: impl FnOnce()) -> [u64; N] {
    for device in devices {
        sh(&format!(
            "nft -f - <<END
                table netdev to-{device} {{
                    chain in {{ type filter hook ingress device {device} priority 1;
                        ip daddr 10.0.0.0/8 counter
                        ip6 daddr fd00::/8 counter
                    }}
                }}
END"
        ));
    }
    work();
    devices.map(|device| {
        let packets = counted(&format!("to-{device}"));
        sh(&format!("nft delete table netdev to-{device}"));
        packets
    })
}

/// Returns the sum of all counters in a table of the family netdev.
fn counted(table: &str) -> u64 {
    let rules: Value = serde_json::from_str(&sh(&format!("nft -j list table netdev {table}"))).unwrap();
    let rules = rules["nftables"].as_array().unwrap().iter();
    let counters = rules.filter_map(|item| item["rule"]["expr"].as_array()).flatten();
    counters.filter_map(|expression| expression["counter"]["packets"].as_u64()).sum()
}

/// Counts the packets that leave by the WAN while `from` sends one to each protected prefix.
fn leak(from: &str) -> u64 {
    let before = leaked();
    for address in ["10.20.5.1", "fd20::1"] {
        let _ = try_sh(&format!("{from} ping -n -c 1 -W 0.05 {address}"));
    }
    leaked() - before
}

const LAN_HOST: &str = "ip netns exec lan-host";

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|s| s.parse().unwrap()).collect()
}

fn plan(prefixes: &[&str]) -> RoutePlan {
    RoutePlan::new("qvpn0", nets(prefixes), Table::Auto, 0, 51820).unwrap()
}

fn both() -> RoutePlan {
    plan(&["10.20.0.0/16", "fd20::/64"])
}

#[test]
fn nothing_that_other_programs_route_leaves_in_clear() {
    with_guard("nothing_that_other_programs_route_leaves_in_clear", async |mut guard| {
        assert!(leak("") > 0 && leak(LAN_HOST) > 0, "without a guard it leaks");
        guard.set(both()).await.unwrap();
        guard.watch().unwrap();
        let routes = [
            "ip route add 10.20.5.0/24 via 198.51.100.254; ip -6 route add fd20::1 via 2001:db8::ff",
            "ip route prepend 10.20.0.0/16 via 198.51.100.254",
            "ip addr add 10.20.5.9/24 dev wan; ip -6 addr add fd20::9/64 dev wan nodad",
            "ip rule add priority 50 lookup main; ip -6 rule add priority 50 lookup main",
            "ip rule flush; ip -6 rule flush; ip rule add lookup main; ip -6 rule add lookup main",
            "ip route flush table 29046; ip -6 route flush table 29046",
        ];
        for route in routes {
            sh(route);
            assert_eq!((leak(""), leak(LAN_HOST)), (0, 0), "{route}");
            guard.changed().await;
            let restored = guard.restore().await;
            assert!(restored.errors.is_empty(), "{:?}", restored.errors);
            assert_eq!((leak(""), leak(LAN_HOST)), (0, 0), "{route}, afterwards");
        }
        assert_eq!(guard.status("qvpn0").unwrap().routes, LayerState::InForce);
        assert!(guard.status("qvpn0").unwrap().dropped.unwrap() > 0, "the filter dropped some of them");
        guard.release(&both()).await.unwrap();
        assert!(leak("") > 0 && leak(LAN_HOST) > 0, "released, it leaks again");
    });
}

#[test]
fn a_device_bound_socket_and_a_foreign_mark_do_not_pass_the_filter() {
    with_guard("a_device_bound_socket_and_a_foreign_mark_do_not_pass_the_filter", async |mut guard| {
        guard.set(both()).await.unwrap();
        let before = leaked();
        let bound = |address: &str| try_sh(&format!("ping -n -c 1 -W 0.05 -I wan {address}"));
        let marked = |address: &str| try_sh(&format!("ping -n -c 1 -W 0.05 -m 1903558656 {address}"));
        for address in ["10.20.5.1", "fd20::1"] {
            let _ = (bound(address), marked(address));
        }
        // Another program's rule sets our mark on packets from the LAN.
        sh("nft -f - <<END
            table inet other { chain marking {
                type filter hook prerouting priority 0;
                meta mark set 0x71760000
            }
            }
END");
        assert_eq!((leak(LAN_HOST), leaked() - before), (0, 0));
        guard.release(&both()).await.unwrap();
        let _ = bound("10.20.5.1");
        assert!(leaked() > before, "the check can fail");
    });
}

/// Uses IPv6, whose routes do not hold back the packets of a socket that is bound to a device.
#[test]
fn no_packet_slips_through_while_the_filter_changes() {
    with_guard("no_packet_slips_through_while_the_filter_changes", async |mut guard| {
        let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
        setsockopt(&socket, sockopt::BindToDevice, &"wan".into()).unwrap();
        let send = move || socket.send_to(&[0; 100], "[fd20::1]:9").is_ok();
        assert!(send() && leaked() > 0, "the check can fail");
        guard.set(both()).await.unwrap();
        let (before, stop) = (leaked(), AtomicBool::new(false));
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    sent += u32::from(!send());
                }
                sent
            });
            // Another process takes the table over, too.
            drop(guard);
            let mut filter = Filter::connect().unwrap();
            let plans = [both().on_device(Some(100)), plan(&["fd20::/64", "fd30::/16", "10.0.0.0/8"])]
                .map(|plan| FilterPlan::new(&plan, &BTreeSet::new(), &BTreeMap::new()));
            (0..1000).for_each(|i| filter.install(&plans[i % 2]).unwrap());
            stop.store(true, Ordering::Relaxed);
            sender.join().unwrap()
        });
        assert!(sent > 1000, "{sent} packets met the filter");
        assert_eq!(leaked() - before, 0, "of {sent}");
    });
}

#[test]
fn the_filter_comes_back_and_says_what_happened() {
    with_guard("the_filter_comes_back_and_says_what_happened", async |mut guard| {
        guard.set(both()).await.unwrap();
        guard.watch().unwrap();
        let listed = || sh("nft list tables").contains("inet qvpn-qvpn0");
        assert!(listed());
        sh("nft flush ruleset; true");
        assert!(listed(), "`nft flush ruleset` skips a table that is owned");
        assert!(!try_sh("nft delete table inet qvpn-qvpn0"), "nobody else may delete it");
        // A process that has ended owns nothing.
        drop(guard);
        assert!(listed(), "it persists");
        let mut second = Guard::connect().unwrap();
        second.set(both()).await.unwrap();
        assert!(!try_sh("nft delete table inet qvpn-qvpn0"), "the next process owns it");
        let mut third = Filter::connect().unwrap();
        let error = third.remove("qvpn0").unwrap_err();
        assert!(matches!(error, NetError::FilterOwned { .. }), "{error}");
        second.disown();
        second.set(both()).await.unwrap();
        assert!(try_sh("nft delete table inet qvpn-qvpn0"), "disowned, every program may delete it");
        second.set(both()).await.unwrap();
        second.release(&both()).await.unwrap();
        assert!(!listed());
    });
}

#[test]
fn a_tunnel_carries_its_prefixes_and_what_is_local_stays_reachable() {
    with_guard("a_tunnel_carries_its_prefixes_and_what_is_local_stays_reachable", async |mut guard| {
        sh("ip link set qvpn0 up");
        let index = *guard.net().devices(["qvpn0"]).await.unwrap().get("qvpn0").unwrap();
        let everything = plan(&["0.0.0.0/0", "::/0"]).on_device(Some(index));
        let lan = |prefix: &str| Local { prefix: prefix.parse().unwrap(), device: "lan".to_owned() };
        guard.set(everything.clone()).await.unwrap();
        guard.watch().unwrap();
        let lan_answers = || ["10.10.0.2", "fd10::2"].map(|a| try_sh(&format!("ping -n -c 1 -W 0.2 {a}")));
        assert_eq!(lan_answers(), [false, false], "the LAN lies in what is protected");
        let with_local = everything.with_local(vec![lan("10.10.0.0/16"), lan("fd10::/64")]);
        guard.set(with_local.clone()).await.unwrap();
        assert_eq!(lan_answers(), [true, true], "{}", sh("ip route show table 29046; nft list ruleset"));
        assert_eq!((leak(""), leak(LAN_HOST)), (0, 0));
        // A `local` network whose device is down does not open the WAN.
        sh("ip link set lan down");
        guard.changed().await;
        assert!(guard.restore().await.errors.is_empty());
        let by_wan = received(["isp"], || assert_eq!(lan_answers(), [false, false]));
        assert_eq!(by_wan, [0]);
        sh("ip link set lan up; ip addr replace fd10::1/64 dev lan nodad");
        let deadline = Instant::now() + Duration::from_secs(5);
        while lan_answers() != [true, true] {
            assert!(
                Instant::now() < deadline,
                "{}",
                sh("ip route show table 29046; ip -6 route show table 29046")
            );
            guard.changed().await;
            let _ = guard.restore().await;
        }
        // The tunnel's device is removed, under the name that it has now.
        sh("ip link set qvpn0 down; ip link set qvpn0 name other; ip link set other up");
        guard.changed().await;
        let restored = guard.restore().await;
        assert!(restored.challenges.iter().any(|c| c.what.contains("is now called other")), "{restored:?}");
        sh("ip link del other; ip link add qvpn0 type veth peer name more; ip link set qvpn0 up; ip link \
             set more up");
        guard.changed().await;
        let restored = guard.restore().await;
        assert!(restored.challenges.iter().any(|c| c.what.contains("was deleted")), "{restored:?}");
        sh("ip route add 10.20.0.0/16 dev qvpn0");
        sh("ip neigh add 10.20.5.1 lladdr 02:00:00:00:00:02 dev qvpn0");
        let by_other = received(["more"], || {
            let _ = try_sh("ping -n -c 1 -W 0.05 -I qvpn0 10.20.5.1");
        });
        assert_eq!(by_other, [0], "another device with the tunnel's name gets nothing");
    });
}

#[test]
fn the_longest_prefix_wins_among_tunnels() {
    with_guard("the_longest_prefix_wins_among_tunnels", async |mut guard| {
        sh("ip link add qvpn1 type veth peer name far1; for d in qvpn0 qvpn1 far1; do ip link set $d up; \
             done");
        let index = |name: &str| sh(&format!("cat /sys/class/net/{name}/ifindex")).trim().parse().ok();
        let wide = plan(&["10.0.0.0/8"]).on_device(index("qvpn0"));
        let narrow = RoutePlan::new("qvpn1", nets(&["10.20.0.0/16"]), Table::Auto, 0, 51821).unwrap();
        let narrow = narrow.on_device(index("qvpn1"));
        guard.set(wide.clone()).await.unwrap();
        guard.set(narrow.clone()).await.unwrap();
        let _ = guard.restore().await;
        sh("ip neigh add 10.20.5.1 lladdr 02:00:00:00:00:02 dev qvpn1");
        sh("ip neigh add 10.30.5.1 lladdr 02:00:00:00:00:02 dev qvpn0");
        let packets = received(["far", "far1"], || {
            let _ = try_sh("ping -n -c 1 -W 0.05 10.20.5.1; ping -n -c 1 -W 0.05 10.30.5.1");
        });
        assert_eq!(packets, [1, 1]);
        guard.release(&narrow).await.unwrap();
        let _ = guard.restore().await;
        assert!(sh("ip route get 10.20.5.1").contains("dev qvpn0"));
    });
}

#[test]
fn a_second_tunnel_with_the_same_prefix_is_refused_and_the_first_keeps_it() {
    with_guard(
        "a_second_tunnel_with_the_same_prefix_is_refused_and_the_first_keeps_it",
        async |mut guard| {
            sh("ip link add qvpn1 type veth peer name far1; for d in qvpn0 qvpn1 far1; do ip link set $d \
                 up; done");
            let index = |name: &str| sh(&format!("cat /sys/class/net/{name}/ifindex")).trim().parse().ok();
            guard.set(plan(&["10.20.0.0/16"]).on_device(index("qvpn0"))).await.unwrap();
            let second = RoutePlan::new("qvpn1", nets(&["10.20.0.0/16"]), Table::Auto, 0, 51821).unwrap();
            let mut other = Guard::connect().unwrap();
            let error = other.set(second.on_device(index("qvpn1"))).await.unwrap_err();
            assert!(matches!(error, NetError::Conflict { .. }), "{error}");
            assert!(!other.restore().await.errors.is_empty(), "nor does it take it later");
            assert!(guard.restore().await.changes.is_empty());
            assert!(sh("ip route get 10.20.5.1").contains("dev qvpn0"));
        },
    );
}

#[test]
fn a_plain_table_is_restored() {
    with_guard("a_plain_table_is_restored", async |mut guard| {
        // As on kernels before 6.9.
        guard.disown();
        guard.set(both()).await.unwrap();
        guard.watch().unwrap();
        let listed = || sh("nft list tables").contains("inet qvpn-qvpn0");
        for _ in 0..3 {
            sh("nft flush ruleset");
            assert!(!listed(), "nobody owns it");
            guard.changed().await;
            let restored = guard.restore().await;
            assert!(restored.errors.is_empty() && !restored.challenges.is_empty(), "{restored:?}");
            assert!(listed());
        }
        make_witness();
        sh("ip rule del priority 113; ip -6 rule del priority 113");
        assert_eq!((leak(""), leak(LAN_HOST)), (0, 0), "the filter alone");
        guard.release(&both()).await.unwrap();
        assert!(leak("") > 0);
    });
}

#[test]
fn a_kernel_without_nf_tables_has_the_routes_alone() {
    with_guard("a_kernel_without_nf_tables_has_the_routes_alone", async |guard| {
        drop(guard);
        // EOPNOTSUPP
        let refused = Err(NetError::NoFilter(std::io::Error::from_raw_os_error(95)));
        let mut guard = Guard::with(Net::connect().unwrap(), refused);
        guard.set(both()).await.unwrap();
        guard.watch().unwrap();
        let status = guard.status("qvpn0").unwrap();
        assert_eq!((status.routes, status.filter), (LayerState::InForce, LayerState::Missing));
        assert!(status.without_filter.unwrap().contains("has no nf_tables"));
        assert_eq!(status.dropped, None);
        sh("ip route add 10.20.5.0/24 via 198.51.100.254");
        assert_eq!((leak(""), leak(LAN_HOST)), (0, 0));
        sh("ip rule del priority 113");
        guard.changed().await;
        assert!(guard.restore().await.errors.is_empty());
        assert_eq!((leak(""), leak(LAN_HOST)), (0, 0));
    });
}

#[test]
fn releasing_everything_goes_on_after_a_table_that_another_process_owns() {
    with_guard("releasing_everything_goes_on_after_a_table_that_another_process_owns", async |mut guard| {
        guard.set(both()).await.unwrap();
        let mut other = Guard::connect().unwrap();
        other.disown();
        let second = RoutePlan::new("qvpn1", nets(&["10.30.0.0/16"]), Table::Auto, 0, 51821).unwrap();
        other.set(second).await.unwrap();
        let error = other.release_all().await.unwrap_err();
        assert!(matches!(error, NetError::FilterOwned { .. }), "{error}");
        let left = sh("nft list tables; ip rule; ip route show table 29046 2>/dev/null || true");
        assert!(!left.contains("qvpn-qvpn1") && !left.contains("29046") && !left.contains("10.30"), "{left}");
        assert!(left.contains("qvpn-qvpn0"), "{left}");
    });
}

#[test]
fn a_device_gets_its_name_its_state_and_its_addresses_back() {
    with_guard("a_device_gets_its_name_its_state_and_its_addresses_back", async |guard| {
        sh("ip link set qvpn0 up");
        let net = guard.net();
        let index = net.devices(["qvpn0"]).await.unwrap().get("qvpn0").copied();
        let plan = both().on_device(index);
        let addresses = nets(&["10.77.0.1/30", "fd77::1/64"]);
        let restore = async || net.restore_device(&plan, &addresses, 1400).await.unwrap();
        assert_eq!(restore().await.0, DeviceState::Up);
        sh("ip link set qvpn0 down; ip link set qvpn0 name other");
        let (state, changes) = restore().await;
        assert_eq!(state, DeviceState::Up);
        assert!(changes.added[0].contains("the name of qvpn0 (was other)"), "{changes:?}");
        assert!(changes.added.iter().any(|what| what == "qvpn0 up"), "{changes:?}");
        let shown = sh("ip addr show dev qvpn0");
        assert!(shown.contains("10.77.0.1/30") && shown.contains("fd77::1/64"), "{shown}");
        assert!(restore().await.1.is_empty());
        sh("ip link set qvpn0 name other; ip link add qvpn0 type veth peer name x");
        assert_eq!(restore().await.0, DeviceState::Renamed("other".into()));
        sh("ip link del other");
        assert_eq!(restore().await.0, DeviceState::Missing);
    });
}

#[test]
fn a_refusal_because_of_disabled_ipv6_names_the_switch() {
    with_guard("a_refusal_because_of_disabled_ipv6_names_the_switch", async |guard| {
        sh("echo 1 > /proc/sys/net/ipv6/conf/qvpn0/disable_ipv6; ip link set qvpn0 up");
        let error = guard.net().set_addresses("qvpn0", &nets(&["fd77::1/64"])).await.unwrap_err();
        assert!(error.to_string().contains("sysctl -w net.ipv6.conf.all.disable_ipv6=0"), "{error}");
    });
}

#[test]
fn a_config_without_a_daemon_takes_no_prefix_from_a_tunnel_that_runs() {
    with_guard("a_config_without_a_daemon_takes_no_prefix_from_a_tunnel_that_runs", async |mut guard| {
        sh("ip link set qvpn0 up; ip neigh add 10.20.5.1 lladdr 02:00:00:00:00:02 dev qvpn0");
        let index = sh("cat /sys/class/net/qvpn0/ifindex").trim().parse().ok();
        let second = RoutePlan::new("qvpn1", nets(&["10.20.0.0/16"]), Table::Auto, 0, 51821).unwrap();
        // The result is the same in both orders.
        guard.set(second.clone()).await.unwrap();
        guard.set(both().on_device(index)).await.unwrap();
        let carried = || {
            let [packets] = received(["far"], || {
                let _ = try_sh("ping -n -c 1 -W 0.05 10.20.5.1");
            });
            packets
        };
        assert_eq!(carried(), 1, "{}", sh("nft list ruleset"));
        guard.set(second).await.unwrap();
        assert_eq!(carried(), 1, "{}", sh("nft list ruleset"));
    });
}

#[test]
fn ten_thousand_prefixes_are_one_transaction() {
    with_guard("ten_thousand_prefixes_are_one_transaction", async |mut guard| {
        let prefixes = (0..10_000u32)
            .map(|i| IpNet::new(std::net::Ipv4Addr::from(0x0a14_0000 + i * 0x100).into(), 25).unwrap());
        let plan = RoutePlan::new("qvpn0", prefixes, Table::Auto, 0, 51820).unwrap();
        let start = Instant::now();
        guard.set(plan.clone()).await.unwrap();
        println!("10,000 prefixes in {:?}", start.elapsed());
        assert_eq!(guard.status("qvpn0").unwrap().filter, LayerState::InForce);
        let start = Instant::now();
        assert!(guard.restore().await.changes.is_empty());
        println!("compared again in {:?}", start.elapsed());
        guard.release(&plan).await.unwrap();
    });
}
