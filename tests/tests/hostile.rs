//! A third site that holds valid keys and breaks every rule, beside two honest ones: nothing that it sends
//! stops their traffic or rekeys, grows the memory, or gets it an epoch against the rules; and afterwards an
//! honest exchange works.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use qvpn_identity::SecretIdentity;
use qvpn_proto::wire::{Confirm, Hello, MessageType, RejectReason, StockOffer, fragment};
use qvpn_proto::{KeyName, QkdPolicy, Role};
use qvpn_types::{EpochNumber, KeyId};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tests::{
    Gateway, GatewayOptions, KmeOptions, Lab, Outer, PORT, Secrets, Site, Stream, TestSite, sandbox,
};

const WAIT: Duration = Duration::from_secs(10);
/// Time limit for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The third site's keys.
fn third() -> SecretIdentity {
    SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(77))
}

/// Starts both sites; site B has a third peer without QKD, which the WAN router plays.
fn with_third(lab: &Lab) -> [Gateway<'_>; 2] {
    let options = GatewayOptions::default();
    for site in Site::BOTH {
        let file = lab.configure(site, &options);
        if site == Site::B {
            let mut file = fs::OpenOptions::new().append(true).open(file).unwrap();
            writeln!(
                file,
                "[[peer]]\nname = \"site-c\"\npublic_key = \"{}\"\nallowed_ips = [\"10.99.0.0/16\"]\nqkd \
                 = \"off\"\n\
                 role = \"responder\"",
                third().public()
            )
            .unwrap();
        }
    }
    Site::BOTH.map(|site| lab.start_daemon(site))
}

fn test_site(lab: &Lab, identity: SecretIdentity, port: u16) -> TestSite {
    TestSite::new(
        lab.wan.udp(&format!("{}:{port}", Site::B.router(Outer::V4))),
        format!("{}:{PORT}", Site::B.wan(Outer::V4)).parse().unwrap(),
        identity,
        lab.identity(Site::B).public.parse().unwrap(),
        u64::from(port),
    )
}

fn hello(site: &mut TestSite) -> Hello {
    site.make_hello(Role::Initiator, QkdPolicy::Off, ["", ""])
}

/// Runs a whole honest exchange.
#[track_caller]
fn epoch(site: &mut TestSite, number: u64, chain: Option<&Secrets>) -> Secrets {
    let attempt = site.propose(number, None, chain);
    site.send(MessageType::Propose, &attempt.message.to_bytes());
    let accept = site.expect(MessageType::Accept, WAIT);
    let secrets = site.verify(&attempt, &accept);
    site.confirm(&attempt, &secrets);
    site.expect_data(&secrets.to_initiator, WAIT);
    secrets
}

fn peer_c(gateway: &Gateway<'_>) -> serde_json::Value {
    let status = gateway.show();
    let peers = status["peers"].as_array().unwrap().clone();
    peers.into_iter().find(|peer| peer["name"] == "site-c").unwrap()
}

