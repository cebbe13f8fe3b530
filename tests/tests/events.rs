//! The events of a real gateway during a series of faults: each event that scripts may wait for is emitted,
//! with its fixed name and its fields. Scenarios about roaming, lanes, paths, identities and copied machines
//! check the events of those.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Site, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
/// For events at a key's expiry or at the next try of a KME.
const LATER: Duration = Duration::from_secs(40);

/// Waits until the gateway has reported an event; returns the latest one of this name.
#[track_caller]
fn told(gateway: &Gateway<'_>, name: &str, limit: Duration) -> Value {
    wait_until(&format!("the event {name}"), limit, || {
        let output = gateway.ctl(&["events", "qvpn0", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let mut events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.rfind(|event| event["event"] == name)
    })
}

/// Waits until the peer has recovered from a state.
#[track_caller]
fn recovered(gateway: &Gateway<'_>, from: &str, limit: Duration) {
    wait_until(&format!("recovery from {from}"), limit, || {
        let event = told(gateway, "peer.recovered", limit);
        (event["from"] == from).then_some(())
    });
}

/// Checks that a field of the event contains this text.
#[track_caller]
fn has_words(event: &Value, field: &str, words: &str) {
    assert!(event[field].as_str().unwrap_or_default().contains(words), "{words} in {field}: {event:#}");
    assert_eq!(event["interface"], "qvpn0");
}

#[test]
fn each_fault_is_reported_as_an_event() {
    sandbox::run("each_fault_is_reported_as_an_event", || {
        let lab = Lab::new();
        let mut kmes = lab.start_kmes(&KmeOptions::default());
        let options = GatewayOptions {
            qkd: "preferred".to_owned(),
            kms: Some("stock = 2".to_owned()),
            initiator: Some(Site::A),
            ..GatewayOptions::default()
        };
        let [a, mut b] = lab.start_both(&options);
        a.wait_state("up", START);
        has_words(&told(&a, "peer.up", START), "peer", "site-b");
        let epoch = told(&a, "epoch.active", START);
        assert!(epoch["epoch"].is_u64() && epoch["sources"].is_array(), "{epoch:#}");
        assert!(epoch["qkd_key_id"].is_string(), "{epoch:#}");

        lab.gw_a.run("ip route del 10.20.0.0/16 dev qvpn0 table 29046");
        let restored = told(&a, "routes.restored", START);
        assert!(
            restored["routes"][0].as_str().unwrap().starts_with("10.20.0.0/16 dev qvpn0"),
            "{restored:#}"
        );
        let file = lab.gw_a.dir().join("qvpn0.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("[[peer]]", "[[peer]]\npersistent_keepalive = \"30s\"")).unwrap();
        a.process.signal(Signal::SIGHUP);
        assert_eq!(told(&a, "config.reloaded", START)["changes"], serde_json::json!(["peer site-b changed"]));

        // The other site's gateway hangs for a moment.
        b.process.signal(Signal::SIGSTOP);
        has_words(&told(&a, "epoch.failed", START), "reason", "timeout");
        has_words(&told(&a, "peer.silent", START), "reason", "does not answer pings");
        b.process.signal(Signal::SIGCONT);
        recovered(&a, "silent", START);

        // The KMEs stop and start again.
        kmes.process.stop();
        has_words(&told(&a, "kme.down", START), "reason", "kme-a1");
        has_words(&told(&a, "qkd.supply_stopped", LATER), "reason", "kme-a1");
        has_words(&told(&a, "peer.degraded", LATER), "peer", "site-b");
        let _kmes = lab.start_kmes(&KmeOptions::default());
        has_words(&told(&a, "kme.up", LATER), "kme", "kme-a1");
        has_words(&told(&a, "qkd.supply_resumed", LATER), "peer", "site-b");
        recovered(&a, "degraded", LATER);

        // The other site stops, and starts without its state.
        b.process.stop();
        has_words(&told(&a, "peer.bye", START), "peer", "site-b");
        has_words(&told(&a, "peer.blocked", LATER), "peer", "site-b");
        let _b = lab.start_daemon(Site::B);
        has_words(&told(&a, "chain.reset", LATER), "reason", "chain");
    });
}
