//! The config file: the result of a good one, and where and how each mistake is reported.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

use std::path::Path;
use std::time::Duration;

use kme_sim::{Config, ConfigError};

const GOOD: &str = r#"
admin = "run/admin.sock"
[[kme]]
name = "a"
listen = "127.0.0.1:8443"
cert_file = "a.pem"
key_file = "/etc/a.key"
client_ca_file = "ca.pem"
[[kme]]
name = "b"
listen = "[::1]:0"
cert_file = "b.pem"
key_file = "b.key"
client_ca_file = "ca.pem"
min_key_size = 128
[[sae]]
id = "A"
kme = "a"
[[link]]
kmes = ["a", "b"]
rate_bits_per_s = 1000
relay_delay = "250ms"
seed = "00FF"
"#;

/// Returns the problems of [`GOOD`] with `from` replaced by `to`, as `line:column: message`.
fn problems(from: &str, to: &str) -> Vec<String> {
    assert!(GOOD.contains(from), "{from}");
    match Config::parse(&GOOD.replacen(from, to, 1), "f", Path::new("/lab")) {
        Err(ConfigError::Invalid(problems)) => {
            problems.iter().map(|p| p.to_string().trim_start_matches("f:").to_owned()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_file_is_read_with_its_defaults_and_paths() {
    let config = Config::parse(GOOD, "f", Path::new("/lab")).unwrap();
    assert_eq!(config.admin.as_deref(), Some(Path::new("/lab/run/admin.sock")));
    assert_eq!(config.kmes[0].cert_file, Path::new("/lab/a.pem"));
    assert_eq!(config.kmes[0].key_file, Path::new("/etc/a.key"));
    assert_eq!((config.kmes[0].min_key_size, config.kmes[1].min_key_size), (64, 128));
    let link = &config.links[0];
    assert_eq!((link.key_size, link.max_keys, link.initial_keys), (256, 1000, 0));
    assert_eq!(link.relay_delay, Duration::from_millis(250));
    assert_eq!(link.seed.as_deref(), Some(&[0x00, 0xff][..]));
}

#[test]
fn each_mistake_is_named_with_its_place() {
    let rows = [
        (
            "[[sae]]",
            "[[kme]]\nname = \"a\"\nlisten = \"[::1]:0\"\ncert_file = \"c\"\nkey_file = \
             \"c\"\nclient_ca_file = \"c\"\n[[sae]]",
            "17:8: the name \"a\" is taken by another [[kme]]",
        ),
        ("name = \"b\"", "nam = \"b\"", "10:1: unknown field `nam`"),
        ("[::1]:0", "localhost:1", "11:10: \"localhost:1\" is no address and port; write"),
        ("min_key_size = 128", "min_key_size = 100", "15:16: min_key_size is in bits: a multiple of 8"),
        ("min_key_size = 128", "min_key_size = 2048", "15:16: min_key_size 2048 is above max_key_size 1024"),
        (
            "min_key_size = 128",
            "min_key_size = 512",
            "20:8: key_size 256 is outside what b allows, 512 to 1024",
        ),
        ("min_key_size = 128", "max_key_per_request = 0", "15:23: max_key_per_request must be at least 1"),
        ("min_key_size = 128", "max_waiting_keys = 0", "15:20: max_waiting_keys must be at least 1"),
        ("min_key_size = 128", "admin = \"x\"", "15:1: unknown field `admin`"),
        ("kme = \"a\"", "kme = \"x\"", "18:7: there is no [[kme]] named \"x\"; there are: a, b"),
        ("id = \"A\"", "id = \"\"", "17:6: an SAE ID has 1 to 64 characters and no control characters"),
        (
            "kme = \"a\"",
            "kme = \"a\"\nserial = \"xy\"",
            "19:10: serial is up to 20 bytes in hex, as openssl x509",
        ),
        ("kme = \"a\"", "kme = \"a\"\nserial = \"00\"", "19:10: serial is up to 20 bytes in hex"),
        (
            "kme = \"a\"",
            "kme = \"a\"\nknown_by = \"both\"",
            "19:12: known_by = \"both\" needs the certificate's serial",
        ),
        (
            "kme = \"a\"",
            "kme = \"a\"\nknown_by = \"cn\"",
            "19:12: known_by is \"name\", \"serial\" or \"both\", not \"cn\"",
        ),
        (
            "kme = \"a\"",
            "kme = \"a\"\nserial = \"1\"\nknown_by = \"name\"",
            "20:12: with known_by = \"name\" the serial number counts for nothing",
        ),
        (
            "kme = \"a\"",
            "kme = \"a\"\nserial = \"0A\"\n[[sae]]\nid = \"B\"\nkme = \"b\"\nserial = \"a\"",
            "23:10: another [[sae]] has this serial number",
        ),
        (
            "[[link]]",
            "[[sae]]\nid = \"A\"\nkme = \"b\"\n[[link]]",
            "20:6: the ID \"A\" is taken by another [[sae]]",
        ),
        ("[\"a\", \"b\"]", "[\"a\"]", "20:8: a link joins two KMEs, not 1"),
        ("[\"a\", \"b\"]", "[\"a\", \"a\"]", "20:8: a link joins two different KMEs"),
        ("[\"a\", \"b\"]", "[\"a\", \"ü\"]", "20:14: there is no [[kme]] named \"ü\""),
        ("rate_bits_per_s = 1000", "", "20:8: a link needs rate_bits_per_s, or optics"),
        ("rate_bits_per_s = 1000", "rate_bits_per_s = -1", "21:19: invalid value"),
        (
            "rate_bits_per_s",
            "initial_keys = 1001\nrate_bits_per_s",
            "21:16: initial_keys 1001 is above max_keys 1000",
        ),
        ("\"250ms\"", "\"250\"", "22:15: \"250\" is no duration; write"),
        ("\"00FF\"", "\"0FF\"", "23:8: seed is 1 to 64 bytes in hex"),
        ("\"00FF\"", "\"\"", "23:8: seed is 1 to 64 bytes in hex"),
        (
            "seed = \"00FF\"",
            "[[link]]\nkmes = [\"b\", \"a\"]\nrate_bits_per_s = 1",
            "24:8: there is another link between b and a",
        ),
        ("[[kme]]", "[[kme]", "3:"),
    ];
    for (from, to, expected) in rows {
        let found = problems(from, to);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{to}: {found:#?}, not {expected}");
    }
    match Config::parse("", "f", Path::new(".")) {
        Err(error) => {
            assert_eq!(error.to_string(), "f:1:1: there is no [[kme]]; a simulator needs at least one")
        }
        Ok(config) => panic!("{config:?}"),
    }
}

#[test]
fn all_mistakes_of_a_file_come_at_once_in_its_order() {
    let text =
        GOOD.replace("\"250ms\"", "\"soon\"").replace("[::1]:0", "x").replace("kme = \"a\"", "kme = \"y\"");
    let error = Config::parse(&text, "f", Path::new(".")).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().map(|l| l.split(": ").next().unwrap()).collect();
    assert_eq!(lines, ["f:11:10", "f:18:7", "f:22:15"]);
}

#[test]
fn two_links_have_two_seeds() {
    let third = "[[kme]]\nname = \"c\"\nlisten = \"127.0.0.1:0\"\ncert_file = \"c\"\nkey_file \
                 = \"c\"\nclient_ca_file = \"c\"";
    let link = "[[link]]\nkmes = [\"a\", \"c\"]\nrate_bits_per_s = 1\nseed = \"00ff\"";
    let error = Config::parse(&format!("{GOOD}{third}\n{link}\n"), "f", Path::new(".")).unwrap_err();
    assert!(error.to_string().starts_with("f:33:8: another link has this seed"), "{error}");
}