/// Sends hostile `Propose`s: each is refused for its reason, and none becomes an epoch.
fn hostile_proposals(site: &mut TestSite, number: &mut u64) {
    let order_eight = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
    let order_eight: [u8; 32] =
        data_encoding::HEXLOWER.decode(order_eight.as_bytes()).unwrap().try_into().unwrap();
    let theirs = Hello::parse(site.theirs.as_ref().unwrap()).unwrap().encapsulation_key;
    let ours = *site.identity.encapsulation_key();
    type Change<'a> = Box<dyn Fn(&mut qvpn_proto::wire::Propose) + 'a>;
    let cases: Vec<(&str, RejectReason, Change<'_>)> = vec![
        ("X25519 key zero", RejectReason::Malformed, Box::new(|p| p.x25519 = [0; 32])),
        ("X25519 key of order eight", RejectReason::Malformed, Box::new(move |p| p.x25519 = order_eight)),
        ("ML-KEM key not reduced", RejectReason::Malformed, Box::new(|p| p.encapsulation_key.fill(0xff))),
        (
            "ML-KEM key of the responder",
            RejectReason::Malformed,
            Box::new(|p| p.encapsulation_key = theirs.clone()),
        ),
        ("ML-KEM key of the initiator", RejectReason::Malformed, Box::new(|p| *p.encapsulation_key = ours)),
        ("two lanes", RejectReason::Malformed, Box::new(|p| p.indices.push(1 << 31 | 99))),
        ("a QKD key under `off`", RejectReason::Policy, Box::new(|p| p.qkd_key_id = KeyId::new("key").ok())),
        ("an unknown chain", RejectReason::Chain, Box::new(|p| p.chain_check = Some([7; 16]))),
        ("another Hello", RejectReason::Stale, Box::new(|p| p.hello_initiator = [7; 48])),
        ("number zero", RejectReason::Stale, Box::new(|p| p.epoch = EpochNumber(0))),
    ];
    for (name, reason, change) in cases {
        *number += 1;
        let mut attempt = site.propose(*number, None, None);
        change(&mut attempt.message);
        site.send(MessageType::Propose, &attempt.message.to_bytes());
        assert_eq!(site.rejected(ANSWER_TIMEOUT), Some(reason), "{name}");
    }
    let attempt = site.propose(*number + 1, None, None);
    let mut bytes = attempt.message.to_bytes();
    bytes.truncate(1000);
    site.send(MessageType::Propose, &bytes);
    assert_eq!(site.rejected(ANSWER_TIMEOUT), Some(RejectReason::Malformed), "half a Propose");
}

/// Sends a ciphertext of zeros: it is accepted like any other, but its sender can't confirm.
fn zero_ciphertext(site: &mut TestSite, number: &mut u64) {
    *number += 1;
    let mut attempt = site.propose(*number, None, None);
    attempt.message.ciphertext.fill(0);
    site.send(MessageType::Propose, &attempt.message.to_bytes());
    let accept = site.expect(MessageType::Accept, ANSWER_TIMEOUT);
    assert_eq!(accept.len(), 3177 + 4 + 48);
    for n in 0..4 {
        let confirm = Confirm { epoch: EpochNumber(*number), confirmation: [n; 48] };
        site.send(MessageType::Confirm, &confirm.to_bytes());
        site.rest(Duration::from_millis(200));
    }
}

/// Sends meaningless messages in a valid session, and packets that are not fragments.
fn rubbish(site: &mut TestSite, rng: &mut ChaCha20Rng, count: u32) {
    for n in 0..count {
        let mut body = vec![0; usize::try_from(rng.next_u64() % 1146).unwrap()];
        rng.fill_bytes(&mut body);
        let kind = MessageType::from_byte(u8::try_from(1 + n % 12).unwrap()).unwrap();
        let packet = if n % 3 == 0 {
            let mut whole = fragment::packets(rng.next_u64().to_be_bytes(), kind, &[0; 3000]).remove(0);
            let at = 40 + usize::try_from(rng.next_u64() % 20).unwrap();
            whole[at] ^= 1 << (n % 8);
            whole
        } else {
            // A `Hello` may change the exchange's parameters, so it is not sent.
            let kind = if kind == MessageType::Hello { MessageType::Accept } else { kind };
            fragment::packets(rng.next_u64().to_be_bytes(), kind, &body).remove(0)
        };
        if let Some(datagram) = site.seal_control(&packet) {
            site.raw(&datagram);
        }
        if n % 20 == 19 {
            site.rest(Duration::from_millis(20));
        }
    }
}

