//! `Net` against a real kernel, in a network namespace of each test's own. `ip` shows what the kernel has.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;

use qvpn_net::{Change, IpNet, Net, NetError, RoutePlan, Table};
use serde_json::Value;

use crate::common::{in_namespace, ip};

/// Runs `body` in a network namespace of its own; see [`in_namespace`].
fn with_net(test: &str, body: impl AsyncFnOnce(Net)) {
    in_namespace(test, async || body(Net::connect().unwrap()).await);
}

/// A tunnel stand-in that needs no TUN: one end of a veth pair.
fn make_device() {
    ip("link add qvpn0 type veth peer name far");
    ip("link set far up");
}

fn plan(prefixes: &[&str]) -> RoutePlan {
    plan_for("qvpn0", prefixes, Table::Auto)
}

fn plan_for(interface: &str, prefixes: &[&str], table: Table) -> RoutePlan {
    RoutePlan::new(interface, nets(prefixes), table, 0, 51820).unwrap()
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|s| s.parse().unwrap()).collect()
}

/// Returns our routes in all tables, as short sorted lines.
fn ours() -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        let routes: Value =
            serde_json::from_str(&ip(&format!("{family} -j -d route show table all proto 113"))).unwrap();
        for r in routes.as_array().unwrap() {
            let text = |key: &str| r[key].as_str().unwrap_or("").to_owned();
            let mtu = r["metrics"][0]["mtu"].as_u64().map(|n| format!(" mtu {n}")).unwrap_or_default();
            let table = r["table"]
                .as_str()
                .filter(|t| *t != "main")
                .map(|t| format!(" table {t}"))
                .unwrap_or_default();
            let device =
                if text("type") == "unreachable" { String::new() } else { format!(" dev {}", text("dev")) };
            let metric = r["metric"].as_u64().unwrap_or(0);
            lines.push(format!("{} {}{device}{table} metric {metric}{mtu}", text("type"), text("dst")));
        }
    }
    lines.sort();
    lines
}

/// Returns the device that a packet to `destination` would leave by, or the error.
fn leads(destination: &str) -> String {
    let output = Command::new("ip").args(["route", "get", destination]).output().unwrap();
    if output.status.success() {
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().skip_while(|w| *w != "dev").nth(1).unwrap().to_owned()
    } else {
        String::from_utf8(output.stderr).unwrap().trim().to_owned()
    }
}

/// The gateway's WAN: a default route that a leak would take.
fn make_wan() {
    ip("link add wan type veth peer name isp");
    ip("link set wan up");
    ip("link set isp up");
    ip("addr add 198.51.100.1/24 dev wan");
    ip("addr add 2001:db8::1/64 dev wan nodad");
    ip("route add default via 198.51.100.254");
    ip("-6 route add default via 2001:db8::ff");
}

/// What `ip route get` prints for a blocked destination.
const UNREACHABLE: &str = "RTNETLINK answers: No route to host";

#[test]
fn the_block_comes_before_the_device_and_outlives_it() {
    with_net("the_block_comes_before_the_device_and_outlives_it", async |net| {
        make_wan();
        assert_eq!(
            (leads("10.20.1.1"), leads("fd20::1")),
            ("wan".into(), "wan".into()),
            "the WAN would leak"
        );
        let plan = plan(&["10.20.0.0/16", "fd20::/48"]);
        let done = net.block(&plan).await.unwrap();
        assert_eq!(done.added.len(), 4, "two routes and two rules: {done:?}");
        assert!(net.block(&plan).await.unwrap().is_empty(), "a second time does nothing");
        assert_eq!((leads("10.20.1.1"), leads("fd20::1")), (UNREACHABLE.into(), UNREACHABLE.into()));

        let missing = net.add_routes(&plan).await.unwrap_err();
        assert!(matches!(missing, NetError::NoInterface { .. }), "{missing}");
        make_device();
        let down = net.add_routes(&plan).await.unwrap_err();
        assert!(down.to_string().contains("down"), "{down}");
        net.set_link_up("qvpn0", 1420).await.unwrap();
        net.add_routes(&plan).await.unwrap();
        assert!(net.add_routes(&plan).await.unwrap().is_empty());
        assert_eq!(
            ours(),
            [
                "unicast 10.20.0.0/16 dev qvpn0 table 29046 metric 0",
                "unicast fd20::/48 dev qvpn0 table 29046 metric 1",
                "unreachable 10.20.0.0/16 table 29046 metric 1",
                "unreachable fd20::/48 table 29046 metric 2",
            ]
        );
        assert_eq!((leads("10.20.1.1"), leads("fd20::1")), ("qvpn0".into(), "qvpn0".into()));
        assert_eq!(leads("10.21.1.1"), "wan");

        ip("link del qvpn0");
        assert_eq!(
            ours(),
            ["unreachable 10.20.0.0/16 table 29046 metric 1", "unreachable fd20::/48 table 29046 metric 2"]
        );
        assert_eq!((leads("10.20.1.1"), leads("fd20::1")), (UNREACHABLE.into(), UNREACHABLE.into()));
        assert!(net.remove_routes(&plan).await.unwrap().is_empty());
        assert_eq!(net.unblock(&plan).await.unwrap().removed.len(), 4);
        assert!(net.unblock(&plan).await.unwrap().is_empty());
        assert_eq!(ours(), [""; 0]);
        assert_eq!((leads("10.20.1.1"), leads("fd20::1")), ("wan".into(), "wan".into()));
    });
}

