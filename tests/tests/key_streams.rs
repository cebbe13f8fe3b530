//! Two gateways whose KMEs speak ETSI GS QKD 004: a hundred rekeys with keys of key streams over mutual TLS,
//! a restart of the KMEs in the middle, and streams that are closed at the end.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::loopback::{Loopback, Vendor, loopback_up, new_identity, run};
use tests::{Process, binary, sandbox, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
/// Interface, SAE and KME of the initiator and of the responder.
const SITES: [(&str, &str, &str); 2] = [("ka", "SITE-A", "kme-a1"), ("kb", "SITE-B", "kme-b1")];

fn configure(kmes: &Loopback, dir: &Path, keys: &[String; 2], site: usize) -> PathBuf {
    let (name, sae, kme) = SITES[site];
    let port = |site: usize| 52_500 + site;
    let text = format!(
        "[interface]\nname = \"{name}\"\nprivate_key_file = \"{}/{name}.key\"\nlisten_port = {}\n\
         rekey_interval = \"200ms\"\n[kms]\nsae_id = \"{sae}\"\n{}\
         [[peer]]\nname = \"peer\"\npublic_key = \"{}\"\nallowed_ips = []\nsae_id = \"{}\"\nrole = \"{}\"\n\
         endpoint = \"127.0.0.1:{}\"\n",
        dir.display(),
        port(site),
        kmes.source(kme, "etsi004", sae),
        keys[1 - site],
        SITES[1 - site].1,
        ["initiator", "responder"][site],
        port(1 - site),
    );
    let file = dir.join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    file
}

fn show(site: usize) -> Option<Value> {
    let output = Command::new(binary("qvpn-ctl")).args(["show", SITES[site].0, "--json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(shown["interfaces"][0].clone())
}

fn rekeys() -> u64 {
    show(0).and_then(|shown| shown["peers"][0]["rekeys"].as_u64()).unwrap_or(0)
}

/// Waits until both sites are up with QKD keys and `count` more rekeys are done.
fn rekeys_go_on(what: &str, count: u64) {
    let before = rekeys();
    wait_until(what, LIMIT, || {
        let up = [0, 1].iter().all(|site| {
            let peer = show(*site).map(|shown| shown["peers"][0].clone()).unwrap_or_default();
            peer["state"] == "up" && peer["key_sources"][0] == "qkd"
        });
        (up && rekeys() >= before + count).then_some(())
    });
}

#[test]
fn a_hundred_rekeys_by_key_streams_over_a_restart_of_the_kmes() {
    sandbox::run("a_hundred_rekeys_by_key_streams_over_a_restart_of_the_kmes", || {
        loopback_up();
        let vendor = Vendor { apis: "[\"etsi004\"]", ..Vendor::pair([8, 8, 8, 1]) };
        let mut kmes = Loopback::start("streams", &vendor);
        let dir = kmes.dir.clone();
        let keys = SITES.map(|(name, ..)| new_identity(&dir.join(format!("{name}.key"))));
        let mut daemons = [0, 1].map(|site| {
            let file = configure(&kmes, &dir, &keys, site);
            Process::spawn(SITES[site].0, Command::new(binary("qvpn-daemon")).arg("--config").arg(file))
        });
        rekeys_go_on("fifty rekeys", 50);
        let opened = |kmes: &Loopback| kmes.sim.log().matches("key stream opened").count();
        assert_eq!(opened(&kmes), 1, "one stream for all keys: {}", kmes.sim.log());
        let events = |site: usize| run(Command::new(binary("qvpn-ctl")).args(["events", SITES[site].0]));
        assert!(!events(0).contains("epoch.failed"), "{}", events(0));
        let kme = show(0).unwrap()["kmes"][0].clone();
        assert_eq!(
            (&kme["api"], &kme["state"], &kme["last_error"]),
            (&Value::from("etsi004"), &Value::from("up"), &Value::Null)
        );

        // All streams and keys of both KMEs are lost; what was taken and not fetched is of no use.
        kmes.restart();
        rekeys_go_on("fifty more after the KMEs' restart", 50);
        assert!(opened(&kmes) >= 1, "a new stream");
        for site in [0, 1] {
            let events = events(site);
            assert!(!events.contains("wrong_key") && !events.contains("protocol_violation"), "{events}");
        }

        // A daemon that stops closes its streams.
        for daemon in &mut daemons {
            daemon.signal(nix::sys::signal::Signal::SIGTERM);
            assert!(daemon.wait(LIMIT).success());
        }
        assert!(kmes.sim.log().contains("key stream closed"), "{}", kmes.sim.log());
        let logs: String = daemons.iter().map(Process::log).collect();
        kmes.assert_no_keys(&logs, 20);
    });
}
