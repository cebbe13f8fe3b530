//! A KME that hangs, fails or sends invalid answers: the status names the fault and the remedy, and traffic
//! continues with keys from the stock.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use tests::{GatewayOptions, KmeOptions, Lab, Site, sandbox};

const START: Duration = Duration::from_secs(20);

/// Starts both sites, with site A as the master SAE.
fn options(site: Site) -> GatewayOptions {
    let role = if site == Site::A { "initiator" } else { "responder" };
    GatewayOptions {
        rekey_interval: "2s".to_owned(),
        kms: Some("stock = 8".to_owned()),
        peer: format!("role = \"{role}\""),
        ..GatewayOptions::default()
    }
}

fn ridden_through(faults: &[(&str, &str, &str)]) {
    let lab = Lab::new();
    let kmes = lab.start_kmes(&KmeOptions::default());
    for site in Site::BOTH {
        let _ = lab.configure(site, &options(site));
    }
    let mut gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    for gateway in &gateways {
        gateway.wait_peer("a full stock", START, |peer| {
            peer["state"] == "up" && peer["qkd_stock"].as_u64() >= Some(7)
        });
    }
    for (kme, op, how) in faults {
        kmes.admin(&["misbehave", kme, op, how]);
        if *how == "wrong_bytes" {
            // No KME reports this fault: the sites compare check values before the key is used, and the
            // master SAE's site reports it.
            gateways[0].process.line("delivered different bytes", START);
        } else {
            let error = tests::wait_until(&format!("{how} in show"), START, || {
                let status = gateways[usize::from(*kme == "kme-b1")].show();
                let kme = &status["kmes"][0];
                (kme["state"] == "down").then(|| kme["last_error"].as_str().unwrap().to_owned())
            });
            println!("{how}: {error}");
            assert!(error.contains(kme), "it names the KME: {error}");
            assert!(error.contains("; "), "it says what to do: {error}");
        }
        for site in Site::BOTH {
            assert!(lab.lan(site).pings(site.other().host()[0]), "traffic goes on while {kme} does {how}");
        }
        for gateway in &gateways {
            assert_eq!(gateway.peer()["state"], "up", "while {kme} does {how}");
        }
        kmes.admin(&["misbehave", kme, "all", "none"]);
        for gateway in &gateways {
            gateway.wait_peer("the stock fills again", Duration::from_secs(40), |peer| {
                peer["state"] == "up" && peer["qkd_stock"].as_u64() >= Some(7)
            });
            tests::wait_until("the KME is up again", START, || {
                (gateway.show()["kmes"][0]["state"] == "up").then_some(())
            });
        }
    }
}

#[test]
fn a_kme_that_hangs_is_ridden_through() {
    sandbox::run("a_kme_that_hangs_is_ridden_through", || ridden_through(&[("kme-a1", "enc_keys", "hang")]));
}

#[test]
fn kmes_that_answer_rubbish_are_ridden_through() {
    sandbox::run("kmes_that_answer_rubbish_are_ridden_through", || {
        ridden_through(&[("kme-a1", "enc_keys", "http_500"), ("kme-a1", "enc_keys", "rubbish_json")]);
    });
}

#[test]
fn a_faulty_slave_kme_costs_no_traffic() {
    sandbox::run("a_faulty_slave_kme_costs_no_traffic", || {
        ridden_through(&[("kme-b1", "dec_keys", "http_500"), ("kme-b1", "dec_keys", "rubbish_json")]);
    });
}

#[test]
fn wrong_bytes_are_found_before_use() {
    sandbox::run("wrong_bytes_are_found_before_use", || {
        ridden_through(&[("kme-b1", "dec_keys", "wrong_bytes")]);
    });
}
