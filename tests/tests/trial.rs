//! The short trial of `make trial` in half a minute: it passes, and its page is complete and self-contained.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::binary;

#[test]
fn the_short_trial_explains_each_lost_packet_alone() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trial");
    let _ = fs::remove_dir_all(&out);
    let output = Command::new(binary("qvpn-trial")).arg("--short").arg("--out").arg(&out).output().unwrap();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{}\n{error}", output.status);

    let page = fs::read_to_string(out.join("trial.html")).unwrap();
    for outside in ["http:", "https:", "//", "src=", "href=", "url(", "@import"] {
        let found = page.find(outside);
        assert_eq!(
            found,
            None,
            "the page asks for something outside: {:?}",
            &page[found.unwrap_or(0)..][..80]
        );
    }
    assert!(!page.contains("NaN") && !page.contains("inf"), "each number of the page is one");
    // Eight plots of the whole trial, and eight of each attack.
    assert_eq!(page.matches("<svg class=\"plot\"").count(), 3 * 8);
    for words in [
        "an eavesdropper listens",
        "the eavesdropper returns",
        "the eavesdropper has left",
        "Times that are not scaled",
    ] {
        assert!(page.contains(words), "no `{words}` in the page");
    }

    let facts = page.split_once("id=\"facts\">").unwrap().1.split_once("</script>").unwrap().0;
    let facts: Value = serde_json::from_str(facts).unwrap();
    let apart: Value = serde_json::from_str(&fs::read_to_string(out.join("facts.json")).unwrap()).unwrap();
    assert_eq!(facts, apart);
    assert_eq!(facts["passed"], true);
    assert!(facts["rekeys"].as_u64() >= Some(150), "{facts:#}");
    assert_eq!(facts["epochs"], facts["epochs_with_qkd"]);
    let video = &facts["video"];
    assert_eq!(
        (&video["unexplained"], &video["arrived_while_both_blocked"]),
        (&0.into(), &0.into()),
        "{facts:#}"
    );
    assert!(video["lost_while_blocked"].as_u64() > Some(500), "a second at least: {facts:#}");
    let [first, second] = [&facts["attacks"][0], &facts["attacks"][1]];
    assert!(first["blocked_after_s"].is_null() && first["datagrams_lost"] == 0, "{first:#}");
    let after = |name: &str| second[name].as_f64().unwrap_or_else(|| panic!("no {name}: {second:#}"));
    assert!(after("store_empty_after_s") < after("alarm_after_s"), "{second:#}");
    assert!(after("alarm_after_s") < after("blocked_after_s"), "{second:#}");
    assert!(after("blocked_after_s") < after("lasts_s"), "{second:#}");
    assert!(after("traffic_back_after_s") > 0.0 && after("recovered_back_after_s") > 0.0, "{second:#}");
}
