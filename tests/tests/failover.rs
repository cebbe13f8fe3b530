//! A site with two KMEs for one peer. When one of the four KMEs dies, at the master SAE's site or at the
//! slave SAE's, epochs continue with keys of the other pair, and the first pair is used again once it is
//! back.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::loopback::{Loopback, Vendor, loopback_up, new_identity, run};
use tests::{Process, binary, sandbox, wait_until};

const LIMIT: Duration = Duration::from_secs(30);
/// Interface and SAE of site A, which takes the keys, and of site B.
const SITES: [(&str, &str); 2] = [("fa", "SITE-A"), ("fb", "SITE-B")];

fn kme(pair: usize, site: usize) -> String {
    format!("kme-{}{}", ["a", "b"][site], pair + 1)
}

fn configure(pairs: &[Loopback; 2], apis: [&str; 2], dir: &Path, keys: &[String; 2], site: usize) -> PathBuf {
    let (name, sae) = SITES[site];
    let port = |site: usize| 52_400 + site;
    let text = format!(
        "[interface]\nname = \"{name}\"\nprivate_key_file = \"{}/{name}.key\"\nlisten_port = {}\n\
         rekey_interval = \"300ms\"\n[kms]\nsae_id = \"{sae}\"\n{}{}\
         [[peer]]\nname = \"peer\"\npublic_key = \"{}\"\nallowed_ips = []\nsae_id = \"{}\"\nrole = \"{}\"\n\
         endpoint = \"127.0.0.1:{}\"\n",
        dir.display(),
        port(site),
        pairs[0].source(&kme(0, site), apis[0], sae),
        pairs[1].source(&kme(1, site), apis[1], sae),
        keys[1 - site],
        SITES[1 - site].1,
        ["initiator", "responder"][site],
        port(1 - site),
    );
    let file = dir.join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    file
}

/// Returns the keys of a pair that site B has fetched.
fn fetched(pair: &Loopback) -> usize {
    pair.sim.log().lines().filter(|line| line.contains("key delivered") && line.contains("slave")).count()
}

#[test]
fn each_of_four_kmes_may_die() {
    sandbox::run("each_of_four_kmes_may_die", || over(["etsi014", "etsi014"]));
}

/// A key of a stream is never asked for over the other interface, nor the reverse.
#[test]
fn a_pair_with_key_streams_and_one_without_may_die() {
    sandbox::run("a_pair_with_key_streams_and_one_without_may_die", || over(["etsi004", "etsi014"]));
}

/// The first pair speaks `apis[0]`, the second `apis[1]`.
fn over(apis: [&str; 2]) {
    loopback_up();
    let pairs = [0, 1].map(|pair| {
        let names = [kme(pair, 0), kme(pair, 1)];
        let [a, b] = names.each_ref().map(String::as_str);
        let vendor = Vendor {
            kmes: &[(a, "SITE-A"), (b, "SITE-B")],
            links: &[[a, b]],
            apis: &format!("[\"{}\"]", apis[pair]),
            seed: [6, 6, 6, u8::try_from(pair).unwrap()],
        };
        Loopback::start(&format!("pair-{pair}"), &vendor)
    });
    let dir = pairs[0].dir.clone();
    let keys = SITES.map(|(name, _)| new_identity(&dir.join(format!("{name}.key"))));
    let _daemons = [0, 1].map(|site| {
        let file = configure(&pairs, apis, &dir, &keys, site);
        Process::spawn(SITES[site].0, Command::new(binary("qvpn-daemon")).arg("--config").arg(file))
    });
    let show = |site: usize| -> Value {
        let text = run(Command::new(binary("qvpn-ctl")).args(["show", SITES[site].0, "--json"]));
        serde_json::from_str::<Value>(&text).unwrap()["interfaces"][0]["peers"][0].clone()
    };
    let blocked = || {
        [0, 1].map(|site| {
            let events = run(Command::new(binary("qvpn-ctl")).args(["events", SITES[site].0]));
            events.lines().filter(|line| line.contains("peer.blocked")).count()
        })
    };
    wait_until("both daemons answer", LIMIT, || {
        let shown =
            [0, 1].map(|site| Command::new(binary("qvpn-ctl")).args(["show", SITES[site].0]).output());
        shown.iter().all(|output| output.as_ref().unwrap().status.success()).then_some(())
    });
    wait_until("both sites are up", LIMIT, || {
        [0, 1].iter().all(|site| show(*site)["state"] == "up").then_some(())
    });
    let at_first = blocked();
    // Six more keys of this pair were fetched, which is more than a stock, and six more epochs have a QKD
    // key.
    let goes_by = |pair: usize, what: &str| {
        let rekeys = || show(0)["rekeys"].as_u64().unwrap_or(0);
        let before = (fetched(&pairs[pair]), rekeys());
        wait_until(what, LIMIT, || {
            let peers = [0, 1].map(show);
            let up = peers.iter().all(|peer| peer["state"] == "up" && peer["key_sources"][0] == "qkd");
            let more = fetched(&pairs[pair]) >= before.0 + 6 && rekeys() >= before.1 + 6;
            (up && more).then_some(())
        });
        assert_eq!(blocked(), at_first, "{what}: the tunnel never stood still");
    };
    goes_by(0, "by the first pair");
    for site in [1, 0] {
        pairs[0].misbehave(&kme(0, site), "all", "refuse_tcp");
        goes_by(1, &format!("by the second pair, without {}", kme(0, site)));
        // The second pair may fail too, once the first works again.
        pairs[0].misbehave(&kme(0, site), "all", "none");
        pairs[1].misbehave(&kme(1, site), "all", "refuse_tcp");
        goes_by(0, &format!("by the first pair again, without {}", kme(1, site)));
        pairs[1].misbehave(&kme(1, site), "all", "none");
    }
}
