//! Every input and output of an epoch's key schedule is in the daemon's memory only during its lifetime, and
//! is erased within a second of its end; none is ever in a log, on a socket or in a core dump. The test plays
//! the other site, so it knows each secret; it also searches for live ones, so the search can fail.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use memchr::memmem;
use nix::sys::signal::Signal;
use qvpn_identity::SecretIdentity;
use qvpn_proto::kms::KeyName;
use qvpn_proto::wire::{KeyAvailability, MessageType, StockAck, StockOffer};
use qvpn_proto::{QkdPolicy, Role};
use qvpn_types::KeyId;
use tests::{
    Capture, Gateway, GatewayOptions, INTERFACE, KmeOptions, Kmes, Lab, Memory, Outer, PORT, Process,
    Secrets, Site, TestSite, binary, forms, sandbox, test_key,
};

const WAIT: Duration = Duration::from_secs(10);
const SEED: [u8; 4] = [0x51, 0x4b, 0x44, 0x21];
/// Time limit for the erasure of a secret after its end.
const GRACE: Duration = Duration::from_secs(1);
/// Of an interval of 200 ms, docs/protocol.md section 7.3.
const DRAIN: Duration = Duration::from_secs(2);
const MAX_AGE: Duration = Duration::from_secs(10);

/// Site B is a real daemon at the most verbose log level, site A is the test.
struct Pair<'a> {
    lab: &'a Lab,
    _kmes: Kmes,
    daemon: Gateway<'a>,
    site: TestSite,
    events: Process,
    captures: Vec<Capture<'a>>,
    /// All secrets that were recorded so far.
    known: BTreeMap<String, Vec<u8>>,
}

fn pair(lab: &Lab, initiator: Site) -> Pair<'_> {
    let seed = data_encoding::HEXLOWER.encode(&SEED);
    let kmes = lab.start_kmes(&KmeOptions { seed: Some(seed), ..KmeOptions::default() });
    let _ = lab.configure(
        Site::B,
        &GatewayOptions {
            rekey_interval: "200ms".to_owned(),
            initiator: Some(initiator),
            ..GatewayOptions::default()
        },
    );
    let captures = vec![
        Capture::start(&lab.wan, Site::B.name(), Site::B.wan(Outer::V4)),
        Capture::start(&lab.kme, Site::B.name(), "10.40.0.1"),
    ];
    let program = lab.gw_b.dir().join("daemon");
    let script = format!("#!/bin/sh\nexec {} --log trace \"$@\"\n", binary("qvpn-daemon").display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = lab.start_daemon_as(Site::B, INTERFACE, &program, &[]);
    let events = daemon.events();
    let own = fs::read_to_string(lab.identity(Site::A).file).unwrap();
    let mut site = TestSite::new(
        lab.gw_a.udp(&format!("{}:{PORT}", Site::A.wan(Outer::V4))),
        format!("{}:{PORT}", Site::B.wan(Outer::V4)).parse().unwrap(),
        SecretIdentity::from_text(&own).unwrap(),
        lab.identity(Site::B).public.parse().unwrap(),
        8,
    );
    for n in 0..500 {
        let (key, id) = test_key(&SEED, n);
        site.qkd.insert(id, key);
    }
    let theirs = SecretIdentity::from_text(&fs::read_to_string(lab.identity(Site::B).file).unwrap()).unwrap();
    let known = BTreeMap::from([
        ("the static X25519 key".to_owned(), theirs.x25519().expose().to_vec()),
        ("the static ML-KEM seed".to_owned(), theirs.mlkem_seed().expose().to_vec()),
    ]);
    let mut pair = Pair { lab, _kmes: kmes, daemon, site, events, captures, known };
    let role = if initiator == Site::A { Role::Initiator } else { Role::Responder };
    let hello = pair.site.make_hello(role, QkdPolicy::Required, ["SITE-A", "SITE-B"]);
    pair.site.connect(&hello, WAIT);
    pair
}

