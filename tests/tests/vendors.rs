//! A hub and two sites with KMEs of two vendors each, one over ETSI GS QKD 014 and one over SKIP: each peer
//! has its own order of KMEs, the next KME is used if one has no key, and a key's ID is requested only from
//! the pair of KMEs that issued it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::loopback::{Loopback, Vendor, loopback_up, new_identity, run};
use tests::{Process, binary, sandbox, wait_until};

const START: Duration = Duration::from_secs(30);
const HUB: usize = 0;
const A: usize = 1;
const B: usize = 2;
/// Interface and SAE of the hub, of site A and of site B.
const SITES: [(&str, &str); 3] = [("vhub", "HUB"), ("va", "SITE-A"), ("vb", "SITE-B")];

/// Who takes the keys between the hub and a site, and from which vendors.
struct Pairing {
    site: usize,
    /// The master SAE, which fetches new keys; the peer fetches them by their IDs.
    master: usize,
    /// The vendors in the order of this pair: 0 is etsi, 1 is skip.
    order: [usize; 2],
}

/// With A, the hub takes the keys, from the ETSI vendor first. With B, B takes them, from the SKIP vendor
/// first, and the hub gets their IDs.
const PAIRINGS: [Pairing; 2] =
    [Pairing { site: A, master: HUB, order: [0, 1] }, Pairing { site: B, master: B, order: [1, 0] }];

/// Returns one vendor's KME at a site.
fn kme(vendor: usize, site: usize) -> String {
    format!("{}-{}", ["etsi", "skip"][vendor], SITES[site].1.to_lowercase())
}

fn configure(vendors: &[Loopback; 2], dir: &Path, keys: &[String; 3], site: usize) -> PathBuf {
    let (name, sae) = SITES[site];
    let port = |site: usize| 52_300 + site;
    let mut text = format!(
        "[interface]\nname = \"{name}\"\nprivate_key_file = \"{}/{name}.key\"\nlisten_port = {}\n\
         rekey_interval = \"300ms\"\nlog_level = \"debug\"\n[kms]\nsae_id = \"{sae}\"\n",
        dir.display(),
        port(site),
    );
    for (vendor, api) in [(0, "etsi014"), (1, "skip")] {
        text += &vendors[vendor].source(&kme(vendor, site), api, sae);
    }
    for Pairing { site: leaf, master, order } in PAIRINGS {
        let other = match site {
            HUB => leaf,
            _ if site == leaf => HUB,
            _ => continue,
        };
        text += &format!(
            "[[peer]]\nname = \"{}\"\npublic_key = \"{}\"\nallowed_ips = []\nsae_id = \"{}\"\nkmes = {:?}\n\
             role = \"{}\"\nendpoint = \"127.0.0.1:{}\"\n",
            SITES[other].0,
            keys[other],
            SITES[other].1,
            order.map(|vendor| kme(vendor, site)),
            if master == site { "initiator" } else { "responder" },
            port(other),
        );
    }
    let file = dir.join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    file
}

/// A key that a KME delivered: vendor, KME, `master` or `slave`, and its ID.
type Delivery = (usize, String, String, String);

fn deliveries(vendors: &[Loopback; 2]) -> BTreeSet<Delivery> {
    let word = |line: &str, name: &str| {
        let value = line.split(&format!(" {name}=")).nth(1).unwrap().split(' ').next().unwrap();
        value.trim_matches('"').to_owned()
    };
    let of = |vendor: usize| {
        let log = vendors[vendor].sim.log();
        let lines = log.lines().filter(|line| line.contains("key delivered"));
        lines
            .map(|line| (vendor, word(line, "kme"), word(line, "side"), word(line, "key_id")))
            .collect::<Vec<_>>()
    };
    of(0).into_iter().chain(of(1)).collect()
}

/// Returns the KMEs at which keys were delivered, and how: `master` or `slave`.
fn places(deliveries: &BTreeSet<Delivery>) -> BTreeSet<(&str, &str)> {
    deliveries.iter().map(|(_, kme, side, _)| (kme.as_str(), side.as_str())).collect()
}

