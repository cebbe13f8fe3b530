//! Key sources other than ETSI GS QKD 014: two gateways over SKIP, and two with a file of keys, which is not
//! QKD and never satisfies `qkd = "required"`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Site, sandbox};

const START: Duration = Duration::from_secs(20);

#[test]
fn a_tunnel_over_skip() {
    sandbox::run("a_tunnel_over_skip", || {
        let lab = Lab::new();
        let kmes = lab.start_kmes(&KmeOptions { apis: "[\"skip\"]", ..KmeOptions::default() });
        let gateways =
            lab.start_both(&GatewayOptions { kme: "api = \"skip\"".to_owned(), ..GatewayOptions::default() });
        for gateway in &gateways {
            let peer = gateway.wait_peer("a full stock", START, |peer| {
                peer["state"] == "up"
                    && peer["qkd_stock"].as_u64() >= Some(4)
                    && peer["rekeys"].as_u64() >= Some(3)
            });
            assert_eq!(peer["key_sources"][0], "qkd");
            let kme = &gateway.show()["kmes"][0];
            assert_eq!((&kme["api"], &kme["state"]), (&json!("skip"), &json!("up")));
        }
        for site in Site::BOTH {
            assert!(lab.lan(site).pings(site.other().host()[0]));
        }
        // The key provider fails, and recovers.
        kmes.admin(&["misbehave", "kme-a1", "all", "http_500"]);
        for gateway in &gateways {
            gateway.wait_state("blocked", START * 2);
        }
        let reason = gateways[0].peer()["reason"].to_string() + &gateways[1].peer()["reason"].to_string();
        assert!(reason.contains("kme-a1"), "{reason}");
        kmes.admin(&["misbehave", "kme-a1", "all", "none"]);
        for gateway in &gateways {
            gateway.wait_state("up", START);
        }
    });
}

/// Writes the same 200 keys at both sites.
fn write_files(lab: &Lab) -> [PathBuf; 2] {
    let line = |n: u8| format!("key-{n} {}\n", data_encoding::BASE64.encode(&[n; 32]));
    let text: String = (1..=200).map(line).collect();
    Site::BOTH.map(|site| {
        let path = lab.gw(site).dir().join("disk.keys");
        fs::write(&path, &text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    })
}

fn unused(path: &Path) -> usize {
    fs::read_to_string(path).unwrap().lines().filter(|line| !line.starts_with('#')).count()
}

fn configure(lab: &Lab, files: &[PathBuf; 2], policies: [&str; 2]) {
    for (i, site) in Site::BOTH.into_iter().enumerate() {
        let file = files[i].display();
        let sources = format!("[[kms.kme]]\nname = \"disk\"\napi = \"file\"\nkeys_file = \"{file}\"\n");
        let options = GatewayOptions {
            qkd: policies[i].to_owned(),
            sources: Some(sources),
            initiator: Some(Site::A),
            ..GatewayOptions::default()
        };
        let _ = lab.configure(site, &options);
    }
}

#[test]
fn a_file_of_keys_is_called_a_file_and_is_never_enough_where_qkd_is_required() {
    sandbox::run("a_file_of_keys_is_called_a_file_and_is_never_enough_where_qkd_is_required", || {
        let lab = Lab::new();
        let files = write_files(&lab);
        configure(&lab, &files, ["required"; 2]);
        let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
        let blocked = |mine: [&str; 2]| {
            for (gateway, mine) in gateways.iter().zip(mine) {
                let peer = gateway.wait_state("blocked", START);
                let reason = peer["reason"].as_str().unwrap();
                assert!(
                    reason.starts_with(mine)
                        && reason.contains("the only key source here is a file, which is no QKD"),
                    "{reason}"
                );
                assert_eq!((&peer["key_sources"], &peer["qkd_stock"]), (&json!([]), &json!(0)));
            }
            assert!(!lab.lan(Site::A).pings(Site::B.host()[0]), "nothing is sent");
        };
        blocked(["qkd = \"required\""; 2]);
        for (gateway, file) in gateways.iter().zip(&files) {
            assert_eq!(
                (gateway.peer()["rekeys"].as_u64(), unused(file)),
                (Some(0), 200),
                "and no key is spent"
            );
        }

        configure(&lab, &files, ["preferred"; 2]);
        gateways.iter().for_each(reload);
        for gateway in &gateways {
            let peer = gateway.wait_peer("three epochs", START, |peer| {
                peer["state"] == "degraded" && peer["rekeys"].as_u64() >= Some(3)
            });
            assert_eq!(peer["key_sources"][0], "file", "{peer:#}");
            assert_eq!((&peer["qkd_key_id"], &peer["qkd_stock"]), (&json!(null), &json!(0)));
            assert!(peer["reason"].as_str().unwrap().contains("a key from a file, which is no QKD"));
            assert_eq!(gateway.show()["kmes"][0]["api"], "file");
        }
        assert!(lab.lan(Site::A).pings(Site::B.host()[0]));
        assert!(files.iter().all(|file| unused(file) < 200), "what is used is wiped");

        // `required` at one side is enough.
        configure(&lab, &files, ["preferred", "required"]);
        reload(&gateways[1]);
        blocked(["the other site's qkd = \"required\"", "qkd = \"required\""]);
    });
}

fn reload(gateway: &Gateway<'_>) {
    let output = gateway.ctl(&["reload", "qvpn0"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