#[test]
fn default_routes_use_a_policy_table_and_fail_closed() {
    with_net("default_routes_use_a_policy_table_and_fail_closed", async |net| {
        make_wan();
        let plan = plan(&["0.0.0.0/0", "::/0"]);
        fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/wan/rp_filter", "1").unwrap();
        let done = net.block(&plan).await.unwrap();
        assert_eq!(done.warnings.len(), 1);
        assert!(done.warnings[0].contains("rp_filter is 1 (strict) on wan:"), "{done:?}");
        fs::write("/proc/sys/net/ipv4/conf/wan/rp_filter", "2").unwrap();
        assert_eq!(net.block(&plan).await.unwrap().warnings, [""; 0]);
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/conf/all/src_valid_mark").unwrap().trim(), "1");
        assert!(net.block(&plan).await.unwrap().is_empty(), "a second time does nothing");
        assert_eq!((leads("192.0.2.1"), leads("2001:db8:1::1")), (UNREACHABLE.into(), UNREACHABLE.into()));
        assert_eq!(leads("198.51.100.7"), UNREACHABLE, "no network is exempt by itself");
        assert_eq!(leads("224.0.0.5"), "wan", "multicast is");
        assert_ne!(leads("fe80::1"), UNREACHABLE, "link-local addresses are");
        let marked = ip(&format!("route get 192.0.2.1 mark {}", plan.fwmark()));
        assert!(marked.contains("dev wan"), "our own datagrams take the WAN: {marked}");

        make_device();
        net.set_link_up("qvpn0", 1420).await.unwrap();
        net.add_routes(&plan).await.unwrap();
        assert_eq!((leads("192.0.2.1"), leads("2001:db8:1::1")), ("qvpn0".into(), "qvpn0".into()));
        ip("link del qvpn0");
        assert_eq!((leads("192.0.2.1"), leads("2001:db8:1::1")), (UNREACHABLE.into(), UNREACHABLE.into()));

        assert_eq!(net.unblock(&plan).await.unwrap().removed.len(), 9);
        assert_eq!((leads("192.0.2.1"), leads("2001:db8:1::1")), ("wan".into(), "wan".into()));
        let rules: Value = serde_json::from_str(&ip("-j rule")).unwrap();
        assert_eq!(rules.as_array().unwrap().len(), 3, "only the kernel's: {rules}");
    });
}

#[test]
fn in_a_table_of_the_operators_a_foreign_route_is_named_and_left_alone() {
    with_net("in_a_table_of_the_operators_a_foreign_route_is_named_and_left_alone", async |net| {
        make_wan();
        ip("route add 10.20.0.0/16 via 198.51.100.254");
        ip("-6 route add fd20::/48 via 2001:db8::ff metric 100");
        let plan = plan_for("qvpn0", &["10.20.0.0/16", "fd20::/48"], Table::Id(254));
        let error = net.block(&plan).await.unwrap_err();
        let NetError::Conflict { ours: route, foreign } = &error else { panic!("{error}") };
        assert!(route.contains("unreachable 10.20.0.0/16"), "{route}");
        assert!(foreign.contains("10.20.0.0/16 via 198.51.100.254 dev wan proto"), "{foreign}");
        assert_eq!(ours().len(), 2, "what can be blocked is");
        assert_eq!(leads("fd20::1"), UNREACHABLE, "a worse route of somebody else's doesn't take over");

        make_device();
        net.set_link_up("qvpn0", 1420).await.unwrap();
        let error = net.add_routes(&plan).await.unwrap_err();
        assert!(matches!(&error, NetError::Conflict { .. }), "{error}");
        assert_eq!((leads("10.20.1.1"), leads("fd20::1")), ("wan".into(), "qvpn0".into()));

        net.remove_routes(&plan).await.unwrap();
        net.unblock(&plan).await.unwrap();
        assert_eq!(ours(), [""; 0]);
        assert_eq!(
            (leads("10.20.1.1"), leads("fd20::1")),
            ("wan".into(), "wan".into()),
            "theirs are untouched"
        );
    });
}

