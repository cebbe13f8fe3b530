//! A passive observer of the WAN sees no identity: nothing of a `Hello` or of a public key, from the first
//! handshake on. With a site's public key, an observer can see that a handshake is meant for that site
//! (mac1), as in WireGuard.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use qvpn_identity::{PublicIdentity, SecretIdentity};
use qvpn_proto::session::{Admission, Demux};
use qvpn_types::Time;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use tests::{Capture, GatewayOptions, KmeOptions, Lab, Outer, Site, sandbox};

const START: Duration = Duration::from_secs(20);
/// Fragments split an ML-KEM key, so the test searches for pieces of it.
const PIECE_BYTES: usize = 32;

fn secret(lab: &Lab, site: Site) -> SecretIdentity {
    SecretIdentity::from_text(&fs::read_to_string(lab.identity(site).file).unwrap()).unwrap()
}

/// Returns everything that identifies a site, with a name for each.
fn telling(lab: &Lab, site: Site) -> Vec<(String, Vec<u8>)> {
    let identity = secret(lab, site);
    let public: PublicIdentity = lab.identity(site).public.parse().unwrap();
    let name = site.name();
    let mut all = vec![
        (format!("{name}: X25519 key"), public.x25519().to_vec()),
        (format!("{name}: hash of its ML-KEM key"), public.mlkem_hash().to_vec()),
        (format!("{name}: SAE ID"), site.sae().as_bytes().to_vec()),
        (format!("{name}: name"), name.as_bytes().to_vec()),
        (format!("{name}: public key in text"), public.to_string().as_bytes()[6..46].to_vec()),
    ];
    let pieces = identity.encapsulation_key().chunks_exact(PIECE_BYTES).enumerate();
    all.extend(pieces.map(|(n, piece)| (format!("{name}: piece {n} of its ML-KEM key"), piece.to_vec())));
    all
}

fn found<'a>(telling: &'a [(String, Vec<u8>)], text: &[u8]) -> Vec<&'a str> {
    let there = |(_, bytes): &&(String, Vec<u8>)| memmem::find(text, bytes).is_some();
    telling.iter().filter(there).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_passive_observer_sees_no_identity() {
    sandbox::run("a_passive_observer_sees_no_identity", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let capture = Capture::start(&lab.wan, Site::B.name(), Site::B.wan(Outer::V4));
        let gateways = lab.start_both(&GatewayOptions::default());
        let mut telling: Vec<_> = Site::BOTH.into_iter().flat_map(|site| telling(&lab, site)).collect();
        for gateway in &gateways {
            gateway.wait_state("up", START);
        }
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        // Also the key IDs of some epochs.
        let mut ids = BTreeSet::new();
        while ids.len() < 3 {
            let peer = gateways[0].wait_peer("another key", START, |peer| {
                peer["qkd_key_id"].as_str().is_some_and(|id| !ids.contains(id))
            });
            ids.insert(peer["qkd_key_id"].as_str().unwrap().to_owned());
        }
        for id in &ids {
            let bytes = data_encoding::HEXLOWER.decode(id.replace('-', "").as_bytes()).unwrap();
            telling.push((format!("key ID {id}"), id.as_bytes().to_vec()));
            telling.push((format!("key ID {id} in bytes"), bytes));
        }
        let packets = capture.stop().0;

        let starts: Vec<_> =
            packets.iter().filter(|p| p.udp.is_some() && p.payload.first() == Some(&1)).collect();
        assert!(!starts.is_empty(), "the first handshake was seen");
        assert!(packets.len() > 50, "and the exchanges: {}", packets.len());
        // An identity may be split between datagrams.
        let each: Vec<u8> = packets.iter().flat_map(|packet| packet.bytes.iter().copied()).collect();
        let joined: Vec<u8> = packets.iter().flat_map(|packet| packet.payload.iter().copied()).collect();
        for text in [&each, &joined] {
            assert_eq!(found(&telling, text), Vec::<&str>::new(), "{} bytes", text.len());
        }
        // The search finds them where they are present.
        let clear: Vec<u8> = telling.iter().flat_map(|(_, bytes)| [b"..", &bytes[..]].concat()).collect();
        assert_eq!(found(&telling, &clear).len(), telling.len());

        // The limit: with a site's public key, an observer can see that a handshake is for it.
        let meant_for = |site: Site| {
            let limiter =
                Demux::new(Arc::new(secret(&lab, site)), 1, &mut ChaCha20Rng::seed_from_u64(1)).limiter();
            let from = ([192, 0, 2, 1], 1).into();
            let is_for_it = |payload: &[u8]| {
                limiter.admit(payload, from, Time::default(), || false) == Admission::Admitted
            };
            starts.iter().filter(|packet| is_for_it(&packet.payload)).count()
        };
        let to = |site: Site| {
            let address = Site::wan(site, Outer::V4).parse().ok();
            starts.iter().filter(|packet| packet.destination == address).count()
        };
        assert_eq!(Site::BOTH.map(meant_for), Site::BOTH.map(to));
        println!("{} of each looked for in {} bytes of {} packets", telling.len(), each.len(), packets.len());
    });
}
