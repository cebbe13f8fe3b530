use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use qvpn_api::config::REFERENCE;
use qvpn_identity::{Psk, SecretIdentity};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use super::*;

fn identity(seed: u64) -> SecretIdentity {
    SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(seed))
}

fn config(interface: &str, peers: &[(&str, u64, &str)]) -> Config {
    let mut text = format!(
        "[interface]\nname = \"qvpn0\"\nprivate_key_file = \"/k\"\naddress = \
         [\"10.77.0.1/30\"]\n{interface}\n"
    );
    for (name, seed, rest) in peers {
        let key = identity(*seed);
        let key = key.public();
        text += &format!(
            "[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nqkd = \"off\"\nallowed_ips = \
             [\"10.{seed}.0.0/16\"]\n{rest}\n"
        );
    }
    Config::parse(Path::new("/etc/qvpn/qvpn0.toml"), &text).unwrap()
}

/// Compares two configs that have the same keys in their key files.
fn compared(old: &Config, new: &Config) -> Result<Vec<String>, Vec<String>> {
    let settings = |config: &Config| {
        let psks = config.peers.iter().map(|_| None).collect();
        Settings::derive(config, &ConfigKeys { local: Arc::new(identity(1)), psks }).unwrap()
    };
    compare((old, &settings(old)), (new, &settings(new)))
}

#[test]
fn only_what_differs_is_named() {
    let old = config("listen_port = 1", &[("b", 2, ""), ("c", 3, ""), ("d", 4, "")]);
    assert!(compared(&old, &old.clone()).unwrap().is_empty());
    let new = config(
        "listen_port = 1\nmtu = 1400",
        &[("bb", 2, ""), ("c", 3, "persistent_keepalive = \"25s\""), ("e", 5, "")],
    );
    assert_eq!(
        compared(&old, &new).unwrap(),
        [
            "[interface] mtu changed",
            "peer b is now called bb",
            "peer c changed",
            "peer d removed",
            "peer e added"
        ]
    );
}

#[test]
fn what_needs_a_restart_is_refused_in_words() {
    let old = config("listen_port = 1", &[]);
    let new = config("listen_port = 2\nlanes = 2", &[]);
    let refused = compared(&old, &new).unwrap_err();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused[0].contains("listen_port goes from 1 to 2; restart the daemon"));
    assert!(refused[1].contains("lanes goes from 1 to 2"));
    let access = config("listen_port = 1", &[("b", 2, "[access]\noperate = [\"alice\"]")]);
    let refused = compared(&config("listen_port = 1", &[("b", 2, "")]), &access).unwrap_err();
    assert_eq!(refused, ["[access] is added or removed; restart the daemon for that"]);
}

/// A config that has each key of the reference at least once; its directory has the key files that it names.
const EVERY_KEY: &str = r#"
[interface]
name = "qvpn0"
private_key_file = "a.key"
listen_port = 51820
address = ["10.77.0.1/30"]
mtu = 1400
suite = "aes256gcm"
rekey_interval = "60s"
min_rekey_interval = "5s"
liveness = "2s"
lanes = 1
table = "auto"
fwmark = 7
dscp = 3
on_stop = "block"
protect = ["10.128.0.0/10"]
local = [{ prefix = "10.140.0.0/16", device = "eth1" }]
routes = "kernel"
routes_table = 100
metrics_listen = "127.0.0.1:9790"
log_level = "info"
include = "qvpn0.d/*.toml"

[kms]
sae_id = "SITE-A"
stock = 5

[[kms.kme]]
name = "kme-a1"
api = "etsi014"
sae_id = "GATEWAY-A"
url = "https://kme-a1.example:8443"
server_name = "kme-a1"
ca_file = "/tls/ca.pem"
cert_file = "/tls/cert.pem"
key_file = "/tls/key.pem"

[[kms.kme]]
name = "disk"
api = "file"
keys_file = "/keys"

[[kms.kme]]
name = "spare"
api = "file"
keys_file = "/spare"

[[kms.kme]]
name = "streams"
api = "etsi004"
url = "tls://kme-a4.example:8444"
dialect = "c"
link = "fibre-1"
ca_file = "/tls4/ca.pem"
cert_file = "/tls4/cert.pem"
key_file = "/tls4/key.pem"