#[test]
fn a_reload_touches_only_what_changed() {
    with_net("a_reload_touches_only_what_changed", async |net| {
        make_device();
        net.set_link_up("qvpn0", 1420).await.unwrap();
        let old = plan(&["10.1.0.0/16", "10.2.0.0/16", "fd01::/64"]);
        net.add_routes(&old).await.unwrap();

        let new = plan(&["10.1.0.0/16", "10.3.0.0/16", "fd01::/64"]);
        let done = net.apply(&old, &new).await.unwrap();
        assert_eq!(
            done.added,
            ["unreachable 10.3.0.0/16 table 29046 metric 1", "10.3.0.0/16 dev qvpn0 table 29046 metric 0"]
        );
        assert_eq!(
            done.removed,
            ["10.2.0.0/16 dev qvpn0 table 29046 metric 0", "unreachable 10.2.0.0/16 table 29046 metric 1"]
        );
        assert_eq!(done.replaced, [""; 0]);
        assert_eq!(ours().len(), 6);

        let small = new.clone().with_mtu(&nets(&["10.1.0.0/16", "fd01::/64"]), Some(1300));
        let done = net.apply(&new, &small).await.unwrap();
        assert_eq!((done.replaced.len(), done.added.len(), done.removed.len()), (2, 0, 0));
        assert!(
            ours().contains(&"unicast 10.1.0.0/16 dev qvpn0 table 29046 metric 0 mtu 1300".to_owned()),
            "{:?}",
            ours()
        );
        assert!(
            ours().contains(&"unicast fd01::/64 dev qvpn0 table 29046 metric 1 mtu 1300".to_owned()),
            "{:?}",
            ours()
        );
        net.apply(&small, &new).await.unwrap();
        assert!(ours().iter().all(|route| !route.contains("mtu")), "{:?}", ours());

        let elsewhere = plan_for("qvpn0", &["10.1.0.0/16"], Table::Id(300));
        net.apply(&new, &elsewhere).await.unwrap();
        assert_eq!(
            ours(),
            [
                "unicast 10.1.0.0/16 dev qvpn0 table 300 metric 0",
                "unreachable 10.1.0.0/16 table 300 metric 1"
            ]
        );
        let off = plan_for("qvpn0", &["10.1.0.0/16"], Table::Off);
        net.apply(&elsewhere, &off).await.unwrap();
        assert_eq!(ours(), [""; 0]);
    });
}