fn hostile(rounds: u32) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let gateways = with_third(&lab);
    for gateway in &gateways {
        gateway.wait_state("up", WAIT * 2);
    }
    assert!(lab.lan_a.pings(Site::B.host()[0]));
    let mut site = test_site(&lab, third(), 40_000);
    let first = hello(&mut site);
    site.connect(&first, WAIT);
    let mut number = 0;
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    rubbish(&mut site, &mut rng, 200);
    let before = gateways[1].process.memory();
    let rekeys = gateways[1].peer()["rekeys"].as_u64().unwrap();
    let seconds = 20 * u64::from(rounds);
    let stream = Stream { count: 500 * seconds, rate: 500, ..Stream::default() }.start(&lab);
    for _ in 0..rounds {
        hostile_proposals(&mut site, &mut number);
        zero_ciphertext(&mut site, &mut number);
        assert!(peer_c(&gateways[1])["epoch"].is_null(), "no epoch came of all that");
        rubbish(&mut site, &mut rng, 400);
    }
    for report in stream.finish() {
        assert_eq!((report.received.lost, report.refused), (0, 0), "{report:?}");
    }
    let done = gateways[1].peer()["rekeys"].as_u64().unwrap() - rekeys;
    assert!(done >= seconds - 2, "rekeys of the others go on: {done} in {seconds} s");
    let after = gateways[1].process.memory();
    assert!(after < before + 5_000, "memory: {before} kB before, {after} kB after");
    let failures = peer_c(&gateways[1])["rekey_failures"].clone();
    assert!(failures["confirmation"].as_u64() >= Some(u64::from(rounds)), "counted: {failures}");
    // Each round has eleven refused proposals, four wrong confirmations, and meaningless messages.
    let drops = peer_c(&gateways[1])["drops"].clone();
    for (name, each) in [("refused", 15), ("malformed", 50)] {
        assert!(drops[name].as_u64() >= Some(each * u64::from(rounds)), "{name} is counted: {drops}");
    }

    // An honest exchange works again: no state of the attacks is left.
    let mut again = hello(&mut site);
    again.instance = first.instance;
    again.counter = 2;
    site.say_hello(&again);
    site.rest(Duration::from_millis(500));
    let one = epoch(&mut site, 1, None);
    let _ = epoch(&mut site, 2, Some(&one));
    assert_eq!(peer_c(&gateways[1])["state"], "up");
    println!("memory: {before} kB before, {after} kB after {} hostile proposals", number);
}

#[test]
fn a_hostile_site_harms_no_other_alone() {
    sandbox::run("a_hostile_site_harms_no_other_alone", || hostile(1));
}

#[test]
#[ignore = "some minutes; `make soak` runs it"]
fn a_hostile_site_harms_no_other_for_long_alone() {
    sandbox::run("a_hostile_site_harms_no_other_for_long_alone", || hostile(20));
}

/// Bodies of messages of a type, as a hostile peer sends them in sequence. Proposals are right except for
/// their confirmation, so each costs key agreements unless it is limited.
fn bodies(site: &mut TestSite, kind: MessageType, number: &mut u64) -> Vec<Vec<u8>> {
    let random = |site: &mut TestSite, length: usize| {
        let mut body = vec![0; length];
        site.rng.fill_bytes(&mut body);
        body
    };
    match kind {
        MessageType::Propose => (0..200)
            .map(|_| {
                *number += 1;
                site.propose(*number, None, None).message.to_bytes()
            })
            .collect(),
        // Each looks like a restart.
        MessageType::Hello => (0..200).map(|_| hello(site).to_bytes()).collect(),
        MessageType::StockOffer => {
            let key = |n: u32| KeyName {
                id: KeyId::new(format!("{n:036}")).unwrap(),
                source_kme: String::new(),
                target_kme: String::new(),
            };
            let offer = |n: u32| StockOffer { number: n.into(), keys: (n..n + 100).map(key).collect() };
            (1..200).map(|n| offer(n).to_bytes()).collect()
        }
        MessageType::Confirm => (0..200).map(|_| random(site, 56)).collect(),
        MessageType::Reject => (0..200).map(|_| [random(site, 8), vec![10]].concat()).collect(),
        MessageType::Rekey => vec![vec![0]],
        MessageType::Lanes => vec![vec![0, 1], vec![0, 0]],
        _ => vec![Vec::new()],
    }
}

/// Sends messages of this type for `seconds`, `rate` a second if the machine is fast enough. Returns their
/// number.
fn flood(site: &mut TestSite, kind: MessageType, rate: u64, seconds: u64, number: &mut u64) -> u64 {
    let bodies = bodies(site, kind, number);
    let packets = |n: u64| {
        let body = &bodies[usize::try_from(n).unwrap() % bodies.len()];
        fragment::packets(n.to_be_bytes(), kind, body)
    };
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let due = u64::try_from(begun.elapsed().as_millis()).unwrap() * rate / 1000;
        while sent < due && begun.elapsed() < Duration::from_secs(seconds) {
            for packet in packets(u64::from(kind as u8) << 32 | sent) {
                let datagram = site.seal_control(&packet).expect("a session");
                site.raw(&datagram);
            }
            sent += 1;
        }
        // Reads what the gateway answered, and keeps the session alive.
        site.step(Instant::now());
    }
    sent
}