[[peer]]
name = "site-b"
public_key = "PUBLIC-B"
endpoint = "203.0.113.9:51820"
allowed_ips = ["10.20.0.0/16"]
tunnel_address = ["10.77.0.3"]
sae_id = "SITE-B"
kmes = ["kme-a1", "disk"]
qkd = "preferred"
role = "initiator"
preshared_key_file = "a.psk"
persistent_keepalive = "25s"
suite = "chacha20poly1305"
rekey_interval = "30s"
disabled = false

[[peer]]
name = "site-c"
public_key = "PUBLIC-C"
allowed_ips = ["10.30.0.0/16"]
tunnel_address = ["10.77.0.4"]
qkd = "off"

[access]
observe = ["@monitoring"]
operate = ["@netops"]
admin = ["alice"]

[audit]
epochs = "all"
"#;

/// Section, key, a piece of [`EVERY_KEY`], and the text that replaces it to change the key.
const CHANGED_KEYS: &[(&str, &str, &str, &str)] = &[
    ("[interface]", "name", "name = \"qvpn0\"", "name = \"qvpn1\""),
    ("[interface]", "private_key_file", "\"a.key\"", "\"b.key\""),
    ("[interface]", "listen_port", "listen_port = 51820", "listen_port = 51821"),
    ("[interface]", "address", "10.77.0.1/30", "10.77.0.2/30"),
    ("[interface]", "mtu", "mtu = 1400", "mtu = \"auto\""),
    ("[interface]", "suite", "suite = \"aes256gcm\"", "suite = \"chacha20poly1305\""),
    ("[interface]", "rekey_interval", "rekey_interval = \"60s\"", "rekey_interval = \"50s\""),
    ("[interface]", "min_rekey_interval", "min_rekey_interval = \"5s\"", "min_rekey_interval = \"4s\""),
    ("[interface]", "liveness", "liveness = \"2s\"", "liveness = \"off\""),
    ("[interface]", "lanes", "lanes = 1", "lanes = 2"),
    ("[interface]", "table", "table = \"auto\"", "table = 51820"),
    ("[interface]", "fwmark", "fwmark = 7", "fwmark = 8"),
    ("[interface]", "dscp", "dscp = 3", "dscp = \"inherit\""),
    ("[interface]", "on_stop", "on_stop = \"block\"", "on_stop = \"open\""),
    ("[interface]", "protect", "10.128.0.0/10", "10.128.0.0/11"),
    ("[interface]", "local", "device = \"eth1\"", "device = \"eth2\""),
    ("[interface]", "routes", "routes = \"kernel\"\nroutes_table = 100", "routes = \"config\""),
    ("[interface]", "routes_table", "routes_table = 100", "routes_table = \"main\""),
    ("[interface]", "metrics_listen", "127.0.0.1:9790", "127.0.0.1:9791"),
    ("[interface]", "log_level", "log_level = \"info\"", "log_level = \"debug\""),
    ("[interface]", "include", "qvpn0.d/*.toml", "peers/*.toml"),
    ("[kms]", "sae_id", "sae_id = \"SITE-A\"", "sae_id = \"SITE-X\""),
    ("[kms]", "stock", "stock = 5", "stock = 6"),
    (
        "[kms]",
        "kme",
        "\n[[peer]]\nname = \"site-b\"",
        "\n[[kms.kme]]\nname = \"disk2\"\napi = \"file\"\nkeys_file = \"/keys2\"\n\n[[peer]]\nname \
         = \"site-b\"",
    ),
    ("[[kms.kme]]", "name", "name = \"spare\"", "name = \"spare2\""),
    ("[[kms.kme]]", "api", "api = \"etsi014\"", "api = \"skip\""),
    ("[[kms.kme]]", "sae_id", "sae_id = \"GATEWAY-A\"", "sae_id = \"GATEWAY-X\""),
    ("[[kms.kme]]", "url", "kme-a1.example:8443", "kme-a1.example:8444"),
    ("[[kms.kme]]", "dialect", "dialect = \"c\"", "dialect = \"python\""),
    ("[[kms.kme]]", "link", "link = \"fibre-1\"", "link = \"fibre-2\""),
    ("[[kms.kme]]", "server_name", "server_name = \"kme-a1\"", "server_name = \"kme-x\""),
    ("[[kms.kme]]", "ca_file", "/tls/ca.pem", "/tls/ca2.pem"),
    ("[[kms.kme]]", "cert_file", "/tls/cert.pem", "/tls/cert2.pem"),
    ("[[kms.kme]]", "key_file", "/tls/key.pem", "/tls/key2.pem"),
    ("[[kms.kme]]", "keys_file", "\"/keys\"", "\"/keys2\""),
    ("[[peer]]", "name", "name = \"site-b\"", "name = \"site-x\""),
    ("[[peer]]", "public_key", "PUBLIC-B", "PUBLIC-X"),
    ("[[peer]]", "endpoint", "203.0.113.9:51820", "gateway.example:51820"),
    ("[[peer]]", "allowed_ips", "10.20.0.0/16", "10.21.0.0/16"),
    ("[[peer]]", "tunnel_address", "10.77.0.3", "10.77.0.9"),
    ("[[peer]]", "sae_id", "sae_id = \"SITE-B\"", "sae_id = \"SITE-X\""),
    ("[[peer]]", "kmes", "[\"kme-a1\", \"disk\"]", "[\"disk\", \"kme-a1\"]"),
    ("[[peer]]", "qkd", "qkd = \"preferred\"", "qkd = \"required\""),
    ("[[peer]]", "role", "role = \"initiator\"", "role = \"responder\""),
    ("[[peer]]", "preshared_key_file", "\"a.psk\"", "\"b.psk\""),
    ("[[peer]]", "persistent_keepalive", "\"25s\"", "\"26s\""),
    ("[[peer]]", "suite", "suite = \"chacha20poly1305\"", "suite = \"aes256gcm\""),
    ("[[peer]]", "rekey_interval", "rekey_interval = \"30s\"", "rekey_interval = \"20s\""),
    ("[[peer]]", "disabled", "disabled = false", "disabled = true"),
    ("[access]", "observe", "@monitoring", "@others"),
    ("[access]", "operate", "@netops", "@others"),
    ("[access]", "admin", "\"alice\"", "\"bob\""),
    ("[audit]", "epochs", "epochs = \"all\"", "epochs = \"off\""),
];