fn named(epoch: &str, secrets: Vec<(&'static str, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    secrets.into_iter().map(|(name, key)| (format!("{epoch}: {name}"), key)).collect()
}

fn exchange(epoch: &str, secrets: &Secrets) -> Vec<(String, Vec<u8>)> {
    named(epoch, secrets.of_the_exchange())
}

fn data(epoch: &str, secrets: &Secrets) -> Vec<(String, Vec<u8>)> {
    named(epoch, secrets.data_keys())
}

fn chain(epoch: &str, secrets: &Secrets) -> (String, Vec<u8>) {
    (format!("{epoch}: chain"), secrets.chain.to_vec())
}

impl Pair<'_> {
    fn qkd(&self, id: &str) -> (String, Vec<u8>) {
        (format!("QKD key {id}"), self.site.qkd[id].to_vec())
    }

    /// Checks that all of `live` is in the daemon's memory, and nothing of `gone`.
    #[track_caller]
    fn memory(
        &mut self,
        when: &str,
        live: impl IntoIterator<Item = (String, Vec<u8>)>,
        gone: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) {
        let memory = Memory::of(self.daemon.process.id());
        let (mut found, mut absent) = (Vec::new(), Vec::new());
        for (name, key) in live {
            if memory.finds_key(&key).is_none() {
                absent.push(name.clone());
            }
            self.known.insert(name, key);
        }
        for (name, key) in gone {
            if let Some(form) = memory.finds_key(&key) {
                found.push((name.clone(), form));
            }
            self.known.insert(name, key);
        }
        assert!(absent.is_empty(), "{when}: the search doesn't find what must live: {absent:?}");
        assert!(found.is_empty(), "{when}: in memory after their end: {found:?}");
    }

    /// Checks that no recorded secret was written to files or sent in any traffic, and that the daemon dies
    /// without a core dump.
    fn nothing_went_out(mut self) {
        let status = self.daemon.ctl(&["show", "--json"]).stdout;
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.daemon.process.id())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().rev().nth(1), Some("0"), "core dumps are forbidden: {core}");
        assert_eq!(core.split_whitespace().rev().nth(2), Some("0"), "{core}");
        self.daemon.process.signal(Signal::SIGABRT);
        let end = self.daemon.process.wait(WAIT);
        assert_eq!(end.signal(), Some(Signal::SIGABRT as i32));
        assert!(!end.core_dumped(), "the daemon left a core dump");

        let log = self.daemon.process.log();
        assert!(log.contains("DEBUG") || log.contains("TRACE"), "the log is as long as can be:\n{log}");
        let events = self.events.log();
        assert!(events.contains("epoch.active"), "the events were followed:\n{events}");
        let mut out = vec![
            ("the log", log.into_bytes()),
            ("the events", events.into_bytes()),
            ("the status", status),
            ("files in /var/lib and /run", files(self.lab)),
        ];
        for (what, capture) in ["the WAN", "the KME's network"].into_iter().zip(self.captures) {
            let all = capture.stop().0;
            assert!(all.len() > 10, "{what}: the capture saw something");
            out.push((what, all.iter().flat_map(|packet| packet.bytes.iter().copied()).collect()));
        }
        for (name, key) in &self.known {
            for (form, bytes) in forms(key) {
                for (what, all) in &out {
                    assert!(memmem::find(all, &bytes).is_none(), "{name} is in {what}, as {form}");
                }
            }
        }
        println!("{} secrets looked for in {} places", self.known.len(), out.len());
    }
}

/// Returns what the daemon of site B may have written, without the keys and captures that the test itself put
/// there.
fn files(lab: &Lab) -> Vec<u8> {
    let command = "cat $(find /var/lib /run -type f ! -path '/run/lab/*') /dev/null";
    lab.gw_b.try_run(command).stdout
}

/// Returns the gateway's first `Propose` of an attempt after that one: a message that waits longer than a
/// second for its answer is repeated.
fn next_attempt(site: &mut TestSite, after: u64) -> Vec<u8> {
    loop {
        let propose = site.expect(MessageType::Propose, WAIT);
        if qvpn_proto::wire::Propose::parse(&propose).unwrap().epoch.0 > after {
            return propose;
        }
    }
}

