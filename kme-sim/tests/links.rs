//! Links as physics and as networks: chains of trusted nodes, an eavesdropper, accelerated time, statistics,
//! and the presets.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use common::{CONFIG, Lab};
use kme_sim::admin::{Command, Stats};
use kme_sim::presets::PRESETS;
use serde_json::json;

const STATUS: &str = "/api/v1/keys/SITE-B/status";
const TO_B: &str = "/api/v1/keys/SITE-B/enc_keys";

async fn stats(lab: &Lab) -> Stats {
    let answer = lab.simulator.command(Command::Stats {}).await;
    // Check the form that goes over the socket.
    assert!(serde_json::to_value(&answer).unwrap()["stats"]["links"][0]["qber"].is_number());
    answer.stats.unwrap()
}

/// Returns [`CONFIG`] with this in place of its link a - b.
fn with_link(link: &str) -> String {
    let start = CONFIG.find("[[link]]").unwrap();
    let end = start + CONFIG[start + 1..].find("[[link]]").unwrap() + 1;
    format!("{}{link}\n{}", &CONFIG[..start], &CONFIG[end..])
}

#[tokio::test]
async fn a_key_goes_over_a_chain_and_costs_its_bits_on_each_hop() {
    let link = "[[link]]\nkmes = [\"kme-a1\", \"kme-b1\"]\nnodes = 3\nrate_bits_per_s = 0\ninitial_keys = 10";
    let lab = Lab::with(&with_link(link)).await;
    let (mut a, mut b) = (lab.client("kme-a1", "site-a").await, lab.client("kme-b1", "site-b").await);
    let status = a.get(STATUS).await.ok();
    assert_eq!((&status["stored_key_count"], &status["status_extension"]["hops"]), (&json!(10), &json!(4)));
    let keys = a.get(&format!("{TO_B}?number=7")).await.keys();
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(b.dec_keys("SITE-A", &ids).await.keys(), keys);
    let stats = stats(&lab).await;
    let chain: Vec<_> = stats.links.iter().filter(|l| l.kmes.iter().any(|k| k.contains('/'))).collect();
    assert_eq!(chain.len(), 4);
    assert!(chain.iter().all(|l| (l.stored_bits, l.spent_bits) == (3 * 256, 7 * 256)), "{chain:?}");
    assert_eq!(chain[1].kmes, ["kme-a1/kme-b1/1", "kme-a1/kme-b1/2"]);
    assert_eq!((stats.kmes["kme-a1"].keys_taken, stats.kmes["kme-b1"].keys_fetched), (7, 7));
}

#[tokio::test]
async fn the_slowest_hop_limits_a_chain() {
    let links = r#"
[[node]]
name = "between"
[[link]]
kmes = ["kme-a1", "between"]
rate_bits_per_s = 0
initial_keys = 100
[[link]]
kmes = ["between", "kme-b1"]
rate_bits_per_s = 0
initial_keys = 2
qber = 0.04
"#;
    let lab = Lab::with(&with_link(links)).await;
    let mut a = lab.client("kme-a1", "site-a").await;
    let status = a.get(STATUS).await.ok();
    assert_eq!((&status["stored_key_count"], &status["status_extension"]["qber"]), (&json!(2), &json!(0.04)));
    a.get(TO_B).await.ok();
    a.get(TO_B).await.ok();
    let message = a.get(TO_B).await.message(503);
    assert!(message.contains("between - kme-b1"), "{message}");
    assert_eq!(stats(&lab).await.kmes["kme-a1"].exhausted, 1);
}

#[tokio::test]
async fn a_kme_passes_keys_on_only_if_it_is_told_to() {
    let to_c = "/api/v1/keys/SITE-C/enc_keys";
    let lab = Lab::start().await;
    lab.client("kme-b1", "site-b").await.get(to_c).await.message(400);
    let relay = CONFIG.replace("key_file = \"kme-a1.key\"\n", "key_file = \"kme-a1.key\"\nrelay = true\n");
    let lab = Lab::with(&relay).await;
    let keys = lab.client("kme-b1", "site-b").await.get(to_c).await.keys();
    assert_eq!(lab.client("kme-c1", "site-c").await.dec_keys("SITE-B", &[&keys[0].0]).await.keys(), keys);
}

