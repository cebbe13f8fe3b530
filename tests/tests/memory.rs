//! Used and retired keys are not in the daemon's memory. The same search finds the live ones, so it can fail.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use tests::{Capture, Gateway, GatewayOptions, KmeOptions, Lab, Memory, Outer, Site, sandbox, test_key};

const START: Duration = Duration::from_secs(20);
const SEED: [u8; 4] = [0x51, 0x4b, 0x44, 0x21];

/// Starts both daemons, with KMEs whose keys are computable.
fn start<'a>(lab: &'a Lab, rekey_interval: &str) -> (tests::Kmes, [Gateway<'a>; 2]) {
    let seed = data_encoding::HEXLOWER.encode(&SEED);
    let kmes = lab.start_kmes(&KmeOptions { seed: Some(seed), ..KmeOptions::default() });
    let options = GatewayOptions { rekey_interval: rekey_interval.to_owned(), ..GatewayOptions::default() };
    let gateways = lab.start_both(&options);
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    (kmes, gateways)
}

fn rekeys(gateway: &Gateway<'_>) -> u64 {
    gateway.peer()["rekeys"].as_u64().unwrap()
}

#[test]
fn used_qkd_keys_are_gone() {
    sandbox::run("used_qkd_keys_are_gone", || {
        let lab = Lab::new();
        let (_kmes, gateways) = start(&lab, "1s");
        let mut used = BTreeSet::new();
        for gateway in &gateways {
            let mut events = gateway.events();
            let seen_before = used.len();
            while used.len() < seen_before + 8 {
                let line = events.line("epoch.active", START);
                let event: serde_json::Value = serde_json::from_str(&line).unwrap();
                used.insert(event["qkd_key_id"].as_str().unwrap().to_owned());
            }
        }
        let keys: Vec<_> = (0..500).map(|n| test_key(&SEED, n)).collect();
        let known = keys.iter().filter(|(_, id)| used.contains(id)).count();
        assert_eq!(known, used.len(), "the test computes the KMEs' keys: {used:?}");
        let last = &keys[keys.iter().rposition(|(_, id)| used.contains(id)).unwrap()].1;
        for gateway in &gateways {
            // The last epoch may have been in use at only one site when it was recorded.
            gateway.wait_peer("a later epoch", START, |peer| peer["qkd_key_id"] != last.as_str());
            let memory = Memory::of(gateway.process.id());
            let (mut held, mut found) = (0, Vec::new());
            for (n, (key, id)) in keys.iter().enumerate() {
                let form = memory.finds_key(key);
                held += usize::from(form.is_some() && !used.contains(id));
                if let Some(form) = form.filter(|_| used.contains(id)) {
                    found.push((n, form));
                }
            }
            assert!(held >= 1, "the search finds the stock, which is ahead");
            assert!(found.is_empty(), "used keys in memory: {found:?}");
            println!("{} used keys: none in memory; {held} keys of the stock found", used.len());
        }
    });
}

#[test]
fn retired_epoch_keys_are_gone() {
    sandbox::run("retired_epoch_keys_are_gone", || {
        let lab = Lab::new();
        let (_kmes, gateways) = start(&lab, "4s");
        // Early in an epoch, so that its key is live when the memory is read.
        let mut events = gateways[0].events();
        events.line("epoch.active", START);
        events.line("epoch.active", START);
        assert!(lab.lan_a.pings(Site::B.host()[0]), "both sites use the new epoch");
        let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        let live = gateways.each_ref().map(|gateway| Memory::of(gateway.process.id()));
        let before = gateways.each_ref().map(rekeys);
        let seen = capture.stop();
        let from_a: std::net::IpAddr = Site::A.wan(Outer::V4).parse().unwrap();
        let mut retired = Vec::new();
        for outward in [true, false] {
            let data = seen.data();
            let packet = data
                .iter()
                .rfind(|packet| (packet.source == Some(from_a)) == outward)
                .unwrap_or_else(|| panic!("no packet of the ping: {seen:?}"));
            let key =
                live[0].find_opening_key(&packet.payload).expect("the live key is in the memory of site A");
            assert!(live[1].contains(&key), "the live key is in the memory of site B");
            retired.push(key);
        }
        assert_ne!(retired[0], retired[1], "each direction has its key");
        // Two more rekeys, and 10 s, the maximum time that an old epoch drains.
        for (gateway, before) in gateways.iter().zip(before) {
            gateway
                .wait_peer("two more rekeys", START, |peer| peer["rekeys"].as_u64().unwrap() >= before + 2);
        }
        std::thread::sleep(Duration::from_secs(11));
        for gateway in &gateways {
            let memory = Memory::of(gateway.process.id());
            for key in &retired {
                assert_eq!(memory.finds_key(key), None, "a retired key is still in memory");
            }
        }
    });
}
