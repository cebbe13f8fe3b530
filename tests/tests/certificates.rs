//! Client certificates for a KME, with running daemons in their sandbox: an event reports a certificate that
//! expires soon or has expired, a refusal names it, and a renewed one is used as soon as its files are there,
//! without a reload.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::loopback::run;
use tests::{GatewayOptions, KmeOptions, Lab, Site, binary, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
/// A KME that refuses the gateway is asked again after 1, 2, 4, … 30 s.
const BACK: Duration = Duration::from_secs(45);

/// Replaces a site's certificate with a new one from its CA.
fn renew(dir: &Path, site: Site, days: &str) {
    for end in ["pem", "key"] {
        fs::remove_file(dir.join(format!("{}.{end}", site.sae().to_lowercase()))).unwrap();
    }
    let mut certs = Command::new(binary("kme-sim"));
    run(certs.arg("certs").arg(dir).args(["--sae", site.sae(), "--days", days]));
}

#[test]
fn an_expired_one_is_reported_and_a_renewed_one_is_used_without_a_reload() {
    sandbox::run("an_expired_one_is_reported_and_a_renewed_one_is_used_without_a_reload", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let dir = lab.certificates();
        renew(&dir, Site::A, "0");
        renew(&dir, Site::B, "5");
        let mut gateways =
            lab.start_both(&GatewayOptions { initiator: Some(Site::A), ..GatewayOptions::default() });
        for (gateway, (least, most)) in gateways.iter_mut().zip([(-60, 0), (431_000, 432_000)]) {
            let line = gateway.process.line("kme.certificate_ends", START);
            let left = line.split("ends_in_s=").nth(1).unwrap().split_whitespace().next().unwrap();
            let left: i64 = left.trim_matches('"').parse().unwrap();
            assert!(line.contains("client") && (least..=most).contains(&left), "{line}");
        }
        let error = wait_until("the KME refuses us", START, || {
            let kme = gateways[0].show()["kmes"][0].clone();
            (kme["state"] == "down").then(|| kme["last_error"].as_str().unwrap_or_default().to_owned())
        });
        for words in
            ["kme-a1", "common name SITE-A, serial number ", "CertificateExpired", "it hasn't expired"]
        {
            assert!(error.contains(words), "{words}: {error}");
        }
        let peer = gateways[0].wait_state("blocked", START);
        assert!(peer["reason"].as_str().unwrap().contains("CertificateExpired"), "{peer:#}");

        renew(&dir, Site::A, "400");
        for gateway in &gateways {
            gateway.wait_peer("keys by the new certificate", BACK, |peer| {
                peer["state"] == "up" && peer["qkd_stock"].as_u64() >= Some(1)
            });
        }
        assert!(lab.lan(Site::A).pings(Site::B.host()[0]));
        let left = gateways[0].show()["kmes"][0]["cert_expires_in_s"].as_f64().unwrap();
        assert!(left > 399.0 * 86_400.0, "{left}");
        assert!(gateways[0].process.log().contains("certificates loaded again"));
    });
}