#[test]
fn an_initiator_holds_only_secrets_that_live() {
    sandbox::run("an_initiator_holds_only_secrets_that_live", || {
        let lab = Lab::new();
        let mut pair = pair(&lab, Site::B);
        let id_of = |propose: &[u8]| qvpn_proto::wire::Propose::parse(propose).unwrap().qkd_key_id.unwrap();
        let index_of = |propose: &[u8]| qvpn_proto::wire::Propose::parse(propose).unwrap().indices[0];

        // The first epoch, before and after the Accept.
        let propose = next_attempt(&mut pair.site, 0);
        let (accept, one) = pair.site.answer(&propose, None);
        let first_key = pair.qkd(id_of(&propose).as_str());
        let to_responder =
            ("first: KEM secret of the responder's key".to_owned(), one.kem_to_responder.to_vec());
        let not_yet: Vec<_> =
            exchange("first", &one).into_iter().filter(|(name, _)| *name != to_responder.0).collect();
        let statics: Vec<_> = pair.known.clone().into_iter().collect();
        pair.memory(
            "the Propose is out",
            [to_responder, first_key.clone()].into_iter().chain(statics),
            not_yet,
        );
        pair.site.send(MessageType::Accept, &accept);
        pair.site.expect_data(&one.to_responder, WAIT);
        pair.site.send_data(&one.to_initiator, index_of(&propose), 0);
        pair.site.rest(GRACE);
        let live = [data("first", &one), vec![chain("first", &one)]].concat();
        pair.memory("1 s into the first epoch", live, [exchange("first", &one), vec![first_key]].concat());

        // The second epoch, with the chain of the first. The initiator has already proposed it.
        let propose = next_attempt(&mut pair.site, 1);
        let (accept, two) = pair.site.answer(&propose, Some(&one));
        let second_key = pair.qkd(id_of(&propose).as_str());
        pair.site.send(MessageType::Accept, &accept);
        pair.site.expect_data(&two.to_responder, WAIT);
        pair.site.send_data(&two.to_initiator, index_of(&propose), 0);
        let second_began = Instant::now();
        pair.site.rest(GRACE);
        let gone = [exchange("second", &two), vec![second_key, chain("first", &one)]].concat();
        let sealing = ("first: data key to the responder".to_owned(), one.to_responder.to_vec());
        let live = [data("second", &two), vec![chain("second", &two)]].concat();
        pair.memory("1 s into the second epoch", live, [gone, vec![sealing]].concat());
        pair.site.rest(DRAIN);
        pair.memory("after the drain", data("second", &two), data("first", &one));

        // An unanswered attempt ends after 5 s, and with it its secrets.
        let propose = next_attempt(&mut pair.site, 2);
        let (_, three) = pair.site.answer(&propose, Some(&two));
        let name = "third: KEM secret of the responder's key".to_owned();
        let secret = (name, three.kem_to_responder.to_vec());
        let third_key = pair.qkd(id_of(&propose).as_str());
        pair.site.rest(Duration::from_secs(5) + GRACE);
        pair.memory("an attempt has failed", [third_key], [secret]);

        // No epoch follows, so this one ends by its age; its chain outlives it.
        pair.site.rest((second_began + MAX_AGE + DRAIN + GRACE).saturating_duration_since(Instant::now()));
        pair.memory("after max_age", [chain("second", &two)], data("second", &two));
        pair.nothing_went_out();
    });
}

