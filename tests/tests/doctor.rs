//! `qvpn-ctl doctor`: each fault is made, found, and fixed by the command in the finding.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Site, binary, sandbox};

fn findings(lab: &Lab, gateway: &Gateway<'_>) -> Vec<Value> {
    let dir = lab.gw_a.dir().display().to_string();
    let output = gateway.ctl(&["--config-dir", &dir, "doctor", "qvpn0", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = report["findings"].as_array().unwrap().clone();
    let bad = all.iter().any(|f| f["result"] == "bad");
    assert_eq!((output.status.code(), report["ok"].as_bool()), (Some(i32::from(bad)), Some(!bad)));
    assert!(all.iter().all(|f| f["result"] == "ok" || f["fix"].is_string()), "{all:#?}");
    all
}

fn result<'f>(findings: &'f [Value], check: &str) -> &'f str {
    let of: Vec<&str> =
        findings.iter().filter(|f| f["check"] == check).map(|f| f["result"].as_str().unwrap()).collect();
    ["bad", "warning", "ok"].into_iter().find(|word| of.contains(word)).unwrap_or("absent")
}

#[test]
fn each_fault_is_found_and_its_command_fixes_it() {
    sandbox::run("each_fault_is_found_and_its_command_fixes_it", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let options = GatewayOptions { interface: "mtu = 1420".to_owned(), ..GatewayOptions::default() };
        let mut gateways = lab.start_both(&options);
        gateways.iter().for_each(|gateway| drop(gateway.wait_state("up", Duration::from_secs(20))));
        lab.gw_a.run("mount -t tmpfs tmpfs /etc/sysctl.d");
        let well = findings(&lab, &gateways[0]);
        for check in [
            "tun",
            "config",
            "daemon",
            "ip_forward",
            "ip6_forward",
            "mtu",
            "firewall",
            "forward",
            "block",
            "certificate",
        ] {
            assert_eq!(result(&well, check), "ok", "{check}: {well:#?}");
        }
        assert_eq!(result(&well, "routes"), "absent", "{well:#?}");

        let programs = binary("qvpn-ctl").parent().unwrap().display().to_string();
        let faults = [
            ("ip_forward", "bad", "echo 0 > /proc/sys/net/ipv4/ip_forward"),
            ("ip6_forward", "bad", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"),
            (
                "firewall",
                "warning",
                "nft 'table inet strict { chain in { type filter hook input priority 0; policy drop; meta \
                 l4proto { icmp, icmpv6, tcp } accept; }; }'",
            ),
            (
                "firewall",
                "warning",
                "nft delete table inet strict; nft 'table inet rest { chain in { type filter hook input \
                 priority 0; ct state established accept; meta l4proto { icmp, icmpv6, tcp } accept; reject; \
                 }; }'",
            ),
            (
                "forward",
                "warning",
                "nft 'table inet gate { chain thru { type filter hook forward priority 0; policy drop; ct \
                 state established accept; }; }'",
            ),
            ("routes", "warning", "ip route add 10.20.3.0/24 via 198.51.100.2 dev wan"),
            ("mtu", "warning", "ip link set wan mtu 1400"),
            (
                "block",
                "bad",
                "qvpn-ctl unblock >/dev/null; ip route del unreachable 10.20.0.0/16 metric 1 2>/dev/null || \
                 true",
            ),
        ];
        let run = |line: &str| lab.gw_a.run(&format!("PATH=$PATH:{programs}; {line}"));
        for (check, word, fault) in faults {
            if check == "block" {
                // A running daemon restores its routes.
                gateways[0].process.kill();
            }
            run(fault);
            let found = findings(&lab, &gateways[0]);
            assert_eq!(result(&found, check), word, "{check}: {found:#?}");
            let finding = found.iter().find(|f| f["check"] == check && f["result"] == word).unwrap();
            println!("{}\n  -> {}", finding["text"], finding["fix"]);
            run(finding["fix"].as_str().unwrap());
            let after = findings(&lab, &gateways[0]);
            assert!(matches!(result(&after, check), "ok" | "absent"), "{check}: {after:#?}");
        }
        assert_eq!(result(&findings(&lab, &gateways[0]), "daemon"), "bad");
    });
}

#[test]
fn a_strict_reverse_path_filter_is_found_where_a_default_route_needs_another() {
    sandbox::run("a_strict_reverse_path_filter_is_found_where_a_default_route_needs_another", || {
        let lab = Lab::new();
        let options = GatewayOptions {
            qkd: "off".to_owned(),
            kms: None,
            allowed_ips: vec!["0.0.0.0/0".to_owned()],
            ..GatewayOptions::default()
        };
        let _ = lab.configure(Site::A, &options);
        let gateway = lab.start_daemon(Site::A);
        lab.gw_a.run("mount -t tmpfs tmpfs /etc/sysctl.d");
        for key in ["all", "wan"] {
            lab.gw_a.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0");
        }
        assert_ne!(result(&findings(&lab, &gateway), "rp_filter"), "absent");
        lab.gw_a.sysctl("net/ipv4/conf/wan/rp_filter", "1");
        let found = findings(&lab, &gateway);
        let of_wan = |f: &&Value| f["check"] == "rp_filter" && f["text"].as_str().unwrap().contains("on wan");
        let finding = found.iter().find(of_wan).unwrap();
        lab.gw_a.run(finding["fix"].as_str().unwrap());
        assert!(!findings(&lab, &gateway).iter().any(|f| of_wan(&f)));
    });
}
