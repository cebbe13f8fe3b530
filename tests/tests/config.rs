//! Refused configs: at the start with exit code 3 and the place of each error, at a reload without any
//! effect.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::time::Duration;

use tests::{GatewayOptions, KmeOptions, Lab, Site, binary, sandbox};

/// The exit code for a refused config.
const REFUSED: i32 = 3;

#[test]
fn a_bad_config_is_refused_with_its_place() {
    sandbox::run("a_bad_config_is_refused_with_its_place", || {
        let lab = Lab::new();
        let file = lab.configure(Site::A, &GatewayOptions::default());
        let text = fs::read_to_string(&file).unwrap();
        let line = 1 + text.lines().position(|line| line.starts_with("rekey_interval")).unwrap();
        fs::write(
            &file,
            text.replace("rekey_interval = \"1s\"", "rekey_interval = \"9h\"\ncolour = \"blue\""),
        )
        .unwrap();
        let path = file.display().to_string();
        let daemon = lab.gw_a.command(binary("qvpn-daemon")).args(["--config", &path]).output().unwrap();
        let check = lab.gw_a.command(binary("qvpn-ctl")).args(["check", &path]).output().unwrap();
        for output in [daemon, check] {
            let said = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(REFUSED), "{said}");
            assert!(said.contains(&format!("{path}:{line}:")), "the place of the value: {said}");
            assert!(said.contains(&format!("{path}:{}:1:", line + 1)), "and of the unknown key: {said}");
            assert!(said.contains("colour"), "{said}");
        }
    });
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    sandbox::run("a_key_that_others_can_read_is_refused", || {
        let lab = Lab::new();
        let file = lab.configure(Site::A, &GatewayOptions::default());
        lab.gw_a.run(&format!("chmod 0644 {}", lab.identity(Site::A).file.display()));
        let path = file.display().to_string();
        let output = lab.gw_a.command(binary("qvpn-daemon")).args(["--config", &path]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(REFUSED), "{said}");
        assert!(said.contains(&format!("{path}:")) && said.contains("qvpn0.key"), "{said}");
    });
}

#[test]
fn a_refused_reload_changes_nothing() {
    sandbox::run("a_refused_reload_changes_nothing", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = lab.start_both(&GatewayOptions::default());
        for gateway in &gateways {
            gateway.wait_state("up", Duration::from_secs(20));
        }
        let gateway = &gateways[0];
        let settled = |gateway: &tests::Gateway<'_>| {
            let peer = gateway.peer();
            ["name", "public_key", "allowed_ips", "qkd_policy", "state", "role"].map(|key| peer[key].clone())
        };
        let routes =
            || lab.gw_a.run("ip route show table all; ip -6 route show table all | grep -v ff00; ip rule");
        let (before, routes_before, rekeys) = (settled(gateway), routes(), gateway.peer()["rekeys"].as_u64());
        let file = lab.gw_a.dir().join("qvpn0.toml");
        let good = fs::read_to_string(&file).unwrap();
        for bad in [
            good.replace("qkd = \"required\"", "qkd = \"maybe\"\nallowed_ips = []"),
            good.replace("listen_port = 51820", "listen_port = 51999"),
            "this is no config".to_owned(),
        ] {
            assert_ne!(bad, good);
            fs::write(&file, &bad).unwrap();
            let output = gateway.ctl(&["reload", tests::INTERFACE]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(REFUSED), "{said}");
            assert!(said.contains("stays in force"), "{said}");
            assert_eq!(settled(gateway), before);
            assert_eq!(routes(), routes_before);
            assert!(lab.lan_a.pings(Site::B.host()[0]), "traffic goes on");
        }
        gateway.wait_peer("rekeys go on", Duration::from_secs(10), |peer| peer["rekeys"].as_u64() > rekeys);

        fs::write(&file, good.replace("allowed_ips = [", "allowed_ips = [\"10.99.0.0/16\", ")).unwrap();
        let output = gateway.ctl(&["reload", tests::INTERFACE]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(gateway.peer()["allowed_ips"].as_array().unwrap().contains(&"10.99.0.0/16".into()));
        assert!(routes().contains("10.99.0.0/16"));
        assert!(lab.lan_a.pings(Site::B.host()[0]));
    });
}

#[test]
fn a_dry_run_and_the_events_of_a_reload_name_each_key_with_both_values() {
    sandbox::run("a_dry_run_and_the_events_of_a_reload_name_each_key_with_both_values", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let [gateway, _b] = lab.start_both(&GatewayOptions::default());
        gateway.wait_state("up", Duration::from_secs(20));
        let reload = |args: &[&str]| {
            let output = gateway.ctl(&[&["reload", tests::INTERFACE], args].concat());
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        let events = |kind: &str| -> Vec<serde_json::Value> {
            let output = gateway.ctl(&["events", tests::INTERFACE, "--json", "--kind", kind]);
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let file = lab.gw_a.dir().join("qvpn0.toml");
        let good = fs::read_to_string(&file).unwrap();
        assert_eq!(reload(&["--dry-run"]), (Some(0), "nothing would change\n".to_owned()));
        fs::write(&file, good.replace("qkd = \"required\"", "qkd = \"preferred\"")).unwrap();
        let (code, plan) = reload(&["--dry-run"]);
        assert_eq!(code, Some(0));
        assert!(plan.starts_with("peer site-b: qkd: required -> preferred\n"), "{plan}");
        assert_eq!(gateway.peer()["qkd_policy"], "required", "a dry run changes nothing");
        assert!(events("config").is_empty());

        assert_eq!(reload(&[]), (Some(0), "peer site-b changed\n".to_owned()));
        assert_eq!(gateway.peer()["qkd_policy"], "preferred");
        let changed = &events("config.changed")[0];
        let fields = ["uid", "peer", "key", "from", "to"].map(|name| changed[name].clone());
        assert_eq!(
            serde_json::json!(fields),
            serde_json::json!([0, "site-b", "qkd", "required", "preferred"])
        );
        assert_eq!(events("policy.degraded")[0]["to"], "preferred");
        let used: Vec<_> = events("control.used").iter().map(|event| event["request"].clone()).collect();
        assert_eq!(used, ["plan_reload", "plan_reload", "reload"]);

        fs::write(&file, "this is no config").unwrap();
        assert_eq!(reload(&["--dry-run"]), (Some(REFUSED), String::new()));
    });
}