#[test]
fn no_key_of_the_config_is_forgotten_at_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: String, text: &[u8]| {
        let path = dir.path().join(name);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path).unwrap();
        file.write_all(text).unwrap();
    };
    for (name, seed) in [("a", 1), ("b", 2)] {
        let psk = Psk::generate(&mut ChaCha20Rng::seed_from_u64(seed));
        write(format!("{name}.key"), identity(seed).to_text().expose());
        write(format!("{name}.psk"), psk.to_text().expose());
    }
    let load = |text: &str| {
        let mut text = text.to_owned();
        for (name, seed) in [("PUBLIC-B", 11), ("PUBLIC-C", 12), ("PUBLIC-X", 13)] {
            text = text.replace(name, &identity(seed).public().to_string());
        }
        let config = Config::parse(&dir.path().join("qvpn0.toml"), &text).unwrap();
        let keys = ConfigKeys::read(&config).unwrap();
        let settings = Settings::derive(&config, &keys).unwrap();
        (config, settings)
    };
    let old = load(EVERY_KEY);
    assert!(old.1 == load(EVERY_KEY).1, "the same config means the same");

    for (section, key, from, to) in CHANGED_KEYS {
        assert_eq!(EVERY_KEY.matches(from).count(), 1, "{section} {key}: {from}");
        let new = load(&EVERY_KEY.replacen(from, to, 1));
        let differs = old.1 != new.1;
        assert!(differs, "{section} {key}: no part of the daemon gets the new value");
        let said = match compare((&old.0, &old.1), (&new.0, &new.1)) {
            Ok(words) => words,
            Err(refusals) => refusals,
        };
        assert!(!said.is_empty(), "{section} {key}: changes without a word");
        assert!(!config::changes(&old.0, &new.0).is_empty(), "{section} {key}: not in a dry run");
        assert!(*section != "[interface]" || said[0].contains(key), "{section} {key}: {said:?}");
    }

    let changed: BTreeSet<_> = CHANGED_KEYS.iter().map(|(section, key, ..)| (*section, *key)).collect();
    let all = REFERENCE.iter().flat_map(|section| section.keys.iter().map(|key| (section.title, key.name)));
    assert_eq!(changed, all.collect(), "each key of the config needs a row here");
}