/// Waits until a change satisfies `wanted`.
async fn until(watch: &mut qvpn_net::Watch, wanted: impl Fn(&Change) -> bool) -> Change {
    let found = async {
        loop {
            let change = watch.changed().await.expect("the watch goes on");
            if wanted(&change) {
                return change;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), found).await.expect("a change is noticed")
}

#[test]
fn removed_or_replaced_routes_are_restored() {
    with_net("removed_or_replaced_routes_are_restored", async |net| {
        make_wan();
        make_device();
        net.set_link_up("qvpn0", 1420).await.unwrap();
        let plan = plan(&["10.20.0.0/16", "fd20::/48", "0.0.0.0/0"]);
        net.add_routes(&plan).await.unwrap();
        let all = ours();
        let mut watch = net.watch("qvpn0").unwrap();
        let removed = |change: &Change| matches!(change, Change::Removed(_));

        for command in [
            "route del 10.20.0.0/16 dev qvpn0 table 29046",
            "-6 route del fd20::/48 dev qvpn0 table 29046",
            "route del unreachable 10.20.0.0/16 table 29046 metric 1",
            "-6 route del unreachable fd20::/48 table 29046 metric 2",
            "route del unreachable default table 29046 metric 1",
            "rule del priority 113",
            "-6 rule del priority 113",
        ] {
            ip(command);
            until(&mut watch, removed).await;
            let done = net.restore(&plan).await.unwrap();
            assert_eq!((done.added.len(), done.replaced.len()), (1, 0), "{command}: {done:?}");
            assert_eq!(ours(), all, "{command}");
        }
        assert!(net.restore(&plan).await.unwrap().is_empty());

        ip("route replace 10.20.0.0/16 via 198.51.100.254 dev wan onlink table 29046");
        assert_eq!(leads("10.20.1.1"), "wan");
        until(&mut watch, |change| matches!(change, Change::Replaced(_))).await;
        let done = net.restore(&plan).await.unwrap();
        assert!(
            done.replaced[0].contains("(was 10.20.0.0/16 via 198.51.100.254 dev wan table 29046"),
            "{done:?}"
        );
        assert_eq!((leads("10.20.1.1"), ours()), ("qvpn0".into(), all.clone()));

        // The kernel removes IPv4 routes with the link, without a notification.
        ip("link set qvpn0 down");
        until(&mut watch, |change| *change == Change::Interface).await;
        assert_eq!(leads("10.20.1.1"), UNREACHABLE);
        ip("link set qvpn0 up");
        until(&mut watch, |change| *change == Change::Interface).await;
        net.restore(&plan).await.unwrap();
        assert_eq!(ours(), all);
    });
}

#[test]
fn addresses_become_exactly_those_of_the_config() {
    with_net("addresses_become_exactly_those_of_the_config", async |net| {
        make_device();
        ip("addr add 10.99.0.1/24 dev qvpn0");
        ip("addr add fd99::1/64 dev qvpn0 nodad");
        let wanted = nets(&["10.77.0.1/30", "10.77.0.9/32", "fd77::1/64"]);
        net.set_addresses("qvpn0", &wanted).await.unwrap();
        net.set_link_up("qvpn0", 1400).await.unwrap();
        net.set_addresses("qvpn0", &wanted).await.unwrap();
        let links: Value = serde_json::from_str(&ip("-j addr show dev qvpn0")).unwrap();
        assert_eq!(links[0]["mtu"], 1400);
        let mut have: Vec<String> = links[0]["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|a| a["scope"] == "global")
            .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
            .collect();
        have.sort();
        assert_eq!(have, ["10.77.0.1/30", "10.77.0.9/32", "fd77::1/64"]);

        // The interface's own subnet as an allowed IP.
        let plan = plan(&["10.77.0.0/30"]);
        net.add_routes(&plan).await.unwrap();
        assert_eq!(
            ours(),
            [
                "unicast 10.77.0.0/30 dev qvpn0 table 29046 metric 0",
                "unreachable 10.77.0.0/30 table 29046 metric 1"
            ]
        );
        assert_eq!(leads("10.77.0.2"), "qvpn0");

        let missing = net.set_addresses("qvpn9", &wanted).await.unwrap_err();
        assert!(missing.to_string().contains("no interface `qvpn9`"), "{missing}");
    });
}

#[test]
fn unblocking_all_removes_ours_and_nothing_else() {
    with_net("unblocking_all_removes_ours_and_nothing_else", async |net| {
        ip("route add unreachable 10.50.0.0/16 metric 1");
        ip("rule add fwmark 5 lookup 5 priority 32400");
        let first = plan(&["10.1.0.0/16", "0.0.0.0/0"]);
        let second = RoutePlan::new("qvpn1", nets(&["10.2.0.0/16", "::/0"]), Table::Auto, 0, 51821).unwrap();
        net.block(&first).await.unwrap();
        net.block(&second).await.unwrap();
        net.unblock(&first).await.unwrap();
        assert!(ip("rule").contains("lookup 29046"), "the other interface needs the rule");
        assert_eq!(leads("10.2.0.1"), UNREACHABLE);
        let done = net.unblock_all().await.unwrap();
        // Two blocks, two routes of what is exempt, and a rule for each family.
        assert_eq!(done.removed.len(), 6, "{done:?}");
        assert!(net.unblock_all().await.unwrap().is_empty());
        assert_eq!(ours(), [""; 0]);
        assert!(ip("route").contains("unreachable 10.50.0.0/16"));
        assert!(ip("rule").contains("32400"));
        assert_eq!(ip("rule").lines().count(), 4);
    });
}

#[test]
fn without_rights_the_error_says_what_is_needed() {
    const NESTED: &str = "QVPN_NET_TEST_NESTED";
    let test = "without_rights_the_error_says_what_is_needed";
    if std::env::var_os(NESTED).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let net = Net::connect().unwrap();
            let error = net.block(&plan(&["10.1.0.0/16"])).await.unwrap_err();
            assert!(matches!(error, NetError::Denied { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("unreachable 10.1.0.0/16") && text.contains("CAP_NET_ADMIN"), "{text}");
        });
        return;
    }
    with_net(test, async |_| {
        // A user namespace inside has no rights over the network namespace outside it.
        let status = Command::new("unshare")
            .args(["--user", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(NESTED, "1")
            .status()
            .unwrap();
        assert!(status.success());
    });
}
