//! Sites whose configs don't match: each mismatch is refused before a packet flows, and both sides report the
//! cause.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use tests::{Capture, Gateway, GatewayOptions, KmeOptions, Lab, Outer, Site, Stream, sandbox};

const START: Duration = Duration::from_secs(20);

/// Waits until the log of `gateway` has a line with all `words`.
#[track_caller]
fn logs(gateway: &mut Gateway<'_>, words: &[&str]) {
    let found = gateway.process.find_line(START, |line| words.iter().all(|word| line.contains(word)));
    if let Err(why) = found {
        panic!("no line with {words:?} ({why}):\n{}", gateway.process.log());
    }
}

/// Nothing passes, neither in clear nor in the tunnel.
fn nothing_passes(lab: &Lab) {
    let capture = Capture::start(&lab.wan, Site::A.name(), Site::A.wan(Outer::V4));
    let reports = Stream { count: 200, rate: 200, ..Stream::default() }.run(lab);
    assert_eq!(reports.map(|report| report.received.distinct), [0, 0]);
    let seen = capture.stop();
    assert!(seen.data().is_empty() && seen.with_any(&lab.inner_patterns()).is_empty(), "{seen:?}");
}

/// Starts both sites with these options; both logs and both `show` name the mismatch, and nothing passes.
fn refused(options: impl Fn(&Lab, Site) -> GatewayOptions, log_word: &str, show_word: &str) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    for site in Site::BOTH {
        let _ = lab.configure(site, &options(&lab, site));
    }
    let mut gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    for gateway in &mut gateways {
        logs(gateway, &["refused", log_word]);
        let peer = gateway.wait_peer(&format!("a reason with `{show_word}`"), START, |peer| {
            let reason = peer["reason"].as_str().unwrap_or_default().to_lowercase();
            reason.contains(&show_word.to_lowercase())
        });
        println!("{}", peer["reason"]);
        assert!(peer["state"] == "connecting" || peer["state"] == "blocked", "{peer:#}");
    }
    nothing_passes(&lab);
    for gateway in &gateways {
        let peer = gateway.peer();
        assert!(peer["state"] != "up" && peer["rekeys"] == 0, "{peer:#}");
    }
}

fn with_psk(lab: &Lab, site: Site, byte: u8) -> GatewayOptions {
    let file = lab.gw(site).dir().join("peer.psk");
    let text = data_encoding::BASE64.encode(&[byte; 32]);
    lab.gw(site).run(&format!("umask 077 && echo {text} > {}", file.display()));
    let peer = format!("preshared_key_file = \"{}\"", file.display());
    GatewayOptions { peer, ..GatewayOptions::default() }
}

#[test]
fn another_psk_is_refused() {
    sandbox::run("another_psk_is_refused", || {
        refused(|lab, site| with_psk(lab, site, if site == Site::A { 1 } else { 2 }), "(psk)", "pre-shared");
    });
}

#[test]
fn a_psk_at_one_side_only_is_refused() {
    sandbox::run("a_psk_at_one_side_only_is_refused", || {
        let options = |lab: &Lab, site| match site {
            Site::A => with_psk(lab, site, 1),
            Site::B => GatewayOptions::default(),
        };
        refused(options, "(psk)", "pre-shared");
    });
}

#[test]
fn the_same_psk_is_a_source() {
    sandbox::run("the_same_psk_is_a_source", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        for site in Site::BOTH {
            let _ = lab.configure(site, &with_psk(&lab, site, 1));
        }
        let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
        for gateway in &gateways {
            let peer = gateway.wait_state("up", START);
            assert!(peer["key_sources"].as_array().unwrap().iter().any(|s| s == "psk"), "{peer:#}");
        }
        assert!(lab.lan_a.pings(Site::B.host()[0]));
    });
}

#[test]
fn another_ml_kem_identity_is_refused() {
    sandbox::run("another_ml_kem_identity_is_refused", || {
        let options = |lab: &Lab, site: Site| {
            let mut options = GatewayOptions::default();
            if site == Site::A {
                // Site B's X25519 key, and the ML-KEM hash of site A's own key.
                let bytes = |site| {
                    let text = lab.identity(site).public;
                    data_encoding::BASE64.decode(text.strip_prefix("qvpn1-").unwrap().as_bytes()).unwrap()
                };
                let mixed = [&bytes(Site::B)[..32], &bytes(Site::A)[32..]].concat();
                options.peer_key = Some(format!("qvpn1-{}", data_encoding::BASE64.encode(&mixed)));
            }
            options
        };
        refused(options, "(identity)", "ML-KEM");
    });
}

#[test]
fn another_suite_is_refused() {
    sandbox::run("another_suite_is_refused", || {
        let options = |_: &Lab, site| {
            let suite = if site == Site::A { "chacha20poly1305" } else { "aes256gcm" };
            GatewayOptions { interface: format!("suite = \"{suite}\""), ..GatewayOptions::default() }
        };
        refused(options, "(suite)", "suite");
    });
}

#[test]
fn required_and_off_are_refused() {
    sandbox::run("required_and_off_are_refused", || {
        let options = |_: &Lab, site| {
            let qkd = if site == Site::A { "required" } else { "off" };
            GatewayOptions { qkd: qkd.to_owned(), ..GatewayOptions::default() }
        };
        refused(options, "(policy)", "qkd");
    });
}

#[test]
fn two_initiators_are_refused() {
    sandbox::run("two_initiators_are_refused", || {
        let options = |_: &Lab, _| GatewayOptions {
            peer: "role = \"initiator\"".to_owned(),
            ..GatewayOptions::default()
        };
        refused(options, "(role)", "role");
    });
}

#[test]
fn a_wrong_x25519_key_is_named_where_it_can_be() {
    sandbox::run("a_wrong_x25519_key_is_named_where_it_can_be", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        // Site A has a wrong key for site B: site B's with one bit of X25519 changed.
        let mut bytes =
            data_encoding::BASE64.decode(&lab.identity(Site::B).public.as_bytes()["qvpn1-".len()..]).unwrap();
        let knocking = data_encoding::BASE64.encode(&bytes[..32]);
        bytes[0] ^= 1;
        let stranger = format!("qvpn1-{}", data_encoding::BASE64.encode(&bytes));
        let options = GatewayOptions { peer_key: Some(stranger), ..GatewayOptions::default() };
        let _ = lab.configure(Site::A, &options);
        let _ = lab.configure(Site::B, &GatewayOptions::default());
        let [mut a, b] = Site::BOTH.map(|site| lab.start_daemon(site));
        logs(&mut a, &["identity.mismatch", &knocking]);
        let peer = b.wait_peer("unanswered", START, |peer| {
            peer["reason"].as_str().is_some_and(|reason| reason.contains("unanswered"))
        });
        let reason = peer["reason"].as_str().unwrap();
        assert!(reason.contains("compare the public keys"), "{reason}");
        nothing_passes(&lab);
    });
}