#[tokio::test]
async fn an_eavesdropper_shows_in_the_error_rate_and_stops_the_supply() {
    let link = "[[link]]\nkmes = [\"kme-a1\", \"kme-b1\"]\noptics = { length_km = 50 }";
    // A second is a day, so that the result doesn't depend on the speed of the test.
    let lab = Lab::with(&format!("time_scale = 86400\n{}", with_link(link))).await;
    let before = stats(&lab).await;
    assert!(before.links[0].bits_per_s > 10_000.0 && before.links[0].qber < 0.05, "{before:?}");
    let kmes = ["kme-b1".to_owned(), "kme-a1".to_owned()];
    let eavesdrop =
        async |percent| lab.simulator.command(Command::Eavesdrop { kmes: kmes.clone(), percent }).await;
    assert!(eavesdrop(100).await.ok);
    let during = stats(&lab).await;
    assert_eq!((during.links[0].bits_per_s, during.links[0].intercepted_percent), (0.0, 100));
    let later = stats(&lab).await;
    assert_eq!(later.links[0].produced_bits, during.links[0].produced_bits);
    assert!(later.time_s > during.time_s);
    let status = lab.client("kme-a1", "site-a").await.get(STATUS).await.ok();
    assert!(status["status_extension"]["qber"].as_f64().unwrap() > 0.2, "{status}");
    assert_eq!(status["status_extension"]["key_rate_bits_per_s"], 0.0);
    assert!(eavesdrop(0).await.ok);
    assert!(stats(&lab).await.links[0].bits_per_s > 10_000.0);
    assert!(eavesdrop(101).await.error.unwrap().contains("0 to 100"));
    let kmes = ["kme-b1".to_owned(), "kme-c1".to_owned()];
    assert!(!lab.simulator.command(Command::Eavesdrop { kmes, percent: 1 }).await.ok);
}

#[tokio::test]
async fn time_can_be_accelerated() {
    let link = "[[link]]\nkmes = [\"kme-a1\", \"kme-b1\"]\nrate_bits_per_s = 256\nmax_keys = \
                10000000\nrelay_delay = \"1h\"";
    let lab = Lab::with(&format!("time_scale = 1000000\n{}", with_link(link))).await;
    let first = stats(&lab).await;
    let (mut a, mut b) = (lab.client("kme-a1", "site-a").await, lab.client("kme-b1", "site-b").await);
    // An hour is 3.6 ms.
    let keys = a.get(TO_B).await.keys();
    loop {
        let reply = b.dec_keys("SITE-A", &[&keys[0].0]).await;
        if reply.status == 200 {
            break;
        }
    }
    let second = stats(&lab).await;
    assert!(second.time_s - first.time_s >= 3600.0);
    let gained = (second.links[0].produced_bits - first.links[0].produced_bits) as f64;
    assert!((gained / (second.time_s - first.time_s) - 256.0).abs() < 1.0, "256 bits a simulated second");
}

#[tokio::test]
async fn each_preset_starts_and_meets_its_number() {
    // For each preset: hops, the range of its rate (bits a second) that the file states, and whether it
    // yields bits all the time.
    let rows = [
        ("defence-50km", 1, 150e3..300e3),
        ("metro-ring", 1, 2e6..3e6),
        ("backbone-2000km", 33, 20e3..100e3),
        // 0.5 to 0.65 Mbit in six minutes.
        ("satellite", 1, 0.5e6 / 360.0..0.65e6 / 360.0),
        ("bank-25km", 1, 120e3..160e3),
        ("three-countries", 2, 2.5e3..3.5e3),
    ];
    assert_eq!(rows.len(), PRESETS.len());
    for ((name, hops, range), preset) in rows.into_iter().zip(PRESETS) {
        assert_eq!(preset.name, name);
        assert!(preset.toml.contains("# Source: "), "{name} says where its numbers are from");
        let free =
            preset.toml.replace("127.0.0.1:8441", "127.0.0.1:0").replace("127.0.0.1:8442", "127.0.0.1:0");
        let lab = Lab::with(&free.replace("admin = \"admin.sock\"", "")).await;
        let stats = stats(&lab).await;
        assert_eq!(stats.links.len(), hops, "{name}");
        for link in &stats.links {
            assert!(range.contains(&link.bits_per_s), "{name}: {link:?}");
            assert!(link.active && (0.01..0.06).contains(&link.qber), "{name}: {link:?}");
        }
        let keys = lab.client("kme-a1", "site-a").await.get(TO_B).await.keys();
        let mut got = lab.client("kme-b1", "site-b").await;
        // A chain's relay delay is up to 660 ms.
        while got.dec_keys("SITE-A", &[&keys[0].0]).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}