#[test]
fn an_id_is_asked_only_of_the_kmes_that_issued_it() {
    sandbox::run("an_id_is_asked_only_of_the_kmes_that_issued_it", || {
        loopback_up();
        let vendors = [(0, "[\"etsi014\"]"), (1, "[\"skip\"]")].map(|(vendor, apis)| {
            let names = [HUB, A, B].map(|site| kme(vendor, site));
            let [hub, a, b] = names.each_ref().map(String::as_str);
            let seed = [5, 5, 5, u8::try_from(vendor).unwrap()];
            Loopback::start(
                &format!("vendor-{vendor}"),
                &Vendor {
                    kmes: &[(hub, "HUB"), (a, "SITE-A"), (b, "SITE-B")],
                    links: &[[hub, a], [hub, b]],
                    apis,
                    seed,
                },
            )
        });
        let dir = vendors[0].dir.clone();
        let keys = SITES.map(|(name, _)| new_identity(&dir.join(format!("{name}.key"))));
        let daemons = [HUB, A, B].map(|site| {
            let file = configure(&vendors, &dir, &keys, site);
            Process::spawn(SITES[site].0, Command::new(binary("qvpn-daemon")).arg("--config").arg(file))
        });
        let mut printed = String::new();
        let mut show = |site: usize| -> Value {
            let output = Command::new(binary("qvpn-ctl")).args(["show", SITES[site].0, "--json"]).output();
            let text = String::from_utf8(output.unwrap().stdout).unwrap();
            printed.clone_from(&text);
            serde_json::from_str::<Value>(&text).unwrap_or_default()["interfaces"][0].clone()
        };
        // Both tunnels of the hub have completed three more epochs with QKD keys.
        let mut go_on = |what: &str| {
            let rekeys = |peer: &Value| peer["rekeys"].as_u64().unwrap_or(0);
            let peers =
                |show: &mut dyn FnMut(usize) -> Value| [0, 1].map(|peer| show(HUB)["peers"][peer].clone());
            let before = peers(&mut show).each_ref().map(rekeys);
            wait_until(what, START, || {
                let now = peers(&mut show);
                let up = now.iter().zip(before).all(|(peer, before)| {
                    peer["state"] == "up" && peer["key_sources"][0] == "qkd" && rekeys(peer) >= before + 3
                });
                up.then_some(())
            });
        };

        // Each pair uses the first vendor of its own order, and no keys of the other vendor.
        go_on("both tunnels come up");
        let [etsi, skip] = [0, 1].map(|vendor| [HUB, A, B].map(|site| kme(vendor, site)));
        let first = deliveries(&vendors);
        let want: BTreeSet<(&str, &str)> =
            [(&etsi[HUB], "master"), (&etsi[A], "slave"), (&skip[B], "master"), (&skip[HUB], "slave")]
                .map(|(kme, side)| (kme.as_str(), side))
                .into();
        assert_eq!(places(&first), want);

        // Both vendors pass `kms check`.
        let mut check = Command::new(binary("qvpn-ctl"));
        check.args(["kms", "check", "--no-take"]).arg(dir.join("vhub.toml"));
        let text = run(&mut check);
        for words in [
            "the KME knows us as SAE HUB",
            "the key provider calls itself HUB",
            "it makes keys by \"QKD\"",
            "all 4 checks passed, with 0 quirks",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }

        // If the first vendor has no key, the second provides it. The peer requests its ID from the second
        // vendor, not by its own order.
        vendors[0].misbehave(&etsi[HUB], "enc_keys", "http_503");
        vendors[1].misbehave(&skip[B], "enc_keys", "http_503");
        wait_until("the other vendor's keys come", START, || {
            let new: BTreeSet<Delivery> = deliveries(&vendors).difference(&first).cloned().collect();
            let places = places(&new);
            [(&skip[HUB], "master"), (&skip[A], "slave"), (&etsi[B], "master"), (&etsi[HUB], "slave")]
                .iter()
                .all(|(kme, side)| places.contains(&(kme.as_str(), *side)))
                .then_some(())
        });
        go_on("keys of both vendors are used");

        // The first vendor works again; the stocks hold keys of both.
        vendors[0].misbehave(&etsi[HUB], "enc_keys", "none");
        vendors[1].misbehave(&skip[B], "enc_keys", "none");
        go_on("back to the first");

        // A KME that gets a request for another vendor's key ID answers that it doesn't know it, and logs the
        // refusal.
        for vendor in &vendors {
            let log = vendor.sim.log();
            let refused: Vec<&str> = log.lines().filter(|line| line.contains("request refused")).collect();
            assert!(refused.is_empty(), "{refused:#?}");
        }
        let all = deliveries(&vendors);
        for (vendor, kme, side, id) in all.iter().filter(|(_, _, side, _)| side == "slave") {
            let issued = all.iter().any(|(by, _, as_, other)| by == vendor && as_ == "master" && other == id);
            assert!(issued, "{id} was delivered by {kme} as {side}, and no KME of its vendor issued it");
        }
        for (site, daemon) in daemons.iter().enumerate() {
            let metrics = run(Command::new(binary("qvpn-ctl")).args(["metrics", SITES[site].0]));
            let bad: Vec<&str> = metrics
                .lines()
                .filter(|line| line.starts_with("qvpn_kme_requests_total{") && line.contains("dec_keys"))
                .filter(|line| !line.contains("outcome=\"ok\""))
                .collect();
            assert!(bad.is_empty(), "{}: {bad:?}", SITES[site].0);
            printed += &daemon.log();
        }
        vendors.iter().for_each(|vendor| vendor.assert_no_keys(&printed, 10));
    });
}