/// One configured peer sends ten thousand messages a second, of each type in turn.
#[test]
fn a_peer_that_floods_its_session_costs_no_other_a_packet_or_a_rekey_alone() {
    sandbox::run("a_peer_that_floods_its_session_costs_no_other_a_packet_or_a_rekey_alone", || {
        const RATE: u64 = 10_000;
        const SECONDS: u64 = 4;
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = with_third(&lab);
        for gateway in &gateways {
            gateway.wait_state("up", WAIT * 2);
        }
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        let mut site = test_site(&lab, third(), 40_000);
        let first = hello(&mut site);
        site.connect(&first, WAIT);
        let mut number = 0;
        let before = gateways[1].process.memory();
        for kind in (1..=13).filter_map(MessageType::from_byte) {
            let rekeys = gateways[1].peer()["rekeys"].as_u64().unwrap();
            let stream = Stream { count: 500 * SECONDS, rate: 500, ..Stream::default() }.start(&lab);
            let sent = flood(&mut site, kind, RATE, SECONDS, &mut number);
            let reports = stream.finish();
            let done = gateways[1].peer()["rekeys"].as_u64().unwrap() - rekeys;
            let lost: Vec<u64> = reports.iter().map(|report| report.received.lost).collect();
            let of_c = peer_c(&gateways[1])["drops"].clone();
            println!(
                "{kind:?}: {} a second, {done} rekeys in {SECONDS} s, lost {lost:?}; {of_c}",
                sent / SECONDS
            );
            assert_eq!(lost, [0, 0], "{kind:?}: {reports:?}");
            assert!(done >= SECONDS - 1, "{kind:?}: {done} rekeys in {SECONDS} s");
        }
        assert!(peer_c(&gateways[1])["drops"]["limited"].as_u64() > Some(1_000), "the budget is what held");
        let after = gateways[1].process.memory();
        assert!(after < before + 10_000, "memory: {before} kB before, {after} kB after");
        assert_eq!(gateways[1].peer()["state"], "up");
        // An honest exchange works again.
        site.rest(Duration::from_secs(3));
        let honest = hello(&mut site);
        site.say_hello(&honest);
        site.rest(Duration::from_secs(1));
        let _ = epoch(&mut site, number + 1, None);
    });
}

/// An attacker who has broken a site's X25519 key, and has all public values, still lacks its ML-KEM seed
/// and gets no epoch.
#[test]
fn the_x25519_key_alone_gets_no_epoch() {
    sandbox::run("the_x25519_key_alone_gets_no_epoch", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = with_third(&lab);
        let real = third();
        let text = real.to_text();
        let bytes = data_encoding::BASE64.decode(&text.expose()["qvpn1-secret-".len()..]).unwrap();
        let mixed = [&bytes[..32], &[9; 64]].concat();
        let mixed = format!("qvpn1-secret-{}", data_encoding::BASE64.encode(&mixed));
        let mut site = test_site(&lab, SecretIdentity::from_text(&mixed).unwrap(), 40_000);
        let mut said = hello(&mut site);
        *said.encapsulation_key = *real.encapsulation_key();
        site.connect(&said, WAIT);
        let attempt = site.propose(1, None, None);
        site.send(MessageType::Propose, &attempt.message.to_bytes());
        let accept = site.expect(MessageType::Accept, WAIT);
        // Without the seed it computes another secret, so its confirmation is wrong.
        for _ in 0..4 {
            let mut confirmation = [0; 48];
            site.rng.fill_bytes(&mut confirmation);
            site.send(MessageType::Confirm, &Confirm { epoch: EpochNumber(1), confirmation }.to_bytes());
            site.rest(Duration::from_millis(200));
        }
        let secrets =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| site.verify(&attempt, &accept)));
        assert!(secrets.is_err(), "the gateway's confirmation needs the seed");
        assert!(peer_c(&gateways[1])["epoch"].is_null());
    });
}
