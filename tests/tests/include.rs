//! A running gateway whose peers stand in a hundred included files: a reload, a dry run, `--save` and a trial
//! understand them, and one broken file changes nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::time::Duration;

use qvpn_identity::SecretIdentity;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use tests::{GatewayOptions, Lab, Site, sandbox, wait_until};

const LIMIT: Duration = Duration::from_secs(30);
/// The exit code for a refused config.
const REFUSED: i32 = 3;

/// A site without QKD that nobody runs.
fn other_site(n: u8) -> String {
    let key = SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(n.into()));
    let key = key.public();
    format!(
        "[[peer]]\nname = \"other-{n}\"\npublic_key = \"{key}\"\nqkd = \"off\"\n\
         allowed_ips = [\"10.200.{n}.0/24\"]\n"
    )
}

#[test]
fn a_hundred_included_files_change_together_or_not_at_all() {
    sandbox::run("a_hundred_included_files_change_together_or_not_at_all", || {
        let lab = Lab::new();
        let options = GatewayOptions { qkd: "off".into(), kms: None, ..GatewayOptions::default() };
        let main = lab.configure(Site::A, &options);
        let _ = lab.configure(Site::B, &options);
        let dir = lab.gw_a.dir().join("qvpn0.d");
        fs::create_dir(&dir).unwrap();
        let text = fs::read_to_string(&main).unwrap();
        let (interface, peer) = text.split_once("[[peer]]").unwrap();
        let interface = interface.replace("[interface]", "[interface]\ninclude = \"qvpn0.d/*.toml\"");
        fs::write(&main, interface).unwrap();
        let site_b = dir.join("site-b.toml");
        fs::write(&site_b, format!("# Bonn.\n[[peer]]{peer}")).unwrap();
        let (gateway, _b) = (lab.start_daemon(Site::A), lab.start_daemon(Site::B));
        gateway.wait_state("up", LIMIT);
        let show = || gateway.try_show().unwrap();
        let ctl = |words: &[&str]| {
            let output = gateway.ctl(words);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            (output.status.code().unwrap(), said + &String::from_utf8_lossy(&output.stderr))
        };
        let peers = || show()["peers"].as_array().unwrap().len();
        let hash = || show()["config"]["hash"].as_str().unwrap().to_owned();

        (1..100).for_each(|n| fs::write(dir.join(format!("other-{n:02}.toml")), other_site(n)).unwrap());
        let first = hash();
        let (code, plan) = ctl(&["reload", "qvpn0", "--dry-run"]);
        assert!(code == 0 && plan.contains("peer other-99: name: (none) -> other-99"), "{plan}");
        assert_eq!((ctl(&["reload", "qvpn0"]).0, peers()), (0, 100));
        assert_eq!(show()["config"]["include"], "qvpn0.d/*.toml");
        let whole = hash();
        assert_ne!(whole, first);
        let metrics = String::from_utf8(gateway.ctl(&["metrics", "qvpn0"]).stdout).unwrap();
        assert!(metrics.contains(&format!("hash=\"{whole}\"")), "{metrics}");

        let broken = dir.join("other-42.toml");
        fs::write(&broken, other_site(42).replace("qkd", "qdk")).unwrap();
        fs::remove_file(dir.join("other-43.toml")).unwrap();
        let place = format!("{}:4:1: ", broken.display());
        for words in
            [&["reload", "qvpn0"][..], &["reload", "qvpn0", "--dry-run"], &["check", main.to_str().unwrap()]]
        {
            let (code, said) = ctl(words);
            assert!(code == REFUSED && said.contains(&place), "{words:?}: {said}");
        }
        assert_eq!((peers(), hash()), (100, whole.clone()), "nothing changed");
        fs::write(&broken, other_site(42)).unwrap();
        fs::write(dir.join("other-43.toml"), other_site(43)).unwrap();
        assert_eq!((ctl(&["reload", "qvpn0"]), hash()), ((0, "nothing changed\n".to_owned()), whole.clone()));

        // What is saved goes to the peer's file.
        let config_dir = lab.gw_a.dir().display().to_string();
        let (code, said) = ctl(&[
            "--config-dir",
            &config_dir,
            "peer",
            "set",
            "qvpn0",
            "other-7",
            "--suite",
            "aes256gcm",
            "--save",
        ]);
        assert!(code == 0 && said.contains("other-07.toml"), "{said}");
        let saved = fs::read_to_string(dir.join("other-07.toml")).unwrap();
        assert_eq!(saved, other_site(7) + "suite = \"aes256gcm\"\n");
        assert!(ctl(&["reload", "qvpn0"]).1.contains("nothing changed"), "file and running config agree");

        // A trial: the config's file holds the former config in one piece meanwhile.
        let before = hash();
        let own = fs::read_to_string(&main).unwrap();
        fs::write(dir.join("other-07.toml"), other_site(7)).unwrap();
        let (code, said) = ctl(&["reload", "qvpn0", "--confirm", "1h"]);
        assert_eq!(code, 0, "{said}");
        assert_ne!(hash(), before);
        assert!(ctl(&["show", "qvpn0"]).1.contains(", config on trial, goes back in 59 min"));
        let details = ctl(&["show", "qvpn0", "--all"]).1;
        assert!(details.contains("on trial: the former one comes back in "), "{details}");
        assert!(show()["config"]["confirm_in_s"].as_f64().is_some_and(|left| left > 3000.0));
        assert_eq!(ctl(&["confirm", "qvpn0"]).0, 0);
        assert!(show()["config"]["confirm_in_s"].is_null());
        assert_eq!(fs::read_to_string(&main).unwrap(), own, "the file names the directory again");
        fs::write(&site_b, fs::read_to_string(&site_b).unwrap() + "persistent_keepalive = \"30s\"\n")
            .unwrap();
        assert_eq!(ctl(&["reload", "qvpn0", "--confirm", "1s"]).0, 0);
        wait_until("the former config", LIMIT, || show()["config"]["confirm_in_s"].is_null().then_some(()));
        assert_eq!(peers(), 100);
        let former = fs::read_to_string(&main).unwrap();
        assert!(!former.contains("include =") && former.contains("other-99") && !former.contains("\"30s\""));
    });
}
