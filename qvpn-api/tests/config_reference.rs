//! The reference for the man page lists the same keys as the grammar, whose error for an unknown key names
//! all keys of a section.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::Path;

use qvpn_api::Config;
use qvpn_api::config::REFERENCE;

#[test]
fn the_reference_has_each_key_of_the_grammar_and_no_other() {
    for section in REFERENCE {
        let before = match section.title {
            "[interface]" => "",
            "[[kms.kme]]" => "[interface]\n[kms]\nsae_id = \"A\"\n",
            _ => "[interface]\n",
        };
        let text = format!("{before}{}\nzzzzzzzzz = 1\n", section.title);
        let errors = Config::parse(Path::new("/etc/qvpn/qvpn0.toml"), &text).unwrap_err();
        let error = errors.list().iter().find(|e| e.what.contains("zzzzzzzzz")).unwrap();
        let listed: BTreeSet<&str> = error.fix.split('`').skip(1).step_by(2).collect();
        let told: BTreeSet<&str> = section.keys.iter().map(|key| key.name).collect();
        assert_eq!(listed, told, "{}: {}", section.title, error.fix);
    }
}
