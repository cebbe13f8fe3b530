//! The load test of `make hub`, briefly: a hundred sites come up, rekey, and come back after the hub was
//! killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::binary;

#[test]
fn a_hub_of_a_hundred_sites_comes_up_rekeys_and_comes_back() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hub");
    let mut command = Command::new(binary("qvpn-hub"));
    command.args(["--sites", "100", "--interval", "4", "--seconds", "10", "--out"]).arg(&out);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    let numbers: Value = serde_json::from_str(&fs::read_to_string(out.join("hub.json")).unwrap()).unwrap();
    // More than one rekey of each site, and small packets arrive at the hub.
    assert!(numbers["steady"]["rekeys"].as_u64().unwrap() >= 150, "{said}");
    assert!(numbers["small"]["received"].as_u64().unwrap() > 1000, "{said}");
    assert!(fs::read_to_string(out.join("hub.md")).unwrap().contains("processor time a rekey"));
    assert!(fs::read_to_string(out.join("hub.svg")).unwrap().contains("<polyline"));
}