/// Fetches keys from site A's KME as its master SAE; returns their IDs.
fn take_keys(lab: &Lab, number: usize) -> Vec<String> {
    let certs = lab.certificates();
    let (certs, address) = (certs.display(), Site::A.kme_address());
    let text = lab.gw_a.run(&format!(
        "python3 -c 'import json, ssl, urllib.request as r\n\
         c = ssl.create_default_context(cafile=\"{certs}/ca.pem\")\n\
         c.load_cert_chain(\"{certs}/site-a.pem\", \"{certs}/site-a.key\")\n\
         q = r.Request(\"https://{address}/api/v1/keys/SITE-B/enc_keys\", json.dumps({{\"number\": {number}, \
         \"size\": 256}}).encode(), {{\"Content-Type\": \"application/json\"}})\n\
         [print(k[\"key_ID\"]) for k in json.load(r.urlopen(q, context=c))[\"keys\"]]'"
    ));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_responder_holds_only_secrets_that_live() {
    sandbox::run("a_responder_holds_only_secrets_that_live", || {
        let lab = Lab::new();
        let mut pair = pair(&lab, Site::A);
        let ids = take_keys(&lab, 3);
        let name = |id: &String| KeyName {
            id: KeyId::new(id).unwrap(),
            source_kme: "kme-a1".into(),
            target_kme: "kme-b1".into(),
        };
        let offer = StockOffer { number: 1, keys: ids.iter().map(name).collect() };
        pair.site.send(MessageType::StockOffer, &offer.to_bytes());
        loop {
            let ack = StockAck::parse(&pair.site.expect(MessageType::StockAck, WAIT)).unwrap();
            if ack.keys.len() == 3 && ack.keys.iter().all(|(_, held)| matches!(held, KeyAvailability::Yes(_)))
            {
                break;
            }
        }
        let keys: Vec<_> = ids.iter().map(|id| pair.qkd(id)).collect();
        let statics: Vec<_> = pair.known.clone().into_iter().collect();
        pair.memory("the stock is held", keys.iter().cloned().chain(statics), []);

        // The first epoch, before and after the Confirm.
        let attempt = pair.site.propose(1, Some(&ids[0]), None);
        pair.site.send(MessageType::Propose, &attempt.message.to_bytes());
        let accept = pair.site.expect(MessageType::Accept, WAIT);
        let one = pair.site.verify(&attempt, &accept);
        pair.site.rest(GRACE);
        let live = [data("first", &one), vec![chain("first", &one), keys[0].clone()]].concat();
        pair.memory("1 s after the Accept", live, exchange("first", &one));
        pair.site.confirm(&attempt, &one);
        pair.site.expect_data(&one.to_initiator, WAIT);
        pair.site.rest(GRACE);
        let live = [data("first", &one), vec![chain("first", &one)]].concat();
        pair.memory(
            "1 s into the first epoch",
            live,
            [exchange("first", &one), vec![keys[0].clone()]].concat(),
        );

        // The second epoch, with the chain of the first.
        let attempt = pair.site.propose(2, Some(&ids[1]), Some(&one));
        pair.site.send(MessageType::Propose, &attempt.message.to_bytes());
        let accept = pair.site.expect(MessageType::Accept, WAIT);
        let two = pair.site.verify(&attempt, &accept);
        pair.site.confirm(&attempt, &two);
        pair.site.expect_data(&two.to_initiator, WAIT);
        pair.site.rest(GRACE);
        let sealing = ("first: data key to the initiator".to_owned(), one.to_initiator.to_vec());
        let live = [data("second", &two), vec![chain("second", &two)]].concat();
        let gone = [exchange("second", &two), vec![keys[1].clone(), chain("first", &one), sealing]].concat();
        pair.memory("1 s into the second epoch", live, gone);
        pair.site.rest(DRAIN);
        pair.memory("after the drain", data("second", &two), data("first", &one));

        // A third epoch that is never confirmed: its keys also end at their maximum age.
        let attempt = pair.site.propose(3, Some(&ids[2]), Some(&two));
        pair.site.send(MessageType::Propose, &attempt.message.to_bytes());
        let accept = pair.site.expect(MessageType::Accept, WAIT);
        let three = pair.site.verify(&attempt, &accept);
        let began = Instant::now();
        pair.memory("not confirmed", data("third", &three), []);
        pair.site.rest((began + MAX_AGE + DRAIN + GRACE).saturating_duration_since(Instant::now()));
        let live = [keys[2].clone(), chain("second", &two), chain("third", &three)];
        let gone = [data("second", &two), data("third", &three), exchange("third", &three)].concat();
        pair.memory("after max_age", live, gone);

        // A key that is no longer offered is erased.
        let offer = StockOffer { number: 2, keys: Vec::new() };
        pair.site.send(MessageType::StockOffer, &offer.to_bytes());
        pair.site.rest(GRACE);
        pair.memory("the offer is withdrawn", [], [keys[2].clone()]);
        pair.nothing_went_out();
    });
}
