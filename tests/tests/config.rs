//! Refused configs: at the start with exit code 3 and the position of each error, at a reload without any
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
        assert_eq!(used, ["reload"]);

        fs::write(&file, "this is no config").unwrap();
        assert_eq!(reload(&["--dry-run"]), (Some(REFUSED), String::new()));
    });
}

#[test]
fn an_unconfirmed_reload_goes_back_by_itself_and_after_a_crash() {
    sandbox::run("an_unconfirmed_reload_goes_back_by_itself_and_after_a_crash", || {
        let lab = Lab::new();
        let options = GatewayOptions { qkd: "off".into(), kms: None, ..GatewayOptions::default() };
        let file = lab.configure(Site::A, &options);
        let mut gateway = lab.start_daemon(Site::A);
        let former = fs::read_to_string(&file).unwrap();
        let new = former.replace("[[peer]]", "[[peer]]\npersistent_keepalive = \"30s\"");
        let waiting = qvpn_api::config::unconfirmed_path(&file);
        let networks = |gateway: &tests::Gateway<'_>| gateway.peer()["allowed_ips"].as_array().unwrap().len();
        let added = new.replace("allowed_ips = [", "allowed_ips = [\"10.99.0.0/16\", ");
        assert!(added != former);
        let read = |path: &std::path::Path| fs::read_to_string(path).unwrap();
        let ctl = |gateway: &tests::Gateway<'_>, args: &[&str]| {
            let output = gateway.ctl(args);
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            (output.status.code().unwrap(), said)
        };
        let before = networks(&gateway);

        // Nothing is on trial yet, and a refused file changes nothing.
        assert_eq!(ctl(&gateway, &["confirm", "qvpn0"]).0, 1);
        fs::write(&file, "this is no config").unwrap();
        assert_eq!(ctl(&gateway, &["reload", "--confirm", "1m", "qvpn0"]).0, REFUSED);
        assert!(read(&file) == "this is no config" && !waiting.exists());

        // Nobody confirms, and the former config is restored.
        fs::write(&file, &added).unwrap();
        let (code, said) = ctl(&gateway, &["reload", "--confirm", "2s", "qvpn0"]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(networks(&gateway), before + 1);
        assert!(read(&file) == former && read(&waiting) == added);
        let (code, said) = ctl(&gateway, &["reload", "qvpn0"]);
        assert!(code == 1 && said.contains("`qvpn-ctl confirm` keeps it"), "{said}");
        tests::wait_until("the former config", Duration::from_secs(10), || {
            (networks(&gateway) == before).then_some(())
        });
        let (_, events) = ctl(&gateway, &["events", "qvpn0", "--kind", "config.reverted"]);
        assert!(events.contains("config.reverted by=timeout"), "{events}");
        let (code, said) = ctl(&gateway, &["confirm", "qvpn0"]);
        assert!(code == 1 && said.contains("the former one is in force again"), "too late: {said}");
        assert_eq!(read(&file), former);

        // The config is withdrawn; a later one is confirmed, once.
        fs::write(&file, &added).unwrap();
        assert_eq!(ctl(&gateway, &["reload", "--confirm", "1h", "qvpn0"]).0, 0);
        assert_eq!(ctl(&gateway, &["confirm", "--undo", "qvpn0"]).0, 0);
        assert!(networks(&gateway) == before && read(&file) == former && read(&waiting) == added);
        fs::write(&file, &added).unwrap();
        assert_eq!(ctl(&gateway, &["reload", "--confirm", "1h", "qvpn0"]).0, 0);
        assert_eq!(ctl(&gateway, &["confirm", "qvpn0"]).0, 0);
        assert!(networks(&gateway) == before + 1 && read(&file) == added && !waiting.exists());
        assert_eq!(ctl(&gateway, &["confirm", "qvpn0"]).0, 1, "twice");

        // A crash within the time: the next start uses the former config.
        fs::write(&file, &former).unwrap();
        assert_eq!(ctl(&gateway, &["reload", "qvpn0"]).0, 0);
        fs::write(&file, &added).unwrap();
        assert_eq!(ctl(&gateway, &["reload", "--confirm", "1h", "qvpn0"]).0, 0);
        assert_eq!(networks(&gateway), before + 1);
        gateway.process.kill();
        drop(gateway);
        let gateway = lab.start_daemon(Site::A);
        assert_eq!(networks(&gateway), before);
    });
}
